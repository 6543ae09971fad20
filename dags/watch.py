"""The Airflow DAG that tells of champions which grow too old, where a pipeline file or a profile asks for it."""

from operators import watch

globals().update(watch.dags())
