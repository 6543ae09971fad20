"""The CSV lists of TensorFlow's object detection tutorials: a row an object, of one or several files.

    filename,width,height,class,xmin,ymin,xmax,ymax

Boxes are pixels, taken as edges. An image without rows has no objects: this format has no other way to say so. A row
that has a file name but neither class nor box names such an image, too. Several lists are parts: train_labels.csv is
"train". `label_map.pbtxt` gives names to classes that stand as numbers.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import Any

from refit.data.faults import Fault, fault
from refit.data.formats import label_map
from refit.data.formats.base import (
    Changed,
    Layout,
    Names,
    Record,
    fields_lost,
    files_at,
    normal,
    not_recognised,
    read_whole,
)
from refit.data.formats.listed import (
    Entry,
    as_number,
    as_size,
    image_folder,
    join,
    parts_lost,
    parts_of,
    refuse_shares,
    take_box,
)
from refit.data.model import Item, Labelled, Labels
from refit.data.text import MAX_LIST_BYTES, NotText, decode, plain
from refit.data.tree import Tree

COLUMNS = ("filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax")
_SIDES = ("xmin", "ymin", "xmax", "ymax")
_NEEDED = ("filename", "class", *_SIDES)
_ALIASES = {
    **dict.fromkeys(("file", "file_name", "image", "image_name", "image_path", "path", "img"), "filename"),
    **dict.fromkeys(("label", "class_name", "classname", "category", "name"), "class"),
    **{"w": "width", "image_width": "width", "img_width": "width"},
    **{"h": "height", "image_height": "height", "img_height": "height"},
    **{alias: side for side in _SIDES for alias in (f"{side[0]}_{side[1:]}", f"{side[1:]}_{side[0]}")},
    **{
        "x1": "xmin",
        "y1": "ymin",
        "x2": "xmax",
        "y2": "ymax",
        "left": "xmin",
        "top": "ymin",
        "right": "xmax",
        "bottom": "ymax",
    },
}
_FROM_0 = {"x0": "xmin", "y0": "ymin", "x1": "xmax", "y1": "ymax"}  # where there is an x0, x1 is the right edge
_PEEK = 4096
# Four numbers and a class, as tools write them; `take_box` looks at the others.
_PLAIN = re.compile(r"(?:-?+[0-9]{1,15}+(?:\.[0-9]{1,15}+)?+ ){4}[!-~]++")


@dataclass(frozen=True)
class TfCsvReader:
    """Reads all CSV files of this kind below a folder, or the one that `label_dir` names."""

    name: str = "tf_csv"

    def matches(self, tree: Tree) -> bool:
        return any(not _missing(_peek(tree, path)) for path in _lists(tree, "."))

    def layout(self, tree: Tree, image_dir: str | None = None, label_dir: str | None = None) -> Layout:
        folder = normal(label_dir or ".")
        if not _lists(tree, folder):
            where = "" if label_dir is None else f" {folder}"
            raise not_recognised(tree, f"no CSV file{where and ' at or below' + where} (dataset.label_dir)")
        return Layout(image_folder(tree, image_dir), folder)

    def read(self, tree: Tree, layout: Layout, leave: Collection[str] = ()) -> Iterator[Item | Fault | Names]:
        names = yield from label_map.told(tree)
        headers = {path: _peek(tree, path) for path in _lists(tree, layout.label_dir) if path not in leave}
        # A list of something else has none of the columns; one with some has a fault in its header, and is read.
        lists = [path for path, columns in headers.items() if not _missing(columns)]
        lists += [path for path, columns in headers.items() if _missing(columns) and (columns or len(headers) == 1)]
        parts = parts_of(PurePosixPath(path).stem for path in lists)
        entries: list[Entry] = []
        for path in sorted(lists):
            try:
                found, loose = parse(read_whole(tree, path), path, names)
            except Changed:
                raise
            except OSError as exc:
                found, loose = [], Labels(faults=[fault("label_unreadable", path, f"cannot be opened: {exc.strerror}")])
            yield Item("", None, path, loose)
            for entry in found:
                entry.part = parts[PurePosixPath(path).stem]
            entries += found
        yield from join(tree, layout, entries, {*lists, *label_map.files(tree), *leave}, unlisted="background")


def parse(data: bytes, file: str, names: Mapping[int, str] | None = None) -> tuple[list[Entry], Labels]:
    """The images that a list names, in its order, and what belongs to none of them.

    Args:
        file: the list's name in faults.
        names: of classes that stand as numbers.
    """
    loose = Labels()
    try:
        text = decode(data, MAX_LIST_BYTES)
    except NotText as exc:
        loose.declared = max(0, sum(1 for line in data.splitlines() if line.strip(b"\0 \t\r")) - 1)
        loose.faults.append(fault("label_unreadable", file, str(exc), objects=loose.declared))
        return [], loose
    lines = list(io.StringIO(text, newline=""))
    head, delimiter = next((i for i, line in enumerate(lines) if line.strip()), len(lines)), ","
    columns: dict[str, int] = {}
    if head < len(lines):
        columns, delimiter = _header(lines[head])
    if _missing(columns):
        loose.declared = sum(1 for line in lines[head + 1 :] if line.strip())
        message = f"its first line has no {', '.join(_missing(columns))}" if columns else "its first line is no header"
        advice = f"begin it with {','.join(COLUMNS)}"
        loose.faults.append(
            fault("label_unreadable", file, message, line=head + 1, advice=advice, objects=loose.declared)
        )
        return [], loose
    entries: dict[str, Entry] = {}
    width = len(next(csv.reader([lines[head]], delimiter=delimiter, skipinitialspace=True)))
    cells = itemgetter(*(columns.get(name, width) for name in COLUMNS))  # a column that is missing: the last one
    for line, row in _rows(lines[head + 1 :], delimiter, head + 1, file, loose):
        if len(row) != width:
            message = f"{len(row)} columns, the header has {width}"
            shown, advice = (
                delimiter.join(row)[:120],
                "give each row the header's columns; put names with a comma in quotes",
            )
            loose.declared += 1
            loose.faults.append(fault("column_count", file, message, line=line, value=shown, advice=advice, objects=1))
            continue
        name, *others = cells([*row, ""])
        entry = entries.get(name)
        if entry is None:
            entry = entries[name] = Entry(file, line, name, Labels(line=line))
        _row(entry, line, names or {}, *others)
    found = list(entries.values())
    refuse_shares(file, found)
    return found, loose


def _row(entry: Entry, line: int, names: Mapping[int, str], width: str, height: str, name: str, *box: str) -> None:
    """Add a row to the image that it names."""
    labels = entry.labels
    if not name and not any(box):
        return
    size, wrong = _size(width, height)
    before = labels.size
    if before is None:
        labels.size = size
    elif size is not None and size != before and not wrong:
        wrong = f"the image has {size[0]}x{size[1]} pixels here, and {before[0]}x{before[1]} in a row before"
    if wrong:
        labels.declared += 1
        code = "size_differs" if size else "not_a_number"
        labels.faults.append(fault(code, entry.label, wrong, line=line, value=name, objects=1))
        return
    name = _named(name, names)
    if _PLAIN.fullmatch(f"{' '.join(box)} {name}"):
        labels.declared += 1
        x1, y1, x2, y2 = map(float, box)
        labels.objects.append(Labelled(line, name, x1, y1, x2, y2))
        return
    take_box(labels, entry.label, line, name, [*zip(_SIDES, box, strict=True)])


def _named(name: str, names: Mapping[int, str]) -> str:
    """A class that may stand as a number."""
    return names.get(int(name), name) if name.isdecimal() and name.isascii() and len(name) < 10 else name


@lru_cache(maxsize=64)
def _size(width: str, height: str) -> tuple[tuple[int, int] | None, str]:
    """An image's size as a row states it, and what is wrong with it."""
    bad = next((word for word in (width, height) if word and as_number(word) is None), None)
    return as_size(width, height), "" if bad is None else f"the image's size is {bad[:40]!r}, which is no number"


def _rows(
    lines: Sequence[str], delimiter: str, before: int, file: str, loose: Labels
) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not empty, with the line where each ends; rows that CSV cannot read are reported in `loose`."""
    rows = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
    while True:
        begins = rows.line_num
        try:
            row = list(map(str.strip, next(rows)))
        except StopIteration:
            return
        except csv.Error as exc:
            lost = sum(1 for line in lines[begins : rows.line_num] if line.strip())
            message = f"cannot be read as CSV: {exc}" + f" ({lost} lines are lost)" * (lost > 1)
            advice = "a quote is missing or stands where none may be"
            loose.declared += lost
            loose.faults.append(
                fault("label_unreadable", file, message, line=before + begins + 1, advice=advice, objects=lost)
            )
            continue
        if any(row):
            yield before + rows.line_num, row


def _header(line: str) -> tuple[dict[str, int], str]:
    """Which column of a first line is what, and the delimiter."""
    best: dict[str, int] = {}
    delimiter = ","
    for mark in (",", ";", "\t"):
        try:
            words = next(csv.reader([line], delimiter=mark, skipinitialspace=True, strict=True))
        except (csv.Error, StopIteration):
            continue
        found: dict[str, int] = {}
        names = ["_".join(word.lower().replace("-", " ").split()) for word in words]
        aliases = _ALIASES | _FROM_0 if "x0" in names else _ALIASES
        for at, name in enumerate(names):
            known = name if name in COLUMNS else aliases.get(name)
            if known is not None and (known not in found or name == known):
                found[known] = at
        if len(found) > len(best):
            best, delimiter = found, mark
    return best, delimiter


def _missing(columns: Collection[str]) -> list[str]:
    return [name for name in _NEEDED if name not in columns]


def _peek(tree: Tree, path: str) -> dict[str, int]:
    """The known columns of a CSV file by its first line; too few to be a list of objects count as none."""
    try:
        with open(os.path.join(tree.root, path), "rb") as f:
            lines = f.read(_PEEK).decode("utf-8-sig", "replace").splitlines()
    except OSError:
        return {}
    found, _ = _header(next((line for line in lines if line.strip()), ""))
    return found if len(found) > 2 else {}


def _lists(tree: Tree, folder: str) -> list[str]:
    return files_at(tree, folder, ".csv")


@dataclass(frozen=True)
class TfCsvWriter:
    """Writes `<part>_labels.csv` for each part, or labels.csv, and label_map.pbtxt."""

    name: str = "tf_csv"
    image_dir: str | None = "images"

    def write(
        self, out: Path, records: Iterable[Record], classes: Sequence[str], image: Callable[[Record], bytes]
    ) -> Counter[str]:
        gone = Counter[str]()
        with ExitStack() as files:
            tables: dict[str | None, Any] = {}
            images = Counter[str | None]()
            for r in records:
                if not r.objects:  # it has no row to say its part
                    gone["part"] += r.part is not None
                    continue
                images[r.part] += 1
                if r.part not in tables:
                    file = files.enter_context(open(out / f"{_stem(r.part)}.csv", "w", encoding="utf-8", newline=""))
                    tables[r.part] = csv.writer(file, lineterminator="\n")
                    tables[r.part].writerow(COLUMNS)
                for o in r.objects:
                    sides = [plain(v) for v in (o.x1, o.y1, o.x2, o.y2)]
                    tables[r.part].writerow([r.name, r.width, r.height, o.cls, *sides])
                gone += fields_lost((r,), "difficult", "truncated", "occluded")
            gone["part"] += parts_lost(images, _stem)
            if not tables:
                (out / "labels.csv").write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
        (out / "label_map.pbtxt").write_text(label_map.text(classes), encoding="utf-8")
        return +gone


def _stem(part: str | None) -> str:
    return f"{part}_labels" if part else "labels"


READER = TfCsvReader()
WRITER = TfCsvWriter()
