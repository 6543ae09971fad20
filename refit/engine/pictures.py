"""The images that INT8 ranges are measured on.

They are fed exactly as evaluation and clients feed the model (`refit.postprocess.preprocess`), in whole batches: TAO's
own calibration drops what does not fill a batch, and so a folder that is too small would calibrate on less than was
asked for without a word.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refit import picture
from refit.command import BadData
from refit.files import sha256
from refit.postprocess import InputInfo, preprocess
from refit.postprocess.blank import shows_nothing, told

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")


def choose(folder: Path, batches: int, batch_size: int) -> list[Path]:
    """The first `batches` x `batch_size` images of a folder, by name.

    Raises:
        BadData: there is no such folder, or it has fewer.
    """
    if not folder.is_dir():
        raise BadData(f"{folder}: no such folder; name the calibration images that prepare chose")
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    wanted = batches * batch_size
    if len(found) < wanted:
        raise BadData(
            f"{folder}: {len(found)} images, and {batches} batches of {batch_size} need {wanted}; "
            "give more images, or lower calibration.batches"
        )
    return found[:wanted]


def check(paths: Sequence[Path]) -> str:
    """What a person should know of the pictures, "" where there is nothing.

    Raises:
        BadData: most show nothing, so that ranges would be of nothing, or one cannot be decoded.
    """
    blank = [path.name for path in paths if shows_nothing(_read(path)[::4, ::4])]
    sentence, most = told(blank, len(paths))
    if most:
        raise BadData(sentence)
    return sentence


def digest(paths: Sequence[Path], target: InputInfo, batch_size: int) -> str:
    """What ranges depend on besides the model: the images' bytes in their order, and how they are fed."""
    facts = {"images": [sha256(p) for p in paths], "input": asdict(target), "batch_size": batch_size}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def batches(paths: Sequence[Path], target: InputInfo, batch_size: int) -> Iterator[NDArray[Any]]:
    """The images as the model takes them, a batch at a time.

    Raises:
        BadData: one cannot be decoded.
    """
    for start in range(0, len(paths), batch_size):
        yield np.concatenate([_fed(path, target) for path in paths[start : start + batch_size]])


def _fed(path: Path, target: InputInfo) -> NDArray[Any]:
    return preprocess(_read(path), target)[0]


def _read(path: Path) -> NDArray[np.uint8]:
    try:
        return picture.read(path)
    except picture.PictureError as exc:
        raise BadData(str(exc)) from None
