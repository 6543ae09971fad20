"""What a gate says: pass, warn, ask or fail, with figures and a reason that a person can act on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Compared = Literal["better", "equal", "worse"]
State = Literal["pass", "warn", "ask", "fail"]  # ask: the run goes on, a person decides before the release


@dataclass(frozen=True)
class Verdict:
    """`figures` are the numbers that it rests on (name -> value), `reason` says why in one sentence.

    `compared` is what the images show of the model against the one before (95 %), None where they were not asked;
    `parts` are the classes and slices that were looked at, each with its drop and the drop's bounds.
    """

    gate: str
    state: State
    reason: str
    figures: Mapping[str, float] = field(default_factory=dict)
    compared: Compared | None = None
    parts: Sequence[Mapping[str, Any]] = ()

    def to_json(self) -> dict[str, Any]:
        """verdict.json; without `parts` it is short enough for a stage's summary."""
        said = {"gate": self.gate, "verdict": self.state, "reason": self.reason, "figures": dict(self.figures)}
        said |= {"compared": self.compared} if self.compared else {}
        return said | ({"parts": [dict(part) for part in self.parts]} if self.parts else {})


class Gate(Protocol):
    """A gate is a function of a validated spec. It reads what the spec names, writes nothing, and raises
    `GateError` where it cannot judge (a result that is missing a figure), which is not the same as "fail"."""

    def __call__(self, spec: Any) -> Verdict: ...


class GateError(Exception):
    """The gate cannot judge; the message says what is missing."""
