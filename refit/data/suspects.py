"""Likely label errors: where the labels and a trained model disagree, the likeliest first. Nothing is ever dropped.

Four kinds, each with a score from 0 to 1 (higher: more likely an error of the label), in the manner of Tkachenko,
Thyagarajan, Mueller 2023, "ObjectLab: Automated Diagnosis of Mislabeled Images in Object Detection Data", with other
formulas (theirs is free software under the AGPL, and none of it is used here):

- `missing`: the model is sure of an object where no label is. Score: its confidence, less what a label overlaps it.
- `spurious`: a label for which the model has nothing to show. Score: how much less its confidence times overlap is than
  what it mostly has for a label of that class, times the share of the class's labels for which it has at least half of
  that (the silence of a model that misses many says little).
- `class`: a label that the model, at the same place, calls something else. Score: that confidence, less the one that
  it has in the label's own class there, against what it mostly has for a label of the class that it says.
- `place`: a label that the model sees, of the same class, at edges of its own. Score: confidence times (1 - IoU),
  doubled (an IoU of 0.5 is the worst that still is a match).

A model says little about the pictures it was trained on: it has learnt their errors. Predictions on images that it did
not train on (the evaluation set, or those of a cross-validation) say more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

KINDS = ("missing", "spurious", "class", "place")

MATCH = 0.5
"""IoU from which a prediction and a label are the same object: PASCAL VOC's, and ObjectLab's."""

NEAR = 0.2
"""IoU from which a label and a prediction of its class, both without a partner, are one object badly placed."""

LEAST = 0.5
"""Suspects with a lower score are not told."""

Boxes = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Objects:
    """Boxes [n, 4] in pixels (x1, y1, x2, y2), class names, and for predictions scores [n]."""

    boxes: Boxes
    classes: Sequence[str]
    scores: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))


@dataclass(frozen=True, slots=True)
class Suspect:
    """`box` is the label's, for `missing` the model's. `label` is the label's class ("" for missing), `model` the
    model's ("" for spurious), `seen` the model's box where it is another one."""

    file: str
    kind: str
    score: float
    box: tuple[float, float, float, float]
    label: str = ""
    model: str = ""
    seen: tuple[float, float, float, float] | None = None

    def told(self) -> str:
        """What a person should look at."""
        return {
            "missing": f"not labelled? the model sees {self.model!r} here",
            "spurious": f"no {self.label!r} here? the model sees nothing",
            "class": f"called {self.label!r}; the model says {self.model!r}",
            "place": f"{self.label!r} badly placed? the model's box has other edges",
        }[self.kind]

    def as_json(self) -> dict[str, Any]:
        row = {name: getattr(self, name) for name in self.__slots__}
        return {k: v for k, v in row.items() if v not in ("", None)} | {"told": self.told()}


def ranked(images: Iterable[tuple[str, Objects, Objects]], least: float = LEAST) -> list[Suspect]:
    """The suspects of (file, labels, predictions) of images, the likeliest first; equal scores by name.

    A label is told of once, for the likeliest of its errors.
    """
    found: list[Suspect] = []
    judged: list[tuple[Suspect, float]] = []
    supports: dict[str, list[float]] = {}
    for file, labels, seen in images:
        of_labels, missing = of_image(file, labels, seen)
        found += missing
        judged += of_labels
        for name, (_, support) in zip(labels.classes, of_labels, strict=True):
            supports.setdefault(name, []).append(support)
    usual = defaultdict(float) | {name: float(np.mean(values)) for name, values in supports.items()}
    shown = {name: float(np.mean(np.array(values) >= usual[name] / 2)) for name, values in supports.items()}
    for suspect, support in judged:
        name, score = suspect.label, suspect.score
        if suspect.kind == "class" and usual[suspect.model] > 0:
            score = min(1.0, score / usual[suspect.model])
        lack = max(0.0, 1 - support / usual[name]) * shown[name] if usual[name] > 0 else 0.0
        told = replace(suspect, score=_rounded(score))
        found.append(Suspect(suspect.file, "spurious", _rounded(lack), suspect.box, name) if lack > score else told)
    return sorted((s for s in found if s.score >= least), key=lambda s: (-s.score, s.file, s.box))


def of_image(file: str, labels: Objects, seen: Objects) -> tuple[list[tuple[Suspect, float]], list[Suspect]]:
    """For each label its likeliest error of class or place, and what the model has to show for it (confidence times
    overlap); and what may be missing. All scores, however small."""
    overlap = ious(labels.boxes, seen.boxes)
    alike = np.array([[a == b for b in seen.classes] for a in labels.classes], bool).reshape(overlap.shape)
    taken = np.zeros(len(seen.classes), bool)
    partner = np.full(len(labels.classes), -1)
    # As in COCO's matching: the surest prediction first, each to the label of its class that it overlaps most. What is
    # left over may still be meant by a label that is badly placed.
    for least in (MATCH, NEAR):
        for j in np.argsort(-seen.scores, kind="stable"):
            free = np.where(alike[:, j] & (partner < 0) & ~taken[j], overlap[:, j], 0.0)
            if len(free) and free.max() >= least:
                partner[int(free.argmax())] = j
                taken[j] = True
    judged = []
    for i, name in enumerate(labels.classes):
        box, own = _box(labels.boxes[i]), int(partner[i])
        support = float((seen.scores * overlap[i])[alike[i]].max(initial=0.0))
        sure = float(seen.scores[own]) if own >= 0 else support
        others = np.where(~alike[i] & ~taken & (overlap[i] >= MATCH), seen.scores, 0.0)
        best = int(others.argmax()) if len(others) else -1
        if best >= 0 and others[best] > sure:
            taken[best] = True  # it is this object, so it is not missing
            of = seen.classes[best], _box(seen.boxes[best])
            suspect = Suspect(file, "class", _rounded(float(others[best]) - sure), box, name, *of)
        elif own >= 0:
            score = min(1.0, sure * 2 * (1 - float(overlap[i, own])))
            suspect = Suspect(file, "place", _rounded(score), box, name, name, _box(seen.boxes[own]))
        else:
            suspect = Suspect(file, "spurious", 0.0, box, name)
        judged.append((suspect, support))
    missing = []
    for j in map(int, np.flatnonzero(~taken)):
        score = float(seen.scores[j]) * (1 - float(overlap[:, j].max(initial=0.0)))
        missing.append(Suspect(file, "missing", _rounded(score), _box(seen.boxes[j]), "", seen.classes[j]))
    return judged, missing


def ious(a: Boxes, b: Boxes) -> Boxes:
    """[n, m] intersections over unions of boxes [n, 4] and [m, 4]."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    both = (high - low).clip(0).prod(axis=2)
    area_a, area_b = ((v[:, 2:] - v[:, :2]).prod(axis=1) for v in (a, b))
    union = area_a[:, None] + area_b[None] - both
    return np.asarray(np.divide(both, union, out=np.zeros_like(both), where=union > 0))


def _rounded(score: float) -> float:
    return round(score, 4)


def _box(box: Boxes) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = (round(float(v), 2) for v in box)
    return x1, y1, x2, y2


# ---- predictions


class BadPredictions(ValueError):
    """A predictions file that cannot be used; says why and what to do."""


def read_results(results: Any, truth: Mapping[str, Any] | None, classes: Sequence[str]) -> dict[str, Objects]:
    """Predictions by image name from a COCO results file: a list of {image_id, category_id, bbox, score}.

    `truth` is the COCO instances file that gives the ids their names (`ground_truth.json` of the evaluate stage);
    without it each result needs a `file_name` (those of Refit have one), and category i is the i-th of `classes`.
    Raises BadPredictions.
    """
    if not isinstance(results, list):
        raise BadPredictions("not a COCO results file: a list of {image_id, category_id, bbox, score} is meant")
    names: dict[Any, str] = dict(enumerate(classes, start=1))
    files: dict[Any, str] = {}
    if truth is not None:
        try:
            names = {c["id"]: str(c["name"]) for c in truth["categories"]}
            files = {i["id"]: str(i["file_name"]) for i in truth["images"]}
        except (KeyError, TypeError) as exc:
            raise BadPredictions(f"the ground truth is no COCO instances file: {exc!r}") from None
    found: dict[str, tuple[list[list[float]], list[str], list[float]]] = {f: ([], [], []) for f in files.values()}
    for at, row in enumerate(results):
        try:
            x, y, w, h = (float(v) for v in row["bbox"])
            category, score = row["category_id"], float(row["score"])
            file = row.get("file_name") or files.get(row["image_id"])
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise BadPredictions(f"result {at} is not {{image_id, category_id, bbox, score}}: {exc!r}") from None
        if file is None:
            hint = "name the COCO file that has the ids (--truth)"
            raise BadPredictions(f"result {at}: image_id {row['image_id']!r} is of no known image; {hint}")
        if category not in names:
            hint = "predictions and data set must be of one pipeline, or name the COCO file that has the ids (--truth)"
            raise BadPredictions(
                f"result {at}: category_id {category!r} is none of {', '.join(map(str, names))}; {hint}"
            )
        if not np.isfinite([x, y, w, h, score]).all():
            raise BadPredictions(f"result {at}: bbox and score must be finite numbers")
        boxes, labels, scores = found.setdefault(file, ([], [], []))
        boxes.append([x, y, x + w, y + h])
        labels.append(names[category])
        scores.append(score)
    return {
        file: Objects(np.array(boxes, np.float64).reshape(-1, 4), labels, np.array(scores))
        for file, (boxes, labels, scores) in found.items()
    }


def pairs(
    rows: Iterable[Mapping[str, Any]], predictions: Mapping[str, Objects]
) -> Iterator[tuple[str, Objects, Objects]]:
    """Each row of annotations.jsonl whose image was given to the model."""
    for row in rows:
        seen = predictions.get(row["file"])
        if seen is not None:
            objects = row["objects"]
            boxes = np.array([[o[k] for k in ("x1", "y1", "x2", "y2")] for o in objects], np.float64).reshape(-1, 4)
            yield row["file"], Objects(boxes, [o["class"] for o in objects]), seen
