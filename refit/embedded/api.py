"""Airflow's REST API, as much as the launcher needs. Standard library only."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import quote, urlencode

TIMEOUT = 30
# A loopback address: a proxy that the environment names must not be asked for it.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ApiError(RuntimeError):
    """A request that Airflow refused or did not answer. `status` is the HTTP status, 0 without an answer."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Airflow:
    """A client with a token of its own, which it renews."""

    def __init__(self, url: str, user: str, password: str) -> None:
        self.url, self._user, self._password = url, user, password
        self._token = ""

    def healthy(self, since: float) -> dict[str, bool]:
        """For the database, scheduler, DAG processor and triggerer: does it answer, with a heartbeat after `since`?

        An earlier start's heartbeat still counts as healthy for half a minute in Airflow's own eyes; `since` (seconds
        since the epoch) tells them apart. Raises ApiError while the API server does not answer.
        """
        health = self._send("GET", "/api/v2/monitor/health", authorized=False)
        answer = {"metadatabase": health["metadatabase"]["status"] == "healthy"}
        for name in ("scheduler", "dag_processor", "triggerer"):
            part = health.get(name) or {}
            beat = part.get(f"latest_{name}_heartbeat") or "1970-01-01T00:00:00Z"
            answer[name] = part.get("status") == "healthy" and _epoch(beat) >= since
        return answer

    def get(self, path: str, **query: Any) -> Any:
        """The JSON answer of GET /api/v2<path>. Raises ApiError."""
        return self._send("GET", f"/api/v2{path}" + (f"?{urlencode(query, doseq=True)}" if query else ""))

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON answer of POST /api/v2<path>. Raises ApiError."""
        return self._send("POST", f"/api/v2{path}", body)

    def patch(self, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON answer of PATCH /api/v2<path>. Raises ApiError."""
        return self._send("PATCH", f"/api/v2{path}", body)

    def set_pool(self, pool: Mapping[str, Any]) -> None:
        """Make a pool, or change it to be so. Raises ApiError."""
        try:
            self.post("/pools", pool)
        except ApiError as exc:
            if exc.status != 409:
                raise
            # PATCH takes the name as `pool` and not as `name`
            body = {("pool" if key == "name" else key): value for key, value in pool.items()}
            self.patch(f"/pools/{quote(str(pool['name']), safe='')}", body)

    def trigger(self, dag: str, conf: Mapping[str, Any]) -> str:
        """Start a run by hand; its id. Raises ApiError (400 for a conf that the form refuses)."""
        return str(self.post(f"/dags/{quote(dag)}/dagRuns", {"logical_date": None, "conf": dict(conf)})["dag_run_id"])

    def clear_failed(self, dag: str, run: str) -> None:
        """Let the failed tasks of a run, and what waited for them, run again. Raises ApiError."""
        body = {"dry_run": False, "dag_run_id": run, "only_failed": True, "reset_dag_runs": True}
        self.post(f"/dags/{quote(dag)}/clearTaskInstances", body)

    def runs(self, dag: str, limit: int = 20) -> list[dict[str, Any]]:
        """The newest runs first."""
        answer = self.get(f"/dags/{quote(dag)}/dagRuns", order_by="-run_after", limit=limit)
        return list(answer["dag_runs"])

    def run(self, dag: str, run: str) -> dict[str, Any]:
        answer: dict[str, Any] = self.get(f"/dags/{quote(dag)}/dagRuns/{quote(run, safe='')}")
        return answer

    def tasks(self, dag: str, run: str) -> list[dict[str, Any]]:
        """The task instances of a run."""
        answer = self.get(f"/dags/{quote(dag)}/dagRuns/{quote(run, safe='')}/taskInstances", limit=100)
        return list(answer["task_instances"])

    def import_errors(self) -> list[dict[str, Any]]:
        return list(self.get("/importErrors")["import_errors"])

    def last_error(self, dag: str, run: str, task: str, attempt: int) -> str:
        """The last error in a task's log, "" where there is none. Raises ApiError."""
        path = f"/dags/{quote(dag)}/dagRuns/{quote(run, safe='')}/taskInstances/{quote(task)}/logs/{attempt}"
        lines = self.get(path, full_content="true").get("content") or []
        for line in reversed([line for line in lines if isinstance(line, dict)]):
            if line.get("level") in ("error", "critical"):
                details = line.get("error_detail") or [{}]
                return str(details[0].get("exc_value") or line.get("event", ""))
        return ""

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None = None, authorized: bool = True) -> Any:
        for attempt in (1, 2):
            if authorized and not self._token:
                login = {"username": self._user, "password": self._password}
                self._token = self._send("POST", "/auth/token", login, authorized=False)["access_token"]
            try:
                return self._request(method, path, body, authorized)
            except ApiError as exc:
                if exc.status != 401 or not authorized or attempt == 2:
                    raise
                self._token = ""  # expired: a day old
        raise AssertionError("unreachable")

    def _request(self, method: str, path: str, body: Mapping[str, Any] | None, authorized: bool) -> Any:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if authorized:
            headers["Authorization"] = f"Bearer {self._token}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)  # noqa: S310  http, ours
        try:
            with _opener.open(request, timeout=TIMEOUT) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as exc:
            text = exc.read().decode(errors="replace")
            raise ApiError(f"{method} {path}: {exc.code} {_detail(text)}", exc.code) from None
        except (OSError, ValueError) as exc:
            raise ApiError(f"{method} {self.url}{path}: {exc}") from exc


def _detail(text: str) -> str:
    try:
        return str(json.loads(text)["detail"])
    except (ValueError, KeyError, TypeError):
        return text[:500]


def _epoch(stamp: str) -> float:
    """Seconds since the epoch of an ISO 8601 time in UTC."""
    return datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp()
