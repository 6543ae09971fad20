"""A data set that a small detector learns in seconds: coloured blocks on grey noise, whose class is their colour.

So a mistake with the channels, the scale, the place or the number of a class costs accuracy at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

CLASSES = ("blue", "green", "red")
BGR = {"blue": (200, 60, 40), "green": (50, 190, 60), "red": (40, 50, 210)}
WIDTH, HEIGHT = 160, 96
TRAIN, VAL = 72, 40
FEW = {"train": 48, "val": 24}  # enough where a run ends with its first gate


def make(
    root: Path,
    seed: int = 1,
    train: int = TRAIN,
    val: int = VAL,
    classes: Sequence[str] = CLASSES,
    height: int = HEIGHT,
    grey: bool = False,
) -> Path:
    """KITTI below `root`, with the lists train.txt and val.txt; `grey`: PNG of one channel."""
    rng = np.random.default_rng(seed)
    ending = ".png" if grey else ".jpg"
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for part, count in (("train", train), ("val", val)):
        names = [f"{part}_{i:03}" for i in range(count)]
        for name in names:
            image, lines = picture(rng, classes, height)
            pixels = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) if grey else image
            (root / "images" / f"{name}{ending}").write_bytes(cv2.imencode(ending, pixels)[1].tobytes())
            (root / "labels" / f"{name}.txt").write_text("".join(lines))
        (root / f"{part}.txt").write_text("".join(f"images/{name}{ending}\n" for name in names))
    return root


def picture(rng: np.random.Generator, classes: Sequence[str], height: int) -> tuple[np.ndarray, list[str]]:
    """One to three blocks that do not touch, each in a third of the picture, and their KITTI lines."""
    image = rng.normal(120, 18, (height, WIDTH, 3))
    lines = []
    for third in rng.permutation(3)[: rng.integers(1, 4)]:
        name = classes[rng.integers(len(classes))]
        w, h = rng.integers(20, 44), rng.integers(20, 60)
        x = third * WIDTH // 3 + rng.integers(2, WIDTH // 3 - w - 1)
        y = rng.integers(2, height - h - 1)
        image[y : y + h, x : x + w] = np.array(BGR[name]) + rng.normal(0, 12, (h, w, 3))
        lines.append(f"{name} 0.00 0 -10 {x} {y} {x + w} {y + h} -1 -1 -1 -1000 -1000 -1000 -10\n")
    return np.clip(image, 0, 255).astype(np.uint8), lines
