"""engine.json for an engine that TAO's gen_trt_engine built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from refit.command import BadData, BadSpec, StageError
from refit.engine import cache, describe
from refit.engine.record import CalibrationRecord, EngineRecord
from refit.engine.specs import DescribeSpec
from refit.files import sha256
from refit.status import StatusWriter
from tests.engine import made
from tests.triton.models import make_onnx

DEPLOY = "nvcr.io/nvidia/tao/tao-toolkit:6.0.0-deploy"


def spec(folder: Path, **changes: Any) -> DescribeSpec:
    (folder / "model.json").write_text(made.info().text())
    (folder / "gpu.csv").write_text("NVIDIA T4, 7.5\n")
    base: dict[str, Any] = {
        "plan": made.plan(folder / "tao" / "model.engine"),
        "model": folder / "model.json",
        "onnx": make_onnx(folder / "model.onnx"),
        "precision": "fp16",
        "batch": {"min": 1, "opt": 4, "max": 16},
        "gpu": {"csv": folder / "gpu.csv"},
        "tensorrt": "10.8.0",
        "builder": DEPLOY,
    }
    return DescribeSpec.model_validate({**base, **changes})


def run(folder: Path, **changes: Any) -> EngineRecord:
    out = folder / "out"
    out.mkdir(exist_ok=True)
    describe.run(spec(folder, **changes), out, StatusWriter(out))
    return EngineRecord.read(out / "engine.json")


def test_what_is_measured(tmp_path: Path) -> None:
    record = run(tmp_path)
    assert (record.tensorrt, record.gpu.name, record.gpu.compute_capability) == ("10.8.0.43", "NVIDIA T4", "7.5")
    assert record.gpu.source == "nvidia-smi"
    assert record.check_file(tmp_path / "out").read_bytes() == (tmp_path / "tao" / "model.engine").read_bytes()
    assert [(t.name, t.dims) for t in record.inputs] == [("input_1", (-1, 3, 32, 32))]
    assert record.outputs[0].dims == (-1, 2, 2, 2)
    assert record.onnx_sha256 == sha256(tmp_path / "model.onnx")


def test_a_calibration_by_tao_is_never_taken_for_refits_own(tmp_path: Path) -> None:
    (tmp_path / "cal.tensorrt").write_bytes(b"TRT-ranges")
    images = made.pictures(tmp_path / "images", 4)
    given = {"images": images, "batches": 2, "batch_size": 2, "cache": tmp_path / "cal.tensorrt"}
    record = run(tmp_path, precision="int8", quantization="calibrated", calibration=given)
    assert record.calibration is not None
    facts = record.calibration.facts
    assert cache.usable(tmp_path / "out" / "cal.bin", facts) == CalibrationRecord.read(tmp_path / "out" / "cal.json")
    with pytest.raises(BadData, match="the calibration method differs"):
        cache.usable(tmp_path / "out" / "cal.bin", facts.model_copy(update={"method": "refit/entropy_2"}))
    (tmp_path / "cal.tensorrt").unlink()
    with pytest.raises(BadData, match="wrote no calibration cache, so nothing was calibrated"):
        run(tmp_path, precision="int8", quantization="calibrated", calibration=given)


def test_an_encrypted_model_needs_its_tensors_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="inputs and outputs are needed where there is no onnx"):
        spec(tmp_path, onnx=None)
    tensors = [{"name": "Input", "datatype": "FP32", "dims": [-1, 3, 16, 32]}]
    record = run(tmp_path, onnx=None, inputs=tensors, outputs=tensors)
    assert (record.onnx_sha256, record.inputs[0].name) == (None, "Input")


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({"tensorrt": "10.13.3"}, BadData, "was built with TensorRT 10.8.0.43, and .*deploy is said to have 10.13.3"),
        ({"tensorrt": "10.1"}, BadData, "is said to have 10.1"),
        ({"batch": None}, BadSpec, "say the profile that it was built with"),
        ({"plan": "model.onnx"}, BadData, "is no TensorRT plan"),
    ],
)
def test_facts_that_contradict(tmp_path: Path, changes: dict[str, Any], kind: type[StageError], said: str) -> None:
    if "plan" in changes:
        changes = {"plan": make_onnx(tmp_path / "m" / "model.onnx")}
    with pytest.raises(kind, match=said):
        run(tmp_path, **changes)


def test_the_profile_and_the_node_disagree(tmp_path: Path) -> None:
    gpu = {"csv": tmp_path / "gpu.csv", "compute_capability": "8.0"}
    with pytest.raises(BadData, match=r"was built on NVIDIA T4 \(7.5\), and the cluster profile says 8.0"):
        run(tmp_path, gpu=gpu)
    assert run(tmp_path, gpu={"name": "A100", "compute_capability": "8.0"}).gpu.source == "declared"
    with pytest.raises(ValueError, match="the plan itself does not say which GPU"):
        spec(tmp_path, gpu={"name": "A100"})
