"""`refit gc`: takes away what no kept run, no release and no reused result needs (docs/operating.md, "Old runs").

Kept are the newest runs, young ones, those that are going on, those of versions that a release could serve, and
whatever the plan of a kept run names: results of other runs, snapshots. What batch inference, roll backs and looks at
the servers left goes by its age alone. All that goes does so in an order that a kill at any
moment leaves whole: what is a folder is first renamed into `.trash` of the same volume and only then deleted, a key
goes before the result that it points to, an image after the snapshots that link to it.

Against runs that begin meanwhile: bind holds the pipeline's lock shared from its look for earlier results until its
plan is written (`binding`), the choice and the renames here hold it alone, and a stage's own lock tells a stage that
is at work. Deleting needs no lock.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import stat
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from refit.data import arrival, snapshot
from refit.files import sync_folder
from refit.runtime import report
from refit.start.spec import FOLDER as STARTS
from refit.triton.ledger import Ledger, Record

LOCK, TRASH = ".collect.lock", ".trash"
LOCK_SECONDS = 10.0  # how long a bind may keep us waiting before we leave its pipeline alone
DAY = 24 * 3600.0
RECENT = DAY  # a run that has not finished may wait so long for a GPU, a retry or a person
LOCKLESS = 7 * DAY  # so long a runner's note counts where locks do not reach from one node to another
ASIDE = re.compile(r"^(\d\d+-[^.]+)\.\d+$")  # refit/runner.py moves attempts there that must not be mixed in
SNAPSHOT = re.compile(r"^[0-9a-f]{64}(\.broken-[0-9a-f]+)?$")
# Folders that the text of a plan names. By their last parts: a pod sees the workspace under another path.
NAMED_RUN = re.compile(r'([^/"\\\s]+)/runs/([^/"\\\s]+)(?:/([^/"\\\s]+))?')
NAMED_SNAPSHOT = re.compile(r'([^/"\\\s]+)/datasets/([0-9a-f]{64})')
# In the spec of a training (`start_from`), and in that of a stage `pretrained`.
NAMED_START = re.compile(rf"\{{workspace\}}/{STARTS}/([0-9a-f]{{64}})/")
NAMED_WEIGHTS = re.compile(r"""\bmodel: ["']?([^\s"'\\:]+/[^\s"'\\:]+:[^\s"'\\]+)""")
NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})


class CollectError(RuntimeError):
    """A pipeline that cannot be collected now; the message says why and what to do."""


@dataclass(frozen=True)
class Rules:
    """A run is kept when it is one of the newest `keep_runs` or younger than `keep_days`."""

    keep_runs: int = 10
    keep_days: float = 30


@dataclass(frozen=True)
class Item:
    """What goes together: one folder, or many files of a kind. `bytes` are those that become free."""

    kind: str  # run, aside, stage, attempt, checkpoint, snapshot, object, incoming, weights, key, trash
    name: str
    paths: tuple[Path, ...]
    bytes: int
    why: str

    def as_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "name": self.name, "count": len(self.paths), "bytes": self.bytes, "why": self.why}


@dataclass
class Collection:
    """What was (or, in a dry run, would be) collected of one pipeline."""

    pipeline: str
    kept: dict[str, str] = field(default_factory=dict)  # run -> why
    items: list[Item] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(item.bytes for item in self.items)

    def as_json(self) -> dict[str, Any]:
        removed = [item.as_json() for item in self.items]
        return {
            "pipeline": self.pipeline,
            "bytes": self.bytes,
            "removed": removed,
            "kept": self.kept,
            "notes": self.notes,
        }


def pipelines(workspace: Path) -> list[Path]:
    """The pipelines' folders of a workspace."""
    if not workspace.is_dir():
        return []
    return sorted(p for p in workspace.iterdir() if (p / "runs").is_dir() or (p / "datasets").is_dir())


def collect(pipeline: Path, rules: Rules, *, dry_run: bool = False, now: float | None = None) -> Collection:
    """Collect one pipeline's folder. Raises CollectError where a bind is under way or there are no locks, OSError."""
    with _lock(pipeline, fcntl.LOCK_EX, LOCK_SECONDS):
        found = _Choice(pipeline, rules, time.time() if now is None else now).made
        if dry_run:
            return found
        trash = pipeline / TRASH / uuid.uuid4().hex
        _take_away(found, trash)
    for folder in (pipeline / TRASH).glob("*"):  # with what a gc that was killed has left
        shutil.rmtree(folder, onerror=lambda _, path, exc: _not_deleted(found, path, exc[1]))
    return found


# --- locks ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def binding(pipeline: Path) -> Iterator[None]:
    """Held by bind from its look for earlier results until its plan is written: nothing is chosen meanwhile.

    In a file system without locks bind goes on: nothing is collected there at all.
    """
    with contextlib.ExitStack() as held:
        with contextlib.suppress(CollectError):
            held.enter_context(_lock(pipeline, fcntl.LOCK_SH, None))
        yield


@contextlib.contextmanager
def _lock(pipeline: Path, how: int, seconds: float | None) -> Iterator[None]:
    """The pipeline's lock, waited for so long (None: until it is there). Raises CollectError."""
    descriptor = os.open(pipeline / LOCK, os.O_RDWR | os.O_CREAT, 0o664)
    try:
        until = None if seconds is None else time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(descriptor, how if until is None else how | fcntl.LOCK_NB)
                break
            except OSError as exc:
                if exc.errno in NO_LOCKS:
                    raise CollectError(
                        f"{pipeline}: this file system has no locks, so a run that begins could lose what it counts "
                        "on; mount it with locks (NFS 4.1), or remove old runs by hand while no run is going on"
                    ) from None
                if exc.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
                if until is None or time.monotonic() > until:
                    raise CollectError(
                        f"{pipeline.name}: a run is binding (reading data, writing its plan), or another `refit gc` "
                        "is at work; try again when it is done"
                    ) from None
            time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _quiet(run: Path) -> Iterator[bool]:
    """Hold every stage's lock of a run; False where one of them is at work."""
    with contextlib.ExitStack() as held:
        quiet = True
        for path in run.glob(".*.lock"):
            try:
                descriptor, how = os.open(path, os.O_RDWR), fcntl.LOCK_EX
            except PermissionError:  # made by a pod of another user, with an older Refit; a runner's own is exclusive
                descriptor, how = os.open(path, os.O_RDONLY), fcntl.LOCK_SH
            held.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, how | fcntl.LOCK_NB)
            except OSError:
                quiet = False
        yield quiet


# --- the choice -------------------------------------------------------------------------------------------------------


class _Freed:
    """Bytes that go with paths: a file that has several links counts where the last of them goes."""

    def __init__(self) -> None:
        self._links: Counter[tuple[int, int]] = Counter()

    def add(self, path: Path) -> int:
        if not path.is_dir() or path.is_symlink():
            return self._file(path)
        return sum(self._file(Path(folder, name)) for folder, _, names in os.walk(path) for name in names)

    def _file(self, path: Path) -> int:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            return 0
        self._links[status.st_dev, status.st_ino] += 1
        return status.st_size if self._links[status.st_dev, status.st_ino] == status.st_nlink else 0


class _Choice:
    """What of a pipeline's folder goes; made under its lock."""

    def __init__(self, pipeline: Path, rules: Rules, now: float) -> None:
        self.pipeline, self.rules, self.now = pipeline, rules, now
        self.made = Collection(pipeline.name)
        self._freed = _Freed()
        self._going: set[Path] = set()
        runs = report.runs(pipeline)
        touched = {run: _touched(run) for run in runs}
        runs.sort(key=lambda run: touched[run], reverse=True)
        released = self._released()
        self.running = {run.name for run in runs if _is_running(run)}
        for place, run in enumerate(runs):
            if why := self._why_kept(run, place, now - touched[run], released):
                self.made.kept[run.name] = why
        self.weights: set[str] = set()
        self.starts: set[str] = set()
        self.stages, self.snapshots = self._named()
        for folder in sorted((pipeline / TRASH).glob("*")):
            self._add("trash", folder.name, [folder], "left by a `refit gc` that was stopped")
        for run in reversed(runs):
            self._choose_of(run, now - touched[run])
        self._choose_asides()
        self._choose_snapshots()
        self._choose_incoming()
        self._choose_weights()
        self._choose_keys()

    def _add(self, kind: str, name: str, paths: Iterable[Path], why: str) -> None:
        all_of_them = tuple(paths)
        if all_of_them:
            self._going.update(all_of_them)
            size = sum(self._freed.add(path) for path in all_of_them)
            self.made.items.append(Item(kind, name, all_of_them, size, why))

    # -- runs --

    def _why_kept(self, run: Path, place: int, age: float, released: dict[str, str]) -> str:
        if place < self.rules.keep_runs:
            return f"one of the newest {self.rules.keep_runs}"
        if age < self.rules.keep_days * DAY:
            return f"younger than {self.rules.keep_days:g} days"
        if run.name in self.running:
            return "a stage is at work"
        if age < RECENT and not _finished(run):
            return "not finished, and at work within the last day"
        return released.get(run.name, "")

    def _released(self) -> dict[str, str]:
        """Run -> the version of it that serves, is being released, or could serve again."""
        found = {}
        for ledger in Ledger(self.pipeline / "releases").siblings():
            for record in ledger.records():
                if record.pipeline == self.pipeline.name and _may_serve(record):
                    found[record.run] = f"version {record.version} of {record.model} is {record.state}"
        return found

    def _named(self) -> tuple[set[tuple[str, str]], set[str]]:
        """(run, stage) and snapshots that plans name: those of kept runs here, all those of other pipelines."""
        stages, snapshots = set(), set()
        for other in pipelines(self.pipeline.parent):
            own = other == self.pipeline
            for run in report.runs(other):
                if own and run.name not in self.made.kept:
                    continue
                for plan in run.glob("plan*.json"):
                    text = plan.read_text(encoding="utf-8")
                    for pipeline, name, stage in NAMED_RUN.findall(text):
                        if pipeline == self.pipeline.name and not (own and name == run.name):
                            stages.add((name, stage))
                    snapshots |= {s for pipeline, s in NAMED_SNAPSHOT.findall(text) if pipeline == self.pipeline.name}
                    self.starts |= set(NAMED_START.findall(text)) if own else set()
                    self.weights |= set(NAMED_WEIGHTS.findall(text)) if own else set()
        last = arrival.last_taken(self.pipeline)  # bind takes it where the inbox is empty
        if last is not None and last.fingerprint is not None:
            snapshots.add(last.fingerprint)
        return stages, snapshots

    def _choose_of(self, run: Path, age: float) -> None:
        if run.name in self.made.kept:
            if run.name not in self.running:
                self._choose_in_kept(run, age)
            return
        named = {stage for name, stage in self.stages if name == run.name}
        why = f"not one of the newest {self.rules.keep_runs}, {age / DAY:.0f} days old"
        if not named:
            self._add("run", run.name, [run], why)
        elif "" not in named:  # "": the run as a whole
            for folder in sorted(p for p in run.iterdir() if p.is_dir() and p.name not in named):
                self._add("stage", f"{run.name}/{folder.name}", [folder], f"{why}; kept runs use others of its results")

    def _choose_in_kept(self, run: Path, age: float) -> None:
        """Attempts that were moved aside, and checkpoints beside the one that a finished stage gave as its result."""
        for folder in sorted(p for p in run.iterdir() if p.is_dir()):
            if aside := ASIDE.match(folder.name):
                good = _outcome(run / aside[1]) == "succeeded"
                old = self.now - _touched(run) > self.rules.keep_days * DAY
                if (good or old) and (run.name, folder.name) not in self.stages:
                    why = "the stage has succeeded since" if good else f"older than {self.rules.keep_days:g} days"
                    self._add("attempt", f"{run.name}/{folder.name}", [folder], why)
            elif age > RECENT and _outcome(folder) == "succeeded":
                self._add(
                    "checkpoint", f"{run.name}/{folder.name}", _surplus(folder), "the stage gave another one as result"
                )

    def _choose_asides(self) -> None:
        """Folders of predict, rollback and reconcile: the last leaves one an hour."""
        for folder in report.asides(self.pipeline):
            age = self.now - _touched(folder)
            if age > max(self.rules.keep_days * DAY, RECENT) and not _is_running(folder):
                self._add("aside", folder.name, [folder], f"{age / DAY:.0f} days old")

    # -- data --

    def _choose_snapshots(self) -> None:
        datasets = self.pipeline / "datasets"
        there = [p for p in datasets.glob("*") if SNAPSHOT.match(p.name)]
        for path in sorted(there):
            broken = "." in path.name
            if path.name not in self.snapshots and not (broken and self.now - path.stat().st_mtime < RECENT):
                self._add("snapshot", path.name, [path], "damaged" if broken else "no kept run uses it")
        used: set[str] = set()
        for path in there:
            if path not in self._going:
                try:
                    rows = snapshot.read_annotations(path)
                    used |= {row["sha256"] + PurePosixPath(row["file"]).suffix.lower() for row in rows}
                except (OSError, ValueError, KeyError, TypeError) as exc:
                    self.made.notes.append(f"no images were collected: {path} cannot be read ({exc})")
                    return
        unused = [p for p in datasets.glob("objects/*/*") if p.name not in used and not self._being_written(p)]
        self._add("object", "images", sorted(unused), "no snapshot has them")

    def _choose_incoming(self) -> None:
        """What was fetched or unpacked of an arrival that was refused or given up (refit/data/remote/take.py). None is
        in use: bind holds the pipeline's lock while it reads there. A retry of it goes on with what is younger."""
        incoming = self.pipeline / "incoming"
        for folder in sorted(p for p in incoming.glob("*") if p.is_dir() and p.name != "last"):
            age = self.now - max(Path(at).stat().st_mtime for at, _, _ in os.walk(folder))
            if age > max(self.rules.keep_days * DAY, RECENT):
                self._add("incoming", folder.name, [folder], f"no snapshot was made of it, {age / DAY:.0f} days old")

    def _choose_weights(self) -> None:
        """Downloads of NGC (refit/ngc/store.py) and weights of one's own (refit/start/take.py) that no kept run begins
        with, and downloads that were never finished."""
        for row in sorted((self.pipeline / "ngc").rglob("version.json")):
            model = str((report.read_json(row) or {}).get("model"))
            if model not in self.weights and self.now - row.stat().st_mtime > RECENT:
                self._add("weights", model, [row.parent], "no kept run begins with it")
        for part in sorted((self.pipeline / "ngc").rglob(".*.zip.part")):
            if self.now - part.stat().st_mtime > RECENT:
                self._add("weights", part.name, [part], "a download that was not finished")

        for path in sorted((self.pipeline / STARTS).glob("*")):
            if path.name not in self.starts and self.now - path.stat().st_mtime > RECENT:
                self._add("weights", path.name, [path], "no kept run begins with it")

    def _being_written(self, path: Path) -> bool:
        return path.name.startswith(".") and self.now - path.stat().st_mtime < RECENT

    def _choose_keys(self) -> None:
        keys = (self.pipeline / "keys").glob("[!.]*.json")
        self._add("key", "keys", sorted(k for k in keys if self._dangles(k)), "their results are gone or are others'")

    def _dangles(self, key: Path) -> bool:
        value = report.read_json(key)
        run, stage = Path(str((value or {}).get("stage_dir"))).parts[-2:] if value else ("", "")
        folder = self.pipeline / "runs" / run / stage
        if value is None or folder in self._going or folder.parent in self._going:
            return True
        if run in self.running:
            return False
        result = report.read_json(folder / "result.json")
        return result is None or result.get("key") != key.stem


def _touched(run: Path) -> float:
    """When something happened in a run last, in seconds. Not the folders' own times: gc changes those."""
    names = ("plan*.json", "*/request.json", "*/result.json", "*/runner.pid", "*/log.txt", "*/out/status.json")
    times = [path.stat().st_mtime for name in names for path in run.glob(name)]
    return max(times, default=run.stat().st_mtime)


def _is_running(run: Path) -> bool:
    """A stage's lock is taken; or a runner has left its note, and something happened in the last week."""
    with _quiet(run) as quiet:
        return not quiet or (any(run.glob("*/runner.pid")) and time.time() - _touched(run) < LOCKLESS)


def _finished(run: Path) -> bool:
    plan = report.current_plan(run)
    done = ("succeeded", "reused", "off")
    return plan is not None and all(row.state in done for row in report.rows(_here(plan, run)))


def _here(plan: dict[str, Any], run: Path) -> dict[str, Any]:
    """A plan with its stages' folders as they are here: a pod sees the workspace under another path."""
    stages = [{**s, "paths": {"stage": str(run / Path(s["paths"]["stage"]).name)}} for s in plan["stages"]]
    reused = {
        name: str(run.parent / Path(folder).parent.name / Path(folder).name) for name, folder in plan["reused"].items()
    }
    return {**plan, "stages": stages, "reused": reused}


def _outcome(stage: Path) -> str:
    return str((report.read_json(stage / "result.json") or {}).get("outcome"))


def _surplus(stage: Path) -> list[Path]:
    """Files that fit the pattern of an output of which the newest was meant, and are not it (docs/contracts.md)."""
    request, result = (report.read_json(stage / name) or {} for name in ("request.json", "result.json"))
    out = stage / "out"
    given = {out / output["path"] for output in result["outputs"].values()}
    patterns = [o["path"] for o in request.get("outputs", ()) if o.get("pick") in ("newest", "best")]
    return sorted({p for pattern in patterns for p in out.glob(pattern)} - given)


def _may_serve(record: Record) -> bool:
    """Whether a version serves, or could by a roll back. Where its repository cannot be seen from here: yes."""
    if record.state == "failed":
        return False
    repository = Path(record.repository)
    gone = repository.is_dir() and not (repository / record.model / str(record.version)).exists()
    return record.state != "retired" or not gone


# --- taking it away ---------------------------------------------------------------------------------------------------


def _take_away(found: Collection, trash: Path) -> None:
    """Rename the chosen folders into the trash, remove single files. A run that has come to life stays."""
    order = ["key", "run", "aside", "stage", "attempt", "checkpoint", "snapshot", "object", "incoming"]
    order += ["weights", "trash"]
    trash.mkdir(parents=True)
    alive = False
    for item in sorted(found.items, key=lambda item: order.index(item.kind)):
        if item.kind in ("run", "aside", "stage", "attempt"):
            path = item.paths[0]
            with _quiet(path if item.kind in ("run", "aside") else path.parent) as quiet:
                if quiet:
                    _into(trash, path)
                    continue
            alive = True
            found.items.remove(item)
            found.notes.append(f"{item.name} stays: a stage of it was started just now; its data stays too")
        elif item.kind == "incoming" or (item.kind in ("snapshot", "weights") and not alive):
            _into(trash, item.paths[0])
        elif item.kind in ("key", "checkpoint") or (item.kind == "object" and not alive):
            for path in item.paths:
                path.unlink(missing_ok=True)
        elif item.kind != "trash":
            found.items.remove(item)


def _into(trash: Path, path: Path) -> None:
    # A number, because folders of one name come from several runs.
    os.rename(path, trash / f"{len(os.listdir(trash))}-{path.name}")
    sync_folder(path.parent)


def _not_deleted(found: Collection, path: str, exc: BaseException) -> None:
    if not isinstance(exc, FileNotFoundError):  # another gc empties the same trash
        found.notes.append(f"{path} cannot be deleted ({exc}); it stays in the trash, the next `refit gc` tries again")


# --- in words ---------------------------------------------------------------------------------------------------------


def as_text(found: Iterable[Collection], *, dry_run: bool) -> str:
    lines, total = [], 0
    for one in found:
        total += one.bytes
        lines.append(f"{one.pipeline}: {len(one.kept)} runs are kept")
        for item in one.items:
            many = f"{len(item.paths):,} " if len(item.paths) > 1 else ""
            lines.append(f"  {item.kind:10} {size(item.bytes):>10}  {many}{item.name}: {item.why}")
        lines += [f"  note: {note}" for note in one.notes]
    lines.append(f"{size(total)} would become free; nothing was removed" if dry_run else f"{size(total)} became free")
    return "\n".join(lines)


def size(count: float) -> str:
    """Bytes for people: 1536 -> "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
