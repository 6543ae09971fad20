"""A PostgreSQL of the tests' own: in a folder of its own, on loopback, as a user that is not root."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.cluster import wait

USER = "postgres"  # Debian's package makes this account; initdb and the server refuse to run as root


class PostgresMissing(Exception):
    """This machine has no PostgreSQL server; the message says what to do."""


def programs() -> Path:
    """The folder with initdb and postgres; as root on Debian the package is installed where it is missing.

    Raises PostgresMissing.
    """
    if found := _find():
        return found
    if os.geteuid() == 0 and shutil.which("apt-get"):
        # RUNLEVEL: the package would start a server of its own.
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
        words = ["apt-get", "install", "-y", "--no-install-recommends", "postgresql"]
        subprocess.run(["apt-get", "update"], env=env, capture_output=True, check=False)
        done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
        if found := _find():
            return found
        raise PostgresMissing(f"`{' '.join(words)}` failed: {done.stderr.strip()[-500:]}")
    raise PostgresMissing("there is no PostgreSQL server: install it (Debian, Ubuntu: apt-get install postgresql)")


def _find() -> Path | None:
    folders = [p.parent for p in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    newest_first = sorted(folders, key=lambda p: int(p.parent.name) if p.parent.name.isdigit() else 0, reverse=True)
    on_path = shutil.which("postgres")
    return next(iter(newest_first), Path(on_path).parent if on_path else None)


class Postgres:
    """A server in `folder`. address: as SQLAlchemy writes it; it stays the same after `kill` and `start`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "log"
        self._binaries = programs()
        self._account: dict[str, Any] = {"user": USER, "extra_groups": []} if os.geteuid() == 0 else {}
        password = secrets.token_hex(16)
        file = folder / "password"
        file.write_text(password)
        if self._account:
            owner = pwd.getpwnam(USER)
            for path in (folder, file):
                os.chown(path, owner.pw_uid, owner.pw_gid)
        file.chmod(0o600)
        words = [self._binaries / "initdb", "-D", folder / "data", "-U", "airflow", "-E", "UTF8", "--locale=C", "-N"]
        done = subprocess.run(
            [*words, "-A", "scram-sha-256", f"--pwfile={file}"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            **self._account,
        )
        assert done.returncode == 0, done.stderr
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.address = f"postgresql+psycopg2://airflow:{password}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        options = {"listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": "", "fsync": "off"}
        with open(self.log, "wb") as out:
            self.server = subprocess.Popen(
                [self._binaries / "postgres", "-D", self.folder / "data", *(f"--{k}={v}" for k, v in options.items())],
                cwd=self.folder,
                stdout=out,
                stderr=out,
                start_new_session=True,
                **self._account,
            )
        wait("PostgreSQL", self._answers, 60)

    def kill(self) -> None:
        """SIGKILL for the server and its sessions."""
        os.killpg(self.server.pid, signal.SIGKILL)
        self.server.wait(60)

    def stop(self) -> None:
        self.server.send_signal(signal.SIGINT)  # "fast": open sessions are ended
        self.server.wait(60)

    def _answers(self) -> bool:
        assert self.server.poll() is None, self.log.read_text()
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0 and "ready to accept" in self.log.read_text()


@contextmanager
def database() -> Iterator[Postgres]:
    """Run a server, its files in a temporary folder, until the end."""
    with tempfile.TemporaryDirectory(prefix="refit-postgres-") as folder:
        server = Postgres(Path(folder))
        try:
            server.start()
            yield server
        finally:
            server.stop()
