"""What things are called in Airflow. Imports nothing, so that plugins, the launcher and tests can use it freely."""

from __future__ import annotations

from collections.abc import Iterable

DAG_PREFIX = "retrain_"
ARRIVAL = "arrival"
LOOK = "look"
BIND = "bind"
GROUP = "stages"
PUBLISH = "publish"
APPROVE = "approve"
DONE = "done"
BAD_FILE = "pipeline_file"
TAG = "refit"
BAD_FILE_TAG = "bad file"


def dag_id(pipeline: str) -> str:
    return DAG_PREFIX + pipeline


def pipeline_of(dag: str) -> str | None:
    """The pipeline that a DAG id stands for; None for a DAG that is not ours."""
    return dag.removeprefix(DAG_PREFIX) if dag.startswith(DAG_PREFIX) and dag != DAG_PREFIX else None


def task_id(stage: str, group: str | None) -> str:
    return f"{group}.{stage}" if group else stage


def stage_of(task: str) -> str | None:
    """The stage that a task id stands for; None for the tasks around the stages."""
    if task in (ARRIVAL, LOOK, BIND, PUBLISH, DONE, BAD_FILE):
        return None
    return task.removeprefix(f"{GROUP}.")


def task_ids(stages: Iterable[str]) -> list[str]:
    """Every task id that the named stages can have, inside the group and outside of it."""
    return [task_id(stage, group) for stage in stages for group in (GROUP, None)]
