"""These tests need the tools environment (.refit/envs/tools); elsewhere they are not collected.

Those that start a server need the Triton environment beside it, and skip without it.
"""

from __future__ import annotations

import importlib.util

if all(importlib.util.find_spec(name) for name in ("onnx", "tritonclient", "cv2")):
    from tests.triton.fixtures import client, local_triton, place, said, server

    __all__ = ["client", "local_triton", "place", "said", "server"]
else:
    collect_ignore_glob = ["test_*.py"]
