"""A fault in a data set, and the error that carries all of them.

The rule that every reader and check keeps: objects in = objects out + objects reported. A fault says how many objects
it took out (`objects`), so that the rule is arithmetic, and `refit.data.examine` holds it for every data set.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from refit import command
from refit.data.codes import CODES, Severity

_EXAMPLES = 5
_ORDER: dict[Severity, int] = {"error": 0, "warning": 1, "info": 2}


@dataclass(frozen=True, slots=True)
class Fault:
    """One finding. `file` is relative to the source; `line` is 1-based, 0 where there is none; `at` is the place in a
    file whose lines say little (JSON on one line), for example "annotations[12]".

    `objects` and `images` are how many of each it takes out of the data set.
    """

    code: str
    file: str
    message: str
    line: int = 0
    value: str = ""
    advice: str = ""
    severity: Severity = "error"
    objects: int = 0
    images: int = 0
    at: str = ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        where += f" ({self.at})" if self.at else ""
        return f"{where}: {self.message}" if where else self.message

    def as_json(self) -> dict[str, Any]:
        """The line of issues.jsonl; what is empty is left out."""
        row = {name: getattr(self, name) for name in self.__slots__}
        return {k: _utf8(v) if isinstance(v, str) else v for k, v in row.items() if v}


def fault(
    code: str,
    file: str,
    message: str,
    *,
    line: int = 0,
    value: str = "",
    advice: str = "",
    objects: int = 0,
    images: int = 0,
    at: str = "",
) -> Fault:
    """A fault with the severity, and where none is given the advice, that its code has."""
    known = CODES[code]
    return Fault(code, file, message, line, value[:200], advice or known.advice, known.severity, objects, images, at)


def graded(faults: Iterable[Fault], severity: Mapping[str, Severity]) -> list[Fault]:
    """The faults with the severities that a pipeline sets, in the order of files and lines."""
    changed = (replace(f, severity=severity[f.code]) if f.code in severity else f for f in faults)
    return sorted(changed, key=lambda f: (_ORDER[f.severity], bool(f.file), f.file, f.line, f.code, f.message))


def counts(faults: Iterable[Fault]) -> dict[str, int]:
    """How often each code occurs, in the order of `CODES`."""
    found: dict[str, int] = {}
    for f in faults:
        found[f.code] = found.get(f.code, 0) + 1
    return {code: found[code] for code in CODES if code in found}


class BadData(command.BadData):
    """A data set that cannot be used. `faults` holds everything found; `report` is the file that lists it, if any."""

    def __init__(self, source: str, faults: Sequence[Fault], report: Path | None = None) -> None:
        self.source = source
        self.faults = tuple(faults)
        self.report = report
        super().__init__(self._paragraph())

    def _paragraph(self) -> str:
        """One paragraph: the counts of what stops the run, its first examples, and where the rest is."""
        errors = [f for f in self.faults if f.severity == "error"]
        if any(f.code == "too_many_bad_labels" for f in errors):
            # Then each lost object is a reason, too.
            errors += [f for f in self.faults if f.severity == "warning" and (f.objects or f.images)]
        if len(errors) == 1:
            text = f"{self.source}: {errors[0]}; {errors[0].advice}"
        else:
            total = ", ".join(f"{n} x {code}" for code, n in counts(errors).items())
            shown = _examples(errors)
            listed = "; ".join(f"({i}) {f}; {f.advice}" for i, f in enumerate(shown, 1))
            lead = "First" if len(shown) < len(errors) else "They are"
            text = f"{self.source}: the data set cannot be used: {total}. {lead}: {listed}"
        text += f". The complete list is in {self.report}" if self.report else ""
        # Names come from outside: a line break in one must not look like a line of ours.
        return "".join(c if c.isprintable() else " " for c in _utf8(text))


def _utf8(text: str) -> str:
    """The text with what UTF-8 cannot hold (names of files in other encodings) written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def _examples(faults: Sequence[Fault]) -> list[Fault]:
    """Up to five: the first of each code, then the next ones."""
    first = {f.code: f for f in reversed(faults)}
    chosen = [f for f in faults if first[f.code] is f]
    chosen += [f for f in faults if first[f.code] is not f]
    return chosen[:_EXAMPLES]


class NoSpace(command.StageError):
    """The workspace's disk is full. The message begins as the system's own does: the runner looks for it."""
