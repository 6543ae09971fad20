"""The detections that an evaluation left, and what they say of two models: in all, by class, and in slices.

A slice is a part of what was evaluated: objects of a size, images of a group, images with a tag. Many parts are looked
at, so each is judged at a level that keeps all of them together at LEVEL (Bonferroni), and only where it has
LEAST_OBJECTS: a part of three objects would be "worse" by one miss.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from refit.gates import bootstrap
from refit.gates.bootstrap import Floats, Interval
from refit.gates.verdict import GateError

SEED = 7  # of the draws: the same results give the same verdict, to the last digit
SIZES: Mapping[str, tuple[float, float]] = {
    # In square pixels of the image; COCO's own limits (pycocotools, Params.setDetParams).
    "small": (0, 32**2),
    "medium": (32**2, 96**2),
    "large": (96**2, math.inf),
}
LEAST_OBJECTS = 20
MOST_SLICES = 20  # of one kind: the ones with the most images
Slice = Literal["size", "group", "tag"]


@dataclass(frozen=True)
class Part:
    """A class or a slice, and by how much the model lost there against the one before (negative: it gained)."""

    kind: str
    name: str
    before: float
    now: float
    drop: Interval

    @property
    def worse(self) -> bool:
        return self.drop.low > 0

    def __str__(self) -> str:
        return (
            f"{self.kind} {self.name} lost {self.drop.value:.3f} ({self.before:.3f} -> {self.now:.3f}, "
            f"{self.drop.low:.3f} to {self.drop.high:.3f})"
        )

    def to_json(self) -> dict[str, Any]:
        drop = {"value": self.drop.value, "low": self.drop.low, "high": self.drop.high}
        return {"kind": self.kind, "name": self.name, "before": self.before, "now": self.now, "drop": drop}


@dataclass(frozen=True, eq=False)
class Detected:
    """Truth (COCO instances), detections (COCO results) and the limits with which they were evaluated."""

    truth: Mapping[str, Any]
    found: Sequence[Mapping[str, Any]]
    max_detections: int
    min_box_px: float

    @cached_property
    def whole(self) -> tuple[Floats, dict[str, Floats]]:
        """`draws` of all images."""
        return self.draws()

    def draws(
        self, images: Set[Any] | None = None, area: tuple[float, float] = (0, math.inf)
    ) -> tuple[Floats, dict[str, Floats]]:
        """mAP@0.5 and AP@0.5 of each class for each draw of the images (or of some, or of objects of a size)."""
        number = len(self.truth["images"]) if images is None else len(images)
        matched = bootstrap.matches(
            self.truth, self.found, self.max_detections, self.min_box_px, images=images, area=area
        )
        return bootstrap.map50(matched, bootstrap.draws(number, SEED))

    def objects(self, images: Set[Any] | None = None, area: tuple[float, float] = (0, math.inf)) -> Counter[Any]:
        """How many objects there are to be found, by category id."""
        return Counter(
            a["category_id"]
            for a in self.truth["annotations"]
            if not a.get("ignore")
            and (images is None or a["image_id"] in images)
            and area[0] <= a["bbox"][2] * a["bbox"][3] < area[1]
        )


def read(path: str, results: Mapping[str, Any]) -> Detected | None:
    """What lies beside a results.json; None where no detections were written. Raises GateError."""
    folder = Path(path).parent
    files = [folder / "ground_truth.json", folder / "detections.json"]
    if Path(path).name != "results.json" or not all(f.exists() for f in files):
        return None
    thresholds = results.get("thresholds", {})
    try:
        truth, found = (json.loads(f.read_text(encoding="utf-8")) for f in files)
        most, least = int(thresholds.get("max_detections", 100)), float(thresholds.get("min_box_px", 0.0))
        made = Detected(truth, found, most, least)
        bootstrap.matches(truth, found[:1], most, least)
        places = {image["id"] for image in truth["images"]}
        if any(d["image_id"] not in places for d in found):
            raise ValueError("a detection is of no image of the truth")
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise GateError(f"{folder}: its detections cannot be read ({exc!r}); run the evaluate stage again") from None
    return made


def compare(now: Detected, before: Detected, kinds: Iterable[Slice], snapshot: Path | None) -> list[Part]:
    """Every class and slice with enough objects, of two evaluations of the same images. Raises GateError."""
    found = [*_classes(now, before)]
    for kind, name, images, area in _slices(now, kinds, snapshot):
        if sum(now.objects(images, area).values()) >= LEAST_OBJECTS:
            found.append((kind, name, now.draws(images, area)[0], before.draws(images, area)[0]))
    level = 1 - (1 - bootstrap.LEVEL) / max(1, len(found))
    parts = (
        Part(kind, name, float(old[0]), float(new[0]), bootstrap.interval(old - new, level))
        for kind, name, new, old in found
    )
    return [part for part in parts if math.isfinite(part.drop.low)]


def _classes(now: Detected, before: Detected) -> Iterator[tuple[str, str, Floats, Floats]]:
    names = {c["id"]: str(c["name"]) for c in now.truth["categories"]}
    enough = {names[c] for c, n in now.objects().items() if n >= LEAST_OBJECTS}
    new, old = now.whole[1], before.whole[1]
    for name in names.values():
        if name in enough and name in old:
            yield "class", name, new[name], old[name]


def _slices(
    now: Detected, kinds: Iterable[Slice], snapshot: Path | None
) -> Iterator[tuple[str, str, Set[Any] | None, tuple[float, float]]]:
    everything = (0.0, math.inf)
    wanted = set(kinds)
    if "size" in wanted:
        for name, area in SIZES.items():
            yield "size", name, None, area
    if snapshot is None or not wanted & {"group", "tag"}:
        return
    ids = {image["file_name"]: image["id"] for image in now.truth["images"]}
    by: dict[tuple[str, str], set[Any]] = defaultdict(set)
    for row in _rows(snapshot):
        if row["file"] in ids:
            for kind, key in (("group", "groups"), ("tag", "tags")):
                for name in row.get(key, ()) if kind in wanted else ():
                    by[kind, name].add(ids[row["file"]])
    for kind in ("group", "tag"):
        of_kind = [(images, name) for (k, name), images in by.items() if k == kind and len(images) < len(ids)]
        for images, name in sorted(of_kind, key=lambda entry: (-len(entry[0]), entry[1]))[:MOST_SLICES]:
            yield kind, name, images, everything


def _rows(snapshot: Path) -> Iterator[dict[str, Any]]:
    path = snapshot / "annotations.jsonl"
    try:
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)
    except (OSError, ValueError) as exc:
        raise GateError(f"{path}: cannot be read ({exc}); run bind again") from None


def total(now: Detected) -> Floats | None:
    """mAP@0.5 for each draw; None where there is nothing to be found."""
    drawn = now.whole[0]
    return None if np.isnan(drawn[0]) else drawn
