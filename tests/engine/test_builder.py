"""Refit's own builder over NVIDIA's real Python bindings, of TensorRT 10 and of 11."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine import bindings

OLD, NEW = bindings.VERSIONS
INPUTS, OUTPUTS = {"input_1": [-1, 3, 4, 4]}, {"cov": [-1, 2, 1, 1]}
PLAIN = {
    "inputs": INPUTS,
    "outputs": OUTPUTS,
    "layers": [["conv", "CONVOLUTION", "FLOAT"], ["cov", "ACTIVATION", "FLOAT"]],
}
QDQ = {**PLAIN, "layers": [["q", "QUANTIZE", "INT8"], ["dq", "DEQUANTIZE", "FLOAT"], *PLAIN["layers"]]}  # type: ignore[misc]
HALF = {**PLAIN, "layers": [["conv", "CONVOLUTION", "HALF"]]}
IMAGES = {"images": "/images", "batches": 2, "batch_size": 4}
BATCHES = {"batch_size": 4, "batches": [[4, 3, 4, 4]] * 2, "cache": None}

Build = Callable[..., Any]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Build]:
    workers: dict[str, bindings.Worker] = {}

    def run(version: str, network: dict[str, Any], feeds: Any = None, **spec: Any) -> Any:
        if version not in workers:
            workers[version] = bindings.Worker(version, tmp_path_factory.mktemp("tensorrt") / version)
        return workers[version].build(network, feeds, **spec)

    yield run
    for worker in workers.values():
        worker.close()


def flags(result: Any) -> list[str]:
    return [call[1] for call in result["calls"] if call[0] == "set_flag"]


def named(result: Any, name: str) -> list[list[Any]]:
    return [call[1:] for call in result["calls"] if call[0] == name]


@pytest.mark.parametrize("version", bindings.VERSIONS)
def test_float(build: Build, version: str) -> None:
    result = build(version, PLAIN, precision="fp32", batch={"min": 1, "opt": 4, "max": 8}, workspace_mib=100)
    assert "error" not in result
    assert flags(result) == []
    assert result["quantization"] == "none"
    assert result["profile"] == {"min": 1, "opt": 4, "max": 8}
    assert result["inputs"] == [{"name": "input_1", "datatype": "FP32", "dims": [-1, 3, 4, 4]}]
    assert result["outputs"] == [{"name": "cov", "datatype": "FP32", "dims": [-1, 2, 1, 1]}]
    assert named(result, "set_memory_pool_limit") == [["WORKSPACE", 100 * 2**20]]
    shapes = {"input_1": [[1, 3, 4, 4], [4, 3, 4, 4], [8, 3, 4, 4]]}
    assert named(result, "add_optimization_profile") == [[shapes]]
    assert result["timing"] == "new timings"


def test_implicit_int8(build: Build) -> None:
    result = build(OLD, PLAIN, BATCHES, precision="int8", calibration=IMAGES)
    assert flags(result) == ["INT8"]
    assert named(result, "calibrator") == [["IInt8EntropyCalibrator2"]]
    assert result["quantization"] == "calibrated"
    assert result["cache"] == "measured ranges"
    assert named(result, "allocate") == [[4 * 3 * 4 * 4 * 4]]
    assert named(result, "upload") == [[4096, 768, 0.0], [4096, 768, 1.0]]
    # A calibration runs with its own batch size, whatever the engine is to take.
    assert named(result, "set_calibration_profile") == [[{"input_1": [[4, 3, 4, 4]] * 3}]]


def test_ranges_by_the_largest_value(build: Build) -> None:
    result = build(OLD, PLAIN, BATCHES, precision="int8", calibration={**IMAGES, "method": "minmax"})
    assert named(result, "calibrator") == [["IInt8MinMaxCalibrator"]]
    assert result["cache"] == "measured ranges"


def test_an_old_cache_needs_no_images_and_no_memory(build: Build) -> None:
    result = build(
        OLD, PLAIN, {**BATCHES, "cache": "old ranges"}, precision="best", calibration=IMAGES, cache="/cal.bin"
    )
    assert flags(result) == ["FP16", "INT8"]
    assert result["quantization"] == "calibrated"
    assert result["cache"] is None
    assert named(result, "upload") == named(result, "allocate") == []


def test_explicit_int8_in_tensorrt_10(build: Build) -> None:
    result = build(OLD, QDQ, precision="int8")
    assert flags(result) == ["INT8"]
    assert result["quantization"] == "explicit"
    assert "leave it out" in build(OLD, QDQ, BATCHES, precision="int8", calibration=IMAGES)["error"]
    assert "it is an INT8 model" in build(OLD, QDQ, precision="fp16")["error"]


def test_layers_that_stay_float(build: Build) -> None:
    result = build(OLD, PLAIN, precision="fp16", fp32_layers=["cov"])
    assert flags(result) == ["FP16", "OBEY_PRECISION_CONSTRAINTS"]
    assert named(result, "precision") == [["cov", "FLOAT"]]
    assert named(result, "set_output_type") == [["cov", "FLOAT"]]
    assert "no layer 'head'; its first ones are conv, cov" in build(OLD, PLAIN, fp32_layers=["head"])["error"]


def test_int8_without_ranges(build: Build) -> None:
    result = build(OLD, PLAIN, precision="int8")
    assert result["code"] == 2
    assert "holds no Q/DQ nodes; give calibration" in result["error"]
    assert flags(build(OLD, PLAIN, precision="best")) == ["FP16"]


@pytest.mark.parametrize(
    ("network", "spec", "said"),
    [
        (PLAIN, {"precision": "int8"}, "run quantize first (explicit Q/DQ)"),
        (PLAIN, {"precision": "fp16"}, "export it in float16, or say fp32"),
        (HALF, {"precision": "fp32"}, "say fp16"),
        (QDQ, {"precision": "fp16"}, "say int8"),
        (PLAIN, {"precision": "fp32", "fp32_layers": ["cov"]}, "leave these layers out of quantize"),
    ],
)
def test_tensorrt_11_refuses_what_the_file_does_not_hold(
    build: Build, network: dict[str, Any], spec: dict[str, Any], said: str
) -> None:
    result = build(NEW, network, **spec)
    assert result["code"] == 2
    assert said in result["error"]
    assert f"TensorRT {NEW} takes precisions from the ONNX file alone" in result["error"]


def test_tensorrt_11_has_no_calibrator(build: Build) -> None:
    result = build(NEW, PLAIN, BATCHES, precision="int8", calibration=IMAGES)
    assert result["code"] == 2
    assert "has no calibrator; make Q/DQ nodes with quantize instead" in result["error"]


@pytest.mark.parametrize(("network", "precision"), [(QDQ, "int8"), (HALF, "fp16"), (QDQ, "best")])
def test_tensorrt_11_builds_what_the_file_holds(build: Build, network: dict[str, Any], precision: str) -> None:
    result = build(NEW, network, precision=precision)
    assert "error" not in result
    assert flags(result) == []
    assert result["quantization"] == ("explicit" if network is QDQ else "none")


def test_a_picture_of_another_size_is_told_and_not_swallowed(build: Build) -> None:
    wrong = {**BATCHES, "batches": [[4, 3, 8, 8]]}
    result = build(OLD, PLAIN, wrong, precision="int8", calibration=IMAGES)
    assert "its input makes batches of [4, 3, 8, 8], the ONNX file takes [4, 3, 4, 4]" in result["error"]


@pytest.mark.parametrize("version", bindings.VERSIONS)
def test_tensorrts_own_words(build: Build, version: str) -> None:
    result = build(version, {**PLAIN, "fault": "parse"}, precision="fp32")
    assert "does not understand it: node funny_1: no importer for op Funny" in result["error"]
    result = build(version, {**PLAIN, "fault": "build"}, precision="fp32")
    assert "cannot build it: no tactic fits" in result["error"]


def test_free_sizes_and_fixed_batches(build: Build) -> None:
    free = {**PLAIN, "inputs": {"input_1": [-1, 3, -1, -1]}}
    assert "only the batch may be free" in build(OLD, free, precision="fp32")["error"]
    fixed = {**PLAIN, "inputs": {"input_1": [2, 3, 4, 4]}, "outputs": {"cov": [2, 2, 1, 1]}}
    result = build(OLD, fixed, precision="fp32")
    assert result["profile"] is None
    assert named(result, "add_optimization_profile") == []
    result = build(OLD, fixed, BATCHES, precision="int8", calibration=IMAGES)
    assert "takes batches of 2 only" in result["error"]


def test_timing_cache(build: Build, tmp_path: Path) -> None:
    (tmp_path / "t.cache").write_bytes(b"old timings")
    result = build(OLD, PLAIN, precision="fp32", timing_cache=str(tmp_path / "t.cache"))
    assert named(result, "set_timing_cache") == [["old timings", False]]
    (tmp_path / "t.cache").write_bytes(b"of another GPU")
    result = build(OLD, PLAIN, precision="fp32", timing_cache=str(tmp_path / "t.cache"))
    assert named(result, "set_timing_cache") == [["of another GPU", False], ["", False]]
