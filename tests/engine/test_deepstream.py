"""What nvinfer is told about each kind of network; keys and parsers against NVIDIA's own configurations."""

from __future__ import annotations

import configparser
from typing import Any

import pytest

from refit.engine import deepstream
from refit.engine.deepstream import PARSERS, Unsupported
from refit.engine.specs import DeepStreamSpec
from refit.postprocess import InputInfo, ModelInfo
from refit.postprocess.info import Clustering
from tests.engine import made, sources

SPEC = DeepStreamSpec()
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
LISTED = {"count": "BatchedNMS", "boxes": "BatchedNMS_1", "scores": "BatchedNMS_2", "classes": "BatchedNMS_3"}
EFFICIENT = {
    "count": "num_detections",
    "boxes": "detection_boxes",
    "scores": "detection_scores",
    "classes": "detection_classes",
}
DETR = {"logits": "pred_logits", "boxes": "pred_boxes"}
NETWORKS: dict[str, ModelInfo] = {
    "detectnet_v2": made.info(
        clustering={
            "car": Clustering("hybrid", 0.005, 4, 0.13, 1, 0.9, 0.4, 0.2),
            "default": Clustering("hybrid", 0.01, 8, 0.25),
        }
    ),
    "ssd": made.info(decoder="nms", class_ids=(1, 2), outputs={"detections": "NMS"}),
    "faster_rcnn": made.info(decoder="nms", class_ids=(0, 1), outputs={"detections": "nms_out"}),
    "yolo_v4": made.info(
        decoder="batched_nms",
        outputs=LISTED,
        input=InputInfo("Input", 32, 16, channel_order="bgr", scale=1.0, mean=(103.939, 116.779, 123.68)),
    ),
    "efficientdet": made.info(
        decoder="efficientdet", outputs=EFFICIENT, input=InputInfo("input", 32, 16, scale=1.0, layout="nhwc")
    ),
    "dino": made.info(
        decoder="detr", class_ids=(1, 3), outputs=DETR, input=InputInfo("inputs", 32, 16, resize="stretch", **IMAGENET)
    ),
    "grey": made.info(input=InputInfo("input_1", 32, 16, channels=1)),
}


def read(text: str) -> configparser.ConfigParser:
    """As GLib reads it: keys keep their case."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(text)
    return parser


def nvinfer(name: str, **options: Any) -> configparser.ConfigParser:
    base: dict[str, Any] = {"precision": "int8", "onnx": "model.onnx", "plan": "model.plan"}
    return read(deepstream.nvinfer(NETWORKS[name], SPEC, **{**base, **options}))


def test_detectnet_with_its_clustering() -> None:
    config = nvinfer("detectnet_v2", cache="cal.bin")
    assert (
        dict(config["property"]).items()
        >= {
            "network-mode": "1",
            "onnx-file": "model.onnx",
            "model-engine-file": "model.plan",
            "int8-calib-file": "cal.bin",
            "infer-dims": "3;16;32",
            "model-color-format": "0",
            "maintain-aspect-ratio": "1",
            "symmetric-padding": "0",
            "output-blob-names": "output_cov/Sigmoid;output_bbox/BiasAdd",
            "cluster-mode": "3",
            "num-detected-classes": "2",
        }.items()
    )
    assert float(config["property"]["net-scale-factor"]) == 1 / 255
    assert "parse-bbox-func-name" not in config["property"]
    assert dict(config["class-attrs-0"]) == {
        "pre-cluster-threshold": "0.005",
        "topk": "100",
        "eps": "0.13",
        "minBoxes": "1",
        "dbscan-min-score": "0.9",
        "detected-min-h": "4",
        "nms-iou-threshold": "0.4",
        "post-cluster-threshold": "0.2",
    }
    assert config["class-attrs-1"]["eps"] == "0.25"


def test_a_grey_picture_and_plain_nms() -> None:
    config = nvinfer("grey", precision="fp16", plan=None)
    assert config["property"]["model-color-format"] == "2"
    assert config["property"]["network-mode"] == "2"
    assert config["property"]["cluster-mode"] == "2"
    assert "model-engine-file" not in config["property"]
    assert config["class-attrs-all"]["nms-iou-threshold"] == "0.5"


def test_means_in_pixels() -> None:
    config = nvinfer("yolo_v4")["property"]
    assert (config["net-scale-factor"], config["offsets"]) == ("1.0", "103.939;116.779;123.68")
    assert config["model-color-format"] == "1"
    dino = nvinfer("dino")["property"]
    assert dino["offsets"] == "123.675;116.28;103.53"
    # NVIDIA's own configuration of DINO has 0.01735207357279195.
    assert float(dino["net-scale-factor"]) == pytest.approx(0.01735207, rel=1e-4)
    assert dino["maintain-aspect-ratio"] == "0"


@pytest.mark.parametrize(
    ("name", "ids", "labels"),
    [
        ("detectnet_v2", None, ["car", "person"]),
        ("ssd", None, ["background", "car", "person"]),
        ("faster_rcnn", None, ["car", "person", "background"]),
        ("yolo_v4", None, ["car", "person"]),
        ("dino", None, ["background", "car", "background", "person"]),
        ("dino", 6, ["background", "car", "background", "person", "background", "background"]),
    ],
)
def test_labels_by_the_networks_numbers(name: str, ids: int | None, labels: list[str]) -> None:
    assert deepstream.labels(NETWORKS[name], ids).split() == labels
    assert nvinfer(name, ids=ids)["property"]["num-detected-classes"] == str(len(labels))


@pytest.mark.parametrize(
    ("info", "said"),
    [
        (made.info(decoder="other"), "no parser of it is known; known are detectnet_v2, nms"),
        (made.info(bbox_norm=20.0), "bbox_norm 20 and offset 0.5: nvinfer's own parser of DetectNet_v2 has 35"),
        (
            made.info(decoder="detr", outputs=DETR),
            "'car' is 0, which NvDsInferParseCustomDDETRTAO takes",
        ),
        (made.info(decoder="detr", class_ids=(1, 9), outputs=DETR), "the largest is 9, and the network has 4 classes"),
        (made.info(decoder="detr", outputs={"logits": "l", "boxes": "b"}), "output 'b': .* looks for pred_logits"),
        (
            made.info(clustering={"car": Clustering("nms"), "person": Clustering("dbscan")}),
            "dbscan and nms; nvinfer has one algorithm for all classes",
        ),
        (
            made.info(input=InputInfo("i", 32, 16, mean=(0.0, 0.0, 0.0), std=(0.1, 0.5, 0.9))),
            "nvinfer has one factor for all channels",
        ),
    ],
)
def test_what_deepstream_cannot_run(info: ModelInfo, said: str) -> None:
    with pytest.raises(Unsupported, match=said):
        deepstream.nvinfer(info, SPEC, precision="fp16", onnx="model.onnx", plan=None, ids=4)


# In gst-nvinfer's own gstnvinfer_property_parser.h, and in none of the configurations of deepstream_tao_apps.
ONLY_IN_THE_PARSER = {"dbscan-min-score", "minBoxes", "eps", "post-cluster-threshold", "int8-calib-file"}


@pytest.mark.parametrize("name", NETWORKS)
def test_keys_are_those_of_nvidias_configurations(name: str) -> None:
    known = sources.grep("deepstream_tao_apps", "master", r"^[a-z0-9-]+ *=", "configs", "deepstream_app_tao_configs")
    known = {line.rstrip("= ") for line in known} | ONLY_IN_THE_PARSER
    config = nvinfer(name, cache="cal.bin")
    assert {key for section in config.sections() for key in config[section]} <= known


def test_keys_of_the_application() -> None:
    text = sources.show("deepstream_tao_apps", "master:deepstream_app_tao_configs/deepstream_app_source1_peoplenet.txt")
    theirs, ours = read(text), read(deepstream.app(SPEC))
    for section in ours.sections():
        assert section in theirs
        # `primary-gie` of theirs has no more than colours beside these; sinks of one type have the same keys.
        sinks = {key for name in ("sink0", "sink1") for key in theirs[name]}
        assert set(ours[section]) <= (sinks if section.startswith("sink") else set(theirs[section]))


@pytest.mark.parametrize("parser", [p for p in PARSERS.values() if p.function], ids=lambda p: p.function)
def test_parsers_are_in_nvidias_library(parser: deepstream.Parser) -> None:
    text = sources.show("deepstream_tao_apps", "master:post_processor/nvdsinfer_custombboxparser_tao.cpp")
    body = text[text.rindex(f"bool {parser.function}") :]
    assert all(f'"{tensor}"' in body[:4000] for tensor in parser.tensors)
