"""Every class of fault that costs a GPU its day is found before a pod starts, with file, line and advice."""

from __future__ import annotations

import re
from typing import Any

import pytest

from refit import pipeline as pipelines
from refit.cluster import KubernetesProfile, Profile, load
from refit.config import Settings
from refit.specs import SpecError, parse_yaml
from refit.tao import networks
from refit.tao.tree import parse
from refit.toolkits.tao import TOOLKIT, TaoChain

PIPELINE = """\
dataset:
  source: inbox/cars
  classes: [car, person]
  format: kitti
toolkit: tao
network:
  name: NETWORK
stages:
  train:
    epochs: 20
    batch_size: 4
"""
GPU = "resources: {default: {gpus: 1}}\n"
DATASET: dict[str, Any] = {
    "splits": {"train": 100, "val": 20},
    "images": {"extensions": {".jpg": 120}, "width": [1920, 1920], "height": [1080, 1080]},
}


@pytest.fixture
def profile() -> Profile:
    return load("kubernetes", Settings.from_env({}))


def found(
    text: str,
    profile: Profile,
    attached: dict[str, str] | None = None,
    dataset: dict[str, Any] | None = None,
) -> list[str]:
    """What validate or bind would say of a pipeline, a line each."""
    doc = parse_yaml(text, "cars.yaml")
    try:
        pipeline = pipelines.from_document(doc, "cars", attached=attached)
    except SpecError as exc:
        return [str(p) for p in exc.problems]
    faults = TOOLKIT.preflight(pipeline, profile, dataset)
    return [str(doc.told(fault)) for fault in faults]


def pipeline(network: str = "detectnet_v2", more: str = "", **blocks: str) -> str:
    text = PIPELINE.replace("NETWORK", network) + more
    for name, block in blocks.items():
        assert f"\n{name}:" not in text
        text += f"{name}: {block}\n"
    return text if "\nresources:" in text else text + GPU


def own(network: str, profile: Profile, *edits: tuple[str, str], stage: str = "train") -> str:
    """A spec of the user's own: what Refit would make, as a file, with some text changed."""
    made = pipelines.from_document(
        parse_yaml(pipeline(network, "  prune: true\n" if prunes(network) else ""), "x"), "x"
    )
    spec = next(s for name, _, s in TaoChain(made, profile).specs() if name == stage)
    text = spec.tree.text()
    for old, new in edits:
        assert text.count(old) >= 1, f"{old!r} is not in\n{text}"
        text = text.replace(old, new, 1)
    return text


def prunes(network: str) -> bool:
    return "prune" in networks.load(network).stages


def line_of(text: str, word: str) -> int:
    return next(i for i, line in enumerate(text.splitlines(), 1) if word in line)


@pytest.mark.parametrize("network", networks.known())
def test_a_good_pipeline_has_no_faults(network: str, profile: Profile) -> None:
    more = "  prune: true\n" if prunes(network) else ""
    assert found(pipeline(network, more), profile, dataset=DATASET) == []


@pytest.mark.parametrize("network", networks.known())
def test_what_refit_makes_is_good_as_a_spec_of_ones_own(network: str, profile: Profile) -> None:
    text = own(network, profile)
    name = "my.txt" if networks.load(network).format == "prototxt" else "my.yaml"
    assert found(pipeline(network, f"    spec: {name}\n"), profile, {name: text}, DATASET) == []


@pytest.mark.parametrize("network", networks.known())
def test_a_short_training_is_validated_and_saved(network: str, profile: Profile) -> None:
    """The templates' intervals are longer than a trial of two epochs; an interval of the user's own is theirs."""
    more = "  prune: true\n" if prunes(network) else ""
    text = pipeline(network, more).replace("epochs: 20", "epochs: 2")
    assert found(text, profile, dataset=DATASET) == []
    told = found(text.replace("epochs: 2", "epochs: 2\n    evaluate_every: 5"), profile)
    if network != "yolo_v4":  # which evaluates where it saves
        assert any("every 5 epochs, and the training has 2" in t and t.startswith("cars.yaml:11:") for t in told), told


# (the fault, network, what is changed in the spec that Refit would make, the place, words of the message)
IN_SPEC = [
    ("misspelt key", "detectnet_v2", ("num_epochs:", "num_epoch:"), "num_epoch:", "did you mean 'num_epochs'"),
    ("misspelt key", "rtdetr", ("num_queries:", "num_query:"), "num_query:", "did you mean 'num_queries'"),
    ("wrong type", "detectnet_v2", ("checkpoint_interval: 10", 'checkpoint_interval: "ten"'), "ten", "ten"),
    ("wrong type", "rtdetr", ("num_queries: 300", "num_queries: many"), "many", "many"),
    ("out of range", "detectnet_v2", ("checkpoint_interval: 10", "checkpoint_interval: -1"), "-1", "-1"),
    ("bad choice", "detectnet_v2", ("type: L1", "type: L3"), "L3", "L1"),
    ("bad choice", "rtdetr", ("optimizer: AdamW", "optimizer: Adam"), "optimizer: Adam", "AdamW"),
    ("classes differ", "detectnet_v2", ('name: "person"', 'name: "human"'), "cost_function_config", "person"),
    ("class mapped to nothing", "ssd", ('value: "person"', 'value: ""'), "", "mapped to nothing"),
    ("class without mapping", "ssd", ('key: "person"', 'key: "people"'), "", "'person'"),
    ("size against the stride", "detectnet_v2", ("image_width: 960", "image_width: 961"), "961", "use 960"),
    ("size against the stride", "yolo_v4", ("output_height: 384", "output_height: 400"), "400", "multiple of 32"),
    ("size against the stride", "rtdetr", ("- 512", "- 500"), "- 500", "use 512"),
    ("bad choice", "faster_rcnn", ("resnet:18", "resnet:19"), "resnet:19", "resnet:34"),
    ("channels", "faster_rcnn", ("image_type: RGB", "image_type: GRAY_SCALE"), "GRAY_SCALE",
     "GRAY_SCALE images have 1 channel, and augmentation_config.preprocessing.output_image_channel is 3"),
    ("channels", "faster_rcnn", ('key: "g"', 'key: "x"'), "", "has no mean of g"),
    ("validation that never comes", "detectnet_v2",
     ("validation_period_during_training: 10", "validation_period_during_training: 50"), ": 50", "never come"),
    ("QAT half on", "detectnet_v2", ("enable_qat: false", "enable_qat: true"), "enable_qat", "stages.train.qat"),
]  # fmt: skip


@pytest.mark.parametrize(("fault", "network", "edit", "place", "message"), IN_SPEC, ids=lambda v: str(v)[:40])
def test_a_fault_in_a_spec_of_ones_own(
    fault: str, network: str, edit: tuple[str, str], place: str, message: str, profile: Profile
) -> None:
    name = "my.txt" if networks.load(network).format == "prototxt" else "my.yaml"
    text = own(network, profile, edit)
    told = found(pipeline(network, f"    spec: {name}\n"), profile, {name: text}, DATASET)
    assert told, f"{fault}: nothing was found"
    assert any(message in line and line.startswith(f"{name}:") for line in told), told
    if place in text and place.strip() and ":" in place:
        assert any(line.startswith(f"{name}:{line_of(text, place)}:") for line in told), told


def test_grayscale_in_the_pipeline_is_grayscale_in_a_spec_of_ones_own(profile: Profile) -> None:
    given = pipeline("faster_rcnn", "    spec: my.txt\n").replace("name: faster", "channels: 1\n  name: faster")
    assert found(given, profile, {"my.txt": own("faster_rcnn", profile)}) == []


def test_a_size_in_the_pipeline_that_the_stride_does_not_divide(profile: Profile) -> None:
    text = pipeline().replace("  name: detectnet_v2", "  name: detectnet_v2\n  input_width: 961")
    assert found(text, profile) == [
        "cars.yaml:8: network.input_width: 961 is no multiple of 16, which detectnet_v2 needs; use 960"
    ]


def test_an_encryption_key_in_plain_text(profile: Profile) -> None:
    text = own("rtdetr", profile).replace("results_dir:", "encryption_key: tlt_encode\nresults_dir:", 1)
    told = found(pipeline("rtdetr", "    spec: my.yaml\n"), profile, {"my.yaml": text})
    assert told[0].startswith("my.yaml:1: encryption_key: an encryption key stands here in plain text")
    assert "tlt_encode" not in "".join(told)


def test_num_classes_against_the_ids(profile: Profile) -> None:
    told = found(pipeline("rtdetr", "    set: {dataset.num_classes: 80}\n"), profile)
    assert any("is 80; 2 classes with ids from 0 make 2" in line and line.startswith("cars.yaml:12:") for line in told)
    told = found(pipeline("dino", "    set: {dataset.num_classes: 2}\n"), profile)
    assert any("2 classes with ids from 1 make 3" in line for line in told)


def test_sizes_and_boxes_that_differ_between_train_and_retrain(profile: Profile) -> None:
    """The old pipeline counted boxes from 5x5 before pruning and from 20x10 after it: nothing could be compared."""
    first = own("detectnet_v2", profile)
    second = own(
        "detectnet_v2",
        profile,
        ("minimum_height: 0", "minimum_height: 20"),
        ("output_image_width: 960", "output_image_width: 640"),
        ('image_extension: "jpg"', 'image_extension: "png"'),
        stage="retrain",
    )
    more = "    spec: a.txt\n  prune: true\n  retrain: {spec: b.txt}\n"
    told = found(pipeline(more=more), profile, {"a.txt": first, "b.txt": second})
    boxes = [t for t in told if "boxes that count" in t]
    place = "evaluation_config.evaluation_box_config[car].value.minimum_height"
    assert boxes == [
        f"b.txt:{line_of(second, 'minimum_height: 20')}: {place}: the boxes that count in the evaluation: 20 here, and "
        f"0 in a.txt:{line_of(first, 'minimum_height: 0')}: mAP before and after could not be compared; make them equal"
    ]
    assert any("width: 640 here, and 960 in a.txt" in t and t.startswith("b.txt:") for t in told)


def test_an_extension_that_the_data_does_not_have(profile: Profile) -> None:
    data = {**DATASET, "images": {**DATASET["images"], "extensions": {".png": 100, ".jpg": 20}}}
    told = found(pipeline(), profile, dataset=data)
    assert len(told) == 1
    assert told[0].startswith("cars.yaml:6: network: is 'jpg', and the data set has 100 .png images")
    given = pipeline().replace("name: detectnet_v2", "name: detectnet_v2\n  image_extension: png")
    told = found(given, profile, dataset=data)
    assert len(told) == 1
    assert told[0].startswith("cars.yaml:8: network.image_extension: is 'png', and the data set has 20 .jpg images")
    converted = pipeline().replace("stages:\n", "stages:\n  prepare: {convert: jpg}\n")
    assert found(converted, profile, dataset=data) == []


def test_batches_larger_than_the_data(profile: Profile) -> None:
    text = pipeline(resources="{default: {gpus: 2}}").replace("batch_size: 4", "batch_size: 64")
    told = found(text, profile, dataset=DATASET)
    assert told == [
        "cars.yaml:11: stages.train.batch_size: 64 x 2 GPUs is more than the 100 images of the train split; use less "
        "(in the spec of train: training_config.batch_size_per_gpu)"
    ]
    few = {**DATASET, "splits": {"train": 40, "val": 20}}
    assert any(
        "10 batches of 8 are 80 images, and the train split has 40" in t for t in found(pipeline(), profile, None, few)
    )


def test_a_retraining_that_does_not_begin_with_the_pruned_model(profile: Profile) -> None:
    more = "  prune: true\n  retrain: {set: {model_config.pretrained_model_file: /workspace/cars/old.hdf5}}\n"
    told = found(pipeline(more=more), profile)
    assert any("names '/workspace/cars/old.hdf5': the retraining must begin with the pruned model" in t for t in told)


def test_qat_is_for_all_or_none(profile: Profile) -> None:
    assert any(
        "needs a model that was trained for it" in t
        for t in found(pipeline(more="  build_engine: {int8: qat}\n"), profile)
    )
    told = found(pipeline("rtdetr", "    qat: true\n"), profile)
    assert any("rtdetr has no quantization-aware training" in t for t in told)


def test_the_other_format(profile: Profile) -> None:
    prototxt, yaml = own("detectnet_v2", profile), own("rtdetr", profile)
    told = found(pipeline("rtdetr", "    spec: my.yaml\n"), profile, {"my.yaml": prototxt})
    assert any("protobuf text, and YAML is expected" in t for t in told)
    told = found(pipeline("detectnet_v2", "    spec: my.txt\n"), profile, {"my.txt": yaml})
    assert any(t.startswith("my.txt:") and "is this YAML?" in t for t in told)


def test_an_output_that_is_there(profile: Profile, tmp_path: Any) -> None:
    there = tmp_path / "model.onnx"
    there.write_text("x")
    told = found(pipeline("rtdetr", f"  export: {{set: {{export.onnx_file: {there}}}}}\n"), profile)
    assert any("is there already" in t for t in told)


def test_the_name_of_an_onnx_node_is_no_place(profile: Profile) -> None:
    layers = "gen_trt_engine.tensorrt.layers_precision: [/model/decoder/MatMul:fp16]"
    assert found(pipeline("rtdetr", f"  build_engine: {{set: {{{layers}}}}}\n"), profile) == []


def test_a_place_of_another_machine(profile: Profile) -> None:
    told = found(pipeline("rtdetr", "    set: {model.pretrained_backbone_path: /home/me/weights.pth}\n"), profile)
    assert any("/home/me/weights.pth is no place that a stage sees; put it below /workspace/cars" in t for t in told)


def test_a_network_and_a_stage_that_do_not_go_together(profile: Profile) -> None:
    told = found(pipeline("rtdetr", "  prune: true\n"), profile)
    assert any("rtdetr has no prune" in t and "Leave prune out" in t for t in told)
    told = found(pipeline("detectnet_v2", "  quantize: true\n"), profile)
    assert any("detectnet_v2 has no quantize" in t for t in told)
    told = found(pipeline("detectnet").replace("NETWORK", "detectnet"), profile)
    assert told == ["cars.yaml:7: network.name: there is no network 'detectnet'; did you mean 'detectnet_v2'?"]


def test_an_onnx_file_that_only_tensorrt_can_run_is_not_released(profile: Profile) -> None:
    told = found(pipeline("yolo_v4", "  build_engine: false\n"), profile)
    assert any("BatchedNMSDynamic_TRT" in t and "Triton needs an engine" in t for t in told)
    assert found(pipeline("yolo_v4", "  build_engine: false\n", release="false"), profile) == []
    assert found(pipeline("detectnet_v2", "  build_engine: false\n"), profile) == []


def test_own_specs_keep_what_refit_does_not_control(profile: Profile) -> None:
    text = own("detectnet_v2", profile, ("cov_radius_x: 0.4", "cov_radius_x: 0.7"))
    doc = parse_yaml(pipeline(more="    spec: my.txt\n"), "cars.yaml")
    made = pipelines.from_document(doc, "cars", attached={"my.txt": text})
    spec = next(s for name, _, s in TaoChain(made, profile).specs() if name == "train")
    assert spec.changed == (), "nothing that the pipeline says differs"
    assert "cov_radius_x: 0.7" in spec.tree.text()
    other = parse(text.replace("num_epochs: 20", "num_epochs: 99"), "prototxt", "my.txt").text()
    made = pipelines.from_document(doc, "cars", attached={"my.txt": other})
    spec = next(s for name, _, s in TaoChain(made, profile).specs() if name == "train")
    assert [c.partition(" ")[2] for c in spec.changed] == ["training_config.num_epochs: 99 -> 20"]


def test_the_plan_shows_what_is_changed_in_ones_own_spec(tmp_path: Any, profile: Profile, capsys: Any) -> None:
    from refit.cli import main

    text = own("detectnet_v2", profile, ("num_epochs: 20", "num_epochs: 99"))
    (tmp_path / "my.txt").write_text(text)
    file = tmp_path / "cars.yaml"
    file.write_text(pipeline(more="    spec: my.txt\n"))
    assert main(["plan", str(file)]) == 0
    shown = capsys.readouterr().out
    line = next(i for i, t in enumerate(text.splitlines(), 1) if "num_epochs" in t)
    assert f"changed in your spec: my.txt:{line}: training_config.num_epochs: 99 -> 20" in shown


# (network, the stages, where it is told, words of the message): what would have no effect.
WITHOUT_EFFECT = [
    ("ssd", "train: {class_weights: {car: 2}}", "stages.train.class_weights", "no such parameter"),
    ("rtdetr", "evaluate: {iou: 0.7}", "stages.evaluate.iou", "no such parameter"),
    ("faster_rcnn", "evaluate: {min_width: 8}", "stages.evaluate.min_width", "no such parameter"),
    ("detectnet_v2", "evaluate: {score_threshold: 0.3}", "stages.evaluate.score_threshold", "no such parameter"),
    ("detectnet_v2", "inference: {score_threshold: 0.3}", "stages.inference.score_threshold", "no such parameter"),
    ("efficientdet_tf2", "export: {opset: 13}", "stages.export.opset", "no such parameter"),
    ("efficientdet_tf2", "{train: {qat: true}, build_engine: {precision: fp16}}", "stages.train.qat", "quantization"),
    ("rtdetr", "dataset_convert: {shards: 4}", "stages.dataset_convert", "has no dataset_convert"),
    ("detectnet_v2", "prune: {set: {a: 1}}", "stages.prune.set", "reads no spec"),
    ("rtdetr", "{train: {epochs: 3}, distill: {teacher: a.pth}}", "stages.train", "say it there"),
    ("rtdetr", "{quantize: true, build_engine: {int8: ptq}}", "stages.build_engine.int8", "use qdq or auto"),
]


@pytest.mark.parametrize(("network", "stages", "key", "message"), WITHOUT_EFFECT, ids=lambda v: str(v)[:40])
def test_what_would_have_no_effect(network: str, stages: str, key: str, message: str, profile: Profile) -> None:
    block = stages if stages.startswith("{") else f"{{{stages}}}"
    text = pipeline(network).partition("stages:")[0] + f"stages: {block}\n{GPU}"
    told = found(text, profile)
    assert len(told) == 1, told
    assert f": {key}: " in told[0]
    assert message in told[0]


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        (
            "{default: {cpus: 4}}",
            ":13: resources.default.gpus: train would run without a GPU; set resources.default.gpus: 1",
        ),
        (
            "{default: {gpus: 1}, stages: {retrain: {cpus: 4}}}",
            ":13: resources.stages.retrain.gpus: retrain would run without a GPU; set resources.stages.retrain.gpus: 1",
        ),
        ("{default: {gpus: 0}, stages: {train: {gpus: 2}, retrain: {gpus: 2}}}", None),
    ],
)
def test_a_training_without_a_gpu(resources: str, said: str | None, profile: Profile) -> None:
    text = pipeline(more="  prune: true\n", resources=resources)
    assert found(text, profile) == ([f"cars.yaml{said}"] if said else [])


def test_a_pipeline_that_names_no_resources(profile: Profile) -> None:
    (said,) = found(pipeline().replace(GPU, ""), profile)
    assert said.endswith("resources.default.gpus: train would run without a GPU; set resources.default.gpus: 1")


def test_a_whole_model_where_a_network_begins_with_a_backbone(profile: Profile) -> None:
    text = pipeline().replace("name: detectnet_v2", "name: detectnet_v2\n  pretrained: {path: a.hdf5, weights: model}")
    assert found(text, profile) == [
        "cars.yaml:8: network.pretrained.weights: detectnet_v2 begins with a backbone's weights only; leave it out"
    ]


def test_a_gate_on_a_figure_that_no_evaluation_gives(profile: Profile) -> None:
    told = found(pipeline(gates="{quality: {metric: mAP}}"), profile)
    assert told == ["cars.yaml:12: gates.quality.metric: detectnet_v2 is evaluated by mAP50 only; use that"]
    assert found(pipeline("rtdetr", gates="{quality: {metric: mAP}}"), profile) == []
    assert found(pipeline(gates="{champion: {margin: 0.1}}"), profile) == []


@pytest.mark.parametrize("network", networks.known())
def test_the_rungs_of_a_ladder_are_looked_at_as_the_plain_engine_is(profile: Profile, network: str) -> None:
    assert found(pipeline(network, "  build_engine: {ladder: true}\n"), profile) == []
    odd = "  build_engine: {ladder: true, set: {gen_trt_engine.tensorrt.data_typ: x}}\n"
    if network in ("rtdetr", "efficientdet_tf2"):
        assert any(
            "gen_trt_engine.tensorrt.data_typ: unknown key" in line for line in found(pipeline(network, odd), profile)
        )


def test_a_ladder_that_begins_nowhere(profile: Profile) -> None:
    (told,) = found(pipeline(more="  build_engine: {ladder: true, precision: fp16}\n"), profile)
    assert told.endswith("the ladder begins with INT8, and precision is fp16; leave one of them out")
    (told,) = found(pipeline("rtdetr", "  quantize: true\n  build_engine: {ladder: true}\n"), profile)
    assert "a model with Q/DQ nodes (quantize) is INT8" in told


def test_a_fault_that_a_retraining_has_from_the_training_is_told_once_and_there(profile: Profile) -> None:
    text = pipeline(more="    class_weights: {bus: 2}\n    set: {training_config.foo: 1}\n  prune: true\n")
    assert [line.partition(": is no class")[0] for line in found(text, profile)] == [
        "cars.yaml:12: stages.train.class_weights.bus"
    ]
    told = found(text.replace("bus", "car"), profile)
    assert [line.partition(": unknown key")[0] for line in told] == [
        "cars.yaml:13: stages.train.set.training_config.foo"
    ]


def test_quantization_awareness_may_begin_with_the_retraining(profile: Profile) -> None:
    assert found(pipeline(more="  prune: true\n  retrain: {qat: true}\n"), profile) == []


def test_a_place_that_refit_replaces_or_leaves_out_is_not_told(profile: Profile) -> None:
    """An old experiment file is full of paths of the machine that it was written on."""
    text = own("efficientdet_tf2", profile).replace('"/', "")
    edits = (
        ("results_dir: '{out}'", "results_dir: /workspace/tao-experiments/old"),
        ("evaluate:\n", "evaluate:\n  checkpoint: /workspace/tao-experiments/old/model.tlt\n"),
    )
    for old, new in edits:
        assert old in text
        text = text.replace(old, new, 1)
    assert found(pipeline("efficientdet_tf2", "    spec: my.yaml\n"), profile, {"my.yaml": text}) == []


def test_an_encryption_key_in_a_prototxt(profile: Profile) -> None:
    text = own("faster_rcnn", profile) + 'enc_key: "nvidia_tlt"\n'
    told = found(pipeline("faster_rcnn", "    spec: my.txt\n"), profile, {"my.txt": text})
    assert any("an encryption key stands here in plain text" in line for line in told)
    assert "nvidia_tlt" not in "".join(told)


@pytest.mark.parametrize(
    ("network", "edit"),
    [("detectnet_v2", ("dbscan_eps: 0.15", "dbscan_eps: 0.3")), ("ssd", ("top_k: 200", "top_k: 100")),
     ("yolo_v4", ("confidence_threshold: 0.001", "confidence_threshold: 0.3")),
     ("faster_rcnn", ("object_confidence_thres: 0.0001", "object_confidence_thres: 0.3"))],
)  # fmt: skip
def test_models_of_one_run_are_judged_alike(network: str, edit: tuple[str, str], profile: Profile) -> None:
    first = own(network, profile)
    at = first.index("evaluation_config {") if network == "faster_rcnn" else 0
    second = first[:at] + first[at:].replace(*edit)
    assert second != first
    more = "    spec: a.txt\n  prune: true\n  retrain: {spec: b.txt}\n"
    told = found(pipeline(network, more), profile, {"a.txt": first, "b.txt": second})
    assert told
    assert all(line.startswith("b.txt:") and "what decides the evaluation" in line for line in told)


def test_a_command_may_have_a_spec_of_its_own(profile: Profile) -> None:
    text = own("rtdetr", profile, stage="export").replace("opset_version: 17", "opset_version: 16")
    doc = parse_yaml(pipeline("rtdetr", "  export: {spec: export.yaml}\n"), "cars.yaml")
    made = pipelines.from_document(doc, "cars", attached={"export.yaml": text})
    specs = {name: spec for name, _, spec in TaoChain(made, profile).specs()}
    assert {name for name, spec in specs.items() if spec.own} == {"export"}


def test_null_takes_a_field_out_of_a_prototxt(profile: Profile) -> None:
    doc = parse_yaml(pipeline(more="    set: {training_config.visualizer: null}\n"), "cars.yaml")
    chain = TaoChain(pipelines.from_document(doc, "cars"), profile)
    assert not next(spec for name, _, spec in chain.specs() if name == "train").tree.has("training_config.visualizer")


def test_a_path_of_set_that_is_none(profile: Profile) -> None:
    told = found(pipeline(more="    set: {'dataset_config.data_sources[9].x': 1}\n"), profile)
    assert told[0].startswith("cars.yaml:12: stages.train.set.dataset_config.data_sources[9].x: ")
    assert "there is no data_sources[9]" in told[0]


def test_outputs_that_never_see_an_object(profile: Profile) -> None:
    """A spec of another data set: its classes stay in the mapping."""
    text = own("ssd", profile).replace(
        "  target_class_mapping {",
        '  target_class_mapping {\n    key: "sheep"\n    value: "sheep"\n  }\n  target_class_mapping {',
        1,
    )
    told = found(pipeline("ssd", "    spec: my.txt\n"), profile, {"my.txt": text})
    assert len(told) == 1
    assert "no class of the data set is mapped to 'sheep'" in told[0]


def test_a_workspace_whose_path_bash_would_split(profile: Profile) -> None:
    assert isinstance(profile, KubernetesProfile)
    workspace = profile.volumes.workspace.model_copy(update={"mount_path": "/my data"})
    volumes = profile.volumes.model_copy(update={"workspace": workspace})
    told = found(pipeline(), profile.model_copy(update={"volumes": volumes}))
    assert any("mounted at '/my data/cars'" in line and "volumes.workspace.mount_path" in line for line in told)


def test_a_retraining_spec_of_ones_own_names_the_pruned_model_of_another_machine(profile: Profile) -> None:
    """As NVIDIA's do: Refit sets the place in the retraining, and no other command reads it."""
    text = own(
        "detectnet_v2", profile, ("{input:prune.model}", "/workspace/tao-experiments/pruned.hdf5"), stage="retrain"
    )
    more = "  prune: true\n  retrain: {spec: retrain.txt}\n"
    assert found(pipeline(more=more), profile, {"retrain.txt": text}) == []
    told = found(pipeline(more="    spec: train.txt\n"), profile, {"train.txt": text.replace("load_graph: true", "")})
    assert len(told) == 1
    assert "name it in network.pretrained" in told[0]


@pytest.mark.parametrize("where", ["spec", "set"])
@pytest.mark.parametrize("network", ["faster_rcnn", "ssd"])  # whose spec may hold a key, and whose may not
def test_a_key_in_plain_text_is_never_printed(
    network: str, where: str, tmp_path: Any, capsys: Any, profile: Profile
) -> None:
    from refit.cli import main

    key = 'enc_key: "my_own_key"\n'
    (tmp_path / "my.txt").write_text(own(network, profile) + (key if where == "spec" else ""))
    block = "    spec: my.txt\n" + ("    set: {enc_key: my_own_key}\n" if where == "set" else "")
    file = tmp_path / "cars.yaml"
    file.write_text(pipeline(network, block))
    commands = (["validate", str(file)], ["plan", "--specs", str(file)], ["pod", str(file), "train"])
    codes = [main(command) for command in commands]
    if where == "spec":  # in `set` it stands in the pipeline file itself, which bind's pod takes along
        codes.append(main(["pod", str(file), "bind"]))
    out, err = capsys.readouterr()
    assert codes == [2, 2, 0, *([2] if where == "spec" else [])]
    assert "an encryption key stands here in plain text" in out + err
    assert 'enc_key: "(a key)"' in out
    assert "my_own_key" not in out + err


@pytest.mark.parametrize(
    ("block", "key", "message"),
    [
        ("key_secret: nvidia_tlt", "network.key_secret", "names a secret of the cluster profile"),
        ("key_secret: 123456", "network.key_secret", "names a secret of the cluster profile"),
        ("key: nvidia_tlt", "network.key", "unknown key; use key_secret"),
        ("enc_key: nvidia_tlt", "network.enc_key", "unknown key; use key_secret"),
        ("pretrained: {ngc: 'a/b:1', api_key: nvidia_tlt}", "network.pretrained.api_key", "unknown key; use secret"),
        ("pretrained: {ngc: 'a/b:1', secret: nvidia_tlt}", "network.pretrained.secret", "names a secret of"),
        ("pretrained: resnet18", "network.pretrained", "must be a mapping"),
    ],
)
def test_a_key_where_its_name_is_wanted(block: str, key: str, message: str, profile: Profile) -> None:
    told = found(pipeline().replace("name: detectnet_v2", f"name: detectnet_v2\n  {block}"), profile)
    assert len(told) == 1, told
    assert told[0].startswith(f"cars.yaml:8: {key}: ")
    assert message in told[0]
    assert "nvidia_tlt" not in told[0]
    assert "123456" not in told[0]


def test_a_mapping_is_compared_entry_by_entry(profile: Profile) -> None:
    first = own("ssd", profile)
    van = '  target_class_mapping {\n    key: "van"\n    value: "car"\n  }\n'
    second = first.replace("  target_class_mapping {", f"{van}  target_class_mapping {{", 1)
    more = "    spec: a.txt\n  prune: true\n  retrain: {spec: b.txt}\n"
    attached = {"a.txt": first, "b.txt": second}
    assert found(pipeline("ssd", more), profile, attached) == [
        f"b.txt:{line_of(second, 'van') - 1}: dataset_config.target_class_mapping[van]: the mapping of classes: is "
        "here, and not in a.txt; make them equal"
    ]
    told = found(pipeline("ssd", more.replace("a.txt", "c.txt")), profile, {"c.txt": second, "b.txt": first})
    assert len(told) == 1
    assert f"[van] is in c.txt:{line_of(second, 'van')}, and not here; make them equal" in told[0]
    assert told[0].startswith(f"b.txt:{line_of(first, 'target_class_mapping')}: ")


SEEN = [
    ("/workspace/weights/resnet18.hdf5", False),
    ("/home/me/resnet18.hdf5", False),
    ("../weights/resnet18.hdf5", False),
    ("/workspace/cars/../bikes/resnet18.hdf5", False),
    ("/workspace/cars/weights/resnet18.hdf5", True),
    ("weights/resnet18.hdf5", True),
]


@pytest.mark.parametrize(("path", "seen"), SEEN)
def test_weights_and_teachers_lie_where_a_pod_sees_them(path: str, seen: bool, profile: Profile) -> None:
    weights = pipeline().replace("name: detectnet_v2", f"name: detectnet_v2\n  pretrained: {{path: {path}}}")
    teacher = pipeline("dino").replace("  train:", f"  distill:\n    teacher: {path}")
    told = f"{path} is no place that a stage sees; put it below /workspace/cars"
    assert found(weights, profile) == ([] if seen else [f"cars.yaml:8: network.pretrained.path: {told}"])
    assert [t.partition(" (in the")[0] for t in found(teacher, profile)] == (
        [] if seen else [f"cars.yaml:10: stages.distill.teacher: {told}"]
    )


def test_what_is_made_of_a_parameter_is_set_in_a_spec_of_ones_own(profile: Profile) -> None:
    text = own("rtdetr", profile)
    given = pipeline("rtdetr", "    spec: my.yaml\n  build_engine: {precision: fp16, workspace_gib: 3}\n").replace(
        "name: rtdetr", "name: rtdetr\n  backbone: resnet_34"
    )
    made = pipelines.from_document(parse_yaml(given, "cars.yaml"), "cars", attached={"my.yaml": text})
    spec = next(s for name, _, s in TaoChain(made, profile).specs() if name == "build_engine")
    assert spec.tree.value("gen_trt_engine.tensorrt.data_type") == "FP16"
    assert spec.tree.value("gen_trt_engine.tensorrt.workspace_size") == 3072
    assert spec.tree.value("model.backbone") == "resnet_34"


@pytest.mark.parametrize(("network", "width"), [("detectnet_v2", 960), ("faster_rcnn", 1248)])
def test_images_of_another_size_that_nothing_resizes(network: str, width: int, profile: Profile) -> None:
    text = own(network, profile, ("    enable_auto_resize: true\n", ""))
    block = "    spec: my.txt\n"
    told = found(pipeline(network, block), profile, {"my.txt": text}, DATASET)
    wide = [t for t in told if f"the width is {width}, and the images have 1920" in t]
    assert wide
    assert all(t.startswith("my.txt:") for t in told)
    advice = "augmentation_config.preprocessing.enable_auto_resize: true"
    assert f"stages.train.set: {{{advice}}}" in wide[0]
    advised = pipeline(network, f"{block}    set: {{{advice}}}\n")
    assert found(advised, profile, {"my.txt": text}, DATASET) == []
    height = {960: 544, 1248: 384}[width]
    resized = pipeline(network, f"{block}  prepare: {{resize: {{width: {width}, height: {height}}}}}\n")
    assert found(resized, profile, {"my.txt": text}, DATASET) == []


def test_copies_of_other_sizes_that_nothing_resizes(profile: Profile) -> None:
    text = own("detectnet_v2", profile, ("    enable_auto_resize: true\n", ""))
    block = "    spec: my.txt\n  albumentations: true\n"
    place = "augmentation_config.preprocessing.enable_auto_resize"
    same = {**DATASET, "images": {"extensions": {".jpg": 120}, "width": [960, 960], "height": [544, 544]}}
    (fault,) = {f.partition(": ")[2] for f in found(pipeline("detectnet_v2", block), profile, {"my.txt": text}, same)}
    assert fault.startswith(f"{place}: the copies of stages.albumentations may have other sizes")
    resized = pipeline("detectnet_v2", f"{block}  prepare: {{resize: {{width: 960, height: 544}}}}\n")
    assert found(resized, profile, {"my.txt": text}, same) == []


def test_what_another_command_reads_is_no_change_of_the_users_spec(profile: Profile) -> None:
    text = own("rtdetr", profile) + "inference: {color_map: {car: tan}}\n"
    made = pipelines.from_document(
        parse_yaml(pipeline("rtdetr", "    spec: my.yaml\n"), "cars.yaml"), "cars", attached={"my.yaml": text}
    )
    specs = {name: s for name, _, s in TaoChain(made, profile).specs()}
    assert not specs["train"].tree.has("inference")
    assert not [line for spec in specs.values() for line in spec.changed if "color_map" in line]


def test_a_class_that_only_other_labels_are_mapped_to(profile: Profile) -> None:
    """NVIDIA's samples map KITTI's pedestrian to person."""
    text = own("ssd", profile, ('key: "person"', 'key: "pedestrian"'))
    told = found(pipeline("ssd", "    spec: my.txt\n"), profile, {"my.txt": text})
    assert len(told) == 1
    assert told[0].endswith(
        "class 'person' of the data set is mapped to nothing: Refit's labels have the names of dataset.classes. "
        'Add target_class_mapping { key: "person" value: "person" }, or say pedestrian there'
    )


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("dataset_config.target_class_mapping[van]", "there is no target_class_mapping[van]; there is car, person; to"),
        ("dataset_config.target_class_mapping[van].value", "there is no target_class_mapping[van]; there is car, per"),
        (
            "dataset_config.target_class_mapping[car]",
            "is a block of key, value; set one of them",
        ),
    ],
)
def test_an_entry_of_a_map_that_set_does_not_reach(path: str, message: str, profile: Profile) -> None:
    told = found(pipeline(more=f"    set: {{'{path}': car}}\n"), profile)
    assert len(told) == 1
    assert told[0].startswith(f"cars.yaml:12: stages.train.set.{path}: {message}")


def test_a_size_in_a_spec_is_one_fault(profile: Profile) -> None:
    text = own("detectnet_v2", profile, ("image_width: 960", "image_width: 961"))
    assert found(pipeline(more="    spec: my.txt\n"), profile, {"my.txt": text}) == [
        f"my.txt:{line_of(text, 'image_width: 961')}: augmentation_config.preprocessing.output_image_width: 961 is no "
        "multiple of 16, which detectnet_v2 needs; use 960"
    ]


def test_no_epochs_are_one_fault(profile: Profile) -> None:
    text = own("detectnet_v2", profile, ("num_epochs: 20", "num_epochs: 0"))
    told = found(pipeline(more="    spec: my.txt\n").replace("    epochs: 20\n", ""), profile, {"my.txt": text})
    assert [line.partition(": must be above 0")[0] for line in told] == [
        f"my.txt:{line_of(text, 'num_epochs')}: training_config.num_epochs"
    ]


@pytest.mark.parametrize(
    ("network", "other"), [("ssd", "faster_rcnn"), ("detectnet_v2", "ssd"), ("rtdetr", "deformable_detr or dino")]
)
def test_a_spec_of_another_network(network: str, other: str, profile: Profile) -> None:
    name = "my.txt" if networks.load(network).format == "prototxt" else "my.yaml"
    told = found(
        pipeline(network, f"    spec: {name}\n"), profile, {name: own(other.rpartition(" ")[2], profile)}, DATASET
    )
    assert len(told) == 1, told
    assert told[0].startswith(f"{name}:")
    assert f"{network} has no such key: this is a spec of {other}; say so in network.name" in told[0]


def test_a_warm_up_fits_into_the_training(profile: Profile) -> None:
    """TAO's own check ends the training otherwise; the template's is shortened, a user's is told."""
    assert found(pipeline("efficientdet_tf2").replace("epochs: 20", "epochs: 2"), profile) == []
    told = found(pipeline("efficientdet_tf2", "    set: {train.lr_schedule.warmup_epoch: 50}\n"), profile)
    assert any("the rate rises for 50 epochs, and the training has 20" in t for t in told), told


def test_many_differences_are_counted_and_a_float_of_32_bits_is_none(profile: Profile) -> None:
    first = own("detectnet_v2", profile)
    same = first.replace("dbscan_eps: 0.15", "dbscan_eps: 0.15000000596")
    more = "    spec: a.txt\n  prune: true\n  retrain: {spec: b.txt}\n"
    assert same != first
    assert found(pipeline(more=more), profile, {"a.txt": first, "b.txt": same}) == []
    other = first.replace("minimum_height: 0", "minimum_height: 20").replace(
        "maximum_height: 9999", "maximum_height: 9"
    )
    other = other.replace("minimum_width: 0", "minimum_width: 20")
    told = found(pipeline(more=more), profile, {"a.txt": first, "b.txt": other})
    assert len(told) == 5
    assert any("2 more differences from a.txt; make them equal" in line for line in told)


@pytest.mark.parametrize(
    ("network", "path"),
    [
        ("rtdetr", "gen_trt_engine.trt_engine"),
        ("rtdetr", "results_dir"),
        ("efficientdet_tf2", "export.onnx_file"),
        ("faster_rcnn", "inference_config.detection_image_output_dir"),
    ],
)
def test_an_output_where_refit_does_not_look_for_it(network: str, path: str, profile: Profile) -> None:
    told = found(pipeline(network, f"    set: {{{path}: /workspace/cars/yard}}\n"), profile)
    assert told
    for line in told:
        assert line.startswith(f"cars.yaml:12: stages.train.set.{path}: /workspace/cars/yard is an output; Refit looks")


def precise(network: str, said: str, profile: Profile) -> str:
    """A spec of one's own with that precision of the engine."""
    text = own(network, profile, stage="build_engine")
    return re.sub(r"data_type: \S+", f"data_type: {said}", text)


@pytest.mark.parametrize("network", ["rtdetr", "efficientdet_tf2"])
def test_the_engines_precision_is_said_once(network: str, profile: Profile) -> None:
    spelt = str.lower if network == "efficientdet_tf2" else str.upper
    half, whole = spelt("fp16"), spelt("fp32")
    text = precise(network, half, profile)
    block = "  build_engine: {spec: my.yaml}\n"
    place = f"my.yaml:{line_of(text, 'data_type')}: gen_trt_engine.tensorrt.data_type: "
    assert found(pipeline(network, block), profile, {"my.yaml": text}) == [
        f"{place}is {half} here, and the pipeline says nothing, which is int8; say which: stages.build_engine.precision"
    ]
    for named in ("fp16", "int8"):  # what the pipeline says wins, as all that it names
        given = pipeline(network, block.replace("my.yaml", f"my.yaml, precision: {named}"))
        assert found(given, profile, {"my.yaml": text}) == []
    set_ = pipeline(network, f"  build_engine: {{set: {{gen_trt_engine.tensorrt.data_type: {whole}}}}}\n")
    (told,) = found(set_, profile)
    assert "is FP32, and the engine is to be int8 (stages.build_engine.precision); leave it to that" in told
    without = re.sub(r".*data_type: .*\n", "", text)
    doc = parse_yaml(pipeline(network, block), "cars.yaml")
    made = pipelines.from_document(doc, "cars", attached={"my.yaml": without})
    spec = next(s for name, _, s in TaoChain(made, profile).specs() if name == "build_engine")
    assert str(spec.tree.value("gen_trt_engine.tensorrt.data_type")).lower() == "int8"


def test_set_that_replaces_a_block_is_told_what_else_to_write(profile: Profile) -> None:
    told = found(pipeline(more="    set: {training_config: {num_epochs: 3}}\n"), profile)
    hint = "set replaces the whole of training_config: to change one value of it, training_config.num_epochs: 3"
    assert told
    assert all(hint in line for line in told)


def test_faster_rcnn_takes_sides_that_its_stride_does_not_divide(profile: Profile) -> None:
    """As NVIDIA's default_spec_voc0712.txt has them."""
    sized = pipeline("faster_rcnn").replace("faster_rcnn\n", "faster_rcnn\n  input_width: 1000\n  input_height: HIGH\n")
    assert found(sized.replace("HIGH", "600"), profile) == []
    assert found(sized.replace("HIGH", "96"), profile) == [
        "cars.yaml:9: network.input_height: 96 is too short, faster_rcnn needs at least 160"
    ]


NEAR = [
    ("network: {name: FasterRCNN}", "network.name: there is no network 'FasterRCNN'; did you mean 'faster_rcnn'?"),
    ("network: {name: RT-DETR}", "network.name: there is no network 'RT-DETR'; did you mean 'rtdetr'?"),
    (
        "network: {name: rtdetr, release: 7.1}",
        'network.release: must be a release of three numbers, in quotes: "7.1.0"',
    ),
    ("network: {name: rtdetr, images: {pyt: 5.0.0-tf1.15.5}}", "is TAO's image of kind tf1"),
    ("network: {name: rtdetr}\nstages: {prune: true}", "stages.prune: rtdetr has no prune"),
    ("network: {name: ssd}\nstages: {retrain: {epochs: 3}}", "add stages.prune, or take retrain out"),
    ("network: {name: ssd}\nstages: {train: {lr: 0.1}}", "stages.train.lr: unknown key; use learning_rate"),
    ("network: {name: ssd}\nstages: {train: {num_gpus: 2}}", "unknown key; use resources.stages.train.gpus"),
    ("network: {name: ssd}\nstages: {build_engine: {int8: qdq}}", "ssd has no way 'qdq' to INT8; it has ptq"),
]


@pytest.mark.parametrize(("blocks", "message"), NEAR, ids=lambda v: str(v)[:40])
def test_what_people_write_in_their_first_file_is_one_fault_that_says_what_to_write(
    blocks: str, message: str, profile: Profile
) -> None:
    told = found(f"dataset: {{source: inbox/cars, classes: [car]}}\ntoolkit: tao\n{blocks}\n{GPU}", profile)
    assert len(told) == 1, told
    assert message in told[0]


def doubted(text: str, profile: Profile, attached: dict[str, str] | None = None) -> list[str]:
    doc = parse_yaml(text, "cars.yaml")
    made = pipelines.from_document(doc, "cars", attached=attached)
    return [str(doc.told(doubt)) for doubt in TOOLKIT.doubts(made, profile)]


@pytest.mark.parametrize("network", networks.known())
def test_of_refits_own_specs_nothing_is_doubted(network: str, profile: Profile) -> None:
    assert doubted(pipeline(network), profile) == []


def test_an_engine_that_is_judged_by_other_rules_than_its_model(profile: Profile) -> None:
    """The deploy image's evaluation of DetectNet_v2 reads none of these places."""
    text = own("detectnet_v2", profile, ("average_precision_mode: SAMPLE", "average_precision_mode: INTEGRATE"))
    told = doubted(pipeline(more="    spec: a.txt\n  evaluate: {iou: 0.7}\n"), profile, {"a.txt": text})
    place = f"a.txt:{line_of(text, 'INTEGRATE')}: evaluation_config.average_precision_mode: "
    what = "is INTEGRATE, and evaluate_quantized takes SAMPLE whatever it is: gate_quantized would compare unlike"
    assert any(line.startswith(place + what) for line in told), told
    assert any("stages.evaluate.iou: is 0.7, and evaluate_quantized takes 0.5" in line for line in told), told
    assert doubted(pipeline(more="    spec: a.txt\n  build_engine: false\n"), profile, {"a.txt": text}) == []


def test_dssd_and_tiny_yolo_are_specs_of_ones_own(profile: Profile) -> None:
    """NVIDIA's setup.py: dssd and yolo_v4_tiny are other names of the programs ssd and yolo_v4."""
    dssd = own("ssd", profile, ("ssd_config {", "dssd_config {\n  pred_num_channels: 512"))
    assert found(pipeline("ssd", "    spec: a.txt\n  prune: true\n"), profile, {"a.txt": dssd}, DATASET) == []
    tiny = own("yolo_v4", profile, ('arch: "cspdarknet"', 'arch: "cspdarknet_tiny"'))
    tiny = re.sub(r".*(small_anchor_shape|nlayers): .*\n", "", tiny)
    assert found(pipeline("yolo_v4", "    spec: a.txt\n  prune: true\n"), profile, {"a.txt": tiny}, DATASET) == []
