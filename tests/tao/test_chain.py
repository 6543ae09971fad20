"""The tao toolkit's chain: which stages there are, what each is told, and what makes it run again."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from refit import pipeline as pipelines
from refit import plan as plans
from refit.cluster import KubernetesProfile, load
from refit.config import Settings
from refit.runtime import pod as pods
from refit.specs import parse_yaml
from refit.tao import networks
from refit.tao.params import (
    AugmentParams,
    BuildEngineParams,
    DatasetConvertParams,
    EvaluateParams,
    ExportParams,
    InferenceParams,
    PruneParams,
    QuantizeParams,
    TrainParams,
)
from refit.tao.tree import parse
from refit.toolkits.base import Stage, spec_text
from refit.toolkits.tao import TaoChain
from refit.toolkits.tao.check import useful

ROOT = Path(__file__).resolve().parents[2]
PIPELINE = """\
dataset: {source: inbox/cars, classes: CLASSES, format: kitti}
toolkit: tao
network: {name: NETWORK}
resources: {default: {gpus: 2}}
stages:
  FIRST
"""


@pytest.fixture
def profile() -> KubernetesProfile:
    made = load("kubernetes", Settings.from_env({}))
    assert isinstance(made, KubernetesProfile)
    return made


def stages(
    profile: KubernetesProfile,
    network: str = "detectnet_v2",
    more: str = "",
    *,
    classes: str = "[Car, Traffic Light]",
    first: str = "train: {epochs: 20}",
    resources: str = "{default: {gpus: 2}}",
    attached: dict[str, str] | None = None,
    **network_keys: str,
) -> dict[str, Stage]:
    name = ", ".join([network, *(f"{k}: {v}" for k, v in network_keys.items())])
    text = PIPELINE.replace("NETWORK", name).replace("CLASSES", classes).replace("FIRST", first) + more
    text = text.replace("{default: {gpus: 2}}", resources)
    made = pipelines.from_document(parse_yaml(text, "cars.yaml"), "cars", attached=attached)
    return {s.name: s for s in TaoChain(made, profile).stages()}


def test_the_chain_of_a_network_that_can_be_pruned(profile: KubernetesProfile) -> None:
    made = stages(profile, more="  prune: true\n", pretrained="true")
    assert list(made) == [
        "prepare", "pretrained", "dataset_convert_train", "dataset_convert_val", "train", "evaluate_trained",
        "gate_trained", "prune", "retrain", "evaluate_retrained", "gate_retrained", "calibrate", "export",
        "build_engine", "describe_engine", "evaluate_quantized", "gate_quantized", "package", "prepare_proof", "prove",
        "gate_parity", "prepare_champion", "prove_champion", "evaluate_champion", "gate_champion", "release",
    ]  # fmt: skip
    position = {name: i for i, name in enumerate(made)}
    for stage in made.values():
        assert all(position[u] < position[stage.name] for u in stage.upstream)


def test_the_chain_of_a_transformer(profile: KubernetesProfile) -> None:
    assert list(stages(profile, "rtdetr")) == [
        "prepare", "train", "evaluate_trained", "gate_trained", "calibrate", "export", "build_engine",
        "describe_engine", "evaluate_quantized", "gate_quantized", "package", "prepare_proof", "prove", "gate_parity",
        "prepare_champion", "prove_champion", "evaluate_champion", "gate_champion", "release",
    ]  # fmt: skip
    before = list(stages(profile, "rtdetr", "  quantize: {backend: torchao}\n"))
    after = list(stages(profile, "rtdetr", "  quantize: {backend: modelopt.onnx}\n"))
    assert before.index("quantize") < before.index("export")
    assert after.index("quantize") > after.index("export")


@pytest.mark.parametrize("network", networks.known())
def test_augmented_images_are_trained_on_beside_the_others(profile: KubernetesProfile, network: str) -> None:
    made = stages(profile, network, "  augment: {rotate_degrees: 10}\n")
    assert made["augment"].argv[:2] == ("augmentation", "generate")
    text = next(iter(made["train"].files.values()))
    assert "{input:augment}" in str(text) or "{input:dataset_convert_augmented}" in str(text)
    assert "augment" in made["train"].inputs
    assert all("augment" not in str(v) for v in (made["prepare"].files, made["evaluate_trained"].argv))


def test_copies_of_albumentations_are_made_before_prepare_and_without_a_gpu(profile: KubernetesProfile) -> None:
    made = stages(profile, "ssd", "  albumentations: {copies: 2, presets: [zoom_out]}\n")
    assert list(made)[:2] == ["albumentations", "prepare"]
    first, prepare = made["albumentations"], made["prepare"]
    assert (first.environment, first.argv[2:4], first.resources.gpus) == ("cpu", ("refit.cpu", "augment"), 0)
    assert first.files["augment.yaml"] == {
        "seed": 42, "snapshot": "{snapshot}", "copies": 2, "min_visibility": 0.3, "presets": ["zoom_out"],
        "transforms": [],
    }  # fmt: skip
    assert prepare.files["prepare.yaml"]["snapshot"] == "{input:albumentations}"
    assert (prepare.inputs, prepare.reads_snapshot) == (("albumentations",), False)
    assert stages(profile, "ssd")["prepare"].reads_snapshot


def test_an_engine_for_each_kind_of_gpu(profile: KubernetesProfile) -> None:
    text = stages(profile, more="  build_engine: {gpu_types: [default, a100]}\n")
    assert text["build_engine_default"].resources.gpu_type == "default"
    assert text["build_engine_a100"].resources.gpu_type == "a100"
    package = text["package"].files["package.yaml"]
    assert isinstance(package, dict)
    assert package["engines"] == ["{input:describe_engine_default}", "{input:describe_engine_a100}"]
    release = text["release"].files["release.yaml"]
    assert isinstance(release, dict)
    assert release["model_path"] == "{input:package}"


def test_each_engine_is_proven_on_its_own_gpu_in_tritons_image(profile: KubernetesProfile) -> None:
    made = stages(profile, more="  build_engine: {gpu_types: [default, a100]}\n")
    proofs = {name: made[name] for name in ("prove_default", "prove_a100")}
    assert {name: (s.resources.gpus, s.resources.gpu_type) for name, s in proofs.items()} == {
        "prove_default": (1, "default"),
        "prove_a100": (1, "a100"),
    }
    pod = pods.stage_pod(pods.PodStage("cars", "r1", "prove", "prove", "triton", gpus=1), profile)
    (container,) = pod["spec"]["containers"]
    assert container["image"] == profile.images["triton"].image
    assert container["command"][0] == "python3"
    judged = made["gate_parity"].files["parity.yaml"]
    assert isinstance(judged, dict)
    assert judged["answers"] == {"default": "{input:prove_default}", "a100": "{input:prove_a100}"}
    assert judged["figures"] == {
        "trained": "{input:evaluate_trained}/../result.json",
        "quantized": "{input:evaluate_quantized}/../result.json",
    }
    assert "gate_parity" in made["release"].after


@pytest.mark.parametrize("network", networks.known())
def test_triton_is_asked_about_the_onnx_file_where_it_can_run_it(profile: KubernetesProfile, network: str) -> None:
    spec = stages(profile, network)["prepare_proof"].files["prepare.yaml"]
    assert isinstance(spec, dict)
    plain = network in ("detectnet_v2", "rtdetr")  # the others' ends in a plugin, or has one inside
    assert spec["onnx"] == ("{input:export.model}" if plain else None)


def test_a_client_does_to_its_pictures_what_prepare_did(profile: KubernetesProfile) -> None:
    def entry(more: str) -> dict[str, Any]:
        size = {"input_width": "640", "input_height": "640"}
        files = stages(profile, more=more, **size)["package"].files
        found: dict[str, Any] = json.loads(str(files["model.json"]))["input"]
        return found

    resized = "  prepare: {{resize: {{width: {}, height: 320, place: centre{}}}}}\n"
    assert entry("")["resize"] == "stretch"
    assert entry(resized.format(320, "")).items() >= {"resize": "letterbox", "place": "centre", "fill": "black"}.items()
    assert entry(resized.format(320, ", keep_aspect: false"))["resize"] == "stretch"
    assert entry(resized.format(640, ""))["resize"] == "stretch"  # and then stretched, which model.json cannot say


def test_no_command_holds_a_gpu_without_a_sign_of_life_for_ever(profile: KubernetesProfile) -> None:
    made = stages(profile, more="  prune: true\n  inference: true\nwatchdog: {stall_minutes: 10}\n")
    silent = {s.name: s.watch["stall_seconds"] for s in made.values() if s.code == () and s.resources.gpus and s.watch}
    assert set(silent) == {s.name for s in made.values() if s.code == () and s.resources.gpus}
    assert {silent["train"], silent["evaluate_trained"], silent["inference"]} == {600}
    assert silent["build_engine"] == 2400


def test_no_triton_is_asked_where_nothing_is_released(profile: KubernetesProfile) -> None:
    for more in ("release: false\n", "gates: {parity: false}\n"):
        assert {"prepare_proof", "prove", "gate_parity"}.isdisjoint(stages(profile, more=more))


def test_the_first_engine_is_judged_on_its_own_gpu(profile: KubernetesProfile) -> None:
    more = "  build_engine: {gpu_types: [a100, t4]}\n"
    made = stages(profile, more=more, resources="{default: {gpus: 2, gpu_type: t4}}")
    assert made["evaluate_quantized"].resources.gpu_type == "a100"
    assert made["evaluate_trained"].resources.gpu_type == "t4"


def test_only_a_training_holds_several_gpus(profile: KubernetesProfile) -> None:
    made = stages(profile, more="  prune: true\n")
    assert {s.name: s.resources.gpus for s in made.values() if s.resources.gpus > 1} == {"train": 2, "retrain": 2}
    assert made["dataset_convert_train"].resources.gpus == 0
    assert made["train"].argv[made["train"].argv.index("--gpus") + 1] == "2"


def test_names_are_those_that_the_label_files_hold(profile: KubernetesProfile) -> None:
    """TAO lowers KITTI's names and splits lines at spaces: a spec with other names would train on nothing."""
    spec = parse(str(stages(profile)["train"].files["train.txt"]), "prototxt", "x")
    assert spec.keys("dataset_config.target_class_mapping") == ["car", "traffic_light"]
    assert spec.keys("cost_function_config.target_classes") == ["car", "traffic_light"]


def test_the_key_is_in_the_environment_only(profile: KubernetesProfile) -> None:
    made = stages(profile, more="  prune: true\n", key_secret="TAO_KEY", pretrained="{ngc: 'a/b/c:1', secret: NGC}")
    for name in ("train", "evaluate_trained", "prune", "retrain", "export", "build_engine"):
        assert made[name].secrets == ("TAO_KEY",), name
        assert made[name].argv[-2:] == ("-k", "{secret:TAO_KEY}"), name
    assert made["pretrained"].env["NGC_API_KEY"] == "{secret:NGC}"
    for stage in made.values():
        assert all("{secret:" not in spec_text(spec) for spec in stage.files.values())


def keys(
    profile: KubernetesProfile, network: str, more: str, code: Callable[[str], str] = lambda package: ""
) -> dict[str, str]:
    bound = plans.Bound(
        run="r", workspace=Path("/w/cars"), snapshot=Path("/w/s"), fingerprint="f", code=code,
        environments={"tools": "", "cpu": "", "triton": ""}, find=lambda stage, key: None,
    )  # fmt: skip
    made: dict[str, str] = {}
    for stage in stages(profile, network, more).values():
        made[stage.name] = plans.stage_key(stage, bound, made)
    return made


@pytest.mark.parametrize("network", networks.known())
def test_a_change_of_the_engine_does_not_train_again(profile: KubernetesProfile, network: str) -> None:
    prune = "  prune: true\n" if "prune" in networks.load(network).stages else ""
    other = "  build_engine: {precision: fp16, max_batch_size: 16}\n"
    before, after = keys(profile, network, prune), keys(profile, network, prune + other)
    assert {name for name in before if before[name] != after.get(name)} == {
        "calibrate", "build_engine", "describe_engine", "evaluate_quantized", "gate_quantized", "package",
        "prepare_proof", "prove", "gate_parity", "prepare_champion", "prove_champion", "evaluate_champion",
        "gate_champion", "release",
    }  # fmt: skip


@pytest.mark.parametrize("network", [n for n in networks.known() if n not in ("ssd", "yolo_v4")])  # batches of one
def test_a_change_of_the_pictures_draws_them_again_and_no_more(profile: KubernetesProfile, network: str) -> None:
    before, after = (keys(profile, network, f"  inference: {{batch_size: {n}}}\n") for n in (2, 4))
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"inference"}


@pytest.mark.parametrize("network", ["rtdetr", "dino", "deformable_detr"])
def test_a_transformer_is_not_trained_again_for_its_evaluation(profile: KubernetesProfile, network: str) -> None:
    before, after = (keys(profile, network, f"  evaluate: {{batch_size: {n}}}\n") for n in (2, 4))
    assert before["train"] == after["train"]
    assert before["export"] == after["export"]
    assert before["evaluate_trained"] != after["evaluate_trained"]


@pytest.mark.parametrize("module", [
    "prepare/stage.py", "formats/base.py", "formats/coco_write.py", "formats/kitti.py", "images.py", "model.py",
    "snapshot.py",
])  # fmt: skip
def test_code_that_decides_what_is_trained_on_trains_again(profile: KubernetesProfile, module: str) -> None:
    assert {"prepare", "dataset_convert_train", "train", "release"} <= changed_by(profile, f"refit/data/{module}")


@pytest.mark.parametrize("module", ["report/page.py", "formats/drip.py", "drift.py"])
def test_other_code_of_the_data_side_does_not(profile: KubernetesProfile, module: str) -> None:
    assert changed_by(profile, f"refit/data/{module}") == set()


def changed_by(profile: KubernetesProfile, module: str) -> set[str]:
    """The stages that have other keys where a module is another."""
    assert (ROOT / module).is_file()
    before = keys(profile, "detectnet_v2", "")
    after = keys(profile, "detectnet_v2", "", lambda code: "other" if Path(module).is_relative_to(code) else "")
    return {name for name in before if before[name] != after[name]}


def test_what_prepare_imports_is_in_its_key(profile: KubernetesProfile) -> None:
    """Of refit.data and refit.postprocess: the modules that its own name."""
    own = sorted((ROOT / "refit" / "data" / "prepare").glob("*.py"))
    trees = [node for path in own for node in ast.walk(ast.parse(path.read_text()))]
    used = set()
    for node in (n for n in trees if isinstance(n, ast.ImportFrom) and n.module):
        for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
            path = Path(*name.split(".")).with_suffix(".py")
            if name.startswith(("refit.data", "refit.postprocess")) and (ROOT / path).is_file():
                used.add(path)
    code = stages(profile)["prepare"].code
    assert len(used) > 10
    assert [str(path) for path in sorted(used) if not any(path.is_relative_to(c) for c in code)] == []


def test_params_of_the_trigger_form(profile: KubernetesProfile) -> None:
    made = pipelines.load(ROOT / "specs" / "examples" / "plates.yaml")
    fields = {f.key: f for f in plans.params(made)}
    assert fields["train_epochs"].default == 120
    assert fields["prune_threshold"].schema["exclusiveMaximum"] == 1
    changed, _ = plans.overrides(made, {"train_epochs": 3, "engine_precision": "fp16"})
    assert changed == {"stages.train.epochs": 3, "stages.build_engine.precision": "fp16"}


@pytest.mark.parametrize("path", sorted((ROOT / "specs" / "examples").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_example_is_good_and_makes_pods(path: Path, profile: KubernetesProfile) -> None:
    from refit.toolkits.tao import TOOLKIT

    pipeline = pipelines.load(path)
    assert list(TOOLKIT.preflight(pipeline, profile, None)) == []
    for stage in TOOLKIT.stages(pipeline, profile):
        request: dict[str, Any] = {
            "pipeline": "x", "run": "r", "name": stage.name, "action": stage.action, "index": 1, "key": "k",
            "environment": stage.environment, "image": stage.image, "secrets": [],
            "paths": {"workspace": "/workspace/x"},
            "resources": stage.resources.model_dump(exclude={"timeout_hours", "nodes"}), "timeout_seconds": 60,
            "grace_seconds": 10, "model": "x",
        }  # fmt: skip
        pod = pods.stage_pod(pods.PodStage.of(request, plan="/workspace/x/plan.json"), profile)
        image = pod["spec"]["containers"][0]["image"]
        if stage.environment.startswith("tao_"):
            assert image == f"{profile.tao.repository}:{stage.image}"


def sidecar(made: dict[str, Stage]) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(str(made["package"].files["model.json"]))
    return read


@pytest.mark.parametrize(
    ("network", "classes"),
    [("detectnet_v2", ["Car", "Animal", "Traffic Light"]), ("ssd", ["Animal", "Car", "Traffic Light"]),
     ("faster_rcnn", ["Animal", "Car", "Traffic Light"]), ("yolo_v4", ["Animal", "Car", "Traffic Light"]),
     ("rtdetr", ["Car", "Animal", "Traffic Light"]), ("efficientdet_tf2", ["Car", "Animal", "Traffic Light"])],
)  # fmt: skip
def test_the_sidecar_has_the_users_classes_in_the_order_of_the_outputs(
    profile: KubernetesProfile, network: str, classes: list[str]
) -> None:
    made = stages(profile, network, classes="[Car, Animal, Traffic Light]")
    assert sidecar(made)["classes"] == classes
    ids = sidecar(made).get("class_ids")
    assert ids in (None, [1, 2, 3])


def test_cells_are_joined_as_in_the_evaluation_that_judged_the_model(profile: KubernetesProfile) -> None:
    at = "postprocessing_config.target_class_config[traffic_light].value.clustering_config"
    change = f"set: {{'{at}.dbscan_eps': 0.4, '{at}.dbscan_min_samples': 0.05}}"
    found = sidecar(stages(profile, first=f"train: {{epochs: 20, {change}}}", more="  prune: true\n"))["clustering"]
    assert set(found) == {"default", "Traffic Light"}
    assert found["Traffic Light"] == {**found["default"], "dbscan_eps": 0.4, "dbscan_min_samples": 1}


OWN = ("detectnet_v2", "faster_rcnn", "ssd", "yolo_v4")


@pytest.mark.parametrize("network", OWN)
def test_a_spec_of_ones_own_decides_size_and_classes(profile: KubernetesProfile, network: str) -> None:
    """A spec that makes one class of two, at another size: model.json, figures and inference follow it."""
    before = stages(profile, network)["train"]
    text = str(before.files["train.txt"])
    size = networks.load(network).input
    text = text.replace(f"width: {size.width}", "width: 320").replace(f"height: {size.height}", "height: 320")
    tree = parse(text, "prototxt", "my.txt")
    mapping = networks.load(network).specs["train"].roles["mapping"][0]
    tree.put(mapping, [{"key": "car", "value": "thing"}, {"key": "traffic_light", "value": "thing"}])
    for path in networks.load(network).specs["train"].roles.get("classes", ()):
        tree.drop(f"{path}[traffic_light]")
    text = tree.text().replace('name: "car"', 'name: "thing"').replace('key: "car"\n', 'key: "thing"\n')
    text = text.replace('key: "thing"\n    value: "thing"', 'key: "car"\n    value: "thing"')
    made = stages(profile, network, first="train: {spec: my.txt}", attached={"my.txt": text})
    assert sidecar(made)["classes"] == ["thing"]
    assert (sidecar(made)["input"]["width"], sidecar(made)["input"]["height"]) == (320, 320)
    assert made["evaluate_trained"].classes == {"thing": "thing"}
    convert = parse(str(made["dataset_convert_train"].files["convert.txt"]), "prototxt", "x")
    assert convert.keys("target_class_mapping") in ([], ["car", "traffic_light"])


def test_what_a_retraining_does_not_name_is_as_in_the_training(profile: KubernetesProfile) -> None:
    more = "  prune: true\n  retrain: {learning_rate: 0.0001}\n"
    spec = parse(str(stages(profile, more=more)["retrain"].files["train.txt"]), "prototxt", "x")
    schedule = "training_config.learning_rate.soft_start_annealing_schedule"
    assert spec.value("training_config.num_epochs") == 20
    assert spec.value(f"{schedule}.max_learning_rate") == pytest.approx(0.0001)


def test_quantization_aware_from_the_retraining_on(profile: KubernetesProfile) -> None:
    made = stages(profile, more="  prune: true\n  retrain: {qat: true}\n")
    qat = {name: "enable_qat: true" in str(made[name].files["train.txt"]) for name in ("train", "retrain", "export")}
    assert qat == {"train": False, "retrain": True, "export": True}
    assert "calibrate" not in made
    assert "--cal_json_file" in made["build_engine"].argv


def test_what_a_distilled_model_is_made_of(profile: KubernetesProfile) -> None:
    made = stages(profile, "rtdetr", first="distill: {epochs: 7, teacher: weights/teacher.pth}")
    spec = str(made["distill"].files["train.yaml"])
    assert "pretrained_teacher_model_path: '{workspace}/weights/teacher.pth'" in spec
    assert "num_epochs: 7" in spec
    assert made["export"].inputs == ("prepare", "distill")


def test_the_outputs_of_a_tao_command_are_in_its_key(profile: KubernetesProfile) -> None:
    """Its command is not Refit's: no source stands for what is to be found in its results."""
    bound = plans.Bound(
        run="r", workspace=Path("/w/cars"), snapshot=Path("/w/s"), fingerprint="f", code=lambda package: "",
        environments={"tools": "", "triton": ""}, find=lambda stage, key: None,
    )  # fmt: skip
    train = stages(profile)["train"]
    other = replace(train, outputs=(replace(train.outputs[0], path="weights/other.hdf5"),))
    above = dict.fromkeys(train.inputs, "k")
    assert plans.stage_key(train, bound, above) != plans.stage_key(other, bound, above)
    assert plans.stage_key(train, bound, above) == plans.stage_key(replace(train, title="Other"), bound, above)


def test_a_param_of_a_block_that_is_turned_on_by_true() -> None:
    text = PIPELINE.replace("NETWORK", "ssd").replace("CLASSES", "[car]").replace("FIRST", "prune: true")
    made = pipelines.from_document(parse_yaml(text, "x"), "x", {"stages.prune.threshold": 0.4})
    assert made.stages.prune.threshold == 0.4


def test_every_parameter_does_something_in_some_network() -> None:
    def names(model: Any, prefix: str = "") -> list[str]:
        found: list[str] = []
        for name, field in model.model_fields.items():
            below = getattr(field.annotation, "model_fields", None)
            found += names(field.annotation, f"{prefix}{name}.") if below else [f"{prefix}{name}"]
        return found

    for block, model in {
        "dataset_convert": DatasetConvertParams, "augment": AugmentParams, "train": TrainParams,
        "evaluate": EvaluateParams, "prune": PruneParams, "export": ExportParams, "quantize": QuantizeParams,
        "build_engine": BuildEngineParams, "inference": InferenceParams,
    }.items():  # fmt: skip
        used = {name for network in networks.known() for name in useful(networks.load(network), block)}
        assert set(names(model)) - used == {"spec", "set"}, block
