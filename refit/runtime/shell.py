"""A stage's environment and command, ready to be tried by hand (`refit shell`).

The command of a stage of the newest run (or of a named one), with every token replaced as the runner does it; its
results go to a folder of their own, so that a try never touches the run. Secrets stay out: they are named, and
read from the environment by the command that is shown.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refit import files, runner
from refit import pipeline as pipelines
from refit.config import Settings
from refit.runtime import report
from refit.runtime.local import interpreter
from refit.specs import Problem, SpecError, did_you_mean


@dataclass(frozen=True)
class Prepared:
    """`text` to show, `env` and `folder` to start a shell in."""

    text: str
    env: Mapping[str, str]
    folder: Path


def prepare(settings: Settings, file: Path, stage: str, run: str | None) -> Prepared:
    """Write the stage's specs to `<run>/try-<stage>/` and give its command. Raises SpecError for what is not there."""
    name = pipelines.peek_name(file)
    plan = _plan(settings.workspace / name, file, run)
    stages = {s["name"]: s for s in plan["stages"]}
    if stage not in stages:
        hint = did_you_mean(stage, list(stages)) or f"; it has {', '.join(stages)}"
        raise SpecError([Problem(str(file), 0, "", f"the run has no stage {stage!r}{hint}")])
    request = _aside(stages[stage])
    try:
        known = runner.Stage(request)
        tokens = runner.Tokens(known, {secret: f"$REFIT_SECRET_{secret}" for secret in request["secrets"]})
        tokens.fixed["python"] = str(interpreter(request["environment"]))
        argv = [tokens.replace(part, "argv", True) for part in request["argv"]]
        env = {k: tokens.replace(v, k, True) for k, v in request["env"].items()}
        texts = {k: tokens.replace(v, k, False) for k, v in request["files"].items()}
    except runner.Fault as exc:
        raise SpecError([Problem(str(file), 0, "", f"{stage}: {exc}; run the stages before it first")]) from None
    folder = Path(known.folder)
    (folder / "specs").mkdir(parents=True, exist_ok=True)
    for spec, text in texts.items():
        files.write_text(folder / "specs" / spec, text)
    env["PYTHONPATH"] = str(settings.repository)
    shown = [f"# {request['title']}; results go to {folder}/out", f"cd {shlex.quote(str(folder))}"]
    shown += [f'export {k}="{v}"' if v.startswith("$") else f"export {k}={shlex.quote(v)}" for k, v in env.items()]
    shown.append(" ".join(shlex.quote(part) for part in argv))
    plain = {k: v for k, v in env.items() if not v.startswith("$")}
    return Prepared("\n".join(shown), {**os.environ, **plain}, folder)


def _plan(workspace: Path, file: Path, run: str | None) -> dict[str, Any]:
    runs = report.runs(workspace)
    if run is not None:
        runs = [r for r in runs if r.name == run]
    for folder in reversed(runs):
        plan = report.current_plan(folder)
        if plan is not None:
            return plan
    which = f"run {run}" if run else "run with a plan"
    raise SpecError([Problem(str(file), 0, "", f"there is no {which} in {workspace}; start one: refit run {file}")])


def _aside(request: dict[str, Any]) -> dict[str, Any]:
    """The same stage in a folder of its own beside the run's."""
    folder = Path(request["paths"]["run"]) / f"try-{request['name']}"
    return {**request, "paths": {**request["paths"], "stage": str(folder)}}
