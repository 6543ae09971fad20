"""Real ONNX models with TAO's tensors: names, types and shapes are the networks', the arithmetic is next to nothing.

Shapes: facts of the exporters (nvidia_tao_tf1/cv/*/export, nvidia_tao_tf2/cv/efficientdet/exporter/onnx_exporter.py,
nvidia_tao_pytorch/cv/*/scripts/export.py) and of the TensorRT plugins that end them. The plugins themselves are no ONNX
operators; their outputs are made here from the picture's mean, so that answers differ from image to image.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tests.tao.standin.files import Model

Array = NDArray[Any]
STRIDE = 16  # of DetectNet_v2
INPUTS = {
    "detectnet_v2": "input_1:0",
    "faster_rcnn": "input_image",
    "ssd": "Input",
    "yolo_v4": "Input",
    "efficientdet_tf2": "input",
    "rtdetr": "inputs",
    "dino": "inputs",
    "deformable_detr": "inputs",
}


class Graph:
    """Nodes, weights and outputs as they come."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.outputs: list[Any] = []

    def weight(self, name: str, value: Array) -> str:
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def output(self, name: str, kind: int, shape: list[Any]) -> None:
        self.outputs.append(helper.make_tensor_value_info(name, kind, ["N", *shape]))

    def rows(self, mean: str, name: str, wanted: Array, moves: Array, *, kind: int = TensorProto.FLOAT) -> None:
        """An output of constant rows `wanted`, each figure moved by the picture's mean times `moves`."""
        flat = wanted.reshape(1, -1).astype(np.float32)
        self.weight(f"{name}.moves", np.broadcast_to(moves, wanted.shape).reshape(1, -1).astype(np.float32).copy())
        self.weight(f"{name}.wanted", flat)
        self.weight(f"{name}.shape", np.array([-1, *wanted.shape], dtype=np.int64))
        moved = self.node("MatMul", [mean, f"{name}.moves"], f"{name}.moved")
        total = self.node("Add", [moved, f"{name}.wanted"], f"{name}.total")
        last = name if kind == TensorProto.FLOAT else f"{name}.shaped"
        self.node("Reshape", [total, f"{name}.shape"], last)
        if kind != TensorProto.FLOAT:
            self.node("Cast", [last], name, to=kind)
        self.output(name, kind, list(wanted.shape))


def write(path: Path, model: Model, rows: int, opset: int) -> None:
    """`rows`: how many boxes the network lists (keepTopK, max detections, queries)."""
    graph = Graph()
    name = INPUTS[model.program]
    nhwc = model.program == "efficientdet_tf2"
    size = [model.height, model.width, model.channels] if nhwc else [model.channels, model.height, model.width]
    if model.program == "detectnet_v2":
        _grid(graph, name, model)
    else:
        # ReduceMean takes its axes as an attribute until opset 17 and as an input from 18 on; this is the same in both.
        graph.weight("one", np.array([0, 1, -1], dtype=np.int64))
        graph.weight("flat", np.array([-1, 1], dtype=np.int64))
        pooled = graph.node("GlobalAveragePool", [graph.node("Reshape", [name, "one"], "flattened")], "pooled")
        mean = graph.node("Reshape", [pooled, "flat"], "mean")
        _lists(graph, mean, model, rows)
    used = sum(w.size for w in map(numpy_helper.to_array, graph.weights))
    graph.weight("backbone", np.zeros(max(0, model.parameters - used), dtype=np.float32))  # as many as it says
    made = helper.make_graph(
        graph.nodes,
        model.program,
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *size])],
        graph.outputs,
        graph.weights,
    )
    proto = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], producer_name="refit-standin")
    proto.ir_version = 8
    helper.set_model_props(proto, {"standin": json.dumps({"program": model.program, "map50": model.mean()})})
    onnx.checker.check_model(proto)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(proto, str(path))


def _grid(graph: Graph, name: str, model: Model) -> None:
    """Coverage by a cell's brightness, boxes of one cell around its middle."""
    count = len(model.classes)
    cell = [model.channels, STRIDE, STRIDE]
    graph.weight("cov.w", np.full((count, *cell), 8 / np.prod(cell), dtype=np.float32))
    graph.weight("cov.b", np.linspace(-6, -7, count, dtype=np.float32))
    graph.weight("bbox.w", np.zeros((4 * count, *cell), dtype=np.float32))
    graph.weight("bbox.b", np.full(4 * count, 0.5, dtype=np.float32))
    how = {"kernel_shape": [STRIDE, STRIDE], "strides": [STRIDE, STRIDE]}
    logits = graph.node("Conv", [name, "cov.w", "cov.b"], "cov.logits", **how)
    graph.node("Sigmoid", [logits], "output_cov/Sigmoid:0")
    graph.node("Conv", [name, "bbox.w", "bbox.b"], "output_bbox/BiasAdd:0", **how)
    cells = [model.height // STRIDE, model.width // STRIDE]
    graph.output("output_bbox/BiasAdd:0", TensorProto.FLOAT, [4 * count, *cells])
    graph.output("output_cov/Sigmoid:0", TensorProto.FLOAT, [count, *cells])


def _lists(graph: Graph, mean: str, model: Model, rows: int) -> None:
    """Boxes of growing size around the middle, scores that fall, classes in turn."""
    count = len(model.classes)
    half = np.linspace(0.1, 0.4, rows)[:, None]
    boxes = np.hstack([0.5 - half, 0.5 - half, 0.5 + half, 0.5 + half])
    scores = np.linspace(0.9, 0.01, rows)
    ids = np.arange(rows) % count
    if model.program in {"ssd", "faster_rcnn"}:
        name = "NMS" if model.program == "ssd" else "nms_out"
        first = 1 if model.program == "ssd" else 0  # ssd's background is 0, faster_rcnn's the last
        table = np.hstack([np.zeros((rows, 1)), ids[:, None] + first, scores[:, None], boxes])
        moves = np.array([0, 0, 1e-3, 1e-4, 1e-4, 1e-4, 1e-4])
        graph.rows(mean, name, table[None], moves)
        graph.rows(mean, f"{name}_1", np.full((1, 1, 1), rows), np.array(0.0))
    elif model.program == "yolo_v4":
        graph.rows(mean, "BatchedNMS", np.array([rows]), np.array(0.0), kind=TensorProto.INT32)
        graph.rows(mean, "BatchedNMS_1", boxes, np.array(1e-4))
        graph.rows(mean, "BatchedNMS_2", scores, np.array(1e-3))
        graph.rows(mean, "BatchedNMS_3", ids, np.array(0.0))
    elif model.program == "efficientdet_tf2":
        pixels = boxes * np.array([model.height, model.width] * 2)
        graph.rows(mean, "num_detections", np.array([rows]), np.array(0.0), kind=TensorProto.INT32)
        graph.rows(mean, "detection_boxes", pixels, np.array(1e-4))
        graph.rows(mean, "detection_scores", scores, np.array(1e-5))
        graph.rows(mean, "detection_classes", ids, np.array(0.0), kind=TensorProto.INT32)
    else:
        logits = np.full((rows, model.ids or count), -8.0)
        logits[np.arange(rows), ids + max(0, model.ids - count)] = np.log(scores / (1 - scores))
        centres = np.hstack([np.full((rows, 2), 0.5), 2 * half, 2 * half])
        graph.rows(mean, "pred_logits", logits, np.array(1e-2))
        graph.rows(mean, "pred_boxes", centres, np.array(1e-4))
