"""A dry run: the plan and what would be reused, and nothing else than before."""

from __future__ import annotations

import json

import pytest

from refit.publish import stage
from tests.refit.bind_helpers import Place


def test_a_dry_run_plans_and_takes_nothing(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert place.bind("look", conf={"dry_run": True}) == 0, place.error
    assert "dry run, no stage is started" in capsys.readouterr().out
    names = [s["name"] for s in place.plan["stages"]]
    assert place.summary["skip"] == names  # so Airflow starts none of them
    assert place.summary["dry_run"] is True
    assert not (place.workspace / "datasets" / "arrival.json").exists()  # the same data still is a new arrival
    assert not (place.workspace / "evaluation" / "ledger.json").exists()
    keys = {s["name"]: s["key"] for s in place.plan["stages"]}
    assert place.bind("r1") == 0, place.error
    assert {s["name"]: s["key"] for s in place.plan["stages"]} == keys  # it told what a run does
    place.finish("dataset_convert")

    assert place.bind("again", conf={"dry_run": True, "train_epochs": 3}) == 0, place.error
    stage.refresh(place.workspace, "again")
    folder = place.workspace.parent / "published" / "mine"
    report = json.loads((folder / "runs" / "again" / "report.json").read_text())
    states = {s["name"]: s["state"] for s in report["stages"]}
    assert report["state"] == "dry_run"
    assert (states["dataset_convert"], states["train"]) == ("reused", "waiting")
    assert json.loads((folder / "index.json").read_text())["last"]["run"] == "r1"


def test_a_dry_run_of_bad_data_leaves_it_where_it_is(place: Place) -> None:
    for label in (place.data / "labels").glob("*"):
        label.write_text("")
    assert place.bind("look", conf={"dry_run": True}) == 3
    assert "zero objects" in place.error
    assert not (place.workspace / "datasets" / "arrival.json").exists()
