"""Has a complete new data set arrived in an inbox? Listing only: of the data nothing is opened, so a triggerer can do
it (a manifest is read, once for each version of it).

Standard library only. A listing is compared with the one before it (is the copy still going on?) and with what was
taken last (`arrival.json`: is it new?). What lies at a remote source is listed by `refit.data.remote` and judged here
by the same rules.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from refit import files as atomic
from refit.data.manifest import MOST_BYTES, BadManifest, Manifest, parse, stamp
from refit.data.tree import FileInfo, Tree, scan

LABELS = (".txt", ".xml", ".json")  # a label file for each image; formats of one file for all images do not count so
TAKEN = "taken"  # the outcome of an arrival of which a snapshot was made
MOST_REASON = 500  # characters: the record may be a Variable of Airflow


class Rule(Protocol):
    """When an arrival counts as complete; `refit.data.settings.Arrival` is one."""

    @property
    def marker(self) -> str | None: ...

    @property
    def manifest(self) -> str | None: ...

    @property
    def settle_seconds(self) -> float: ...

    @property
    def new_labels(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Plain:
    """A `Rule` in so many words."""

    marker: str | None = None
    manifest: str | None = None
    settle_seconds: float = 10
    new_labels: int = 0


@dataclass(frozen=True, slots=True)
class Listing:
    """What lies in an inbox at one moment.

    `signature` is the sha256 over the sorted (path, size, mtime_ns) of the data files, of remote ones over (path, size,
    ETag or what stands for it): equal signatures, equal data.
    `activity` covers hidden and partial files and ctimes as well: while it changes, someone is writing.
    `seen_at` is this listing's time, `stable_since` that of the first listing with the same activity (both seconds of
    the Unix clock). `came` is when the last data file came to its place (0.0: there is none), `marker_came` when the
    marker did, `labels` when each label file did, where the rule counts them (seconds of the clock of whoever stores
    them): not their mtimes, which a copy may bring along.
    `manifest` is the one that was read, `lacks` why it does not hold.
    """

    exists: bool
    signature: str
    activity: str
    files: int
    bytes: int
    seen_at: float
    stable_since: float
    came: float
    marker_came: float | None = None
    manifest: Manifest | None = None
    lacks: str = ""
    labels: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether an arrival is complete, and why (not). True where it is."""

    complete: bool
    reason: str

    def __bool__(self) -> bool:
        return self.complete


@dataclass(frozen=True, slots=True)
class Taken:
    """arrival.json: the last arrival that a run looked at, and the last data set that was good.

    `fingerprint` stays that of the last good one when an arrival is refused, so that a run by hand can go on with it;
    so does `came`, since which label files count as new: those of a refused arrival are still to be trained on.
    """

    signature: str
    outcome: str
    fingerprint: str | None
    run: str
    at: str
    files: int
    bytes: int
    came: float = 0.0
    reason: str = ""


def listing(path: Path | str, previous: Listing | None = None, rule: Rule | None = None) -> Listing:
    """List an inbox; a folder that is not there (any more) gives an empty listing with `exists` False.

    `previous` is the last listing of the same folder: how long nothing has changed is carried on from it. Marker and
    manifest are no data: touching them again does not make the data new. Raises OSError when the folder is there but
    unreadable.
    """
    root = Path(path)
    try:
        tree: Tree | None = scan(root)
    except (FileNotFoundError, NotADirectoryError):
        tree = None
    return survey(tree, previous, rule, lambda name: (root / name).read_bytes())


def survey(
    tree: Tree | None,
    previous: Listing | None,
    rule: Rule | None,
    read: Callable[[str], bytes],
) -> Listing:
    """The listing of what was found (None: there is no such place). `read` gives a manifest's bytes."""
    now = time.time()
    rule = rule or Plain()
    everything = list(tree.files.values()) if tree else []
    data = [f for f in everything if f.path not in (rule.marker, rule.manifest)]
    activity = _digest([*everything, *(tree.temporary if tree else ())], ctime=True)
    same = previous is not None and previous.activity == activity and previous.exists == (tree is not None)
    manifest, lacks = _manifest(tree, previous, rule.manifest, read)
    return Listing(
        exists=tree is not None,
        signature=previous.signature if previous is not None and same else _digest(data, ctime=False),
        activity=activity,
        files=len(data),
        bytes=sum(f.size for f in data),
        seen_at=now,
        stable_since=previous.stable_since if previous is not None and same and previous.stable_since <= now else now,
        came=max((f.ctime_ns for f in data), default=0) / 1e9,
        marker_came=next((f.ctime_ns / 1e9 for f in everything if f.path == rule.marker), None),
        manifest=manifest,
        lacks=lacks,
        labels=tuple(f.ctime_ns / 1e9 for f in data if f.path.lower().endswith(LABELS)) if rule.new_labels else (),
    )


def _manifest(
    tree: Tree | None, previous: Listing | None, name: str | None, read: Callable[[str], bytes]
) -> tuple[Manifest | None, str]:
    """The manifest, read only where it is not the one of the listing before, and what it names that is not there."""
    if name is None or tree is None:
        return None, ""
    info = tree.files.get(name)
    if info is None:
        return None, f"waiting for the manifest {name}"
    found = previous.manifest if previous is not None else None
    if found is None or found.stamp != stamp(info):
        if info.size > MOST_BYTES:
            return None, f"the manifest {name} has more than {MOST_BYTES >> 20} MiB"
        try:
            found = Manifest(parse(read(name), name), stamp(info))
        except BadManifest as exc:
            return None, f"the manifest cannot be used: {exc}"
        except OSError as exc:
            return None, f"the manifest {name} cannot be read: {exc.strerror or exc}"
    missing = found.missing(tree.files)
    if missing:
        return (
            found,
            f"{len(missing)} of {len(found.files)} files that {name} names are not there in full: {missing[0]}",
        )
    return found, ""


def signature(tree: Tree) -> str:
    """The signature of a scanned folder, as in `Listing` without a marker."""
    return _digest(tree.files.values(), ctime=False)


def _digest(rows: Iterable[FileInfo], *, ctime: bool) -> str:
    digest = hashlib.sha256()
    for f in sorted(rows):
        digest.update(
            f"{f.path}\0{f.size}\0{f.tag or f.mtime_ns}\0{f.ctime_ns if ctime else ''}\n".encode(
                "utf-8", "surrogateescape"
            )
        )
    return digest.hexdigest()


def is_complete(current: Listing, previous: Listing | None, rule: Rule) -> Readiness:
    """Whether the data in an inbox is complete.

    With a marker: it lies in the root, and no data file is younger than it (a younger one belongs to a new copy over
    old data: then the rule below decides). With a manifest: all files that it names are there with their sizes, and no
    others are (then the rule below decides as well). Without one: nothing has changed for `settle_seconds`, seen in at
    least two listings unless it is 0. `current` must have been made with `previous` and this rule.
    """
    if not current.exists:
        return Readiness(False, "there is no such place yet")
    if current.lacks:
        return Readiness(False, f"{current.lacks}; {current.files} files so far")
    if not current.files:
        return Readiness(False, "there are no files yet")
    if current.manifest is not None and current.files <= len(current.manifest.files):
        return Readiness(True, f"{current.files} files, all that {rule.manifest} names")
    if rule.marker is not None:
        if current.marker_came is None:
            return Readiness(False, f"waiting for the marker {rule.marker}; {current.files} files so far")
        if current.marker_came >= current.came:
            return Readiness(True, f"{current.files} files, marker {rule.marker}")
    if rule.settle_seconds <= 0:
        return Readiness(True, f"{current.files} files")
    quiet = current.seen_at - current.stable_since
    if previous is None or previous.activity != current.activity:
        quiet = 0.0
    if quiet >= rule.settle_seconds:
        return Readiness(True, f"{current.files} files, nothing changed for {quiet:.0f} s")
    return Readiness(
        False, f"still being copied: {current.files} files, {quiet:.0f} of {rule.settle_seconds:g} s without a change"
    )


def new_labels(current: Listing, taken: Taken | None) -> int:
    """How many label files came (or came anew) since the last good arrival; `current` must count labels."""
    return sum(moment > (taken.came if taken else 0.0) for moment in current.labels)


# ---- what was taken


def last_taken(workspace: Path) -> Taken | None:
    """What `record_taken` wrote last, or None; a file that cannot be read counts as none (then the data is new)."""
    try:
        return taken_of(_record(workspace).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def taken_of(text: str | None) -> Taken | None:
    """A record of what was taken from its JSON text; None where there is none or it cannot be understood."""
    if text is None:
        return None
    try:
        row: Any = json.loads(text)
        fingerprint = row["fingerprint"]
        return Taken(
            signature=str(row["signature"]),
            outcome=str(row["outcome"]),
            fingerprint=None if fingerprint is None else str(fingerprint),
            run=str(row["run"]),
            at=str(row["at"]),
            files=int(row["files"]),
            bytes=int(row["bytes"]),
            came=float(row.get("came", 0.0)),
            reason=str(row.get("reason", "")),
        )
    except (ValueError, KeyError, TypeError):
        return None


def record_taken(
    workspace: Path, listing: Listing, *, fingerprint: str | None, run: str, outcome: str, reason: str = ""
) -> Taken:
    """Note that this arrival was looked at, good or not: it is not new any more. Atomic; the last writer stays."""
    before = last_taken(workspace)
    taken = Taken(
        signature=listing.signature,
        outcome=outcome,
        fingerprint=fingerprint or (before.fingerprint if before else None),
        run=run,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        files=listing.files,
        bytes=listing.bytes,
        came=came_with(outcome, listing.came, before),
        reason=reason[:MOST_REASON],
    )
    path = _record(workspace)
    os.makedirs(path.parent, exist_ok=True)
    atomic.write_json(path, asdict(taken))
    return taken


def came_with(outcome: str, came: float, before: Taken | None) -> float:
    """`Taken.came` after an arrival with data of that moment."""
    return came if outcome == TAKEN else before.came if before else 0.0


def _record(workspace: Path) -> Path:
    return Path(workspace) / "datasets" / "arrival.json"
