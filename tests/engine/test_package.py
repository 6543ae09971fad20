"""The folder that a release and a device take."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from refit.command import BadData, BadSpec, StageError
from refit.engine import package
from refit.engine.record import CalibrationRecord, EngineRecord
from refit.engine.specs import PackageSpec
from refit.files import sha256
from refit.status import StatusWriter
from refit.triton.artefact import read_artefact
from refit.triton.config import count_weights
from tests.triton.models import make_model
from tests.triton.test_plans import make_plan


def engine(folder: Path, capability: str, onnx: Path | None = None, **changes: Any) -> Path:
    """A folder as build and describe leave it."""
    make_plan(folder, capability, onnx_sha256=sha256(onnx) if onnx else None, **changes)
    shutil.rmtree(folder / "making")
    return folder


def run(folder: Path, **spec: Any) -> Path:
    out = folder / "out"
    out.mkdir()
    package.run(PackageSpec.model_validate(spec), out, StatusWriter(out))
    return out


def files(out: Path) -> set[str]:
    return {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()} - {"status.json", "package.json"}


def test_an_onnx_model(tmp_path: Path) -> None:
    onnx = make_model(tmp_path)
    out = run(tmp_path, model=onnx.with_name("model.json"), onnx=onnx, precision="int8")
    bundle = {f"deepstream/{n}" for n in ("config_infer_primary.txt", "deepstream_app_config.txt", "labels.txt")}
    assert files(out) == {"model.onnx", "model.json", "labels.txt", "deepstream/model.onnx", *bundle}
    listed = json.loads((out / "package.json").read_text())["files"]
    assert set(listed) == files(out)
    assert listed["model.onnx"] == sha256(onnx)
    assert (out / "labels.txt").read_text() == "red\ngrün\n"
    assert "network-mode=1\n" in (out / "deepstream" / "config_infer_primary.txt").read_text()
    assert read_artefact(out).model.engines == ()


@pytest.mark.parametrize(
    ("metrics", "told"),
    [
        ({"kept": 0.5, "parameters": 1000}, 0),  # 1,000 of 2,000 were left, and the file has 1,000
        ({"kept": 0.85, "parameters": 850}, 1),  # it may be either
        ({"kept": 0.5}, 1),  # a TAO that does not say how many there are
    ],
)
def test_a_pruned_model_is_known_by_its_size(tmp_path: Path, metrics: dict[str, float], told: int) -> None:
    onnx = make_model(tmp_path)
    weights = count_weights(onnx)
    scaled = {**metrics, **({"parameters": metrics["parameters"] / 1000 * weights} if "parameters" in metrics else {})}
    result = tmp_path / "result.json"
    result.write_text(json.dumps({"metrics": scaled}))
    out = run(tmp_path, model=onnx.with_name("model.json"), onnx=onnx, pruned=result)
    notes = json.loads((out / "package.json").read_text())["notes"]
    assert sum("too little" in note for note in notes) == told


def test_engines_of_two_gpus(tmp_path: Path) -> None:
    onnx = make_model(tmp_path)
    engines = [engine(tmp_path / name, capability, onnx) for name, capability in (("t4", "7.5"), ("a100", "8.0"))]
    out = run(tmp_path, model=onnx.with_name("model.json"), onnx=onnx, engines=engines)
    assert {"model_7.5.plan", "engine_7.5.json", "model_8.0.plan", "engine_8.0.json"} < files(out)
    assert {"deepstream/7.5/model.plan", "deepstream/8.0/config_infer_primary.txt"} < files(out)
    assert read_artefact(out).model.plans == {"7.5": "model_7.5.plan", "8.0": "model_8.0.plan"}
    assert EngineRecord.read(out / "engine_8.0.json").gpu.compute_capability == "8.0"


def test_a_calibrated_engine_brings_its_cache(tmp_path: Path) -> None:
    onnx = make_model(tmp_path)
    (tmp_path / "t4").mkdir()
    (tmp_path / "t4" / "cal.bin").write_bytes(b"ranges")
    facts = {"method": "tao/entropy_2", "images_digest": "a" * 64, "model_sha256": sha256(onnx), "tensorrt": "10.4"}
    record = {"schema": 1, "facts": facts, "cache_sha256": "b" * 64, "images": 8, "batch_size": 4}
    assert CalibrationRecord.model_validate(record)
    folder = engine(tmp_path / "t4", "7.5", onnx, quantization="calibrated", calibration=record)
    out = run(tmp_path, model=onnx.with_name("model.json"), onnx=onnx, engines=[folder])
    assert {"model.plan", "engine.json", "cal.bin", "deepstream/cal.bin", "deepstream/model.plan"} < files(out)
    text = (out / "deepstream" / "config_infer_primary.txt").read_text()
    assert "int8-calib-file=cal.bin\n" in text
    assert "model-engine-file=model.plan\n" in text


def test_no_bundle_is_made_where_none_is_wanted(tmp_path: Path) -> None:
    onnx = make_model(tmp_path)
    out = run(tmp_path, model=onnx.with_name("model.json"), onnx=onnx, deepstream=None)
    assert files(out) == {"model.onnx", "model.json", "labels.txt"}


@pytest.mark.parametrize(
    ("engines", "more", "kind", "said"),
    [
        ([("7.5", {}), ("7.5", {})], {}, BadSpec, "are both for compute capability 7.5"),
        (
            [("7.5", {}), ("8.0", {"tensorrt": "10.8.0.43"})],
            {},
            BadSpec,
            "10.4.0.26 and 10.8.0.43; one Triton",
        ),
        ([("7.5", {})], {"deepstream": {"batch_size": 32}}, BadSpec, "32, and model.plan takes up to 16"),
        ([("7.5", {"onnx_sha256": "0" * 64})], {}, BadData, "was built from another ONNX file"),
    ],
)
def test_engines_that_do_not_belong_together(
    tmp_path: Path, engines: list[tuple[str, dict[str, Any]]], more: dict[str, Any], kind: type[StageError], said: str
) -> None:
    onnx = make_model(tmp_path)
    folders = []
    for i, (capability, changes) in enumerate(engines):
        folders.append(tmp_path / f"engine-{i}")
        make_plan(folders[-1], capability, **{"onnx_sha256": sha256(onnx), **changes})
    with pytest.raises(kind, match=said):
        run(tmp_path, model=onnx.with_name("model.json"), onnx=onnx, engines=folders, **more)


def test_a_plan_that_was_changed(tmp_path: Path) -> None:
    onnx = make_model(tmp_path)
    folder = engine(tmp_path / "t4", "7.5")
    (folder / "model.plan").write_bytes(b"something else")
    with pytest.raises(BadData, match=r"is not the plan that engine\.json in that folder describes"):
        run(tmp_path, model=onnx.with_name("model.json"), engines=[folder])
