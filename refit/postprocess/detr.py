"""The decoder of the DETR family: rtdetr, dino, deformable_detr."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refit.postprocess.detections import Detections, Outputs, need, select, take
from refit.postprocess.frame import Frame
from refit.postprocess.info import ModelInfo


class Detr:
    """Logits [N, queries, ids] and boxes [N, queries, 4], a box as centre, width and height in parts of the input.

    Every pair of a query and an id is a candidate with its sigmoid as score; the best `max_detections` (TAO's
    model.num_select) of all pairs stay, and are not suppressed any further (tao_deploy's deformable_detr/utils.py). The
    last axis of the logits is the category id of the training annotations (tao_pytorch's
    deformable_detr/dataloader/od_dataset.py), so with ids from 1 channel 0 is nobody's: `ModelInfo.class_ids`.
    """

    def __init__(self, info: ModelInfo) -> None:
        need(info, "logits", "boxes")
        self._info = info
        self._size = np.array([info.input.width, info.input.height] * 2, dtype=np.float32)

    def __call__(self, outputs: Outputs, frames: Sequence[Frame]) -> list[Detections]:
        logits = take(self._info, outputs, "logits", (len(frames), None, None)).astype(np.float32)
        boxes = take(self._info, outputs, "boxes", (len(frames), logits.shape[1], 4)).astype(np.float32)
        centre, half = boxes[..., :2], boxes[..., 2:] / 2
        corners = np.concatenate([centre - half, centre + half], axis=-1) * self._size
        with np.errstate(over="ignore"):  # exp of a very unlikely logit is infinite, its score 0
            scores = (1 / (1 + np.exp(-logits))).reshape(len(frames), -1)
        found = []
        for i, frame in enumerate(frames):
            best = np.argsort(-scores[i], kind="stable")[: self._info.postprocess.max_detections]
            query, ids = np.divmod(best, logits.shape[2])
            found.append(select(self._info, frame, corners[i, query], scores[i, best], ids))
        return found
