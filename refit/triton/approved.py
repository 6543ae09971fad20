"""The say of a person in a release: looked for before anything is touched, and kept in the ledger either way.

``<releases>/decisions.jsonl`` has a line for each answer: {"when", "approved", "by", "note", "how", "model", "run",
"doubts"}. A release that was rejected has no version, so its record would stand nowhere else.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from refit.command import Rejected
from refit.files import sync_folder
from refit.gates.approval import Decision, decided
from refit.triton.specs import ReleaseSpec

FILE = "decisions.jsonl"


def approved(spec: ReleaseSpec, run: str) -> Decision | None:
    """The answer that lets this release begin, None where nobody was to be asked.

    Raises:
        Rejected: the answer is no, or there is none.
        BadSpec: question or answer cannot be read.
    """
    if spec.approval is None:
        return None
    decision = decided(spec.approval)
    if decision is None:
        return None
    doubts = json.loads(spec.approval.read_text(encoding="utf-8"))["doubts"]
    _keep(spec.ledger, {**decision.model_dump(), "model": spec.model, "run": run, "doubts": doubts})
    if not decision.approved:
        raise Rejected(f"{decision.sentence()}; what serves was not touched")
    return decision


def _keep(ledger: Path, entry: dict[str, object]) -> None:
    """Add a line, unless a retry of the same release finds it there."""
    ledger.mkdir(parents=True, exist_ok=True)
    line = json.dumps(entry) + "\n"
    with open(ledger / FILE, "a+", encoding="utf-8") as file:
        file.seek(0)
        if line not in file.readlines():
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    sync_folder(ledger)
