"""The DAG `refit_reconcile`: each hour every Triton server is compared with the ledger, a task for each pipeline.

What differs fails the task, which says what it is; with the param `mode` on "mend" it is put right. The comparison is
`refit.triton.reconcile`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow.sdk import DAG, Param
from airflow.sdk.exceptions import AirflowSkipException

from operators import inputs, lone, pools
from operators.own import of_pipelines, own_dag

if TYPE_CHECKING:
    from airflow.sdk import Context

    from refit.cluster import Profile
    from refit.config import Settings
    from refit.pipeline import Pipeline

DAG_ID = "refit_reconcile"  # refit/triton/cli.py names it


class ReconcileOperator(lone.LoneOperator):
    """Compares what a pipeline has released with what serves. Skipped where the pipeline releases nothing."""

    ui_color = "#e3f2f7"
    action = "reconcile"

    def __init__(self, *, of: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.of = of

    def pipeline(self, context: Mapping[str, Any]) -> str:
        return self.of

    @staticmethod
    def request(
        context: Mapping[str, Any], pipeline: Pipeline, profile: Profile, where: Settings, by: str
    ) -> dict[str, Any]:
        from refit.triton.request import reconcile_request

        mend = context["params"]["mode"] == "mend"
        # Each look is one of its own: a retry must not be answered by what the try before has seen.
        run = f"{context['run_id']}-{context['ti'].try_number}"
        return reconcile_request(pipeline, profile, where, run, mend=mend, by=by)

    def execute(self, context: Context) -> Any:
        if inputs.read(self.of, {}, inputs.settings()).release is None:
            raise AirflowSkipException(f"pipeline {self.of} releases nothing")
        return super().execute(context)


def dag(pipelines: list[str]) -> DAG:
    """The DAG, with a task for each of these pipelines."""
    from refit.pipeline import NAME

    with own_dag(
        DAG_ID,
        description="Compares every Triton server with the ledger, and says or mends what differs",
        doc_md="A server that serves another version than the ledger says, a model or configuration that somebody "
        "changed by hand, a watch that nobody ended: the task of its pipeline fails and says which. Started by hand "
        "with mode `mend`, it puts them right.",
        schedule="@hourly",
        params={
            "mode": Param(
                "say", type="string", enum=["say", "mend"], title="Mode", description="mend: put right what differs"
            )
        },
    ) as made:
        for name in filter(NAME.match, pipelines):  # another name is no pipeline's, and may be no task's
            ReconcileOperator(task_id=name, of=name, pool=pools.LOOKS)
    return made


def dags() -> dict[str, DAG]:
    return of_pipelines(DAG_ID, dag)
