"""Small things to test with: pictures, a plan's head, model.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from refit.postprocess import InputInfo, ModelInfo


def pictures(folder: Path, count: int, size: tuple[int, int] = (40, 30)) -> Path:
    """Noise as PNG files, `size` is width and height."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        noise = np.random.default_rng(i).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{i:03}.png"), noise)
    return folder


def plan(path: Path, version: tuple[int, int, int, int] = (10, 8, 0, 43), form: int = 0) -> Path:
    """A file that begins as a TensorRT plan does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"ftrt" + form.to_bytes(4, "little") + bytes(16) + bytes(version) + bytes(100))
    return path


def info(**changes: Any) -> ModelInfo:
    base: dict[str, Any] = {
        "decoder": "detectnet_v2",
        "classes": ("car", "person"),
        "input": InputInfo("input_1", 32, 16),
        "outputs": {"coverage": "output_cov/Sigmoid", "bbox": "output_bbox/BiasAdd"},
    }
    return ModelInfo(**{**base, **changes})
