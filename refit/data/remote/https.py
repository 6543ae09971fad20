"""One archive by https, from a public address or a host that was allowed by name (`refit.web`, `refit.hosts`).

The login of the connection (login and password, or a password alone as a bearer token, or `headers` and `query` of its
extra) goes to the host that connection and source name both, never to where it redirects.
"""

from __future__ import annotations

import base64
import http.client
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from refit import web
from refit.data.manifest import Named
from refit.data.remote.connection import Connection, shown
from refit.data.remote.errors import Broken, Refused, Restart, Vanished
from refit.data.source import Source
from refit.data.tree import FileInfo, Tree, of_objects

if TYPE_CHECKING:
    from refit.config import Settings

_CHUNK = 1 << 20
_HOPS = 5
_TIMEOUT = 60.0  # seconds without a byte
_NO_HEAD = (403, 405, 501)  # a signed address may be good for GET alone


class Web:
    """See `refit.data.remote.Remote`."""

    def __init__(self, source: Source, connection: Connection | None, settings: Settings) -> None:
        self._source, self._connection, self._allowed = source, connection, settings.allowed_hosts
        self._url = source.text.partition("#")[0]
        if connection is not None:
            connection.only_to(self._url)
        try:
            self._tls = ssl.create_default_context()
            if settings.ca_file is not None:
                self._tls.load_verify_locations(settings.ca_file)
        except OSError as exc:
            raise Refused(f"REFIT_CA_FILE={settings.ca_file} cannot be used: {exc.strerror or exc}") from None
        if connection is not None and connection.text("query"):
            self._url += ("&" if "?" in self._url else "?") + connection.text("query").lstrip("?")

    def tree(self) -> Tree | None:
        try:
            with self._open("HEAD", {}) as reply:
                info: FileInfo | None = self._info(reply)
        except _Status as exc:
            if exc.code in (404, 410):
                return None
            if exc.code not in _NO_HEAD:
                raise self._failure(exc) from None
            info = self._by_get()
        return of_objects(Path(), [info]) if info else None

    def files(self) -> tuple[Tree, Mapping[str, Named]]:
        return self.tree() or Tree(Path()), {}

    def read(self, file: FileInfo, start: int) -> Iterator[bytes]:
        headers = {"Range": f"bytes={start}-", "If-Range": file.tag} if start else {}
        try:
            reply = self._open("GET", headers)
        except _Status as exc:
            if exc.code in (404, 410):
                raise Vanished(f"{file.path} was there, and is not any more") from None
            if exc.code == 416:
                raise Restart from None
            raise self._failure(exc) from None
        with reply:
            begins, total = web.place_of(reply, 0)
            if start and reply.status != http.HTTPStatus.PARTIAL_CONTENT:
                raise Restart
            if begins != start or total != file.size or self._tag(reply, total) != file.tag:
                raise Vanished(f"{file.path} is not what was listed: it was written anew")
            yield from self._bytes(reply)

    def resumes(self, file: FileInfo) -> bool:
        return file.tag.startswith('"')

    def whole(self, path: str, limit: int) -> bytes:
        raise Refused(f"{self._source}: is one file, and has no {path} beside it")

    def _by_get(self) -> FileInfo | None:
        try:
            with self._open("GET", {"Range": "bytes=0-0"}) as reply:
                return self._info(reply)
        except _Status as exc:
            if exc.code in (404, 410):
                return None
            raise self._failure(exc) from None

    def _bytes(self, reply: Any) -> Iterator[bytes]:
        try:
            while chunk := reply.read(_CHUNK):
                yield chunk
        except (OSError, http.client.HTTPException) as exc:
            raise Broken(f"{self._source}: the connection broke ({type(exc).__name__})") from None

    def _info(self, reply: Any) -> FileInfo:
        if reply.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
            raise Refused(
                f"{self._source}: is a web page, no archive: a share page, a login or a notice; use the link of the "
                "download itself"
            )
        _, size = web.place_of(reply, 0)
        if not size:
            raise Refused(f"{self._source}: the server does not say its size (Content-Length); it is not taken")
        try:
            moment = int(parsedate_to_datetime(reply.headers.get("Last-Modified", "")).timestamp() * 1e9)
        except ValueError:
            moment = 0
        return FileInfo(self._source.name, size, moment, moment, self._tag(reply, size))

    @staticmethod
    def _tag(reply: Any, size: int) -> str:
        """What tells one content from the next: a strong ETag, else what the server says of it."""
        strong = web.strong_etag(reply)
        return strong or f"{reply.headers.get('ETag', '')} {reply.headers.get('Last-Modified', '')} {size}"

    def _open(self, method: str, headers: Mapping[str, str]) -> Any:
        """The answer, redirects followed one by one. Raises _Status for an answer that is an error."""
        at, own = self._url, web.host_of(self._url)
        for _ in range(_HOPS):
            parts = urlsplit(at)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise Refused(f"{self._source}: redirects to something that is no https URL; it is not followed")
            if parts.scheme == "http" and not self._allowed.plain(at):
                raise Refused(
                    f"{self._source}: leads to plain http ({parts.hostname}), which is not followed; allow it by name "
                    f"(REFIT_ALLOWED_HOSTS=http://{parts.hostname}) if that is right"
                )
            public = not self._allowed.private(at)
            login = self._login() if web.host_of(at) == own and parts.scheme == urlsplit(self._url).scheme else {}
            request = urllib.request.Request(  # noqa: S310 - the scheme was looked at
                at, method=method, headers={"User-Agent": "refit", **headers, **login}
            )
            try:
                if public:
                    web.refuse_private_name(parts.hostname)
                return web.opener(public=public, context=self._tls).open(request, timeout=_TIMEOUT)
            except urllib.error.HTTPError as exc:
                exc.close()
                to = exc.headers.get("Location")
                if exc.code not in web.REDIRECTS or not to:
                    raise _Status(exc.code) from None
                at = _joined(at, to)
            except (OSError, http.client.HTTPException, ValueError) as exc:
                raise self._unreached(exc, str(parts.hostname)) from None
        raise Refused(f"{self._source}: redirects more than {_HOPS} times")

    def _unreached(self, exc: Exception, host: str) -> Exception:
        reason = getattr(exc, "reason", exc)
        if isinstance(reason, web.Private):
            return Refused(
                f"{self._source}: leads to {host}, which has the private address {reason.address}; it is not asked: if "
                f"that is right, allow it by name (REFIT_ALLOWED_HOSTS={host})"
            )
        if isinstance(reason, ssl.SSLCertVerificationError):
            return Refused(
                f"{self._source}: the certificate of {host} is not trusted ({reason.verify_message}); an own authority "
                "is named in REFIT_CA_FILE"
            )
        told = reason.strerror if isinstance(reason, OSError) and reason.strerror else type(reason).__name__
        return Broken(f"{self._source}: {host} cannot be reached: {told}")

    def _login(self) -> dict[str, str]:
        c = self._connection
        if c is None:
            return {}
        found = c.table("headers")
        if c.login:
            found["Authorization"] = "Basic " + base64.b64encode(f"{c.login}:{c.password}".encode()).decode()
        elif c.password:
            found["Authorization"] = f"Bearer {c.password}"
        if not all(isinstance(v, str) and (k + v).isascii() and (k + v).isprintable() for k, v in found.items()):
            raise Refused(f"{shown(c)}: a header in its extra, or its password, is not one line of ASCII text")
        return found

    def _failure(self, exc: _Status) -> Exception:
        if exc.code in (401, 403):
            return Refused(
                f"{self._source}: access denied (HTTP {exc.code}) with {shown(self._connection)}; check its login"
            )
        if exc.code in (404, 410):
            return Refused(f"{self._source}: there is no such file (HTTP {exc.code}); check dataset.source")
        return Broken(f"{self._source}: the server answers HTTP {exc.code}")


def _joined(at: str, to: str) -> str:
    """Where a redirect leads; "" where that is no URL: its port may be no number."""
    try:
        url = urljoin(at, to)
        _ = urlsplit(url).port
    except ValueError:
        return ""
    return url


class _Status(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code
