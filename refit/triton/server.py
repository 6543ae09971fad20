"""A real tritonserver as a child process: on loopback, with explicit model control, ending without a trace.

What is set and why (measured with 2.51.0):

- ``--model-control-mode=explicit`` and ``--load-model=*``: what is in the repository is served from the start, and
  changes happen when they are asked for. Poll mode tries half-copied versions.
- ``--exit-on-error=false``: a bad model does not end the server.
- ``--strict-readiness=false``: otherwise ``/v2/health/ready`` is 400 during each load, and for good after a failed one.
- ``--disable-auto-complete-config``: our configurations are complete, and completing starts a second Python process
  for each load (2.2 s instead of 0.4 s).
- The model-repository, trace and logging APIs ask for a key where one is given: a load call can carry code to run.

Standard library only.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType

from refit.files import write_json
from refit.triton.errors import InstallationError, PortTaken, ServerFailed
from refit.triton.installation import Installation, find

CONTROL_HEADER = "refit-control-key"
"""Name of the HTTP header (gRPC: ``triton-grpc-protocol-refit-control-key``) that carries the control key."""

CONTROL_KEY_VARIABLE = "REFIT_SECRET_TRITON_CONTROL_KEY"

_HOST = "127.0.0.1"
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  where the kernel shows POSIX shared memory
_RESTRICTED = "model-repository,trace,logging"
_FLAGS = ("--http-port", "--grpc-port", "--metrics-port")

# Becomes tritonserver, after asking the kernel to send it SIGTERM when its parent dies: a test run or a launcher that
# is killed must not leave a server behind.
_EXEC = (
    "import ctypes, os, signal, sys\n"
    "if sys.argv[1] != '0':\n"
    "    ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)\n"
    "    if os.getppid() != int(sys.argv[1]): sys.exit('the parent is gone')\n"
    "os.execv(sys.argv[2], sys.argv[2:])\n"
)


class TritonServer:
    """A tritonserver over one model repository; a context manager.

    Args:
        repository: the model repository (made when it is missing), or one in a bucket as Triton names it,
            ``s3://http://host:port/bucket/prefix``; its login is then in Amazon's variables of the environment.
        folder: the run folder for this server: backends, log (``triton.log``), ``server.json``. One server at a time.
        http_port, grpc_port, metrics_port: the ports on 127.0.0.1; None takes a free one.
        control_key: the key for the restricted APIs (letters, digits, ``-``, ``_``); None: unrestricted. It stands in
            the server's command line, as Triton has no other way to take it.
        installation: the server's parts; default: `installation.find()`.
        start_seconds: how long loading the repository may take.
        stop_seconds: how long the server may take to end by itself before it is killed; 0 kills at once, for a
            throwaway server that answers nobody.

    Attributes:
        url, grpc_url, metrics_url: addresses, once started.
        log_path: the server's output, both streams.
        pid: process id, None when not running.
    """

    def __init__(
        self,
        repository: Path | str,
        folder: Path,
        *,
        http_port: int | None = None,
        grpc_port: int | None = None,
        metrics_port: int | None = None,
        control_key: str | None = None,
        installation: Installation | None = None,
        start_seconds: float = 180.0,
        stop_seconds: float = 20.0,
    ) -> None:
        if control_key is not None and not re.fullmatch(r"[A-Za-z0-9_-]+", control_key):
            raise ServerFailed(
                "the control key may hold letters, digits, '-' and '_' only: Triton would cut it elsewhere"
            )
        self.place = str(repository) if "://" in str(repository) else str(Path(repository).absolute())
        self.folder = Path(folder).absolute()
        self.log_path = self.folder / "triton.log"
        self.url = self.grpc_url = self.metrics_url = ""
        self._wanted = (http_port, grpc_port, metrics_port)
        self._key = control_key
        self._installation = installation
        self._start_seconds = start_seconds
        self._stop_seconds = stop_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._id = f"refit-{uuid.uuid4().hex[:12]}"

    @property
    def repository(self) -> Path:
        """The model repository's folder."""
        return Path(self.place)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def __enter__(self) -> TritonServer:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server and wait until it answers; models that fail to load do not stop it.

        Raises:
            InstallationError: a part or a library is missing.
            PortTaken: a port that was asked for is in use.
            ServerFailed: it ended, or did not answer in time; the message has the end of its log.
        """
        if self._process is not None:
            raise ServerFailed(f"the server at {self.url} runs already: stop it first")
        installation = self._installation or find()
        if "://" not in self.place:
            self.repository.mkdir(parents=True, exist_ok=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        backends, lib = installation.assemble(self.folder)
        # A free port can be taken by another process before Triton binds it: then others are tried.
        for attempt in range(4):
            ports = _choose_ports(self._wanted)
            try:
                self._launch(installation, backends, lib, ports)
                self._wait_live(ports[0])
            except PortTaken as exc:
                self.stop()
                if exc.port in self._wanted or attempt == 3:
                    raise
                continue
            except BaseException:
                self.stop()
                raise
            break
        self.url, self.grpc_url, self.metrics_url = (
            f"http://{_HOST}:{ports[0]}",
            f"{_HOST}:{ports[1]}",
            f"http://{_HOST}:{ports[2]}",
        )
        write_json(
            self.folder / "server.json",
            {"schema": 1, "pid": self.pid, "id": self._id, "repository": self.place, "url": self.url}
            | {"grpc": self.grpc_url, "metrics": self.metrics_url, "log": str(self.log_path)},
        )

    def alive(self) -> bool:
        """The process runs (it says nothing about models)."""
        return self._process is not None and not _ended(self._process)

    def wait(self, seconds: float) -> bool:
        """Wait up to ``seconds`` for the process to end by itself; True when it has ended."""
        until = time.monotonic() + seconds
        while self.alive():
            if time.monotonic() >= until:
                return False
            time.sleep(0.05)
        return True

    def stop(self) -> None:
        """End the server and its stub processes: SIGTERM, then SIGKILL for all that is left. Does nothing twice."""
        process, self._process = self._process, None
        if process is None:
            return
        if self._stop_seconds > 0 and not _ended(process):
            process.terminate()
            until = time.monotonic() + self._stop_seconds
            while not _ended(process) and time.monotonic() < until:
                time.sleep(0.02)
        # The server leads a group of its own, and as long as it is not reaped nobody else can get that group's number.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        (self.folder / "server.json").unlink(missing_ok=True)
        for region in _SHARED_MEMORY.glob(f"{self._id}*"):  # a killed stub cannot remove its own
            region.unlink(missing_ok=True)

    def log_tail(self, lines: int = 15) -> str:
        """The last lines of the server's log that are not tables."""
        with contextlib.suppress(OSError):
            text = self.log_path.read_text(errors="replace")
            return "\n".join([ln for ln in text.splitlines() if ln and ln[0] not in "+|"][-lines:])
        return ""

    def _launch(self, installation: Installation, backends: Path, lib: Path, ports: tuple[int, int, int]) -> None:
        command = [
            str(installation.binary),
            f"--id={self._id}",
            f"--model-repository={self.place}",
            "--model-control-mode=explicit",
            "--load-model=*",
            "--exit-on-error=false",
            "--strict-readiness=false",
            "--disable-auto-complete-config",
            f"--backend-directory={backends}",
            f"--backend-config=python,shm-region-prefix-name={self._id}-",
            "--backend-config=python,stub-timeout-seconds=120",
            "--allow-gpu-metrics=false",
            # Clients that keep a connection open would hold the end up for 30 s.
            "--exit-timeout-secs=5",
            *(f"--{kind}-address={_HOST}" for kind in ("http", "grpc", "metrics")),
            *(f"{flag}={port}" for flag, port in zip(_FLAGS, ports, strict=True)),
        ]
        if self._key is not None:
            for flag in ("--http-restricted-api", "--grpc-restricted-protocol"):
                command.append(f"{flag}={_RESTRICTED}:{CONTROL_HEADER}={self._key}")
        # The kernel's signal comes when the starting *thread* ends, so it is asked for from the main thread only.
        parent = os.getpid() if threading.current_thread() is threading.main_thread() else 0
        if self.log_path.exists():
            os.replace(self.log_path, self.log_path.with_suffix(".log.1"))
        with open(self.log_path, "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _EXEC, str(parent), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment(installation, lib),
                cwd=self.folder,
                start_new_session=True,
            )

    def _wait_live(self, port: int) -> None:
        """Wait until *this* server answers: its id must come back, an older server may hold the port still."""
        assert self._process is not None
        until = time.monotonic() + self._start_seconds
        while time.monotonic() < until:
            if _ended(self._process):
                raise self._diagnose()
            if _server_id(port) == self._id:
                return
            time.sleep(0.03)
        raise ServerFailed(
            f"tritonserver did not answer within {self._start_seconds:g} s; "
            f"the end of {self.log_path}:\n{self.log_tail()}"
        )

    def _diagnose(self) -> Exception:
        """Why the server ended, from its log."""
        text = self.log_path.read_text(errors="replace")
        library = re.search(r"error while loading shared libraries: (\S+):", text)
        if library:
            return InstallationError(
                f"tritonserver cannot start: the library {library.group(1)} is missing; install the package that has it"
            )
        taken = re.search(r"Socket '[^']*:(\d+)' already in use|Failed to bind to [^ ]*:(\d+)", text)
        if taken:
            port = int(taken.group(1) or taken.group(2))
            flags = dict(zip(self._wanted, _FLAGS, strict=True))
            return PortTaken(port, flags.get(port, "--http-port, --grpc-port or --metrics-port"))
        assert self._process is not None
        return ServerFailed(
            f"tritonserver ended with exit code {self._process.poll()}; the end of {self.log_path}:\n{self.log_tail()}"
        )


def environment(installation: Installation, lib: Path) -> dict[str, str]:
    """The server's variables: its own libraries and Python first, no secrets, nobody else's packages."""
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("REFIT_SECRET_") and name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    }
    known = env.get("LD_LIBRARY_PATH")
    env["LD_LIBRARY_PATH"] = ":".join([str(lib), str(installation.libraries), *([known] if known else [])])
    env["PATH"] = f"{installation.python.parent}:{env.get('PATH', os.defpath)}"
    return env


def _choose_ports(wanted: tuple[int | None, ...]) -> tuple[int, int, int]:
    """The wanted ports, proven to be free, and free ones where none was asked for; all different."""
    held: list[socket.socket] = []
    try:
        for port, flag in zip(wanted, _FLAGS, strict=True):
            probe = socket.socket()
            held.append(probe)
            # As Triton binds: ports of connections that only linger are free, those that somebody listens on are not.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((_HOST, port or 0))
                probe.listen(1)
            except OSError:
                raise PortTaken(port or 0, flag) from None
        http, grpc, metrics = (probe.getsockname()[1] for probe in held)
        return http, grpc, metrics
    finally:
        for probe in held:
            probe.close()


def _server_id(port: int) -> str | None:
    """The id of the live server on a port, None while there is none."""
    connection = http.client.HTTPConnection(_HOST, port, timeout=5)
    try:
        connection.request("GET", "/v2/health/live")
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            return None
        connection.request("GET", "/v2")
        name = json.loads(connection.getresponse().read()).get("name")
        return str(name)
    except (OSError, http.client.HTTPException, ValueError, AttributeError):
        return None
    finally:
        connection.close()


def _ended(process: subprocess.Popen[bytes]) -> bool:
    """The process has ended; it is not reaped, so its number stays its own."""
    if process.returncode is not None:
        return True
    try:
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True
