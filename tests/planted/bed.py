"""A real run of a small pipeline, and faults planted in copies of it.

The run goes by `refit run`: the stages are processes in their own environments, as in production. A fault is planted by
handing a stage the results of another, altered and hashed again, as if that stage had made them; so what is caught is
caught by the stage or gate, not by the hash.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refit import runner
from refit.outcome import Result
from refit.runtime.local import REPOSITORY, StageProcess, interpreter
from refit.start import take
from tests.planted import colours

Edit = Callable[[Path], None]

PIPELINE: Mapping[str, Any] = {
    "dataset": {
        "source": "colours",
        "classes": list(colours.CLASSES),
        "split": {"lists": {"train": "train.txt", "val": "val.txt"}},
    },
    "toolkit": "cpu",
    # Pictures so small gain nothing from a second core, and two threads that wait for each other take twice its time.
    "resources": {"default": {"cpus": 1}},
    "network": {"width": 0.5, "input_width": colours.WIDTH, "input_height": colours.HEIGHT},
    "stages": {
        "train": {
            "epochs": 8,
            "batch_size": 4,
            "learning_rate": 0.004,
            "evaluate_every": 8,
            "augmentation": {"hflip": 0.5, "color": 0},
        },
        "prune": {"ratio": 0.5},
        "retrain": {"epochs": 5, "learning_rate": 0.003},
        # Its speed against float32 is the machine's; what is planted here is accuracy.
        "quantize": {"images": 40, "min_speedup": None},
    },
    "gates": {
        "quality": {"floor": 0.6, "max_drop_pruned": 0.1, "max_drop_quantized": 0.05},
        "parity": {"images": 32},
    },
}


def changed(pipeline: Mapping[str, Any], how: Mapping[str, Any]) -> dict[str, Any]:
    """A pipeline with other values at some dotted keys."""
    made: dict[str, Any] = copy.deepcopy(dict(pipeline))
    for dotted, value in how.items():
        *parents, last = dotted.split(".")
        at = made
        for name in parents:
            at = at.setdefault(name, {})
        at[last] = value
    return made


@dataclass
class Told:
    """How a `refit run` ended."""

    code: int
    text: str
    run: Path | None

    @property
    def plan(self) -> dict[str, Any]:
        assert self.run is not None
        plan: dict[str, Any] = json.loads((self.run / "plan.json").read_text(encoding="utf-8"))
        return plan


@dataclass
class Bed:
    """A home with data and a workspace, for runs of one pipeline."""

    home: Path
    triton: Mapping[str, str] = field(default_factory=dict)  # variables that name one, and its control key

    def data(self, **how: Any) -> Path:
        return colours.make(self.home / "data" / "colours", **how)

    def run(self, pipeline: Mapping[str, Any], until: str | None, name: str = "planted") -> Told:
        """`refit run` until a stage, or to its end. Only a release (and a canary) asks the Triton of `triton`."""
        file = self.home / f"{name}.yaml"
        file.write_text(json.dumps(pipeline), encoding="utf-8")  # JSON is YAML
        done = self.cli("run", file, *(("--until", until) if until else ()))
        runs = sorted((self.home / "workspace" / name / "runs").glob("*"), key=lambda p: p.stat().st_mtime)
        return Told(done.returncode, done.stdout + done.stderr, runs[-1] if runs else None)

    def cli(self, *words: object) -> subprocess.CompletedProcess[str]:
        """`refit` with this home."""
        env = {
            **{k: v for k, v in os.environ.items() if not k.startswith("REFIT_")},
            **self.triton,
            "REFIT_HOME": str(self.home),
            "REFIT_ENVS": str(interpreter("tools").parents[2]),
            "PYTHONPATH": str(REPOSITORY),
        }
        argv = [str(interpreter("tools")), "-m", "refit.cli", *map(str, words)]
        return subprocess.run(argv, cwd=self.home, env=env, capture_output=True, text=True, check=False)


@dataclass
class Good:
    """A good run, and its stages started once more with something else in their hands."""

    plan: Mapping[str, Any]
    folder: Path  # for what is made here
    made: int = 0

    def request(self, stage: str) -> dict[str, Any]:
        found: dict[str, Any] = next(s for s in self.plan["stages"] if s["name"] == stage)
        return json.loads(json.dumps(found))  # type: ignore[no-any-return]

    def out(self, stage: str) -> Path:
        return Path(self.request(stage)["paths"]["stage"]) / "out"

    def forged(self, stage: str, edit: Edit) -> Path:
        """The folder of a stage as if it had made what `edit` makes of its results."""
        folder = self._place(stage)
        shutil.copytree(Path(self.request(stage)["paths"]["stage"]), folder)
        edit(folder / "out")
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        for output in result["outputs"].values():
            output["bytes"], output["sha256"] = runner.measure(str(folder / "out" / output["path"]))
        (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
        return folder

    def again(
        self, stage: str, inputs: Mapping[str, Path] | None = None, edit: Edit | None = None, found: Path | None = None
    ) -> Result:
        """Run a stage once more, with other folders for some of its inputs; `edit` changes its spec files' folder.

        `found` has the files of an unfinished attempt, with which it goes on. The folder that it makes is `self.last`.
        """
        request = self.request(stage)
        self.last = self._place(stage)
        request["paths"]["stage"] = str(self.last)
        request["inputs"] |= {name: str(folder) for name, folder in (inputs or {}).items()}
        request["publish"] = request["progress"] = request["input_keys"] = None
        if edit is not None:
            files = self._place("specs")
            files.mkdir()
            for name, text in request["files"].items():
                (files / name).write_text(text, encoding="utf-8")
            edit(files)
            request["files"] = {name: (files / name).read_text(encoding="utf-8") for name in request["files"]}
        if found is not None:
            take.lay(found, request)
        process = StageProcess(
            request=request, python=interpreter(request["environment"]), env={}, on_line=lambda line: None
        )
        return process.run()

    def _place(self, name: str) -> Path:
        self.made += 1
        return self.folder / f"{self.made:02}-{name}"
