"""Which pods are orphans: only those whose task this Airflow knows to have ended. The rest is in tests/pods."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from operators import orphans


def pod(name: str, phase: str = "Running", keep: bool = False, **about: Any) -> dict[str, Any]:
    wanted = {"dag_id": "d", "run_id": "r", "task_id": "stages.train", "map_index": -1, **about}
    return {
        "metadata": {"uid": name, "name": name, "annotations": {orphans.TASK: orphans.note(keep=keep, **wanted)}},
        "status": {"phase": phase},
    }


def found(pods: list[dict[str, Any]], **states: str | None) -> list[str]:
    def answer(dag_id: str, runs: Sequence[str]) -> orphans.States:
        assert dag_id == "d"
        return {run: {task.replace("__", "."): s for task, s in states.items()} for run in runs if run == "r"}

    return [o.name for o in orphans.orphans(pods, answer, "this")]


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Airflow's Variables; the tests' Airflow has its mark already."""
    kept = {orphans.MARK: "this"}

    def put(name: str, value: str, description: str) -> None:
        assert description
        kept[name] = value

    variables = SimpleNamespace(get=lambda name, default: kept.get(name), set=put)
    monkeypatch.setattr(orphans, "Variable", variables)
    return kept


@pytest.mark.parametrize("state", ["success", "failed", "skipped", "removed", "upstream_failed"])
def test_a_task_that_has_ended_leaves_an_orphan(state: str) -> None:
    assert found([pod("a")], stages__train=state) == ["a"]


@pytest.mark.parametrize("state", ["deferred", "running", "queued", "scheduled", "up_for_retry", "restarting", None])
def test_a_task_that_goes_on_or_was_cleared_keeps_its_pod(state: str | None) -> None:
    assert found([pod("a")], stages__train=state) == []


def test_a_task_that_this_airflow_does_not_know_keeps_its_pod(variables: dict[str, str]) -> None:
    """A run of another Airflow, a pod of a Refit that gave them no mark, and a task of a run that is known."""
    variables[orphans.MARK] = "another's"
    anothers, old = pod("a", run_id="another"), pod("b", run_id="another")
    variables[orphans.MARK] = "this"
    about = json.loads(old["metadata"]["annotations"][orphans.TASK])
    del about["airflow"]
    old["metadata"]["annotations"][orphans.TASK] = json.dumps(about)
    assert found([anothers, old, pod("c", task_id="stages.prune")], stages__train="failed") == []


def test_the_pod_of_a_run_that_was_deleted_is_an_orphan(variables: dict[str, str]) -> None:
    assert found([pod("a", run_id="deleted"), pod("b")], stages__train="running") == ["a"]
    del variables[orphans.MARK]
    assert [o.state for o in orphans.orphans([pod("a")], lambda dag, runs: {}, variables[orphans.MARK])] == [
        "deleted with its run"
    ], "an Airflow without a mark makes one"


def test_an_answer_that_hangs_is_given_up_and_takes_no_thread_of_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer, asked = threading.Event(), list[str]()

    def hangs(dag_id: str, runs: Sequence[str]) -> orphans.States:
        asked.append(threading.current_thread().name)
        assert answer.wait(10)
        return {"r": {"stages.train": "failed"}}

    async def listed(conn_id: str | None, namespace: str) -> list[dict[str, Any]]:
        return [pod(namespace)]

    monkeypatch.setattr(orphans, "_states", hangs)
    monkeypatch.setattr(orphans, "ANSWER_SECONDS", 0.02)
    monkeypatch.setattr(orphans.OrphanTrigger, "_list", staticmethod(listed))

    async def run() -> dict[str, Any]:
        events = orphans.OrphanTrigger([(None, "a")], 0.01).run()
        first = asyncio.ensure_future(anext(events))
        for _ in range(20):
            assert await asyncio.to_thread(lambda: True), "other triggers go on"
            await asyncio.sleep(0.02)
        assert len(asked) == 4, "no more threads hang than there are"
        monkeypatch.setattr(orphans, "ANSWER_SECONDS", 10)
        answer.set()
        return dict((await first).payload)

    assert asyncio.run(run()) == {"pods": ["a"]}
    assert all(name.startswith("refit-orphans") for name in asked)
    assert "namespace a: no answer of the cluster, or of Airflow" in capsys.readouterr().out


def test_a_mapped_task_is_its_own() -> None:
    states = {"shard_0": "success", "shard_1": "deferred"}
    assert found([pod("a", task_id="shard", map_index=0), pod("b", task_id="shard", map_index=1)], **states) == ["a"]


def test_what_is_going_or_was_to_be_kept_is_left_alone() -> None:
    going = pod("a")
    going["metadata"]["deletionTimestamp"] = "2026-11-21T00:00:00Z"
    foreign = {"metadata": {"uid": "b", "name": "b"}, "status": {"phase": "Running"}}
    kept, ended = pod("c", "Succeeded", keep=True), pod("d", "Failed")
    running_on = pod("e", keep=True)
    assert found([going, foreign, kept, ended, running_on], stages__train="failed") == ["d", "e"]
