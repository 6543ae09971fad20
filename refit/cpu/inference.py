"""inference: a folder of images -> JSON and pictures with boxes, by a model's own file.

The files written are those of `refit.predict.results`; through Triton the same is `python -m refit.predict inference`.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refit.command import BadData, BadSpec
from refit.cpu.convert import verify_image
from refit.cpu.models import BATCH, open_model
from refit.cpu.records import decode_image
from refit.cpu.status import StatusWriter
from refit.cpu.work import workers
from refit.files import sha256
from refit.predict.images import Unreadable
from refit.predict.specs import FileInferenceSpec
from refit.predict.stage import find, predict
from refit.triton.errors import RepositoryError
from refit.triton.ledger import Ledger
from refit.triton.model import ONNX


def run(spec: FileInferenceSpec, out: Path, status: StatusWriter) -> None:
    """Detect objects in every image of `spec.images`.

    Raises:
        BadSpec: the model cannot be used, or images and results would mix.
        BadData: no image at all, none that can be read, or more that cannot than `max_bad_images` allows.
    """
    images = find(spec, out, status)
    predict(spec, images, FileModel(spec), decode, out, status)


class FileModel:
    """A file as `refit.predict.work.Model`: as many requests at once as there are cores, each on one of them."""

    batch = BATCH

    def __init__(self, spec: FileInferenceSpec) -> None:
        path, version = (Path(spec.model), None) if spec.model is not None else _released(spec)
        self._predictor = open_model(path, threads=1)
        self.info, self.workers = self._predictor.info, workers()
        self.about: Mapping[str, Any] = {
            "through": "file",
            "model": spec.name or path.name,
            "version": version,
            "sha256": sha256(path),
        }

    def ask(self, tensor: NDArray[np.float32], stop: threading.Event) -> Mapping[str, NDArray[Any]]:
        return self._predictor(tensor)


def decode(data: bytes) -> NDArray[np.uint8]:
    """RGB uint8 [height, width, 3]. Raises Unreadable for what cannot be read to its end."""
    try:
        verify_image(data, "")
        return decode_image(data, "")
    except BadData as exc:
        raise Unreadable("image_unreadable", str(exc).removeprefix(": ")) from None


def _released(spec: FileInferenceSpec) -> tuple[Path, int]:
    """The file of a version that the ledger has. Raises BadSpec."""
    ledger = Ledger(Path(spec.releases or ""))
    try:
        record = ledger.serving(spec.name or "") if spec.version is None else ledger.read(spec.version)
    except RepositoryError as exc:
        raise BadSpec(str(exc)) from None
    if record is None or record.model != spec.name:
        what = "no version that serves" if spec.version is None else f"no version {spec.version}"
        raise BadSpec(f"{ledger.folder}: has {what} of {spec.name}; `refit releases` lists what there is")
    path = ledger.model(record.version) / ONNX
    if not path.is_file():
        raise BadSpec(
            f"{path}: no such file: the version is too old, or a TensorRT engine, which only Triton's GPU runs; "
            "ask through Triton, or name another version"
        )
    return path, record.version
