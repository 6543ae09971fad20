"""Read and check a whole data set, changing nothing: the work of `check`, and the first half of `ingest`.

The reader pairs images and labels; batches of pairs are then opened, hashed, decoded and judged in several processes
(`refit.data.work`), a few batches ahead, so that memory does not grow with the data set's bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import zlib
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import TypedDict, TypeVar, Unpack

from refit.data import checks, doubts, images, work
from refit.data.arrival import signature
from refit.data.codes import Severity
from refit.data.faults import BadData, Fault, fault, graded
from refit.data.formats import reader
from refit.data.formats.base import Changed, Layout, Names, holder, read_whole
from refit.data.look import Packed
from refit.data.memory import NO_KEYS, Keys, Memory, Trace, keys_of
from refit.data.model import Item, Labels, Sample, Unread
from refit.data.samples import Samples, flat
from refit.data.tree import FileInfo, Files, Tree, as_listed, scan, suffix_of

T = TypeVar("T")
R = TypeVar("R")
Progress = Callable[[int, int], None]

_BATCH = 64  # items


@dataclass(slots=True)
class Found:
    """What was found out about some items: usable samples, all faults, and how many objects were declared."""

    samples: Samples = field(default_factory=Samples)
    faults: list[Fault] = field(default_factory=list)
    declared: int = 0
    traces: list[Trace] = field(default_factory=list)  # of each sample


@dataclass(slots=True)
class Examination:
    """What a data set holds: usable samples sorted by name, all faults, and how many objects were declared."""

    tree: Tree
    format: str
    layout: Layout
    samples: Sequence[Sample] = field(default_factory=Samples)
    faults: list[Fault] = field(default_factory=list)
    declared: int = 0
    names: tuple[str, ...] = ()  # the classes that the format itself lists, in its order; () where it lists none
    recalled: bytearray = field(default_factory=bytearray)  # 1 at the place of each file that was not opened

    def balanced(self) -> bool:
        """objects in = objects out + objects reported."""
        out = checks.class_counts(self.samples).total()
        return self.declared == out + sum(f.objects for f in self.faults)

    def failed(self) -> bool:
        return any(f.severity == "error" for f in self.faults)


@dataclass(frozen=True, slots=True)
class _Picture:
    """What was found out about one image file."""

    sha256: str
    bytes: int
    header: images.Header | None
    faults: tuple[Fault, ...]
    look: Packed = b""


@dataclass(slots=True)
class _Batch:
    """Some items, the files that have to be opened for them, and what is known of images by their paths."""

    items: list[Item | Fault] = field(default_factory=list)
    files: list[FileInfo] = field(default_factory=list)
    pictures: dict[str, _Picture] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Look:
    """What to do with a batch."""

    root: Path
    classes: checks.Classes
    decode: bool

    def __call__(self, batch: _Batch) -> Found:
        tree = Tree(self.root, Files(batch.files))
        found = Found()
        for place, item in enumerate(batch.items):
            if isinstance(item, Fault):
                found.faults.append(item)
                continue
            declared, faults = found.declared, len(found.faults)
            labels = _labels(tree, item)
            picture = None
            if item.image is not None:
                picture = batch.pictures.get(item.image) or self._picture(tree, item.image, suffix_of(item.name))
            _take(found, item, labels, picture, self.classes)
            if len(found.samples) > len(found.traces):
                found.traces.append(Trace(place, found.declared - declared, found.faults[faults:]))
        return found

    def _picture(self, tree: Tree, path: str, suffix: str) -> _Picture:
        """Read, hash and decode one image whose name ends in `suffix`. Raises Changed."""
        try:
            data = read_whole(tree, path)
        except Changed:
            raise
        except OSError as exc:
            return _Picture("", 0, None, (fault("image_unreadable", path, f"cannot be opened: {exc.strerror}"),))
        digest = hashlib.sha256(data).hexdigest()
        remarks, look = [], b""
        try:
            header = images.read_header(data)
            if self.decode:
                damage, seen = images.verify(data, header)
                look = seen.pack()
                if damage:
                    remarks.append(fault("image_damaged", path, damage))
        except images.ImageFault as exc:
            return _Picture(digest, len(data), None, (fault(exc.code, path, str(exc)),))
        if images.SUFFIXES[suffix] != header.kind:
            remarks.append(fault("wrong_suffix", path, f"holds a {header.kind} image"))
        return _Picture(digest, len(data), header, tuple(remarks), look)


@dataclass(frozen=True, slots=True)
class Share:
    """One of `count` shares of a data set. Whatever else comes or goes, an image is in the same one, on any machine."""

    index: int = 0
    count: int = 1

    def takes(self, item: Item | Fault) -> bool:
        name = item.file if isinstance(item, Fault) else item.image or item.label
        return zlib.crc32(name.encode("utf-8", "surrogateescape")) % self.count == self.index


@dataclass(slots=True)
class Looked:
    """What a look at a data set, or at a share of it, found in each file; nothing is said of the whole yet."""

    tree: Tree
    format: str
    layout: Layout
    found: Found
    recalled: bytearray
    names: tuple[str, ...] = ()  # the classes that the format itself lists


class How(TypedDict, total=False):
    """The arguments of `look_at`."""

    format: str | None
    image_dir: str | None
    label_dir: str | None
    leave: Iterable[str]
    decode: bool
    memory: Memory | None
    progress: Progress | None


def examine(
    source: Path,
    *,
    classes: checks.Classes | None = None,
    max_bad_labels: float = 0.01,
    severity: Mapping[str, Severity] | None = None,
    **how: Unpack[How],
) -> Examination:
    """Read and check the data set in `source`; for `how` and for errors see `look_at`."""
    classes = classes or checks.Classes()
    return judge(look_at(source, classes, **how), classes, max_bad_labels, severity)


def look_at(
    source: Path,
    classes: checks.Classes,
    *,
    format: str | None = None,
    image_dir: str | None = None,
    label_dir: str | None = None,
    leave: Iterable[str] = (),
    decode: bool = True,
    memory: Memory | None = None,
    progress: Progress | None = None,
    share: Share | None = None,
) -> Looked:
    """Open and check the files of a data set.

    Args:
        leave: text files below the source that are no labels (the lists of a split).
        decode: whether images are decoded; without it only their headers are looked at.
        memory: of earlier examinations; what it knows is not opened, and it is brought up to date.
        progress: called with (done, total) images.
        share: of the data set; the others are looked at elsewhere (`refit.data.shares`).

    Raises BadData only where nothing can be examined: no such folder, unknown format, a source that changes while it is
    read ("still being copied"). Everything else is in the result's faults.
    """
    share = share or Share()
    look = _Look(Path(source), classes, decode)
    with work.Team(look, work.many(source)) as team:
        tree = _scan(source)
        chosen = reader(tree, format)
        layout = chosen.layout(tree, image_dir, label_dir)
        skipped = (fault("not_followed", path, why) for path, why in sorted(tree.skipped.items()))
        names: list[Names] = []
        items = _apart(chain(skipped, chosen.read(tree, layout, set(leave))), names)
        total = sum(path.lower().endswith(tuple(images.SUFFIXES)) for path in tree.paths(layout.image_dir))
        total //= share.count
        pending, found = _Pending(tree, memory), Found()
        try:
            for part in team.each(pending.batches(filter(share.takes, items))):
                pending.done(part, found)
                if progress:
                    progress(min(pending.items, total), total)
        except Changed as exc:
            raise changed(source, str(exc)) from None
    pending.end(found)
    unchanged(tree, pending.recalled)
    if memory is not None and decode:
        with contextlib.suppress(OSError):  # a full disk: what is lost is time
            memory.save()
    listed = names[-1].classes if names else ()
    return Looked(tree, chosen.name, layout, found, pending.recalled, listed)


def _apart(read: Iterable[Item | Fault | Names], names: list[Names]) -> Iterator[Item | Fault]:
    """What the reader gives, without the lists of classes: these go to `names`."""
    for found in read:
        if isinstance(found, Names):
            names.append(found)
        else:
            yield found


def judge(
    looked: Looked, classes: checks.Classes, max_bad_labels: float, severity: Mapping[str, Severity] | None = None
) -> Examination:
    """The data set as a whole, its faults graded by `severity`."""
    found, severity = looked.found, severity or {}
    samples = _in_order(found)
    out = Examination(
        looked.tree,
        looked.format,
        looked.layout,
        samples,
        graded(found.faults, severity),
        found.declared,
        looked.names,
        looked.recalled,
    )
    out.faults += graded(checks.whole(out.samples, out.faults, out.declared, classes, max_bad_labels), severity)
    out.faults += graded(doubts.of_all(out.samples), severity)
    out.faults = graded(out.faults, {})
    if not out.balanced():
        where = f"{looked.tree.root}: {out.declared} objects in"
        raise AssertionError(f"{where}, but not as many out and reported: a fault in Refit")
    return out


class _Pending:
    """The items of a data set on their way: what is known is left out, the rest goes in batches and comes back."""

    def __init__(self, tree: Tree, memory: Memory | None) -> None:
        self.tree, self.memory = tree, memory
        self.items = 0  # that are done
        self._keys: deque[list[Keys]] = deque()  # of the batches that are on their way
        self.recalled = bytearray(len(tree.files))

    def batches(self, items: Iterable[Item | Fault]) -> Iterator[_Batch]:
        batch, keys = _Batch(), []
        for item in items:
            key = NO_KEYS
            if self.memory is not None and isinstance(item, Item):
                key = keys_of(self.tree, item, self.memory.tags)
                if self.memory.recall(key):
                    self.items += 1
                    for path in (item.image, item.label):
                        self.recalled[self.tree.files.find(path or "")] = 1
                    continue
                if item.image is not None and (found := self.memory.image(key)):
                    sample, faults = found
                    header = images.Header("", sample.width, sample.height)
                    picture = _Picture(sample.sha256, sample.bytes, header, tuple(faults), sample.look)
                    batch.pictures[item.image] = picture
            batch.items.append(item)
            keys.append(key)
            if isinstance(item, Item):
                batch.files.extend(
                    self.tree.files[holder(self.tree, p)] for p in _needed(item) if p not in batch.pictures
                )
            if len(batch.items) == _BATCH:
                self._keys.append(keys)
                yield batch
                batch, keys = _Batch(), []
        if batch.items:
            self._keys.append(keys)
            yield batch

    def done(self, part: Found, found: Found) -> None:
        """Add what was found in the next batch that comes back."""
        keys = self._keys.popleft()
        self.items += len(keys)
        found.faults += part.faults
        found.declared += part.declared
        if self.memory is None:
            found.samples.extend(part.samples)
        else:
            self.memory.note(keys, part.samples, part.traces)

    def end(self, found: Found) -> None:
        """Add what was known."""
        if self.memory is not None:
            found.samples, faults, declared = self.memory.result()
            found.faults += faults
            found.declared += declared


def _needed(item: Item) -> list[str]:
    """The files that an item still has to be read from."""
    image = [] if item.image is None else [item.image]
    return [*image, item.label] if isinstance(item.labels, Unread) else image


def _labels(tree: Tree, item: Item) -> Labels:
    """The labels of an item, read now where the reader did not. Raises Changed."""
    if isinstance(item.labels, Labels):
        return item.labels
    try:
        return item.labels.parse(read_whole(tree, item.label), item.label)
    except Changed:
        raise
    except OSError as exc:
        return Labels(faults=[fault("label_unreadable", item.label, f"cannot be opened: {exc.strerror}")])


def unchanged(tree: Tree, recalled: bytearray) -> None:
    """Raises BadData (source_changed) when the folder is not as it was listed; for `recalled` see `as_listed`."""
    try:
        if as_listed(tree, recalled):
            return
    except OSError:
        pass  # the listing says what is gone
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


def _take(out: Found, item: Item, labels: Labels, picture: _Picture | None, classes: checks.Classes) -> None:
    """Add one item: a sample, or the faults that say why it is none."""
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
    file = flat(item.name)
    bad = _bad_name(file)
    if bad:
        out.faults.append(fault("bad_name", item.image, bad, objects=len(good), images=1))
        return
    about = (picture.sha256, picture.bytes, width, height, tuple(good), item.part, item.tags)
    sample = Sample(file, item.name, item.image, *about, look=picture.look)
    out.faults += doubts.of_image(sample, labels.size)
    out.samples.append(sample)


def _in_order(found: Found) -> Samples:
    """The samples by name; two names that would be one in a snapshot ("a/b.jpg" and "a__b.jpg") become a fault."""
    samples = found.samples.sorted()
    # A name apart from these is what its flat one says: each "__" a "/". So one of two names that clash is among them.
    doubtful = {flat(name) for name in samples.names() if "__" in name or "___" in flat(name)}
    doubtful |= {flat(a) for a, b in pairwise(samples.names()) if a == b}
    if not doubtful:
        return samples
    taken: dict[str, str] = {}
    kept = array("I")
    for at, name in enumerate(samples.names()):
        file = flat(name)
        if file in doubtful and file in taken:
            lost = samples[at]
            why = f"becomes {file}, as {taken[file]} does"
            found.faults.append(fault("duplicate_name", lost.source, why, objects=len(lost.objects), images=1))
            continue
        if file in doubtful:
            taken[file] = name
        kept.append(at)
    return samples.choose(kept)


def _bad_name(file: str) -> str:
    """Why a name cannot be used, or ""."""
    try:
        length = len(file.encode("utf-8"))
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    if not file.isprintable():
        return "its name holds characters that cannot be printed"
    return f"its name has {length} bytes, folders included; 255 are possible" if length > 255 else ""


def ordered(function: Callable[[T], R], values: Iterable[T]) -> Iterator[R]:
    """map() on as many threads as the process may use, in order, a few ahead; the first exception ends it."""
    threads = min(16, work.cores())
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
