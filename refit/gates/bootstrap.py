"""How sure an mAP@0.5 is: confidence intervals by resampling the evaluation images.

The images are drawn anew with replacement, and the AP of each class is computed for each draw. The interval is the
basic one (Davison, Hinkley: Bootstrap Methods and their Application, 1997, 5.2): the draws' deviations from the value,
turned round. The better known middle 95 % of the draws is wrong here: interpolated AP is too high on few images, and
higher still on drawn ones, so it held the mAP of 6,000 images in 61 to 73 % of cases only, the basic one in 92 to 100 %
(subsets of 25, 60, 150 images of the data in tests/cpu/test_bootstrap.py). Two models that were evaluated on the same
images are compared draw by draw, which takes out what the images have in common.

A detection is matched within its image, so drawing images changes only how much each match counts: matching is done
once, a draw is a weight for each image. AP, matching and ignored objects are as in pycocotools 2.0 (IoU 0.5, 101 recall
points); tests/cpu/test_bootstrap.py compares them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

IOU = 0.5
RESAMPLES = 1000
LEVEL = 0.95
_RECALLS = np.linspace(0, 1, 101)
_CHUNK_BYTES = 48 * 2**20

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Matches:
    """One class over all images, best detections first.

    objects: how many there are to be found, by image, [images]. tp: the images of the right detections, [n].
    fp: the images of the wrong ones, [m]; before: how many wrong ones come before each right one, [n].
    """

    objects: NDArray[np.float32]
    tp: NDArray[np.intp]
    fp: NDArray[np.intp]
    before: NDArray[np.intp]


@dataclass(frozen=True)
class Interval:
    """Holds the true figure in about LEVEL (or as asked) of all cases; `value` is that of the images as they are."""

    value: float
    low: float
    high: float


def matches(
    truth: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    max_detections: int,
    min_box_px: float,
    *,
    images: Set[Any] | None = None,
    area: tuple[float, float] = (0, math.inf),
) -> dict[str, Matches]:
    """Match detections (a COCO results file) with the truth (a COCO instances file); by class name.

    Boxes below `min_box_px` (pixels, the shorter side) that match nothing are ignored, as refit.cpu.scoring does.
    `images` (ids) leaves out all others; `area` (square pixels, from and below) objects of other sizes, as pycocotools
    does: they are ignored, and so are detections of other sizes that match nothing.
    """
    place = {
        image["id"]: i
        for i, image in enumerate(image for image in truth["images"] if images is None or image["id"] in images)
    }
    wanted, found = defaultdict[Any, list[Any]](list), defaultdict[Any, list[Any]](list)
    for a in truth["annotations"]:
        if images is None or a["image_id"] in images:
            other = not area[0] <= a["bbox"][2] * a["bbox"][3] < area[1]
            wanted[a["category_id"], a["image_id"]].append((*a["bbox"], bool(a.get("ignore")) or other))
    for d in detections:
        if images is None or d["image_id"] in images:
            found[d["category_id"], d["image_id"]].append((*d["bbox"], d["score"]))
    return {
        str(c["name"]): _class(
            {place[image]: rows for (cls, image), rows in wanted.items() if cls == c["id"]},
            {place[image]: rows for (cls, image), rows in found.items() if cls == c["id"]},
            len(place),
            max_detections,
            min_box_px,
            area,
        )
        for c in truth["categories"]
    }


def _class(
    wanted: Mapping[int, Sequence[Any]],
    found: Mapping[int, Sequence[Any]],
    images: int,
    most: int,
    min_box_px: float,
    area: tuple[float, float],
) -> Matches:
    objects = np.zeros(images, np.float32)
    for image, rows in wanted.items():
        objects[image] = sum(not row[4] for row in rows)
    scores, right, where = [np.empty(0)], [np.empty(0, bool)], [np.empty(0, np.intp)]
    for image in sorted(found):
        d = np.array(found[image], np.float64)
        d = d[np.argsort(-d[:, 4], kind="stable")][:most]
        hit, ignored = _match(d, np.array(wanted.get(image, ()), np.float64).reshape(-1, 5))
        size = d[:, 2] * d[:, 3]
        ignored |= ~hit & ((d[:, 2:4].min(axis=1) < min_box_px) | (size < area[0]) | (size >= area[1]))
        scores.append(d[~ignored, 4])
        right.append(hit[~ignored])
        where.append(np.full(int((~ignored).sum()), image, np.intp))
    order = np.argsort(-np.concatenate(scores), kind="stable")
    hits, places = np.concatenate(right)[order], np.concatenate(where)[order]
    return Matches(objects, places[hits], places[~hits], np.cumsum(~hits)[hits])


def _match(d: Floats, g: Floats) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which detections of an image are right, and which are neither right nor wrong. Rows: x, y, w, h, score|ignore."""
    hit, ignored = np.zeros(len(d), bool), np.zeros(len(d), bool)
    if not len(g):
        return hit, ignored
    sides = np.minimum(d[:, None, :2] + d[:, None, 2:4], g[:, :2] + g[:, 2:4]) - np.maximum(d[:, None, :2], g[:, :2])
    inner = sides.clip(0).prod(axis=2)
    iou = inner / ((d[:, 2] * d[:, 3])[:, None] + g[:, 2] * g[:, 3] - inner)
    counts = g[:, 4] == 0
    free = np.ones(len(g), bool)
    for i in np.flatnonzero((iou >= IOU).any(axis=1)):
        for kind in (counts, ~counts):
            could = np.where(free & kind, iou[i], 0.0)
            best = len(g) - 1 - int(np.argmax(could[::-1]))  # of equal ones the last, as pycocotools
            if could[best] >= IOU:
                free[best] = False
                (hit if kind is counts else ignored)[i] = True
                break
    return hit, ignored


def draws(images: int, seed: int, resamples: int = RESAMPLES) -> NDArray[np.uint8]:
    """How often each image is drawn, [1 + resamples, images]; the first row is the images as they are."""
    drawn = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=resamples)
    # Counts as of a Poisson distribution of mean 1: none comes near 255.
    return np.concatenate([np.ones((1, images), np.uint8), drawn.astype(np.uint8)])


def map50(found: Mapping[str, Matches], weights: NDArray[np.uint8]) -> tuple[Floats, dict[str, Floats]]:
    """mAP@0.5 and AP@0.5 of each class for each draw, [draws]; NaN where a draw has no object of the class."""
    by_class = {name: _ap(m, weights) for name, m in found.items()}
    every = np.stack(list(by_class.values()))
    there = ~np.isnan(every)
    total = np.where(there, every, 0).sum(axis=0)
    number = there.sum(axis=0)
    return np.divide(total, number, out=np.full(len(total), np.nan), where=number > 0), by_class


def _ap(m: Matches, weights: NDArray[np.uint8]) -> Floats:
    out = np.full(len(weights), np.nan)
    objects = weights.astype(np.float32) @ m.objects
    rows = max(1, _CHUNK_BYTES // (len(m.fp) + 32 * len(m.tp) + 1))
    for at in range(0, len(weights), rows):
        part = slice(at, at + rows)
        out[part] = _ap_of(m, weights[part], objects[part])
    return out


def _ap_of(m: Matches, weights: NDArray[np.uint8], objects: NDArray[np.float32]) -> Floats:
    # Precision is highest just after a right detection, so only those places matter.
    right = np.cumsum(weights[:, m.tp], axis=1, dtype=np.int32)
    precision = right / np.maximum(right + _wrong(m, weights), 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = right / objects[:, None]
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    reached = np.searchsorted(_RECALLS, recall, side="right")
    ap = (precision * np.diff(reached, axis=1, prepend=0)).sum(axis=1) / len(_RECALLS)
    return np.where(objects > 0, ap, np.nan)


def _wrong(m: Matches, weights: NDArray[np.uint8]) -> NDArray[np.int32]:
    """How many wrong detections come before each right one, [draws, n]: sums between them, then sums of these."""
    starts, last = np.unique(np.concatenate([[0], m.before]), return_inverse=True)
    fp = m.fp[: m.before[-1]] if len(m.before) else m.fp[:0]
    sums = np.zeros((len(weights), len(starts)), np.int32)
    if len(fp):  # the last start is the end of fp
        sums[:, 1:] = np.add.reduceat(weights[:, fp], starts[:-1], axis=1, dtype=np.int32)
    return np.cumsum(sums, axis=1, dtype=np.int32)[:, last[1:]]


def interval(values: Floats, level: float = LEVEL) -> Interval:
    """Of draws as `map50` gives them (or their differences): the first is the value itself."""
    value, tail = float(values[0]), (1 - level) / 2
    drawn = values[1:][~np.isnan(values[1:])]
    if not len(drawn) or np.isnan(value):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(value, 2 * value - float(high), 2 * value - float(low))
