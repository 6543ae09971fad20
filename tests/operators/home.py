"""An Airflow of the tests' own: set up before airflow is imported, thrown away at the end."""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
HAVE_AIRFLOW = importlib.util.find_spec("airflow") is not None


def settings(home: Path) -> dict[str, str]:
    """The variables of an Airflow whose files all lie below `home`."""
    return {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
        "AIRFLOW_VAR_REFIT_AIRFLOW": "tests",  # its mark on pods: no process of Airflow's is there to keep one
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_STORAGE_PATH": str(home / "bundles"),
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
    }


def prepare() -> None:
    """Point this process at an empty AIRFLOW_HOME, once."""
    if os.environ.get("REFIT_TEST_AIRFLOW_HOME"):
        return
    for name in [n for n in os.environ if n.startswith("AIRFLOW__")]:
        del os.environ[name]
    home = Path(tempfile.mkdtemp(prefix="refit-airflow-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    os.environ.update(settings(home), REFIT_TEST_AIRFLOW_HOME=str(home), PYTHONPATH=str(REPOSITORY))
