"""The Airflow DAG that deletes stage pods which nobody waits for any more, where a pipeline file names a cluster."""

from operators import orphans

globals().update(orphans.dags())
