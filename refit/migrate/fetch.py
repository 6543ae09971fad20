"""What a URL leads to, fetched with care: by https, within a size, not from a private place behind a public one.

A URL in a downloaded file, or a redirect, is somebody else's word, and leads to public addresses only (`refit.web`).
What the user names himself may be anywhere.
"""

from __future__ import annotations

import http.client
import os
import shutil
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import SplitResult, urljoin, urlsplit, urlunsplit

from refit import archive as archives
from refit import web
from refit.archive import DAMAGED, Damaged, Limits, Unsafe, leads_out
from refit.migrate.secrets import Vault, shown

MIB, GIB = 1 << 20, 1 << 30
SPEC_BYTES, ARCHIVE_BYTES = MIB, 64 * MIB
_MOST_SPECS, _MOST_FILES = 1000, 5_000_000
_HOPS, _CHUNK = 5, 1 << 20


class ImportFault(Exception):
    """What keeps an import from being done; one sentence, without secrets, that says what to do."""


@dataclass(frozen=True)
class Fetcher:
    """How URLs are read. `timeout`: seconds without a byte."""

    vault: Vault
    allow_http: bool = False
    timeout: float = 60

    def read(self, url: str, limit: int, named_by: str = "") -> bytes:
        """The bytes behind a URL, at most `limit`. `named_by`: the file or URL that names it, "" for the user."""
        with self._open(url, named_by) as reply:
            self._sized(url, reply, limit)
            data: bytes = reply.read(limit + 1)
            if len(data) > limit:
                raise ImportFault(f"{place(url)}: more than {_size(limit)}; is this the right file?")
            return data

    def first(self, url: str, named_by: str) -> bytes:
        """The first bytes, to see what it is."""
        with self._open(url, named_by) as reply:
            data: bytes = reply.read(512)
            return data

    def save(self, url: str, target: Path, limit: int, named_by: str) -> None:
        """Download to a file."""
        with self._open(url, named_by) as reply, open(target, "xb") as f:
            length = self._sized(url, reply, limit)
            free = shutil.disk_usage(target.parent).free
            if length and length > free:
                raise ImportFault(f"{place(url)}: {_size(length)}, and {target.parent} has {_size(free)} free")
            had = 0
            while chunk := reply.read(_CHUNK):
                had += len(chunk)
                if had > limit:
                    raise ImportFault(f"{place(url)}: more than {_size(limit)}; raise --max-gib if that is right")
                f.write(chunk)
            if length and had != length:
                raise ImportFault(f"{place(url)}: ended after {_size(had)} of {_size(length)}; try again")

    def _sized(self, url: str, reply: Any, limit: int) -> int:
        length = reply.headers.get("Content-Length", "")
        size = int(length) if length.isdecimal() else 0
        if size > limit:
            raise ImportFault(f"{place(url)}: {_size(size)}, and at most {_size(limit)} are taken")
        return size

    def _open(self, url: str, named_by: str) -> Any:
        trusted = not named_by or _host(url) == _host(named_by)
        at = url
        for _ in range(_HOPS):
            self._allowed(at)
            opener = web.opener(public=not trusted)
            request = urllib.request.Request(  # noqa: S310 - `_allowed` has looked at the scheme
                self.vault.reveal(at), headers={"User-Agent": "refit-import"}
            )
            try:
                if not trusted:
                    web.refuse_private_name(_host(at)[0] or "")  # behind a proxy, only this can be seen
                return opener.open(request, timeout=self.timeout)
            except urllib.error.HTTPError as exc:
                exc.close()
                if exc.code not in web.REDIRECTS or not exc.headers.get("Location"):
                    raise ImportFault(
                        f"{place(at)}: the server answers {exc.code} {exc.reason}; {_advice(exc.code)}"
                    ) from None
                try:
                    to = urljoin(self.vault.reveal(at), exc.headers["Location"])
                    _ = _parts(to).port
                except ValueError:  # half an IPv6 address, a port that is no number
                    raise ImportFault(f"{place(at)}: redirects to something that is no URL") from None
                if _parts(at).scheme == "https" and _parts(to).scheme != "https":
                    raise ImportFault(
                        f"{place(at)}: redirects to plain http ({place(to)}), which is not followed"
                    ) from None
                trusted = trusted and _host(to) == _host(at)
                at = to
            except (OSError, http.client.HTTPException, ValueError) as exc:
                reason = getattr(exc, "reason", exc)
                if isinstance(reason, web.Private):
                    raise ImportFault(
                        f"{place(at)}: leads to the private address {reason.address}, and "
                        f"{place(named_by) if named_by else 'a redirect of ' + place(url)} named it; it is not asked: "
                        "if that is right, name it yourself"
                    ) from None
                told = reason.strerror if isinstance(reason, OSError) and reason.strerror else type(reason).__name__
                raise ImportFault(f"{place(at)}: cannot be reached: {told}") from None
        raise ImportFault(f"{place(url)}: redirects more than {_HOPS} times")

    def _allowed(self, url: str) -> None:
        parts = _parts(url)
        if parts.scheme == "http" and not self.allow_http:
            raise ImportFault(
                f"{place(url)}: plain http: anyone on the way can change what comes; use https, or --allow-http"
            )
        if parts.scheme not in ("http", "https") or not _host(url)[0]:
            raise ImportFault(f"{place(url)}: only https URLs are read; download it, and name the file")


def is_url(name: str) -> bool:
    return "://" in name


def place(url: str) -> str:
    """A URL as people may see it: without login and query, which may hold secrets."""
    if not is_url(url):
        return url
    parts = _parts(url)
    return shown(urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", "")))


def no_zip(head: bytes) -> str:
    """Why bytes are no zip archive, "" where they may be one."""
    if head.startswith(b"PK"):
        return ""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:15].lower()
    if text.startswith(b"<"):
        return "is a web page, no zip: a share page, a login or a notice; use the link of the download itself"
    if not head:
        return "is empty, no zip"
    return f"is no zip (it begins with {head[:8].hex(' ')})"


def members(z: zipfile.ZipFile, called: str, most: int) -> Iterator[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """The files of a zip, none of which leaves the folder that it is unpacked to."""
    infos = z.infolist()
    if len(infos) > most:
        raise ImportFault(f"{called}: holds {len(infos)} entries, and at most {most} are taken")
    for info in infos:
        path = PurePosixPath(info.filename)
        if leads_out(info):
            raise ImportFault(f"{called}: holds {info.filename!r}, which leads out of it or is no file; not unpacked")
        if info.flag_bits & 1:
            raise ImportFault(f"{called}: is protected by a password; unpack it, and name the folder")
        if not info.is_dir() and "__MACOSX" not in path.parts:
            yield info, path


def texts_of_zip(data: IO[bytes], called: str) -> dict[str, str]:
    """The text files of a small zip by path; others are left out."""
    found: dict[str, str] = {}
    room = ARCHIVE_BYTES
    try:
        with zipfile.ZipFile(data) as z:
            for info, path in members(z, called, _MOST_SPECS):
                if path.suffix.lower() not in (".txt", ".yaml", ".yml", ".json", ".prototxt", ".cfg", ".config", ""):
                    continue
                with z.open(info) as f:
                    raw = f.read(SPEC_BYTES + 1)
                room -= len(raw)
                if len(raw) > SPEC_BYTES or room < 0:
                    raise ImportFault(f"{called}: {path} is too large for a spec")
                text = as_text(raw)
                if text is not None:
                    found[str(path)] = text
    except DAMAGED as exc:
        raise ImportFault(f"{called}: a damaged zip ({exc}); download it again") from None
    return found


def unpack(archive: Path, folder: Path, called: str, limit: int) -> int:
    """Unpack a data set's zip below `folder`, at most `limit` bytes; gives the number of files."""
    try:
        return archives.unpack(archive, folder, Limits(min(limit, shutil.disk_usage(folder).free), _MOST_FILES))
    except Unsafe as exc:
        raise ImportFault(f"{called}: {exc}; not unpacked") from None
    except Damaged as exc:
        raise ImportFault(f"{called}: a damaged zip ({exc}); download it again") from None


def data_set(fetcher: Fetcher, url: str, folder: Path, named_by: str, limit: int) -> int:
    """Download a data set's zip and unpack it as `folder`, which must not be there; whole or not at all."""
    if os.path.lexists(folder):
        raise ImportFault(f"{folder}: is there already; nothing is overwritten: name another --data, or take it away")
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
    archive = folder.with_name(f".{folder.name}.zip.tmp-{os.getpid()}")
    try:
        aside.mkdir()
        fetcher.save(url, archive, limit, named_by)
        with open(archive, "rb") as f:
            bad = no_zip(f.read(64))
        if bad:
            raise ImportFault(f"{place(url)}: {bad}")
        count = unpack(archive, aside, place(url), limit)
        os.rename(aside, folder)
        return count
    finally:
        archive.unlink(missing_ok=True)
        shutil.rmtree(aside, ignore_errors=True)


def as_text(raw: bytes) -> str | None:
    """UTF-8 text, None where it is something else."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def _host(url: str) -> tuple[str | None, int | None]:
    parts = _parts(url)
    try:
        return parts.hostname, parts.port
    except ValueError as exc:  # a port that is none
        raise ImportFault(f"{place(url)}: {exc}") from None


def _parts(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError as exc:
        raise ImportFault(f"{url.partition('://')[0]}://...: is no URL: {exc}") from None


def _advice(code: int) -> str:
    if code in (401, 403):
        return "it wants a login, or a link that has expired"
    return "check the URL" if code in (404, 410) else "try again"


def _size(count: int) -> str:
    for unit, size in (("GiB", GIB), ("MiB", MIB), ("KiB", 1024)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
