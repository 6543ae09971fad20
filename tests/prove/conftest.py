"""These tests need the tools environment (.refit/envs/tools), and the Triton environment beside it."""

from __future__ import annotations

import importlib.util

if all(importlib.util.find_spec(name) for name in ("onnx", "tritonclient", "cv2")):
    from tests.prove.house import house, port
    from tests.triton.fixtures import local_triton

    __all__ = ["house", "local_triton", "port"]
else:
    collect_ignore_glob = ["test_*.py"]
