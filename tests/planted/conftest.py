"""The clean run that faults are planted in and that clean runs go on from; made once. In the tools environment only."""

from __future__ import annotations

import importlib.util

if importlib.util.find_spec("cv2"):
    from tests.planted.fixtures import good, home

    __all__ = ["good", "home"]
else:
    collect_ignore_glob = ["test_*.py"]
