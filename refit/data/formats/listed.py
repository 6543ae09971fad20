"""Formats whose label files name their images (lists in CSV, frames in JSON): which image each name means.

A name in a label file may be bare ("a.jpg"), a path below the image folder, the label file's folder or the source, or
a path on the machine where the labels were made ("/home/me/images/a.jpg", "C:/images/a.jpg"). It means an image of
the data set where one of the two is the end of the other, part by part: "night/a.jpg" is never taken for "day/a.jpg".
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from refit.data.faults import Fault, fault
from refit.data.formats.base import Layout, ignored, known_part, lost, normal, not_recognised, part_name
from refit.data.images import OTHER_SUFFIXES, SUFFIXES
from refit.data.model import Item, Labelled, Labels
from refit.data.text import class_name, number
from refit.data.tree import Tree, suffix_of
from refit.specs import did_you_mean

PICTURES = SUFFIXES.keys() | OTHER_SUFFIXES
_IMAGE_DIRS = ("images", "img", "JPEGImages")


@dataclass(slots=True)
class Entry:
    """What a label file says of one image; `ref` is the image's name as it stands there, `line` or `at` the place."""

    label: str
    line: int
    ref: str
    labels: Labels
    part: str | None = None
    at: str = ""


def image_folder(tree: Tree, given: str | None) -> str:
    """The folder of the images: the given one, or one of a known name that holds them all, or the source.

    Raises BadData.
    """
    held = [f.path for f in tree.below(normal(given or ".")) if suffix_of(f.path) in PICTURES]
    if given is not None and not held:
        hint = did_you_mean(given, tree.folders)
        raise not_recognised(tree, f"dataset.image_dir: no image files ({' '.join(SUFFIXES)}) below {given!r}{hint}")
    if given is not None:
        return normal(given)
    return next((d for d in _IMAGE_DIRS if held and all(path.startswith(f"{d}/") for path in held)), ".")


def join(
    tree: Tree,
    layout: Layout,
    entries: Iterable[Entry],
    read: Collection[str],
    *,
    unlisted: Literal["background", "image_without_label"],
    endings: bool = True,
) -> Iterator[Item | Fault]:
    """Every image and every entry once, images sorted by name.

    Args:
        read: the files below the source that were read as labels, or are known to be something else.
        unlisted: what an image is that no entry names.
        endings: whether the entries name images with their endings (".jpg").
    """
    pictures = _Pictures(tree, layout.image_dir, endings)
    taken: dict[str, Entry] = {}
    for entry in entries:
        found = pictures.find(entry)
        if len(found) == 1 and found[0] not in taken:
            taken[found[0]] = entry
        else:
            yield lost(entry.label, entry.labels, pictures.why(entry, found, taken))
    yield from ignored(tree, pictures.paths.union(read))
    for path in sorted(pictures.paths):
        named = taken.pop(path, None)
        name = str(PurePosixPath(path).relative_to(layout.image_dir))
        if suffix_of(path) not in SUFFIXES:
            why = fault("image_unsupported", path, f"{PurePosixPath(path).suffix} images cannot be read", images=1)
            yield why if named is None else lost(named.label, named.labels, why)
        elif named is not None:
            yield Item(name, path, named.label, named.labels, named.part)
        elif unlisted == "background":
            yield Item(name, path, path, Labels())
        else:
            yield fault("image_without_label", path, "no label file names it", images=1)


class _Pictures:
    """The images of a data set by their names without folders."""

    def __init__(self, tree: Tree, folder: str, endings: bool) -> None:
        self.folder, self.endings = folder, endings
        self.paths = {f.path for f in tree.below(folder) if suffix_of(f.path) in PICTURES}
        self.named: dict[str, list[str]] = {}
        for path in sorted(self.paths):
            self.named.setdefault(self._shown(path).rpartition("/")[2], []).append(path)

    def _shown(self, path: str) -> str:
        """An image's path as entries write it."""
        return path if self.endings else path.removesuffix(PurePosixPath(path).suffix)

    def find(self, entry: Entry) -> list[str]:
        """The images that an entry may mean: one, where all is well."""
        ref = _parts(entry.ref)
        found = [p for p in self.named.get(ref[-1] if ref else "", ()) if self._meant(self._shown(p).split("/"), ref)]
        if len(found) > 1:
            below = {"/".join([*_parts(folder), *ref]) for folder in (".", self.folder, entry.label.rpartition("/")[0])}
            for closer in (below.__contains__, lambda p: entry.part in p.split("/")):
                chosen = [p for p in found if closer(self._shown(p))]
                if len(chosen) == 1:
                    return chosen
        return found

    def _meant(self, path: Sequence[str], ref: Sequence[str]) -> bool:
        rel = path[len(_parts(self.folder)) :]
        return path[-len(ref) :] == ref or ref[-len(rel) :] == rel

    def why(self, entry: Entry, found: Sequence[str], taken: dict[str, Entry]) -> Fault:
        """What is wrong with an entry that does not mean one image alone."""
        shown = entry.ref[:120]
        if not found:
            hint = did_you_mean(shown, [*self.named]) if len(self.named) < 5000 else ""
            message = f"{shown!r} is no image of the data set{hint}" if shown else "no image is named"
            advice = "add the image, or take it out of the labels"
            return fault(
                "label_without_image", entry.label, message, line=entry.line, at=entry.at, value=shown, advice=advice
            )
        if len(found) > 1:
            message = f"{shown!r} may be {' or '.join(found[:3])}"
            advice = "name the image with its folder"
        else:
            other = taken[found[0]]
            where = f"{other.label}:{other.line}" if other.line else f"{other.label} {other.at}".strip()
            message = f"{shown!r} is {found[0]}, of which {where} tells already"
            advice = "leave all of an image's objects in one place; dataset.label_dir may name the one file to read"
        return fault("duplicate_name", entry.label, message, line=entry.line, at=entry.at, value=shown, advice=advice)


def _parts(path: str) -> list[str]:
    return [p for p in path.replace("\\", "/").split("/") if p not in ("", ".", "..")]


def refuse_shares(file: str, entries: Sequence[Entry]) -> None:
    """Boxes that all lie between 0 and 1 are shares of the image, not pixels: none is an object then."""
    boxes = [(o.x1, o.y1, o.x2, o.y2) for e in entries for o in e.labels.objects]
    inner = Counter(0 < v < 1 for box in boxes for v in box)
    if not inner[True] or not all(0 <= v <= 1 for box in boxes for v in box):
        return
    for entry in entries:
        gone = len(entry.labels.objects)
        if gone:
            first = entry.labels.objects[0]
            message = f"all {len(boxes)} boxes of the file lie between 0 and 1"
            value = f"{first.x1:g} {first.y1:g} {first.x2:g} {first.y2:g}"
            entry.labels.faults.append(
                fault("not_pixels", file, message, line=first.line, at=first.at, value=value, objects=gone)
            )
            entry.labels.objects.clear()


def take_box(
    labels: Labels, file: str, line: int, name: object, sides: Sequence[tuple[str, object]], at: str = ""
) -> None:
    """Count an object of a class and four named sides (x1, y1, x2, y2), numbers or words; add it, or say why not."""
    labels.declared += 1
    name = class_name(name)
    values = [number(v) if isinstance(v, str) else as_number(v) for _, v in sides]
    box = [v for v in values if v is not None and math.isfinite(v)]
    if name and len(box) == 4:
        labels.objects.append(Labelled(line, name, box[0], box[1], box[2], box[3], at=at))
        return
    empty = [side for side, v in sides if v is None or v == ""]
    words = [(side, v) for (side, v), read in zip(sides, values, strict=True) if read is None]
    if not name:
        code, message = "no_class", "an object without a class"
    elif empty:
        code, message = "no_box", f"a box without {empty[0]}"
    elif words:
        code, message = "not_a_number", f"{words[0][0]} is {str(words[0][1])[:40]!r}, which is no number"
    else:
        code, message = "not_finite", "the box is not finite"
    shown = f"{name} {' '.join(str(v)[:20] if v not in (None, '') else '-' for _, v in sides)}"
    labels.faults.append(fault(code, file, message, line=line, at=at, value=shown, objects=1))


def as_number(value: object) -> float | None:
    """A number that stands in JSON or text, or None; one that is too large is infinite."""
    if isinstance(value, str):
        return number(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return math.inf
    return None


def as_size(width: object, height: object) -> tuple[int, int] | None:
    """Width and height as labels state them; None where they do not (left out, empty or 0)."""
    w, h = as_number(width), as_number(height)
    return (int(w), int(h)) if w and h and math.isfinite(w) and math.isfinite(h) else None


def parts_of(stems: Iterable[str]) -> dict[str, str | None]:
    """The part that each file of labels is by its name: "train" for "pets_train_labels".

    Where there are several kinds, a name that says none of train, val and test is a part of that name; "labels",
    "default" and "metadata" are what writers call the file of images that belong to none.
    """
    stems = list(stems)
    known = {stem: next(filter(None, map(known_part, re.split(r"[-_. ]+", stem))), None) for stem in stems}
    names = {stem: stem.removesuffix("_labels").removeprefix("metadata_").strip("-_.") for stem in stems}
    own = {s: None if name in ("labels", "default", "metadata") else part_name(name) for s, name in names.items()}
    found = {stem: known[stem] or own[stem] for stem in stems}
    return found if len(set(found.values())) > 1 else known


def parts_lost(images: Mapping[str | None, int], stem: Callable[[str | None], str]) -> int:
    """How many images lose their part, of so many in each, where the file of a part is called by `stem`."""
    read = parts_of(stem(part) for part in images)
    return sum(n for part, n in images.items() if read[stem(part)] != part)


def plain_number(value: float) -> int | float:
    """Whole numbers without a point, as old tools expect them; others exactly."""
    return int(value) if value == int(value) else value
