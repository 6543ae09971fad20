"""Tiny detectors made in code: 32x32 pixels, two classes, a grid of 2x2 cells, a megabyte of nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from refit.config import Settings
from refit.postprocess import InputInfo, ModelInfo
from refit.triton.specs import ReleaseSpec

INPUT, COVERAGE, BOXES = "input_1", "output_cov/Sigmoid", "output_bbox/BiasAdd"
REPOSITORY = Path(__file__).resolve().parents[2]


def make_onnx(
    path: Path,
    *,
    seed: int = 0,
    batch: str | int = "N",
    operator: str = "Sigmoid",
    factor: float = 1.0,
) -> Path:
    """A convolution with stride 16 and two heads; another seed is another model, ``factor`` scales the weights."""
    rng = np.random.default_rng(seed)
    nodes, weights, outputs = [], [], []
    for name, channels, last, spread in ((COVERAGE, 2, operator, 0.1), (BOXES, 8, "Identity", 0.002)):
        weight = rng.standard_normal((channels, 3, 16, 16)).astype(np.float32) * np.float32(spread * factor)
        bias = np.full(channels, 0.3, np.float32)  # boxes reach 0.3 * 35 pixels to each side
        weights += [numpy_helper.from_array(v, f"{what} of {name}") for what, v in (("weight", weight), ("bias", bias))]
        inputs = [INPUT, f"weight of {name}", f"bias of {name}"]
        nodes.append(helper.make_node("Conv", inputs, [f"raw {name}"], strides=[16, 16]))
        nodes.append(helper.make_node(last, [f"raw {name}"], [name], domain="" if last != "Unknown" else "nobody"))
        outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, channels, 2, 2]))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [batch, 3, 32, 32])],
        outputs,
        weights,
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("nobody", 1)]
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


def identity(path: Path, kind: int, shape: list[Any] | None) -> Path:
    """A model that gives back what it gets."""
    values = [helper.make_tensor_value_info(name, kind, shape) for name in ("a", "b")]
    graph = helper.make_graph([helper.make_node("Identity", ["a"], ["b"])], "g", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def make_model(folder: Path, **options: Any) -> Path:
    """The ONNX file with its model.json."""
    path = make_onnx(folder / "model.onnx", **options)
    info = ModelInfo(
        decoder="detectnet_v2",
        classes=("red", "grün"),
        input=InputInfo(INPUT, 32, 32),
        outputs={"coverage": COVERAGE, "bbox": BOXES},
    )
    path.with_name("model.json").write_text(info.text(), encoding="utf-8")
    return path


def make_lists(folder: Path) -> Path:
    """A model in EfficientDet's manner, pictures NHWC: always one object, 8, 4, 24, 30 of 32 x 32, of class 1."""
    constants = {
        "zero": np.array([0], np.float32),
        "axis 1": np.array([1], np.int64),
        "axis 2": np.array([2], np.int64),
        "one": np.ones((1, 1), np.float32),
        "score": np.array([[0.75, 0.5]], np.float32),
        "id": np.array([[1, 0]], np.float32),
        "box": np.array([[[4, 8, 30, 24], [0, 0, 32, 32]]], np.float32),
    }
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Unsqueeze", ["nothing", "axis 1"], ["row"]),
        helper.make_node("Unsqueeze", ["row", "axis 2"], ["rows"]),
        helper.make_node("Add", ["row", "one"], ["float count"]),
        helper.make_node("Add", ["row", "id"], ["float ids"]),
        helper.make_node("Cast", ["float count"], ["num_detections"], to=TensorProto.INT32),
        helper.make_node("Cast", ["float ids"], ["detection_classes"], to=TensorProto.INT32),
        helper.make_node("Add", ["row", "score"], ["detection_scores"]),
        helper.make_node("Add", ["rows", "box"], ["detection_boxes"]),
    ]
    outputs = {
        "num_detections": (TensorProto.INT32, 1),
        "detection_boxes": (TensorProto.FLOAT, 2, 4),
        "detection_scores": (TensorProto.FLOAT, 2),
        "detection_classes": (TensorProto.INT32, 2),
    }
    graph = helper.make_graph(
        nodes,
        "lists",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 32, 32, 3])],
        [helper.make_tensor_value_info(name, kind, ["N", *shape]) for name, (kind, *shape) in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    path = folder / "model.onnx"
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    info = ModelInfo(
        decoder="efficientdet",
        classes=("red", "grün"),
        input=InputInfo("input", 32, 32, scale=1.0, layout="nhwc", interpolation="bilinear"),
        outputs=dict(zip(("count", "boxes", "scores", "classes"), outputs, strict=True)),
    )
    path.with_name("model.json").write_text(info.text(), encoding="utf-8")
    return path


def onnxruntime_answers(
    path: Path, arrays: Mapping[str, npt.NDArray[Any]], folder: Path
) -> dict[str, npt.NDArray[Any]]:
    """What onnxruntime itself answers, asked in the Triton environment (the tools environment has no onnxruntime)."""
    code = (
        "import sys, numpy as np, onnxruntime as ort\n"
        "feeds = dict(np.load(sys.argv[2]))\n"
        "session = ort.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])\n"
        "names = [o.name for o in session.get_outputs()]\n"
        "np.savez(sys.argv[3], **dict(zip(names, session.run(names, feeds))))\n"
    )
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "feeds.npz", **arrays)
    python = Settings.from_env().envs / "triton" / "bin" / "python"
    subprocess.run([python, "-I", "-c", code, path, folder / "feeds.npz", folder / "answers.npz"], check=True)
    with np.load(folder / "answers.npz") as file:
        return {name: file[name] for name in file.files}


def noise(rows: int, seed: int = 1) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).random((rows, 3, 32, 32), dtype=np.float32)


def release_spec(path: Path, **more: Any) -> ReleaseSpec:
    """A spec with short limits; ``more`` must say url, repository, ledger and model."""
    base = {"model_path": path, "pipeline": "demo", "run": "run-1", "prove": "never"}
    return ReleaseSpec(**{**base, "lock_seconds": 20, "timeout_seconds": 60, **more})


def write_spec(spec: ReleaseSpec, path: Path) -> Path:
    """A spec as the YAML file (JSON is YAML) that the stage command reads."""
    path.write_text(json.dumps(spec.model_dump(mode="json", exclude_defaults=True)))
    return path


def run_cli(*words: object, timeout: float = 90, **env: str) -> subprocess.CompletedProcess[str]:
    """`python -m refit.triton` with this test's environment."""
    return subprocess.run(
        [sys.executable, "-m", "refit.triton", *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **env},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
