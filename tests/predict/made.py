"""Images, and a model without a server whose answers are known."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from refit.postprocess import InputInfo, ModelInfo

CLASSES = ("red", "grün")


def noise(seed: int, width: int = 48, height: int = 32) -> NDArray[np.uint8]:
    """RGB."""
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def encoded(image: NDArray[np.uint8], suffix: str = ".jpg") -> bytes:
    return cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


def folder_of(root: Path, count: int, suffix: str = ".jpg") -> Path:
    """`count` pictures, every third in a subfolder."""
    for i in range(count):
        path = root / ("gate" if i % 3 == 0 else "") / f"{i:03d}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(noise(i), suffix))
    return root


class Counting:
    """A `refit.predict.work.Model` that finds one object of each class in every image, and counts what it is asked.

    The scores are 0.6 and 0.4. After `dies_after` images it raises.
    """

    info = ModelInfo(
        "efficientdet",
        CLASSES,
        InputInfo("input", 32, 32, layout="nhwc", resize="stretch"),
        dict(zip(("count", "boxes", "scores", "classes"), "nbsc", strict=True)),
    )

    def __init__(self, batch: int = 4, workers: int = 2, dies_after: int | None = None, version: int = 1) -> None:
        self.batch, self.workers, self._left = batch, workers, dies_after
        self.about: Mapping[str, Any] = {"through": "test", "model": "m", "version": version, "sha256": "0" * 64}
        self.asked = self.most = self._now = 0
        self._lock = threading.Lock()

    def ask(self, tensor: NDArray[np.float32], stop: threading.Event) -> Mapping[str, NDArray[Any]]:
        n = len(tensor)
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
            if self._left is not None and self.asked + n > self._left:
                raise MemoryError
            self.asked += n
        try:
            return {
                "n": np.full((n, 1), 2, np.int32),
                "b": np.tile(np.array([[4, 8, 30, 24], [0, 0, 32, 16]], np.float32), (n, 1, 1)),  # y1 x1 y2 x2
                "s": np.tile(np.array([0.6, 0.4], np.float32), (n, 1)),
                "c": np.tile(np.array([0, 1], np.int32), (n, 1)),
            }
        finally:
            with self._lock:
                self._now -= 1
