"""An exported model as INT8 by explicit Q/DQ nodes (onnxruntime quantize_static), all of it or some of its layers."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.calibrate import TensorData, TensorsData, save_tensors_data
from onnxruntime.quantization.shape_inference import quant_pre_process

from refit.cpu.specs import QuantizeParams

Ranges = Mapping[str, tuple[float, float]]
"""Tensor name -> (lowest, highest) value that INT8 represents."""

_ANCHORS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Mul", "Concat"})


@dataclass(frozen=True)
class Layer:
    """Nodes that are quantized together or not at all: one that computes, and what only passes its values on.

    Attributes:
        name: of the first node, as ONNX has it.
        nodes: all of them.
        output: the tensor that the last of them makes.
    """

    name: str
    nodes: tuple[str, ...]
    output: str


def prepare(source: Path, target: Path) -> None:
    """What onnxruntime wants before quantization: shapes inferred, the graph simplified."""
    with contextlib.redirect_stdout(io.StringIO()):
        quant_pre_process(source, target, skip_symbolic_shape=True)


def quantize(prepared: Path, ranges: Ranges, params: QuantizeParams, floats: Collection[str]) -> bytes:
    """The INT8 file of a prepared model, checked.

    Args:
        ranges: of every tensor of it.
        floats: names of the nodes that stay float32.
    """
    with tempfile.TemporaryDirectory() as folder:
        cache, made = Path(folder) / "ranges.json", Path(folder) / "int8.onnx"
        data = {n: TensorData(lowest=np.float32(low), highest=np.float32(high)) for n, (low, high) in ranges.items()}
        save_tensors_data(TensorsData(CalibrationMethod.MinMax, data), cache)
        with _quiet():
            quantize_static(
                prepared,
                made,
                None,
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8 if params.activation == "uint8" else QuantType.QInt8,
                weight_type=QuantType.QInt8,
                per_channel=params.per_channel,
                # The ranges are ready; quantize_static only asks that the name is the file's.
                calibrate_method=CalibrationMethod.MinMax,
                calibration_cache_path=cache,
                nodes_to_exclude=list(floats),
                # TensorRT wants zero points of 0; so does int8 on most accelerators.
                extra_options={"ActivationSymmetric": params.activation == "int8"},
            )
        model = onnx.load(made)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def heads(graph: Any, outputs: Sequence[str]) -> list[str]:
    """The nodes from each output back to its convolution, that included; they stay float32.

    An output quantized to 8 bits would give scores in steps of 1/255 and cut the largest boxes; the last 1x1
    convolutions hold hardly any weights.
    """
    makers = {name: node for node in graph.node for name in node.output}
    found: list[str] = []
    for output in outputs:
        node = makers.get(output)
        while node is not None:
            found.append(node.name)
            node = makers.get(node.input[0]) if node.op_type != "Conv" else None
    return found


def layers(graph: Any, outputs: Sequence[str]) -> list[Layer]:
    """The layers that `quantize` may make INT8, in the order of the graph; those of `heads` are none."""
    kept = set(heads(graph, outputs))
    found: dict[str, list[Any]] = {}
    first: dict[str, str] = {}  # tensor -> the first node of the layer that makes it
    for node in graph.node:
        begin = node.name if node.op_type in _ANCHORS or not node.input else first.get(node.input[0], node.name)
        first.update(dict.fromkeys(node.output, begin))
        if node.name not in kept:
            found.setdefault(begin, []).append(node)
    computing = {name: nodes for name, nodes in found.items() if nodes[0].op_type in _ANCHORS}
    return [Layer(name, tuple(n.name for n in nodes), nodes[-1].output[0]) for name, nodes in computing.items()]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """onnxruntime's quantizer prints, and logs hints through the root logger."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
