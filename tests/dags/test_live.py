"""The operators under a real scheduler, triggerer and worker: skips, retries, kills, arrivals, edits in mid-run."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import pytest

from refit.data import arrival
from tests.dags.live import Airflow, wait_for
from tests.operators.home import REPOSITORY
from tests.operators.pipelines import write_pipeline
from tests.operators.plans import GOOD, TOOLS, WHY_NOT

pytestmark = pytest.mark.skipif(not TOOLS.exists(), reason=WHY_NOT)

DAG_FILE = """# an airflow dag file
from tests.dags.live_dags import everything

globals().update(everything())
"""
# The first attempt leaves a checkpoint and waits to be killed, the second goes on from it.
RESUMING = """
import os, sys, time, pathlib
out = pathlib.Path(sys.argv[1])
if (out / "checkpoint").exists():
    (out / "out.txt").write_text("went on from " + (out / "checkpoint").read_text())
else:
    (out / "checkpoint").write_text("epoch 3")
    (out / "pid").write_text(str(os.getpid()))
    print("epoch 3 of 9", flush=True)
    time.sleep(300)
"""
SLEEPING = "import os, sys, time; open(sys.argv[1] + '/pid', 'w').write(str(os.getpid())); time.sleep(300)"


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Airflow]:
    root = tmp_path_factory.mktemp("live")
    (root / "dags").mkdir()
    (root / "dags" / "live.py").write_text(DAG_FILE)
    (root / ".airflowignore").write_text((REPOSITORY / ".airflowignore").read_text())
    (root / "shape.json").write_text('["a", "b", "c"]')
    pipeline = write_pipeline(root / "pipelines" / "live.yaml", "schedule: on_arrival")
    pipeline.write_text(pipeline.read_text().replace("settle_seconds: 3600", "settle_seconds: 0"))
    running = Airflow(
        root,
        {
            "REFIT_TEST_ROOT": str(root),
            "REFIT_PIPELINES": str(root / "pipelines"),
            "REFIT_WORKSPACE": str(root / "workspace"),
            "REFIT_DATA_ROOTS": str(root / "data"),
            "REFIT_ENVS": str(TOOLS.parents[2]),
        },
    )
    try:
        running.start()
        yield running
    finally:
        running.close()


def folder(airflow: Airflow, run: str, stage: str) -> Path:
    return airflow.root / "workspace" / "live" / "runs" / run / stage


def pid_of(airflow: Airflow, run: str, stage: str) -> int:
    """The process of a stage's command, once it has written its number."""
    file = folder(airflow, run, stage) / "out" / "pid"
    return int(wait_for(f"the command of {stage}", lambda: file.exists() and file.read_text()))


def test_stages_that_bind_names_are_skipped_and_can_be_run_by_hand(airflow: Airflow) -> None:
    hostile = "print('{{ 1/0 }} {% raw %}');" + GOOD
    run = airflow.trigger("chain", codes={"a": GOOD, "b": hostile, "c": GOOD, "d": GOOD}, skip=["a", "c"])
    assert airflow.finished("chain", run) == "success"
    assert airflow.states("chain", run) == {
        "bind": "success",
        "stages.a": "skipped",
        "stages.b": "success",
        "stages.c": "skipped",
        "stages.d": "success",
        "done": "success",
    }
    assert airflow.tasks("chain", run)["done"]["hostname"] == ""
    assert airflow.tasks("chain", run)["stages.a"]["try_number"] == 0  # no process ever started
    assert airflow.xcom("chain", run, "stages.b")["outcome"] == "succeeded"
    assert "{{ 1/0 }} {% raw %}" in airflow.log("chain", run, "stages.b")
    report = f"/refit/report/chain/{quote(run, safe='')}"
    assert airflow.links("chain", run, "bind") == {"Run report": report, "Data report": f"{report}?data=true"}
    assert airflow.links("chain", run, "stages.b") == {"Run report": report}
    airflow.clear("chain", run, "stages.a")
    wait_for("the cleared stage", lambda: airflow.states("chain", run)["stages.a"] == "success")
    assert (folder(airflow, run, "01-a") / "out" / "out.txt").read_text() == "done"
    assert airflow.states("chain", run)["stages.c"] == "skipped"


def test_a_lost_share_is_looked_at_again_alone(airflow: Airflow) -> None:
    run = airflow.trigger("retrain_shares")
    assert airflow.finished("retrain_shares", run) == "success"
    assert airflow.states("retrain_shares", run)["bind"] == "success"
    seen = sorted((airflow.root / "shares.txt").read_text().splitlines())
    assert seen == ["0 1", "1 1", "1 2", "2 1"]  # share, try


def test_a_failure_that_no_retry_helps_stops_what_follows(airflow: Airflow) -> None:
    bad = "import sys; print('error: no label fits', file=sys.stderr); sys.exit(3)"
    run = airflow.trigger("chain", codes={"a": GOOD, "b": bad, "c": GOOD, "d": GOOD}, skip=["c"])
    assert airflow.finished("chain", run) == "failed"
    assert airflow.states("chain", run) == {
        "bind": "success",
        "stages.a": "success",
        "stages.b": "failed",
        "stages.c": "skipped",
        "stages.d": "success",  # it needs c, whose earlier result is good
        "done": "upstream_failed",
    }
    assert airflow.tasks("chain", run)["stages.b"]["try_number"] == 1
    assert "b: bad_data: " in airflow.log("chain", run, "stages.b")
    assert "no label fits" in airflow.log("chain", run, "stages.b")


def test_without_bind_nothing_runs(airflow: Airflow) -> None:
    run = airflow.trigger("chain", nonsense=1)
    assert airflow.finished("chain", run) == "failed"
    states = airflow.states("chain", run)
    assert states.pop("bind") == "failed"
    assert set(states.values()) == {"upstream_failed"}


def test_a_training_that_was_killed_goes_on_in_the_retry(airflow: Airflow) -> None:
    run = airflow.trigger("chain", codes={"a": RESUMING, "b": GOOD, "c": GOOD, "d": GOOD}, skip=["b", "c", "d"])
    pid = pid_of(airflow, run, "01-a")
    os.kill(pid, signal.SIGKILL)
    assert airflow.finished("chain", run) == "success"
    assert airflow.tasks("chain", run)["stages.a"]["try_number"] == 2
    assert (folder(airflow, run, "01-a") / "out" / "out.txt").read_text() == "went on from epoch 3"
    assert airflow.xcom("chain", run, "stages.a")["resumed"] is True
    assert "epoch 3 of 9" in airflow.log("chain", run, "stages.a")


@pytest.mark.parametrize("how", ["failed", "cleared"])
def test_a_task_that_is_taken_away_takes_its_process_along(airflow: Airflow, how: str) -> None:
    run = airflow.trigger("chain", codes={"a": SLEEPING, "b": GOOD, "c": GOOD, "d": GOOD}, skip=["b", "c", "d"])
    pid = pid_of(airflow, run, "01-a")
    assert psutil.pid_exists(pid)
    if how == "cleared":
        (folder(airflow, run, "01-a") / "out" / "pid").unlink()
        airflow.clear("chain", run, "stages.a")
    else:
        airflow.mark("chain", run, "stages.a", "failed")
    wait_for("the end of the command", lambda: not psutil.pid_exists(pid))
    if how == "cleared":  # it was started again
        assert pid_of(airflow, run, "01-a") != pid
        airflow.mark("chain", run, "stages.a", "failed")
        wait_for("the end of the second", lambda: not psutil.pid_exists(pid_of(airflow, run, "01-a")))
    assert airflow.finished("chain", run) == "failed"


def test_an_edit_in_mid_run_changes_nothing_in_that_run(airflow: Airflow) -> None:
    gate = airflow.root / "gate"
    waiting = f"import time, os\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.1)\n{GOOD}"
    run = airflow.trigger("retrain_shape", codes={"a": waiting, "b": waiting, "c": GOOD})
    wait_for("a", lambda: airflow.states("retrain_shape", run)["stages.a"] == "running")

    def latest() -> list[str]:
        return [t["task_id"] for t in airflow.call("GET", "/dags/retrain_shape/tasks")["tasks"]]

    (airflow.root / "shape.json").write_text('["a", "c", "z"]')
    wait_for("the edit", lambda: "stages.z" in latest())
    (airflow.root / "shape.json").write_text('["a"')
    wait_for("the fault", lambda: latest() == ["pipeline_file"])
    gate.touch()
    assert airflow.finished("retrain_shape", run) == "success"
    assert airflow.states("retrain_shape", run) == {
        "bind": "success",
        "stages.a": "success",
        "stages.b": "success",
        "stages.c": "success",
        "done": "success",
    }
    new = airflow.trigger("retrain_shape")
    assert airflow.finished("retrain_shape", new) == "failed"
    assert airflow.states("retrain_shape", new) == {"pipeline_file": "failed"}


def test_one_arrival_is_one_run(airflow: Airflow) -> None:
    wait_for("the DAG", lambda: airflow.has_dag("inbox"))
    inbox, workspace = airflow.root / "data" / "inbox", airflow.root / "workspace" / "live"
    inbox.mkdir(parents=True)
    (inbox / "a.png").write_bytes(b"a")
    (inbox / "_SUCCESS").touch()
    (first,) = wait_for("a run", lambda: airflow.runs("inbox"))
    assert first["run_type"] == "asset_triggered"
    assert airflow.finished("inbox", first["dag_run_id"]) == "success"
    assert airflow.states("inbox", first["dag_run_id"]) == {"arrival": "success", "after": "success"}
    found = arrival.listing(inbox, rule=arrival.Plain("_SUCCESS"))
    assert airflow.xcom("inbox", first["dag_run_id"], "arrival")["signature"] == found.signature
    arrival.record_taken(workspace, found, fingerprint="f", run="first", outcome="taken")

    # The triggerer dies and comes back: no second run of the same data. Should its event come twice, as when it dies
    # before the first run has taken the data, that run is skipped.
    airflow.kill_component("triggerer")
    airflow.start_component("triggerer")
    event = {"asset_id": airflow.call("GET", "/assets")["assets"][0]["id"], "extra": {}}
    airflow.call("POST", "/assets/events", event)
    second = wait_for("the second run", lambda: airflow.runs("inbox")[1:])[0]["dag_run_id"]
    assert airflow.finished("inbox", second) == "success"
    assert airflow.states("inbox", second) == {"arrival": "skipped", "after": "skipped"}

    # A run by hand waits in the triggerer while new data is being copied.
    (inbox / "_SUCCESS").unlink()
    (inbox / "b.png").write_bytes(b"b")
    third = airflow.trigger("inbox")
    wait_for("deferral", lambda: airflow.states("inbox", third)["arrival"] == "deferred")
    (inbox / "_SUCCESS").touch()
    assert airflow.finished("inbox", third) == "success"
    assert airflow.xcom("inbox", third, "arrival")["files"] == 2
    # The watcher saw the same arrival, and the run that it starts waits for the one by hand.
    runs = wait_for("the watcher's run", lambda: airflow.runs("inbox")[3:])
    assert [r["run_type"] for r in runs] == ["asset_triggered"]
    assert airflow.finished("inbox", runs[0]["dag_run_id"]) == "success"
    assert len(airflow.runs("inbox")) == 4


def test_unknown_params_are_refused_by_the_first_task(airflow: Airflow) -> None:
    run = airflow.trigger("inbox", train_epoch=3, text=json.dumps("{{ 1/0 }}"))
    assert airflow.finished("inbox", run) == "failed"
    assert airflow.states("inbox", run) == {"arrival": "failed", "after": "upstream_failed"}
    assert "did you mean 'train_epochs'" in airflow.log("inbox", run, "arrival")
    assert airflow.tasks("inbox", run)["arrival"]["try_number"] == 1


def question(airflow: Airflow, run: str) -> dict[str, Any]:
    """What Airflow shows a person, once the task waits for one."""
    wait_for("the question", lambda: airflow.states("asking", run)["approve"] == "awaiting_input")
    return dict(airflow.call("GET", f"/dags/asking/dagRuns/{run}/taskInstances/approve/-1/hitlDetails"))


def answer(airflow: Airflow, run: str, option: str, **params: str) -> None:
    """As a person does, some seconds after the question has appeared. Within a fraction of one the scheduler (airflow
    3.3.2) may not have seen yet that the process that asked is over: it then takes that end for the answered task's,
    and fails the try ("finished with state success, but the task instance's state attribute is queued")."""
    time.sleep(3)
    path = f"/dags/asking/dagRuns/{run}/taskInstances/approve/-1/hitlDetails"
    airflow.call("PATCH", path, {"chosen_options": [option], "params_input": params})


def decisions(airflow: Airflow, run: str) -> list[dict[str, Any]]:
    file = airflow.root / "workspace" / "live" / "releases" / "decisions.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [d for d in map(json.loads, lines) if d["run"] == run]


@pytest.mark.parametrize(("option", "state"), [("Approve", "success"), ("Reject", "failed")])
def test_a_person_decides_before_the_release(airflow: Airflow, option: str, state: str) -> None:
    run = airflow.trigger("asking", verdict="ask", approval={"when": "on_doubt"})
    asked = question(airflow, run)
    assert asked["subject"] == f"Release live of run {run}?"
    assert "- **gate: ask** ring lost {{ 1/0 }} 0.2" in asked["body"]
    assert f"[Report of this run](/refit/report/asking/{quote(run, safe='')})" in asked["body"]
    assert airflow.states("asking", run)["release"] is None
    answer(airflow, run, option, note="seen the pictures")
    assert airflow.finished("asking", run) == state
    (said,) = decisions(airflow, run)
    assert (said["approved"], said["how"], said["note"]) == (option == "Approve", "answered", "seen the pictures")
    assert said["by"].endswith(" (Airflow)")
    assert said["doubts"] == ["gate"]
    assert (folder(airflow, run, "03-release") / "out" / "out.txt").exists() == (option == "Approve")
    if option == "Reject":
        assert airflow.tasks("asking", run)["release"]["try_number"] == 1
        assert "release: rejected: " in airflow.log("asking", run, "release")
        assert "rejected it: seen the pictures; what serves was not touched" in airflow.log("asking", run, "release")


def test_without_a_doubt_nobody_is_asked(airflow: Airflow) -> None:
    run = airflow.trigger("asking", verdict="pass", approval={"when": "on_doubt"})
    assert airflow.finished("asking", run) == "success"
    assert decisions(airflow, run) == []
    assert (folder(airflow, run, "03-release") / "out" / "out.txt").read_text() == "released"


def test_no_answer_in_time_is_what_the_pipeline_says(airflow: Airflow) -> None:
    run = airflow.trigger("asking", verdict="pass", approval={"when": "always", "timeout_hours": 0.0003})
    assert airflow.finished("asking", run) == "failed"
    (said,) = decisions(airflow, run)
    assert (said["approved"], said["how"], said["by"]) == (False, "timeout", "nobody")


def test_a_task_that_was_only_marked_good_is_no_approval(airflow: Airflow) -> None:
    run = airflow.trigger("asking", verdict="warn", approval={"when": "on_doubt"})
    question(airflow, run)
    airflow.mark("asking", run, "approve", "success")
    assert airflow.finished("asking", run) == "failed"
    assert "a person must approve this release and nobody has" in airflow.log("asking", run, "release")
