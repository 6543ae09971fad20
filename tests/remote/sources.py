"""The servers, and what the tests put there."""

from __future__ import annotations

import hashlib
import json
import ssl
import subprocess
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from obstore.store import S3Store

from refit.data.remote.connection import Connection
from refit.runtime.local import EnvironmentMissing, interpreter

KEY, SECRET = "KEY-ID-PLANTED-BY-TESTS", "planted+secret/of-the-tests"


def s3_python() -> Path:
    """The Python of the environment `s3`."""
    try:
        return interpreter("s3")
    except EnvironmentMissing as exc:
        pytest.skip(f"no S3 server: {exc}")


@dataclass
class S3:
    url: str

    def __call__(self, method: str, path: str, data: bytes = b"", **headers: str) -> bytes:
        kind = {"Content-Type": "application/octet-stream"}  # the default is a form, which moto would read
        request = urllib.request.Request(f"{self.url}/{path}", data, {**kind, **headers}, method=method)
        with urllib.request.urlopen(request) as reply:
            return bytes(reply.read())

    def bucket(self, name: str) -> None:
        self("PUT", name)

    def put(self, bucket: str, files: Mapping[str, bytes]) -> None:
        for key, data in files.items():
            if key.endswith("/"):
                self("PUT", f"{bucket}/{key}", data)
            else:
                self.store(bucket).put(key, data)

    def store(self, bucket: str) -> S3Store:
        """The bucket with a login that may do everything."""
        login = {"access_key_id": KEY, "secret_access_key": SECRET, "region": "us-east-1"}
        return S3Store(bucket, endpoint=self.url, client_options={"allow_http": True}, **login)

    def folder(self, bucket: str, prefix: str, folder: Path) -> None:
        """Put a folder's files."""
        found = sorted(p for p in folder.rglob("*") if p.is_file())
        self.put(bucket, {f"{prefix}/{p.relative_to(folder)}": p.read_bytes() for p in found})

    def deny(self, denied: bool = True) -> None:
        """From now on (or not any more) keys are looked at, and nobody has one that is good."""
        self("POST", "moto-api/reset-auth", b"0" if denied else b"1000000")

    def login(self, **extra: str) -> str:
        """An Airflow connection, as JSON."""
        known = {"endpoint_url": self.url, "region_name": "us-east-1", **extra}
        return json.dumps({"conn_type": "aws", "login": KEY, "password": SECRET, "extra": known})

    @property
    def connection(self) -> Connection:
        return Connection.read("lab", self.login())

    @property
    def allowed(self) -> str:
        return self.url


@contextmanager
def s3_server() -> Iterator[S3]:
    process = subprocess.Popen(
        [s3_python(), Path(__file__).with_name("moto_server.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        server = S3(f"http://127.0.0.1:{int(process.stdout.readline())}")
        server.deny(False)
        yield server
    finally:
        process.communicate()


@dataclass
class Page:
    """What a path answers. `breaks`: the next answers end after so many bytes of the body."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    etag: str | None = None
    head: int = 200
    ranges: bool = True
    breaks: list[int] = field(default_factory=list)


@dataclass
class Https:
    url: str
    ca: Path
    pages: dict[str, Page] = field(default_factory=dict)
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)

    def add(self, path: str, body: bytes, **more: Any) -> Page:
        page = self.pages[path] = Page(body, etag=f'"{hashlib.sha256(body).hexdigest()[:16]}"')
        for name, value in more.items():
            setattr(page, name, value)
        return page

    @property
    def host(self) -> str:
        return self.url.removeprefix("https://").removeprefix("http://")


@contextmanager
def https_server(folder: Path, tls: bool = True) -> Iterator[Https]:
    """A server on loopback by the name of localhost."""
    if tls and not (folder / "client.pem").exists():
        words = ["-m", "trustme", "-q", "-d", str(folder), "-i", "localhost"]
        subprocess.run([s3_python(), *words], check=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    scheme = "http"
    if tls:
        scheme = "https"
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "server.pem", folder / "server.key")
        server.socket = context.wrap_socket(server.socket, server_side=True)
    site = Https(f"{scheme}://localhost:{server.server_address[1]}", folder / "client.pem")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            site.asked.append((self.command, self.path, dict(self.headers)))
            page = site.pages.get(self.path, Page(b"none", 404))
            status = page.status if body or page.head == 200 else page.head
            start = 0
            span = self.headers.get("Range", "")
            if status == 200 and page.ranges and span and self.headers.get("If-Range") in (None, page.etag):
                status, start = 206, int(span.removeprefix("bytes=").split("-")[0])
            self.send_response(status)
            data = page.body[start:] if status != 206 or not span.endswith("-0") else page.body[:1]
            if status == 206:
                self.send_header("Content-Range", f"bytes {start}-{start + len(data) - 1}/{len(page.body)}")
            if page.etag:
                self.send_header("ETag", page.etag)
            self.send_header("Last-Modified", formatdate(1_700_000_000, usegmt=True))
            for name, value in page.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                if page.breaks:
                    self.wfile.write(data[: page.breaks.pop(0)])
                    self.close_connection = True
                else:
                    self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    server.RequestHandlerClass = Handler
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
