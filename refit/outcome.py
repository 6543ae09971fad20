"""How a stage can end: the outcomes, whether a retry helps, and the result that the runner hands back.

Standard library only: Airflow imports it while parsing. The runner is one file and cannot import this; it carries
its own copy of the words, and a test holds the two together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple


class Outcome(StrEnum):
    """The outcomes of docs/contracts.md ("result.json")."""

    SUCCEEDED = "succeeded"
    BAD_SPEC = "bad_spec"
    BAD_DATA = "bad_data"
    REJECTED = "rejected"
    OUT_OF_MEMORY = "out_of_memory"
    NO_SPACE = "no_space"
    STALLED = "stalled"
    DIVERGED = "diverged"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    TOOLKIT_ERROR = "toolkit_error"
    # Only where a cluster runs the stage:
    PREEMPTED = "preempted"
    UNSCHEDULABLE = "unschedulable"
    IMAGE_MISSING = "image_missing"

    @property
    def retryable(self) -> bool:
        """Whether the same stage, started again with nothing changed, may well succeed."""
        return TABLE[self].retryable

    @property
    def advice(self) -> str:
        """What a person should do, in one line; "" where there is nothing to do."""
        return TABLE[self].advice

    @property
    def of_cluster(self) -> bool:
        """Whether only the Kubernetes runtime gives it; the runner does not know it."""
        return TABLE[self].of_cluster


class Row(NamedTuple):
    """What the table says of an outcome."""

    retryable: bool
    advice: str
    of_cluster: bool = False


TABLE: Mapping[Outcome, Row] = {
    Outcome.SUCCEEDED: Row(False, ""),
    Outcome.BAD_SPEC: Row(
        False, "Correct the value that the reason names and start again; the same retry would fail the same way."
    ),
    Outcome.BAD_DATA: Row(False, "Correct or take out the data that the reason names and start again."),
    Outcome.REJECTED: Row(
        False,
        "The stage did its work and a gate or a person refused the result: look at its figures, then improve data or"
        " training, or correct the gate's limit.",
    ),
    Outcome.OUT_OF_MEMORY: Row(
        False, "Give the stage more memory, or use a smaller batch, smaller images or fewer loader workers."
    ),
    Outcome.NO_SPACE: Row(
        False,
        "Free space on the volume or make it larger, then start again: the stage goes on from what it saved.",
    ),
    Outcome.STALLED: Row(
        True,
        "A retry goes on from the last checkpoint. If the stage is only slow, allow it more stall_seconds.",
    ),
    Outcome.DIVERGED: Row(
        False, "Lower the learning rate and check the labels and the image scale; the next start begins anew."
    ),
    Outcome.TIMED_OUT: Row(
        False,
        "Allow the stage more time or give it less work; when started again it goes on from what it saved.",
    ),
    # Where Airflow itself stopped the task, it does not ask whether to retry; what is left are signals from outside.
    Outcome.CANCELLED: Row(True, "Start it again when you want it: it goes on from what it saved."),
    Outcome.TOOLKIT_ERROR: Row(
        True, "Read the end of log.txt in the stage's folder; a retry goes on from what the stage saved."
    ),
    Outcome.PREEMPTED: Row(True, "The cluster took the node away; a retry goes on from the last checkpoint.", True),
    Outcome.UNSCHEDULABLE: Row(
        False,
        "No node can hold the pod: compare what it asks for with what the nodes have, or wait until a GPU is free.",
        True,
    ),
    Outcome.IMAGE_MISSING: Row(
        False, "The image cannot be pulled: check its name and digest, the registry and the pull secret.", True
    ),
}


class ResultError(ValueError):
    """A result that cannot be understood; the message names the field."""


@dataclass(frozen=True)
class Result:
    """A stage's result.json, or its compact form, in which later fields may be missing.

    `exit_code` is that of the command: negative for a signal, None where it was never started. `started` and `ended`
    are UTC in ISO 8601; `outputs` maps a name to {"path" (relative to out/), "bytes", "sha256"}, of which the compact
    form may keep only the hash. `truncated` says that the compact form left something out.
    """

    name: str
    outcome: Outcome
    pipeline: str = ""
    run: str = ""
    key: str = ""
    reason: str = ""
    advice: str = ""
    exit_code: int | None = None
    attempt: int = 1
    resumed: bool = False
    started: str = ""
    ended: str = ""
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    outputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    progress: Mapping[str, Any] = field(default_factory=dict)
    log_tail: Sequence[str] = ()
    truncated: bool = False

    @property
    def succeeded(self) -> bool:
        return self.outcome is Outcome.SUCCEEDED

    @property
    def retryable(self) -> bool:
        return self.outcome.retryable

    @classmethod
    def from_json(cls, data: str | bytes | Mapping[str, Any]) -> Result:
        """Read a result from its JSON text or the parsed object. Raises ResultError. Unknown fields are let be."""
        if isinstance(data, str | bytes):
            try:
                data = json.loads(data)
            except ValueError as exc:
                raise ResultError(f"the result is not JSON: {exc}") from None
        if not isinstance(data, Mapping):
            raise ResultError(f"the result must be an object, it is {type(data).__name__}")
        if data.get("schema") != 1:
            raise ResultError(f"the result has schema {data.get('schema')!r}; this Refit reads 1")
        try:
            outcome = Outcome(data.get("outcome", ""))
        except ValueError:
            raise ResultError(f"the result's outcome {data.get('outcome')!r} is not known here") from None
        values: dict[str, Any] = {"outcome": outcome, "name": ""}
        for key, kinds in _KINDS.items():
            value = data.get(key)
            if value is None:
                continue
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                raise ResultError(f"the result's {key} is {value!r:.80}, not {' or '.join(k.__name__ for k in kinds)}")
            values[key] = value
        return cls(**values)

    @classmethod
    def read(cls, path: str | Path) -> Result:
        """Read a result.json. Raises ResultError with the path, also for a file that is not there."""
        try:
            return cls.from_json(Path(path).read_bytes())
        except OSError as exc:
            raise ResultError(f"{path}: cannot be read: {exc.strerror}") from None
        except ResultError as exc:
            raise ResultError(f"{path}: {exc}") from None


_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("name", "pipeline", "run", "key", "reason", "advice", "started", "ended"), (str,)),
    **dict.fromkeys(("exit_code", "attempt", "peak_memory_bytes"), (int,)),
    **dict.fromkeys(("resumed", "truncated"), (bool,)),
    **dict.fromkeys(("metrics", "summary", "outputs", "progress"), (dict,)),
    "seconds": (int, float),
    "log_tail": (list,),
}
