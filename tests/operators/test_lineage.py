"""OpenLineage: which data sets a task reads and makes, and that Airflow's provider takes what we tell it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from operators import lineage
from operators.stage import BindOperator, LocalStageOperator

BOUND = {"plan": "/w/p/runs/r/plan.json", "fingerprint": "f" * 64}
RELEASED = {"url": "http://triton:8000", "model": "plates", "version": 7}


@pytest.mark.parametrize(
    ("stage", "summary", "inputs", "outputs"),
    [
        ("bind", BOUND, [], [("refit", "p.datasets", "f" * 64)]),
        ("train", {}, [("refit", "p.datasets", "f" * 64)], []),
        ("release", RELEASED, [("refit", "p.datasets", "f" * 64)], [("http://triton:8000", "plates", "7")]),
    ],
)
def test_what_a_stage_reads_and_makes(stage: str, summary: Any, inputs: list[Any], outputs: list[Any]) -> None:
    assert lineage.datasets(stage, "p", BOUND, summary) == {"inputs": inputs, "outputs": outputs}


def ended(task_id: str, **xcoms: Any) -> Any:
    def xcom_pull(task_ids: str) -> Any:
        return xcoms.get(task_ids)

    return SimpleNamespace(dag_id="retrain_p", task_id=task_id, xcom_pull=xcom_pull)


def test_the_provider_takes_it() -> None:
    base = pytest.importorskip("airflow.providers.openlineage.extractors.base", reason="the provider is not installed")
    release = LocalStageOperator(task_id="release", stage="release")
    task = ended("release", bind=BOUND, release={"summary": RELEASED})
    found = base.DefaultExtractor(release).extract_on_complete(task)
    (data,), (model,) = found.inputs, found.outputs
    assert (data.name, data.facets["version"].datasetVersion) == ("p.datasets", "f" * 64)
    assert (model.namespace, model.name, model.facets["version"].datasetVersion) == (
        "http://triton:8000",
        "plates",
        "7",
    )
    bound = base.DefaultExtractor(BindOperator(task_id="bind", pipeline="p")).extract_on_complete(
        ended("bind", bind=BOUND)
    )
    assert [d.name for d in bound.outputs] == ["p.datasets"]
