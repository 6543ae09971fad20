"""What became of a stage's pod: one classifier from what a cluster shows to what should be done.

Pure. A pod is a dictionary as the API has it (camelCase), a time is in seconds of the Unix clock. Two questions:
`watch` asks, while the pod lives, whether to go on waiting; `judge`, when it has ended or is gone, what its end means.
Both walk a table whose rows are tried in order; each row has a test of its own name (tests/refit/test_podstatus.py).

Where the words come from: pod conditions and reasons of the Kubernetes documentation ("Pod Lifecycle", "Disruptions",
"Node-pressure Eviction"), the kubelet's image errors, and what a real cluster answered (shared/facts/kubernetes.md).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

from refit.outcome import Outcome, Result, ResultError
from refit.runtime.pod import CONTAINER, INIT

Pod = Mapping[str, Any]


class Do(StrEnum):
    """What the operator does next."""

    WAIT = "wait"
    ANSWER = "answer"  # the runner has answered: its result is the stage's
    REMAKE = "remake"  # the cluster took the pod away: the same stage again, in the same try
    READ_BACK = "read_back"  # the answer is lost: look whether the stage's folder holds the result
    FAIL = "fail"


@dataclass(frozen=True)
class Verdict:
    """What to do and why; `row` names the table's row, `outcome` what a failure (or a remake that is one too many)
    counts as."""

    do: Do
    row: str
    reason: str = ""
    outcome: Outcome | None = None
    advice: str = ""
    most: int | None = None  # remakes for this cause; None: as many as the profile allows
    result: Result | None = None

    def failed(self, stage: str, log_tail: Sequence[str] = ()) -> Result:
        """The stage's result where no runner gave one."""
        outcome = self.outcome or Outcome.TOOLKIT_ERROR
        said = {"name": stage, "outcome": str(outcome), "reason": self.reason, "log_tail": list(log_tail)}
        return Result.from_json({"schema": 1, **said, "advice": self.advice or outcome.advice})


@dataclass(frozen=True)
class Patience:
    """Seconds: for a node, for starting once there is one, and for causes that may heal by themselves."""

    schedule: float
    start: float
    certain: float = 10  # what will not heal, but may be read from a cache that is behind
    likely: float = 60  # what hardly heals
    unknown: float = 300


# --- reading a pod ----------------------------------------------------------------------------------------------------


def _status(pod: Pod) -> Mapping[str, Any]:
    return pod.get("status") or {}


def _container(pod: Pod, name: str = CONTAINER, kind: str = "containerStatuses") -> Mapping[str, Any]:
    return next((c for c in _status(pod).get(kind) or () if c.get("name") == name), {})


def _state(container: Mapping[str, Any], state: str) -> Mapping[str, Any]:
    return (container.get("state") or {}).get(state) or {}


def condition(pod: Pod, kind: str) -> Mapping[str, Any]:
    return next((c for c in _status(pod).get("conditions") or () if c.get("type") == kind), {})


def seconds(stamp: Any) -> float | None:
    """A time of the API (RFC 3339, or a datetime) in seconds of the Unix clock; None where there is none."""
    if isinstance(stamp, datetime):
        return stamp.timestamp()
    try:
        return datetime.fromisoformat(str(stamp).replace("Z", "+00:00")).timestamp() if stamp else None
    except ValueError:
        return None


def has_ended(pod: Pod) -> bool:
    """The stage's container will not run any more, whatever the rest of the pod does."""
    return _status(pod).get("phase") in ("Succeeded", "Failed") or bool(_state(_container(pod), "terminated"))


def is_running(pod: Pod) -> bool:
    return bool(_state(_container(pod), "running"))


def restarts(pod: Pod) -> int:
    return int(_container(pod).get("restartCount") or 0)


def message_of(pod: Pod) -> str:
    """The termination message of the stage's container, "" where it left none."""
    return str(_state(_container(pod), "terminated").get("message") or "")


def result_of(pod: Pod, stage: str) -> Result | None:
    """The runner's compact result; None where the message is something else (a log's tail) or of another stage."""
    try:
        result = Result.from_json(message_of(pod))
    except ResultError:
        return None
    return result if result.name == stage else None


def tail_of(pod: Pod) -> list[str]:
    """Lines of a termination message that is no result: the end of the container's log."""
    text = message_of(pod)
    return [] if text.startswith("{") else text.splitlines()[-20:]


# --- while it lives ---------------------------------------------------------------------------------------------------


class Seen(NamedTuple):
    """One look at a living pod: whether to go on, and what it is doing, in words for the task's log."""

    verdict: Verdict
    text: str


NEVER_PULLED = re.compile(
    r"not found|manifest unknown|does not exist|no such image|unauthorized|denied|forbidden|authentication required",
    re.I,
)
PULL_LATER = re.compile(
    r"\b429\b|toomanyrequests|too many requests|rate limit|pull QPS exceeded|timeout|timed out|i/o|connection re|EOF|"
    r"\b50[0-4]\b|temporar|unavailable|no space left",
    re.I,
)
CLAIM = re.compile(r'persistentvolumeclaim "?([^"\s]+)"? (?:not found|is being deleted)')


def watch(pod: Pod, now: float, patience: Patience) -> Seen:
    """What a pod that has not ended is doing, and whether to wait on."""
    created = seconds((pod.get("metadata") or {}).get("creationTimestamp")) or now
    if is_running(pod):
        return Seen(Verdict(Do.WAIT, "running"), "running")
    if (pod.get("metadata") or {}).get("deletionTimestamp"):
        return Seen(Verdict(Do.WAIT, "being_deleted"), "is being deleted")
    scheduled = condition(pod, "PodScheduled")
    if scheduled.get("status") != "True":
        return _watch_scheduling(pod, str(scheduled.get("message") or ""), now - created, patience)
    placed = seconds(scheduled.get("lastTransitionTime")) or created
    return _watch_start(pod, now - max(placed, created), patience)


def _watch_scheduling(pod: Pod, message: str, waited: float, patience: Patience) -> Seen:
    missing = CLAIM.search(message)
    if missing and waited > patience.certain:
        name = missing[1]
        reason = f"the volume claim {name} does not exist: {message}"
        return _stuck(
            "claim_missing",
            Outcome.BAD_SPEC,
            reason,
            f"Make it, or correct the cluster profile's volumes: kubectl -n {_namespace(pod)} get pvc",
        )
    text = f"waiting for a node: {message}" if message else "waiting to be scheduled"
    if waited <= patience.schedule:
        return Seen(Verdict(Do.WAIT, "unscheduled"), text)
    reason = f"no node took the pod within {waited:.0f} s: {message or 'the scheduler has said nothing'}"
    return _stuck("unschedulable", Outcome.UNSCHEDULABLE, reason, _what_is_missing(message))


def _what_is_missing(message: str) -> str:
    """Advice for a scheduler's message, by what it names."""
    if found := re.search(r"Insufficient (\S+?)[,.]?(?:\s|$)", message):
        return (
            f"Free or add {found[1]}: kubectl describe nodes | grep -A 12 'Allocated resources'. Where the cluster "
            "grows by itself, allow it longer (schedule_timeout_seconds of the cluster profile)."
        )
    if "taint" in message:
        return "Add the nodes' taints to the cluster profile's tolerations (or to those of the GPU type)."
    if "node selector" in message or "affinity" in message:
        return "No node has the labels of node_selector (cluster profile): kubectl get nodes --show-labels"
    if "Queue" in message or "scheduling gate" in message.lower():
        return "The queue has not admitted it: kubectl get workloads; raise its quota, or wait longer."
    return ""


def _watch_start(pod: Pod, waited: float, patience: Patience) -> Seen:
    for container in (_container(pod, INIT, "initContainerStatuses"), _container(pod)):
        waiting = _state(container, "waiting")
        why, message = str(waiting.get("reason") or ""), str(waiting.get("message") or "")
        image = str(container.get("image") or "")
        row = WAITING.get(why)
        if row is None:
            continue
        verdict = row(pod, image, message, waited, patience)
        if verdict is not None:
            return Seen(verdict, f"{why}: {message}")
        if waited <= patience.start:
            return Seen(Verdict(Do.WAIT, "starting"), f"{why}: {message}" if message else why)
    if waited <= patience.start:
        return Seen(Verdict(Do.WAIT, "starting"), "starting")
    reason = f"the pod did not start within {waited:.0f} s of having a node"
    return _stuck(
        "start_timeout",
        Outcome.UNSCHEDULABLE,
        reason,
        "The events above say what it waited for (volumes, image, sandbox); large images need more "
        "start_timeout_seconds, or the chart's image pre-pull.",
    )


def _pull_error(pod: Pod, image: str, message: str, waited: float, patience: Patience) -> Verdict | None:
    if PULL_LATER.search(message):
        limit = patience.start
    else:
        limit = patience.likely if NEVER_PULLED.search(message) else patience.unknown
    if waited <= limit:
        return None
    reason = f"the image {image} cannot be pulled: {message or 'the node gives no reason'}"
    return _stuck("image_pull", Outcome.IMAGE_MISSING, reason, _image_advice(pod)).verdict


def _image_name(pod: Pod, image: str, message: str, waited: float, patience: Patience) -> Verdict | None:
    reason = f"{image!r} is no image that this node can have: {message}"
    return _stuck("image_name", Outcome.IMAGE_MISSING, reason, _image_advice(pod)).verdict


def _image_advice(pod: Pod) -> str:
    return (
        "Correct images in the cluster profile, push the image, or give image_pull_secrets: "
        f"kubectl -n {_namespace(pod)} get secrets --field-selector type=kubernetes.io/dockerconfigjson"
    )


def _config_error(pod: Pod, image: str, message: str, waited: float, patience: Patience) -> Verdict | None:
    if waited <= patience.certain:
        return None
    advice = ""
    if found := re.search(r'secret "([^"]+)" not found', message):
        advice = (
            f"Make the Secret: kubectl -n {_namespace(pod)} create secret generic {found[1]} --from-literal=<entry>=..."
        )
    elif found := re.search(r"couldn't find key (\S+) in Secret (\S+)", message):
        advice = f"Secret {found[2]} has no entry {found[1]}; correct it, or the key in the cluster profile's secrets."
    elif "non-root" in message or "runAsNonRoot" in message:
        advice = "The image wants root: declare it in the cluster profile (images.<name>.root: true), or change it."
    return _stuck("config_error", Outcome.BAD_SPEC, f"the container cannot be made: {message}", advice).verdict


def _create_error(pod: Pod, image: str, message: str, waited: float, patience: Patience) -> Verdict | None:
    if waited <= patience.likely:
        return None
    return _stuck("create_error", Outcome.TOOLKIT_ERROR, f"the container cannot be started: {message}").verdict


WAITING: Mapping[str, Callable[[Pod, str, str, float, Patience], Verdict | None]] = {
    "ErrImagePull": _pull_error,
    "ImagePullBackOff": _pull_error,
    "RegistryUnavailable": _pull_error,
    "InvalidImageName": _image_name,
    "ErrImageNeverPull": _image_name,
    "CreateContainerConfigError": _config_error,
    "CreateContainerError": _create_error,
    "RunContainerError": _create_error,
}


def _stuck(row: str, outcome: Outcome, reason: str, advice: str = "") -> Seen:
    return Seen(Verdict(Do.FAIL, row, reason, outcome, advice), reason)


def _namespace(pod: Pod) -> str:
    return str((pod.get("metadata") or {}).get("namespace") or "default")


# --- when it has ended ------------------------------------------------------------------------------------------------


class End(NamedTuple):
    """What is known of an ended pod; `pod` is None where it is gone."""

    pod: Pod | None
    result: Result | None
    reason: str  # status.reason
    message: str  # status.message
    disruption: str  # reason of the condition DisruptionTarget (Kubernetes 1.26 and later)
    code: int | None
    why: str  # reason of the container's end


OWN_FAULT = re.compile(r"exceeds? the (?:total )?limit|exceeded its local ephemeral storage limit", re.I)
LOST = ("NodeLost", "NodeShutdown", "Shutdown", "Terminated", "NodeAffinity", "UnexpectedAdmissionError")
TAKEN = {
    "PreemptionByScheduler": "a pod of higher priority took its place",
    "DeletionByTaintManager": "its node was tainted",
    "EvictionByEvictionAPI": "it was evicted (a node is drained?)",
    "DeletionByPodGC": "its node is gone",
    "TerminationByKubelet": "its node ended it (pressure or shutdown)",
}


def end_of(pod: Pod | None, stage: str) -> End:
    if pod is None:
        return End(None, None, "", "", "", None, "")
    status = _status(pod)
    over = _state(_container(pod), "terminated")
    disruption = condition(pod, "DisruptionTarget")
    code = over.get("exitCode")
    return End(
        pod,
        result_of(pod, stage),
        str(status.get("reason") or ""),
        str(status.get("message") or ""),
        str(disruption.get("reason") or "") if disruption.get("status") == "True" else "",
        int(code) if code is not None else None,
        str(over.get("reason") or ""),
    )


def _answered(e: End) -> Verdict | None:
    """A result stands, but for "cancelled": then the pod was being taken away, and the rows below know by whom."""
    if e.result is None or e.result.outcome is Outcome.CANCELLED:
        return None
    return Verdict(Do.ANSWER, "answered", result=e.result)


def _gone(e: End) -> Verdict | None:
    if e.pod is not None:
        return None
    return Verdict(Do.REMAKE, "gone", "the pod is gone (deleted, or its node was lost)", Outcome.PREEMPTED)


def _deadline(e: End) -> Verdict | None:
    if e.reason != "DeadlineExceeded":
        return None
    return Verdict(Do.FAIL, "deadline", e.message or "the pod ran past its deadline", Outcome.TIMED_OUT)


def _own_storage(e: End) -> Verdict | None:
    if e.reason != "Evicted" or not OWN_FAULT.search(e.message):
        return None
    return Verdict(
        Do.FAIL,
        "own_storage",
        f"evicted for what it wrote itself: {e.message}",
        Outcome.NO_SPACE,
        "Raise scratch (or shared_memory) of the cluster profile; large results belong into the workspace.",
    )


def _evicted(e: End) -> Verdict | None:
    if e.reason != "Evicted":
        return None
    return Verdict(Do.REMAKE, "evicted", f"evicted: {e.message}", Outcome.PREEMPTED)


def _disrupted(e: End) -> Verdict | None:
    if not e.disruption and e.reason != "Preempting":
        return None
    how = TAKEN.get(e.disruption, e.disruption or "a pod of higher priority took its place")
    return Verdict(Do.REMAKE, "disrupted", f"taken away: {how}", Outcome.PREEMPTED)


def _node_lost(e: End) -> Verdict | None:
    if e.reason not in LOST and not e.reason.startswith("OutOf"):
        return None
    return Verdict(Do.REMAKE, "node_lost", f"its node ended it: {e.reason}: {e.message}", Outcome.PREEMPTED)


def _cancelled(e: End) -> Verdict | None:
    """SIGTERM reached the runner, and nobody says why: `kubectl delete pod`, as a rule."""
    if e.result is None:
        return None
    return Verdict(Do.REMAKE, "cancelled", "the pod was told to stop from outside", Outcome.PREEMPTED)


def _out_of_memory(e: End) -> Verdict | None:
    if e.why != "OOMKilled":
        return None
    limit = _limit(e.pod or {}, "memory")
    reason = f"the pod used more memory than its limit of {limit}" if limit else "the pod used more memory than it may"
    return Verdict(Do.FAIL, "out_of_memory", reason, Outcome.OUT_OF_MEMORY)


def _cannot_run(e: End) -> Verdict | None:
    if e.why not in ("StartError", "ContainerCannotRun") and e.code not in (126, 127):
        return None
    return Verdict(
        Do.FAIL,
        "cannot_run",
        f"the command cannot be started in this image: {message_of(e.pod or {}) or e.why}",
        Outcome.BAD_SPEC,
        "Where the image has no Python 3.6 or newer, say so in the cluster profile: images.<name>.python: null",
    )


def _no_runner(e: End) -> Verdict | None:
    over = _state(_container(e.pod or {}, INIT, "initContainerStatuses"), "terminated")
    if not over or over.get("exitCode") == 0:
        return None
    return Verdict(
        Do.FAIL,
        "no_runner",
        f"the init container that brings the runner failed: {over.get('message') or over.get('reason')}",
        Outcome.TOOLKIT_ERROR,
        "Is images.tools of the cluster profile the tools image of this Refit (it holds /refit/runner.py)?",
    )


def _killed(e: End) -> Verdict | None:
    """SIGKILL without a word: by hand, or an out-of-memory that the node did not note as one."""
    if e.code != 137:
        return None
    reason = "the runner was killed (SIGKILL) and left no answer"
    return Verdict(Do.REMAKE, "killed", reason, Outcome.OUT_OF_MEMORY, most=2)


def _lost(e: End) -> Verdict | None:
    """An end of which the cluster tells no more than the code: the full result may lie in the stage's folder."""
    said = tail_of(e.pod or {})
    reason = f"the pod ended with exit code {e.code} and without an answer"
    return Verdict(Do.READ_BACK, "lost", f"{reason}: {said[-1]}" if said else reason, Outcome.TOOLKIT_ERROR)


ROWS: tuple[Callable[[End], Verdict | None], ...] = (
    _answered,
    _gone,
    _deadline,
    _own_storage,
    _evicted,
    _disrupted,
    _node_lost,
    _cancelled,
    _out_of_memory,
    _no_runner,
    _cannot_run,
    _killed,
    _lost,
)


def judge(pod: Pod | None, stage: str) -> Verdict:
    """What the end of a stage's pod means; None: the pod is gone."""
    end = end_of(pod, stage)
    return next(verdict for row in ROWS if (verdict := row(end)) is not None)


def count(verdict: Verdict, made: Mapping[str, int], most: int) -> Verdict:
    """A remake that is one too many becomes a failure. `made`: remakes so far in this try, by row."""
    limit = most if verdict.most is None else min(verdict.most, most)
    before = made.get(verdict.row, 0) if verdict.most is not None else sum(made.values())
    if verdict.do is not Do.REMAKE or before < limit:
        return verdict
    reason = f"{verdict.reason}; {before} new pods have ended so, no more are made in this try"
    return replace(verdict, do=Do.FAIL, reason=reason)


def _limit(pod: Pod, resource: str) -> str:
    containers = (pod.get("spec") or {}).get("containers") or ()
    own = next((c for c in containers if c.get("name") == CONTAINER), {})
    return str(((own.get("resources") or {}).get("limits") or {}).get(resource) or "")


# --- when it cannot be made -------------------------------------------------------------------------------------------


def refused(status: int | None, message: str, namespace: str) -> Verdict:
    """Why the API server did not take a pod, and the command that mends it. WAIT: it may take it later (a quota)."""
    fix: Iterable[tuple[str, str, Outcome, str]] = (
        (r"exceeded quota", "quota", Outcome.UNSCHEDULABLE, f"kubectl -n {namespace} describe quota"),
        (
            r'namespaces "?[^"\s]+"? not found',
            "no_namespace",
            Outcome.BAD_SPEC,
            f"Make it and install the chart into it: kubectl create namespace {namespace}",
        ),
        (
            r"no PriorityClass with name (\S+)",
            "no_priority_class",
            Outcome.BAD_SPEC,
            "kubectl get priorityclasses; correct priority_class of the cluster profile, or install the chart.",
        ),
        (
            r'RuntimeClass "?([^"\s]+)"? not found|runtimeclasses\.node\.k8s\.io',
            "no_runtime_class",
            Outcome.BAD_SPEC,
            "kubectl get runtimeclasses; correct runtime_class of the GPU type in the cluster profile.",
        ),
        (
            r'serviceaccount "?([^"\s:]+)"? not found',
            "no_account",
            Outcome.BAD_SPEC,
            f"kubectl -n {namespace} get serviceaccounts; correct service_account of the cluster profile.",
        ),
        (
            r"violates PodSecurity",
            "pod_security",
            Outcome.BAD_SPEC,
            "An image that needs root (images.<name>.root) is only let in by: "
            f"kubectl label namespace {namespace} pod-security.kubernetes.io/enforce=baseline --overwrite",
        ),
        (
            r"is forbidden: User \S+ cannot",
            "forbidden",
            Outcome.BAD_SPEC,
            f"Airflow's account lacks the right; the chart's Role gives it: kubectl -n {namespace} get role,rolebinding",
        ),
        (r"is invalid|Invalid value|Unsupported value", "invalid", Outcome.BAD_SPEC, "See `refit pod FILE STAGE`."),
    )
    for pattern, row, outcome, advice in fix:
        if re.search(pattern, message):
            do = Do.WAIT if row == "quota" else Do.FAIL
            return Verdict(do, row, f"the cluster does not take the pod: {message}", outcome, advice)
    if status in (401, 403):
        reason = f"the cluster does not let us make pods in {namespace}: {message}"
        return Verdict(Do.FAIL, "forbidden", reason, Outcome.BAD_SPEC, f"kubectl -n {namespace} get role,rolebinding")
    reason = f"the cluster does not take the pod ({status or 'no answer'}): {message}"
    return Verdict(Do.FAIL, "unknown", reason, Outcome.TOOLKIT_ERROR)
