"""`reference.npz`: what ONNX Runtime answers for some real images, beside each model that is made here.

A release holds Triton's answers against it (docs/contracts.md, "Reference answers"): it comes from another process,
another installation and another day than the server that is judged, so it can tell that the server is wrong.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from refit.cpu.models import OnnxModel
from refit.cpu.records import Dataset
from refit.files import write_bytes
from refit.postprocess import InputInfo, preprocess

FILE = "reference.npz"
IMAGES = 8
"""So many at most: an image of 960x544 is 6 MB of input, and a release sends each to every server twice."""


def images(dataset: Dataset, entry: InputInfo) -> NDArray[np.float32] | None:
    """Up to `IMAGES` of the val split (or the first that has any), spread over it, as the network's input [n, c, h, w].

    None where the data set has no image. Raises BadData for an image that cannot be decoded.
    """
    name = next((n for n in ("val", *dataset.splits) if n in dataset.splits and dataset.splits[n].images), None)
    if name is None:
        return None
    records = dataset.split(name)
    chosen = range(0, len(records), max(1, len(records) // IMAGES))[:IMAGES]
    return np.concatenate([preprocess(records[i].image(), entry)[0] for i in chosen])


def write(out: Path, model: OnnxModel, inputs: NDArray[np.float32]) -> None:
    """Write `out/reference.npz`: the inputs and the model's answers, each image asked by itself, as a release asks."""
    answers = [model(row) for row in np.split(inputs, len(inputs))]
    arrays = {f"input:{model.info.input.name}": inputs}
    arrays |= {f"output:{name}": np.concatenate([answer[name] for answer in answers]) for name in answers[0]}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # no tensor is called allow_pickle
    write_bytes(out / FILE, buffer.getvalue())
