"""The frozen evaluation set: what was evaluated once is evaluated for ever, and never trains (docs/data/split.md).

`evaluation/` of a pipeline's workspace remembers the bytes (sha256) and the groups of every image that ever was in it,
so that neither another name, nor a removal and a return, nor a relative of the same group brings it into training. What
figures were measured on is a version: the sha256 of the images of all parts but `train`, with their objects. Figures
of two versions are not compared; where the version changes that is said.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from refit import files
from refit.command import StageError
from refit.data import groups, split
from refit.data.faults import Fault, fault
from refit.data.groups import Block
from refit.data.model import Sample
from refit.data.settings import Split

SCHEMA = 1
FOLDER, LEDGER = "evaluation", "ledger.json"
_DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError)
SHOWN = 12  # characters of a version in messages
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})


@dataclass(frozen=True, slots=True)
class Held:
    """An image that was evaluated: in which part, and which groups it had."""

    split: str
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Measured:
    """An image of a version: its part, and a digest of its objects."""

    split: str
    labels: str


@dataclass(frozen=True)
class Memory:
    """The ledger: every image held, by sha256, and the last version. Empty before the first.

    `names` are the parts of the images of the last data set that were evaluated, by their plain names.
    """

    held: Mapping[str, Held] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    version: str = ""
    history: tuple[Mapping[str, Any], ...] = ()
    folder: Path = Path()
    stamp: str = ""  # of the file as it was read

    def told(self, about: Mapping[str, Any], fingerprint: str) -> Mapping[str, Any]:
        """What is told of the evaluation set of a data set that is taken once more. `about` is what its dataset.json
        says; the version before is the one that the ledger has, for the data set with which today's version began."""
        if about.get("version") != self.version:  # not held here: `evaluation: fresh`
            return about
        began = self.history[-1] if self.history else {}
        previous = began.get("previous") if began.get("data") == fingerprint else None
        known = {name: value for name, value in about.items() if name != "previous"}
        return {**known, "previous": previous} if previous else known

    def images(self) -> dict[str, Measured]:
        """What the last version is made of. Raises StageError."""
        path = self.folder / f"{self.version}.json"
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))["images"]
            return {sha256: Measured(part, labels) for sha256, (part, labels) in rows.items()}
        except _DAMAGED as exc:
            raise _damaged(path, exc) from None


@dataclass(slots=True)
class Division:
    """The part of each sample by its `file`; those that are left out are not in it, the faults say why."""

    parts: dict[str, str]
    faults: list[Fault] = field(default_factory=list)


# ---- which images


def divide(samples: Sequence[Sample], by: Split, memory: Memory, trained: Collection[str] | None = None) -> Division:
    """Split so that what is held is evaluated, and all else trains; the first time by `split.at_random`.

    An image is held by its bytes, or by the name of an image of the last version (a picture that was encoded anew).
    Others of its group are left out, unless `evaluation_grow`. The set takes in more images where

    - a class has objects and none of them is in `val`: the share `val` of the images with that class;
    - `evaluation_grow`: so many new ones that `val` comes near its share. What trained last stays: `trained` are its
      sha256 (None: not known, then nothing is new).
    """
    evaluated = _evaluated(samples, memory)
    blocks = groups.blocks(samples, by.seed)
    faults = list(groups.too_large(blocks, by.val))
    relatives = _relatives(blocks, evaluated, memory)
    if by.evaluation_grow:
        evaluated |= dict.fromkeys(relatives, split.VAL)
    elif relatives:
        faults += _left_out(samples, relatives)
        samples = [s for s in samples if s.file not in relatives]
        blocks = groups.blocks(samples, by.seed)
    known = {s.file for s in samples if trained is None or s.sha256 in trained} if by.evaluation_grow else None
    for b in blocks if memory.held else ():
        new = known is not None and known.isdisjoint(b.files)
        b.part = next((evaluated[f] for f in b.files if f in evaluated), "" if new else split.TRAIN)
    parts = split.at_random(blocks, by.val)
    if _complete(blocks, by.val):
        parts = {file: b.part for b in blocks for file in b.files}
    parts |= {file: part for file, part in evaluated.items() if file in parts}
    val = sum(part == split.VAL for part in parts.values())
    if memory.held and not by.evaluation_grow and val < by.val * len(parts) / 2:
        share = f"{val} of {len(parts)} images are evaluated ({val / len(parts):.2g})"
        faults.append(fault("evaluation_small", "", f"{share}, split.val is {by.val:g}"))
    return Division(parts, faults)


def _evaluated(samples: Sequence[Sample], memory: Memory) -> dict[str, str]:
    """The part of each sample that is held, by its `file`."""
    by_name = {s.sha256: memory.names[s.file] for s in samples if s.file in memory.names}
    found = {}
    for s in samples:
        held = memory.held.get(s.sha256)
        part = held.split if held else by_name.get(s.sha256)
        if part:
            found[s.file] = part
    return found


def _relatives(blocks: Sequence[Block], evaluated: Mapping[str, str], memory: Memory) -> dict[str, str]:
    """Images that are not held, but share a group with one that is: file -> the group."""
    held = {g for h in memory.held.values() for g in h.groups}
    found: dict[str, str] = {}
    for b in blocks:
        if len(b.files) > 1 or b.groups:
            others = [f for f in b.files if f not in evaluated]
            if len(others) < len(b.files) or b.groups & held:
                found |= dict.fromkeys(others, min(b.groups & held or b.groups, default=""))
    return found


def _left_out(samples: Sequence[Sample], relatives: Mapping[str, str]) -> Iterator[Fault]:
    by_group: dict[str, list[Sample]] = {}
    for s in samples:
        if s.file in relatives:
            by_group.setdefault(relatives[s.file], []).append(s)
    for group, members in sorted(by_group.items()):
        what = f"{len(members)} images of group {group!r}, which is evaluated, are left out"
        objects = sum(len(s.objects) for s in members)
        message = f"{what}, for example {members[0].source}"
        yield fault("evaluation_relative", "", message, value=group, objects=objects, images=len(members))


def _complete(blocks: Sequence[Block], share: float) -> bool:
    """Take images into `val` for classes that it lacks, until no more can be had: a second call changes nothing.

    Gives whether there were any.
    """
    more = False
    while True:
        seen = {cls for b in blocks if b.part == split.VAL for cls in b.classes}
        lacking = {cls for b in blocks for cls in b.classes} - seen - {""}
        free = [b for b in blocks if b.part == split.TRAIN and not lacking.isdisjoint(b.classes)]
        for b in free:
            b.part = ""
        if free:
            split.at_random(blocks, share)
        if not any(b.part == split.VAL for b in free):
            return more
        more = True


def held_back(samples: Sequence[Sample], parts: Mapping[str, str], memory: Memory) -> Iterator[tuple[str, Fault]]:
    """Images that a list would train and that were evaluated before: (file, fault); they are to be left out."""
    for s in samples:
        if parts.get(s.file) == split.TRAIN and s.sha256 in memory.held:
            message = f"a list trains it, but it was evaluated before (in {memory.held[s.sha256].split})"
            yield s.file, fault("evaluated_before", s.source, message, objects=len(s.objects), images=1)


def across(samples: Sequence[Sample], parts: Mapping[str, str], memory: Memory) -> Iterator[Fault]:
    """Groups with images on both sides of given lists, now or before."""
    sides: dict[str, set[bool]] = {g: {True} for h in memory.held.values() for g in h.groups}
    for s in samples:
        if s.file in parts:
            for group in s.groups:
                sides.setdefault(group, set()).add(parts[s.file] != split.TRAIN)
    for group in sorted({g for s in samples for g in s.groups}):
        if len(sides.get(group, ())) == 2:
            yield fault("group_across_splits", "", f"group {group!r} trains and is evaluated", value=group)


# ---- versions


def measured(samples: Sequence[Sample], parts: Mapping[str, str]) -> dict[str, Measured]:
    """What the figures of a split rest on: sha256 -> part and objects of each image that does not train."""
    found: dict[str, Measured] = {}
    for s in samples:
        part = parts.get(s.file, split.TRAIN)
        if part != split.TRAIN:
            objects = sorted(json.dumps(o.as_json(), sort_keys=True) for o in s.objects)
            digest = hashlib.sha256("\n".join(objects).encode()).hexdigest()[:16]
            known = found.get(s.sha256)
            if known is not None:  # the same picture again: it counts twice
                digest = hashlib.sha256(f"{known.labels} {digest}".encode()).hexdigest()[:16]
            found[s.sha256] = Measured(part, digest)
    return found


def version(images: Mapping[str, Measured]) -> str:
    """The version's name: equal where equal pictures with equal objects are measured, whatever their names."""
    rows = sorted(f"{m.split} {sha256} {m.labels}\n" for sha256, m in images.items())
    return hashlib.sha256("".join(rows).encode()).hexdigest()


def changes(before: Mapping[str, Measured], now: Mapping[str, Measured]) -> str:
    """What is different between two versions, in words."""
    both = before.keys() & now.keys()
    counts = {
        "added": len(now.keys() - before.keys()),
        "gone": len(before.keys() - now.keys()),
        "with other labels": sum(before[k].labels != now[k].labels for k in both),
        "in another part": sum(before[k].split != now[k].split for k in both),
    }
    return ", ".join(f"{n} {what}" for what, n in counts.items() if n)


def changed(before: str, now: str, why: str) -> Fault:
    message = f"the evaluation set is another one than before ({why}): version {before[:SHOWN]} -> {now[:SHOWN]}"
    return fault("evaluation_changed", "", f"{message}; their figures cannot be compared", value=f"{before} {now}")


# ---- on disk


def read(folder: Path) -> Memory:
    """The memory in `<workspace>/<pipeline>/evaluation`; empty where there is none.

    Raises StageError for a damaged one: to begin anew in silence would train on what was evaluated.
    """
    path = folder / LEDGER
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Memory()
    try:
        row = json.loads(text)
        if row["schema"] != SCHEMA:
            raise ValueError(f"schema {row['schema']}, this version reads {SCHEMA}")
        held = {sha256: Held(part, tuple(groups)) for sha256, (part, *groups) in row["held"].items()}
        return Memory(held, row["names"], row["version"], tuple(row["history"]), folder, _stamp(text))
    except _DAMAGED as exc:
        raise _damaged(path, exc) from None


def _damaged(path: Path, exc: Exception) -> StageError:
    return StageError(
        f"{path}: cannot be read ({exc!r}): it says which images may never train; restore it, or rename the folder "
        "to draw a new evaluation set (figures of before are then of another version)"
    )


def _stamp(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def record(
    folder: Path,
    memory: Memory,
    samples: Sequence[Sample],
    parts: Mapping[str, str],
    why: str,
    *,
    data: str = "",
    previous: str = "",
) -> bool:
    """Hold what is evaluated now, and keep its version. False where someone else wrote since `memory` was read.

    A new version notes the fingerprint of the data set with which it began (`data`), and the version before it.
    Nothing is ever taken out of the memory.
    """
    images = measured(samples, parts)
    name = version(images)
    names = {s.file: part for s in samples if (part := parts.get(s.file, split.TRAIN)) != split.TRAIN}
    held = dict(memory.held)
    for s in samples:
        if s.file in names:  # with the groups that it once had, and those of the same picture under other names
            known = held.get(s.sha256, Held("")).groups
            held[s.sha256] = Held(names[s.file], tuple(sorted({*known, *s.groups})))
    os.makedirs(folder, exist_ok=True)
    with _alone(folder):
        try:
            stamp = _stamp((folder / LEDGER).read_text(encoding="utf-8"))
        except FileNotFoundError:
            stamp = ""
        if stamp != memory.stamp:
            return False
        if (name, held, names) == (memory.version, memory.held, memory.names):
            return True
        _write_version(folder / f"{name}.json", name, images, samples, parts)
        history = list(memory.history)
        if name != memory.version:
            when = datetime.now(UTC).isoformat(timespec="seconds")
            row = {"version": name, "at": when, "images": len(images), "why": why, "data": data, "previous": previous}
            history.append(row)
        rows = {sha256: [h.split, *h.groups] for sha256, h in held.items()}
        ledger = {"schema": SCHEMA, "version": name, "history": history, "names": names, "held": rows}
        files.write_text(folder / LEDGER, json.dumps(ledger) + "\n")
    return True


def _write_version(
    path: Path, name: str, images: Mapping[str, Measured], samples: Sequence[Sample], parts: Mapping[str, str]
) -> None:
    if path.exists():
        return
    evaluated = [s for s in samples if parts.get(s.file, split.TRAIN) != split.TRAIN]
    rows = {sha256: [m.split, m.labels] for sha256, m in sorted(images.items())}
    about = {
        "schema": SCHEMA,
        "version": name,
        "splits": dict(Counter(parts[s.file] for s in evaluated)),
        "objects": dict(sorted(Counter(o.cls for s in evaluated for o in s.objects).items())),
        "images": rows,
    }
    files.write_text(path, json.dumps(about) + "\n")


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One writer at a time; where a file system has no locks, two at the same moment may still meet."""
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o664)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as exc:
            if exc.errno not in _NO_LOCKS:
                raise
        yield
    finally:
        os.close(descriptor)
