"""A detector whose answers are known by heart, a snapshot for it, and one Triton that serves it for all tests.

The network has a cell of 16 pixels and one convolution: a class is found where its colour prevails in a cell, and each
box reaches 12 pixels to each side. So it depends on colours, on their scale and on where the picture lies.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from refit.gates.parity import ParitySpec
from refit.postprocess import Detections, InputInfo, ModelInfo, Postprocess, decoder_for, preprocess
from refit.prove import prepare, server
from refit.prove.specs import PrepareSpec
from refit.status import StatusWriter
from refit.triton.installation import Installation

CLASSES = ("ruby", "leaf", "sky")
WIDTH, HEIGHT, CELL, REACH = 128, 112, 16, 12
INFO = ModelInfo(
    decoder="detectnet_v2",
    classes=CLASSES,
    input=InputInfo("input_1", WIDTH, HEIGHT),
    outputs={"coverage": "cov", "bbox": "box"},
    postprocess=Postprocess(0.3),
)
IMAGES = 6


def network(path: Path) -> Path:
    """Coverage of class k: sigmoid(24 (c_k - the mean of the other two) - 6), c in 0..1, the mean of the cell."""
    mean = 1 / CELL**2
    cover = np.full((3, 3, CELL, CELL), -12 * mean, np.float32)
    cover[range(3), range(3)] = 24 * mean
    weights = [
        numpy_helper.from_array(cover, "w"),
        numpy_helper.from_array(np.full(3, -6, np.float32), "b"),
        numpy_helper.from_array(np.zeros((12, 3, CELL, CELL), np.float32), "wb"),
        numpy_helper.from_array(np.full(12, REACH / 35, np.float32), "bb"),
    ]
    nodes = [
        helper.make_node("Conv", ["input_1", "w", "b"], ["raw"], strides=[CELL, CELL]),
        helper.make_node("Sigmoid", ["raw"], ["cov"]),
        helper.make_node("Conv", ["input_1", "wb", "bb"], ["box"], strides=[CELL, CELL]),
    ]
    grid = [HEIGHT // CELL, WIDTH // CELL]
    outputs = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", c, *grid]) for n, c in (("cov", 3), ("box", 12))
    ]
    entry = helper.make_tensor_value_info("input_1", TensorProto.FLOAT, ["N", 3, HEIGHT, WIDTH])
    graph = helper.make_graph(nodes, "known", [entry], outputs, weights)
    path.parent.mkdir(parents=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@dataclass
class House:
    """Everything that a proof needs; `ask` runs one with a model.json of the test's choice."""

    folder: Path
    port: int

    def model(self, name: str, info: ModelInfo) -> Path:
        path = self.folder / name / "model.onnx"
        if not path.exists():
            network(path)
        path.with_name("model.json").write_text(info.text(), encoding="utf-8")
        return path

    def spec(self, name: str, info: ModelInfo, **more: Any) -> PrepareSpec:
        path = self.model(name, info)
        return PrepareSpec.model_validate(
            {"model": "known", "model_path": path, "snapshot": self.folder / "data", **more}
        )

    def ask(self, name: str, info: ModelInfo, **more: Any) -> ParitySpec:
        """Prepare, ask the Triton of these tests, and give the gate's spec."""
        proof, out = self.folder / name / "proof", self.folder / name / "prove"
        prepare.run(self.spec(name, info, **more), proof, StatusWriter(proof))
        out.mkdir()
        request = json.loads((proof / "request.json").read_text())
        server.write(str(out / "answers.json"), server.ask_all(request, str(proof), self.port, str(out)))
        references = {"trained": self.folder / "evaluated" / "detections.json"}
        return ParitySpec(model="quantized", proof=proof, answers={"": out}, references=references)


def picture(seed: int) -> Any:
    """A grey picture of 200 x 100 with three squares of 38 pixels."""
    rng = np.random.default_rng(seed)
    image = np.full((100, 200, 3), (104, 96, 92), np.uint8)
    for slot, cls in enumerate(rng.permutation(3)):
        x, y = 50 * (slot + (seed % 2)) + 6, 25 * int(rng.integers(0, 3)) + 6
        colour = np.full(3, 60, np.uint8)
        colour[cls] = 220
        image[y : y + 38, x : x + 38] = colour
    return image


def snapshot(folder: Path, found: Sequence[Detections]) -> None:
    """The pictures; the truth is what the detector finds in them."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for seed, one in enumerate(found):
        file, sure = f"{seed}.png", one.above(0.3)
        boxes = zip(sure.classes.tolist(), sure.boxes.tolist(), strict=True)
        objects = [{"class": CLASSES[c], **dict(zip(("x1", "y1", "x2", "y2"), box, strict=True))} for c, box in boxes]
        cv2.imwrite(str(folder / "images" / file), cv2.cvtColor(picture(seed), cv2.COLOR_RGB2BGR))
        rows.append({"file": file, "width": 200, "height": 100, "split": "val", "objects": objects})
    rows.append({**rows[0], "file": "train.png", "split": "train"})
    (folder / "annotations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def evaluate(folder: Path, model: Path, info: ModelInfo = INFO) -> list[Detections]:
    """What an evaluation leaves, by ONNX's own reference of each operator: neither Triton nor its runtime."""
    run, decode = ReferenceEvaluator(str(model)), decoder_for(replace(info, postprocess=Postprocess(0.01)))
    found, rows = [], []
    for seed in range(IMAGES):
        tensor, frame = preprocess(picture(seed), info.input)
        cov, box = run.run(["cov", "box"], {"input_1": tensor})
        (one,) = decode({"cov": cov, "box": box}, [frame])
        found.append(one)
        for b, s, c in zip(one.boxes.tolist(), one.scores.tolist(), one.classes.tolist(), strict=True):
            place = {"image_id": seed, "file_name": f"{seed}.png", "category_id": c + 1}
            rows.append({**place, "score": s, "bbox": [b[0], b[1], b[2] - b[0], b[3] - b[1]]})
    folder.mkdir()
    (folder / "detections.json").write_text(json.dumps(rows))
    categories = [{"id": n, "name": name} for n, name in enumerate(info.classes, start=1)]
    (folder / "ground_truth.json").write_text(json.dumps({"categories": categories}))
    return found


@pytest.fixture(scope="session")
def port(local_triton: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a Triton that serves the detector as `known`, `known-fp32` and `known-champion`, and something broken
    as `broken`."""
    folder = tmp_path_factory.mktemp("prove")
    place, repository = House(folder, 0), folder / "repository"
    snapshot(folder / "data", [Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))])
    repository.mkdir()
    for name in ("known", "broken"):
        out = folder / name / "proof"
        spec = place.spec(name, INFO, onnx=place.model("plain", INFO), champion=place.model("old", INFO), model=name)
        prepare.run(spec, out, StatusWriter(out))
        for made in (out / "repository").iterdir():
            made.rename(repository / made.name)
    (repository / "broken" / "1" / "model.onnx").write_bytes(b"no model")
    with open(folder / "triton.log", "wb") as log, server.serving(str(repository), log) as found:
        yield found


@pytest.fixture(scope="session")
def house(port: int, tmp_path_factory: pytest.TempPathFactory) -> House:
    folder = tmp_path_factory.mktemp("house")
    snapshot(folder / "data", evaluate(folder / "evaluated", network(folder / "right" / "model.onnx")))
    return House(folder, port)
