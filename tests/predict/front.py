"""A server in front of Triton that passes everything on, but for requests that it was told to spoil."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_PASSED = ("content-type", "inference-header-content-length")
# What Triton answers where `max_queue_size` of dynamic batching is reached (src/http_server.cc: UNAVAILABLE is 503).
FULL = json.dumps({"error": "[request id: <id_unknown>] Exceeds maximum queue size"}).encode()


@dataclass
class Front:
    """`spoil`: for the next inference requests, "full" (its queue is full) or "broken" (no answer)."""

    url: str = ""
    spoil: list[str] = field(default_factory=list)
    spoiled: int = 0


@contextmanager
def front_of(triton: str) -> Iterator[Front]:
    front = Front()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._pass()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            with lock:
                how = front.spoil.pop() if front.spoil and self.path.endswith("/infer") else ""
                front.spoiled += bool(how)
            if how == "full":
                self._answer(503, {"content-type": "application/json"}, FULL)
            elif how:
                self.connection.close()
                self.close_connection = True
            else:
                self._pass(body)

        def _pass(self, body: bytes | None = None) -> None:
            there = http.client.HTTPConnection(urlsplit(triton).netloc)
            there.request(
                self.command, self.path, body, {k: v for k, v in self.headers.items() if k.lower() in _PASSED}
            )
            reply = there.getresponse()
            data = reply.read()
            self._answer(reply.status, {k: v for k, v in reply.getheaders() if k.lower() in _PASSED}, data)
            there.close()

        def _answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
            self.send_response(status)
            for name, value in {**headers, "content-length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    front.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield front
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
