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
from itertools import chain, compress, islice, pairwise
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, TypeVar, Unpack

import numpy as np

from refit.data import checks, doubts, images, work
from refit.data.arrival import signature
from refit.data.codes import Severity
from refit.data.faults import BadData, Fault, fault, graded
from refit.data.formats import reader
from refit.data.formats.base import Changed, Layout, Names, holder, read_listed
from refit.data.images import Header
from refit.data.look import Packed
from refit.data.memory import Memory, Places, Traces
from refit.data.model import NUMBERS, Item, Labels, Sample, Unread, digest_of
from refit.data.samples import Samples, flat
from refit.data.tree import Spread, Tree, as_listed, scan, suffix_of

T = TypeVar("T")
R = TypeVar("R")
Progress = Callable[[int, int], None]

_BATCH = 128  # items
_OF_BOX = 8 * NUMBERS  # bytes


@dataclass(slots=True)
class Found:
    """What was found out about some items: usable samples, all faults, and how many objects were declared."""

    samples: Samples = field(default_factory=Samples)
    faults: list[Fault] = field(default_factory=list)
    declared: int = 0
    traces: Traces = field(default_factory=Traces)  # of each sample
    labels: set[str] = field(default_factory=set)  # all that objects are called


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
    labels: set[str] = field(default_factory=set)  # all that objects of the opened files are called, unknown ones too

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
    """Some items, the sizes of their images and label files as listed, and what is known of images by their paths."""

    items: list[Item] = field(default_factory=list)
    image_bytes: list[int] = field(default_factory=list)
    label_bytes: list[int] = field(default_factory=list)
    pictures: dict[str, _Picture] = field(default_factory=dict)
    holders: dict[str, str] = field(default_factory=dict)  # of images that are no files: the file that holds each

    def __reduce__(self) -> tuple[Any, ...]:
        columns = list(zip(*map(attrgetter(*Item.__slots__), self.items), strict=True))  # quicker than objects
        return _batch, (columns, self.image_bytes, self.label_bytes, self.pictures, self.holders)


def _batch(columns: list[tuple[Any, ...]], *others: Any) -> _Batch:
    return _Batch([Item(*row) for row in zip(*columns, strict=True)], *others)


class _Plain(NamedTuple):
    """An image of which nothing is to be said but its objects: their classes, and `Box.numbers` of all; and of its
    labels what `Columns.faults` says."""

    header: Header
    classes: list[str]
    boxes: memoryview
    faults: Sequence[Fault]  # of its labels, that do not name the file yet


@dataclass(frozen=True, slots=True)
class _Look:
    """What to do with a batch."""

    root: str  # with its "/"
    classes: checks.Classes
    decode: bool

    def __call__(self, batch: _Batch) -> Found:
        found = Found()
        self.classes.asked.clear()
        read = [self._labels(item, size) for item, size in zip(batch.items, batch.label_bytes, strict=True)]
        pictures = [
            None
            if item.image is None
            else batch.pictures.get(item.image)
            or self._picture(item.image, batch.holders.get(item.image, item.image), size, suffix_of(item.name))
            for item, size in zip(batch.items, batch.image_bytes, strict=True)
        ]
        plain = self._plain(batch.items, read, pictures)
        for place, (item, data, picture) in enumerate(zip(batch.items, read, pictures, strict=True)):
            declared, faults = found.declared, len(found.faults)
            if place in plain and picture is not None:
                _take_plain(found, item, picture, plain[place])
            elif isinstance(item.labels, Unread) and isinstance(data, bytes):
                _take(found, item, item.labels.parse(data, item.label), picture, self.classes)
            elif isinstance(data, Labels):
                _take(found, item, data, picture, self.classes)
            if len(found.samples) > len(found.traces.places):
                found.traces.add(place, found.declared - declared, found.faults[faults:])
        found.labels |= self.classes.asked
        return found

    def _labels(self, item: Item, size: int) -> Labels | bytes:
        """The labels of an item, or the bytes of the file that holds them. Raises Changed."""
        if isinstance(item.labels, Labels):
            return item.labels
        try:
            return read_listed(self.root, item.label, item.label, size)
        except Changed:
            raise
        except OSError as exc:
            return Labels(faults=[fault("label_unreadable", item.label, f"cannot be opened: {exc.strerror}")])

    def _plain(
        self, items: Sequence[Item], read: Sequence[Labels | bytes], pictures: Sequence[_Picture | None]
    ) -> dict[int, _Plain]:
        """The items of which nothing is to be said but their objects, by their places."""
        many = next((i.labels.many for i in items if isinstance(i.labels, Unread)), None)
        places, texts, headers = list[int](), list[bytes](), list[Header]()
        for at, (item, data, picture) in enumerate(zip(items, read, pictures, strict=True)):
            if not isinstance(data, bytes) or picture is None or picture.header is None:
                continue
            if _nothing_to_say(item, picture):
                places.append(at)
                texts.append(data)
                headers.append(picture.header)
        if many is None or not places:
            return {}
        columns = many(texts)
        sizes = np.array([(header.width, header.height) for header in headers], np.float64)
        columns.pixels(sizes)
        good, called = checks.plain(columns, sizes, self.classes)
        boxes, found, first = memoryview(columns.boxes.tobytes()), {}, 0
        for number, (at, header, is_good, count) in enumerate(zip(places, headers, good, columns.counts, strict=True)):
            last = first + max(count, 0)
            if is_good:
                its = boxes[_OF_BOX * first : _OF_BOX * last]
                found[at] = _Plain(header, called[first:last], its, columns.faults.get(number, ()))
            first = last
        return found

    def _picture(self, path: str, file: str, size: int, suffix: str) -> _Picture:
        """Read, hash and decode one image whose name ends in `suffix`; `file` holds it. Raises Changed."""
        try:
            data = read_listed(self.root, path, file, size)
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
    look = _Look(f"{source}/", classes, decode)
    with work.Team(look, work.many(source)) as team:
        tree = _scan(source, team.map)
        chosen = reader(tree, format)
        layout = chosen.layout(tree, image_dir, label_dir)
        skipped = (fault("not_followed", path, why) for path, why in sorted(tree.skipped.items()))
        names: list[Names] = []
        items = _apart(chain(skipped, chosen.read(tree, layout, set(leave))), names)
        total = len(tree.files.places_ending(images.SUFFIXES, tree.places(layout.image_dir))) // share.count
        pending = _Pending(tree, memory)
        try:
            for part in team.each(pending.batches(filter(share.takes, items) if share.count > 1 else items)):
                pending.done(part)
                if progress:
                    progress(min(pending.items, total), total)
        except Changed as exc:
            raise changed(source, str(exc)) from None
        unchanged(tree, pending.recalled, team.map)
    found = pending.end()
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
        looked.found.labels,
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
        self.recalled = bytearray(len(tree.files))
        self._found = Found()
        self._under_way: deque[tuple[list[Item], list[Places]]] = deque()  # what was sent and is not back
        if memory is not None:
            memory.meet(tree)

    def batches(self, items: Iterable[Item | Fault]) -> Iterator[_Batch]:
        batch, files = _Batch(), list[Places]()
        for some in _chunks(items):
            faults = [item for item in some if isinstance(item, Fault)]
            self._found.faults += faults
            self.items += len(faults)
            self._add(batch, files, [item for item in some if isinstance(item, Item)])
            if len(batch.items) >= _BATCH:
                self._under_way.append((batch.items, files))
                yield batch
                batch, files = _Batch(), []
        if batch.items:
            self._under_way.append((batch.items, files))
            yield batch

    def _add(self, batch: _Batch, files: list[Places], items: list[Item]) -> None:
        """Add those of the items that are not known to a batch, and where their files stand."""
        listed = self.tree.files
        images = list(listed.places([item.image or "" for item in items]))
        labels = list(listed.places([item.label for item in items]))
        if self.memory is not None:
            files_of = [
                Places(image, label if isinstance(item.labels, Unread) else -1)
                for item, image, label in zip(items, images, labels, strict=True)
            ]
            known = self.memory.recall(items, files_of)
            for image, label in compress(files_of, known):
                self.recalled[image] = self.recalled[label] = 1
            self.items += sum(known)
            new = [not k for k in known]
            items, files_of = list(compress(items, new)), list(compress(files_of, new))
            images, labels = list(compress(images, new)), list(compress(labels, new))
            files += files_of
            for item, its in zip(items, files_of, strict=True):
                if item.image is not None and (found := self.memory.image(item, its)):
                    sample, faults = found
                    header = Header("", sample.width, sample.height)
                    about = (sample.sha256, sample.bytes, header, tuple(faults), sample.look)
                    batch.pictures[item.image] = _Picture(*about)
        for at, item in enumerate(items):
            if images[at] < 0 and item.image is not None:  # it lies inside a file
                batch.holders[item.image] = holder(self.tree, item.image)
                images[at] = listed.find(batch.holders[item.image])
        batch.items += items
        batch.image_bytes += listed.sizes(images)
        batch.label_bytes += listed.sizes(labels)

    def done(self, part: Found) -> None:
        """Add what was found in the next batch that comes back."""
        items, files = self._under_way.popleft()
        self.items += len(items)
        self._found.faults += part.faults
        self._found.declared += part.declared
        self._found.labels |= part.labels
        if self.memory is None:
            self._found.samples.extend(part.samples)
        else:
            self.memory.note(items, files, part.samples, part.traces)

    def end(self) -> Found:
        """All that was found, and what was known."""
        if self.memory is not None:
            self._found.samples, faults, declared = self.memory.result()
            self._found.faults += faults
            self._found.declared += declared
        return self._found


def _chunks(items: Iterable[Item | Fault]) -> Iterator[list[Item | Fault]]:
    rest = iter(items)
    while some := list(islice(rest, _BATCH)):
        yield some


def unchanged(tree: Tree, recalled: bytearray, spread: Spread = map) -> None:
    """Raises BadData (source_changed) when the folder is not as it was listed; for `recalled` see `as_listed`."""
    try:
        if as_listed(tree, recalled, spread):
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


def _scan(source: Path, spread: Spread = map) -> Tree:
    try:
        return scan(source, spread)
    except (FileNotFoundError, NotADirectoryError):
        is_file = os.path.exists(source)
        what = "it is a file, and a folder is needed; unpack an archive first" if is_file else "there is no such folder"
        raise BadData(str(source), [fault("source_missing", "", what)]) from None
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


def _nothing_to_say(item: Item, picture: _Picture) -> bool:
    """Whether that is so of an image and its name."""
    common = not picture.look or doubts.is_common(picture.look)
    return common and not picture.faults and item.name.isascii() and not _bad_name(flat(item.name))


def _take_plain(out: Found, item: Item, picture: _Picture, plain: _Plain) -> None:
    """`_take` where nothing is to be said of image and objects."""
    header, classes, boxes, faults = plain
    image = item.image or ""
    digest = digest_of(flat(item.name), picture.sha256, header.width, header.height, classes, boxes)
    size = (picture.bytes, header.width, header.height)
    kind = (item.part, item.tags, ())
    sha256 = bytes.fromhex(picture.sha256)
    out.declared += len(classes) + sum(f.objects for f in faults)
    out.faults += [replace(f, file=item.label) for f in faults]
    out.samples.add(image, len(image) - len(item.name), sha256, digest, picture.look, size, kind, classes, boxes)


def _in_order(found: Found) -> Samples:
    """The samples by name; two names that would be one in a snapshot ("a/b.jpg" and "a__b.jpg") become a fault."""
    samples = found.samples.sorted()
    if samples.names_are_plain():
        return samples
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
