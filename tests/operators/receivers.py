"""A webhook and an SMTP server on loopback, which keep what they get; a webhook may be in trouble."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Received:
    """`requests`: (path, headers, body); of an email ("", its addresses as keys, the message). `gave_up`: a receiver in
    trouble has ended an answer by itself."""

    port: int = 0
    gave_up: bool = False
    requests: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)


@contextmanager
def webhook_server(how: str = "") -> Iterator[Received]:
    """`how`: "500", "refuses", "redirect", "hang" (no answer), "drip" (a byte of the answer now and then), "ok" and
    "no_service" (as Slack says), or well."""
    received, over = Received(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            received.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            if how == "hang":
                received.gave_up = not over.wait(120)
                return
            self.send_response(
                {"500": 500, "refuses": 501, "redirect": 307, "ok": 200, "no_service": 404}.get(how, 204)
            )
            if how == "redirect":
                self.send_header("location", "http://127.0.0.1:9/elsewhere")
            if how == "drip":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nx: ")
                while not over.wait(0.2):
                    self.wfile.write(b"x")
                return
            self.end_headers()
            if how in ("ok", "no_service"):
                self.wfile.write(how.encode())

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    with _serving(server, received):
        yield received
        over.set()


@contextmanager
def smtp_server() -> Iterator[Received]:
    """As much of RFC 5321 as smtplib needs to hand over a message."""
    received = Received()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self._say("220 ready")
            addresses: dict[str, str] = {}
            while line := self.rfile.readline().decode().strip():
                word = line.upper().partition(" ")[0].partition(":")[0]
                if word == "RCPT":
                    addresses[line.partition("<")[2].partition(">")[0]] = ""
                if word == "DATA":
                    self._say("354 go on")
                    received.requests.append(("", addresses, self._message()))
                self._say("221 bye" if word == "QUIT" else "250 ok")
                if word == "QUIT":
                    return

        def _message(self) -> bytes:
            lines = []
            while (line := self.rfile.readline()) != b".\r\n":
                lines.append(line.removeprefix(b".") if line.startswith(b"..") else line)
            return b"".join(lines)

        def _say(self, line: str) -> None:
            self.wfile.write(line.encode() + b"\r\n")

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True

    with _serving(Server(("127.0.0.1", 0), Handler), received):
        yield received


@contextmanager
def _serving(server: socketserver.TCPServer, received: Received) -> Iterator[None]:
    received.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
