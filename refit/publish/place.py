"""Where what is published lies: `<workspace>/published/<pipeline>/`, beside the pipelines' own folders.

Airflow's API server mounts `published/` and nothing else of the workspace, read-only.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from refit.files import write_json

FOLDER, PROGRESS = "published", "progress"
INDEX = "index.json"
REPORT, REPORT_JSON = "report.html", "report.json"
SCHEMA = 1


def of_pipeline(workspace: Path) -> Path:
    """The published folder of a pipeline by its folder in the workspace."""
    return workspace.parent / FOLDER / workspace.name


def of_run(workspace: Path, run: str) -> Path:
    return of_pipeline(workspace) / "runs" / run


def progress(workspace: Path, stage: str) -> Path:
    """Where the runner of a stage says how far it is; the run's own note is `run.json`."""
    return of_pipeline(workspace) / PROGRESS / f"{stage}.json"


def announce(workspace: Path, plan: Mapping[str, Any]) -> None:
    """Note which run is going on and what it is going to do. Raises OSError."""
    skip = {**dict.fromkeys(plan["reused"], "reused"), **dict.fromkeys(plan["off"], "off")}
    stages = [{"name": s["name"], "title": s["title"], "state": skip.get(s["name"], "waiting")} for s in plan["stages"]]
    note = progress(workspace, "run").with_name("run.json")
    note.parent.mkdir(parents=True, exist_ok=True)
    write_json(note, {"schema": SCHEMA, "run": plan["run"], "run_id": plan["run_id"], "at": now(), "stages": stages})


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
