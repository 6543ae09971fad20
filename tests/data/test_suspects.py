"""Likely label errors: each kind is found, none where model and labels agree, and the likeliest comes first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.helpers import SETTINGS, kitti_set  # isort: skip

from refit.data import suspects
from refit.data.cli import main
from refit.data.ingest import ingest
from refit.data.suspects import Objects

CAR, CAT = (10.0, 10.0, 50.0, 50.0), (100.0, 10.0, 160.0, 90.0)


def _objects(*found: tuple[str, tuple[float, ...], float]) -> Objects:
    boxes = np.array([box for _, box, _ in found], np.float64).reshape(-1, 4)
    return Objects(boxes, [name for name, _, _ in found], np.array([score for _, _, score in found]))


GOOD = _objects(("car", CAR, 0.9), ("cat", CAT, 0.8))


def _ranked(labels: Objects, seen: Objects = GOOD, good: int = 9) -> list[suspects.Suspect]:
    """The suspects of one image, with others beside it in which model and labels agree."""
    return suspects.ranked([("x", labels, seen), *((f"good {i}", GOOD, GOOD) for i in range(good))])


@pytest.mark.parametrize(
    ("labels", "kind", "label", "model"),
    [
        (_objects(("car", CAR, 1)), "missing", "", "cat"),
        (_objects(("car", CAR, 1), ("cat", CAT, 1), ("cat", (200, 100, 260, 160), 1)), "spurious", "cat", ""),
        (_objects(("cat", CAR, 1), ("cat", CAT, 1)), "class", "cat", "car"),
        (_objects(("car", (24, 10, 64, 50), 1), ("cat", CAT, 1)), "place", "car", "car"),
        (_objects(("car", (20, 10, 60, 50), 1), ("cat", CAT, 1)), "place", "car", "car"),
    ],
)
def test_each_kind(labels: Objects, kind: str, label: str, model: str) -> None:
    found = _ranked(labels)[0]
    assert (found.file, found.kind, found.label, found.model) == ("x", kind, label, model)
    assert found.score > 0.5
    assert (label or model) in found.told()


def test_agreement_gives_no_suspects() -> None:
    assert _ranked(GOOD) == []
    slightly_off = _objects(("car", (11, 9, 51, 49), 1), ("cat", CAT, 1))
    assert _ranked(slightly_off) == []


def test_a_weak_prediction_of_the_label_s_class_does_not_hide_a_swap() -> None:
    seen = _objects(("car", CAR, 0.9), ("cat", CAR, 0.05), ("cat", CAT, 0.8))
    assert [s.kind for s in _ranked(_objects(("cat", CAR, 1), ("cat", CAT, 1)), seen)] == ["class"]


def test_the_silence_of_a_model_that_misses_many_says_little() -> None:
    blind = [(f"{i}", GOOD, _objects(*[("car", CAR, 0.9)] * (i % 4 == 0))) for i in range(20)]
    assert [s for s in suspects.ranked(blind) if s.kind == "spurious" and s.label == "car"] == []


def test_the_surest_comes_first() -> None:
    images = [(f"{c}", _objects(), _objects(("car", CAR, c))) for c in (0.6, 0.9, 0.4, 0.75)]
    assert [s.file for s in suspects.ranked(images)] == ["0.9", "0.75", "0.6"]
    assert [s.file for s in suspects.ranked(images, least=0.7)] == ["0.9", "0.75"]


def _result(image: int, category: int, box: tuple[float, ...], score: float, **more: Any) -> dict[str, Any]:
    x1, y1, x2, y2 = box
    row = {"image_id": image, "category_id": category, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
    return {**row, **more}


TRUTH = {
    "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "b.jpg"}],
    "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "car"}],
}


def test_results_are_read_by_the_ids_of_the_truth() -> None:
    found = suspects.read_results([_result(7, 5, CAR, 0.9)], TRUTH, ["dog"])
    assert sorted(found) == ["a.jpg", "b.jpg"]  # the model said nothing of b, and that is a statement
    assert (found["a.jpg"].classes, found["a.jpg"].boxes.tolist()) == (["car"], [list(CAR)])
    assert len(found["b.jpg"].classes) == 0
    by_name = suspects.read_results([_result(0, 2, CAR, 0.9, file_name="a.jpg")], None, ["cat", "car"])
    assert by_name["a.jpg"].classes == ["car"]


@pytest.mark.parametrize(
    ("results", "truth", "message"),
    [
        ({}, None, "not a COCO results file"),
        ([{"bbox": [1, 2, 3]}], None, "result 0 is not {image_id, category_id, bbox, score}"),
        ([7], None, "result 0 is not"),
        ([_result(1, 1, CAR, 0.5)], None, "image_id 1 is of no known image; name the COCO file"),
        ([_result(7, 9, CAR, 0.5)], TRUTH, "category_id 9 is none of 3, 5"),
        ([_result(7, 3, CAR, float("nan"))], TRUTH, "finite"),
        ([], {"images": 3}, "no COCO instances file"),
    ],
)
def test_bad_predictions_are_refused(results: Any, truth: Any, message: str) -> None:
    with pytest.raises(suspects.BadPredictions, match=message.replace("{", r"\{").replace("(", r"\(")):
        suspects.read_results(results, truth, ["car"])


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = ingest(kitti_set(tmp_path / "set"), SETTINGS, tmp_path / "ws")
    files = [f"{i:03}.jpg" for i in range(12)]
    box = (5.0, 6.0, 25.0, 30.0)
    results = [_result(i, i % 3 + 1, box, 0.9, file_name=f) for i, f in enumerate(files) if i != 4]
    results.append(_result(6, 3, (30, 6, 60, 40), 0.8, file_name=files[6]))
    results[1]["category_id"] = 1  # 001.jpg is labelled cat
    detections = tmp_path / "detections.json"
    detections.write_text(json.dumps(results))
    truth = {
        "images": [{"id": i, "file_name": f} for i, f in enumerate(files)],
        "categories": [{"id": i, "name": c} for i, c in enumerate(taken.classes, 1)],
    }
    (tmp_path / "ground_truth.json").write_text(json.dumps(truth))
    assert main(["suspects", str(taken.path), "--predictions", str(detections)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("12 images with predictions; suspects: 1 missing, 1 spurious, 1 class\n")
    assert "001.jpg  [5 6 25 30]  called 'cat'; the model says 'car'" in out
    assert "004.jpg  [5 6 25 30]  no 'cat' here? the model sees nothing" in out
    assert "006.jpg  [30 6 60 40]  not labelled? the model sees 'dog' here" in out
    assert main(["suspects", str(taken.path), "--predictions", str(detections), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["suspects"]) == 3
    at = tmp_path / "suspects.html"
    assert main(["suspects", str(taken.path), "--predictions", str(detections), "-o", str(at)]) == 0
    assert "006.jpg  [30 6 60 40]" in capsys.readouterr().out
    html = at.read_text()
    assert html.count("data:image/webp;base64,") == 3
    assert html.count('class="bad"') == 2  # of what is missing there is no label
    assert "called &#x27;cat&#x27;; the model says &#x27;car&#x27;" in html
    detections.write_text("{")
    assert main(["suspects", str(taken.path), "--predictions", str(detections)]) == 2
    assert f"error: {detections}: " in capsys.readouterr().err
    assert main(["suspects", str(tmp_path), "--predictions", str(detections)]) == 2
