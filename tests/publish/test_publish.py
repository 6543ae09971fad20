"""Reports and the index, of runs in every state and of damaged files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from refit.command import StageError
from refit.publish import stage
from tests.publish.made import CLASSES, FINGERPRINT, GOOD, Workspace, evaluation


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def report(ws: Workspace, run: str) -> dict[str, Any]:
    return dict(json.loads((ws.published / "runs" / run / "report.json").read_text()))


def html(ws: Workspace, run: str) -> str:
    return (ws.published / "runs" / run / "report.html").read_text()


def index(ws: Workspace) -> dict[str, Any]:
    return dict(json.loads((ws.published / "index.json").read_text()))


def test_a_good_run(ws: Workspace) -> None:
    run = ws.run("r1", prices={"currency": "EUR", "gpu_hour": {"default": 2.0}, "cpu_hour": 0.5}, **GOOD)
    epochs = [{"epoch": i, "max_epoch": 2, "loss": 3 - i, "kpi": {"val_mAP50": i / 10}} for i in (1, 2)]
    (run / "01-train" / "out" / "status.json").write_text("\n".join(map(json.dumps, epochs)) + '\n{"epoch": 3, "lo')
    evaluation(run / "02-evaluate_trained" / "out")
    images = ws.folder / "datasets" / FINGERPRINT / "images"
    images.mkdir()
    cv2.imwrite(str(images / "0.png"), np.zeros((30, 40, 3), np.uint8))
    ws.release(1, "r1")
    assert stage.refresh(ws.folder, "r1") == ["r1"]
    made = report(ws, "r1")
    assert (made["state"], made["run_id"], made["failed"]) == ("succeeded", "manual__r1", None)
    assert made["curves"] == [
        {"stage": "train", "title": "Train", "loss": [[1, 2.0], [2, 1.0]], "mAP": [[1, 0.1], [2, 0.2]]}
    ]
    (model,) = made["models"]
    assert (model["mAP50"], model["low"], model["parameters"], model["milliseconds"]) == (0.8, 0.7, 5000, 4.5)
    # Rows: ring, the other, nothing is there. One right, one taken for the other class, one missed, one made up.
    assert made["evaluation"]["confusion"]["counts"] == [[1, 1, 0], [0, 0, 1], [0, 1, 0]]
    assert made["evaluation"]["curves"]["ring"][0] == [0.0, 1.0]
    assert made["evaluation"]["curves"]["ring"][-1] == [1.0, 0.0]  # one of two was never found
    assert [s["file"] for s in made["samples"]] == ["0.png"]  # the other image is gone
    # 0.5 h each: the training 2 GPUs and 4 CPUs, bind, evaluation, gate and release one CPU each.
    assert made["cost"] == {"seconds": 9000.0, "gpu_seconds": 3600.0, "money": {"amount": 4.0, "currency": "EUR"}}
    assert made["data"]["report"] == f"data/{FINGERPRINT}.html"
    page = html(ws, "r1")
    assert "data:image/webp;base64," in page
    assert f'href="../../data/{FINGERPRINT}.html"' in page
    assert "<script" not in page
    assert CLASSES[1].replace("<", "&lt;").replace(">", "&gt;") in page
    assert (ws.published / "data" / f"{FINGERPRINT}.html").read_text() == "<p>the data"
    assert json.loads((ws.folder / "releases" / "1" / "report.json").read_text()) == made  # kept with the release
    found = index(ws)
    champion = found["champion"]
    assert {k: champion[k] for k in ("version", "mAP50", "low", "high", "fingerprint", "milliseconds")} == {
        "version": 1, "mAP50": 0.8, "low": 0.7, "high": 0.9, "fingerprint": FINGERPRINT, "milliseconds": 4.5,
    }  # fmt: skip
    assert [(r["run"], r["state"], r["version"]) for r in found["runs"]] == [("r1", "succeeded", 1)]


def test_what_quantization_did_stands_side_by_side(ws: Workspace) -> None:
    int8 = {"outputs": {"model": {"bytes": 600}}}
    run = ws.run("r1", **{**GOOD, "quantize": int8, "evaluate_quantized": {"metrics": {"mAP50": 0.79}}})
    speed = [{"batch": 8, "before_ms": 70.0, "after_ms": 30.0}, {"batch": 1, "before_ms": 9.0, "after_ms": 4.0}]
    rungs = [{"name": "ptq", "speed": []}, {"name": "mixed 1", "speed": speed}]
    ladder = run / "05-quantize" / "out" / "ladder.json"
    ladder.write_text(json.dumps({"winner": "mixed 1", "rungs": rungs}))
    stage.refresh(ws.folder, "r1")
    trained, quantized = report(ws, "r1")["models"]
    assert (trained["milliseconds_alone"], quantized["milliseconds_alone"]) == (9.0, 4.0)
    assert (quantized["parameters"], quantized["bytes"], quantized["milliseconds"]) == (5000, 600, 4.5)
    assert "ms alone" in html(ws, "r1")
    ladder.write_text('{"winner": "mixed 1", "rungs": [{"name": "mixed 1", "speed": [7]}]}')
    stage.refresh(ws.folder, "r1")
    assert "milliseconds_alone" not in report(ws, "r1")["models"][1]


def test_a_release_whose_record_cannot_be_read_is_named(ws: Workspace) -> None:
    ws.run("r1", **GOOD)
    ws.release(1, "r1")
    (ws.release(2, "r1") / "release.json").write_text('{"schema": 1, "mod')
    stage.refresh(ws.folder, "r1")
    found = index(ws)
    assert (found["damaged"], [r["version"] for r in found["releases"]]) == ([2], [1])


def test_a_failed_run_says_why_and_what_to_do(ws: Workspace) -> None:
    said = {"outcome": "out_of_memory", "reason": "killed at 8 GiB", "advice": "Give it more.", "log_tail": ["<b>loud"]}
    ws.run("r1", train=said)
    stage.refresh(ws.folder, "r1")
    made = report(ws, "r1")
    assert (made["state"], made["failed"], made["reason"]) == ("failed", "train", "killed at 8 GiB")
    assert made["cost"]["gpu_seconds"] == 3600  # it was paid for all the same
    page = html(ws, "r1")
    assert "killed at 8 GiB" in page
    assert "Give it more." in page
    assert "&lt;b&gt;loud" in page
    assert index(ws)["champion"] is None


def test_a_run_that_ended_in_bind_has_a_report_with_its_data(ws: Workspace) -> None:
    ws.bind("r1", outcome="bad_data", reason="3 of 8 objects are faulty")
    stage.refresh(ws.folder, "r1", run_id="scheduled__1")
    made = report(ws, "r1")
    assert (made["state"], made["failed"], made["run_id"]) == ("failed", "bind", "scheduled__1")
    assert (ws.published / "runs" / "r1" / "data.html").read_text() == "<p>the data"
    assert 'href="data.html"' in html(ws, "r1")


def test_what_airflow_knows_to_have_failed_without_a_result(ws: Workspace) -> None:
    ws.run("r1")
    stage.refresh(ws.folder, "r1")
    assert report(ws, "r1")["state"] == "unfinished"
    stage.refresh(ws.folder, "r1", failed=["train"])
    made = report(ws, "r1")
    assert (made["state"], made["failed"]) == ("failed", "train")
    assert "log" in made["reason"]


def test_runs_that_were_never_published_are_caught_up_with(ws: Workspace) -> None:
    ws.run("r1", train={"outcome": "cancelled"})
    ws.run("r2", **GOOD)
    (ws.folder / "runs" / "r2" / "plan.json").write_text('{"stages": [{')  # half written
    (ws.folder / "runs" / "r0" / "00-bind").mkdir(parents=True)  # nothing yet
    ws.run("r3", **GOOD)
    assert stage.refresh(ws.folder, "r3") == ["r1", "r2", "r3"]
    assert {r["run"]: r["state"] for r in index(ws)["runs"]} == {
        "r1": "cancelled",
        "r2": "unfinished",
        "r3": "succeeded",
    }
    assert stage.refresh(ws.folder) == []


def test_a_roll_back_shows_in_the_index(ws: Workspace) -> None:
    ws.run("r1", **GOOD)
    ws.release(1, "r1", state="retired", reason="replaced by 2")
    ws.release(2, "r2")
    stage.refresh(ws.folder)
    assert index(ws)["champion"]["version"] == 2
    ws.release(2, "r2", state="retired", reason="wrong at night")
    ws.release(1, "r1")
    decisions = [{"run": "r1", "approved": True, "by": "olga"}, {"run": "r2", "approved": False, "by": "eve"}]
    lines = "\n".join([*map(json.dumps, decisions), '{"run": "r3", "appr'])
    (ws.folder / "releases" / "decisions.jsonl").write_text(lines)
    (ws.folder / "releases" / "3").mkdir()
    (ws.folder / "releases" / "3" / "release.json").write_text('{"schema": 1, "model":')  # half written
    stage.refresh(ws.folder)
    found = index(ws)
    assert found["champion"]["version"] == 1
    assert [(r["version"], r["state"], r["reason"], r["approved_by"]) for r in found["releases"]] == [
        (1, "serving", "", "olga"),
        (2, "retired", "wrong at night", None),
    ]


@pytest.mark.parametrize("text", ["", "[1]", '{"runs": [1, {"run": 3}]}'])
def test_a_damaged_index_is_made_anew(ws: Workspace, text: str) -> None:
    ws.run("r1", **GOOD)
    stage.refresh(ws.folder, "r1")
    before = index(ws)["runs"]
    (ws.published / "index.json").write_text(text)
    stage.refresh(ws.folder)
    assert index(ws)["runs"] == before


def test_a_run_of_which_nothing_can_be_told_is_refused(ws: Workspace) -> None:
    ws.run("r1", **GOOD)
    plan = ws.folder / "runs" / "r1" / "plan.json"
    plan.write_text('{"stages": [{"name": "train"}]}')  # not of this Refit
    with pytest.raises(StageError, match="runs/r1"):
        stage.refresh(ws.folder, "r1")
    assert not list(ws.published.glob("runs/*"))


def test_old_reports_go_but_those_of_releases(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "KEEP", 2)
    for i in range(1, 5):
        ws.run(f"r{i}", **GOOD)
        stage.refresh(ws.folder, f"r{i}")
        if i == 1:
            ws.release(1, "r1")
            stage.refresh(ws.folder)
    assert sorted(p.name for p in (ws.published / "runs").iterdir()) == ["r1", "r3", "r4"]
    assert [r["run"] for r in index(ws)["runs"]] == ["r1", "r3", "r4"]
