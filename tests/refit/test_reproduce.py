"""`refit reproduce`: from a model card back to a run whose stages have the same keys."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from refit import bind, cli
from refit import plan as plans
from refit.command import BadSpec, main
from refit.config import Settings
from refit.reproduce import find, reproduce
from refit.triton.lineage import Lineage, gather
from tests.refit.bind_helpers import PIPELINE, Place
from tests.refit.test_start import torch_file


def released(place: Place, version: int = 3, **bound: Any) -> dict[str, Any]:
    """Bind a run and leave the card that a release of it would have written."""
    assert place.bind(**bound) == 0, place.error
    run = Path(place.summary["plan"]).parent
    lineage = Lineage(gather(run, None)).of("mine", version, "0" * 64, "", {"mAP50": 0.9})
    folder = place.workspace / "releases" / str(version)
    folder.mkdir(parents=True)
    (folder / "card.json").write_text(lineage.text)
    return dict(json.loads(lineage.text))


def keys(plan: dict[str, Any]) -> dict[str, str]:
    return {s["name"]: s["key"] for s in plan["stages"]}


def bound_again(folder: Path, file: Path, conf: dict[str, Any]) -> dict[str, Any]:
    """The plan of a run in a reproduced folder, in a workspace of its own."""
    settings = Settings.from_env({"REFIT_WORKSPACE": str(folder / "workspace")})
    text = file.read_text()
    request = plans.bind_request(file, text, "again", conf, settings, nonce="n", snapshot=str(folder / "data"))
    spec = folder / "bind.yaml"
    spec.write_text(request["files"]["bind.yaml"])
    code = main("refit.bind", bind.ACTIONS, ["bind", "-e", str(spec), "-r", str(folder / "out")])
    assert code == 0, (folder / "out" / "status.json").read_text()
    return dict(json.loads(Path(json.loads((folder / "out" / "summary.json").read_text())["plan"]).read_text()))


@pytest.mark.parametrize("conf", [{}, {"train_epochs": 5}])
def test_a_run_there_has_the_same_keys(place: Place, tmp_path: Path, conf: dict[str, Any]) -> None:
    card = released(place, conf=conf)
    first = keys(place.plan)
    to = tmp_path / "again"
    made = reproduce(card, place.workspace, to, card["made_by"])
    assert made.notes == []
    assert "release=false" in made.command
    again = bound_again(to, made.pipeline, {**conf, "release": False})
    assert again["fingerprint"] == place.plan["fingerprint"]
    # The gate against the champion and the release depend on what serves there.
    assert {n: k for n, k in keys(again).items() if n not in again["off"]} == {
        n: k for n, k in first.items() if n not in again["off"]
    }
    assert {"train", "quantize", "gate_quantized"} <= keys(again).keys() - set(again["off"])


def test_the_source_is_not_needed_any_more(place: Place, tmp_path: Path) -> None:
    card = released(place)
    for path in sorted(place.data.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    made = reproduce(card, place.workspace, tmp_path / "again", card["made_by"])
    assert keys(bound_again(tmp_path / "again", made.pipeline, {}))["train"] == keys(place.plan)["train"]


def test_what_makes_the_keys_others_is_said(place: Place, tmp_path: Path) -> None:
    card = released(place)
    now = {**card["made_by"], "code": "0" * 64, "environments": {**card["made_by"]["environments"], "cpu": "1" * 64}}
    notes = "\n".join(reproduce(card, place.workspace, tmp_path / "again", now).notes)
    assert f"check out {card['made_by']['revision']}" in notes or "use Refit" in notes
    assert "the environment cpu is not the one that made it" in notes


def test_weights_that_a_training_began_with_are_named(place: Place, tmp_path: Path) -> None:
    torch_file(place.root / "data" / "mine.pth")
    card = released(place, conf={"train_start_from": "mine.pth"})
    (note,) = reproduce(card, place.workspace, tmp_path / "again", card["made_by"]).notes
    (kept,) = (place.workspace / "starts").glob("*/model.pth")
    assert note.startswith(f"train began with weights of the workspace: copy {kept} below a data root")
    assert note.endswith(f"--param train_start_from=FILE#sha256={kept.parent.name}")


def test_specs_of_the_users_own_lie_where_the_file_names_them(tmp_path: Path, place: Place) -> None:
    card = released(place)
    card["pipeline"]["attached"] = {"../specs/train.txt": "a: 1", "own.txt": "b: 2"}
    made = reproduce(card, place.workspace, tmp_path / "again", card["made_by"])
    for name, text in card["pipeline"]["attached"].items():
        assert (made.pipeline.parent / name).read_text() == text
        assert (made.pipeline.parent / name).resolve().is_relative_to(tmp_path / "again")


def test_a_data_set_that_is_gone_or_changed_is_said(place: Place, tmp_path: Path) -> None:
    card = released(place)
    snapshot = place.workspace / "datasets" / card["data"]["fingerprint"]
    image = next((snapshot / "images").iterdir())
    image.unlink()
    image.write_bytes(b"other")
    with pytest.raises(BadSpec, match=f"{image.name}: is gone or was changed"):
        reproduce(card, place.workspace, tmp_path / "a", card["made_by"])
    snapshot.rename(tmp_path / "away")
    with pytest.raises(BadSpec, match="the data set of this version is gone"):
        reproduce(card, place.workspace, tmp_path / "b", card["made_by"])


def test_a_changed_snapshot_is_no_data(place: Place, tmp_path: Path) -> None:
    card = released(place)
    made = reproduce(card, place.workspace, tmp_path / "again", card["made_by"])
    lines = tmp_path / "again" / "data" / "annotations.jsonl"
    lines.write_text(lines.read_text().replace('"split": "val"', '"split": "train"', 1))
    with pytest.raises(AssertionError, match="it was changed"):
        bound_again(tmp_path / "again", made.pipeline, {})


def test_by_name_by_path_and_what_is_said_where_there_is_none(place: Place) -> None:
    card = released(place)
    settings = Settings.from_env({"REFIT_WORKSPACE": str(place.workspace.parent)})
    folder = place.workspace / "releases" / "3"
    for path in (folder, folder / "card.json"):
        assert find(str(path), None, settings) == (card, place.workspace)
    with pytest.raises(BadSpec, match="mine: no version 9 there; it has none"):
        find("mine", 9, settings)
    (folder / "card.json").write_text('{"run": {"folder": "by-hand"}}')
    with pytest.raises(BadSpec, match="released by hand or by an older Refit"):
        find(str(folder), None, settings)


def test_the_command_writes_a_folder_that_runs(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command line, to the end of bind: the script is started, and its first stage makes the same keys."""
    released(place)
    to = tmp_path / "again"
    assert cli.main(["reproduce", str(place.workspace / "releases" / "3"), "--to", str(to)]) == 0
    assert "refit run mine.yaml --snapshot data" in capsys.readouterr().out
    assert (to / "mine.yaml").read_text() == PIPELINE
    python = tmp_path / "envs" / "tools" / "bin" / "python"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    bare = {"PATH": "/usr/bin:/bin", "REFIT_ENVS": str(tmp_path / "envs")}  # where no refit is in the PATH
    shown = subprocess.run([to / "run.sh", "--help"], env=bare, capture_output=True, text=True, check=True)
    assert "--snapshot DIR" in shown.stdout


def test_a_signing_key_is_named_in_the_plan_and_never_there(place: Place) -> None:
    signing = "release: {signing: {secret: SIGN_KEY, public_key: '-----BEGIN PUBLIC KEY----- x'}}\n"
    assert place.bind(text=PIPELINE + signing) == 0, place.error
    release = next(s for s in place.plan["stages"] if s["name"] == "release")
    assert "SIGN_KEY" in release["secrets"]
    assert release["env"]["REFIT_SIGNING_KEY"] == "{secret:SIGN_KEY}"
    assert "BEGIN PUBLIC KEY" in release["files"]["release.yaml"]
