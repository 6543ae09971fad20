"""Fields of TLT 2.0 to TAO 5.0 that today's schema has no more: where they went, or that they are left out.

A field is only looked up here after the schema said that it does not know it. Told from NVIDIA's protos
(tao_tensorflow1_backend, nvidia_tao_tf1/cv/{ssd,yolo_v4,common}/proto) and dataclasses (nvidia_tao_core/config), the
samples in the history of tao_tutorials (5.0: gen_trt_engine.input_*), and NVIDIA's archived user guides of TLT 2.0 and
3.0, where SSD and YOLOv4 shared DetectNet_v2's dataset_config and augmentation_config.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from refit.tao.tree import Tree


@dataclass(frozen=True)
class Move:
    """`to`: field below it -> its place today; what is not named there is left out."""

    why: str
    to: Mapping[str, str] = field(default_factory=dict)


_SIZE = {
    "output_image_width": "augmentation_config.output_width",
    "output_image_height": "augmentation_config.output_height",
    "output_image_channel": "augmentation_config.output_channel",
}
_OLD_AUGMENTATION = "TLT 2.0's augmentation; what TAO 5 has in its place is set in augmentation_config itself"
_BOTH: dict[str, Move] = {
    "augmentation_config.preprocessing": Move("it is augmentation_config.output_* since TLT 3.0", _SIZE),
    "augmentation_config.color_augmentation": Move(_OLD_AUGMENTATION),
    "dataset_config.validation_fold": Move("the validation part is a data source of its own since TLT 3.0"),
}
_MOVED: dict[str, dict[str, Move]] = {
    "ssd": {
        **_BOTH,
        "augmentation_config.spatial_augmentation": Move(
            _OLD_AUGMENTATION, {"hflip_probability": "augmentation_config.random_flip"}
        ),
        "dataset_config.image_extension": Move("the loader finds the images by their labels since TLT 3.0"),
    },
    "yolo_v4": {
        **_BOTH,
        "augmentation_config.spatial_augmentation": Move(
            _OLD_AUGMENTATION,
            {
                "hflip_probability": "augmentation_config.horizontal_flip",
                "vflip_probability": "augmentation_config.vertical_flip",
            },
        ),
        "eval_config.validation_period_during_training": Move(
            "TAO 5 validates at each checkpoint (training_config.checkpoint_interval)"
        ),
    },
}
_ENGINE = {
    f"gen_trt_engine.input_{side}": Move("TAO takes the size from the ONNX model now")
    for side in ("width", "height", "channel")
}
_MOVED |= {"dino": _ENGINE, "deformable_detr": _ENGINE, "rtdetr": _ENGINE}


def moved(network: str, path: str) -> tuple[str, Move] | None:
    """The field that went away with a path: its own, or one above it."""
    for old, move in _MOVED.get(network, {}).items():
        if path == old or path.startswith(f"{old}."):
            return old, move
    return None


def carried(spec: Tree, old: str, move: Move) -> dict[str, object]:
    """Values at their new places, those that the spec does not have there yet."""
    return {
        new: spec.value(f"{old}.{name}")
        for name, new in move.to.items()
        if spec.has(f"{old}.{name}") and not spec.has(new)
    }
