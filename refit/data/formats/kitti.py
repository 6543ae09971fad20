"""KITTI's object labels: a text file an image, a line an object, 15 columns (16 with a detector's score).

    class truncated occluded alpha x1 y1 x2 y2 h w l x y z rotation_y [score]

Boxes are pixels, x2 and y2 taken as edges. Source: KITTI's object development kit (readme.txt) and TAO's data format.
Written are image_2/, label_2/, and ImageSets/<part>.txt; what is not known of an object is 0, since TAO's readers take
an occlusion other than 0 for "difficult".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from refit.data.codes import CODES
from refit.data.faults import BadData, Fault, fault
from refit.data.formats import yolo
from refit.data.formats.base import Record, check_stems, fields_lost, names_lost, part_lines
from refit.data.formats.paired import PairedReader
from refit.data.model import NUMBERS, Box, Columns, Labelled, Labels
from refit.data.text import NotText, decode, finite, number

SUFFIX = ".txt"
_COLUMNS = (15, 16)
_NO_3D = " ".join(["0.00"] * 7)
_DONT_CARE = "dontcare"
_OCCLUDED = (0, 1, 2, 3)
_USED = (1, 2, 4, 5, 6, 7, 8)  # the columns that count: truncated, occluded, box; and h
_TALL = 20.0  # h is in metres, and higher objects are not labelled: it is a coordinate in pixels
# What tools write: lines of 15 plain numbers and names, which need no look at each word.
_PLAIN = re.compile(rb"(?:[A-Za-z][!-~]*+(?: -?+[0-9]{1,15}+(?:\.[0-9]{1,15}+)?+){14}+\r?+\n)++")


def parse(data: bytes, file: str) -> Labels:
    """The objects of a label file; `file` is its name in faults. An empty file is an image without objects."""
    try:
        text = decode(data)
    except NotText as exc:
        lost = sum(1 for line in data.split(b"\n") if line.strip(b"\0 \t\r"))
        return Labels(lost, faults=[fault("label_unreadable", file, str(exc), objects=lost)])
    labels = Labels()
    rows: list[list[float]] = []
    for number_, line in enumerate(text.split("\n"), 1):
        words = line.split()
        if not words:
            continue
        labels.declared += 1
        row = _line(words, number_, file, labels)
        if row is not None:
            rows.append(row)
    if rows:
        _shifted(rows, file, labels)
    return labels


def columns(files: Sequence[bytes]) -> Columns:
    """The objects of files that match `_PLAIN`."""
    plain = [_PLAIN.fullmatch(data) is not None for data in files]
    counts, labels, lines = list[int](), list[str](), list[str]()
    faults: dict[int, list[Fault]] = {}
    for number_, data in enumerate(files):
        if not plain[number_]:
            counts.append(-1)
            continue
        before = len(lines)
        for at, line in enumerate(data.decode().splitlines(), 1):
            label = line.partition(" ")[0]
            if label.lower() == _DONT_CARE:
                faults.setdefault(number_, []).append(_not_learnt("", at))
            else:
                labels.append(label)
                lines.append(line)
        counts.append(len(lines) - before)
    boxes = np.zeros((len(lines), NUMBERS))
    if lines:
        found = np.loadtxt(lines, comments=None, delimiter=" ", usecols=_USED, ndmin=2)
        boxes[:, (5, 6, 0, 1, 2, 3)] = found[:, :-1]
        for at in np.flatnonzero(found[:, -1] > _TALL).tolist():  # for `_shifted`
            labels[at] = ""
    truncated, occluded = boxes[:, 5], boxes[:, 6]  # as in `_line`
    truncated[(truncated < 0) | (truncated > 1)] = np.nan
    occluded[~np.isin(occluded, _OCCLUDED)] = np.nan
    return Columns(counts, labels, boxes, faults=faults)


def _line(words: list[str], at: int, file: str, labels: Labels) -> list[float] | None:
    """Add one line to `labels`; returns its numbers (columns 2 to 15) when it is an object."""
    name, shown = words[0], " ".join(words)[:120]
    if name.lower() == _DONT_CARE:
        labels.faults.append(_not_learnt(file, at))
        return None
    if len(words) not in _COLUMNS:
        advice = _column_advice(words)
        message = f"{len(words)} columns in place of 15"
        labels.faults.append(fault("column_count", file, message, line=at, value=shown, advice=advice, objects=1))
        return None
    numbers = [number(w) for w in words[1:]]
    row = [v for v in numbers if v is not None]
    if len(row) != len(numbers):
        column = numbers.index(None) + 2
        message = f"column {column} is {words[column - 1]!r}, which is no number"
        labels.faults.append(fault("not_a_number", file, message, line=at, value=shown, objects=1))
        return None
    box = (row[3], row[4], row[5], row[6])
    if not finite(box):
        message = f"the box {' '.join(words[4:8])} is not finite"
        labels.faults.append(fault("not_finite", file, message, line=at, value=shown, objects=1))
        return None
    truncated = row[0] if 0 <= row[0] <= 1 else None
    occluded = int(row[1]) if row[1] in _OCCLUDED else None
    labels.objects.append(Labelled(at, name, *box, truncated=truncated, occluded=occluded))
    return row


def _not_learnt(file: str, at: int) -> Fault:
    return fault("dont_care", file, "a DontCare region", line=at, objects=1)


def _column_advice(words: list[str]) -> str:
    values = [number(w) for w in words]
    if len(words) == 5 and all(v is not None and 0 <= v <= 1 for v in values[1:]):
        return "these look like YOLO's labels (class x y width height as shares); convert them to KITTI or VOC"
    if "," in words[0] or len(words) == 1:
        return "KITTI's columns are separated by spaces, not by commas or semicolons"
    if len(words) > 16 and all(v is not None for v in values[-14:]) and values[1] is None:
        return f"a class name with spaces? write {'_'.join(words[: len(words) - 14])!r}"
    return ""


def _shifted(rows: list[list[float]], file: str, labels: Labels) -> None:
    """Whether all boxes stand in other columns than theirs. Every y2 is 0: no one labels so; a column is missing before
    the box, or the last one in it is no coordinate. Or y2 stands where h belongs, so high and beyond what stands in the
    place of x2: then there is a column too many before y2."""
    first, advice = labels.objects[0], ""
    if all(r[6] == 0 for r in rows):
        message = f"y2 (column 8) is 0 in all {len(rows)} objects: a column is shifted"
        if all(0 <= r[2] < r[4] and 0 <= r[3] < r[5] for r in rows):
            advice = "the boxes stand in columns 4 to 7, one too early: a column before them (alpha?) is missing"
    elif all(r[5] < r[7] for r in rows) and max(r[7] for r in rows) > _TALL:
        message = f"h (column 9) is larger than x2 (column 7) in all {len(rows)} objects: a column is shifted"
        advice = "the boxes end in column 9, one too late: a column too many stands before them or in them"
    else:
        return
    advice += "; " * bool(advice) + CODES["shifted_column"].advice
    value = f"{first.x1:g} {first.y1:g} {first.x2:g} {first.y2:g}"
    labels.faults.append(
        fault("shifted_column", file, message, line=first.line, value=value, advice=advice, objects=len(rows))
    )
    labels.objects.clear()


READER = PairedReader(
    "kitti",
    SUFFIX,
    ("image_2", "images", "training/image_2"),
    ("label_2", "labels", "training/label_2"),
    parse,
    looks=lambda tree, labels: not yolo.looks(tree, labels),
    many=columns,
)


# ---- written


class KittiWriter:
    name = "kitti"
    image_dir = "image_2"

    def write(
        self, out: Path, records: Iterable[Record], classes: Sequence[str], image: Callable[[Record], bytes]
    ) -> Counter[str]:
        records = list(records)
        check_stems(records, "KITTI")
        called = _called(classes)
        for r in records:
            path = out / "label_2" / PurePosixPath(r.name).with_suffix(SUFFIX)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text(r.objects, called), encoding="utf-8")
        for part, names in part_lines(records, lambda name: str(PurePosixPath(name).with_suffix(""))).items():
            (out / "ImageSets").mkdir(exist_ok=True)
            (out / "ImageSets" / f"{part}.txt").write_text(names, encoding="utf-8")
        return fields_lost(records, "difficult") + names_lost(records, called)


def text(objects: Iterable[Box], called: Mapping[str, str]) -> str:
    """A label file: 15 columns an object, those of the box with as many decimals as it has, at least two."""
    return "".join(
        f"{called[o.cls]} {_decimal(o.truncated or 0)} {o.occluded or 0} 0.00 "
        f"{_decimal(o.x1)} {_decimal(o.y1)} {_decimal(o.x2)} {_decimal(o.y2)} {_NO_3D}\n"
        for o in objects
    )


def _decimal(value: float) -> str:
    short = f"{value:.2f}"
    return short if float(short) == value else repr(float(value))


def _called(classes: Sequence[str]) -> dict[str, str]:
    """Class -> its name in a line of words. Raises BadData where there can be none of its own."""
    called: dict[str, str] = {}
    faults = []
    for cls in classes:
        name = "_".join(cls.split())
        if not name or name.lower() == _DONT_CARE or name in called.values():
            why = "another class has this name" if name in called.values() else "this is no class in KITTI's labels"
            faults.append(fault("bad_class_name", "", f"class {cls!r} would be written {name!r}: {why}", value=cls))
        called[cls] = name
    if faults:
        raise BadData("KITTI", faults)
    return called


WRITER = KittiWriter()
