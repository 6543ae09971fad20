"""The login for a remote source: an Airflow connection, as Airflow writes it down (a URI or JSON).

In Airflow it comes from Airflow's own store; in a pod and without Airflow from the secret that `source.secret_name`
names, which holds what Airflow's variable of the same name would hold (Airflow's page "Managing Connections").
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from refit import hosts
from refit.data.remote.errors import Refused
from refit.web import host_of


@dataclass(frozen=True)
class Connection:
    """`extra` is a JSON object, `kind` Airflow's conn_type ("" where a secret says none), `host` with the port. Only
    `name` and `kind` are ever shown."""

    name: str
    kind: str = field(default="", repr=False, kw_only=True)
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
                host = unquote(parts.netloc.rpartition("@")[2])
                kind = parts.scheme.replace("-", "_")
                row = {"conn_type": kind, "login": login, "password": password, "host": host}
            if isinstance(extra, str):
                extra = json.loads(extra)
            if not isinstance(extra, dict):
                raise ValueError
            texts = {key: row.get(key) or "" for key in ("login", "password", "host", "conn_type")}
            if not all(isinstance(value, str) for value in texts.values()):
                raise ValueError
            if row.get("port"):
                texts["host"] += f":{int(row['port'])}"
        except (ValueError, TypeError, AttributeError):
            raise Refused(
                f"connection {name}: is neither a URI nor the JSON of an Airflow connection "
                '({"conn_type": "aws", "login": ..., "password": ..., "extra": {...}})'
            ) from None
        return Connection(name, extra=extra, kind=texts.pop("conn_type"), **texts)

    def only_for(self, kind: str) -> None:
        """Raises Refused for a connection of another type than `kind`: its login is meant for something else."""
        if self.kind not in ("", kind):
            raise Refused(f"connection {self.name}: is of type {self.kind}, and {kind} is asked for; name another one")

    def only_to(self, url: str) -> None:
        """Raises Refused where a URL is not of the server that an http connection names: no other gets its login."""
        if self.kind != "https":
            self.only_for("http")
        try:
            if hosts.names(self.host, url):
                return
        except ValueError:
            pass
        raise Refused(
            f"connection {self.name}: does not name {host_of(url)} as its host, and its login goes to no other; write "
            "the host (and port) into the connection, or name another one"
        )

    def text(self, key: str) -> str:
        """An entry of `extra` that is a text, "" where there is none. Raises Refused."""
        value = self.extra.get(key)
        if not isinstance(value, str | None):
            raise Refused(f"connection {self.name}: {key} in its extra is no text")
        return value or ""

    def table(self, key: str) -> dict[str, Any]:
        """An entry of `extra` that is a JSON object, or its text; {} where there is none. Raises Refused."""
        value = self.extra.get(key)
        if isinstance(value, str) and value:
            with contextlib.suppress(ValueError):
                value = json.loads(value)
        if value and not isinstance(value, dict):
            raise Refused(f"connection {self.name}: {key} in its extra is no JSON object")
        return dict(value or {})


def shown(connection: Connection | None) -> str:
    return f"connection {connection.name}" if connection else "no connection (dataset.connection)"
