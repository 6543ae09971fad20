"""The pod that runs one stage: a pure function from (stage, cluster profile) to a Kubernetes manifest.

Plain dictionaries, as YAML has them: `refit pod FILE STAGE` shows exactly what Airflow's operator sends. Nothing is
read from a cluster. Precedence, later wins: the defaults below, the profile, the pipeline's `resources.default`, the
stage's own `resources`.

What a pod gets and what not:
- The runner's result comes as termination message; the runner itself is brought by an init container where the image
  has none.
- Only its pipeline's folder of the workspace; snapshots read-only, except for bind and look, which write there. The
  inbox: these two and batch inference, read-only. The model repository: releases. Of what people look at, where it says
  how far it is; publishing, the question to a person and releases write the rest.
- No service account token; secrets by reference, and only those that the stage names.
- Pod Security "restricted", but for images that are declared to need root (NVIDIA TAO's).
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from refit.cluster import GpuType, Image, KubernetesProfile, Toleration, Volume
from refit.publish.place import FOLDER as PUBLISHED
from refit.publish.place import PROGRESS

CONTAINER = "stage"
INIT = "runner"
TERMINATION_LOG = "/dev/termination-log"
RUNNER_AT = "/refit"
BROUGHT_PYTHON = "/refit/python/bin/python3"
BROUGHT_LIMIT = "512Mi"  # the CPython that is brought has some 120 MB
START_MARGIN_SECONDS = 120  # of activeDeadlineSeconds: for the init container and the runner's own end
GRACE_MARGIN_SECONDS = 10  # for the runner to write its result once the command has ended
BIND, LOOK, APPROVE, RELEASE, PUBLISH, PREDICT = "bind", "look", "approve", "release", "publish", "predict"
TAKES_DATA = (BIND, LOOK)  # sees the inbox, and writes what becomes a snapshot
PUBLISHES = (APPROVE, RELEASE, PUBLISH)  # writes what people look at
READS_INBOX = (*TAKES_DATA, PREDICT)
READ_BACK = "read-back"
SMOKE = "smoke_"  # before the names of a smoke run's stages (refit.toolkits.smoke)
LABEL = "refit/"
PIPELINE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")  # part of a mount's path, where ":" and ".." are refused
MAX_ENV_BYTES = 128 * 1024 - 1024  # the kernel's limit of one variable (MAX_ARG_STRLEN), with room for its name


class PodError(ValueError):
    """A stage that this cluster profile cannot run; the message says what to do, `key` is the profile's key."""

    def __init__(self, message: str, key: str = "") -> None:
        super().__init__(message)
        self.key = key


@dataclass(frozen=True)
class PodStage:
    """What must be known of a stage to make its pod; everything else is read in the pod, from the plan.

    plan: the path of plan.json as the pod sees it; else `request`: the whole stage (docs/contracts.md).
    """

    pipeline: str
    run: str
    name: str
    action: str
    environment: str
    image: str | None = None
    model: str = ""
    gpus: int = 0
    gpu_type: str | None = None
    cpus: float = 1
    memory_gib: float = 2
    timeout_seconds: float = 24 * 3600
    grace_seconds: float = 20
    secrets: tuple[str, ...] = ()
    plan: str | None = None
    request: Mapping[str, Any] | None = None
    env: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, request: Mapping[str, Any], *, plan: str | None = None) -> PodStage:
        """From a stage of a plan, or (without `plan`) from a request that the pod gets whole."""
        resources = request["resources"]
        return cls(
            pipeline=request["pipeline"],
            run=request["run"],
            name=request["name"],
            action=request["action"],
            environment=request["environment"],
            image=request.get("image"),
            model=request.get("model") or "",
            gpus=resources["gpus"],
            gpu_type=resources.get("gpu_type"),
            cpus=resources["cpus"],
            memory_gib=resources["memory_gib"],
            timeout_seconds=request["timeout_seconds"],
            grace_seconds=request["grace_seconds"],
            secrets=tuple(request["secrets"]),
            plan=plan,
            request=None if plan else dict(request),
        )


# --- what bind tells the operators ------------------------------------------------------------------------------------

SHAPE = ("action", "environment", "image", "gpus", "gpu_type", "cpus", "memory_gib", "timeout", "grace", "secrets")


def pack(requests: Iterable[Mapping[str, Any]]) -> str:
    """The pods of a plan's stages in some hundred bytes, for bind's result: base64 of deflated
    {"shapes": [[...]], "stages": [[name, i]]}. A chain may have sixty stages, whose names come again and again.

    Stages that ask for the same share a shape, the i-th; its items are named by SHAPE. A stage's place is the number of
    its folder.
    """
    shapes: list[list[Any]] = []
    stages: list[tuple[str, int]] = []
    for request in requests:
        pod = PodStage.of(request)
        action = "" if pod.action == pod.name.removeprefix(SMOKE) else pod.action
        shape: list[Any] = [action, pod.environment, pod.image, pod.gpus, pod.gpu_type, pod.cpus, pod.memory_gib]
        shape += [pod.timeout_seconds, pod.grace_seconds, list(pod.secrets)]
        if shape not in shapes:
            shapes.append(shape)
        stages.append((pod.name, shapes.index(shape)))
    text = json.dumps({"shapes": shapes, "stages": stages}, separators=(",", ":"))
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def _opened(packed: str) -> dict[str, Any]:
    return dict(json.loads(zlib.decompress(base64.b64decode(packed))))


def place(packed: str, name: str) -> int:
    """A stage's place in a packed plan, from 1. Raises KeyError for a stage that the plan does not have."""
    return {stage: i for i, (stage, _) in enumerate(_opened(packed)["stages"], start=1)}[name]


def unpack(packed: str, name: str, *, pipeline: str, run: str, plan: str, model: str = "") -> PodStage:
    """The pod of one stage of a packed plan. Raises KeyError for a stage that the plan does not have."""
    opened = _opened(packed)
    known = dict(zip(SHAPE, opened["shapes"][dict(opened["stages"])[name]], strict=True))
    return PodStage(
        pipeline=pipeline,
        run=run,
        name=name,
        action=known["action"] or name.removeprefix(SMOKE),
        environment=known["environment"],
        image=known["image"],
        model=model,
        gpus=known["gpus"],
        gpu_type=known["gpu_type"],
        cpus=known["cpus"],
        memory_gib=known["memory_gib"],
        timeout_seconds=known["timeout"],
        grace_seconds=known["grace"],
        secrets=tuple(known["secrets"]),
        plan=plan,
    )


# --- the pod ----------------------------------------------------------------------------------------------------------


def stage_pod(stage: PodStage, profile: KubernetesProfile, *, name: str | None = None) -> dict[str, Any]:
    """The manifest of a stage's pod. Raises PodError where the profile lacks what the stage names."""
    if not PIPELINE.fullmatch(stage.pipeline):
        raise PodError(f"{stage.pipeline!r} cannot be a pipeline's folder; use letters, digits, '.', '-' and '_'")
    image = _image(stage, profile)
    gpu = _gpu_type(stage, profile)
    brought = image.runner is None
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name or pod_name(stage.pipeline, stage.name),
            "namespace": profile.namespace,
            "labels": _labels(stage, profile),
            **({"annotations": dict(profile.annotations)} if profile.annotations else {}),
        },
        "spec": _without_none(
            {
                "restartPolicy": "Never",
                "serviceAccountName": profile.service_account,
                "automountServiceAccountToken": False,
                "enableServiceLinks": False,
                "priorityClassName": profile.priority_class,
                "runtimeClassName": gpu.runtime_class if gpu else None,
                "nodeSelector": {**profile.node_selector, **(gpu.node_selector if gpu else {})} or None,
                "tolerations": _tolerations(profile.tolerations, gpu) or None,
                "imagePullSecrets": [{"name": n} for n in profile.image_pull_secrets] or None,
                "activeDeadlineSeconds": int(
                    stage.timeout_seconds + profile.start_timeout_seconds + stage.grace_seconds + START_MARGIN_SECONDS
                ),
                "terminationGracePeriodSeconds": int(stage.grace_seconds + GRACE_MARGIN_SECONDS),
                "securityContext": _pod_security(image, profile),
                "initContainers": [_bring_runner(image, profile)] if brought else None,
                "containers": [_container(stage, profile, image, gpu)],
                "volumes": _volumes(stage, profile, brought),
            }
        ),
    }


def read_back_pod(stage: PodStage, folder: str, profile: KubernetesProfile, *, name: str | None = None) -> Any:
    """A small pod without a GPU that answers with the result of a stage whose own pod was lost with its answer.

    `folder`: the stage's folder as the pod sees it. A result of another key than the stage's does not count.
    """
    small = PodStage(
        pipeline=stage.pipeline,
        run=stage.run,
        name=stage.name,
        action=READ_BACK,
        environment="tools",
        model=stage.model,
        cpus=0.1,
        memory_gib=0.25,
        timeout_seconds=300,
        grace_seconds=1,
        plan=stage.plan,
        request=stage.request,
    )
    pod = stage_pod(small, profile, name=name or pod_name(stage.pipeline, f"{stage.name}-read-back"))
    container = pod["spec"]["containers"][0]
    container["command"] = [*container["command"], "--answer", folder]
    return pod


def _image(stage: PodStage, profile: KubernetesProfile) -> Image:
    try:
        return profile.image(stage.environment, stage.action, stage.image)
    except KeyError:
        known = ", ".join(sorted(profile.images))
        raise PodError(
            f"stage {stage.name} runs in environment {stage.environment!r}, for which the cluster profile has no image "
            f"(images: {known}); add images.{stage.environment}",
            f"images.{stage.environment}",
        ) from None


def _gpu_type(stage: PodStage, profile: KubernetesProfile) -> GpuType | None:
    if not stage.gpus:
        return None
    wanted = stage.gpu_type or "default"
    if wanted not in profile.gpu.types:
        known = ", ".join(sorted(profile.gpu.types))
        raise PodError(
            f"stage {stage.name.removeprefix(SMOKE)} wants gpu_type {wanted!r}; the cluster profile has {known}; "
            f"add gpu.types.{wanted}",
            f"gpu.types.{wanted}",
        )
    return profile.gpu.types[wanted]


def _labels(stage: PodStage, profile: KubernetesProfile) -> dict[str, str]:
    labels = {
        **profile.labels,
        LABEL + "pipeline": label_value(stage.pipeline),
        LABEL + "run": label_value(stage.run),
        LABEL + "stage": label_value(stage.name),
    }
    if stage.model:
        labels[LABEL + "model"] = label_value(stage.model)
    if stage.action in (BIND, RELEASE, PREDICT):  # bind asks whether an earlier release still serves
        labels |= profile.triton.client_labels
    if profile.queue and stage.action != READ_BACK:
        labels["kueue.x-k8s.io/queue-name"] = profile.queue
    return labels


def _tolerations(own: Iterable[Toleration], gpu: GpuType | None) -> list[dict[str, Any]]:
    wanted = [*own, *(gpu.tolerations if gpu else ())]
    return [t.model_dump(by_alias=True, exclude_none=True) for t in dict.fromkeys(wanted)]


def _pod_security(image: Image, profile: KubernetesProfile) -> dict[str, Any]:
    s = profile.security
    return {
        "runAsNonRoot": not image.root,
        "runAsUser": 0 if image.root else s.user,
        "runAsGroup": s.group,  # also of root: what it writes belongs to the group that all stages share
        "fsGroup": s.fs_group,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _container_security(*, read_only: bool) -> dict[str, Any]:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": read_only,
        "capabilities": {"drop": ["ALL"]},
    }


def _bring_runner(image: Image, profile: KubernetesProfile) -> dict[str, Any]:
    tools = profile.images["tools"]
    what = "/refit/runner.py" if image.python else "/refit/."
    return {
        "name": INIT,
        "image": tools.image,
        "imagePullPolicy": tools.pull_policy,
        "command": ["cp", "-R", what, "/target/"],
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}},
        "securityContext": {
            **_container_security(read_only=True),
            "runAsNonRoot": True,
            "runAsUser": profile.security.user,
        },
        "volumeMounts": [{"name": "refit", "mountPath": "/target"}],
    }


def _container(stage: PodStage, profile: KubernetesProfile, image: Image, gpu: GpuType | None) -> dict[str, Any]:
    python = image.python or BROUGHT_PYTHON
    command = [python, "-I", image.runner or f"{RUNNER_AT}/runner.py"]
    if stage.plan:
        command += ["--plan", stage.plan, "--stage", stage.name]
    limits = {"memory": memory(stage.memory_gib)}
    if gpu:
        limits[gpu.resource or profile.gpu.resource] = str(stage.gpus)
    return {
        "name": CONTAINER,
        "image": image.image,
        "imagePullPolicy": image.pull_policy,
        "command": command,
        "env": _env(stage, profile),
        "resources": {"requests": {"cpu": cpu(stage.cpus), "memory": memory(stage.memory_gib)}, "limits": limits},
        "securityContext": _container_security(read_only=not image.root),
        "terminationMessagePath": TERMINATION_LOG,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": _mounts(stage, profile, image.runner is None),
    }


def _env(stage: PodStage, profile: KubernetesProfile) -> list[dict[str, Any]]:
    volumes = profile.volumes
    plain = {
        "HOME": "/tmp",  # noqa: S108 - the pod's own
        "REFIT_TERMINATION_LOG": TERMINATION_LOG,
        "REFIT_UMASK": profile.security.umask,
        "REFIT_WORKSPACE": volumes.workspace.mount_path,
    }
    if stage.action in TAKES_DATA:
        plain["REFIT_CPUS"] = f"{stage.cpus:g}"  # a request is no quota: without it, a process for each of the node's
    if stage.action in READS_INBOX and volumes.inbox:
        plain["REFIT_DATA_ROOTS"] = volumes.inbox.mount_path
    if not stage.gpus:
        # Where NVIDIA's is the default runtime, an image that asks for all GPUs would get them uncounted.
        plain["NVIDIA_VISIBLE_DEVICES"] = "void"
    plain |= stage.env
    if stage.request is not None:
        text = json.dumps(stage.request, separators=(",", ":"))
        if len(text.encode()) > MAX_ENV_BYTES:
            raise PodError(
                f"the request of {stage.name} has {len(text.encode()):,} bytes; a pod's variable holds "
                f"{MAX_ENV_BYTES:,}: make the pipeline file or the run's params smaller"
            )
        # "$(NAME)" in a pod's variable would be replaced by Kubernetes; "$$" is its escape for "$", anywhere.
        plain["REFIT_REQUEST"] = text.replace("$", "$$")
    env: list[dict[str, Any]] = [{"name": k, "value": v} for k, v in plain.items()]
    for secret in stage.secrets:
        ref = profile.secrets.get(secret)
        if ref is None:
            known = ", ".join(sorted(profile.secrets)) or "none"
            raise PodError(
                f"stage {stage.name.removeprefix(SMOKE)} needs the secret {secret}; the cluster profile's secrets are "
                f"{known}: add secrets.{secret}: {{name: <the Secret>, key: <its entry>}}",
                f"secrets.{secret}",
            )
        source = {"secretKeyRef": {"name": ref.name, "key": ref.key}}
        env.append({"name": f"REFIT_SECRET_{secret}", "valueFrom": source})
    return env


def _mounts(stage: PodStage, profile: KubernetesProfile, brought: bool) -> list[dict[str, Any]]:
    volumes = profile.volumes
    own = f"{volumes.workspace.mount_path.rstrip('/')}/{stage.pipeline}"
    mounts: list[dict[str, Any]] = [
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - the pod's own
        {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108
        {
            "name": "workspace",
            "mountPath": own,
            "subPath": _below(volumes.workspace, stage.pipeline),
            **({"readOnly": True} if stage.action == READ_BACK else {}),
        },
    ]
    if stage.action not in (*TAKES_DATA, READ_BACK):
        mounts.append(
            {
                "name": "workspace",
                "mountPath": f"{own}/datasets",
                "subPath": _below(volumes.workspace, f"{stage.pipeline}/datasets"),
                "readOnly": True,
            }
        )
    # What people look at; others than its writers say there how far they are. The first pods get all of it as well, for
    # of the folders that kubelet makes the group gets the last one only.
    below = f"{PUBLISHED}/{stage.pipeline}"
    whole = stage.action in (*TAKES_DATA, *PUBLISHES)
    if whole or (stage.plan is not None and stage.action != READ_BACK):
        below = below if whole else f"{below}/{PROGRESS}"
        mounts.append(
            {
                "name": "workspace",
                "mountPath": f"{volumes.workspace.mount_path.rstrip('/')}/{below}",
                "subPath": _below(volumes.workspace, below),
            }
        )
    if stage.action in READS_INBOX and volumes.inbox:
        mounts.append(_mount("inbox", volumes.inbox, read_only=True))
    if stage.action == RELEASE:
        mounts.append(_mount("models", volumes.models))
    if brought:
        mounts.append({"name": "refit", "mountPath": RUNNER_AT, "readOnly": True})
    return mounts


def _mount(name: str, volume: Volume, *, read_only: bool = False) -> dict[str, Any]:
    return {
        "name": name,
        "mountPath": volume.mount_path,
        **({"subPath": volume.sub_path} if volume.sub_path else {}),
        **({"readOnly": True} if read_only else {}),
    }


def _below(volume: Volume, path: str) -> str:
    return f"{volume.sub_path.rstrip('/')}/{path}" if volume.sub_path else path


def _volumes(stage: PodStage, profile: KubernetesProfile, brought: bool) -> list[dict[str, Any]]:
    volumes = profile.volumes
    out: list[dict[str, Any]] = [
        {"name": "tmp", "emptyDir": {"sizeLimit": profile.scratch}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": profile.shared_memory}},
        {"name": "workspace", "persistentVolumeClaim": {"claimName": volumes.workspace.claim}},
    ]
    if stage.action in READS_INBOX and volumes.inbox:
        claim = {"claimName": volumes.inbox.claim, "readOnly": True}
        out.append({"name": "inbox", "persistentVolumeClaim": claim})
    if stage.action == RELEASE:
        out.append({"name": "models", "persistentVolumeClaim": {"claimName": volumes.models.claim}})
    if brought:
        out.append({"name": "refit", "emptyDir": {"sizeLimit": BROUGHT_LIMIT}})
    return out


# --- values -----------------------------------------------------------------------------------------------------------


def pod_name(pipeline: str, stage: str) -> str:
    """A pod's name without the suffix that makes it unique: a DNS label of at most 50 characters."""
    text = re.sub(r"[^a-z0-9]+", "-", f"{pipeline}-{stage}".lower()).strip("-") or "stage"
    if len(text) > 50:
        text = f"{text[:43].rstrip('-')}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
    return text


def label_value(text: str) -> str:
    """Text as a label's value: as it is where it fits, else cut and kept apart from others by a hash.

    >>> label_value("manual__2026-11-20T19-10-00.5f2c36")
    'manual__2026-11-20T19-10-00.5f2c36'
    """
    plain = re.sub(r"[^A-Za-z0-9_.-]", "-", text).strip("-_.")
    if plain == text and len(text) <= 63:
        return text
    return f"{plain[:54].rstrip('-_.')}-{hashlib.sha256(text.encode()).hexdigest()[:8]}".lstrip("-")


def cpu(cores: float) -> str:
    """Cores as a quantity: 2 -> "2", 0.5 -> "500m"."""
    return str(int(cores)) if float(cores).is_integer() else f"{max(1, round(cores * 1000))}m"


def memory(gib: float) -> str:
    """GiB as a quantity: 4 -> "4Gi", 0.5 -> "512Mi"."""
    return f"{int(gib)}Gi" if float(gib).is_integer() else f"{max(1, round(gib * 1024))}Mi"


def _without_none(value: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in value.items() if v is not None}
