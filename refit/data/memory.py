"""What the last examination of a pipeline's data found out, so that a file that is still the same is not opened again.

One file beside the snapshots, `datasets/remembered`, replaced whole. Where it is missing, damaged, or was made by other
code or for other classes, everything is read. A share of a data set (`dataset.shards`) has one of its own,
`remembered-<share>-of-<shards>`.

**What it trusts.** A file is the same when its path, size, mtime, ctime and inode number are. The kernel sets ctime at
every write and rename, and no call sets it back: so what `cp -p` and `rsync -t` hide in mtime is seen. A file that
changed less than two seconds before it was listed is not remembered, because a second write could leave the same times.
What stays unseen is a change below the file system (a failing disk, a server that makes up times). So it serves the
sources of runs alone: `refit dataset check` opens every file.

A file that was fetched or unpacked is the same when its path, size and tag are (`tags`: a source's ETag, or the digest
that unpacking gave): it gets new times whenever it is linked into the next arrival or into a snapshot.
"""

from __future__ import annotations

import hashlib
import marshal
import pickle
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from refit import files
from refit.data import code
from refit.data.faults import Fault
from refit.data.model import Item, Sample, Unread
from refit.data.samples import Samples
from refit.data.tree import RECENT_NS, Tree

FILE = "remembered"
_OF_IMAGE = frozenset({"image_damaged", "wrong_suffix"})  # what is found while an image is decoded, whatever its labels
Numbers = NDArray[np.int64]
_as_tuple = attrgetter(*(f.name for f in fields(Fault)))


@dataclass(slots=True)
class Traces:
    """Where samples came from: of each the place of its item in a batch, the objects that its labels declared, and its
    faults, by the number of the sample."""

    places: array[int] = field(default_factory=lambda: array("I"))
    declared: array[int] = field(default_factory=lambda: array("Q"))
    faults: dict[int, list[Fault]] = field(default_factory=dict)

    def add(self, place: int, declared: int, faults: list[Fault]) -> None:
        if faults:
            self.faults[len(self.places)] = faults
        self.places.append(place)
        self.declared.append(declared)


class Places(NamedTuple):
    """Where the files of an item stand in a listing, -1 for none: its image (or what holds that), and its labels, where
    these come from that file alone."""

    image: int
    label: int


class _Shelf:
    """Samples, and of each the places of its files, how its labels are read, the declared objects and the faults."""

    def __init__(self) -> None:
        self.samples = Samples()
        self.images, self.labels, self.declared = array("q"), array("q"), array("Q")
        self.how = array("q")  # the number of its `Unread`, -1 for none
        self.faults: dict[int, list[Fault]] = {}

    def columns(self) -> tuple[array[int], ...]:
        return self.images, self.labels, self.declared, self.how

    def put(self, files: Places, how: int, declared: int, faults: Sequence[Fault]) -> None:
        """The sample itself is added apart."""
        if faults:
            self.faults[len(self.how)] = list(faults)
        for column, value in zip(self.columns(), (*files, declared, how), strict=True):
            column.append(value)


class Memory:
    """Samples by the files that they were made from.

    `settings`: whatever else decides what is found in a file (the classes). With another value nothing is known.
    """

    def __init__(self, path: Path, settings: Any, tags: Mapping[str, str] | None = None) -> None:
        self.path, self.tags = path, tags or {}
        self._version = version(settings)
        self._paths: list[str] = []  # of the listing in which the old shelf's files stand
        self._numbers: list[Numbers] = []
        self._how: dict[bytes, int] = {}
        self._last: tuple[Any, int] = (None, -1)  # what `_number` was asked last: nearly always the same
        self._old, self._new = _Shelf(), _Shelf()
        self._load()
        self._again = array("q")  # samples of the old shelf
        self._again_at = array("q"), array("q")  # where their images and labels stand now

    def meet(self, tree: Tree) -> None:
        """Look which files of a new listing are known; `Places` are of that one from now on."""
        self._tree = tree
        before = np.full(len(tree.files) + 1, -1)  # the last one stands for no file, here and below
        before[:-1] = np.fromiter(_found(self._paths, tree.files.paths), np.int64, len(tree.files))
        for old, new in zip(self._numbers, self._states(tree), strict=False):
            before[:-1][(before[:-1] >= 0) & (old[before[:-1]] != new)] = -1
        self._before = before
        self._sample = np.full(len(self._paths) + 1, -1)
        images = np.asarray(self._old.images)
        self._sample[images[images >= 0]] = np.flatnonzero(images >= 0)
        self._labels = np.array([*self._old.labels, -1])

    def recall(self, items: Sequence[Item], files: Sequence[Places]) -> list[bool]:
        """Whether image and labels of each are what they were; then `result` has what was found in them."""
        places = np.array(files, np.int64).reshape(-1, 2)
        samples = self._sample[self._before[places[:, 0]]]
        labels = self._before[places[:, 1]]
        same: list[bool] = ((samples >= 0) & (labels >= 0) & (self._labels[samples] == labels)).tolist()
        for at, (item, sample) in enumerate(zip(items, samples.tolist(), strict=True)):
            if same[at]:
                same[at] = self._old.samples.are_of(sample, item) and self._old.how[sample] == self._number(item)
        self._again.extend(samples[same].tolist())
        for column, its in zip(self._again_at, places[same].T.tolist(), strict=True):
            column.extend(its)
        return same

    def image(self, item: Item, files: Places) -> tuple[Sample, list[Fault]] | None:
        """A sample of this image, whatever its labels were, and the faults that are the image's own."""
        place = int(self._sample[self._before[files.image]])
        if place < 0 or (sample := self._old.samples[place]).name != item.name:
            return None
        return sample, [f for f in self._old.faults.get(place, ()) if f.code in _OF_IMAGE]

    def note(self, items: Sequence[Item], files: Sequence[Places], samples: Samples, traces: Traces) -> None:
        """Remember what was found in a batch."""
        self._new.samples.extend(samples)
        for at, (place, declared) in enumerate(zip(traces.places, traces.declared, strict=True)):
            self._new.put(files[place], self._number(items[place]), declared, traces.faults.get(at, ()))

    def result(self) -> tuple[Samples, list[Fault], int]:
        """The samples that were noted and those that were recalled, in the order of their images in the listing; of
        the recalled ones the faults and the declared objects."""
        new, old, found, again = self._new, self._old, _Shelf(), np.array(self._again, np.int64)
        recalled = (*map(np.array, self._again_at), *(np.array(column)[again] for column in old.columns()[2:]))
        order = np.argsort(np.concatenate((new.images, recalled[0])), kind="stable")
        where = np.argsort(order)  # the inverse: of those that were noted, then of those that were recalled
        for column, its, theirs in zip(found.columns(), new.columns(), recalled, strict=True):
            column.frombytes(np.concatenate((its, theirs))[order].tobytes())
        first_old = len(new.how) + 1  # not the number after the last new one: they do not follow one another
        for start, stop in _runs(np.concatenate((np.arange(len(new.how)), first_old + again))[order].tolist()):
            shelf, first = (old, first_old) if start >= first_old else (new, 0)
            found.samples.extend(shelf.samples, start - first, stop - first)
        found.faults = {int(where[at]): its for at, its in new.faults.items()}
        faults = list[Fault]()
        for at in np.flatnonzero(np.isin(again, list(old.faults))).tolist():
            found.faults[int(where[len(new.how) + at])] = old.faults[self._again[at]]
            faults += old.faults[self._again[at]]
        self._news = len(new.how) > 0 or len(found.how) < len(old.how)
        self._new = found
        return found.samples, faults, int(recalled[2].sum())

    def save(self) -> None:
        """Put what was noted and recalled in the place of what was known. Raises OSError."""
        sizes, *others = self._states(self._tree)
        trusted = np.maximum(*others[:2]) < self._tree.listed_at_ns - RECENT_NS
        if not self._news or not trusted.any():
            return
        sizes[~trusted] = -1  # no file has this size
        faults = [(at, [_as_tuple(f) for f in found]) for at, found in self._new.faults.items()]
        listing = "\0".join(self._tree.files.paths), [column.tobytes() for column in (sizes, *others)]
        columns = [column.tobytes() for column in self._new.columns()]
        body = marshal.dumps((self._version, listing, list(self._how), self._new.samples.state(), columns, faults))
        files.write_bytes(self.path, hashlib.sha256(body).digest() + body)

    def _load(self) -> None:
        try:
            data = memoryview(self.path.read_bytes())
        except OSError:
            return
        if hashlib.sha256(data[32:]).digest() != data[:32]:
            return
        version, *known = marshal.loads(data[32:])  # noqa: S302  our own, and whole
        if version != self._version:
            return
        (paths, numbers), how, samples, columns, faults = known
        self._paths = paths.split("\0")
        self._numbers = [np.frombuffer(column, np.int64) for column in numbers]
        self._how = {pickled: number for number, pickled in enumerate(how)}
        self._old.samples = Samples.of_state(samples)
        for column, content in zip(self._old.columns(), columns, strict=True):
            column.frombytes(content)
        self._old.faults = {at: [Fault(*f) for f in found] for at, found in faults}

    def _states(self, tree: Tree) -> list[Numbers]:
        """What files are known by, beside their paths: sizes, mtimes, ctimes and inodes; a tag stands for the last
        three."""
        states = [np.array(column).astype(np.int64) for column in tree.files.numbers()]
        for path, tag in self.tags.items():
            at = tree.files.find(path)
            if at >= 0 and tag:
                number = int.from_bytes(hashlib.sha256(tag.encode()).digest()[:8], "big", signed=True)
                for column, value in zip(states[1:], (0, 0, number), strict=True):
                    column[at] = value
        return states

    def _number(self, item: Item) -> int:
        """How the labels of an item are read."""
        if item.labels is not self._last[0]:
            known = isinstance(item.labels, Unread)
            number = self._how.setdefault(pickle.dumps(item.labels), len(self._how)) if known else -1
            self._last = item.labels, number
        return self._last[1]


def version(settings: Any) -> bytes:
    """What decides what is found in a file, beside the file: the settings and the code."""
    return hashlib.sha256(repr((code.version(), settings)).encode()).digest()


def _found(before: list[str], now: list[str]) -> Iterator[int]:
    """The place of each path among those of before, -1 for none; both are sorted."""
    at, end = 0, len(before)
    for path in now:
        while at < end and before[at] < path:
            at += 1
        yield at if at < end and before[at] == path else -1


def _runs(places: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(start, stop) of each run of numbers that follow one another."""
    start = stop = -1
    for place in places:
        if place != stop:
            if start >= 0:
                yield start, stop
            start = place
        stop = place + 1
    if start >= 0:
        yield start, stop
