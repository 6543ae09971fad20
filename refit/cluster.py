"""The cluster profile: one file in specs/clusters/ says what a place offers that runs stages.

`runtime: local` is subprocesses on one machine, `runtime: kubernetes` a namespace of a cluster; the Helm chart writes
the profile of the namespace that it installs into (helm/refit/README.md).
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, StringConstraints, field_validator, model_validator

from refit.config import Settings
from refit.engine.record import Capability
from refit.hosts import Allowed
from refit.notify import Notify
from refit.pipeline import TritonTarget
from refit.specs import Problem, Spec, SpecError, did_you_mean, read_document
from refit.specs import load as load_spec

# https://kubernetes.io/docs/concepts/overview/working-with-objects/names and .../labels
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")]
LabelKey = Annotated[
    str, StringConstraints(pattern=r"^([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$")
]
LabelValue = Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$")]
Quantity = Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?([kMGTPE]i?)?$")]
SecretName = Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Z0-9_]*$")]
AbsolutePath = Annotated[str, StringConstraints(pattern=r"^/[^:{}'\"\n\\]*$")]


def _empty_is_none(value: Any) -> Any:
    return None if value == "" else value


Optional = BeforeValidator(_empty_is_none)


class ProfileTriton(TritonTarget):
    """The Triton that this place releases to."""

    control_key_secret: str | None = Field(
        None,
        pattern=r"^[A-Z][A-Z0-9_]*$",
        description="name of the secret that holds the key of Triton's restricted model-control API; null: none needed",
    )


Price = Annotated[float, Field(ge=0)]


class Prices(Spec):
    """What an hour costs here, for the money in run reports; all of a stage's GPUs, CPUs and memory count."""

    currency: str = Field("", max_length=8, description="shown behind amounts, e.g. EUR")
    gpu_hour: dict[str, Price] = Field(
        default_factory=dict, description="of one GPU, by its type (resources.gpu_type); default: of all others"
    )
    cpu_hour: Price = Field(0, description="of one CPU")
    memory_gib_hour: Price = Field(0, description="of one GiB")


class Profile(Spec):
    """A place that runs stages."""

    RUNTIME: ClassVar[str]

    description: str = ""
    runtime: str
    env: dict[str, str] = Field(
        default_factory=dict, description="variables for every stage command, e.g. CUDA_VISIBLE_DEVICES; no secrets"
    )
    prices: Prices | None = Field(None, description="null: run reports tell seconds only")
    notify: list[Notify] = Field(default_factory=list, description="who is told of the runs of every pipeline here")
    triton: ProfileTriton


class LocalProfile(Profile):
    """One machine; stages are its processes."""

    RUNTIME = "local"

    runtime: Literal["local"] = "local"
    triton: ProfileTriton = Field(description="relative repository paths lie below REFIT_HOME")


# --- Kubernetes -------------------------------------------------------------------------------------------------------


class Image(Spec):
    """What runs an environment's commands."""

    image: str = Field(min_length=1, description="name with tag, or with @sha256:... to pin it")
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    python: AbsolutePath | Literal["python", "python3"] | None = Field(
        "python",
        description="the image's interpreter for the runner, 3.6 or newer; null: it has none, one is brought along",
    )
    runner: AbsolutePath | None = Field(
        None, description="runner.py inside the image; null: an init container brings the one of the tools image"
    )
    root: bool = Field(
        False, description="the image's commands need root and a writable root file system (NVIDIA TAO's do)"
    )

    @property
    def digest(self) -> str | None:
        return self.image.partition("@")[2] or None


class TaoImages(Spec):
    """NVIDIA TAO's containers: one repository, a tag for each family (specs/tao/releases.yaml)."""

    repository: str = Field("nvidia/tao/tao-toolkit", min_length=1, description="with the registry's host before it")
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    python: AbsolutePath | Literal["python", "python3"] | None = Field("python3", description="null: one is brought")

    def image(self, name: str) -> Image:
        """The image of a tag, or of a whole name; its commands need root (they write below /opt and /root)."""
        whole = name if "/" in name or ":" in name else f"{self.repository}:{name}"
        return Image(image=whole, pull_policy=self.pull_policy, python=self.python, root=True)


class Volume(Spec):
    claim: Name = Field(description="the PersistentVolumeClaim")
    sub_path: str = Field("", pattern=r"^[^/].*$|^$", description='folder of the volume; "": all of it')
    mount_path: AbsolutePath


class Volumes(Spec):
    workspace: Volume
    models: Volume = Field(description="Triton's model repository with its staging area; only release pods mount it")
    inbox: Volume | None = Field(None, description="where data arrives, mounted read-only by bind and look; null: none")


class Toleration(Spec):
    key: str | None = None
    operator: Literal["Exists", "Equal"] = "Equal"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: int | None = Field(None, alias="tolerationSeconds")


class GpuType(Spec):
    """Where nodes with one kind of GPU are, e.g. a100; a pipeline's resources name it (`gpu_type`)."""

    node_selector: dict[LabelKey, LabelValue] = Field(default_factory=dict)
    tolerations: list[Toleration] = Field(default_factory=list)
    runtime_class: Annotated[Name | None, Optional] = Field(None, description="e.g. nvidia")
    resource: str | None = Field(None, description="e.g. nvidia.com/mig-1g.10gb; null: gpu.resource")
    compute_capability: Capability | None = Field(
        None, description="of these GPUs, e.g. 7.5: what a TensorRT engine is built for and checked against"
    )


class Gpu(Spec):
    resource: str = "nvidia.com/gpu"
    total: int = Field(1, ge=0, description="GPUs that stages may hold at once: the size of Airflow's pool for them")
    types: dict[str, GpuType] = Field(default_factory=lambda: {"default": GpuType()})

    @model_validator(mode="after")
    def _default(self) -> Gpu:
        if "default" not in self.types:
            raise ValueError(f"types has no 'default'; it has {', '.join(self.types) or 'none'}")
        return self


class Security(Spec):
    """The account that all stage pods share, so that each can read and change what another wrote."""

    user: int = Field(10001, ge=1, description="not root: images that need it say so (images.<name>.root)")
    group: int = Field(10001, ge=0)
    fs_group: int = Field(10001, ge=0)
    umask: str = Field("0002", pattern=r"^0?[0-7]{3}$")


class SecretRef(Spec):
    name: Name = Field(description="the Secret; its value never passes through Airflow")
    key: str = Field(pattern=r"^[-._a-zA-Z0-9]+$", description="the entry in it")


class KubernetesTriton(ProfileTriton):
    each: str | None = Field(None, description="headless Service, host:port: an address for each server")
    selector: dict[LabelKey, LabelValue] = Field(
        default_factory=dict, description="labels of the servers' pods; a release is verified on each of them"
    )
    gpu_types: list[str] = Field(
        default_factory=list,
        description="GPUs of the servers (gpu.types): a release of engines needs one for each",
    )
    client_labels: dict[LabelKey, LabelValue] = Field(
        default_factory=dict, description="put on pods that talk to Triton, for network policies"
    )


class KubernetesProfile(Profile):
    """A namespace of a cluster; stages are its pods."""

    RUNTIME = "kubernetes"

    runtime: Literal["kubernetes"]
    namespace: Name
    connection: str | None = Field(
        None, description="Airflow's connection to the cluster; null: in-cluster, else KUBECONFIG"
    )
    service_account: Annotated[Name | None, Optional] = Field(None, description="of stage pods; it needs no rights")
    labels: dict[LabelKey, LabelValue] = Field(default_factory=dict, description="on every stage pod")
    annotations: dict[str, str] = Field(default_factory=dict, description="on every stage pod")
    images: dict[str, Image] = Field(description="by environment (tools, cpu, ...) or by action (release)")
    tao: TaoImages = TaoImages()
    image_pull_secrets: list[Name] = Field(default_factory=list)
    volumes: Volumes
    security: Security = Security()
    gpu: Gpu = Gpu()
    node_selector: dict[LabelKey, LabelValue] = Field(default_factory=dict, description="for all stage pods")
    tolerations: list[Toleration] = Field(default_factory=list)
    priority_class: Annotated[Name | None, Optional] = None
    queue: Annotated[Name | None, Optional] = Field(None, description="Kueue's LocalQueue")
    shared_memory: Quantity = Field("1Gi", description="size of /dev/shm, for data loaders; counts against memory")
    scratch: Quantity = Field("10Gi", description="limit of /tmp")
    schedule_timeout_seconds: int = Field(14_400, ge=1, description="for a node, the queue included")
    start_timeout_seconds: int = Field(3600, ge=1, description="for pulling images and starting, once there is a node")
    poll_seconds: float = Field(2, ge=0.2, le=60, description="between two looks at a stage's pod")
    log_seconds: float = Field(15, ge=1, le=3600, description="between two looks at a stage's log")
    remakes: int = Field(
        10, ge=0, description="pods made again inside one try where the cluster took them away, not the stage failed"
    )
    secrets: dict[SecretName, SecretRef] = Field(
        default_factory=dict,
        description="name in a stage -> Secret; AIRFLOW_CONN_<NAME> is the login of a remote dataset.source",
    )
    allowed_hosts: list[str] = Field(
        default_factory=list,
        description="REFIT_ALLOWED_HOSTS of bind: private or plain http hosts of data",
    )
    ca_file: AbsolutePath | None = Field(
        None, description="REFIT_CA_FILE of bind: an own authority's certificates, on one of the volumes"
    )
    triton: KubernetesTriton

    @field_validator("allowed_hosts")
    @classmethod
    def _hosts(cls, value: list[str]) -> list[str]:
        Allowed.read(",".join(value))
        return value

    @model_validator(mode="after")
    def _check(self) -> KubernetesProfile:
        if "tools" not in self.images:
            raise ValueError("images has no 'tools': it brings the runner into every stage pod")
        key = self.triton.control_key_secret
        if key is not None and key not in self.secrets:
            raise ValueError(f"triton.control_key_secret is {key}, which secrets does not name")
        for name in self.triton.gpu_types:
            if name not in self.gpu.types:
                raise ValueError(f"triton.gpu_types: gpu.types has no {name!r}; it has {', '.join(self.gpu.types)}")
            if self.gpu.types[name].compute_capability is None:
                raise ValueError(f"triton.gpu_types: gpu.types.{name} says no compute_capability, which engines need")
        return self

    def triton_capabilities(self) -> list[str]:
        """Compute capabilities of the Triton servers' GPUs, each once; empty where the profile does not say."""
        found = (self.gpu.types[name].compute_capability for name in self.triton.gpu_types)
        return list(dict.fromkeys(c for c in found if c is not None))

    def image(self, environment: str, action: str, override: str | None = None) -> Image:
        """The image of a stage: its own, else that of its action, else that of its environment. Raises KeyError.

        `override` may be the tag of one of TAO's containers, where the environment is one of theirs (tao_...).
        """
        if override is not None and environment.startswith("tao_") and environment not in self.images:
            return self.tao.image(override)
        known = self.images.get(action) or self.images.get(environment)
        if override is not None:
            return (known or Image(image=override)).model_copy(update={"image": override})
        if known is None:
            raise KeyError(environment)
        return known

    def gpu_resources(self) -> set[str]:
        return {self.gpu.resource, *(t.resource for t in self.gpu.types.values() if t.resource)}


MODELS: dict[str, type[Profile]] = {m.RUNTIME: m for m in (LocalProfile, KubernetesProfile)}


def load(name: str, settings: Settings) -> Profile:
    """Read a profile by name and let the environment's Triton win over a local one's. Raises SpecError."""
    path = settings.clusters / f"{name}.yaml"
    if not path.exists():
        names = [p.stem for p in settings.clusters.glob("*.yaml")]
        hint = did_you_mean(name, names) or f"; there is {', '.join(sorted(names)) or 'none'}"
        raise SpecError([Problem(str(path), 0, "", f"no such cluster profile{hint}; set REFIT_CLUSTERS")])
    doc = read_document(path)
    profile = from_data(doc.data, doc)
    if isinstance(profile, LocalProfile):
        return _at_home(profile, settings)
    return profile


def names(settings: Settings, runtime: str) -> list[str]:
    """The profiles of a runtime, those that can be read."""
    found = []
    for path in sorted(settings.clusters.glob("*.yaml")):
        with contextlib.suppress(SpecError):
            if load(path.stem, settings).runtime == runtime:
                found.append(path.stem)
    return found


def of_pipeline(pipeline: Any, settings: Settings) -> Profile:
    """The profile that a pipeline names. Raises SpecError, also for one of another runtime."""
    profile = load(pipeline.profile, settings)
    if profile.runtime != pipeline.runtime:
        path = settings.clusters / f"{pipeline.profile}.yaml"
        text = f"is a profile of runtime {profile.runtime}; the pipeline says runtime: {pipeline.runtime}"
        raise SpecError([Problem(str(path), 0, "runtime", f"{text}; name another cluster, or change the runtime")])
    if isinstance(profile, KubernetesProfile):
        path = settings.clusters / f"{pipeline.profile}.yaml"
        for name, wanted in {"default": pipeline.resources.default, **pipeline.resources.stages}.items():
            if wanted.gpus > profile.gpu.total:
                text = f"is {profile.gpu.total}, and {name} of the pipeline's resources wants {wanted.gpus} GPUs"
                raise SpecError([Problem(str(path), 0, "gpu.total", f"{text}: it would wait for ever")])
            if wanted.gpu_type is not None and wanted.gpu_type not in profile.gpu.types:
                hint = did_you_mean(wanted.gpu_type, list(profile.gpu.types))
                text = f"has no {wanted.gpu_type!r}, which {name} of the pipeline's resources wants{hint}"
                raise SpecError([Problem(str(path), 0, "gpu.types", text)])
    return profile


def from_data(data: Any, doc: Any) -> Profile:
    """The profile of a parsed document, by its `runtime`. Raises SpecError."""
    runtime = data.get("runtime", "local")
    model = MODELS.get(runtime) if isinstance(runtime, str) else None
    if model is None:
        hint = did_you_mean(str(runtime), list(MODELS))
        raise SpecError([doc.problem(("runtime",), f"{runtime!r} is not a choice; use {', '.join(MODELS)}{hint}")])
    return load_spec(model, doc, data)


def _at_home(profile: LocalProfile, settings: Settings) -> LocalProfile:
    # An absolute path in the profile stays as it is: joined to a folder, it replaces it.
    known = profile.triton.repository
    repository = settings.model_repository or (known if "://" in known else settings.home / known)
    update = {"url": settings.triton_url or profile.triton.url, "repository": str(repository)}
    return profile.model_copy(update={"triton": profile.triton.model_copy(update=update)})


def settings_in_pod(profile: KubernetesProfile) -> Settings:
    """What the tools image's pods of this profile work with: its volumes' places, and the image's own code."""
    inbox = profile.volumes.inbox
    return Settings(
        repository=Path("/opt/refit"),
        home=Path("/tmp/refit"),  # noqa: S108 - in a pod of its own
        envs=Path("/opt/refit/envs"),
        workspace=Path(profile.volumes.workspace.mount_path),
        pipelines=Path("/opt/refit/specs/pipelines"),
        clusters=Path("/opt/refit/specs/clusters"),
        data_roots=(Path(inbox.mount_path),) if inbox else (Path(profile.volumes.workspace.mount_path) / "inbox",),
        allowed_hosts=Allowed(tuple(profile.allowed_hosts)),
        ca_file=Path(profile.ca_file) if profile.ca_file else None,
    )
