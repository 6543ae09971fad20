"""Files of a remote source into a folder: several at a time, resumed, their hashes checked where they are known.

A file appears under its name by one rename, when all of it is there and right; until then it grows in
`parts/`, under a name that the validator (ETag) of the listed object is a part of.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from refit.data.faults import BadData, NoSpace, fault
from refit.data.manifest import Named
from refit.data.remote import Remote
from refit.data.remote.errors import Broken, Restart, Vanished
from refit.data.tree import FileInfo, Tree
from refit.status import StatusWriter

WORKERS = 8
TRIES = 5
RESERVE = 500 << 20  # bytes of the disk that are left free
_TELL_SECONDS = 10.0
_MD5 = re.compile(r'^"([0-9a-f]{32})"$')
_NOTHING = Named()


class Fetch:
    """One fetch. `source` is what messages call it."""

    def __init__(self, source: str, remote: Remote, folder: Path, parts: Path, status: StatusWriter) -> None:
        self._source, self._remote, self._folder, self._parts, self._status = source, remote, folder, parts, status
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._etags_are_md5 = True
        self._had = self._done = 0

    def run(self, tree: Tree, named: Mapping[str, Named]) -> None:
        """Bring what is not there yet. Raises BadData for what has changed or has other bytes than it should, Refused,
        Broken, NoSpace."""
        odd = [fault("not_followed", path, why) for path, why in sorted(tree.skipped.items())]
        if odd:
            raise BadData(self._source, odd)
        todo = [f for f in tree.files.values() if not (self._folder / f.path).exists()]
        total = sum(f.size for f in todo)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._parts.mkdir(exist_ok=True)
        free = shutil.disk_usage(self._folder).free + sum(p.stat().st_size for p in self._parts.iterdir())
        if total + RESERVE > free:
            raise NoSpace(
                f"No space left on device: {self._source} has {total >> 20:,} MiB to fetch, and {self._folder} "
                f"{free >> 20:,} MiB free, of which {RESERVE >> 20} are left; free space, or move the workspace"
            )
        rows = iter(todo)
        told = time.monotonic()
        with ThreadPoolExecutor(WORKERS) as pool:
            try:
                left = {pool.submit(self._work, rows, named) for _ in range(min(WORKERS, len(todo)))}
                while left:
                    ended, left = wait(left, timeout=1, return_when=FIRST_EXCEPTION)
                    for future in ended:
                        future.result()
                    if time.monotonic() - told > _TELL_SECONDS:
                        told = time.monotonic()
                        self._tell(len(todo), total)
            except Vanished as exc:
                raise BadData(
                    self._source, [fault("source_changed", "", f"changed while it was fetched: {exc}")]
                ) from None
            finally:
                self._stop.set()
        self._tell(len(todo), total)
        shutil.rmtree(self._parts)

    def _tell(self, files: int, total: int) -> None:
        if files:
            size = f"{self._had / 2**20:,.0f} of {total / 2**20:,.0f} MiB" if total else f"{self._had / 2**20:,.0f} MiB"
            self._status.running(f"Fetched {self._done} of {files} files, {size}, from {self._source}")

    def _work(self, rows: Iterator[FileInfo], named: Mapping[str, Named]) -> None:
        while not self._stop.is_set():
            with self._lock:
                file = next(rows, None)
            if file is None:
                return
            self._one(file, named.get(file.path, _NOTHING))
            with self._lock:
                self._done += 1

    def _one(self, file: FileInfo, named: Named) -> None:
        part = self._parts / hashlib.sha256(f"{file.path}\0{file.tag}".encode()).hexdigest()[:40]
        wrong = ""
        while True:
            found, md5 = self._bring(file, part, named)
            tag = _MD5.match(file.tag)
            if named.hash is not None and found != named.hash:
                part.unlink()
                text = f"its bytes have the hash {found}, and not {named.hash}, which is named for it"
                raise BadData(self._source, [fault("file_damaged", file.path, text)])
            if named.hash is not None or tag is None or not self._etags_are_md5 or md5 == tag[1]:
                break
            if wrong == md5:  # the same bytes twice: an ETag that is no MD5, as of objects that KMS encrypts
                self._etags_are_md5 = False
                break
            if wrong:
                part.unlink()
                raise Broken(f"{self._source}: {file.path} arrives with other bytes each time; try again")
            wrong = md5
            part.unlink()
        target = self._folder / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(part, target)

    def _bring(self, file: FileInfo, part: Path, named: Named) -> tuple[str, str]:
        """All bytes of a file into `part`; their hash of the kind that is named, and their MD5."""
        failures = 0
        while True:
            before = _size(part)
            try:
                return self._stream(file, part, named)
            except Restart:
                part.unlink(missing_ok=True)
            except Broken:
                failures = 1 if _size(part) > before else failures + 1
                if failures >= TRIES or self._stop.wait(min(2.0**failures, 30) / 2):
                    raise

    def _stream(self, file: FileInfo, part: Path, named: Named) -> tuple[str, str]:
        hashes: list[Any] = [named.hasher(), hashlib.md5(usedforsecurity=False)]
        if not self._remote.resumes(file):
            part.unlink(missing_ok=True)
        with open(part, "a+b") as f:
            f.seek(0)
            while chunk := f.read(1 << 20):
                for h in hashes:
                    h.update(chunk)
            had = f.tell()
            if file.size and had > file.size:
                raise Restart
            if not (file.size and had == file.size):
                with self._lock:
                    self._had += had
                for chunk in self._remote.read(file, had):
                    if self._stop.is_set():
                        raise Broken(f"{self._source}: stopped")
                    f.write(chunk)
                    for h in hashes:
                        h.update(chunk)
                    with self._lock:
                        self._had += len(chunk)
            if file.size and f.tell() != file.size:
                raise Broken(f"{self._source}: {file.path} ended after {f.tell()} of {file.size} bytes")
            if named.size is not None and f.tell() != named.size:
                text = f"has {f.tell()} bytes, and not {named.size}, which are named for it"
                raise BadData(self._source, [fault("file_damaged", file.path, text)])
        return hashes[0].hexdigest(), hashes[1].hexdigest()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
