"""The Models page in Airflow's UI: an app beside Airflow's own, with Airflow's users and their rights.

All that it needs of Airflow's inside is imported here and nowhere else. Without a credential every route answers 401;
a pipeline is shown to whom Airflow shows its DAG. Nothing is written: buttons start DAG runs through Airflow's API, in
the browser, with the user's own rights. What is published is read from REFIT_PUBLISHED, else from the workspace.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar
from urllib.parse import urlsplit, urlunsplit

from airflow.api_fastapi.app import API_ROOT_PATH, get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.api_fastapi.common.db.common import SessionDep
from airflow.api_fastapi.core_api.security import GetUserDep
from airflow.models.dag import DagModel
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.plugins_manager import AirflowPlugin
from airflow.utils.state import TaskInstanceState
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from sqlalchemy import select
from starlette.exceptions import HTTPException as StarletteHTTPException

from operators import names
from operators.links import DataReport, RunReport
from operators.release import DAG_ID as ROLLBACK
from refit.config import Settings
from refit.pages import model, models, progress
from refit.pages.frame import HEADERS, SANDBOXED, STATIC, Going, Viewer, message
from refit.pages.store import TYPES, Folder, Store
from refit.plan import run_folder
from refit.publish import place
from refit.report.values import mapping

PREFIX = "/refit"
GOING_ON = ("running", "queued")
_MONTH = "private, max-age=2592000, immutable"


@contextlib.asynccontextmanager
async def warm(_: FastAPI) -> AsyncIterator[None]:
    """Read all indexes once while the server starts, so that nobody waits for the first page."""
    threading.Thread(target=store.indexes, daemon=True).start()
    yield


app = FastAPI(title="Refit", openapi_url=None, docs_url=None, redoc_url=None, lifespan=warm)


def published() -> Path:
    """The folder of what is published: the API server of a cluster mounts it and nothing else of the workspace."""
    named = os.environ.get("REFIT_PUBLISHED")
    return Path(named) if named else Settings.from_env().workspace / place.FOLDER


store = Store(Folder(published()))


class Access:
    """What one user may see and do, asked of Airflow's auth manager."""

    def __init__(self, request: Request, user: GetUserDep, session: SessionDep) -> None:
        self.user, self.session, self.auth = user, session, get_auth_manager()
        self.root = str(request.scope.get("root_path", "")) or PREFIX

    def readable(self) -> set[str]:
        """The pipelines whose DAG the user may read."""
        dags = self.auth.get_authorized_dag_ids(user=self.user, method="GET")
        return {p for dag in dags if (p := names.pipeline_of(dag)) is not None}

    def present(self) -> set[str]:
        """The pipelines that have a DAG now, whoever may read it: one may have published nothing yet."""
        ours = DagModel.dag_id.startswith(names.DAG_PREFIX)
        dags = self.session.scalars(select(DagModel.dag_id).where(ours, ~DagModel.is_stale))
        return {p for dag in dags if (p := names.pipeline_of(dag)) is not None}

    def see(self, pipeline: str) -> None:
        """Raises 404 for what the user may not see: that is as what is not there."""
        if not self.may("GET", names.dag_id(pipeline)):
            raise HTTPException(404, f"there is no pipeline {pipeline!r}, or you may not see it")

    def may(self, method: Any, dag: str, entity: DagAccessEntity | None = None) -> bool:
        details = DagDetails(id=dag, team_name=DagModel.get_team_name(dag, session=self.session))
        return self.auth.is_authorized_dag(method=method, access_entity=entity, details=details, user=self.user)

    def viewer(self, pipeline: str | None = None) -> Viewer:
        wanted = (names.dag_id(pipeline), ROLLBACK) if pipeline else ()
        may = frozenset(dag for dag in wanted if self.may("POST", dag, DagAccessEntity.RUN))
        return Viewer(self.root, self.root.removesuffix(PREFIX), may)

    def going(self, pipeline: str | None = None) -> dict[str, Going]:
        """The runs that go on, of one pipeline or of all, oldest first."""

        def ours(column: Any) -> Any:
            return column == names.dag_id(pipeline) if pipeline else column.startswith(names.DAG_PREFIX)

        rows = self.session.execute(
            select(DagRun.dag_id, DagRun.run_id, DagRun.state)
            .where(DagRun.state.in_(GOING_ON), ours(DagRun.dag_id))
            .order_by(DagRun.state.desc(), DagRun.run_after)
        )
        found: dict[str, list[tuple[str, str]]] = {}
        for dag, run, state in rows:
            found.setdefault(str(names.pipeline_of(dag)), []).append((run, str(state)))
        waiting = TaskInstance.state == TaskInstanceState.AWAITING_INPUT
        dags = self.session.scalars(select(TaskInstance.dag_id).where(waiting, ours(TaskInstance.dag_id)))
        asking = {names.pipeline_of(dag) for dag in dags}
        return {name: Going(tuple(runs), name in asking) for name, runs in found.items()}


Allowed = Annotated[Access, Depends(Access)]


def html(text: str, status: int = 200) -> HTMLResponse:
    return HTMLResponse(text, status, headers=HEADERS)


def known(access: Access) -> Mapping[str, Any]:
    """The indexes of the pipelines that the user may read; {} of one whose first run has not ended."""
    indexes = store.indexes()
    return {name: indexes.get(name, {}) for name in access.readable() & (indexes.keys() | access.present())}


TITLES = {401: "Log in first", 404: "Not there", 422: "Not understood"}


@app.exception_handler(StarletteHTTPException)
async def told(request: Request, exc: StarletteHTTPException) -> Response:
    """A page for people, JSON for programs; also of addresses that no route has."""
    title = TITLES.get(exc.status_code)
    if title is None or "text/html" not in request.headers.get("accept", ""):
        return JSONResponse({"detail": exc.detail}, exc.status_code, headers=exc.headers)
    root = str(request.scope.get("root_path", "")) or PREFIX
    viewer = Viewer(root, root.removesuffix(PREFIX))
    if exc.status_code == 401:  # a link in a message, opened a day later
        wanted = urlsplit(str(request.url))
        login = viewer.login(urlunsplit(("", "", *wanted[2:])))
        return html(message(title, "This page is for those who may log in to Airflow.", viewer, login), 401)
    return html(message(title, str(exc.detail), viewer), exc.status_code)


@app.exception_handler(RequestValidationError)
async def misread(request: Request, exc: RequestValidationError) -> Response:
    wrong = "; ".join(f"{fault['loc'][-1]}: {fault['msg']} (it is {fault['input']!r})" for fault in exc.errors())
    return await told(request, StarletteHTTPException(422, wrong))


@app.get("/models")
def all_models(access: Allowed, q: str = "", show: str = "", page: int = 1) -> Response:
    viewer = access.viewer()
    text = models.write(known(access), access.going(), store.progress, viewer, words=q, show=show, number_of_page=page)
    return html(text)


@app.get("/api/models")
def api_models(access: Allowed) -> Response:
    going = access.going()
    made = [models.summary(name, index, going.get(name, Going())) for name, index in known(access).items()]
    return JSONResponse({"models": made}, headers=HEADERS)


@app.get("/api/models/{pipeline}")
def api_model(pipeline: str, access: Allowed) -> Response:
    index = _index(pipeline, access)
    going = access.going(pipeline).get(pipeline, Going())
    runs = [{"run_id": run, "state": state} for run, state in going.runs]
    return JSONResponse({**index, "going_on": runs, "progress": store.progress(pipeline)}, headers=HEADERS)


@app.get("/models/{pipeline}")
def one_model(pipeline: str, access: Allowed, run: str = "") -> Response:
    index = _index(pipeline, access)
    going = access.going(pipeline).get(pipeline, Going())
    shown = mapping(index.get("champion")) or mapping(index.get("last"))
    wanted = run or str(shown.get("run") or "")
    report = store.report(pipeline, wanted)
    if run and report is None:
        raise _no_report(pipeline, run)
    viewer = access.viewer(pipeline)
    return html(model.write(pipeline, index, wanted, report, store.progress(pipeline), going, viewer))


@app.get("/models/{pipeline}/compare")
def two_models(pipeline: str, access: Allowed, request: Request) -> Response:
    access.see(pipeline)
    runs = request.query_params.getlist("run")
    if len(runs) != 2:
        raise HTTPException(404, "choose two runs to compare: ?run=ONE&run=OTHER")
    a, b = (store.report(pipeline, run) for run in runs)
    if a is None or b is None:
        raise _no_report(pipeline, runs[0 if a is None else 1])
    first, second = sorted((a, b), key=lambda r: str(r.get("started") or ""))
    return html(model.compare(pipeline, first, second, access.viewer()))


@app.get("/progress/{pipeline}")
def how_far(pipeline: str, access: Allowed, short: bool = False) -> Response:
    """A piece of the page, which its script puts in the place of the one before."""
    access.see(pipeline)
    going = access.going(pipeline).get(pipeline, Going())
    found = store.progress(pipeline)
    if short:
        return html(progress.line(found, going))
    return html(progress.steps(found, going, names.dag_id(pipeline), access.viewer()))


@app.get("/published/{pipeline}/runs/{run}/{file}")
def run_file(pipeline: str, run: str, file: str, access: Allowed) -> Response:
    access.see(pipeline)
    data = store.file(pipeline, run, file)
    if data is None:
        raise HTTPException(404, f"{file!r} of run {run!r} is not there")
    return Response(data, media_type=TYPES[Path(file).suffix], headers=SANDBOXED)


@app.get("/published/{pipeline}/data/{file}")
def data_file(pipeline: str, file: str, access: Allowed) -> Response:
    access.see(pipeline)
    data = store.data_report(pipeline, file.removesuffix(".html"))
    if data is None:
        raise HTTPException(404, f"there is no report on data set {file!r}")
    return Response(data, media_type=TYPES[".html"], headers=SANDBOXED)


@app.get("/report/{dag}/{run_id:path}")
def report_of_run(dag: str, run_id: str, access: Allowed, data: bool = False) -> Response:
    """A run's report (or that on its data) by Airflow's names, for links in Airflow's UI."""
    pipeline = names.pipeline_of(dag)
    viewer = access.viewer()
    if pipeline is None:
        return html(message("No report", f"{dag} is no DAG of a pipeline, so its runs have no report.", viewer), 404)
    access.see(pipeline)
    run = run_folder(run_id)
    report = store.report(pipeline, run)
    if report is None:
        told = "The report is published when the run has ended. Nothing is there yet, or the run left nothing."
        return html(message("No report yet", told, viewer), 404)
    parts = ["runs", run, "report.html"]
    if data:
        where = str(mapping(report.get("data")).get("report") or "")
        parts = (
            ["data", where.removeprefix("data/")] if where.startswith("data/") else ["runs", run, where or "data.html"]
        )
    return RedirectResponse(viewer.page("published", pipeline, *parts), 307)


@app.get("/of/{dag}")
def model_of_dag(dag: str, access: Allowed) -> Response:
    """A pipeline's page by the name of its DAG, for a tab in Airflow's UI."""
    pipeline = names.pipeline_of(dag)
    if pipeline is None:
        return html(message("No model", f"{dag} is no DAG of a pipeline.", access.viewer()), 404)
    return RedirectResponse(access.viewer().page("models", pipeline), 307)


@app.get("/static/{name}")
def static(name: str) -> Response:
    """Style sheet and script: no data, so without a login."""
    if name not in STATIC:
        raise HTTPException(404, "no such file")
    data, kind = STATIC[name]
    return Response(data, media_type=kind, headers={**HEADERS, "Cache-Control": _MONTH})


def _no_report(pipeline: str, run: str) -> HTTPException:
    mend = f"remove the run's folder below published/{pipeline}/runs, then: refit publish {pipeline}"
    return HTTPException(404, f"run {run!r} of {pipeline} has no report (any more), or it is damaged: then {mend}")


def _index(pipeline: str, access: Access) -> dict[str, Any]:
    """A pipeline's index, {} of one whose first run has not ended. Raises 404."""
    access.see(pipeline)
    index = store.index(pipeline)
    if index is None and pipeline not in access.present():
        raise HTTPException(404, f"there is no pipeline {pipeline!r}, or you may not see it")
    return index or {}


class RefitPlugin(AirflowPlugin):
    name = "refit"
    fastapi_apps: ClassVar[list[Any]] = [{"app": app, "url_prefix": PREFIX, "name": "Refit"}]
    external_views: ClassVar[list[Any]] = [
        {"name": "Models", "href": f"{API_ROOT_PATH}refit/models", "destination": "nav", "url_route": "models"},
        {
            "name": "Model",
            "href": f"{API_ROOT_PATH}refit/of/{{DAG_ID}}",
            "destination": "dag",
            "url_route": "model",
        },
        {
            "name": "Report",
            "href": f"{API_ROOT_PATH}refit/report/{{DAG_ID}}/{{RUN_ID}}",
            "destination": "dag_run",
            "url_route": "report",
        },
    ]
    operator_extra_links: ClassVar[list[Any]] = [RunReport(), DataReport()]
