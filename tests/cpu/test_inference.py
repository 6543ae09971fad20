"""inference: a folder of images with all that folders hold, seen by a model whose answer is known.

The model is a real ONNX file that needs no training: each 16 x 16 cell is an object of the class whose colour it has.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from pycocotools.coco import COCO

from refit.command import BadData, BadSpec
from refit.cpu import inference
from refit.cpu.status import StatusWriter
from refit.postprocess import InputInfo, ModelInfo
from refit.predict.specs import FileInferenceSpec
from tests.cpu.conftest import CLASSES, COLORS, encode, status_lines

CELL, WIDTH, HEIGHT, NORM = 16, 160, 96, 35.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Coverage is the mean of a cell's red, green and blue; the box is the cell."""
    folder = tmp_path_factory.mktemp("model")
    outputs = {"coverage": "output_cov/Sigmoid", "bbox": "output_bbox/BiasAdd"}
    info = ModelInfo("detectnet_v2", CLASSES, InputInfo("input_1", WIDTH, HEIGHT), outputs, stride=CELL)
    (folder / "model.json").write_text(info.text())
    distances = np.tile(np.array([0.5, 0.5, CELL - 0.5, CELL - 0.5], np.float32) / NORM, 3)
    shape = [HEIGHT // CELL, WIDTH // CELL]
    graph = helper.make_graph(
        [
            helper.make_node(
                "AveragePool", ["input_1"], [outputs["coverage"]], kernel_shape=[CELL, CELL], strides=[CELL, CELL]
            ),
            helper.make_node("Conv", [outputs["coverage"], "zero", "distances"], [outputs["bbox"]]),
        ],
        "cells",
        [helper.make_tensor_value_info("input_1", TensorProto.FLOAT, ["n", 3, HEIGHT, WIDTH])],
        [
            helper.make_tensor_value_info(outputs["coverage"], TensorProto.FLOAT, ["n", 3, *shape]),
            helper.make_tensor_value_info(outputs["bbox"], TensorProto.FLOAT, ["n", 12, *shape]),
        ],
        [
            numpy_helper.from_array(np.zeros((12, 3, 1, 1), np.float32), "zero"),
            numpy_helper.from_array(distances, "distances"),
        ],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "model.onnx"
    )
    return folder / "model.onnx"


def cells(*at: tuple[int, int, int], strength: float = 1.0, scale: int = 1) -> NDArray[np.uint8]:
    """A picture with cells (column, row, class) in their class's colour."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for column, row, index in at:
        image[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] = np.multiply(COLORS[index], strength)
    return image.repeat(scale, axis=0).repeat(scale, axis=1)


@pytest.fixture(autouse=True)
def _roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFIT_DATA_ROOTS", str(tmp_path))


def run(model: Path, images: Path, out: Path, status: StatusWriter, **more: Any) -> dict[str, Any]:
    inference.run(FileInferenceSpec(model=str(model), images=str(images), **more), out, status)
    last = status_lines(status.path)[-1]
    assert last["status"] == "SUCCESS"
    return {name: value for name, value in last["kpi"].items() if name != "images_per_second"}


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_a_folder_and_its_subfolders(model: Path, tmp_path: Path, status: StatusWriter) -> None:
    yard, out = tmp_path / "yard", tmp_path / "out"
    (yard / "gate" / "night").mkdir(parents=True)
    (yard / ".hidden").mkdir()
    (yard / "a.png").write_bytes(encode(cells((1, 2, 0), (5, 3, 2))))
    (yard / "B.JPG").write_bytes(encode(cells((4, 4, 1)), ".jpg"))
    (yard / "notes.txt").write_text("no image")
    (yard / ".hidden" / "x.png").write_bytes(encode(cells()))
    (yard / "gate" / "large.bmp").write_bytes(encode(cells((9, 5, 1), scale=2), ".bmp"))
    (yard / "gate" / "night" / "empty.webp").write_bytes(encode(cells(), ".webp"))
    kpi = run(model, yard, out, status, draw=True)
    assert kpi == {"images": 4, "objects": 4, "bad_images": 0}
    red = {"type": "car", "x1": 16.0, "y1": 32.0, "x2": 32.0, "y2": 48.0, "score": 1.0}
    blue = {"type": "sign", "x1": 80.0, "y1": 48.0, "x2": 96.0, "y2": 64.0, "score": 1.0}
    second, first = read(out / "results" / "yard.json")
    assert (first["id"], second["id"]) == ("a.png", "B.JPG")
    assert sorted(first["objects"], key=lambda o: o["x1"]) == [red, blue]
    (green,) = second["objects"]
    assert (green["type"], green["x1"], green["y1"]) == ("person", 64.0, 64.0)
    # Twice the size of the model's input: the box is in pixels of the image.
    (large,) = read(out / "results" / "yard" / "gate.json")
    (box,) = large["objects"]
    assert [box[k] for k in ("x1", "y1", "x2", "y2")] == [288.0, 160.0, 320.0, 192.0]
    assert read(out / "results" / "yard" / "gate" / "night.json") == [{"id": "empty.webp", "objects": []}]
    assert read(out / "errors.json") == []
    coco = read(out / "detections.json")
    files = ["B.JPG", "a.png", "gate/large.bmp", "gate/night/empty.webp"]
    assert [files[d["image_id"]] for d in coco] == [d["file_name"] for d in coco]
    assert {(d["file_name"], d["category_id"], *d["bbox"]) for d in coco if d["file_name"] == "a.png"} == {
        ("a.png", 1, 16.0, 32.0, 16.0, 16.0),
        ("a.png", 3, 80.0, 48.0, 16.0, 16.0),
    }
    drawn = {str(p.relative_to(out / "images")) for p in (out / "images").rglob("*") if p.is_file()}
    assert drawn == {"a.png", "B.JPG", "gate/large.bmp.png", "gate/night/empty.webp.png"}
    picture = cv2.imread(str(out / "images" / "a.png"))
    assert picture.shape == (HEIGHT, WIDTH, 3)
    assert (picture != cv2.imread(str(yard / "a.png"))).any()


def test_coco_s_own_reader_takes_the_results(model: Path, tmp_path: Path, status: StatusWriter) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    (images / "a.png").write_bytes(b"")
    (images / "b.png").write_bytes(encode(cells((1, 2, 0), (5, 3, 2))))
    run(model, images, out, status)
    truth = COCO(str(out / "images.json"))
    found = truth.loadRes(str(out / "detections.json"))
    assert [c["name"] for c in truth.loadCats(truth.getCatIds())] == list(CLASSES)
    (image,) = truth.loadImgs(truth.getImgIds())
    assert (image["file_name"], image["width"], image["height"]) == ("b.png", WIDTH, HEIGHT)
    boxes = {a["category_id"]: a["bbox"] for a in found.loadAnns(found.getAnnIds(imgIds=[image["id"]]))}
    assert boxes == {1: [16.0, 32.0, 16.0, 16.0], 3: [80.0, 48.0, 16.0, 16.0]}


def test_the_threshold_of_the_spec_counts(model: Path, tmp_path: Path, status: StatusWriter) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.png").write_bytes(encode(cells((1, 1, 0), strength=0.5)))
    (images / "b.png").write_bytes(encode(cells((1, 1, 0), strength=0.2)))
    assert run(model, images, tmp_path / "1", status)["objects"] == 1
    assert run(model, images, tmp_path / "2", status, score_threshold=0.15)["objects"] == 2
    assert run(model, images, tmp_path / "3", status, score_threshold=0.6)["objects"] == 0
    assert not (tmp_path / "1" / "images").exists()


def test_bad_images_are_told_and_the_rest_goes_on(model: Path, tmp_path: Path, status: StatusWriter) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    good = encode(cells((1, 1, 0)))
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    for i in range(20):
        (images / f"{i:02d}.png").write_bytes(good)
    (images / "03.png").write_bytes(b"")
    (images / "07.png").write_bytes(b"<html>404</html>")
    (images / "19.png").write_bytes(encode(noise, ".jpg")[:4000])
    (images / "gone.png").symlink_to(tmp_path / "nowhere.png")
    Path(os.fsdecode(bytes(images) + b"/\xff.png")).write_bytes(good)
    assert run(model, images, out, status) == {"images": 18, "objects": 18, "bad_images": 4}
    errors = {e["file"]: e["error"] for e in read(out / "errors.json")}
    assert sorted(errors) == ["03.png", "07.png", "19.png", "gone.png"]
    assert "empty" in errors["03.png"]
    assert "not an image" in errors["07.png"]
    assert "cannot be read to its end" in errors["19.png"]
    assert errors["gone.png"] == "a link out of the data set"
    said = [line["message"] for line in status_lines(status.path) if "left out" in line["message"]]
    assert len(said) == 3
    ids = [r["id"] for r in read(out / "results" / "images.json")]
    assert len(ids) == 18
    assert ids[-1] == "\\udcff.png"
    assert "03.png" not in ids


def test_the_second_run_gives_the_same_bytes(model: Path, tmp_path: Path, status: StatusWriter) -> None:
    images, out = tmp_path / "in", tmp_path / "out"
    images.mkdir()
    for i in range(12):
        (images / f"{i}.png").write_bytes(encode(cells((i % 10, i % 6, i % 3))))

    def files() -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in out.rglob("*") if p.is_file()}

    run(model, images, out, status, draw=True)
    first = files()
    (out / "images" / ".3.png.tmp-1").write_bytes(b"half")  # of a process that was killed
    run(model, images, out, status, draw=True)
    assert files() == first


def test_what_cannot_work_is_named(model: Path, tmp_path: Path, status: StatusWriter) -> None:
    images = tmp_path / "data" / "images"
    images.mkdir(parents=True)
    with pytest.raises(BadData, match="no image in it"):
        run(model, images, tmp_path / "out", status)
    with pytest.raises(BadData, match="nowhere: no such folder"):
        run(model, tmp_path / "nowhere", tmp_path / "out", status)
    (images / "a.png").write_bytes(b"x")
    with pytest.raises(BadData, match=r"none of 1 images can be read, e\.g\. a\.png: not an image"):
        run(model, images, tmp_path / "out", status)
    (images / "a.png").write_bytes(encode(cells()))
    for out in (tmp_path / "data", images / "out"):
        with pytest.raises(BadSpec, match="lie in one another"):
            run(model, images, out, status)
    with pytest.raises(BadSpec, match=r"nothing\.onnx"):
        run(tmp_path / "nothing.onnx", images, tmp_path / "out", status)
