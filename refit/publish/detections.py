"""What a model found on the evaluation images: precision and recall, who was taken for whom, and samples.

Reads what an evaluate stage of the cpu toolkit has left: `detections.json` (a COCO results file) and
`ground_truth.json` (a COCO instances file). Toolkits that leave none have none of this in their reports.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refit.gates import bootstrap

SCORE = 0.3  # of a detection that counts in the matrix and is drawn: where clients cut by default (model.json)
IOU = 0.5
SAMPLES = 8
_POINTS = 51  # of a curve

Json = dict[str, Any]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Detections:
    """Truth and detections of one split, as COCO has them; `thresholds` are those of the evaluation."""

    truth: Mapping[str, Any]
    found: Sequence[Mapping[str, Any]]
    thresholds: Mapping[str, Any]

    @property
    def classes(self) -> list[str]:
        return [str(c["name"]) for c in self.truth["categories"]]

    def as_json(self) -> Json:
        return {
            "images": len(self.truth["images"]),
            "curves": self.curves(),
            "confusion": {"labels": self.classes, "counts": self.confusion(), "score": SCORE, "iou": IOU},
        }

    def curves(self) -> dict[str, list[list[float]]]:
        """[recall, precision] of each class at IoU 0.5, the best precision at this recall or a higher one."""
        most = int(self.thresholds.get("max_detections", 100))
        matched = bootstrap.matches(self.truth, self.found, most, float(self.thresholds.get("min_box_px", 0.0)))
        recalls = np.linspace(0, 1, _POINTS)
        made = {}
        for name, m in matched.items():
            total = float(m.objects.sum())
            if not total:
                continue
            right = np.arange(1, len(m.tp) + 1)
            precision = right / (right + m.before)
            best = np.maximum.accumulate(precision[::-1])[::-1]
            at = np.searchsorted(right / total, recalls)
            points = [[float(r), float(best[i]) if i < len(best) else 0.0] for r, i in zip(recalls, at, strict=True)]
            made[name] = [[round(r, 4), round(p, 4)] for r, p in points]
        return made

    def confusion(self) -> list[list[int]]:
        """Rows: what is there, the last: nothing. Columns: what was found, the last: nothing. Best overlaps first."""
        ids = {c["id"]: i for i, c in enumerate(self.truth["categories"])}
        counts = np.zeros((len(ids) + 1, len(ids) + 1), int)
        truth, found = self._by_image()
        for image in self.truth["images"]:
            there, seen = truth[image["id"]], found[image["id"]]
            for row, column in _pairs(there, seen):
                counts[ids[there[row]["category_id"]] if row >= 0 else -1][
                    ids[seen[column]["category_id"]] if column >= 0 else -1
                ] += 1
        return [[int(n) for n in row] for row in counts]

    def _by_image(self) -> tuple[Mapping[Any, list[Any]], Mapping[Any, list[Any]]]:
        truth, found = defaultdict[Any, list[Any]](list), defaultdict[Any, list[Any]](list)
        for a in self.truth["annotations"]:
            if not a.get("ignore"):
                truth[a["image_id"]].append(a)
        for d in self.found:
            if d["score"] >= SCORE:
                found[d["image_id"]].append(d)
        return truth, found

    def samples(self) -> list[Json]:
        """Images that show the model at its work: first where most went wrong, then as they come, half and half."""
        truth, found = self._by_image()
        names = {c["id"]: str(c["name"]) for c in self.truth["categories"]}
        wrong = {}
        for image in self.truth["images"]:
            pairs = _pairs(truth[image["id"]], found[image["id"]])
            wrong[image["id"]] = sum(r < 0 or c < 0 for r, c in pairs)
        images = list(self.truth["images"])
        worst = sorted(images, key=lambda i: -wrong[i["id"]])[: SAMPLES // 2]
        others = [i for i in images if i not in worst]
        step = max(1, len(others) // max(1, SAMPLES - len(worst)))
        chosen = [*others[::step][: SAMPLES - len(worst)], *worst]
        return [
            {
                "file": str(image["file_name"]),
                "width": image["width"],
                "height": image["height"],
                "wrong": wrong[image["id"]],
                "truth": [[names[a["category_id"]], *a["bbox"]] for a in truth[image["id"]]],
                "found": [[names[d["category_id"]], d["score"], *d["bbox"]] for d in found[image["id"]]],
            }
            for image in chosen
        ]


def read_detections(folder: Path) -> Detections | None:
    """What lies in the folder of an evaluation; None where it has none of these files, or damaged ones."""
    try:
        truth, found, results = (
            json.loads((folder / name).read_text(encoding="utf-8"))
            for name in ("ground_truth.json", "detections.json", "results.json")
        )
        return Detections(truth, found, results.get("thresholds", {})) if truth["images"] else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _pairs(there: Sequence[Any], seen: Sequence[Any]) -> list[tuple[int, int]]:
    """(object, detection) of one image, -1 for none: whatever their classes are, the largest overlaps first."""
    pairs: list[tuple[int, int]] = []
    if there and seen:
        overlap = _overlaps(np.array([a["bbox"] for a in there], float), np.array([d["bbox"] for d in seen], float))
        while (best := int(overlap.argmax())) >= 0 and overlap.flat[best] >= IOU:
            row, column = divmod(best, overlap.shape[1])
            pairs.append((row, column))
            overlap[row, :] = overlap[:, column] = 0
    rows, columns = {r for r, _ in pairs}, {c for _, c in pairs}
    pairs += [(r, -1) for r in range(len(there)) if r not in rows]
    return pairs + [(-1, c) for c in range(len(seen)) if c not in columns]


def _overlaps(a: Floats, b: Floats) -> Floats:
    """IoU of each box of `a` with each of `b`; rows are x, y, width, height."""
    sides = np.minimum(a[:, None, :2] + a[:, None, 2:], b[:, :2] + b[:, 2:]) - np.maximum(a[:, None, :2], b[:, :2])
    inner = sides.clip(0).prod(axis=2)
    union = (a[:, 2] * a[:, 3])[:, None] + b[:, 2] * b[:, 3] - inner
    made: Floats = inner / np.maximum(union, 1e-9)
    return made
