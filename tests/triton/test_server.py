"""The local server: it starts, it says what is wrong, and it leaves nothing behind."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from refit.config import Settings
from refit.triton import installation
from refit.triton.client import TritonClient
from refit.triton.config import ModelConfig, read_signature
from refit.triton.errors import AccessRefused, InstallationError, PortTaken, ServerFailed
from refit.triton.installation import Installation
from refit.triton.server import CONTROL_HEADER, TritonServer
from tests.triton.fixtures import KEY
from tests.triton.models import INPUT, REPOSITORY, make_onnx, noise


def put_model(repository: Path, name: str = "m") -> None:
    path = make_onnx(repository / name / "1" / "model.onnx")
    (repository / name / "config.pbtxt").write_text(ModelConfig(name, 1, read_signature(path)).text())


def processes_that_name(folder: Path) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in text:
            found.append(text)
    return found


def wait_until_gone(folder: Path) -> list[str]:
    until = time.monotonic() + 20
    while (found := processes_that_name(folder)) and time.monotonic() < until:
        time.sleep(0.05)
    return found


@pytest.mark.parametrize("stop_seconds", [20.0, 0.0], ids=["ended", "killed"])
def test_serves_and_leaves_nothing_behind(local_triton: Installation, tmp_path: Path, stop_seconds: float) -> None:
    put_model(tmp_path / "models")
    server = TritonServer(
        tmp_path / "models", tmp_path / "run", installation=local_triton, stop_seconds=stop_seconds, control_key="k"
    )
    with server, TritonClient(server.url, control_key="k") as client:
        client.live()
        assert client.infer("m", {INPUT: noise(1)}).version == 1
        assert (tmp_path / "run" / "server.json").exists()
        assert any("triton_python_backend_stub" in text for text in processes_that_name(tmp_path))
        assert list(Path("/dev/shm").glob(f"{server._id}*"))
        client.close()
    assert wait_until_gone(tmp_path) == []
    assert list(Path("/dev/shm").glob(f"{server._id}*")) == []
    assert not (tmp_path / "run" / "server.json").exists()
    assert not server.alive()
    server.stop()  # again is no harm


def test_bad_model_does_not_stop_the_server(local_triton: Installation, tmp_path: Path) -> None:
    put_model(tmp_path / "models", "good")
    put_model(tmp_path / "models", "bad")
    (tmp_path / "models" / "bad" / "1" / "model.onnx").write_text("no model")
    with (
        TritonServer(tmp_path / "models", tmp_path / "run", installation=local_triton, stop_seconds=0) as server,
        TritonClient(server.url) as client,
    ):
        states = {e.name: (e.state, e.reason) for e in client.index()}
        assert states["good"] == ("READY", "")
        assert states["bad"][0] == "UNAVAILABLE"
        assert "onnxruntime cannot open" in states["bad"][1]


def test_control_needs_the_key(server: TritonServer) -> None:
    with TritonClient(server.url, control_key="") as nobody:
        nobody.live()
        with pytest.raises(AccessRefused, match="wants a control key: set REFIT_SECRET_TRITON_CONTROL_KEY"):
            nobody.index()
        with pytest.raises(AccessRefused):
            nobody.load("m")
    with TritonClient(server.url, control_key="wrong") as stranger, pytest.raises(AccessRefused, match="refuses"):
        stranger.unload("m")
    with TritonClient(server.url, control_key=KEY) as owner:
        assert isinstance(owner.index(), list)


def test_taken_port_is_named(local_triton: Installation, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        server = TritonServer(tmp_path / "models", tmp_path / "run", installation=local_triton, grpc_port=port)
        with pytest.raises(PortTaken, match=rf"port {port} on 127.0.0.1 is taken.*--grpc-port") as taken:
            server.start()
    assert taken.value.port == port
    assert server.pid is None


def test_missing_library_is_named(local_triton: Installation, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    shutil.copy2(local_triton.binary, tmp_path / "bin")  # away from the libraries that its rpath finds
    lonely = dataclasses.replace(local_triton, binary=tmp_path / "bin" / "tritonserver", libraries=tmp_path)
    with pytest.raises(InstallationError, match=r"the library \S+\.so\S* is missing; install"):
        TritonServer(tmp_path / "models", tmp_path / "run", installation=lonely).start()


def test_server_that_ends_at_once_shows_its_log(local_triton: Installation, tmp_path: Path) -> None:
    (tmp_path / "program").write_text("#!/bin/sh\necho the reason; exit 3\n")
    (tmp_path / "program").chmod(0o755)
    broken = dataclasses.replace(local_triton, binary=tmp_path / "program")
    with pytest.raises(ServerFailed, match=r"exit code 3(.|\n)*the reason"):
        TritonServer(tmp_path / "models", tmp_path / "run", installation=broken).start()


def test_key_that_triton_would_cut_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServerFailed, match="control key"):
        TritonServer(tmp_path, tmp_path, control_key="a,b")


def test_environment_that_is_missing_is_named(tmp_path: Path) -> None:
    settings = Settings.from_env({"REFIT_ENVS": str(tmp_path)})
    reason = installation.available(settings)
    assert reason is not None
    assert f"no Triton environment at {tmp_path}/triton" in reason
    assert "make setup" in reason


def test_libpython_that_is_nowhere_names_the_package(
    local_triton: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no ldconfig, no apt-get
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    facts = {"libdir": str(tmp_path), "base": str(tmp_path)}
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(InstallationError, match=r"libpython3\.11\.so\.1\.0 was not found.*package libpython3\.11"):
        installation._libpython("3.11", facts, tmp_path)
    # What `uv python install` leaves is found.
    there = tmp_path / ".local/share/uv/python/cpython-3.11.9-linux-x86_64-gnu/lib/libpython3.11.so.1.0"
    there.parent.mkdir(parents=True)
    there.write_text("")
    assert installation._libpython("3.11", facts, tmp_path) == there


def start_serve(tmp_path: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "refit.triton", "serve", "--repository", tmp_path / "models"]
    return subprocess.Popen(
        [*command, "--run-dir", tmp_path / "run", *words],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "REFIT_SECRET_TRITON_CONTROL_KEY": "k"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    for each in held:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    return ports


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_serve_in_the_foreground(local_triton: Installation, tmp_path: Path, how: signal.Signals) -> None:
    put_model(tmp_path / "models")
    http, grpc, metrics = free_ports(3)
    process = start_serve(tmp_path, "--http-port", str(http), "--grpc-port", str(grpc), "--metrics-port", str(metrics))
    assert process.stdout is not None
    ready = process.stdout.readline()
    assert ready.startswith(f"Triton is ready: http://127.0.0.1:{http} (gRPC 127.0.0.1:{grpc}"), process.communicate()
    with TritonClient(f"http://127.0.0.1:{http}", control_key="k") as client:
        assert client.ready_versions("m") == (1,)
        assert client._headers == {CONTROL_HEADER: "k"}
    if how == signal.SIGTERM:
        second = start_serve(tmp_path, "--http-port", str(http))
        _, errors = second.communicate(timeout=60)
        assert second.returncode == 2
        assert re.match(rf"error: port {http} on 127.0.0.1 is taken", errors)
    process.send_signal(how)
    process.communicate(timeout=60)
    assert process.returncode == (0 if how == signal.SIGTERM else -signal.SIGKILL)
    # A launcher that is killed takes the server with it.
    assert wait_until_gone(tmp_path) == []
