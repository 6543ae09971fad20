"""Questions made of NVIDIA's own sample specs, for every network and stage: what the oracle must accept if it is sound.

The samples are not all valid: some have keys that NVIDIA's schema no longer has, and `???` where the user puts a value.
The values are filled in here, and `ask` takes out the keys that refusals name, one after another.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import yaml

from tests.tao.oracle import ENGINE, KINDS, STAGES, Question, Refused, Verdict, judge_all, sources

STALE_KEYS = 8  # more than any sample has
FOLDERS = {
    "tf1": "tao_tensorflow1_backend/nvidia_tao_tf1/cv/{0}",
    "tf2": "tao_tensorflow2_backend/nvidia_tao_tf2/cv/efficientdet/experiment_specs",
    "pyt": "tao_pytorch_backend/nvidia_tao_pytorch/cv/{0}/experiment_specs",
    "deploy": "tao_deploy/nvidia_tao_deploy/cv/{0}/specs",
}
FILES = {
    "detectnet_v2": {
        "": "experiment_specs/default_spec.txt",
        "inference": "experiment_specs/inferencer_spec_etlt.prototxt",
    },
    "faster_rcnn": {"": "experiment_spec/default_spec_resnet18.txt"},
    "ssd": {"": "experiment_specs/default_spec.txt"},
    "yolo_v4": {"": "experiment_specs/yolo_v4_tiny_kitti.txt"},
    "efficientdet_tf2": {"": "{0}.yaml", "evaluate": "eval.yaml"},
    "rtdetr": {"": "{0}.yaml", "inference": "inference.yaml"},
    "dino": {"": "{0}.yaml", "inference": "infer.yaml"},
    "deformable_detr": {"": "{0}.yaml", "inference": "infer.yaml"},
}
DEPLOY_FILES = {
    "detectnet_v2": {"": "experiment_spec.txt", "inference": "inferencer_spec.txt"},
    "faster_rcnn": {"": "experiment_spec.txt"},
    "ssd": {"": "experiment_spec.txt"},
    "yolo_v4": {"": "experiment_spec.txt"},
    "efficientdet_tf2": {"": "experiment_spec.yaml"},
    "rtdetr": {"": "{0}.yaml", "inference": "infer.yaml"},
    "dino": {"": "{0}.yaml", "inference": "infer.yaml"},
    "deformable_detr": {"": "{0}.yaml", "inference": "infer.yaml"},
}
DATA_SERVICES = {
    ("annotations", "convert"): "annotations/experiment_specs/annotations.yaml",
    ("augmentation", "generate"): "augmentation/experiment_specs/kitti.yaml",
    ("analytics", "validate"): "data_analytics/experiment_specs/validate.yaml",
    ("analytics", "analyze"): "data_analytics/experiment_specs/analyze.yaml",
}
# The sources have no sample of it.
CONVERT = """kitti_config {
  root_directory_path: "/data"
  image_dir_name: "images"
  label_dir_name: "labels"
  image_extension: ".jpg"
  partition_mode: "random"
  num_partitions: 2
  val_split: 20
  num_shards: 4
}
target_class_mapping { key: "car" value: "car" }
image_directory_path: "/data"
"""
FLAGS = {  # of TF1 and of its engines; {e} is the spec
    "dataset_convert": "-d {e} -o /out/tfrecords -r /out",
    "train": "-e {e} -r /out -k key --gpus 2 --use_amp",
    "evaluate": "-e {e} -m /out/model.hdf5 -r /out -k key",
    "prune": "-m /out/model.hdf5 -o /out/pruned.hdf5 -eq union -pth 0.1 -pg 8 -nf 16 -k key --results_dir /out",
    "export": "-m /out/model.hdf5 -o /out/model.onnx -e {e} -k key --gen_ds_config --results_dir /out",
    "inference": "-e {e} -m /out/model.hdf5 -i /data/images -r /out -k key -b 4",
    "gen_trt_engine": "-m /out/model.onnx -e {e} -r /out -k key --data_type int8 --cal_image_dir /data/images"
    " --cal_cache_file /out/cal.bin --batches 10 --batch_size 8 --max_batch_size 8 --engine_file /out/model.engine",
    "deploy evaluate": "-e {e} -m /out/model.engine -i /data/images -l /data/labels -b 8 -r /out",
    "deploy inference": "-e {e} -m /out/model.engine -i /data/images -b 8 -r /out",
}
FLAGS_OF = {
    ("yolo_v4", "prune"): FLAGS["prune"] + " -e {e}",
    ("faster_rcnn", "inference"): "-e {e} -m /out/model.hdf5 -r /out -k key",
}
OVERRIDES = {  # of the networks whose specs are YAML
    "evaluate": "evaluate.checkpoint=/out/model.pth",
    "inference": "inference.checkpoint=/out/model.pth",
    "export": "export.checkpoint=/out/model.pth export.onnx_file=/out/model.onnx",
    "quantize": "quantize.model_path=/out/model.pth",
    "distill": "distill.pretrained_teacher_model_path=/out/teacher.pth",
    "gen_trt_engine": "gen_trt_engine.onnx_file=/out/model.onnx gen_trt_engine.trt_engine=/out/model.engine",
    "deploy evaluate": "evaluate.trt_engine=/out/model.engine",
    "deploy inference": "inference.trt_engine=/out/model.engine",
}


def questions() -> Iterator[Question]:
    """One for each network and stage, as far as the checkouts have a sample of it."""
    for network, stages in STAGES.items():
        for stage in stages:
            yield _question(network, stage)
    for network, kind in KINDS.items():
        if kind != "data_services":
            for stage in ENGINE:
                yield _question(network, stage, deploy=True)


def _question(network: str, stage: str, deploy: bool = False) -> Question:
    kind = KINDS[network]
    text = _text(network, stage, deploy)
    name = "/specs/spec.txt" if kind == "tf1" else "/specs/spec.yaml"
    flags = f"deploy {stage}" if deploy and stage != "gen_trt_engine" else stage
    if kind == "tf1":
        words = FLAGS_OF.get((network, flags), FLAGS[flags]).replace("{e}", name)
    else:
        key = "encryption_key=key " if deploy else ""
        words = f"-e {name} results_dir=/out {key}{OVERRIDES.get(flags, '')}"
    argv = [network, stage, *words.split()]
    return Question(network, stage, argv, {name: text} if name in argv else {}, deploy)


def _text(network: str, stage: str, deploy: bool) -> str:
    kind = KINDS[network]
    if stage == "dataset_convert" and kind == "tf1":
        return CONVERT
    if kind == "data_services":
        file = sources() / "tao_dataset_suite/nvidia_tao_ds" / DATA_SERVICES[network, stage]
    else:
        files = (DEPLOY_FILES if deploy else FILES)[network]
        folder = sources() / FOLDERS["deploy" if deploy else kind].format(network)
        file = folder / files.get(stage, files[""]).format(stage)
    text = file.read_text() if file.exists() else ""
    return text if kind == "tf1" else yaml.safe_dump(_filled(yaml.safe_load(text) or {}))


def _filled(value: Any, key: str = "") -> Any:
    """The sample with a value wherever the user puts one."""
    if isinstance(value, dict):
        return {name: _filled(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, key) for inner in value]
    if value in {"???", "??"}:
        return {"num_classes": 80, "weight": 1.0, "criterion": "IOU"}.get(key, "/data/file")
    return value


class Answer(NamedTuple):
    question: Question
    verdict: Verdict
    stale: tuple[str, ...]  # keys that were taken out of the sample


def ask(asked: Sequence[Question]) -> list[Answer]:
    """The verdicts on samples, each without the stale keys that refusals name."""
    answers = [Answer(question, verdict, ()) for question, verdict in zip(asked, judge_all(asked), strict=True)]
    for _ in range(STALE_KEYS):
        mended = {number: _mended(answer) for number, answer in enumerate(answers) if _stale_key(answer)}
        for number, verdict in zip(mended, judge_all([answer.question for answer in mended.values()]), strict=True):
            answers[number] = mended[number]._replace(verdict=verdict)
    return answers


def _stale_key(answer: Answer) -> str | None:
    """The key that the refusal says the schema does not have."""
    if not isinstance(answer.verdict, Refused) or "not in" not in answer.verdict.reason:
        return None
    found = re.search(r"full_key: (\S+)", answer.verdict.reason)
    return found and found[1]


def _mended(answer: Answer) -> Answer:
    key = _stale_key(answer) or ""
    specs = {name: _without(text, key) for name, text in answer.question.specs.items()}
    return answer._replace(question=answer.question._replace(specs=specs), stale=(*answer.stale, key))


def _without(text: str, key: str) -> str:
    tree = yaml.safe_load(text)
    place: Any = tree
    *folders, last = key.split(".")
    for folder in folders:
        place = place[folder]
    del place[last]
    return yaml.safe_dump(tree)


def misspelt_key(question: Question) -> Question:
    """The first key of each spec with a letter too many."""
    specs = {
        name: re.sub(r"^(\s*\w+)(?=\s*[:{])", r"\1x", text, count=1, flags=re.MULTILINE)
        for name, text in question.specs.items()
    }
    return question._replace(specs=specs)


def misspelt_flag(question: Question) -> Question:
    """A flag that no parser knows; for the overrides of hydra, a key."""
    word = "--no_such_flag" if KINDS[question.network] == "tf1" else "no_such_key=1"
    return question._replace(argv=[*question.argv, word])
