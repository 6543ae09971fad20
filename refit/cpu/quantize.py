"""`quantize`: the exported model as INT8 by explicit Q/DQ nodes, with a record of what it was calibrated on.

Written to `out`: `model.onnx`, `model.json`, `calibration.json` (the images with their hashes, method, versions, hashes
of both models, latency), `calibration.cache` (the range of each tensor), `reference.npz` (answers to some images of the
val split).
"""

from __future__ import annotations

import contextlib
import io
import logging
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.calibrate import TensorsData, save_tensors_data
from onnxruntime.quantization.shape_inference import quant_pre_process

from refit.command import BadData, BadSpec
from refit.cpu import reference
from refit.cpu.calibration import cache_text, choose, measure, ranges, sample
from refit.cpu.models import OnnxModel, Predictor, open_model
from refit.cpu.records import Dataset, Record
from refit.cpu.specs import QuantizeParams, QuantizeSpec
from refit.cpu.status import StatusWriter
from refit.cpu.work import workers
from refit.files import sha256, write_bytes, write_json, write_text
from refit.postprocess.info import FILE_NAME

_METHODS = {
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
    "minmax": CalibrationMethod.MinMax,
}
_RUNS = 30  # timed runs of one image


def run(spec: QuantizeSpec, out: Path, status: StatusWriter) -> None:
    """Quantize `spec.model`; see the module's docstring.

    Raises:
        BadSpec: the model is not an exported float32 .onnx, or knows other classes than the data.
        BadData: no training image to calibrate on.
    """
    threads = workers()
    source = Path(spec.model)
    if source.suffix != ".onnx":
        raise BadSpec(f"model {source}: INT8 is made from an exported .onnx; run export first")
    full = open_model(source, threads)
    dataset = Dataset.load(spec.records)
    if full.info.classes != dataset.classes:
        raise BadSpec(f"model {source} and records {dataset.folder} have different classes; give those of one pipeline")
    records = dataset.split("train")
    if not len(records):
        raise BadData(f"{dataset.folder}: the train split is empty; there is nothing to calibrate on")
    images = [records[i] for i in choose(records, len(dataset.classes), spec.images, spec.seed)]
    if len(images) < spec.images:
        status.running(f"Only {len(images)} training images; {spec.images} were asked for.")

    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        prepare(source, prepared)
        status.running(f"Measuring ranges on {len(images)} images ({spec.method}).")
        data = measure(prepared, images, full.info.input, spec)
        content = quantize(prepared, data, spec, outputs=list(full.info.outputs.values()))
    path = out / "model.onnx"
    write_text(out / FILE_NAME, full.info.text())
    write_bytes(path, content)
    write_text(out / "calibration.cache", cache_text(spec, ranges(data), sha256(source)))
    made = OnnxModel(path, threads)
    latency = compare_latency(full, made)
    inputs = reference.images(dataset, full.info.input)
    assert inputs is not None  # the train split has some
    reference.write(out, made, inputs)
    write_json(out / "calibration.json", _record(spec, source, path, images, latency))
    status.success(
        f"INT8: {len(content):,} bytes, {len(content) / source.stat().st_size:.2f} of the float32 file; "
        f"{latency['fp32_ms']:.2f} -> {latency['int8_ms']:.2f} ms an image on this CPU.",
        {"bytes": len(content), "bytes_before": source.stat().st_size, **latency},
    )


def prepare(source: Path, target: Path) -> None:
    """What onnxruntime wants before quantization: shapes inferred, the graph simplified."""
    with contextlib.redirect_stdout(io.StringIO()):
        quant_pre_process(source, target, skip_symbolic_shape=True)


def quantize(prepared: Path, data: TensorsData, params: QuantizeParams, outputs: Sequence[str]) -> bytes:
    """The INT8 file of a prepared model, checked. The nodes that make the outputs stay float32.

    An output quantized to 8 bits would give scores in steps of 1/255 and cut the largest boxes; the last 1x1
    convolutions hold hardly any weights.
    """
    graph = onnx.load(prepared).graph
    activation = QuantType.QUInt8 if params.activation == "uint8" else QuantType.QInt8
    with tempfile.TemporaryDirectory() as folder:
        cache, made = Path(folder) / "ranges.json", Path(folder) / "int8.onnx"
        save_tensors_data(data, cache)
        with _quiet():
            quantize_static(
                prepared,
                made,
                None,
                quant_format=QuantFormat.QDQ,
                activation_type=activation,
                weight_type=QuantType.QInt8,
                per_channel=params.per_channel,
                calibrate_method=_METHODS[params.method],
                calibration_cache_path=cache,
                nodes_to_exclude=_last_nodes(graph, outputs),
                # TensorRT wants zero points of 0; so does int8 on most accelerators.
                extra_options={"ActivationSymmetric": params.activation == "int8"},
            )
        model = onnx.load(made)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def _last_nodes(graph: Any, outputs: Sequence[str]) -> list[str]:
    """The nodes from each output back to its convolution, that included."""
    makers = {name: node for node in graph.node for name in node.output}
    found: list[str] = []
    for output in outputs:
        node = makers.get(output)
        while node is not None:
            found.append(node.name)
            node = makers.get(node.input[0]) if node.op_type != "Conv" else None
    return found


def compare_latency(full: Predictor, int8: Predictor) -> dict[str, float]:
    """Median milliseconds for one image, taken in turns so that other load falls on both alike."""
    entry = full.info.input
    image = np.random.default_rng(0).random((1, entry.channels, entry.height, entry.width)).astype(np.float32)
    times: dict[str, list[float]] = {"fp32_ms": [], "int8_ms": []}
    for _ in range(_RUNS + 3):
        for name, model in (("fp32_ms", full), ("int8_ms", int8)):
            begin = time.perf_counter()
            model(image)
            times[name].append(1000 * (time.perf_counter() - begin))
    return {name: round(statistics.median(values[3:]), 3) for name, values in times.items()}


def _record(
    spec: QuantizeSpec, source: Path, made: Path, images: Sequence[Record], latency: dict[str, float]
) -> dict[str, Any]:
    return {
        "schema": 1,
        "settings": spec.model_dump(exclude={"model", "records"}),
        "split": "train",
        "images": [vars(sample(record)) for record in images],
        "source": {"sha256": sha256(source), "bytes": source.stat().st_size},
        "model": {"sha256": sha256(made), "bytes": made.stat().st_size},
        "latency": {**latency, "runs": _RUNS, "batch": 1, "machine": platform.machine()},
        "tools": {name: version(name) for name in ("onnxruntime", "onnx", "numpy", "opencv-python-headless")},
    }


@contextlib.contextmanager
def _quiet() -> Any:
    """onnxruntime's quantizer prints, and logs hints through the root logger."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
