"""The task `approve`: what the gates said, put before a person where the pipeline asks for it (`approval`).

Airflow's own human-in-the-loop: the task waits in the state `awaiting_input`, which takes no worker, no triggerer and
no slot of a pool (airflow 3.3), shows under "Required Actions", and goes on by an answer or at the end of its time. The
answer goes to the release in REFIT_APPROVAL: a "no" ends the run there as rejected, and the ledger keeps who said it.

Traps, airflow 3.3.2 and providers-standard 1.21: ApprovalOperator skips what follows it where the answer is no, so that
the run would end as a success; subject and body are Jinja templates, and ours hold names from the data; a param of the
form counts only where its source is "task"; the time limit is looked at only every 15 seconds (`[scheduler]
trigger_timeout_check_interval`); an answer within a fraction of a second may fail the try, which then asks again.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import Param

from operators import inputs, links, names, notify
from operators.stage import LocalStageOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from refit.gates.approval import Decision

VARIABLE = "REFIT_APPROVAL"  # refit.gates.approval; not imported, parsing does without pydantic's models


def ask(task_id: str, context: Context, question: Mapping[str, Any]) -> None:
    """Put the question and wait, where one is to be asked: raises Airflow's signal for it."""
    if not question["needed"]:
        return
    timeout = timedelta(hours=float(question["timeout_hours"]))
    default = {"approve": ApprovalOperator.APPROVE, "reject": ApprovalOperator.REJECT}[question["on_timeout"]]
    ti = context["ti"]
    told = f"\n\n{links.reports(ti.dag_id, ti.run_id)}" if question.get("report") else ""
    # A text that may not be null is one that Airflow's form insists on: it would let nobody answer without a note.
    told_why = {"title": "Note", "description": "for the ledger, if you like", "source": "task"}
    note = Param(None, type=["null", "string"], maxLength=500, **told_why)
    operator = ApprovalOperator(
        task_id=task_id,
        subject=question["subject"],
        body=question["body"] + told,
        defaults=default,
        response_timeout=timeout,
        assigned_users=[{"id": who, "name": who} for who in question["assignees"]] or None,
        params={"note": note},
        notifiers=notify.approval(str(names.pipeline_of(ti.dag_id)), question),
    )
    operator.execute(context)


def decision(event: Mapping[str, Any]) -> Decision:
    """The answer that Airflow comes back with. Raises BadInput."""
    from refit.gates.approval import Decision

    if "error" in event:
        raise inputs.BadInput(f"Airflow could not take an answer: {event['error']}; clear this task to ask again")
    user = event.get("responded_by_user")
    name = user.get("name") if isinstance(user, Mapping) else getattr(user, "name", None)
    return Decision(
        approved=list(event["chosen_options"]) == [ApprovalOperator.APPROVE],
        by=f"{name} (Airflow)" if name else "nobody",
        when=event["responded_at"].isoformat(timespec="seconds"),
        note=str((event.get("params_input") or {}).get("note") or ""),
        how="timeout" if event.get("timedout") else "answered",
    )


def answer(context: Mapping[str, Any]) -> dict[str, str]:
    """REFIT_APPROVAL for a release of this run; nothing where nobody was asked."""
    found = context["ti"].xcom_pull(task_ids=names.APPROVE)
    said = found.get("decision") if isinstance(found, Mapping) else None
    return {VARIABLE: said} if said else {}


class ApproveOperator(LocalStageOperator):
    """Runs the stage `approve` and waits for a person where it says so.

    XCom: as LocalStageOperator where nobody was asked, else {"decision": the answer as JSON text}.
    """

    ui_color = "#fdf3d8"

    def execute(self, context: Context) -> dict[str, Any]:
        result = super().execute(context)
        ask(self.task_id, context, result["summary"])
        return result

    def execute_complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """The answer has come, or the time is over."""
        return answered(self, event)


def answered(task: Any, event: Mapping[str, Any]) -> dict[str, Any]:
    said = decision(event)
    task.log.info("%s", said.sentence())
    return {"decision": said.model_dump_json()}
