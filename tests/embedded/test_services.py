"""The real services, started and ended: Airflow's four components and tritonserver, on fresh ports of loopback."""

import contextlib
import json
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
from refit.embedded import airflow
from refit.embedded.api import Airflow, ApiError
from refit.embedded.processes import descendants, processes
from refit.embedded.settings import PORTS, Embedded
from refit.triton.installation import available

ROOT = Path(__file__).resolve().parents[2]
LOOPBACK = ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")

# What `make run` does with the services, without its screen: hold the place, start them, pass on what they tell.
LAUNCHER = """
import json
from refit.embedded.launcher import ServicesProcess, only_one
from refit.embedded.settings import Embedded
place = Embedded.from_env()
try:
    with only_one(place) as lock, ServicesProcess(place, lock) as services:
        while services.failure is None:
            event = services.event(1)
            if event:
                print(json.dumps(event), flush=True)
except KeyboardInterrupt:
    pass
print(json.dumps({"event": "end"}), flush=True)
"""


@pytest.fixture(autouse=True)
def _installed():
    python = Settings.from_env().envs / "airflow" / "bin" / "python"
    if not python.exists():
        pytest.skip(f"there is no Airflow environment at {python}")
    missing = available()
    if missing:
        pytest.skip(missing)


@pytest.fixture
def env(tmp_path):
    """The variables of a place of its own; environments are those of the machine."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in PORTS]
    ports = {name: str(s.getsockname()[1]) for name, s in zip(PORTS, held, strict=True)}
    for s in held:
        s.close()
    pipelines = tmp_path / "pipelines"
    pipelines.mkdir()
    text = (ROOT / "specs" / "pipelines" / "demo.yaml").read_text()
    (pipelines / "first.yaml").write_text(text.replace("inbox/demo", "inbox/first"))
    own = {"REFIT_HOME": str(tmp_path / "home"), "REFIT_PIPELINES": str(pipelines), "PYTHONPATH": str(ROOT)}
    return {**os.environ, "REFIT_ENVS": str(Settings.from_env().envs), **own, **ports}


class Launcher:
    """A launcher in a process of its own."""

    def __init__(self, env):
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER], env=env, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        self.seen = []

    def until(self, name, seconds=150):
        """The event of that name; those before it are kept in `seen`."""
        give_up = time.monotonic() + seconds
        for line in self.process.stdout:
            self.seen.append(json.loads(line))
            if self.seen[-1]["event"] == name:
                return self.seen[-1]
            assert time.monotonic() < give_up, self.seen
        raise AssertionError(f"ended without {name!r}: {self.seen}")

    def everyone(self):
        return [self.process.pid, *descendants(self.process.pid)]


@pytest.fixture
def launcher(env):
    made = Launcher(env)
    yield made
    left = made.everyone()
    if made.process.poll() is None:
        made.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            made.process.wait(60)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def none_left(pids, seconds=45):
    until = time.monotonic() + seconds
    while (left := set(pids) & set(processes())) and time.monotonic() < until:
        time.sleep(0.1)
    return not left


def listeners(pids):
    """(address in hex, port) of every TCP socket that one of the processes listens on."""
    inodes = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            inodes |= {os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.is_symlink()}
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in inodes:
                address, _, port = words[1].partition(":")
                found.add((address, int(port, 16)))
    return found


def wait_for_dag(client, dag, seconds=90):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(ApiError):
            return client.get(f"/dags/{dag}")
        time.sleep(0.3)
    raise AssertionError(client.import_errors())


def test_everything_starts_serves_and_ends_when_one_dies(env, launcher, tmp_path):
    launcher.until("up")
    place = Embedded.from_env(env)
    client = Airflow(place.airflow_url, airflow.USER, airflow.password(place))
    pids = launcher.everyone()

    # Ours only, on loopback only, and all of the ports that were asked for.
    found = listeners(pids)
    assert {address for address, _ in found} <= set(LOOPBACK)
    assert {port for _, port in found} >= set(place.ports.values())

    # Airflow knows the pools and the pipelines, also one that comes later; nobody gets in without the password.
    names = {pool["name"] for pool in client.get("/pools")["pools"]}
    assert {str(pool["name"]) for pool in airflow.pools(place)} <= names
    assert not wait_for_dag(client, "retrain_first")["is_paused"]
    shutil.copy(tmp_path / "pipelines" / "first.yaml", tmp_path / "pipelines" / "second.yaml")
    wait_for_dag(client, "retrain_second")
    with pytest.raises(ApiError, match="401"):
        Airflow(place.airflow_url, airflow.USER, "wrong").get("/dags")

    # Once a service dies, everything ends, and its name and log are told.
    scheduler = next(
        pid for pid in pids if re.search(rb"airflow\0?.*scheduler", Path(f"/proc/{pid}/cmdline").read_bytes())
    )
    os.kill(scheduler, signal.SIGKILL)
    failed = launcher.until("failed")
    assert failed["service"] == "scheduler"
    assert "SIGKILL" in failed["reason"]
    assert Path(failed["log"]).exists()
    launcher.until("end")
    assert launcher.process.wait(30) == 0
    assert none_left(pids, seconds=5)


def test_kill_9_of_the_launcher_leaves_nothing(env, launcher):
    while sum(e["event"] == "starting" for e in launcher.seen) < 5:
        launcher.until("starting")
    time.sleep(1)  # they are on their way up
    pids = launcher.everyone()
    assert len(pids) >= 7
    launcher.process.kill()
    launcher.process.wait()
    assert none_left(pids)


def test_a_port_that_is_taken(env, tmp_path):
    with socket.create_server(("127.0.0.1", int(env["TRITON_GRPC_PORT"]))):
        launcher = Launcher(env)
        failed = launcher.until("failed")
        assert failed["service"] == "ports"
        assert f"port {env['TRITON_GRPC_PORT']} is taken" in failed["reason"]
        assert f"(pid {os.getpid()})" in failed["reason"]
        assert "TRITON_GRPC_PORT=" in failed["reason"]
        launcher.until("end")
        assert launcher.process.wait(30) == 0
    assert not (tmp_path / "home" / "airflow" / "airflow.db").exists(), "nothing was begun"
