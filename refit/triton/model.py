"""What a version is: an ONNX file, or TensorRT plans, one for each compute capability.

A plan's inputs and outputs stand in its engine.json: only TensorRT on a GPU could read them from the plan.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from refit.engine.record import EngineRecord, RecordError
from refit.engine.record import Tensor as EngineTensor
from refit.files import sha256
from refit.triton.config import Signature, Tensor, read_signature
from refit.triton.errors import ArtefactError

ONNX = "model.onnx"
PLANS = (".plan", ".engine")


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model, checked.

    Attributes:
        folder: where they lie.
        files: name in the version's folder -> file; model.onnx, or plans and their records.
        engines: the records of the plans; empty for ONNX.
        sha256: of the model file; of the names and hashes of all plans where there are several.
    """

    folder: Path
    files: Mapping[str, Path]
    signature: Signature
    engines: tuple[EngineRecord, ...]
    sha256: str
    bytes: int

    @property
    def plans(self) -> dict[str, str]:
        """Compute capability -> plan."""
        return {e.gpu.compute_capability: e.plan.file for e in self.engines}

    @property
    def max_batch_size(self) -> int | None:
        """The largest batch that every plan takes; None where nothing limits it."""
        return min((e.profile.max for e in self.engines if e.profile is not None), default=None)

    def digest(self, folder: Path) -> str:
        """The sha256 of these files as they lie in another folder."""
        names = [e.plan.file for e in self.engines] or list(self.files)
        return _digest({name: folder / name for name in names})


def read_model(path: Path) -> ModelFiles:
    """Read a model: an ONNX file, one plan, or a folder with either (its plans, where it has some).

    Raises:
        ArtefactError: something is missing or broken, or the plans do not belong together.
    """
    folder = path if path.is_dir() else path.parent
    if not path.is_dir() and path.suffix not in PLANS:
        return _onnx(path)
    records = {}
    try:
        for file in sorted(folder.glob("engine*.json")):
            records[file] = EngineRecord.read(file)
        if not path.is_dir():
            records = {file: record for file, record in records.items() if record.plan.file == path.name}
        elif not records:
            return _onnx(path / ONNX)
        if not records:
            raise ArtefactError(f"{path}: no engine.json beside it describes it; run build or describe of refit.engine")
        plans = {record.plan.file: record.check_file(folder) for record in records.values()}
    except RecordError as exc:
        raise ArtefactError(str(exc)) from None
    engines = tuple(sorted(records.values(), key=lambda e: e.gpu.compute_capability))
    return ModelFiles(
        folder=folder,
        files={**plans, **{file.name: file for file in records}},
        signature=_signature(folder, engines),
        engines=engines,
        sha256=_digest(plans),
        bytes=sum(e.plan.bytes for e in engines),
    )


def _onnx(path: Path) -> ModelFiles:
    signature = read_signature(path)
    return ModelFiles(path.parent, {ONNX: path}, signature, (), sha256(path), path.stat().st_size)


def _signature(folder: Path, engines: tuple[EngineRecord, ...]) -> Signature:
    """What all plans have in common, which must be everything. Triton asks them for batches from 1."""
    for engine in engines:
        if engine.profile is not None and engine.profile.min != 1:
            raise ArtefactError(
                f"{folder / engine.plan.file}: takes batches from {engine.profile.min}, and Triton asks for 1 too; "
                "build it with batch.min: 1"
            )
    signatures = [Signature(_tensors(e.inputs, e.batch), _tensors(e.outputs, e.batch), e.batch) for e in engines]
    for engine, signature in zip(engines, signatures, strict=True):
        if signature != signatures[0]:
            raise ArtefactError(
                f"{folder}: {engine.plan.file} and {engines[0].plan.file} have other inputs or outputs; "
                "build both from the same ONNX file"
            )
    return signatures[0]


def _tensors(tensors: Iterable[EngineTensor], batch: bool) -> tuple[Tensor, ...]:
    return tuple(Tensor(t.name, t.datatype, t.dims[1:] if batch else t.dims) for t in tensors)


def _digest(files: Mapping[str, Path]) -> str:
    hashes = {name: sha256(path) for name, path in sorted(files.items())}
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    return hashlib.sha256("".join(f"{value} {name}\n" for name, value in hashes.items()).encode()).hexdigest()
