"""Which images belong together: those of one video, camera or place (`split.group`), and equal pictures.

Frames of one video are nearly the same picture: with some of them in training, the others measure memory.
"""

from __future__ import annotations

import csv
import hashlib
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, MutableSequence, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from pathlib import PurePosixPath

from refit.data.examine import Examination
from refit.data.faults import Fault, fault
from refit.data.formats.base import Changed, read_whole
from refit.data.model import Sample
from refit.data.names import of_images, of_samples
from refit.data.samples import Samples
from refit.data.settings import Split
from refit.data.text import NotText, decode
from refit.specs import did_you_mean


@dataclass(slots=True)
class Block:
    """Images that a split may not part: their plain names, and which part they are in ("": none yet).

    `id` is the least sha256 of their bytes. `classes` counts the images with each class, "" those without objects.
    """

    id: str
    files: tuple[str, ...]
    classes: Mapping[str, int]
    groups: frozenset[str]
    part: str = ""


def assign(examined: Examination, split: Split) -> tuple[Sequence[Sample], list[Fault]]:
    """The samples with their groups, and what is wrong with those. Raises Changed."""
    by = split.group
    faults: list[Fault] = []
    find: Callable[[Sample], tuple[str, ...]]
    if by is None and isinstance(examined.samples, Samples):
        return examined.samples, faults  # fresh from `examine`: no groups, and packed
    if by is None:
        return [replace(s, groups=()) if s.groups else s for s in examined.samples], faults
    if isinstance(by, str):
        find = _folder if by == "folder" else _tags
    elif by.file is not None:
        find = _by_file(examined, str(PurePosixPath(by.file)), faults)
    else:
        find = _by_pattern(by.name_prefix, by.tag)
    samples = [replace(s, groups=find(s)) for s in examined.samples]
    alone = [s for s in samples if not s.groups]
    if samples and len(alone) == len(samples):
        message = f"split.group: no image has a group, for example {alone[0].source} (tags: {_shown(alone[0].tags)})"
        faults.append(fault("group_missing", "", message))
    elif alone:
        message = f"{len(alone)} of {len(samples)} images are in no group, for example {alone[0].source}"
        faults.append(fault("not_in_group", "", message, value=alone[0].source))
    return samples, faults


def _shown(tags: Iterable[str]) -> str:
    return ", ".join(tags) or "none"


def _folder(sample: Sample) -> tuple[str, ...]:
    return (str(PurePosixPath(sample.name).parent),)


def _tags(sample: Sample) -> tuple[str, ...]:
    return tuple(sorted(set(sample.tags)))


def _by_pattern(name: str | None, tag: str | None) -> Callable[[Sample], tuple[str, ...]]:
    pattern = re.compile(name if name is not None else tag or "")

    def find(sample: Sample) -> tuple[str, ...]:
        if name is not None:
            found = [pattern.match(PurePosixPath(sample.name).name)]
        else:
            found = [pattern.fullmatch(t) for t in sample.tags]
        return tuple(sorted({m[1] for m in found if m and m[1] is not None}))

    return find


def _by_file(examined: Examination, path: str, faults: list[Fault]) -> Callable[[Sample], tuple[str, ...]]:
    """Groups by a table; an image that was taken before and is not in the new table keeps those it has."""
    rows = _table(examined, path, faults)
    names = of_samples(examined.samples)
    other = of_images(examined)
    found: dict[str, set[str]] = {}
    unknown = []
    for name, group in rows:
        file = names.get(name)
        if file is not None:
            found.setdefault(file, set()).add(group)
        elif name not in other:
            unknown.append(name)
    if unknown:
        message = f"{len(unknown)} names are of no image here, for example {unknown[0][:100]!r}"
        faults.append(fault("group_unknown_name", path, message, value=unknown[0]))
    return lambda s: tuple(sorted(found[s.file])) if s.file in found else s.groups


def _table(examined: Examination, path: str, faults: list[Fault]) -> list[tuple[str, str]]:
    """(image, group) of each line of a CSV file; faults name what cannot be read."""
    if path not in examined.tree.files:
        hint = did_you_mean(path, [p for p in examined.tree.files if p.endswith((".csv", ".txt"))][:5000])
        faults.append(fault("group_missing", path, f"no such file in {examined.tree.root}{hint}"))
        return []
    try:
        text = decode(read_whole(examined.tree, path))
    except Changed:
        raise
    except (NotText, OSError) as exc:
        faults.append(fault("group_missing", path, str(exc)))
        return []
    found = []
    reader = csv.reader(text.splitlines())
    try:
        for row in reader:
            cells = [c.strip() for c in row]
            if not any(cells) or (reader.line_num == 1 and [c.lower() for c in cells] == ["image", "group"]):
                continue
            if len(cells) != 2 or not all(cells):
                message = f"{','.join(cells)[:100]!r} is not `image,group`"
                faults.append(fault("group_missing", path, message, line=reader.line_num))
                continue
            found.append((cells[0].replace("\\", "/").removeprefix("./"), cells[1]))
    except csv.Error as exc:
        faults.append(fault("group_missing", path, f"is no CSV: {exc}", line=reader.line_num))
    return found


def blocks(samples: Sequence[Sample], seed: int) -> list[Block]:
    """The samples as blocks: equal bytes, or a group in common, over any number of steps. The largest come first.

    Blocks of one size come in an order that the seed decides, and not the order of the samples.
    """
    leader = array("q", range(len(samples)))
    for one, other in pairwise(sorted(leader, key=lambda at: samples[at].sha256)):
        if samples[one].sha256 == samples[other].sha256:
            _join(leader, one, other)
    first: dict[str, int] = {}
    for at, s in enumerate(samples):
        for group in s.groups:
            _join(leader, first.setdefault(group, at), at)

    def root(at: int) -> int:
        return _find(leader, at)

    mixes: dict[frozenset[tuple[str, int]], Mapping[str, int]] = {}
    together = groupby(sorted(range(len(samples)), key=root), root)
    made = [_block([samples[at] for at in members], mixes) for _, members in together]
    made.sort(key=lambda b: hashlib.sha256(f"{seed}:{b.id}".encode()).digest())
    made.sort(key=lambda b: -len(b.files))
    return made


def _block(members: Sequence[Sample], mixes: dict[frozenset[tuple[str, int]], Mapping[str, int]]) -> Block:
    classes = Counter(cls for s in members for cls in ({o.cls for o in s.objects} or {""}))
    groups = frozenset(g for s in members for g in s.groups)
    mix = mixes.setdefault(frozenset(classes.items()), classes)  # few there are, many blocks have the same
    return Block(min(s.sha256 for s in members), tuple(sorted(s.file for s in members)), mix, groups)


def _find(leader: MutableSequence[int], at: int) -> int:
    while leader[at] != at:
        leader[at] = leader[leader[at]]
        at = leader[at]
    return at


def _join(leader: MutableSequence[int], one: int, other: int) -> None:
    leader[_find(leader, other)] = _find(leader, one)


def too_large(found: Sequence[Block], share: float) -> Iterable[Fault]:
    """A block that leaves less than the share for the evaluation, whatever side it is on."""
    total = sum(len(b.files) for b in found)
    largest = max(found, key=lambda b: len(b.files), default=None)
    if largest is None or not largest.groups or len(largest.files) <= (1 - share) * total:
        return
    named = sorted(largest.groups)
    what = f"group {named[0]!r} holds" if len(named) == 1 else f"{len(named)} groups, joined by common images, hold"
    message = f"{what} {len(largest.files)} of {total} images: no split of {share:g} can be had"
    found_it = fault("group_too_large", "", message, value=named[0])
    yield replace(found_it, severity="error") if len(found) == 1 else found_it  # then there is no split at all
