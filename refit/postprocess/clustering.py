"""How NVIDIA TAO joins the cells of DetectNet_v2: DBSCAN, NMS, or DBSCAN and then NMS, with its own parameters.

The rules are those of tao_deploy's cv/detectnet_v2/utils.py (`cluster_bboxes`), which are also those of
tao_tensorflow1_backend's detectnet_v2/postprocessor/utilities.py. scikit-learn, whose DBSCAN both use, would bring
190 MB with scipy into the tools image for the thirty lines that stand here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refit.postprocess.info import Clustering

Boxes = NDArray[np.float32]
Scores = NDArray[np.float32]

_EPS = 1e-12  # cv/detectnet_v2/postprocessor.py adds it to dbscan_eps


def cluster(boxes: Boxes, coverage: Scores, settings: Clustering) -> tuple[Boxes, Scores]:
    """The objects of one class.

    Args:
        boxes: [n, 4] in pixels of the input, in TAO's order of cells: column by column.
        coverage: [n].

    Returns:
        (boxes [m, 4], scores [m]). The score of NMS is a coverage, that of DBSCAN the sum of its cluster's, so it
        can be above 1.
    """
    strong = coverage > settings.coverage_threshold
    boxes, coverage = boxes[strong], coverage[strong]
    if settings.algorithm == "nms":
        return _nms(boxes, coverage, settings)
    clusters = [
        members
        for members in _clusters(boxes, coverage, settings)
        if _height(_mean(boxes[members], coverage[members])) > settings.minimum_bounding_box_height
        and coverage[members].sum() >= settings.dbscan_confidence_threshold
    ]
    if settings.algorithm == "hybrid":
        kept = np.concatenate([*clusters, np.zeros(0, dtype=np.intp)])
        return _nms(boxes[kept], coverage[kept], settings)
    means = [_mean(boxes[members], coverage[members]) for members in clusters]
    sums = [coverage[members].sum() for members in clusters]
    return np.array(means, np.float32).reshape(-1, 4), np.array(sums, np.float32)


def dbscan(neighbours: Sequence[NDArray[np.intp]], weights: NDArray[Any], min_samples: float) -> NDArray[np.intp]:
    """Density-based clusters, with the labels of scikit-learn's DBSCAN.

    A point whose neighbours (itself among them) weigh at least `min_samples` is a core. Cores that are neighbours have
    one label, counted from 0 in the order of their first core; another point has the lowest label among the cores that
    are its neighbours, or -1.
    """
    core = np.array([weights[near].sum() >= min_samples for near in neighbours], dtype=bool)
    labels = np.full(len(neighbours), -1, dtype=np.intp)
    label = 0
    for first in np.nonzero(core)[0].tolist():
        if labels[first] >= 0:
            continue
        labels[first] = label
        border: list[int] = [first]
        while border:
            near = neighbours[border.pop()]
            fresh = near[labels[near] < 0]
            labels[fresh] = label
            border.extend(fresh[core[fresh]].tolist())
        label += 1
    return labels


def _clusters(boxes: Boxes, coverage: Scores, settings: Clustering) -> list[NDArray[np.intp]]:
    """The members of each cluster; the distance of two boxes is 1 - IoU."""
    labels = dbscan(_neighbours(boxes, settings.dbscan_eps + _EPS), coverage, settings.dbscan_min_samples)
    return [np.nonzero(labels == label)[0] for label in range(labels.max(initial=-1) + 1)]


def _neighbours(boxes: Boxes, radius: float) -> list[NDArray[np.intp]]:
    """The boxes whose 1 - IoU with a box is at most this, for each; box by box, as n x n of them may need gigabytes."""
    left, top, right, bottom = np.ascontiguousarray(boxes.T)
    areas = (right - left) * (bottom - top)
    found = []
    for i in range(len(boxes)):
        wide = np.minimum(right, right[i]) - np.maximum(left, left[i])
        high = np.minimum(bottom, bottom[i]) - np.maximum(top, top[i])
        shared = wide.clip(0) * high.clip(0)
        # TAO's IoU: 0.01 in the union keeps empty boxes from dividing by zero.
        found.append(np.nonzero(1 - shared / (areas[i] + areas - shared + 0.01) <= radius)[0])
    return found


def _mean(boxes: Boxes, weights: Scores) -> Boxes:
    return np.asarray((boxes * (weights / weights.sum())[:, None]).sum(axis=0))


def _height(box: Boxes) -> np.float32:
    return np.float32(box[3] - box[1])


def _nms(boxes: Boxes, coverage: Scores, settings: Clustering) -> tuple[Boxes, Scores]:
    """Greedy NMS in whole pixels (a box of x1 = x2 is one pixel wide); the minimum height plays no part in it.

    TAO's own function sorts and zeroes its coverage in place and then looks the scores up at the old places, so what it
    calls the confidence of a box can be another box's or 0 (`get_keep_indices`: scores = covs). Here a box has its own.
    """
    left = np.argsort(-coverage, kind="stable")
    kept: list[int] = []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(int(best))
        sides = np.minimum(boxes[best, 2:], boxes[left, 2:]) - np.maximum(boxes[best, :2], boxes[left, :2]) + 1
        shared = sides.clip(0).prod(axis=1)
        areas = (boxes[left, 2:] - boxes[left, :2] + 1).prod(axis=1)
        union = (boxes[best, 2:] - boxes[best, :2] + 1).prod() + areas - shared
        left = left[shared / union <= settings.nms_iou_threshold]
    index = np.array(kept, dtype=np.intp)
    index = index[coverage[index] > settings.nms_confidence_threshold]
    return boxes[index], coverage[index]
