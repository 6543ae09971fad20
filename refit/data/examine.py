"""Read and check a whole data set, changing nothing: the work of `check`, and the first half of `ingest`.

Label files are read in order; images are read, hashed and decoded on threads (the decoders let go of the interpreter),
a bounded number ahead, so that memory does not grow with the data set's bytes.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TypeVar

from refit.data import checks, images
from refit.data.arrival import signature
from refit.data.codes import Severity
from refit.data.faults import BadData, Fault, fault, graded
from refit.data.formats import reader
from refit.data.formats.base import Changed, Layout, Names, Reader, read_whole, suffix_of
from refit.data.model import Item, Labels, Sample
from refit.data.tree import Tree, scan

T = TypeVar("T")
R = TypeVar("R")
Progress = Callable[[int, int], None]
Known = Callable[[str, str, int], bool]


@dataclass(slots=True)
class Examination:
    """What a data set holds: usable samples sorted by name, all faults, and how many objects were declared."""

    tree: Tree
    format: str
    layout: Layout
    samples: list[Sample] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    declared: int = 0
    names: tuple[str, ...] = ()  # the classes that the format itself lists, in its order; () where it lists none

    def balanced(self) -> bool:
        """objects in = objects out + objects reported."""
        return self.declared == sum(len(s.objects) for s in self.samples) + sum(f.objects for f in self.faults)

    def failed(self) -> bool:
        return any(f.severity == "error" for f in self.faults)


@dataclass(frozen=True, slots=True)
class _Picture:
    """What was found out about one image file."""

    sha256: str
    bytes: int
    header: images.Header | None
    faults: tuple[Fault, ...]


def examine(
    source: Path,
    *,
    format: str | None = None,
    image_dir: str | None = None,
    label_dir: str | None = None,
    classes: checks.Classes | None = None,
    max_bad_labels: float = 0.01,
    severity: Mapping[str, Severity] | None = None,
    leave: Iterable[str] = (),
    known: Known = lambda sha256, suffix, size: False,
    progress: Progress | None = None,
) -> Examination:
    """Read and check the data set in `source`.

    Args:
        leave: text files below the source that are no labels (the lists of a split).
        known: tells whether an image of (sha256, ending, bytes) was decoded before; then it is not decoded again.
        progress: called with (done, total) images.

    Raises BadData only where nothing can be examined: no such folder, unknown format, a source that changes while it is
    read ("still being copied"). Everything else is in the result's faults, graded by `severity`.
    """
    classes = classes or checks.Classes()
    tree = _scan(source)
    chosen = reader(tree, format)
    layout = chosen.layout(tree, image_dir, label_dir)
    out = Examination(tree, chosen.name, layout)
    out.faults += [fault("not_followed", path, why) for path, why in sorted(tree.skipped.items())]
    total = sum(PurePosixPath(f.path).suffix.lower() in images.SUFFIXES for f in tree.below(layout.image_dir))
    try:
        for done, (item, picture) in enumerate(_pictures(tree, _items(out, chosen, set(leave)), known), 1):
            _take(out, item, picture, classes)
            if progress:
                progress(min(done, total), total)
    except Changed as exc:
        raise changed(source, str(exc)) from None
    unchanged(tree)
    _name(out)
    out.faults = graded(out.faults, severity or {})
    out.faults += graded(checks.whole(out.samples, out.faults, out.declared, classes, max_bad_labels), severity or {})
    out.faults = graded(out.faults, {})
    if not out.balanced():
        raise AssertionError(f"{source}: {out.declared} objects in, but not as many out and reported: a fault in Refit")
    return out


def unchanged(tree: Tree) -> None:
    """Raises BadData (source_changed) when the folder is not as it was listed."""
    now = _scan(tree.root)
    if signature(now) != signature(tree):
        news = [p for p in now.files.keys() | tree.files.keys() if now.files.get(p) != tree.files.get(p)]
        shown = ", ".join(sorted(news)[:3])
        raise changed(
            tree.root, f"{len(news)} files came, went or changed meanwhile ({shown}{', ...' * (len(news) > 3)})"
        )


def changed(source: Path, why: str) -> BadData:
    return BadData(str(source), [fault("source_changed", "", f"still being copied: {why}")])


def _scan(source: Path) -> Tree:
    try:
        return scan(source)
    except (FileNotFoundError, NotADirectoryError):
        what = "is no folder" if os.path.exists(source) else "does not exist"
        raise BadData(str(source), [fault("source_missing", "", f"the folder {what}")]) from None
    except OSError as exc:
        raise BadData(str(source), [fault("source_missing", "", f"cannot be listed: {exc.strerror}")]) from None


def _take(out: Examination, item: Item, picture: _Picture | None, classes: checks.Classes) -> None:
    """Add one item: a sample, or the faults that say why it is none."""
    labels = item.labels
    out.declared += labels.declared
    out.faults += labels.faults
    if item.image is None or picture is None:
        return
    if picture.header is None:
        # The image's one fault takes its objects with it.
        out.faults.append(replace(picture.faults[0], objects=len(labels.objects), images=1))
        return
    out.faults += picture.faults
    width, height = picture.header.width, picture.header.height
    other_size = checks.size(labels, item.label, width, height)
    if other_size is not None:
        out.faults.append(other_size)
        return
    labels.pixels(width, height)
    good, faults = checks.boxes(labels, item.label, width, height, classes)
    out.faults += faults
    if not labels.declared:
        why = "an image without objects"
        out.faults.append(fault("background_image", item.label, why, line=labels.line, at=labels.at))
    size, objects = picture.bytes, tuple(good)
    sample = Sample("", item.name, item.image, picture.sha256, size, width, height, objects, item.part, item.tags)
    out.samples.append(sample)


def _name(out: Examination) -> None:
    """Give each sample its plain file name in the snapshot: folders become part of it ("a/b.jpg" -> "a__b.jpg")."""
    taken: dict[str, str] = {}
    named = []
    for sample in sorted(out.samples, key=lambda s: s.name):
        file = sample.name.replace("/", "__")
        bad = _bad_name(file)
        if bad or file in taken:
            code, why = ("bad_name", bad) if bad else ("duplicate_name", f"becomes {file}, as {taken[file]} does")
            out.faults.append(fault(code, sample.source, why, objects=len(sample.objects), images=1))
            continue
        taken[file] = sample.name
        named.append(replace(sample, file=file))
    out.samples = named


def _bad_name(file: str) -> str:
    """Why a name cannot be used, or ""."""
    try:
        length = len(file.encode("utf-8"))
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    if not file.isprintable():
        return "its name holds characters that cannot be printed"
    return f"its name has {length} bytes, folders included; 255 are possible" if length > 255 else ""


# ---- images, on threads


def _items(out: Examination, chosen: Reader, leave: Collection[str]) -> Iterator[Item]:
    """What the reader gives: a bare fault becomes an item without objects, the list of classes goes to `out`."""
    for found in chosen.read(out.tree, out.layout, leave):
        if isinstance(found, Names):
            out.names = found.classes
        else:
            yield Item("", None, "", Labels(faults=[found])) if isinstance(found, Fault) else found


def _pictures(tree: Tree, items: Iterable[Item], known: Known) -> Iterator[tuple[Item, _Picture | None]]:
    """Each item with what its image is."""

    def look(item: Item) -> tuple[Item, _Picture | None]:
        return item, None if item.image is None else _look(tree, item.image, suffix_of(item.name), known)

    yield from ordered(look, items)


def _look(tree: Tree, path: str, suffix: str, known: Known) -> _Picture:
    """Read, hash and (unless known) decode one image whose name ends in `suffix`. Raises Changed."""
    try:
        data = read_whole(tree, path)
    except Changed:
        raise
    except OSError as exc:
        return _Picture("", 0, None, (fault("image_unreadable", path, f"cannot be opened: {exc.strerror}"),))
    digest = hashlib.sha256(data).hexdigest()
    remarks = []
    try:
        header = images.read_header(data)
        if not known(digest, suffix, len(data)):
            damage = images.verify(data, header)
            if damage:
                remarks.append(fault("image_damaged", path, damage))
    except images.ImageFault as exc:
        return _Picture(digest, len(data), None, (fault(exc.code, path, str(exc)),))
    if images.SUFFIXES[suffix] != header.kind:
        remarks.append(fault("wrong_suffix", path, f"holds a {header.kind} image"))
    return _Picture(digest, len(data), header, tuple(remarks))


def ordered(function: Callable[[T], R], values: Iterable[T]) -> Iterator[R]:
    """map() on as many threads as the process may use, in order, a few ahead; the first exception ends it."""
    threads = min(16, len(os.sched_getaffinity(0)))
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for value in values:
                waiting.append(pool.submit(function, value))
                if len(waiting) > 4 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
