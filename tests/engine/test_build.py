"""`python -m refit.engine build` as a stage: the command, the driver in C, NVIDIA's bindings, the played builder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from refit.engine.record import CalibrationRecord, EngineRecord
from refit.files import sha256
from tests.engine import bindings, made
from tests.engine.driver import make

OLD = bindings.VERSIONS[0]
NETWORK = {
    "inputs": {"input_1": [-1, 3, 16, 32]},
    "outputs": {"cov": [-1, 2, 1, 2]},
    "layers": [["conv", "CONVOLUTION", "FLOAT"]],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables of a process in which `import tensorrt` and libcuda.so.1 work."""
    folder = tmp_path_factory.mktemp("image")
    env = bindings.environment(OLD, folder)
    make(folder)
    text = "import sys\nfrom tests.engine.double import Package\nsys.modules[__name__] = Package()\n"
    (folder / "tensorrt.py").write_text(text)
    return env


def run(env: dict[str, str], folder: Path, name: str, **spec: Any) -> tuple[subprocess.CompletedProcess[str], Path]:
    onnx, out = folder / "model.onnx", folder / name
    if not onnx.exists():
        onnx.write_text(json.dumps(NETWORK))
        (folder / "model.json").write_text(made.info().text())
    (folder / "spec.yaml").write_text(json.dumps({"onnx": str(onnx), **spec}))
    words = [sys.executable, "-m", "refit.engine", "build", "-e", folder / "spec.yaml", "-r", out]
    return subprocess.run(words, env=env, capture_output=True, text=True, check=False, timeout=120), out


def test_an_int8_engine_and_its_cache(place: dict[str, str], tmp_path: Path) -> None:
    images = str(made.pictures(tmp_path / "images", 5))
    calibration = {"images": images, "batches": 2, "batch_size": 2}
    done, first = run(place, tmp_path, "first", precision="int8", calibration=calibration)
    assert done.returncode == 0, done.stderr
    record = EngineRecord.read(first / "engine.json")
    assert record.check_file(first) == first / "model.plan"
    assert (record.tensorrt, record.gpu.compute_capability, record.gpu.source) == (OLD, "7.5", "driver")
    assert (record.precision, record.quantization) == ("int8", "calibrated")
    assert record.onnx_sha256 == sha256(tmp_path / "model.onnx")
    assert record.calibration == CalibrationRecord.read(first / "cal.json")
    assert record.calibration is not None
    assert record.calibration.images == 4
    assert (first / "cal.bin").read_bytes() == b"measured ranges"
    assert (first / "timing.cache").read_bytes() == b"new timings"
    assert (first / "model.json").read_text() == (tmp_path / "model.json").read_text()
    assert json.loads((first / "status.json").read_text().splitlines()[-1])["status"] == "SUCCESS"

    reuse = {"precision": "int8", "calibration": calibration, "cache": str(first / "cal.bin")}
    done, second = run(place, tmp_path, "second", **reuse)
    assert done.returncode == 0, done.stderr
    assert EngineRecord.read(second / "engine.json").calibration == record.calibration

    made.pictures(tmp_path / "images", 1, (10, 10))
    done, _ = run(place, tmp_path, "third", **reuse)
    assert done.returncode == 3
    assert "the images, their order or how they are fed (digest) differs" in done.stderr


def test_too_few_images_are_bad_data(place: dict[str, str], tmp_path: Path) -> None:
    images = str(made.pictures(tmp_path / "images", 3))
    calibration = {"images": images, "batches": 2, "batch_size": 2}
    done, out = run(place, tmp_path, "out", precision="int8", calibration=calibration)
    assert done.returncode == 3
    assert "3 images, and 2 batches of 2 need 4" in done.stderr
    assert not (out / "model.plan").exists()


def test_a_broken_image_is_bad_data(place: dict[str, str], tmp_path: Path) -> None:
    images = made.pictures(tmp_path / "images", 4)
    (images / "002.png").write_bytes(b"no picture")
    calibration = {"images": str(images), "batches": 2, "batch_size": 2}
    done, _ = run(place, tmp_path, "out", precision="int8", calibration=calibration)
    assert done.returncode == 3
    assert "002.png: is no picture that can be decoded" in done.stderr


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"precision": "fp16", "calibration": {"images": "x"}}, "calibration: is for INT8, and precision is fp16"),
        ({"precision": "int8", "cache": "cal.bin"}, "cache: needs calibration too"),
        ({"batch": {"min": 4, "opt": 2, "max": 8}}, "they must not fall"),
        ({"precison": "int8"}, "unknown key; did you mean 'precision'?"),
        ({"precision": "int4"}, "'int4' is not a choice"),
    ],
)
def test_specs_that_contradict_themselves(tmp_path: Path, spec: dict[str, Any], said: str) -> None:
    done, _ = run({**os.environ, "PYTHONPATH": str(bindings.REPOSITORY)}, tmp_path, "out", **spec)
    assert done.returncode == 2
    assert said in done.stderr


def test_an_image_without_tensorrt(tmp_path: Path) -> None:
    done, _ = run({**os.environ, "PYTHONPATH": str(bindings.REPOSITORY)}, tmp_path, "out", precision="fp16")
    assert done.returncode == 1
    assert "run this stage in images/tensorrt" in done.stderr
