"""A model for DeepStream: nvinfer's configuration, labels, and a configuration for deepstream-app that runs them.

nvinfer feeds a network with `net-scale-factor * (x - offsets)` and finds objects itself (`cluster-mode`) or by a
function of a library. Which function reads which network, and the keys, are those of NVIDIA's own configurations
(NVIDIA-AI-IOT/deepstream_tao_apps, configs/ and post_processor/nvdsinfer_custombboxparser_tao.cpp; its release branches
up to tao5.3_ds7.0ga have SSD, FasterRCNN, YOLOv4 and EfficientDet, the present one DINO and DetectNet_v2); keys of
DBSCAN from gst-nvinfer's own parser (gstnvinfer_property_parser.h). tests/engine/test_deepstream.py holds them against
a checkout. No deepstream-app was run with what is written here: it needs a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from refit.engine.record import Precision
from refit.engine.specs import DeepStreamSpec
from refit.postprocess import InputInfo, ModelInfo
from refit.postprocess.info import Clustering

INFER, APP, LABELS = "config_infer_primary.txt", "deepstream_app_config.txt", "labels.txt"

_MODES: Mapping[Precision, int] = {"fp32": 0, "int8": 1, "fp16": 2, "best": 1}
_COLOURS = {"rgb": 0, "bgr": 1}
_GREY = 2
_CLUSTER = {"dbscan": 1, "nms": 2, "hybrid": 3}
_NO_CLUSTER = 4
_BACKGROUND = "background"
_SPREAD = 0.05  # NVIDIA's own configurations put one factor for ImageNet's 0.229, 0.224, 0.225

Lines = list[tuple[str, object]]


class Unsupported(ValueError):
    """DeepStream cannot run this model as it is; says what stands in the way."""


@dataclass(frozen=True)
class Parser:
    """Who makes boxes of a network's outputs.

    Attributes:
        function: of NVIDIA's library; None: nvinfer's own parser for DetectNet_v2's grid, which leaves clusters to us.
        tensors: output names that the function looks for; empty: it goes by their order.
        drops: a class id that it takes for background.
    """

    function: str | None
    tensors: tuple[str, ...] = ()
    drops: int | None = None


PARSERS = {
    "detectnet_v2": Parser(None),
    "nms": Parser("NvDsInferParseCustomNMSTLT"),
    "batched_nms": Parser("NvDsInferParseCustomBatchedNMSTLT"),
    "efficientdet": Parser(
        "NvDsInferParseCustomEfficientDetTAO",
        tensors=("num_detections", "detection_boxes", "detection_scores", "detection_classes"),
    ),
    "detr": Parser("NvDsInferParseCustomDDETRTAO", tensors=("pred_logits", "pred_boxes"), drops=0),
}
"""By `decoder` of model.json."""


def nvinfer(
    info: ModelInfo,
    spec: DeepStreamSpec,
    *,
    precision: Precision,
    onnx: str | None,
    plan: str | None,
    cache: str | None = None,
    ids: int | None = None,
) -> str:
    """The text of nvinfer's configuration.

    A margin is black for nvinfer, whatever model.json's `fill` says; NVIDIA's own configurations live with it.

    Args:
        onnx, plan: file names beside it. With both, the plan is used where it fits, and else made anew from the ONNX.
        cache: the INT8 calibration cache, for making the plan anew.
        ids: how many classes the network numbers, background included; None: as many as model.json needs.

    Raises:
        Unsupported: the network, or how it is fed.
    """
    parser = _parser(info)
    names = _names(info, ids)
    fed = info.input
    lines: Lines = [
        ("gpu-id", 0),
        ("gie-unique-id", 1),
        ("process-mode", 1),
        ("network-type", 0),
        ("network-mode", _MODES[precision]),
        ("batch-size", spec.batch_size),
        ("interval", 0),
    ]
    files = (("onnx-file", onnx), ("model-engine-file", plan), ("int8-calib-file", cache))
    lines += [(key, file) for key, file in files if file is not None]
    lines += [
        ("labelfile-path", LABELS),
        ("num-detected-classes", len(names)),
        ("infer-dims", _list((fed.channels, fed.height, fed.width))),
        ("network-input-order", int(fed.layout == "nhwc")),
        ("net-scale-factor", repr(_factor(fed))),
        ("model-color-format", _GREY if fed.channels == 1 else _COLOURS[fed.channel_order]),
        ("maintain-aspect-ratio", int(fed.resize == "letterbox")),
        ("symmetric-padding", int(fed.place == "centre")),
        ("output-blob-names", _list(tuple(info.outputs.values()))),
        ("cluster-mode", _CLUSTER[_algorithm(info)] if parser.function is None else _NO_CLUSTER),
    ]
    if any(fed.mean):
        lines.append(("offsets", _list([round(m / fed.scale, 6) for m in fed.mean])))
    if parser.function is not None:
        lines += [("parse-bbox-func-name", parser.function), ("custom-lib-path", spec.parser_library)]
    groups = [("property", lines), ("class-attrs-all", _attributes(info))]
    for index, name in enumerate(info.classes if info.clustering else ()):
        groups.append((f"class-attrs-{names.index(name)}", _attributes(info, info.clustering_of(index))))
    return _ini(groups)


def labels(info: ModelInfo, ids: int | None = None) -> str:
    """labels.txt: the name of each class id, a line each; ids of no class are background.

    Raises:
        Unsupported: as `nvinfer`.
    """
    return "".join(f"{name}\n" for name in _names(info, ids))


def app(spec: DeepStreamSpec) -> str:
    """The text of a configuration for `deepstream-app -c`: one stream, this detector, its speed on the terminal.

    It runs without a display and without an encoder; sink1 writes a video with the boxes where it is enabled.
    """
    gpu, streams = ("gpu-id", 0), spec.batch_size
    size: Lines = [("width", 1920), ("height", 1080)]
    video: Lines = [("type", 3), ("container", 1), ("codec", 1), ("enc-type", 0), ("bitrate", 4_000_000)]
    groups: list[tuple[str, Lines]] = [
        ("application", [("enable-perf-measurement", 1), ("perf-measurement-interval-sec", 5)]),
        ("source0", [("enable", 1), ("type", 3), ("uri", spec.source), ("num-sources", streams), gpu]),
        ("streammux", [gpu, ("batch-size", streams), ("batched-push-timeout", 40_000), *size]),
        ("primary-gie", [("enable", 1), gpu, ("gie-unique-id", 1), ("batch-size", streams), ("config-file", INFER)]),
        ("osd", [("enable", 1), gpu, ("border-width", 3), ("text-size", 15), ("font", "Arial")]),
        ("sink0", [("enable", 1), ("type", 1), ("sync", 0), ("source-id", 0), gpu]),
        ("sink1", [("enable", 0), *video, ("sync", 0), ("output-file", "out.mp4"), ("source-id", 0)]),
        ("tests", [("file-loop", 0)]),
    ]
    return _ini(groups)


def _parser(info: ModelInfo) -> Parser:
    """Who reads this network's outputs, when he can."""
    parser = PARSERS.get(info.decoder)
    if parser is None:
        raise Unsupported(f"decoder {info.decoder!r}: no parser of it is known; known are {', '.join(PARSERS)}")
    if info.decoder == "detectnet_v2" and (info.bbox_norm, info.offset) != (35.0, 0.5):
        given = f"bbox_norm {info.bbox_norm:g} and offset {info.offset:g}"
        raise Unsupported(f"{given}: nvinfer's own parser of DetectNet_v2 has 35 and 0.5")
    strange = sorted(set(info.outputs.values()) - set(parser.tensors)) if parser.tensors else []
    if strange:
        raise Unsupported(f"output {strange[0]!r}: {parser.function} looks for {', '.join(parser.tensors)}")
    return parser


def _names(info: ModelInfo, ids: int | None) -> list[str]:
    """The name of each class id that the network may give."""
    given = info.class_ids or tuple(range(len(info.classes)))
    # FasterRCNN numbers its background last (refit/postprocess/listed.py).
    needed = max(given) + 1 + int(info.decoder == "nms" and 0 in given)
    if ids is not None and ids < needed:
        raise Unsupported(f"class_ids: the largest is {max(given)}, and the network has {ids} classes")
    if PARSERS[info.decoder].drops in given:
        name = info.classes[given.index(PARSERS[info.decoder].drops or 0)]
        raise Unsupported(f"class_ids: {name!r} is 0, which {PARSERS[info.decoder].function} takes for background")
    by_id = dict(zip(given, info.classes, strict=True))
    return [by_id.get(i, _BACKGROUND) for i in range(ids or needed)]


def _factor(target: InputInfo) -> float:
    """(x * scale - mean) / std as factor * (x - offset); nvinfer has one factor for all channels."""
    if not target.std:
        return target.scale
    middle = sum(target.std) / len(target.std)
    if max(abs(s - middle) for s in target.std) > _SPREAD * middle:
        raise Unsupported(
            f"std {list(target.std)}: nvinfer has one factor for all channels, and these are too far apart"
        )
    return target.scale / middle


def _algorithm(info: ModelInfo) -> str:
    used = {info.clustering_of(i).algorithm for i in range(len(info.classes))} if info.clustering else {"nms"}
    if len(used) > 1:
        raise Unsupported(f"clustering: {' and '.join(sorted(used))}; nvinfer has one algorithm for all classes")
    return used.pop()


def _attributes(info: ModelInfo, of: Clustering | None = None) -> Lines:
    """The attributes of a class, or of those that have none of their own."""
    after = info.postprocess
    if of is None:
        lines: Lines = [("pre-cluster-threshold", after.score_threshold), ("topk", after.max_detections)]
        return [*lines, ("nms-iou-threshold", after.nms_iou)] if info.decoder == "detectnet_v2" else lines
    lines = [("pre-cluster-threshold", of.coverage_threshold), ("topk", after.max_detections)]
    if of.algorithm != "nms":
        lines += [
            ("eps", of.dbscan_eps),
            ("minBoxes", round(of.dbscan_min_samples)),
            ("dbscan-min-score", of.dbscan_confidence_threshold),
            ("detected-min-h", round(of.minimum_bounding_box_height)),
        ]
    if of.algorithm != "dbscan":
        lines += [
            ("nms-iou-threshold", of.nms_iou_threshold),
            ("post-cluster-threshold", of.nms_confidence_threshold),
        ]
    return lines


def _list(values: Sequence[object]) -> str:
    return ";".join(map(str, values))


def _ini(groups: Sequence[tuple[str, Lines]]) -> str:
    return "\n".join(f"[{name}]\n" + "".join(f"{key}={value}\n" for key, value in lines) for name, lines in groups)
