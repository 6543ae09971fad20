"""`build`: an ONNX file as a TensorRT plan for the GPU of this machine.

Written to `out`: `model.plan` and `engine.json`; `cal.bin` and `cal.json` where INT8 ranges were measured or reused;
`timing.cache` for the next build on the same GPU; `model.json` where one stands beside the ONNX file.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from refit.command import BadSpec, StageError
from refit.engine import cache, pictures
from refit.engine.builder import Builder, Built, Calibration, tensorrt
from refit.engine.gpu import Device, GpuError
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
)
from refit.engine.specs import BuildSpec, CalibrationSpec
from refit.files import sha256, write_bytes, write_text
from refit.postprocess import ModelInfo, ModelInfoError
from refit.postprocess.info import FILE_NAME
from refit.status import StatusWriter
from refit.version import version

TIMING = "timing.cache"


def run(spec: BuildSpec, out: Path, status: StatusWriter) -> None:
    """Build; see the module's docstring. Raises BadSpec, BadData, StageError."""
    if not spec.onnx.is_file():
        raise BadSpec(f"onnx: {spec.onnx}: no such file; run the stage that exports it")
    trt = tensorrt()
    onnx_sha256 = sha256(spec.onnx)
    info = _info(spec)
    wanted, calibration = None, None
    if spec.calibration is not None and (told := pictures.check(_images(spec.calibration))):
        status.running(f"{told}.")
    try:
        with Device() as device:
            gpu = device.facts()
            if spec.calibration is not None:
                info = _needed(spec, info)
                wanted, calibration = _calibration(spec, spec.calibration, info, onnx_sha256, trt.__version__, gpu)
            status.running(
                f"Building {spec.precision} for {gpu.name} ({gpu.compute_capability}), TensorRT {trt.__version__}."
            )
            built = Builder(trt, spec, calibration, device).build()
    except GpuError as exc:
        raise StageError(str(exc)) from None
    if info is not None:
        write_text(out / FILE_NAME, info.text())
    write_bytes(out / PLAN, built.plan)
    write_bytes(out / TIMING, built.timing)
    record = EngineRecord(
        plan=Plan.of(out / PLAN),
        tensorrt=trt.__version__,
        gpu=gpu,
        precision=spec.precision,
        quantization=built.quantization,
        onnx_sha256=onnx_sha256,
        calibration=_keep(spec, built, wanted, calibration, out),
        profile=built.profile,
        inputs=built.inputs,
        outputs=built.outputs,
        builder=f"refit {version()}",
    )
    record.write(out / ENGINE)
    status.success(
        f"{record.plan.bytes:,} bytes, {spec.precision} ({built.quantization}).", {"bytes": record.plan.bytes}
    )


def _info(spec: BuildSpec) -> ModelInfo | None:
    path = spec.onnx.with_name(FILE_NAME)
    if not path.exists():
        return None
    try:
        return ModelInfo.read(path)
    except ModelInfoError as exc:
        raise BadSpec(str(exc)) from None


def _needed(spec: BuildSpec, info: ModelInfo | None) -> ModelInfo:
    if info is None:
        raise BadSpec(f"calibration: {spec.onnx.with_name(FILE_NAME)} is missing: it says how the model is fed")
    return info


def _images(wish: CalibrationSpec) -> list[Path]:
    return pictures.choose(wish.images, wish.batches, wish.batch_size)


def _calibration(
    spec: BuildSpec, wish: CalibrationSpec, info: ModelInfo, onnx_sha256: str, tensorrt_version: str, gpu: Gpu
) -> tuple[CalibrationFacts, Calibration]:
    """What is calibrated on, and an old cache where it was made from just that."""
    images = _images(wish)
    wanted = CalibrationFacts(
        method="refit/entropy_2" if wish.method == "entropy_2" else "refit/minmax",
        model_sha256=onnx_sha256,
        images_digest=pictures.digest(images, info.input, wish.batch_size),
        tensorrt=tensorrt_version,
        compute_capability=gpu.compute_capability,
    )
    old = None
    if spec.cache is not None:
        cache.usable(spec.cache, wanted)
        old = spec.cache.read_bytes()
    batches = partial(pictures.batches, images, info.input, wish.batch_size)
    return wanted, Calibration(wish.batch_size, batches, old, wish.method)


def _keep(
    spec: BuildSpec, built: Built, wanted: CalibrationFacts | None, calibration: Calibration | None, out: Path
) -> CalibrationRecord | None:
    """cal.bin and cal.json of a calibrated engine."""
    if built.quantization != "calibrated" or wanted is None or calibration is None or spec.calibration is None:
        return None
    content = built.cache or calibration.cache
    if not content:
        raise StageError("TensorRT wrote no calibration cache; its messages above say why")
    write_bytes(out / CACHE, content)
    record = CalibrationRecord(
        facts=wanted,
        cache_sha256=sha256(out / CACHE),
        images=spec.calibration.batches * spec.calibration.batch_size,
        batch_size=spec.calibration.batch_size,
    )
    record.write(out / CALIBRATION)
    return record
