"""Which plan fits which Triton, and the table that says so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from refit.engine import match
from refit.engine.match import Containers, Misfit
from refit.engine.record import EngineRecord, agree
from refit.tao import networks
from tests.engine import sources

REPOSITORY = Path(__file__).resolve().parents[2]
TABLE = match.load(REPOSITORY)


def engine(capability: str = "7.5", tensorrt: str = "10.8.0.43", **changes: Any) -> EngineRecord:
    tensor = {"name": "x", "datatype": "FP32", "dims": [-1, 3]}
    base = {
        "schema": 1,
        "plan": {"file": f"model_{capability}.plan", "sha256": "0" * 64, "bytes": 9},
        "tensorrt": tensorrt,
        "gpu": {"name": f"GPU {capability}", "compute_capability": capability, "source": "driver"},
        "precision": "fp16",
        "quantization": "none",
        "onnx_sha256": None,
        "profile": {"min": 1, "opt": 1, "max": 8},
        "inputs": [tensor],
        "outputs": [tensor],
        "builder": "refit source",
    }
    return EngineRecord.model_validate({**base, **changes})


def test_versions_agree_as_far_as_they_go() -> None:
    assert agree("10.8", "10.8.0.43")
    assert agree("10.8.0.43", "10.8.0")
    assert not agree("10.1", "10.16.0")
    assert not agree("10.8.0.43", "10.8.0.40")


def test_a_deploy_images_engine_runs_on_the_triton_of_its_month() -> None:
    for month in TABLE.deploy.values():
        (container,) = (c for c in TABLE.containers if c.month == month)
        tensorrt = match.tensorrt_of(TABLE, container.triton)
        match.check([engine(tensorrt=f"{tensorrt}.1")], tensorrt, ["7.5"], "Triton")
    assert match.tensorrt_of(TABLE, "2.54.0") == "10.8.0"


def test_an_engine_of_another_month_is_refused() -> None:
    built = engine(tensorrt="10.13.3.9", builder="tao-toolkit:6.26.3-deploy")
    said = (
        r"model_7.5.plan was built with TensorRT 10.13.3.9 \(tao-toolkit:6.26.3-deploy\), and Triton 2.67.0 has 10.16.0"
    )
    with pytest.raises(Misfit, match=said):
        match.check([built], match.tensorrt_of(TABLE, "2.67.0"), [], "Triton 2.67.0")


@pytest.mark.parametrize(("triton", "month"), [("2.58.0", r" \(25.05\)"), ("9.0.0", "")])
def test_a_triton_that_nobody_knows(triton: str, month: str) -> None:
    with pytest.raises(Misfit, match=rf"which TensorRT Triton {triton}{month} has is not in .* or say tensorrt"):
        match.tensorrt_of(TABLE, triton)


def test_gpus() -> None:
    both = [engine("7.5"), engine("8.0")]
    match.check(both, "10.8.0", ["8.0", "7.5"], "Triton")
    match.check(both, "10.8.0", [], "Triton")
    with pytest.raises(Misfit, match=r"capability 8.9, and the plans are for 7.5 \(GPU 7.5\), 8.0 \(GPU 8.0\)"):
        match.check(both, "10.8.0", ["7.5", "8.9"], "Triton")
    with pytest.raises(Misfit, match=r"2 plans are for compute capability 7.5"):
        match.check([*both, engine("7.5")], "10.8.0", [], "Triton")


def test_a_table_that_contradicts_itself() -> None:
    rows = [{"month": "25.01", "triton": "2.54.0"}]
    deploy = {"6.0.0-deploy": "25.01"}
    assert Containers.model_validate({"containers": rows, "deploy": deploy}).of_triton("2.54.0") is not None
    with pytest.raises(ValueError, match=r"month 25.01 stands there twice"):
        Containers.model_validate({"containers": rows * 2, "deploy": deploy})
    with pytest.raises(ValueError, match=r"deploy: 6.0.0-deploy: 24.04 is not among containers"):
        Containers.model_validate({"containers": rows, "deploy": {"6.0.0-deploy": "24.04"}})


def test_every_deploy_image_that_pipelines_use_is_known() -> None:
    tags = {r.images["deploy"] for r in networks.releases().releases.values() if "deploy" in r.images}
    assert tags <= set(TABLE.deploy)


@pytest.mark.parametrize("row", TABLE.containers, ids=lambda row: row.month)
def test_tritons_own_version(row: match.Container) -> None:
    assert sources.show("server", f"r{row.month}:TRITON_VERSION").strip() == row.triton


@pytest.mark.parametrize("tag", TABLE.deploy)
def test_what_a_deploy_image_stands_on(tag: str) -> None:
    release = tag.removesuffix("-deploy")
    branches = (f"release/{release}", f"tao_{release.removesuffix('.0')}_release")
    text = sources.show("tao-deploy", *(f"{branch}:docker/Dockerfile" for branch in branches))
    assert re.findall(r"FROM nvcr.io/nvidia/tensorrt:(\d+\.\d+)-py3", text) == [TABLE.deploy[tag]]


def test_the_lock_has_the_tensorrt_of_one_triton() -> None:
    text = (REPOSITORY / "images" / "tensorrt" / "requirements.txt").read_text()
    pins = dict(re.findall(r"^(tensorrt-cu12\S*)==(\S+)$", text, flags=re.MULTILINE))
    assert set(pins) == {"tensorrt-cu12", "tensorrt-cu12-bindings", "tensorrt-cu12-libs"}
    assert len(set(pins.values())) == 1
    assert [c.month for c in TABLE.containers if c.tensorrt and agree(c.tensorrt, pins["tensorrt-cu12"])] == ["26.03"]
