"""The chart on a real cluster: installed, scaled, broken, upgraded, rolled back and taken away."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import helm_sdkpy
import pytest
import yaml

from tests import cluster
from tests.cluster import get, kubectl, wait
from tests.helm import apiserver
from tests.helm.charts import CHART, render
from tests.helm.release import Release

REASON = cluster.reason_to_skip()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))

VALUES: dict[str, Any] = {
    "triton": {
        "resources": {"requests": {"cpu": "50m", "memory": "256Mi"}, "limits": {"memory": "1Gi"}},
        "sharedMemory": "64Mi",
        "startupSeconds": 60,
        "shutdown": {"preStopSeconds": 2, "exitSeconds": 10},
    },
    "storage": {k: {"size": "1Gi", "keep": k == "workspace"} for k in ("workspace", "models", "inbox")},
    "quota": {"enabled": True},
    "tensorboard": {"enabled": True, "resources": {"requests": {"cpu": "50m", "memory": "256Mi"}}},
    "prePull": {"enabled": True, "images": ["busybox:1.36"]},
}

# Writes version 1 of a model that doubles its input, as a release would: aside, then renamed in.
SEED = """
import os, sys
import numpy as np, onnx
from onnx import TensorProto, helper
name, good = sys.argv[1], sys.argv[2] == "good"
shape = ["n", 3]
node = helper.make_node("Add", ["x", "x"], ["y"])
graph = helper.make_graph([node], name,
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
os.umask(0o002)
aside = f"/models/staging/{name}"
os.makedirs(f"{aside}/1")
with open(f"{aside}/1/model.onnx", "wb") as file:
    file.write(model.SerializeToString() if good else b"not a model")
with open(f"{aside}/config.pbtxt", "w") as file:
    file.write(f'''name: "{name}" backend: "onnxruntime" max_batch_size: 8
input [{{ name: "x" data_type: TYPE_FP32 dims: [3] }}]
output [{{ name: "y" data_type: TYPE_FP32 dims: [3] }}]
instance_group [{{ kind: KIND_CPU count: 1 }}]
''')
os.rename(aside, f"/models/repository/{name}")
"""

# A client: loads where it is told to, then sends requests until STOP seconds have gone by; prints one line of JSON.
CLIENT = """
import json, os, sys, time, urllib.error, urllib.request
hosts, model, load, seconds = sys.argv[1].split(","), sys.argv[2], sys.argv[3] == "load", float(sys.argv[4])
def ask(host, path, body=None, key=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://{host}:8000{path}", data)
    if key:
        request.add_header("refit-control-key", key)
    try:
        # A first load brings ONNX Runtime from a cold disk: 10 s were too short once.
        with urllib.request.urlopen(request, timeout=120 if path.endswith("/load") else 60) as answer:
            text = answer.read()
            return json.loads(text) if text else None
    except urllib.error.HTTPError as error:
        raise SystemExit(f"{path}: {error.code} {error.read().decode()}") if load else error
if load:
    for host in hosts:
        ask(host, f"/v2/repository/models/{model}/load", {}, os.environ["KEY"])
body = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}
good, bad, until = 0, [], time.monotonic() + seconds
print("ready", flush=True)
while True:
    for host in hosts:
        try:
            answer = ask(host, f"/v2/models/{model}/infer", body)
            assert answer["outputs"][0]["data"] == [2, 4, 6], answer
            good += 1
        except Exception as exc:
            bad.append(repr(exc)[:200])
    if time.monotonic() >= until:
        break
    time.sleep(0.02)
print(json.dumps({"good": good, "bad": len(bad), "first": bad[:3]}))
"""

# The repository's index by gRPC, without Triton's client: the request is an empty message, the answer stays bytes.
GRPC = """
import os, sys, grpc
channel = grpc.insecure_channel(sys.argv[1] + ":8001")
index = channel.unary_unary("/inference.GRPCInferenceService/RepositoryIndex")
try:
    print("open:", index(b"", timeout=60))
except grpc.RpcError as error:
    print("refused:", error.details())
print("allowed:", index(b"", timeout=60, metadata=[("triton-grpc-protocol-refit-control-key", os.environ["KEY"])]))
"""

# A release of a tiny detector, by the command that a release stage has.
RELEASE = """
import subprocess, sys
from pathlib import Path
import numpy as np, onnx, yaml
from onnx import TensorProto, helper, numpy_helper
from refit.postprocess import InputInfo, ModelInfo
folder = Path("/workspace/demo/runs/r1/export/out")
folder.mkdir(parents=True)
rng, heads = np.random.default_rng(0), {"output_cov/Sigmoid": 2, "output_bbox/BiasAdd": 8}
nodes = [helper.make_node("Conv", ["input_1", "w" + n], [n + "_"], strides=[16, 16]) for n in heads]
nodes += [helper.make_node("Sigmoid", [n + "_"], [n]) for n in heads]
weights = [numpy_helper.from_array(rng.normal(0, 0.01, (c, 3, 16, 16)).astype("f4"), "w" + n) for n, c in heads.items()]
image = helper.make_tensor_value_info("input_1", TensorProto.FLOAT, ["N", 3, 32, 32])
outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", c, 2, 2]) for n, c in heads.items()]
graph = helper.make_graph(nodes, "tiny", [image], outputs, weights)
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "model.onnx")
names = dict(zip(("coverage", "bbox"), heads))
info = ModelInfo(decoder="detectnet_v2", classes=("a", "b"), input=InputInfo("input_1", 32, 32), outputs=names)
(folder / "model.json").write_text(info.text())
spec = {
    "model": "detector", "url": f"http://{sys.argv[1]}:8000", "repository": "/models/repository",
    "ledger": "/workspace/demo/releases", "model_path": str(folder / "model.onnx"), "pipeline": "demo", "run": "r1",
    "key": "0" * 64, "prove": "always",
}
Path("/tmp/release.yaml").write_text(yaml.safe_dump(spec))
words = [sys.executable, "-m", "refit.triton", "release", "-e", "/tmp/release.yaml", "-r", "/tmp/out"]
sys.exit(subprocess.call(words))
"""


class SeededRelease(Release):
    """A release with models of the tests' own, and clients for them."""

    def seed(self, model: str, *, good: bool = True) -> None:
        """Put a model into the repository, as a pod of the stages' account."""
        words = ["python", "-c", SEED, model, "good" if good else "bad"]
        image = f"refit-tools:{cluster.TAG}"
        cluster.run(cluster.pod(f"seed-{model}", image, words, claims={"/models": "refit-models"}), self.namespace)

    def client(
        self, name: str, hosts: list[str], model: str = "double", *, load: bool = False, seconds: float = 0
    ) -> dict[str, Any]:
        words = ["python", "-c", CLIENT, ",".join(hosts), model, "load" if load else "no", str(seconds)]
        key = {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "refit-triton-control", "key": "control-key"}}}
        return cluster.pod(name, f"refit-tools:{cluster.TAG}", words, env=[key], labels={"refit/triton-client": "true"})

    def ask(self, hosts: list[str], model: str = "double", *, load: bool = False) -> dict[str, Any]:
        """One inference on each host, after a load where asked; what the client counted."""
        log = cluster.run(self.client("client", hosts, model, load=load), self.namespace)
        return json.loads(log.splitlines()[-1])

    @contextmanager
    def under_load(self, seconds: float) -> Iterator[dict[str, Any]]:
        """A client asks the Service all the while; what it counted is in the dict at the end."""
        counts: dict[str, Any] = {}
        manifest = self.client("load", [self.service], seconds=seconds)
        kubectl("apply", "-f", "-", namespace=self.namespace, stdin=json.dumps(manifest))
        try:
            wait("the client", lambda: "ready" in kubectl("logs", "load", namespace=self.namespace))
            yield counts
            ended = ("Succeeded", "Failed")
            wait("the client's end", lambda: get("pod", "load", namespace=self.namespace)["status"]["phase"] in ended)
            counts.update(json.loads(kubectl("logs", "load", namespace=self.namespace).splitlines()[-1]))
        finally:
            kubectl("delete", "pod", "load", "--ignore-not-found", namespace=self.namespace)


@pytest.fixture(scope="module")
def release() -> Iterator[SeededRelease]:
    """Installed, with one model loaded; what is left is taken away at the end."""
    for image in ("tools", "triton", "cpu", "release"):
        cluster.build(image)
    with cluster.namespace("refit-chart") as namespace:
        config = helm_sdkpy.Configuration(namespace=namespace, kubeconfig=os.environ["KUBECONFIG"])
        found = SeededRelease(namespace, config)
        found.install(VALUES)
        try:
            found.seed("double")
            yield found
        finally:
            # The last test uninstalls; a run of some tests only must not leave cluster-wide objects.
            if kubectl("get", "secrets", "-l", "owner=helm", "-o", "name", namespace=namespace):
                found.uninstall()


# Over and above VALUES, for the API server's own judgement; what the test cluster's 1.20 does not know is left out.
DRY_RUNS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "all that 1.20 has": {
        "triton": {
            "autoscaling": {"enabled": True},
            "plugins": {"libraries": ["/plugins/a.so"], "existingClaim": "plugins"},
            "service": {"type": "NodePort"},
        },
        "quota": {"enabled": True},
        "tensorboard": {"enabled": True},
        "prePull": {"enabled": True},
        "airflow": {"createServiceAccount": True},
    },
    "gpu": {"triton": {"device": "gpu", "image": {"repository": "nvidia/tritonserver", "tag": "25.08-py3"}}},
    **{
        name: yaml.safe_load((CHART / "examples" / f"{name}.yaml").read_text()) for name in ("kind", "workstation")
    },
}  # fmt: skip


@pytest.mark.parametrize("name", DRY_RUNS)
def test_the_api_server_takes_it(name: str) -> None:
    rendered = render(DRY_RUNS[name], kinds=apiserver.OF_1_20, version="1.20.2", namespace="default")
    # Without the test pod, which needs its service account to be there; it runs below.
    text = yaml.safe_dump_all(rendered.manifests)
    said = kubectl("create", "--dry-run=server", "-f", "-", namespace="default", stdin=text)
    assert len(said.splitlines()) == len(rendered.manifests)


class TestRelease:
    """In this order, on one release."""

    def test_a_model_is_served_through_the_service(self, release: SeededRelease) -> None:
        release.settled(1)
        assert release.ask([release.service], load=True) == {"good": 1, "bad": 0, "first": []}

    def test_helm_test_passes(self, release: SeededRelease) -> None:
        release.test()

    def test_a_server_that_is_killed_serves_again(self, release: SeededRelease) -> None:
        (before,) = release.settled(1)
        kubectl("delete", "pod", before["metadata"]["name"], "--grace-period=0", "--force", namespace=release.namespace)
        (after,) = release.settled(1)
        assert after["metadata"]["uid"] != before["metadata"]["uid"]
        # Nobody loaded anything: it serves what lies in the repository.
        assert release.ask([release.service])["bad"] == 0

    def test_a_container_that_ends_is_started_again_and_serves(self, release: SeededRelease) -> None:
        (server,) = release.settled(1)
        name = server["metadata"]["name"]
        kubectl("exec", name, "--", "sh", "-c", "kill -TERM 1", namespace=release.namespace)

        def restarted() -> bool:
            pod = get("pod", name, namespace=release.namespace)
            (status,) = pod["status"]["containerStatuses"]
            return status["restartCount"] == 1 and status["ready"]

        wait("the container's second start", restarted)
        assert release.ask([release.service])["bad"] == 0

    def test_two_servers_serve_the_same_without_a_load(self, release: SeededRelease) -> None:
        kubectl("scale", "deployment/refit-triton", "--replicas=2", namespace=release.namespace)
        servers = release.settled(2)
        hosts = [s["status"]["podIP"] for s in servers]
        assert release.ask(hosts) == {"good": 2, "bad": 0, "first": []}
        subsets = get("endpoints", "refit-triton-each", namespace=release.namespace)["subsets"]
        assert sorted(a["ip"] for s in subsets for a in s["addresses"]) == sorted(hosts)

    def test_an_upgrade_fails_no_request_and_keeps_the_key(self, release: SeededRelease) -> None:
        key, before = release.key(), {s["metadata"]["uid"] for s in release.settled(2)}
        with release.under_load(seconds=30) as counts:
            release.upgrade({**VALUES, "triton": {**VALUES["triton"], "replicas": 2, "logVerbose": 1}})
            assert not before & {s["metadata"]["uid"] for s in release.settled(2)}
        assert counts["good"] > 100
        assert counts["bad"] == 0, counts
        assert release.key() == key

    def test_a_failed_upgrade_is_rolled_back_and_fails_no_request(self, release: SeededRelease) -> None:
        before = {s["metadata"]["uid"] for s in release.settled(2)}
        wrong = {**VALUES["triton"], "replicas": 2, "image": {"tag": "no-such-tag"}}
        with release.under_load(seconds=25) as counts, pytest.raises(helm_sdkpy.UpgradeError):
            release.upgrade_or_roll_back({**VALUES, "triton": wrong})
        assert counts["good"] > 100
        assert counts["bad"] == 0, counts
        assert {s["metadata"]["uid"] for s in release.settled(2)} == before
        image = get("deployment", "refit-triton", namespace=release.namespace)["spec"]["template"]["spec"][
            "containers"
        ][0]
        assert image["image"] == f"refit-triton:{cluster.TAG}"
        release.test()

    def test_a_release_in_a_pod_makes_a_champion(self, release: SeededRelease) -> None:
        """Refit's own release in refit-release, as a stage's pod has it."""
        hosts = [s["status"]["podIP"] for s in release.settled(2)]
        key = {"secretKeyRef": {"name": "refit-triton-control", "key": "control-key"}}
        manifest = cluster.pod(
            "release",
            f"refit-release:{cluster.TAG}",
            ["python", "-c", RELEASE, hosts[0]],
            env=[{"name": "REFIT_SECRET_TRITON_CONTROL_KEY", "valueFrom": key}],
            labels={"refit/triton-client": "true"},
            claims={"/models": "refit-models", "/workspace": "refit-workspace"},
        )
        said = cluster.run(manifest, release.namespace)
        assert "Triton serves version 1 of detector" in said

    def test_a_broken_model_stops_no_other_and_helm_test_names_it(self, release: SeededRelease) -> None:
        release.seed("broken", good=False)
        kubectl("rollout", "restart", "deployment/refit-triton", namespace=release.namespace)
        release.settled(2)
        assert release.ask([release.service])["bad"] == 0
        with pytest.raises(helm_sdkpy.HelmError):
            release.test()
        # A test that failed leaves its pod, to be read.
        assert "model broken is not served" in kubectl("logs", "refit-test-serving", namespace=release.namespace)
        kubectl("delete", "pod", "refit-test-serving", namespace=release.namespace)

    def test_grpc_needs_the_key_too(self, release: SeededRelease) -> None:
        words = ["python", "-c", GRPC, release.service]
        key = release.client("x", [])["spec"]["containers"][0]["env"]
        labels = {"refit/triton-client": "true"}
        manifest = cluster.pod("grpc", f"refit-cpu:{cluster.TAG}", words, env=key, labels=labels)
        refused, allowed = cluster.run(manifest, release.namespace).splitlines()
        assert "restricted" in refused
        assert "double" in allowed

    def test_tensorboard_shows_the_runs_folders(self, release: SeededRelease) -> None:
        address = get("service", "refit-tensorboard", namespace=release.namespace)["spec"]["clusterIP"]
        work = f"import urllib.request as r; print(r.urlopen('http://{address}:6006/data/logdir', timeout=30).read())"
        image = f"refit-tools:{cluster.TAG}"
        said = cluster.run(cluster.pod("board", image, ["python", "-c", work]), release.namespace)
        assert "/workspace" in said

    def test_every_image_was_pulled_before_a_stage_asked(self, release: SeededRelease) -> None:
        status = get("daemonset", "refit-prepull", namespace=release.namespace)["status"]
        assert status["numberReady"] == status["desiredNumberScheduled"] > 0

    def test_triton_has_no_token_and_cannot_write_its_models(self, release: SeededRelease) -> None:
        name = release.servers()[0]["metadata"]["name"]
        script = "ls /var/run/secrets/kubernetes.io 2>&1; touch /models/repository/x 2>&1; touch /opt/x 2>&1; id -u"
        said = kubectl("exec", name, "--", "sh", "-c", script, namespace=release.namespace).splitlines()
        assert "No such file" in said[0]
        assert "Read-only" in said[1]
        assert "Read-only" in said[2]
        assert said[3] == "10001"

    @pytest.mark.parametrize(
        ("verb", "resource", "allowed"),
        [
            ("create", "pods", True),
            ("delete", "pods", True),
            ("patch", "pods", True),
            ("get", "pods/log", True),
            ("watch", "events", True),
            ("create", "pods/exec", False),
            ("get", "secrets", False),
            ("list", "configmaps", False),
            ("create", "deployments.apps", False),
            ("patch", "deployments.apps", False),
            ("get", "persistentvolumeclaims", False),
        ],
    )
    def test_airflow_may_start_pods_and_nothing_else(
        self, release: SeededRelease, verb: str, resource: str, allowed: bool
    ) -> None:
        account = f"system:serviceaccount:{release.namespace}:airflow-scheduler"
        assert _may(verb, resource, account, release.namespace) is allowed
        stage = f"system:serviceaccount:{release.namespace}:refit-stage"
        assert _may(verb, resource, stage, release.namespace) is False
        assert _may(verb, resource, account, "default") is False

    def test_an_uninstall_leaves_the_workspace_and_nothing_else(self, release: SeededRelease) -> None:
        label = "app.kubernetes.io/instance=refit"
        release.uninstall()
        kinds = "all,configmaps,secrets,serviceaccounts,persistentvolumeclaims,networkpolicies,roles,rolebindings"
        kinds += ",resourcequotas,poddisruptionbudgets,horizontalpodautoscalers"
        left = wait(
            "the end of all pods",
            lambda: [
                found
                for found in [kubectl("get", kinds, "-l", label, "-o", "name", namespace=release.namespace).split()]
                if not any(name.startswith("pod/") for name in found)
            ],
        )
        assert left == [["persistentvolumeclaim/refit-workspace"]]
        assert f"{release.namespace}-refit" not in kubectl("get", "priorityclasses")


def _may(verb: str, resource: str, account: str, namespace: str) -> bool:
    kind, _, sub = resource.partition("/")
    words = ["auth", "can-i", verb, kind, *([f"--subresource={sub}"] if sub else []), f"--as={account}"]
    done = subprocess.run(["kubectl", "-n", namespace, *words], capture_output=True, text=True, timeout=60, check=False)
    said = done.stdout.strip().splitlines()[-1:]  # "no" comes with exit code 1
    assert said in (["yes"], ["no"]), done.stderr
    return said == ["yes"]
