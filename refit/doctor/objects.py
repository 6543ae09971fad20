"""What a cluster's objects tell: whether all that a profile names is there, and fits. Reads only."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from refit.cluster import GpuType, KubernetesProfile, Toleration
from refit.doctor.finding import Finding, Level
from refit.doctor.kubectl import Kubectl, KubectlError
from refit.runtime import pod as pods
from refit.runtime.pod import PodStage

OK, WARN, FAIL, NOTE = Level.OK, Level.WARN, Level.FAIL, Level.NOTE
# Without these no pod of ours would start, whatever its image.
NEEDED_BY_PODS = frozenset({"cluster", "namespace", "account", "volume", "priority"})
ENTRIES = '{{range $key, $value := .data}}{{$key}}{{"\\n"}}{{end}}'  # the values stay in kubectl
ENFORCE = "pod-security.kubernetes.io/enforce"
# What Airflow does with pods (helm/refit/templates/accounts.yaml), and what it must not be able to do.
RIGHTS = (
    *((verb, "pods", "") for verb in ("create", "get", "list", "watch", "patch", "delete")),
    ("get", "pods", "log"),
    ("list", "events", ""),
)
NO_RIGHTS = tuple((verb, "secrets", "") for verb in ("get", "list", "watch"))


@dataclass(frozen=True)
class Place:
    """What is looked at, and with what."""

    kubectl: Kubectl
    profile: KubernetesProfile
    stages: tuple[PodStage, ...] = ()
    accounts: tuple[str, ...] = ()

    @property
    def namespace(self) -> str:
        return self.profile.namespace

    @cached_property
    def nodes(self) -> list[Any]:
        """The nodes that take pods."""
        return [n for n in self.kubectl.all("nodes") if not n["spec"].get("unschedulable") and _is_ready(n)]

    def command(self, *words: str) -> str:
        return " ".join(("kubectl", "-n", self.namespace, *words))


def examine(place: Place) -> Iterator[Finding]:
    """All findings; it ends early where the cluster does not answer or the namespace is missing."""
    for name, check in CHECKS.items():
        try:
            for finding in check(place):
                yield finding
                if finding.level is FAIL and name in ("cluster", "namespace"):
                    return
        except KubectlError as exc:
            yield Finding(
                FAIL,
                name,
                str(exc),
                "is it the right cluster (KUBECONFIG)? kubectl config view --minify; kubectl auth can-i --list",
            )
            if name == "cluster":
                return


def _is_ready(node: Mapping[str, Any]) -> bool:
    conditions = node["status"].get("conditions") or ()
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def cluster(place: Place) -> Iterator[Finding]:
    version = json.loads(place.kubectl.ask("version", "-o", "json"))["serverVersion"]["gitVersion"]
    yield Finding(OK, "cluster", f"Kubernetes {version}, nodes that take pods: {len(place.nodes)}")


def namespace(place: Place) -> Iterator[Finding]:
    found = place.kubectl.get("namespace", place.namespace)
    if found is None:
        fix = f"helm install refit helm/refit -n {place.namespace} --create-namespace"
        yield Finding(FAIL, "namespace", f"{place.namespace} does not exist", fix)
        return
    yield Finding(OK, "namespace", f"{place.namespace} exists")
    yield _pod_security(place, (found["metadata"].get("labels") or {}).get(ENFORCE))


def _pod_security(place: Place, level: str | None) -> Finding:
    # https://kubernetes.io/docs/concepts/security/pod-security-standards/: "restricted" wants runAsNonRoot.
    roots = sorted(name for name, image in place.profile.images.items() if image.root)
    label = f"kubectl label namespace {place.namespace} {ENFORCE}="
    if level == "restricted" and roots:
        text = f"the namespace enforces restricted, and images.{', images.'.join(roots)} run as root"
        return Finding(FAIL, "pod security", text, f"{label}baseline --overwrite")
    if level is None and not roots:
        text = "nothing is enforced; all pods of this profile would pass restricted"
        return Finding(OK, "pod security", text, f"{label}restricted")
    return Finding(OK, "pod security", f"enforced is {level or 'nothing'}, which lets all images of the profile in")


def account(place: Place) -> Iterator[Finding]:
    name = place.profile.service_account
    if name is None:
        yield Finding(OK, "account", "stage pods run as the namespace's default account, without a token")
    elif place.kubectl.get("serviceaccount", name) is None:
        fix = place.command("create", "serviceaccount", name)
        yield Finding(FAIL, "account", f"service_account {name} does not exist", fix)
    else:
        yield Finding(OK, "account", f"{name} exists")


def volumes(place: Place) -> Iterator[Finding]:
    there = {"workspace": place.profile.volumes.workspace, "models": place.profile.volumes.models}
    if place.profile.volumes.inbox is not None:
        there["inbox"] = place.profile.volumes.inbox
    for role, volume in there.items():
        yield _claim(place, role, volume.claim)


def _claim(place: Place, role: str, claim: str) -> Finding:
    name = f"volume {role}"
    describe = place.command("describe", "pvc", claim)
    found = place.kubectl.get("persistentvolumeclaim", claim)
    if found is None:
        fix = f"correct volumes.{role}.claim, or install the chart; there are: {place.command('get', 'pvc')}"
        return Finding(FAIL, name, f"the claim {claim} does not exist", fix)
    if found["metadata"].get("deletionTimestamp"):
        return Finding(FAIL, name, f"the claim {claim} is being deleted", describe)
    phase = found["status"].get("phase")
    if phase != "Bound" and not (phase == "Pending" and _binds_late(place, found)):
        return Finding(FAIL, name, f"the claim {claim} is {phase}, not Bound", describe)
    modes = found["status"].get("accessModes") or found["spec"]["accessModes"]
    fitting = {"ReadWriteMany", "ReadOnlyMany"} if role == "inbox" else {"ReadWriteMany"}
    if len(place.nodes) > 1 and not fitting & set(modes):
        text = f"the claim {claim} has {', '.join(modes)}: pods on {len(place.nodes)} nodes cannot share it"
        fix = f"make a claim with ReadWriteMany (NFS 4.1, CephFS, ...) and name it in storage.{role}.existingClaim"
        return Finding(FAIL, name, text, fix)
    when = "Bound" if phase == "Bound" else "bound by the first pod"
    return Finding(OK, name, f"{claim} is {when}, {', '.join(modes)}")


def _binds_late(place: Place, claim: Mapping[str, Any]) -> bool:
    name = claim["spec"].get("storageClassName")
    found = place.kubectl.get("storageclass", name) if name else None
    return found is not None and found.get("volumeBindingMode") == "WaitForFirstConsumer"


def secrets(place: Place) -> Iterator[Finding]:
    for variable, ref in sorted(place.profile.secrets.items()):
        done = place.kubectl.run("get", "secret", ref.name, "-o", f"go-template={ENTRIES}")
        if done.code and "NotFound" not in done.err:
            raise KubectlError(done.err)
        fix = place.command("create", "secret", "generic", ref.name, f"--from-literal={ref.key}=...")
        if done.code:
            yield Finding(FAIL, "secret", f"{ref.name}, which {variable} is taken from, does not exist", fix)
        elif ref.key not in done.out.split():
            known = ", ".join(done.out.split()) or "none"
            text = f"{ref.name} has no entry {ref.key}, which {variable} is taken from; its entries are: {known}"
            yield Finding(FAIL, "secret", text, f"correct secrets.{variable}.key, or add the entry to the Secret")
        else:
            yield Finding(OK, "secret", f"{variable}: {ref.name} has the entry {ref.key}")
    for name in place.profile.image_pull_secrets:
        done = place.kubectl.run("get", "secret", name, "-o", "jsonpath={.type}")
        if done.code or done.out != "kubernetes.io/dockerconfigjson":
            text = f"image_pull_secrets: {name} {'does not exist' if done.code else f'is of type {done.out}'}"
            fix = place.command("create", "secret", "docker-registry", name, "--docker-server=...")
            yield Finding(FAIL, "secret", text, fix)
        else:
            yield Finding(OK, "secret", f"{name} is there for pulling images")


def classes(place: Place) -> Iterator[Finding]:
    priority = place.profile.priority_class
    runtimes = {n: t.runtime_class for n, t in place.profile.gpu.types.items() if t.runtime_class}
    if priority is not None:
        there = place.kubectl.get("priorityclass", priority) is not None
        fix = "" if there else "kubectl get priorityclasses; correct priority_class, or install the chart"
        yield Finding(
            OK if there else FAIL, "priority class", f"{priority} {'exists' if there else 'does not exist'}", fix
        )
    for kind, name in sorted(runtimes.items()):
        if place.kubectl.get("runtimeclass", name) is None:
            fix = f"kubectl get runtimeclasses; correct gpu.types.{kind}.runtime_class, or install NVIDIA's toolkit"
            yield Finding(FAIL, "runtime class", f"{name} of GPU type {kind} does not exist", fix)
        else:
            yield Finding(OK, "runtime class", f"{name} exists")


# --- GPUs -------------------------------------------------------------------------------------------------------------


def gpus(place: Place) -> Iterator[Finding]:
    gpu = place.profile.gpu
    wanted = {s.gpu_type or "default": 0 for s in place.stages if s.gpus}
    for stage in place.stages:
        if stage.gpus:
            kind = stage.gpu_type or "default"
            wanted[kind] = max(wanted[kind], stage.gpus)
    if not place.stages and gpu.total:
        wanted = dict.fromkeys(gpu.types, 1)
    if not wanted:
        yield Finding(OK, "gpu", "no stage asks for one")
    for kind, most in sorted(wanted.items()):
        if kind in gpu.types:  # else: a PodError, which `stages` reports
            yield _gpu_type(place, kind, gpu.types[kind], most)
    offered = {n["metadata"]["name"]: sum(_has(n, r) for r in place.profile.gpu_resources()) for n in place.nodes}
    total = sum(offered.values())
    if wanted and total < gpu.total:
        text = f"gpu.total is {gpu.total}, and the nodes have {total} ({_list(offered)})"
        fix = f"set gpu.total: {total} and Airflow's pool, unless nodes are added when they are needed"
        yield Finding(WARN, "gpu", text, fix)


def _gpu_type(place: Place, kind: str, wanted: GpuType, most: int) -> Finding:
    resource = wanted.resource or place.profile.gpu.resource
    selector = {**place.profile.node_selector, **wanted.node_selector}
    stands = [*place.profile.tolerations, *wanted.tolerations]
    here = [n for n in place.nodes if selector.items() <= (n["metadata"].get("labels") or {}).items()]
    name, show = f"gpu {kind}", "kubectl describe nodes | grep -E '^Name|Taints|" + re.escape(resource) + "'"
    if not here:
        labels = ",".join(f"{k}={v}" for k, v in selector.items())
        return Finding(FAIL, name, f"no node has the labels {labels}", "kubectl get nodes --show-labels")
    open_ = [n for n in here if all(_tolerated(t, stands) for t in n["spec"].get("taints") or ())]
    if not open_:
        taints = {t["key"] for n in here for t in n["spec"].get("taints") or () if not _tolerated(t, stands)}
        text = f"the nodes have taints that are not tolerated: {', '.join(sorted(taints))}"
        return Finding(FAIL, name, text, f"add them to gpu.types.{kind}.tolerations; {show}")
    offered = {n["metadata"]["name"]: _has(n, resource) for n in open_}
    if max(offered.values()) < most:
        text = f"no node has {most} {resource} ({_list(offered)})"
        fix = f"ask for fewer (resources of the pipeline), correct gpu.types.{kind}, or mend the device plugin: {show}"
        return Finding(FAIL, name, text, fix)
    return Finding(OK, name, f"{most} {resource} on one node are there ({_list(offered)})")


def _tolerated(taint: Mapping[str, Any], stands: list[Toleration]) -> bool:
    # https://kubernetes.io/docs/concepts/scheduling-eviction/taint-and-toleration/
    return taint["effect"] == "PreferNoSchedule" or any(
        (t.effect is None or t.effect == taint["effect"])
        and (t.key is None or t.key == taint["key"])
        and (t.operator == "Exists" or (t.value or "") == taint.get("value", ""))
        for t in stands
    )


def _has(node: Mapping[str, Any], resource: str) -> int:
    return int(quantity(str(node["status"].get("allocatable", {}).get(resource, "0"))))


def _list(offered: Mapping[str, int]) -> str:
    most = sorted(offered.items(), key=lambda entry: -entry[1])[:5]
    return ", ".join(f"{name}: {count}" for name, count in most) + (", ..." if len(offered) > 5 else "")


# --- quota and stages -------------------------------------------------------------------------------------------------

SUFFIXES = {"m": 1e-3, "k": 1e3, **{s: 1000.0 ** (i + 2) for i, s in enumerate("MGTPE")}}
SUFFIXES |= {s + "i": 1024.0 ** (i + 1) for i, s in enumerate("KMGTPE")}


def quantity(text: str) -> float:
    """A Kubernetes quantity as a number: "500m" -> 0.5, "2Gi" -> 2147483648."""
    number, suffix = re.fullmatch(r"([-+.\d]+(?:[eE][-+]?\d+)?)([A-Za-z]*)", text).groups()  # type: ignore[union-attr]
    return float(number) * SUFFIXES.get(suffix, 1.0)


def stages(place: Place) -> Iterator[Finding]:
    """Whether the profile can make a pod for each stage of the pipelines."""
    for stage in place.stages:
        try:
            pods.stage_pod(stage, place.profile)
        except pods.PodError as exc:
            yield Finding(FAIL, "pipeline", f"{stage.pipeline}: {exc}", f"refit pod {stage.pipeline}.yaml {stage.name}")


def quota(place: Place) -> Iterator[Finding]:
    largest = _largest(place)
    for found in place.kubectl.all("resourcequota"):
        if not _applies(found["spec"], place.profile.priority_class):
            continue
        name = f"quota {found['metadata']['name']}"
        hard = found["status"].get("hard") or found["spec"].get("hard") or {}
        taken = found["status"].get("used") or {}
        show = place.command("describe", "quota", found["metadata"]["name"])
        lacking = []
        for what, need in sorted(largest.items()):
            if what in hard:
                limit, used = quantity(hard[what]), quantity(taken.get(what, "0"))
                if limit < need:
                    yield Finding(FAIL, name, f"{what} is limited to {hard[what]}, and a stage needs {need:g}", show)
                elif limit - used < need:
                    lacking.append(f"{taken[what]} of {hard[what]} {what}")
        if lacking:
            yield Finding(WARN, name, f"is used up for now: {', '.join(lacking)}; stages wait", show)
        else:
            yield Finding(OK, name, "has room for a stage")


def _largest(place: Place) -> dict[str, float]:
    """The most that one stage pod needs, by the names of a quota."""
    need: dict[str, float] = {"pods": 1}
    for stage in place.stages or (PodStage("", "", "", "", "tools"),):
        gpu = place.profile.gpu.types.get(stage.gpu_type or "default")
        resource = (gpu.resource if gpu else None) or place.profile.gpu.resource
        bytes_ = stage.memory_gib * 2**30
        one = {"requests.cpu": stage.cpus, "cpu": stage.cpus, "requests.memory": bytes_, "memory": bytes_}
        one |= {"limits.memory": bytes_}
        if stage.gpus:
            one[f"requests.{resource}"] = stage.gpus
        need = {k: max(need.get(k, 0), one.get(k, 0)) for k in {*need, *one}}
    return need


def _applies(spec: Mapping[str, Any], priority: str | None) -> bool:
    """Whether a quota counts stage pods: one with a scope counts only pods of that scope."""
    for rule in (spec.get("scopeSelector") or {}).get("matchExpressions") or ():
        inside = priority in (rule.get("values") or ())
        if rule["scopeName"] == "PriorityClass" and inside != (rule["operator"] == "In"):
            return False
    return not {"BestEffort", "NotTerminating"} & set(spec.get("scopes") or ())


# --- Airflow ----------------------------------------------------------------------------------------------------------


def rights(place: Place) -> Iterator[Finding]:
    accounts = place.accounts or _airflow(place)
    if not accounts:
        text = f"no Role of {place.namespace} lets any service account make pods"
        fix = "helm upgrade ... --set airflow.serviceAccounts={...}; or name one: refit doctor --account NAMESPACE:NAME"
        yield Finding(FAIL, "airflow", text, fix)
    show = place.command("get", "role,rolebinding", "-o", "yaml")
    for who in accounts:
        lacks = [_words(r) for r in RIGHTS if not _may(place, who, r)]
        too_much = [_words(r) for r in NO_RIGHTS if _may(place, who, r)]
        if lacks:
            fix = f"helm upgrade ... (the chart's Role gives them); {show}"
            yield Finding(FAIL, "airflow", f"{who} may not {', '.join(lacks)}", fix)
        if too_much:
            yield Finding(FAIL, "airflow", f"{who} may {', '.join(too_much)}: take that away", show)
        if not lacks and not too_much:
            yield Finding(OK, "airflow", f"{who} may make, follow and delete pods, and read no Secret")


def _airflow(place: Place) -> list[str]:
    """The service accounts that a Role of the namespace lets make pods."""
    roles = {
        role["metadata"]["name"]
        for role in place.kubectl.all("roles")
        if any("pods" in (r.get("resources") or ()) and "create" in r["verbs"] for r in role.get("rules") or ())
    }
    found = {
        f"{subject.get('namespace', place.namespace)}:{subject['name']}"
        for binding in place.kubectl.all("rolebindings")
        if binding["roleRef"]["kind"] == "Role" and binding["roleRef"]["name"] in roles
        for subject in binding.get("subjects") or ()
        if subject["kind"] == "ServiceAccount"
    }
    return sorted(found)


def _may(place: Place, who: str, right: tuple[str, str, str]) -> bool:
    verb, resource, sub = right
    words = ["auth", "can-i", verb, resource, f"--as=system:serviceaccount:{who}"]
    done = place.kubectl.run(*words, *([f"--subresource={sub}"] if sub else []))
    answer = done.out.split()[:1]
    if answer not in (["yes"], ["no"]):
        raise KubectlError(f"cannot ask what {who} may do (an administrator may): {done.err}")
    return answer == ["yes"]


def _words(right: tuple[str, str, str]) -> str:
    verb, resource, sub = right
    return f"{verb} {resource}/{sub}" if sub else f"{verb} {resource}"


def pools(place: Place) -> Iterator[Finding]:
    """Airflow's own objects are not the cluster's."""
    text = f"Airflow's pools cannot be seen from here; the one for GPUs must have {place.profile.gpu.total} slots and "
    yield Finding(NOTE, "pools", text + "count deferred tasks", "airflow pools list (in a pod of Airflow's scheduler)")


CHECKS: Mapping[str, Callable[[Place], Iterator[Finding]]] = {
    "cluster": cluster,
    "namespace": namespace,
    "account": account,
    "volume": volumes,
    "secret": secrets,
    "priority": classes,
    "pipeline": stages,
    "gpu": gpus,
    "quota": quota,
    "airflow": rights,
    "pools": pools,
}
