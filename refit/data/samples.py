"""Samples, packed: a sequence of them in some 200 bytes each, in memory, between processes, and in a file."""

from __future__ import annotations

import marshal
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from itertools import pairwise
from operator import attrgetter
from typing import Any, NamedTuple, overload

import numpy as np

from refit.data.model import Box, Sample

_PACKED = ("file", "name", "source", "sha256", "objects")
_BOX = attrgetter(*(f.name for f in fields(Box)))
_REST_NAMES = tuple(f.name for f in fields(Sample) if f.name not in _PACKED)
_REST = attrgetter(*_REST_NAMES)
_LOOK = _REST_NAMES.index("look")


def flat(name: str) -> str:
    """The plain file name in a snapshot of an image below folders."""
    return name.replace("/", "__")


class Brief(NamedTuple):
    """What tells one sample from another; `sha256` are its bytes."""

    file: str
    source: str
    sha256: bytes
    look: bytes


class Samples(Sequence[Sample]):
    """A list of samples that makes each one as it is asked for, and knows digests and classes without that."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._ends = array("Q")
        self._digests = bytearray()
        self._classes: dict[str, int] = {}  # name -> place, in that order
        self._objects = array("I")  # the class of each object, by its place in _classes
        self._object_ends = array("I")
        self._order: array[int] | None = None  # places in the above, in the order of the sequence

    def append(self, sample: Sample) -> None:
        """Only to a list that was not chosen from another."""
        self._data += _pack(sample)
        self._ends.append(len(self._data))
        self._digests += bytes.fromhex(sample.digest())
        for box in sample.objects:
            self._objects.append(self._classes.setdefault(box.cls, len(self._classes)))
        self._object_ends.append(len(self._objects))

    def extend(self, other: Samples, start: int = 0, stop: int | None = None) -> None:
        """Add samples of another list, neither of them chosen from another."""
        stop = len(other._ends) if stop is None else stop
        if start == stop:
            return
        first, last = _span(other._ends, start, stop)
        here = len(self._data) - first
        self._data += memoryview(other._data)[first:last]
        self._ends.extend(array("Q", (end + here for end in other._ends[start:stop])))
        self._digests += other._digests[32 * start : 32 * stop]
        first, last = _span(other._object_ends, start, stop)
        here = len(self._objects) - first
        self._object_ends.extend(array("I", (end + here for end in other._object_ends[start:stop])))
        place = [self._classes.setdefault(cls, len(self._classes)) for cls in other._classes]
        self._objects.extend(array("I", map(place.__getitem__, other._objects[first:last])))

    def state(self) -> tuple[Any, ...]:
        """What `marshal` can write of a list that was not chosen from another."""
        arrays = self._ends, self._objects, self._object_ends
        return bytes(self._data), bytes(self._digests), list(self._classes), [a.tobytes() for a in arrays]

    @classmethod
    def of_state(cls, state: tuple[Any, ...]) -> Samples:
        found = cls()
        data, digests, classes, arrays = state
        found._classes = {cls: place for place, cls in enumerate(classes)}
        found._data, found._digests = bytearray(data), bytearray(digests)
        for column, content in zip((found._ends, found._objects, found._object_ends), arrays, strict=True):
            column.frombytes(content)
        return found

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

    def names(self) -> Iterator[str]:
        """The `name` of each."""
        for at in range(len(self)):
            _, name, source, *_ = marshal.loads(self._packed(at))  # noqa: S302  our own
            yield source[name:] if isinstance(name, int) else name

    def briefly(self) -> Iterator[Brief]:
        """Each without its boxes, which take the most time to make."""
        for at in range(len(self)):
            file, name, source, sha256, _, *rest = marshal.loads(self._packed(at))  # noqa: S302  our own
            if file is None:
                file = flat(source[name:] if isinstance(name, int) else name)
            yield Brief(file, source, sha256, rest[_LOOK])

    def digest(self, at: int) -> str:
        """`Sample.digest` of one."""
        place = at if self._order is None else self._order[at]
        return self._digests[32 * place : 32 * place + 32].hex()

    def class_counts(self) -> Counter[str]:
        """How many objects each class has."""
        if self._order is None:
            found = Counter(self._objects)
        else:
            found = Counter()
            for place in self._order:
                first, last = _span(self._object_ends, place, place + 1)
                found.update(self._objects[first:last])
        classes = list(self._classes)
        return Counter({classes[cls]: n for cls, n in found.items()})

    def class_images(self) -> Counter[str]:
        """In how many images each class is."""
        ends = np.asarray(self._object_ends, np.int64)
        image = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
        pairs = np.unique(image * (len(self._classes) + 1) + np.asarray(self._objects))
        if self._order is not None:
            chosen = np.zeros(len(ends), np.bool_)
            chosen[np.asarray(self._order)] = True
            pairs = pairs[chosen[pairs // (len(self._classes) + 1)]]
        counts = np.bincount(pairs % (len(self._classes) + 1), minlength=len(self._classes))
        return Counter({cls: int(n) for cls, n in zip(self._classes, counts, strict=False) if n})

    def __len__(self) -> int:
        return len(self._ends if self._order is None else self._order)

    @overload
    def __getitem__(self, at: int) -> Sample: ...
    @overload
    def __getitem__(self, at: slice) -> Samples: ...
    def __getitem__(self, at: int | slice) -> Sample | Samples:
        if isinstance(at, slice):
            return self.choose(range(len(self))[at])
        return _unpack(self._packed(range(len(self))[at]))

    def _packed(self, at: int) -> memoryview:
        place = at if self._order is None else self._order[at]
        first, last = _span(self._ends, place, place + 1)
        return memoryview(self._data)[first:last]


def packed(samples: Iterable[Sample]) -> Samples:
    """The samples as such a list; the list itself where they are one."""
    if isinstance(samples, Samples):
        return samples
    found = Samples()
    for sample in samples:
        found.append(sample)
    return found


def _span(ends: array[int], start: int, stop: int) -> tuple[int, int]:
    return ends[start - 1] if start else 0, ends[stop - 1]


def _pack(s: Sample) -> bytes:
    name = len(s.source) - len(s.name) if s.source.endswith(s.name) else s.name
    file = None if s.file == flat(s.name) else s.file
    return marshal.dumps((file, name, s.source, bytes.fromhex(s.sha256), tuple(map(_BOX, s.objects)), *_REST(s)))


def _unpack(data: memoryview) -> Sample:
    file, name, source, sha256, boxes, *rest = marshal.loads(data)  # noqa: S302  our own
    name = source[name:] if isinstance(name, int) else name
    objects = tuple(Box(*box) for box in boxes)
    others = dict(zip(_REST_NAMES, rest, strict=True))
    return Sample(
        file=flat(name) if file is None else file,
        name=name,
        source=source,
        sha256=sha256.hex(),
        objects=objects,
        **others,
    )
