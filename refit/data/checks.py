"""What is checked of one image and its labels, and of the data set as a whole.

Everything here is a pure function of what was read: faults come out, nothing is logged or dropped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from refit.data import doubts
from refit.data.codes import CODES
from refit.data.faults import Fault, fault
from refit.data.model import Box, Columns, Labelled, Labels, Sample
from refit.data.samples import Samples
from refit.specs import did_you_mean

_VISIBLE = 0.5  # a box of which less lies in the image is not trusted
MIN_SIDE = 0.01  # pixels; a thinner box would vanish as float32


@dataclass
class Classes:
    """Which labels are learnt as which class.

    `names` None takes every label as a class of its own name (`refit dataset check` without a pipeline). `asked` are
    the labels that it was asked of.
    """

    names: Sequence[str] | None = None
    class_map: Mapping[str, str | None] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)
    _advice: dict[str, str] = field(default_factory=dict)

    def of(self, label: str) -> str | None:
        """The class of a label, None where class_map leaves it out. Raises KeyError for an unknown one."""
        self.asked.add(label)
        if label in self.class_map:
            return self.class_map[label]
        if self.names is None or label in self.names:
            return label
        raise KeyError(label)

    def advice(self, label: str) -> str:
        """What to do about an unknown label."""
        if label not in self._advice:
            known = [*(self.names or ()), *self.class_map]
            folded = {k.casefold(): k for k in known}
            near = folded.get(label.casefold())
            hint = f"; did you mean '{near}'?" if near else did_you_mean(label, known)
            self._advice[label] = CODES["unknown_class"].advice + hint
        return self._advice[label]


def plain(found: Columns, sizes: NDArray[np.float64], classes: Classes) -> tuple[list[bool], list[str]]:
    """Of which images `boxes` would take all objects as they are and say nothing, and the class of each object, "" for
    one that is not learnt.

    `sizes` [n, 2] are the images' widths and heights. An image of which nothing is known to be wrong may still be
    missing here: then it takes longer.
    """
    learnt = {"": ""}
    for label in set(found.labels) - {""}:
        try:
            learnt[label] = classes.of(label) or ""
        except KeyError:
            learnt[label] = ""
    called = list(map(learnt.__getitem__, found.labels))
    counts = np.maximum(found.counts, 0)
    image = np.repeat(np.arange(len(counts)), counts)
    x1, y1, x2, y2 = found.boxes[:, :4].T
    width, height = sizes[image].T
    inside = (x1 >= 0) & (x1 <= x2 - MIN_SIDE) & (y1 >= 0) & (y1 <= y2 - MIN_SIDE) & (x2 <= width) & (y2 <= height)
    good = counts > 0
    good[image[~inside | np.array([not cls for cls in called], np.bool_)]] = False
    good[doubts.images_with_odd_boxes(found.boxes, image, width * height)] = False
    return good.tolist(), called


def boxes(labels: Labels, file: str, width: int, height: int, classes: Classes) -> tuple[list[Box], list[Fault]]:
    """The objects that can be learnt, inside the image; and a fault for each that cannot, or was cut at the edge.

    The number of boxes and the objects in the faults add up to `len(labels.objects)`.
    """
    good: list[Box] = []
    lines: list[int] = []
    faults: list[Fault] = []
    for o in labels.objects:
        try:
            cls = classes.of(o.label)
        except KeyError:
            message, advice = f"unknown class {o.label!r}", classes.advice(o.label)
            faults.append(
                fault("unknown_class", file, message, line=o.line, at=o.at, value=o.label, advice=advice, objects=1)
            )
            continue
        if cls is None:
            message = f"{o.label!r} is left out"
            faults.append(fault("excluded_class", file, message, line=o.line, at=o.at, value=o.label, objects=1))
            continue
        if 0 <= o.x1 <= o.x2 - MIN_SIDE and 0 <= o.y1 <= o.y2 - MIN_SIDE and o.x2 <= width and o.y2 <= height:
            good.append(Box(cls, o.x1, o.y1, o.x2, o.y2, o.difficult, o.truncated, o.occluded))
            lines.append(o.line)
            continue
        box, found = _inside(o, cls, file, width, height)
        if box is not None:
            good.append(box)
            lines.append(o.line)
        if found is not None:
            faults.append(found)
    return good, [*faults, *doubts.of_boxes(good, lines, file, width, height)]


def _inside(o: Labelled, cls: str, file: str, width: int, height: int) -> tuple[Box | None, Fault | None]:
    shown = f"{o.label} {o.x1:g} {o.y1:g} {o.x2:g} {o.y2:g}"

    def found(code: str, message: str, objects: int = 1) -> Fault:
        return fault(code, file, message, line=o.line, at=o.at, value=shown, objects=objects)

    if o.x2 < o.x1 or o.y2 < o.y1:
        which = "x2 < x1" if o.x2 < o.x1 else "y2 < y1"
        return None, found("inverted", f"the box {shown} is inverted ({which})")
    if o.x2 - o.x1 < MIN_SIDE or o.y2 - o.y1 < MIN_SIDE:
        return None, found("zero_area", f"the box {shown} has no area")
    x1, y1, x2, y2 = max(o.x1, 0.0), max(o.y1, 0.0), min(o.x2, float(width)), min(o.y2, float(height))
    inside = max(x2 - x1, 0.0) * max(y2 - y1, 0.0) / ((o.x2 - o.x1) * (o.y2 - o.y1))
    if inside < _VISIBLE or x2 - x1 < MIN_SIDE or y2 - y1 < MIN_SIDE:
        where = "outside" if inside == 0 else f"to {100 * (1 - inside):.0f} % outside"
        return None, found("outside", f"the box {shown} lies {where} the image of {width}x{height}")
    box = Box(cls, x1, y1, x2, y2, o.difficult, o.truncated, o.occluded)
    if (x1, y1, x2, y2) != (o.x1, o.y1, o.x2, o.y2):
        return box, found("clipped", f"the box {shown} reaches out of the image of {width}x{height}", objects=0)
    return box, None


def size(labels: Labels, file: str, width: int, height: int) -> Fault | None:
    """Whether the labels were made for an image of this size; the fault takes all objects that are left."""
    if labels.size in (None, (width, height)):
        return None
    stated = f"{labels.size[0]}x{labels.size[1]}" if labels.size else ""
    message = f"made for an image of {stated}, which has {width}x{height} pixels"
    advice = ""
    if labels.size == (height, width):
        advice = "width and height are swapped: an image turned by its EXIF orientation? label it as it is stored"
    lost = len(labels.objects)
    return fault(
        "size_differs",
        file,
        message,
        line=labels.line,
        at=labels.at,
        value=stated,
        advice=advice,
        objects=lost,
        images=1,
    )


def whole(
    samples: Sequence[Sample], faults: Iterable[Fault], declared: int, classes: Classes, max_bad_labels: float
) -> Iterator[Fault]:
    """Faults of the data set as a whole: too small, empty, too much of it bad, classes without objects.

    `faults` are those found so far, graded; `declared` is the number of objects that the label files held.
    """
    lost = Counter[str]()
    ignored = 0
    for f in faults:
        if f.severity == "info":
            ignored += f.objects
        elif f.severity == "warning":
            lost["objects"] += f.objects
            lost["images"] += f.images
    if len(samples) < 2:
        what = {0: "no usable image", 1: "only one usable image"}[len(samples)]
        yield fault("too_few_images", "", f"{what}: it cannot be split")
    objects = class_counts(samples)
    if samples and not objects:
        yield fault("no_objects", "", f"zero objects in {len(samples)} images")
    totals = {"objects": declared - ignored, "images": len(samples) + lost["images"]}
    for what, n in totals.items():
        if n and lost[what] / n > max_bad_labels:
            share = f"{lost[what]} of {n} {what} ({100 * lost[what] / n:.2g} %) are faulty"
            yield fault("too_many_bad_labels", "", f"{share}, more than max_bad_labels ({100 * max_bad_labels:g} %)")
    if objects:
        for name in classes.names or ():
            if not objects[name]:
                yield fault("class_without_objects", "", f"class {name!r} has no objects", value=name)


def class_counts(samples: Sequence[Sample]) -> Counter[str]:
    """How many objects each class has."""
    if isinstance(samples, Samples):
        return samples.class_counts()
    return Counter(o.cls for s in samples for o in s.objects)
