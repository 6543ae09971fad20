"""A bench for the runner: it makes requests whose command is a piece of Python, and starts the real runner."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
RUNNER = REPOSITORY / "refit" / "runner.py"
VERSIONS = tuple(f"3.{minor}" for minor in range(6, 14))  # all that the runner must run on
EDGES = ("3.6", "3.8", "3.13")  # the oldest, what TAO's images have, the newest
PATIENCE = 60.0  # seconds until a test that waits gives up


@functools.cache
def interpreter(version: str) -> str | None:
    """A Python of this version on this machine: one of pyenv's, or on the PATH."""
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    found = sorted(str(p) for p in root.glob(f"versions/{version}.*/bin/python"))
    candidates = [*found, shutil.which(f"python{version}")]
    for path in filter(None, candidates):
        if subprocess.run([path, "-c", "import ctypes"], capture_output=True, check=False).returncode == 0:
            return path
    return None


def python(version: str) -> str:
    path = interpreter(version)
    if path is None:
        pytest.skip(f"no Python {version} on this machine")
    return path


@dataclass
class Done:
    """What a start came to: `code` of the runner, its `output`, the `result` it wrote (None when it wrote none)."""

    code: int
    output: str
    result: Any
    folder: Path

    @property
    def outcome(self) -> str:
        return str(self.result["outcome"])

    @property
    def reason(self) -> str:
        return str(self.result["reason"])


class Bench:
    """`folder` is the stage's, `compact` the file that takes the compact result. `with` it, no process is left."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.run_dir = root / "runs" / "r1"
        self.folder = self.run_dir / "03-train"
        self.out = self.folder / "out"
        self.compact = root / "termination-log"
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._started:
            if process.poll() is None:
                process.kill()  # its guard ends the command
                process.wait()

    def request(self, code: str = "", **changes: Any) -> dict[str, Any]:
        """A request whose command runs `code`; there `out` is the results folder, and `note` writes status."""
        prelude = """
            import json, os, signal, sys, time
            out = sys.argv[1]
            def say(*words): print(*words, flush=True)
            def path(name): return os.path.join(out, name)
            def note(**record):
                with open(path("status.json"), "a") as f: f.write(json.dumps(record) + "\\n")
        """
        script = textwrap.dedent(prelude) + textwrap.dedent(code)
        return {
            "schema": 1,
            "pipeline": "demo",
            "run": "r1",
            "name": "train",
            "action": "train",
            "key": "a" * 64,
            "argv": ["{python}", "-S", "-c", script, "{out}"],
            "paths": {"workspace": str(self.root), "run": str(self.run_dir), "stage": str(self.folder)},
            "status": "status.json",
            "grace_seconds": 5,
        } | changes

    def start(
        self,
        request: Mapping[str, Any],
        *,
        env: Mapping[str, str] | None = None,
        by: str = sys.executable,
        before: tuple[str, ...] = (),
        arguments: tuple[str, ...] = (),
    ) -> subprocess.Popen[bytes]:
        file = self.root / "given.json"
        file.write_text(json.dumps(request))
        self.compact.write_bytes(b"")
        base = {k: v for k, v in os.environ.items() if not k.startswith("REFIT_")}
        process = subprocess.Popen(
            [*before, by, "-I", str(RUNNER), "--request", str(file), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**base, "REFIT_TERMINATION_LOG": str(self.compact), **(env or {})},
        )
        self._started.append(process)
        return process

    def finish(self, process: subprocess.Popen[bytes]) -> Done:
        try:
            output, _ = process.communicate(timeout=PATIENCE)
        finally:
            if process.poll() is None:
                process.kill()
        return Done(process.returncode, output.decode(), self.result(), self.folder)

    def run(self, request: Mapping[str, Any], **how: Any) -> Done:
        return self.finish(self.start(request, **how))

    def result(self) -> Any:
        path = self.folder / "result.json"
        return json.loads(path.read_text()) if path.exists() else None


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    """The first true value of `condition`; fails the test when there is none in time."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError(f"waited in vain: {what}")


def read_number(path: Path) -> int:
    """The number that a command has written to a file, once it is there."""
    return int(wait_for(lambda: path.exists() and path.read_text().strip(), f"{path.name} is written"))


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except OSError:
        return False
    return state not in {b"Z", b"X"}


def children_of(pid: int) -> Iterator[int]:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_bytes().rpartition(b")")[2].split()[1]) == pid:
                yield int(stat.parent.name)
        except OSError:
            continue
