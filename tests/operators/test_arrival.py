from __future__ import annotations

import asyncio
import contextlib
import json
import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from airflow.sdk.exceptions import AirflowSensorTimeout, AirflowSkipException, TaskDeferred
from airflow.sdk.module_loading import import_string

from operators import arrival as ours
from operators.arrival import DatasetArrivalSensor, DatasetArrivalTrigger, Inbox, Look, Step, decide, look
from operators.inputs import BadInput
from refit.data import arrival
from refit.outcome import Result
from tests.operators.pipelines import write_pipeline


@pytest.fixture
def inbox(tmp_path: Path) -> Inbox:
    return Inbox(str(tmp_path / "inbox"), str(tmp_path / "workspace" / "p"), marker="_SUCCESS", settle_seconds=3600)


def drop(inbox: Inbox, *names: str, done: bool = True) -> None:
    folder = Path(inbox.path)
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(name.encode())
    if done:
        (folder / "_SUCCESS").touch()


def take(inbox: Inbox, fingerprint: str | None = "f" * 64, outcome: str = "taken") -> None:
    """What bind does."""
    seen = arrival.listing(inbox.path, rule=inbox)
    arrival.record_taken(Path(inbox.record), seen, fingerprint=fingerprint, run="r", outcome=outcome)


@pytest.mark.parametrize(
    ("state", "automatic", "by_hand"),
    [
        ("missing", Step.SKIP, Step.WAIT),
        ("empty", Step.SKIP, Step.WAIT),
        ("emptied after a good one", Step.SKIP, Step.GO),
        ("emptied after a bad one", Step.SKIP, Step.WAIT),
        ("copying", Step.WAIT, Step.WAIT),
        ("complete", Step.GO, Step.GO),
        ("taken", Step.SKIP, Step.GO),
        ("refused before", Step.SKIP, Step.GO),
        ("more came", Step.GO, Step.GO),
    ],
)
def test_what_a_run_does(inbox: Inbox, state: str, automatic: Step, by_hand: Step) -> None:
    if state != "missing":
        drop(inbox, done=False)
    if state in ("copying", "complete", "taken", "refused before", "more came"):
        drop(inbox, "a.png", "b.png", done=state != "copying")
    if state in ("taken", "more came"):
        take(inbox)
    if state == "refused before":
        take(inbox, fingerprint=None, outcome="bad_data")
    if state == "more came":
        drop(inbox, "c.png")
    if state.startswith("emptied"):
        take(inbox, fingerprint="f" * 64 if "good" in state else None)
    seen = look(inbox)
    assert decide(seen, automatic=True)[0] is automatic
    assert decide(seen, automatic=False)[0] is by_hand


def test_settling_is_seen_by_comparing_listings(tmp_path: Path) -> None:
    inbox = Inbox(str(tmp_path / "in"), str(tmp_path / "w"), marker=None, settle_seconds=0.2)
    drop(inbox, "a.png", done=False)
    first = look(inbox)
    assert decide(first, automatic=True)[0] is Step.WAIT
    time.sleep(0.25)
    assert decide(look(inbox, first), automatic=True)[0] is Step.GO


def trigger(inbox: Inbox, **kwargs: object) -> DatasetArrivalTrigger:
    made = DatasetArrivalTrigger(inbox.path, inbox.record, inbox.marker, inbox.settle_seconds, 0.02, **kwargs)
    classpath, arguments = made.serialize()
    json.dumps(arguments)  # plain values: they are stored in Airflow's database
    again = import_string(classpath)(**arguments)
    assert again.serialize() == (classpath, arguments)
    return again


async def collect(made: DatasetArrivalTrigger, seconds: float, stop_after: int | None = None) -> list[dict]:
    events: list[dict] = []

    async def follow() -> None:
        async for event in made.run():
            events.append(event.payload)
            if len(events) == stop_after:
                return

    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(follow(), seconds)
    return events


def test_the_trigger_waits_through_missing_and_unfinished_data(inbox: Inbox) -> None:
    async def run() -> list[dict]:
        waiting = asyncio.create_task(collect(trigger(inbox, automatic=False), 20))
        await asyncio.sleep(0.1)
        drop(inbox, "a.png", done=False)
        await asyncio.sleep(0.1)
        assert not waiting.done()
        drop(inbox, "b.png")
        return await waiting

    (event,) = asyncio.run(run())
    assert event["step"] == "go"
    assert (event["files"], event["bytes"]) == (2, 10)
    assert event["signature"] == arrival.listing(inbox.path, rule=arrival.Plain("_SUCCESS")).signature


def test_the_watcher_fires_once_for_each_arrival(inbox: Inbox) -> None:
    async def run() -> list[dict]:
        watching = asyncio.create_task(collect(trigger(inbox, repeat=True), 20, stop_after=2))
        await asyncio.sleep(0.1)
        drop(inbox, "a.png")
        await asyncio.sleep(0.3)  # a dozen looks at the same data
        drop(inbox, "b.png")
        return await watching

    first, second = asyncio.run(run())
    assert (first["files"], second["files"]) == (1, 2)
    assert first["signature"] != second["signature"]


def test_the_watcher_is_silent_about_data_that_was_taken(inbox: Inbox) -> None:
    drop(inbox, "a.png")
    take(inbox)
    assert asyncio.run(collect(trigger(inbox, repeat=True), 0.3)) == []


def test_the_deadline_is_a_moment_and_says_what_was_missing(inbox: Inbox) -> None:
    drop(inbox, "a.png", done=False)
    (event,) = asyncio.run(collect(trigger(inbox, deadline=time.time() - 1), 5))
    assert event["step"] == "timeout"
    assert "_SUCCESS" in event["reason"]


def test_an_unreadable_inbox_is_looked_at_again(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = ours.look, []

    def flaky(*args: object) -> Look:
        calls.append(args)
        if len(calls) < 3:
            raise PermissionError(13, "Permission denied")
        return real(*args)

    monkeypatch.setattr(ours, "look", flaky)
    drop(inbox, "a.png")
    (event,) = asyncio.run(collect(trigger(inbox), 5))
    assert event["step"] == "go"
    assert len(calls) == 3


def test_listing_never_holds_up_the_event_loop(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def slow(*args: object) -> Look:
        assert release.wait(10)
        return look(*args)

    monkeypatch.setattr(ours, "look", slow)
    drop(inbox, "a.png")

    async def run() -> list[dict]:
        waiting = asyncio.create_task(collect(trigger(inbox), 10))
        await asyncio.sleep(0.05)
        release.set()  # reached only because the listing is elsewhere
        return await waiting

    assert asyncio.run(run())[0]["step"] == "go"


def test_inboxes_that_hang_hold_up_no_other_and_are_not_asked_again(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, asked = threading.Event(), list[str]()

    def hangs(of: Inbox, before: Look | None) -> Look:
        asked.append(of.path)
        assert of.path == inbox.path or answer.wait(10)
        return look(inbox, before)

    monkeypatch.setattr(ours, "look", hangs)
    monkeypatch.setattr(ours, "LOOK_SECONDS", 0.05)
    drop(inbox, "a.png")
    away = [trigger(replace(inbox, path=f"/mnt/{i}")) for i in range(40)]  # more than the event loop has threads

    async def run() -> list[list[dict]]:
        waiting = [asyncio.create_task(collect(made, 10)) for made in away]
        (given_up,) = await collect(trigger(replace(inbox, path="/mnt/x"), deadline=time.time() + 0.1), 10)
        assert (given_up["step"], given_up["reason"][:15]) == ("timeout", "gives no answer")
        (seen,) = await collect(trigger(inbox), 10)
        assert seen["step"] == "go"
        assert len(asked) == len(set(asked)) == len(away) + 2
        answer.set()
        return await asyncio.gather(*waiting)

    assert [event["step"] for (event,) in asyncio.run(run())] == ["go"] * len(away)


# ---- the sensor


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Inbox:
    write_pipeline(tmp_path / "pipelines" / "p.yaml", "schedule: on_arrival")
    monkeypatch.setenv("REFIT_PIPELINES", str(tmp_path / "pipelines"))
    monkeypatch.setenv("REFIT_WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.setenv("REFIT_DATA_ROOTS", str(tmp_path))
    return Inbox(str(tmp_path / "inbox"), str(tmp_path / "workspace" / "p"), "_SUCCESS", 3600)


def context(run_type: str = "manual", conf: dict | None = None, signature: str | None = None) -> dict:
    events = [SimpleNamespace(extra={"from_trigger": True, "payload": {"signature": signature}})] if signature else []
    return {
        "dag_run": SimpleNamespace(run_type=run_type, conf=conf or {}),
        "triggering_asset_events": {"inbox": events},
    }


def sensor() -> DatasetArrivalSensor:
    return DatasetArrivalSensor(task_id="arrival", pipeline="p")


def test_complete_data_needs_no_trigger(pipeline: Inbox) -> None:
    drop(pipeline, "a.png")
    found = sensor().execute(context("asset_triggered"))
    assert found["files"] == 1
    assert found["signature"] == arrival.listing(pipeline.path, rule=arrival.Plain("_SUCCESS")).signature


@pytest.mark.parametrize("run_type", ["scheduled", "asset_triggered"])
def test_a_run_without_new_data_is_skipped_at_once(pipeline: Inbox, run_type: str) -> None:
    drop(pipeline, "a.png")
    take(pipeline)
    with pytest.raises(AirflowSkipException, match="nothing new since run r"):
        sensor().execute(context(run_type))
    assert sensor().execute(context("manual"))["files"] == 1


def test_unfinished_data_is_waited_for_in_the_triggerer(pipeline: Inbox) -> None:
    drop(pipeline, "a.png", done=False)
    with pytest.raises(TaskDeferred) as deferred:
        sensor().execute(context("scheduled"))
    _, arguments = deferred.value.trigger.serialize()
    assert arguments["path"] == pipeline.path
    assert arguments["automatic"] is True
    assert 0 < arguments["deadline"] - time.time() <= 3600
    assert deferred.value.timeout is None  # the trigger's own deadline gives the better message
    task = sensor()
    assert task.finish(context(), {"step": "go", "reason": "r", "files": 2})["files"] == 2
    with pytest.raises(AirflowSkipException):
        task.finish(context(), {"step": "skip", "reason": "nothing new"})
    with pytest.raises(AirflowSensorTimeout, match=r"waiting for the marker.*clear this task"):
        task.finish(context(), {"step": "timeout", "reason": "waiting for the marker"})


def test_what_the_watcher_saw_complete_is_complete(tmp_path: Path, pipeline: Inbox) -> None:
    write_pipeline(tmp_path / "pipelines" / "p.yaml", "schedule: on_arrival", marker=None)
    drop(pipeline, "a.png", done=False)
    seen = arrival.listing(pipeline.path)
    with pytest.raises(TaskDeferred):
        sensor().execute(context("asset_triggered", signature="0" * 64))
    assert sensor().execute(context("asset_triggered", signature=seen.signature))["files"] == 1


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ({"train_epoch": 3}, "'train_epoch'; did you mean 'train_epochs'"),
        ({"train_epochs": 0}, "stages.train.epochs"),
        ({"train_epochs": "{{ 7 }}"}, r"\{\{ 7 \}\}"),
        ({"dataset_source": "../../etc"}, "outside the allowed data roots"),
    ],
)
def test_bad_params_are_refused_before_anything_is_written(pipeline: Inbox, conf: dict, message: str) -> None:
    drop(pipeline, "a.png")
    with pytest.raises(BadInput, match=message):
        sensor().execute(context(conf=conf))
    assert not os.path.exists(pipeline.record)


def test_a_param_leads_to_another_folder(tmp_path: Path, pipeline: Inbox) -> None:
    drop(Inbox(str(tmp_path / "other"), pipeline.record, "_SUCCESS", 3600), "a.png", "b.png")
    assert sensor().execute(context(conf={"dataset_source": "other"}))["files"] == 2


def test_a_file_that_became_faulty_is_explained(tmp_path: Path, pipeline: Inbox) -> None:
    file = tmp_path / "pipelines" / "p.yaml"
    file.write_text(file.read_text() + "epocs: 3\n")
    with pytest.raises(BadInput, match=r"p\.yaml:\d+: epocs: unknown key"):
        sensor().execute(context())
    file.unlink()
    with pytest.raises(BadInput, match="no such file"):
        sensor().execute(context())


# --- a bind that ran in a pod -----------------------------------------------------------------------------------------


def test_the_labels_of_an_arrival_refused_in_a_pod_still_count(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    stored: dict[str, str] = {}
    variables = SimpleNamespace(
        get=lambda key, *, default: stored.get(key, default),
        set=lambda key, value, *, description: stored.update({key: value}),
    )
    monkeypatch.setattr(ours, "Variable", variables)
    inbox = replace(inbox, record="variable:refit_taken_p", new_labels=3, settle_seconds=0)

    def bound(outcome: str) -> None:
        event = ours._event(Step.GO, "", look(inbox).listing).payload
        result = Result.from_json({"schema": 1, "outcome": outcome, "name": "bind", "pipeline": "p", "run": "r"})
        ours.note_taken({"ti": SimpleNamespace(xcom_pull=lambda task_ids: event), "run_id": "r"}, "p", result)

    drop(inbox, "a.txt", "b.txt", "c.txt")
    bound("bad_data")
    assert decide(look(inbox), automatic=True)[0] is Step.SKIP
    (Path(inbox.path) / "a.txt").write_bytes(b"corrected")
    assert decide(look(inbox), automatic=True)[0] is Step.GO
    bound("succeeded")
    drop(inbox, "d.txt")
    bound("bad_data")
    drop(inbox, "e.txt")
    assert decide(look(inbox), automatic=True)[1].startswith("2 new label files")
