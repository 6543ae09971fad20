"""The search of prune: the smallest size that loses little, every try told, none made twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from refit.command import BadSpec, Rejected
from refit.cpu import prune, search, train
from refit.cpu.checkpoint import Model, load_model
from refit.cpu.network import count_parameters
from refit.cpu.specs import PruneSpec
from refit.cpu.status import StatusWriter
from tests.cpu.tiny import NETWORK, tiny_records


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_records(tmp_path_factory.mktemp("records"), train=4, val=2)


def run(
    model: Path, records: Path, out: Path, ratio: float = 0.2, max_kept: float = 0.98, **wish: Any
) -> dict[str, Any]:
    """search.json. The ratio is that of the channels: one pruning a try, where that of the parameters takes eight."""
    values = {"model": str(model), "records": str(records), "network": NETWORK, "training": {"batch_size": 4}}
    how = {"target": "channels", "ratio": ratio, "round_to": 1, "max_kept": max_kept}
    prune.run(PruneSpec.model_validate({**values, **how, "search": {"epochs": 1, **wish}}), out, StatusWriter(out))
    return dict(json.loads((out / "search.json").read_text()))


@pytest.fixture
def by_size(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model keeps its mAP where it keeps 30 % of the parameters."""
    whole = count_parameters(load_model(trained).network)

    def value(spec: PruneSpec, model: Model, dataset: Any) -> float:
        return 0.9 if count_parameters(model.network) > 0.3 * whole else 0.5

    monkeypatch.setattr(search, "_evaluate", value)


def test_the_wanted_size_is_enough_where_it_is_good(trained: Path, records: Path, tmp_path: Path) -> None:
    said = run(trained, records, tmp_path, max_drop=1)
    (only,) = said["tries"]
    assert said["chosen"] == said["wanted"] == only["ratio"] == 0.2
    made = load_model(tmp_path / "model.pth").network
    assert count_parameters(made) == only["parameters"] < 0.1 * said["before"]["parameters"]
    assert only["drop"] == pytest.approx(said["before"]["value"] - only["value"], abs=1e-5)  # a real evaluation
    assert not (tmp_path / "search").exists()


@pytest.mark.usefixtures("by_size")
def test_more_is_kept_until_little_is_lost(
    trained: Path, records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = run(trained, records, tmp_path, tries=4, max_drop=0.1)
    assert [t["ratio"] for t in said["tries"]] == [0.2, 0.6, 0.4, 0.5]
    assert [t["passed"] for t in said["tries"]] == [False, True, False, False]
    assert said["chosen"] == 0.6
    assert count_parameters(load_model(tmp_path / "model.pth").network) == said["tries"][1]["parameters"]
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 5
    assert table[2].endswith("chosen")
    assert json.loads((tmp_path / "summary.json").read_text()) == {"wanted": 0.2, "chosen": 0.6, "tries": 4}


@pytest.mark.usefixtures("by_size")
def test_a_killed_search_goes_on(trained: Path, records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained_in: list[str] = []
    real = train.run

    def dying(spec: Any, out: Path, status: StatusWriter) -> None:
        trained_in.append(out.name)
        if len(trained_in) == 2:
            raise KeyboardInterrupt
        real(spec, out, status)

    monkeypatch.setattr(train, "run", dying)
    with pytest.raises(KeyboardInterrupt):
        run(trained, records, tmp_path, tries=2, max_drop=0.1)
    said = run(trained, records, tmp_path, tries=2, max_drop=0.1)
    assert trained_in == ["1", "2", "2"]
    assert [t["ratio"] for t in said["tries"]] == [0.2, 0.6]


@pytest.mark.usefixtures("by_size")
def test_no_size_is_good(trained: Path, records: Path, tmp_path: Path) -> None:
    with pytest.raises(Rejected, match=r"none of 1 sizes keeps mAP50 within 0\.1 of 0\.9000 after 1 epochs: ratio 0"):
        run(trained, records, tmp_path, tries=1, max_drop=0.1)
    assert json.loads((tmp_path / "search.json").read_text())["chosen"] is None
    assert not (tmp_path / "model.pth").exists()


def test_almost_nothing_is_nothing(trained: Path, records: Path, tmp_path: Path) -> None:
    with pytest.raises(BadSpec, match=r"keeps [\d,]+ of [\d,]+ parameters .* more than max_kept 90%\): nothing was"):
        run(trained, records, tmp_path, ratio=0.995, max_kept=0.9)
    assert not (tmp_path / "model.pth").exists()
