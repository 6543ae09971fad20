"""REFIT_ALLOWED_HOSTS: where Refit may go beside the public internet by https.

Entries, separated by commas: `minio.lab:9000` (that host and port, also at a private address), `minio.lab` (each of its
ports), `http://minio.lab:9000` (plain http as well).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Allowed:
    """What was allowed by name; `entries` as they were written."""

    entries: tuple[str, ...] = ()

    @staticmethod
    def read(text: str) -> Allowed:
        """Raises ValueError for an entry that is none."""
        entries = tuple(e.strip() for e in text.split(",") if e.strip())
        for entry in entries:
            parts = urlsplit(entry if "://" in entry else f"https://{entry}")
            if parts.scheme not in _PORTS or not parts.hostname or parts.path or parts.query or "*" in entry:
                raise ValueError(f"{entry!r} is no host; write HOST, HOST:PORT or http://HOST:PORT")
            _ = parts.port
        return Allowed(entries)

    def __str__(self) -> str:
        return ",".join(self.entries)

    def private(self, url: str) -> bool:
        """Whether a URL may lead to an address that is not public."""
        return self._named(url, self.entries)

    def plain(self, url: str) -> bool:
        """Whether a URL may be read without TLS."""
        return self._named(url, (e for e in self.entries if e.startswith("http://")))

    @staticmethod
    def _named(url: str, entries: Iterable[str]) -> bool:
        return any(names(entry, url) for entry in entries)


def names(entry: str, url: str) -> bool:
    """Whether HOST, HOST:PORT or a URL of it is the server of `url`. Raises ValueError for a port that is none."""
    known, parts = urlsplit(entry if "://" in entry else f"https://{entry}"), urlsplit(url)
    port = parts.port or _PORTS.get(parts.scheme)
    return known.hostname == parts.hostname and known.port in (None, port)


NOTHING = Allowed()
