"""What a cluster shows of a pod, and what it means: a case for every row of the classifier.

The statuses are as kubelet, scheduler and containerd write them: the test cluster's own, shortened, or after their
sources (refit/runtime/podstatus.py names them).
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from refit.outcome import Outcome
from refit.runtime import podstatus
from refit.runtime.podstatus import Do, Patience, Verdict, count, has_ended, judge, refused, seconds, watch

BEGAN = datetime(2026, 11, 20, 19, 0, tzinfo=UTC)
PATIENCE = Patience(schedule=1000, start=500)
PREEMPTED, TOOLKIT_ERROR, BAD_SPEC = Outcome.PREEMPTED, Outcome.TOOLKIT_ERROR, Outcome.BAD_SPEC
UNSCHEDULABLE, IMAGE_MISSING = Outcome.UNSCHEDULABLE, Outcome.IMAGE_MISSING


def at(after: float) -> str:
    return (BEGAN + timedelta(seconds=after)).strftime("%Y-%m-%dT%H:%M:%SZ")


def pod(
    *,
    phase: str = "Failed",
    stage: dict[str, Any] | None = None,
    init: dict[str, Any] | None = None,
    conditions: tuple[dict[str, Any], ...] = (),
    deleted: float | None = None,
    **status: Any,
) -> dict[str, Any]:
    """A pod with the state of its containers; `deleted`: when its grace period is over."""
    found: dict[str, Any] = {"phase": phase, "conditions": list(conditions), **status}
    if stage is not None:
        found["containerStatuses"] = [
            {"name": "other", "state": {"running": {}}},
            {"name": "stage", "image": "cpu:1", "restartCount": 0, "state": stage},
        ]
    if init is not None:
        found["initContainerStatuses"] = [{"name": "runner", "image": "tools:1", "state": init}]
    metadata: dict[str, Any] = {"name": "plates-train-1", "namespace": "lab", "creationTimestamp": at(0)}
    if deleted is not None:
        metadata |= {"deletionTimestamp": at(deleted), "deletionGracePeriodSeconds": 30}
    limits = {"memory": "4Gi", "nvidia.com/gpu": "1"}
    containers = [{"name": "stage", "resources": {"limits": limits}}]
    return {"metadata": metadata, "spec": {"nodeName": "gpu-7", "containers": containers}, "status": found}


def over(code: int = 1, reason: str = "Error", message: str | None = None) -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "reason": reason, **({"message": message} if message else {})}}


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"waiting": {"reason": reason, **({"message": message} if message else {})}}


def answer(outcome: str, name: str = "train") -> str:
    return json.dumps({"schema": 1, "name": name, "outcome": outcome, "reason": "as the runner says"})


def disrupted(reason: str, kind: str = "DisruptionTarget", status: str = "True", message: str = "") -> dict[str, Any]:
    return {"type": kind, "status": status, "reason": reason, "message": message}


SHUTDOWN = "Pod was terminated in response to imminent node shutdown."
LOW = "The node was low on resource: memory. Threshold quantity: 100Mi, available: 80Mi. "
STARTING = "failed to create containerd task: failed to create shim task: OCI runtime create failed: "
NO_PYTHON = STARTING + 'runc create failed: exec: "python": executable file not found in $PATH: unknown'
NO_GPU = STARTING + "error running hook #0: nvidia-container-cli: initialization error: driver rpc error: timed out"
NO_ROOM = STARTING + "runc create failed: container init was OOM-killed (memory limit too low?): unknown"

# name -> (pod, row, what to do, what it counts as, part of the reason)
ENDS: dict[str, tuple[dict[str, Any] | None, str, Do, Outcome | None, str]] = {
    "the runner has answered": (
        pod(phase="Succeeded", stage=over(0, "Completed", answer("succeeded"))), "answered", Do.ANSWER, None, "",
    ),
    "the runner has answered with a failure": (
        pod(stage=over(1, message=answer("diverged"))), "answered", Do.ANSWER, None, "",
    ),
    "an answer stands, whatever came after it": (
        pod(stage=over(0, "Completed", answer("succeeded")), reason="Evicted", message=LOW, deleted=60),
        "answered", Do.ANSWER, None, "",
    ),
    "the pod is gone": (None, "gone", Do.REMAKE, PREEMPTED, "gone"),
    "past activeDeadlineSeconds": (
        pod(reason="DeadlineExceeded", message="Pod was active on the node longer than the specified deadline"),
        "deadline", Do.FAIL, Outcome.TIMED_OUT, "longer than the specified deadline",
    ),
    "past activeDeadlineSeconds, and the runner was told to stop": (
        pod(stage=over(143, message=answer("cancelled")), reason="DeadlineExceeded", message="Pod was active"),
        "deadline", Do.FAIL, Outcome.TIMED_OUT, "Pod was active",
    ),
    "evicted: it filled /tmp": (
        pod(reason="Evicted", message='Usage of EmptyDir volume "tmp" exceeds the limit "10Gi". ', stage=over(137)),
        "own_storage", Do.FAIL, Outcome.NO_SPACE, "EmptyDir",
    ),
    "evicted: it filled its root file system": (
        pod(reason="Evicted", message='Container stage exceeded its local ephemeral storage limit "5Gi". '),
        "own_storage", Do.FAIL, Outcome.NO_SPACE, "ephemeral",
    ),
    "evicted: all that it wrote": (
        pod(reason="Evicted", message="Pod ephemeral local storage usage exceeds the total limit of containers 5Gi. "),
        "own_storage", Do.FAIL, Outcome.NO_SPACE, "total limit",
    ),
    "evicted: the node is full": (
        pod(reason="Evicted", message=LOW, stage=over(137), conditions=(disrupted("TerminationByKubelet"),)),
        "evicted", Do.REMAKE, PREEMPTED, "low on resource",
    ),
    "a pod of higher priority took its place": (
        pod(stage=over(143, message=answer("cancelled")), conditions=(disrupted("PreemptionByScheduler"),), deleted=60),
        "disrupted", Do.REMAKE, PREEMPTED, "higher priority",
    ),
    "the node was tainted": (
        pod(stage=over(137), conditions=(disrupted("DeletionByTaintManager"),)),
        "disrupted", Do.REMAKE, PREEMPTED, "tainted",
    ),
    "the node is drained": (
        pod(stage=over(143, message=answer("cancelled")), conditions=(disrupted("EvictionByEvictionAPI"),), deleted=60),
        "disrupted", Do.REMAKE, PREEMPTED, "drained",
    ),
    "the node was removed": (
        pod(stage=over(137), conditions=(disrupted("DeletionByPodGC"),)), "disrupted", Do.REMAKE, PREEMPTED, "gone",
    ),
    "Kueue gave its quota to another": (
        pod(
            stage=over(143, message=answer("cancelled")),
            conditions=(disrupted("WorkloadEvictedDueToPreempted", "TerminationTarget", message="Preempted for x"),),
        ),
        "disrupted", Do.REMAKE, PREEMPTED, "Preempted for x",
    ),
    "the kubelet made room for a critical pod": (
        pod(reason="Preempting", message="Preempted in order to admit critical pod", stage=over(137)),
        "disrupted", Do.REMAKE, PREEMPTED, "higher priority",
    ),
    "the node shut down": (
        pod(reason="Terminated", message=SHUTDOWN, stage=over(143)), "node_lost", Do.REMAKE, PREEMPTED, "shutdown",
    ),
    "the node shut down (Kubernetes 1.20)": (
        pod(reason="Shutdown", message="Node is shutting, evicting pods"),
        "node_lost", Do.REMAKE, PREEMPTED, "shutting",
    ),
    "the node was shutting down when it came": (
        pod(reason="NodeShutdown", message="Pod was rejected as the node is shutting down."),
        "node_lost", Do.REMAKE, PREEMPTED, "rejected",
    ),
    "the node's device plugin has lost the GPU": (
        pod(
            reason="UnexpectedAdmissionError",
            message="Allocate failed due to no healthy devices present; cannot allocate unhealthy devices",
        ),
        "node_lost", Do.REMAKE, PREEMPTED, "unhealthy devices",
    ),
    "the scheduler did not know how full the node was": (
        pod(reason="OutOfcpu", message="Pod Node didn't have enough resource: cpu, requested: 2000, used: 3000"),
        "node_lost", Do.REMAKE, PREEMPTED, "enough resource",
    ),
    "the last GPU was taken in between": (
        pod(reason="OutOfnvidia.com/gpu", message="Pod was rejected: Node didn't have enough resource"),
        "node_lost", Do.REMAKE, PREEMPTED, "OutOfnvidia.com/gpu",
    ),
    "the node's labels changed": (
        pod(reason="NodeAffinity", message="Pod Predicate NodeAffinity failed"), "node_lost", Do.REMAKE, PREEMPTED, "",
    ),
    "the node rebooted": (
        pod(stage=over(255, "Unknown")), "node_lost", Do.REMAKE, PREEMPTED, "Unknown",
    ),
    "the kubelet has forgotten the container": (
        pod(stage=over(137, "ContainerStatusUnknown", "The container could not be located when the pod was deleted")),
        "node_lost", Do.REMAKE, PREEMPTED, "ContainerStatusUnknown",
    ),
    "somebody sent SIGTERM": (
        pod(stage=over(143, message=answer("cancelled"))), "cancelled", Do.REMAKE, PREEMPTED, "told to stop",
    ),
    "out of memory": (
        pod(stage=over(137, "OOMKilled")), "out_of_memory", Do.FAIL, Outcome.OUT_OF_MEMORY, "its limit of 4Gi",
    ),
    "not even memory for a start": (
        pod(stage=over(128, "StartError", NO_ROOM)), "out_of_memory", Do.FAIL, Outcome.OUT_OF_MEMORY, "4Gi",
    ),
    "deleted, and killed before it could answer": (
        pod(stage=over(137), deleted=30), "deleted", Do.REMAKE, PREEMPTED, "deleted",
    ),
    "deleted while the runner was brought": (
        pod(init=over(143), stage=waiting("PodInitializing"), deleted=30), "deleted", Do.REMAKE, PREEMPTED, "deleted",
    ),
    "the tools image has no runner": (
        pod(init=over(1, message="cp: can't stat '/refit/runner.py'"), stage=waiting("PodInitializing")),
        "no_runner", Do.FAIL, TOOLKIT_ERROR, "can't stat",
    ),
    "the init container was killed": (
        pod(init=over(137, "OOMKilled"), stage=waiting("PodInitializing")),
        "no_runner", Do.REMAKE, TOOLKIT_ERROR, "OOMKilled",
    ),
    "the node refused it for another reason": (
        pod(reason="SysctlForbidden", message="forbidden sysctl"), "not_admitted", Do.REMAKE, UNSCHEDULABLE, "sysctl",
    ),
    "the image has no Python": (
        pod(stage=over(128, "StartError", NO_PYTHON)), "cannot_run", Do.FAIL, BAD_SPEC, "executable file not found",
    ),
    "the image's Python is a script of another system": (
        pod(stage=over(127, "ContainerCannotRun")), "cannot_run", Do.FAIL, BAD_SPEC, "ContainerCannotRun",
    ),
    "the node's GPU runtime did not answer": (
        pod(stage=over(128, "StartError", NO_GPU)), "not_started", Do.REMAKE, TOOLKIT_ERROR, "nvidia-container-cli",
    ),
    "the runner was killed": (
        pod(stage=over(137)), "killed", Do.REMAKE, Outcome.OUT_OF_MEMORY, "SIGKILL",
    ),
    "the message is lost": (
        pod(phase="Succeeded", stage=over(0, "Completed")), "lost", Do.READ_BACK, TOOLKIT_ERROR, "exit code 0",
    ),
    "the message is a log's end": (
        pod(stage=over(1, message="line 1\nTraceback: the last line\n")),
        "lost", Do.READ_BACK, TOOLKIT_ERROR, "Traceback: the last line",
    ),
    "the message is cut": (
        pod(stage=over(0, "Completed", answer("succeeded")[:30])), "lost", Do.READ_BACK, TOOLKIT_ERROR, "exit code 0",
    ),
    "the message is another stage's": (
        pod(stage=over(0, "Completed", answer("succeeded", "prune"))),
        "lost", Do.READ_BACK, TOOLKIT_ERROR, "exit code 0",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("found", "row", "do", "outcome", "reason"), ENDS.values(), ids=list(ENDS))
def test_an_end(found: Any, row: str, do: Do, outcome: Outcome | None, reason: str) -> None:
    if found is not None:
        assert has_ended(found)
    verdict = judge(found, "train")
    assert (verdict.row, verdict.do, verdict.outcome) == (row, do, outcome)
    assert reason in verdict.reason
    assert (verdict.result is not None) is (do is Do.ANSWER)


def test_every_row_has_a_case() -> None:
    assert {row for _, row, *_ in ENDS.values()} == {f.__name__.removeprefix("_") for f in podstatus.ROWS}


def test_a_condition_that_is_not_true_is_none() -> None:
    found = pod(stage=over(137), conditions=(disrupted("PreemptionByScheduler", status="False"),))
    assert judge(found, "train").row == "killed"


def test_what_no_runner_said_becomes_a_result() -> None:
    result = judge(ENDS["out of memory"][0], "train").failed("train", ["a line"])
    assert (result.name, result.outcome, result.log_tail) == ("train", Outcome.OUT_OF_MEMORY, ["a line"])
    assert result.advice == Outcome.OUT_OF_MEMORY.advice


# --- remakes are counted ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("most_of_row", "made", "do"),
    [
        (None, {}, Do.REMAKE),
        (None, {"evicted": 2, "gone": 7}, Do.REMAKE),
        (None, {"evicted": 3, "gone": 7}, Do.FAIL),
        (2, {"killed": 1, "gone": 8}, Do.REMAKE),
        (2, {"killed": 2}, Do.FAIL),
    ],
)
def test_remakes_end(most_of_row: int | None, made: dict[str, int], do: Do) -> None:
    verdict = count(Verdict(Do.REMAKE, "killed", "was killed", PREEMPTED, most=most_of_row), made, 10)
    assert verdict.do is do
    assert verdict.outcome is PREEMPTED
    if do is Do.FAIL:
        assert "was killed; " in verdict.reason
        assert "no more are made in this try" in verdict.reason


def test_a_profile_may_forbid_remakes_and_only_remakes_count() -> None:
    assert count(Verdict(Do.REMAKE, "killed", most=2), {}, 0).do is Do.FAIL
    failed = Verdict(Do.FAIL, "deadline")
    assert count(failed, {"deadline": 99}, 10) is failed


# --- while it lives ---------------------------------------------------------------------------------------------------

UNBOUND = "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims."
NO_CLAIM = 'persistentvolumeclaim "refit-workspace" not found'
FULL = "0/2 nodes are available: 1 Insufficient nvidia.com/gpu, 1 node(s) had untolerated taint {dedicated: db}."
GATED = "Scheduling is blocked due to non-empty scheduling gates"
PULL = 'failed to pull and unpack image "cpu:1": failed to resolve reference "cpu:1": '
BACK_OFF = 'Back-off pulling image "cpu:1"'


def unscheduled(message: str = "", reason: str = "Unschedulable") -> dict[str, Any]:
    condition = {"type": "PodScheduled", "status": "False", "reason": reason, "message": message}
    return pod(phase="Pending", conditions=(condition,))


def placed(after: float = 0, **containers: Any) -> dict[str, Any]:
    condition = {"type": "PodScheduled", "status": "True", "lastTransitionTime": at(after)}
    return pod(phase="Pending", conditions=(condition,), **containers)


def stuck(reason: str, message: str = "") -> dict[str, Any]:
    return placed(stage=waiting(reason, message))


# name -> (pod, seconds until which is waited, row while waiting, row then (None: waited for ever), outcome, advice)
LIVES: dict[str, tuple[dict[str, Any], float, str, str | None, Outcome | None, str]] = {
    "the scheduler has not looked": (pod(phase="Pending"), 1000, "unscheduled", "unschedulable", UNSCHEDULABLE, ""),
    "all GPUs are taken": (
        unscheduled(FULL), 1000, "unscheduled", "unschedulable", UNSCHEDULABLE, "add nvidia.com/gpu",
    ),
    "no toleration": (
        unscheduled("0/1 nodes are available: 1 node(s) had untolerated taint {nvidia.com/gpu: }."),
        1000, "unscheduled", "unschedulable", UNSCHEDULABLE, "tolerations",
    ),
    "no node is ready": (
        unscheduled("0/1 nodes are available: 1 node(s) had untolerated taint {node.kubernetes.io/not-ready: }."),
        1000, "unscheduled", "unschedulable", UNSCHEDULABLE, "kubectl get nodes",
    ),
    "all nodes are cordoned": (
        unscheduled("0/1 nodes are available: 1 node(s) were unschedulable."),
        1000, "unscheduled", "unschedulable", UNSCHEDULABLE, "cordoned",
    ),
    "no node has the labels": (
        unscheduled("0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."),
        1000, "unscheduled", "unschedulable", UNSCHEDULABLE, "--show-labels",
    ),
    "the volume is elsewhere": (
        unscheduled("0/2 nodes are available: 2 node(s) had volume node affinity conflict."),
        1000, "unscheduled", "unschedulable", UNSCHEDULABLE, "kubectl get pvc",
    ),
    "the claim is not bound": (
        unscheduled(UNBOUND), 1000, "unscheduled", "unschedulable", UNSCHEDULABLE, "kubectl get pvc",
    ),
    "the node holds no more pods": (
        unscheduled("0/1 nodes are available: 1 Too many pods."),
        1000, "unscheduled", "unschedulable", UNSCHEDULABLE, "as many pods",
    ),
    "there is no such claim": (
        unscheduled(f"0/1 nodes are available: {NO_CLAIM}."),
        10, "unscheduled", "claim_missing", BAD_SPEC, "-n lab get pvc",
    ),
    "Kueue has not admitted it": (
        unscheduled(GATED, "SchedulingGated"), 1000, "queued", "queued", UNSCHEDULABLE, "-n lab describe workloads",
    ),
    "its volumes are mounted": (
        stuck("ContainerCreating"), 500, "starting", "start_timeout", UNSCHEDULABLE, "pre-pull",
    ),
    "nothing is said yet": (placed(), 500, "starting", "start_timeout", UNSCHEDULABLE, ""),
    "no such image": (
        stuck("ErrImagePull", PULL + "cpu:1: not found"), 60, "starting", "image_pull", IMAGE_MISSING, "push the image",
    ),
    "an image of another architecture": (
        stuck("ErrImagePull", PULL + "no match for platform in manifest: not found"),
        60, "starting", "image_pull", IMAGE_MISSING, "",
    ),
    "no right to pull": (
        stuck("ImagePullBackOff", f"{BACK_OFF}: ErrImagePull: {PULL}unexpected status: 401 Unauthorized"),
        60, "starting", "image_pull", IMAGE_MISSING, "-n lab get secrets",
    ),
    "the registry throttles": (
        stuck("ErrImagePull", PULL + "429 Too Many Requests - toomanyrequests: You have reached your pull rate limit"),
        500, "starting", "image_pull", IMAGE_MISSING, "",
    ),
    "the registry is away": (
        stuck("ErrImagePull", PULL + "dial tcp 10.0.0.1:443: i/o timeout"),
        500, "starting", "image_pull", IMAGE_MISSING, "",
    ),
    "between two tries to pull, no cause is told": (
        stuck("ImagePullBackOff", BACK_OFF), 500, "starting", "image_pull", IMAGE_MISSING, "",
    ),
    "a pull that fails otherwise": (
        stuck("ErrImagePull", PULL + "x509: certificate signed by unknown authority"),
        300, "starting", "image_pull", IMAGE_MISSING, "",
    ),
    "a broken image": (
        stuck("ImageInspectError", "rpc error"), 300, "starting", "image_pull", IMAGE_MISSING, "",
    ),
    "an image that is no name": (
        stuck("InvalidImageName", 'couldn\'t parse image reference "CPU:1"'), -1, "", "image_name", IMAGE_MISSING, "",
    ),
    "an image that must be there and is not": (
        stuck("ErrImageNeverPull", 'Container image "cpu:1" is not present with pull policy of Never'),
        -1, "", "image_name", IMAGE_MISSING, "",
    ),
    "no such secret": (
        stuck("CreateContainerConfigError", 'secret "triton" not found'),
        10, "starting", "config_error", BAD_SPEC, "-n lab create secret generic triton",
    ),
    "no such entry of a secret": (
        stuck("CreateContainerConfigError", "couldn't find key control in Secret lab/triton"),
        10, "starting", "config_error", BAD_SPEC, "no entry control",
    ),
    "an image of root": (
        stuck("CreateContainerConfigError", "container has runAsNonRoot and image will run as root"),
        10, "starting", "config_error", BAD_SPEC, "root: true",
    ),
    "the kubelet's cache is behind": (
        stuck("CreateContainerConfigError", "failed to sync secret cache: timed out waiting for the condition"),
        300, "starting", "config_error", BAD_SPEC, "",
    ),
    "a folder cannot be made in the volume": (
        stuck("CreateContainerConfigError", 'failed to prepare subPath for volumeMount "workspace"'),
        300, "starting", "config_error", BAD_SPEC, "root_squash",
    ),
    "a container cannot be made": (
        stuck("CreateContainerError", "context deadline exceeded"), 60, "starting", "create_error", TOOLKIT_ERROR, "",
    ),
    "a container cannot be started": (
        stuck("RunContainerError", "failed to start"), 60, "starting", "create_error", TOOLKIT_ERROR, "",
    ),
    "the init container's image is missing": (
        placed(init=waiting("ErrImagePull", "not found"), stage=waiting("PodInitializing")),
        60, "starting", "image_pull", IMAGE_MISSING, "",
    ),
    "the runner is brought": (
        placed(init={"running": {}}, stage=waiting("PodInitializing")),
        500, "starting", "start_timeout", UNSCHEDULABLE, "",
    ),
    "it runs": (placed(stage={"running": {"startedAt": at(3)}}), 10**6, "running", None, None, ""),
    "it is being deleted": (
        pod(phase="Running", stage={"running": {}}, deleted=30),
        330, "being_deleted", "unreachable", PREEMPTED, "delete pod plates-train-1 --force",
    ),
}  # fmt: skip


def look(found: dict[str, Any], after: float) -> Verdict:
    return watch(found, BEGAN.timestamp() + after, PATIENCE).verdict


@pytest.mark.parametrize(("found", "until", "row", "then", "outcome", "advice"), LIVES.values(), ids=list(LIVES))
def test_a_life(found: Any, until: float, row: str, then: str | None, outcome: Outcome | None, advice: str) -> None:
    assert not has_ended(found)
    if until >= 0:
        assert (look(found, until).do, look(found, until).row) == (Do.WAIT, row)
    if then is None:
        return
    verdict = look(found, until + 1)
    assert (verdict.do, verdict.row, verdict.outcome) == (Do.FAIL, then, outcome)
    assert verdict.reason
    assert advice in verdict.advice
    assert verdict.failed("train").advice  # the row's, else the outcome's


def test_every_reason_to_wait_has_a_case() -> None:
    told = {s["state"]["waiting"]["reason"] for f, *_ in LIVES.values()
            for s in [*f["status"].get("containerStatuses", ()), *f["status"].get("initContainerStatuses", ())]
            if "waiting" in s["state"]}  # fmt: skip
    rare = {"RegistryUnavailable", "SignatureValidationFailed"}  # same row as ErrImagePull
    assert told >= podstatus.WAITING.keys() - rare


def test_what_is_told_while_waiting() -> None:
    now = BEGAN.timestamp() + 1
    assert watch(unscheduled(FULL), now, PATIENCE).text == f"waiting for a node: {FULL}"
    assert watch(unscheduled(GATED, "SchedulingGated"), now, PATIENCE).text == f"waiting in the queue: {GATED}"
    assert watch(stuck("ErrImagePull", "not found"), now, PATIENCE).text == "ErrImagePull: not found"


def test_the_wait_for_a_start_begins_with_the_node_and_anew_with_the_runner() -> None:
    """Hours in a queue, or for the pull of one image, are not counted against the next step."""
    pulling = waiting("ErrImagePull", "not found")
    assert look(placed(900, stage=pulling), 900 + 60).do is Do.WAIT
    assert look(placed(900, stage=pulling), 900 + 61).do is Do.FAIL
    brought = {"terminated": {"exitCode": 0, "reason": "Completed", "finishedAt": at(1300)}}
    assert look(placed(900, init=brought, stage=pulling), 1300 + 60).do is Do.WAIT
    assert look(placed(900, init=brought, stage=pulling), 1300 + 61).do is Do.FAIL


@pytest.mark.parametrize("stamp", [None, "", "yesterday"])
def test_no_time(stamp: str | None) -> None:
    assert seconds(stamp) is None


@pytest.mark.parametrize("stamp", [at(0), "2026-11-20T19:00:00+00:00", "2026-11-20T19:00:00.000000Z", BEGAN])
def test_times(stamp: Any) -> None:
    assert seconds(stamp) == BEGAN.timestamp()


# --- when it cannot be made -------------------------------------------------------------------------------------------

FORBIDDEN = 'pods "plates-train-1" is forbidden: '
ACCOUNT = "system:serviceaccount:lab:airflow"
REFUSALS: dict[str, tuple[int | None, str, str, Do, Outcome, str]] = {
    "quota": (
        403, FORBIDDEN + "exceeded quota: gpus, requested: requests.nvidia.com/gpu=1, used: 8, limited: 8",
        "quota", Do.WAIT, UNSCHEDULABLE, "kubectl -n lab describe resourcequotas",
    ),
    "a new namespace": (
        403, FORBIDDEN + 'No API token found for service account "refit-stage", retry after the token is created',
        "not_yet", Do.WAIT, TOOLKIT_ERROR, "",
    ),
    "two at one quota": (
        409, 'Operation cannot be fulfilled on resourcequotas "gpus": the object has been modified; please apply',
        "not_yet", Do.WAIT, TOOLKIT_ERROR, "",
    ),
    "a webhook is away": (
        500, 'Internal error occurred: failed calling webhook "mpod.kb.io": connect: connection refused',
        "webhook", Do.WAIT, TOOLKIT_ERROR, "webhookconfigurations",
    ),
    "a policy": (
        403, 'admission webhook "validate.kyverno.svc-fail" denied the request: images must come from ...',
        "policy", Do.FAIL, BAD_SPEC, "exception",
    ),
    "a quota that wants limits": (
        403, FORBIDDEN + "failed quota: all: must specify limits.cpu",
        "limit_range", Do.FAIL, BAD_SPEC, "describe limitranges",
    ),
    "a limit range": (
        403, FORBIDDEN + "maximum memory usage per Container is 1Gi, but limit is 4Gi",
        "limit_range", Do.FAIL, BAD_SPEC, "resources",
    ),
    "no namespace": (404, 'namespaces "lab" not found', "no_namespace", Do.FAIL, BAD_SPEC, "create namespace lab"),
    "a namespace that goes": (
        403, FORBIDDEN + "unable to create new content in namespace lab because it is being terminated",
        "no_namespace", Do.FAIL, BAD_SPEC, "lab",
    ),
    "no priority class": (
        403, FORBIDDEN + "no PriorityClass with name training was found",
        "no_priority_class", Do.FAIL, BAD_SPEC, "kubectl get priorityclasses",
    ),
    "no runtime class": (
        403, FORBIDDEN + 'pod rejected: RuntimeClass "nvidia" not found',
        "no_runtime_class", Do.FAIL, BAD_SPEC, "kubectl get runtimeclasses",
    ),
    "no account": (
        403, FORBIDDEN + 'error looking up service account lab/stage: serviceaccount "stage" not found',
        "no_account", Do.FAIL, BAD_SPEC, "kubectl -n lab get serviceaccounts",
    ),
    "pod security": (
        403, FORBIDDEN + 'violates PodSecurity "restricted:latest": runAsNonRoot != true',
        "pod_security", Do.FAIL, BAD_SPEC, "label namespace lab pod-security.kubernetes.io/enforce=baseline",
    ),
    "no right": (
        403, f'pods is forbidden: User "{ACCOUNT}" cannot create resource "pods" in API group ""',
        "forbidden", Do.FAIL, BAD_SPEC, "-n lab get role,rolebinding",
    ),
    "no login": (401, "Unauthorized", "forbidden", Do.FAIL, BAD_SPEC, "-n lab get role,rolebinding"),
    "not a pod": (
        422, 'Pod "x" is invalid: spec.containers[0].volumeMounts[0].subPath: Invalid value: "..": must not contain',
        "invalid", Do.FAIL, BAD_SPEC, "refit pod FILE STAGE",
    ),
    "an API server that has too much to do": (429, "Too many requests", "busy", Do.WAIT, TOOLKIT_ERROR, ""),
    "no API server": (None, "connection refused", "busy", Do.WAIT, TOOLKIT_ERROR, ""),
    "anything else": (418, "a teapot", "unknown", Do.FAIL, TOOLKIT_ERROR, ""),
}  # fmt: skip


@pytest.mark.parametrize(("status", "message", "row", "do", "outcome", "advice"), REFUSALS.values(), ids=list(REFUSALS))
def test_a_refusal(status: int | None, message: str, row: str, do: Do, outcome: Outcome, advice: str) -> None:
    verdict = refused(status, message, "lab")
    assert (verdict.row, verdict.do, verdict.outcome) == (row, do, outcome)
    assert message in verdict.reason
    assert advice in verdict.advice


def test_every_refusal_has_a_case() -> None:
    assert {r.row for r in podstatus.REFUSALS} <= {row for _, _, row, *_ in REFUSALS.values()}
