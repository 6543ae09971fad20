"""A server on loopback that answers as NGC does (refit/ngc/client.py says where its forms are described).

Two of them make one: the API, and the host of signed addresses that downloads are redirected to.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

KEY = "nvapi-" + "k" * 64
OLD_KEY = "bGVnYWN5a2V5"
TOKEN = "eyJ.token.of-the-old-key"
MODEL = "nvidia/tao/pretrained_detectnet_v2"


def zipped(files: Mapping[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as z:
        for name, data in files.items():
            z.writestr(name, data)
    return made.getvalue()


@dataclass
class Asked:
    """A request."""

    path: str
    headers: dict[str, str]


@dataclass
class Ngc:
    """What the server has, and how it behaves."""

    models: dict[str, dict[str, bytes]] = field(
        default_factory=dict
    )  # path of the model -> version -> bytes of its zip
    url: str = ""
    files_url: str = ""
    guests: bool = True
    asked: list[Asked] = field(default_factory=list)
    signed: list[Asked] = field(default_factory=list)
    breaks: list[int] = field(default_factory=list)  # the next downloads end after so many bytes
    content_type: str = "application/zip"
    failures: list[int] = field(default_factory=list)  # status codes of the next questions
    refuse: tuple[int, str] | None = None
    page: int = 2

    def paths(self) -> list[str]:
        return [a.path for a in self.asked]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    ngc: Ngc

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, status: int, body: Any, headers: Mapping[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def fail(self, status: int, code: str, said: str) -> None:
        self.answer(status, {"requestStatus": {"statusCode": code, "statusDescription": said, "requestId": "0"}})


class _Api(_Handler):
    def do_GET(self) -> None:
        self.ngc.asked.append(Asked(self.path, dict(self.headers)))
        parts = urlsplit(self.path)
        if self.ngc.failures:
            self.fail(self.ngc.failures.pop(0), "INTERNAL_ERROR", "try later")
        elif parts.path == "/token":
            self.token()
        elif self.ngc.refuse:
            status, said = self.ngc.refuse
            self.fail(status, "UNAUTHORIZED", said)
        elif self.headers.get("Authorization") not in (None, f"Bearer {KEY}", f"Bearer {TOKEN}"):
            self.fail(401, "UNAUTHORIZED", f"no such key: {self.headers['Authorization'].removeprefix('Bearer ')}")
        elif "Authorization" not in self.headers and not self.ngc.guests:
            self.fail(401, "UNAUTHORIZED", "Please sign in")
        elif "/search/" in parts.path:
            self.search(json.loads(parse_qs(parts.query)["q"][0]))
        else:
            self.model(parts.path)

    def token(self) -> None:
        good = "Basic " + base64.b64encode(f"$oauthtoken:{OLD_KEY}".encode()).decode()
        if self.headers.get("Authorization") == good:
            self.answer(200, {"token": TOKEN, "expires_in": 900})
        else:
            self.fail(401, "UNAUTHORIZED", "Invalid credentials")

    def search(self, question: dict[str, Any]) -> None:
        prefix = question["query"].removeprefix("resourceId:").removesuffix("*")
        fits = [p for p in self.ngc.models if p.startswith(prefix)]
        shown = fits[question["page"] * self.ngc.page :][: self.ngc.page]
        rows = [
            {
                "resourceId": p,
                "name": p.rsplit("/", 1)[-1],
                "displayName": f"TAO {p.rsplit('/', 1)[-1]}",
                "attributes": [{"key": "latestVersionIdStr", "value": next(iter(self.ngc.models[p]))}],
            }
            for p in shown
        ]
        groups = [{"groupValue": g, "resources": rows} for g in ("_scored", "MODEL")]
        self.answer(
            200, {"resultTotal": len(fits), "resultPageTotal": -(-len(fits) // self.ngc.page), "results": groups}
        )

    def model(self, path: str) -> None:
        where = (
            path.removeprefix("/v2/models/").removeprefix("/v2/org/").replace("/team/", "/").replace("/models/", "/")
        )
        name, _, rest = where.partition("/versions")
        versions = self.ngc.models.get(name)
        if versions is None:
            self.fail(404, "NOT_FOUND", "Model could not be found")
        elif not rest:
            rows = [{"versionId": v, "totalSizeInBytes": len(data)} for v, data in versions.items()]
            self.answer(200, {"modelVersions": rows, "requestStatus": {"statusCode": "SUCCESS"}})
        elif rest.removesuffix("/zip").strip("/") not in versions:
            self.fail(404, "NOT_FOUND", "Version could not be found")
        else:
            version = rest.removesuffix("/zip").strip("/")
            target = f"{self.ngc.files_url}/signed/{name}/{version}?Signature=secret-of-the-address"
            self.answer(302, b"", {"Location": target})


class _Files(_Handler):
    def do_GET(self) -> None:
        self.ngc.signed.append(Asked(self.path, dict(self.headers)))
        name, version = urlsplit(self.path).path.removeprefix("/signed/").rsplit("/", 1)
        data = self.ngc.models[name][version]
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        start = 0
        if "Range" in self.headers and self.headers.get("If-Range") in (None, etag):
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        if start and start >= len(data):
            self.answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", self.ngc.content_type)
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("ETag", etag)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        end = start + self.ngc.breaks.pop(0) if self.ngc.breaks else len(data)
        self.wfile.write(data[start:end])
        self.wfile.flush()
        self.close_connection = end < len(data)


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A stage that is killed hangs up in the middle: no news."""


@contextmanager
def serve(ngc: Ngc) -> Iterator[Ngc]:
    """Both servers, as long as the block lasts."""
    servers = []
    for handler in (_Api, _Files):
        bound = type(handler.__name__, (handler,), {"ngc": ngc})
        server = _Server(("127.0.0.1", 0), bound)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
    ngc.url, ngc.files_url = (f"http://127.0.0.1:{s.server_address[1]}" for s in servers)
    try:
        yield ngc
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
