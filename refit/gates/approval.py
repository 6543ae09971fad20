"""May it be released? The question to a person, and the answer without which a release does not begin.

The question is made by a stage (`approve`) from what the gates of its run said. Whoever runs the stages asks it and
starts the release with the answer in REFIT_APPROVAL. So the answer reaches a pod without a volume in Airflow, and a
release that nobody has approved is refused by the release itself, however it was started.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from refit.command import BadSpec, Rejected, StageError
from refit.files import write_json, write_text
from refit.pipeline import Approval
from refit.runtime import report
from refit.status import StatusWriter

VARIABLE = "REFIT_APPROVAL"
BODY_BYTES = 1200  # of the question as JSON: it travels in the stage's result (2 KiB)
REASON_CHARACTERS = 260


class ApproveSpec(Approval):
    """The spec of `python -m refit.gates approve`: the pipeline's block, and the run that is asked about."""

    run: str


class Decision(BaseModel):
    """What was decided, by whom. `how`: answered, or what the end of the time limit meant."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    approved: bool
    by: str
    when: str
    note: str = ""
    how: Literal["answered", "timeout"] = "answered"

    def sentence(self) -> str:
        who = f"{self.by} {'approved' if self.approved else 'rejected'} it"
        if self.how == "timeout":
            meant = "approves" if self.approved else "rejects"
            who = f"nobody answered in time, which {meant} it (approval.on_timeout)"
        return "".join(c if c.isprintable() else " " for c in (f"{who}: {self.note}" if self.note else who))

    @classmethod
    def now(cls, *, approved: bool, by: str, note: str = "") -> Decision:
        return cls(approved=approved, by=by, note=note, when=datetime.now(UTC).isoformat(timespec="seconds"))


@dataclass(frozen=True)
class Judged:
    """A gate of the run: its name, and verdict.json."""

    name: str
    verdict: Mapping[str, Any]

    @property
    def doubtful(self) -> bool:
        return self.verdict.get("verdict") != "pass"


def verdicts(plan: Mapping[str, Any]) -> list[Judged]:
    """What the gates of a run said, in the plan's order; those that were off said nothing. Raises StageError."""
    found = []
    for stage in plan["stages"]:
        if stage["action"] != "gate" or stage["name"] in plan["off"]:
            continue
        folder = Path(plan["reused"].get(stage["name"]) or stage["paths"]["stage"])
        verdict = report.read_json(folder / "out" / "verdict.json")
        if verdict is None:
            raise StageError(f"{folder / 'out' / 'verdict.json'}: cannot be read; run {stage['name']} again")
        found.append(Judged(stage["name"], verdict))
    return found


def run_approve(spec: ApproveSpec, out: Path, status: StatusWriter) -> None:
    """Write out/question.json, and summary.json with what who asks must know."""
    run = Path(spec.run)
    plan = report.current_plan(run)
    if plan is None:
        raise BadSpec(f"{run}: has no plan.json; the stage runs in a bound run only")
    judged = verdicts(plan)
    doubts = [j.name for j in judged if j.doubtful]
    needed = spec.when == "always" or bool(doubts)
    body = _body(plan, judged, report.read_json(run / "00-bind" / "out" / "summary.json") or {})
    question = {
        "needed": needed,
        "doubts": doubts,
        "subject": f"Release {plan['stages'][0]['model']} of run {plan['run']}?"[:200],
        "body": body,
        "timeout_hours": spec.timeout_hours,
        "on_timeout": spec.on_timeout,
        "assignees": spec.assignees,
        "report": needed and _reported(run),
    }
    write_json(out / "question.json", {"schema": 1, **question, "verdicts": {j.name: j.verdict for j in judged}})
    write_text(out / "summary.json", json.dumps(question))
    told = f"a person decides ({', '.join(doubts) or 'approval.when: always'})" if needed else "no gate has a doubt"
    print(told)
    status.success(told, kpi={"needed": float(needed), "doubts": float(len(doubts))})


def _reported(run: Path) -> bool:
    """Publish the run's report as far as it goes, for whoever is asked; the question is put without it as well."""
    from refit.publish.stage import report_so_far  # OpenCV is needed only where somebody is asked

    try:
        report_so_far(run.parents[1], run.name)
    except (OSError, StageError) as exc:
        print(f"warning: no report was published for the question: {exc}")
        return False
    return True


def _body(plan: Mapping[str, Any], judged: Sequence[Judged], data: Mapping[str, Any]) -> str:
    """The question in Markdown: doubts first, then figures, then the data; what does not fit is left out, and said."""
    lines = [_line(j) for j in sorted(judged, key=lambda j: not j.doubtful)]
    changes = ", ".join(f"{n} {what}" for what, n in (data.get("changes") or {}).items())
    lines.append(f"- data: {data.get('images', '?')} images{f' ({changes})' if changes else ''}")
    lines.append(f"- run: `{plan['run']}` of `{plan['pipeline']}`; all figures: `refit status {plan['pipeline']}`")
    kept: list[str] = []
    for line in lines:
        if len(json.dumps("\n".join([*kept, line]))) > BODY_BYTES - 60:
            kept.append("- more is in `question.json` of the stage `approve`")
            break
        kept.append(line)
    return "\n".join(kept)


def _line(judged: Judged) -> str:
    reason = str(judged.verdict.get("reason", ""))
    if len(reason) > REASON_CHARACTERS:
        reason = reason[: REASON_CHARACTERS - 3] + "..."
    return f"- **{judged.name}: {judged.verdict.get('verdict')}** {reason}"


def decided(question: Path, environment: Mapping[str, str] = os.environ) -> Decision | None:
    """The answer to a question, None where nobody had to be asked.

    Raises:
        Rejected: nobody has answered, or the answer is no.
        BadSpec: question or answer cannot be read.
    """
    asked = report.read_json(question)
    if asked is None or not isinstance(asked.get("needed"), bool):
        raise BadSpec(f"{question}: is no question of the stage approve; run that stage again")
    text = environment.get(VARIABLE, "")
    if not text:
        if not asked["needed"]:
            return None
        raise Rejected(
            "a person must approve this release and nobody has: clear the task approve (Airflow), or start the run "
            "with --approve (refit run)"
        )
    try:
        return Decision.model_validate_json(text)
    except ValidationError as exc:
        raise BadSpec(f"{VARIABLE}: {exc.errors()[0]['msg']}; it holds the answer to the stage approve") from None
