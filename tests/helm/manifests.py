"""What a cluster's administrator would look for in manifests, as functions that return faults as sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import kubernetes_validate

from tests.helm.charts import Manifest, Rendered

# What Pod Security "restricted" allows as volumes (kubernetes.io/docs: Pod Security Standards).
_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret", "image",
}  # fmt: skip
# Custom resources: their schemas are not Kubernetes' own.
_FOREIGN = ("kueue.x-k8s.io/", "monitoring.coreos.com/")
_LABEL_VALUE = re.compile(r"^([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$")
_NAME = re.compile(r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")


def schema_faults(manifests: Rendered | list[Manifest], version: str) -> list[str]:
    """Where objects differ from the API of a Kubernetes version, unknown fields included."""
    faults = []
    for manifest in manifests:
        if manifest["apiVersion"].startswith(_FOREIGN):
            continue
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except kubernetes_validate.ValidationError as exc:
            where = ".".join(str(part) for part in exc.absolute_path)
            faults.append(f"{shown(manifest)}: {where}: {exc.message}")
        except kubernetes_validate.SchemaNotFoundError as exc:
            faults.append(f"{shown(manifest)}: {exc.message}")
    return faults


def pod_specs(rendered: Rendered | list[Manifest]) -> Iterator[tuple[str, Manifest, Manifest]]:
    """(what it belongs to, pod metadata, pod spec) of everything that makes pods."""
    for manifest in rendered:
        if manifest["kind"] == "Pod":
            yield shown(manifest), manifest["metadata"], manifest["spec"]
        elif manifest["kind"] in ("Deployment", "DaemonSet", "StatefulSet", "Job"):
            template = manifest["spec"]["template"]
            yield shown(manifest), template["metadata"], template["spec"]


def restricted_faults(spec: Manifest) -> list[str]:
    """Where a pod breaks Pod Security "restricted"."""
    faults = [f"{key} is on" for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key)]
    for volume in spec.get("volumes", []):
        faults += [f"volume {volume['name']} is a {kind}" for kind in set(volume) - {"name"} - _VOLUMES]
    whole = spec.get("securityContext", {})
    for container in containers(spec):
        own = container.get("securityContext", {})
        name = container["name"]

        def effective(key: str, own: dict[str, Any] = own) -> Any:
            return own.get(key, whole.get(key))

        if effective("runAsNonRoot") is not True:
            faults.append(f"{name} may run as root")
        if effective("runAsUser") in (None, 0):
            faults.append(f"{name} runs as {effective('runAsUser')}")
        if (effective("seccompProfile") or {}).get("type") not in ("RuntimeDefault", "Localhost"):
            faults.append(f"{name} has no seccomp profile")
        if own.get("allowPrivilegeEscalation") is not False:
            faults.append(f"{name} may gain privileges")
        if own.get("privileged"):
            faults.append(f"{name} is privileged")
        if own.get("capabilities", {}).get("drop") != ["ALL"] or own.get("capabilities", {}).get("add"):
            faults.append(f"{name} keeps capabilities")
        faults += [
            f"{name} takes the host's port {p['hostPort']}" for p in container.get("ports", []) if p.get("hostPort")
        ]
    return faults


def house_faults(spec: Manifest) -> list[str]:
    """Where a pod breaks what Refit promises beyond "restricted"."""
    faults = []
    if spec.get("automountServiceAccountToken") is not False:
        faults.append("mounts a service account's token")
    for volume in spec.get("volumes", []):
        if "sizeLimit" not in volume.get("emptyDir", {"sizeLimit": ""}):
            faults.append(f"volume {volume['name']} may fill the node's disk")
    for container in containers(spec):
        name = container["name"]
        if container["securityContext"].get("readOnlyRootFilesystem") is not True:
            faults.append(f"{name} can write its root file system")
        resources = container.get("resources", {})
        if "memory" not in resources.get("limits", {}):
            faults.append(f"{name} has no memory limit")
        if not {"cpu", "memory"} <= set(resources.get("requests", {})):
            faults.append(f"{name} requests no cpu or memory")
        if ":" not in container["image"].rpartition("/")[2] or container["image"].endswith(":latest"):
            faults.append(f"{name} has an image without a fixed version: {container['image']}")
        for variable in container.get("env", []):
            if re.search("KEY|TOKEN|PASSWORD|SECRET", variable["name"]) and "value" in variable:
                faults.append(f"{name} has a secret in the open: {variable['name']}")
    return faults


def name_faults(rendered: Rendered) -> list[str]:
    """Names and labels that Kubernetes would refuse, and objects that are there twice."""
    faults, seen = [], set()
    for manifest in rendered:
        meta = manifest["metadata"]
        identity = (manifest["apiVersion"], manifest["kind"], meta["name"])
        if identity in seen:
            faults.append(f"{shown(manifest)} is there twice")
        seen.add(identity)
        longest = 253 if manifest["kind"] == "PriorityClass" else 63
        if len(meta["name"]) > longest or not _NAME.match(meta["name"]):
            faults.append(f"{shown(manifest)} has no good name")
        for key, value in meta.get("labels", {}).items():
            if not isinstance(value, str) or not _LABEL_VALUE.match(value):
                faults.append(f"{shown(manifest)} has a bad label {key}={value!r}")
    return faults


def reference_faults(rendered: Rendered, *, existing: frozenset[str] = frozenset()) -> list[str]:
    """What objects name and nobody makes. `existing` are names that the values say are there already."""
    faults = []

    def need(who: str, kind: str, name: str | None) -> None:
        if name and name not in existing and name not in rendered.of(kind):
            faults.append(f"{who} names {kind} {name}, which nobody makes")

    pods = [(who, meta["labels"], spec) for who, meta, spec in pod_specs(rendered)]
    for who, _, spec in pods:
        need(who, "ServiceAccount", spec.get("serviceAccountName"))
        need(who, "PriorityClass", spec.get("priorityClassName"))
        for volume in spec.get("volumes", []):
            need(who, "PersistentVolumeClaim", volume.get("persistentVolumeClaim", {}).get("claimName"))
        for container in containers(spec):
            for variable in container.get("env", []):
                need(who, "Secret", variable.get("valueFrom", {}).get("secretKeyRef", {}).get("name"))
            mounts = {m["name"] for m in container.get("volumeMounts", [])}
            faults += [f"{who}: no volume {m}" for m in mounts - {v["name"] for v in spec.get("volumes", [])}]
    for manifest in rendered:
        selector = {
            "Service": lambda s: s["selector"],
            "PodDisruptionBudget": lambda s: s["selector"]["matchLabels"],
            "Deployment": lambda s: s["selector"]["matchLabels"],
            "DaemonSet": lambda s: s["selector"]["matchLabels"],
        }.get(manifest["kind"])
        if selector:
            wanted = selector(manifest["spec"]).items()
            if not any(wanted <= labels.items() for _, labels, _ in pods):
                faults.append(f"{shown(manifest)} selects no pod")
        if manifest["kind"] == "HorizontalPodAutoscaler":
            need(shown(manifest), "Deployment", manifest["spec"]["scaleTargetRef"]["name"])
        if manifest["kind"] == "RoleBinding":
            need(shown(manifest), "Role", manifest["roleRef"]["name"])
    return faults


def containers(spec: Manifest) -> list[Manifest]:
    return [*spec.get("initContainers", []), *spec["containers"]]


def shown(manifest: Manifest) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['name']}"
