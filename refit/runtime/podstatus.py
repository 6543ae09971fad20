"""What became of a stage's pod: one classifier from what a cluster shows to what should be done.

Pure. A pod is a dictionary as the API has it (camelCase), a time is in seconds of the Unix clock. Two questions:
`watch` asks, while the pod lives, whether to go on waiting; `judge`, when it has ended or is gone, what its end means.
Both walk a table whose rows are tried in order; each row has a test of its own name (tests/refit/test_podstatus.py).

Where the words come from: the Kubernetes documentation ("Pod Lifecycle", "Disruptions", "Node-pressure Eviction"), the
source of the kubelet (pkg/kubelet/images/types.go, eviction/helpers.go, lifecycle/predicate.go, kuberuntime), of
containerd and of Kueue (pkg/controller/jobs/pod), and what a real cluster answered.

A pod may always be made again, also where the old one had in fact succeeded: the runner finds the good result under
the same key and hands it back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
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
    r"not found|manifest unknown|does not exist|no such image|unauthorized|denied|forbidden|authentication required|"
    r"no match for platform|no matching manifest",
    re.I,
)
PULL_LATER = re.compile(
    r"\b429\b|toomanyrequests|too many requests|rate limit|pull QPS exceeded|timeout|timed out|i/o|connection re|EOF|"
    r"\b50[0-4]\b|temporar|unavailable|no space left",
    re.I,
)
# What the node says between two tries; the cause stands there again at the next one (newer kubelets repeat it here).
BACK_OFF = re.compile(r'^Back-off pulling image "[^"]*"$')
CLAIM = re.compile(r'persistentvolumeclaim "?([^"\s]+)"? (?:not found|is being deleted)')


def watch(pod: Pod, now: float, patience: Patience) -> Seen:
    """What a pod that has not ended is doing, and whether to wait on."""
    metadata = pod.get("metadata") or {}
    created = seconds(metadata.get("creationTimestamp")) or now
    gone = seconds(metadata.get("deletionTimestamp"))
    if gone is not None:
        return _watch_end(pod, now - gone, patience)
    if is_running(pod):
        return Seen(Verdict(Do.WAIT, "running"), "running")
    scheduled = condition(pod, "PodScheduled")
    if scheduled.get("status") != "True":
        return _watch_scheduling(pod, scheduled, now - created, patience)
    placed = seconds(scheduled.get("lastTransitionTime")) or created
    brought = seconds(_state(_container(pod, INIT, "initContainerStatuses"), "terminated").get("finishedAt"))
    return _watch_start(pod, now - max(placed, created, brought or 0), patience)


def _watch_end(pod: Pod, late: float, patience: Patience) -> Seen:
    """`late`: seconds since the grace period was over, as deletionTimestamp has it. A node that is gone says nothing,
    and its pods stay as they were, often "running", until somebody removes the node."""
    if late <= patience.unknown:
        return Seen(Verdict(Do.WAIT, "being_deleted"), "is being deleted")
    node = (pod.get("spec") or {}).get("nodeName") or "its node"
    name = (pod.get("metadata") or {}).get("name")
    return _stuck(
        "unreachable",
        Outcome.PREEMPTED,
        f"the pod is being deleted and {node} has not confirmed it for {late:.0f} s",
        f"kubectl get node {node}; where it is off for good: kubectl -n {_namespace(pod)} delete pod {name} --force",
    )


def _watch_scheduling(pod: Pod, scheduled: Mapping[str, Any], waited: float, patience: Patience) -> Seen:
    message = str(scheduled.get("message") or "")
    gated = scheduled.get("reason") == "SchedulingGated"
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
    if gated:
        text = f"waiting in the queue: {message}"
    else:
        text = f"waiting for a node: {message}" if message else "waiting to be scheduled"
    if waited <= patience.schedule:
        return Seen(Verdict(Do.WAIT, "queued" if gated else "unscheduled"), text)
    if gated:
        advice = f"kubectl -n {_namespace(pod)} describe workloads; raise the queue's quota, or wait longer."
        return _stuck("queued", Outcome.UNSCHEDULABLE, f"not admitted within {waited:.0f} s: {message}", advice)
    reason = f"no node took the pod within {waited:.0f} s: {message or 'the scheduler has said nothing'}"
    return _stuck("unschedulable", Outcome.UNSCHEDULABLE, reason, _what_is_missing(message))


def _what_is_missing(message: str) -> str:
    """Advice for a scheduler's message, by what it names; a message may name several, the first here wins."""
    if found := re.search(r"Insufficient (\S+?)[,.]?(?:\s|$)", message):
        return (
            f"Free or add {found[1]}: kubectl describe nodes | grep -A 12 'Allocated resources'. Where the cluster "
            "grows by itself, allow it longer (schedule_timeout_seconds of the cluster profile)."
        )
    if "PersistentVolumeClaim" in message or "volume" in message:
        return "A volume is not there, or bound to a node that cannot take the pod: kubectl get pvc,pv"
    if "Too many pods" in message:
        return "The nodes hold as many pods as they may: remove some, or add a node."
    if re.search(r"unschedulable|node\.kubernetes\.io/(?:not-ready|unreachable|\w+-pressure)", message):
        return "A node that might take it is not ready or is cordoned: kubectl get nodes"
    if "taint" in message:
        return "Add the nodes' taints to the cluster profile's tolerations (or to those of the GPU type)."
    if "node selector" in message or "affinity" in message:
        return "No node has the labels of node_selector (cluster profile): kubectl get nodes --show-labels"
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
    if PULL_LATER.search(message) or BACK_OFF.search(message):
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
    # Others pass: "failed to sync secret cache", "failed to prepare subPath" while a file server is away.
    known = re.search(r"not found|couldn't find key|non-root|runAsNonRoot", message)
    if waited <= (patience.certain if known else patience.unknown):
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
    elif "subPath" in message:
        advice = "The account that the node uses must be able to make folders in the volume (NFS: no root_squash)."
    return _stuck("config_error", Outcome.BAD_SPEC, f"the container cannot be made: {message}", advice).verdict


def _create_error(pod: Pod, image: str, message: str, waited: float, patience: Patience) -> Verdict | None:
    if waited <= patience.likely:
        return None
    return _stuck("create_error", Outcome.TOOLKIT_ERROR, f"the container cannot be started: {message}").verdict


WAITING: Mapping[str, Callable[[Pod, str, str, float, Patience], Verdict | None]] = {
    "ErrImagePull": _pull_error,
    "ImagePullBackOff": _pull_error,
    "RegistryUnavailable": _pull_error,
    "ImageInspectError": _pull_error,
    "SignatureValidationFailed": _pull_error,
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
    disruption: str  # who took it away, in words; "" where no condition says so
    deleted: bool  # it is being deleted
    code: int | None
    why: str  # reason of the container's end


OWN_FAULT = re.compile(r"exceeds? the (?:total )?limit|exceeded its local ephemeral storage limit", re.I)
# status.reason: the node went down, or (the last four) it has changed since the scheduler chose it.
LOST = {"NodeLost", "NodeShutdown", "Shutdown", "Terminated"}
LOST |= {"NodeAffinity", "TaintToleration", "TopologyAffinityError", "UnexpectedAdmissionError"}
# What a kubelet (code 137) or containerd (255) says of a container that it does not find again after a restart.
FORGOTTEN = ("ContainerStatusUnknown", "Unknown")
NOT_STARTED = ("StartError", "ContainerCannotRun")
NOT_IN_IMAGE = re.compile(r"executable file not found|no such file or directory|permission denied|exec format", re.I)
# Conditions that say why a pod is ended: Kubernetes' own (1.26 and later), and Kueue's.
DISRUPTIONS = ("DisruptionTarget", "TerminationTarget")
TAKEN = {
    "PreemptionByScheduler": "a pod of higher priority took its place",
    "DeletionByTaintManager": "its node was tainted",
    "EvictionByEvictionAPI": "it was evicted (a node is drained?)",
    "DeletionByPodGC": "its node is gone",
    "TerminationByKubelet": "its node ended it (pressure or shutdown)",
}


def end_of(pod: Pod | None, stage: str) -> End:
    if pod is None:
        return End(None, None, "", "", "", False, None, "")
    status = _status(pod)
    over = _state(_container(pod), "terminated")
    disruption = next((c for kind in DISRUPTIONS if (c := condition(pod, kind)).get("status") == "True"), {})
    said = str(disruption.get("reason") or "")
    code = over.get("exitCode")
    return End(
        pod,
        result_of(pod, stage),
        str(status.get("reason") or ""),
        str(status.get("message") or ""),
        TAKEN.get(said) or str(disruption.get("message") or said),
        bool((pod.get("metadata") or {}).get("deletionTimestamp")),
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
    how = e.disruption or TAKEN["PreemptionByScheduler"]
    return Verdict(Do.REMAKE, "disrupted", f"taken away: {how}", Outcome.PREEMPTED)


def _node_lost(e: End) -> Verdict | None:
    forgotten = e.why in FORGOTTEN
    if e.reason not in LOST and not e.reason.startswith("OutOf") and not forgotten:
        return None
    said = e.why if forgotten else f"{e.reason}: {e.message}"
    return Verdict(Do.REMAKE, "node_lost", f"its node has lost or refused it: {said}", Outcome.PREEMPTED)


def _cancelled(e: End) -> Verdict | None:
    """SIGTERM reached the runner, and nobody says why: `kubectl delete pod`, as a rule."""
    if e.result is None:
        return None
    return Verdict(Do.REMAKE, "cancelled", "the pod was told to stop from outside", Outcome.PREEMPTED)


def _out_of_memory(e: End) -> Verdict | None:
    if e.why != "OOMKilled" and "OOM-killed" not in message_of(e.pod or {}):  # the latter where it did not even start
        return None
    limit = _limit(e.pod or {}, "memory")
    reason = f"the pod used more memory than its limit of {limit}" if limit else "the pod used more memory than it may"
    return Verdict(Do.FAIL, "out_of_memory", reason, Outcome.OUT_OF_MEMORY)


def _deleted(e: End) -> Verdict | None:
    """Deleted before the runner could say anything, or without the time to say it."""
    if not e.deleted:
        return None
    return Verdict(Do.REMAKE, "deleted", "the pod was deleted from outside", Outcome.PREEMPTED)


def _no_runner(e: End) -> Verdict | None:
    over = _state(_container(e.pod or {}, INIT, "initContainerStatuses"), "terminated")
    if not over or over.get("exitCode") == 0:
        return None
    said = over.get("message") or over.get("reason")
    own = over.get("reason") == "Error" and over.get("exitCode") != 137
    return Verdict(
        Do.FAIL if own else Do.REMAKE,
        "no_runner",
        f"the init container that brings the runner failed: {said}",
        Outcome.TOOLKIT_ERROR,
        "Is images.tools of the cluster profile the tools image of this Refit (it holds /refit/runner.py)?",
        most=2,
    )


def _not_admitted(e: End) -> Verdict | None:
    """No container was ever made: a node refused the pod for a reason that no row above knows."""
    if e.code is not None:
        return None
    reason = f"its node refused it: {e.reason or 'no reason given'}: {e.message}"
    return Verdict(Do.REMAKE, "not_admitted", reason, Outcome.UNSCHEDULABLE, most=2)


def _cannot_run(e: End) -> Verdict | None:
    said = message_of(e.pod or {})
    if e.code not in (126, 127) and not (e.why in NOT_STARTED and NOT_IN_IMAGE.search(said)):
        return None
    return Verdict(
        Do.FAIL,
        "cannot_run",
        f"the command cannot be started in this image: {said or e.why}",
        Outcome.BAD_SPEC,
        "Where the image has no Python 3.6 or newer, say so in the cluster profile: images.<name>.python: null",
    )


def _not_started(e: End) -> Verdict | None:
    """The node could not start the container: its GPU runtime, its cgroups, a timeout; another start may do."""
    if e.why not in NOT_STARTED:
        return None
    reason = f"the node could not start the container: {message_of(e.pod or {}) or e.why}"
    return Verdict(Do.REMAKE, "not_started", reason, Outcome.TOOLKIT_ERROR, most=2)


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
    _deleted,
    _no_runner,
    _not_admitted,
    _cannot_run,
    _not_started,
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
    own: Mapping[str, Any] = next((c for c in containers if c.get("name") == CONTAINER), {})
    return str(((own.get("resources") or {}).get("limits") or {}).get(resource) or "")


# --- when it cannot be made -------------------------------------------------------------------------------------------


class Refusal(NamedTuple):
    """What the API server's words mean; `advice` may hold {namespace}."""

    pattern: str
    row: str
    do: Do
    outcome: Outcome
    advice: str


REFUSALS: Sequence[Refusal] = (
    Refusal(
        r"exceeded quota", "quota", Do.WAIT, Outcome.UNSCHEDULABLE, "kubectl -n {namespace} describe resourcequotas"
    ),
    # Between a new namespace and its account's token (Kubernetes before 1.24), and while two pods count at one quota.
    Refusal(r"No API token found|object has been modified", "not_yet", Do.WAIT, Outcome.TOOLKIT_ERROR, ""),
    Refusal(
        r"failed calling webhook",
        "webhook",
        Do.WAIT,
        Outcome.TOOLKIT_ERROR,
        "The service behind an admission webhook is away: kubectl get mutatingwebhookconfigurations,"
        "validatingwebhookconfigurations",
    ),
    Refusal(
        r"admission webhook .* denied the request",
        "policy",
        Do.FAIL,
        Outcome.BAD_SPEC,
        "A policy of this cluster refuses the pod: change the cluster profile, or ask for an exception.",
    ),
    Refusal(
        r"failed quota: .* must specify|usage per (?:Container|Pod) is|limit to request ratio",
        "limit_range",
        Do.FAIL,
        Outcome.BAD_SPEC,
        "Change the stage's resources, or the rules: kubectl -n {namespace} describe limitranges,resourcequotas",
    ),
    Refusal(
        r'namespaces "?[^"\s]+"? not found|because it is being terminated',
        "no_namespace",
        Do.FAIL,
        Outcome.BAD_SPEC,
        "Make it and install the chart into it: kubectl create namespace {namespace}",
    ),
    Refusal(
        r"no PriorityClass with name (\S+)",
        "no_priority_class",
        Do.FAIL,
        Outcome.BAD_SPEC,
        "kubectl get priorityclasses; correct priority_class of the cluster profile, or install the chart.",
    ),
    Refusal(
        r'RuntimeClass "?([^"\s]+)"? not found|runtimeclasses\.node\.k8s\.io',
        "no_runtime_class",
        Do.FAIL,
        Outcome.BAD_SPEC,
        "kubectl get runtimeclasses; correct runtime_class of the GPU type in the cluster profile.",
    ),
    Refusal(
        r'serviceaccount "?([^"\s:]+)"? not found',
        "no_account",
        Do.FAIL,
        Outcome.BAD_SPEC,
        "kubectl -n {namespace} get serviceaccounts; correct service_account of the cluster profile.",
    ),
    Refusal(
        r"violates PodSecurity",
        "pod_security",
        Do.FAIL,
        Outcome.BAD_SPEC,
        "An image that needs root (images.<name>.root) is only let in by: "
        "kubectl label namespace {namespace} pod-security.kubernetes.io/enforce=baseline --overwrite",
    ),
    Refusal(
        r"is forbidden: User \S+ cannot",
        "forbidden",
        Do.FAIL,
        Outcome.BAD_SPEC,
        "Airflow's account lacks the right; the chart's Role gives it: kubectl -n {namespace} get role,rolebinding",
    ),
    Refusal(
        r"is invalid|Invalid value|Unsupported value",
        "invalid",
        Do.FAIL,
        Outcome.BAD_SPEC,
        "See `refit pod FILE STAGE`.",
    ),
)
BUSY = (None, 408, 409, 429, 500, 502, 503, 504)  # HTTP status: the API server or its etcd cannot answer now


def refused(status: int | None, message: str, namespace: str) -> Verdict:
    """Why the API server did not take a pod, and the command that mends it. WAIT: it may take it later (a quota).

    `status`: of HTTP; None where there was no answer.
    """
    text = f"the cluster does not take the pod: {message}"
    for known in REFUSALS:
        if re.search(known.pattern, message):
            advice = known.advice.replace("{namespace}", namespace)
            return Verdict(known.do, known.row, text, known.outcome, advice)
    if status in (401, 403):
        reason = f"the cluster does not let us make pods in {namespace}: {message}"
        return Verdict(Do.FAIL, "forbidden", reason, Outcome.BAD_SPEC, f"kubectl -n {namespace} get role,rolebinding")
    if status in BUSY:
        return Verdict(Do.WAIT, "busy", f"the cluster's API cannot answer ({status}): {message}", Outcome.TOOLKIT_ERROR)
    return Verdict(Do.FAIL, "unknown", f"{text} (HTTP status {status})", Outcome.TOOLKIT_ERROR)
