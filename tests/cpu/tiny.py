"""A data set that a tiny detector learns in seconds, and the detector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from refit.cpu import train
from refit.cpu.records import Dataset, Record, write_split
from refit.cpu.specs import TrainSpec
from refit.cpu.status import StatusWriter
from tests.cpu.conftest import CLASSES, encode, scene

NETWORK: dict[str, Any] = {"width": 0.5, "input_width": 160, "input_height": 96}


def tiny_record(seed: int, difficult: bool = False) -> Record:
    """Three painted rectangles, one of each class."""
    s = scene(seed)
    height, width = s.image.shape[:2]
    flags = np.full(len(s.classes), difficult)
    return Record(f"{seed:04d}.png", width, height, encode(s.image), s.boxes, s.classes, flags)


def empty_record(seed: int) -> Record:
    """A black picture without objects."""
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    return Record(f"{seed:04d}.png", 160, 96, encode(np.zeros((96, 160, 3), np.uint8)), *none)


def write(folder: Path, splits: dict[str, list[Record]], fingerprint: str = "f" * 64) -> Path:
    """A records folder."""
    infos = {name: write_split(folder, name, records, CLASSES) for name, records in splits.items()}
    Dataset(folder, CLASSES, infos, fingerprint).save()
    return folder


def tiny_records(folder: Path, train: int = 16, val: int = 6) -> Path:
    """A records folder with a train and a val split."""
    return write(
        folder,
        {"train": [tiny_record(i) for i in range(train)], "val": [tiny_record(1000 + i) for i in range(val)]},
    )


def train_spec(records: Path, **more: Any) -> TrainSpec:
    """A training that takes seconds."""
    values = {"records": str(records), "network": NETWORK, "epochs": 2, "batch_size": 4, "threads": 1, "seed": 3}
    return TrainSpec.model_validate({**values, **more})


def good_detector(folder: Path, seed: int = 3) -> Path:
    """The `model.pth` of a training that takes three seconds; good whatever the seed and the processor."""
    spec = train_spec(tiny_records(folder / "records", 32), epochs=24, evaluate_every=24, learning_rate=2e-3, seed=seed)
    train.run(spec, folder, StatusWriter(folder))
    return folder / "model.pth"
