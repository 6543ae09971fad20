"""The decoder of DetectNet_v2, NVIDIA TAO's and the cpu toolkit's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refit.postprocess.clustering import cluster
from refit.postprocess.detections import Detections, Outputs, need, take, whole
from refit.postprocess.frame import Frame
from refit.postprocess.info import ModelInfo
from refit.postprocess.nms import nms

_CANDIDATES = 1000  # boxes of a class that enter NMS; far more than any image of ours holds


class DetectNetV2:
    """Coverage [N, C, h, w] and boxes [N, 4C, h, w] on a grid, as NVIDIA TAO's DetectNet_v2 gives them.

    Each cell votes for one box a class: distances from the cell's centre to the four edges, in units of `bbox_norm`
    pixels (tao_deploy's cv/detectnet_v2/postprocessor.py). Cells are joined as `ModelInfo.clustering` says for their
    class, in pixels of the input; without it by plain NMS in pixels of the image.
    """

    def __init__(self, info: ModelInfo) -> None:
        need(info, "coverage", "bbox")
        self._info = info
        height, width = info.input.height // info.stride, info.input.width // info.stride
        # The centre of a cell, not of the pixels that it stands for: TAO's convention (docs/contracts.md).
        y, x = np.mgrid[0:height, 0:width].astype(np.float32) * info.stride + info.offset
        self._centres = np.stack([x, y, x, y], axis=-1)

    def __call__(self, outputs: Outputs, frames: Sequence[Frame]) -> list[Detections]:
        images, classes, grid = len(frames), len(self._info.classes), self._centres.shape[:2]
        coverage = take(self._info, outputs, "coverage", (images, classes, *grid))
        distance = take(self._info, outputs, "bbox", (images, 4 * classes, *grid))
        distance = distance.reshape(images, classes, 4, *grid).transpose(0, 1, 3, 4, 2)
        image = self._clustered if self._info.clustering else self._suppressed
        return [image(coverage[i], distance[i], frame) for i, frame in enumerate(frames)]

    def _boxes(self, centres: NDArray[np.float32], distance: NDArray[Any]) -> NDArray[np.float32]:
        """Boxes in pixels of the input."""
        signs = np.array([-1, -1, 1, 1], dtype=np.float32) * np.float32(self._info.bbox_norm)
        return np.asarray(centres + signs * distance, dtype=np.float32)

    def _suppressed(self, coverage: NDArray[Any], distance: NDArray[Any], frame: Frame) -> Detections:
        settings = self._info.postprocess
        cls, row, column = np.nonzero(coverage >= settings.score_threshold)
        scores = coverage[cls, row, column].astype(np.float32)
        boxes = frame.to_image(self._boxes(self._centres[row, column], distance[cls, row, column]))
        found = whole(Detections(boxes, scores, cls.astype(np.int64)))
        return join(found, settings.nms_iou, settings.max_detections)

    def _clustered(self, coverage: NDArray[Any], distance: NDArray[Any], frame: Frame) -> Detections:
        settings = self._info.postprocess
        boxes, scores, classes = [], [], []
        for c in range(len(self._info.classes)):
            # Column by column, as TAO lists cells: the order decides which of two clusters a box between them joins.
            cells = self._boxes(self._centres, distance[c]).swapaxes(0, 1).reshape(-1, 4)
            box, score = cluster(cells, coverage[c].T.ravel().astype(np.float32), self._info.clustering_of(c))
            boxes.append(frame.to_image(box))
            scores.append(score)
            classes.append(np.full(len(score), c, dtype=np.int64))
        found = whole(Detections(np.concatenate(boxes), np.concatenate(scores), np.concatenate(classes)))
        return found.above(settings.score_threshold).best(settings.max_detections)


def join(found: Detections, nms_iou: float, max_detections: int) -> Detections:
    """NMS within each class, then the best of all classes."""
    kept: list[NDArray[np.intp]] = []
    for c in np.unique(found.classes):
        mine = np.nonzero(found.classes == c)[0]
        if len(mine) > _CANDIDATES:
            mine = mine[np.argsort(-found.scores[mine], kind="stable")[:_CANDIDATES]]
        kept.append(mine[nms(found.boxes[mine], found.scores[mine], nms_iou, max_detections)])
    index = np.concatenate(kept) if kept else np.zeros(0, dtype=np.intp)
    return Detections(found.boxes[index], found.scores[index], found.classes[index]).best(max_detections)
