"""Runs whose data changes in between: what was evaluated stays so, and what changed is told."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("simplejpeg", reason="runs in the tools environment only")

from refit.data import synthetic
from refit.data.snapshot import read_annotations
from refit.triton.ledger import Ledger, Record
from tests.refit.bind_helpers import PIPELINE, Place


def more(place: Place, count: int) -> None:
    """Images that were not there, under names that were not there."""
    other = place.root / "other"
    synthetic.make(other, train=count, val=0, shifted=0, seed=8)
    for path in [*other.glob("images/*"), *other.glob("labels/*")]:
        os.rename(path, place.data / path.parent.name / f"more-{path.name}")


def rows(place: Place) -> dict[str, dict[str, Any]]:
    return {row["file"]: row for row in read_annotations(Path(place.plan["snapshot"]))}


def evaluated(place: Place) -> set[str]:
    return {row["sha256"] for row in rows(place).values() if row["split"] == "val"}


def gate(place: Place, name: str = "gate_trained") -> dict[str, Any]:
    (stage,) = [s for s in place.plan["stages"] if s["name"] == name]
    return dict(yaml.safe_load(stage["files"]["quality.yaml"]))


def correct(place: Place, part: str) -> None:
    """Take an object out of the labels of an image of a part."""
    name = min(row["file"] for row in rows(place).values() if row["split"] == part)
    label = place.data / "labels" / f"{Path(name).stem}.txt"
    label.write_text("\n".join(label.read_text().splitlines()[1:]) + "\n")


def test_new_data_trains_and_is_told(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert place.bind("r1") == 0
    first = evaluated(place)
    more(place, 10)
    assert place.bind("r2") == 0
    assert evaluated(place) == first
    assert len(rows(place)) == 26
    assert "images since the last data set: 10 added, 0 changed, 0 removed, 16 unchanged" in capsys.readouterr().out
    assert place.summary["changes"] == {"added": 10, "changed": 0, "removed": 0, "unchanged": 16}
    assert len(json.dumps(place.summary)) < 2048


def test_an_addition_to_the_last_data_set(place: Place) -> None:
    assert place.bind("r1") == 0
    for path in [*place.data.glob("images/*"), *place.data.glob("labels/*")]:
        path.unlink()
    more(place, 10)
    text = PIPELINE.replace("format: kitti", "format: kitti\n  mode: append")
    assert place.bind("r2", text=text) == 0
    assert len(rows(place)) == 26
    plan = place.plan
    assert place.bind("r3", text=text) == 0
    assert place.plan["fingerprint"] == plan["fingerprint"]
    assert [s["key"] for s in place.plan["stages"]] == [s["key"] for s in plan["stages"]]


def test_the_gates_hear_of_a_model_that_was_measured_on_another_set(place: Place) -> None:
    assert place.bind("r1") == 0
    version = json.loads((Path(place.plan["snapshot"]) / "dataset.json").read_text())["evaluation"]["version"]
    assert (gate(place)["evaluation"], gate(place)["evaluation_before"]) == (version, None)
    about = {"version": 1, "sha256": "0" * 64, "bytes": 1, "pipeline": "mine", "run": "r1", "key": "k", "config": ""}
    served = Record(model="mine", state="serving", url="http://127.0.0.1:8000", repository="models", **about)
    Ledger(place.workspace / "releases").write(served)
    keys = [s["key"] for s in place.plan["stages"]]
    assert place.bind("r2") == 0
    assert [s["key"] for s in place.plan["stages"]] == keys
    correct(place, "val")
    for run in ("r3", "r4"):
        assert place.bind(run) == 0
        assert gate(place)["evaluation"] != version
        assert gate(place)["evaluation_before"] == version
    correct(place, "train")
    assert place.bind("r5") == 0
    assert gate(place)["evaluation_before"] is None
    assert gate(place, "gate_champion")["evaluation_before"] == version
