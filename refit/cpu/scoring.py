"""COCO's average precision of detections, by pycocotools.

Boxes and areas are in pixels of the original image. Images without objects count: what is found there is wrong.
Objects marked difficult, and those smaller than `min_box_px`, are ignored in COCO's sense: finding them is neither
right nor wrong, and they are matched after all others.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from refit.cpu.records import Record
from refit.postprocess import Detections

_ALL = (0.0, 1e10)  # the range of areas that is scored
_OUTSIDE = -1.0  # an area outside it: COCOeval then ignores the box (it overwrites an `ignore` flag of ours)


@dataclass(frozen=True, eq=False)
class Truth:
    """What is in one image: boxes float32 [n, 4] in pixels, classes int64 [n], ignore bool [n]."""

    file: str
    width: int
    height: int
    boxes: NDArray[np.float32]
    classes: NDArray[np.int64]
    ignore: NDArray[np.bool_]

    @staticmethod
    def of(record: Record, min_box_px: float = 0.0) -> Truth:
        """The truth of a record; boxes without area are left out, as they cannot be found."""
        boxes = record.boxes.clip(0, [record.width, record.height] * 2)
        sides = boxes[:, 2:] - boxes[:, :2]
        assert record.difficult is not None
        ignore = record.difficult | (sides.min(axis=1, initial=np.inf) < min_box_px)
        good = (sides > 0).all(axis=1)
        return Truth(record.file, record.width, record.height, boxes[good], record.classes[good], ignore[good])


@dataclass(frozen=True)
class Scores:
    """Average precisions in 0..1; None where no object of that kind is in the truth.

    Attributes:
        map50, map: mean over the classes that occur, at IoU 0.5, and over IoU 0.5, 0.55 ... 0.95.
        ap50, ap: per class name.
        recall50: per class name, of all objects, at IoU 0.5 and the lowest score threshold.
        objects, ignored, detections: counts per class name.
    """

    map50: float | None
    map: float | None
    ap50: Mapping[str, float | None]
    ap: Mapping[str, float | None]
    recall50: Mapping[str, float | None]
    objects: Mapping[str, int]
    ignored: Mapping[str, int]
    detections: Mapping[str, int]


def score(
    truth: Sequence[Truth],
    detections: Sequence[Detections],
    classes: Sequence[str],
    max_detections: int = 100,
    min_box_px: float = 0.0,
) -> Scores:
    """Score the detections of each image against its truth (two sequences in the same order)."""
    want = _coco(ground_truth(truth, classes))
    found = _coco({**ground_truth(truth, classes), "annotations": _found(detections, min_box_px)})
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        run = COCOeval(want, found, "bbox")
        run.params.maxDets = [max_detections]
        run.params.areaRng, run.params.areaRngLbl = [list(_ALL)], ["all"]
        run.evaluate()
        run.accumulate()
    precision = run.eval["precision"][:, :, :, 0, 0]  # [IoU, recall, class]; -1 where there is no object
    recall = run.eval["recall"][:, :, 0, 0]  # [IoU, class]
    ap50 = [_mean(precision[0, :, c]) for c in range(len(classes))]
    ap = [_mean(precision[:, :, c]) for c in range(len(classes))]
    counted = [sum(int(((t.classes == c) & ~t.ignore).sum()) for t in truth) for c in range(len(classes))]
    ignored = [sum(int(((t.classes == c) & t.ignore).sum()) for t in truth) for c in range(len(classes))]
    made = [sum(int((d.classes == c).sum()) for d in detections) for c in range(len(classes))]
    return Scores(
        map50=_mean(np.array([v for v in ap50 if v is not None])),
        map=_mean(np.array([v for v in ap if v is not None])),
        ap50=dict(zip(classes, ap50, strict=True)),
        ap=dict(zip(classes, ap, strict=True)),
        recall50={name: _mean(recall[0, c : c + 1]) for c, name in enumerate(classes)},
        objects=dict(zip(classes, counted, strict=True)),
        ignored=dict(zip(classes, ignored, strict=True)),
        detections=dict(zip(classes, made, strict=True)),
    )


def ground_truth(truth: Sequence[Truth], classes: Sequence[str]) -> dict[str, Any]:
    """The truth as a COCO instances file; image ids count from 0, category ids from 1.

    `ignore` boxes carry "ignore": 1 and an area of -1 (pycocotools reads only the latter).
    """
    annotations = [
        {**_box(image, int(c) + 1, box), "id": 0, "iscrowd": 0, **({"ignore": 1, "area": _OUTSIDE} if skip else {})}
        for image, t in enumerate(truth)
        for box, c, skip in zip(t.boxes, t.classes, t.ignore, strict=True)
    ]
    for i, annotation in enumerate(annotations, start=1):
        annotation["id"] = i
    return {
        "images": [{"id": i, "file_name": t.file, "width": t.width, "height": t.height} for i, t in enumerate(truth)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(classes, start=1)],
        "annotations": annotations,
    }


def results(truth: Sequence[Truth], detections: Sequence[Detections]) -> list[dict[str, Any]]:
    """Detections as a COCO results file, with the file's name beside the id of `ground_truth`."""
    return [
        {
            "image_id": image,
            "file_name": t.file,
            "category_id": int(c) + 1,
            "bbox": _xywh(box),
            "score": round(float(s), 5),
        }
        for image, (t, d) in enumerate(zip(truth, detections, strict=True))
        for box, s, c in zip(d.boxes, d.scores, d.classes, strict=True)
    ]


def _found(detections: Sequence[Detections], min_box_px: float) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for image, found in enumerate(detections):
        for box, value, c in zip(found.boxes, found.scores, found.classes, strict=True):
            annotation = {**_box(image, int(c) + 1, box), "id": len(out) + 1, "score": float(value)}
            # As in COCO's size ranges: a small box that matches nothing is ignored like small objects are.
            if float((box[2:] - box[:2]).min()) < min_box_px:
                annotation["area"] = _OUTSIDE
            out.append(annotation)
    return out


def _box(image: int, category: int, box: NDArray[np.float32]) -> dict[str, Any]:
    width, height = (float(v) for v in box[2:] - box[:2])
    return {
        "image_id": image,
        "category_id": category,
        "bbox": [float(box[0]), float(box[1]), width, height],
        "area": width * height,
    }


def _xywh(box: NDArray[np.float32]) -> list[float]:
    x1, y1, x2, y2 = (float(v) for v in box)
    return [round(v, 2) for v in (x1, y1, x2 - x1, y2 - y1)]


def _coco(dataset: dict[str, Any]) -> Any:
    coco = COCO()
    coco.dataset = dataset
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _mean(values: NDArray[Any]) -> float | None:
    """The mean, or None for nothing: COCOeval says -1 where there is no object."""
    if not values.size or values.min() < 0:
        return None
    mean = float(values.mean())
    return mean if math.isfinite(mean) else None
