"""Releases by hand: the task that makes an older version of a model the champion again, and its DAG."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow.sdk import DAG, Param

from operators import lone
from operators.own import of_pipelines, own_dag, pipeline_param

if TYPE_CHECKING:
    from refit.cluster import Profile
    from refit.config import Settings
    from refit.pipeline import Pipeline

DAG_ID = "refit_rollback"  # refit/triton/cli.py names it


class RollbackOperator(lone.LoneOperator):
    """Makes version `params.version` of the model of pipeline `params.pipeline` the champion again, or (null) the one
    that served before. Fails, with the champion untouched, where that version does not serve."""

    ui_color = "#f7e3e3"
    action = "rollback"

    @staticmethod
    def request(
        context: Mapping[str, Any], pipeline: Pipeline, profile: Profile, where: Settings, by: str
    ) -> dict[str, Any]:
        from refit.triton.request import rollback_request

        to, reason = context["params"]["version"], str(context["params"]["reason"])
        return rollback_request(pipeline, profile, where, context["run_id"], to=to, by=by, reason=reason)


def dag(pipelines: list[str]) -> DAG:
    """The DAG, with a form that offers these pipelines."""
    with own_dag(
        DAG_ID,
        description="Makes an older version of a model the champion of Triton again",
        doc_md="Loads an older version in Triton, proves that it answers as it did when it was released, and leaves "
        "the present one serving where it does not. `refit releases` lists the versions.",
        params={
            "pipeline": pipeline_param(pipelines),
            "version": Param(
                None,
                type=["null", "integer"],
                minimum=1,
                title="Version",
                description="to go back to; empty: the one that served before",
            ),
            "reason": Param("", type="string", maxLength=500, title="Reason", description="kept in the ledger"),
        },
    ) as made:
        RollbackOperator(task_id="rollback", task_display_name="Go back")
    return made


def dags() -> dict[str, DAG]:
    return of_pipelines(DAG_ID, dag)
