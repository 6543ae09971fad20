"""The Airflow DAG by which a person asks a model about a folder or bucket of images."""

from operators import predict

globals().update(predict.dags())
