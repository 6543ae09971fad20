"""What a model must answer: samples that go in, and the outputs that must come out.

The outputs come from the stage that made the model (``reference.npz`` beside it: onnxruntime's own answers, an
independent witness), or else from a throwaway Triton. Production must give the same within a tolerance: an INT8
model's integer kernels differ between CPUs, so the last bits may too.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from refit import picture
from refit.files import write_bytes
from refit.postprocess import ModelInfo, preprocess
from refit.triton.config import NUMPY_TYPES, Signature, Tensor
from refit.triton.errors import ArtefactError, ProofFailed

FILE = "reference.npz"
"""Beside an exported model: arrays ``input:<tensor>`` and ``output:<tensor>``, the first dim counts the samples."""

PROBES = 4
"""Samples that are made where nobody gives any."""

_IMAGES = (".jpg", ".jpeg", ".png", ".bmp")
Samples = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Reference:
    """Samples and the outputs that belong to them.

    Attributes:
        inputs, outputs: by tensor name; row i of each array is sample i, without the batch dim.
        source: where the outputs come from, for reports.
    """

    inputs: Samples
    outputs: Samples
    source: str

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def first(self, count: int | None) -> Reference:
        """Its first samples; None: all."""
        return Reference(
            {name: array[:count] for name, array in self.inputs.items()},
            {name: array[:count] for name, array in self.outputs.items()},
            self.source,
        )

    def to_bytes(self) -> bytes:
        """As an .npz file."""
        arrays = {f"input:{k}": v for k, v in self.inputs.items()} | {f"output:{k}": v for k, v in self.outputs.items()}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # no tensor is called allow_pickle
        return buffer.getvalue()

    def save(self, path: Path) -> None:
        """Write it as an .npz file, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, self.to_bytes())

    @staticmethod
    def load(path: Path, signature: Signature, source: str = "") -> Reference:
        """Read and check one.

        Raises:
            ArtefactError: it cannot be read, or does not fit the model.
        """
        try:
            data = path.read_bytes()
        except OSError as exc:
            raise ArtefactError(f"{path}: cannot be read ({exc}); remove it, or make the model again") from None
        return Reference.parse(data, signature, source or str(path), str(path))

    @staticmethod
    def parse(data: bytes, signature: Signature, source: str, path: str = "") -> Reference:
        """As `load`; `path` names it in errors, default: `source`."""
        path = path or source
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as exc:
            raise ArtefactError(f"{path}: cannot be read ({exc}); remove it, or make the model again") from None
        inputs = {n.removeprefix("input:"): a for n, a in arrays.items() if n.startswith("input:")}
        outputs = {n.removeprefix("output:"): a for n, a in arrays.items() if n.startswith("output:")}
        for what, given, wanted in (("input", inputs, signature.inputs), ("output", outputs, signature.outputs)):
            if set(given) != {t.name for t in wanted}:
                raise ArtefactError(
                    f"{path}: has {what}s {sorted(given)}, the model has {sorted(t.name for t in wanted)}"
                )
            for t in wanted:
                fault = mismatch(t, given[t.name], rows=True)
                if fault:
                    raise ArtefactError(f"{path}: {what} {t.name!r} {fault}; it belongs to another model")
        counts = {len(a) for a in (*inputs.values(), *outputs.values())}
        if len(counts) != 1 or 0 in counts:
            raise ArtefactError(
                f"{path}: the arrays have {sorted(counts)} samples; they must have the same number, not 0"
            )
        for name, array in outputs.items():
            if not finite(array):
                raise ArtefactError(f"{path}: output {name!r} has values that are not finite: the model is broken")
        return Reference(inputs, outputs, source)


@dataclass(frozen=True)
class Tolerance:
    """How far answers may be from their reference, in parts of the reference's largest magnitude (per output)."""

    largest: float = 0.05
    mean: float = 0.005


def difference(expected: Samples, answers: Samples, tolerance: Tolerance) -> float:
    """Compare answers with the reference.

    Returns:
        The largest difference found, in parts of that output's largest magnitude.

    Raises:
        ProofFailed: an output differs by more than the tolerance.
    """
    worst = 0.0
    for name, array in expected.items():
        want, got = array.astype(np.float64), answers[name].astype(np.float64)
        scale = max(float(np.abs(want).max()), 1e-6)
        gap = np.abs(got - want)
        largest, mean = float(gap.max()) / scale, float(gap.mean()) / scale
        if largest > tolerance.largest or mean > tolerance.mean:
            raise ProofFailed(
                f"output {name!r} differs from the reference by up to {largest:.3g} of its range (mean {mean:.3g}); "
                f"{tolerance.largest:g} ({tolerance.mean:g}) is allowed: the server does not run this model"
            )
        worst = max(worst, largest)
    return worst


def made_up(signature: Signature, sidecar: Mapping[str, Any] | None = None, count: int = PROBES) -> Samples:
    """Samples of noise, the same ones each time: uniform in [0, 1) for floats, small whole numbers for the rest.

    A free dim takes the sidecar's picture size where that fits, else 32.
    """
    rng = np.random.default_rng(20)
    out = {}
    for t in signature.inputs:
        shape = (count, *concrete(t, sidecar))
        dtype = np.dtype(NUMPY_TYPES.get(t.datatype, np.float32))
        noise = rng.random(shape)
        out[t.name] = noise.astype(dtype) if dtype.kind == "f" else (noise * 2).astype(dtype)
    return out


def concrete(tensor: Tensor, sidecar: Mapping[str, Any] | None) -> tuple[int, ...]:
    """Dims without free ones: the last three are the size of the sidecar's input in its layout, others 1."""
    size = (sidecar or {}).get("input") or {}
    channels, area = (size.get("channels", 3),), (size.get("height", 32), size.get("width", 32))
    known = (*area, *channels) if size.get("layout") == "nhwc" else (*channels, *area)
    first = len(tensor.dims) - 3
    return tuple(d if d != -1 else (int(known[i - first]) if i >= first else 1) for i, d in enumerate(tensor.dims))


def from_images(signature: Signature, info: ModelInfo, paths: Sequence[Path]) -> Samples:
    """Pictures as the model takes them, by the one preprocessing that evaluation and clients use too.

    Args:
        paths: folders and files; the first `PROBES` pictures, in the order of their names, are taken.

    Raises:
        ArtefactError: there is no picture, one cannot be read, or the model takes more than a picture.
    """
    if len(signature.inputs) != 1:
        raise ArtefactError(
            f"the model has {len(signature.inputs)} inputs, so pictures cannot prove it; leave images out"
        )
    tensor = signature.inputs[0]
    dims = concrete(tensor, info.to_json())
    rows = [preprocess(read_picture(path), info.input)[0].reshape(dims) for path in pictures(paths)[:PROBES]]
    return {tensor.name: np.stack(rows).astype(NUMPY_TYPES[tensor.datatype])}


def read_picture(path: Path) -> npt.NDArray[np.uint8]:
    """`refit.picture.read`. Raises ArtefactError."""
    try:
        return picture.read(path)
    except picture.PictureError as exc:
        raise ArtefactError(str(exc)) from None


def pictures(paths: Sequence[Path]) -> list[Path]:
    """Every picture in folders and among files. Raises ArtefactError."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(p for p in path.iterdir() if p.suffix.lower() in _IMAGES)
        elif path.is_file():
            found.append(path)
        else:
            raise ArtefactError(f"{path}: no such picture or folder; correct the release's images")
    if not found:
        raise ArtefactError(
            f"{', '.join(map(str, paths))}: no pictures there ({', '.join(_IMAGES)}); correct the images"
        )
    return found


def mismatch(tensor: Tensor, array: npt.NDArray[Any], *, rows: bool) -> str:
    """What is wrong with an array for a tensor, "" when nothing is; ``rows``: it has a sample dim in front."""
    dtype = NUMPY_TYPES.get(tensor.datatype)
    if dtype is None or array.dtype != np.dtype(dtype):
        return f"is {array.dtype}, and {tensor.datatype} is needed"
    shape = array.shape[1:] if rows else array.shape
    fits = len(shape) == len(tensor.dims) and all(d in (-1, s) for d, s in zip(tensor.dims, shape, strict=True))
    return "" if fits else f"has shape {list(shape)}, and {list(tensor.dims)} is needed"


def finite(array: npt.NDArray[Any]) -> bool:
    """No NaN and no infinity in it."""
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())
