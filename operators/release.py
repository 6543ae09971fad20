"""Releases by hand: the task that makes an older version of a model the champion again, and its DAG.

Takes no slot of Refit's pools: whoever goes back at night must not wait behind a training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow.sdk import DAG, Param

from operators import byhand, inputs, names
from operators.byhand import ByHandOperator

if TYPE_CHECKING:
    from refit.cluster import Profile
    from refit.config import Settings
    from refit.pipeline import Pipeline

DAG_ID = "refit_rollback"  # refit/triton/cli.py names it


def request(context: Mapping[str, Any], pipeline: Pipeline, profile: Profile, where: Settings) -> dict[str, Any]:
    """The runner's request for this run's params; `where` is as the stage sees it. Raises BadInput."""
    from refit.triton.request import rollback_request

    params = context["params"]
    by = context["dag_run"].triggering_user_name or "airflow"
    to, reason = params["version"], str(params["reason"])
    try:
        return rollback_request(pipeline, profile, where, context["run_id"], to=to, by=f"{by} (Airflow)", reason=reason)
    except ValueError as exc:
        raise inputs.BadInput(str(exc)) from None


class RollbackOperator(ByHandOperator):
    """Makes version `params.version` of the model of pipeline `params.pipeline` the champion again, or (null) the one
    that served before. Fails, with the champion untouched, where that version does not serve.

    Runs where the pipeline's releases run: as a subprocess, or in a pod that mounts the model repository.
    """

    ui_color = "#f7e3e3"
    stage = "rollback"
    pod = "operators.pod:RollbackPodOperator"
    request = staticmethod(request)


def dag(pipelines: list[str]) -> DAG:
    """The DAG, with a form that offers these pipelines."""
    with DAG(
        DAG_ID,
        description="Makes an older version of a model the champion of Triton again",
        doc_md="Loads an older version in Triton, proves that it answers as it did when it was released, and leaves "
        "the present one serving where it does not. `refit releases` lists the versions.",
        schedule=None,
        tags={names.TAG},
        default_args={"owner": "refit", "retries": 1},
        catchup=False,
        max_active_runs=1,
        is_paused_upon_creation=False,
        auto_register=False,
        params={
            "pipeline": Param(
                pipelines[0], type="string", enum=pipelines, title="Pipeline", description="of the model"
            ),
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
    return byhand.dags(DAG_ID, dag)
