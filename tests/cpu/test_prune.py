"""prune: the target is reached, the network still fits together, and what cannot be is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from refit.command import BadSpec
from refit.cpu import checkpoint, prune
from refit.cpu.checkpoint import Model, load_model
from refit.cpu.network import Architecture, Detector, count_parameters
from refit.cpu.specs import NetworkParams, PruneSpec
from refit.cpu.status import StatusWriter
from tests.cpu.conftest import CLASSES, status_lines
from tests.cpu.tiny import NETWORK, tiny_records


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_records(tmp_path_factory.mktemp("records"), train=5, val=1)


def run(model: Path, records: Path, out: Path, **more: Any) -> dict[str, Any]:
    status = StatusWriter(out)
    prune.run(PruneSpec(model=str(model), records=str(records), **more), out, status)
    last = status_lines(status.path)[-1]
    assert last["status"] == "SUCCESS"
    return dict(last["kpi"])


def fresh(path: Path, **network: Any) -> Path:
    torch.manual_seed(0)
    params = NetworkParams(**{**NETWORK, **network})
    model = Model(Detector(Architecture.plan(params, 3)), checkpoint.describe(params, CLASSES))
    checkpoint.save_model(path, model)
    return path


@pytest.mark.parametrize("importance", ["magnitude", "bn_scale", "taylor"])
def test_parameters_reach_the_target(trained: Path, records: Path, tmp_path: Path, importance: str) -> None:
    kpi = run(trained, records, tmp_path, ratio=0.5, round_to=4, importance=importance)
    before, after = load_model(trained).network, load_model(tmp_path / "model.pth")
    assert kpi["parameters_before"] == count_parameters(before)
    assert kpi["parameters"] == count_parameters(after.network)
    assert 0.3 < kpi["ratio"] <= 0.5
    assert kpi["bytes"] == (tmp_path / "model.pth").stat().st_size
    assert all(width % 4 == 0 for width in after.network.architecture.widths.values())
    coverage, bbox = after.network(torch.rand(1, 3, 96, 160))
    assert (coverage.shape[1], bbox.shape[1]) == (3, 12)
    assert after.info == load_model(trained).info


@pytest.mark.parametrize("network", [{"stride": 8}, {"backbone": "resnet18", "stride": 8}, {"channels": 1}])
def test_every_network_can_be_pruned_and_trained_on(tmp_path: Path, records: Path, network: dict[str, Any]) -> None:
    run(fresh(tmp_path / "fresh.pth", **network), records, tmp_path / "out", ratio=0.4, round_to=1)
    model = load_model(tmp_path / "out" / "model.pth")
    model.network.train()
    image = torch.rand(2, model.info.input.channels, 96, 160)
    coverage, bbox = model.network(image)
    (coverage.mean() + bbox.mean()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.network.parameters() if p.grad is not None)


def test_channels(trained: Path, records: Path, tmp_path: Path) -> None:
    run(trained, records, tmp_path, target="channels", ratio=0.5, round_to=1)
    before, after = load_model(trained).network.architecture, load_model(tmp_path / "model.pth").network.architecture
    assert {after.widths[name] / width for name, width in before.widths.items()} == {0.5}


def test_the_strong_channels_stay(tmp_path: Path, records: Path) -> None:
    path = fresh(tmp_path / "fresh.pth")
    model = load_model(path)
    with torch.no_grad():
        model.network.level1[0].conv1.conv.weight[::2] = 1e-6  # type: ignore[index, union-attr]
        model.network.level2[0].conv1.conv.weight[:] *= 1.0  # type: ignore[index, union-attr]
    strong = model.network.level1[0].conv1.conv.weight[1::2].norm()  # type: ignore[index, union-attr]
    checkpoint.save_model(path, model)
    run(path, records, tmp_path / "out", target="channels", ratio=0.5, round_to=1)
    kept = load_model(tmp_path / "out" / "model.pth").network.level1[0].conv1.conv.weight  # type: ignore[index, union-attr]
    assert (kept.flatten(1).norm(dim=1) > 1e-2).all()
    assert kept.norm() < strong + 1e-6  # fewer inputs, too


def test_the_same_seed_gives_the_same_bytes(trained: Path, records: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(trained, records, tmp_path / name, ratio=0.5, importance="taylor", round_to=4)
    assert (tmp_path / "a" / "model.pth").read_bytes() == (tmp_path / "b" / "model.pth").read_bytes()


def test_pruning_nothing_is_refused(trained: Path, records: Path, tmp_path: Path) -> None:
    with pytest.raises(BadSpec, match="nothing was pruned"):
        run(trained, records, tmp_path, target="channels", ratio=0.5, round_to=64)
    assert not (tmp_path / "model.pth").exists()


def test_a_target_that_cannot_be_reached_is_refused(trained: Path, records: Path, tmp_path: Path) -> None:
    with pytest.raises(BadSpec, match=r"ratio 0.01 of the parameters .* cannot be reached with round_to 8: the least"):
        run(trained, records, tmp_path, ratio=0.01)
    assert not (tmp_path / "model.pth").exists()


def test_an_onnx_file_is_not_pruned(records: Path, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"onnx")
    with pytest.raises(BadSpec, match=r"model\.onnx"):
        run(tmp_path / "model.onnx", records, tmp_path)
