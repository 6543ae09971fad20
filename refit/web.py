"""HTTP with a look at where it leads: to public addresses, or to what is allowed by name.

A URL in a file, or a redirect, is somebody else's word: it must not make this machine ask addresses that only this
machine reaches (cloud metadata, services on loopback or in the cluster). Every address of a name is looked at before
the connection, and the connection goes to one of those, so that a name cannot mean something else a moment later (DNS
rebinding). Behind a proxy, the proxy looks names up: there only addresses that are written out can be refused.

Standard library only; `refit.migrate.fetch`, `refit.ngc` and `refit.data.remote` stand on it.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import urllib.request
from typing import Any
from urllib.parse import urlsplit

REDIRECTS = frozenset({301, 302, 303, 307, 308})
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address


class Private(OSError):
    """A connection that was not made, because it would have led to an address that is not public."""

    def __init__(self, address: str) -> None:
        super().__init__(f"the private address {address}")
        self.address = address


def is_public(address: str) -> bool:
    """Whether an IP address is one of the internet at large, IPv4 addresses inside IPv6 ones looked at as well."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast


def public_addresses(host: str, port: int) -> list[str]:
    """The addresses of a host. Raises Private where one of them is not public, OSError where there is none."""
    found = [str(row[4][0]) for row in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    for address in found:
        if not is_public(address):
            raise Private(address)
    return list(dict.fromkeys(found))


def refuse_private_name(host: str) -> None:
    """Refuse a host that is written as a private address. Raises Private."""
    try:
        private = not is_public(host)
    except ValueError:
        private = host == "localhost" or host.endswith(".localhost")
    if private:
        raise Private(host)


def _connect_public(place: tuple[str, int], timeout: float | None = None, source: Any = None) -> socket.socket:
    """What `socket.create_connection` does, to an address that was looked at."""
    last: OSError | None = None
    for address in public_addresses(*place):
        try:
            return socket.create_connection((address, place[1]), timeout, source)
        except OSError as exc:
            last = exc
    raise last or OSError("the name has no address")


class _PublicHttp(http.client.HTTPConnection):
    def connect(self) -> None:
        _guard(self)
        super().connect()


class _PublicHttps(http.client.HTTPSConnection):
    def connect(self) -> None:
        _guard(self)
        super().connect()


def _guard(connection: http.client.HTTPConnection) -> None:
    # The seam of http.client for how it connects; TLS still checks the certificate against the host's name.
    if not getattr(connection, "_tunnel_host", None):  # through a proxy the connection is to the proxy
        connection._create_connection = _connect_public  # type: ignore[attr-defined]


class _Http(urllib.request.HTTPHandler):
    def __init__(self, public: bool) -> None:
        super().__init__()
        self._public = public

    def http_open(self, req: urllib.request.Request) -> Any:
        guarded = self._public and not req.has_proxy()
        return self.do_open(_PublicHttp if guarded else http.client.HTTPConnection, req)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, public: bool, context: ssl.SSLContext | None) -> None:
        super().__init__(context=context)
        self._public, self._tls = public, context

    def https_open(self, req: urllib.request.Request) -> Any:
        kind = _PublicHttps if self._public else http.client.HTTPSConnection
        return self.do_open(kind, req, context=self._tls)


class _Stay(urllib.request.HTTPRedirectHandler):
    """Redirects are followed by the caller, who looks at each; urllib does not even read where they lead."""

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> None:
        return None

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def opener(*, public: bool, context: ssl.SSLContext | None = None) -> urllib.request.OpenerDirector:
    """Opens URLs without following redirects (they come as HTTPError); `public`: to public addresses only."""
    return urllib.request.build_opener(_Stay, _Http(public), _Https(public, context))


def place_of(reply: Any, had: int) -> tuple[int, int]:
    """Where an answer begins and the size of the whole (0: not said), by Content-Range (RFC 9110, 14.4) or length."""
    span = reply.headers.get("Content-Range")
    if reply.status == http.HTTPStatus.PARTIAL_CONTENT and span:
        try:
            place, total = span.removeprefix("bytes ").split("/")
            return int(place.split("-")[0]), 0 if total == "*" else int(total)
        except ValueError:
            return -1, 0
    length = reply.headers.get("Content-Length")
    return had, had + int(length) if length and length.isdecimal() else 0


def strong_etag(reply: Any) -> str | None:
    """What tells that a file is still the same: only a strong ETag can be asked for (RFC 9110, 13.1.5)."""
    etag = reply.headers.get("ETag")
    return None if etag is None or etag.startswith("W/") else str(etag)


def host_of(url: str) -> str:
    """Host and port of a URL, never the login or the query: signed addresses hold secrets."""
    return urlsplit(url).netloc.rpartition("@")[2]
