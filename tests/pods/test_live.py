"""Stages as pods of a real cluster, under a real scheduler, triggerer and worker: ends good and bad, and what is left.

On with REFIT_E2E=1 and KUBECONFIG, see tests/cluster.py.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import cluster
from tests.dags.live import Airflow, wait_for
from tests.operators.home import REPOSITORY

WHY_NOT = cluster.reason_to_skip()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))

DAG_FILE = """# an airflow dag file
from operators import orphans
from tests.pods.cases import dags

globals().update(dags())
orphans_dag = orphans.dag([(None, {namespace!r})], seconds=2)
"""
ACCOUNT = {"user": 10001, "group": 10001, "fs_group": 10001, "umask": "0002"}


def profile(where: str, **changes: Any) -> dict[str, Any]:
    return {
        "runtime": "kubernetes",
        "namespace": where,
        "images": {
            "tools": {"image": cluster.build("tools"), "runner": "/refit/runner.py"},
            "bare": {"image": "busybox:1.36", "python": None},
        },
        "volumes": {
            "workspace": {"claim": "workspace", "mount_path": "/workspace"},
            "models": {"claim": "models", "mount_path": "/models"},
        },
        "security": ACCOUNT,
        "poll_seconds": 1,
        "log_seconds": 1,
        "triton": {"url": "http://127.0.0.1:8000", "repository": "/models/repository"},
        "secrets": {"ABSENT": {"name": "absent", "key": "value"}},
        "shared_memory": "16Mi",
        "scratch": "1Gi",
        **changes,
    }


@pytest.fixture(scope="module")
def namespace() -> Iterator[str]:
    with cluster.namespace("pods") as name:
        for claim in ("workspace", "models"):
            spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
            body = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": claim}, "spec": spec}
            cluster.kubectl("apply", "-f", "-", namespace=name, stdin=json.dumps(body))
        yield name


@pytest.fixture(scope="module")
def airflow(namespace: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Airflow]:
    root = tmp_path_factory.mktemp("pods")
    (root / "dags").mkdir()
    (root / "dags" / "live.py").write_text(DAG_FILE.format(namespace=namespace))
    (root / ".airflowignore").write_text((REPOSITORY / ".airflowignore").read_text())
    (root / "clusters").mkdir()
    volumes = profile(namespace)["volumes"]
    missing = {**volumes, "workspace": {"claim": "nowhere", "mount_path": "/workspace"}}
    gpu = {"types": {"default": {"runtime_class": "absent"}}}
    for name, changes in {
        "kubernetes": {},
        "impatient": {"schedule_timeout_seconds": 3},
        "no_pull": {"images": {"tools": {**profile(namespace)["images"]["tools"], "pull_policy": "Never"}}},
        "no_claim": {"volumes": missing},
        "no_account": {"service_account": "absent"},
        "no_class": {"gpu": gpu},
        "no_priority": {"priority_class": "absent"},
        "no_namespace": {"namespace": "absent"},
    }.items():
        (root / "clusters" / f"{name}.yaml").write_text(yaml.safe_dump(profile(namespace, **changes)))
    env = {"REFIT_CLUSTERS": str(root / "clusters"), "KUBECONFIG": os.environ["KUBECONFIG"]}
    running = Airflow(root, env)
    try:
        running.start()
        yield running
    finally:
        running.close()


def pods(namespace: str, dag: str) -> list[dict[str, Any]]:
    """The pods of a DAG's stage."""
    return list(cluster.get("pods", "-l", f"dag_id={dag}", namespace=namespace)["items"])


def the_pod(namespace: str, dag: str) -> dict[str, Any] | None:
    """The living pod of a DAG's stage whose container runs."""
    for pod in pods(namespace, dag):
        running = any(c.get("state", {}).get("running") for c in pod["status"].get("containerStatuses", ()))
        if running and "deletionTimestamp" not in pod["metadata"]:
            return pod
    return None


def end_of(airflow: Airflow, dag: str, started: str) -> tuple[str, str]:
    """Wait for a run's end: (state, the task's log)."""
    state = str(wait_for(dag, lambda: _ended(airflow, dag, started), 300))
    return state, airflow.log(dag, started, "train").replace('\\"', '"')


def _ended(airflow: Airflow, dag: str, started: str) -> str | None:
    state = airflow.call("GET", f"/dags/{dag}/dagRuns/{started}")["state"]
    return state if state in ("success", "failed") else None


def test_a_good_stage(airflow: Airflow, namespace: str) -> None:
    started = airflow.trigger("good")
    assert airflow.finished("good", started) == "success"
    told = airflow.xcom("good", started, "train")
    assert (told["outcome"], told["metrics"], told["pods"]) == ("succeeded", {"mAP50": 0.5}, {})
    assert "a line of the stage" in airflow.log("good", started, "train")
    wait_for("the pod to go", lambda: not pods(namespace, "good"))


def test_a_pod_that_is_deleted_is_made_again_and_goes_on(airflow: Airflow, namespace: str) -> None:
    started = airflow.trigger("epochs")
    pod = wait_for("a running pod", lambda: the_pod(namespace, "epochs"), 240)
    time.sleep(6)
    cluster.kubectl("delete", "pod", pod["metadata"]["name"], "--wait=false", namespace=namespace)
    assert wait_for("the end", lambda: _ended(airflow, "epochs", started), 300) == "success"
    told = airflow.xcom("epochs", started, "train")
    assert sum(told["pods"].values()) == 1
    assert told["metrics"]["first"] >= 3, "it began anew"
    assert airflow.tasks("epochs", started)["train"]["try_number"] == 1


def test_a_runner_that_is_killed_goes_on_in_a_new_pod(airflow: Airflow, namespace: str) -> None:
    started = airflow.trigger("epochs")
    pod = wait_for("a running pod", lambda: the_pod(namespace, "epochs"), 240)
    time.sleep(6)
    _kill_from_outside(pod["status"]["containerStatuses"][0]["containerID"].rpartition("/")[2])
    assert wait_for("the end", lambda: _ended(airflow, "epochs", started), 300) == "success"
    told = airflow.xcom("epochs", started, "train")
    assert told["metrics"]["first"] >= 3


def _kill_from_outside(container: str) -> None:
    """SIGKILL for a container's first process; needs root on the node."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if container in (entry / "cgroup").read_text() and b"runner.py" in (entry / "cmdline").read_bytes():
                os.kill(int(entry.name), 9)
                return
        except OSError:
            continue
    pytest.skip("the cluster's processes are not this machine's: no runner can be killed from here")


def test_marking_a_task_failed_deletes_its_pod(airflow: Airflow, namespace: str) -> None:
    started = airflow.trigger("epochs")
    wait_for("a running pod", lambda: the_pod(namespace, "epochs"), 240)
    wait_for("the trigger at work", lambda: "starting at epoch" in airflow.log("epochs", started, "train"))
    airflow.mark("epochs", started, "train", "failed")
    wait_for("the pod to go", lambda: not pods(namespace, "epochs"), 240)
    assert airflow.finished("epochs", started) == "failed"
    assert "invoking on_kill" in airflow.log("epochs", started, "train")


def test_a_task_that_is_ended_while_no_triggerer_runs_leaves_no_pod(airflow: Airflow, namespace: str) -> None:
    kept = airflow.trigger("slow")
    wait_for("a pod that is followed", lambda: the_pod(namespace, "slow"), 240)
    airflow.kill_component("triggerer")
    try:
        started = airflow.trigger("epochs")
        wait_for("deferral", lambda: airflow.states("epochs", started)["train"] == "deferred", 240)
        pod = pods(namespace, "epochs")[0]["metadata"]["name"]
        airflow.mark("epochs", started, "train", "failed")
    finally:
        airflow.start_component("triggerer")
    wait_for("the pod to go", lambda: pod not in {p["metadata"]["name"] for p in pods(namespace, "epochs")}, 240)
    runs = wait_for("a run that tells", lambda: airflow.call("GET", "/dags/refit_orphans/dagRuns")["dag_runs"])
    log = airflow.log("refit_orphans", runs[0]["dag_run_id"], "delete").replace('\\"', '"')
    assert f"deleting pod {namespace}/{pod}: its task is failed (epochs {started} train)" in log
    assert the_pod(namespace, "slow"), "a pod whose task goes on was deleted"
    airflow.mark("slow", kept, "train", "failed")
    wait_for("the other pod to go", lambda: not pods(namespace, "slow"), 240)


# What each of these runs says when it has failed; most of them wait for something, so they run side by side.
FAILING = {
    "bad_data": ["bad_data", "labels/7.txt:3: y2 is 0"],
    "greedy": ["out_of_memory", "more memory"],
    "no_secret": ["bad_spec", 'secret "absent" not found', "kubectl -n {namespace} create secret generic absent"],
    "no_image": ["image_missing", "refit-nowhere:0.1.0"],
    "no_gpu": ["unschedulable", "Insufficient nvidia.com/gpu", "schedule_timeout_seconds"],
    "no_claim": ["bad_spec", "nowhere", "kubectl -n {namespace} get pvc"],
    "no_account": ["bad_spec", "absent", "service_account"],
    "no_class": ["bad_spec", "absent", "runtime_class"],
    "no_priority": ["bad_spec", "absent", "priority_class"],
    "no_namespace": ["bad_spec", "absent", "kubectl create namespace absent"],
}


@pytest.fixture(scope="module")
def failing(airflow: Airflow) -> dict[str, str]:
    return {dag: airflow.trigger(dag) for dag in FAILING}


@pytest.mark.parametrize("dag", FAILING)
def test_what_another_try_would_only_repeat(
    airflow: Airflow, namespace: str, failing: dict[str, str], dag: str
) -> None:
    state, log = end_of(airflow, dag, failing[dag])
    assert state == "failed"
    for word in FAILING[dag]:
        assert word.format(namespace=namespace) in log, log[-3000:]
    assert "attempt=2" not in log
    wait_for("the pod to go", lambda: not pods(namespace, dag), 240)


def test_an_image_without_python_gets_one(airflow: Airflow, namespace: str) -> None:
    state, log = end_of(airflow, "no_python", airflow.trigger("no_python"))
    assert state == "success", log[-3000:]
    assert "from busybox" in log
