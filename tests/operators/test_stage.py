from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException, DownstreamTasksSkipped

from operators import failures, names, publish
from operators.inputs import BadInput
from operators.stage import BadFileOperator, BindOperator, LocalStageOperator, finish_bind
from refit.outcome import Outcome, Result
from tests.operators.pipelines import write_pipeline
from tests.operators.plans import GOOD, TOOLS, WHY_NOT, write_plan

needs_tools = pytest.mark.skipif(not TOOLS.exists(), reason=WHY_NOT)


class TaskInstance:
    """The two calls that the operators make on one."""

    def __init__(self, bind: Any = None) -> None:
        self.bind, self.pushed = bind, {}

    def xcom_pull(self, task_ids: str) -> Any:
        assert task_ids == "bind"
        return self.bind

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value


def run(plan: Path, stage: str) -> dict[str, Any]:
    return LocalStageOperator(task_id=stage, stage=stage).execute({"ti": TaskInstance({"plan": str(plan)})})


def test_settings_that_are_wrong_publish_nothing_and_fail_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = list[Any]()
    monkeypatch.setattr(publish.notify, "ended", lambda *about: ended.append(about))
    monkeypatch.setenv("REFIT_WORKSPACE", "/a'b")
    with pytest.raises(AirflowSkipException, match=r"no report was published: REFIT_WORKSPACE=/a'b: quotes"):
        publish.PublishOperator(task_id="publish", pipeline="p").execute({"run_id": "r"})
    assert ended == [("p", {"run_id": "r"}, None)], "who wants to know of the run's end is told"


@needs_tools
def test_a_good_stage_returns_its_result_in_short(tmp_path: Path) -> None:
    code = (
        "import json, sys;"
        "row = {'date': '1/1/2026', 'time': '0:0:0', 'status': 'SUCCESS', 'verbosity': 'INFO', 'message': 'ok',"
        " 'kpi': {'mAP50': 0.5}};"
        "open(sys.argv[1] + '/status.json', 'w').write(json.dumps(row) + '\\n');"
        "open(sys.argv[1] + '/out.txt', 'w').write('x')"
    )
    plan = write_plan(tmp_path / "p" / "runs" / "r1", {"train": code})
    returned = run(plan, "train")
    assert returned["outcome"] == "succeeded"
    assert returned["metrics"] == {"mAP50": 0.5}
    assert returned["attempt"] == 1
    assert returned["resumed"] is False
    assert returned["seconds"] > 0
    assert (tmp_path / "p" / "runs" / "r1" / "01-train" / "out" / "out.txt").read_text() == "x"


@needs_tools
@pytest.mark.parametrize(("exit_code", "outcome", "final"), [(1, "toolkit_error", False), (3, "bad_data", True)])
def test_a_failed_stage_says_why_and_whether_to_try_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], exit_code: int, outcome: str, final: bool
) -> None:
    code = f"import sys; print('error: the label is torn', file=sys.stderr); sys.exit({exit_code})"
    plan = write_plan(tmp_path / "p" / "runs" / "r1", {"train": code})
    with pytest.raises(failures.StageFailure) as failure:
        run(plan, "train")
    assert isinstance(failure.value, AirflowFailException) is final
    text = str(failure.value)
    assert text.startswith(f"train: {outcome}: ")
    assert text.count("the label is torn") == 1, text
    told = [line for line in capsys.readouterr().out.splitlines() if "the label is torn" in line]
    assert [("[error" in line) for line in told] == [True], "once, and as an error"
    assert "What to do: " in text


@pytest.mark.parametrize("outcome", list(Outcome))
def test_airflow_retries_what_the_table_calls_retryable(outcome: Outcome) -> None:
    result = Result(name="train", outcome=outcome, reason="why", advice="do", log_tail=["a", "b"])
    with pytest.raises(failures.StageFailure, match=r"(?s)why.*do.*    a\n    b") as failure:
        failures.raise_failure("train", result)
    assert isinstance(failure.value, AirflowFailException) is not outcome.retryable


def alive(marker: str) -> list[psutil.Process]:
    """Processes whose command line holds the marker."""
    found = []
    for process in psutil.process_iter():
        try:
            if any(marker in word for word in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_for(condition: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@needs_tools
def test_kill_ends_the_command_and_all_its_children(tmp_path: Path) -> None:
    marker = f"refit-test-{os.getpid()}-{time.monotonic_ns()}"
    child = f"import time; time.sleep(300)  # {marker}"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    plan = write_plan(tmp_path / "p" / "runs" / "r1", {"train": code})
    task = LocalStageOperator(task_id="train", stage="train")

    def kill() -> None:
        wait_for(lambda: len(alive(marker)) >= 2)
        os.kill(os.getpid(), signal.SIGTERM)

    previous = signal.signal(signal.SIGTERM, lambda *_: task.on_kill())  # as Airflow's task runner does
    thread = threading.Thread(target=kill)
    try:
        thread.start()
        with pytest.raises(failures.StageFailure, match="cancelled"):
            task.execute({"ti": TaskInstance({"plan": str(plan)})})
    finally:
        thread.join()
        signal.signal(signal.SIGTERM, previous)
    assert alive(marker) == []


@needs_tools
def test_a_kill_before_the_start_starts_nothing(tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "p" / "runs" / "r1", {"train": GOOD})
    task = LocalStageOperator(task_id="train", stage="train")
    task.on_kill()
    with pytest.raises(failures.StageFailure, match="cancelled"):
        task.execute({"ti": TaskInstance({"plan": str(plan)})})
    assert not (tmp_path / "p" / "runs" / "r1" / "01-train").exists()


def test_a_stage_without_a_plan_says_what_to_clear() -> None:
    for left in (None, {}, "x"):
        with pytest.raises(BadInput, match="clear bind"):
            LocalStageOperator(task_id="train", stage="train").execute({"ti": TaskInstance(left)})


def test_a_stage_that_the_plan_does_not_know_is_skipped(tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "r1", {"train": GOOD})
    with pytest.raises(AirflowSkipException, match="prune is not in"):
        run(plan, "prune")


def test_a_missing_environment_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFIT_ENVS", str(tmp_path))
    plan = write_plan(tmp_path / "p" / "runs" / "r1", {"train": GOOD})
    with pytest.raises(BadInput, match="bin/setup tools"):
        run(plan, "train")


def test_bind_hands_on_its_summary_and_skips_in_one_go() -> None:
    ti = TaskInstance()
    summary = {"plan": "/w/p/runs/r/plan.json", "skip": ["train", "release"], "fingerprint": "f"}
    with pytest.raises(DownstreamTasksSkipped) as skipped:
        finish_bind({"ti": ti}, Result(name="bind", outcome=Outcome.SUCCEEDED, summary=summary))
    assert set(skipped.value.tasks) >= {"stages.train", "release"}
    assert ti.pushed == {"return_value": summary}
    finish_bind({"ti": ti}, Result(name="bind", outcome=Outcome.SUCCEEDED, summary={**summary, "skip": []}))


@needs_tools
def test_bind_refuses_bad_params_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pipeline(tmp_path / "pipelines" / "p.yaml")
    for name in ("WORKSPACE", "PIPELINES", "DATA_ROOTS"):
        monkeypatch.setenv(f"REFIT_{name}", str(tmp_path / name.lower()))
    context = {"ti": TaskInstance(), "run_id": "manual__1", "dag_run": SimpleNamespace(conf={"nonsense": 1})}
    with pytest.raises(failures.FinalStageFailure, match="nonsense"):
        BindOperator(task_id="bind", pipeline="p").execute(context)
    assert context["ti"].pushed == {}
    assert not list((tmp_path / "workspace").rglob("plan.json"))


def test_a_faulty_file_fails_its_stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFIT_PIPELINES", str(tmp_path))
    task = BadFileOperator(task_id=names.BAD_FILE, pipeline="p")
    write_pipeline(tmp_path / "p.yaml", "sed: 1", "runtim: local")
    with pytest.raises(BadInput, match=r"(?s)p\.yaml:3: sed: .*p\.yaml:4: runtim: "):
        task.execute({})
    write_pipeline(tmp_path / "p.yaml")
    with pytest.raises(BadInput, match="good now; start a new run"):
        task.execute({})
