"""The Airflow DAG by which a person makes an older version of a model the champion again."""

from operators import release

globals().update(release.dags())
