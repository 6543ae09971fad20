"""COCO's annotations: JSON files, one for the whole data set or one for each split.

    {"images": [{"id", "file_name", "width", "height"}], "categories": [{"id", "name"}],
     "annotations": [{"image_id", "category_id", "bbox": [x, y, width, height], "iscrowd", "segmentation"}]}

Read are annotations/*.json, *_annotations.coco.json and *.json in the source itself; where some are called instances_*,
only these (COCO keeps captions and keypoints beside them). A file is read an entry at a time, and of an annotation some
60 bytes are kept until its image's turn comes. Source: cocodataset.org, "Data format".
"""

from __future__ import annotations

import math
import os
import re
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import TypeVar

import numpy as np

from refit.data.faults import Fault, fault
from refit.data.formats.base import (
    Changed,
    Layout,
    Names,
    ignored,
    known_part,
    lost,
    normal,
    not_recognised,
    part_name,
)
from refit.data.images import OTHER_SUFFIXES, SUFFIXES
from refit.data.jsonstream import Entry, JsonFile, NotJson
from refit.data.model import Item, Labelled, Labels, pixel
from refit.data.text import class_name, finite
from refit.data.tree import Tree, suffix_of
from refit.specs import did_you_mean

SUFFIX = ".json"
_HEAD = 4096
_SNIFFED = 64
_BEGINS = re.compile(rb'(?:\xef\xbb\xbf)?\s*\{\s*"(info|licenses|images|annotations|categories|type)"\s*:')
_OBJECT = re.compile(r'"image_id"\s{0,8}:')
_ABSOLUTE = re.compile(r"/|[A-Za-z]:|[a-z0-9]+://")
Id = int | str


@dataclass(slots=True)
class _Image:
    """An entry of `images`, or what annotations say of one that is in no such entry (`name` None)."""

    id: Id
    name: str | None = None
    size: tuple[int, int] | None = None
    line: int = 0
    at: str = ""
    others: tuple[str, ...] = ()  # names of further entries with the same id


@dataclass(slots=True)
class _Category:
    """An entry of `categories`; `name` None: annotations say its id, and no entry does."""

    id: Id
    name: str | None = None
    unclear: bool = False  # several entries have the id, and other names


@dataclass(slots=True)
class _File:
    """One JSON file: where its images and categories lie in the whole, its faults, how many objects it declares."""

    path: str
    part: str | None
    images: dict[Id, int] = field(default_factory=dict)
    categories: dict[Id, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    declared: int = 0
    polygons: int = 0
    masks: int = 0
    boxed: int = 0

    def lose(self, code: str, entry: Entry, message: str, *, objects: int = 0, value: object = "") -> None:
        shown = str(value)[:120]
        self.faults.append(fault(code, self.path, message, line=entry.line, at=entry.at, value=shown, objects=objects))


@dataclass(slots=True)
class _All:
    """What all files hold: an entry of each array is an annotation."""

    images: list[_Image] = field(default_factory=list)
    categories: list[_Category] = field(default_factory=list)
    listed: list[_Category] = field(default_factory=list)  # in the order of the files' own lists
    image: array[int] = field(default_factory=lambda: array("q"))
    category: array[int] = field(default_factory=lambda: array("q"))
    boxes: array[float] = field(default_factory=lambda: array("d"))  # x, y, width, height of each
    line: array[int] = field(default_factory=lambda: array("q"))
    index: array[int] = field(default_factory=lambda: array("q"))


class CocoReader:
    name = "coco"

    def matches(self, tree: Tree) -> bool:
        found = [path for path in tree.files.ending(SUFFIX) if _is_named(path)][:_SNIFFED]
        return any(_is_sure(path) or _begins(tree, path) for path in found) and any(tree.files.ending(*SUFFIXES))

    def layout(self, tree: Tree, image_dir: str | None = None, label_dir: str | None = None) -> Layout:
        """`label_dir` may name one JSON file, as well."""
        labels = normal(label_dir) if label_dir is not None else "."
        if not _label_files(tree, labels):
            what = f"below {label_dir!r}{did_you_mean(label_dir, tree.folders)}" if label_dir else "of the format coco"
            raise not_recognised(tree, f"dataset.label_dir: no JSON file {what}; known are annotations/*.json")
        pictures = list(tree.files.ending(*SUFFIXES, *OTHER_SUFFIXES))
        tops = {path.split("/")[0] for path in pictures}
        if image_dir is not None:
            images = normal(image_dir)
        else:
            images = tops.pop() if len(tops) == 1 and all("/" in path for path in pictures) else "."
        if not any(path.startswith("" if images == "." else f"{images}/") for path in pictures):
            hint = did_you_mean(image_dir, tree.folders) if image_dir else ""
            raise not_recognised(tree, f"dataset.image_dir: no image files below {images!r}{hint}")
        return Layout(images, labels)

    def read(self, tree: Tree, layout: Layout, leave: Collection[str] = ()) -> Iterator[Item | Fault | Names]:
        found = _All()
        paths = _label_files(tree, layout.label_dir, leave)
        files = [_File(path, _part(path, len(paths) > 1)) for path in paths]
        for file in files:
            before = len(found.image)
            _read(tree, file, found)
            kept = len(found.image) - before
            yield Item("", None, file.path, Labels(file.declared - kept, faults=file.faults))
        yield Names(tuple(dict.fromkeys(c.name for c in found.listed if c.name and not c.unclear)))
        pictures = SUFFIXES.keys() | OTHER_SUFFIXES
        images = [f.path for f in tree.below(layout.image_dir) if suffix_of(f.path) in pictures]
        yield from ignored(tree, {*images, *paths, *leave})
        yield from _items(tree, layout, files, found, images)


# ---- which files


def _is_sure(path: str) -> bool:
    name = PurePosixPath(path).name.lower()
    return name.endswith("annotations.coco.json") or (name.startswith("instances_") and name.endswith(SUFFIX))


def _is_named(path: str) -> bool:
    if suffix_of(path) != SUFFIX:
        return False
    return _is_sure(path) or PurePosixPath(path).parent.name.lower() in ("", "annotations")


def _begins(tree: Tree, path: str) -> bool:
    try:
        with open(os.path.join(tree.root, path), "rb") as f:
            return bool(_BEGINS.match(f.read(_HEAD)))
    except OSError:
        return False


def _label_files(tree: Tree, label_dir: str, leave: Collection[str] = ()) -> list[str]:
    if label_dir in tree.files:
        return [label_dir]
    files = [f.path for f in tree.below(label_dir) if suffix_of(f.path) == SUFFIX and f.path not in leave]
    sure = [path for path in files if _is_sure(path)]
    return sure or (files if label_dir != "." else [path for path in files if _is_named(path)])


def _part(path: str, several: bool) -> str | None:
    """instances_train2017.json and train/_annotations.coco.json hold "train"; of several files each is a part."""
    stem = PurePosixPath(path).stem
    if stem.lower().endswith("annotations.coco"):
        stem = PurePosixPath(path).parent.name
    named = stem.lower().startswith("instances_")
    stem = stem[len("instances_") :] if named else stem
    if stem.lower() in ("", "default", "all"):
        return None
    return part_name(stem) if named or several else known_part(stem)


# ---- a file


def _read(tree: Tree, file: _File, found: _All) -> None:
    """Read one file into `found`; what is lost goes to its faults. Raises Changed."""
    stream = JsonFile(tree.root / file.path)
    ids = array("q")
    try:
        for entry in stream.entries():
            if entry.index < 0:
                if entry.section in ("images", "annotations", "categories"):
                    file.lose("bad_entry", entry, f"{entry.section} is no list")
            elif entry.section == "annotations":
                file.declared += 1
                _annotation(entry, file, found, ids)
            elif entry.section == "images":
                _image(entry, file, found)
            elif entry.section == "categories":
                _category(entry, file, found)
    except NotJson as exc:
        objects = stream.rest(_OBJECT, 24)
        file.declared += objects
        file.faults.append(fault("label_unreadable", file.path, str(exc), line=exc.line, objects=objects))
    except FileNotFoundError:
        raise Changed(f"{file.path} is gone") from None
    except OSError as exc:
        file.faults.append(fault("label_unreadable", file.path, f"cannot be opened: {exc.strerror}"))
        return
    else:
        missing = [s for s in ("images", "annotations", "categories") if s not in stream.keys]
        if missing:
            message = f"it has no list called {' and none called '.join(missing)}"
            file.faults.append(fault("label_unreadable", file.path, message))
    if stream.size != tree.files[file.path].size:
        raise Changed(
            f"{file.path} had {tree.files[file.path].size} bytes when it was listed, and has another size now"
        )
    _summary(file, ids)


def _summary(file: _File, ids: array[int]) -> None:
    """What is said once of a file: ids that several annotations share, masks, polygons that became boxes."""
    values, counts = np.unique(np.frombuffer(ids, np.int64), return_counts=True)
    twice = values[counts > 1]
    if len(twice):
        message = f"{len(twice)} ids are those of several annotations, the first {twice[0]}; each is taken as its own"
        file.faults.append(fault("duplicate_id", file.path, message, value=str(twice[0])))
    if file.polygons or file.masks:
        message = f"{file.polygons} objects have polygons, {file.masks} have masks (RLE) beside their boxes"
        file.faults.append(fault("mask_unused", file.path, message))
    if file.boxed:
        message = f"{file.boxed} objects have polygons and no bbox"
        file.faults.append(fault("polygon_boxed", file.path, message))


def _image(entry: Entry, file: _File, found: _All) -> None:
    row = entry.value
    id_ = _id(row.get("id")) if isinstance(row, dict) else None
    name = row.get("file_name") if isinstance(row, dict) else None
    if id_ is None or not isinstance(name, str) or not name.strip():
        return file.lose("bad_entry", entry, "an image needs an id and a file_name", value=row)
    number = file.images.get(id_)
    width, height = row.get("width"), row.get("height")
    size = (width, height) if isinstance(width, int) and isinstance(height, int) and width > 0 < height else None
    if number is None:
        file.images[id_] = len(found.images)
        found.images.append(_Image(id_, name, size, entry.line, entry.at))
        return None
    image = found.images[number]
    if image.name is None:
        image.name, image.size, image.line, image.at = name, size, entry.line, entry.at
        return None
    file.lose("duplicate_id", entry, f"id {id_!r} is that of {image.at} ({image.name}), too", value=name)
    if name != image.name:
        image.others = (*image.others, name)
    return None


def _category(entry: Entry, file: _File, found: _All) -> None:
    row = entry.value
    id_ = _id(row.get("id")) if isinstance(row, dict) else None
    name = class_name(row.get("name")) if isinstance(row, dict) else ""
    if id_ is None or not name:
        return file.lose("bad_entry", entry, "a category needs an id and a name", value=row)
    number = _interned(file.categories, id_, found.categories, _Category(id_))
    category = found.categories[number]
    if category.name is None and not category.unclear:
        category.name = name
        found.listed.append(category)
    elif category.name != name:
        category.unclear = True
        file.lose("duplicate_id", entry, f"category id {id_!r} is that of {category.name!r}, too", value=name)
    return None


def _annotation(entry: Entry, file: _File, found: _All, ids: array[int]) -> None:
    row = entry.value
    if not isinstance(row, dict):
        return file.lose("bad_entry", entry, "an annotation that is no object", objects=1, value=row)
    own = row.get("id")
    if isinstance(own, int) and abs(own) < 2**62:
        ids.append(own)
    image, category = _id(row.get("image_id")), _id(row.get("category_id"))
    if image is None:
        return file.lose("bad_entry", entry, "an annotation without an image_id", objects=1, value=row.get("image_id"))
    if row.get("iscrowd") not in (None, 0, "0"):
        return file.lose("crowd", entry, f"a crowd region of image {image!r}", objects=1)
    if category is None:
        return file.lose("no_class", entry, "an annotation without a category_id", objects=1)
    masked = row.get("segmentation")
    if row.get("bbox") in (None, []):
        box = _around(masked)
        if box is None:
            message = "an annotation with a mask (RLE) and no bbox" if masked else "an annotation without a bbox"
            return file.lose("no_box", entry, message, objects=1, value=masked)
        file.boxed += 1
    else:
        box = _numbers(row["bbox"], 4)
        if box is None:
            return file.lose("not_a_number", entry, "bbox is not four numbers", objects=1, value=row["bbox"])
        file.polygons += isinstance(masked, list) and bool(masked)
        file.masks += isinstance(masked, dict)
    if not finite(tuple(box)):
        return file.lose("not_finite", entry, "the bbox is not finite", objects=1, value=row.get("bbox"))
    found.image.append(_interned(file.images, image, found.images, _Image(image)))
    found.category.append(_interned(file.categories, category, found.categories, _Category(category)))
    found.boxes.extend(box)
    found.line.append(entry.line)
    found.index.append(entry.index)
    return None


T = TypeVar("T")


def _interned(known: dict[Id, int], id_: Id, everything: list[T], new: T) -> int:
    """The place of what has this id in its file; `new` is appended where nothing had it before."""
    number = known.setdefault(id_, len(everything))
    if number == len(everything):
        everything.append(new)
    return number


def _id(value: object) -> Id | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value if isinstance(value, int | str) else None


def _numbers(value: object, n: int | None = None) -> list[float] | None:
    if not isinstance(value, list) or (n is not None and len(value) != n):
        return None
    out = []
    for v in value:
        if isinstance(v, bool) or not isinstance(v, int | float):
            return None
        try:
            out.append(float(v))
        except OverflowError:  # an integer of hundreds of digits
            out.append(math.inf)
    return out


def _around(segmentation: object) -> list[float] | None:
    """The bbox around all polygons of a segmentation, None where it has none that are whole."""
    if not isinstance(segmentation, list) or not segmentation:
        return None
    points = [_numbers(polygon) for polygon in segmentation]
    if not all(p and len(p) >= 6 and len(p) % 2 == 0 for p in points):
        return None
    xs = [x for p in points if p for x in p[::2]]
    ys = [y for p in points if p for y in p[1::2]]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


# ---- images with their objects


class _Objects:
    """The annotations by image."""

    def __init__(self, found: _All) -> None:
        self.found = found
        image = np.frombuffer(found.image, np.int64)
        self.order = np.argsort(image, kind="stable")
        self.first = np.searchsorted(image[self.order], np.arange(len(found.images) + 1))

    def count(self, image: int) -> int:
        return int(self.first[image + 1] - self.first[image])

    def place(self, k: int) -> tuple[int, str]:
        return self.found.line[k], f"annotations[{self.found.index[k]}]"

    def labels(self, image: int, file: str) -> Labels:
        about = self.found.images[image]
        labels = Labels(self.count(image), size=about.size, line=about.line, at=f"{about.at}, {about.name}")
        for k in self.order[self.first[image] : self.first[image + 1]].tolist():
            line, at = self.place(k)
            category = self.found.categories[self.found.category[k]]
            if category.name is None or category.unclear:
                why = "two categories" if category.unclear else "not among categories"
                message, advice = f"category_id {category.id!r} is {why}", "correct the list of categories"
                labels.faults.append(fault("unknown_class", file, message, line=line, at=at, advice=advice, objects=1))
                continue
            x, y, width, height = self.found.boxes[4 * k : 4 * k + 4]
            box = (x, y, pixel(x + width), pixel(y + height))
            labels.objects.append(Labelled(line, category.name, *box, at=at))
        return labels


@dataclass(frozen=True, slots=True)
class _Claim:
    """That an entry of `images` names an image file; of files that share an id the first has the `objects`."""

    file: _File
    image: int
    objects: int


def _items(
    tree: Tree, layout: Layout, files: Iterable[_File], found: _All, images: Collection[str]
) -> Iterator[Item | Fault]:
    objects = _Objects(found)
    finder = _Finder(layout, images)
    claims: dict[str, list[_Claim]] = {}
    for file in files:
        for number in file.images.values():
            image, n = found.images[number], objects.count(number)
            if image.name is None:
                message = f"image_id {image.id!r}, of {n} annotations, is not among images"
                line, at = objects.place(int(objects.order[objects.first[number]]))
                yield lost(file.path, Labels(n), fault("label_without_image", file.path, message, line=line, at=at))
                continue
            places = dict.fromkeys(finder.find(name, file) for name in (image.name, *image.others))
            for i, place in enumerate(places):
                if isinstance(place, Fault):
                    why = replace(place, line=image.line, at=image.at)
                    yield lost(file.path, Labels(n if i == 0 else 0), why)
                else:
                    claims.setdefault(place, []).append(_Claim(file, number, n if i == 0 else 0))
    for path in sorted(images):
        yield from _of_image(path, layout, claims.get(path, []), found, objects)


def _of_image(
    path: str, layout: Layout, claims: Sequence[_Claim], found: _All, objects: _Objects
) -> Iterator[Item | Fault]:
    """The item of one image file, which no entry names, or one, or several."""
    readable = suffix_of(path) in SUFFIXES
    if not claims:
        message = "no annotation file names it" if readable else f"{suffix_of(path)} images cannot be read"
        yield fault("image_without_label" if readable else "image_unsupported", path, message, images=1)
        return
    claim, *more = claims
    file, image = claim.file, found.images[claim.image]
    why: Fault | None = None
    if more:
        code = "duplicate_name" if all(c.file is file for c in more) else "list_overlap"
        places = ", ".join(f"{c.file.path} ({found.images[c.image].at})" for c in claims[:4])
        why = fault(code, path, f"several entries name it: {places}", images=1)
    elif image.others:
        message = f"the id {image.id!r} is that of several images: no one knows whose the annotations are"
        why = fault("duplicate_id", path, message, images=1)
    elif not readable:
        why = fault("image_unsupported", path, f"{suffix_of(path)} images cannot be read", images=1)
    if why is None:
        name = str(PurePosixPath(path).relative_to(layout.image_dir))
        yield Item(name, path, file.path, objects.labels(claim.image, file.path), file.part)
        return
    yield lost(file.path, Labels(sum(c.objects for c in claims)), why)


class _Finder:
    """Where the image of a file_name lies: below the annotation file, the image folder, the source, or further down."""

    def __init__(self, layout: Layout, images: Collection[str]) -> None:
        self.layout = layout
        self.images = frozenset(images)
        self.by_name: dict[str, list[str]] = {}
        for path in sorted(images):
            self.by_name.setdefault(path.rpartition("/")[2], []).append(path)

    def find(self, file_name: str, file: _File) -> str | Fault:
        words = [w for w in file_name.strip().replace("\\", "/").split("/") if w not in ("", ".", "..")]
        clean = "/".join(words)
        for folder in (str(PurePosixPath(file.path).parent), self.layout.image_dir, "."):
            path = clean if folder == "." else f"{folder}/{clean}"
            if path in self.images:
                return path
        same = self.by_name.get(words[-1], []) if words else []
        # Of another machine's absolute path the end is what can be found here.
        tails = range(len(words)) if _ABSOLUTE.match(file_name) else range(min(1, len(words)))
        for i in tails:
            tail = "/".join(words[i:])
            fitting = [path for path in same if path == tail or path.endswith("/" + tail)]
            if len(fitting) > 1 and file.part:
                fitting = [p for p in fitting if file.part in map(known_part, p.split("/"))] or fitting
            if len(fitting) == 1:
                return fitting[0]
            if fitting:
                message = f"the image {file_name!r} could be {' or '.join(fitting[:3])}"
                return fault("label_without_image", file.path, message, value=file_name)
        message = f"there is no image {file_name[:200]!r}"
        return fault("label_without_image", file.path, message, value=file_name)


READER = CocoReader()
