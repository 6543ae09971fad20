"""The images that INT8 ranges are measured on, and the measuring.

Images come from the train split only: ranges fitted to images of an evaluation split would make its figures too good.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnxruntime.quantization.calibrate import (
    CalibrationDataReader,
    EntropyCalibrater,
    HistogramCalibrater,
    MinMaxCalibrater,
    PercentileCalibrater,
)

from refit.command import BadData
from refit.cpu.qdq import Ranges
from refit.cpu.records import Record
from refit.cpu.specs import QuantizeParams
from refit.cpu.work import ordered_map
from refit.postprocess import InputInfo, preprocess
from refit.postprocess.blank import shows_nothing, told

# onnxruntime's own default for entropy, 128, gives the ranges of minmax; 2048 those of 512, in five times the time.
_BINS = 512
# All tensors of so many images are in memory at a time; the histograms are the same for any number.
_CHUNK = 4


def choose(records: Sequence[Record], classes: int, count: int, seed: int) -> list[int]:
    """Indices of `count` images (or all there are), spread over the classes, in order.

    Copies that augment made are left out: production sees no such pictures. The image that shows most of the class
    seen least so far comes next, so a rare class is not left to chance; ties and images beyond that are drawn with the
    seed.
    """
    order = np.random.default_rng(seed).permutation(len(records))
    shows = np.zeros((len(records), classes), dtype=bool)
    own = np.zeros(len(records), dtype=bool)
    for i in range(len(records)):
        record = records[i]
        shows[i, record.classes] = True
        own[i] = not record.made_from
    shows, left = shows[order], own[order]
    shows &= left[:, None]
    seen = np.zeros(classes, dtype=np.int64)
    chosen: list[int] = []
    while len(chosen) < min(count, int(own.sum())):
        available = np.array([(shows[:, c] & left).any() for c in range(classes)])
        if available.any():
            rarest = int(np.argmin(np.where(available, seen, np.iinfo(np.int64).max)))
            position = int(np.argmax(shows[:, rarest] & left))
        else:
            position = int(np.argmax(left))
        left[position] = False
        seen += shows[position]
        chosen.append(int(order[position]))
    return sorted(chosen)


@dataclass(frozen=True)
class Sample:
    """One calibration image, as it is recorded."""

    file: str
    sha256: str


def sample(record: Record) -> Sample:
    return Sample(record.file, sha256(record.encoded).hexdigest())


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, name: str, arrays: Sequence[NDArray[np.float32]]) -> None:
        self._items = iter([{name: array} for array in arrays])

    def get_next(self) -> Any:
        return next(self._items, None)


def measure(model: Path, images: Sequence[Record], target: InputInfo, params: QuantizeParams) -> Ranges:
    """The range of each tensor of a float32 ONNX model on these images, by `params.method`.

    Raises BadData for an image that cannot be decoded.
    """
    kinds = {"percentile": PercentileCalibrater, "entropy": EntropyCalibrater, "minmax": MinMaxCalibrater}
    options: dict[str, Any] = {} if params.method == "minmax" else {"num_bins": _BINS}
    if params.method == "percentile":
        options["percentile"] = params.percentile
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        augmented = str(Path(folder) / "augmented.onnx")
        calibrator = kinds[params.method](model, None, augmented_model_path=augmented, **options)
        calibrator.augment_graph()
        calibrator.create_inference_session()
        for start in range(0, len(images), _CHUNK):
            part = [preprocess(r.image(), target)[0] for r in images[start : start + _CHUNK]]
            calibrator.collect_data(_Reader(target.name, part))
        assert isinstance(calibrator, HistogramCalibrater | MinMaxCalibrater)
        data = calibrator.compute_data()
    return {
        name: (float(np.min(data[name].range_value[0])), float(np.max(data[name].range_value[1])))
        for name in sorted(data.keys())
    }


def check_pictures(images: Sequence[Record]) -> str:
    """What a person should know of the calibration images, "" where there is nothing.

    Raises:
        BadData: most of them show nothing, so the ranges would be of nothing; names some of them.
    """

    def flat(record: Record) -> bool:
        return shows_nothing(record.image()[::4, ::4])  # a sample is enough

    blank = [record.file for record, empty in zip(images, ordered_map(flat, images), strict=True) if empty]
    sentence, most = told(blank, len(images))
    if most:
        raise BadData(sentence)
    return sentence
