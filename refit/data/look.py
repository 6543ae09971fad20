"""What a picture looks like, in 20 bytes: enough to find near-duplicates, a change of light, and unusual files.

Taken from what the check decodes anyway (`refit.data.images`): of a JPEG about an eighth of the pixels a side, each of
which is the mean of 8x8.

The hash is the 128 bit difference hash of Krawetz ("Kind of Like That", 2013) with rows and columns, as in Hoyt's dhash
(MIT; a thumbnail of 9x9, is the next cell brighter to the right, and below). Measured on BCCD and on the demo's set:
of the same picture at JPEG quality 50, at half its size or brighter by 10 %, 97 % differ in at most 7 bits; of all
other pairs of pictures the nearest differ in 26 or more, except one pair that a person calls the same, too (5 bits).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Packed = bytes
"""A look in 20 bytes, `Look.pack`."""

HASH = 16
"""Bytes of a hash."""

NEAR_BITS = 7
"""Two pictures whose hashes differ in at most so many of 128 bits are called near-duplicates."""

_BANDS = 8  # of 16 bits; hashes that differ in at most 7 bits are equal in one of them
_NEIGHBOURS = 64  # in a band; only a set with more near-duplicates of one picture than that meets it
_PLAIN = 2.0  # grey levels; the thumbnail of a picture with less contrast says nothing
CELLS = 9  # of the thumbnail a side
LEAST = 4 * CELLS
"""Pixels a side from which a thumbnail is made; a larger picture is shrunk to an eighth first, where it has so many."""
_FORMAT = struct.Struct("16sBBBB")
SIZE = _FORMAT.size
_NO_HASH = bytes(HASH)


class Look(NamedTuple):
    """`hash` is 16 bytes, zeros for a picture too plain to be told from others; `brightness` the mean grey level 0 to
    255; `channels` and `bits` as stored in the file; `orientation` EXIF's, 1 where nothing is said."""

    hash: bytes
    brightness: int
    channels: int
    bits: int
    orientation: int

    def pack(self) -> Packed:
        return _FORMAT.pack(*self)


def unpack(data: Packed) -> Look:
    return Look(*_FORMAT.unpack(data))


def of(pixels: NDArray[Any], channels: int, bits: int, orientation: int, *, cmyk: bool = False) -> Look:
    """The look of decoded pixels: uint8 or uint16 [h, w], [h, w, 1], [h, w, 3] BGR or [h, w, 4] BGRA (or CMYK)."""
    height, width = pixels.shape[:2]
    step = min(8, height // LEAST, width // LEAST)
    if step > 1:  # whole pixels together are quick, and two of their rows say enough
        size, skip = (width // step, height // step), step // 2
        rows = pixels[: step * size[1], : step * size[0]][::skip]
        pixels = cv2.resize(rows, size, interpolation=cv2.INTER_AREA)
    small: NDArray[Any] = cv2.resize(pixels, (CELLS, CELLS), interpolation=cv2.INTER_AREA)
    if small.dtype != np.uint8:
        small = (small >> 8).astype(np.uint8)
    if cmyk:  # Adobe's, inverted: an ink's share of white times that of black
        small = (small[..., :3].mean(axis=2) * small[..., 3] / 255).astype(np.uint8)
    elif small.ndim == 3:
        small = cv2.cvtColor(small, cv2.COLOR_BGRA2GRAY if small.shape[2] == 4 else cv2.COLOR_BGR2GRAY)
    mean, deviation = cv2.meanStdDev(small)
    if deviation[0, 0] < _PLAIN:
        return Look(_NO_HASH, round(mean[0, 0]), channels, bits, orientation)
    rising = np.empty((2, 8, 8), np.bool_)
    np.greater(small[:8, 1:], small[:8, :8], out=rising[0])
    np.greater(small[1:, :8], small[:8, :8], out=rising[1])
    return Look(np.packbits(rising).tobytes(), round(mean[0, 0]), channels, bits, orientation)


def near(hashes: bytes | bytearray, parts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each picture its nearest near-duplicate among those before it of the same part, and the nearest in a part of
    a lower number: two arrays of positions, -1 for none. `hashes` are theirs, one after another; pictures whose hash
    is all zeros have none.

    Not every pair is looked at: hashes are put in order by each of 8 bands in turn, and compared with those that follow
    and have the same band (Manku, Jain, Das Sarma 2007, "Detecting near-duplicates for web crawling").
    """
    found = np.frombuffer(hashes, np.uint64).reshape(-1, 2)
    bands = np.frombuffer(hashes, np.uint16).reshape(-1, _BANDS)
    n, part = len(found), parts
    hashed = np.flatnonzero(found.any(axis=1))
    none = np.iinfo(np.int64).max
    same, lower = np.full(n, none), np.full(n, none)
    for band in range(_BANDS):
        order = hashed[np.lexsort((hashed, found[hashed, 1], found[hashed, 0], bands[hashed, band]))]
        for a, b in _followers(order, bands[:, band]):
            distance = np.bitwise_count(found[a] ^ found[b]).sum(axis=1, dtype=np.int64)
            close = distance <= NEAR_BITS
            first, second, distance = np.minimum(a, b)[close], np.maximum(a, b)[close], distance[close]
            # distance and position in one number: the least is the nearest, and of those the first
            for best, late, twin, where in (
                (same, second, first, part[first] == part[second]),
                (lower, second, first, part[first] < part[second]),
                (lower, first, second, part[first] > part[second]),
            ):
                np.minimum.at(best, late[where], (distance << 40 | twin)[where])
    position = (1 << 40) - 1
    return np.where(same == none, -1, same & position), np.where(lower == none, -1, lower & position)


def _followers(
    order: NDArray[np.int64], key: NDArray[np.uint16]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs of positions that lie 1, 2, ... steps apart in an order, and have the same key."""
    at = np.arange(len(order))
    for step in range(1, _NEIGHBOURS + 1):
        at = at[at + step < len(order)]
        at = at[key[order[at]] == key[order[at + step]]]
        if not len(at):
            return
        yield order[at], order[at + step]
