"""The network's shapes, and that what it is trained to answer is what the decoder reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from refit.command import BadSpec
from refit.cpu import checkpoint
from refit.cpu.checkpoint import Model
from refit.cpu.network import BBOX_NORM, Architecture, Detector, count_parameters
from refit.cpu.specs import NetworkParams
from refit.cpu.targets import Grid, Labels, generalised_iou, loss
from refit.postprocess import Frame, Postprocess, decoder_for


def build(**more: Any) -> Detector:
    torch.manual_seed(0)
    return Detector(Architecture.plan(NetworkParams(**more), 3))


@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("backbone", ["resnet10", "resnet18"])
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes(stride: int, backbone: str, channels: int) -> None:
    network = build(stride=stride, backbone=backbone, channels=channels, width=0.5)
    coverage, bbox = network(torch.zeros(2, channels, 96, 160))
    assert coverage.shape == (2, 3, 96 // stride, 160 // stride)
    assert bbox.shape == (2, 12, 96 // stride, 160 // stride)
    assert coverage.dtype == bbox.dtype == torch.float32
    assert all(p.is_contiguous() for p in network.parameters())


@pytest.mark.parametrize("channels", [1, 3])
def test_no_convolution_ever_sees_channels_last(channels: int) -> None:
    """torch 2.13 corrupts the heap in the backward pass of the strided 1x1 convolutions otherwise."""
    network = build(width=0.5, channels=channels, stride=8)
    strides: list[tuple[int, ...]] = []
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda _, given, made: strides.extend((given[0].stride(), made.stride())))
    picture = torch.rand(2, 64, 96, channels).permute(0, 3, 1, 2)
    network(picture)
    network(torch.rand(2, channels, 64, 96).contiguous(memory_format=torch.channels_last))
    assert len(strides) == 4 * len(network.architecture.widths) + 8
    assert all(s[-1] == 1 for s in strides)
    assert all(s[1] >= s[2] for s in strides)


def test_reduced_precision_leaves_the_heads_in_float32() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        coverage, bbox = build(width=0.5)(torch.zeros(1, 3, 64, 64))
    assert coverage.dtype == bbox.dtype == torch.float32


def test_width_and_depth_change_the_size() -> None:
    sizes = [count_parameters(build(**p)) for p in ({"width": 0.5}, {}, {"backbone": "resnet18"}, {"width": 2.0})]
    assert sizes == sorted(sizes)
    assert sizes[1] == 517_711


def test_an_untrained_network_sees_hardly_anything() -> None:
    coverage, _ = build().eval()(torch.rand(1, 3, 96, 160))
    assert coverage.sigmoid().max() < 0.1


def test_architecture_goes_through_json() -> None:
    architecture = build(stride=8).current()
    assert Architecture.from_json(architecture.to_json()) == architecture
    assert architecture == Architecture.plan(NetworkParams(stride=8), 3)


def test_a_missing_width_is_named() -> None:
    whole = Architecture.plan(NetworkParams(), 3)
    with pytest.raises(ValueError, match=r"no width for 'level3\.0\.conv1\.conv'"):
        Detector(replace(whole, widths={n: w for n, w in whole.widths.items() if n != "level3.0.conv1.conv"}))


LABELS = Labels(
    np.array([[10, 10, 60, 70], [80, 20, 150, 90], [64, 4, 76, 16]], np.float32),
    np.array([0, 2, 2]),
    np.zeros(3, bool),
)


@pytest.mark.parametrize("stride", [8, 16])
def test_the_decoder_reads_what_the_network_is_taught(stride: int) -> None:
    """Targets, turned into outputs, decode to the labels: training and post-processing share one convention."""
    grid = Grid(160, 96, stride)
    targets = grid.targets([LABELS, LABELS], 3)
    centres = torch.stack([grid.x, grid.y], dim=-1)
    distances = torch.cat([centres - targets.boxes[..., :2], targets.boxes[..., 2:] - centres], dim=-1) / BBOX_NORM
    shape = (2, 12, grid.rows, grid.columns)
    params = NetworkParams(input_width=160, input_height=96, stride=stride)
    info = replace(checkpoint.describe(params, ("a", "b", "c")), postprocess=Postprocess(0.5))
    outputs = {
        info.outputs["coverage"]: targets.coverage.reshape(2, 3, grid.rows, grid.columns).numpy(),
        info.outputs["bbox"]: distances.permute(0, 1, 3, 2).reshape(shape).numpy(),
    }
    for found in decoder_for(info)(outputs, [Frame(160, 96, 1.0, 1.0)] * 2):
        order = np.lexsort((found.boxes[:, 0], found.classes))
        assert found.classes[order].tolist() == [0, 2, 2]
        assert found.boxes[order] == pytest.approx(LABELS.boxes[[0, 2, 1]], abs=1e-3)
        assert found.scores.tolist() == pytest.approx([1.0] * 3)
    coverage = torch.logit(targets.coverage, eps=1e-6).reshape(2, 3, grid.rows, grid.columns)
    perfect = loss(grid, coverage, distances.permute(0, 1, 3, 2).reshape(shape), targets)
    assert sum(part.item() for part in perfect) < 1e-3


def test_ignored_objects_are_neither_taught_nor_punished() -> None:
    grid = Grid(160, 96, 16)
    seen = grid.targets([LABELS], 3)
    ignored = grid.targets([replace(LABELS, ignore=np.array([False, True, False]))], 3)
    assert torch.equal(ignored.coverage[0, 0], seen.coverage[0, 0])
    assert ignored.coverage[0, 2].sum() < seen.coverage[0, 2].sum()
    silent = ignored.weight[0, 2] == 0
    assert silent.sum() == 5 * 4  # the cells whose centre lies in 80..150 x 20..90, none of them the small object's
    assert (ignored.weight[0, 0] == 1).all()
    wrong = torch.full((1, 3, grid.rows, grid.columns), -20.0)
    wrong[0, 2][silent.reshape(grid.rows, grid.columns)] = 20.0
    right = torch.full_like(wrong, -20.0)
    distances = torch.ones(1, 12, grid.rows, grid.columns)
    assert loss(grid, wrong, distances, ignored)[0] == loss(grid, right, distances, ignored)[0]


def test_an_image_without_objects_has_a_loss() -> None:
    grid = Grid(64, 64, 16)
    empty = Labels(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool))
    targets = grid.targets([empty], 2)
    coverage = torch.zeros(1, 2, 4, 4, requires_grad=True)
    distances = torch.ones(1, 8, 4, 4, requires_grad=True)
    coverage_loss, box_loss = loss(grid, coverage, distances, targets)
    (coverage_loss + box_loss).backward()
    assert coverage_loss > 0
    assert box_loss == 0
    assert coverage.grad is not None
    assert torch.isfinite(coverage.grad).all()


def test_generalised_iou() -> None:
    a = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10], [10, 10, 0, 0]])
    b = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [20, 0, 30, 10], [0, 0, 10, 10]])
    assert generalised_iou(a, b).tolist() == pytest.approx([1, 1 / 3, -1 / 3, 0], abs=1e-4)


def test_model_file(tmp_path: Path) -> None:
    params = NetworkParams(width=0.5)
    model = Model(build(width=0.5).eval(), checkpoint.describe(params, ("a", "b", "c")))
    first = checkpoint.save_model(tmp_path / "model.pth", model)
    checkpoint.save_model(tmp_path / "other-name.pth", model)
    assert (tmp_path / "model.pth").read_bytes() == (tmp_path / "other-name.pth").read_bytes()
    assert first == (tmp_path / "model.pth").stat().st_size
    again = checkpoint.load_model(tmp_path / "model.pth")
    assert again.info == model.info
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(again.network(image)[0], model.network(image)[0])
    assert isinstance(torch.load(tmp_path / "model.pth", weights_only=True), dict)


def test_files_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(BadSpec, match="no such file"):
        checkpoint.load_model(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(BadSpec, match=r"text\.pth: not a file of the cpu toolkit, or damaged"):
        checkpoint.load_model(tmp_path / "text.pth")
    torch.save({"weights": 1}, tmp_path / "other.pth")
    with pytest.raises(BadSpec, match="not a model of the cpu toolkit"):
        checkpoint.load_model(tmp_path / "other.pth")
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(BadSpec, match="holds a list"):
        checkpoint.load_model(tmp_path / "list.pth")


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("this must never run",))


def test_a_model_file_runs_no_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"format": checkpoint.FORMAT, "weights": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(BadSpec):
        checkpoint.load_model(tmp_path / "evil.pth")
    assert "never run" not in capsys.readouterr().out


def test_a_damaged_model_file_names_the_reason(tmp_path: Path) -> None:
    params = NetworkParams(width=0.5)
    model = Model(build(width=0.5), checkpoint.describe(params, ("a", "b", "c")))
    checkpoint.save_model(tmp_path / "model.pth", model)
    content = checkpoint.load(tmp_path / "model.pth")
    assert content is not None
    content["architecture"]["widths"]["stem.conv"] = 16
    checkpoint.save(tmp_path / "model.pth", content)
    with pytest.raises(BadSpec, match="do not fit together"):
        checkpoint.load_model(tmp_path / "model.pth")
    (tmp_path / "model.pth").write_bytes((tmp_path / "model.pth").read_bytes()[:5000])
    with pytest.raises(BadSpec, match="damaged"):
        checkpoint.load_model(tmp_path / "model.pth")
