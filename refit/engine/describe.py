"""`describe`: engine.json for a plan that another program built, TAO's gen_trt_engine first of all.

The TensorRT version is read from the plan's head and held against the deploy image's; the GPU is what nvidia-smi noted
in the pod that built it (`refit.engine.gpu.recording`), or else what the cluster profile declares. Needs neither
TensorRT nor a GPU. Written to `out`: `model.plan`, `engine.json`, `model.json`; `cal.bin` and `cal.json` where
gen_trt_engine calibrated.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from refit.command import BadData, BadSpec
from refit.engine import pictures
from refit.engine.gpu import GpuError, from_csv
from refit.engine.plan import PlanError, tensorrt_version
from refit.engine.record import (
    CACHE,
    CALIBRATION,
    ENGINE,
    PLAN,
    CalibrationFacts,
    CalibrationRecord,
    EngineRecord,
    Gpu,
    Plan,
    Tensor,
    agree,
)
from refit.engine.specs import DescribeSpec, NotedGpu, TaoCalibration
from refit.files import sha256, write_text
from refit.postprocess import ModelInfo, ModelInfoError
from refit.postprocess.info import FILE_NAME
from refit.status import StatusWriter
from refit.triton import config
from refit.triton.errors import ArtefactError


def run(spec: DescribeSpec, out: Path, status: StatusWriter) -> None:
    """Describe; see the module's docstring. Raises BadSpec, BadData."""
    spec = _as_built(spec)
    version = _version(spec)
    gpu = _gpu(spec.gpu)
    try:
        info = ModelInfo.read(spec.model)
    except ModelInfoError as exc:
        raise BadData(str(exc)) from None
    inputs, outputs = tuple(spec.inputs), tuple(spec.outputs)
    if spec.onnx is not None and not (inputs and outputs):
        try:
            signature = config.read_signature(spec.onnx)
        except ArtefactError as exc:
            raise BadData(str(exc)) from None
        inputs, outputs = (_tensors(t, signature.batch) for t in (signature.inputs, signature.outputs))
    if spec.batch is None and all(t.dims[:1] == (-1,) for t in (*inputs, *outputs)):
        raise BadSpec("batch: the engine has a free batch dim; say the profile that it was built with")
    model_sha256 = sha256(spec.onnx) if spec.onnx is not None else None
    shutil.copyfile(spec.plan, out / PLAN)
    calibration = None
    if spec.calibration is not None:
        calibration = _calibration(spec.calibration, info, model_sha256, version, gpu, out)
    record = EngineRecord(
        plan=Plan.of(out / PLAN),
        tensorrt=version,
        gpu=gpu,
        precision=spec.precision,
        quantization=spec.quantization,
        onnx_sha256=model_sha256,
        calibration=calibration,
        profile=spec.batch,
        inputs=inputs,
        outputs=outputs,
        builder=spec.builder,
    )
    write_text(out / FILE_NAME, info.text())
    record.write(out / ENGINE)
    status.success(
        f"TensorRT {version}, {gpu.name or 'GPU'} ({gpu.compute_capability}, {gpu.source}).",
        {"bytes": record.plan.bytes},
    )


def _as_built(spec: DescribeSpec) -> DescribeSpec:
    """With the way of the rung that won, where there were several. Raises BadData."""
    if spec.ladder is None:
        return spec
    try:
        built = spec.rungs[json.loads(spec.ladder.read_text(encoding="utf-8"))["winner"]]
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise BadData(f"{spec.ladder}: names no rung that is known here ({exc!r}); build the engine again") from None
    return spec.model_copy(update={name: getattr(built, name) for name in type(built).model_fields})


def _version(spec: DescribeSpec) -> str:
    try:
        found = tensorrt_version(spec.plan)
    except PlanError as exc:
        raise BadData(str(exc)) from None
    if spec.tensorrt is not None and not agree(found, spec.tensorrt):
        raise BadData(
            f"{spec.plan}: was built with TensorRT {found}, and {spec.builder} is said to have {spec.tensorrt}; "
            "correct the image's row in specs/tao/containers.yaml, or the image"
        )
    return found


def _gpu(noted: NotedGpu) -> Gpu:
    if noted.csv is None:
        assert noted.compute_capability is not None  # the spec's own check
        return Gpu(name=noted.name, compute_capability=noted.compute_capability, source="declared")
    try:
        gpu = from_csv(noted.csv)
    except GpuError as exc:
        raise BadData(str(exc)) from None
    if noted.compute_capability not in (None, gpu.compute_capability):
        raise BadData(
            f"{noted.csv}: the engine was built on {gpu.name} ({gpu.compute_capability}), and the cluster profile says "
            f"{noted.compute_capability} for these nodes; correct gpu.types in the profile"
        )
    return gpu


def _tensors(tensors: Iterable[config.Tensor], batch: bool) -> tuple[Tensor, ...]:
    first = (-1,) if batch else ()
    return tuple(Tensor(name=t.name, datatype=t.datatype, dims=(*first, *t.dims)) for t in tensors)


def _calibration(
    spec: TaoCalibration, info: ModelInfo, model_sha256: str | None, version: str, gpu: Gpu, out: Path
) -> CalibrationRecord:
    if model_sha256 is None:
        raise BadSpec("calibration: needs onnx too: a cache without the hash of its model can never be used again")
    if not spec.cache.is_file():
        raise BadData(
            f"{spec.cache}: no such file: gen_trt_engine wrote no calibration cache, so nothing was calibrated"
        )
    images = pictures.choose(spec.images, spec.batches, spec.batch_size)
    shutil.copyfile(spec.cache, out / CACHE)
    record = CalibrationRecord(
        facts=CalibrationFacts(
            method="tao/entropy_2",
            model_sha256=model_sha256,
            images_digest=pictures.digest(images, info.input, spec.batch_size),
            tensorrt=version,
            compute_capability=gpu.compute_capability,
        ),
        cache_sha256=sha256(out / CACHE),
        images=len(images),
        batch_size=spec.batch_size,
    )
    record.write(out / CALIBRATION)
    return record
