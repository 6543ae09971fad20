"""`refit reproduce`: what made a version, written into a folder that is ready to run.

The model card (`refit.triton.lineage`) holds the pipeline file, the specs and params of the run; the data set is the
snapshot of its fingerprint, hard links where that can be. A run there gives every stage the key that it had then, as
long as Refit's sources and environments are the same: what differs is said.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from refit.command import BadSpec
from refit.config import Settings
from refit.files import link_or_copy, sha256, write_json, write_text
from refit.runtime import report
from refit.runtime.local import REPOSITORY
from refit.start import spec as starts

CARD, DATA, SCRIPT = "card.json", "data", "run.sh"
_START = re.compile(rf"\{{workspace\}}/{starts.FOLDER}/([0-9a-f]{{64}})/([\w.-]+)")


@dataclass(frozen=True)
class Reproduction:
    """What was written: the pipeline file, the command that runs it, and why its keys may be others."""

    pipeline: Path
    command: list[str]
    notes: list[str]


def find(release: str, version: int | None, settings: Settings) -> tuple[dict[str, Any], Path]:
    """A version's card and its pipeline's folder in the workspace: by a path to release.json, card.json or their
    folder, or by the pipeline's name and the version (None: the one that serves). Raises BadSpec."""
    from refit.triton.ledger import Ledger

    path = Path(release)
    if path.exists():
        folder = path if path.is_dir() else path.parent
    else:
        ledger = Ledger(settings.workspace / release / "releases")
        records = ledger.records()
        chosen = [r for r in records if (r.version == version if version is not None else r.state == "serving")]
        if not chosen:
            known = ", ".join(str(r.version) for r in records) or "none"
            raise BadSpec(
                f"{release}: no {f'version {version}' if version else 'serving version'} there; it has {known}"
            )
        folder = ledger.path(chosen[-1].version)
    card = report.read_json(folder / CARD)
    if card is None or "data" not in card or "text" not in card.get("pipeline", {}):
        raise BadSpec(
            f"{folder / CARD}: no model card with a pipeline and data: the version was released by hand or by an older "
            "Refit, and what made it is not known"
        )
    return card, folder.parents[1]


def reproduce(card: Mapping[str, Any], home: Path, to: Path, made_by: Mapping[str, Any]) -> Reproduction:
    """Write the folder. `home`: the pipeline's folder in the workspace; `made_by`: today's (`refit.bind.made_by`).

    Raises:
        BadSpec: the folder is not empty, or the snapshot is gone or not what it was.
    """
    snapshot = home / "datasets" / card["data"]["fingerprint"]
    if not (snapshot / "dataset.json").exists():
        raise BadSpec(
            f"{snapshot}: the data set of this version is gone (refit gc keeps what kept runs name); it cannot be "
            f"reproduced without it. Its source was {card['data']['provenance']}"
        )
    if to.exists() and any(to.iterdir()):
        raise BadSpec(f"{to}: is not empty; name a new folder")
    to.mkdir(parents=True, exist_ok=True)
    _copy(snapshot, to / DATA, card["data"]["evaluation"])
    about = card["pipeline"]
    file = _pipeline(about, to)
    conf = {**card["run"].get("conf", {}), "release": False}
    command = ["refit", "run", str(file.relative_to(to)), "--snapshot", DATA, "--workspace", "workspace"]
    for key, value in conf.items():
        command += ["--param", f"{key}={json.dumps(value)}"]
    head = f"# Makes version {card['version']} of {card['model']} again, and releases nothing."
    path = f'PATH="$PATH":{shlex.quote(str(REPOSITORY / "bin"))}'  # of a checkout, whose refit need not be in the PATH
    write_text(to / SCRIPT, f'#!/bin/sh\n{head}\n{path}\ncd "$(dirname "$0")" && exec {shlex.join(command)} "$@"\n')
    (to / SCRIPT).chmod(0o755)
    write_json(to / CARD, dict(card))
    return Reproduction(file, command, [*_begun(card, home), *_differs(card.get("made_by", {}), made_by)])


def _begun(card: Mapping[str, Any], home: Path) -> Iterator[str]:
    """What a training began with, which lies in the workspace and not in the folder (`start_from`)."""
    for stage in card.get("stages", ()):
        for digest, name in set(_START.findall(json.dumps(stage.get("specs", {})))):
            kept = home / starts.FOLDER / digest / name
            yield (
                f"{stage['name']} began with weights of the workspace: copy {kept} below a data root, and add "
                f"--param {stage['name']}_start_from=FILE#sha256={digest}"
            )


def _copy(snapshot: Path, to: Path, evaluation: Mapping[str, Any] | None) -> None:
    """The snapshot, each image held against its hash; `evaluation` is what the run knew of the evaluation set."""
    from refit.data.snapshot import read_annotations

    (to / "images").mkdir(parents=True)
    for row in read_annotations(snapshot):
        image = snapshot / "images" / row["file"]
        if not image.is_file() or sha256(image) != row["sha256"]:
            raise BadSpec(f"{image}: is gone or was changed; the data set of this version cannot be had again")
        link_or_copy(image, to / "images" / row["file"])
    for path in snapshot.iterdir():
        if path.is_file():
            write_text(to / path.name, path.read_text(encoding="utf-8"))
    about = json.loads((snapshot / "dataset.json").read_text(encoding="utf-8"))
    write_json(to / "dataset.json", {**about, "evaluation": evaluation})


def _pipeline(about: Mapping[str, Any], to: Path) -> Path:
    """The pipeline file and the specs that it names, each where it says: `../x` lies beside the file's folder."""
    attached = {PurePosixPath(name): text for name, text in about.get("attached", {}).items()}
    if outside := [str(name) for name in attached if name.is_absolute()]:
        raise BadSpec(f"the pipeline names {outside[0]}: put that file back there by hand, or use relative names")
    up = max((name.parts.count("..") for name in attached), default=0)
    folder = to.joinpath(*["pipeline"] * up)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in attached.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    file = folder / f"{about['name']}.yaml"
    write_text(file, about["text"])
    return file


def _differs(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Why the keys will be others than they were."""
    notes = []
    if then.get("code") != now["code"]:
        where = f"check out {then['revision']}" if then.get("revision") else f"use Refit {then.get('refit')}"
        notes.append(f"Refit's sources are not those that made it: stages whose code differs run anew; {where}")
    kept = then.get("environments", {})
    notes += [
        f"the environment {name} is not the one that made it ({str(kept.get(name))[:12]} then, {digest[:12]} now)"
        for name, digest in now["environments"].items()
        if kept.get(name) != digest
    ]
    return notes
