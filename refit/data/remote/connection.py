"""The login for a remote source: an Airflow connection, as Airflow writes it down (a URI or JSON).

In Airflow it comes from Airflow's own store; in a pod and without Airflow from the secret that `source.secret_name`
names, which holds what Airflow's variable of the same name would hold (Airflow's page "Managing Connections").
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from refit.data.remote.errors import Refused

_MIN = 4  # characters: blotting out anything shorter would blot out ordinary words and protect nothing


@dataclass(frozen=True)
class Connection:
    """`extra` is a JSON object. Only `name` is ever shown."""

    name: str
    login: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    host: str = field(default="", repr=False)
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @staticmethod
    def read(name: str, text: str) -> Connection:
        """From JSON or a URI. Raises Refused; its message holds nothing of the text."""
        text = text.strip()
        try:
            if text.startswith("{"):
                row = json.loads(text)
                extra = row.get("extra") or {}
            else:
                parts = urlsplit(text)
                if not parts.scheme:
                    raise ValueError
                extra = dict(parse_qsl(parts.query, keep_blank_values=True))
                extra = extra.get("__extra__", extra)
                login, password = unquote(parts.username or ""), unquote(parts.password or "")
                row = {"login": login, "password": password, "host": unquote(parts.hostname or "")}
            if isinstance(extra, str):
                extra = json.loads(extra)
            if not isinstance(extra, dict):
                raise ValueError
            texts = {key: row.get(key) or "" for key in ("login", "password", "host")}
            if not all(isinstance(value, str) for value in texts.values()):
                raise ValueError
        except (ValueError, AttributeError):
            raise Refused(
                f"connection {name}: is neither a URI nor the JSON of an Airflow connection "
                '({"conn_type": "aws", "login": ..., "password": ..., "extra": {...}})'
            ) from None
        return Connection(name, extra=extra, **texts)

    def text(self, key: str) -> str:
        """An entry of `extra` as text, "" where there is none."""
        value = self.extra.get(key)
        return "" if value is None else value if isinstance(value, str) else json.dumps(value)

    def scrubbed(self, text: str) -> str:
        """The text without anything that may be secret in this connection."""
        for value in sorted(self._secrets(self.extra), key=len, reverse=True):
            text = text.replace(value, "***")
        return text

    def _secrets(self, value: Any) -> Iterator[str]:
        if value is self.extra:
            yield from (v for v in (self.login, self.password) if len(v) >= _MIN)
        if isinstance(value, str) and len(value) >= _MIN:
            yield value
            yield from (line for line in value.splitlines() if len(line) >= 2 * _MIN)
        if isinstance(value, dict):
            for name, inner in value.items():
                if name not in _OPEN:
                    yield from self._secrets(inner)
        if isinstance(value, list):
            for inner in value:
                yield from self._secrets(inner)


_OPEN = frozenset({"region_name", "endpoint_url", "account_name", "project", "scope", "type", "conn_type"})


def shown(connection: Connection | None) -> str:
    return f"connection {connection.name}" if connection else "no connection (dataset.connection)"
