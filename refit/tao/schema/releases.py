"""What TAO's releases have not in common: keys of the installed schema that an older image does not know.

The keys of nvidia-tao-core 6.0.0, 6.25.9, 6.26.3, 7.0.0, 7.1.0 and 7.3.0 were compared, and the protos of
tao_tensorflow1_backend with those of nvidia-tao-deploy. 7.1.0 and 7.3.0 have the same keys; limits and choices were
only ever tightened.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from refit.specs import Problem
from refit.tao.tree import Tree

_DETR = {
    "evaluate.batch_size": "6.25.9",
    "inference.batch_size": "6.25.9",
    "wandb.group": "6.26.3",
    "wandb.run_id": "6.26.3",
    "train.checkpoint_interval_unit": "6.26.3",
    "train.checkpointer": "7.1.0",
    "model.precise_msda": "7.1.0",
}
_QUANTIZE = ("dataset.quant_calibration_data_sources", "quantize")
_SINCE: dict[str, dict[str, str]] = {
    "rtdetr": {
        **_DETR,
        **dict.fromkeys(_QUANTIZE, "6.25.9"),
        **dict.fromkeys(("evaluate.is_quantized", "inference.is_quantized", "export.is_quantized"), "6.25.9"),
        "distill.teacher.precise_msda": "7.1.0",
    },
    "dino": {
        **_DETR,
        **dict.fromkeys(_QUANTIZE, "6.26.3"),
        "dataset.contiguous_labels": "7.0.0",
        "dataset.augmentation.pad_size_divisor": "7.0.0",
        "distill.teacher.precise_msda": "7.1.0",
    },
    "deformable_detr": {
        **_DETR,
        **dict.fromkeys(_QUANTIZE, "6.26.3"),
        **dict.fromkeys(("model.dld_model_dir_path", "train.input_width", "train.input_height"), "6.26.3"),
        "dataset.augmentation.pad_size_divisor": "7.0.0",
    },
    "efficientdet_tf2": dict.fromkeys(("train.wandb.group", "train.wandb.run_id"), "6.26.3"),
    # The training image's proto has no such field; the deploy images' has.
    "faster_rcnn": {"training_config.output_model": "5.5.0"},
}


def unknown(network: str, release: str, tree: Tree) -> Iterator[Problem]:
    """Keys of a spec that came with a later TAO than the image's. `release`: 6.26.3, or an image's tag."""
    have = _number(release)
    for path, since in _SINCE.get(network, {}).items():
        if tree.has(path) and have < _number(since):
            message = f"unknown key in TAO {release}; it came with {since}: leave it out, or name a later image"
            yield tree.problem(path, message)


def _number(release: str) -> tuple[int, ...]:
    match = re.match(r"\d+(\.\d+)*", release)
    if not match:
        raise ValueError(f"{release!r} is no release of TAO, such as 6.26.3 or 7.1.0-pyt")
    return tuple(int(part) for part in match[0].split("."))
