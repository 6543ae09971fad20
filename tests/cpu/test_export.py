"""export: ONNX that answers as the checkpoint does, with the names of the contract."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from refit.command import BadSpec
from refit.cpu import export
from refit.cpu.checkpoint import load_model
from refit.cpu.models import OnnxModel
from refit.cpu.specs import ExportSpec
from refit.cpu.status import StatusWriter
from refit.postprocess import ModelInfo, Postprocess
from tests.cpu.conftest import status_lines
from tests.cpu.test_prune import fresh
from tests.cpu.tiny import tiny_records


def run(model: Path, out: Path, **more: Any) -> dict[str, Any]:
    status = StatusWriter(out)
    export.run(ExportSpec(model=str(model), **more), out, status)
    last = status_lines(status.path)[-1]
    assert last["status"] == "SUCCESS"
    return dict(last["kpi"])


def test_names_shapes_and_folded_batch_norm(trained: Path, tmp_path: Path) -> None:
    kpi = run(trained, tmp_path)
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    assert [o.version for o in model.opset_import if o.domain == ""] == [17]
    session = ort.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    assert [(i.name, i.shape) for i in session.get_inputs()] == [("input_1", ["batch", 3, 96, 160])]
    assert [(o.name, o.shape[1:]) for o in session.get_outputs()] == [
        ("output_cov/Sigmoid", [3, 6, 10]),
        ("output_bbox/BiasAdd", [12, 6, 10]),
    ]
    coverage, bbox = session.run(None, {"input_1": np.zeros((5, 3, 96, 160), np.float32)})
    assert (len(coverage), len(bbox)) == (5, 5)
    assert kpi["bytes"] == (tmp_path / "model.onnx").stat().st_size
    assert kpi["parameters"] == sum(p.numel() for p in load_model(trained).network.parameters())


def test_the_description(trained: Path, tmp_path: Path) -> None:
    run(trained, tmp_path, score_threshold=0.4, evaluate={"nms_iou": 0.6, "max_detections": 50})
    info = ModelInfo.read(tmp_path / "model.json")
    assert info.postprocess == Postprocess(0.4, 0.6, 50)
    assert info.input == load_model(trained).info.input
    assert (info.decoder, info.stride, info.bbox_norm, info.offset) == ("detectnet_v2", 16, 35.0, 0.5)


def test_compared_on_real_images(trained: Path, tmp_path: Path) -> None:
    records = tiny_records(tmp_path / "records", train=1, val=3)
    kpi = run(trained, tmp_path / "out", records=str(records))
    comparison = json.loads((tmp_path / "out" / "export.json").read_text())
    assert (comparison["images"], comparison["kind"]) == (3, "real")
    assert 0 < kpi["max_difference"] < 1e-3
    with np.load(tmp_path / "out" / "reference.npz") as reference:
        answers = OnnxModel(tmp_path / "out" / "model.onnx", 1)(reference["input:input_1"])
        assert {f"output:{name}" for name in answers} == set(reference.files) - {"input:input_1"}
        assert len(reference["input:input_1"]) == 3
        for name, array in answers.items():
            assert np.allclose(reference[f"output:{name}"], array, atol=1e-4)


def test_a_difference_is_seen(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = export.to_onnx

    def wrong(model: Any, opset: int, *, dynamic_batch: bool) -> bytes:
        """A fault in the exporter: one bias is lost."""
        exported = onnx.load_from_string(whole(model, opset, dynamic_batch=dynamic_batch))
        for tensor in exported.graph.initializer:
            if tensor.name.endswith("coverage.bias"):
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros(3, np.float32), tensor.name))
        return bytes(exported.SerializeToString())

    monkeypatch.setattr(export, "to_onnx", wrong)
    with pytest.raises(
        export.ExportDiffers, match=r"the ONNX model's coverage differs by 0\.\d+ from the checkpoint's"
    ):
        run(trained, tmp_path)
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize("opset", [13, 17, 20])
def test_opsets_and_a_fixed_batch(trained: Path, tmp_path: Path, opset: int) -> None:
    run(trained, tmp_path, opset=opset, dynamic_batch=False)
    session = ort.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [1, 3, 96, 160]
    both = OnnxModel(tmp_path / "model.onnx", 1)(np.random.default_rng(0).random((2, 3, 96, 160)).astype(np.float32))
    assert {name: array.shape for name, array in both.items()} == {
        "output_cov/Sigmoid": (2, 3, 6, 10),
        "output_bbox/BiasAdd": (2, 12, 6, 10),
    }


def test_a_description_of_another_model_is_refused(trained: Path, tmp_path: Path) -> None:
    run(trained, tmp_path)
    text = (tmp_path / "model.json").read_text()
    (tmp_path / "model.json").write_text(text.replace('"width": 160', '"width": 320'))
    with pytest.raises(BadSpec, match=r"its inputs are .*160.*; model\.json says .*320"):
        OnnxModel(tmp_path / "model.onnx", 1)


@pytest.mark.parametrize("network", [{"stride": 8}, {"backbone": "resnet18", "channels": 1}])
def test_other_networks(tmp_path: Path, network: dict[str, Any]) -> None:
    run(fresh(tmp_path / "fresh.pth", **network), tmp_path / "out")
    assert OnnxModel(tmp_path / "out" / "model.onnx", 1).info.stride == network.get("stride", 16)


def test_again_gives_the_same_bytes_and_replaces(trained: Path, tmp_path: Path) -> None:
    run(trained, tmp_path)
    first = (tmp_path / "model.onnx").read_bytes()
    run(trained, tmp_path)
    assert (tmp_path / "model.onnx").read_bytes() == first
    assert not list(tmp_path.glob(".*"))


def test_no_model(tmp_path: Path) -> None:
    with pytest.raises(BadSpec, match="no such file"):
        run(tmp_path / "none.pth", tmp_path)
