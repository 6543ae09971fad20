"""Small real data sets for the tests: real JPEG files, real label files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

pytest.importorskip("simplejpeg", reason="runs in the tools environment only")

import cv2
import numpy as np

from refit.data.settings import DatasetSettings

WIDTH, HEIGHT = 64, 48
CLASSES = ("car", "cat", "dog")
SETTINGS = DatasetSettings(classes=list(CLASSES))


def picture(seed: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """A picture that no other seed has."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(seed: int, suffix: str = ".jpg", width: int = WIDTH, height: int = HEIGHT) -> bytes:
    return cv2.imencode(suffix, picture(seed, width, height))[1].tobytes()


def kitti_line(cls: str = "car", x1: float = 5, y1: float = 6, x2: float = 25, y2: float = 30) -> str:
    return f"{cls} 0.00 0 -10 {x1:.2f} {y1:.2f} {x2:.2f} {y2:.2f} -1 -1 -1 -1000 -1000 -1000 -10"


def kitti_set(root: Path, images: int = 12, lines: Sequence[str] | None = None) -> Path:
    """A good KITTI data set: image i has one object of class i modulo 3, or the given lines in each label file."""
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    for i in range(images):
        (root / "images" / f"{i:03}.jpg").write_bytes(encoded(i))
        text = [kitti_line(CLASSES[i % 3])] if lines is None else lines
        (root / "labels" / f"{i:03}.txt").write_text("".join(f"{line}\n" for line in text))
    return root


def voc_object(name: str = "car", box: Sequence[object] = (5, 6, 25, 30), extra: str = "") -> str:
    sides = "".join(f"<{t}>{v}</{t}>\n" for t, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object>\n<name>{name}</name>\n{extra}<bndbox>\n{sides}</bndbox>\n</object>\n"


def voc_text(*objects: str, width: int = WIDTH, height: int = HEIGHT) -> str:
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>\n"
    return f"<annotation>\n<filename>x.jpg</filename>\n{size}{''.join(objects)}</annotation>\n"


def voc_set(root: Path, images: int = 12) -> Path:
    (root / "JPEGImages").mkdir(parents=True)
    (root / "Annotations").mkdir()
    for i in range(images):
        (root / "JPEGImages" / f"{i:03}.jpg").write_bytes(encoded(i))
        (root / "Annotations" / f"{i:03}.xml").write_text(voc_text(voc_object(CLASSES[i % 3])))
    return root


def coco_set(root: Path, images: int = 12, first: int = 0) -> Path:
    """A good COCO data set: ids with gaps, image i has one object of class i modulo 3; `first` picks the pictures."""
    (root / "images").mkdir(parents=True)
    (root / "annotations").mkdir()
    rows = []
    for i in range(images):
        (root / "images" / f"{i:03}.jpg").write_bytes(encoded(first + i))
        rows.append({"id": 7 * i, "file_name": f"{i:03}.jpg", "width": WIDTH, "height": HEIGHT})
    objects = [
        {"id": i + 1, "image_id": 7 * i, "category_id": 30 + 10 * (i % 3), "bbox": [5, 6, 20.1, 24], "iscrowd": 0}
        for i in range(images)
    ]
    classes = [{"id": 30 + 10 * i, "name": name} for i, name in enumerate(CLASSES)]
    text = json.dumps({"images": rows, "annotations": objects, "categories": classes})
    (root / "annotations" / "instances_default.json").write_text(text)
    return root


def yolo_set(root: Path, images: int = 12) -> Path:
    """A good YOLO data set: image i has one object of class i modulo 3, 32 by 24 pixels in the middle."""
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    (root / "data.yaml").write_text("names: [" + ", ".join(CLASSES) + "]\n")
    for i in range(images):
        (root / "images" / f"{i:03}.jpg").write_bytes(encoded(i))
        (root / "labels" / f"{i:03}.txt").write_text(f"{i % 3} 0.5 0.5 0.5 0.5\n")
    return root
