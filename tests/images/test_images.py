"""The images, built for real and started as the cluster starts them: without root, root file system read-only."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator

import pytest

from tests import cluster

REASON = cluster.reason_to_skip()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))


@pytest.fixture(scope="module")
def namespace() -> Iterator[str]:
    with cluster.namespace("refit-images") as name:
        yield name


class TestTools:
    @pytest.fixture
    def image(self) -> str:
        return cluster.build("tools")

    def test_the_command_line_reads_the_pipelines(self, image: str, namespace: str) -> None:
        words = ["sh", "-c", "id -u; id -g; refit validate specs/pipelines/*.yaml"]
        user, group, *said = cluster.run(cluster.pod("validate", image, words), namespace).splitlines()
        assert (user, group) == ("10001", "10001")
        assert "demo" in " ".join(said)

    @pytest.mark.parametrize("module", ["refit.bind", "refit.gates", "refit.triton"])
    def test_its_stages_start(self, image: str, namespace: str, module: str) -> None:
        said = cluster.run(cluster.pod("help", image, ["python", "-m", module, "--help"]), namespace)
        assert f"usage: python -m {module}" in said

    def test_the_runner_runs_in_an_image_that_has_no_python(self, image: str, namespace: str) -> None:
        """busybox has no Python and no C library: the init container brings both."""
        request = {
            "schema": 1,
            "pipeline": "demo",
            "run": "r1",
            "name": "say",
            "action": "say",
            "index": 0,
            "key": "0" * 64,
            "argv": ["sh", "-c", "! command -v python3 && echo hello > {out}/said.txt"],
            "env": {},
            "files": {},
            "paths": {"workspace": "/tmp", "run": "/tmp/runs/r1", "stage": "/tmp/runs/r1/00-say"},
            "outputs": [{"name": "said", "path": "said.txt", "kind": "file", "format": "any", "min_bytes": 5}],
        }
        words = ["/refit/python/bin/python3", "/refit/runner.py"]
        env = [
            {"name": "REFIT_REQUEST", "value": json.dumps(request)},
            {"name": "REFIT_TERMINATION_LOG", "value": "/dev/stdout"},
            # Images with CUDA set it; the brought interpreter must not load what lies there.
            {"name": "LD_LIBRARY_PATH", "value": "/lib:/usr/lib"},
        ]
        manifest = cluster.pod("bare", "busybox:1.36", words, env=env)
        spec = manifest["spec"]
        spec["volumes"].append({"name": "refit", "emptyDir": {}})
        (main,) = spec["containers"]
        spec["initContainers"] = [
            {
                **main,
                "name": "runner",
                "image": image,
                "command": ["cp", "-R", "/refit/.", "/target/"],
                "env": [],
                "volumeMounts": [{"name": "refit", "mountPath": "/target"}],
            }
        ]
        main["volumeMounts"] = [*main["volumeMounts"], {"name": "refit", "mountPath": "/refit", "readOnly": True}]
        said = cluster.run(manifest, namespace)
        assert '"outcome": "succeeded"' in said or '"outcome":"succeeded"' in said


def test_cpu_trains(namespace: str) -> None:
    image = cluster.build("cpu")
    work = (
        "import torch\n"
        "from refit.cpu import network, train, quantize, export\n"
        "x = torch.ones(2, 2, requires_grad=True)\n"
        "(x * x).sum().backward()\n"
        "print(torch.__version__, x.grad.sum().item())"
    )
    words = ["sh", "-c", f"python -m refit.cpu --help && python -c '{work}'"]
    said = cluster.run(cluster.pod("cpu", image, words), namespace)
    assert "usage: python -m refit.cpu" in said
    version, value = said.splitlines()[-1].split()
    assert version.endswith("+cpu"), "torch with CUDA libraries: give pip an index of CPU wheels"
    assert value == "8.0"


def test_triton_serves_by_its_own_command(namespace: str) -> None:
    image = cluster.build("triton")
    manifest = cluster.pod("serve", image, [])
    (main,) = manifest["spec"]["containers"]
    del main["command"]
    main["readinessProbe"] = {"httpGet": {"path": "/v2/health/ready", "port": 8000}, "periodSeconds": 1}
    cluster.kubectl("apply", "-f", "-", namespace=namespace, stdin=json.dumps(manifest))
    try:
        cluster.kubectl("wait", "--for=condition=Ready", "pod/serve", "--timeout=180s", namespace=namespace)
        log = cluster.kubectl("logs", "serve", namespace=namespace)
    finally:
        cluster.kubectl("delete", "pod", "serve", "--ignore-not-found", namespace=namespace)
    assert "MODE_EXPLICIT" in log


def test_release_can_prove_a_model_on_a_throwaway_server(namespace: str) -> None:
    image = cluster.build("release")
    work = """
from pathlib import Path
import numpy as np, onnx
from onnx import TensorProto, helper
from refit.triton.client import TritonClient
from refit.triton.server import TritonServer

folder = Path("/tmp/models/double/1")
folder.mkdir(parents=True)
x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 3]) for n in "xy")
graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "double", [x], [y])
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), folder / "model.onnx")
(folder.parent / "config.pbtxt").write_text('''
name: "double" backend: "onnxruntime" max_batch_size: 8
input [{ name: "x" data_type: TYPE_FP32 dims: [3] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [3] }]
instance_group [{ kind: KIND_CPU count: 1 }]
''')
with TritonServer(folder.parent.parent, Path("/tmp/server"), control_key="abc") as server:
    with TritonClient(server.url, control_key="abc") as client:
        print(client.infer("double", {"x": np.ones((1, 3), np.float32)}).outputs["y"].tolist())
"""
    said = cluster.run(cluster.pod("release", image, ["python", "-c", work]), namespace)
    assert said.splitlines()[-1] == "[[2.0, 2.0, 2.0]]"


class TestAirflow:
    @pytest.fixture
    def image(self) -> str:
        return cluster.build("airflow")

    def test_imports_every_dag(self, image: str, namespace: str) -> None:
        work = (
            "import os; from pathlib import Path; root = Path(os.environ['REFIT_REPOSITORY']);"
            "from airflow.dag_processing.dagbag import BundleDagBag;"
            "bag = BundleDagBag(root / 'dags', bundle_path=root, bundle_name='refit');"
            "print(sorted(bag.dags), bag.import_errors)"
        )
        env = [{"name": "AIRFLOW_HOME", "value": "/tmp/airflow"}]
        script = f'id -u; id -g; airflow db migrate >/tmp/log 2>&1 || cat /tmp/log; python -c "{work}"'
        said = cluster.run(cluster.pod("dags", image, ["bash", "-c", script], env=env, user=None), namespace)
        lines = said.splitlines()
        assert lines[:2] == ["50000", "0"]
        made = "['refit_predict', 'refit_reconcile', 'refit_rollback', 'retrain_bccd', 'retrain_demo'"
        assert lines[-1].startswith(made)
        assert lines[-1].endswith("{}")

    def test_every_component_can_import_the_operators(self, image: str, namespace: str) -> None:
        """The triggerer never looks into bundles: what it needs must be importable from anywhere."""
        work = "import operators.arrival, operators.stage, airflow.providers.postgres, psycopg2; print('ok')"
        env = [{"name": "AIRFLOW_HOME", "value": "/tmp/airflow"}]
        words = ["sh", "-c", f'cd / && python -c "{work}"']
        assert cluster.run(cluster.pod("import", image, words, env=env, user=None), namespace).splitlines()[-1] == "ok"


# --- edge bundles ------------------------------------------------------------------------------------------------

ONNX = """
from pathlib import Path
import numpy as np, onnx, onnxruntime
from onnx import TensorProto, helper, numpy_helper
from refit.postprocess import InputInfo, ModelInfo

work, rng = Path("/work"), np.random.default_rng(1)
outputs = {"coverage": "cov", "bbox": "bbox"}
info = ModelInfo("detectnet_v2", ("a", "b"), InputInfo("image", 64, 32), outputs)
(work / "model.json").write_text(info.text())
weights, nodes, ends = [], [], []
for name, count in (("logits", 2), ("bbox", 8)):
    weights.append(numpy_helper.from_array(rng.normal(0, 0.1, (count, 3, 16, 16)).astype(np.float32), name + "_w"))
    nodes.append(helper.make_node("Conv", ["image", name + "_w"], [name], strides=[16, 16]))
nodes.append(helper.make_node("Sigmoid", ["logits"], ["cov"]))
for name, count in (("cov", 2), ("bbox", 8)):
    ends.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", count, 2, 4]))
start = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 32, 64])
graph = helper.make_graph(nodes, "small", [start], ends, weights)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
onnx.save(model, work / "model.onnx")
image = rng.random((1, 3, 32, 64), dtype=np.float32)
answers = onnxruntime.InferenceSession(work / "model.onnx").run(list(outputs.values()), {"image": image})
np.savez(work / "reference.npz", image=image, **dict(zip(outputs.values(), answers)))
"""
CONVERT = """
import subprocess, sys
from pathlib import Path
import numpy as np, yaml
from refit.edge.models import open_edge
from refit.postprocess import ModelInfo

work = Path("/work")
for kind in sys.argv[1:]:
    source = {"model": "model.onnx"} if kind == "saved_model" else {"saved_model": "saved_model/saved_model"}
    spec = {"info": "model.json", **source}
    (work / f"{kind}.yaml").write_text(yaml.safe_dump({name: str(work / path) for name, path in spec.items()}))
    argv = [sys.executable, "-m", "refit.edge", kind, "-e", str(work / f"{kind}.yaml"), "-r", str(work / kind)]
    subprocess.run(argv, check=True)
    reference = np.load(work / "reference.npz")
    with open_edge(kind, work / kind, ModelInfo.read(work / "model.json")) as model:
        for name, answer in model(reference["image"]).items():
            print(f"{kind}.{name}: {np.abs(answer - reference[name]).max():.6f}")
"""


@pytest.mark.skipif(os.environ.get("REFIT_E2E_EDGE") != "1", reason="set REFIT_E2E_EDGE=1: two images of 2 GB each")
def test_edge_bundles_are_made_and_run_in_their_images(namespace: str) -> None:
    """A model as Refit exports it goes from image to image, as in a run of a cluster."""
    images = [cluster.build(name) for name in ("tensorflow", "tfjs")]
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "edge"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    cluster.kubectl("apply", "-f", "-", namespace=namespace, stdin=json.dumps(claim))
    script = f"python -c '{ONNX}' && python -c '{CONVERT}' saved_model frozen_graph tflite 2>&1"
    said = ""
    for image, words in zip(images, (script, f"python -c '{CONVERT}' tfjs 2>&1"), strict=True):
        pod = cluster.pod("edge", image, ["sh", "-c", words], claims={"/work": "edge"})
        said += cluster.run(pod, namespace, seconds=300)
    off = {name: float(value) for name, value in re.findall(r"^(\w+\.\w+): ([\d.]+)$", said, re.MULTILINE)}
    made = ("saved_model", "frozen_graph", "tflite", "tfjs")
    assert set(off) == {f"{kind}.{output}" for kind in made for output in ("cov", "bbox")}
    assert max(off.values()) < 1e-4, off
