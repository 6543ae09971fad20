"""A whole run on this machine without Airflow: bind, then each stage of the plan in order.

It starts the same runner with the same plan as Airflow's operators do; the difference between the two is Airflow.
"""

from __future__ import annotations

import getpass
import json
import signal
import socket
import sys
import time
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refit.config import Settings
from refit.outcome import Result
from refit.plan import BIND, DRY_RUN
from refit.publish import place
from refit.runtime import report
from refit.runtime.local import StageProcess, interpreter
from refit.toolkits.approval import APPROVE

GOOD, FAILED, BAD_INPUT = 0, 1, 2
BAD = ("bad_spec", "bad_data")


class PipelineRun:
    """One run. `execute` returns the exit code: 0 good, 2 bad input found by bind, 1 a stage failed."""

    def __init__(
        self,
        settings: Settings,
        request: Mapping[str, Any],
        *,
        until: str | None = None,
        quiet: bool = False,
        approve: str | None = None,
    ) -> None:
        self.settings, self.request, self.until, self.quiet = settings, request, until, quiet
        self._approve = approve  # a note: whatever a person is asked, the answer is yes
        self._answer: dict[str, str] = {}
        self._process: StageProcess | None = None
        self.resumable = False  # whether the same run, started again, goes on from what a stage saved

    def execute(self) -> int:
        previous = signal.signal(signal.SIGTERM, self._terminate)
        try:
            return self._execute()
        except KeyboardInterrupt:
            if self._process is not None:
                self._process.stop()
            self.resumable = True
            raise
        finally:
            signal.signal(signal.SIGTERM, previous)

    def _execute(self) -> int:
        try:
            return self._stages()
        finally:
            self._publish()

    def _publish(self) -> None:
        """The report and the index, whatever has happened; the run does not fail for it."""
        from refit.command import StageError
        from refit.publish.stage import refresh

        run = Path(self.request["paths"]["run"])
        try:
            refresh(run.parents[1], run.name)
        except (OSError, StageError) as exc:
            print(f"warning: no report was published: {exc}", file=sys.stderr)
        else:
            print(f"report: {self._report()}")

    def _report(self) -> Path:
        run = Path(self.request["paths"]["run"])
        return place.of_run(run.parents[1], run.name) / place.REPORT

    def _stages(self) -> int:
        began = time.monotonic()
        bound = self._start(BIND, request=self.request)
        if bound.outcome != "succeeded":
            self._explain(BIND, bound)
            return BAD_INPUT if bound.outcome in BAD else FAILED
        path = Path(bound.summary["plan"])
        plan = json.loads(path.read_text(encoding="utf-8"))
        if plan.get(DRY_RUN):
            self._table(plan)
            print("dry run: no stage was started; `waiting` is what would run")
            return GOOD
        skip = {*plan["reused"], *plan["off"]}
        for stage in plan["stages"]:
            if stage["name"] not in skip:
                result = self._start(stage["name"], plan=path, environment=stage["environment"])
                if result.outcome != "succeeded":
                    self._table(plan)
                    self._explain(stage["name"], result)
                    return FAILED
                if stage["name"] == APPROVE and result.summary["needed"] and not self._decide(result.summary):
                    return FAILED
            if stage["name"] == self.until:
                break
        self._table(plan)
        print(f"done in {time.monotonic() - began:.1f} s: {path.parent}")
        return GOOD

    def _decide(self, question: Mapping[str, Any]) -> bool:
        """Get the answer that the release wants; False where there is nobody to ask."""
        from refit.gates.approval import VARIABLE, Decision

        who = f"{getpass.getuser()}@{socket.gethostname()}"
        print(f"{question['subject']}\n{question['body']}")
        if question.get("report"):
            print(f"report: {self._report()}")
        if self._approve is not None:
            decision = Decision.now(approved=True, by=who, note=self._approve or "refit run --approve")
        elif sys.stdin.isatty():
            yes = input("Release it? [y/N] ").strip().lower() in ("y", "yes")
            decision = Decision.now(approved=yes, by=who, note=input("Note for the ledger: ").strip()[:500])
        else:
            self.resumable = True
            print("error: approve: a person must approve the release, and this is no terminal", file=sys.stderr)
            print("       Read the question above, then go on with --approve.", file=sys.stderr)
            return False
        self._answer = {VARIABLE: decision.model_dump_json()}
        return True

    def _start(self, name: str, *, environment: str = "tools", **what: Any) -> Result:
        if not self.quiet:
            print(f"--- {name}", flush=True)
        if "plan" in what:
            what["stage"] = name
        self._process = StageProcess(
            python=interpreter(environment),
            env={**self.settings.environment(), **self._answer},
            on_line=(lambda line: None) if self.quiet else lambda line: print(line, flush=True),
            **what,
        )
        try:
            return self._process.run()
        finally:
            self._process = None

    def _table(self, plan: Mapping[str, Any]) -> None:
        print("\n".join(report.table(report.rows(plan))))

    def _explain(self, name: str, result: Result) -> None:
        self.resumable = result.retryable
        print(f"error: {name}: {result.outcome}: {result.reason}", file=sys.stderr)
        if result.advice:
            print(f"       {result.advice}", file=sys.stderr)

    def _terminate(self, signum: int, frame: types.FrameType | None) -> None:
        raise KeyboardInterrupt
