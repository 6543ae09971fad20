"""What a gate says: pass, warn or fail, with figures and a reason that a person can act on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

State = Literal["pass", "warn", "fail"]


@dataclass(frozen=True)
class Verdict:
    """`figures` are the numbers that it rests on (name -> value), `reason` says why in one sentence."""

    gate: str
    state: State
    reason: str
    figures: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"gate": self.gate, "verdict": self.state, "reason": self.reason, "figures": dict(self.figures)}


class Gate(Protocol):
    """A gate is a function of a validated spec. It reads what the spec names, writes nothing, and raises
    `GateError` where it cannot judge (a result that is missing a figure), which is not the same as "fail"."""

    def __call__(self, spec: Any) -> Verdict: ...


class GateError(Exception):
    """The gate cannot judge; the message says what is missing."""
