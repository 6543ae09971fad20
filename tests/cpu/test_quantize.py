"""quantize: INT8 that still finds the objects, and an honest record of the calibration."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto

from refit.command import BadData, BadSpec
from refit.cpu import export, quantize
from refit.cpu.calibration import choose, measure
from refit.cpu.evaluate import find
from refit.cpu.models import open_model
from refit.cpu.records import Dataset, Record
from refit.cpu.scoring import score
from refit.cpu.specs import ExportSpec, QuantizeParams, QuantizeSpec
from refit.cpu.status import StatusWriter
from refit.pipeline import Release
from refit.postprocess import InputInfo
from tests.cpu.conftest import CLASSES, encode, status_lines
from tests.cpu.tiny import empty_record, tiny_record, tiny_records, write


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_records(tmp_path_factory.mktemp("records"), train=10, val=6)


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported")
    export.run(ExportSpec(model=str(trained)), out, StatusWriter(out))
    return out / "model.onnx"


def run(model: Path, records: Path, out: Path, **more: Any) -> list[dict[str, Any]]:
    """Quantize without judging: what `method` makes is what comes out."""
    status = StatusWriter(out)
    values = {"images": 8, "ladder": [], **more}
    quantize.run(QuantizeSpec(model=str(model), records=str(records), **values), out, status)
    lines = status_lines(status.path)
    assert lines[-1]["status"] == "SUCCESS"
    return lines


def map50(model: Path, records: Path) -> float:
    predictor = open_model(model)
    value = score(
        *find(predictor, predictor.info, Dataset.load(records).split("val"), predictor.info.postprocess), CLASSES
    )
    assert value.map50 is not None
    return value.map50


@pytest.mark.parametrize(
    "settings", [{}, {"activation": "int8", "method": "minmax"}, {"per_channel": False}, {"method": "minmax"}]
)
def test_it_still_finds_the_objects(exported: Path, records: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    run(exported, records, tmp_path, **settings)
    assert map50(tmp_path / "model.onnx", records) > map50(exported, records) - 0.1
    model = onnx.load(tmp_path / "model.onnx")
    kinds = {t.name: t.data_type for t in model.graph.initializer}
    weights = [n.input[0] for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in kinds]
    assert len([w for w in weights if kinds[w] == TensorProto.INT8]) >= 12
    made = {name: node for node in model.graph.node for name in node.output}
    # The outputs are not rounded to 256 steps.
    assert {made[o.name].op_type for o in model.graph.output} == {"Sigmoid", "Conv"}
    activations = {kinds[n.input[2]] for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[2] in kinds}
    assert activations == {TensorProto.INT8 if settings.get("activation") == "int8" else TensorProto.UINT8}


def test_the_record(exported: Path, records: Path, tmp_path: Path) -> None:
    kpi = run(exported, records, tmp_path)[-1]["kpi"]
    assert kpi["bytes"] == (tmp_path / "model.onnx").stat().st_size < 0.6 * kpi["bytes_before"]
    assert min(kpi["fp32_ms"], kpi["int8_ms"]) > 0
    said = json.loads((tmp_path / "calibration.json").read_text())
    train = {r.file: hashlib.sha256(r.encoded).hexdigest() for r in Dataset.load(records).split("train")}
    assert len(said["images"]) == 8
    assert all(train[image["file"]] == image["sha256"] for image in said["images"])
    assert said["split"] == "train"
    assert said["settings"]["method"] == "percentile"
    for name, path in (("source", exported), ("model", tmp_path / "model.onnx")):
        assert said[name]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert {"onnxruntime", "onnx"} <= set(said["tools"])
    assert (tmp_path / "model.json").read_bytes() == exported.with_name("model.json").read_bytes()


def test_the_reference_holds_on_other_kernels(exported: Path, records: Path, tmp_path: Path) -> None:
    """Answers of float32 kernels, as a GPU may use them for Q/DQ, are within the default tolerance of a release."""
    run(exported, records, tmp_path)
    with np.load(tmp_path / "reference.npz") as file:
        arrays = {name: file[name] for name in file.files}
    inputs = arrays.pop("input:input_1")
    assert inputs.shape == (6, 3, 96, 160)  # the val split has six
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(tmp_path / "model.onnx"), options, providers=["CPUExecutionProvider"])
    assert set(arrays) == {f"output:{o.name}" for o in session.get_outputs()}
    allowed = Release().tolerance
    for output in session.get_outputs():
        want = arrays[f"output:{output.name}"]
        gap = np.abs(session.run([output.name], {"input_1": inputs})[0] - want) / np.abs(want).max()
        assert gap.max() <= allowed.largest
        assert gap.mean() <= allowed.mean


def test_the_cache_is_for_people(exported: Path, records: Path, tmp_path: Path) -> None:
    run(exported, records, tmp_path)
    cache = json.loads((tmp_path / "calibration.cache").read_text())
    assert "not TensorRT's" in cache["note"]
    low, high = cache["ranges"]["input_1"]
    assert 0 <= low < high <= 1
    assert all(low <= high for low, high in cache["ranges"].values())


def test_the_same_images_give_the_same_bytes(exported: Path, records: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(exported, records, tmp_path / name)
    assert (tmp_path / "a" / "model.onnx").read_bytes() == (tmp_path / "b" / "model.onnx").read_bytes()


def test_too_few_images_are_told(exported: Path, records: Path, tmp_path: Path) -> None:
    lines = run(exported, records, tmp_path, images=50)
    assert any(line["message"] == "Only 10 training images; 50 were asked for." for line in lines)


def test_entropy_is_not_minmax(records: Path, tmp_path: Path) -> None:
    """onnxruntime's entropy calibrator with its own 128 bins always gives the ranges of minmax."""
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    shape = ["n", 3, 96, 160]
    x, y = (onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy")
    graph = onnx.helper.make_graph([node], "g", [x], [y])
    opsets = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "relu.onnx")
    rng = np.random.default_rng(0)
    noise = rng.normal(90, 12, (96, 160, 3)).clip(0, 200).astype(np.uint8)
    noise[0, 0] = 255
    picture = Record("x.png", 160, 96, encode(noise), np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    highest = {}
    for method in ("minmax", "entropy"):
        params = QuantizeParams.model_validate({"method": method})
        highest[method] = measure(tmp_path / "relu.onnx", [picture], InputInfo("x", 160, 96), params)["x"][1]
    assert highest["minmax"] == 1.0
    assert highest["entropy"] < 0.8


def labelled(*classes: int) -> Record:
    boxes = np.tile(np.array([1, 1, 9, 9], np.float32), (len(classes), 1))
    return Record("x.png", 10, 10, b"", boxes, np.array(classes, np.int64))


def test_rare_classes_are_chosen_first() -> None:
    common, rare, none = [labelled(0) for _ in range(50)], [labelled(1), labelled(2)], [labelled() for _ in range(50)]
    data = [*common, *none, *rare]
    for seed in range(5):
        chosen = choose(data, 3, 6, seed)
        assert {100, 101} <= set(chosen)
        assert chosen == sorted(set(chosen))
        assert len([i for i in chosen if i < 50]) == 4
    assert choose(data, 3, 10, 1) == choose(data, 3, 10, 1) != choose(data, 3, 10, 2)
    assert choose(data, 3, 999, 1) == list(range(102))


def test_copies_that_augment_made_calibrate_nothing() -> None:
    data = [replace(labelled(i % 3), made_from="x.png" if i % 2 else "") for i in range(40)]
    assert choose(data, 3, 999, 1) == list(range(0, 40, 2))


def test_bad_input(trained: Path, exported: Path, records: Path, tmp_path: Path) -> None:
    with pytest.raises(BadSpec, match=r"INT8 is made from an exported \.onnx; run export first"):
        run(trained, records, tmp_path)
    with pytest.raises(BadSpec, match="no such file"):
        run(tmp_path / "none.onnx", records, tmp_path)
    empty = write(tmp_path / "empty", {"val": [tiny_record(0)]})
    with pytest.raises(BadData, match="no split 'train'"):
        run(exported, empty, tmp_path / "out")
    other = write(tmp_path / "other", {"train": [tiny_record(0), empty_record(1)]})
    (other / "dataset.json").write_text((other / "dataset.json").read_text().replace("person", "horse"))
    with pytest.raises(BadSpec, match="have different classes"):
        run(exported, other, tmp_path / "out")
    assert not (tmp_path / "out" / "model.onnx").exists()
