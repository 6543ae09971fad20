"""A manifest: a file that comes with a data set and names its files, with sizes or hashes where it knows them.

Standard library only: Airflow's triggerer reads it to know whether an arrival is complete. Forms, see `parse`:

    8c7d...e1  images/a.jpg                      lines of sha256sum (also of md5sum), or a path alone
    {"files": [{"path": "images/a.jpg", "size": 1234, "sha256": "8c7d...e1"}]}      the list alone will do, too
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from refit.data.tree import FileInfo

MOST_BYTES = 256 << 20
_LINE = re.compile(r"^(?:([0-9a-fA-F]{64}|[0-9a-fA-F]{32})\s+\*?)?(\S.*?)\s*$")
_HASH = re.compile(r"^([0-9a-f]{64}|[0-9a-f]{32})$")


class BadManifest(ValueError):
    """A manifest that cannot be understood; the message names the line or entry."""


@dataclass(frozen=True, slots=True)
class Named:
    """What is known of a file: its size in bytes, the hex sha256 or md5 of its content; None: not said."""

    size: int | None = None
    hash: str | None = None

    def hasher(self) -> Any:
        """A new hash object of the kind that `hash` is."""
        return hashlib.sha256() if self.hash is None or len(self.hash) == 64 else hashlib.md5(usedforsecurity=False)


@dataclass(frozen=True, slots=True)
class Manifest:
    """The files that a manifest names; `stamp` tells whether the manifest itself is still the one that was read."""

    files: Mapping[str, Named]
    stamp: tuple[int, int, str] = (0, 0, "")

    def missing(self, there: Mapping[str, FileInfo]) -> list[str]:
        """The files that are not there in full, by the sizes of a listing."""
        return [
            path
            for path, named in self.files.items()
            if path not in there or (named.size is not None and there[path].size != named.size)
        ]


def stamp(info: FileInfo) -> tuple[int, int, str]:
    return (info.size, info.mtime_ns, info.tag)


def parse(data: bytes, name: str) -> Mapping[str, Named]:
    """The files that a manifest names, by path below the data set's root. Raises BadManifest."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadManifest(f"{name} is no UTF-8 text") from None
    rows = _of_json(text, name) if text.lstrip()[:1] in ("{", "[") else _of_lines(text, name)
    found: dict[str, Named] = {}
    for where, path, named in rows:
        pure = PurePosixPath(path)
        if pure.is_absolute() or ".." in pure.parts or not pure.parts or not path.isprintable():
            raise BadManifest(f"{where}: {path!r} is no path below the data set's root")
        if found.setdefault(str(pure), named) != named:
            raise BadManifest(f"{where}: {path!r} is named twice, and differently")
    if not found:
        raise BadManifest(f"{name} names no files")
    return found


def _of_lines(text: str, name: str) -> list[tuple[str, str, Named]]:
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.match(line)
        assert match is not None, "a line with something in it matches"
        rows.append(
            (f"{name}:{number}", match[2].removeprefix("./"), Named(hash=match[1].lower() if match[1] else None))
        )
    return rows


def _of_json(text: str, name: str) -> list[tuple[str, str, Named]]:
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise BadManifest(f"{name} is no JSON: {exc}") from None
    entries = whole.get("files") if isinstance(whole, dict) else whole
    if not isinstance(entries, list):
        raise BadManifest(f'{name} has no list "files"')
    rows = []
    for number, entry in enumerate(entries, 1):
        where = f"{name}, file {number}"
        row = {"path": entry} if isinstance(entry, str) else entry
        if not isinstance(row, dict) or not isinstance(row.get("path"), str):
            raise BadManifest(f'{where}: has no "path"')
        size, digest = row.get("size"), row.get("sha256", row.get("md5"))
        if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 0):
            raise BadManifest(f'{where}: "size" is {size!r}, and no number of bytes')
        if digest is not None and not (isinstance(digest, str) and _HASH.match(digest.lower())):
            raise BadManifest(f"{where}: {digest!r} is no sha256 (or md5)")
        rows.append((where, row["path"], Named(size, digest.lower() if digest else None)))
    return rows
