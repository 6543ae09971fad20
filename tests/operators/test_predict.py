"""Batch inference by Airflow: what the runner is told. The work itself: tests/predict."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kubernetes.client import ApiClient

from operators import inputs, lone, predict
from operators.inputs import BadInput
from operators.pod import LonePodOperator
from refit import cluster
from refit.config import Settings
from tests.operators.pipelines import write_pipeline


@pytest.fixture
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in ("WORKSPACE", "PIPELINES", "DATA_ROOTS"):
        monkeypatch.setenv(f"REFIT_{name}", str(tmp_path / name.lower()))
    monkeypatch.setenv("REFIT_TRITON_URL", "http://127.0.0.1:9")  # nobody listens there
    return Settings.from_env()


def asked(**params: Any) -> dict[str, Any]:
    form = {name: param.value for name, param in predict._params().items()}
    return {
        "params": {**form, "pipeline": "p", **params},
        "dag_run": SimpleNamespace(conf=params, triggering_user_name="ann"),
        "run_id": "manual__1",
    }


def request(where: Settings, **params: Any) -> dict[str, Any]:
    pipeline = inputs.read("p", {}, where)
    profile = cluster.of_pipeline(pipeline, where)
    return lone.asked(predict.PredictOperator.request, asked(**params), pipeline, profile, where)


def test_what_the_runner_is_told(where: Settings) -> None:
    write_pipeline(where.pipelines / "p.yaml", "release: {model: plates}", source="yard, connection: lab")
    triton = request(where, images="s3://yard/{out}", connection="lab", thresholds={"plate": 0.6})
    assert (triton["environment"], triton["argv"][:4]) == ("tools", ["{python}", "-m", "refit.predict", "inference"])
    assert "{out}" not in triton["files"]["inference.yaml"], "the runner would replace it"
    spec = json.loads(triton["files"]["inference.yaml"])
    assert (spec["model"], spec["url"], spec["images"]) == ("plates", "http://127.0.0.1:9", "s3://yard/{out}")
    assert (spec["thresholds"], "version" in spec) == ({"plate": 0.6}, False)
    assert triton["secrets"] == ["AIRFLOW_CONN_LAB"]
    assert triton["env"]["REFIT_CONNECTION"] == "{secret:AIRFLOW_CONN_LAB}"
    file = request(where, images="yard", through="file", version=3)
    assert (file["environment"], file["argv"][2]) == ("cpu", "refit.cpu")
    told = json.loads(file["files"]["inference.yaml"])
    assert (told["releases"], told["name"], told["version"]) == (str(where.workspace / "p" / "releases"), "plates", 3)


def test_a_login_for_images_alone_and_the_memory_of_its_pod(where: Settings) -> None:
    write_pipeline(where.pipelines / "p.yaml", "predict: {connections: [yard], memory_gib: 6}")
    asked = request(where, images="s3://yard/a", connection="yard")
    assert (asked["secrets"], asked["resources"]["memory_gib"]) == (["AIRFLOW_CONN_YARD"], 6)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"images": "yard", "thresholds": {"plate": 60}}, "thresholds.plate: .*less than or equal to 1 .it is 60"),
        ({"images": "s3://yard/a", "connection": "postgres_default"}, "'postgres_default' is none of this pipeline's"),
        ({"images": "yard", "tresholds": {}}, "unknown key 'tresholds'; known here: images, connection"),
    ],
)
def test_bad_params_are_named(where: Settings, params: dict[str, Any], message: str) -> None:
    write_pipeline(where.pipelines / "p.yaml")
    with pytest.raises(BadInput, match=message):
        request(where, **params)


def test_a_pipeline_without_a_model(where: Settings) -> None:
    write_pipeline(where.pipelines / "p.yaml", "release: false")
    with pytest.raises(BadInput, match="pipeline p says release: false; there is no model of it to ask"):
        predict.PredictOperator(task_id="predict").execute(asked(images="yard"))


def test_the_pod_sees_the_inbox_and_reaches_triton(where: Settings) -> None:
    write_pipeline(where.pipelines / "p.yaml", "runtime: kubernetes")
    operator = LonePodOperator(task_id="predict", lone=predict.PredictOperator(task_id="predict"))
    operator._prepare(asked(images="yard"))
    pod = ApiClient().sanitize_for_serialization(operator.build_pod_request_obj(dry_run=True))
    (container,) = pod["spec"]["containers"]
    mounts = {m["mountPath"]: m.get("readOnly", False) for m in container["volumeMounts"]}
    assert mounts["/inbox"] is True
    assert "/models" not in mounts
    assert {"name": "REFIT_DATA_ROOTS", "value": "/inbox"} in container["env"]
    assert pod["metadata"]["labels"]["refit/triton-client"] == "true"
    assert json.loads(next(e["value"] for e in container["env"] if e["name"] == "REFIT_REQUEST"))["name"] == "predict"


def test_the_form_offers_the_pipelines(where: Settings) -> None:
    assert predict.dags() == {}
    for name in ("b", "a"):
        write_pipeline(where.pipelines / f"{name}.yaml")
    made = predict.dags()["refit_predict"]
    made.params.validate()
    assert made.params["pipeline"] == "a"
    assert {*made.params} == {"pipeline", *predict.PARAMS}
