"""What the doctor has to say about one thing."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"
    NOTE = "note"  # what cannot be seen from here, and how to see it


@dataclass(frozen=True)
class Finding:
    """`fix` is the command that mends it, or shows more."""

    level: Level
    name: str
    text: str
    fix: str = ""

    def __str__(self) -> str:
        line = f"{self.level:4}  {self.name}: {self.text}"
        return f"{line}\n      -> {self.fix}" if self.fix else line
