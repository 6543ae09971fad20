"""Which pods are orphans: only those whose task this Airflow knows to have ended. The rest is in tests/pods."""

from __future__ import annotations

from collections.abc import Sequence
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

    return [o.name for o in orphans.orphans(pods, answer)]


@pytest.mark.parametrize("state", ["success", "failed", "skipped", "removed", "upstream_failed"])
def test_a_task_that_has_ended_leaves_an_orphan(state: str) -> None:
    assert found([pod("a")], stages__train=state) == ["a"]


@pytest.mark.parametrize("state", ["deferred", "running", "queued", "scheduled", "up_for_retry", "restarting", None])
def test_a_task_that_goes_on_or_was_cleared_keeps_its_pod(state: str | None) -> None:
    assert found([pod("a")], stages__train=state) == []


def test_a_task_that_this_airflow_does_not_know_keeps_its_pod() -> None:
    assert found([pod("a", run_id="another"), pod("b", task_id="stages.prune")], stages__train="failed") == []


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
