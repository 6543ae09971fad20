"""What readers hand on: objects as they are labelled, and samples as they go into a snapshot."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from refit.data.faults import Fault
from refit.data.look import Packed

# What is no data of an image: where it goes, where it came from, and what its split went by.
_BESIDE = frozenset({"split", "source", "name", "tags", "groups", "look"})
_of_box = struct.Struct("<7d").pack
NUMBERS = 7
"""Numbers of a box (`Box.numbers`)."""
_NONE = math.nan
Digest = bytes
_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode


# Objects and boxes are never changed; they are not `frozen`, because that takes five times as long to make.
@dataclass(slots=True, unsafe_hash=True)
class Labelled:
    """An object as its label file says it, not yet checked: the box may be inverted, outside, or of an unknown class.

    Coordinates are pixels of the image as stored (no EXIF rotation), or shares of its size where `Labels.relative` says
    so; x2 and y2 are the exclusive right and lower edge. `truncated` is the share outside the image (VOC's flag: 0 or
    1), `occluded` KITTI's level 0 to 3; None: not known. `at` is the place in a file whose lines say little, for
    example "annotations[12]".
    """

    line: int
    label: str
    x1: float
    y1: float
    x2: float
    y2: float
    difficult: bool = False
    truncated: float | None = None
    occluded: int | None = None
    at: str = ""


@dataclass(slots=True)
class Labels:
    """What one label file holds. `declared` counts its objects: declared = len(objects) + those that faults took."""

    declared: int = 0
    objects: list[Labelled] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    size: tuple[int, int] | None = None  # width and height that the labels were made for, where the format says it
    relative: bool = False  # the boxes are shares of the image's size
    line: int = 0  # where a file that holds the labels of many images says what they all share
    at: str = ""

    def balanced(self) -> bool:
        return self.declared == len(self.objects) + sum(f.objects for f in self.faults)

    def pixels(self, width: int, height: int) -> None:
        """Turn shares into pixels of an image of this size."""
        if self.relative:
            self.objects = [
                replace(
                    o, x1=pixel(o.x1 * width), y1=pixel(o.y1 * height), x2=pixel(o.x2 * width), y2=pixel(o.y2 * height)
                )
                for o in self.objects
            ]
            self.relative = False


def pixel(value: float) -> float:
    """A calculated coordinate without the dust of the arithmetic: a millionth of a pixel is the least that counts.

    A box of whole pixels that went through shares (YOLO) or widths (COCO) comes back as it was.
    """
    return round(value, 6)


class Columns(NamedTuple):
    """The objects of many label files: how many each has, -1 where the file must be parsed by itself; the label of each
    object, "" where its file must be parsed by itself, too, and its numbers as a box (`Box.numbers`), one after
    another. `faults` are of files by their number, and do not name them yet; what they took is not among the objects.
    """

    counts: list[int]
    labels: list[str]
    boxes: NDArray[np.float64]  # [n, NUMBERS]
    relative: bool = False  # as in `Labels`
    faults: Mapping[int, Sequence[Fault]] = MappingProxyType({})

    def pixels(self, sizes: NDArray[np.float64]) -> None:
        """Turn shares into pixels; `sizes` [files, 2] are the images' widths and heights."""
        if self.relative:
            of_each = np.tile(np.repeat(sizes, np.maximum(self.counts, 0), axis=0), 2)
            values = (self.boxes[:, :4] * of_each).ravel().tolist()
            self.boxes[:, :4] = np.reshape(list(map(pixel, values)), (-1, 4))


@dataclass(frozen=True, slots=True)
class Unread:
    """Labels that fill a file of their own, which is opened where its image is (in another process, or never where
    both are known). `parse` takes the file's bytes and its name; it is pickled. `many` does the same for the bytes of
    many files, of those in which all is plain, in a fraction of the time."""

    parse: Callable[[bytes, str], Labels]
    many: Callable[[Sequence[bytes]], Columns] | None = None


@dataclass(slots=True)
class Item:
    """An image with its labels, as a reader gives it; `image` None: labels whose image cannot be used.

    `name` is the image's path below the image folder, `image` and `label` are paths below the source; an image
    that lies inside a file is named by `refit.data.formats.base.inside`. `part` is the split that the data set itself
    puts the image in, where it does; `tags` are an annotator's tags of the image as a whole.
    """

    name: str
    image: str | None
    label: str
    labels: Labels | Unread
    part: str | None = None
    tags: tuple[str, ...] = ()


@dataclass(slots=True, unsafe_hash=True)
class Box:
    """An object of a snapshot: inside its image, of positive area, of a class of the pipeline."""

    cls: str
    x1: float
    y1: float
    x2: float
    y2: float
    difficult: bool = False
    truncated: float | None = None
    occluded: int | None = None

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Box:
        """The object of a row of annotations.jsonl."""
        return cls(row["class"], **{k: v for k, v in row.items() if k != "class"})

    def as_json(self) -> dict[str, Any]:
        """The object in annotations.jsonl (docs/contracts.md); flags that are unset are left out."""
        row: dict[str, Any] = {"class": self.cls, "x1": self.x1, "y1": self.y1, "x2": self.x2, "y2": self.y2}
        if self.difficult:
            row["difficult"] = True
        if self.truncated is not None:
            row["truncated"] = self.truncated
        if self.occluded is not None:
            row["occluded"] = self.occluded
        return row

    def numbers(self) -> bytes:
        """The box but for its class: 7 float64, little endian; NaN for what is not known."""
        truncated = _NONE if self.truncated is None else self.truncated
        occluded = _NONE if self.occluded is None else self.occluded
        return _of_box(self.x1, self.y1, self.x2, self.y2, self.difficult, truncated, occluded)

    @classmethod
    def of_numbers(cls, name: str, row: Sequence[float]) -> Box:
        """The inverse of `numbers`."""
        x1, y1, x2, y2, difficult, truncated, occluded = row
        level = None if math.isnan(occluded) else int(occluded)
        return cls(name, x1, y1, x2, y2, bool(difficult), None if math.isnan(truncated) else truncated, level)


@dataclass(frozen=True, slots=True)
class Sample:
    """A checked image. `file` is its plain name in the snapshot, `source` its path below the data set, `part` the split
    that the data set itself puts it in, where it does.

    `groups` are those of `split.group` that it belongs to (refit.data.groups), `look` is a packed
    `refit.data.look.Look`, empty where the image was not decoded.
    """

    file: str
    name: str
    source: str
    sha256: str
    bytes: int
    width: int
    height: int
    objects: tuple[Box, ...]
    part: str | None = None
    tags: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    look: Packed = b""

    def digest(self) -> Digest:
        """sha256 over all that counts of the image, see `digest_of`."""
        boxes = b"".join([o.numbers() for o in self.objects])
        return digest_of(self.file, self.sha256, self.width, self.height, [o.cls for o in self.objects], boxes)

    def as_json(self, split: str) -> dict[str, Any]:
        """The line of annotations.jsonl (docs/contracts.md); what a split goes by is left out where it says no more."""
        row: dict[str, Any] = {
            "file": self.file,
            "sha256": self.sha256,
            "width": self.width,
            "height": self.height,
            "split": split,
            "source": self.source,
            "objects": [o.as_json() for o in self.objects],
        }
        if self.name != self.file:
            row["name"] = self.name
        if self.tags:
            row["tags"] = list(self.tags)
        if self.groups:
            row["groups"] = list(self.groups)
        if self.look:
            row["look"] = self.look.hex()
        return row


def digest_of(
    file: str, content: str, width: int, height: int, classes: Iterable[str], boxes: Packed | memoryview
) -> bytes:
    """The digest of an image (docs/contracts.md): `content` is the sha256 of its bytes, `boxes` are `Box.numbers`."""
    found = sha256("\n".join((file, content, f"{width} {height}", *classes, "")).encode())
    found.update(boxes)
    return found.digest()


def row_digest(row: Mapping[str, Any]) -> bytes:
    """`Sample.digest` of a line of annotations.jsonl."""
    boxes = [Box.from_json(o) for o in row["objects"]]
    numbers = b"".join([box.numbers() for box in boxes])
    return digest_of(row["file"], row["sha256"], row["width"], row["height"], [box.cls for box in boxes], numbers)


def row_digest_2(row: Mapping[str, Any]) -> bytes:
    """The digest of snapshots of schema 2: of the line as canonical JSON."""
    return sha256(_canonical({k: v for k, v in row.items() if k not in _BESIDE}).encode()).digest()
