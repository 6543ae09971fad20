"""A run as it stands now: one `Step` per task, from Airflow's states and the workspace's files.

Airflow says what waits, runs, and is tried again; the workspace says how far a stage is (status.json), what it reached
(result.json), and what is reused (plan.json). Reading both costs one HTTP request and a few small files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refit.plan import Node, run_folder
from refit.runner import StatusFile
from refit.runtime import report

# operators.names has the same words
ARRIVAL, BIND, DONE, DAG_PREFIX = "arrival", "bind", "done", "retrain_"
ENDED = ("success", "failed")  # states of a DAG run
_PARTS = re.compile(r"(\d+) of (\d+)")


@dataclass
class Step:
    """One task. `state`: waiting, running, retrying, done, reused, off, failed, blocked (something before it failed).

    `done` and `total` are epochs (`unit` "epoch") or parts of the work; 0 of 0: unknown.
    """

    name: str
    title: str
    state: str = "waiting"
    done: int = 0
    total: int = 0
    unit: str = ""
    loss: float | None = None
    eta: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    message: str = ""
    attempt: int = 1
    result: report.Row | None = None

    @property
    def over(self) -> bool:
        return self.state not in ("waiting", "running", "retrying")


def ended_by_hand(tasks: Iterable[Mapping[str, Any]]) -> bool:
    """Whether somebody marked a failed run so: Airflow then skips what had not begun, and the last task with it."""
    return any(task["task_id"] == DONE and task["state"] == "skipped" for task in tasks)


class Progress:
    """What a stage's status.json says so far; `update` reads what is new."""

    def __init__(self, file: Path) -> None:
        self._file = StatusFile(str(file))

    def update(self, step: Step) -> None:
        """Take over the newest epoch, loss, time left, metrics and message."""
        for record in self._file.read():
            if record.get("status") == "STARTED":
                step.done = step.total = 0
                step.unit, step.message, step.loss, step.eta = "", "", None, None
            step.message = str(record.get("message") or step.message)
            epoch, most = _number(record.get("epoch")), _number(record.get("max_epoch"))
            if epoch is not None:
                step.done, step.unit = int(epoch), "epoch"
                step.total = int(most) if most is not None else max(step.total, step.done)
            elif (parts := _PARTS.search(step.message)) and step.unit != "epoch":
                step.done, step.total = int(parts[1]), int(parts[2])
            if (loss := _number(record.get("loss"))) is not None:
                step.loss = loss
            if (eta := _seconds(record.get("eta"))) is not None:
                step.eta = eta
            kpi = record.get("kpi")
            for name, value in kpi.items() if isinstance(kpi, Mapping) else ():
                if (figure := _number(value)) is not None:
                    step.metrics[str(name)] = figure


class Follower:
    """Follows one run of a pipeline.

    Args:
        workspace: the pipeline's folder in the workspace.
        run: Airflow's run id.
        nodes: the tasks after bind (`refit.plan.skeleton`).
    """

    def __init__(self, workspace: Path, run: str, nodes: Sequence[Node]) -> None:
        self.folder = workspace / "runs" / run_folder(run)
        self.steps = {
            ARRIVAL: Step(ARRIVAL, "Wait for complete data"),
            BIND: Step(BIND, "Check, take the data in, plan"),
            **{node.name: Step(node.name, node.title) for node in nodes},
        }
        self.plan: dict[str, Any] | None = None
        self._progress: dict[str, tuple[Path, Progress]] = {}

    def update(self, tasks: Sequence[Mapping[str, Any]]) -> None:
        """Look again. `tasks` are the task instances of Airflow's REST API."""
        states = {str(t["task_id"]).rpartition(".")[2]: t for t in tasks}
        self.plan = report.current_plan(self.folder) or self.plan
        rows = {row.stage: row for row in report.rows(self.plan)} if self.plan else {}
        for name, step in self.steps.items():
            task = states.get(name, {})
            step.attempt = int(task.get("try_number") or 1)
            row = rows.get(name)
            step.result = row
            step.state = _state(str(task.get("state") or ""), row)
            folder = Path(row.folder) if row and row.folder else self.folder / "00-bind" if name == BIND else None
            if folder is not None and step.state in ("running", "retrying", "failed", "done"):
                self._follow(name, folder / "out" / "status.json").update(step)

    def _follow(self, name: str, file: Path) -> Progress:
        known = self._progress.get(name)
        if known is None or known[0] != file:
            known = self._progress[name] = (file, Progress(file))
        return known[1]

    def failures(self) -> list[tuple[Step, str, str, Path]]:
        """The steps that failed: with the reason, the advice and the folder of each."""
        found = []
        for step in self.steps.values():
            if step.state != "failed":
                continue
            folder = Path(step.result.folder) if step.result and step.result.folder else self.folder / "00-bind"
            result = report.read_json(folder / "result.json") if step.name != ARRIVAL else None
            good = result is None or result.get("outcome") == "succeeded"
            reason = "" if good or result is None else f"{result['outcome']}: {result['reason']}"
            found.append((step, reason, "" if good or result is None else str(result.get("advice", "")), folder))
        return found


def _state(airflow: str, row: report.Row | None) -> str:
    """Airflow's state of a task in the words of `Step.state`."""
    if row is not None and row.state in ("reused", "off"):
        return row.state
    return {
        "success": "done",
        "failed": "failed",
        "upstream_failed": "blocked",
        "skipped": "blocked",
        "removed": "blocked",
        "up_for_retry": "retrying",
        "restarting": "retrying",
        "running": "running",
        "deferred": "running",
        "up_for_reschedule": "running",
    }.get(airflow, "waiting")


def _number(value: Any) -> float | None:
    """A finite number, also one written as text (TAO does)."""
    try:
        figure = float(value)
    except (TypeError, ValueError):
        return None
    return figure if abs(figure) < float("inf") else None


def _seconds(eta: Any) -> float | None:
    """Seconds of an eta: a number, or "1 day, 2:03:04.5" as Python writes a timedelta."""
    if (number := _number(eta)) is not None:
        return number
    match = re.fullmatch(r"(?:(\d+) days?, )?(\d+):(\d{1,2}):(\d{1,2}(?:\.\d+)?)", str(eta or "").strip())
    if match is None:
        return None
    days, hours, minutes, seconds = match.groups()
    return int(days or 0) * 86_400 + int(hours) * 3600 + int(minutes) * 60 + float(seconds)
