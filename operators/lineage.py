"""OpenLineage: a run's data set as input, its model as output, where Airflow has a backend for it.

The provider (apache-airflow-providers-openlineage) asks an operator's `get_openlineage_facets_on_complete` after a task
has ended; without it nobody does, so it is no dependency. The provider adds the facets of job and run. Names follow
OpenLineage's naming (spec/Naming.md): a namespace is the place, a name what is found there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from operators import names

NAMESPACE, RELEASE = "refit", "release"


def of(task_instance: Any, stage: str, bind: str) -> Any:
    """The provider's OperatorLineage of a task that has ended well."""
    bound = task_instance.xcom_pull(task_ids=bind)
    told = task_instance.xcom_pull(task_ids=task_instance.task_id)
    summary = told.get("summary") if isinstance(told, Mapping) else None
    pipeline = names.pipeline_of(task_instance.dag_id) or task_instance.dag_id
    return facets(datasets(stage, pipeline, bound or {}, summary or {}))


def datasets(stage: str, pipeline: str, bound: Mapping[str, Any], summary: Mapping[str, Any]) -> dict[str, list[Any]]:
    """{"inputs": [(namespace, name, version), ...], "outputs": [...]} of a stage.

    Args:
        stage: its name.
        bound: bind's summary.
        summary: the stage's own.
    """
    data = (NAMESPACE, f"{pipeline}.datasets", str(bound.get("fingerprint") or ""))
    if stage == names.BIND:
        return {"inputs": [], "outputs": [data]}
    if stage == RELEASE and "version" in summary:
        model = (str(summary["url"]), str(summary["model"]), str(summary["version"]))
        return {"inputs": [data], "outputs": [model]}
    return {"inputs": [data], "outputs": []}


def facets(found: Mapping[str, list[Any]]) -> Any:
    """What the provider wants to have; it is there, for it is the one that asks."""
    from airflow.providers.openlineage.extractors import OperatorLineage
    from openlineage.client.event_v2 import Dataset
    from openlineage.client.facet_v2 import dataset_version_dataset

    def made(namespace: str, name: str, version: str) -> Any:
        facet = dataset_version_dataset.DatasetVersionDatasetFacet(datasetVersion=version)
        return Dataset(namespace=namespace, name=name, facets={"version": facet})

    return OperatorLineage(**{kind: [made(*entry) for entry in entries] for kind, entries in found.items()})
