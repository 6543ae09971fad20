"""One Airflow DAG for each pipeline file in specs/pipelines/; pipeline_files.py reports the files that are faulty."""

from operators import factory

globals().update(factory.dags())
