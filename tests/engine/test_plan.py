"""The head of a plan; its form is that of NVIDIA's trtexec (refit/engine/plan.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from refit.engine.plan import PlanError, tensorrt_version
from tests.engine import made


def test_version(tmp_path: Path) -> None:
    assert tensorrt_version(made.plan(tmp_path / "a.plan")) == "10.8.0.43"
    assert tensorrt_version(made.plan(tmp_path / "b.plan", (8, 6, 3, 1))) == "8.6.3.1"


def test_files_that_are_no_plans(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x08\x09onnx" * 10)
    with pytest.raises(PlanError, match=r"model.onnx: is no TensorRT plan"):
        tensorrt_version(tmp_path / "model.onnx")
    (tmp_path / "cut.plan").write_bytes(b"ftrt\0\0\0\0")
    with pytest.raises(PlanError, match=r"cut short \(8 bytes\)"):
        tensorrt_version(tmp_path / "cut.plan")
    with pytest.raises(PlanError, match="form 3"):
        tensorrt_version(made.plan(tmp_path / "new.plan", form=3))
    with pytest.raises(PlanError, match="cannot be read"):
        tensorrt_version(tmp_path / "nothing.plan")
