"""Formats with a label file for each image, of the same name but for the ending (KITTI, Pascal VOC, YOLO)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from refit.data.faults import Fault, fault
from refit.data.formats.base import Changed, Layout, normal, not_recognised, read_whole, stem_of, suffix_of
from refit.data.images import OTHER_SUFFIXES, SUFFIXES
from refit.data.model import Item, Labels
from refit.data.tree import Tree
from refit.specs import did_you_mean


@dataclass(frozen=True)
class PairedReader:
    """A format with a label file for each image, of the same name but for the ending."""

    name: str
    suffix: str
    image_dirs: tuple[str, ...]
    label_dirs: tuple[str, ...]
    parse: Callable[[bytes, str], Labels]

    def matches(self, tree: Tree) -> bool:
        images, labels = self._find(tree, None, None)
        return bool(images and labels)

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
        labels: dict[str, str] = {}
        for f in tree.below(layout.label_dir):
            if f.path in leave or suffix_of(f.path) != self.suffix:
                continue
            stem = stem_of(f.path, layout.label_dir)
            if stem in labels:  # a.txt and a.TXT
                yield self._twice(tree, f.path, labels[stem])
            else:
                labels[stem] = f.path
        images: dict[str, list[str]] = {}
        for f in tree.below(layout.image_dir):
            suffix = suffix_of(f.path)
            if suffix in SUFFIXES:
                images.setdefault(stem_of(f.path, layout.image_dir), []).append(f.path)
            elif suffix in OTHER_SUFFIXES:
                yield from self._unsupported(tree, f.path, labels.pop(stem_of(f.path, layout.image_dir), None))
        yield from self._unread(tree, layout, leave)
        for stem in sorted(images.keys() | labels.keys()):
            yield from self._pair(tree, layout, images.get(stem, []), labels.get(stem))

    def _unread(self, tree: Tree, layout: Layout, leave: Collection[str]) -> Iterator[Fault]:
        """What else lies in the source: counted, an example named (an image before others)."""
        pictures = SUFFIXES.keys() | OTHER_SUFFIXES
        read = {f.path for f in tree.below(layout.image_dir) if suffix_of(f.path) in pictures}
        read |= {f.path for f in tree.below(layout.label_dir) if suffix_of(f.path) == self.suffix}
        rest = [path for path in tree.files if path not in read and path not in leave]
        rest.sort(key=lambda path: suffix_of(path) not in pictures)
        if rest:
            message = f"{len(rest)} files are neither images nor labels, for example {rest[0]}"
            yield fault("ignored_files", "", message, value=rest[0])
        if tree.temporary:
            message = f"{len(tree.temporary)} hidden or partial files, for example {tree.temporary[0].path}"
            yield fault("ignored_files", "", message, value=tree.temporary[0].path)

    def _pair(self, tree: Tree, layout: Layout, images: list[str], label: str | None) -> Iterator[Item | Fault]:
        if len(images) == 1 and label is not None:
            name = str(PurePosixPath(images[0]).relative_to(layout.image_dir))
            yield Item(name, images[0], label, self._labels(tree, label))
        elif len(images) == 1:
            expected = PurePosixPath(layout.label_dir) / PurePosixPath(images[0]).relative_to(layout.image_dir)
            message = f"has no label file {expected.with_suffix(self.suffix)}"
            yield fault("image_without_label", images[0], message, images=1)
        elif label is None:
            yield fault("duplicate_name", images[0], f"same name as {', '.join(images[1:])}", images=len(images))
        elif images:
            lost = self._labels(tree, label)
            message = f"its label file {label} belongs to {', '.join(images[1:])}, too"
            yield self._orphan(label, lost, fault("duplicate_name", images[0], message, images=len(images)))
        else:
            lost = self._labels(tree, label)
            message = f"its image is missing from {layout.image_dir}"
            yield self._orphan(label, lost, fault("label_without_image", label, message))

    def _orphan(self, label: str, labels: Labels, why: Fault) -> Item:
        """Labels whose objects are all lost: each counts once, in the fault that says why."""
        return Item("", None, label, Labels(labels.declared, faults=[replace(why, objects=labels.declared)]))

    def _twice(self, tree: Tree, label: str, other: str) -> Item:
        why = fault("duplicate_name", label, f"a second label file beside {other}")
        return self._orphan(label, self._labels(tree, label), why)

    def _unsupported(self, tree: Tree, image: str, label: str | None) -> Iterator[Item | Fault]:
        why = fault("image_unsupported", image, f"{PurePosixPath(image).suffix} images cannot be read", images=1)
        yield why if label is None else self._orphan(label, self._labels(tree, label), why)

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
        known = SUFFIXES.keys() | OTHER_SUFFIXES
        return (
            [d for d in map(normal, images) if any(suffix_of(f.path) in known for f in tree.below(d))],
            [d for d in map(normal, labels) if any(suffix_of(f.path) == self.suffix for f in tree.below(d))],
        )
