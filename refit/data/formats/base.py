"""What a format is: a reader that turns a folder into images with their labels, and a writer that does the reverse.

A reader yields an `Item` for each image and each label file, sorted by name, and a fault for each that has no partner.
It opens label files only; images are looked at by `refit.data.examine`.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Protocol

from refit.data.faults import BadData, Fault, fault
from refit.data.images import OTHER_SUFFIXES, SUFFIXES
from refit.data.model import Box, Item, Labels
from refit.data.tree import Tree, suffix_of

_PART = re.compile(r"(train|val|test)(?:ing|id|idation)?(?:\d{4})?$", re.IGNORECASE)
_BY_CLASS = re.compile(r".+_(train|val|trainval|test)$")
_PART_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$")


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a data set keeps its images and labels: folders below the source, "." for the source itself."""

    image_dir: str
    label_dir: str


class Changed(OSError):
    """A file that was listed is gone or has another size: the data set is still being copied."""


@dataclass(frozen=True, slots=True)
class Names:
    """The classes that a data set lists itself, in its order (COCO's categories, YOLO's data.yaml)."""

    classes: tuple[str, ...]


class Reader(Protocol):
    """One format. `layout` raises BadData; `read` raises Changed."""

    @property
    def name(self) -> str: ...

    def layout(self, tree: Tree, image_dir: str | None = None, label_dir: str | None = None) -> Layout: ...

    def matches(self, tree: Tree) -> bool:
        """Whether the folder looks like this format: by the names in it, else by the beginning of a few label files."""
        ...

    def read(self, tree: Tree, layout: Layout, leave: Collection[str] = ()) -> Iterator[Item | Fault | Names]: ...


@dataclass(frozen=True, slots=True)
class Record:
    """A checked image on its way into another format.

    `name` is its path below the image folder (it may hold folders), `part` its split ("train", "val", ...) where there
    is one, `objects` have boxes in pixels of the image as stored, x2 and y2 the exclusive edges. `tags` are those of
    the image as a whole that are no part's name.
    """

    name: str
    width: int
    height: int
    sha256: str
    part: str | None
    objects: Sequence[Box]
    tags: tuple[str, ...] = ()


class Writer(Protocol):
    """One format to write. `image_dir` is where the images go, below the output; None: they go into the label files.

    `write` writes everything but the images into `out`, an empty folder. `image` gives the bytes of a record's image.
    It returns what the format cannot hold -> how many objects lose it (or, where it says so, images): "difficult",
    "truncated", "occluded" (fields of Box that are set), "class_name" (written otherwise), "part", "background" (images
    without objects). It raises BadData for what it cannot write at all, before anything is written. A record without a
    part is in no list, or in one called "default" where the format needs one.
    """

    @property
    def name(self) -> str: ...

    @property
    def image_dir(self) -> str | None: ...

    def write(
        self, out: Path, records: Iterable[Record], classes: Sequence[str], image: Callable[[Record], bytes]
    ) -> Counter[str]: ...


def fields_lost(records: Iterable[Record], *fields: str) -> Counter[str]:
    """How many objects have each of these fields of Box set, in a format that has no place for it."""
    return Counter(f for r in records for o in r.objects for f in fields if getattr(o, f))


def names_lost(records: Iterable[Record], called: Mapping[str, str]) -> Counter[str]:
    """How many objects are of a class that is `called` otherwise in the format."""
    other = {c for c, name in called.items() if c != name}
    return +Counter(class_name=sum(o.cls in other for r in records for o in r.objects))


def tags_besides(tags: Iterable[str]) -> tuple[str, ...]:
    """The tags of an image that are not its part's name: "night", and not "train"."""
    return tuple(tag for tag in tags if known_part(tag) is None)


def check_stems(records: Iterable[Record], what: str) -> None:
    """Whether each image has a label file of its own where these are called like the image. Raises BadData."""
    taken: dict[str, str] = {}
    faults = []
    for r in records:
        stem = str(PurePosixPath(r.name).with_suffix(""))
        other = taken.setdefault(stem, r.name)
        if other != r.name:
            faults.append(fault("duplicate_name", r.name, f"{what} has one label file for it and {other}"))
    if faults:
        raise BadData(what, faults)


def part_lines(records: Iterable[Record], line: Callable[[str], str]) -> dict[str, str]:
    """The text of a list for each part: a line an image, made from its name."""
    lists: dict[str, list[str]] = {}
    for r in records:
        if r.part is not None:
            lists.setdefault(r.part, []).append(line(r.name))
    return {part: "".join(f"{row}\n" for row in rows) for part, rows in sorted(lists.items())}


def own_lists(tree: Tree) -> dict[str, str]:
    """Part -> its list, where a data set keeps them as VOC and KITTI do; not VOC's lists by class ("cat_train.txt").

    `trainval` is a part where train and val are none.
    """
    found: dict[str, str] = {}
    for folder in ("ImageSets/Main", "ImageSets"):
        for path in tree.files:
            parent, _, file = path.rpartition("/")
            stem = file[: -len(".txt")]
            if parent == folder and suffix_of(file) == ".txt" and part_name(stem) and not _BY_CLASS.match(stem):
                found.setdefault(part_name(stem) or stem, path)
    if found.keys() & {"train", "val"}:
        found.pop("trainval", None)
    return found


def known_part(name: str) -> str | None:
    """train, val or test, by the names that folders and files of them have ("train2017", "valid"); None for others."""
    found = _PART.match(name)
    return found[1].lower() if found else None


def part_name(name: str) -> str | None:
    """The part that a name from outside stands for, None where it could not be the name of a file."""
    return known_part(name) or (name if _PART_NAME.match(name) else None)


_INSIDE = re.compile(r"(?s)(.*)#[0-9]+@([0-9]+)\+([0-9]+)")


def inside(path: str, record: int, offset: int, size: int) -> str:
    """The name of an image that is no file of its own but `size` bytes of one, from byte `offset` on, in its record
    number `record` (from 1): "train.tfrecord#12@34567+8901". `read_whole` reads it like a file."""
    return f"{path}#{record}@{offset}+{size}"


def holder(tree: Tree, path: str) -> str:
    """The file that a path means: itself, or the one that an image lies `inside`."""
    found = None if path in tree.files else _INSIDE.fullmatch(path)
    return found[1] if found else path


def _read(descriptor: int, length: int) -> bytes:
    """So many bytes, or what there is."""
    data = os.read(descriptor, length)
    while len(data) < length and (more := os.read(descriptor, length - len(data))):
        data += more
    return data


def read_whole(tree: Tree, path: str) -> bytes:
    """A file's bytes, of the size that was listed, or an image's `inside` one. Raises Changed, and OSError for other
    troubles."""
    file = holder(tree, path)
    return read_listed(f"{tree.root}/", path, file, tree.files[file].size)


def read_listed(root: str, path: str, file: str, listed: int) -> bytes:
    """The same below a folder (with its "/"), of which `file` is the `holder` and `listed` that one's size."""
    try:
        descriptor = os.open(root + file, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Changed(f"{file} is gone") from None
    try:
        if file == path:
            data = os.read(descriptor, listed + 1)
            if len(data) != listed:  # a short read, or one byte too many
                data += _read(descriptor, max(0, listed + 1 - len(data)))
            size = len(data)
        else:
            offset, length = map(int, _INSIDE.fullmatch(path).group(2, 3))  # type: ignore[union-attr]
            os.lseek(descriptor, offset, os.SEEK_SET)
            data = _read(descriptor, length)
            size = os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
    if size != listed:
        raise Changed(f"{file} had {listed} bytes when it was listed, and has another size now")
    return data


def ignored(tree: Tree, read: Collection[str]) -> Iterator[Fault]:
    """What else lies in the source than what was `read`."""
    yield from beside(tree, [path for path in tree.files if path not in read])


def beside(tree: Tree, rest: list[str]) -> Iterator[Fault]:
    """Files that are neither images, labels nor a part's list: counted, an example named (an image before others)."""
    if any(path.startswith("ImageSets/") for path in rest):
        lists = set(own_lists(tree).values())
        rest = [path for path in rest if path not in lists]
    rest.sort(key=lambda path: suffix_of(path) not in SUFFIXES.keys() | OTHER_SUFFIXES)
    if rest:
        message = f"{len(rest)} files are neither images nor labels, for example {rest[0]}"
        yield fault("ignored_files", "", message, value=rest[0])
    if tree.temporary:
        message = f"{len(tree.temporary)} hidden or partial files, for example {tree.temporary[0].path}"
        yield fault("ignored_files", "", message, value=tree.temporary[0].path)


def lost(label: str, labels: Labels, why: Fault) -> Item:
    """Labels whose objects are all lost: each counts once, in the fault that says why."""
    return Item("", None, label, Labels(labels.declared, faults=[replace(why, objects=labels.declared)]))


def files_at(tree: Tree, place: str, *suffixes: str) -> list[str]:
    """The files with these endings below a folder, or the one file that `place` names."""
    if place == ".":
        return list(tree.files.ending(*suffixes))
    paths = [place] if place in tree.files else tree.paths(place)
    return [path for path in paths if suffix_of(path) in suffixes]


def stem_of(path: str, folder: str) -> str:
    """The path below a folder ("." for the source) without its ending."""
    before, _, end = path.rpartition(".")
    stem = before if end and before and before[-1] != "/" and "/" not in end else path
    return stem if folder == "." else stem[len(folder) + 1 :]


def normal(folder: str) -> str:
    return str(PurePosixPath(folder.strip("/") or "."))


def not_recognised(tree: Tree, message: str) -> BadData:
    nested = sorted({p.split("/")[0] for p in tree.folders})
    advice = ""
    if len(nested) == 1 and all("/" in p for p in tree.files):
        advice = f"is the data set in {nested[0]}/? then name that folder as the source"
    unseen = (fault("not_followed", path, why) for path, why in sorted(tree.skipped.items()))
    return BadData(str(tree.root), [fault("not_recognised", "", message, advice=advice), *unseen])
