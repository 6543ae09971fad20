"""What a run did, told to an MLflow server: the run with params, metrics and its report, and the champion's alias.

By MLflow's REST API (mlflow.org/docs/latest/rest-api.html) with the standard library: its client brings 60 packages.
Everything here may fail, and no run fails for it: who calls `track` gets a sentence in place of an exception.

What a run is called in MLflow: its tag `refit.run`. A run that is published again (a cleared stage) is the same there.
Files go through the server's own artifact proxy (`mlflow server --serve-artifacts`, the default); with a store that
clients must write to themselves none are sent, and that is told.
"""

from __future__ import annotations

import base64
import http.client
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from pydantic import Field

from refit.specs import Spec

TIMEOUT = 10.0  # of each answer
SECONDS = 60.0  # for all of them to begin
LONGEST = 600.0  # whatever it does: one that sends a byte now and then keeps every TIMEOUT
MOST_VALUE = 500  # characters of a param, MLflow 2's own limit
MOST_METRICS = 1000  # of one call, MLflow's limit
ALIAS = "champion"
_PROXY = "mlflow-artifacts:/"


class Mlflow(Spec):
    url: str = Field(pattern=r"^https?://[^\s/@]+(:\d+)?(/[^\s@]*)?$", description="of the tracking server")
    experiment: str | None = Field(None, min_length=1, description="null: the pipeline's name")
    connection: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9_.-]{1,250}$",
        description="Airflow's: login and password, or a token as password",
    )
    registry: bool = Field(True, description="a released model becomes a version in the registry, the champion")


class Tracking(Spec):
    """Where else runs are written down."""

    mlflow: Mlflow | None = None


class NotTracked(Exception):
    """A sentence for a log; it holds no secret."""


def track(
    wanted: Tracking, report: Mapping[str, Any], workspace: Path, published: Path, login: str | None
) -> list[str]:
    """Write a run down where the pipeline says so; what could not be done, a sentence each.

    Args:
        report: the run's report.json.
        workspace: the pipeline's folder, with `releases`.
        published: the folder of the run's report.
        login: an Airflow connection as text, where `wanted` names one.
    """
    mlflow, notes = wanted.mlflow, list[str]()
    if mlflow is None:
        return notes

    def write() -> None:
        try:
            notes.extend(_Run(_Server(mlflow, login), report, workspace, published).write())
        except NotTracked as exc:
            notes.append(str(exc))
        except (OSError, http.client.HTTPException) as exc:
            notes.append(f"MLflow at {mlflow.url}: {type(exc).__name__}")
        except (ValueError, KeyError, TypeError) as exc:
            why = f"({type(exc).__name__}); does tracking.mlflow.url lead to one?"
            notes.append(f"MLflow at {mlflow.url} answers as no MLflow server does {why}")

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    thread.join(LONGEST)
    return [*notes, f"MLflow at {mlflow.url}: takes too long"] if thread.is_alive() else notes


class _Server:
    def __init__(self, wanted: Mlflow, login: str | None) -> None:
        from refit.command import BadSpec
        from refit.data.remote.connection import Connection

        self.wanted, self._until = wanted, time.monotonic() + SECONDS
        self._headers = {}
        if wanted.connection is not None:
            try:
                who = Connection.read(wanted.connection, login or "")
                who.only_to(wanted.url)
            except BadSpec as exc:
                raise NotTracked(str(exc)) from None
            pair = base64.b64encode(f"{who.login}:{who.password}".encode()).decode()
            self._headers["Authorization"] = f"Basic {pair}" if who.login else f"Bearer {who.password}"

    def call(self, method: str, path: str, **body: Any) -> dict[str, Any]:
        """One call of the API below /api/2.0/mlflow. Raises _Said for a refusal, NotTracked for no answer."""
        query = f"?{urlencode(body)}" if method == "GET" and body else ""
        data = None if method == "GET" else json.dumps(body).encode()
        text = self._ask(method, f"/api/2.0/mlflow/{path}{query}", data, "application/json")
        value = json.loads(text or b"{}")
        return value if isinstance(value, dict) else {}

    def put(self, path: str, data: bytes) -> None:
        """A file of a run, through the server's proxy."""
        self._ask("PUT", f"/api/2.0/mlflow-artifacts/artifacts/{quote(path)}", data, "application/octet-stream")

    def _ask(self, method: str, path: str, data: bytes | None, kind: str) -> bytes:
        at = self.wanted.url.rstrip("/")
        if time.monotonic() > self._until:
            raise NotTracked(f"MLflow at {at}: too slow; {SECONDS:.0f} s are over")
        request = urllib.request.Request(  # noqa: S310 - http or https by the pattern of the url
            at + path, data, {**self._headers, "Content-Type": kind}, method=method
        )
        try:
            with _OPENER.open(request, timeout=TIMEOUT) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as exc:
            raise _Said(at, exc.code, exc.read(10_000)) from None
        except (OSError, http.client.HTTPException) as exc:
            why = getattr(exc, "reason", exc)
            raise NotTracked(f"MLflow at {at} does not answer ({why})") from None


class _Said(NotTracked):
    """The server's refusal; `code` is MLflow's own."""

    def __init__(self, at: str, status: int, body: bytes) -> None:
        try:
            said = json.loads(body)
            self.code, text = str(said.get("error_code", "")), str(said.get("message", ""))[:200]
        except (ValueError, AttributeError):
            self.code, text = "", ""
        super().__init__(f"MLflow at {at} says no: HTTP {status} {self.code} {text}".rstrip())


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would take the login elsewhere."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


class _Run:
    def __init__(self, server: _Server, report: Mapping[str, Any], workspace: Path, published: Path) -> None:
        self._server, self._report, self._workspace, self._published = server, report, workspace, published
        self._notes: list[str] = []

    def write(self) -> list[str]:
        report, call = self._report, self._server.call
        info = self._find(self._experiment())
        run_id = info["run_id"]
        rows = list(_metrics(report))
        for at in range(0, len(rows), MOST_METRICS):
            call("POST", "runs/log-batch", run_id=run_id, metrics=rows[at : at + MOST_METRICS])
        tags = [{"key": key, "value": value[:5000]} for key, value in _tags(report).items()]
        call("POST", "runs/log-batch", run_id=run_id, tags=tags)
        for key, value in _params(report).items():
            try:
                call("POST", "runs/log-parameter", run_id=run_id, key=key, value=value)
            except _Said:
                continue  # a run published again: MLflow lets no param change
        self._files(info, {name: self._published / name for name in ("report.html", "report.json")})
        ended = {"succeeded": "FINISHED", "cancelled": "KILLED"}.get(report["state"], "FAILED")
        call("POST", "runs/update", run_id=run_id, status=ended, end_time=_milliseconds(report["ended"]))
        if self._server.wanted.registry and (report.get("release") or {}).get("outcome") == "released":
            self._register(info)
        return self._notes

    def _experiment(self) -> str:
        name = self._server.wanted.experiment or str(self._report["pipeline"])
        try:
            found = self._server.call("GET", "experiments/get-by-name", experiment_name=name)
            return str(found["experiment"]["experiment_id"])
        except _Said as exc:
            if exc.code != "RESOURCE_DOES_NOT_EXIST":
                raise
        return str(self._server.call("POST", "experiments/create", name=name)["experiment_id"])

    def _find(self, experiment: str) -> dict[str, Any]:
        report, call = self._report, self._server.call
        who = {"refit.run": report["run"], "refit.pipeline": report["pipeline"]}
        mine = " and ".join(f"tags.`{key}` = '{_quoted(value)}'" for key, value in who.items())
        found = call("POST", "runs/search", experiment_ids=[experiment], filter=mine, max_results=1).get("runs")
        if found:
            return dict(found[0]["info"])
        tags = {"mlflow.runName": report["run"], **who}
        made = call(
            "POST",
            "runs/create",
            experiment_id=experiment,
            start_time=_milliseconds(report["started"]),
            tags=[{"key": key, "value": value} for key, value in tags.items()],
        )
        return dict(made["run"]["info"])

    def _files(self, info: Mapping[str, Any], files: Mapping[str, Path]) -> bool:
        root = str(info.get("artifact_uri", ""))
        if not root.startswith(_PROXY):
            self._notes.append(f"no files were sent to MLflow: its artifacts lie at {root}, which this cannot write to")
            return False
        for name, path in files.items():
            if path.is_file():
                self._server.put(f"{root.removeprefix(_PROXY).lstrip('/')}/{name}", path.read_bytes())
        return True

    def _register(self, info: Mapping[str, Any]) -> None:
        release, call = self._report["release"], self._server.call
        name = str(release["model"])
        folder = self._workspace / "releases" / str(release["version"]) / "model"
        if not self._files(info, {f"model/{p.name}": p for p in sorted(folder.glob("*"))}):
            return
        try:
            call("POST", "registered-models/create", name=name)
        except _Said as exc:
            if exc.code != "RESOURCE_ALREADY_EXISTS":
                raise
        mine = f"name='{_quoted(name)}' and run_id='{info['run_id']}'"
        found = call("GET", "model-versions/search", filter=mine).get("model_versions")
        version = found[0]["version"] if found else None
        if version is None:
            tags = {"refit.version": release["version"], "refit.sha256": release.get("sha256", "")}
            made = call(
                "POST",
                "model-versions/create",
                name=name,
                source=f"{info['artifact_uri']}/model",
                run_id=info["run_id"],
                tags=[{"key": key, "value": str(value)} for key, value in tags.items()],
            )
            version = made["model_version"]["version"]
        call("POST", "registered-models/alias", name=name, alias=ALIAS, version=version)


def _metrics(report: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    at = _milliseconds(report["ended"])

    def row(key: str, value: float, step: int = 0) -> dict[str, Any]:
        return {"key": _key(key), "value": float(value), "timestamp": at, "step": step}

    for model in report["models"]:
        for key in ("mAP50", "mAP", "low", "high", "parameters", "bytes", "milliseconds"):
            if model.get(key) is not None:
                yield row(f"{model['name']}/{key}", model[key])
        for name, value in (model.get("per_class") or {}).items():
            yield row(f"{model['name']}/AP50/{name}", value)
    for curve in report["curves"]:
        for key in ("loss", "mAP"):
            for step, value in curve[key]:
                yield row(f"{curve['stage']}/{key}", value, int(step))
    for stage in report["stages"]:
        if stage["seconds"] and stage["state"] != "reused":
            yield row(f"seconds/{stage['name']}", stage["seconds"])
    for key in ("seconds", "gpu_seconds"):
        yield row(f"cost/{key}", report["cost"][key])


def _tags(report: Mapping[str, Any]) -> dict[str, str]:
    gates = {f"refit.{g['stage']}": f"{g['verdict']}: {g['reason']}" for g in report["gates"]}
    about = {
        "refit.state": report["state"],
        "refit.fingerprint": report["data"]["fingerprint"],
        "refit.evaluation": report["data"]["evaluation"],
        "refit.reason": report["reason"],
        **gates,
    }
    return {key: str(value) for key, value in about.items() if value}


def _params(report: Mapping[str, Any]) -> dict[str, str]:
    """The pipeline file's values by dotted path, as far as they are plain."""
    from refit.specs import SpecError, parse_yaml

    file = report.get("pipeline_file") or {}
    try:
        data = parse_yaml(str(file.get("text", "")), str(file.get("name", ""))).data
    except SpecError:
        return {}
    found: dict[str, str] = {}

    def walk(value: Any, at: str) -> None:
        if isinstance(value, dict):
            for key, below in value.items():
                walk(below, f"{at}.{key}" if at else str(key))
        elif value is not None and at.partition(".")[0] not in ("notify", "tracking", "description"):
            found[_key(at)] = str(value)[:MOST_VALUE]

    walk({**data, **dict(report.get("conf") or {})}, "")
    return found


def _key(text: str) -> str:
    """A name as MLflow takes it: letters, digits, and of the others these; at most 250."""
    return "".join(c if c.isalnum() or c in "_-./ :" else "_" for c in text)[:250]


def _quoted(text: object) -> str:
    return str(text).replace("'", "")


def _milliseconds(moment: str | None) -> int:
    try:
        return int(datetime.fromisoformat(str(moment)).timestamp() * 1000)
    except ValueError:
        return int(time.time() * 1000)
