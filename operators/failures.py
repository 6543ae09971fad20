"""How a stage that did not succeed becomes a failed task: what is retried, and what the task's log says last."""

from __future__ import annotations

from typing import Never

from airflow.sdk.exceptions import AirflowException, AirflowFailException

from refit.outcome import Result

TAIL_LINES = 15


class StageFailure(AirflowException):
    """A stage ended without success. Airflow tries again, and the stage goes on from what it saved."""

    def __init__(self, stage: str, result: Result) -> None:
        self.stage, self.result = stage, result
        super().__init__(_message(stage, result))


class FinalStageFailure(StageFailure, AirflowFailException):
    """A stage ended in a way that another try would only repeat; Airflow gives up at once."""


def raise_failure(stage: str, result: Result) -> Never:
    """Raise what fits the outcome's row in `refit.outcome`."""
    raise (StageFailure if result.retryable else FinalStageFailure)(stage, result)


def _message(stage: str, result: Result) -> str:
    """Outcome, reason, advice and the end of the stage's own output: what a person reads first."""
    lines = [f"{stage}: {result.outcome}: {result.reason}"]
    if result.advice:
        lines.append(f"What to do: {result.advice}")
    # A stage of our own ends with its reason: that is told.
    tail = [line for line in result.log_tail if not (result.reason and line.endswith(result.reason))]
    if tail:
        lines += ["The stage's last lines:", *(f"    {line}" for line in tail[-TAIL_LINES:])]
    return "\n".join(lines)
