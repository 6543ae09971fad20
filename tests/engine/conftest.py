"""These tests need the tools environment (.refit/envs/tools); elsewhere they are not collected."""

from __future__ import annotations

import importlib.util

if not all(importlib.util.find_spec(name) for name in ("onnx", "tritonclient", "cv2")):
    collect_ignore_glob = ["test_*.py"]
