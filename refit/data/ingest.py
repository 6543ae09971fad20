"""Take a data set in: read, check, split, and publish it as an immutable snapshot.

Nothing is written before the data is known to be good, but for the list of faults of a data set that is refused, and
what was found out about each file, for the next time (`refit.data.memory`). The source is only read; that it stayed as
it was is checked at the end of reading and again before the snapshot appears.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from refit.data import append, checks, diff, doubts, evaluation, groups, provenance, shares, snapshot, split
from refit.data.arrival import signature
from refit.data.examine import (
    Examination,
    How,
    Progress,
    Share,
    changed,
    examine,
    judge,
    look_at,
    ordered,
    unchanged,
)
from refit.data.faults import BadData, Fault, graded
from refit.data.formats.base import Changed, own_lists, read_whole
from refit.data.memory import FILE, Memory
from refit.data.model import Sample
from refit.data.samples import Samples
from refit.data.settings import DatasetSettings, GroupBy
from refit.data.snapshot import Snapshot
from refit.data.tree import scan


def ingest(
    source: Path,
    settings: DatasetSettings,
    workspace: Path,
    *,
    origin: Mapping[str, Any] | None = None,
    leave: Iterable[str] = (),
    progress: Progress | None = None,
    accept: Callable[[Snapshot], None] | None = None,
    parts: Sequence[Path] = (),
    hold: bool = True,
    tags: Mapping[str, str] | None = None,
) -> Snapshot:
    """Take the data set in `source` into the pipeline's `workspace` (the folder that holds `datasets/`).

    `origin` is what the provenance says of where the data came from in place of the folder, its revision too; `leave`
    names files below it that are no data (a marker, a manifest). `accept` is shown the snapshot and may raise: what it
    refuses is not held as evaluated. Without `hold` nothing is: for a look at what a run would do. `parts` are the
    files of `look_share` for all shares: what they saw is not opened again, where they can be used. `tags` are the
    validators of files that were fetched, by their paths.

    The same data, settings and evaluation set give the same fingerprint, and the snapshot that is there already. Safe
    to run several times at once. `progress(done, total)` is called while images are read.

    Raises:
        BadData: the data cannot be used; carries every fault, the message shows the first and where the list is.
        NoSpace: the workspace's disk is full; nothing half-written stays but images in the store, whole ones.
        StageError: what was evaluated before cannot be read.
    """
    source, datasets = Path(source), Path(workspace) / "datasets"
    with snapshot.no_space(_existing(datasets)):
        os.makedirs(datasets, exist_ok=True)
    snapshot.clean(datasets)
    store = snapshot.Store(datasets)
    base = append.last(Path(workspace))
    revision = provenance.of(source) if origin is None else {}
    folder = Path(workspace) / evaluation.FOLDER
    try:
        examined = _put_together(source, settings, parts, leave) if parts else None
        if examined is None:
            examined = _examine(source, settings, _memory(datasets, settings, tags=tags), progress, base, leave)
        before = append.merge(examined, base, settings, store) if settings.mode == "append" else {}
        while True:
            memory = evaluation.read(folder) if settings.split.evaluation == "frozen" else evaluation.Memory()
            divided = divide(examined, settings, memory, base, before)
            if any(f.severity == "error" for f in divided.faults):
                raise BadData(str(source), divided.faults)
            _fill(store, examined, divided.samples)
            unchanged(examined.tree, examined.recalled)
            taken = snapshot.publish(
                datasets,
                divided.samples,
                divided.parts,
                settings.classes,
                divided.faults,
                {**_provenance(examined, settings, base if before else None), **revision, **(origin or {})},
                divided.evaluation,
            )
            if accept is not None:
                accept(taken)
            with snapshot.no_space(datasets):
                if (
                    not hold
                    or settings.split.evaluation == "fresh"
                    or evaluation.record(
                        folder,
                        memory,
                        divided.samples,
                        divided.parts,
                        divided.why,
                        data=taken.fingerprint,
                        previous=divided.evaluation.get("previous", ""),
                    )
                ):
                    break  # else another ingest has changed what is held meanwhile
    except BadData as exc:
        raise _reported(exc, datasets) from None
    told = _told(memory, base, taken.fingerprint, divided.evaluation)
    return replace(taken, changes=_changes(base, taken, divided), evaluation=told)


def look_share(
    source: Path,
    settings: DatasetSettings,
    workspace: Path,
    share: Share,
    out: Path,
    *,
    leave: Iterable[str] = (),
    progress: Progress | None = None,
    tags: Mapping[str, str] | None = None,
) -> int:
    """Look at one share of the data set in `source` and write to `out` what `ingest` puts together; the number of its
    images. Raises BadData as `examine` does."""
    datasets = Path(workspace) / "datasets"
    os.makedirs(datasets, exist_ok=True)
    memory = _memory(datasets, settings, share, tags)
    how: How = {**_how(source, settings, leave), "memory": memory, "progress": progress}
    looked = look_at(source, _classes(settings), share=share, **how)
    shares.write(looked, share, _made(settings, leave), out)
    return len(looked.found.samples)


def _put_together(
    source: Path, settings: DatasetSettings, parts: Sequence[Path], leave: Iterable[str]
) -> Examination | None:
    """What all shares saw; None where they cannot be used, which a look at the whole then explains or makes good."""
    try:
        looked = shares.merge(source, parts, _made(settings, leave))
    except (BadData, OSError, ValueError) as exc:
        print(f"what the shares saw cannot be used, looking at the whole data set: {exc}")
        return None
    return judge(looked, _classes(settings), settings.max_bad_labels, settings.severity)


def _made(settings: DatasetSettings, leave: Iterable[str]) -> str:
    return f"{sorted(leave)} {settings.model_dump_json()}"


def _memory(
    datasets: Path, settings: DatasetSettings, share: Share | None = None, tags: Mapping[str, str] | None = None
) -> Memory:
    name = FILE if share is None else f"{FILE}-{share.index}-of-{share.count}"
    return Memory(datasets / name, (settings.classes, settings.class_map), tags)


def _classes(settings: DatasetSettings) -> checks.Classes:
    return checks.Classes(settings.classes, settings.class_map)


def _how(source: Path, settings: DatasetSettings, leave: Iterable[str]) -> How:
    """How the settings have a source read; `leave` names files in it that are no data."""
    by = settings.split.group
    beside = [*leave, *settings.split.listed.values()]
    if settings.split.lists == "own" and os.path.isdir(source):
        beside += own_lists(scan(source)).values()
    beside += [by.file] if isinstance(by, GroupBy) and by.file is not None else []
    beside += [append.REMOVED] if settings.mode == "append" else []
    return {
        "format": settings.format,
        "image_dir": settings.image_dir,
        "label_dir": settings.label_dir,
        "leave": [str(PurePosixPath(p)) for p in beside],
    }


def look(source: Path, settings: DatasetSettings) -> tuple[dict[str, Any], list[Fault]]:
    """What `dataset.json` would say of the data set in `source`, taken by itself (`snapshot.facts`), and what it lost
    or had changed; nothing is written.

    Raises BadData as `ingest` does.
    """
    _, divided = _alone(Path(source), settings)
    rows = snapshot.rows(divided.samples, divided.parts)
    return snapshot.facts(rows, settings.classes, divided.faults), divided.faults


def excerpt(
    source: Path,
    settings: DatasetSettings,
    workspace: Path,
    choose: Callable[[Mapping[str, Sequence[str]]], Iterable[str]],
    progress: Progress | None = None,
) -> Snapshot:
    """A snapshot of some training images of the data set in `source`, taken by itself, to try something on.

    `choose` is given the classes of each training image's objects by its name, and gives names back. The images are
    not decoded: whoever uses them does that.

    Raises BadData as `ingest` does.
    """
    datasets = Path(workspace) / "datasets"
    examined, divided = _alone(Path(source), settings, decode=False, progress=progress)
    parts = divided.parts
    train = {s.file: [o.cls for o in s.objects] for s in divided.samples if parts[s.file] == split.TRAIN}
    chosen = set(choose(train))
    taken = [s for s in divided.samples if s.file in chosen]
    _fill(snapshot.Store(datasets), examined, taken)
    return snapshot.publish(datasets, taken, parts, settings.classes, (), {}, {})


def _alone(
    source: Path, settings: DatasetSettings, *, decode: bool = True, progress: Progress | None = None
) -> tuple[Examination, Divided]:
    """The data set in `source` without what was taken before. Raises BadData."""
    examined = _examine(source, settings, progress=progress, decode=decode)
    divided = divide(examined, settings)
    if any(f.severity == "error" for f in divided.faults):
        raise BadData(str(source), divided.faults)
    return examined, divided


def _examine(
    source: Path,
    settings: DatasetSettings,
    memory: Memory | None = None,
    progress: Progress | None = None,
    base: append.Base | None = None,
    leave: Iterable[str] = (),
    *,
    decode: bool = True,
) -> Examination:
    """The data set in `source`; with a data set to add to, a list of what to remove is enough. Raises BadData."""
    how: How = {**_how(source, settings, leave), "memory": memory, "progress": progress, "decode": decode}
    limit, severity = settings.max_bad_labels, settings.severity
    try:
        return examine(source, classes=_classes(settings), max_bad_labels=limit, severity=severity, **how)
    except BadData as exc:
        if base is None or settings.mode != "append":
            raise
        return append.removals_only(source, exc)


@dataclass(frozen=True, slots=True)
class Divided:
    """A data set with its parts (by the samples' `file`) and all faults, graded.

    `evaluation` is what dataset.json says of the evaluation set, `why` the ledger: how it came to be.
    """

    samples: Sequence[Sample]
    parts: dict[str, str]
    faults: list[Fault]
    evaluation: dict[str, Any]
    why: str


def divide(
    examined: Examination,
    settings: DatasetSettings,
    memory: evaluation.Memory | None = None,
    base: append.Base | None = None,
    before: Mapping[str, str] | None = None,
) -> Divided:
    """Split the examined data set; `examined` stays as it is.

    `memory` is what was evaluated before (nothing where the evaluation is not frozen), `base` the data set taken last,
    `before` the parts of the samples that were added from it.
    Raises BadData (source_changed) where a list vanishes.
    """
    memory = memory or evaluation.Memory()
    by = settings.split
    try:
        samples, faults = groups.assign(examined, by)
        if by.lists is None:
            trained = _trained(base) if by.evaluation_grow else None
            division = evaluation.divide(samples, by, memory, trained)
            parts, names = division.parts, [split.TRAIN, split.VAL]
            faults += [*division.faults, *split.dealt_anew(examined)]
        else:
            own = by.lists == "own"
            listed = split.by_own(examined, before) if own else split.by_lists(examined, by.listed, before)
            parts = listed.parts
            names = list(by.listed) or sorted({split.TRAIN, split.VAL, *parts.values()})
            faults += listed.faults
            for file, found in list(evaluation.held_back(samples, parts, memory)):
                del parts[file]
                faults.append(found)
            faults += evaluation.across(samples, parts, memory)
    except Changed as exc:
        raise changed(examined.tree.root, str(exc)) from None
    samples = _among(samples, parts)
    if not any(f.code in ("too_few_images", "no_objects", "list_missing") for f in [*examined.faults, *faults]):
        faults += split.check(samples, parts, names, settings.classes)
    faults += doubts.duplicates(samples, parts)
    images = evaluation.measured(samples, parts)
    about: dict[str, Any] = {"version": evaluation.version(images), "mode": by.evaluation, "images": len(images)}
    previous = memory.version or (base.evaluation if base else "")
    by_parts = "by its own parts" if by.lists == "own" else "by lists"
    why = by_parts if by.lists else f"{by.val:g} of {len(parts)} images"
    if previous and previous != about["version"]:
        about["previous"] = previous
        why = evaluation.changes(memory.images(), images) if memory.version else "drawn anew"
        faults.append(evaluation.changed(previous, about["version"], why))
    graded_all = graded([*examined.faults, *graded(faults, settings.severity)], {})
    if examined.declared != sum(len(s.objects) for s in samples) + sum(f.objects for f in graded_all):
        raise AssertionError(f"{examined.tree.root}: the split lost objects: a fault in Refit")
    return Divided(samples, parts, graded_all, about, why)


def _told(
    memory: evaluation.Memory, base: append.Base | None, fingerprint: str, about: Mapping[str, Any]
) -> Mapping[str, Any]:
    """What this ingest tells of the evaluation set; the data set that was taken last tells what it told then."""
    if "previous" in about:
        return about
    if base is not None and base.fingerprint == fingerprint:
        about = base.about.get("evaluation", about)
    return memory.told(about, fingerprint)


def _trained(base: append.Base | None) -> set[str] | None:
    """The sha256 of the images that trained last, None where that is not known."""
    try:
        return {row["sha256"] for row in base.rows() if row["split"] == split.TRAIN} if base else None
    except (OSError, ValueError, KeyError):
        return None


def _changes(base: append.Base | None, taken: Snapshot, divided: Divided) -> dict[str, int]:
    """How many images came, changed and went since the data set taken last; {} where that is not known."""
    if base is None:
        return {}
    if base.fingerprint == taken.fingerprint:
        return {"added": 0, "changed": 0, "removed": 0, "unchanged": len(divided.samples)}
    now = (s.as_json(divided.parts[s.file]) for s in sorted(divided.samples, key=lambda s: s.file))
    try:
        return diff.compare(base.rows(), now).counts()
    except (OSError, ValueError, KeyError):  # a run that takes a whole data set needs no older one
        return {}


def _among(samples: Sequence[Sample], parts: Mapping[str, str]) -> Sequence[Sample]:
    places = [at for at, s in enumerate(samples) if s.file in parts]
    return samples.choose(places) if isinstance(samples, Samples) else [samples[at] for at in places]


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
    if len(exc.faults) < 2 or exc.report is not None:
        return exc
    rows = [f.as_json() for f in exc.faults]
    digest = hashlib.sha256(repr(rows).encode()).hexdigest()[:16]
    report = datasets / "refused" / f"{digest}.jsonl"
    with snapshot.no_space(datasets):
        os.makedirs(report.parent, exist_ok=True)
        aside = report.with_name(f".{report.name}.tmp-{uuid.uuid4().hex}")
        try:
            snapshot.write_lines(aside, rows)
            os.replace(aside, report)
        finally:
            aside.unlink(missing_ok=True)
    return BadData(exc.source, exc.faults, report)


def _provenance(examined: Examination, settings: DatasetSettings, base: append.Base | None) -> Mapping[str, Any]:
    return {
        **({"base": base.fingerprint} if base else {}),
        "source": os.path.realpath(examined.tree.root),
        "format": examined.format,
        "image_dir": examined.layout.image_dir,
        "label_dir": examined.layout.label_dir,
        "signature": signature(examined.tree),
        "taken_at": provenance.now(),
        "settings": settings.model_dump(mode="json"),
    }


def _existing(path: Path) -> Path:
    """The nearest folder above that exists."""
    while not path.exists():
        path = path.parent
    return path
