"""start_from of the cpu toolkit: a file's weights by name, what was left, and files that have too little."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from refit.command import BadSpec
from refit.cpu import checkpoint, train
from refit.cpu.begin import begin
from refit.cpu.checkpoint import Model
from refit.cpu.export import to_onnx
from refit.cpu.network import Architecture, Detector
from refit.cpu.specs import NetworkParams
from refit.cpu.status import StatusWriter
from refit.start.foreign import Refused, examine
from tests.cpu.conftest import CLASSES, status_lines
from tests.cpu.tiny import NETWORK, tiny_records, train_spec


def detector(seed: int, classes: int = 3, **network: Any) -> Detector:
    """A detector whose weights and running statistics are all of its own."""
    torch.manual_seed(seed)
    made = Detector(Architecture.plan(NetworkParams(**{**NETWORK, **network}), classes))
    with torch.no_grad():
        for name, tensor in made.state_dict().items():
            if name.endswith("running_var") or "norm.weight" in name:
                tensor.uniform_(0.5, 2.0)
            elif "norm" in name and tensor.is_floating_point():
                tensor.normal_()
    return made.eval()


def exported(network: Detector, path: Path, **more: Any) -> str:
    params = NetworkParams(**{**NETWORK, **more})
    path.write_bytes(to_onnx(Model(network, checkpoint.describe(params, CLASSES)), 17, dynamic_batch=True))
    return str(path)


def answers(network: Detector) -> list[torch.Tensor]:
    with torch.inference_mode():
        return list(network.eval()(torch.rand(2, 3, 96, 160, generator=torch.manual_seed(0))))


@pytest.mark.parametrize("shape", [{}, {"backbone": "resnet18", "stride": 8}])
def test_an_exported_model_answers_the_same_when_its_weights_are_taken(tmp_path: Path, shape: dict[str, Any]) -> None:
    given, mine = detector(1, **shape), detector(2, **shape)
    taken = begin(mine, exported(given, tmp_path / "m.onnx", **shape))
    assert (taken.share, dict(taken.left)) == (1.0, {})
    for wanted, found in zip(answers(given), answers(mine), strict=True):
        assert torch.allclose(wanted, found, atol=1e-4)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3},
        lambda state: {"model": {f"model.{k}": v for k, v in state.items()}},
    ],
    ids=["plain", "data parallel", "in a model"],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_weights_of_ones_own_by_name(tmp_path: Path, wrap: Any, legacy: bool) -> None:
    given, mine = detector(1), detector(2)
    path = tmp_path / "m.pth"
    torch.save(wrap(given.state_dict()), path, _use_new_zipfile_serialization=not legacy)
    examine(path, path.name)
    assert begin(mine, str(path)).share == 1.0
    assert all(torch.equal(a, b) for a, b in zip(given.state_dict().values(), mine.state_dict().values(), strict=True))


def test_another_number_of_classes_keeps_its_own_heads(tmp_path: Path) -> None:
    given, mine = detector(1, classes=4), detector(2)
    head = mine.coverage.weight.detach().clone()
    torch.save({**given.state_dict(), "old.anchors": torch.zeros(3)}, tmp_path / "m.pth")
    taken = begin(mine, str(tmp_path / "m.pth"))
    assert set(taken.left) == {"coverage.weight", "coverage.bias", "bbox.weight", "bbox.bias"}
    assert taken.left["coverage.weight"] == "4x32x1x1 in the file, 3x32x1x1 here"
    assert "old.anchors" in taken.unused
    assert torch.equal(mine.coverage.weight, head)
    assert torch.equal(mine.stem.conv.weight, given.stem.conv.weight)
    assert "left as they were: coverage.weight (4x32x1x1 in the file" in str(taken)


def test_a_file_with_too_little_of_the_network(tmp_path: Path) -> None:
    torch.save(detector(1, width=1.0).state_dict(), tmp_path / "wide.pth")
    mine = detector(2)
    before = {k: v.clone() for k, v in mine.state_dict().items()}
    with pytest.raises(BadSpec, match=r"only 0\.0% of .*: stem\.conv\.weight \(16x3x3x3 in the file, 8x3x3x3"):
        begin(mine, str(tmp_path / "wide.pth"))
    assert all(torch.equal(before[k], v) for k, v in mine.state_dict().items())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, not a model"),
        ({"epoch": 3, "lr": 0.1}, r"holds no tensors by name \(but epoch, lr\)"),
    ],
)
def test_a_file_without_weights(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "m.pth")
    with pytest.raises(BadSpec, match=message):
        begin(detector(2), str(tmp_path / "m.pth"))


def test_weights_that_are_no_numbers(tmp_path: Path) -> None:
    state = detector(1).state_dict()
    state["stem.conv.weight"][0] = torch.nan
    torch.save(state, tmp_path / "m.pth")
    with pytest.raises(BadSpec, match=r"stem\.conv\.weight hold values that are no finite numbers"):
        begin(detector(2), str(tmp_path / "m.pth"))


def test_an_int8_model_and_one_in_two_files(tmp_path: Path) -> None:
    graph = onnx.load(exported(detector(1), tmp_path / "m.onnx"))
    node = onnx.helper.make_node("DequantizeLinear", ["x", "scale"], ["y"])
    graph.graph.node.append(node)
    onnx.save(graph, tmp_path / "int8.onnx")
    with pytest.raises(BadSpec, match="rounded to INT8; begin with the float32 model"):
        begin(detector(2), str(tmp_path / "int8.onnx"))
    graph.graph.node.remove(node)
    onnx.save(graph, tmp_path / "two.onnx", save_as_external_data=True, size_threshold=10_000)
    with pytest.raises(BadSpec, match=r"onnx::Conv_\d+ lies in a file beside it"):
        begin(detector(2), str(tmp_path / "two.onnx"))


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("run",)


def test_a_pickle_is_neither_examined_as_good_nor_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.pth"
    torch.save({**detector(1).state_dict(), "extra": Harmful()}, path)
    with pytest.raises(Refused, match=r"data\.pkl: names builtins\.print|names __builtin__\.print"):
        examine(path, path.name)
    with pytest.raises(BadSpec, match="not a file of the cpu toolkit, or damaged"):
        begin(detector(2), str(path))
    assert capsys.readouterr().out == ""


def test_a_training_begins_with_them_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = detector(1, classes=4)
    torch.save(given.state_dict(), tmp_path / "m.pth")
    spec = train_spec(
        tiny_records(tmp_path / "records", 4, 2), start_from=str(tmp_path / "m.pth"), epochs=1, learning_rate=1e-9
    )
    out = tmp_path / "out"
    train.run(spec, out, StatusWriter(out))
    trained = checkpoint.load_model(out / "model.pth").network
    assert torch.allclose(trained.stem.conv.weight, given.stem.conv.weight, atol=1e-6)
    told = json.loads((out / "start.json").read_text())
    assert sorted(told["left"]) == ["bbox.bias", "bbox.weight", "coverage.bias", "coverage.weight"]
    assert "tensors, 9" in capsys.readouterr().out
    assert any("Begins with" in line["message"] for line in status_lines(out / "status.json"))
