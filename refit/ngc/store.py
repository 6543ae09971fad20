"""What was downloaded, kept for all runs: `<cache>/<org>/<team>/<name>/<version>/`.

    files/...     what the version's zip holds
    version.json  {"schema": 1, "model", "zip_sha256", "files": [{"path", "bytes", "sha256"}]}

The folder appears by one rename, so it is whole or not there. Beside it lie `.<version>.lock`, which lets one process
download at a time, and `.<version>.zip.part`, which the next one goes on with.
"""

from __future__ import annotations

import contextlib
import fcntl
import fnmatch
import json
import os
import shutil
import uuid
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from refit.archive import DAMAGED, leads_out
from refit.command import StageError
from refit.files import sha256, sync_folder, write_json
from refit.ngc.spec import Model

_SHOWN = 8
_MOST_FILES = 10_000


class StoreError(StageError):
    """An archive or a choice of files that cannot be used; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A file of a version."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A version in the cache."""

    folder: Path
    zip_sha256: str
    files: tuple[Kept, ...]

    def path(self, kept: Kept) -> Path:
        return self.folder / "files" / kept.path


class Store:
    """The folder of one version in the cache."""

    def __init__(self, cache: Path, model: Model) -> None:
        self._model = model
        self._folder = cache / model.group / model.name
        self._final = self._folder / model.version
        self.zip = self._folder / f".{model.version}.zip"

    def entry(self) -> Entry | None:
        """The version, where it is there in full length; the bytes are compared by whoever takes a file."""
        try:
            row = json.loads((self._final / "version.json").read_text(encoding="utf-8"))
            files = tuple(Kept(**f) for f in row["files"])
            if all((self._final / "files" / f.path).stat().st_size == f.bytes for f in files):
                return Entry(self._final, row["zip_sha256"], files)
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return None

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """One process at a time; it is let go of by itself when that process ends."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with open(self._folder / f".{self._model.version}.lock", "a", encoding="utf-8") as f:
            fcntl.flock(f, fcntl.LOCK_EX)
            yield

    def publish(self) -> Entry:
        """Unpack the downloaded zip and put it in place; a broken older folder is taken away. Raises StoreError."""
        staging = self._folder / f".{self._model.version}.tmp-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        try:
            digest = sha256(self.zip)
            try:
                files = unpack(self.zip, staging / "files", str(self._model))
            except StoreError as exc:
                self.zip.unlink()
                raise StoreError(f"{exc}; it was removed: run the stage again, or give it a `path`") from None
            row = {"schema": 1, "model": str(self._model), "zip_sha256": digest, "files": [asdict(f) for f in files]}
            write_json(staging / "version.json", row)
            self.discard()
            os.rename(staging, self._final)
            sync_folder(self._folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        self.zip.unlink()
        return Entry(self._final, digest, tuple(files))

    def discard(self) -> None:
        """Take the version out of the cache."""
        if self._final.exists():
            trash = self._folder / f".{self._model.version}.tmp-old-{uuid.uuid4().hex[:8]}"
            os.rename(self._final, trash)
            shutil.rmtree(trash, ignore_errors=True)


def unpack(archive: Path, folder: Path, called: str, glob: str | None = None) -> list[Kept]:
    """The files of a zip (with a glob: the one that it means) below `folder`. Raises StoreError.

    Refused are what is no zip or damaged, and archives with names that lead out of the folder.
    """
    kept = []
    try:
        with zipfile.ZipFile(archive) as z:
            wanted = {m.filename: m for m in _members(z, called)}
            for path in [pick(list(wanted), glob, called)] if glob else wanted:
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                _extract(z, wanted[path], target)
                kept.append(Kept(path, wanted[path].file_size, sha256(target)))
    except DAMAGED as exc:
        raise StoreError(f"{called}: {_no_zip(archive, exc)}") from None
    return kept


def _members(z: zipfile.ZipFile, called: str) -> list[zipfile.ZipInfo]:
    """The files of a zip, none of which leaves the folder that it is unpacked to."""
    found = [m for m in z.infolist() if not m.is_dir()]
    if not 0 < len(found) <= _MOST_FILES:
        raise StoreError(f"{called}: the archive holds {len(found)} files; 1 to {_MOST_FILES} are expected")
    for m in found:
        if leads_out(m):
            raise StoreError(f"{called}: the archive holds {m.filename!r}, which leads out of it; it is not unpacked")
    return found


def _extract(z: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    with z.open(member) as source, open(target, "xb") as f:
        shutil.copyfileobj(source, f, 1 << 20)
        f.flush()
        os.fsync(f.fileno())
        os.fchmod(f.fileno(), 0o444)


def _no_zip(archive: Path, exc: Exception) -> str:
    try:
        with open(archive, "rb") as f:
            head = f.read(64)
    except OSError:
        head = b""
    if head.lstrip()[:1] == b"<":
        return "what came is a web page, not an archive: a login, or a proxy's notice"
    if not head.startswith(b"PK"):
        return f"what came is no zip (it begins with {head[:8].hex(' ')})"
    return f"the archive is damaged ({exc})"


def pick(paths: Sequence[str], glob: str, called: str) -> str:
    """The one file that a glob on its path or its name means. Raises StoreError that names the candidates."""
    found = [p for p in paths if fnmatch.fnmatchcase(p, glob) or fnmatch.fnmatchcase(PurePosixPath(p).name, glob)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise StoreError(f"{called}: no file fits {glob!r}; it holds {_names(paths)}")
    raise StoreError(f"{called}: {len(found)} files fit {glob!r}: {_names(found)}; say which in file")


def _names(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return ", ".join(sorted(paths)[:_SHOWN]) + more
