"""What a data set is like, in a few kilobytes: the mix of classes, sizes and places of boxes, the light.

`statistics.json` of a snapshot holds it (docs/contracts.md); it is no part of the fingerprint. `refit.data.drift`
compares two of them.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refit.data import look

SCHEMA = 1
GRID = 16
"""Cells a side of the map of positions."""

SIZE_STEP, SIZE_BINS = 0.25, 36
"""Box sizes: bin i holds sides (root of the box's share of the image's area) from 2^(i/4 - 9) on, up to 1."""

ASPECT_STEP, ASPECT_BINS = 0.25, 32
"""Aspects of boxes: bin i holds widths over heights from 2^(i/4 - 4) on."""

COUNT_BINS = 64
"""Objects an image: the last bin holds all that have more."""

BRIGHTNESS_BINS = 32

_SIZES = 20  # of images that are told one by one
_OF_PART = ("images", "objects", "without_objects")

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Table:
    """A data set as columns: of images, and of objects in the order of their images.

    `starts[i]` to `starts[i + 1]` are the objects of image i; `boxes` float32 [n, 4] in pixels, `cls` index `classes`.
    """

    classes: tuple[str, ...]
    parts: tuple[str, ...]
    files: list[str]
    sources: list[str]
    digests: list[str]
    part: NDArray[np.int32]
    size: NDArray[np.int32]  # [images, 2]: width, height
    starts: NDArray[np.int64]
    boxes: NDArray[np.float32]
    cls: NDArray[np.int32]

    @staticmethod
    def of(rows: Iterable[Mapping[str, Any]], classes: Sequence[str], *, named: bool = True) -> Table:
        """From rows as in annotations.jsonl. Classes that are not in `classes` are added, in the order of their names;
        without `named` the names and digests of the images are left out."""
        number: dict[str, int] = {name: i for i, name in enumerate(classes)}
        parts: dict[str, int] = {}
        files: list[str] = []
        sources: list[str] = []
        digests: list[str] = []
        part, size, starts, boxes, cls = array("i"), array("i"), array("q", [0]), array("f"), array("i")
        for row in rows:
            if named:
                files.append(row["file"])
                sources.append(row["source"])
                digests.append(row["sha256"])
            part.append(parts.setdefault(row["split"], len(parts)))
            size.extend((row["width"], row["height"]))
            for o in row["objects"]:
                cls.append(number.setdefault(o["class"], len(number)))
                boxes.extend((o["x1"], o["y1"], o["x2"], o["y2"]))
            starts.append(len(cls))
        known = list(number)
        order = known[: len(classes)] + sorted(known[len(classes) :])
        places = sorted(parts, key=_part_order)
        return Table(
            tuple(order),
            tuple(places),
            files,
            sources,
            digests,
            np.array([places.index(p) for p in parts], np.int32)[np.frombuffer(part, np.int32)] if part else _none(),
            np.frombuffer(size, np.int32).reshape(-1, 2),
            np.frombuffer(starts, np.int64),
            np.frombuffer(boxes, np.float32).reshape(-1, 4),
            np.array([order.index(n) for n in known], np.int32)[np.frombuffer(cls, np.int32)] if cls else _none(),
        )

    @property
    def counts(self) -> Counts:
        """Objects of each image."""
        return np.diff(self.starts)

    @property
    def image(self) -> Counts:
        """The image of each object."""
        return np.repeat(np.arange(len(self.part)), self.counts)

    def relative(self) -> NDArray[np.float64]:
        """The boxes with sides from 0 to 1."""
        size = self.size[self.image].astype(np.float64)
        return np.asarray(self.boxes / np.concatenate([size, size], axis=1))


def _none() -> NDArray[np.int32]:
    return np.zeros(0, np.int32)


class Tally:
    """Adds up the statistics of a data set, a part at a time; `classes` come first, others as they are met."""

    def __init__(self, classes: Sequence[str] = ()) -> None:
        self._sizes = Counter[tuple[int, int]]()
        self._parts: dict[str, Counter[str]] = {}
        self._classes = {name: _OfClass() for name in classes}
        self._counts = np.zeros(COUNT_BINS, np.int64)
        self._brightness = np.zeros(BRIGHTNESS_BINS, np.int64)

    def add(self, table: Table, brightness: Sequence[int]) -> None:
        """`brightness` is each image's mean grey level, as far as it is known."""
        boxes = table.relative()
        sides = boxes[:, 2:] - boxes[:, :2]
        pixels = table.boxes[:, 2:] - table.boxes[:, :2]
        size = _bins(np.log2(np.sqrt(sides.prod(axis=1))) / SIZE_STEP + SIZE_BINS, SIZE_BINS)
        aspect = _bins(np.log2(pixels[:, 0] / pixels[:, 1]) / ASPECT_STEP + ASPECT_BINS / 2, ASPECT_BINS)
        column, row = _bins((boxes[:, :2] + boxes[:, 2:]) / 2 * GRID, GRID).T
        image, counts = table.image, table.counts
        for i, name in enumerate(table.classes):
            mine = table.cls == i
            here = self._classes.setdefault(name, _OfClass())
            here.images += len(np.unique(image[mine]))
            here.parts.update(_by_part(table, table.part[image[mine]]))
            here.size += _histogram(size[mine], SIZE_BINS)
            here.aspect += _histogram(aspect[mine], ASPECT_BINS)
            here.positions += _histogram(row[mine] * GRID + column[mine], GRID * GRID)
        for i, name in enumerate(table.parts):
            mine = table.part == i
            found = {"images": mine.sum(), "objects": counts[mine].sum(), "without_objects": (counts[mine] == 0).sum()}
            self._parts.setdefault(name, Counter()).update({k: int(n) for k, n in found.items()})
        self._sizes.update(map(tuple, table.size.tolist()))
        self._counts += _histogram(counts, COUNT_BINS)
        self._brightness += _histogram(np.asarray(brightness) * BRIGHTNESS_BINS // 256, BRIGHTNESS_BINS)

    def result(self) -> dict[str, Any]:
        """As in statistics.json."""
        parts = sorted(self._parts, key=_part_order)
        sizes = self._sizes.most_common()
        return {
            "schema": SCHEMA,
            "images": sum(p["images"] for p in self._parts.values()),
            "objects": sum(p["objects"] for p in self._parts.values()),
            "splits": {name: {k: self._parts[name][k] for k in _OF_PART} for name in parts},
            "classes": {
                name: {
                    "objects": c.parts.total(),
                    "images": c.images,
                    "splits": {part: c.parts[part] for part in parts},
                    "size": c.size.tolist(),
                    "aspect": c.aspect.tolist(),
                    "positions": c.positions.tolist(),
                }
                for name, c in self._classes.items()
            },
            "objects_per_image": self._counts.tolist(),
            "brightness": self._brightness.tolist(),
            "sizes": [{"width": w, "height": h, "images": n} for (w, h), n in sizes[:_SIZES]],
            "other_sizes": sum(n for _, n in sizes[_SIZES:]),
        }


class _OfClass:
    """Counts of one class."""

    def __init__(self) -> None:
        self.images = 0
        self.parts = Counter[str]()
        self.size = np.zeros(SIZE_BINS, np.int64)
        self.aspect = np.zeros(ASPECT_BINS, np.int64)
        self.positions = np.zeros(GRID * GRID, np.int64)


def of(table: Table, brightness: Sequence[int]) -> dict[str, Any]:
    """The statistics of a whole data set, as in statistics.json."""
    tally = Tally(table.classes)
    tally.add(table, brightness)
    return tally.result()


def of_rows(rows: Sequence[Mapping[str, Any]], classes: Sequence[str] = ()) -> dict[str, Any]:
    """The statistics of rows of annotations.jsonl."""
    brightness = [look.unpack(bytes.fromhex(row["look"])).brightness for row in rows if "look" in row]
    return of(Table.of(rows, classes, named=False), brightness)


def _part_order(name: str) -> tuple[bool, bool, str]:
    return name != "train", name != "val", name


def _bins(values: NDArray[Any], bins: int) -> Counts:
    return np.asarray(np.clip(np.nan_to_num(values, neginf=0), 0, bins - 1), np.int64)


def _histogram(values: NDArray[Any], bins: int) -> Counts:
    return np.bincount(_bins(values, bins), minlength=bins)


def _by_part(table: Table, part: NDArray[np.int32]) -> dict[str, int]:
    counts = np.bincount(part, minlength=len(table.parts))
    return {name: int(n) for name, n in zip(table.parts, counts, strict=True)}
