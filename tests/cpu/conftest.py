"""Snapshots and records made on the spot: small pictures with painted rectangles, labelled exactly."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from refit.cpu.records import Dataset, Record, write_split
from refit.cpu.status import StatusWriter

CLASSES = ("car", "person", "sign")
COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))  # RGB, one a class


@dataclass(frozen=True)
class Labelled:
    """A picture and its labels."""

    image: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    classes: NDArray[np.int64]


def painted(
    boxes: Sequence[Sequence[int]], classes: Sequence[int], width: int = 160, height: int = 96
) -> NDArray[np.uint8]:
    """A black RGB picture with one filled rectangle for each box, in its class's colour."""
    image = np.zeros((height, width, 3), dtype=np.uint8)
    for (x1, y1, x2, y2), index in zip(boxes, classes, strict=True):
        image[y1:y2, x1:x2] = COLORS[index]
    return image


def scene(seed: int, width: int = 160, height: int = 96) -> Labelled:
    """One rectangle of each class, in thirds of the picture: they never touch."""
    rng = np.random.default_rng(seed)
    third = width // 3
    boxes = []
    for i in range(3):
        x1, y1 = i * third + int(rng.integers(2, third // 3)), int(rng.integers(2, height // 3))
        boxes.append((x1, y1, x1 + int(rng.integers(16, third // 2)), y1 + int(rng.integers(16, height // 2))))
    classes = rng.permutation(3)
    return Labelled(painted(boxes, classes, width, height), np.array(boxes, np.float32), classes.astype(np.int64))


def encode(image: NDArray[np.uint8], suffix: str = ".png") -> bytes:
    return cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


def record(seed: int, name: str | None = None, suffix: str = ".png") -> Record:
    s = scene(seed)
    height, width = s.image.shape[:2]
    flags = np.array([True, False, False])
    return Record(name or f"{seed:04d}{suffix}", width, height, encode(s.image, suffix), s.boxes, s.classes, flags)


@pytest.fixture
def make_records(tmp_path: Path) -> Callable[..., Path]:
    """Write a records folder: make_records({"train": 4, "val": 2}, shards=2) -> folder."""

    def make(splits: dict[str, int], shards: int = 1, suffix: str = ".png") -> Path:
        folder = tmp_path / "records"
        infos = {}
        for number, (split, count) in enumerate(splits.items()):
            records = (record(1000 * number + i, suffix=suffix) for i in range(count))
            infos[split] = write_split(folder, split, records, CLASSES, shards)
        Dataset(folder, CLASSES, infos, "f" * 64).save()
        return folder

    return make


class SnapshotBuilder:
    """Builds a snapshot in the form of docs/contracts.md, right or wrong as the test wants it."""

    def __init__(self, folder: Path, classes: Sequence[str] = CLASSES) -> None:
        self.folder, self.classes = folder, list(classes)
        self.rows: list[dict[str, Any]] = []
        (folder / "images").mkdir(parents=True)

    def add(self, name: str, split: str, data: bytes, size: tuple[int, int], objects: list[dict[str, Any]]) -> None:
        (self.folder / "images" / name).write_bytes(data)
        self.rows.append(
            {
                "file": name,
                "sha256": sha256(data).hexdigest(),
                "width": size[0],
                "height": size[1],
                "split": split,
                "source": f"somewhere/{name}",
                "objects": objects,
            }
        )

    def add_scene(self, seed: int, split: str, suffix: str = ".jpg", data: bytes | None = None) -> None:
        s = scene(seed)
        height, width = s.image.shape[:2]
        objects = [
            {"class": self.classes[c], **dict(zip(("x1", "y1", "x2", "y2"), map(float, box), strict=True))}
            for box, c in zip(s.boxes, s.classes, strict=True)
        ]
        self.add(f"{seed:04d}{suffix}", split, data or encode(s.image, suffix), (width, height), objects)

    def save(self) -> Path:
        splits = {s: sum(r["split"] == s for r in self.rows) for s in {r["split"] for r in self.rows}}
        about = {"schema": 2, "fingerprint": "a" * 64, "classes": self.classes, "splits": splits}
        about |= {"objects": {}, "issues": {"zero_area": 2}}
        (self.folder / "dataset.json").write_text(json.dumps(about))
        (self.folder / "annotations.jsonl").write_text("".join(json.dumps(r) + "\n" for r in self.rows))
        return self.folder


@pytest.fixture
def snapshot(tmp_path: Path) -> SnapshotBuilder:
    """An empty snapshot to fill."""
    return SnapshotBuilder(tmp_path / "snapshot")


@pytest.fixture
def status(tmp_path: Path) -> StatusWriter:
    return StatusWriter(tmp_path / "status")


def status_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny detector's `model.pth` that finds almost all painted rectangles."""
    from tests.cpu.tiny import good_detector

    return good_detector(tmp_path_factory.mktemp("trained"))
