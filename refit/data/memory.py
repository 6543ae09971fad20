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
from dataclasses import fields
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from refit import files
from refit.data import code
from refit.data.faults import Fault
from refit.data.model import Item, Sample, Unread
from refit.data.samples import Samples
from refit.data.tree import RECENT_NS, FileInfo, Tree

FILE = "remembered"
_OF_IMAGE = frozenset({"image_damaged", "wrong_suffix"})  # what is found while an image is decoded, whatever its labels
_KEY = 16  # bytes
_NO_KEY = bytes(_KEY)
_BESIDE = attrgetter(*(f.name for f in fields(Item) if f.name not in ("image", "label", "labels")))
_as_tuple = attrgetter(*(f.name for f in fields(Fault)))


class Trace(NamedTuple):
    """Where a sample came from: the place of its item in a batch, the objects that its labels declared, its faults."""

    place: int
    declared: int
    faults: list[Fault]


class Keys(NamedTuple):
    """What an item is known by: its image with its labels, and its image alone; none where they cannot be trusted."""

    pair: bytes
    image: bytes


NO_KEYS = Keys(_NO_KEY, _NO_KEY)


class _Shelf:
    """Samples, and the keys, the declared objects and the faults of each."""

    def __init__(self) -> None:
        self.samples = Samples()
        self.pairs = bytearray()
        self.images = bytearray()
        self.declared = array("Q")
        self.faults: dict[int, list[Fault]] = {}

    def put(self, keys: Keys, trace: Trace) -> None:
        """The sample itself is added apart."""
        if trace.faults:
            self.faults[len(self.declared)] = trace.faults
        self.pairs += keys.pair
        self.images += keys.image
        self.declared.append(trace.declared)

    def copy(self, other: _Shelf, start: int, stop: int) -> None:
        here = len(self.declared) - start
        self.faults |= {at + here: other.faults[at] for at in range(start, stop) if at in other.faults}
        self.samples.extend(other.samples, start, stop)
        self.pairs += other.pairs[_KEY * start : _KEY * stop]
        self.images += other.images[_KEY * start : _KEY * stop]
        self.declared += other.declared[start:stop]


class Memory:
    """Samples by the files that they were made from.

    `settings`: whatever else decides what is found in a file (the classes). With another value nothing is known.
    """

    def __init__(self, path: Path, settings: Any, tags: Mapping[str, str] | None = None) -> None:
        self.path, self.tags = path, tags or {}
        self._version = version(settings)
        self._old, self._new = self._load(), _Shelf()
        self._by_pair = _places(self._old.pairs)
        self._by_image = _places(self._old.images)
        self._again = array("Q")  # places on the old shelf

    def recall(self, keys: Keys) -> bool:
        """Whether image and labels are what they were; then `result` has what was found in them."""
        place = self._by_pair.get(keys.pair, -1)
        if place >= 0:
            self._again.append(place)
        return place >= 0

    def image(self, keys: Keys) -> tuple[Sample, list[Fault]] | None:
        """A sample of this image, whatever its labels were, and the faults that are the image's own."""
        place = self._by_image.get(keys.image, -1)
        if place < 0:
            return None
        sample = self._old.samples[place]
        return sample, [f for f in self._old.faults.get(place, ()) if f.code in _OF_IMAGE]

    def note(self, keys: list[Keys], samples: Samples, traces: list[Trace]) -> None:
        """Remember what was found in a batch."""
        self._new.samples.extend(samples)
        for trace in traces:
            self._new.put(keys[trace.place], trace)

    def result(self) -> tuple[Samples, list[Fault], int]:
        """The samples that were noted and those that were recalled; of these the faults and the declared objects."""
        noted = len(self._new.declared)
        for start, stop in _runs(self._again):
            self._new.copy(self._old, start, stop)
        del self._again[:]
        faults = [f for at, found in self._new.faults.items() if at >= noted for f in found]
        return self._new.samples, faults, sum(self._new.declared[noted:])

    def save(self) -> None:
        """Put what was noted and recalled in the place of what was known. Raises OSError."""
        new = self._new
        if not new.images.strip(b"\0") or (new.pairs, new.images) == (self._old.pairs, self._old.images):
            return
        faults = [
            (at, [tuple(getattr(f, n) for n in Fault.__slots__) for f in found]) for at, found in new.faults.items()
        ]
        numbers = new.pairs, new.images, new.declared.tobytes()
        body = marshal.dumps((self._version, new.samples.state(), *map(bytes, numbers), faults))
        files.write_bytes(self.path, hashlib.sha256(body).digest() + body)

    def _load(self) -> _Shelf:
        shelf = _Shelf()
        try:
            data = memoryview(self.path.read_bytes())
        except OSError:
            return shelf
        if hashlib.sha256(data[32:]).digest() != data[:32]:
            return shelf
        version, samples, pairs, images, declared, faults = marshal.loads(data[32:])  # noqa: S302  our own, and whole
        if version != self._version:
            return shelf
        shelf.samples = Samples.of_state(samples)
        shelf.pairs, shelf.images = bytearray(pairs), bytearray(images)
        shelf.declared.frombytes(declared)
        shelf.faults = {at: [Fault(*f) for f in found] for at, found in faults}
        return shelf


def version(settings: Any) -> bytes:
    """What decides what is found in a file, beside the file: the settings and the code."""
    return hashlib.sha256(repr((code.version(), settings)).encode()).digest()


def keys_of(tree: Tree, item: Item, tags: Mapping[str, str]) -> Keys:
    """What an item of a tree is known by."""
    image = _trusted(tree, item.image, tags)
    if image is None:
        return NO_KEYS
    label = _trusted(tree, item.label, tags)
    if label is None or not isinstance(item.labels, Unread):  # the labels do not come from that file alone
        return Keys(_NO_KEY, _key((*image, item.name)))
    return Keys(_key((*image, *label, _pickled(item.labels), *_BESIDE(item))), _key((*image, item.name)))


def _trusted(tree: Tree, path: str | None, tags: Mapping[str, str]) -> FileInfo | None:
    info = None if path is None else tree.files.get(path)
    if info and tags.get(info.path):
        return FileInfo(info.path, info.size, 0, 0, tags[info.path])
    return info if info and max(info.ctime_ns, info.mtime_ns) < tree.listed_at_ns - RECENT_NS else None


def _key(value: tuple[Any, ...]) -> bytes:
    # Version 2 writes equal values alike.
    return hashlib.blake2b(marshal.dumps(value, 2), digest_size=_KEY).digest()


@lru_cache(maxsize=16)
def _pickled(labels: Unread) -> bytes:
    return pickle.dumps(labels)


def _places(packed: bytearray) -> dict[bytes, int]:
    known = {bytes(packed[at : at + _KEY]): at // _KEY for at in range(0, len(packed), _KEY)}
    known.pop(_NO_KEY, None)
    return known


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
