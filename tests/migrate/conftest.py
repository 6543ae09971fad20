"""`refit import` as a person calls it, and a server on loopback for what it downloads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from refit import cli
from tests.refit.runner_helpers import REPOSITORY


@dataclass
class Called:
    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err


@pytest.fixture
def refit(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Called]:
    monkeypatch.setenv("REFIT_HOME", str(tmp_path / "home"))
    clusters = tmp_path / "clusters"
    clusters.mkdir()
    profile = yaml.safe_load((REPOSITORY / "specs" / "clusters" / "kubernetes.yaml").read_text())
    profile["secrets"] |= {name: {"name": "tao", "key": "key"} for name in ("TAO_KEY", "NGC_API_KEY")}
    (clusters / "kubernetes.yaml").write_text(yaml.safe_dump(profile))
    monkeypatch.setenv("REFIT_CLUSTERS", str(clusters))
    monkeypatch.chdir(tmp_path)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)

    def call(*argv: object) -> Called:
        code = cli.main([str(a) for a in argv])
        said = capsys.readouterr()
        return Called(code, said.out, said.err)

    return call


@dataclass
class Server:
    """`pages`: path -> (status, headers, body)."""

    url: str
    pages: dict[str, tuple[int, dict[str, str], bytes]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def add(self, path: str, body: bytes | str, status: int = 200, **headers: str) -> str:
        raw = body.encode() if isinstance(body, str) else body
        self.pages[path] = (status, {k.replace("_", "-"): v for k, v in headers.items()}, raw)
        return self.url + path


@pytest.fixture
def serve() -> Iterator[Callable[[str], Server]]:
    """Start servers; the argument is the loopback address."""
    running: list[ThreadingHTTPServer] = []

    def start(address: str = "127.0.0.1") -> Server:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.path)
                status, headers, body = server.pages.get(self.path.partition("?")[0], (404, {}, b"no such page"))
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        httpd = ThreadingHTTPServer((address, 0), Handler)
        running.append(httpd)
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        server = Server(f"http://{address}:{httpd.server_address[1]}")
        return server

    yield start
    for httpd in running:
        httpd.shutdown()
        httpd.server_close()
