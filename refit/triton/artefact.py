"""The model that a release is about: read and checked before anything is touched."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refit.postprocess import ModelInfo, ModelInfoError, decoder_for
from refit.postprocess.info import FILE_NAME
from refit.triton import reference
from refit.triton.config import Signature
from refit.triton.errors import ArtefactError
from refit.triton.model import ModelFiles, read_model
from refit.triton.reference import Reference
from refit.triton.specs import ReleaseSpec


@dataclass(frozen=True)
class Artefact:
    """An exported model with what stands beside it.

    Attributes:
        model: the ONNX file or the plans.
        info: model.json, checked.
        reference: reference.npz, None where there is none.
    """

    model: ModelFiles
    info: ModelInfo
    reference: Reference | None

    @property
    def signature(self) -> Signature:
        return self.model.signature

    @property
    def sha256(self) -> str:
        return self.model.sha256

    @property
    def sidecar(self) -> dict[str, Any]:
        """model.json as an object, with every default in it."""
        return self.info.to_json()

    def files(self) -> dict[str, Path]:
        """What goes into the version's folder, by name."""
        return {**self.model.files, FILE_NAME: self.model.folder / FILE_NAME}

    def free_dims(self) -> dict[str, tuple[int, ...]]:
        """Sizes for the warm-up of inputs with free dims."""
        return {t.name: reference.concrete(t, self.sidecar) for t in self.signature.inputs if -1 in t.dims}


def read_artefact(path: Path, samples: int | None = None) -> Artefact:
    """Read a model (`refit.triton.model.read_model`), its model.json and its reference.npz.

    Args:
        samples: so many of the reference's are kept; None: all.

    Raises:
        ArtefactError: one of them is missing (but the reference), broken, or does not fit the others.
    """
    model = read_model(path)
    info = _read_info(model.folder / FILE_NAME, model.signature, "engine" if model.engines else "ONNX file")
    file = model.folder / reference.FILE
    given = Reference.load(file, model.signature, f"{reference.FILE} beside the model") if file.exists() else None
    return Artefact(model, info, given.first(samples) if given else None)


def _read_info(path: Path, signature: Signature, what: str) -> ModelInfo:
    """model.json, held against the model file: names, and the size of the input."""
    try:
        info = ModelInfo.read(path)
        decoder_for(info)
    except ModelInfoError as exc:
        raise ArtefactError(str(exc)) from None
    inputs, outputs = {t.name: t for t in signature.inputs}, {t.name for t in signature.outputs}
    if info.input.name not in inputs:
        raise ArtefactError(f"{path}: input.name is {info.input.name!r}, the {what} has {sorted(inputs)}")
    missing = sorted(set(info.outputs.values()) - outputs)
    if missing:
        raise ArtefactError(f"{path}: outputs names {missing[0]!r}, the {what} has {sorted(outputs)}")
    size = info.input.shape
    dims = inputs[info.input.name].dims[-3:]
    if len(dims) != 3 or any(d not in (-1, s) for d, s in zip(dims, size, strict=True)):
        raise ArtefactError(f"{path}: the input is {list(size)} ({info.input.layout}), in the {what} {list(dims)}")
    return info


@dataclass(frozen=True)
class Origin:
    """Where a model comes from: pipeline, run, stage key, and what it reached."""

    pipeline: str
    run: str
    key: str
    metrics: dict[str, float]


def read_request(out: Path | None) -> dict[str, Any]:
    """The stage's request.json, which stands beside its result folder; {} where it runs by hand."""
    if out is None:
        return {}
    try:
        request: dict[str, Any] = json.loads((out.absolute().parent / "request.json").read_text(encoding="utf-8"))
        return request
    except (OSError, ValueError):
        return {}


def read_origin(spec: ReleaseSpec, out: Path | None) -> Origin:
    """From the spec, and where it is silent from the stage's request.json (beside ``out``).

    Raises:
        ArtefactError: the results file cannot be read.
    """
    request = read_request(out)
    metrics = dict(spec.metrics)
    if spec.results is not None:
        metrics = {**_metrics(spec.results), **metrics}
    return Origin(
        pipeline=spec.pipeline or request.get("pipeline") or "by-hand",
        run=spec.run or request.get("run") or "by-hand",
        key=spec.key or request.get("key") or "",
        metrics=metrics,
    )


def _metrics(path: Path) -> dict[str, float]:
    """The figures of an evaluation's results.json, or of the runner's result.json, AP50 of each class as
    ``AP50/<class>``."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        figures = dict(value["metrics"])
        figures |= {f"AP50/{name}": scores.get("AP50") for name, scores in value.get("per_class", {}).items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as exc:
        raise ArtefactError(
            f"{path}: cannot be read as evaluation results ({exc}); run the evaluate stage again"
        ) from None
    numbers = {k: v for k, v in figures.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    return {name: float(v) for name, v in numbers.items() if math.isfinite(v)}
