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


def test_what_a_snapshot_that_was_there_does_not_tell_is_told(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    text = PIPELINE.replace("split:", "severity: {image_truncated: warning}\n  max_bad_labels: 0.5\n  split:")
    assert place.bind("r1", text=text) == 0
    first = place.plan["fingerprint"]
    assert place.summary["images"] == 16
    more(place, 5)
    for image in place.data.glob("images/more-*"):
        image.write_bytes(image.read_bytes()[:200])
    capsys.readouterr()
    assert place.bind("r2", text=text) == 0
    assert place.plan["fingerprint"] == first
    rows = [json.loads(line) for line in (place.out / "issues.jsonl").read_text().splitlines()]
    lost = [row for row in rows if row["code"] == "image_truncated"]
    assert sorted(row["file"] for row in lost) == sorted(
        f"images/{image.name}" for image in place.data.glob("images/more-*")
    )
    told = capsys.readouterr().out
    assert f"warnings about the data: 5, all in {place.out / 'issues.jsonl'}" in told
    assert f"warning: {lost[0]['file']}: {lost[0]['message']}" in told
    report = json.loads((place.out / "report.json").read_text())
    assert report["counts"]["image_truncated"] == {"severity": "warning", "n": 5}


def test_a_return_to_an_earlier_evaluation_set_is_told(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert place.bind("r1") == 0
    first, fingerprint = gate(place)["evaluation"], place.plan["fingerprint"]
    before = {path: path.read_text() for path in place.data.glob("labels/*")}
    correct(place, "val")
    assert place.bind("r2") == 0
    second = gate(place)["evaluation"]
    for path, text in before.items():
        path.write_text(text)
    capsys.readouterr()
    assert place.bind("r3") == 0
    assert place.plan["fingerprint"] == fingerprint
    assert f"version {second[:12]} -> {first[:12]}" in capsys.readouterr().out
    assert (gate(place)["evaluation"], gate(place)["evaluation_before"]) == (first, second)
    keys = [s["key"] for s in place.plan["stages"]]
    assert place.bind("r4") == 0
    assert [s["key"] for s in place.plan["stages"]] == keys
    place.data.rename(place.data.with_name("gone"))
    assert place.bind("r5") == 0
    assert [s["key"] for s in place.plan["stages"]] == keys


def _of_an_older_version(place: Place) -> None:
    """Make the snapshot taken last one of schema 1, which had no statistics."""
    snapshot = Path(place.plan["snapshot"])
    about = json.loads((snapshot / "dataset.json").read_text())
    (snapshot / "dataset.json").write_text(json.dumps({**about, "schema": 1}))
    (snapshot / "statistics.json").unlink()


def test_an_older_version_s_data_set_cannot_stand_for_an_empty_inbox(place: Place) -> None:
    assert place.bind("r1") == 0
    _of_an_older_version(place)
    place.data.rename(place.data.with_name("gone"))
    assert place.bind("r2") == 3
    assert "schema 1, this version reads 2 and 3; put the data there again" in place.error


def test_an_older_version_s_data_set_cannot_be_added_to(place: Place) -> None:
    assert place.bind("r1") == 0
    _of_an_older_version(place)
    more(place, 2)
    assert place.bind("r2", text=PIPELINE.replace("format: kitti", "format: kitti\n  mode: append")) == 3
    assert "schema 1, this version reads 2 and 3; put the whole data set into the source and take it" in place.error
    assert place.bind("r3") == 0


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


def test_what_the_stages_cannot_work_with_was_not_evaluated(place: Place) -> None:
    ledger = place.workspace / "evaluation" / "ledger.json"
    assert place.bind("r1", PIPELINE.replace("batch_size: 4", "batch_size: 100")) == 2
    assert "stages.train.batch_size: 100 is more than the 1" in place.error
    assert not ledger.exists()
    taken = json.loads((place.workspace / "datasets" / "arrival.json").read_text())
    assert (taken["outcome"], taken["run"]) == ("taken", "r1")  # no watcher starts a run again for the same data
    assert place.bind("r2", PIPELINE.replace("val: 0.3", "val: 0.5")) == 0
    history = json.loads(ledger.read_text())["history"]
    assert [entry["images"] for entry in history] == [7]


def test_the_report_tells_where_a_known_data_set_came_from_this_time(place: Place) -> None:
    assert place.bind("r1") == 0
    again = place.data.with_name("again")
    place.data.rename(again)
    assert place.bind("r2", PIPELINE.replace("inbox/mine", "inbox/again")) == 0
    about = json.loads((place.out / "report.json").read_text())["about"]
    made = json.loads((Path(place.plan["snapshot"]) / "dataset.json").read_text())["provenance"]
    assert (made["source"], about["Source"]) == (str(place.data), str(again))
    assert about["First made at"] == made["taken_at"] <= about["Taken at"]


def test_a_folder_named_by_hand_needs_no_manifest_of_the_inbox(place: Place) -> None:
    text = PIPELINE.replace("dataset:", "dataset:\n  arrival: {manifest: files.json}")
    assert place.bind("r1", text) == 3
    assert "files.json" in place.error
    assert place.bind("r2", text, data=str(place.data)) == 0
    (place.data / "files.json").write_text('{"files": [{"path": "images/gone.jpg"}]}')
    assert place.bind("r3", text, data=str(place.data)) == 3  # one that is there has to hold
    assert "images/gone.jpg" in place.error
