"""What the TF1 networks ask of a spec beyond its proto: values in limits, and blocks that must be there.

Each command of the training image looks at this before it begins (the deploy image does not), and ends at the first
fault. A value that is left out counts as protobuf's default: 0, or empty text. Sources, in tao_tensorflow1_backend
below nvidia_tao_tf1/cv: detectnet_v2/spec_handler/constants.py, ssd/utils/spec_loader.py with common/spec_validator.py,
yolo_v4/utils/spec_loader.py, faster_rcnn/spec_loader/spec_wrapper.py. Left to the checks of specs against each other
and the data: what compares two values, and paths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from refit.specs import Problem
from refit.tao.schema.model import Field, Leaf, ListOf, MapOf, Record, Type
from refit.tao.tree import Block, Items, Node, Scalar, Tree

Rule = tuple[str, Callable[[Any], bool]]  # in words; whether a value keeps it
Rules = Mapping[str, Rule]  # by a field's name, in whatever block it stands

_POSITIVE: Rule = ("above 0", lambda v: v > 0)
_NOT_NEGATIVE: Rule = ("0 or more", lambda v: v >= 0)
_SHARE: Rule = ("between 0 and 1", lambda v: 0 <= v <= 1)
_BELOW_1: Rule = ("at least 0 and below 1", lambda v: 0 <= v < 1)
_INSIDE: Rule = ("above 0 and below 1", lambda v: 0 < v < 1)
_UP_TO_1: Rule = ("above 0 and at most 1", lambda v: 0 < v <= 1)
_SMALL: Rule = ("between 0 and 0.3", lambda v: 0 <= v <= 0.3)
_ONE_OR_MORE: Rule = ("at least 1", lambda v: v >= 1)
_GIVEN: Rule = ("given", bool)


def _one_of(*values: str | int) -> Rule:
    return f"{'one of ' if len(values) > 1 else ''}{', '.join(map(str, values))}", lambda v: v in values


def _rules(*rows: tuple[Rule, str]) -> Rules:
    return {name: rule for rule, names in rows for name in names.split()}


_RESNETS = ("resnet", "vgg", "darknet", "mobilenet_v1", "mobilenet_v2", "squeezenet", "googlenet", "efficientnet_b0")
_FASTER_RCNN = (
    *(f"resnet:{n}" for n in (10, 18, 34, 50, 101)),
    "resnet101",
    "vgg16",
    "vgg:16",
    "vgg:19",
    "googlenet",
    "mobilenet_v1",
    "mobilenet_v2",
    "darknet:19",
    "darknet:53",
    *(f"efficientnet:b{n}" for n in range(8)),
)
_SCHEDULE = "batch_size_per_gpu num_epochs min_learning_rate max_learning_rate"
RULES: dict[str, Rules] = {
    "detectnet_v2": _rules(
        (_POSITIVE, f"{_SCHEDULE} validation_period_during_training first_validation_epoch scale"),
        (_POSITIVE, "maximum_height maximum_width initial_exponent increment decrement epsilon beta1 beta2"),
        (_NOT_NEGATIVE, "num_layers offset minimum_height minimum_width weight minimum_bounding_box_height zoom_min"),
        (_NOT_NEGATIVE, "zoom_max min_bbox_width min_bbox_height translate_max_x translate_max_y hue_rotation_max"),
        (_NOT_NEGATIVE, "class_weight coverage_foreground_weight initial_weight weight_target"),
        (_SHARE, "cov_center_x cov_center_y cov_radius_x cov_radius_y bbox_min_radius deadzone_radius"),
        (_SHARE, "coverage_threshold confidence_threshold nms_iou_threshold nms_confidence_threshold dbscan_eps"),
        (_SHARE, "dbscan_min_samples neighborhood_size dbscan_confidence_threshold hflip_probability"),
        (_SHARE, "vflip_probability color_shift_stddev saturation_shift_max contrast_scale_max contrast_center"),
        (_BELOW_1, "soft_start annealing"),
        (("a multiple of 16 above 0", lambda v: v > 0 and v % 16 == 0), "output_image_width output_image_height"),
        (_GIVEN, "name tfrecords_path image_directory_path"),
        (_one_of(*_RESNETS), "arch"),
    ),
    "detectnet_v2 inference": _rules(
        (_POSITIVE, "batch_size image_height image_width"),
        (_NOT_NEGATIVE, "minimum_bounding_box_height"),
        (_SHARE, "coverage_threshold"),
        (_GIVEN, "calibration_cache"),
        (_one_of(1, 3), "image_channels"),
    ),
    "ssd": _rules(
        (_POSITIVE, f"{_SCHEDULE} validation_period_during_training batch_size top_k"),
        (_NOT_NEGATIVE, "nlayers min_delta patience checkpoint_interval"),
        (_INSIDE, "soft_start annealing matching_iou_threshold confidence_threshold clustering_iou_threshold"),
        (("above 32", lambda v: v > 32), "output_width output_height"),
        (_GIVEN, "variances"),
        (_one_of(1, 3), "output_channel"),
        (_one_of(*_RESNETS, "efficientnet_b1"), "arch"),
        (_one_of("loss", "validation_loss", "val_loss"), "monitor"),
    ),
    "yolo_v4": _rules(
        (_POSITIVE, "batch_size_per_gpu num_epochs checkpoint_interval batch_size patience"),
        (_NOT_NEGATIVE, "loss_loc_weight loss_neg_obj_weights loss_class_weights focal_loss_gamma min_delta"),
        (_NOT_NEGATIVE, "randomize_input_shape_period"),
        (_SHARE, "hue vertical_flip horizontal_flip jitter mosaic_prob"),
        (_BELOW_1, "focal_loss_alpha"),
        (_ONE_OR_MORE, "saturation exposure"),
        (_UP_TO_1, "matching_iou_threshold clustering_iou_threshold box_matching_iou"),
        (_SMALL, "label_smoothing big_grid_xy_extend mid_grid_xy_extend small_grid_xy_extend"),
        (("above 0 and below 0.5", lambda v: 0 < v < 0.5), "mosaic_min_ratio"),
        (("above 0.25 and at most 1", lambda v: 0.25 < v <= 1), "matching_neutral_box_iou"),
        (("a multiple of 32 above 0", lambda v: v > 0 and v % 32 == 0), "output_width output_height"),
        (_GIVEN, "big_anchor_shape mid_anchor_shape"),
        (_one_of(1, 3), "output_channel"),
        (_one_of("loss"), "monitor"),
    ),
    "faster_rcnn": _rules(
        (_POSITIVE, "batch_size_per_gpu num_epochs std_scaling rpn_mini_batch roi_mini_batch rpn_nms_max_boxes"),
        (_POSITIVE, "lambda_rpn_regr lambda_rpn_class lambda_cls_regr lambda_cls_class classifier_nms_max_boxes"),
        (_POSITIVE, "image_scaling_factor max_objects_num_per_image rpn_min_overlap"),
        (_NOT_NEGATIVE, "dropout_rate drop_connect_rate classifier_min_overlap"),
        (_INSIDE, "rpn_nms_overlap_threshold classifier_nms_overlap_threshold object_confidence_thres"),
        (_INSIDE, "bbox_visualize_threshold gt_matching_iou_threshold"),
        (_UP_TO_1, "rpn_max_overlap classifier_max_overlap"),
        (("at least 160", lambda v: v == 0 or v >= 160), "height width min"),
        (_one_of(16), "rpn_stride"),
        (_one_of("bgr", "rgb", "l"), "image_channel_order"),
        (_one_of(*_FASTER_RCNN), "arch"),
    ),
}  # fmt: skip
# Blocks that must be there, by the name of the block that they stand in ("": at the top).
REQUIRED: dict[str, dict[str, str]] = {
    "detectnet_v2": {
        "": "model_config training_config evaluation_config cost_function_config augmentation_config "
        "bbox_rasterizer_config postprocessing_config dataset_config",
        "augmentation_config": "preprocessing",
        "bbox_rasterizer_config": "target_class_config",
        "training_config": "learning_rate regularizer optimizer cost_scaling",
        "optimizer": "adam",
        "evaluation_config": "minimum_detection_ground_truth_overlap evaluation_box_config",
        "cost_function_config": "target_classes",
        "target_classes": "objectives",
        "postprocessing_config": "target_class_config",
        "dataset_config": "data_sources target_class_mapping",
        "model_config": "objective_set",
        "objective_set": "bbox cov",
    },
    "detectnet_v2 inference": {
        "": "inferencer_config bbox_handler_config",
        "bbox_handler_config": "classwise_bbox_handler_config",
    },
    "ssd": {
        "": "training_config eval_config augmentation_config nms_config dataset_config",
        "training_config": "learning_rate regularizer",
        "learning_rate": "soft_start_annealing_schedule",
        "dataset_config": "target_class_mapping",
    },
    "yolo_v4": {
        "": "augmentation_config training_config eval_config nms_config yolov4_config dataset_config",
        "dataset_config": "data_sources target_class_mapping",
    },
    "faster_rcnn": {
        "": "model_config training_config evaluation_config inference_config augmentation_config",
        "model_config": "input_image_config anchor_box_config",
    },
}
_LEAN = {"ssd"}  # whose commands other than train do with fewer blocks


def beyond(network: str, action: str, schema: Record, tree: Tree, whole: bool) -> Iterator[Problem]:
    """Values outside of what a training image's command takes; if `whole`, what is left out too."""
    key = f"{network} {action}" if f"{network} {action}" in RULES else network
    if key not in RULES or action in ("dataset_convert", "gen_trt_engine"):
        return
    required = dict(REQUIRED[key])
    if network in _LEAN and action != "train":
        del required[""]
    yield from _Limits(RULES[key], required if whole else {}, tree, whole).block(schema, tree.root, "", "", 1)


class _Limits:
    def __init__(self, rules: Rules, required: Mapping[str, str], tree: Tree, whole: bool) -> None:
        self.rules, self.required, self.tree, self.whole = rules, required, tree, whole

    def block(self, record: Record, block: Block, name: str, path: str, line: int) -> Iterator[Problem]:
        for key in self.required.get(name, "").split():
            if not block.named(key):
                message = "must be given; the training image asks for it"
                yield Problem(self.tree.file, line, f"{path}.{key}" if path else key, message)
        for key, field in record.fields.items():
            here = f"{path}.{key}" if path else key
            nodes = [i for n in block.named(key) for i in (n.items if isinstance(n, Items) else [n])]
            if isinstance(field.type, Leaf) or (isinstance(field.type, ListOf) and isinstance(field.type.item, Leaf)):
                yield from self._values(field, nodes, key, here, line)
                continue
            for i, node in enumerate(nodes):
                entry, inner, at = _entry(field, node, here, i if len(nodes) > 1 else None)
                if isinstance(inner, Record) and isinstance(entry, Block):
                    yield from self.block(inner, entry, key, at, entry.line or line)

    def _values(self, field: Field, nodes: list[Node], name: str, path: str, line: int) -> Iterator[Problem]:
        if name not in self.rules:
            return
        words, good = self.rules[name]
        text = isinstance(field.type, Leaf) and field.type.kind == "str"
        left_out = not nodes and self.whole and isinstance(field.type, Leaf) and not field.oneof
        if left_out and not good("" if text else 0):
            counts = f", and counts as {'empty' if text else 0} where it is left out"
            yield Problem(self.tree.file, line, path, f"must be {words}{counts}")
        for i, node in enumerate(nodes):
            if (
                isinstance(node, Scalar)
                and isinstance(node.value, str if text else int | float)
                and not good(node.value)
            ):
                here = f"{path}[{i}]" if len(nodes) > 1 else path
                shown = node.raw or repr(node.value)
                yield Problem(self.tree.file, node.line or line, here, f"must be {words}, it is {shown}")


def _entry(field: Field, node: Node, path: str, number: int | None) -> tuple[Node, Type, str]:
    """A node of a block field, with its type and path: a map's entry is its value."""
    if isinstance(field.type, MapOf) and isinstance(node, Block):
        key = next((k.value for k in node.named("key") if isinstance(k, Scalar)), "")
        return next(iter(node.named("value")), Block(line=node.line)), field.type.value, f"{path}[{key}].value"
    kind = field.type.item if isinstance(field.type, ListOf) else field.type
    return node, kind, path if number is None else f"{path}[{number}]"
