"""Which images train, and which are for evaluation: at random and stratified, or by lists that come with the data.

Both are functions of what the images are, not of the order in which a disk lists them: the same data gives the same
split on every machine. Equal pictures always go to the same part.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from refit.data.examine import Examination
from refit.data.faults import Fault, fault
from refit.data.formats.base import Changed, read_whole
from refit.data.images import SUFFIXES
from refit.data.model import Sample
from refit.data.text import NotText, decode
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
    """The result of `by_lists`: part by sample file, and what was wrong. Samples in no list are not in `parts`."""

    parts: dict[str, str]
    faults: list[Fault]


def by_lists(examined: Examination, lists: Mapping[str, str]) -> Lists:
    """Split by text files below the source, one image a line.

    A line names an image by its file name, its path below the image folder or below the source, each with or without
    its ending (VOC's lists; a flag after the name, as in VOC's lists by class, is passed over where it is not -1).
    """
    found = Lists({}, [])
    names = _aliases({s.name: s.source for s in examined.samples})
    by_source = {s.source: s for s in examined.samples}
    present = _aliases(_all_images(examined))
    where: dict[str, tuple[str, int]] = {}
    for part, path in lists.items():
        for at, line in _lines(examined, path, found.faults):
            word = _image_name(line, present)
            source = names.get(word)
            if source is None:
                if word not in present:  # else it was left out for a fault of its own
                    hint = did_you_mean(word, list(present)) if len(present) < 5000 else ""
                    message = f"{word[:100]!r} is no image of the data set{hint}"
                    found.faults.append(fault("list_unknown_name", path, message, line=at, value=word))
                continue
            file = by_source[source].file
            if found.parts.setdefault(file, part) != part:
                message = f"{word!r} is in {where[file][0]}:{where[file][1]}, too"
                found.faults.append(fault("list_overlap", path, message, line=at, value=word))
            where.setdefault(file, (path, at))
    for s in examined.samples:
        if s.file not in found.parts:
            found.faults.append(fault("not_in_lists", s.source, "left out", objects=len(s.objects), images=1))
    return found


def _all_images(examined: Examination) -> dict[str, str]:
    """Every image file below the image folder, usable or not: its name -> its path."""
    folder = examined.layout.image_dir
    files = (f.path for f in examined.tree.below(folder))
    return {str(PurePosixPath(p).relative_to(folder)): p for p in files if PurePosixPath(p).suffix.lower() in SUFFIXES}


def _aliases(images: Mapping[str, str]) -> dict[str, str]:
    """All the ways to name an image (see `by_lists`) -> its path below the source."""
    out: dict[str, str] = {}
    for name, source in images.items():
        for alias in (name, source):
            out[alias] = source
            out.setdefault(str(PurePosixPath(alias).with_suffix("")), source)
    return out


def _lines(examined: Examination, path: str, faults: list[Fault]) -> Iterator[tuple[int, str]]:
    """The lines of a list that are not empty, with their numbers."""
    path = str(PurePosixPath(path))
    if path not in examined.tree.files:
        hint = did_you_mean(path, [p for p in examined.tree.files if p.endswith(".txt")][:5000])
        faults.append(fault("list_missing", path, f"no such file in {examined.tree.root}{hint}"))
        return
    try:
        text = decode(read_whole(examined.tree, path))
    except NotText as exc:
        faults.append(fault("list_missing", path, str(exc)))
        return
    except Changed:
        raise
    except OSError as exc:
        faults.append(fault("list_missing", path, f"cannot be opened: {exc.strerror}"))
        return
    for at, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield at, line.strip()


def _image_name(line: str, present: Mapping[str, str]) -> str:
    word = line.replace("\\", "/").removeprefix("./")
    if word in present:
        return word
    first, _, flag = word.rpartition(" ")
    return first.strip() if flag in ("0", "1", "-1") and first else word


# ---- at random


def at_random(samples: Sequence[Sample], share: float, seed: int) -> dict[str, str]:
    """Hold out about `share` of the images as `val`, so that each class has that share, too; the rest is `train`.

    Stratified for images with several classes (Sechidis, Tsoumakas, Vlahavas 2011): the class with the fewest images
    left is dealt out first, each image to the part that lacks most of it. A class that lies in at least two different
    pictures is in both parts whenever that can be had by moving one image. Returns part by sample file.
    """
    groups: dict[str, list[Sample]] = {}
    for s in samples:
        groups.setdefault(s.sha256, []).append(s)
    order = sorted(groups, key=lambda sha: hashlib.sha256(f"{seed}:{sha}".encode()).digest())
    # Images without objects are dealt out as a class of their own.
    classes = {sha: {o.cls for s in groups[sha] for o in s.objects} or {""} for sha in order}
    parts = _deal(order, classes, share)
    _mend(order, classes, parts)
    return {s.file: parts[sha] for sha in order for s in groups[sha]}


def _deal(order: Sequence[str], classes: Mapping[str, set[str]], share: float) -> dict[str, str]:
    shares = {TRAIN: 1 - share, VAL: share}
    left = Counter(cls for sha in order for cls in classes[sha])
    lacking = {part: {cls: n * p for cls, n in left.items()} for part, p in shares.items()}
    room = {part: len(order) * p for part, p in shares.items()}
    holders: dict[str, list[str]] = {}
    for sha in order:
        for cls in classes[sha]:
            holders.setdefault(cls, []).append(sha)
    parts: dict[str, str] = {}
    while left:
        rarest = min(left, key=lambda cls: (left[cls], cls))
        for sha in holders[rarest]:
            if sha in parts:
                continue
            part = max((TRAIN, VAL), key=lambda p: (round(lacking[p][rarest], 9), round(room[p], 9), p == TRAIN))
            parts[sha] = part
            room[part] -= 1
            for cls in classes[sha]:
                lacking[part][cls] -= 1
                left[cls] -= 1
        del left[rarest]
    return parts


def _mend(order: Sequence[str], classes: Mapping[str, set[str]], parts: dict[str, str]) -> None:
    """Move single images so that no part lacks a class that the other has twice, and none is empty."""
    have = {part: Counter(cls for sha in order if parts[sha] == part for cls in classes[sha]) for part in (TRAIN, VAL)}
    for cls in sorted(set().union(*classes.values()), key=lambda c: (have[TRAIN][c] + have[VAL][c], c)):
        for part, other in ((VAL, TRAIN), (TRAIN, VAL)):
            if have[part][cls] or have[other][cls] < 2 or not cls:
                continue
            movable = [sha for sha in order if parts[sha] == other and cls in classes[sha]]
            # One whose other classes stay in both parts, if there is one.
            chosen = next((sha for sha in movable if all(have[other][c] > 1 for c in classes[sha])), movable[0])
            _move(chosen, part, other, classes, parts, have)
    for part, other in ((VAL, TRAIN), (TRAIN, VAL)):
        if len(order) > 1 and part not in parts.values():
            _move(order[0], part, other, classes, parts, have)


def _move(
    sha: str,
    part: str,
    other: str,
    classes: Mapping[str, set[str]],
    parts: dict[str, str],
    have: dict[str, Counter[str]],
) -> None:
    parts[sha] = part
    have[part].update(classes[sha])
    have[other].subtract(classes[sha])
