"""`export`: a checkpoint as `model.onnx` with `model.json` beside it, proven to give the same answers.

Batch norm is folded into the convolutions; the tensors have the names that TAO gives a DetectNet_v2.
"""

from __future__ import annotations

import math
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from refit.command import StageError
from refit.cpu import reference
from refit.cpu.checkpoint import Model, load_model
from refit.cpu.models import OnnxModel, TorchRunner
from refit.cpu.network import Detector, count_parameters
from refit.cpu.records import Dataset
from refit.cpu.specs import ExportSpec
from refit.cpu.status import StatusWriter
from refit.cpu.work import workers
from refit.files import write_bytes, write_json, write_text
from refit.postprocess import Postprocess
from refit.postprocess.info import FILE_NAME

# float32 with sums in another order: measured below 1e-5 of coverage and 1e-4 of a box distance (0.004 px).
TOLERANCE = {"coverage": 1e-3, "bbox": 1e-2}


class ExportDiffers(StageError):
    """The ONNX model answers otherwise than the checkpoint. Exit code 1."""


class _Deployed(nn.Module):
    """The detector with the sigmoid, as it is served."""

    def __init__(self, network: Detector) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        coverage, bbox = self.network(x)
        return coverage.sigmoid(), bbox


def run(spec: ExportSpec, out: Path, status: StatusWriter) -> None:
    """Export `spec.model` to `out/model.onnx` and `out/model.json`; `out/export.json` has the comparison,
    `out/reference.npz` the answers to the same images.

    Raises:
        BadSpec: the model cannot be used.
        ExportDiffers: the two answer differently on the same images.
    """
    threads = workers()
    torch.set_num_threads(threads)
    model = load_model(spec.model)
    settings = Postprocess(spec.score_threshold, spec.evaluate.nms_iou, spec.evaluate.max_detections)
    model = Model(model.network, replace(model.info, postprocess=settings))
    data = to_onnx(model, spec.opset, dynamic_batch=spec.dynamic_batch)
    write_text(out / FILE_NAME, model.info.text())
    path = out / "model.onnx"
    write_bytes(path, data)
    images, kind = _images(spec, model)
    exported = OnnxModel(path, threads)
    differences = compare(model, exported, images)
    write_json(out / "export.json", {"images": len(images), "kind": kind, "max_difference": differences})
    for role, difference in differences.items():
        if not difference <= TOLERANCE[role]:
            path.unlink()
            raise ExportDiffers(
                f"the ONNX model's {role} differs by {difference:g} from the checkpoint's (limit {TOLERANCE[role]:g}); "
                "try another opset"
            )
    reference.write(out, exported, images)
    parameters = count_parameters(model.network)
    status.success(
        f"Exported; coverage differs by at most {differences['coverage']:.1e} on {len(images)} {kind} images.",
        {
            "bytes": len(data),
            "parameters": parameters,
            "max_difference": max(differences.values()),
        },
    )


def to_onnx(model: Model, opset: int, *, dynamic_batch: bool) -> bytes:
    """The ONNX file of a detector, checked. The same detector gives the same bytes."""
    entry, outputs = model.info.input, model.info.outputs
    example = torch.zeros(1, entry.channels, entry.height, entry.width)
    names = [outputs["coverage"], outputs["bbox"]]
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        # The exporter by tracing is announced to go, yet is four times faster here and needs no onnxscript.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            _Deployed(model.network).eval(),
            (example,),
            path,
            input_names=[entry.name],
            output_names=names,
            dynamic_axes={name: {0: "batch"} for name in [entry.name, *names]} if dynamic_batch else None,
            opset_version=opset,
            dynamo=False,
        )
        exported = onnx.load(path)
    onnx.checker.check_model(exported, full_check=True)
    return bytes(exported.SerializeToString())


def compare(model: Model, exported: OnnxModel, images: NDArray[np.float32]) -> dict[str, float]:
    """The largest absolute difference of each output on images [n, c, h, w]; NaN counts as infinite."""
    want, found = TorchRunner(model)(images), exported(images)
    differences = {}
    for role, name in model.info.outputs.items():
        difference = float(np.abs(want[name] - found[name]).max())
        differences[role] = math.inf if math.isnan(difference) else difference
    return differences


def _images(spec: ExportSpec, model: Model) -> tuple[NDArray[np.float32], str]:
    """Some images as the network's input: real ones where records are given, else made from the seed."""
    entry = model.info.input
    real = reference.images(Dataset.load(spec.records), entry) if spec.records is not None else None
    if real is not None:
        return real, "real"
    made = np.random.default_rng(spec.seed).random((reference.IMAGES, entry.channels, entry.height, entry.width))
    return made.astype(np.float32), "made"
