"""What is no fault in itself, and still deserves a look: odd boxes, odd files, rare classes, near-duplicates.

Nothing here takes an object or an image out of the data set. Where a limit comes from is said beside it;
docs/data/checks.md shows all of them.
"""

from __future__ import annotations

import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from refit.data import look
from refit.data.faults import Fault, fault
from refit.data.look import HASH
from refit.data.model import Box, Sample
from refit.data.samples import Samples, packed

TINY = 3.0
"""Pixels of the image: YOLOv5 warns of sides below it ("extremely small objects", utils/autoanchor.py)."""

GIANT = 0.95
"""Share of the image's area. Our own: so large a box is mostly a label of the picture as a whole."""

SAME = 0.95
"""IoU from which two boxes are one, drawn twice: COCO's strictest threshold of a match."""

RARE = 10
"""Images: LVIS (Gupta, Dollar, Girshick 2019) calls a class rare that is in so few."""

IMBALANCE = 50
"""Objects of the most frequent class to one of another: Buda, Maki, Mazurowski 2018 ("A systematic study of the class
imbalance problem in convolutional neural networks") see clear losses at this ratio."""

TOLD = 1000
"""Near-duplicates in one part that are told one by one: of the frames of a video every one is."""


_CHANNELS = HASH + 1  # its place in a packed look
_COMMON = frozenset({bytes([1, 8, 1]), bytes([3, 8, 1])})  # channels, bits, orientation: grey or colour, as stored


def of_boxes(boxes: Sequence[Box], lines: Sequence[int], file: str, width: int, height: int) -> list[Fault]:
    """Boxes that are tiny, fill the image, or lie on one another; `lines` are theirs in the label file."""
    found = []
    for box, line in zip(boxes, lines, strict=True):
        w, h = box.x2 - box.x1, box.y2 - box.y1
        if w < TINY or h < TINY:
            found.append(_of_box("tiny_box", box, line, file, f"is only {w:.3g}x{h:.3g} pixels large"))
        elif w * h >= GIANT * width * height:
            found.append(_of_box("giant_box", box, line, file, f"fills the image of {width}x{height}"))
    if len(boxes) > 1:
        found += _drawn_twice(boxes, lines, file)
    return found


def _drawn_twice(boxes: Sequence[Box], lines: Sequence[int], file: str) -> Iterator[Fault]:
    order = sorted(range(len(boxes)), key=lambda i: boxes[i].x1)
    for at, i in enumerate(order):
        a = boxes[i]
        reach = a.x1 + (1 - SAME) * (a.x2 - a.x1)  # a box that begins further right cannot overlap so much
        for j in order[at + 1 :]:
            b = boxes[j]
            if b.x1 > reach:
                break
            if iou(a, b) <= SAME:
                continue
            first, second = sorted((i, j), key=lambda k: (lines[k], k))
            where = f"the box of line {lines[first]}" if lines[first] else "another box"
            if a.cls == b.cls:
                yield _of_box("duplicate_box", boxes[second], lines[second], file, f"is {where} once more")
            else:
                why = f"is {where}, which is called {boxes[first].cls!r}"
                yield _of_box("box_of_two_classes", boxes[second], lines[second], file, why)


def images_with_odd_boxes(
    boxes: NDArray[np.float64], image: NDArray[np.int64], area: NDArray[np.float64]
) -> NDArray[np.int64]:
    """The images of which `of_boxes` would say something, some more than once: `boxes` of many images one after
    another, the number of each one's image, and its area. Boxes outside their image may be missed."""
    x1, y1, x2, y2 = boxes[:, :4].T
    w, h = x2 - x1, y2 - y1
    odd = [image[(w < TINY) | (h < TINY) | (w * h >= GIANT * area)]]
    order = np.lexsort((x1, image))
    reach = x1 + (1 - SAME) * w
    at = np.arange(len(order))
    for step in range(1, len(order)):
        at = at[at + step < len(order)]
        a, b = order[at], order[at + step]
        near = (image[a] == image[b]) & (x1[b] <= reach[a])
        at, a, b = at[near], a[near], b[near]
        if not len(at):
            break
        common = np.minimum(x2[a], x2[b]) - np.maximum(x1[a], x1[b])
        common = np.maximum(common, 0) * np.maximum(np.minimum(y2[a], y2[b]) - np.maximum(y1[a], y1[b]), 0)
        odd.append(image[a][common >= (SAME - 1e-9) * (w[a] * h[a] + w[b] * h[b] - common)])
    return np.concatenate(odd)


def iou(a: Box, b: Box) -> float:
    """The intersection of two boxes over their union."""
    w = min(a.x2, b.x2) - max(a.x1, b.x1)
    h = min(a.y2, b.y2) - max(a.y1, b.y1)
    if w <= 0 or h <= 0:
        return 0.0
    return w * h / ((a.x2 - a.x1) * (a.y2 - a.y1) + (b.x2 - b.x1) * (b.y2 - b.y1) - w * h)


def _of_box(code: str, box: Box, line: int, file: str, what: str) -> Fault:
    shown = f"{box.cls} {box.x1:g} {box.y1:g} {box.x2:g} {box.y2:g}"
    return fault(code, file, f"the box {shown} {what}", line=line, value=shown)


def is_common(seen: look.Packed) -> bool:
    """Whether a look says nothing unusual of its file, see `of_image`."""
    return seen[_CHANNELS:] in _COMMON


def of_image(sample: Sample, stated: tuple[int, int] | None) -> list[Fault]:
    """What is unusual about an image file; `stated` is the size for which its labels were made, where they say so."""
    if not sample.look or is_common(sample.look):
        return []
    found = []
    seen = look.unpack(sample.look)
    if seen.channels == 4 and _is_jpeg(sample.source):
        found.append(fault("cmyk_image", sample.source, "its colours are CMYK"))
    if seen.bits > 8:
        found.append(fault("deep_image", sample.source, f"it has {seen.bits} bits a channel"))
    sides_swap = seen.orientation >= 5 and sample.width != sample.height
    if seen.orientation != 1 and not (sides_swap and stated == (sample.width, sample.height)):
        message = (
            f"its EXIF orientation is {seen.orientation}: most programs show it turned or mirrored, "
            "its boxes are read as those of the image as stored"
        )
        found.append(fault("exif_orientation", sample.source, message, value=str(seen.orientation)))
    return found


def _is_jpeg(source: str) -> bool:
    return source.lower().endswith((".jpg", ".jpeg"))


def of_all(samples: Sequence[Sample]) -> Iterator[Fault]:
    """What is unusual about the set: its classes, its names, and images of several kinds. Keeps 8 bytes of each."""
    samples = packed(samples)
    names = array("q")
    grey, coloured, alpha, odd = _Seen(), _Seen(), _Seen(), _Seen()
    for s in samples.briefly():
        names.append(hash(_folded(s.source)))
        if not s.source.isascii():
            odd.add(s.source)
        if s.look:
            channels = s.look[_CHANNELS]
            (grey if channels <= 2 else coloured).add(s.source)
            if channels in (2, 4) and not _is_jpeg(s.source):
                alpha.add(s.source)
    yield from _of_classes(samples.class_counts(), samples.class_images(), len(samples))
    yield from _colliding(samples, names)
    if odd.n:
        yield fault("name_not_ascii", odd.first, f"{_of(odd.n, len(samples))} with other letters than ASCII's")
    if grey.n and coloured.n:
        yield fault("mixed_colour", grey.first, f"{grey.n} images are grey, {coloured.n} have colours")
    if alpha.n:
        yield fault("alpha_channel", alpha.first, f"{_of(alpha.n, len(samples))} with an alpha channel")


class _Seen:
    """How many images were counted, and the first."""

    def __init__(self) -> None:
        self.n = 0
        self.first = ""

    def add(self, source: str) -> None:
        self.n += 1
        self.first = self.first or source


def _of_classes(objects: Counter[str], images: Counter[str], total: int) -> Iterator[Fault]:
    if not objects:
        return
    most, highest = objects.most_common(1)[0]
    for cls, n in sorted(objects.items()):
        if images[cls] <= RARE and RARE * images[cls] <= max(images.values()):
            yield fault("rare_class", "", f"class {cls!r} is in {images[cls]} of {total} images", value=cls)
        elif n * IMBALANCE < highest:
            message = f"class {cls!r} has {n} objects, {most!r} {highest / n:.0f} times as many"
            yield fault("class_imbalance", "", message, value=cls)


def _folded(name: str) -> str:
    """The name as file systems that know no case compare it."""
    return name.lower() if name.isascii() else unicodedata.normalize("NFC", name).casefold()


def _colliding(samples: Samples, names: array[int]) -> Iterator[Fault]:
    first: dict[str, str] = {}
    for at in _several(np.frombuffer(names, np.int64)):
        source = samples[at].source
        other = first.setdefault(_folded(source), source)
        if other != source:
            yield fault("name_case_collision", source, f"differs from {other} only in how its letters are written")


def _several(values: NDArray[np.int64]) -> list[int]:
    """The places of the values that are there more than once."""
    in_order = np.sort(values)
    if not (in_order[1:] == in_order[:-1]).any():  # as it nearly always is
        return []
    order = np.argsort(values, kind="stable")
    same = values[order[1:]] == values[order[:-1]]
    several: list[int] = np.concatenate([order[1:][same], order[:-1][same]]).tolist()
    return sorted(set(several))


def _of(n: int, total: int) -> str:
    return f"the first of {n} (of {total} images)" if n > 1 else f"one (of {total} images)"


def duplicates(samples: Sequence[Sample], split: Mapping[str, str]) -> Iterator[Fault]:
    """Pictures that are there more than once, byte for byte or to the eye; `split` is each sample's part by `file`.

    Goes through the samples once, and keeps 32 bytes of each.
    """
    samples = packed(samples)
    names = sorted(set(split.values()), key=lambda part: (part != "train", part))
    number = {name: i for i, name in enumerate(names)}
    parts, digests, hashes = array("q"), array("q"), bytearray()
    for s in samples.briefly():
        parts.append(number[split[s.file]])
        digests.append(int.from_bytes(s.sha256[:7], "big"))
        hashes += s.look[:HASH] or bytes(HASH)
    first: dict[str, int] = {}
    for at in _several(np.frombuffer(digests, np.int64)):
        sample = samples[at]
        twin = first.setdefault(sample.sha256, at)
        if twin == at:
            continue
        hashes[HASH * at : HASH * (at + 1)] = bytes(HASH)  # its first copy stands for it below
        other = samples[twin]
        if parts[twin] != parts[at]:
            message = f"the same picture as {other.source}: {_places(names, parts, at, twin)}"
            yield fault("duplicate_across_splits", sample.source, message)
        else:
            yield fault("duplicate_image", sample.source, f"the same picture as {other.source}")
    same, earlier_part = look.near(hashes, np.frombuffer(parts, np.int64))
    only_same = np.flatnonzero((same >= 0) & (earlier_part < 0))
    for at in sorted([*np.flatnonzero(earlier_part >= 0).tolist(), *only_same[:TOLD].tolist()]):
        source = samples[at].source
        leak = int(earlier_part[at])
        twin = leak if leak >= 0 else int(same[at])
        other = samples[twin]
        message = f"looks like {other.source}"
        if leak >= 0:  # told once, of the one that does not train
            message += f": {_places(names, parts, at, twin)}"
        code = "near_duplicate_across_splits" if leak >= 0 else "near_duplicate_image"
        yield fault(code, source, message, value=other.source)
    if len(only_same) > TOLD:
        source = samples[int(only_same[TOLD])].source
        message = f"and {len(only_same) - TOLD} more pictures, of which this is the first, look like another one"
        yield fault("near_duplicate_image", source, message)


def _places(names: Sequence[str], parts: Sequence[int], a: int, b: int) -> str:
    return f"one is in {names[parts[a]]}, the other in {names[parts[b]]}"
