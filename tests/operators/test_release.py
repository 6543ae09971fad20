"""Going back by Airflow: what the runner is told, and what a person reads. The change itself: tests/triton."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from airflow.sdk.exceptions import AirflowSkipException
from kubernetes.client import ApiClient

from operators import failures, inputs, pools, reconcile, release
from operators.inputs import BadInput
from operators.lone import asked as asked_of
from operators.pod import LonePodOperator
from refit import cluster
from refit.config import Settings
from tests.operators.pipelines import write_pipeline
from tests.operators.plans import TOOLS, WHY_NOT

needs_tools = pytest.mark.skipif(not TOOLS.exists(), reason=WHY_NOT)


@pytest.fixture
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in ("WORKSPACE", "PIPELINES", "DATA_ROOTS"):
        monkeypatch.setenv(f"REFIT_{name}", str(tmp_path / name.lower()))
    monkeypatch.setenv("REFIT_TRITON_URL", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("REFIT_MODEL_REPOSITORY", str(tmp_path / "models"))
    (tmp_path / "models").mkdir()
    return Settings.from_env()


def asked(pipeline: str = "p", version: int | None = None, reason: str = "") -> dict[str, Any]:
    run = SimpleNamespace(triggering_user_name="lea", conf={})
    return {
        "params": {"pipeline": pipeline, "version": version, "reason": reason},
        "dag_run": run,
        "run_id": "manual__1",
    }


def told(request: dict[str, Any]) -> dict[str, Any]:
    return dict(json.loads(request["files"]["rollback.yaml"]))


def test_what_the_runner_is_told(where: Settings) -> None:
    write_pipeline(where.pipelines / "p.yaml", "release: {model: plates, timeout_seconds: 77}")
    pipeline = inputs.read("p", {}, where)
    context = asked(version=3, reason="{out} misses plates\n{secret:KEY}")
    profile = cluster.of_pipeline(pipeline, where)
    request = asked_of(release.RollbackOperator.request, context, pipeline, profile, where)
    assert (request["action"], request["environment"], request["model"]) == ("release", "tools", "plates")
    assert "{out}" not in request["files"]["rollback.yaml"], "the runner would replace it"
    spec = told(request)
    assert (spec["model"], spec["to"], spec["url"], spec["timeout_seconds"]) == ("plates", 3, "http://127.0.0.1:9", 77)
    assert spec["ledger"] == str(where.workspace / "p" / "releases")
    assert (spec["by"], spec["reason"]) == ("lea (Airflow)", "{out} misses plates\n{secret:KEY}")


def test_signatures_are_held_against_the_pipelines_key(where: Settings) -> None:
    key = "-----BEGIN PUBLIC KEY-----\nA\n-----END PUBLIC KEY-----\n"
    for signing, expected in ((f"release: {{signing: {{secret: K, public_key: {json.dumps(key)}}}}}", key), ("", None)):
        write_pipeline(where.pipelines / "p.yaml", signing)
        pipeline = inputs.read("p", {}, where)
        profile = cluster.of_pipeline(pipeline, where)
        request = asked_of(release.RollbackOperator.request, asked(), pipeline, profile, where)
        assert told(request)["public_key"] == expected
        assert "K" not in request["secrets"], "the private key is for releases"


def test_the_control_key_is_named_and_never_there(where: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pipeline(where.pipelines / "p.yaml", "runtime: kubernetes")
    pipeline = inputs.read("p", {}, where)
    profile = cluster.of_pipeline(pipeline, where)
    request = asked_of(release.RollbackOperator.request, asked(), pipeline, profile, where)
    secret = profile.triton.control_key_secret
    assert secret
    assert request["secrets"] == [secret]
    assert request["env"] == {"REFIT_SECRET_TRITON_CONTROL_KEY": f"{{secret:{secret}}}"}


@pytest.mark.parametrize(("url", "has_it"), [(None, True), ("http://elsewhere:8000", False)])
def test_the_control_key_goes_to_the_profiles_triton_alone(where: Settings, url: str | None, has_it: bool) -> None:
    """Another repository of the same server is a pipeline's to name, another server with this key is not."""
    write_pipeline(where.pipelines / "p.yaml", "runtime: kubernetes")
    profile = cluster.of_pipeline(inputs.read("p", {}, where), where)
    own = {"url": url or profile.triton.url, "repository": "s3://models/other"}
    write_pipeline(where.pipelines / "p.yaml", f"runtime: kubernetes\nrelease: {{triton: {json.dumps(own)}}}")
    request = asked_of(release.RollbackOperator.request, asked(), inputs.read("p", {}, where), profile, where)
    assert ("REFIT_SECRET_TRITON_CONTROL_KEY" in request["env"]) is has_it


def test_a_pipeline_that_releases_nothing(where: Settings) -> None:
    write_pipeline(where.pipelines / "p.yaml", "release: false")
    with pytest.raises(BadInput, match="pipeline p says release: false; there is nothing to roll back"):
        release.RollbackOperator(task_id="rollback").execute(asked())


@needs_tools
def test_a_triton_that_is_away_is_told_in_one_sentence(where: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFIT_SECRET_TRITON_CONTROL_KEY", "k")
    write_pipeline(where.pipelines / "p.yaml")
    with pytest.raises(failures.StageFailure, match=r"127\.0\.0\.1:9.*cannot be reached"):
        release.RollbackOperator(task_id="rollback").execute(asked())


def test_the_pod_mounts_the_model_repository_and_no_gpu(where: Settings) -> None:
    write_pipeline(where.pipelines / "p.yaml", "runtime: kubernetes")
    operator = LonePodOperator(task_id="rollback", lone=release.RollbackOperator(task_id="rollback"))
    operator._prepare(asked())
    pod = ApiClient().sanitize_for_serialization(operator.build_pod_request_obj(dry_run=True))
    (container,) = pod["spec"]["containers"]
    assert "models" in [m["name"] for m in container["volumeMounts"]]
    assert "nvidia.com/gpu" not in yaml.safe_dump(container["resources"])


def test_the_form_offers_the_pipelines(where: Settings) -> None:
    assert release.dags() == {}
    for name in ("b", "a"):
        write_pipeline(where.pipelines / f"{name}.yaml")
    made = release.dags()["refit_rollback"]
    assert made.params["pipeline"] == "a"
    assert made.params.get_param("pipeline").schema["enum"] == ["a", "b"]
    assert made.params["version"] is None


# ---- reconcile


def looked(mode: str = "say") -> dict[str, Any]:
    run = SimpleNamespace(triggering_user_name=None, conf={})
    return {"params": {"mode": mode}, "dag_run": run, "run_id": "scheduled__1", "ti": SimpleNamespace(try_number=2)}


@pytest.mark.parametrize(("mode", "mend"), [("say", False), ("mend", True)])
def test_what_a_comparison_is_told(where: Settings, mode: str, mend: bool) -> None:
    write_pipeline(where.pipelines / "p.yaml", "release: {model: plates, watch: {minutes: 20}}")
    pipeline = inputs.read("p", {}, where)
    profile = cluster.of_pipeline(pipeline, where)
    request = asked_of(reconcile.ReconcileOperator.request, looked(mode), pipeline, profile, where)
    spec = dict(json.loads(request["files"]["reconcile.yaml"]))
    assert (spec["model"], spec["mend"], spec["by"]) == ("plates", mend, "airflow (Airflow)")
    assert spec["watch_minutes"] == 30, "the watch's own time, and room for its end"
    assert request["run"].startswith("reconcile-scheduled__1-2")
    assert request["action"] == "release", "the pod must see the repository and every server"


def test_a_pipeline_without_releases_is_skipped(where: Settings) -> None:
    write_pipeline(where.pipelines / "p.yaml", "release: false")
    with pytest.raises(AirflowSkipException, match="releases nothing"):
        reconcile.ReconcileOperator(task_id="p", of="p").execute(looked())


def test_each_pipeline_has_a_task_of_its_own(where: Settings) -> None:
    assert reconcile.dags() == {}
    for name in ("b", "a"):
        write_pipeline(where.pipelines / f"{name}.yaml")
    made = reconcile.dags()["refit_reconcile"]
    assert sorted(made.task_ids) == ["a", "b"]
    assert made.params["mode"] == "say", "nothing is changed unless somebody asks for it"
    (pool,) = {task.pool for task in made.tasks}
    (slots,) = [p for p in pools.required() if p.name == pool]
    assert slots.include_deferred, "its pods: those of 500 pipelines would come all at once, at each full hour"
    assert slots.slots < 50


@needs_tools
def test_a_model_that_was_never_released_agrees(where: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFIT_SECRET_TRITON_CONTROL_KEY", "none is asked for")
    write_pipeline(where.pipelines / "p.yaml")
    told = reconcile.ReconcileOperator(task_id="p", of="p").execute(looked())
    assert told["summary"] == {"schema": 1, "outcome": "agrees", "model": "p", "version": None, "differences": []}
