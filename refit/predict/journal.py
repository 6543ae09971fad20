"""An answer for each image, a line of JSON each, kept as it comes: `answers.jsonl` in the results folder.

    {"schema": 1, "asked": {...}}                                            the first line: whom, and with which limits
    {"file", "stamp", "width", "height", "objects": [[class, score, x1, y1, x2, y2], ...]}
    {"file", "stamp", "code", "error"}                                       an image that cannot be used

`class` is a place in the model's classes, boxes are pixels of the image. `stamp` is [size, ETag or mtime] of the file:
an image that has changed since is asked about again. Lines stand in the order in which the answers came. After a kill
the last line may be torn: it is cut off, and all others count. Another question (model, version, limits) begins anew.
"""

from __future__ import annotations

import json
import os
import time
from array import array
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from refit.data.tree import FileInfo, Files

FILE = "answers.jsonl"
SYNC_SECONDS = 2.0
Row = dict[str, Any]


class Journal:
    """The journal of one batch, open for more answers. One thread uses it.

    Args:
        asked: what decides the answers, as JSON; rows of another question are not used.
        files: the images.
    """

    def __init__(self, folder: Path, asked: Mapping[str, Any], files: Files) -> None:
        self.path = folder / FILE
        self._files = files
        self._at = array("q", [-1]) * len(files)
        folder.mkdir(parents=True, exist_ok=True)
        head = json.dumps({"schema": 1, "asked": dict(asked)}, sort_keys=True).encode() + b"\n"
        whole = self._known(head)
        self._file = open(self.path, "r+b" if whole else "w+b")  # noqa: SIM115 - closed by close()
        if whole:
            self._file.truncate(whole)
            self._file.seek(whole)
        else:
            self._file.write(head)
        self._synced = time.monotonic()
        self.reused = self.done

    @property
    def done(self) -> int:
        """Images with an answer."""
        return len(self._at) - self._at.count(-1)

    def missing(self) -> Iterable[int]:
        """The places in `files` of the images without an answer, in order."""
        return (place for place, at in enumerate(self._at) if at < 0)

    def add(self, rows: Iterable[tuple[int, Row]]) -> None:
        """Keep answers, with the places of their images."""
        for place, row in rows:
            file = self._files.at(place)
            self._at[place] = self._file.tell()
            self._file.write(json.dumps({"file": file.path, "stamp": stamp(file), **row}).encode() + b"\n")
        self._file.flush()  # a killed process loses nothing; a power cut SYNC_SECONDS
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def read(self, place: int) -> Row:
        """The answer of an image that has one. Not to be mixed with `add`."""
        self._file.seek(self._at[place])
        row: Row = json.loads(self._file.readline())
        return row

    def close(self) -> None:
        self._file.close()

    def _known(self, head: bytes) -> int:
        """Take the answers that an earlier run left; gives the bytes up to the end of the last whole line."""
        try:
            with open(self.path, "rb") as f:
                if f.readline() != head:
                    return 0
                at = f.tell()
                for line in f:
                    if not line.endswith(b"\n"):
                        break
                    self._take(at, line)
                    at += len(line)
                return at
        except FileNotFoundError:
            return 0

    def _take(self, at: int, line: bytes) -> None:
        try:
            row = json.loads(line)
            place = self._files.find(row["file"])
            if place >= 0 and row["stamp"] == stamp(self._files.at(place)):
                self._at[place] = at
        except (ValueError, KeyError, TypeError):
            return  # a damaged line: the image is asked about again


def stamp(file: FileInfo) -> list[Any]:
    """What tells whether a file is still the same."""
    return [file.size, file.tag or file.mtime_ns]
