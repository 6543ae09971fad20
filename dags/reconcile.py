"""The Airflow DAG that compares every Triton server with the ledger, hourly, and says or mends what differs."""

from operators import reconcile

globals().update(reconcile.dags())
