"""Reports and the index, of runs in every state and of damaged files."""

from __future__ import annotations

import json
import os
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


def test_the_pictures_of_a_run_with_a_snapshot_of_elsewhere(ws: Workspace, tmp_path: Path) -> None:
    run = ws.run("r1", snapshot=str(tmp_path / "elsewhere"), **GOOD)
    evaluation(run / "02-evaluate_trained" / "out")
    images = tmp_path / "elsewhere" / "images"
    images.mkdir()
    cv2.imwrite(str(images / "0.png"), np.zeros((30, 40, 3), np.uint8))
    stage.refresh(ws.folder, "r1")
    assert [s["file"] for s in report(ws, "r1")["samples"]] == ["0.png"]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("<script>alert(2)<.png", "&lt;script&gt;alert(2)&lt;.png"),
        ("\u202egnp.exe.png", "\ufffdgnp.exe.png"),
        ("../../no.png", ""),
    ],
)
def test_a_pictures_name_is_shown_and_never_a_path(ws: Workspace, name: str, shown: str) -> None:
    run = ws.run("r1", **GOOD)
    out = run / "02-evaluate_trained" / "out"
    evaluation(out)
    truth = json.loads((out / "ground_truth.json").read_text())
    truth["images"][0]["file_name"] = name
    (out / "ground_truth.json").write_text(json.dumps(truth))
    images = ws.folder / "datasets" / FINGERPRINT / "images"
    images.mkdir()
    cv2.imwrite(str(images / name), np.zeros((30, 40, 3), np.uint8))
    stage.refresh(ws.folder, "r1")
    assert [s["file"] for s in report(ws, "r1")["samples"]] == ([name] if shown else [])
    page = html(ws, "r1")
    assert shown in page
    assert "<script" not in page
    assert "\u202e" not in page


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


def test_what_a_triton_answered_of_the_challenger_is_shown(ws: Workspace) -> None:
    """As TAO's runs have it, whose evaluations leave figures only."""
    run = ws.run("r1", **GOOD, evaluate_champion={"metrics": {"mAP50": 0.7}})
    asked = run / "11-evaluate_champion" / "out"
    evaluation(asked)  # of the version that serves
    stage.refresh(ws.folder, "r1")
    assert report(ws, "r1")["evaluation"] is None
    (asked / "challenger").mkdir()
    evaluation(asked / "challenger")
    stage.refresh(ws.folder, "r1")
    assert report(ws, "r1")["evaluation"]["images"] == 2
    assert "Precision over recall" in html(ws, "r1")


def test_what_the_trainings_began_with(ws: Workspace) -> None:
    begun = {
        "train": {"given": "champion", "value": f"taken:{'12' * 32}/model.pth", "from": "the champion", "run": "r0"},
        "retrain": {"given": "resume:r<b>", "value": f"session:{'34' * 32}", "from": "that of run r<b>", "run": "r<b>"},
        "distill": {"given": "champion", "value": None, "from": "random weights", "run": None},
    }  # fmt: skip
    fetched = {"summary": {"model": "nvidia/tao/pretrained:x", "file": "x.hdf5", "bytes": 1, "sha256": "56" * 32}}
    ws.run("r1", **GOOD, start_from=begun, pretrained=fetched)
    stage.refresh(ws.folder, "r1")
    assert [(s["stage"], s["run"], s["sha256"]) for s in report(ws, "r1")["starts"]] == [
        ("train", "r0", "12" * 32),
        ("retrain", "r<b>", "34" * 32),
        ("distill", None, None),
        ("train", None, "56" * 32),
    ]
    page = html(ws, "r1")
    assert "retrain: that of run r&lt;b&gt;" in page
    assert "pretrained weights: nvidia/tao/pretrained:x" in page
    assert "565656565656" in page


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


def test_a_run_that_ended_before_bind_has_failed_and_says_why(ws: Workspace) -> None:
    ws.run("r2", **GOOD)
    stage.refresh(ws.folder, "r2")
    (ws.folder / "runs" / "r1").mkdir()
    stage.refresh(ws.folder, "r1", run_id="manual__1", failed={"arrival": "unknown params: 'train_epoch'"})
    made = report(ws, "r1")
    assert (made["state"], made["failed"], made["reason"]) == ("failed", "arrival", "unknown params: 'train_epoch'")
    assert "Wait for complete data" in html(ws, "r1")
    assert index(ws)["last"]["run"] == "r1"  # it has no start of its own, and is the newest all the same


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
    stage.refresh(ws.folder, "r1", failed={"train": ""})
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
    said = {"by": "olga", "note": "seen the pictures"}
    decisions = [{"run": "r1", "approved": True, **said}, {"run": "r2", "approved": False, **said}]
    lines = "\n".join([*map(json.dumps, decisions), '{"run": "r3", "appr'])
    (ws.folder / "releases" / "decisions.jsonl").write_text(lines)
    (ws.folder / "releases" / "3").mkdir()
    (ws.folder / "releases" / "3" / "release.json").write_text('{"schema": 1, "model":')  # half written
    stage.refresh(ws.folder)
    found = index(ws)
    assert found["champion"]["version"] == 1
    keys = ("version", "state", "reason", "approved_by", "approval_note")
    assert [tuple(r[k] for k in keys) for r in found["releases"]] == [
        (1, "serving", "", "olga", "seen the pictures"),
        (2, "retired", "wrong at night", None, None),
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


def test_what_a_killed_publisher_left_goes_after_a_day(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until then it may be another writer's that is at work; the index has its run once, as it was."""
    ws.run("r1", **GOOD)
    stage.refresh(ws.folder, "r1")

    def killed(*args: Path, **how: bool) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage, "_swap", killed)
        patch.setattr(stage.shutil, "rmtree", killed)  # nobody is left who could clear up
        with pytest.raises(KeyboardInterrupt):
            stage.refresh(ws.folder, "r1")
    file = ws.published / "data" / f".{FINGERPRINT}.html.tmp-0a"
    file.write_text("half")
    left = [file, *(ws.published / "runs").glob(".r1.tmp-*")]
    stage.refresh(ws.folder, "r1")
    assert [path.exists() for path in left] == [True, True]
    assert [r["run"] for r in index(ws)["runs"]] == ["r1"]
    for path in left:
        os.utime(path, (0, 0))
    stage.refresh(ws.folder)
    assert [path.exists() for path in left] == [False, False]
    assert report(ws, "r1")["state"] == "succeeded"


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
