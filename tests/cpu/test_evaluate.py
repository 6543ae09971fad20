"""Scores against cases worked out by hand, and the evaluate stage on real files."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from refit.command import BadData, BadSpec
from refit.cpu import evaluate, export
from refit.cpu.records import Record
from refit.cpu.scoring import Scores, Truth, score
from refit.cpu.specs import EvaluateSpec, ExportSpec
from refit.cpu.status import StatusWriter
from refit.postprocess import Detections
from tests.cpu.conftest import CLASSES, status_lines
from tests.cpu.tiny import empty_record, tiny_record, write

Box = tuple[float, float, float, float]


def truth(*objects: tuple[int, Box], ignore: tuple[int, ...] = ()) -> Truth:
    flags = np.array([i in ignore for i in range(len(objects))], bool)
    boxes = np.array([box for _, box in objects], np.float32).reshape(-1, 4)
    return Truth("x.png", 200, 100, boxes, np.array([c for c, _ in objects], np.int64), flags)


def found(*objects: tuple[int, Box, float]) -> Detections:
    boxes = np.array([box for _, box, _ in objects], np.float32).reshape(-1, 4)
    scores = np.array([s for _, _, s in objects], np.float32)
    return Detections(boxes, scores, np.array([c for c, _, _ in objects], np.int64))


def scores(want: list[Truth], got: list[Detections], **more: Any) -> Scores:
    return score(want, got, ("a", "b"), **more)


A, B, C = (0.0, 0.0, 20.0, 20.0), (50.0, 0.0, 90.0, 40.0), (100.0, 50.0, 140.0, 90.0)


def test_all_found_exactly() -> None:
    result = scores([truth((0, A), (1, B))], [found((0, A, 0.9), (1, B, 0.8))])
    assert [result.map50, result.map] == pytest.approx([1.0, 1.0])
    assert result.ap50 == {"a": pytest.approx(1.0), "b": pytest.approx(1.0)}
    assert result.recall50 == {"a": 1.0, "b": 1.0}


def test_half_found_with_one_wrong_in_front() -> None:
    """Precision 1/2 up to recall 1/2, nothing beyond: 51 of COCO's 101 recall points at 0.5."""
    result = scores([truth((0, A), (0, B))], [found((0, C, 0.9), (0, A, 0.8))])
    assert result.ap50["a"] == pytest.approx(51 / 101 / 2)
    assert result.recall50["a"] == 0.5


def test_overlap_decides_which_thresholds_are_met() -> None:
    close = (0.0, 0.0, 20.0, 15.5)  # IoU 0.775: right at 0.5 ... 0.75, six of ten thresholds
    result = scores([truth((0, A))], [found((0, close, 0.9))])
    assert result.ap50["a"] == pytest.approx(1.0)
    assert result.ap["a"] == pytest.approx(0.6)


def test_what_is_found_in_an_image_without_objects_is_wrong() -> None:
    clean = scores([truth((0, A)), truth()], [found((0, A, 0.5)), found()])
    false = scores([truth((0, A)), truth()], [found((0, A, 0.5)), found((0, A, 0.9))])
    assert clean.map50 == pytest.approx(1.0)
    assert false.map50 == pytest.approx(0.5)


def test_the_wrong_class_is_wrong() -> None:
    result = scores([truth((0, A), (1, B))], [found((1, A, 0.9), (0, B, 0.8))])
    assert result.map50 == 0.0


def test_classes_without_objects_do_not_count() -> None:
    result = scores([truth((0, A))], [found((0, A, 0.9), (1, B, 0.8))])
    assert result.map50 == pytest.approx(1.0)
    assert result.ap50["b"] is None
    assert result.detections == {"a": 1, "b": 1}
    assert result.objects == {"a": 1, "b": 0}


def test_nothing_found_and_nothing_there() -> None:
    assert scores([truth((0, A))], [found()]).map50 == 0.0
    assert scores([truth()], [found()]).map50 is None


def test_ignored_objects_are_neither_right_nor_wrong() -> None:
    want = [truth((0, A), (0, B), ignore=(1,))]
    for got in (found((0, A, 0.5)), found((0, A, 0.5), (0, B, 0.9))):
        result = scores(want, [got])
        assert result.map50 == pytest.approx(1.0)
        assert (result.objects["a"], result.ignored["a"]) == (1, 1)
    assert scores(want, [found((0, A, 0.5), (0, C, 0.9))]).map50 == pytest.approx(0.5)
    # One ignored object excuses one detection, not a crowd of them.
    assert scores(want, [found((0, A, 0.5), (0, B, 0.9), (0, B, 0.8))]).map50 == pytest.approx(0.5)


def test_small_boxes_are_ignored_on_both_sides() -> None:
    small = (150.0, 10.0, 154.0, 40.0)
    record = Record("x.png", 200, 100, b"", np.array([A, small], np.float32), np.array([0, 0]))
    want = Truth.of(record, min_box_px=5)
    assert want.ignore.tolist() == [False, True]
    assert Truth.of(record).ignore.tolist() == [False, False]
    elsewhere = (60.0, 60.0, 64.0, 90.0)
    for extra in ((0, small, 0.9), (0, elsewhere, 0.9)):
        assert scores([want], [found((0, A, 0.5), extra)], min_box_px=5).map50 == pytest.approx(1.0)
    assert scores([want], [found((0, A, 0.5), (0, elsewhere, 0.9))]).map50 == pytest.approx(0.5)
    assert scores([want], [found((0, A, 0.5))], min_box_px=5).map50 == pytest.approx(1.0)


def test_difficult_objects_are_ignored() -> None:
    boxes, flags = np.array([A, B], np.float32), np.array([False, True])
    want = Truth.of(Record("x.png", 200, 100, b"", boxes, np.array([0, 0]), flags))
    assert scores([want], [found((0, A, 0.5))]).map50 == pytest.approx(1.0)


def test_only_so_many_detections_count() -> None:
    got = found((0, B, 0.9), (0, C, 0.8), (0, A, 0.7))
    assert scores([truth((0, A))], [got], max_detections=2).map50 == 0.0
    assert scores([truth((0, A))], [got], max_detections=3).map50 == pytest.approx(1 / 3)


# ---- the stage


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    splits = {
        "train": [tiny_record(0)],
        "val": [*(tiny_record(1000 + i) for i in range(6)), empty_record(7)],
        "night": [tiny_record(2000 + i) for i in range(3)],
        "blank": [empty_record(i) for i in range(2)],
    }
    return write(tmp_path_factory.mktemp("records") / "x", splits)


def run(model: Path, records: Path, out: Path, **more: Any) -> dict[str, Any]:
    status = StatusWriter(out)
    evaluate.run(EvaluateSpec(model=str(model), records=str(records), **more), out, status)
    last = status_lines(status.path)[-1]
    assert last["status"] == "SUCCESS"
    return last


def test_results(trained: Path, records: Path, tmp_path: Path) -> None:
    last = run(trained, records, tmp_path, splits=["val", "night", "blank"])
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["metrics"]) == {"mAP50", "mAP", "mAP50@night"}
    assert last["kpi"] == {name: round(value, 6) for name, value in results["metrics"].items()}
    assert results["metrics"]["mAP50"] > 0.8
    assert set(last["categorical"]["AP50"]) == set(CLASSES)
    assert results["metrics"]["mAP50"] == pytest.approx(np.mean([c["AP50"] for c in results["per_class"].values()]))
    assert results["splits"] == {"val": 7, "night": 3, "blank": 2}
    assert results["by_split"]["blank"]["mAP50"] is None
    assert results["by_split"]["night"]["mAP50"] == results["metrics"]["mAP50@night"]
    assert sum(c["objects"] for c in results["per_class"].values()) == 18
    assert results["thresholds"] == {
        "score_threshold": 0.01,
        "nms_iou": 0.5,
        "max_detections": 100,
        "min_box_px": 0.0,
    }
    assert results["dataset"] == {"fingerprint": "f" * 64, "classes": list(CLASSES)}
    assert results["model"]["bytes"] == trained.stat().st_size


def test_the_files_say_the_same_to_pycocotools(trained: Path, records: Path, tmp_path: Path) -> None:
    last = run(trained, records, tmp_path)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(tmp_path / "ground_truth.json"))
        judge = COCOeval(coco, coco.loadRes(str(tmp_path / "detections.json")), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    # The file has scores and places rounded.
    assert judge.stats[1] == pytest.approx(last["kpi"]["mAP50"], abs=0.005)
    assert judge.stats[0] == pytest.approx(last["kpi"]["mAP"], abs=0.01)
    names = {r["file_name"] for r in json.loads((tmp_path / "detections.json").read_text())}
    assert names <= {image["file_name"] for image in json.loads((tmp_path / "ground_truth.json").read_text())["images"]}


def test_pth_and_onnx_score_alike(trained: Path, records: Path, tmp_path: Path) -> None:
    export.run(ExportSpec(model=str(trained)), tmp_path / "onnx", StatusWriter(tmp_path / "onnx"))
    a = run(trained, records, tmp_path / "a")["kpi"]
    b = run(tmp_path / "onnx" / "model.onnx", records, tmp_path / "b")["kpi"]
    assert a["mAP50"] == pytest.approx(b["mAP50"], abs=1e-3)
    assert a["mAP"] == pytest.approx(b["mAP"], abs=1e-3)


def test_the_score_threshold_is_used(trained: Path, records: Path, tmp_path: Path) -> None:
    run(trained, records, tmp_path, score_threshold=0.6)
    assert min(r["score"] for r in json.loads((tmp_path / "detections.json").read_text())) >= 0.6


def test_bad_input(trained: Path, records: Path, tmp_path: Path) -> None:
    with pytest.raises(BadSpec, match="splits: the data has no 'test'; it has train, val, night, blank"):
        run(trained, records, tmp_path, splits=["test"])
    with pytest.raises(BadData, match="no object to find in split 'blank'"):
        run(trained, records, tmp_path, splits=["blank"])
    with pytest.raises(BadSpec, match=r"none\.pth: no such file"):
        run(tmp_path / "none.pth", records, tmp_path)
    with pytest.raises(BadSpec, match=r"a model is a \.pth or an \.onnx file"):
        run(tmp_path / "model.hdf5", records, tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"not onnx")
    with pytest.raises(BadSpec, match=r"model\.json: No such file"):
        run(tmp_path / "model.onnx", records, tmp_path)
    export.run(ExportSpec(model=str(trained)), tmp_path / "good", StatusWriter(tmp_path / "good"))
    (tmp_path / "model.json").write_bytes((tmp_path / "good" / "model.json").read_bytes())
    with pytest.raises(BadSpec, match="ONNX Runtime cannot load it"):
        run(tmp_path / "model.onnx", records, tmp_path)
    other = write(tmp_path / "records", {"val": [tiny_record(0)]})
    text = (other / "dataset.json").read_text().replace("person", "horse")
    (other / "dataset.json").write_text(text)
    with pytest.raises(BadSpec, match="knows car, person, sign; the data has car, horse, sign"):
        run(trained, other, tmp_path)
    assert not (tmp_path / "results.json").exists()
