"""The launcher's hold on the services: one `make run` at a time, its child, its end."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from refit.embedded.processes import become_subreaper, catch_signals, descendants, send
from refit.embedded.settings import Embedded

STOP_SECONDS = 60  # the services' own grace periods are well below


class Busy(RuntimeError):
    """Another `make run` is at work in this place."""


@contextlib.contextmanager
def only_one(place: Embedded) -> Iterator[int]:
    """Hold the place; gives the lock's descriptor, which the services inherit.

    The kernel frees the lock when its last holder is gone. Since the services hold it too, a new `make run` waits its
    turn while those of a killed one are still ending.

    Raises:
        Busy: somebody holds it; the message has the pid.
    """
    place.home.mkdir(parents=True, exist_ok=True)
    lock = open(place.home / "run.lock", "a+")  # noqa: SIM115  closed below, after the services
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            pid, _, url = lock.read().strip().partition(" ")
            raise Busy(
                f"`make run` is at work here already (pid {pid or 'unknown'}, {url}): end it with Ctrl-C in its "
                f"terminal or `kill {pid}`, or start a second one in another place with REFIT_HOME and other ports"
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()} {place.airflow_url}\n")
        lock.flush()
        yield lock.fileno()


class ServicesProcess:
    """The process `refit.embedded.services`, and what it tells. A context manager: at the end nothing is left.

    The services end when this process ends, however that happens: they see their standard input closed.
    """

    def __init__(self, place: Embedded, lock: int) -> None:
        self.place, self._lock = place, lock
        self._events: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._process: subprocess.Popen[str] | None = None
        self.failure: dict[str, Any] | None = None

    def __enter__(self) -> ServicesProcess:
        become_subreaper()  # should the services themselves be killed, their children come to us
        self.place.logs.mkdir(parents=True, exist_ok=True)
        with open(self.place.logs / "services.log", "w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "refit.embedded.services"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=self.place.environment(),
                cwd=self.place.refit.repository,
                start_new_session=True,  # Ctrl-C is for the launcher; the services are ended in order
                pass_fds=(self._lock,),
            )
        threading.Thread(target=self._read, args=(self._process,), daemon=True).start()
        return self

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            with contextlib.suppress(ValueError):
                self._events.put(json.loads(line))
        self._events.put(None)

    def event(self, seconds: float) -> dict[str, Any] | None:
        """The next thing that happened, None when nothing did within `seconds`.

        A failure is kept in `failure`; a services process that ended without a word is one, too.
        """
        try:
            event = self._events.get(timeout=seconds)
        except queue.Empty:
            return None
        if event is None:
            log = self.place.logs / "services.log"
            tail = "\n".join(_tail(log))
            ended = {"event": "failed", "service": "services", "reason": f"ended:\n{tail}", "log": str(log)}
            event = self.failure or ended
            self._events.put(None)  # it stays so
        if event["event"] == "failed":
            self.failure = event
        return event

    def check(self) -> dict[str, Any] | None:
        """The failure that ended the services, None while they are well."""
        while self.failure is None and self.event(0) is not None:
            pass
        return self.failure

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        process = self._process
        if process is None:
            return
        assert process.stdin is not None
        # From here on no signal may break off the ending. `make` and a terminal send the first one twice, so only what
        # comes a second later counts as impatience; the services then kill instead of wait.
        began, told = time.monotonic(), False
        impatient = threading.Event()

        def hurry(signum: int, frame: types.FrameType | None) -> None:
            if time.monotonic() - began > 1:
                impatient.set()

        catch_signals(hurry)
        with contextlib.suppress(OSError):
            process.stdin.close()
        while process.poll() is None and time.monotonic() - began < STOP_SECONDS:
            if impatient.is_set() and not told:
                told = True
                send([process.pid, process.pid], signal.SIGTERM)
            time.sleep(0.05)
        left = descendants(os.getpid())
        while left and time.monotonic() - began < STOP_SECONDS + 5:
            send(left, signal.SIGKILL)
            time.sleep(0.05)
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            left = descendants(os.getpid())


def _tail(log: Path, lines: int = 10) -> list[str]:
    with contextlib.suppress(OSError):
        return log.read_text(errors="replace").splitlines()[-lines:]
    return []
