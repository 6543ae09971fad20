"""A real cluster for tests: kubectl, a namespace that goes away, and small pods that do one thing.

`REFIT_E2E=1` and a KUBECONFIG with an administrator's rights turn these tests on: they create and delete objects, so
no KUBECONFIG that happens to be set is taken for an invitation (`make e2e` sets both where `../shared/cluster` is). The
images come from `../shared/cluster/image` where that is, else they must be in the cluster already
(`REFIT_IMAGES=present`). Their tag is 0.1.0, or REFIT_IMAGES_TAG where several checkouts share a cluster.

    python -m tests.cluster        every image, before suites that run side by side need them
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BUILDER = ROOT.parent / "shared" / "cluster" / "image"
TAG = os.environ.get("REFIT_IMAGES_TAG") or "0.1.0"
# Those of a row need none of the same row, only of the rows before.
IMAGES = (("triton", "cpu", "tools", "airflow"), ("release", "standin"))
if os.environ.get("REFIT_E2E_EDGE") == "1":
    IMAGES = (*IMAGES, ("tensorflow", "tfjs"))
AIRFLOW_BASE = "apache/airflow:slim-3.3.2-python3.11"


class ClusterError(AssertionError):
    """kubectl failed; the message has its output."""


def reason_to_skip() -> str | None:
    """Why tests on a cluster cannot run here, None where they can."""
    if os.environ.get("REFIT_E2E") != "1":
        return "set REFIT_E2E=1, and KUBECONFIG to a cluster for tests"
    if not os.environ.get("KUBECONFIG"):
        return "KUBECONFIG names no cluster"
    try:
        done = subprocess.run(["kubectl", "get", "--raw", "/readyz"], capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as exc:
        return f"kubectl cannot be used: {exc}"
    if done.returncode:
        return f"the cluster of KUBECONFIG does not answer: {done.stderr.decode(errors='replace').strip()}"
    return None


def kubectl(*args: str, namespace: str | None = None, stdin: str | None = None, timeout: float = 300) -> str:
    """Run kubectl; its standard output. Raises ClusterError."""
    words = ["kubectl", *(["-n", namespace] if namespace else []), *args]
    done = subprocess.run(words, input=stdin, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode:
        raise ClusterError(f"{' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def get(*args: str, namespace: str | None = None) -> Any:
    """`kubectl get ... -o json` as an object."""
    return json.loads(kubectl("get", *args, "-o", "json", namespace=namespace))


@contextmanager
def namespace(prefix: str) -> Iterator[str]:
    """A new namespace with a name of its own; deleted at the end, with all that is in it."""
    name = f"{prefix}-{uuid.uuid4().hex[:6]}"
    kubectl("create", "namespace", name)
    try:
        # Pods are refused until the default account is there.
        wait("the default service account", lambda: "default" in kubectl("get", "serviceaccounts", namespace=name))
        yield name
    finally:
        kubectl("delete", "namespace", name, "--wait=true", timeout=400)


def wait(what: str, condition: Any, seconds: float = 300, every: float = 0.5) -> Any:
    """Call `condition` until it is true; its value. A ClusterError inside counts as "not yet"."""
    until = time.monotonic() + seconds
    last: object = None
    while time.monotonic() < until:
        try:
            last = condition()
        except ClusterError as exc:
            last = exc
        if last and not isinstance(last, ClusterError):
            return last
        time.sleep(every)
    raise ClusterError(f"{what}: not within {seconds:g} s; last: {last}")


@functools.cache
def build(image: str) -> str:
    """Have refit-<image> in the cluster; its name. Built for real where the builder is, once a test run.

    Raises ClusterError.
    """
    name = f"refit-{image}:{TAG}"
    if os.environ.get("REFIT_IMAGES") == "present":
        return name
    if not BUILDER.exists():
        raise ClusterError(f"{name} cannot be built here ({BUILDER} is missing): load it and set REFIT_IMAGES=present")
    if image == "airflow" and not os.environ.get("REFIT_AIRFLOW_IMAGE"):
        # The official image cannot be pulled here.
        _build(AIRFLOW_BASE, ROOT / "tests" / "images" / "airflow-base")
    options = []
    if image == "release":
        options = [f"--build-arg={base.upper()}_IMAGE={build(base)}" for base in ("tools", "triton")]
    if image == "standin":  # for NVIDIA TAO's
        _build(name, ROOT / "tests" / "tao" / "standin", f"--build-arg=TOOLS_IMAGE={build('tools')}")
    else:
        _build(name, ROOT, "-f", str(ROOT / "images" / image / "Dockerfile"), *options)
    return name


def build_all() -> None:
    """Have every image in the cluster; two builds at a time, as each waits for the disk and the network half the time.

    Raises ClusterError.
    """
    with ThreadPoolExecutor(2) as pool:
        for row in IMAGES:
            list(pool.map(build, row))


def _build(name: str, context: Path, *options: str) -> None:
    words = [str(BUILDER), "-t", name, *options, str(context)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=1800, check=False)
    if done.returncode:
        raise ClusterError(f"{' '.join(words)}:\n{(done.stdout + done.stderr)[-3000:]}")


def pod(
    name: str,
    image: str,
    command: list[str],
    *,
    env: list[dict[str, Any]] | None = None,
    labels: dict[str, str] | None = None,
    claims: dict[str, str] | None = None,
    user: int | None = 10001,
) -> dict[str, Any]:
    """A pod as strict as the chart's: restricted, read-only root, /tmp. `claims`: mount path -> claim."""
    mounts = [{"name": f"claim-{i}", "mountPath": path} for i, path in enumerate(claims or {})]
    volumes = [
        {"name": f"claim-{i}", "persistentVolumeClaim": {"claimName": claim}}
        for i, claim in enumerate((claims or {}).values())
    ]
    account = {"runAsUser": user, "runAsGroup": user, "fsGroup": user} if user else {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels or {}},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 1,
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}, **account},
            "containers": [
                {
                    "name": "main",
                    "image": image,
                    "imagePullPolicy": "IfNotPresent",
                    "command": command,
                    "env": env or [],
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, *mounts],
                }
            ],
            "volumes": [{"name": "tmp", "emptyDir": {}}, *volumes],
        },
    }


def run(manifest: dict[str, Any], where: str, *, seconds: float = 180) -> str:
    """Run a pod to its end and remove it; its log. Raises ClusterError where it did not succeed."""
    name = manifest["metadata"]["name"]
    kubectl("apply", "-f", "-", namespace=where, stdin=json.dumps(manifest))
    try:
        phase = wait(f"the end of pod {name}", lambda: _ended(name, where), seconds)
        log = kubectl("logs", name, namespace=where)
        if phase != "Succeeded":
            raise ClusterError(f"pod {name} {phase}:\n{log}")
        return log
    finally:
        kubectl("delete", "pod", name, "--ignore-not-found", "--wait=true", namespace=where)


def _ended(name: str, where: str) -> str | None:
    phase = kubectl("get", "pod", name, "-o", "jsonpath={.status.phase}", namespace=where)
    return phase if phase in ("Succeeded", "Failed") else None


if __name__ == "__main__":
    try:
        build_all()
    except ClusterError as exc:
        sys.exit(str(exc))
