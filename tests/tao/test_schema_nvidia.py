"""NVIDIA's own sample specs against NVIDIA's own schema.

REFIT_NVIDIA_SOURCES names a folder with checkouts under their repositories' names: tao_tensorflow1_backend,
tao_tensorflow2_backend, tao_pytorch_backend, tao_deploy, tao_tutorials. What is refused is listed here with its reason.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from refit.tao.schema import check
from refit.tao.tree import Format, parse

VARIABLE = "REFIT_NVIDIA_SOURCES"
TF1 = ("detectnet_v2", "faster_rcnn", "ssd", "yolo_v4")
NETWORKS = (*TF1, "efficientdet_tf2", "rtdetr", "dino", "deformable_detr")
FOLDERS = ("specs", "experiment_specs", "experiment_spec", "dataset_specs")
ACTIONS = (
    "gen_trt_engine",
    "dataset_convert",
    "evaluate",
    "inference",
    "export",
    "prune",
    "quantize",
    "distill",
)
NAMES = {
    "infer.yaml": "inference", "infer_distill.yaml": "inference", "eval.yaml": "evaluate",
    "kitti_spec.txt": "dataset_convert",
    "coco_spec.txt": "dataset_convert", "kitti_random_split.txt": "dataset_convert", "inferencer_spec.txt": "inference",
    "inferencer_spec_etlt.prototxt": "inference",
}  # fmt: skip
# Keys that these samples have and the schema of their own release or of later ones has not, or values of a wrong type.
REFUSED = {
    "tao_deploy/efficientdet_tf2/experiment_spec.yaml": {"inference.output_dir"},
    "tao_deploy/rtdetr/gen_trt_engine.yaml": {f"gen_trt_engine.input_{key}" for key in ("channel", "width", "height")},
    "tao_pytorch_backend/dino/distill.yaml": {"distill.teacher.pretrained_teacher_model_path"},
    "tao_pytorch_backend/rtdetr/quantize.yaml": {
        "quantize.backend",
        "quantize.default_layer_dtype",
        "quantize.default_activation_dtype",
        "dataset.num_classes",
    },
    "tao_tensorflow1_backend/detectnet_v2/inferencer_spec_caffe.prototxt": {
        "inferencer_config.tensorrt_config.calibrator_config.batch_size"
    },
    "tao_tensorflow1_backend/faster_rcnn/default_spec_vgg19_bs2.txt": {"evaluation_config.labels_dump_ir"},
    "tao_tensorflow2_backend/efficientdet_tf2/inference.yaml": {"inference.output_dir"},
    "tao_tensorflow2_backend/efficientdet_tf2/prune.yaml": {"prune.output_path"},
}


def _samples(root: Path) -> list[tuple[str, str, str, Path]]:
    """Repository, network, action and file of each sample."""
    found = []
    for file in sorted(root.glob("tao_*/**/*")):
        parts = file.relative_to(root).parts
        network = next((n for n in NETWORKS if n in parts), "")
        if parts[0] == "tao_tensorflow2_backend" and "efficientdet" in parts:
            network = "efficientdet_tf2"
        named = file.name not in ("classmap.txt", "coco_labels.yaml") and file.suffix in (".txt", ".yaml", ".prototxt")
        if network and named and file.is_file() and any(f in parts for f in FOLDERS):
            action = NAMES.get(file.name) or next((a for a in ACTIONS if a in file.name), "train")
            found.append((parts[0], network, action, file))
    return found


@pytest.mark.skipif(not os.environ.get(VARIABLE), reason=f"{VARIABLE} names no checkouts of NVIDIA's sources")
def test_nvidias_samples_pass_but_for_those_with_known_faults() -> None:
    samples = _samples(Path(os.environ[VARIABLE]))
    assert len(samples) > 100, "the folder holds few of NVIDIA's samples"
    refused: dict[str, set[str]] = {}
    for repository, network, action, file in samples:
        form: Format = "prototxt" if network in TF1 else "yaml"
        release = "deploy" if repository == "tao_deploy" and form == "prototxt" else ""
        problems = check(network, action, parse(file.read_text(), form, file.name), release and "5.5.0-deploy")
        # What the samples leave to the command line is no fault of theirs.
        keys = {p.key for p in problems if "must be given; the schema" not in p.message and "???" not in p.message}
        if keys:
            refused[f"{repository}/{network}/{file.name}"] = keys
    assert refused == REFUSED
