"""Small real plans: stages whose commands are lines of Python, run by the real runner in the tools environment."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.operators.home import REPOSITORY

TOOLS = Path(os.environ.get("REFIT_ENVS") or REPOSITORY / ".refit" / "envs") / "tools" / "bin" / "python"
WHY_NOT = f"the tools environment is not set up ({TOOLS})"

GOOD = "import pathlib, sys; pathlib.Path(sys.argv[1], 'out.txt').write_text('done')"


def stage(run: Path, index: int, name: str, code: str = GOOD, **more: Any) -> dict[str, Any]:
    """A stage of docs/contracts.md; `code` finds its out/ folder in sys.argv[1]."""
    return {
        "schema": 1,
        "pipeline": "live",
        "run": run.name,
        "name": name,
        "action": name,
        "index": index,
        "toolkit": "cpu",
        "environment": "tools",
        "image": None,
        "key": f"{index:064d}",
        "argv": ["{python}", "-c", code, "{out}"],
        "env": {},
        "files": {},
        "secrets": [],
        "paths": {"workspace": str(run.parents[1]), "run": str(run), "stage": str(run / f"{index:02d}-{name}")},
        "inputs": {},
        "outputs": [{"name": "out", "path": "out.txt", "kind": "file", "format": "any", "min_bytes": 1}],
        "status": "status.json",
        "summary": None,
        "watch": None,
        "timeout_seconds": 120,
        "grace_seconds": 2,
        "exit_codes": {"2": "bad_spec", "3": "bad_data", "4": "rejected"},
        "resources": {"gpus": 0, "cpus": 1, "memory_gib": 1},
        "publish": None,
        **more,
    }


def write_plan(run: Path, codes: Mapping[str, str]) -> Path:
    """<run>/plan.json with a stage for each name -> code."""
    run.mkdir(parents=True, exist_ok=True)
    stages = [stage(run, i, name, code) for i, (name, code) in enumerate(codes.items(), start=1)]
    path = run / "plan.json"
    path.write_text(json.dumps({"schema": 1, "pipeline": "live", "run": run.name, "stages": stages}))
    return path
