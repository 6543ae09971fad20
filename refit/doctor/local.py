"""The embedded runtime's place: this machine's environments, disk, ports and tritonserver."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator

from refit.config import Settings
from refit.doctor import probe
from refit.doctor.finding import Finding, Level
from refit.embedded.settings import HOST, PORTS, Embedded
from refit.runtime.local import EnvironmentMissing, interpreter
from refit.triton import installation
from refit.triton.errors import InstallationError

ENVIRONMENTS = {"airflow": "airflow", "tools": "cv2", "cpu": "torch", "triton": "onnxruntime"}  # and what it is for


def examine(settings: Settings) -> Iterator[Finding]:
    for name, package in ENVIRONMENTS.items():
        yield environment(name, package)
    try:
        found = installation.find(settings)
        yield Finding(Level.OK, "tritonserver", str(found.binary))
    except InstallationError as exc:
        yield Finding(Level.FAIL, "tritonserver", str(exc), "make setup")
    yield disk(settings)
    yield from ports()


def environment(name: str, package: str) -> Finding:
    """Whether an environment's Python starts and finds the package that it is there for."""
    try:
        python = interpreter(name)
    except EnvironmentMissing as exc:
        return Finding(Level.FAIL, f"environment {name}", str(exc), "make setup")
    ask = f"import importlib.util as u, sys; sys.exit(u.find_spec({package!r}) is None)"
    done = subprocess.run([python, "-I", "-c", ask], capture_output=True, text=True, check=False)
    if done.returncode:
        why = done.stderr.strip().rpartition("\n")[2] or f"{package} is not in it"
        return Finding(Level.FAIL, f"environment {name}", f"{python}: {why}", f"rm -r {python.parents[1]}; make setup")
    return Finding(Level.OK, f"environment {name}", str(python))


def disk(settings: Settings) -> Finding:
    there = settings.workspace
    if not there.is_dir():
        while not there.is_dir():
            there = there.parent
        if not os.access(there, os.W_OK):
            return Finding(Level.FAIL, "workspace", f"{settings.workspace} cannot be made", "set REFIT_WORKSPACE")
    level, name, text, fix = probe.room(str(there))
    return Finding(Level(level), f"workspace {name}", f"{settings.workspace}: {text}", fix)


def ports() -> Iterator[Finding]:
    """The embedded runtime's ports; one that is taken is fine where it is ours."""
    for variable, port in Embedded.from_env().ports.items():
        what, _ = PORTS[variable]
        with socket.socket() as probing:
            taken = probing.connect_ex((HOST, port)) == 0
        if taken:
            fix = f"`ss -ltnp 'sport = :{port}'` says who; another port: {variable}=... make run"
            yield Finding(Level.WARN, f"port {port}", f"{what}: something listens already (Refit itself?)", fix)
        else:
            yield Finding(Level.OK, f"port {port}", f"free for {what}")
