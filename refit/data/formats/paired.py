"""Formats with a label file for each image, of the same name but for the ending (KITTI, Pascal VOC, YOLO)."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import PurePosixPath

from refit.data.faults import Fault, fault
from refit.data.formats.base import (
    Changed,
    Layout,
    beside,
    lost,
    normal,
    not_recognised,
    read_whole,
    stem_of,
)
from refit.data.images import OTHER_SUFFIXES, SUFFIXES
from refit.data.model import Columns, Item, Labels, Unread
from refit.data.tree import Tree, suffix_of
from refit.specs import did_you_mean

_PICTURES = SUFFIXES.keys() | OTHER_SUFFIXES


@dataclass(frozen=True)
class PairedReader:
    """A format with a label file for each image, of the same name but for the ending.

    Args:
        looks: looks into the label files (paths) where names do not tell this format from others.
        is_label: which files of the ending and folder are label files.
        key: what an image and its label have in common, of (path, image or label folder).
        part: the split that the data set itself puts an image in.
        background: an image without a label file has no objects; else it is a fault.
        many: `parse` of many files of which there is nothing to say (`Unread`).
    """

    name: str
    suffix: str
    image_dirs: tuple[str, ...]
    label_dirs: tuple[str, ...]
    parse: Callable[[bytes, str], Labels]
    looks: Callable[[Tree, Iterable[str]], bool] = lambda tree, labels: True
    is_label: Callable[[str], bool] = lambda path: True
    key: Callable[[str, str], str] = stem_of
    part: Callable[[str], str | None] = lambda path: None
    background: bool = False
    many: Callable[[Sequence[bytes]], Columns] | None = None

    def matches(self, tree: Tree) -> bool:
        images, labels = self._find(tree, None, None)
        paths = tree.files.paths
        return bool(images and labels) and self.looks(tree, (paths[at] for d in labels for at in self._texts(tree, d)))

    def layout(self, tree: Tree, image_dir: str | None = None, label_dir: str | None = None) -> Layout:
        """The folders, as given or as found; both must exist, and only one of each kind. Raises BadData."""
        found = self._find(tree, image_dir, label_dir)
        for what, names, known in zip(("image", "label"), found, (self.image_dirs, self.label_dirs), strict=True):
            given = image_dir if what == "image" else label_dir
            if len(names) == 1:
                continue
            if names:
                message = f"{' and '.join(names)} both hold {what}s; say which one in dataset.{what}_dir"
            elif given is not None:
                hint = did_you_mean(given, tree.folders)
                message = f"dataset.{what}_dir: no {what} files ({self._endings(what)}) below {given!r}{hint}"
            else:
                message = f"no folder with {what}s of the format {self.name}; known names are {', '.join(known)}"
            raise not_recognised(tree, message)
        return Layout(found[0][0], found[1][0])

    def read(self, tree: Tree, layout: Layout, leave: Collection[str] = ()) -> Iterator[Item | Fault]:
        """Every image and every label file once; `leave` names files below the source that are neither (lists)."""
        paths = tree.files.paths
        pictures = _places(tree, layout.image_dir, _PICTURES)
        unreadable = {paths[at] for at in _places(tree, layout.image_dir, OTHER_SUFFIXES)}
        texts = array("I", (at for at in self._texts(tree, layout.label_dir) if paths[at] not in leave))
        used = bytearray(len(paths))  # a set of paths would be the largest thing in memory
        for at in chain(pictures, texts):
            used[at] = 1
        yield from beside(tree, [path for path, use in zip(paths, used, strict=True) if not use and path not in leave])
        unread = Unread(self.parse, self.many)
        for images, labels in _joined(
            self._by_key(layout.image_dir, paths, pictures), self._by_key(layout.label_dir, paths, texts)
        ):
            if len(images) == len(labels) == 1 and images[0] not in unreadable:
                yield self._item(layout, images[0], labels[0], unread)
            else:
                yield from self._together(tree, layout, images, labels, unread)

    def _texts(self, tree: Tree, folder: str) -> Iterator[int]:
        """The places of the label files of a folder in the listing."""
        paths = tree.files.paths
        return (at for at in _places(tree, folder, (self.suffix,)) if self.is_label(paths[at]))

    def _by_key(self, folder: str, paths: list[str], places: array[int]) -> Iterator[tuple[str, str]]:
        """(key, path) of files of a folder by key; those of one key by path.

        A listing is nearly always in this order already ("a-b.jpg" before "a.jpg" is not).
        """
        if any(a > b for a, b in pairwise(self.key(paths[at], folder) for at in places)):
            places = array("I", sorted(places, key=lambda at: self.key(paths[at], folder)))
        return ((self.key(paths[at], folder), paths[at]) for at in places)

    def _together(
        self, tree: Tree, layout: Layout, images: list[str], labels: list[str], unread: Unread
    ) -> Iterator[Item | Fault]:
        """The images and label files of one key."""
        for other in labels[1:]:  # a.txt and a.TXT
            yield self._twice(tree, other, labels[0])
        label = labels[0] if labels else None
        for image in images[:]:
            if suffix_of(image) not in SUFFIXES:
                images.remove(image)
                yield from self._unsupported(tree, image, label)
                label = None
        if images or label is not None:
            yield from self._pair(tree, layout, images, label, unread)

    def _item(self, layout: Layout, image: str, label: str, labels: Labels | Unread) -> Item:
        name = image if layout.image_dir == "." else image[len(layout.image_dir) + 1 :]
        return Item(name, image, label, labels, self.part(image))

    def _pair(
        self, tree: Tree, layout: Layout, images: list[str], label: str | None, unread: Unread
    ) -> Iterator[Item | Fault]:
        if len(images) == 1 and label is not None:
            yield self._item(layout, images[0], label, unread)
        elif len(images) == 1 and self.background:
            yield self._item(layout, images[0], images[0], Labels())
        elif len(images) == 1:
            expected = PurePosixPath(layout.label_dir) / PurePosixPath(images[0]).relative_to(layout.image_dir)
            message = f"has no label file {expected.with_suffix(self.suffix)}"
            yield fault("image_without_label", images[0], message, images=1)
        elif label is None:
            yield fault("duplicate_name", images[0], f"same name as {', '.join(images[1:])}", images=len(images))
        elif images:
            message = f"its label file {label} belongs to {', '.join(images[1:])}, too"
            why = fault("duplicate_name", images[0], message, images=len(images))
            yield lost(label, self._labels(tree, label), why)
        else:
            message = f"its image is missing from {layout.image_dir}"
            yield lost(label, self._labels(tree, label), fault("label_without_image", label, message))

    def _twice(self, tree: Tree, label: str, other: str) -> Item:
        why = fault("duplicate_name", label, f"a second label file beside {other}")
        return lost(label, self._labels(tree, label), why)

    def _unsupported(self, tree: Tree, image: str, label: str | None) -> Iterator[Item | Fault]:
        why = fault("image_unsupported", image, f"{PurePosixPath(image).suffix} images cannot be read", images=1)
        yield why if label is None else lost(label, self._labels(tree, label), why)

    def _labels(self, tree: Tree, label: str) -> Labels:
        try:
            return self.parse(read_whole(tree, label), label)
        except Changed:
            raise
        except OSError as exc:
            return Labels(faults=[fault("label_unreadable", label, f"cannot be opened: {exc.strerror}")])

    def _endings(self, what: str) -> str:
        return " ".join(SUFFIXES) if what == "image" else self.suffix

    def _find(self, tree: Tree, image_dir: str | None, label_dir: str | None) -> tuple[list[str], list[str]]:
        """The folders that hold images, and those that hold labels, among the given or the known names."""
        images = [image_dir] if image_dir is not None else list(self.image_dirs)
        labels = [label_dir] if label_dir is not None else list(self.label_dirs)
        return (
            [d for d in map(normal, images) if _places(tree, d, _PICTURES)],
            [d for d in map(normal, labels) if next(self._texts(tree, d), None) is not None],
        )


def _places(tree: Tree, folder: str, suffixes: Iterable[str]) -> array[int]:
    return tree.files.places_ending(suffixes, tree.places(folder))


def _joined(
    images: Iterator[tuple[str, str]], labels: Iterator[tuple[str, str]]
) -> Iterator[tuple[list[str], list[str]]]:
    """Images and label files (key, path) in the order of their keys: those of each key."""
    image, label = next(images, None), next(labels, None)
    while image is not None or label is not None:
        key = min(found[0] for found in (image, label) if found is not None)
        here, its = list[str](), list[str]()
        while image is not None and image[0] == key:
            here.append(image[1])
            image = next(images, None)
        while label is not None and label[0] == key:
            its.append(label[1])
            label = next(labels, None)
        yield here, its
