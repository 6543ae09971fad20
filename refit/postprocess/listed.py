"""Decoders of networks whose engine ends in a suppression plugin: a list of boxes with scores and class ids.

They only bring the list into one form. The shapes are those of the plugins in NVIDIA's TensorRT, as the exporters of
tao_tensorflow1_backend and tao_tensorflow2_backend put them at the end of the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refit.postprocess.detections import Detections, OutputError, Outputs, need, select, take
from refit.postprocess.frame import Frame
from refit.postprocess.info import ModelInfo

Array = NDArray[Any]


class Nms:
    """NMSDynamic_TRT, in ssd (`NMS`) and faster_rcnn (`nms_out`): detections [N, 1, K, 7].

    A row is image, class id, score, x1, y1, x2, y2; boxes in parts of the input (ssd/export/onnx_exporter.py,
    faster_rcnn/export/exporter.py: isNormalized). ssd's ids start at 1, background is 0; faster_rcnn's start at 0,
    background is the last. The second output, the count, is not read: it holds the bits of an int32 in a float32 tensor
    (TensorRT's nmsPlugin.cpp; tao_deploy's inferencer/utils.py reads it as int32), and the plugin marks rows without
    an object with class -1.
    """

    def __init__(self, info: ModelInfo) -> None:
        need(info, "detections")
        self._info = info

    def __call__(self, outputs: Outputs, frames: Sequence[Frame]) -> list[Detections]:
        rows = take(self._info, outputs, "detections", (len(frames), 1, None, 7))[:, 0]
        size = _size(self._info)
        return [select(self._info, f, r[:, 3:] * size, r[:, 2], r[:, 1]) for f, r in zip(frames, rows, strict=True)]


class BatchedNms:
    """BatchedNMSDynamic_TRT, in yolo_v4: count [N, 1], boxes [N, K, 4], scores [N, K], classes [N, K].

    Boxes are x1 y1 x2 y2 in parts of the input (yolo_v4/export/yolov4_exporter.py: isNormalized, clipBoxes); ids start
    at 0, there is no background.
    """

    def __init__(self, info: ModelInfo) -> None:
        need(info, "count", "boxes", "scores", "classes")
        self._info = info

    def __call__(self, outputs: Outputs, frames: Sequence[Frame]) -> list[Detections]:
        size = _size(self._info)
        return [
            select(self._info, frame, boxes * size, scores, ids)
            for frame, (boxes, scores, ids) in zip(frames, _lists(self._info, outputs, len(frames)), strict=True)
        ]


class EfficientDet:
    """EfficientNMS_TRT, in efficientdet_tf2: count [N, 1], boxes [N, K, 4], scores [N, K], classes [N, K].

    Boxes are y1 x1 y2 x2 in pixels of the input; ids start at 0 for the category with id 1
    (tao_deploy's efficientdet_tf2/inferencer.py).
    """

    def __init__(self, info: ModelInfo) -> None:
        need(info, "count", "boxes", "scores", "classes")
        self._info = info

    def __call__(self, outputs: Outputs, frames: Sequence[Frame]) -> list[Detections]:
        return [
            select(self._info, frame, boxes[:, [1, 0, 3, 2]], scores, ids)
            for frame, (boxes, scores, ids) in zip(frames, _lists(self._info, outputs, len(frames)), strict=True)
        ]


def _lists(info: ModelInfo, outputs: Outputs, images: int) -> list[tuple[Array, Array, Array]]:
    """Boxes, scores and ids of each image, cut at its count."""
    counts = take(info, outputs, "count", (images, 1))[:, 0]
    boxes = take(info, outputs, "boxes", (images, None, 4))
    rows = boxes.shape[1]
    scores = take(info, outputs, "scores", (images, rows))
    ids = take(info, outputs, "classes", (images, rows))
    if counts.dtype.kind not in "iu" or counts.min() < 0 or counts.max() > rows:
        name = info.outputs["count"]
        raise OutputError(f"output {name!r} is {counts.tolist()} ({counts.dtype}), expected whole numbers in 0..{rows}")
    return [(boxes[i, :k], scores[i, :k], ids[i, :k]) for i, k in enumerate(counts)]


def _size(info: ModelInfo) -> Array:
    return np.array([info.input.width, info.input.height] * 2, dtype=np.float32)
