"""From arriving data to Triton's answer, every stage a pod: one pipeline, then two that share two GPUs."""

from __future__ import annotations

import time
from typing import Any

import pytest

from refit.plan import run_folder
from refit.runtime.pod import label_value
from tests import cluster
from tests.cluster import kubectl, wait
from tests.e2e.conftest import GPUS, House
from tests.e2e.pods import Watch, left
from tests.helm.manifests import house_faults, restricted_faults

REASON = cluster.reason_to_skip()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))

RUN_SECONDS = 1500
CHAIN = (
    "dataset_convert", "train", "evaluate_trained", "gate_trained", "prune", "retrain", "evaluate_retrained",
    "gate_retrained", "export", "quantize", "evaluate_quantized", "gate_quantized",
)  # fmt: skip
AGAINST = ("evaluate_champion", "gate_champion")  # run where something serves already
TASKS = ("arrival", "bind", *(f"stages.{stage}" for stage in (*CHAIN, *AGAINST)), "release", "publish", "done")
# What a pipeline may have besides; a detector of 24 epochs is sure of nothing, so that parity only warns.
ALL_OF_IT = {("dataset", "shards"): 2, ("gates", "parity"): {"policy": "warn"}, ("approval", "when"): "always"}
ALSO = ("look-0", "look-1", "prepare_proof", "prove", "gate_parity", "approve")
SKIPPED = dict.fromkeys((f"stages.{stage}" for stage in AGAINST), "skipped")


@pytest.fixture(scope="module")
def first(house: House) -> dict[str, Any]:
    """The run that arriving data started, and the pods that it had."""
    dag = house.add_pipeline("shapes")
    before = house.airflow.runs(dag)
    with Watch(house.namespace) as watch:
        house.deliver("shapes", seed=1)
        run = house.airflow.new_run(dag, before)
        state = house.airflow.finished(dag, run, RUN_SECONDS)
    return {"dag": dag, "run": run, "state": state, "watch": watch, "pods": watch.of("shapes")}


class TestOnePipeline:
    """In this order, on one Airflow and one release of the chart."""

    def test_data_that_arrives_starts_a_run_that_succeeds(self, house: House, first: dict[str, Any]) -> None:
        assert first["state"] == "success"
        assert first["run"].startswith("asset_triggered__")
        assert house.airflow.states(first["dag"], first["run"]) == {**dict.fromkeys(TASKS, "success"), **SKIPPED}

    def test_every_stage_was_one_pod_and_all_but_bind_asked_for_a_gpu(self, first: dict[str, Any]) -> None:
        counted = {
            stage: [p["spec"]["containers"][0]["resources"]["limits"] for p in pods]
            for stage, pods in first["pods"].items()
            if stage != "reconcile"  # of the hourly DAG
        }
        assert set(counted) == {"bind", *CHAIN, "release", "publish"}
        assert {stage: len(limits) for stage, limits in counted.items()} == dict.fromkeys(counted, 1)
        asked = {stage: limits[0].get("nvidia.com/gpu", "0") for stage, limits in counted.items()}
        assert asked == {**dict.fromkeys(counted, "1"), "bind": "0", "publish": "0"}
        assert first["watch"].most_gpus == 1

    def test_the_pods_were_as_strict_as_promised(self, first: dict[str, Any]) -> None:
        for stage, (pod,) in first["pods"].items():
            if stage == "reconcile":  # of the hourly DAG
                continue
            spec, (main,) = pod["spec"], pod["spec"]["containers"]
            assert restricted_faults(spec) + house_faults(spec) == [], stage
            assert spec["serviceAccountName"] == "refit-stage"
            labels = pod["metadata"]["labels"]
            assert labels["refit/run"] == label_value(run_folder(first["run"]))
            assert labels["app.kubernetes.io/component"] == "stage"
            secrets = [e["name"] for e in main["env"] if "secretKeyRef" in e.get("valueFrom", {})]
            assert secrets == (["REFIT_SECRET_TRITON_CONTROL_KEY"] if stage == "release" else []), stage
            mounts = {m["mountPath"]: m.get("readOnly", False) for m in main["volumeMounts"]}
            published = "published/shapes" if stage in ("bind", "release", "publish") else "published/shapes/progress"
            own = {"/workspace/shapes": False, f"/workspace/{published}": False}
            own |= {"/inbox": True} if stage == "bind" else {"/workspace/shapes/datasets": True}
            own |= {"/models": False} if stage == "release" else {}
            assert {path: ro for path, ro in mounts.items() if path not in ("/tmp", "/dev/shm", "/refit")} == own, stage
            assert {m["subPath"] for m in main["volumeMounts"] if m["name"] == "workspace"} <= {
                "shapes",
                "shapes/datasets",
                published,
            }

    def test_triton_answers_with_the_released_model(self, house: House, first: dict[str, Any]) -> None:
        released = house.airflow.answer(first["dag"], first["run"], "release")["summary"]
        assert released["outcome"] == "released"
        ((version, _),) = house.ask("shapes", house.release.service)
        assert version == released["version"] == 1

    def test_nothing_but_triton_is_left(self, house: House, first: dict[str, Any]) -> None:
        wait("the end of all stage pods", lambda: not left(house.namespace), 180)

    def test_an_unchanged_run_only_looks_and_reports(self, house: House, first: dict[str, Any]) -> None:
        with Watch(house.namespace) as watch:
            run = house.airflow.trigger(first["dag"])
            assert house.airflow.finished(first["dag"], run, 400) == "success"
        skipped = dict.fromkeys((*(f"stages.{stage}" for stage in CHAIN), "release"), "skipped")
        assert house.airflow.states(first["dag"], run) == {**dict.fromkeys(TASKS, "success"), **skipped, **SKIPPED}
        counted = {stage: len(pods) for stage, pods in watch.of("shapes").items() if stage != "reconcile"}
        assert counted == {"bind": 1, "publish": 1}


def test_two_pipelines_share_two_gpus(house: House, first: dict[str, Any]) -> None:
    """The first one runs all its stages again; the other's data has just arrived, and all that may be asked for is."""
    dags = {"shapes": first["dag"], "signs": house.add_pipeline("signs", ALL_OF_IT)}
    before = house.airflow.runs(dags["signs"])
    slots, asked = [], ""
    with Watch(house.namespace) as watch:
        house.deliver("signs", seed=2)
        runs = {"shapes": house.airflow.trigger(dags["shapes"], reuse=False)}
        runs["signs"] = house.airflow.new_run(dags["signs"], before)
        until = time.monotonic() + RUN_SECONDS
        while time.monotonic() < until and not all(ended(house, dags[name], run) for name, run in runs.items()):
            slots.append(house.airflow.client.get("/pools/refit_gpu")["occupied_slots"])
            if house.airflow.states(dags["signs"], runs["signs"]).get("approve") == "awaiting_input" and not asked:
                asked = approve(house, dags["signs"], runs["signs"])
            time.sleep(1)
    for name, run in runs.items():
        assert house.airflow.finished(dags[name], run, 1) == "success"
        ran = {"bind", *CHAIN, *(AGAINST if name == "shapes" else ALSO), "release", "publish"}
        assert set(watch.of(name)) - {"reconcile"} == ran
    assert "gate_parity" in asked, "the person is told what every gate said"
    assert max(slots) == GPUS, "the pool counts the tasks that wait for their pods"
    assert watch.most_gpus <= GPUS
    assert watch.most_pods >= 2, "they ran at the same time"
    versions = {
        name: house.airflow.answer(dags[name], run, "release")["summary"]["version"] for name, run in runs.items()
    }
    for name, version in versions.items():
        assert [answered for answered, _ in house.ask(name, house.release.service)] == [version]
    wait("the end of all stage pods", lambda: not left(house.namespace), 180)


class TestTwoServers:
    """In this order, after the tests above: they leave one server."""

    def test_servers_that_are_killed_and_added_serve_the_champion(self, house: House, first: dict[str, Any]) -> None:
        (champion,) = house.ask("shapes", house.release.service)
        (server,) = house.release.settled(1)
        kubectl(
            *("delete", "pod", server["metadata"]["name"], "--grace-period=0", "--force"), namespace=house.namespace
        )
        kubectl("scale", "deployment/refit-triton", "--replicas=2", namespace=house.namespace)
        assert house.ask("shapes", *self.addresses(house)) == [champion, champion]

    def test_a_release_reaches_every_server(self, house: House, first: dict[str, Any]) -> None:
        run = house.airflow.trigger(first["dag"], quantize_images=20)
        assert house.airflow.finished(first["dag"], run, RUN_SECONDS) == "success"
        states = house.airflow.states(first["dag"], run)
        assert states["stages.export"] == "skipped"
        assert states["stages.quantize"] == states["stages.gate_champion"] == states["release"] == "success"
        addresses = self.addresses(house)
        released = house.airflow.answer(first["dag"], run, "release")["summary"]
        answers = house.ask("shapes", *addresses, house.release.service)
        assert released["outcome"] == "released"
        assert [version for version, _ in answers] == [released["version"]] * 3
        assert len(set(answers)) == 1, "they answer the same"

    def test_a_person_goes_back_on_every_server(self, house: House, first: dict[str, Any]) -> None:
        ((now, _),) = house.ask("shapes", house.release.service)
        run = house.airflow.trigger("refit_rollback", pipeline="shapes", reason="a test")
        assert house.airflow.finished("refit_rollback", run, 600) == "success"
        told = house.airflow.answer("refit_rollback", run, "rollback")["summary"]
        assert (told["outcome"], told["previous"]) == ("rolled_back", now)
        answers = house.ask("shapes", *self.addresses(house), house.release.service)
        assert [version for version, _ in answers] == [told["version"]] * 3
        assert told["version"] != now
        wait("the end of its pod", lambda: not left(house.namespace), 180)

    def test_every_server_is_as_the_ledger_says(self, house: House, first: dict[str, Any]) -> None:
        run = house.airflow.trigger("refit_reconcile")
        assert house.airflow.finished("refit_reconcile", run, 600) == "success"
        assert house.airflow.states("refit_reconcile", run) == {"shapes": "success", "signs": "success"}

    @staticmethod
    def addresses(house: House) -> list[str]:
        return [server["status"]["podIP"] for server in house.release.settled(2)]


def approve(house: House, dag: str, run: str) -> str:
    """Says yes, as a person does some seconds later; what was asked."""
    path = f"/dags/{dag}/dagRuns/{run}/taskInstances/approve/-1/hitlDetails"
    asked = str(house.airflow.client.get(path)["body"])
    time.sleep(3)
    house.airflow.client.patch(path, {"chosen_options": ["Approve"], "params_input": {"note": "a test"}})
    return asked


def ended(house: House, dag: str, run: str) -> bool:
    return house.airflow.client.get(f"/dags/{dag}/dagRuns/{run}")["state"] in ("success", "failed")
