"""A gate as a stage: the verdict goes to verdict.json and into the result's summary; "fail" ends the run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from refit.command import Rejected, StageError
from refit.files import write_text
from refit.gates.parity import ParitySpec, parity
from refit.gates.quality import QualitySpec, quality
from refit.gates.verdict import Gate, GateError
from refit.status import StatusWriter


def run_quality(spec: QualitySpec, out: Path, status: StatusWriter) -> None:
    run(quality, spec, out, status)


def run_parity(spec: ParitySpec, out: Path, status: StatusWriter) -> None:
    run(parity, spec, out, status)


def run(gate: Gate, spec: Any, out: Path, status: StatusWriter) -> None:
    """Judge, record, and raise Rejected for "fail" (StageError where the gate cannot judge)."""
    try:
        verdict = gate(spec)
    except GateError as exc:
        raise StageError(str(exc)) from None
    write_text(out / "verdict.json", json.dumps(verdict.to_json(), indent=1))
    write_text(out / "summary.json", json.dumps(replace(verdict, parts=()).to_json()))
    print(f"{verdict.state}: {verdict.reason}")
    if verdict.state == "fail":
        raise Rejected(verdict.reason)
    status.success(f"{verdict.state}: {verdict.reason}", kpi=dict(verdict.figures))
