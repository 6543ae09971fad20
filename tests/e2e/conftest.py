"""A namespace with the chart, an Airflow beside the cluster that may only do what the chart's Role allows, and data.

Airflow runs on this machine and not in a pod, so that tests can break it piece by piece and read what it says. The
triggerer sees the inbox as the folder in which the volume lies.
"""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import json
import os
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from refit.embedded.processes import catch_signals
from tests import cluster
from tests.cluster import get, kubectl, wait

if importlib.util.find_spec("helm_sdkpy") is None:
    collect_ignore_glob = ["test_*.py"]  # tests/helm says so where `make test` left Python 3.12 out

HERE = Path(__file__).parent
GPUS = 2
VALUES: dict[str, Any] = {
    "triton": {
        "resources": {"requests": {"cpu": "50m", "memory": "256Mi"}, "limits": {"memory": "1Gi"}},
        "sharedMemory": "64Mi",
        "startupSeconds": 60,
        "shutdown": {"preStopSeconds": 1, "exitSeconds": 5},
    },
    "storage": {k: {"size": "2Gi", "keep": False} for k in ("workspace", "models", "inbox")},
    "stages": {"scheduleTimeoutSeconds": 600, "startTimeoutSeconds": 300, "sharedMemory": "256Mi"},
    "airflow": {"createServiceAccount": True},
}
ASK = """
import hashlib, json, math, sys, urllib.request
model, *hosts = sys.argv[1:]
def ask(host, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(f"http://{host}:8000/v2/models/{model}{path}", data, timeout=120) as answer:
        return json.load(answer)
for host in hosts:
    inputs = [{**i, "shape": [1, *i["shape"][1:]]} for i in ask(host, "")["inputs"]]
    body = {"inputs": [{**i, "data": [0.5] * math.prod(i["shape"])} for i in inputs]}
    said = ask(host, "/infer", body)
    outputs = json.dumps([(o["name"], o["shape"], o["data"]) for o in sorted(said["outputs"], key=lambda o: o["name"])])
    print(json.dumps([int(said["model_version"]), hashlib.sha256(outputs.encode()).hexdigest()]))
"""


@dataclass
class House:
    """What the tests work with."""

    namespace: str
    release: Any
    airflow: Any
    pipelines: Path
    profiles: Path
    database: Any

    def add_pipeline(self, name: str, changes: Mapping[tuple[str, str], Any] | None = None) -> str:
        """Write a pipeline file, with other values for (block, key); its DAG's id, once Airflow has it."""
        file = yaml.safe_load((HERE / "pipeline.yaml").read_text().replace("NAME", name))
        for (block, key), value in (changes or {}).items():
            file.setdefault(block, {})[key] = value
        (self.pipelines / f"{name}.yaml").write_text(yaml.safe_dump(file))
        self.airflow.runs(f"retrain_{name}")
        return f"retrain_{name}"

    def deliver(self, name: str, seed: int) -> None:
        """Put new data into a pipeline's inbox, as a person would: from a pod that mounts the volume."""
        folder = f"/inbox/{name}"
        script = (
            f"python -m refit.data synthetic {folder} --train 120 --val 40 --shifted 0 --seed {seed}"
            f" && touch {folder}/_SUCCESS"
        )
        image = f"refit-tools:{cluster.TAG}"
        pod = cluster.pod(f"deliver-{name}", image, ["sh", "-c", script], claims={"/inbox": "refit-inbox"})
        cluster.run(pod, self.namespace)

    def ask(self, model: str, *hosts: str) -> list[tuple[int, str]]:
        """One inference by each host: the version that answered, and a digest of the answer."""
        image = f"refit-tools:{cluster.TAG}"
        labels = {"refit/triton-client": "true"}
        pod = cluster.pod("ask", image, ["python", "-c", ASK, model, *hosts], labels=labels)
        return [tuple(json.loads(line)) for line in cluster.run(pod, self.namespace).splitlines()]


@pytest.fixture(scope="session")
def airflow_variables() -> dict[str, str]:
    """Further variables of Airflow, for tests that want another one."""
    return {}


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory, airflow_variables: dict[str, str]) -> Iterator[House]:
    import helm_sdkpy

    from tests.e2e.airflow import Airflow
    from tests.e2e.postgres import PostgresMissing, database, programs
    from tests.helm.release import Release

    try:
        programs()
    except PostgresMissing as exc:
        pytest.skip(str(exc))
    for image in ("tools", "cpu", "triton", "release"):
        cluster.build(image)
    folder = tmp_path_factory.mktemp("e2e")
    catch_signals(_interrupt)  # or a CI job that is cancelled leaves everything behind
    with contextlib.ExitStack() as stack:
        namespace = stack.enter_context(cluster.namespace("refit-e2e"))
        release = Release(namespace, helm_sdkpy.Configuration(namespace=namespace, kubeconfig=os.environ["KUBECONFIG"]))
        stack.callback(_uninstall, release)
        release.install(VALUES)
        release.settled(1)
        # The test cluster has no name server.
        overrides = {"triton": {"url": f"http://{release.service}:8000"}, "poll_seconds": 1, "log_seconds": 5}
        release.upgrade({**VALUES, "profile": {"overrides": overrides}})
        inbox = folder_of("refit-inbox", namespace)
        profile = get("configmap", "refit-cluster-profile", namespace=namespace)["data"]["kubernetes.yaml"]
        for part in ("clusters", "pipelines"):
            (folder / part).mkdir()
        (folder / "clusters" / "kubernetes.yaml").write_text(profile)
        settings = {
            "REFIT_CLUSTERS": str(folder / "clusters"),
            "REFIT_PIPELINES": str(folder / "pipelines"),
            "REFIT_DATA_ROOTS": str(inbox),
        }
        kubeconfig = str(_limited(folder / "kubeconfig", namespace))
        env = {"KUBECONFIG": kubeconfig, "REFIT_GPUS": str(GPUS), **airflow_variables}
        server = stack.enter_context(database())
        airflow = Airflow(folder / "home", server.address, settings, env)
        stack.callback(airflow.close)
        airflow.start()
        yield House(namespace, release, airflow, folder / "pipelines", folder / "clusters", server)


def _interrupt(signum: int, frame: types.FrameType | None) -> None:
    raise KeyboardInterrupt


def _uninstall(release: Any) -> None:
    """Also the priority classes, which belong to no namespace. A claim stays while a pod of a broken run uses it."""
    kubectl("delete", "pods", "-l", "refit/stage", "--grace-period=1", namespace=release.namespace)
    if kubectl("get", "secrets", "-l", "owner=helm", "-o", "name", namespace=release.namespace):
        release.uninstall()


def folder_of(claim: str, namespace: str) -> Path:
    """Where a claim's volume lies on this machine; the test is skipped where it does not."""
    volume = wait(claim, lambda: get("pvc", claim, namespace=namespace)["spec"].get("volumeName"))
    path = get("pv", volume)["spec"].get("hostPath", {}).get("path")
    if path is None or not Path(path).is_dir():
        pytest.skip(f"the volume of {claim} is no folder of this machine, where Airflow's triggerer runs")
    return Path(path)


def _limited(file: Path, namespace: str) -> Path:
    """A kubeconfig of the chart's account for Airflow: its token, and nothing of the administrator's."""
    account, name = "refit-airflow", "airflow-token"
    annotations = {"kubernetes.io/service-account.name": account}
    secret = {"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/service-account-token"}
    manifest = {**secret, "metadata": {"name": name, "annotations": annotations}}
    kubectl("apply", "-f", "-", namespace=namespace, stdin=json.dumps(manifest))
    token = wait("the token", lambda: get("secret", name, namespace=namespace).get("data", {}).get("token"))
    known = json.loads(kubectl("config", "view", "--raw", "--minify", "--flatten", "-o", "json"))["clusters"][0][
        "cluster"
    ]
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": known}],
        "users": [{"name": account, "user": {"token": base64.b64decode(token).decode()}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": account, "namespace": namespace}}],
        "current-context": "test",
    }
    file.write_text(json.dumps(config))
    file.chmod(0o600)
    return file
