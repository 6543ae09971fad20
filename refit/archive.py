"""Archives of somebody else's: what must be looked at before one is unpacked, and how a damaged one shows."""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import lzma
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

_CHUNK = 1 << 20
_MOST_HEADER = 16 << 20
_MOST_NAME = 255  # bytes of a file's name in the file systems of Linux
_MOST_PATH = 1024  # bytes of a path, as of S3's keys

# What the zipfile module raises in the middle of a damaged archive, or of one by a method that it does not know.
DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    IndexError,
)


def leads_out(info: zipfile.ZipInfo) -> bool:
    """Whether an entry's name leaves the folder that it is unpacked to, on any system, or it is no file or folder."""
    odd = stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR)
    return odd or _leaves(info.filename)


def _leaves(name: str) -> bool:
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts or "\\" in name or ":" in "".join(path.parts[:1])


class Unsafe(ValueError):
    """An archive that is not unpacked, or not further; the text names the entry and says why."""


class Damaged(ValueError):
    """An archive that does not open whole."""


@dataclass(frozen=True)
class Limits:
    """What an archive may become: bytes in all, entries, bytes for each of its own bytes (more than `free` bytes)."""

    bytes: int
    files: int = 2_000_000
    ratio: int = 200
    free: int = 64 << 20


Names = dict[str, tuple[str, bool]]  # folded name -> the name, whether it is a folder


@dataclass(frozen=True)
class _Entry:
    name: str
    folder: bool
    open: Callable[[], IO[bytes] | None]


def unpack(
    archive: Path,
    folder: Path,
    limits: Limits,
    names: Names | None = None,
    digests: dict[str, str] | None = None,
) -> int:
    """Unpack a zip or tar (also compressed by gzip) below `folder`; gives the number of files.

    `names` is kept by the caller where several archives make one data set, and so are `digests`: of each file's bytes,
    by its path. Nothing is written outside of `folder`, through a link, or over a file. Raises Unsafe and Damaged; then
    what was unpacked is of no use.
    """
    with open(archive, "rb") as f:
        head = f.read(4)
    size = archive.stat().st_size
    out = _Unpacker(folder, limits, size, {} if names is None else names, {} if digests is None else digests)
    try:
        if head.startswith(b"PK"):
            with zipfile.ZipFile(archive) as z:
                out.take(_zip_entries(z))
        else:
            with contextlib.ExitStack() as opened:
                raw: IO[bytes] = opened.enter_context(open(archive, "rb"))
                if head.startswith(b"\x1f\x8b"):
                    raw = cast(IO[bytes], opened.enter_context(gzip.GzipFile(fileobj=raw)))
                small = _Small(raw)
                tar = opened.enter_context(tarfile.TarFile(fileobj=cast(Any, small)))
                out.take(_tar_entries(tar))
                if small.last.strip(b"\0") or not small.last:
                    raise tarfile.ReadError("the mark of its end is missing")
    except (*DAMAGED, tarfile.TarError, gzip.BadGzipFile, UnicodeError) as exc:
        raise Damaged(_damage(head, exc)) from None
    if not out.count:
        raise Damaged("it holds no files")
    return out.count


class _Unpacker:
    def __init__(self, folder: Path, limits: Limits, size: int, names: Names, digests: dict[str, str]) -> None:
        self._folder, self._limits, self._names, self._digests = folder, limits, names, digests
        self._room = min(limits.bytes, limits.free + size * limits.ratio)
        self.count = 0

    def take(self, entries: Iterable[_Entry]) -> None:
        for number, entry in enumerate(entries, 1):
            if number > self._limits.files:
                raise Unsafe(f"it holds more than {self._limits.files:,} entries")
            path = _path(entry.name)
            self._new(path, entry.folder)
            target = self._folder / path
            if entry.folder:
                target.mkdir(parents=True, exist_ok=True)
                continue
            source = entry.open()
            if source is None:
                raise Unsafe(f"{entry.name!r} is no file")
            target.parent.mkdir(parents=True, exist_ok=True)
            with source, open(target, "xb") as f:
                self._digests[str(path)] = self._copy(source, f)
            self.count += 1

    def _copy(self, source: IO[bytes], target: IO[bytes]) -> str:
        digest = hashlib.blake2b(digest_size=16)
        while chunk := source.read(_CHUNK):
            self._room -= len(chunk)
            if self._room < 0:
                raise Unsafe(
                    f"it unpacks to more than {self._limits.bytes >> 20:,} MiB, or than {self._limits.ratio} times its "
                    "own size (a bomb?)"
                )
            target.write(chunk)
            digest.update(chunk)
        return digest.hexdigest()

    def _new(self, path: PurePosixPath, folder: bool) -> None:
        """Refuse a name that is there twice, also where capitals or the form of accents do not count."""
        for part in (*reversed(path.parents[:-1]), path):
            name = (str(part), folder or part != path)
            known = self._names.setdefault(unicodedata.normalize("NFC", name[0]).casefold(), name)
            if known is not name and not (known == name and name[1]):
                both = f"{known[0]!r} and {name[0]!r}, which are one name on some systems"
                raise Unsafe(f"it holds {both if known[0] != name[0] else f'{name[0]!r} twice'}")


def _path(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if _leaves(name) or not path.parts:
        raise Unsafe(f"it holds {name!r}, which leads out of it")
    size = len(name.encode("utf-8", "replace"))
    part = max(len(part.encode("utf-8", "replace")) for part in path.parts)
    if not name.isprintable() or size > _MOST_PATH or part > _MOST_NAME:
        raise Unsafe(f"it holds {name[:200]!r}, which cannot be a file's name")
    return path


def _zip_entries(z: zipfile.ZipFile) -> Iterator[_Entry]:
    for info in z.infolist():
        if leads_out(info):
            raise Unsafe(f"it holds {info.filename!r}, which leads out of it or is no file")
        if info.flag_bits & 1:
            raise Unsafe("it is protected by a password")
        if "\0" in info.orig_filename:  # there `filename` ends: the file would come out under another name
            raise Unsafe(f"it holds {info.orig_filename[:200]!r}, which cannot be a file's name")
        yield _Entry(info.filename, info.is_dir(), functools.partial(z.open, info))


def _tar_entries(tar: tarfile.TarFile) -> Iterator[_Entry]:
    for info in tar:
        if not (info.isreg() or info.isdir()):
            raise Unsafe(f"it holds {info.name!r}, which is a link or a device, and no file")
        if info.isdir() and info.name in (".", "./"):
            continue
        yield _Entry(info.name, info.isdir(), functools.partial(tar.extractfile, info))
        tar.members = []  # type: ignore[attr-defined] # it keeps all that it has seen


class _Small:
    """What a tar is read from: no header of its makes one read of more than a few MiB."""

    name = mode = ""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw, self.last = raw, b""

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MOST_HEADER:
            raise Unsafe("it holds a header of absurd size")
        self.last = self._raw.read(size)
        return self.last

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()


def _damage(head: bytes, exc: Exception) -> str:
    if head.lstrip()[:1] == b"<":
        return "what came is a web page: a login, or a notice"
    if not head:
        return "it is empty"
    return f"it does not open whole ({str(exc) or type(exc).__name__})"
