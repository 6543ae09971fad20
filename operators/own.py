"""The shape of Refit's own DAGs: one of each for the whole installation, made only where there is something to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from airflow.sdk import DAG, Param, get_parsing_context

from operators import names


def own_dag(
    dag_id: str, *, description: str, schedule: Any = None, retries: int = 1, max_active_runs: int = 1, **how: Any
) -> DAG:
    """A DAG that is on from the start; `how`: further arguments of DAG."""
    return DAG(
        dag_id,
        description=description,
        schedule=schedule,
        tags={names.TAG},
        default_args={"owner": "refit", "retries": retries},
        catchup=False,
        max_active_runs=max_active_runs,
        is_paused_upon_creation=False,
        auto_register=False,
        **how,
    )


def only(dag_id: str, make: Callable[[], DAG | None]) -> dict[str, DAG]:
    """The DAG by its id, for a DAG file's globals(); none in a process that is about another DAG."""
    if (get_parsing_context().dag_id or dag_id) != dag_id:
        return {}
    made = make()
    return {dag_id: made} if made else {}


def of_pipelines(dag_id: str, make: Callable[[list[str]], DAG]) -> dict[str, DAG]:
    """As `only`, of a DAG that is made for all pipelines, by name; none where there is no pipeline file."""

    def made() -> DAG | None:
        from operators.factory import pipeline_names

        found = pipeline_names()
        return make(found) if found else None

    return only(dag_id, made)


def pipeline_param(pipelines: list[str]) -> Param:
    """The choice of a pipeline."""
    return Param(pipelines[0], type="string", enum=pipelines, title="Pipeline", description="of the model")
