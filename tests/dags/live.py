"""A real Airflow for tests: API server, scheduler (LocalExecutor), DAG processor and triggerer, on loopback only."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from airflow.utils import db

from operators import bundle, pools
from tests.operators.home import REPOSITORY, settings

COMPONENTS = {
    "api-server": ("api-server", "--host", "127.0.0.1"),
    "scheduler": ("scheduler", "--skip-serve-logs"),
    "dag-processor": ("dag-processor",),
    "triggerer": ("triggerer", "--skip-serve-logs"),
}
BIN = Path(sys.executable).parent
# Of all that one process starts, one after the other: they share its database, and what an earlier one has left there.
FERNET_KEY = base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
# Where a test waits for something: far above what it takes on a busy machine with two cores.
PATIENCE = 180.0


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def wait_for(what: str, condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """The first true answer of a condition."""
    end = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < end, f"waited {seconds:.0f} s in vain for {what}"
        time.sleep(0.1)
    return answer


class Airflow:
    """The bundle is `root`, DAG files go to root/dags; AIRFLOW_HOME is this process's. `close` leaves no process."""

    def __init__(self, root: Path, env: dict[str, str]) -> None:
        self.root, self.home = root, Path(os.environ["AIRFLOW_HOME"])
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith("AIRFLOW_")},
            **settings(self.home),
            "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": bundle.config(root),
            "PYTHONPATH": str(REPOSITORY),
            # The components must agree on these; left alone, each makes its own where there is no airflow.cfg yet.
            "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(32),
            "AIRFLOW__CORE__FERNET_KEY": FERNET_KEY,
            "AIRFLOW__API__SECRET_KEY": secrets.token_hex(32),
            "AIRFLOW__API__PORT": str(port),
            "AIRFLOW__API__BASE_URL": self.url,
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "AIRFLOW__CORE__PARALLELISM": "3",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "AIRFLOW__CORE__MIN_SERIALIZED_DAG_UPDATE_INTERVAL": "1",
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "2",
            "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.1",
            "AIRFLOW__SCHEDULER__TRIGGER_TIMEOUT_CHECK_INTERVAL": "1",
            "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
            "AIRFLOW__LOGGING__LOGGING_LEVEL": "INFO",
            **env,
        }
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.token = ""

    def start(self) -> None:
        db.initdb()  # here and not by the CLI: this process has imported airflow already
        for name in COMPONENTS:
            self.start_component(name)
        wait_for("the API server", self._answers)
        there = {pool["name"] for pool in self.call("GET", "/pools")["pools"]}  # of one that ran before
        for pool in pools.required(local_slots=2):
            if pool.name in there:
                continue
            body = {"name": pool.name, "slots": pool.slots, "description": pool.description}
            self.call("POST", "/pools", {**body, "include_deferred": pool.include_deferred})

    def start_component(self, name: str) -> None:
        with open(self.root / f"{name}.log", "ab") as log:
            self.processes[name] = subprocess.Popen(
                [BIN / "airflow", *COMPONENTS[name]], env=self.env, stdout=log, stderr=log, start_new_session=True
            )

    def kill_component(self, name: str) -> None:
        """SIGKILL for a component and its children, as when the machine takes it away."""
        process = self.processes.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def close(self) -> None:
        for process in self.processes.values():
            self._signal(process.pid, signal.SIGTERM)
        end = time.monotonic() + 10
        for process in self.processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, end - time.monotonic()))
            self._signal(process.pid, signal.SIGKILL)  # whatever is left of its group

    @staticmethod
    def _signal(group: int, what: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, what)

    def _answers(self) -> bool:
        for name, process in self.processes.items():
            assert process.poll() is None, f"{name} ended: {(self.root / f'{name}.log').read_text()[-2000:]}"
        try:
            with urllib.request.urlopen(f"{self.url}/auth/token", timeout=5) as answer:
                self.token = json.load(answer)["access_token"]
        except OSError:
            return False
        return True

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """One call of the public API; raises AssertionError with the answer where it is refused."""
        request = urllib.request.Request(
            f"{self.url}/api/v2{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
        )
        for left in (2, 1, 0):
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    text = answer.read()
                break
            except urllib.error.HTTPError as exc:
                said = exc.read().decode()[:500]
                if exc.code != 500 or "Database error" not in said or not left:
                    raise AssertionError(f"{method} {path}: {exc.code} {said}") from None
                time.sleep(1)  # SQLite is locked by another of Airflow's processes
        return json.loads(text) if text else None

    def has_dag(self, dag_id: str) -> bool:
        return any(d["dag_id"] == dag_id for d in self.call("GET", "/dags?limit=100")["dags"])

    def trigger(self, dag_id: str, **conf: Any) -> str:
        wait_for(dag_id, lambda: self.has_dag(dag_id))
        return str(self.call("POST", f"/dags/{dag_id}/dagRuns", {"logical_date": None, "conf": conf})["dag_run_id"])

    def runs(self, dag_id: str) -> list[dict[str, Any]]:
        return list(self.call("GET", f"/dags/{dag_id}/dagRuns?order_by=run_after")["dag_runs"])

    def tasks(self, dag_id: str, run: str) -> dict[str, dict[str, Any]]:
        found = self.call("GET", f"/dags/{dag_id}/dagRuns/{run}/taskInstances?limit=100")["task_instances"]
        return {t["task_id"]: t for t in found}

    def links(self, dag_id: str, run: str, task: str) -> dict[str, str]:
        """The buttons of a task in the UI: what each is called, and where it leads."""
        where = f"/dags/{dag_id}/dagRuns/{quote(run, safe='')}/taskInstances/{task}/links"
        return dict(self.call("GET", where)["extra_links"])

    def states(self, dag_id: str, run: str) -> dict[str, str | None]:
        return {name: t["state"] for name, t in self.tasks(dag_id, run).items()}

    def finished(self, dag_id: str, run: str) -> str:
        """The end state of a run."""

        def state() -> str | None:
            found = self.call("GET", f"/dags/{dag_id}/dagRuns/{run}")["state"]
            return found if found in ("success", "failed") else None

        return str(wait_for(f"{dag_id} {run}", state))

    def clear(self, dag_id: str, run: str, *tasks: str, downstream: bool = False) -> None:
        body = {"dry_run": False, "dag_run_id": run, "task_ids": list(tasks), "only_failed": False}
        self.call("POST", f"/dags/{dag_id}/clearTaskInstances", {**body, "include_downstream": downstream})

    def mark(self, dag_id: str, run: str, task: str, state: str) -> None:
        self.call("PATCH", f"/dags/{dag_id}/dagRuns/{run}/taskInstances/{task}", {"new_state": state})

    def xcom(self, dag_id: str, run: str, task: str) -> Any:
        path = f"/dags/{dag_id}/dagRuns/{run}/taskInstances/{task}/xcomEntries/return_value"
        return self.call("GET", f"{path}?deserialize=true")["value"]

    def log(self, dag_id: str, run: str, task: str) -> str:
        """The task's log over all tries."""
        folder = self.home / "logs" / f"dag_id={dag_id}" / f"run_id={run}" / f"task_id={task}"
        return "\n".join(f.read_text() for f in sorted(folder.rglob("*.log")))
