"""Which images train, and which are for evaluation: at random and stratified, or by lists that come with the data.

Both are functions of what the images are, not of the order in which a disk lists them: the same data gives the same
split on every machine. Equal pictures, and images of one group, always go to the same part (refit.data.groups); what
was evaluated once stays there (refit.data.evaluation).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from refit.data.examine import Examination
from refit.data.faults import Fault, fault
from refit.data.formats.base import own_lists
from refit.data.groups import Block
from refit.data.model import Sample
from refit.data.names import lines, of_images, of_samples
from refit.specs import did_you_mean

TRAIN, VAL = "train", "val"


def check(
    samples: Sequence[Sample], split: Mapping[str, str], names: Sequence[str], classes: Sequence[str]
) -> Iterator[Fault]:
    """Whether each part can do its work; `split` maps a sample's `file` to its part, `names` are the parts meant."""
    images = Counter(split[s.file] for s in samples if s.file in split)
    objects = Counter((split[s.file], o.cls) for s in samples if s.file in split for o in s.objects)
    total = Counter[str]()
    for (_, cls), n in objects.items():
        total[cls] += n
    for part in names:
        if not any(objects[part, cls] for cls in total):
            what = f"{images[part]} images, none with an object" if images[part] else "no image"
            yield fault("split_without_objects", "", f"split {part!r} has {what}", value=part)
            continue
        if part not in (TRAIN, VAL):
            continue
        for cls in classes:
            if total[cls] and not objects[part, cls]:
                message = f"class {cls!r} ({total[cls]} objects) is not in split {part!r}"
                yield fault("class_not_in_split", "", message, value=cls)


# ---- by lists


@dataclass(frozen=True, slots=True)
class Lists:
    """What `by_lists` and `by_own` found: part by sample file, and what was wrong; what no list names is in no part."""

    parts: dict[str, str]
    faults: list[Fault]


def by_lists(examined: Examination, lists: Mapping[str, str], before: Mapping[str, str] | None = None) -> Lists:
    """Split by text files below the source, one image a line.

    A line names an image by its file name, its path below the image folder or below the source, each with or without
    its ending (VOC's lists; a flag after the name, as in VOC's lists by class, is passed over where it is not -1).
    `before` gives the parts of images that were taken before and stay there unless a list names them.
    """
    before = before or {}
    found = Lists({}, [])
    names = of_samples(s for s in examined.samples if s.file in before)
    names |= of_samples(s for s in examined.samples if s.file not in before)
    present = of_images(examined)
    where: dict[str, tuple[str, int]] = {}
    for part, path in lists.items():
        for at, line in lines(examined, path, "list_missing", found.faults):
            word = line if line in names or line in present else _without_flag(line)
            file = names.get(word)
            if file is None:
                if word not in present:  # else it was left out for a fault of its own
                    hint = did_you_mean(word, list(present)) if len(present) < 5000 else ""
                    message = f"{word[:100]!r} is no image of the data set{hint}"
                    found.faults.append(fault("list_unknown_name", path, message, line=at, value=word))
                continue
            if found.parts.setdefault(file, part) != part:
                message = f"{word!r} is in {where[file][0]}:{where[file][1]}, too"
                found.faults.append(fault("list_overlap", path, message, line=at, value=word))
            where.setdefault(file, (path, at))
    for s in examined.samples:
        if s.file not in found.parts:
            if s.file in before:
                found.parts[s.file] = before[s.file]
            else:
                found.faults.append(fault("not_in_lists", s.source, "left out", objects=len(s.objects), images=1))
    return found


def by_own(examined: Examination, before: Mapping[str, str] | None = None) -> Lists:
    """Split as the data set itself is, by its files and folders or else its lists; for `before` see `by_lists`."""
    before = before or {}
    if not any(s.part for s in examined.samples):
        lists = own_lists(examined.tree)
        found = by_lists(examined, lists, before)
        if not lists and not before:
            message = "dataset.split.lists is own, and the data set says of no image to which part it belongs"
            found.faults.append(fault("list_missing", "", message))
        return found
    found = Lists({}, [])
    for s in examined.samples:
        part = s.part or before.get(s.file)
        if part:
            found.parts[s.file] = part
        else:
            message = "left out: the data set does not say to which part it belongs"
            found.faults.append(fault("not_in_lists", s.source, message, objects=len(s.objects), images=1))
    return found


def dealt_anew(examined: Examination) -> Iterator[Fault]:
    """That a data set has parts of its own, where a split passes them over."""
    own = Counter(s.part for s in examined.samples if s.part)
    parts = {part: f"{part} {n} images" for part, n in own.items()} or own_lists(examined.tree)
    if len(parts) > 1:
        named = ", ".join(parts[part] for part in sorted(parts))
        message = f"the data set has parts of its own ({named}), and its images were dealt out anew"
        yield fault("own_parts_unused", "", message, value=",".join(sorted(parts)))


def _without_flag(line: str) -> str:
    first, _, flag = line.rpartition(" ")
    return first.strip() if flag in ("0", "1", "-1") and first else line


# ---- at random


def at_random(blocks: Sequence[Block], share: float) -> dict[str, str]:
    """Hold out about `share` of the images as `val`, so that each class has that share, too; the rest is `train`.

    Stratified for images with several classes (Sechidis, Tsoumakas, Vlahavas 2011): the class with the fewest images
    left is dealt out first, each block to the part that lacks most of it, large blocks before small ones. A class that
    lies in at least two blocks is in both parts whenever that can be had by moving one that has at most half of all
    images. Blocks that have a part already keep it, and count. Gives each block its part; returns part by file.
    """
    free = [b for b in blocks if not b.part]
    if free:
        _deal(blocks, free, share)
        _mend(blocks, free)
    return {file: b.part for b in blocks for file in b.files}


def _side(block: Block) -> str:
    """Parts beside `train` and `val` are evaluated, too."""
    return TRAIN if block.part == TRAIN else VAL


def _deal(blocks: Sequence[Block], free: Sequence[Block], share: float) -> None:
    shares = {TRAIN: 1 - share, VAL: share}
    total = Counter[str]()
    for b in blocks:
        total.update(b.classes)
    lacking = {part: {cls: n * p for cls, n in total.items()} for part, p in shares.items()}
    room = {part: sum(len(b.files) for b in blocks) * p for part, p in shares.items()}

    def count(block: Block) -> None:
        room[_side(block)] -= len(block.files)
        for cls, n in block.classes.items():
            lacking[_side(block)][cls] -= n

    left = Counter[str]()
    holders: dict[str, list[Block]] = {}
    for b in blocks:
        if b.part:
            count(b)
    for b in free:
        left.update(b.classes)
        for cls in b.classes:
            holders.setdefault(cls, []).append(b)
    while left:
        rarest = min(left, key=lambda cls: (left[cls], cls))
        for b in holders[rarest]:
            if b.part:
                continue
            b.part = max((TRAIN, VAL), key=lambda p: (round(lacking[p][rarest], 9), round(room[p], 9), p == TRAIN))
            count(b)
            left.subtract(b.classes)
        del left[rarest]


def _mend(blocks: Sequence[Block], free: Sequence[Block]) -> None:
    """Move single blocks so that no part lacks a class that the other has twice, and none is empty."""
    have: dict[str, Counter[str]] = {TRAIN: Counter(), VAL: Counter()}
    for b in blocks:
        have[_side(b)].update(b.classes.keys())
    half = sum(len(b.files) for b in blocks) / 2

    def move(block: Block, part: str, other: str) -> None:
        block.part = part
        have[part].update(block.classes.keys())
        have[other].subtract(block.classes.keys())

    for cls in sorted(have[TRAIN] | have[VAL], key=lambda c: (have[TRAIN][c] + have[VAL][c], c)):
        for part, other in ((VAL, TRAIN), (TRAIN, VAL)):
            if have[part][cls] or have[other][cls] < 2 or not cls:
                continue
            movable = [b for b in free if b.part == other and cls in b.classes and len(b.files) <= half]
            if movable:
                # One whose other classes stay in both parts, if there is one; small before large.
                least = min(movable, key=lambda b: (any(have[other][c] < 2 for c in b.classes), len(b.files)))
                move(least, part, other)
    for part, other in ((VAL, TRAIN), (TRAIN, VAL)):
        movable = [b for b in free if b.part == other]
        if len(blocks) > 1 and movable and not any(have[part].values()):
            move(min(movable, key=lambda b: len(b.files)), part, other)
