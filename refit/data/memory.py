"""What the last examination of a pipeline's data found out, so that a file that is still the same is not opened again.

One file beside the snapshots, `datasets/remembered`, replaced whole. Where it is missing, damaged, or was made by other
code or for other classes, everything is read. A share of a data set (`dataset.shards`) has one of its own,
`remembered-<share>-of-<shards>`.

**What it trusts.** A file is the same when its path, size, mtime, ctime and inode number are. The kernel sets ctime at
every write and rename, and no call sets it back: so what `cp -p` and `rsync -t` hide in mtime is seen. A file that
changed less than two seconds before it was listed is not remembered, because a second write could leave the same times.
What stays unseen is a change below the file system (a failing disk, a server that makes up times). So it serves the
sources of runs alone: `refit dataset check` opens every file.

A file that was fetched is the same when its path, size and ETag are, as the source told them (`tags`): it gets new
times whenever it is linked into the next arrival or into a snapshot.
"""

from __future__ import annotations

import hashlib
import marshal
import pickle
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
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
        self._old, self._new = _Shelf(), _Shelf()
        self._load()
        self._again: list[tuple[int, Places]] = []  # samples of the old shelf, and where their files stand now

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
                if same[at]:
                    self._again.append((sample, files[at]))
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
        """The samples that were noted and those that were recalled; of these the faults and the declared objects."""
        new, old, noted = self._new, self._old, len(self._new.how)
        for start, stop in _runs([sample for sample, _ in self._again]):
            new.samples.extend(old.samples, start, stop)
        for sample, files_ in self._again:
            new.put(files_, old.how[sample], old.declared[sample], old.faults.get(sample, ()))
        self._again = []
        faults = [f for at, found in new.faults.items() if at >= noted for f in found]
        self._news = noted > 0 or len(new.how) < len(old.how)
        return new.samples, faults, sum(new.declared[noted:])

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
        return self._how.setdefault(_pickled(item.labels), len(self._how)) if isinstance(item.labels, Unread) else -1


def version(settings: Any) -> bytes:
    """What decides what is found in a file, beside the file: the settings and the code."""
    return hashlib.sha256(repr((code.version(), settings)).encode()).digest()


@lru_cache(maxsize=16)
def _pickled(labels: Unread) -> bytes:
    return pickle.dumps(labels)


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
