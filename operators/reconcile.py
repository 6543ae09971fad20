"""The DAG `refit_reconcile`: each hour every Triton server is compared with the ledger, a task for each pipeline.

What differs fails the task, which says what it is; with the param `mode` on "mend" it is put right. The comparison is
`refit.triton.reconcile`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow.sdk import DAG, Param
from airflow.sdk.exceptions import AirflowSkipException

from operators import byhand, inputs, names
from operators.byhand import ByHandOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from refit.cluster import Profile
    from refit.config import Settings
    from refit.pipeline import Pipeline

DAG_ID = "refit_reconcile"  # refit/triton/cli.py names it


class ReconcileOperator(ByHandOperator):
    """Compares what the pipeline of its task id has released with what serves. Skipped where it releases nothing."""

    ui_color = "#e3f2f7"
    stage = "reconcile"
    pod = "operators.pod:ReconcilePodOperator"

    @staticmethod
    def of(context: Mapping[str, Any]) -> str:
        return str(context["ti"].task_id)

    @staticmethod
    def request(context: Mapping[str, Any], pipeline: Pipeline, profile: Profile, where: Settings) -> dict[str, Any]:
        from refit.triton.request import reconcile_request

        mend = context["params"]["mode"] == "mend"
        by = context["dag_run"].triggering_user_name or "the schedule"
        # Each look is one of its own: a retry must not be answered by what the try before has seen.
        run = f"{context['run_id']}-{context['ti'].try_number}"
        try:
            return reconcile_request(pipeline, profile, where, run, mend=mend, by=f"{by} (Airflow)")
        except ValueError as exc:
            raise inputs.BadInput(str(exc)) from None

    def execute(self, context: Context) -> Any:
        if inputs.read(self.of(context), {}, inputs.settings()).release is None:
            raise AirflowSkipException(f"pipeline {self.of(context)} releases nothing")
        return super().execute(context)


def dag(pipelines: list[str]) -> DAG:
    """The DAG, with a task for each of these pipelines."""
    from refit.pipeline import NAME

    with DAG(
        DAG_ID,
        description="Compares every Triton server with the ledger, and says or mends what differs",
        doc_md="A server that serves another version than the ledger says, a model or configuration that somebody "
        "changed by hand, a watch that nobody ended: the task of its pipeline fails and says which. Started by hand "
        "with mode `mend`, it puts them right.",
        schedule="@hourly",
        tags={names.TAG},
        default_args={"owner": "refit", "retries": 1},
        catchup=False,
        max_active_runs=1,
        is_paused_upon_creation=False,
        auto_register=False,
        params={
            "mode": Param(
                "say", type="string", enum=["say", "mend"], title="Mode", description="mend: put right what differs"
            )
        },
    ) as made:
        for name in filter(NAME.match, pipelines):  # another name is no pipeline's, and may be no task's
            ReconcileOperator(task_id=name)
    return made


def dags() -> dict[str, DAG]:
    return byhand.dags(DAG_ID, dag)
