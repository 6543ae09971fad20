"""The status file of our own stages, in the JSON-lines form that TAO Toolkit writes.

A stage appends one line per event to ``<out>/status.json``. The runner reads the file while the stage runs
(progress, metrics, loss) and after it ends (the reason of a failure), and it reads TAO's own file with the same
code, so the form must be TAO's: ``date`` and ``time`` without leading zeros in the clock part, ``status``,
``verbosity``, ``message``, and ``kpi`` or ``categorical`` for results (``docs/contracts.md``, "Stage commands").

Standard library only: the CPU toolkit, the gates, the binder and the release all use it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

__all__ = ["StatusWriter"]


class StatusWriter:
    """Appends TAO status lines to ``<out>/status.json``.

    Each line is one ``write`` on a descriptor opened with ``O_APPEND`` and is synced, so a reader never sees two lines
    mixed, and what was said before a crash is on disk.

    Args:
        out: the stage's result folder; it is created when it is missing.

    Raises:
        OSError: the folder or the file cannot be written.
    """

    FILE_NAME = "status.json"

    def __init__(self, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.path = out / self.FILE_NAME

    def started(self, message: str = "Started.") -> None:
        """The stage begins."""
        self._append("STARTED", message, {})

    def running(self, message: str = "", **fields: object) -> None:
        """Progress. Epoch lines give ``epoch``, ``max_epoch``, ``time_per_epoch``, ``eta`` and ``loss``.

        Args:
            message: what is being done now.
            **fields: further JSON values of the line (``kpi`` and ``categorical`` may be among them).
        """
        self._append("RUNNING", message, fields)

    def success(
        self,
        message: str = "Succeeded.",
        kpi: Mapping[str, float] | None = None,
        categorical: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        """The stage is done; this is its last line.

        Args:
            message: what was made.
            kpi: results by name.
            categorical: results by name, then by class.
        """
        fields: dict[str, object] = {}
        if kpi:
            fields["kpi"] = dict(kpi)
        if categorical:
            fields["categorical"] = {name: dict(values) for name, values in categorical.items()}
        self._append("SUCCESS", message, fields)

    def failure(self, message: str) -> None:
        """The stage failed; the message of the last such line becomes the result's reason."""
        self._append("FAILURE", message, {}, verbosity="ERROR")

    def _append(self, status: str, message: str, fields: Mapping[str, object], verbosity: str = "INFO") -> None:
        now = datetime.now()
        line: dict[str, object] = {
            "date": f"{now.month}/{now.day}/{now.year}",
            "time": f"{now.hour}:{now.minute}:{now.second}",
            "status": status,
            "verbosity": verbosity,
            "message": message,
        }
        line.update((name, _plain(value)) for name, value in fields.items())
        text = json.dumps(line, ensure_ascii=False) + "\n"
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(descriptor, text.encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _plain(value: object) -> object:
    """``value`` as JSON can hold it: numbers that JSON has no form for (NaN, infinities) become strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
