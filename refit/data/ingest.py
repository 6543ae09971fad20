"""Take a data set in: read, check, split, and publish it as an immutable snapshot.

Nothing is written before the data is known to be good, but for the list of faults of a data set that is refused. The
source is only read; that it stayed as it was is checked at the end of reading and again before the snapshot appears.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from refit.data import checks, snapshot, split
from refit.data.arrival import signature
from refit.data.examine import Examination, Known, Progress, changed, examine, ordered, unchanged
from refit.data.faults import BadData, Fault, graded
from refit.data.formats.base import Changed, read_whole
from refit.data.model import Sample
from refit.data.settings import DatasetSettings
from refit.data.snapshot import Snapshot


def ingest(source: Path, settings: DatasetSettings, workspace: Path, *, progress: Progress | None = None) -> Snapshot:
    """Take the data set in `source` into the pipeline's `workspace` (the folder that holds `datasets/`).

    The same data and settings give the same fingerprint, and the snapshot that is there already. Safe to run several
    times at once. `progress(done, total)` is called while images are read.

    Raises:
        BadData: the data cannot be used; carries every fault, the message shows the first and where the list is.
        NoSpace: the workspace's disk is full; nothing half-written stays but images in the store, whole ones.
    """
    source, datasets = Path(source), Path(workspace) / "datasets"
    with snapshot.no_space(_existing(datasets)):
        os.makedirs(datasets, exist_ok=True)
    snapshot.clean(datasets)
    store = snapshot.Store(datasets)
    try:
        examined, parts, samples = _read(source, settings, store.holds, progress)
    except BadData as exc:
        raise _reported(exc, datasets) from None
    _fill(store, examined, samples)
    unchanged(examined.tree)
    return snapshot.publish(
        datasets, samples, parts, settings.classes, examined.faults, _provenance(examined, settings)
    )


def look(source: Path, settings: DatasetSettings) -> tuple[dict[str, Any], list[Fault]]:
    """What `dataset.json` would say of the data set in `source` (`snapshot.facts`), and what it lost or had changed;
    nothing is written.

    Raises BadData as `ingest` does.
    """
    examined, parts, samples = _read(Path(source), settings, lambda sha256, suffix, size: False, None)
    rows = [s.as_json(parts[s.file]) for s in samples]
    return snapshot.facts(rows, settings.classes, examined.faults), examined.faults


def _read(
    source: Path, settings: DatasetSettings, known: Known, progress: Progress | None
) -> tuple[Examination, dict[str, str], list[Sample]]:
    """The data set, the part of each sample by its `file`, and the samples. Raises BadData."""
    examined = examine(
        source,
        format=settings.format,
        image_dir=settings.image_dir,
        label_dir=settings.label_dir,
        classes=checks.Classes(settings.classes, settings.class_map),
        max_bad_labels=settings.max_bad_labels,
        severity=settings.severity,
        leave=[str(PurePosixPath(p)) for p in (settings.split.lists or {}).values()],
        known=known,
        progress=progress,
    )
    parts, samples = divide(examined, settings)
    if examined.failed():
        raise BadData(str(source), examined.faults)
    return examined, parts, samples


def divide(examined: Examination, settings: DatasetSettings) -> tuple[dict[str, str], list[Sample]]:
    """The part of each sample by its `file`, and the samples that are in one; what is wrong goes to `examined.faults`.

    Raises BadData (source_changed) where a list vanishes.
    """
    faults: list[Fault] = []
    try:
        if settings.split.lists is None:
            parts = split.at_random(examined.samples, settings.split.val, settings.split.seed)
            names = [split.TRAIN, split.VAL]
        else:
            listed = split.by_lists(examined, settings.split.lists)
            parts, names = listed.parts, list(settings.split.lists)
            faults += listed.faults
    except Changed as exc:
        raise changed(examined.tree.root, str(exc)) from None
    examined.samples = [s for s in examined.samples if s.file in parts]
    if not any(f.code in ("too_few_images", "no_objects", "list_missing") for f in [*examined.faults, *faults]):
        faults += split.check(examined.samples, parts, names, settings.classes)
    faults += checks.duplicates(examined.samples, parts)
    examined.faults = graded([*examined.faults, *graded(faults, settings.severity)], {})
    if not examined.balanced():
        raise AssertionError(f"{examined.tree.root}: the split lost objects: a fault in Refit")
    return parts, examined.samples


def _fill(store: snapshot.Store, examined: Examination, samples: Sequence[Sample]) -> None:
    """Copy the images that the store lacks; their bytes must still be those that were checked."""
    missing = {}
    for s in samples:
        suffix = PurePosixPath(s.file).suffix.lower()
        if (s.sha256, suffix) not in missing and not store.holds(s.sha256, suffix, s.bytes):
            missing[s.sha256, suffix] = s

    def copy(entry: tuple[tuple[str, str], Sample]) -> None:
        (sha256, suffix), sample = entry
        data = read_whole(examined.tree, sample.source)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise Changed(f"{sample.source} has other bytes than a moment ago")
        store.put(sha256, suffix, data)

    os.makedirs(store.root, exist_ok=True)
    with snapshot.no_space(store.root, needed=sum(s.bytes for s in missing.values())):
        try:
            for _ in ordered(copy, missing.items()):
                pass
        except Changed as exc:
            raise changed(examined.tree.root, str(exc)) from None


def _reported(exc: BadData, datasets: Path) -> BadData:
    """The same error, with the complete list of faults in a file; equal faults share one."""
    if len(exc.faults) < 2:
        return exc
    rows = [f.as_json() for f in exc.faults]
    digest = hashlib.sha256(repr(rows).encode()).hexdigest()[:16]
    report = datasets / "refused" / f"{digest}.jsonl"
    with snapshot.no_space(datasets):
        os.makedirs(report.parent, exist_ok=True)
        aside = report.with_name(f".{report.name}.tmp-{os.getpid()}")
        try:
            snapshot.write_lines(aside, rows)
            os.replace(aside, report)
        finally:
            aside.unlink(missing_ok=True)
    return BadData(exc.source, exc.faults, report)


def _provenance(examined: Examination, settings: DatasetSettings) -> Mapping[str, Any]:
    return {
        "source": os.path.realpath(examined.tree.root),
        "format": examined.format,
        "image_dir": examined.layout.image_dir,
        "label_dir": examined.layout.label_dir,
        "signature": signature(examined.tree),
        "taken_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": settings.model_dump(mode="json"),
    }


def _existing(path: Path) -> Path:
    """The nearest folder above that exists."""
    while not path.exists():
        path = path.parent
    return path
