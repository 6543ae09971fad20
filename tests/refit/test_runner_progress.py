"""What the runner tells people of a stage while it runs, and at its end (docs/contracts.md, "Published")."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from refit.runner import duration
from tests.refit.runner_helpers import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Bench(tmp_path) as made:
        yield made


EPOCHS = """
    note(status="STARTED", message="Started.")
    note(status="RUNNING", epoch=1, max_epoch=2, loss=0.5, eta="0:01:05.5", kpi={"val_mAP50": 0.25}, message="Epoch 1")
"""


def test_the_end_of_a_stage_is_told(bench: Bench) -> None:
    file = bench.root / "published" / "progress" / "train.json"
    bench.run(bench.request(EPOCHS, progress=str(file)))
    told = json.loads(file.read_text())
    wanted = {"run": "r1", "stage": "train", "state": "succeeded", "epoch": 1, "max_epoch": 2, "loss": 0.5, "eta": 65.5}
    assert {name: told.get(name) for name in wanted} == wanted
    assert told["metrics"] == {"val_mAP50": 0.25}
    assert [p.name for p in file.parent.iterdir()] == ["train.json"]


def test_a_stage_that_cannot_tell_runs_all_the_same(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    done = bench.run(bench.request(EPOCHS, progress=str(tmp_path / "file" / "train.json")))
    assert done.outcome == "succeeded"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("0:01:05.5", 65.5), ("1 day, 2:00:00", 93600), ("12", 12), (7, 7), ("soon", None), (float("nan"), None)],
)
def test_the_time_left_as_toolkits_write_it(value: object, seconds: float | None) -> None:
    assert duration(value, None) == seconds
