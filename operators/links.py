"""Links of a task in Airflow's UI to what is published of its run (`plugins/refit_models.py`)."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from airflow.configuration import conf
from airflow.sdk import BaseOperatorLink

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey


def _address(dag_id: str, run_id: str) -> str:
    base = urlsplit(conf.get("api", "base_url", fallback="")).path.rstrip("/")
    return f"{base}/refit/report/{quote(dag_id, safe='')}/{quote(run_id, safe='')}"


def _data(dag_id: str, run_id: str) -> str:
    return f"{_address(dag_id, run_id)}?data=true"


def reports(dag_id: str, run_id: str) -> str:
    """Both reports of a run, in Markdown."""
    report, data = _address(dag_id, run_id), _data(dag_id, run_id)
    return f"[Report of this run]({report}) · [what changed in the data]({data})"


class RunReport(BaseOperatorLink):
    """The report on the whole run."""

    name = "Run report"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        return _address(ti_key.dag_id, ti_key.run_id)


class DataReport(BaseOperatorLink):
    """The report on the run's data."""

    name = "Data report"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        return _data(ti_key.dag_id, ti_key.run_id)
