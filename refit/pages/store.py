"""What is published, read for the page: an index a pipeline, reports, pictures; how far the runs are that go on.

Read-only, and nothing in there is believed: names from a URL are matched, never joined to a path unseen; no link is
followed, of folders neither; a file that is missing, half written or of another shape is as one that is not there.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from refit.publish.place import INDEX

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,200}")
FILES = re.compile(r"report\.html|report\.json|data\.html|sample-\d{1,3}\.webp")
DATA = re.compile(r"[0-9a-f]{64}")
TYPES = {".html": "text/html; charset=utf-8", ".json": "application/json", ".webp": "image/webp"}
_LARGEST = 32 * 2**20  # bytes of a file
_FRESH = 2.0  # seconds for which a look at the folder of all pipelines counts

Json = dict[str, Any]
UNREADABLE: Json = {"unreadable": True}


class Source(Protocol):
    """Where what is published lies; names are parts of a path that have been matched."""

    def names(self) -> list[str]:
        """The pipelines."""

    def stamp(self, *parts: str) -> object:
        """Something that differs when the file is another one; None where there is none."""

    def read(self, *parts: str) -> bytes | None: ...

    def listing(self, *parts: str) -> list[str]:
        """The files of a folder."""


@dataclass(frozen=True)
class Folder:
    """A folder of this machine, or a volume that is mounted."""

    root: Path

    def names(self) -> list[str]:
        try:
            with os.scandir(self.root) as found:
                return sorted(e.name for e in found if NAME.fullmatch(e.name) and e.is_dir(follow_symlinks=False))
        except OSError:
            return []

    def stamp(self, *parts: str) -> object:
        try:
            with self._opened(*parts) as handle:
                about = os.fstat(handle)
        except (OSError, ValueError):
            return None
        return (about.st_mtime_ns, about.st_size, about.st_ino) if stat.S_ISREG(about.st_mode) else None

    def read(self, *parts: str) -> bytes | None:
        try:
            with self._opened(*parts) as handle, open(handle, "rb", closefd=False) as file:
                about = os.fstat(handle)
                whole = stat.S_ISREG(about.st_mode) and about.st_size <= _LARGEST
                return file.read() if whole else None
        except (OSError, ValueError):
            return None

    def listing(self, *parts: str) -> list[str]:
        try:
            with self._opened(*parts) as handle:
                return sorted(os.listdir(handle))
        except OSError:
            return []

    @contextlib.contextmanager
    def _opened(self, *parts: str) -> Iterator[int]:
        """What lies there, with no link followed on the way: any stage of a pipeline can make one to another's."""
        handle = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for part in parts:
                above, handle = handle, os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=handle)
                os.close(above)
            yield handle
        finally:
            os.close(handle)


@dataclass
class Store:
    """Indexes by pipeline, kept in memory and read again when their file is another one."""

    source: Source
    _indexes: dict[str, tuple[object, Json | None]] = field(default_factory=dict)
    _names: list[str] = field(default_factory=list)
    _looked: float = -_FRESH
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def indexes(self) -> Mapping[str, Json]:
        """Every pipeline's index by name. A call within two seconds is answered from memory."""
        with self._lock:
            if time.monotonic() - self._looked >= _FRESH:
                self._names = self.source.names()
                for name in self._names:
                    self._index(name)
                for gone in self._indexes.keys() - set(self._names):
                    del self._indexes[gone]
                self._looked = time.monotonic()
            return {n: made for n in self._names if (made := self._indexes.get(n, (None, None))[1]) is not None}

    def index(self, pipeline: str) -> Json | None:
        """One pipeline's index as it is now; UNREADABLE where it is half written or damaged, None without one."""
        if not NAME.fullmatch(pipeline):
            return None
        with self._lock:
            return self._index(pipeline)

    def _index(self, pipeline: str) -> Json | None:
        stamp = self.source.stamp(pipeline, INDEX)
        known = self._indexes.get(pipeline)
        if known is not None and known[0] == stamp:
            return known[1]
        made = (_object(self.source.read(pipeline, INDEX)) or UNREADABLE) if stamp is not None else None
        self._indexes[pipeline] = (stamp, made)
        return made

    def report(self, pipeline: str, run: str) -> Json | None:
        """A run's report.json."""
        return _object(self.file(pipeline, run, "report.json"))

    def file(self, pipeline: str, run: str, name: str) -> bytes | None:
        """One of a run's files; None for what is not there and for what is none of its names."""
        if not (NAME.fullmatch(pipeline) and NAME.fullmatch(run) and FILES.fullmatch(name)):
            return None
        return self.source.read(pipeline, "runs", run, name)

    def data_report(self, pipeline: str, fingerprint: str) -> bytes | None:
        """The HTML page on a data set."""
        if not (NAME.fullmatch(pipeline) and DATA.fullmatch(fingerprint)):
            return None
        return self.source.read(pipeline, "data", f"{fingerprint}.html")

    def progress(self, pipeline: str) -> Json:
        """The run that was announced last: {"run", "run_id", "stages": [{"name", "title", "state", "epoch", ...}]}."""
        if not NAME.fullmatch(pipeline):
            return {}
        announced = _object(self.source.read(pipeline, "progress", "run.json")) or {}
        said: dict[str, Json] = {}
        for name in self.source.listing(pipeline, "progress"):
            if name != "run.json" and name.endswith(".json") and NAME.fullmatch(name):
                note = _object(self.source.read(pipeline, "progress", name))
                if note and isinstance(note.get("stage"), str):
                    said[note["stage"]] = note
        stages = announced.get("stages")
        rows = [s for s in stages if isinstance(s, dict)] if isinstance(stages, list) else []
        run = announced.get("run")
        made = [{**s, **(said.get(str(s.get("name"))) or {})} if _is_of(said, s, run) else s for s in rows]
        bind = said.get("bind")
        if bind and bind.get("state") == "running" and bind.get("run") != run:  # the next run, not yet announced
            return {
                "run": bind.get("run"),
                "run_id": "",
                "stages": [{"name": "bind", "title": "Take the data in", **bind}],
            }
        return {**announced, "stages": made}


def _is_of(said: Mapping[str, Json], stage: Json, run: object) -> bool:
    """Whether a runner has said something of this run's stage; what a stage of an earlier run said is old."""
    note = said.get(str(stage.get("name")))
    return note is not None and note.get("run") == run and stage.get("state") == "waiting"


def _object(data: bytes | None) -> Json | None:
    if data is None:
        return None
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
