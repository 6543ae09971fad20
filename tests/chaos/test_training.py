"""A training whose pod, volume, cluster or Airflow is broken: it goes on from its last checkpoint, or says why not.

Everything is real: the cluster, the chart's small rights, Airflow with LocalExecutor on PostgreSQL. See docs/chaos.md.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chaos import faults
from tests.chaos.conftest import Tell, apply
from tests.chaos.dags import EPOCHS
from tests.chaos.training import Training
from tests.cluster import TAG, get, kubectl, pod, reason_to_skip, wait
from tests.e2e.conftest import House

REASON = reason_to_skip()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))
NO_COMPONENT = faults.why_no_component()
component = pytest.mark.skipif(NO_COMPONENT is not None, reason=str(NO_COMPONENT))


# --- the pod ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dag", "words", "fault"),
    [
        ("deleted", "`kubectl delete pod`", faults.delete),
        ("evicted", "evicted through the Eviction API", faults.evict),
        ("killed", "kill -9 of the runner in the pod", lambda found, _: faults.kill(found)),
    ],
)
def test_a_pod_that_is_taken_away(
    house: House,
    workspace: Path,
    tell: Tell,
    dag: str,
    words: str,
    fault: Callable[[dict[str, Any], str], None],
) -> None:
    training = Training.start(house, workspace, dag)
    fault(training.reached(5), house.namespace)
    ended = training.ended()
    ended.assert_whole(starts=2)
    assert ended.starts[1] >= 4
    assert ended.tries == 1
    assert sum(ended.remade.values()) == 1
    tell(words, ended.story, ended.lost)


def test_out_of_memory_is_not_tried_again(house: House, workspace: Path, tell: Tell) -> None:
    training = Training.start(house, workspace, "memory")
    ended = training.ended()
    assert ended.state == "failed"
    assert len(ended.starts) == 1
    assert "more memory" in training.error()
    assert training.lines("checkpoint") == ["5"]
    tell(
        "more memory used than the pod's limit",
        f"failed at once, `{training.error().splitlines()[0]}`",
        "nothing: checkpoint 5 is kept",
    )


def test_preempted_by_a_pod_of_higher_priority(house: House, workspace: Path, tell: Tell) -> None:
    urgent = f"refit-chaos-{uuid.uuid4().hex[:6]}"
    training = Training.start(house, workspace, "preempted")
    training.reached(5)
    apply(
        {
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": urgent},
            "value": 1_000_000,
        }
    )
    try:
        other = pod("urgent", f"refit-tools:{TAG}", ["sleep", "8"])
        other["spec"]["priorityClassName"] = urgent
        other["spec"]["containers"][0]["resources"] = {"limits": {"nvidia.com/gpu": "1"}}
        apply(other, namespace=house.namespace)
        wait("the urgent pod", lambda: _phase(house, "urgent") in ("Running", "Succeeded"), 60)
        ended = training.ended()
    finally:
        kubectl("delete", "pod", "urgent", "--ignore-not-found", namespace=house.namespace)
        kubectl("delete", "priorityclass", urgent)
    ended.assert_whole(starts=2)
    assert ended.tries == 1
    tell("preempted by a pod of higher priority that wants a GPU for 8 s", ended.story, ended.lost)


def _phase(house: House, name: str) -> str:
    return str(get("pod", name, namespace=house.namespace)["status"].get("phase"))


# --- the volume -------------------------------------------------------------------------------------------------------


def test_a_full_volume(house: House, workspace: Path, tell: Tell, tmp_path: Path) -> None:
    with faults.small_disk(tmp_path, mebibytes=2) as disk:
        name = _claim(house, disk)
        profile = yaml.safe_load((house.profiles / "kubernetes.yaml").read_text())
        profile["volumes"]["workspace"] = {"claim": name, "mount_path": "/workspace"}
        (house.profiles / "full.yaml").write_text(yaml.safe_dump(profile))
        training = Training.start(house, disk, "full")
        failed = training.ended()
        assert failed.state == "failed"
        assert len(failed.starts) == 1
        assert "no_space" in training.error()
        saved = int((training.out / "checkpoint").read_bytes().split()[0])
        faults.grow(disk, mebibytes=20)
        house.airflow.client.clear_failed(training.dag, training.run)
        ended = training.ended()
        ended.assert_whole(starts=2)
        assert ended.starts[1] == saved
        story = f"failed at once, `no_space`; with a larger volume and the task cleared: {ended.story}"
        tell("the workspace is full", story, ended.lost)
        kubectl("delete", "pvc", name, namespace=house.namespace)
        kubectl("delete", "pv", name)


def _claim(house: House, folder: Path) -> str:
    name = f"full-{uuid.uuid4().hex[:6]}"
    spec = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
    claim = {"namespace": house.namespace, "name": name}
    volume = {**spec, "capacity": {"storage": "2Mi"}, "hostPath": {"path": str(folder)}, "claimRef": claim}
    apply({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": volume})
    wanted = {**spec, "resources": {"requests": {"storage": "2Mi"}}, "volumeName": name}
    kind = {"apiVersion": "v1", "kind": "PersistentVolumeClaim"}
    apply({**kind, "metadata": {"name": name}, "spec": wanted}, namespace=house.namespace)
    return name


def test_the_workspace_is_read_only_for_a_while(house: House, workspace: Path, tell: Tell) -> None:
    training = Training.start(house, workspace, "read-only")
    found = training.reached(5)
    with faults.read_only(found, "/workspace/read-only"):
        time.sleep(8)
    ended = training.ended()
    ended.assert_whole(starts=2)
    tell("the workspace is read-only for 8 s", ended.story, ended.lost)


# --- Airflow ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["triggerer", "scheduler"])
def test_a_part_of_airflow_is_killed(house: House, workspace: Path, tell: Tell, name: str) -> None:
    training = Training.start(house, workspace, name)
    training.reached(5)
    house.airflow.kill_component(name)
    time.sleep(3)
    house.airflow.start_component(name)
    ended = training.ended()
    ended.assert_whole(starts=1)
    assert ended.tries == 1
    tell(f"Airflow's {name} killed (-9), started again after 3 s", ended.story, ended.lost)


def test_a_worker_is_killed_while_it_makes_the_pod(house: House, workspace: Path, tell: Tell) -> None:
    training = Training.start(house, workspace, "worker-start")
    wait("the pod", training.pods, 60, every=0.02)
    assert faults.kill_workers(house.airflow.children["scheduler"].pid) == 1
    ended = training.ended()
    ended.assert_whole(starts=1)
    assert ended.tries == 2
    tell("Airflow's worker killed (-9) just after it made the pod", ended.story, ended.lost)


def test_a_worker_is_killed_while_it_reads_the_answer(house: House, workspace: Path, tell: Tell) -> None:
    training = Training.start(house, workspace, "worker-end")
    training.reached(EPOCHS - 2)
    scheduler = house.airflow.children["scheduler"].pid
    wait("the worker", lambda: faults.kill_workers(scheduler), 60, every=0.02)
    ended = training.ended()
    ended.assert_whole(starts=1)
    assert ended.tries == 2
    tell("Airflow's worker killed (-9) as it comes back to the ended pod", ended.story, ended.lost)


def test_postgresql_is_killed(house: House, workspace: Path, tell: Tell) -> None:
    training = Training.start(house, workspace, "postgres")
    training.reached(5)
    house.database.kill()
    time.sleep(5)
    house.database.start()
    revived: list[str] = []
    wait("the end of the run", lambda: revived.extend(house.airflow.revive()) or training.over(), 240, every=1)
    ended = training.ended()
    ended.assert_whole(starts=1)
    assert ended.tries == 1
    by_itself = f"Airflow's {', '.join(revived)} ended and was started again; " if revived else ""
    tell("PostgreSQL killed (-9), back after 5 s", by_itself + ended.story, ended.lost)


# --- the cluster ------------------------------------------------------------------------------------------------------


@component
@pytest.mark.parametrize("name", ["kubelet", "containerd", "kube-apiserver", "etcd"])
def test_a_component_is_killed(house: House, workspace: Path, tell: Tell, name: str) -> None:
    training = Training.start(house, workspace, name)
    training.reached(5)
    with faults.away(name):
        pass
    ended = training.ended()
    ended.assert_whole(starts=1)
    assert ended.tries == 1
    tell(f"{name} killed (-9), mended after 5 s", ended.story, ended.lost)


@component
def test_the_api_server_is_away_while_the_training_ends(house: House, workspace: Path, tell: Tell) -> None:
    training = Training.start(house, workspace, "api-away")
    training.reached(3)
    with faults.away("kube-apiserver", seconds=30):
        pass
    assert training.lines("ends"), "the training was to end while nobody could see it"
    ended = training.ended()
    ended.assert_whole(starts=1)
    assert ended.tries == 1
    tell("the API server away for 30 s, in which the training ends", ended.story, ended.lost)


@component
def test_the_api_server_is_away_as_the_stage_starts(house: House, workspace: Path, tell: Tell) -> None:
    with faults.away("kube-apiserver", seconds=40):
        training = Training.start(house, workspace, "api-start")
    ended = training.ended()
    ended.assert_whole(starts=1)
    assert ended.tries == 1
    tell("the API server away for 40 s, in which the stage starts", ended.story, ended.lost)


@component
@pytest.mark.parametrize("name", ["kube-scheduler", "kube-controller-manager"])
def test_a_pod_is_deleted_while_a_component_is_away(house: House, workspace: Path, tell: Tell, name: str) -> None:
    training = Training.start(house, workspace, name)
    found = training.reached(5)
    with faults.away(name):
        faults.delete(found, house.namespace)
    ended = training.ended()
    ended.assert_whole(starts=2)
    assert ended.tries == 1
    tell(f"{name} killed (-9), mended after 5 s, the pod deleted meanwhile", ended.story, ended.lost)
