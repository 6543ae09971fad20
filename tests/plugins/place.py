"""Airflow's own API server, in this process, with the plugin and a database that knows the pipelines' DAGs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.operators.home import REPOSITORY

USERS = {"olga": "op", "eve": "viewer"}


def app(root: Path, pipelines: Iterable[str]) -> Any:
    """The whole FastAPI app of Airflow; `root` is what is published."""
    home = Path(os.environ["AIRFLOW_HOME"])
    passwords = home / "passwords.json"
    passwords.write_text(json.dumps({name: name for name in USERS}))
    os.environ.update(
        REFIT_PUBLISHED=str(root),
        AIRFLOW__CORE__PLUGINS_FOLDER=str(REPOSITORY / "plugins"),
        AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS=",".join(f"{n}:{role}" for n, role in USERS.items()),
        AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE=str(passwords),
        AIRFLOW__API_AUTH__JWT_SECRET="not a secret, as this is a test of some length",
    )
    from airflow import plugins_manager, settings
    from airflow.api_fastapi import app as apps
    from airflow.utils import db

    settings.PLUGINS_FOLDER = str(REPOSITORY / "plugins")
    sys.modules.pop("refit_models", None)
    for cached in (plugins_manager._get_plugins, plugins_manager.get_fastapi_plugins):
        cached.cache_clear()
    db.initdb()
    know(pipelines)
    apps.purge_cached_app()
    return apps.create_app("core")


def know(pipelines: Iterable[str]) -> None:
    """Put the pipelines' DAGs into the database, and one that is not ours."""
    from airflow.models.dag import DagModel
    from airflow.models.dagbundle import DagBundleModel
    from airflow.utils.session import create_session

    with create_session() as session:
        session.merge(DagBundleModel(name="refit"))
        session.flush()
        for dag in [*(f"retrain_{name}" for name in pipelines), "refit_rollback", "somebody_elses"]:
            session.merge(
                DagModel(dag_id=dag, bundle_name="refit", fileloc="retrain.py", is_paused=False, is_stale=False)
            )


def start_run(dag: str, run_id: str, *, asks: str | None = None) -> None:
    """A DAG run that is running, by the database; `asks`: a question (Markdown) that one of its tasks puts."""
    from airflow.models.dagrun import DagRun
    from airflow.models.hitl import HITLDetail
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from airflow.utils.types import DagRunTriggeredByType, DagRunType
    from sqlalchemy import insert

    now = datetime.now(UTC)
    with create_session() as session:
        session.add(
            DagRun(
                dag_id=dag,
                run_id=run_id,
                run_type=DagRunType.MANUAL,
                state="running",
                run_after=now,
                triggered_by=DagRunTriggeredByType.TEST,
            )
        )
        if asks is not None:
            session.flush()
            about = {"id": uuid4(), "task_id": "approve", "dag_id": dag, "run_id": run_id, "map_index": -1}
            row = {**about, "state": "awaiting_input", "pool": "default_pool", "max_tries": 0, "span_status": "ended"}
            session.execute(insert(TaskInstance).values(row))
            question = {"options": ["Approve", "Reject"], "subject": "Release it?", "body": asks, "params": {}}
            session.add(HITLDetail(ti_id=about["id"], **question))


def answer(dag: str) -> dict[str, Any]:
    """What a person answered to the DAG's question, as the task would get it."""
    from airflow.models.hitl import HITLDetail
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        asked = session.scalars(select(HITLDetail).join(TaskInstance).where(TaskInstance.dag_id == dag)).one()
        return dict(asked.as_resume_event_payload())
