"""Remote sources through the trigger, the sensor and bind's task: a real S3 API, logins from Airflow's connections."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from airflow.sdk.exceptions import AirflowSkipException, TaskDeferred

from operators import inputs
from operators.arrival import DatasetArrivalSensor, DatasetArrivalTrigger, Inbox, Step, asset, decide, look
from operators.inputs import BadInput
from operators.stage import BindOperator, login_of
from refit.config import Settings
from refit.data import arrival
from refit.outcome import Result
from refit.pipeline import load
from tests.operators.test_arrival import collect, context
from tests.remote.conftest import _moto, _no_proxy, s3
from tests.remote.sources import KEY, S3, SECRET

__all__ = ["_moto", "_no_proxy", "s3"]  # fixtures


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, s3: S3) -> Inbox:
    text = (
        "dataset:\n  source: s3://sets/a\n  connection: lab\n  format: kitti\n  classes: [a]\n"
        "  arrival: {marker: _SUCCESS, settle_seconds: 3600, poll_seconds: 0.5}\n"
        "toolkit: cpu\nschedule: on_arrival\n"
    )
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "p.yaml").write_text(text)
    monkeypatch.setenv("REFIT_PIPELINES", str(tmp_path / "pipelines"))
    monkeypatch.setenv("REFIT_WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.setenv("REFIT_DATA_ROOTS", str(tmp_path))
    monkeypatch.setenv("REFIT_ALLOWED_HOSTS", s3.allowed)
    monkeypatch.setenv("AIRFLOW_CONN_LAB", s3.login())
    record = str(tmp_path / "workspace" / "p")
    return Inbox("s3://sets/a", record, "_SUCCESS", 3600, connection="lab")


def sensor() -> DatasetArrivalSensor:
    return DatasetArrivalSensor(task_id="arrival", pipeline="p")


def test_the_watcher_fires_once_for_each_arrival_in_a_bucket(pipeline: Inbox, s3: S3) -> None:
    where = Settings.from_env()
    made = asset(load(where.pipelines / "p.yaml"), where).watchers[0].trigger
    classpath, arguments = made.serialize()
    assert SECRET not in json.dumps(arguments)
    assert KEY not in json.dumps(arguments)
    trigger = DatasetArrivalTrigger(**{**arguments, "poll_seconds": 0.05})

    async def run() -> list[dict]:
        watching = asyncio.create_task(collect(trigger, 20, stop_after=2))
        s3.put("sets", {"a/x.jpg": b"1"})
        await asyncio.sleep(0.3)
        assert not watching.done()
        s3.put("sets", {"a/_SUCCESS": b""})
        await asyncio.sleep(0.5)
        s3.put("sets", {"a/y.jpg": b"2", "a/_SUCCESS": b""})
        return await watching

    first, second = asyncio.run(run())
    assert (first["files"], second["files"]) == (1, 2)
    assert SECRET not in json.dumps([first, second])
    assert classpath.endswith("DatasetArrivalTrigger")


def test_the_sensor_takes_complete_data_and_knows_what_was_taken(pipeline: Inbox, s3: S3) -> None:
    s3.put("sets", {"a/x.jpg": b"1", "a/_SUCCESS": b""})
    found = sensor().execute(context("asset_triggered"))
    assert (found["files"], found["bytes"]) == (1, 1)
    seen = look(pipeline)
    arrival.record_taken(
        Path(pipeline.record), seen.listing, fingerprint=None, run="r7", outcome="bad_data", reason="no labels"
    )
    with pytest.raises(AirflowSkipException, match=r"nothing new since run r7 \(bad_data: no labels\)"):
        sensor().execute(context("asset_triggered"))  # what failed is not tried again by itself
    assert sensor().execute(context("manual"))["files"] == 1


def test_unfinished_data_is_waited_for_in_the_triggerer_without_the_login(pipeline: Inbox, s3: S3) -> None:
    s3.put("sets", {"a/x.jpg": b"1"})
    with pytest.raises(TaskDeferred) as deferred:
        sensor().execute(context("scheduled"))
    _, arguments = deferred.value.trigger.serialize()
    assert arguments["connection"] == "lab"
    assert SECRET not in json.dumps(arguments)


def test_a_bucket_that_is_not_there_is_like_a_folder_that_is_not(pipeline: Inbox, s3: S3) -> None:
    seen = look(Inbox("s3://none/a", pipeline.record, None, 0, connection="lab"))
    assert decide(seen, automatic=True)[0] is Step.SKIP
    assert decide(seen, automatic=False)[0] is Step.WAIT


def test_access_denied_ends_a_run_and_not_the_watcher(
    pipeline: Inbox, s3: S3, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    s3.put("sets", {"a/x.jpg": b"1", "a/_SUCCESS": b""})
    s3.deny()
    with pytest.raises(BadInput, match="access denied") as told:
        sensor().execute(context())
    assert SECRET not in str(told.value)
    watcher = DatasetArrivalTrigger(pipeline.path, pipeline.record, "_SUCCESS", 0, 0.05, repeat=True, connection="lab")

    async def run() -> list[dict]:
        watching = asyncio.create_task(collect(watcher, 20, stop_after=1))
        await asyncio.sleep(0.3)
        s3.deny(False)
        return await watching

    assert asyncio.run(run())[0]["files"] == 1
    assert SECRET not in caplog.text + "".join(capsys.readouterr())


def test_the_login_is_asked_for_once_and_again_where_it_fails(
    pipeline: Inbox, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = inputs.connection, []
    monkeypatch.setattr(inputs, "connection", lambda name: asked.append(name) or real(name))
    watcher = DatasetArrivalTrigger(pipeline.path, pipeline.record, "_SUCCESS", 0, 0.05, repeat=True, connection="lab")

    async def run() -> None:
        watching = asyncio.create_task(collect(watcher, 20, stop_after=1))
        await asyncio.sleep(0.5)
        assert asked == ["lab"]
        s3.deny()
        await asyncio.sleep(0.5)
        assert len(asked) > 1
        s3.deny(False)
        s3.put("sets", {"a/x.jpg": b"1", "a/_SUCCESS": b""})
        assert (await watching)[0]["files"] == 1

    asyncio.run(run())


def test_a_connection_that_airflow_does_not_have(pipeline: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "connection", lambda name: None)
    with pytest.raises(BadInput, match=r"Airflow has no connection lab, which dataset\.connection names"):
        sensor().execute(context())


def test_n_new_labels(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    inbox = Inbox(str(folder), str(tmp_path / "w"), None, 0, new_labels=2)
    (folder / "a.txt").write_text("x")
    step, reason = decide(look(inbox), automatic=True)
    assert (step, reason) == (Step.SKIP, "1 new label files, and dataset.arrival.new_labels waits for 2")
    assert decide(look(inbox), automatic=False)[0] is Step.GO
    (folder / "b.txt").write_text("x")
    seen = look(inbox)
    assert decide(seen, automatic=True)[0] is Step.GO
    arrival.record_taken(Path(inbox.record), seen.listing, fingerprint="f" * 64, run="r", outcome="taken")
    (folder / "c.txt").write_text("x")
    assert decide(look(inbox), automatic=True)[0] is Step.SKIP
    (folder / "d.txt").write_text("x")
    assert decide(look(inbox), automatic=True)[0] is Step.GO


def test_bind_s_process_gets_the_login_and_no_other(
    pipeline: Inbox, s3: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given: dict[str, object] = {}

    def run(
        self: BindOperator, name: str, environment: str, where: Settings, login: dict[str, str], **what: object
    ) -> Result:
        given.update(login=login, **what)
        return Result.from_json({"schema": 1, "outcome": "succeeded", "name": "bind", "pipeline": "p", "run": "r"})

    monkeypatch.setattr(BindOperator, "_run", run)
    monkeypatch.setattr("operators.stage.finish_bind", lambda context, result: None)
    BindOperator(task_id="bind", pipeline="p").execute({**context(), "run_id": "r"})
    assert json.loads(given["login"]["REFIT_SECRET_AIRFLOW_CONN_LAB"])["password"] == SECRET
    assert SECRET not in json.dumps(given["request"])
    assert login_of(None) == {}
    monkeypatch.setattr(inputs, "connection", lambda name: None)
    assert login_of("lab") == {}  # it may be a secret of this machine
