"""Supervisely's projects: meta.json with the classes, and for each data set img/ with an annotation for each in ann/.

    meta.json    ds0/img/a.jpg    ds0/ann/a.jpg.json (older: ds0/ann/a.json)

An annotation holds the image's size, tags, and objects with a class (classTitle), a geometryType and points. Boxes of
rectangles are taken as edges as they are; polygons become the box around them, masks the box of their bitmap; lines,
points and other shapes have no box. A tag train, val or test is the image's part.
Source: docs.supervisely.com, "Supervisely Annotation Format".
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from refit.data.faults import Fault, fault
from refit.data.formats.base import (
    Changed,
    Layout,
    Names,
    Record,
    fields_lost,
    ignored,
    known_part,
    lost,
    normal,
    not_recognised,
    read_whole,
)
from refit.data.formats.listed import PICTURES, as_number, as_size, plain_number, take_box
from refit.data.images import SUFFIXES
from refit.data.model import Item, Labels
from refit.data.text import NotText, class_name, parse_json
from refit.data.tree import Tree, suffix_of
from refit.specs import did_you_mean

META = "meta.json"
_SIDES = ("x1", "y1", "x2", "y2")
_OBJECT = b'"classTitle"'
_BITMAP_START = 400  # characters of a mask's base64: more than its PNG's header needs
_PNG_HEADER = 24


@dataclass
class Annotation:
    """What one annotation says of its image."""

    labels: Labels = field(default_factory=Labels)
    tags: tuple[str, ...] = ()

    @property
    def part(self) -> str | None:
        """The part that a tag names, where only one does."""
        named = set(filter(None, map(known_part, self.tags)))
        return named.pop() if len(named) == 1 else None


@dataclass(frozen=True)
class SuperviselyReader:
    """Reads all data sets of a project. Several: an image's name begins with its data set's ("ds0/img/a.jpg")."""

    name: str = "supervisely"

    def matches(self, tree: Tree) -> bool:
        return any(PurePosixPath(path).name == META for path in tree.files.ending(".json")) and bool(_sets(tree, "."))

    def layout(self, tree: Tree, image_dir: str | None = None, label_dir: str | None = None) -> Layout:
        """`image_dir` may choose one data set ("ds0", "ds0/img"); the annotations lie beside it."""
        chosen = normal(image_dir or ".")
        found = _sets(tree, chosen.removesuffix("/img"))
        if not found:
            hint = did_you_mean(chosen, tree.folders)
            raise not_recognised(tree, f"no folder with img/ and ann/ below {chosen!r}{hint}")
        if len(found) == 1:
            return Layout(_below(found[0], "img"), normal(label_dir or _below(found[0], "ann")))
        return Layout(chosen, normal(label_dir or chosen))

    def read(self, tree: Tree, layout: Layout, leave: Collection[str] = ()) -> Iterator[Item | Fault | Names]:
        meta = [path for path in tree.files.ending(".json") if PurePosixPath(path).name == META]
        for path in meta[:1]:
            titles, faults = classes(_read(tree, path), path)
            yield from faults
            if titles:
                yield Names(titles)
        read = {*meta, *leave}
        for folder in _sets(tree, layout.image_dir.removesuffix("/img")):
            yield from self._set(tree, layout, folder, read)
        yield from ignored(tree, read)

    def _set(self, tree: Tree, layout: Layout, folder: str, read: set[str]) -> Iterator[Item | Fault]:
        """The images and annotations of one data set; their paths are added to `read`."""
        image_dir, label_dir = _below(folder, "img"), _below(folder, "ann")
        labels = {
            f.path[len(label_dir) + 1 : -len(".json")]: f.path
            for f in tree.below(label_dir)
            if suffix_of(f.path) == ".json" and f.path not in read
        }
        images = {f.path[len(image_dir) + 1 :]: f.path for f in tree.below(image_dir) if suffix_of(f.path) in PICTURES}
        stems = Counter(str(PurePosixPath(rel).with_suffix("")) for rel in images)
        read.update(images.values(), labels.values())
        for rel, path in images.items():
            stem = str(PurePosixPath(rel).with_suffix(""))
            label = labels.pop(rel, None) or (labels.pop(stem, None) if stems[stem] == 1 else None)
            said = Annotation() if label is None else self._annotation(tree, label)
            if suffix_of(path) not in SUFFIXES:
                why = fault("image_unsupported", path, f"{PurePosixPath(path).suffix} images cannot be read", images=1)
                yield why if label is None else lost(label, said.labels, why)
            elif label is None:
                message = f"has no annotation {label_dir}/{rel}.json"
                yield fault("image_without_label", path, message, images=1)
            else:
                name = str(PurePosixPath(path).relative_to(layout.image_dir))
                yield Item(name, path, label, said.labels, said.part, said.tags)
        for label in labels.values():
            why = fault("label_without_image", label, f"its image is missing from {image_dir}")
            yield lost(label, self._annotation(tree, label).labels, why)

    def _annotation(self, tree: Tree, path: str) -> Annotation:
        data = _read(tree, path)
        return Annotation(Labels(faults=[data])) if isinstance(data, Fault) else parse(data, path)


def _read(tree: Tree, path: str) -> bytes | Fault:
    """A file's bytes, or why there are none. Raises Changed."""
    try:
        return read_whole(tree, path)
    except Changed:
        raise
    except OSError as exc:
        return fault("label_unreadable", path, f"cannot be opened: {exc.strerror}")


def classes(data: bytes | Fault, file: str) -> tuple[tuple[str, ...], list[Fault]]:
    """The classes that a project lists, in its order."""
    if isinstance(data, Fault):
        return (), [data]
    try:
        root = parse_json(data)
    except NotText as exc:
        return (), [fault("label_unreadable", file, str(exc))]
    found = root.get("classes") if isinstance(root, dict) else None
    titles = [c.get("title") if isinstance(c, dict) else None for c in found] if isinstance(found, list) else [None]
    named = tuple(filter(None, map(class_name, titles)))
    if len(named) < len(titles):
        return named, [fault("label_unreadable", file, "classes is no list of objects with a title each")]
    return named, []


def parse(data: bytes, file: str) -> Annotation:
    """What an annotation says; `file` is its name in faults."""
    out = Annotation()
    try:
        root = parse_json(data)
        objects = root.get("objects") if isinstance(root, dict) else None
        if not isinstance(objects, list):
            raise NotText("it has no list called objects")
    except NotText as exc:
        out.labels.declared = data.count(_OBJECT)
        out.labels.faults.append(fault("label_unreadable", file, str(exc), objects=out.labels.declared))
        return out
    size = root.get("size")
    out.labels.size = as_size(size.get("width"), size.get("height")) if isinstance(size, dict) else None
    tags = root.get("tags")
    out.tags = tuple(dict.fromkeys(filter(None, map(_tag, tags)))) if isinstance(tags, list) else ()
    boxed = sum(_object(o, f"objects[{i}]", file, out.labels) for i, o in enumerate(objects))
    if boxed:
        out.labels.faults.append(fault("polygon_boxed", file, f"{boxed} polygons or masks"))
    return out


def _tag(tag: object) -> str:
    """A tag's name, with its value where it has one: "night", "camera:3"."""
    if isinstance(tag, dict):
        name, value = tag.get("name"), tag.get("value")
        valued = isinstance(value, str | int | float) and value != ""
        return f"{name}:{value}" if valued and isinstance(name, str) else _tag(name)
    return tag.strip() if isinstance(tag, str) else ""


def _object(o: object, at: str, file: str, labels: Labels) -> bool:
    """Add an object, or say why not; gives whether another shape became its box."""
    name = class_name(o.get("classTitle")) if isinstance(o, dict) else ""

    def without(code: str, message: str) -> bool:
        labels.declared += 1
        labels.faults.append(fault(code, file, message, at=at, value=name, objects=1))
        return False

    if not isinstance(o, dict):
        return without("bad_entry", "an object is no JSON object")
    shape = o.get("geometryType") or ("bitmap" if o.get("bitmap") else "")
    if shape in ("bitmap", "alpha_mask"):
        sides = _bitmap(o.get("bitmap"))
        if sides is None:
            return without("no_box", "a mask whose bitmap cannot be read")
    elif shape in ("rectangle", "polygon", ""):
        points = o.get("points")
        exterior = points.get("exterior") if isinstance(points, dict) else None
        if not isinstance(exterior, list) or not all(isinstance(p, list) and len(p) == 2 for p in exterior):
            return without("no_box", "points.exterior is no list of points [x, y]")
        rectangle = shape == "rectangle" or (not shape and len(exterior) == 2)
        if len(exterior) != 2 if rectangle else len(exterior) < 3:
            return without("no_box", f"a {'rectangle' if rectangle else 'polygon'} of {len(exterior)} points")
        sides = [*exterior[0], *exterior[1]] if rectangle else _around(exterior)
        shape = "rectangle" if rectangle else "polygon"
    else:
        return without("no_box", f"a shape {str(shape)[:40]!r} has no box")
    before = len(labels.objects)
    take_box(labels, file, 0, name, [*zip(_SIDES, sides, strict=True)], at)
    return shape != "rectangle" and len(labels.objects) > before


def _around(points: Sequence[Sequence[object]]) -> list[object]:
    """The box around points; a coordinate that is no finite number stands for its sides, to be reported."""
    low: list[object] = []
    high: list[object] = []
    for axis in (0, 1):
        numbers = [(as_number(p[axis]), p[axis]) for p in points]
        wrong = [said for value, said in numbers if value is None or not math.isfinite(value)]
        values = [value for value, _ in numbers if value is not None]
        low.append(wrong[0] if wrong else min(values))
        high.append(wrong[0] if wrong else max(values))
    return [*low, *high]


def _bitmap(bitmap: object) -> list[object] | None:
    """The box of a mask: where its picture lies, and the size in that PNG's header (the picture is not unpacked)."""
    origin, data = (bitmap.get("origin"), bitmap.get("data")) if isinstance(bitmap, dict) else (None, None)
    if not isinstance(origin, list) or len(origin) != 2 or not isinstance(data, str):
        return None
    try:
        packed = base64.b64decode(data[:_BITMAP_START], validate=True)
        start = zlib.decompressobj().decompress(packed, _PNG_HEADER)
        width, height = struct.unpack_from(">II", start, 16)
    except (binascii.Error, ValueError, zlib.error, struct.error):
        return None
    x, y = as_number(origin[0]), as_number(origin[1])
    if not start.startswith(b"\x89PNG") or x is None or y is None:
        return None
    return [x, y, x + width, y + height]


def _sets(tree: Tree, folder: str) -> list[str]:
    """The data sets at or below a folder: folders that hold img/ and ann/."""
    known = set(tree.folders)
    found = [path.removesuffix("img").rstrip("/") or "." for path in known if PurePosixPath(path).name == "img"]
    prefix = "" if folder == "." else f"{folder}/"
    return sorted(p for p in found if _below(p, "ann") in known and (p == folder or f"{p}/".startswith(prefix)))


def _below(folder: str, name: str) -> str:
    return name if folder == "." else f"{folder}/{name}"


@dataclass(frozen=True)
class SuperviselyWriter:
    """Writes a project of one data set, ds0; an image's part is one of its tags."""

    name: str = "supervisely"
    image_dir: str | None = "ds0/img"

    def write(
        self, out: Path, records: Iterable[Record], classes: Sequence[str], image: Callable[[Record], bytes]
    ) -> Counter[str]:
        gone = Counter[str]()
        valued: dict[str, bool] = {}  # tag -> whether it has values
        for r in records:
            path = out / "ds0" / "ann" / f"{r.name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(annotation(r), ensure_ascii=False), encoding="utf-8")
            for tag in _tags(r):
                valued[tag["name"]] = tag["value"] is not None or valued.get(tag["name"], False)
            gone["part"] += r.part is not None and known_part(r.part) != r.part
            gone += fields_lost((r,), "difficult", "truncated", "occluded")
        meta = {
            "classes": [{"title": name, "shape": "rectangle", "color": _colour(name)} for name in classes],
            "tags": [
                {"name": name, "value_type": "any_string" if has else "none", "color": _colour(name)}
                for name, has in valued.items()
            ],
            "projectType": "images",
        }
        (out / META).write_text(json.dumps(meta, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        return +gone


def annotation(record: Record) -> Mapping[str, object]:
    """The annotation of an image."""
    objects = [
        {
            "classTitle": o.cls,
            "geometryType": "rectangle",
            "description": "",
            "tags": [],
            "points": {
                "exterior": [[plain_number(o.x1), plain_number(o.y1)], [plain_number(o.x2), plain_number(o.y2)]],
                "interior": [],
            },
        }
        for o in record.objects
    ]
    return {
        "description": "",
        "tags": _tags(record),
        "size": {"height": record.height, "width": record.width},
        "objects": objects,
    }


def _tags(record: Record) -> list[dict[str, Any]]:
    """The image's part and its other tags, as `_tag` reads them: "camera:3" is the value 3 of camera."""
    tags = []
    for tag in dict.fromkeys([*([record.part] if record.part else []), *record.tags]):
        name, _, value = tag.partition(":")
        tags.append({"name": name, "value": value} if value else {"name": tag, "value": None})
    return tags


def _colour(name: str) -> str:
    return f"#{zlib.crc32(name.encode()) & 0xFFFFFF:06X}"


READER = SuperviselyReader()
WRITER = SuperviselyWriter()
