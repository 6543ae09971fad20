"""Has a complete new data set arrived in an inbox? Listing only: nothing is opened, so a triggerer can do it.

Standard library only. A listing is compared with the one before it (is the copy still going on?) and with what was
taken last (`arrival.json`: is it new?).
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from refit import files as atomic
from refit.data.tree import FileInfo, Tree, scan


class Rule(Protocol):
    """When an arrival counts as complete; `refit.data.settings.Arrival` is one."""

    @property
    def marker(self) -> str | None: ...

    @property
    def settle_seconds(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Listing:
    """What lies in an inbox at one moment.

    `signature` is the sha256 over the sorted (path, size, mtime_ns) of the data files: equal signatures, equal data.
    `activity` covers hidden and partial files and ctimes as well: while it changes, someone is writing.
    `seen_at` is this listing's time, `stable_since` that of the first listing with the same activity (both seconds of
    the Unix clock); `newest_mtime` is that of the newest data file (0.0: none), `marker_mtime` that of the marker.
    """

    exists: bool
    signature: str
    activity: str
    files: int
    bytes: int
    newest_mtime: float
    seen_at: float
    stable_since: float
    marker_mtime: float | None


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

    `fingerprint` stays that of the last good one when an arrival is refused, so that a run by hand can go on with it.
    """

    signature: str
    outcome: str
    fingerprint: str | None
    run: str
    at: str
    files: int
    bytes: int


def listing(path: Path | str, previous: Listing | None = None, *, marker: str | None = None) -> Listing:
    """List an inbox; a folder that is not there (any more) gives an empty listing with `exists` False.

    `previous` is the last listing of the same folder: how long nothing has changed is carried on from it. A `marker` is
    no data: touching it again does not make the data new. Raises OSError when the folder is there but unreadable.
    """
    now = time.time()
    try:
        tree: Tree | None = scan(Path(path))
    except (FileNotFoundError, NotADirectoryError):
        tree = None
    return _summary(tree, previous, marker, now)


def _summary(tree: Tree | None, previous: Listing | None, marker: str | None, now: float) -> Listing:
    everything = list(tree.files.values()) if tree else []
    data = [f for f in everything if f.path != marker]
    activity = _digest([*everything, *(tree.temporary if tree else ())], ctime=True)
    same = previous is not None and previous.activity == activity and previous.exists == (tree is not None)
    return Listing(
        exists=tree is not None,
        signature=_digest(data, ctime=False),
        activity=activity,
        files=len(data),
        bytes=sum(f.size for f in data),
        newest_mtime=max((f.mtime_ns for f in data), default=0) / 1e9,
        seen_at=now,
        stable_since=previous.stable_since if previous is not None and same and previous.stable_since <= now else now,
        marker_mtime=next((f.mtime_ns / 1e9 for f in everything if f.path == marker), None),
    )


def signature(tree: Tree) -> str:
    """The signature of a scanned folder, as in `Listing` without a marker."""
    return _digest(tree.files.values(), ctime=False)


def _digest(rows: Iterable[FileInfo], *, ctime: bool) -> str:
    digest = hashlib.sha256()
    for f in sorted(rows, key=lambda f: f.path):
        digest.update(
            f"{f.path}\0{f.size}\0{f.mtime_ns}\0{f.ctime_ns if ctime else ''}\n".encode("utf-8", "surrogateescape")
        )
    return digest.hexdigest()


def is_complete(current: Listing, previous: Listing | None, rule: Rule) -> Readiness:
    """Whether the data in an inbox is complete.

    With a marker: it lies in the root, and no data file is younger than it (a younger one belongs to a new copy over
    old data: then the rule below decides). Without one: nothing has changed for `settle_seconds`, seen in at least two
    listings unless it is 0. `current` must have been made with `listing(path, previous, marker=rule.marker)`.
    """
    if not current.exists:
        return Readiness(False, "the folder does not exist yet")
    if not current.files:
        return Readiness(False, "the folder is empty")
    if rule.marker is not None:
        if current.marker_mtime is None:
            return Readiness(False, f"waiting for the marker {rule.marker}; {current.files} files so far")
        if current.marker_mtime >= current.newest_mtime:
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
        )
    except (ValueError, KeyError, TypeError):
        return None


def record_taken(workspace: Path, listing: Listing, *, fingerprint: str | None, run: str, outcome: str) -> Taken:
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
    )
    path = _record(workspace)
    os.makedirs(path.parent, exist_ok=True)
    atomic.write_json(path, asdict(taken))
    return taken


def _record(workspace: Path) -> Path:
    return Path(workspace) / "datasets" / "arrival.json"
