"""A run as Airflow and the workspace tell it."""

import json

import pytest

from refit.embedded import view
from refit.embedded.follow import Follower, _seconds, ended_by_hand
from refit.plan import Node
from refit.status import StatusWriter

NODES = [
    Node("train", "Train", "train", "stages", (), 0),
    Node("prune", "Prune", "prune", "stages", ("train",), 0),
    Node("export", "Export", "export", "stages", ("prune",), 0),
    Node("release", "Release", "release", None, ("export",), 0),
]


@pytest.fixture
def run(tmp_path):
    """A run whose plan has four stages: train is reused, release is off."""
    folder = tmp_path / "runs" / "run1"
    earlier = tmp_path / "runs" / "run0" / "01-train"
    stages = []
    for index, node in enumerate(NODES, start=1):
        paths = {"stage": str(folder / f"{index:02d}-{node.name}")}
        stages.append({"name": node.name, "key": f"key-{node.name}", "index": index, "paths": paths})
    plan = {"stages": stages, "reused": {"train": str(earlier)}, "off": ["release"]}
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text(json.dumps(plan))
    result(earlier, "train", metrics={"mAP50": 0.84, "parameters": 515000, "bytes": 2000})
    return Follower(tmp_path, "run1", NODES)


def result(folder, name, outcome="succeeded", **more):
    folder.mkdir(parents=True, exist_ok=True)
    said = {"key": f"key-{name}", "outcome": outcome, "seconds": 12.34, "metrics": {}, "reason": "", "advice": ""}
    (folder / "result.json").write_text(json.dumps(said | more))


def task(name, state, attempt=1):
    group = "" if name in ("arrival", "bind", "release") else "stages."
    return {"task_id": group + name, "state": state, "try_number": attempt}


def test_before_bind_everything_waits(tmp_path):
    follower = Follower(tmp_path, "run1", NODES)
    follower.update([task("arrival", "deferred")])
    assert [s.name for s in follower.steps.values()] == ["arrival", "bind", "train", "prune", "export", "release"]
    assert follower.steps["arrival"].state == "running"
    assert {s.state for n, s in follower.steps.items() if n != "arrival"} == {"waiting"}


def test_reused_and_switched_off_stages(run):
    run.update([task("train", "skipped"), task("release", "skipped")])
    assert run.steps["train"].state == "reused"
    assert view.seconds(run.steps["train"]) == "", "the seconds of an earlier run are not this run's"
    assert view.figures(run.steps["train"]) == "mAP@0.5 0.840  515,000 parameters  2,000 bytes"
    assert run.steps["release"].state == "off"


def test_a_running_stage_with_epochs(run):
    status = StatusWriter(run.folder / "02-prune" / "out")
    (run.folder / "02-prune" / "request.json").write_text("{}")
    status.started()
    status.running("Reading: 40 of 100")
    run.update([task("prune", "running")])
    step = run.steps["prune"]
    assert (step.state, step.done, step.total) == ("running", 40, 100)
    assert view.figures(step) == "Reading: 40 of 100"
    status.running("Epoch 3 of 18", epoch=3, max_epoch=18, loss=0.12345, eta="0:01:05")
    status.running("Evaluated", epoch=3, kpi={"val_mAP50": 0.5})
    run.update([task("prune", "running")])
    assert view.figures(step) == "epoch 3/18  1:05 left  loss 0.1235  mAP@0.5 0.500"


def test_a_retry_starts_its_bar_again(run):
    status = StatusWriter(run.folder / "02-prune" / "out")
    (run.folder / "02-prune" / "request.json").write_text("{}")
    status.running("Epoch 3 of 18", epoch=3, max_epoch=18, loss=1.0)
    run.update([task("prune", "up_for_retry")])
    assert view.figures(run.steps["prune"]) == "attempt 1 failed"
    status.started()
    run.update([task("prune", "running", attempt=2)])
    assert (run.steps["prune"].done, run.steps["prune"].loss) == (0, None)


def test_a_done_stage(run):
    result(run.folder / "02-prune", "prune", metrics={"mAP50": 0.8, "parameters": 144231, "bytes": 607643})
    run.update([task("prune", "success")])
    assert run.steps["prune"].over
    assert view.seconds(run.steps["prune"]) == "12.3 s"
    assert run.failures() == []


def test_a_failed_stage_gives_reason_advice_and_folder(run):
    result(run.folder / "02-prune", "prune", "out_of_memory", reason="killed at 4.0 GiB", advice="give it more")
    run.update([task("prune", "failed"), task("export", "upstream_failed")])
    ((step, reason, advice, folder),) = run.failures()
    assert (step.name, reason, advice) == ("prune", "out_of_memory: killed at 4.0 GiB", "give it more")
    assert folder == run.folder / "02-prune"
    assert run.steps["export"].state == "blocked"


def test_a_failed_bind(tmp_path):
    follower = Follower(tmp_path, "run1", NODES)
    result(follower.folder / "00-bind", "bind", "bad_data", reason="no images")
    follower.update([task("bind", "failed")])
    ((step, reason, _, _),) = follower.failures()
    assert (step.name, reason) == ("bind", "bad_data: no images")


def test_half_written_files_are_read_later(run):
    out = run.folder / "02-prune" / "out"
    out.mkdir(parents=True)
    (out.parent / "request.json").write_text("{}")
    (out / "status.json").write_text('{"epoch": 1, "max_ep')
    run.update([task("prune", "running")])
    assert run.steps["prune"].done == 0
    with open(out / "status.json", "a") as f:
        f.write('och": 2}\n')
    run.update([task("prune", "running")])
    assert (run.steps["prune"].done, run.steps["prune"].total) == (1, 2)


@pytest.mark.parametrize(
    ("eta", "expected"),
    [
        ("0:01:05", 65),
        ("0:01:05.25", 65.25),
        ("1 day, 2:00:00", 93_600),
        (12, 12),
        ("3.5", 3.5),
        ("soon", None),
        (None, None),
        ("nan", None),
    ],
)
def test_eta(eta, expected):
    assert _seconds(eta) == expected


@pytest.mark.parametrize(
    ("release", "done", "by_hand"), [("skipped", "skipped", True), ("skipped", "upstream_failed", False)]
)
def test_a_run_that_somebody_failed_is_not_an_interrupted_one(release, done, by_hand):
    states = {"stages.train": "failed", "release": release, "done": done}
    assert ended_by_hand([{"task_id": k, "state": v} for k, v in states.items()]) is by_hand
