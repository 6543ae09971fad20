"""Specs against NVIDIA's own schema: good ones pass, and each class of fault is told with its line and what to do."""

from __future__ import annotations

import sys

import pytest

from refit.tao.schema import check
from refit.tao.tree import Format, Tree, parse
from tests.tao.specs import GOOD

TF1 = ("detectnet_v2", "faster_rcnn", "ssd", "yolo_v4")


def _tree(network: str, text: str) -> Tree:
    form: Format = "prototxt" if network in TF1 else "yaml"
    return parse(text, form, "spec")


def _faults(network: str, stage: str, old: str, new: str, release: str = "") -> list[str]:
    """What is said about the good spec with one text replaced."""
    text = GOOD[network, stage]
    assert text.count(old) == 1, f"{old!r} must be in the spec once"
    return [str(p) for p in check(network, stage, _tree(network, text.replace(old, new)), release)]


@pytest.mark.parametrize(("network", "stage"), GOOD)
def test_a_good_spec_passes(network: str, stage: str) -> None:
    assert check(network, stage, _tree(network, GOOD[network, stage])) == []


UNKNOWN = [
    ("detectnet_v2", "train", "num_epochs: 80", "num_epoch: 80",
     "spec:31: training_config.num_epoch: unknown key; did you mean 'num_epochs'?"),
    ("detectnet_v2", "train", "  validation_fold: 0", "  num_shards: 10",
     "spec:10: dataset_config.num_shards: unknown key; it is a key of dataset_export_config.coco_config and"),
    ("detectnet_v2", "inference", "batch_size: 8", "batch_siz: 8",
     "spec:5: inferencer_config.batch_siz: unknown key; did you mean 'batch_size'?"),
    ("detectnet_v2", "dataset_convert", "val_split", "validation_split",
     "spec:7: kitti_config.validation_split: unknown key; did you mean 'val_split'?"),
    ("faster_rcnn", "retrain", "enable_qat", "enable_QAT",
     "spec:15: training_config.enable_QAT: unknown key; did you mean 'enable_qat'?"),
    ("ssd", "train", "nlayers", "num_layers", "spec:1: ssd_config.num_layers: unknown key; did you mean 'nlayers'?"),
    ("yolo_v4", "retrain", "yolov4_config", "yolov3_config", "spec:1: yolov3_config: unknown key; did you mean"),
    ("efficientdet_tf2", "train", "num_epochs", "epochs",
     "spec:9: train.epochs: unknown key; did you mean 'num_epochs'?"),
    ("rtdetr", "train", "lr_steps", "lr_step", "spec:18: train.optim.lr_step: unknown key; did you mean 'lr_steps'?"),
    ("rtdetr", "build_engine", "    max_batch_size: 8\n", "    onnx_file: a\n",
     "spec:6: gen_trt_engine.tensorrt.onnx_file: unknown key; it is a key of export and gen_trt_engine"),
    ("rtdetr", "quantize", "weights: {dtype", "weights: {dtyp",
     "spec:7: quantize.layers[0].weights.dtyp: unknown key; did you mean 'dtype'?"),
    ("dino", "train", "    scales: [480, 512]", "    sizes: [480, 512]",
     "spec:12: dataset.augmentation.sizes: unknown key"),
    ("deformable_detr", "train", "backbone:", "backbon:",
     "spec:14: model.backbon: unknown key; did you mean 'backbone'?"),
    ("augmentation", "augment", "angle", "angles",
     "spec:2: spatial_aug.rotation.angles: unknown key; did you mean 'angle'?"),
]  # fmt: skip
WRONG = [
    ("detectnet_v2", "train", "num_layers: 18", 'num_layers: "18"',
     "spec:18: model_config.num_layers: must be a whole number, not '18'"),
    ("detectnet_v2", "train", "num_epochs: 80", "num_epochs: 80.0",
     "spec:31: training_config.num_epochs: must be a whole number, not 80.0"),
    ("detectnet_v2", "train", 'arch: "resnet"', "arch: resnet",
     "spec:17: model_config.arch: must be text, in quotes, not resnet"),
    ("detectnet_v2", "train", "enable_qat: false", "enable_qat: no",
     "spec:32: training_config.enable_qat: must be true or false, not no"),
    ("detectnet_v2", "train", "minimum_height: 20", "minimum_height: tall",
     "spec:26: evaluation_config.evaluation_box_config[car].value.minimum_height: must be a whole number, not tall"),
    ("detectnet_v2", "train", "value: 0.7", 'value: "0.7"',
     "spec:25: evaluation_config.minimum_detection_ground_truth_overlap[car].value: must be a number, not '0.7'"),
    ("detectnet_v2", "train", "regularizer { type: L1 weight: 3e-09 }", "regularizer: L1",
     "spec:36: training_config.regularizer: must be a block of keys (type, weight), not 'L1'"),
    ("detectnet_v2", "train", "num_epochs: 80", "num_epochs: [80, 90]",
     "spec:31: training_config.num_epochs: must be a whole number, not a list"),
    ("detectnet_v2", "train", 'image_extension: "jpg"', 'image_extension { a: "jpg" }',
     "spec:7: dataset_config.image_extension: must be text, not a block"),
    ("detectnet_v2", "train", 'target_class_mapping { key: "van" value: "car" }', 'target_class_mapping: "van"',
     "spec:9: dataset_config.target_class_mapping: each entry is a block: { key: ... value: ... }"),
    ("detectnet_v2", "train", 'key: "van" value', "value",
     "spec:9: dataset_config.target_class_mapping[1]: the entry has no key"),
    ("faster_rcnn", "retrain", "scale: [64.0, 128.0]", "scale: [64.0, big]",
     "spec:10: model_config.anchor_box_config.scale[1]: must be a number, not big"),
    ("efficientdet_tf2", "train", "num_epochs: 20", "num_epochs: 2.5",
     "spec:9: train.num_epochs: must be a whole number, not 2.5"),
    ("efficientdet_tf2", "train", "train_tfrecords: [/data/train-*]", "train_tfrecords: /data/train-*",
     "spec:3: dataset.train_tfrecords: must be a list, not '/data/train-*'"),
    ("rtdetr", "train", "lr: 1e-4", "lr: fast", "spec:18: train.optim.lr: must be a number, not 'fast'"),
    ("rtdetr", "train", "optim: {lr: 1e-4, lr_steps: [10]}", "optim: AdamW",
     "spec:18: train.optim: must be a block of keys (optimizer, monitor_name, lr, lr_backbone, ...), not 'AdamW'"),
    ("rtdetr", "train", "num_classes: 2", "num_classes:",
     "spec:9: dataset.num_classes: has no value; give one, or leave the key out"),
    ("rtdetr", "train", "image_dir: /data/val\n    json_file: /data/val.json", "- /data/val",
     "spec:6: dataset.val_data_sources: must be a mapping of keys to values, not a list"),
    ("rtdetr", "train", "multi_scales: [480, 512]", "multi_scales: [[480, x], [640, 512]]",
     "spec:12: dataset.augmentation.multi_scales[0][1]: must be a whole number, not 'x'"),
    ("dino", "train", "    - image_dir: /data/val\n      json_file: /data/val.json", "    image_dir: /data/val",
     "spec:6: dataset.val_data_sources: must be a list, not a block"),
    ("rtdetr", "quantize", "weights: {dtype: int8}", "weights: int8",
     "spec:7: quantize.layers[0].weights: must be a block of keys"),
]  # fmt: skip
OUTSIDE = [
    ("detectnet_v2", "train", "num_epochs: 80", "num_epochs: -1",
     "spec:31: training_config.num_epochs: must be between 0 and 4294967295, it is -1"),
    ("detectnet_v2", "train", "scale: 35.0", "scale: 1e39",
     "spec:21: model_config.objective_set.bbox.scale: must be between"),
    ("efficientdet_tf2", "train", "batch_size: 8", "batch_size: 0",
     "spec:10: train.batch_size: must be at least 1, it is 0"),
    ("efficientdet_tf2", "prune", "granularity: 8", "granularity: 4",
     "spec:1: prune.granularity: must be at least 8, it is 4"),
    ("rtdetr", "train", "lr: 1e-4", "lr: 4", "spec:18: train.optim.lr: must be between 0 and 1, it is 4"),
    ("rtdetr", "train", "lr: 1e-4", "lr: .inf", "spec:18: train.optim.lr: must be between 0 and 1, it is inf"),
    ("rtdetr", "train", "lr: 1e-4", f"lr: {10**400}", "spec:18: train.optim.lr: must be a number, not 1000"),
    ("detectnet_v2", "train", "num_layers: 18", f"num_layers: {10**400}",
     "spec:18: model_config.num_layers: must be between"),
    ("rtdetr", "build_engine", "max_batch_size: 8", "max_batch_size: 0",
     "spec:6: gen_trt_engine.tensorrt.max_batch_size: must be at least 1, it is 0"),
    ("deformable_detr", "train", "2e-4", "2e-1", "spec:18: train.optim.lr: must be between 0 and 0.01, it is 0.2"),
]  # fmt: skip
CHOICES = [
    ("detectnet_v2", "train", "INTEGRATE", "INTEGRAT",
     "spec:27: evaluation_config.average_precision_mode: must be one of SAMPLE, INTEGRATE, not INTEGRAT; did you mean"),
    ("detectnet_v2", "train", "type: L1", 'type: "L1"',
     "spec:36: training_config.regularizer.type: must be one of NO_REG, L1, L2, without quotes, not 'L1'"),
    ("efficientdet_tf2", "train", "name: cosine", "name: cosin",
     "spec:13: train.lr_schedule.name: 'cosin' is not a choice; use cosine, soft_anneal; did you mean 'cosine'?"),
    ("rtdetr", "train", "resnet_50", "resnet_51", "spec:14: model.backbone: 'resnet_51' is not a choice; use "),
    ("rtdetr", "train", "precision: fp32", "precision: int8",
     "spec:17: train.precision: 'int8' is not a choice; use bf16, fp32, fp16"),
    ("rtdetr", "build_engine", "data_type: int8", "data_type: int4",
     "spec:5: gen_trt_engine.tensorrt.data_type: 'int4' is not a choice"),
    ("rtdetr", "quantize", "layers:", "device: gpu\n  layers:", "spec:5: quantize.device: 'gpu' does not match"),
]  # fmt: skip
TWICE = [
    ("detectnet_v2", "train", "num_epochs: 80", "num_epochs: 80\n  num_epochs: 90",
     "spec:32: training_config.num_epochs: given on line 31 too, and not the same; TAO takes the last one"),
    ("detectnet_v2", "train", 'key: "van" value: "car"', 'key: "car" value: "van"',
     "spec:9: dataset_config.target_class_mapping[car]: given on line 8 too, and not the same"),
    ("detectnet_v2", "train", "validation_fold: 0",
     'validation_fold: 0\n  validation_data_source { tfrecords_path: "a" }',
     "spec:11: dataset_config.validation_data_source: only one of validation_fold and validation_data_source"),
    ("ssd", "train", "nlayers: 18", "nlayers: 18 nlayers: 34", "spec:1: ssd_config.nlayers: given on line 1 too"),
    ("yolo_v4", "retrain", "num_epochs: 80", 'num_epochs: 80 resume_model_path: "a"',
     "spec:5: training_config.pruned_model_path: only one of resume_model_path and pruned_model_path may be given"),
]  # fmt: skip
GAPS = [
    ("rtdetr", "evaluate_trained", "checkpoint: /in/model.pth", "num_gpus: 1",
     "spec:19: evaluate.checkpoint: must be given; the schema has no default for it"),
    ("rtdetr", "export", "onnx_file: /out/model.onnx, ", "",
     "spec:1: export.onnx_file: must be given; the schema has no default for it"),
    ("rtdetr", "build_engine", "/in/model.onnx", "???", "spec:2: gen_trt_engine.onnx_file: must be given"),
    ("rtdetr", "build_engine", "cal_cache_file: /out/cal.bin, ", "",
     "spec:7: gen_trt_engine.tensorrt.calibration.cal_cache_file: must be given"),
    ("rtdetr", "train", "json_file: /data/train.json", 'json_file: "???"',
     "spec:5: dataset.train_data_sources[0].json_file: is ???; give a value, or leave the key out"),
    ("rtdetr", "distill", "  pretrained_teacher_model_path: /in/teacher.pth\n", "",
     "spec:1: distill.pretrained_teacher_model_path: must be given"),
    ("augmentation", "augment", ", output_dataset: /out", "", "spec:1: data.output_dataset: must be given"),
]  # fmt: skip
ASKED = [  # by the training images' own check
    ("detectnet_v2", "train", "num_epochs: 80", "num_epochs: 0",
     "spec:31: training_config.num_epochs: must be above 0, it is 0"),
    ("detectnet_v2", "train", "  num_epochs: 80\n", "",
     "spec:29: training_config.num_epochs: must be above 0, and counts as 0 where it is left out"),
    ("detectnet_v2", "train", "output_image_width: 960", "output_image_width: 950",
     "spec:13: augmentation_config.preprocessing.output_image_width: must be a multiple of 16 above 0, it is 950"),
    ("detectnet_v2", "train", "dbscan_eps: 0.15", "dbscan_eps: 1.5",
     "spec:49: postprocessing_config.target_class_config[car].value.clustering_config.dbscan_eps: must be"),
    ("detectnet_v2", "train", 'arch: "resnet"', 'arch: "resnet18"',
     "spec:17: model_config.arch: must be one of resnet, vgg,"),
    ("detectnet_v2", "train", "  cost_scaling { initial_exponent: 20.0 increment: 0.005 decrement: 1.0 }\n", "",
     "spec:29: training_config.cost_scaling: must be given; the training image asks for it"),
    ("detectnet_v2", "inference", "image_channels: 3", "image_channels: 4",
     "spec:4: inferencer_config.image_channels: must be one of 1, 3, it is 4"),
    ("faster_rcnn", "retrain", "rpn_stride: 16", "rpn_stride: 32",
     "spec:11: model_config.rpn_stride: must be 16, it is 32"),
    ("ssd", "train", "soft_start: 0.15", "soft_start: 1.5",
     "spec:5: training_config.learning_rate.soft_start_annealing_schedule.soft_start: must be above 0 and below 1"),
    ("yolo_v4", "retrain", "output_width: 1248", "output_width: 1240",
     "spec:9: augmentation_config.output_width: must be a multiple of 32 above 0, it is 1240"),
]  # fmt: skip
REFERENCES = [
    ("efficientdet_tf2", "train", "${train.checkpoint_interval}", "${train.chekpoint_interval}",
     "spec:12: train.validation_interval: Interpolation key 'train.chekpoint_interval' not found; write the full path"),
    ("efficientdet_tf2", "train", "${train.checkpoint_interval}", '"${train.checkpoint_interval"',
     "spec:12: train.validation_interval: "),
]  # fmt: skip


@pytest.mark.parametrize(
    ("network", "stage", "old", "new", "said"),
    [*UNKNOWN, *WRONG, *OUTSIDE, *CHOICES, *TWICE, *GAPS, *ASKED, *REFERENCES],
)
def test_a_fault_is_told_with_its_line(network: str, stage: str, old: str, new: str, said: str) -> None:
    (fault,) = _faults(network, stage, old, new)
    assert fault.startswith(said)


def test_all_faults_of_a_spec_are_told_at_once() -> None:
    text = GOOD["detectnet_v2", "train"]
    for old, new in (("42", '"x"'), ("num_layers", "nlayers"), ("L1", "L3"), ("80", "-80")):
        text = text.replace(old, new)
    lines = [p.line for p in check("detectnet_v2", "train", _tree("detectnet_v2", text))]
    assert lines == [1, 18, 31, 36]


def test_what_stands_in_the_file_twice_and_the_same_does_no_harm() -> None:
    assert _faults("detectnet_v2", "train", "num_epochs: 80", "num_epochs: 80\n  num_epochs: 80") == []


def test_values_that_nobody_reads_may_be_out_of_range() -> None:
    assert _faults("rtdetr", "export", "batch_size: -1", "batch_size: -2") == []
    (fault,) = _faults("rtdetr", "train", "batch_size: 4", "batch_size: -1")
    assert fault.startswith("spec:10: dataset.batch_size: must be at least 1, it is -1")


def test_a_deploy_image_asks_for_less_than_a_training_image() -> None:
    tree = parse('ssd_config { arch: "resnet" }\n', "prototxt", "lean.txt")
    assert check("ssd", "evaluate_quantized", tree, "5.5.0-deploy") == []
    assert {p.key for p in check("ssd", "train", tree)} >= {"training_config", "dataset_config", "ssd_config.variances"}


def test_calibration_is_asked_for_where_the_engine_is_int8() -> None:
    text = GOOD["rtdetr", "build_engine"].replace("int8", "fp16")
    without = "".join(line for line in text.splitlines(keepends=True) if "calibration" not in line)
    assert check("rtdetr", "build_engine", _tree("rtdetr", without)) == []


@pytest.mark.parametrize(
    ("network", "stage", "old", "new", "release", "said"),
    [
        ("rtdetr", "train", "precision: fp32", "checkpointer: {enable_topk: true}", "6.26.3-pyt",
         "spec:17: train.checkpointer: unknown key in TAO 6.26.3-pyt; it came with 7.1.0"),
        ("rtdetr", "train", "precision: fp32", "checkpointer: {enable_topk: true}", "7.1.0-pyt", ""),
        ("faster_rcnn", "retrain", "enable_qat: True", 'output_model: "a"', "5.0.0-tf1.15.5",
         "spec:15: training_config.output_model: unknown key in TAO 5.0.0-tf1.15.5"),
        ("faster_rcnn", "build_engine", "enable_qat: True", 'output_model: "a"', "5.5.0-deploy", ""),
    ],
)  # fmt: skip
def test_a_key_that_the_image_does_not_know_yet(
    network: str, stage: str, old: str, new: str, release: str, said: str
) -> None:
    text = GOOD[network, "train" if network == "rtdetr" else "retrain"].replace(old, new)
    faults = [str(p) for p in check(network, stage, _tree(network, text), release)]
    assert [fault.startswith(said) for fault in faults] == ([True] if said else [])


def test_no_release_is_no_release() -> None:
    with pytest.raises(ValueError, match="'latest' is no release of TAO"):
        check("rtdetr", "train", _tree("rtdetr", GOOD["rtdetr", "train"]), "latest")


def test_no_stage_is_no_stage() -> None:
    with pytest.raises(ValueError, match="stage 'trian' runs no action of TAO"):
        check("rtdetr", "trian", _tree("rtdetr", GOOD["rtdetr", "train"]))


def test_the_format_of_another_network() -> None:
    proto = parse("train_config { num_epochs: 8 }", "prototxt", "a.txt")
    yaml = parse("train: {num_epochs: 8}", "yaml", "a.yaml")
    assert [str(p) for p in check("rtdetr", "train", proto)] == [
        "a.txt:1: this is protobuf text, and rtdetr reads YAML: is it the spec of another network?"
    ]
    assert [str(p) for p in check("ssd", "train", yaml)] == [
        "a.yaml:1: this is YAML, and ssd reads protobuf text: is it the spec of another network?"
    ]


def test_a_network_that_tao_has_not() -> None:
    (fault,) = check("rt_detr", "train", parse("train: {}", "yaml", "a.yaml"))
    assert str(fault) == "a.yaml: TAO's schema has no network 'rt_detr'; did you mean 'rtdetr'?"


@pytest.mark.parametrize("package", ["nvidia_tao_core", "nvidia_tao_deploy"])
def test_without_the_schema_a_spec_is_not_taken_for_good(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    (fault,) = check("rtdetr", "train", _tree("rtdetr", GOOD["rtdetr", "train"]))
    assert package.replace("_", "-") in fault.message
    assert "`make setup` installs it" in fault.message
