"""Links of a task in Airflow's UI to what is published of its run (`plugins/refit_models.py`)."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from airflow.configuration import conf
from airflow.sdk import BaseOperatorLink

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey


def _address(ti_key: TaskInstanceKey) -> str:
    base = urlsplit(conf.get("api", "base_url", fallback="")).path.rstrip("/")
    return f"{base}/refit/report/{quote(ti_key.dag_id, safe='')}/{quote(ti_key.run_id, safe='')}"


class RunReport(BaseOperatorLink):
    """The report on the whole run."""

    name = "Run report"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        return _address(ti_key)


class DataReport(BaseOperatorLink):
    """The report on the run's data."""

    name = "Data report"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        return f"{_address(ti_key)}?data=true"
