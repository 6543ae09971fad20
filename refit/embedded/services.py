"""Starts and supervises Airflow's components and Triton on loopback; `refit.embedded.live` runs it as a child.

    python -m refit.embedded.services

It runs until its standard input is closed (the launcher ended, however it did), until SIGTERM, or until a service
dies, and then ends everything in order. A second SIGTERM ends everything at once. What happens is told on standard
output, a JSON object a line::

    {"event": "starting", "service": "scheduler"}            {"event": "ready", "service": "triton", "seconds": 1.9}
    {"event": "up", "seconds": 9.8}                           {"event": "stopped"}
    {"event": "failed", "service": "triton", "reason": "...", "log": "/.../triton.log"}

Exit codes: 0 ended as asked, 1 something failed.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import signal
import sys
import time
import types
from collections.abc import Callable

from refit.config import ConfigError
from refit.embedded import airflow
from refit.embedded.airflow import AirflowError
from refit.embedded.api import Airflow, ApiError
from refit.embedded.processes import (
    Child,
    become_subreaper,
    catch_signals,
    descendants,
    kill_rest,
    reap,
    send,
    wait_until,
)
from refit.embedded.settings import HOST, Embedded, taken_port
from refit.triton.server import CONTROL_KEY_VARIABLE

START_SECONDS = 180  # on a machine that is busy with other things; usually about ten
TASK_GRACE = 25  # a stage that is told to end may save its work for so long (its own grace period is 20 s)
TRITON_GRACE = 8
SERVER_GRACE = 3  # Airflow's servers keep nothing in memory that is worth waiting for


class ServiceError(RuntimeError):
    """A service that cannot be started or has died."""

    def __init__(self, service: str, reason: str, log: str = "") -> None:
        super().__init__(f"{service}: {reason}")
        self.service, self.reason, self.log = service, reason, log


class Stop(Exception):
    """Somebody wants the end."""


def say(event: str, **more: object) -> None:
    """A line to the launcher; it may be gone."""
    with contextlib.suppress(OSError, ValueError):
        print(json.dumps({"event": event, **more}), flush=True)


class Services:
    """The services of one place: `run` starts them and stays until the end."""

    def __init__(self, place: Embedded) -> None:
        self.place = place
        env = place.environment()
        python = place.python("airflow")

        def component(name: str, *argv: str) -> Child:
            log = place.logs / f"{name}.log"
            return Child(name, (python, "-m", "airflow", name, *argv), log, env, place.refit.repository)

        ports = place.ports
        self.triton = Child(
            "triton",
            (
                *(place.python("tools"), "-m", "refit.triton", "serve"),
                *("--repository", str(place.refit.model_repository), "--run-dir", str(place.home / "triton")),
                *("--http-port", str(ports["TRITON_HTTP_PORT"])),
                *("--grpc-port", str(ports["TRITON_GRPC_PORT"])),
                *("--metrics-port", str(ports["TRITON_METRICS_PORT"])),
            ),
            place.logs / "triton.log",
            {**env, CONTROL_KEY_VARIABLE: place.control_key()},
            place.refit.repository,
        )
        self.api = component("api-server")
        # The worker and triggerer log servers would listen on every interface; the UI reads the files instead.
        self.scheduler = component("scheduler", "--skip-serve-logs")
        self.triggerer = component("triggerer", "--skip-serve-logs")
        self.processor = component("dag-processor")
        self.children = [self.triton, self.api, self.scheduler, self.processor, self.triggerer]
        self._ending = self._wanted = self._hurry = False

    def run(self) -> int:
        """Start, stay, end; the exit code."""
        become_subreaper()
        catch_signals(self._terminate)
        code = 0
        try:
            self._start()
            while True:
                self._check(0.5)
        except Stop:
            pass
        except ServiceError as exc:
            code = 1
            say("failed", service=exc.service, reason=exc.reason, log=exc.log)
        except (AirflowError, OSError) as exc:
            code = 1
            say("failed", service="airflow", reason=str(exc), log="")
        self._stop()
        say("stopped")
        return code

    def _start(self) -> None:
        began, wall = time.monotonic(), time.time()
        taken = taken_port(self.place.ports)
        if taken:
            raise ServiceError("ports", taken)
        self._launch(self.triton)
        airflow.prepare(self.place)
        for child in (self.api, self.processor, self.triggerer):
            self._launch(child)
        client = Airflow(self.place.airflow_url, airflow.USER, airflow.password(self.place))
        waiting: dict[str, Callable[[], bool]] = {
            "triton": lambda: _answers(self.place.ports["TRITON_HTTP_PORT"], "/v2/health/live"),
            "api-server": lambda: client.healthy(wall)["metadatabase"],
            "scheduler": lambda: client.healthy(wall)["scheduler"],
            "dag-processor": lambda: client.healthy(wall)["dag_processor"],
            "triggerer": lambda: client.healthy(wall)["triggerer"],
        }
        while waiting:
            for name, ready in list(waiting.items()):
                with contextlib.suppress(ApiError):
                    if ready():
                        del waiting[name]
                        say("ready", service=name, seconds=round(time.monotonic() - began, 1))
                        if name == "api-server":
                            # Only now: a task that is started earlier cannot reach the API, and fails.
                            self._make_pools(client)
                            self._launch(self.scheduler)
            self._check(0.2)
            if time.monotonic() - began > START_SECONDS:
                name = next(iter(waiting))
                child = next(c for c in self.children if c.name == name)
                raise ServiceError(name, f"not ready after {START_SECONDS} s:\n{child.log_tail()}", str(child.log))
        say("up", seconds=round(time.monotonic() - began, 1))

    def _launch(self, child: Child) -> None:
        say("starting", service=child.name)
        child.start()

    def _make_pools(self, client: Airflow) -> None:
        try:
            for pool in airflow.pools(self.place):
                client.set_pool(pool)
        except ApiError as exc:
            raise ServiceError("api-server", f"the pools cannot be made: {exc}", str(self.api.log)) from exc

    def _check(self, seconds: float) -> None:
        """Wait a little. Raises Stop when the end is wanted, ServiceError when a service is dead."""
        try:
            readable, _, _ = select.select([sys.stdin], [], [], seconds)
        except InterruptedError:
            readable = []
        reap(self.children)
        if self._wanted or (readable and not os.read(sys.stdin.fileno(), 1024)):
            raise Stop
        for child in self.children:
            if child.process is not None and not child.running():
                code = child.process.returncode
                how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
                raise ServiceError(child.name, f"{how}; the end of its log:\n{child.log_tail()}", str(child.log))

    def _stop(self) -> None:
        """No new tasks; then the tasks, while scheduler and API server can still record it; then the servers."""
        self._ending = True
        started = [child for child in self.children if child.process is not None]

        def ended(*children: Child) -> bool:
            return self._hurry or not any(child.running() for child in children)

        def terminate(*children: Child) -> None:
            send((child.pid for child in children if child.running()), signal.SIGTERM)

        terminate(self.scheduler, self.processor, self.triggerer)
        if self.scheduler.running():
            # Below the scheduler are LocalExecutor's workers, below those the tasks. A task that is terminated calls
            # its operator's on_kill and is retried when Airflow runs again; the stage resumes from its checkpoint.
            send(descendants(self.scheduler.pid, depth=2), signal.SIGTERM)
            wait_until(lambda: ended(self.scheduler), TASK_GRACE, started)
        terminate(self.api, self.triton)
        wait_until(lambda: ended(*started), SERVER_GRACE, started)
        wait_until(lambda: ended(self.triton), TRITON_GRACE, started)
        kill_rest(started)

    def _terminate(self, signum: int, frame: types.FrameType | None) -> None:
        self._wanted, self._hurry = True, self._ending


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def main() -> int:
    try:
        return Services(Embedded.from_env()).run()
    except ConfigError as exc:
        say("failed", service="settings", reason=str(exc), log="")
        return 1


if __name__ == "__main__":
    sys.exit(main())
