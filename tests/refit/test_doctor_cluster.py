"""`refit doctor` on a real cluster, in a namespace made by hand: all is well, then one thing after the other not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from refit import cli
from tests import cluster
from tests.cluster import ROOT, get, kubectl, wait

REASON = cluster.reason_to_skip()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))

ROLE = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "Role",
    "metadata": {"name": "stage-pods"},
    "rules": [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["create", "get", "list", "watch", "patch", "delete"]},
        {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["events"], "verbs": ["get", "list", "watch"]},
    ],
}
BINDING = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "RoleBinding",
    "metadata": {"name": "stage-pods"},
    "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "stage-pods"},
    "subjects": [{"kind": "ServiceAccount", "name": "airflow"}],
}
APIS = "model-repository,model-config,trace,logging,shared-memory"


def claim(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
    }


def triton() -> dict[str, Any]:
    """A server as the chart starts it."""
    server = "mkdir -p /models/repository && exec tritonserver --model-repository=/models/repository "
    server += "--model-control-mode=explicit --allow-gpu-metrics=false --disable-auto-complete-config "
    server += f"--http-restricted-api={APIS}:refit-control-key=$CONTROL_KEY"
    key = {"name": "CONTROL_KEY", "valueFrom": {"secretKeyRef": {"name": "triton-control", "key": "control-key"}}}
    command = ["sh", "-c", server]
    return cluster.pod("triton", cluster.build("triton"), command, env=[key], claims={"/models": "models"})


class Home:
    """A namespace with all that the profile names; `doctor` asks, with the profile changed as a test wants."""

    def __init__(self, namespace: str, folder: Path) -> None:
        self.namespace, self.folder = namespace, folder
        account = {"apiVersion": "v1", "kind": "ServiceAccount"}
        made = [claim("workspace"), claim("models"), claim("inbox"), ROLE, BINDING]
        made += [{**account, "metadata": {"name": name}} for name in ("airflow", "stage")]
        secret = {"name": "triton-control"}
        made.append({"apiVersion": "v1", "kind": "Secret", "metadata": secret, "stringData": {"control-key": "s3cret"}})
        made.append(triton())
        self.apply(*made)
        wait("Triton", lambda: self._address() and self._serves(), 300)

    def apply(self, *objects: dict[str, Any]) -> None:
        for made in objects:
            kubectl("apply", "-f", "-", namespace=self.namespace, stdin=json.dumps(made))

    def _address(self) -> str:
        return str(get("pod", "triton", namespace=self.namespace)["status"].get("podIP") or "")

    def _serves(self) -> bool:
        return "Started HTTPService" in kubectl("logs", "triton", namespace=self.namespace)

    def profile(self) -> dict[str, Any]:
        data: dict[str, Any] = yaml.safe_load((ROOT / "specs" / "clusters" / "kubernetes.yaml").read_text())
        data |= {"namespace": self.namespace, "service_account": "stage", "priority_class": None}
        for name in ("workspace", "models", "inbox"):
            data["volumes"][name]["claim"] = name
        data["images"] = {n: {**data["images"][n], "image": cluster.build(n)} for n in ("tools", "cpu", "release")}
        data["secrets"] = {"TRITON_CONTROL_KEY": {"name": "triton-control", "key": "control-key"}}
        data["triton"]["url"] = f"http://{self._address()}:8000"
        data["gpu"]["total"] = 1
        return data

    def doctor(self, profile: dict[str, Any], *words: str) -> int:
        (self.folder / "here.yaml").write_text(yaml.safe_dump(profile))
        return cli.main(["doctor", "--cluster", "here", "--wait", "30", *words])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    with cluster.namespace("doctor") as name:
        yield Home(name, tmp_path_factory.mktemp("clusters"))


@pytest.fixture(autouse=True)
def clusters(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFIT_CLUSTERS", str(home.folder))


def test_all_is_well_and_nothing_stays(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    code = home.doctor(home.profile())
    said = capsys.readouterr().out
    assert (code, [line for line in said.splitlines() if line.startswith(("FAIL", "warn"))]) == (0, []), said
    for words in (
        "workspace locks: a lock keeps the second pod out",
        "workspace group: another user of the group changes",
        "workspace seen by a second pod",
        "workspace hard links: 2 links",
        "workspace room:",
        "triton control: refused without the key, open with it",
        "triton models: a release can write",
        "image refit-cpu:0.1.0 python: Python 3.11",
        f"airflow: {home.namespace}:airflow may make, follow and delete pods, and read no Secret",
        "secret: TRITON_CONTROL_KEY: triton-control has the entry control-key",
    ):
        assert words in said
    assert "s3cret" not in said
    wait("the pods' end", lambda: names(home) == ["triton"])
    look = cluster.pod("look", cluster.build("tools"), ["ls", "-A", "/w"], claims={"/w": "workspace"})
    assert cluster.run(look, home.namespace).split() == []


def test_every_fault_is_named_with_what_mends_it(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    profile = home.profile()
    profile["images"]["cpu"]["image"] = "refit-cpu:no-such"
    profile["images"]["release"]["runner"] = "/no/runner.py"
    profile["secrets"]["TRITON_CONTROL_KEY"]["key"] = "no-such"
    profile["secrets"]["TAO_KEY"] = {"name": "tao", "key": "api-key"}
    profile["gpu"] |= {"total": 99}
    profile["gpu"]["types"]["default"] |= {"runtime_class": "nvidia", "node_selector": {"gpu": "a100"}}
    assert home.doctor(profile) == 1
    said = capsys.readouterr().out
    for words in (
        "FAIL  image refit-cpu:no-such: the image refit-cpu:no-such cannot be pulled",
        'Failed to pull image "refit-cpu:no-such"',
        "FAIL  image refit-release:0.1.0 python: /no/runner.py is not there",
        "FAIL  secret: triton-control has no entry no-such, which TRITON_CONTROL_KEY is taken from; its entries",
        "FAIL  secret: tao, which TAO_KEY is taken from, does not exist",
        f"-> kubectl -n {home.namespace} create secret generic tao --from-literal=api-key=...",
        "FAIL  runtime class: nvidia of GPU type default does not exist",
        "FAIL  gpu default: no node has the labels gpu=a100",
        "warn  gpu: gpu.total is 99",
        "FAIL  triton: the container cannot be made: couldn't find key no-such in Secret",
    ):
        assert words in said, said
    wait("the pods' end", lambda: names(home) == ["triton"])


def test_no_pod_is_started_where_none_can_run(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    profile = home.profile()
    profile["volumes"]["workspace"]["claim"] = "no-such"
    profile["service_account"] = "nobody"
    profile["priority_class"] = "no-such"
    assert home.doctor(profile) == 1
    said = capsys.readouterr().out
    assert "FAIL  volume workspace: the claim no-such does not exist" in said
    assert f"-> kubectl -n {home.namespace} create serviceaccount nobody" in said
    assert "FAIL  priority class: no-such does not exist" in said
    assert "note  pods: no pods were started: mend account, priority, volume first" in said


def test_a_stage_that_no_node_can_hold(home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "specs" / "pipelines" / "demo.yaml").read_text()
    text = text.replace("runtime: local", "runtime: kubernetes").replace("cluster: local", "cluster: here")
    text = text.replace("default: {gpus: 0", "default: {gpus: 64")
    (tmp_path / "demo.yaml").write_text(text)
    assert home.doctor(home.profile(), "--no-pods", "--pipeline", str(tmp_path / "demo.yaml")) == 1
    assert "FAIL  gpu default: no node has 64 nvidia.com/gpu (node1: " in capsys.readouterr().out


def test_an_account_that_may_read_secrets(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    loose = {**ROLE, "metadata": {"name": "loose"}}
    loose["rules"] = [{"apiGroups": [""], "resources": ["secrets", "pods"], "verbs": ["get", "create"]}]
    bound = json.loads(json.dumps(BINDING).replace("stage-pods", "loose").replace('"airflow"', '"stage"'))
    home.apply(loose, bound)
    try:
        assert home.doctor(home.profile(), "--no-pods") == 1
    finally:
        kubectl("delete", "role,rolebinding", "loose", namespace=home.namespace)
    said = capsys.readouterr().out
    assert f"{home.namespace}:stage may get secrets: take that away" in said
    assert f"{home.namespace}:stage may not list pods, watch pods, patch pods, delete pods, get pods/log, list" in said


def test_a_namespace_that_is_not_there(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert home.doctor({**home.profile(), "namespace": "no-such"}) == 1
    said = capsys.readouterr().out
    assert "FAIL  namespace: no-such does not exist" in said
    assert "secret" not in said


def names(home: Home) -> list[str]:
    return [p["metadata"]["name"] for p in get("pods", namespace=home.namespace)["items"]]
