"""Releases of TensorRT plans. No server without a GPU loads a real plan, so a stand-in backend serves ONNX bytes under
a plan's name: config.pbtxt, repository, checks and roll back are the real ones, the execution by TensorRT is not.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import tritonclient
from google.protobuf import text_format

from refit.engine.record import Batches, EngineRecord, Gpu, Plan, Tensor
from refit.triton.client import TritonClient
from refit.triton.config import ModelConfig
from refit.triton.errors import ArtefactError, InstallationError, ReleaseFailed, RollbackError
from refit.triton.installation import Installation
from refit.triton.model import read_model
from refit.triton.rollback import rollback
from refit.triton.server import CONTROL_KEY_VARIABLE, TritonServer
from refit.triton.specs import RollbackSpec
from tests.triton.fixtures import KEY, Place
from tests.triton.models import BOXES, COVERAGE, INPUT, make_model, noise

TRITON = "2.51.0"  # of the nvidia-pytriton wheel
HERE = {"tensorrt": "10.4.0", "kind": "KIND_CPU"}  # the stand-in runs on the CPU


def make_plan(folder: Path, capability: str = "7.5", *, name: str = "model", seed: int = 0, **changes: Any) -> Path:
    """A stand-in plan with its engine.json and model.json."""
    made = make_model(folder / "making", seed=seed)
    plan = folder / f"{name}.plan"
    shutil.copyfile(made, plan)
    shutil.copyfile(made.with_name("model.json"), folder / "model.json")
    record = EngineRecord(
        plan=Plan.of(plan),
        tensorrt="10.4.0.26",
        gpu=Gpu(name=f"GPU {capability}", compute_capability=capability, source="driver"),
        precision="int8",
        quantization="explicit",
        onnx_sha256=None,
        profile=Batches(min=1, opt=4, max=16),
        inputs=(Tensor(name=INPUT, datatype="FP32", dims=(-1, 3, 32, 32)),),
        outputs=(
            Tensor(name=COVERAGE, datatype="FP32", dims=(-1, 2, 2, 2)),
            Tensor(name=BOXES, datatype="FP32", dims=(-1, 8, 2, 2)),
        ),
        builder="a test",
    )
    EngineRecord.model_validate({**record.model_dump(by_alias=True), **changes}).write(
        folder / f"engine{name.removeprefix('model')}.json"
    )
    return plan


def parsed(text: str) -> Any:
    """A config.pbtxt as Triton's own protobuf reads it (the package around that module wants gRPC)."""
    path = Path(tritonclient.__path__[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return text_format.Parse(text, module.ModelConfig())


def test_configuration_of_one_plan(tmp_path: Path) -> None:
    model = read_model(make_plan(tmp_path))
    config = ModelConfig("m", 3, model.signature, model.max_batch_size or 0, kind="KIND_GPU", plans=model.plans)
    value = parsed(config.text())
    assert (value.platform, value.backend) == ("tensorrt_plan", "")
    assert value.default_model_filename == "model.plan"
    assert value.max_batch_size == 16
    assert [(t.name, t.data_type, list(t.dims)) for t in value.input] == [(INPUT, 11, [3, 32, 32])]  # 11: TYPE_FP32
    assert [(t.name, list(t.dims)) for t in value.output] == [(COVERAGE, [2, 2, 2]), (BOXES, [8, 2, 2])]
    assert value.instance_group[0].kind == value.instance_group[0].KIND_GPU
    assert value.model_warmup[0].inputs[INPUT].zero_data


def test_configuration_of_a_plan_for_each_gpu(tmp_path: Path) -> None:
    for capability in ("8.0", "7.5"):
        make_plan(tmp_path, capability, name=f"model_{capability}")
    model = read_model(tmp_path)
    value = parsed(ModelConfig("m", 1, model.signature, plans=model.plans).text())
    assert dict(value.cc_model_filenames) == {"7.5": "model_7.5.plan", "8.0": "model_8.0.plan"}
    assert not value.default_model_filename  # a GPU of another kind must find nothing
    assert sorted(model.files) == ["engine_7.5.json", "engine_8.0.json", "model_7.5.plan", "model_8.0.plan"]


def test_configuration_of_an_onnx_model_is_as_before(tmp_path: Path) -> None:
    model = read_model(make_model(tmp_path))
    value = parsed(ModelConfig("m", 1, model.signature, plans=model.plans).text())
    assert (value.platform, value.backend, value.default_model_filename) == ("", "onnxruntime", "")
    assert not value.cc_model_filenames


def test_the_smallest_limit_of_all_plans_counts(tmp_path: Path) -> None:
    make_plan(tmp_path, "8.0", name="model_8.0")
    make_plan(tmp_path, "7.5", name="model_7.5", profile={"min": 1, "opt": 2, "max": 2})
    assert read_model(tmp_path).max_batch_size == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"profile": {"min": 2, "opt": 4, "max": 8}}, "takes batches from 2, and Triton asks for 1 too"),
        ({"plan": {"file": "model.plan", "sha256": "0" * 64, "bytes": 9}}, "is not the plan that engine.json"),
        ({"plan": {"file": "other.plan", "sha256": "0" * 64, "bytes": 9}}, "no engine.json beside it describes it"),
        ({"tensorrt": "ten"}, "engine.json: tensorrt: "),
    ],
)
def test_records_that_do_not_hold(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    plan = make_plan(tmp_path)
    record = plan.with_name("engine.json")
    record.write_text(json.dumps({**json.loads(record.read_text()), **changes}))
    with pytest.raises(ArtefactError, match=said):
        read_model(plan)


def test_plans_of_different_models(tmp_path: Path) -> None:
    make_plan(tmp_path, "7.5", name="model_7.5")
    tensor = {"name": INPUT, "datatype": "FP32", "dims": [-1, 3, 64, 64]}
    make_plan(tmp_path, "8.0", name="model_8.0", inputs=[tensor])
    with pytest.raises(ArtefactError, match="build both from the same ONNX file"):
        read_model(tmp_path)


class StandIn(Installation):
    """The local Triton with a backend called tensorrt, which is that of onnxruntime."""

    def assemble(self, folder: Path) -> tuple[Path, Path]:
        backends, lib = super().assemble(folder)
        shutil.copytree(backends / "onnxruntime", backends / "tensorrt")
        return backends, lib


@pytest.fixture(scope="module")
def gpu_server(local_triton: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("plans")
    with (
        pytest.MonkeyPatch.context() as patch,
        TritonServer(
            folder / "models",
            folder / "run",
            control_key=KEY,
            installation=StandIn(**vars(local_triton)),
            stop_seconds=0,
        ) as running,
    ):
        patch.setenv(CONTROL_KEY_VARIABLE, KEY)
        yield running


@pytest.fixture
def gpu_place(gpu_server: TritonServer, tmp_path: Path) -> Iterator[Place]:
    with TritonClient(gpu_server.url) as open_client:
        yield Place(gpu_server, open_client, tmp_path, f"m{uuid.uuid4().hex[:8]}")


def test_plans_are_released_and_rolled_back(gpu_place: Place) -> None:
    place = gpu_place
    first = place.release(make_plan(place.folder / "a"), **HERE)
    assert (first.outcome, first.version) == ("released", 1)
    raw = place.client._client.get_model_config(place.name)
    assert (raw["platform"], raw["backend"], raw["max_batch_size"]) == ("tensorrt_plan", "tensorrt", 16)
    assert sorted(p.name for p in (place.repository / place.name / "1").iterdir()) == [
        *("engine.json", "model.json", "model.plan")
    ]
    before = place.client.infer(place.name, {INPUT: noise(2)}).outputs[COVERAGE]
    second = place.release(make_plan(place.folder / "b", seed=1), compute_capabilities=["7.5"], **HERE)
    assert (second.outcome, second.version) == ("released", 2)
    assert "compute_capabilities not said" in first.notes[0]
    assert not [note for note in second.notes if "compute_capabilities" in note]
    again = place.release(place.folder / "b" / "model.plan", **HERE)
    assert again.outcome == "already_serving"
    where = {"model": place.name, "url": place.server.url, "repository": place.repository, "ledger": place.ledger}
    assert rollback(RollbackSpec(**where)).version == 1
    assert (place.client.infer(place.name, {INPUT: noise(2)}).outputs[COVERAGE] == before).all()
    plan = place.repository / place.name / "2" / "model.plan"
    plan.write_bytes(plan.read_bytes()[:-1] + b"?")
    with pytest.raises(RollbackError, match="is not the plan that"):
        rollback(RollbackSpec(**where, to=2))


def test_a_plan_may_take_the_place_of_an_onnx_model(gpu_place: Place) -> None:
    assert gpu_place.release(gpu_place.model("onnx")).version == 1
    assert gpu_place.release(make_plan(gpu_place.folder / "plan", seed=1), **HERE).version == 2
    assert gpu_place.client.ready_versions(gpu_place.name) == (2,)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"tensorrt": "10.8.0"}, rf"built with TensorRT 10.4.0.26 \(a test\), and Triton {TRITON} at .* has 10.8.0"),
        ({"tensorrt": None}, rf"which TensorRT Triton {TRITON} \(24.10\) has is not in"),
        ({"compute_capabilities": ["7.5", "8.9"]}, "GPUs of compute capability 8.9, and the plans are for 7.5"),
        ({"max_batch_size": 32}, "takes batches up to 16"),
    ],
)
def test_a_plan_that_does_not_fit_touches_nothing(gpu_place: Place, more: dict[str, Any], said: str) -> None:
    plan = make_plan(gpu_place.folder / "a")
    with pytest.raises(ArtefactError, match=said):
        gpu_place.release(plan, **{**HERE, **more})
    assert gpu_place.versions == []
    assert not gpu_place.ledger.exists()


def test_a_plan_cannot_be_proven_without_a_gpu(gpu_place: Place) -> None:
    with pytest.raises(InstallationError, match="the throwaway Triton has no GPU"):
        gpu_place.release(make_plan(gpu_place.folder / "a"), **{**HERE, "prove": "always"})


def test_a_plan_runs_on_the_gpu_unless_said_otherwise(gpu_place: Place) -> None:
    with pytest.raises(ReleaseFailed, match=r"KIND_GPU|GPU"):
        gpu_place.release(make_plan(gpu_place.folder / "a"), tensorrt="10.4.0")
    assert gpu_place.versions == []


def test_an_onnx_file_still_is_one(tmp_path: Path) -> None:
    path = make_model(tmp_path)
    assert read_model(tmp_path).files == {"model.onnx": path}
    assert onnx.load(path).graph.input[0].name == read_model(path).signature.inputs[0].name
