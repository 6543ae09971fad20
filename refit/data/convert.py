"""A data set, or the snapshot of a run, in another format.

Nothing half-written stays: all is made in a hidden folder beside the target, which then gets its name by one rename.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refit.data import snapshot, split
from refit.data.checks import Classes
from refit.data.codes import Severity
from refit.data.examine import Examination, Progress, changed, examine, unchanged
from refit.data.faults import BadData, Fault, fault, graded
from refit.data.formats import WRITERS
from refit.data.formats.base import Changed, Record, own_lists, read_whole, tags_besides
from refit.data.model import Box
from refit.data.tree import scan
from refit.files import link_or_copy, sync_folder
from refit.specs import did_you_mean

SNAPSHOT = "snapshot"
_SHOWN = 20  # names of classes in a message
_KEEP_TAGS = frozenset({"supervisely"})  # formats with a place for an image's tags


@dataclass(slots=True)
class Source:
    """What is to be written: `paths` gives each record's image by its name, `inside` that of one that is no file."""

    format: str
    records: list[Record]
    classes: list[str]
    paths: dict[str, Path]
    faults: list[Fault] = field(default_factory=list)
    examined: Examination | None = None
    inside: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Converted:
    """What was written. `not_held`: what the format has no place for -> how many objects (or images) lose it."""

    images: int
    objects: Mapping[str, int]
    parts: Mapping[str, int]
    not_held: Mapping[str, int]


def is_snapshot(path: Path) -> bool:
    return (path / "dataset.json").is_file() and (path / "annotations.jsonl").is_file()


def from_snapshot(path: Path) -> Source:
    """A run's snapshot with its split; it was checked when it was made. Raises BadData where it is not whole."""
    try:
        about = snapshot.open_snapshot(path)
        rows = list(snapshot.read_annotations(path))
        if snapshot.fingerprint(rows, about.classes, about.schema) != about.fingerprint:
            raise ValueError("its labels do not give its fingerprint")
        records = [_record(row) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise BadData(
            str(path), [fault("label_unreadable", "annotations.jsonl", f"not a whole snapshot: {exc}")]
        ) from None
    paths = {r.name: path / "images" / r.name for r in records}
    return Source(SNAPSHOT, records, list(about.classes), paths)


def _record(row: Mapping[str, Any]) -> Record:
    objects = [Box.from_json(o) for o in row["objects"]]
    tags = tags_besides(row.get("tags", ()))
    return Record(row["file"], row["width"], row["height"], row["sha256"], row["split"], objects, tags)


def from_folder(
    path: Path,
    *,
    format: str | None = None,
    image_dir: str | None = None,
    label_dir: str | None = None,
    class_map: Mapping[str, str | None] | None = None,
    max_bad_labels: float = 0.01,
    severity: Mapping[str, Severity] | None = None,
    lists: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Source:
    """A data set in any format that is read, with the parts that it has itself, or that `lists` gives.

    Raises BadData with everything found where a run would refuse it.
    """
    class_map = class_map or {}
    examined = examine(
        path,
        format=format,
        image_dir=image_dir,
        label_dir=label_dir,
        classes=Classes(None, class_map),
        max_bad_labels=max_bad_labels,
        severity=severity,
        leave=lists.values() if lists else own_lists(scan(path)).values() if path.is_dir() else (),
        progress=progress,
    )
    parts = _parts(examined, lists, severity or {})
    examined.faults = [*_unmatched(class_map, examined), *examined.faults]
    if examined.failed():
        raise BadData(str(path), examined.faults)
    seen = Counter(o.cls for s in examined.samples for o in s.objects)
    named = [class_map.get(name, name) for name in examined.names]
    classes = list(dict.fromkeys([*(n for n in named if n is not None), *sorted(seen)]))
    records = [
        Record(s.name, s.width, s.height, s.sha256, parts.get(s.file), s.objects, tags_besides(s.tags))
        for s in examined.samples
    ]
    paths = {s.name: path / s.source for s in examined.samples if s.source in examined.tree.files}
    inside = {s.name: s.source for s in examined.samples if s.source not in examined.tree.files}
    return Source(examined.format, records, classes, paths, examined.faults, examined, inside)


def _unmatched(class_map: Mapping[str, str | None], examined: Examination) -> Iterator[Fault]:
    """A fault for each name to be mapped that the data set does not have: a typo would go unnoticed."""
    known = sorted({*examined.labels, *examined.names})
    here = ", ".join(known[:_SHOWN]) + f" and {len(known) - _SHOWN} more" * (len(known) > _SHOWN)
    for old in [name for name in class_map if name not in known]:
        message = f"nothing is called {old!r}, which is to be mapped; here are {here or 'no classes'}"
        advice = f"correct the name, or leave it out{did_you_mean(old, known)}"
        yield fault("unknown_class", "", message, value=old, advice=advice)


def _parts(
    examined: Examination, lists: Mapping[str, str] | None, severity: Mapping[str, Severity]
) -> dict[str, str | None]:
    """The part of each sample by its `file`; samples in no list stay, without a part."""
    own: dict[str, str | None] = {s.file: s.part for s in examined.samples}
    if lists is None and not any(own.values()):
        lists = own_lists(examined.tree)
    if not lists:
        return own
    try:
        listed = split.by_lists(examined, lists)
    except Changed as exc:
        raise changed(examined.tree.root, str(exc)) from None
    told = (f for f in listed.faults if f.code != "not_in_lists")
    examined.faults = graded([*examined.faults, *graded(told, severity)], {})
    return dict(listed.parts)


def write(source: Source, out: Path, to: str, *, copy: bool = False, progress: Progress | None = None) -> Converted:
    """Write `source` to `out` in the format `to`; images are hard links where they can be, unless `copy`.

    Raises BadData where the format cannot hold it, FileExistsError where `out` holds something, NoSpace, OSError.
    """
    check_target(out)
    out = Path(os.path.abspath(out))
    writer = WRITERS[to]
    os.makedirs(out.parent, exist_ok=True)
    staging = out.with_name(f".{out.name}.tmp-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        with snapshot.no_space(out.parent):
            staging.mkdir()
            not_held = writer.write(staging, source.records, source.classes, lambda r: _bytes(source, r))
            if to not in _KEEP_TAGS:
                not_held += Counter(tags=sum(bool(r.tags) for r in source.records))
            if writer.image_dir is not None:
                _images(source, staging / writer.image_dir, copy, progress)
            sync_folder(staging)
        if source.examined is not None:
            unchanged(source.examined.tree, source.examined.recalled)
        os.rename(staging, out)
        sync_folder(out.parent)
    except Changed as exc:
        raise changed(out, str(exc)) from None
    except OSError as exc:
        if exc.errno in (errno.ENOTEMPTY, errno.EEXIST):  # something came there meanwhile
            raise FileExistsError(errno.EEXIST, "holds something already", str(out)) from None
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    objects = Counter(o.cls for r in source.records for o in r.objects)
    parts = Counter(r.part or "" for r in source.records)
    return Converted(
        len(source.records), {c: objects[c] for c in source.classes}, dict(sorted(parts.items())), not_held
    )


def check_target(out: Path) -> None:
    """Raises FileExistsError unless `out` is an empty folder or is not there."""
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise FileExistsError(errno.EEXIST, "holds something already; name a new or empty folder", str(out))


def _images(source: Source, folder: Path, copy: bool, progress: Progress | None) -> None:
    made: set[Path] = set()
    for done, record in enumerate(source.records, 1):
        target = folder / record.name
        if target.parent not in made:
            target.parent.mkdir(parents=True, exist_ok=True)
            made.add(target.parent)
        if record.name in source.inside:
            target.write_bytes(_bytes(source, record))
        elif copy:
            shutil.copyfile(source.paths[record.name], target)
        else:
            link_or_copy(source.paths[record.name], target)
        if progress:
            progress(done, len(source.records))
    for path in made:
        sync_folder(path)


def _bytes(source: Source, record: Record) -> bytes:
    """A record's image, as it was checked. Raises Changed."""
    if source.examined and record.name in source.inside:
        return read_whole(source.examined.tree, source.inside[record.name])
    path = source.paths[record.name]
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != record.sha256:
        raise Changed(f"{path} has other bytes than when it was checked")
    return data
