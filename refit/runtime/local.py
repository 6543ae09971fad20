"""Runs a stage as a subprocess of this machine: the same runner, request and result as in a pod.

The CLI and Airflow's operator use it. Standard library and `refit.outcome` only.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import stat
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from refit.outcome import Outcome, Result, ResultError

REPOSITORY = Path(__file__).resolve().parents[2]
RUNNER = REPOSITORY / "refit" / "runner.py"

# What a stage may know of the process that starts it. Everything else stays behind: Airflow's own settings hold
# database passwords and tokens.
KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "CUDA_VISIBLE_DEVICES")
# The way out to NGC and to data on a server. A proxy's login may stand in it: the runner blots it out of all that it
# prints (Scrubber), as it does secrets.
WAY_OUT = (
    *(f"{s}_proxy" for s in ("http", "https", "all", "no")),
    *(f"{s}_PROXY" for s in ("HTTP", "HTTPS", "ALL", "NO")),
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE",
)  # fmt: skip
OWN = ("REFIT_REQUEST", "REFIT_TERMINATION_LOG", "REFIT_ATTEMPT_ID")  # between one runner and its starter
SECRET = "REFIT_SECRET_"  # noqa: S105 - the beginning of a variable's name
TAIL_LINES = 20
KILL_SECONDS = 5.0  # how long a runner that got SIGKILL may take to be gone


class EnvironmentMissing(RuntimeError):
    """An environment (venv) that is not on this machine."""


class SecretError(ValueError):
    """A secret's file that cannot be used."""


def interpreter(environment: str) -> Path:
    """The Python of an environment: <REFIT_ENVS>/<environment>/bin/python. Raises EnvironmentMissing."""
    home = Path(os.environ.get("REFIT_HOME") or REPOSITORY / ".refit")
    envs = Path(os.environ.get("REFIT_ENVS") or home / "envs")
    path = Path(os.path.abspath(envs)) / environment / "bin" / "python"
    if not os.access(path, os.X_OK):
        raise EnvironmentMissing(
            f"environment {environment!r} has no Python at {path}: run `sh bin/setup {environment}`"
        )
    return path


def absent(environments: Iterable[str]) -> str:
    """What is to be said of those environments that are not on this machine; "" where all are."""
    missing = {}
    for name in environments:
        try:
            interpreter(name)
        except EnvironmentMissing as exc:
            missing[name] = str(exc)
    if len(missing) < 2:
        return "".join(missing.values())
    return f"environments {', '.join(missing)} are not installed: run `sh bin/setup {' '.join(missing)}`"


class StageProcess:
    """One start of a stage. `run` starts and waits; `stop` may come from a signal handler or another thread.

    plan, stage: a plan.json and the name of a stage in it; or request: the stage itself (docs/contracts.md).
    python: the interpreter of the stage's environment.
    env: variables for the runner and the command, beside those of KEPT, WAY_OUT and REFIT_*.
    on_line: gets each line of the output without its line end, always in the thread that called `run`.
    """

    def __init__(
        self,
        *,
        plan: Path | None = None,
        stage: str | None = None,
        request: Mapping[str, Any] | None = None,
        python: Path,
        env: Mapping[str, str] | None = None,
        on_line: Callable[[str], None] = print,
    ) -> None:
        if (plan is None) == (request is None) or (plan is None) != (stage is None):
            raise ValueError("give plan and stage, or request")
        self._plan, self._stage = plan, stage
        self._request = dict(request) if request is not None else _find(plan, stage)
        self._by_plan = plan is not None
        self._python = python
        self._env = dict(env or {})
        self._on_line = on_line
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._process: subprocess.Popen[bytes] | None = None
        self._returncode: int | None = None
        self._stopped = False

    def run(self) -> Result:
        """Start the stage, pass its lines on, wait for its end.

        A stage that fails, also one that cannot even be started, is a Result and no exception. An exception of
        `on_line`, and KeyboardInterrupt, stop the stage and go on.
        """
        if self._process is not None:
            raise RuntimeError("a StageProcess is one start; make another for the next")
        began = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        if self._stopped:
            return self._no_result(Outcome.CANCELLED, "stopped before it was started")
        try:
            env = self._environment()
        except SecretError as exc:
            return self._no_result(Outcome.BAD_SPEC, str(exc))
        with _answer_file() as answer:
            try:
                self._start({**env, "REFIT_TERMINATION_LOG": str(answer)})
            except OSError as exc:
                return self._no_result(Outcome.TOOLKIT_ERROR, f"{self._python} cannot be started: {exc.strerror}")
            try:
                if self._stopped:  # by a signal just before there was a process
                    self.stop()
                while (line := self._lines.get()) is not None:
                    self._tail.append(line)
                    self._on_line(line)
            except BaseException:
                self.stop()
                raise
            return self._result(answer, began)

    def stop(self, grace: float | None = None) -> None:
        """End the stage: SIGTERM, and SIGKILL after `grace` seconds (default: what the stage asks for, and 5 more).

        Returns when it has ended. Does nothing before the start (`run` then returns at once) and after the end.
        """
        self._stopped = True
        process = self._process
        if process is None:
            return
        if grace is None:
            asked = self._request.get("grace_seconds")
            grace = (asked if isinstance(asked, int | float) else 20) + 5
        self._send(process, signal.SIGTERM)
        if not self._wait(grace):
            self._send(process, signal.SIGKILL)  # its guard ends the command
            self._wait(KILL_SECONDS)

    def _start(self, env: Mapping[str, str]) -> None:
        # A request goes by standard input, not by a variable: the kernel limits those to 128 KiB.
        what = ["--plan", str(self._plan), "--stage", str(self._stage)] if self._by_plan else ["--request", "-"]
        # -I: neither PYTHONPATH nor the folder of runner.py may put a module before the standard library's.
        command = [str(self._python), "-I", str(RUNNER), "--parent", str(os.getpid()), *what]
        process = subprocess.Popen(
            command,
            env=dict(env),
            stdin=subprocess.DEVNULL if self._by_plan else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in a terminal is for us; we stop the stage in order
        )
        self._process = process
        threading.Thread(target=self._read, args=(process,), daemon=True).start()
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(self._request).encode())
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        """Empty the pipe and reap the runner, in a thread: `stop` may hold up the one that called `run`."""
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self._lines.put(line.decode("utf-8", "replace").rstrip("\r\n"))
        self._returncode = process.wait()
        self._lines.put(None)

    @staticmethod
    def _send(process: subprocess.Popen[bytes], what: signal.Signals) -> None:
        with contextlib.suppress(OSError):
            process.send_signal(what)

    def _wait(self, seconds: float) -> bool:
        """Whether the runner ends within that time. A lock or an event could not be waited for in a signal handler."""
        deadline = time.monotonic() + seconds
        while self._returncode is None and time.monotonic() < deadline:
            time.sleep(0.02)
        return self._returncode is not None

    def _environment(self) -> dict[str, str]:
        """The runner's variables; of the secrets only those that the stage names. Raises SecretError."""
        env = {
            name: value
            for name, value in os.environ.items()
            if name in (*KEPT, *WAY_OUT)
            or (name.startswith("REFIT_") and not name.startswith(SECRET) and name not in OWN)
        }
        names = self._request.get("secrets") or []
        home = Path(self._env.get("REFIT_HOME") or os.environ.get("REFIT_HOME") or REPOSITORY / ".refit")
        secrets = {SECRET + name: secret(name, home) for name in names if isinstance(name, str)}
        env |= {name: value for name, value in secrets.items() if value is not None}
        return {**env, "PYTHONPATH": str(REPOSITORY), **self._env}

    def _result(self, answer: Path, began: str) -> Result:
        """What the runner answered: whole from the stage's folder, else its compact form, else what is known."""
        whole = compact = None
        with contextlib.suppress(ResultError, TypeError, KeyError):
            whole = Result.read(Path(self._request["paths"]["stage"]) / "result.json")
        with contextlib.suppress(ResultError):
            compact = Result.read(answer)
        if compact is None:  # the runner was killed, or had no room to answer
            fresh = whole is not None and whole.key == self._request.get("key") and whole.started >= began
            return whole if whole is not None and fresh else self._silent_end()
        if whole is not None and (whole.key, whole.ended, whole.outcome) == (
            compact.key,
            compact.ended,
            compact.outcome,
        ):
            return whole
        return compact

    def _silent_end(self) -> Result:
        code = self._returncode or 0
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        reason = f"the runner ended without a result ({how})"
        return self._no_result(Outcome.CANCELLED if self._stopped else Outcome.TOOLKIT_ERROR, reason)

    def _no_result(self, outcome: Outcome, reason: str) -> Result:
        """The result of a start of which no runner told anything."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        known = {key: str(self._request.get(key) or "") for key in ("name", "pipeline", "run", "key")}
        said = {"outcome": outcome, "reason": reason, "advice": outcome.advice, "log_tail": list(self._tail)}
        name = known["name"] or str(self._stage or "")
        return Result.from_json({"schema": 1, **known, **said, "name": name, "started": now, "ended": now})


def _find(plan: Path | None, stage: str | None) -> dict[str, Any]:
    """The stage of a plan, for its folder and grace; {} where the plan is bad: to say so is the runner's part."""
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError, KeyError):
        stages = json.loads(Path(plan or "").read_bytes())["stages"]
        return next((dict(s) for s in stages if s.get("name") == stage), {})
    return {}


def secret(name: str, home: Path) -> str | None:
    """A secret's value: from the environment, else from a file that only its owner can read; None where it is not set.

    Raises SecretError for a file that others can read, or that cannot be read.
    """
    value = os.environ.get(SECRET + name)
    path = home / "secrets" / name
    if value is not None or not name.isidentifier() or not path.exists():
        return value
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise SecretError(f"the secret {path} can be read by others: chmod 600 {path}")
        return path.read_text(encoding="utf-8").rstrip("\n")
    except (OSError, UnicodeDecodeError) as exc:
        raise SecretError(f"the secret {path} cannot be read: {exc}") from None


@contextlib.contextmanager
def _answer_file() -> Iterator[Path]:
    """A file for the runner's compact result; one that swallows it where no file can be made."""
    try:
        handle, name = tempfile.mkstemp(prefix="refit-answer-")
    except OSError:
        yield Path(os.devnull)
        return
    os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)
