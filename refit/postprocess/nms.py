"""Non-maximum suppression and overlap of boxes. numpy only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
_AT_ONCE = 64  # boxes: for so few, all overlaps in one go cost less than a call for each kept box


def iou(box: Floats, boxes: Floats) -> Floats:
    """Intersection over union of one box [4] with boxes [n, 4]; 0 where both are empty."""
    low = np.maximum(box[:2], boxes[:, :2])
    high = np.minimum(box[2:], boxes[:, 2:])
    shared = (high - low).clip(0).prod(axis=1)
    area = (boxes[:, 2:] - boxes[:, :2]).clip(0).prod(axis=1)
    union = (box[2:] - box[:2]).clip(0).prod() + area - shared
    return np.asarray(np.divide(shared, union, out=np.zeros_like(shared), where=union > 0))


def nms(boxes: Floats, scores: Floats, threshold: float, limit: int | None = None) -> NDArray[np.intp]:
    """Greedy suppression within one class.

    Args:
        boxes: [n, 4].
        scores: [n]; equal scores are taken in the order given, so the result is the same everywhere.
        threshold: a box that overlaps a better kept one by more is dropped.
        limit: stop after so many.

    Returns:
        Indices of the kept boxes, best first.
    """
    left = np.argsort(-scores, kind="stable")
    if len(left) <= _AT_ONCE:
        return left[_greedy(boxes[left], threshold)][:limit]
    kept: list[int] = []
    while len(left) and (limit is None or len(kept) < limit):
        best, left = left[0], left[1:]
        kept.append(int(best))
        left = left[iou(boxes[best], boxes[left]) <= threshold]
    return np.array(kept, dtype=np.intp)


def _greedy(boxes: Floats, threshold: float) -> list[int]:
    """The places of the boxes that stay, of boxes with the best first: the same arithmetic as `iou`."""
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    sides = (high - low).clip(0)
    shared = sides[..., 0] * sides[..., 1]
    sides = (boxes[:, 2:] - boxes[:, :2]).clip(0)
    area = sides[:, 0] * sides[:, 1]
    union = area[:, None] + area - shared
    overlaps = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0) > threshold
    kept: list[int] = []
    dropped = np.zeros(len(boxes), dtype=bool)
    for i, row in enumerate(overlaps):
        if not dropped[i]:
            kept.append(i)
            dropped |= row
    return kept
