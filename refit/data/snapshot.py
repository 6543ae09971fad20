"""The immutable snapshot of a data set, and the store of images by content below it (docs/contracts.md, "Workspace").

A snapshot appears by one rename and is never changed. Two processes that publish the same data at once both end with
the same snapshot: content decides every name, so the second one finds the first one's work and uses it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

from refit import files
from refit.data import look, statistics
from refit.data.faults import Fault, NoSpace, counts
from refit.data.model import Sample, row_digest, row_digest_2
from refit.data.samples import Samples, flat

SCHEMA = 3
_DIGESTS = {2: row_digest_2, SCHEMA: row_digest}  # of the schemas that can be read; 1 had another fingerprint
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_STALE_SECONDS = 24 * 3600
_CHUNK = 4096  # samples whose statistics are taken at once


@dataclass(frozen=True)
class Snapshot:
    """A published data set. `faults`, `reused`, `changes` (images since the one before, see refit.data.diff) and
    `evaluation` (as in dataset.json) tell of the ingest that returned it."""

    path: Path
    fingerprint: str
    classes: tuple[str, ...]
    splits: Mapping[str, int]
    objects: Mapping[str, int]
    issues: Mapping[str, int]
    faults: tuple[Fault, ...] = ()
    reused: bool = False
    changes: Mapping[str, int] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA


class Store:
    """`datasets/objects/`: each image once, under the sha256 of its bytes. What lies there was decoded whole."""

    def __init__(self, datasets: Path) -> None:
        self.root = datasets / "objects"

    def path(self, sha256: str, suffix: str) -> Path:
        return self.root / sha256[:2] / f"{sha256}{suffix}"

    def holds(self, sha256: str, suffix: str, size: int) -> bool:
        """Whether the image is there in full length (a file that a power cut left short is written anew)."""
        try:
            return os.stat(self.path(sha256, suffix)).st_size == size
        except OSError:
            return False

    def put(self, sha256: str, suffix: str, data: bytes) -> None:
        """Write an image durably and read-only; several writers of the same one do no harm."""
        target = self.path(sha256, suffix)
        os.makedirs(target.parent, exist_ok=True)
        aside = target.with_name(f".{target.name}.tmp-{os.getpid()}-{uuid.uuid4().hex[:8]}")
        try:
            with open(aside, "xb") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
            os.chmod(aside, 0o444)
            os.replace(aside, target)
        finally:
            aside.unlink(missing_ok=True)


def fingerprint(rows: Iterable[Mapping[str, Any]], classes: Sequence[str], schema: int = SCHEMA) -> str:
    """The fingerprint of lines of annotations.jsonl, in any order."""
    found = sorted((str(row["file"]), str(row["split"]), _DIGESTS[schema](row)) for row in rows)
    return fingerprint_of(((split, digest) for _, split, digest in found), classes)


def fingerprint_of(images: Iterable[tuple[str, bytes]], classes: Sequence[str]) -> str:
    """sha256 over the class list, then over the split and the digest (`Sample.digest`) of each image, by file name.

    It covers name, content, size, objects and split of each image, and nothing of the machine or the day.
    """
    found = hashlib.sha256(json.dumps(list(classes), separators=(",", ":")).encode() + b"\n")
    for split, digest in images:
        found.update(b"%b %b\n" % (digest.hex().encode(), split.encode()))
    return found.hexdigest()


def publish(
    datasets: Path,
    samples: Sequence[Sample],
    split: Mapping[str, str],
    classes: Sequence[str],
    faults: Sequence[Fault],
    provenance: Mapping[str, Any],
    evaluation: Mapping[str, Any],
) -> Snapshot:
    """Write the snapshot of samples whose images are all in the store; returns the one that is there afterwards.

    A whole one with the same fingerprint is kept as it is; a broken one is moved aside. Raises NoSpace, OSError.
    """
    samples = by_file(samples)
    name = fingerprint_of(digests(samples, split), classes)
    final = datasets / name
    there = _usable(final)
    if there is None:
        staging = datasets / f".{name}.tmp-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        try:
            with no_space(datasets):
                about = {"evaluation": dict(evaluation), "provenance": dict(provenance)}
                _write(staging, datasets, name, samples, split, classes, faults, about)
            there = _rename(staging, final)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    else:
        there = replace(there, reused=True)
    return replace(there, faults=tuple(faults))


def by_file(samples: Sequence[Sample]) -> Sequence[Sample]:
    """The same in the order of their names in a snapshot."""
    if all(a.file <= b.file for a, b in pairwise(samples)):
        return samples
    names = [s.file for s in samples]
    order = sorted(range(len(names)), key=names.__getitem__)
    return samples.choose(order) if isinstance(samples, Samples) else [samples[at] for at in order]


def digests(samples: Sequence[Sample], split: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:
    """Split and digest of each, as `fingerprint_of` takes them."""
    if isinstance(samples, Samples):
        return ((split[flat(name)], samples.digest(at)) for at, name in enumerate(samples.names()))
    return ((split[s.file], s.digest()) for s in samples)


def open_snapshot(path: Path) -> Snapshot:
    """Read a snapshot's dataset.json. Raises OSError and ValueError for one that is not there or damaged."""
    row = json.loads((path / "dataset.json").read_text(encoding="utf-8"))
    try:
        if row["schema"] not in _DIGESTS:
            raise ValueError(f"{path}: schema {row['schema']}, this version reads {' and '.join(map(str, _DIGESTS))}")
        parts = (row["fingerprint"], tuple(row["classes"]), row["splits"], row["objects"], row["issues"])
        return Snapshot(path, *parts, schema=row["schema"])
    except (KeyError, TypeError) as exc:
        raise ValueError(f"{path / 'dataset.json'}: not a snapshot's: {exc!r}") from None


def read_annotations(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a snapshot's annotations.jsonl."""
    with open(path / "annotations.jsonl", encoding="utf-8") as f:
        for line in f:
            yield json.loads(line)


def _statistics(samples: Sequence[Sample], split: Mapping[str, str], classes: Sequence[str]) -> dict[str, Any]:
    tally = statistics.Tally(classes)
    for start in range(0, len(samples), _CHUNK):
        part = list(samples[start : start + _CHUNK])
        table = statistics.Table.of((s.as_json(split[s.file]) for s in part), classes, named=False)
        tally.add(table, [look.unpack(s.look).brightness for s in part if s.look])
    return tally.result()


def read_statistics(path: Path) -> dict[str, Any]:
    """A snapshot's statistics.json (`refit.data.statistics`); of one without it, made anew.

    Raises OSError and ValueError for what is no snapshot.
    """
    try:
        found: dict[str, Any] = json.loads((path / "statistics.json").read_text(encoding="utf-8"))
        if found.get("schema") == statistics.SCHEMA:
            return found
    except FileNotFoundError:
        pass
    return statistics.of_rows(list(read_annotations(path)), open_snapshot(path).classes)


def verify(path: Path) -> str:
    """A light check of a snapshot: labels by the fingerprint, images by being there. Gives what is wrong, or ""."""
    try:
        snapshot = open_snapshot(path)
        digest = _DIGESTS[snapshot.schema]
        images = ((row["split"], digest(row)) for row in read_annotations(path))
        if snapshot.fingerprint != path.name or fingerprint_of(images, snapshot.classes) != snapshot.fingerprint:
            return "its labels do not give its fingerprint"
        for row in read_annotations(path):
            if os.stat(path / "images" / row["file"]).st_size == 0:
                return f"images/{row['file']} is empty"
    except (OSError, ValueError, KeyError, TypeError) as exc:
        return str(exc)
    return ""


def clean(datasets: Path) -> None:
    """Remove what ingests that were killed left behind, once it is a day old."""
    for path in datasets.glob(".*.tmp-*"):
        try:
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            continue


class no_space:
    """Turns "disk full" into NoSpace, which names the place and says what to do."""

    def __init__(self, folder: Path, needed: int = 0) -> None:
        self.folder, self.needed = folder, needed

    def __enter__(self) -> None:
        if self.needed and self.needed > shutil.disk_usage(self.folder).free:
            raise self._error()

    def __exit__(self, kind: Any, exc: BaseException | None, trace: Any) -> None:
        if isinstance(exc, OSError) and exc.errno in _FULL:
            raise self._error() from exc

    def _error(self) -> NoSpace:
        free = shutil.disk_usage(self.folder).free // 2**20
        needed = f", {self.needed // 2**20 + 1} MiB are needed" if self.needed else ""
        return NoSpace(
            f"No space left on device: {self.folder} has {free} MiB free{needed}; "
            "remove old runs and snapshots, or move the workspace (REFIT_WORKSPACE)"
        )


def _write(
    staging: Path,
    datasets: Path,
    name: str,
    samples: Sequence[Sample],
    split: Mapping[str, str],
    classes: Sequence[str],
    faults: Sequence[Fault],
    more: Mapping[str, Any],
) -> None:
    store = Store(datasets)
    (staging / "images").mkdir(parents=True)
    for s in samples:
        files.link_or_copy(store.path(s.sha256, PurePosixPath(s.file).suffix.lower()), staging / "images" / s.file)
    write_lines(staging / "annotations.jsonl", rows(samples, split))
    write_lines(staging / "issues.jsonl", (f.as_json() for f in faults))
    files.write_json(staging / "statistics.json", _statistics(samples, split, classes))
    about = {"schema": SCHEMA, "fingerprint": name, **facts(rows(samples, split), classes, faults), **more}
    files.write_json(staging / "dataset.json", about)
    files.sync_folder(staging / "images")


def rows(samples: Iterable[Sample], split: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Their lines of annotations.jsonl."""
    return (s.as_json(split[s.file]) for s in samples)


def facts(rows: Iterable[Mapping[str, Any]], classes: Sequence[str], faults: Sequence[Fault]) -> dict[str, Any]:
    """What dataset.json says of the images and objects of these lines of annotations.jsonl; `images` is what all have
    in common: how many of each ending, and the smallest and largest sides, pixels."""
    splits, objects, endings = Counter[str](), Counter[str](), Counter[str]()
    sides: dict[str, list[int]] = {"width": [], "height": []}
    for row in rows:
        splits[str(row["split"])] += 1
        objects.update(str(o["class"]) for o in row["objects"])
        endings[PurePosixPath(str(row["file"])).suffix.lower()] += 1
        for name, found in sides.items():
            value = int(row[name])
            found[:] = [min(*found, value), max(*found, value)] if found else [value, value]
    return {
        "classes": list(classes),
        "splits": dict(sorted(splits.items(), key=lambda kv: (kv[0] != "train", kv[0] != "val", kv[0]))),
        "objects": {c: objects[c] for c in classes},
        "images": {"extensions": dict(endings.most_common()), **sides},
        "issues": counts(faults),
    }


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """A JSON object a line, synced; for files in a folder that is not published yet."""
    with open(path, "w", encoding="utf-8") as f:
        for row in rows:
            f.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
        f.flush()
        os.fsync(f.fileno())


def _rename(staging: Path, final: Path) -> Snapshot:
    """Put the snapshot in its place; the one that another process put there first is used in its stead."""
    for _ in range(10):
        try:
            os.rename(staging, final)
            files.sync_folder(final.parent)
            return open_snapshot(final)
        except OSError as exc:
            if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        there = _usable(final)
        if there is not None:
            return replace(there, reused=True)
    raise OSError(errno.EEXIST, "something else keeps taking the snapshot's place", str(final))


def _usable(final: Path) -> Snapshot | None:
    """The whole snapshot at this place, or None; a broken one is moved aside first."""
    if not final.is_dir():
        return None
    if not verify(final):
        return open_snapshot(final)
    with contextlib.suppress(FileNotFoundError):  # another process did it
        os.rename(final, final.with_name(f"{final.name}.broken-{uuid.uuid4().hex[:8]}"))
    return None
