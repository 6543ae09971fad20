"""A pipeline's augmentation before a run: its transforms judged, and tried on some images.

albumentations is in the cpu environment only, so both start the stage's own command there.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from pathlib import Path

from refit.cluster import KubernetesProfile, Profile
from refit.command import BAD_SPEC, StageError
from refit.cpu.specs import ALLOWED, AugmentParams, TransformParams
from refit.pipeline import Pipeline
from refit.runtime.local import KEPT, REPOSITORY, interpreter
from refit.specs import Document, Key, Problem, SpecError
from refit.toolkits.base import spec_text

SPEC = "augment.yaml"


def faults(pipeline: Pipeline, profile: Profile, doc: Document) -> list[Problem]:
    """What is wrong with the transforms, each where the pipeline file names it. Raises EnvironmentMissing.

    The packages of one's own transforms lie in a cluster's image and not here: there only their names are judged.
    """
    assert pipeline.augmentation is not None
    block, params = pipeline.augmentation
    refused = []
    if isinstance(profile, KubernetesProfile):
        allowed = profile.env.get(ALLOWED, "")
        told = ((i, t.refusal(allowed)) for i, t in enumerate(params.transforms))
        refused = [doc.problem(("stages", block, "transforms", i, "name"), why) for i, why in told if why]
        known = [TransformParams(name="NoOp") if t.package else t for t in params.transforms]
        params = params.model_copy(update={"transforms": known})
    with tempfile.TemporaryDirectory() as folder:
        done = _start(pipeline, params, profile, Path(folder), "none", "--check")
    return [*refused, *_told(block, doc, done)]


def try_out(pipeline: Pipeline, profile: Profile, doc: Document, snapshot: Path, out: Path) -> None:
    """Run the stage on a snapshot. Raises EnvironmentMissing; SpecError and StageError as the stage tells it."""
    assert pipeline.augmentation is not None
    block, params = pipeline.augmentation
    out.mkdir()
    done = _start(pipeline, params, profile, out, str(snapshot), "-r", str(out))
    if problems := _told(block, doc, done):
        raise SpecError(problems)
    if done.returncode:
        raise StageError(done.stderr.strip().removeprefix("error: "))


def _start(
    pipeline: Pipeline, params: AugmentParams, profile: Profile, folder: Path, snapshot: str, *words: str
) -> subprocess.CompletedProcess[str]:
    spec = {"seed": pipeline.seed, "snapshot": snapshot, **params.model_dump()}
    (folder / SPEC).write_text(spec_text(spec), encoding="utf-8")
    env = {name: value for name, value in os.environ.items() if name in (*KEPT, ALLOWED)}
    return subprocess.run(
        [interpreter("cpu"), "-m", "refit.cpu", "augment", "-e", folder / SPEC, *words],
        env={**env, "PYTHONPATH": str(REPOSITORY), **profile.env},
        capture_output=True,
        text=True,
        check=False,
    )


def _told(block: str, doc: Document, done: subprocess.CompletedProcess[str]) -> list[Problem]:
    """The command's `error:` lines about its spec, with the places of the pipeline file."""
    if done.returncode != BAD_SPEC:
        return []
    at_all: Key = ("stages", block)
    found = []
    for line in done.stderr.splitlines():
        said = line.removeprefix("error: ")
        at = re.match(rf"\S*{re.escape(SPEC)}:\d+: ([\w.\[\]]+): (.*)", said)
        found.append(doc.problem((*at_all, *_key(at[1])), at[2]) if at else doc.problem(at_all, said))
    return found


def _key(dotted: str) -> Key:
    """ "transforms[0].args" -> ("transforms", 0, "args")."""
    return tuple(int(part) if part.isdecimal() else part for part in re.findall(r"[^.\[\]]+", dotted))
