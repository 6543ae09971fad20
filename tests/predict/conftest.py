"""These tests need the tools environment (.refit/envs/tools); elsewhere they are not collected.

Those that ask Triton share one real server, and skip where the Triton environment is missing.
"""

from __future__ import annotations

import importlib.util

if all(importlib.util.find_spec(name) for name in ("onnx", "tritonclient", "simplejpeg")):
    from tests.triton.fixtures import client, local_triton, place, server

    __all__ = ["client", "local_triton", "place", "server"]
else:
    collect_ignore_glob = ["test_*.py"]
