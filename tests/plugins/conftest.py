"""These tests need the airflow environment (.refit/envs/airflow); elsewhere they are not collected."""

from __future__ import annotations

from tests.operators import home

if home.HAVE_AIRFLOW:
    home.prepare()
else:
    collect_ignore_glob = ["test_*.py"]
