"""Drip's frames: one JSON file for all images, which lie in folders below the image folder.

    {"frames": [{"path": "a/1.jpg", "width": 640, "height": 480,
                 "boxes": [{"class": "car", "x0": 1, "y0": 2, "x1": 30, "y1": 40}]}]}

Boxes are pixels, taken as edges. Drip's example says "class" and its code reads "type", so that boxes were skipped in
silence: here both are read, and both are written. `class_map.pbtxt` is a label map. Several such files are parts.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TextIO

from refit.data.faults import Fault, fault
from refit.data.formats import label_map
from refit.data.formats.base import Changed, Layout, Names, Record, fields_lost, files_at, normal, not_recognised
from refit.data.formats.listed import (
    Entry,
    as_size,
    image_folder,
    join,
    parts_lost,
    parts_of,
    plain_number,
    refuse_shares,
    take_box,
)
from refit.data.jsonstream import Entry as JsonEntry
from refit.data.jsonstream import JsonFile, NotJson
from refit.data.model import Item, Labels
from refit.data.text import class_name
from refit.data.tree import Tree

_SIDES = ("x0", "y0", "x1", "y1")
_FRAMES = re.compile(rb'"frames"\s*:\s*\[')
_PEEK, _LOOKED_AT = 4096, 20
_BOX = re.compile(r'"x0"\s*:')


@dataclass(frozen=True)
class DripReader:
    """Reads all files of frames below a folder, or the one that `label_dir` names."""

    name: str = "drip"

    def matches(self, tree: Tree) -> bool:
        return bool(_files(tree, "."))

    def layout(self, tree: Tree, image_dir: str | None = None, label_dir: str | None = None) -> Layout:
        folder = normal(label_dir or ".")
        if not _files(tree, folder):
            raise not_recognised(tree, f'no JSON file that begins with {{"frames": [...]}} at or below {folder}')
        return Layout(image_folder(tree, image_dir), folder)

    def read(self, tree: Tree, layout: Layout, leave: Collection[str] = ()) -> Iterator[Item | Fault | Names]:
        names = yield from label_map.told(tree)
        paths = [path for path in _files(tree, layout.label_dir) if path not in leave]
        parts = parts_of(PurePosixPath(path).stem for path in paths)
        entries: list[Entry] = []
        for path in paths:
            try:
                found, loose, size = parse(Path(tree.root, path), path, names)
                if size != tree.files[path].size:
                    raise Changed(f"{path} had {tree.files[path].size} bytes when it was listed, and has {size} now")
            except Changed:
                raise
            except FileNotFoundError:
                raise Changed(f"{path} is gone") from None
            except OSError as exc:
                found, loose = [], Labels(faults=[fault("label_unreadable", path, f"cannot be opened: {exc.strerror}")])
            yield Item("", None, path, loose)
            for entry in found:
                entry.part = parts[PurePosixPath(path).stem]
            entries += found
        known = {*paths, *label_map.files(tree), *leave}
        yield from join(tree, layout, entries, known, unlisted="image_without_label")


def parse(path: Path, file: str, names: Mapping[int, str] | None = None) -> tuple[list[Entry], Labels, int]:
    """The images that a file of frames names, what belongs to none of them, and how many bytes were read.

    Args:
        file: its name in faults.
        names: of classes that stand as numbers.

    Raises OSError.
    """
    loose, entries = Labels(), []
    stream = JsonFile(path)
    lost = 0
    try:
        for found in stream.entries():
            if found.section == "frames" and found.index >= 0:
                entry = _frame(found, file, names or {}, loose)
                entries += [entry] if entry else []
            elif found.section in ("frames", ""):
                lost = len(_BOX.findall(json.dumps(found.value)))
                raise NotJson(found.line, 'it is no {"frames": [...]}')
    except NotJson as exc:
        lost += stream.rest(_BOX, 20)
        loose.declared += lost
        loose.faults.append(fault("label_unreadable", file, str(exc), line=exc.line, objects=lost))
    refuse_shares(file, entries)
    return entries, loose, stream.size


def _frame(found: JsonEntry, file: str, names: Mapping[int, str], loose: Labels) -> Entry | None:
    """An image with its boxes; one that cannot be told goes to `loose`."""
    frame = found.value if isinstance(found.value, dict) else {}
    boxes, path = frame.get("boxes"), frame.get("path")
    if not isinstance(boxes, list) or not isinstance(path, str):
        count = len(boxes) if isinstance(boxes, list) else 0
        why = "a frame has a path (text) and boxes (a list, empty where there is no object)"
        loose.declared += count
        loose.faults.append(fault("bad_entry", file, why, line=found.line, at=found.at, value=str(path), objects=count))
        return None
    labels = Labels(size=as_size(frame.get("width"), frame.get("height")), line=found.line, at=found.at)
    entry = Entry(file, found.line, path, labels, at=found.at)
    for i, box in enumerate(boxes):
        _box(box, f"{found.at}.boxes[{i}]", entry, names)
    return entry


def _box(box: object, at: str, entry: Entry, names: Mapping[int, str]) -> None:
    """Add a box to its image, or say why not."""

    def without(code: str, message: str, value: object = "") -> None:
        entry.labels.declared += 1
        entry.labels.faults.append(
            fault(code, entry.label, message, line=entry.line, at=at, value=str(value), objects=1)
        )

    if not isinstance(box, dict):
        return without("bad_entry", "a box is an object with class, x0, y0, x1, y1", box)
    said = [_class(box.get(key), names) for key in ("class", "type")]
    if all(said) and said[0] != said[1]:
        return without("no_class", f"class says {said[0]!r}, type says {said[1]!r}", said[0])
    take_box(entry.labels, entry.label, entry.line, said[0] or said[1], [(side, box.get(side)) for side in _SIDES], at)
    return None


def _class(value: object, names: Mapping[int, str]) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return names.get(value, str(value))
    return class_name(value)


def _files(tree: Tree, folder: str) -> list[str]:
    """The files of frames, by how they begin; of many JSON files only the uppermost are looked at."""
    found = sorted(files_at(tree, folder, ".json"), key=lambda path: (path.count("/"), path))[:_LOOKED_AT]
    return sorted(path for path in found if _begins(tree, path))


def _begins(tree: Tree, path: str) -> bool:
    try:
        with open(os.path.join(tree.root, path), "rb") as f:
            return bool(_FRAMES.search(f.read(_PEEK)))
    except OSError:
        return False


@dataclass(frozen=True)
class DripWriter:
    """Writes metadata.json, or metadata_<part>.json for each part, and class_map.pbtxt."""

    name: str = "drip"
    image_dir: str | None = "images"

    def write(
        self, out: Path, records: Iterable[Record], classes: Sequence[str], image: Callable[[Record], bytes]
    ) -> Counter[str]:
        gone = Counter[str]()
        files: dict[str | None, TextIO] = {}
        images = Counter[str | None]()
        with ExitStack() as stack:
            for r in records:
                images[r.part] += 1
                if r.part not in files:
                    path = out / f"{_stem(r.part)}.json"
                    files[r.part] = stack.enter_context(open(path, "w", encoding="utf-8"))
                    files[r.part].write('{"frames": [\n')
                else:
                    files[r.part].write(",\n")
                files[r.part].write(json.dumps(frame(r), ensure_ascii=False))
                gone += fields_lost((r,), "difficult", "truncated", "occluded")
            for file in files.values():
                file.write("\n]}\n")
        (out / "class_map.pbtxt").write_text(label_map.text(classes), encoding="utf-8")
        gone["part"] += parts_lost(images, _stem)
        return +gone


def frame(record: Record) -> dict[str, object]:
    """An image with all its boxes."""
    boxes = [
        {"class": o.cls, "type": o.cls, **dict(zip(_SIDES, map(plain_number, (o.x1, o.y1, o.x2, o.y2)), strict=True))}
        for o in record.objects
    ]
    return {"path": record.name, "width": record.width, "height": record.height, "boxes": boxes}


def _stem(part: str | None) -> str:
    return f"metadata_{part}" if part else "metadata"


READER = DripReader()
WRITER = DripWriter()
