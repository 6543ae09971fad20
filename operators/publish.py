"""The task at the end of every run: it publishes what people look at (`refit.publish`), whatever has happened before.

Takes no slot of Refit's pools: a report must not wait behind another pipeline's training.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowException, AirflowSkipException

from operators import inputs, names, notify
from operators.links import DataReport, RunReport
from operators.stage import ProcessOperator, login_of
from refit.plan import connection_of
from refit.publish.request import PUBLISH, publish_request

if TYPE_CHECKING:
    from airflow.sdk import Context

    from refit.config import Settings


class PublishOperator(ProcessOperator):
    """Publishes this run's report and the pipeline's index, in the tools environment of this machine.

    Then everybody who wants to know is told of the run's end (`operators.notify`). A run never fails because of it:
    where no report can be written, the task is skipped and its log says why.

    XCom: {"published": [runs], "told": what `refit.notify.facts` says of this run}.
    """

    ui_color = "#efe8f4"
    operator_extra_links = (RunReport(), DataReport())

    def __init__(self, *, pipeline: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pipeline = pipeline

    def execute(self, context: Context) -> dict[str, Any]:
        try:
            where = inputs.settings()
            asked = request(context, self.pipeline, where, nonce=uuid.uuid4().hex)
            login = login_of(connection_of(asked))
            summary = dict(self._run(PUBLISH, asked["environment"], where, login, request=asked).summary)
        except AirflowSkipException:  # nothing came: nothing to tell
            raise
        except AirflowException as exc:
            notify.ended(self.pipeline, context, None)
            raise AirflowSkipException(f"no report was published: {exc}") from None
        notify.remember(self.pipeline, summary)
        notify.ended(self.pipeline, context, summary.get("told"))
        return summary


def request(context: Mapping[str, Any], pipeline: str, where: Settings, *, nonce: str) -> dict[str, Any]:
    """The runner's request for this run. Raises AirflowSkipException where there was nothing to do: no data came."""
    ti, run_id = context["ti"], context["run_id"]
    found = ti.get_task_states(dag_id=ti.dag_id, run_ids=[run_id])
    states: Mapping[str, str | None] = found.get(run_id, {})
    if states.get(names.BIND) == "skipped":
        raise AirflowSkipException("nothing new came, so there is nothing to publish")
    failed = {task.rpartition(".")[2]: "" for task, state in sorted(states.items()) if state == "failed"}
    tracking = None
    try:
        tracking = inputs.read(pipeline, {}, inputs.settings()).tracking
        inputs.read(pipeline, context["dag_run"].conf or {}, inputs.settings())
    except inputs.BadInput as exc:  # the first task has refused it and has left no result that could say so
        failed = {task: str(exc) if task == names.ARRIVAL else "" for task in failed}
    return publish_request(pipeline, where, run_id, failed=failed, tracking=tracking, nonce=nonce)
