"""status.json as TAO's loggers write it: JSON lines; a figure stays until it is changed, and every line repeats it."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any


class Status:
    """`path` None: no status file was asked for, as with TF1 tasks without -r."""

    def __init__(self, path: Path | None, append: bool = True) -> None:
        self.path = path
        self.categorical: dict[str, Any] = {}
        self.graphical: dict[str, Any] = {}
        self.kpi: dict[str, Any] = {}
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("a" if append else "w").close()

    def write(self, message: str = "", status: str = "RUNNING", **data: Any) -> None:
        if not self.path:
            return
        now = datetime.now()
        record = {
            **data,
            "date": f"{now.month}/{now.day}/{now.year}",
            "time": f"{now.hour}:{now.minute}:{now.second}",
            "status": status,
            "verbosity": "INFO",
            **({"message": message} if message else {}),
            **({"categorical": self.categorical} if self.categorical else {}),
            **({"graphical": self.graphical} if self.graphical else {}),
            **({"kpi": self.kpi} if self.kpi else {}),
        }
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")


def times(seconds: float, epochs_left: int) -> dict[str, str]:
    return {"time_per_epoch": str(timedelta(seconds=seconds)), "eta": str(timedelta(seconds=seconds * epochs_left))}
