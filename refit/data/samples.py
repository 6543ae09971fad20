"""Samples, packed: a sequence of them in columns, in memory, between processes, and in a file."""

from __future__ import annotations

import struct
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Generic, NamedTuple, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from refit.data import look
from refit.data.model import NUMBERS, Box, Item, Sample, digest_of

_FIXED = struct.Struct(f"<32s32s{look.SIZE}sQII")  # sha256, digest, look, bytes, width, height
_DIGEST = slice(32, 64)
_NO_LOOK = bytes(look.SIZE)
_OF_BOX = 8 * NUMBERS  # bytes
_CHUNK = 2**16  # samples that are counted at once

Kind = tuple[str | None, tuple[str, ...], tuple[str, ...]]  # part, tags and groups of a sample
V = TypeVar("V")


def flat(name: str) -> str:
    """The plain file name in a snapshot of an image below folders."""
    return name.replace("/", "__")


class Brief(NamedTuple):
    """What tells one sample from another; `sha256` are its bytes."""

    file: str
    source: str
    sha256: bytes
    look: bytes


class _Table(Generic[V]):
    """Different values, by the number that each one gets when it is first met."""

    def __init__(self, values: Iterable[V] = ()) -> None:
        self.values = list(values)
        self._numbers = {value: number for number, value in enumerate(self.values)}

    def number(self, value: V) -> int:
        found = self._numbers.setdefault(value, len(self.values))
        if found == len(self.values):
            self.values.append(value)
        return found


class Samples(Sequence[Sample]):
    """A list of samples that makes each one as it is asked for, and knows digests and classes without that."""

    def __init__(self) -> None:
        self._fixed = bytearray()
        self._sources = bytearray()
        self._source_ends = array("Q")
        self._name_at = array("H")  # where the name begins in the source
        self._odd: dict[int, tuple[str, str]] = {}  # name and file, of those where they do not follow from the source
        self._kinds = _Table[Kind]()
        self._kind = array("I")
        self._classes = _Table[str]()
        self._objects = array("I")  # the class of each object, by its number
        self._object_ends = array("I")
        self._boxes = bytearray()
        self._order: array[int] | None = None  # places in the above, in the order of the sequence

    def append(self, sample: Sample) -> None:
        """Only to a list that was not chosen from another."""
        boxes = b"".join([box.numbers() for box in sample.objects])
        names = [box.cls for box in sample.objects]
        size = (sample.bytes, sample.width, sample.height)
        kind = (sample.part, sample.tags, sample.groups)
        digest = digest_of(sample.file, sample.sha256, sample.width, sample.height, names, boxes)
        at = len(sample.source) - len(sample.name)
        if not sample.source.endswith(sample.name) or sample.file != flat(sample.name) or at > 0xFFFF:
            self._odd[len(self._kind)] = (sample.name, sample.file)
            at = 0
        self.add(sample.source, at, bytes.fromhex(sample.sha256), digest, sample.look, size, kind, names, boxes)

    def add(
        self,
        source: str,
        name_at: int,
        sha256: bytes,
        digest: bytes,
        look: bytes,
        size: tuple[int, int, int],
        kind: Kind,
        classes: Iterable[str],
        boxes: bytes | memoryview,
    ) -> None:
        """`append` for who has the columns already: `size` is bytes, width and height; the sample's name is the source
        from `name_at` on."""
        self._fixed += _FIXED.pack(sha256, digest, look or _NO_LOOK, *size)
        self._sources += source.encode("utf-8", "surrogateescape")
        self._source_ends.append(len(self._sources))
        self._name_at.append(name_at)
        self._kind.append(self._kinds.number(kind))
        self._objects.extend(map(self._classes.number, classes))
        self._object_ends.append(len(self._objects))
        self._boxes += boxes

    def extend(self, other: Samples, start: int = 0, stop: int | None = None) -> None:
        """Add samples of another list, neither of them chosen from another."""
        stop = len(other._kind) if stop is None else stop
        if start == stop:
            return
        if other._odd:
            here = len(self._kind) - start
            self._odd |= {at + here: names for at, names in other._odd.items() if start <= at < stop}
        self._fixed += memoryview(other._fixed)[_FIXED.size * start : _FIXED.size * stop]
        self._name_at += other._name_at[start:stop]
        first, last = _add_ends(self._source_ends, len(self._sources), other._source_ends, start, stop)
        self._sources += memoryview(other._sources)[first:last]
        self._kind += _renumbered(other._kind[start:stop], other._kinds, self._kinds)
        first, last = _add_ends(self._object_ends, len(self._objects), other._object_ends, start, stop)
        self._objects += _renumbered(other._objects[first:last], other._classes, self._classes)
        self._boxes += memoryview(other._boxes)[_OF_BOX * first : _OF_BOX * last]

    def state(self) -> tuple[Any, ...]:
        """What `marshal` can write of a list that was not chosen from another."""
        bytes_ = bytes(self._fixed), bytes(self._sources), bytes(self._boxes)
        return (
            bytes_,
            list(self._odd.items()),
            self._kinds.values,
            self._classes.values,
            [column.tobytes() for column in self._columns()],
        )

    @classmethod
    def of_state(cls, state: tuple[Any, ...]) -> Samples:
        found = cls()
        bytes_, odd, kinds, classes, columns = state
        found._fixed, found._sources, found._boxes = map(bytearray, bytes_)
        found._odd = dict(odd)
        found._kinds, found._classes = _Table(kinds), _Table(classes)
        for column, content in zip(found._columns(), columns, strict=True):
            column.frombytes(content)
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return _chosen, (self.state(), self._order)

    def _columns(self) -> tuple[array[int], ...]:
        return self._source_ends, self._name_at, self._kind, self._objects, self._object_ends

    def choose(self, places: Iterable[int]) -> Samples:
        """The samples at these places, in this order; they share their bytes with this list."""
        chosen = Samples()
        chosen.__dict__.update(self.__dict__)
        chosen._order = array("I", places if self._order is None else map(self._order.__getitem__, places))
        return chosen

    def sorted(self) -> Samples:
        """The same by name."""
        if all(a <= b for a, b in pairwise(self.names())):
            return self
        names = list(self.names())
        return self.choose(sorted(range(len(names)), key=names.__getitem__))

    def are_of(self, at: int, item: Item) -> bool:
        """Whether one that was made of the same image file has an item's name, part and tags."""
        place = self._place(at)
        if item.image is None or place in self._odd or not item.image.endswith(item.name):
            return False
        kind = self._kinds.values[self._kind[place]]
        return self._name_at[place] == len(item.image) - len(item.name) and kind[:2] == (item.part, item.tags)

    def names_are_plain(self) -> bool:
        """Whether all names rise, and none becomes another's when it is `flat`; some that are plain are missed."""
        if self._odd or any(mark in self._sources for mark in (b"__", b"_/", b"/_")):
            return False
        return all(a < b for a, b in pairwise(self.names()))

    def names(self) -> Iterator[str]:
        """The `name` of each."""
        if self._order is not None or self._odd:
            yield from map(self._name, self._places())
            return
        first = 0
        for last, at in zip(self._source_ends, self._name_at, strict=True):
            yield self._sources[first:last].decode("utf-8", "surrogateescape")[at:]
            first = last

    def briefly(self) -> Iterator[Brief]:
        """Each without its boxes, which take the most time to make."""
        for place in self._places():
            sha256, _, seen, *_ = _FIXED.unpack_from(self._fixed, _FIXED.size * place)
            file = self._odd[place][1] if place in self._odd else flat(self._name(place))
            yield Brief(file, self._source(place), sha256, b"" if seen == _NO_LOOK else seen)

    def digest(self, at: int) -> bytes:
        """`Sample.digest` of one."""
        first = _FIXED.size * self._place(at)
        return bytes(self._fixed[first : first + _FIXED.size][_DIGEST])

    def class_counts(self) -> Counter[str]:
        """How many objects each class has."""
        objects = np.asarray(self._objects, np.uint32)
        if self._order is not None:
            ends = np.asarray(self._object_ends, np.int64)
            times = np.bincount(np.asarray(self._order, np.int64), minlength=len(ends))
            weights = np.repeat(times, np.diff(ends, prepend=0))
            counts = np.bincount(objects, weights, minlength=len(self._classes.values))
        else:
            counts = np.bincount(objects, minlength=len(self._classes.values))
        return Counter({cls: int(n) for cls, n in zip(self._classes.values, counts, strict=False) if n})

    def class_images(self) -> Counter[str]:
        """In how many images each class is."""
        classes, counts = len(self._classes.values), np.zeros(len(self._classes.values) + 1, np.int64)
        chosen = None
        if self._order is not None:
            chosen = np.zeros(len(self._kind), np.bool_)
            chosen[np.asarray(self._order)] = True
        for start in range(0, len(self._kind), _CHUNK):
            first = self._object_ends[start - 1] if start else 0
            ends = np.asarray(self._object_ends[start : start + _CHUNK], np.int64)
            image = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=first))
            pairs = np.unique(image * (classes + 1) + np.asarray(self._objects[first : ends[-1]]))
            if chosen is not None:
                pairs = pairs[chosen[start + pairs // (classes + 1)]]
            counts += np.bincount(pairs % (classes + 1), minlength=len(counts))
        return Counter({cls: int(n) for cls, n in zip(self._classes.values, counts, strict=False) if n})

    def __len__(self) -> int:
        return len(self._kind if self._order is None else self._order)

    @overload
    def __getitem__(self, at: int) -> Sample: ...
    @overload
    def __getitem__(self, at: slice) -> Samples: ...
    def __getitem__(self, at: int | slice) -> Sample | Samples:
        if isinstance(at, slice):
            return self.choose(range(len(self))[at])
        return self._sample(self._place(range(len(self))[at]))

    def _places(self) -> Iterable[int]:
        return range(len(self._kind)) if self._order is None else self._order

    def _place(self, at: int) -> int:
        return at if self._order is None else self._order[at]

    def _source(self, place: int) -> str:
        first, last = _span(self._source_ends, place)
        return self._sources[first:last].decode("utf-8", "surrogateescape")

    def _name(self, place: int) -> str:
        return self._odd[place][0] if place in self._odd else self._source(place)[self._name_at[place] :]

    def _sample(self, place: int) -> Sample:
        sha256, _, seen, length, width, height = _FIXED.unpack_from(self._fixed, _FIXED.size * place)
        source = self._source(place)
        name, file = self._odd.get(place) or (source[self._name_at[place] :], "")
        first, last = _span(self._object_ends, place)
        classes = self._classes.values
        boxes = np.frombuffer(self._boxes, "<f8", (last - first) * NUMBERS, first * _OF_BOX).reshape(-1, NUMBERS)
        of = map(classes.__getitem__, self._objects[first:last])
        return Sample(
            file or flat(name),
            name,
            source,
            sha256.hex(),
            length,
            width,
            height,
            tuple(map(Box.of_numbers, of, boxes.tolist())),
            *self._kinds.values[self._kind[place]],
            b"" if seen == _NO_LOOK else seen,
        )


def packed(samples: Iterable[Sample]) -> Samples:
    """The samples as such a list; the list itself where they are one."""
    if isinstance(samples, Samples):
        return samples
    found = Samples()
    for sample in samples:
        found.append(sample)
    return found


def _chosen(state: tuple[Any, ...], order: array[int] | None) -> Samples:
    found = Samples.of_state(state)
    found._order = order
    return found


def _span(ends: array[int], place: int) -> tuple[int, int]:
    return ends[place - 1] if place else 0, ends[place]


def _add_ends(to: array[int], before: int, ends: array[int], start: int, stop: int) -> tuple[int, int]:
    """Add the ends of some things of another list to those of one that holds `before` units; where they lie there."""
    first = ends[start - 1] if start else 0
    to.frombytes((np.asarray(ends)[start:stop] - first + before).astype(to.typecode).tobytes())
    return first, ends[stop - 1]


def _renumbered(column: array[int], theirs: _Table[V], ours: _Table[V]) -> array[int]:
    """Numbers of one table as those of another, which gets what it lacks."""
    number = list(map(ours.number, theirs.values))
    if number == list(range(len(number))):
        return column
    numbers: NDArray[np.uint32] = np.asarray(number, np.uint32)[np.asarray(column)]
    return array(column.typecode, numbers.tobytes())
