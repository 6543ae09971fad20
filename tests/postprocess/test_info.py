"""model.json: what is written can be read, and what cannot be used is refused with its key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from refit.postprocess import Clustering, InputInfo, ModelInfo, ModelInfoError, Postprocess

INFO = ModelInfo(
    decoder="detectnet_v2",
    classes=("car", "person"),
    input=InputInfo("input_1", 320, 192, channels=1, resize="stretch"),
    outputs={"coverage": "output_cov/Sigmoid", "bbox": "output_bbox/BiasAdd"},
    stride=8,
    postprocess=Postprocess(0.25, 0.6, 50),
)
FULL = ModelInfo(
    decoder="detectnet_v2",
    classes=("car", "person"),
    input=InputInfo(
        "x",
        320,
        192,
        channel_order="bgr",
        scale=1.0,
        layout="nhwc",
        mean=(103.939, 116.779, 123.68),
        std=(1.0, 2.0, 3.0),
        place="centre",
        fill="mean",
        interpolation="linear",
    ),
    outputs={"coverage": "c", "bbox": "b"},
    class_ids=(1, 7),
    clustering={"car": Clustering("hybrid", 0.005, 4, 0.3, 1, 0.9, 0.4, 0.2), "default": Clustering()},
)


@pytest.mark.parametrize("info", [INFO, FULL])
def test_written_and_read_again(tmp_path: Path, info: ModelInfo) -> None:
    path = tmp_path / "model.json"
    path.write_text(info.text())
    assert ModelInfo.read(path) == info


def test_what_schema_1_did_not_begin_with_is_written_where_it_says_something() -> None:
    later = {"class_ids", "clustering"}
    assert later.isdisjoint(INFO.to_json())
    assert later <= set(FULL.to_json())
    assert FULL.to_json()["input"]["mean"] == [103.939, 116.779, 123.68]
    assert FULL.to_json()["clustering"]["car"]["dbscan_confidence_threshold"] == 0.9


def test_the_shape_of_the_input() -> None:
    assert INFO.input.shape == (1, 192, 320)
    assert FULL.input.shape == (192, 320, 3)


def test_a_class_is_joined_as_it_says_or_as_the_default_does() -> None:
    assert FULL.clustering_of(0).algorithm == "hybrid"
    assert FULL.clustering_of(1) == Clustering()


def test_the_form_is_the_contracts() -> None:
    assert INFO.to_json() == {
        "schema": 1,
        "decoder": "detectnet_v2",
        "classes": ["car", "person"],
        "input": {
            "name": "input_1",
            "width": 320,
            "height": 192,
            "channels": 1,
            "channel_order": "rgb",
            "scale": 1 / 255,
            "layout": "nchw",
            "resize": "stretch",
        },
        "outputs": {"coverage": "output_cov/Sigmoid", "bbox": "output_bbox/BiasAdd"},
        "stride": 8,
        "bbox_norm": 35.0,
        "offset": 0.5,
        "postprocess": {"score_threshold": 0.25, "nms_iou": 0.6, "max_detections": 50},
    }


def changed(path: tuple[str, ...], value: Any) -> Any:
    data = json.loads(INFO.text())
    at = data
    for key in path[:-1]:
        at = at[key]
    if value is None:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("schema",), 2, "schema must be 1"),
        (("decoder",), None, "decoder is missing"),
        (("input", "name"), None, "input.name is missing"),
        (("input", "widht"), 3, "unknown key input.widht"),
        (("input", "width"), "320", "input.width is '320', which is not a whole number"),
        (("input", "width"), True, "input.width is True"),
        (("input", "width"), 0, "input.width is 0; it must be above 0"),
        (("input", "channels"), 4, "input.channels is 4; it must be 1 or 3"),
        (("input", "resize"), "crop", "input.resize is 'crop'; use 'letterbox' or 'stretch'"),
        (("classes",), [], "classes is []; it must be a list of names"),
        (("classes",), "car", "classes is 'car', which is not a list"),
        (("classes",), ["a", 1], "classes[1] is 1, which is not a word"),
        (("input", "channel_order"), "brg", "input.channel_order is 'brg'; use 'rgb' or 'bgr'"),
        (("input", "mean"), [1, 2, 3], "input.mean is [1.0, 2.0, 3.0]; it must be a list of 1 numbers, or empty"),
        (("input", "mean"), ["1"], "input.mean[0] is '1', which is not a number"),
        (("input", "std"), [0], "input.std is [0.0]; it must be above 0"),
        (("input", "fill"), "imagenet", "input.fill is 'imagenet'; it must be black or mean for a grey input"),
        (("class_ids",), [1], "class_ids is [1]; it must be a number for each of 2 classes"),
        (("class_ids",), [1, 1], "class_ids is [1, 1]; it must be without a number that stands twice"),
        (("class_ids",), [-1, 0], "class_ids is [-1, 0]; it must be 0 or above"),
        (("clustering",), {"car": {"dbscan_epsilon": 1}}, "unknown key clustering.car.dbscan_epsilon"),
        (("clustering",), {"car": {"algorithm": "meanshift"}}, "clustering.car.algorithm is 'meanshift'; use 'dbscan'"),
        (("clustering",), {"car": {"dbscan_eps": 3}}, "clustering.car.dbscan_eps is 3.0; it must be in 0..1"),
        (("clustering",), {"car": {"dbscan_min_samples": 0}}, "clustering.car.dbscan_min_samples is 0.0; it must be"),
        (("clustering",), {"car": {}}, "clustering.person is missing; give it, or 'default' for the rest"),
        (("clustering",), {"bus": {}}, "clustering.bus is of no class; classes: car, person"),
        (("classes",), ["a", "a"], "a name stands there twice"),
        (("outputs",), ["x"], "outputs is"),
        (("bbox_norm",), -1, "bbox_norm is -1.0"),
        (("postprocess", "nms_iou"), 2, "postprocess.nms_iou is 2.0; it must be in 0..1"),
        (("postprocess",), 3, "postprocess must be an object"),
    ],
)
def test_faults_name_file_and_key(path: tuple[str, ...], value: Any, message: str) -> None:
    with pytest.raises(ModelInfoError) as caught:
        ModelInfo.from_json(changed(path, value), "models/x/model.json")
    assert str(caught.value).startswith("models/x/model.json: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("data", [[], "text", None])
def test_not_an_object(data: Any) -> None:
    with pytest.raises(ModelInfoError, match="must be a JSON object"):
        ModelInfo.from_json(data)


def test_no_file_and_no_json(tmp_path: Path) -> None:
    with pytest.raises(ModelInfoError, match="must lie beside the exported model"):
        ModelInfo.read(tmp_path / "model.json")
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(ModelInfoError, match="not JSON"):
        ModelInfo.read(tmp_path / "model.json")


def test_a_whole_number_is_good_where_a_number_is_asked() -> None:
    assert ModelInfo.from_json(changed(("bbox_norm",), 35)).bbox_norm == 35.0
