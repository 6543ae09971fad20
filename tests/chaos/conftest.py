"""The house of tests/e2e with an Airflow that notices death sooner, and the trainings of `dags.py`.

Each test says what it saw; at the end that stands in <REFIT_HOME>/chaos.md, as docs/chaos.md has it.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import cluster
from tests.cluster import kubectl
from tests.e2e.conftest import House, folder_of, house

__all__ = ["house"]

if importlib.util.find_spec("helm_sdkpy") is None:
    collect_ignore_glob = ["test_*.py"]  # as in tests/e2e

DAG_FILE = """# an airflow dag file
from tests.chaos.dags import dags

globals().update(dags())
"""
Tell = Callable[[str, str, str], None]


@pytest.fixture(scope="session")
def airflow_variables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A second bundle with the trainings; a lost worker or triggerer is noticed after 30 and 20 s, not 60 and 30."""
    folder = tmp_path_factory.mktemp("dags")
    (folder / "trainings.py").write_text(DAG_FILE)
    local = "airflow.dag_processing.bundles.local.LocalDagBundle"
    own = {"name": "refit", "classpath": "operators.bundle.RefitBundle"}
    bundles = [
        {**own, "kwargs": {"path": str(cluster.ROOT), "refresh_interval": 5}},
        {"name": "chaos", "classpath": local, "kwargs": {"path": str(folder)}},
    ]
    return {
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps(bundles),
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "3",
        "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "20",
    }


@pytest.fixture(scope="session")
def workspace(house: House) -> Path:
    """The workspace's volume as this machine has it."""
    return folder_of("refit-workspace", house.namespace)


@pytest.fixture(scope="session")
def models(house: House) -> Path:
    return folder_of("refit-models", house.namespace)


@pytest.fixture(scope="session")
def table() -> Iterator[list[tuple[str, str, str]]]:
    rows: list[tuple[str, str, str]] = []
    yield rows
    head = [("fault", "what happened", "what was lost"), ("---",) * 3]
    lines = [f"| {' | '.join(row)} |" for row in (*head, *rows)]
    file = Path(os.environ.get("REFIT_HOME", ".refit")) / "chaos.md"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n")


@pytest.fixture
def tell(table: list[tuple[str, str, str]]) -> Tell:
    """Adds a row to the table: fault, what happened, what was lost."""

    def add(*row: str) -> None:
        print(" | ".join(row))
        table.append(row)  # type: ignore[arg-type]

    return add


def apply(*objects: dict[str, Any], namespace: str | None = None) -> None:
    body = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
    kubectl("apply", "-f", "-", namespace=namespace, stdin=json.dumps(body))
