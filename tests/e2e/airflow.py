"""The Airflow of images/airflow on this machine: LocalExecutor, PostgreSQL, a kubeconfig with small rights."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refit.config import Settings
from refit.embedded import airflow as embedded
from refit.embedded.api import Airflow as Client
from refit.embedded.api import ApiError
from refit.embedded.processes import Child, descendants, send
from refit.embedded.settings import Embedded, write_private
from tests.cluster import ROOT, wait

ENVIRONMENT = "cluster"
COMPONENTS = {
    "api-server": ("api-server",),
    "scheduler": ("scheduler", "--skip-serve-logs"),
    "dag-processor": ("dag-processor",),
    "triggerer": ("triggerer", "--skip-serve-logs"),
}
ENDED = ("success", "failed")


class Airflow:
    """Its components on loopback; everything of it lies below `home`. `close` leaves no process behind.

    settings: what REFIT_* variables say, see `refit.config`. env: further variables, KUBECONFIG among them.
    """

    def __init__(self, home: Path, database: str, settings: Mapping[str, str], env: Mapping[str, str]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports = {"AIRFLOW_PORT": probe.getsockname()[1]}
        envs = Settings.from_env().envs
        base = {"REFIT_REPOSITORY": str(ROOT), "REFIT_HOME": str(home), "REFIT_ENVS": str(envs)}
        self.place = Embedded(Settings.from_env({**base, **settings}), ports)
        self.python = self.place.python(ENVIRONMENT)
        self.env = {**self.place.environment(), **env}
        self.database = database
        self.children: dict[str, Child] = {}
        self.client = Client(self.place.airflow_url, embedded.USER, embedded.password(self.place))

    def start(self) -> None:
        """Migrate the database, start every component, make the pools."""
        home = self.place.airflow
        sections = embedded.configuration(self.place)
        sections["database"]["sql_alchemy_conn"] = self.database
        sections["core"]["parallelism"] = 8
        write_private(home / "airflow.cfg", embedded.as_cfg(sections))
        write_private(home / "passwords.json", json.dumps({embedded.USER: embedded.password(self.place)}) + "\n")
        self._run("-m", "airflow", "db", "migrate")
        began = time.time()
        for name in COMPONENTS:
            self.start_component(name)
        wait("Airflow", lambda: self._healthy(began), 300)
        question = "import dataclasses, json; from operators.pools import required;"
        for pool in json.loads(self._run("-c", question + "print(json.dumps([*map(dataclasses.asdict, required())]))")):
            self.client.set_pool(pool)

    def start_component(self, name: str) -> None:
        log = self.place.logs / f"{name}.log"
        self.children[name] = Child(name, (self.python, "-m", "airflow", *COMPONENTS[name]), log, self.env, ROOT)
        self.children[name].start()

    def kill_component(self, name: str) -> None:
        """SIGKILL for a component and its children, as when the machine takes it away."""
        child = self.children.pop(name)
        assert child.process is not None
        send([child.pid, *descendants(child.pid)], signal.SIGKILL)
        child.process.wait(10)

    def revive(self) -> list[str]:
        """Start the components that have ended by themselves, as Kubernetes would; their names."""
        ended = [child.name for child in self.children.values() if not child.running()]
        for name in ended:
            self.start_component(name)
        return ended

    def close(self) -> None:
        for child in self.children.values():
            _signal(child.pid, signal.SIGTERM)
        until = time.monotonic() + 15
        for child in self.children.values():
            assert child.process is not None
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.1, until - time.monotonic()))
            _signal(child.pid, signal.SIGKILL)  # what is left of its group
            child.process.wait(10)

    def _run(self, *words: str) -> str:
        done = subprocess.run(
            [self.python, *words], cwd=ROOT, env=self.env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{' '.join(words)}: {(done.stdout + done.stderr)[-3000:]}"
        return done.stdout

    def _healthy(self, since: float) -> bool:
        for child in self.children.values():
            assert child.running(), f"{child.name} has ended: {child.log_tail()}"
        try:
            return all(self.client.healthy(since).values())
        except ApiError:
            return False

    # --- runs ---

    def new_run(self, dag: str, before: set[str], seconds: float = 300) -> str:
        """The id of the run that Airflow has started by itself."""
        return str(wait(f"a run of {dag}", lambda: next(iter(self._ids(dag) - before), None), seconds))

    def runs(self, dag: str) -> set[str]:
        """The ids of a DAG's runs, once Airflow knows the DAG."""
        wait(dag, lambda: self._known(dag) or self.client.import_errors(), 300)
        errors = self.client.import_errors()
        assert not errors, errors
        return self._ids(dag)

    def trigger(self, dag: str, **conf: Any) -> str:
        self.runs(dag)
        return self.client.trigger(dag, conf)

    def finished(self, dag: str, run: str, seconds: float) -> str:
        """The end state of a run; where it failed, what its tasks said is printed."""
        path = f"/dags/{dag}/dagRuns/{run}"

        def state() -> str | None:
            found = self.client.get(path)["state"]
            return found if found in ENDED else None

        try:
            ended = str(wait(f"the end of {dag} {run}", state, seconds, every=1))
        except AssertionError:
            raise AssertionError(f"{dag} {run} is still running after {seconds:g} s: {self.states(dag, run)}") from None
        if ended == "failed":
            for task in self.client.tasks(dag, run):
                if task["state"] == "failed":
                    print(f"{task['task_id']}: {self.client.last_error(dag, run, task['task_id'], task['try_number'])}")
        return ended

    def states(self, dag: str, run: str) -> dict[str, str | None]:
        return {task["task_id"]: task["state"] for task in self.client.tasks(dag, run)}

    def answer(self, dag: str, run: str, task: str) -> Any:
        """What a task handed on (its XCom)."""
        path = f"/dags/{dag}/dagRuns/{run}/taskInstances/{task}/xcomEntries/return_value"
        return self.client.get(path, deserialize="true")["value"]

    def _ids(self, dag: str) -> set[str]:
        return {run["dag_run_id"] for run in self.client.runs(dag)}

    def _known(self, dag: str) -> bool:
        return any(found["dag_id"] == dag for found in self.client.get("/dags", limit=100)["dags"])


def _signal(group: int, what: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, what)
