"""What all pages of the Models view have: head, heading, style sheet, script; and the headers they are sent with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from refit.report.markup import Markup, tag
from refit.report.style import CSS as REPORT_CSS

SCRIPT = Path(__file__).with_name("models.js").read_bytes()
CSS = (REPORT_CSS + Path(__file__).with_name("models.css").read_text(encoding="utf-8")).encode()
STATIC: Mapping[str, tuple[bytes, str]] = {
    "models.js": (SCRIPT, "text/javascript; charset=utf-8"),
    "models.css": (CSS, "text/css; charset=utf-8"),
}
_VERSION = hashlib.sha256(SCRIPT + CSS).hexdigest()[:12]

HEADERS = {
    # Airflow's UI shows the page in a frame of its own.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "private, no-store",
}
SANDBOXED = {
    **HEADERS,
    # Made of names and labels from outside: no script, no form, an origin of its own, nothing fetched.
    "Content-Security-Policy": "sandbox allow-top-navigation-by-user-activation; default-src 'none'; img-src data:; "
    "style-src 'unsafe-inline'; frame-ancestors 'self'",
}


@dataclass(frozen=True)
class Viewer:
    """Who looks: where the pages and Airflow are, and what this user may do.

    root: path of the pages, "/refit" or with what stands before it. airflow: path of Airflow, "" or what stands before.
    may_run: DAGs of which the user may start runs.
    """

    root: str = "/refit"
    airflow: str = ""
    may_run: frozenset[str] = frozenset()

    def page(self, *parts: str, **query: Any) -> str:
        path = "/".join([self.root, *(quote(p, safe="") for p in parts)])
        told = "&".join(f"{k}={quote(str(v), safe='')}" for k, v in query.items() if v not in (None, ""))
        return f"{path}?{told}" if told else path

    def login(self, path: str) -> str:
        """Where Airflow asks who one is, and then goes on to `path`."""
        return f"{self.airflow}/api/v2/auth/login?next={quote(path, safe='')}"

    def dag(self, dag: str, run: str | None = None) -> str:
        """The address in Airflow's UI."""
        path = f"{self.airflow}/dags/{quote(dag, safe='')}"
        return f"{path}/runs/{quote(run, safe='')}" if run else path


@dataclass(frozen=True)
class Going:
    """What Airflow says of a pipeline: its runs that are queued or running, oldest first, as (run id, state).

    asks: one of them waits for a person's answer.
    """

    runs: Sequence[tuple[str, str]] = field(default_factory=tuple)
    asks: bool = False

    @property
    def on(self) -> bool:
        return bool(self.runs)


def page(title: str, viewer: Viewer, *body: object, crumbs: Sequence[tuple[str, str]] = ()) -> str:
    """A whole page; `crumbs` are (name, address) of the pages above it."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{title} - Models"),
        tag("link", rel="stylesheet", href=f"{viewer.root}/static/models.css?{_VERSION}"),
        tag("script", "", src=f"{viewer.root}/static/models.js?{_VERSION}", defer="defer"),
    )
    way = [tag("a", name, href=address) for name, address in crumbs]
    shown = tag("nav", *way, class_="crumbs", aria_label="Pages above") if way else ""
    content = tag("body", shown, *body, data_api=f"{viewer.airflow}/api/v2", data_airflow=viewer.airflow or "/")
    return f"<!DOCTYPE html>\n{tag('html', head, content, lang='en')}\n"


def message(title: str, told: str, viewer: Viewer, login: str = "") -> str:
    """A page that says one thing: what is not there, and where to go on."""
    way = tag("p", in_airflow("Log in", login)) if login else ""
    body = tag("main", tag("section", tag("h1", title), tag("p", told), way))
    return page(title, viewer, body, crumbs=[("Models", viewer.page("models"))])


def in_airflow(name: object, address: str) -> Markup:
    """A link into Airflow's UI: the script opens it in the window, not in the frame of these pages."""
    return tag("a", name, href=address, class_="out", data_out="1")
