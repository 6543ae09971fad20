"""The driver is asked through its C interface: here a library in C with the driver's signatures, no GPU behind it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from refit.engine.gpu import Device, GpuError, from_csv, recording
from refit.engine.record import Gpu
from tests.engine.driver import make


@pytest.fixture
def driver(tmp_path: Path) -> str:
    return str(make(tmp_path))


def test_facts_and_memory(driver: str) -> None:
    device = Device(driver)
    with device:
        assert device.facts() == Gpu(name="NVIDIA T4", compute_capability="7.5", source="driver")
        address = device.allocate(16)
        device.upload(address, b"\x01\x00\x02")
        assert [device._cuda.at(i) for i in range(3)] == [1, 0, 2]
        with pytest.raises(GpuError, match=r"cuMemAlloc_v2: out of memory \(CUDA error 2\)"):
            device.allocate(1 << 40)
        assert device._cuda.left() == 101
    assert device._cuda.left() == 0  # all memory and the context were given back


def test_no_driver() -> None:
    with pytest.raises(GpuError, match="no GPU, or the pod's runtime class"):
        Device("libcuda-of-nobody.so.1")


def command(folder: Path, answer: str, code: int = 0) -> dict[str, str]:
    """A PATH with an nvidia-smi that answers so."""
    folder.mkdir(exist_ok=True)
    smi = folder / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\n[ $# = 2 ] || exit 9\nprintf '{answer}'\nexit {code}\n")
    smi.chmod(0o755)
    return {"PATH": f"{folder}:/usr/bin:/bin"}


def test_a_command_is_recorded(tmp_path: Path) -> None:
    env = command(tmp_path / "bin", "NVIDIA A100-SXM4-40GB, 8.0\\nNVIDIA A100-SXM4-40GB, 8.0\\n")
    noted = tmp_path / "a folder" / "gpu.csv"
    noted.parent.mkdir()
    words = ["printf", "%s|", "a b", "$HOME", "'", ""]
    done = subprocess.run(recording(words, str(noted)), env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "a b|$HOME|'||"
    gpu = from_csv(noted)
    assert gpu == Gpu(name="NVIDIA A100-SXM4-40GB", compute_capability="8.0", source="nvidia-smi")


def test_the_command_keeps_its_exit_code_and_needs_a_gpu(tmp_path: Path) -> None:
    env = command(tmp_path / "bin", "x, 8.0\\n")
    assert subprocess.run(recording(["sh", "-c", "exit 3"], str(tmp_path / "g")), env=env, check=False).returncode == 3
    env = command(tmp_path / "bin", "no devices", 6)
    done = subprocess.run(recording(["echo", "built"], str(tmp_path / "g")), env=env, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (1, b"")


def test_notes_that_say_nothing(tmp_path: Path) -> None:
    file = tmp_path / "gpu.csv"
    with pytest.raises(GpuError, match="run the stage that builds the engine again"):
        from_csv(file)
    file.write_text("NVIDIA T4, 7.5\nNVIDIA A10, 8.6\n")
    with pytest.raises(GpuError, match="2 kinds of GPU"):
        from_csv(file)
    file.write_text("NVIDIA-SMI has failed\n")
    with pytest.raises(GpuError, match="is not 'name, compute capability'"):
        from_csv(file)
