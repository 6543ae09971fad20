"""Where the embedded runtime keeps things and what it listens on: refit.config's settings and five more variables.

| variable | default | meaning |
|---|---|---|
| AIRFLOW_PORT | 8080 | Airflow's UI and API |
| TRITON_HTTP_PORT | 8000 | tritonserver, HTTP |
| TRITON_GRPC_PORT | 8001 | tritonserver, gRPC |
| TRITON_METRICS_PORT | 8002 | tritonserver, Prometheus |

All listen on 127.0.0.1 only.
"""

from __future__ import annotations

import dataclasses
import os
import secrets
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from refit.config import ConfigError, Settings

HOST = "127.0.0.1"
CONTROL_KEY = "TRITON_CONTROL_KEY"  # specs/clusters/local.yaml asks for it under this name
PORTS = {
    "AIRFLOW_PORT": ("Airflow", 8080),
    "TRITON_HTTP_PORT": ("Triton (HTTP)", 8000),
    "TRITON_GRPC_PORT": ("Triton (gRPC)", 8001),
    "TRITON_METRICS_PORT": ("Triton (metrics)", 8002),
}


@dataclass(frozen=True)
class Embedded:
    """The embedded runtime's places. `refit` has Triton's address and model repository filled in."""

    refit: Settings
    ports: Mapping[str, int]

    @staticmethod
    def from_env(env: Mapping[str, str] | None = None) -> Embedded:
        """Read the environment. Raises ConfigError."""
        e = os.environ if env is None else env
        ports = {}
        for name, (_, default) in PORTS.items():
            text = e.get(name) or str(default)
            if not text.isdigit() or not 1 <= int(text) <= 65535:
                raise ConfigError(f"{name}={text}: use a port between 1 and 65535")
            ports[name] = int(text)
        for name, port in ports.items():
            twin = next(n for n, p in ports.items() if p == port)
            if twin != name:
                raise ConfigError(f"{twin} and {name} are both {port}; give them different ports")
        settings = Settings.from_env(e)
        return Embedded(
            dataclasses.replace(
                settings,
                triton_url=f"http://{HOST}:{ports['TRITON_HTTP_PORT']}",
                model_repository=settings.model_repository or settings.home / "models",
            ),
            ports,
        )

    @property
    def home(self) -> Path:
        return self.refit.home

    @property
    def logs(self) -> Path:
        """Logs of the services; those of tasks are below `airflow`/logs."""
        return self.home / "logs"

    @property
    def airflow(self) -> Path:
        """AIRFLOW_HOME."""
        return self.home / "airflow"

    @property
    def airflow_url(self) -> str:
        return f"http://{HOST}:{self.ports['AIRFLOW_PORT']}"

    def python(self, environment: str) -> str:
        return str(self.refit.envs / environment / "bin" / "python")

    def environment(self) -> dict[str, str]:
        """The variables of every service: this process's, without what belongs to somebody else's Airflow or Python.

        A developer's shell may export AIRFLOW__DATABASE__SQL_ALCHEMY_CONN of a real installation; nothing here may
        ever migrate that database.
        """
        foreign = ("PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV", "CONDA_PREFIX", "AIRFLOW_HOME", "AIRFLOW_CONFIG")
        env = {k: v for k, v in os.environ.items() if k not in foreign and not k.startswith("AIRFLOW__")}
        for name in ("NO_PROXY", "no_proxy"):  # a company's proxy cannot reach our loopback
            env[name] = ",".join(filter(None, [env.get(name), HOST, "localhost"]))
        return {
            **env,
            **self.refit.environment(),
            "PYTHONPATH": str(self.refit.repository),
            "PYTHONUNBUFFERED": "1",
            "AIRFLOW_HOME": str(self.airflow),
        }

    def control_key(self) -> str:
        """The key of Triton's model control, made once. It lies where the local runtime looks for secrets."""
        return secret(self.home / "secrets" / CONTROL_KEY)


def secret(file: Path, make: Callable[[], str] = secrets.token_urlsafe) -> str:
    """The secret in a file, made at the first call."""
    try:
        return file.read_text().strip()
    except FileNotFoundError:
        value = make()
        write_private(file, value + "\n")
        return value


def write_private(file: Path, text: str) -> None:
    """Put `text` at `file` atomically; only the owner may read it, from the first byte on."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.tmp-{os.getpid()}")
    try:
        with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        os.replace(aside, file)
    finally:
        aside.unlink(missing_ok=True)


def taken_port(ports: Mapping[str, int]) -> str | None:
    """One line about the first port that somebody listens on, None when all are free."""
    for name, port in ports.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # lingering connections do not count
            try:
                probe.bind((HOST, port))
                probe.listen(1)
            except PermissionError:
                return f"port {port} ({PORTS[name][0]}) needs root; choose one above 1023 with {name}"
            except OSError:
                owner = listener(port)
                by = f" by {owner}" if owner else ""
                return (
                    f"port {port} is taken{by}, {PORTS[name][0]} needs it: end that, or choose another with {name}=..."
                )
    return None


def listener(port: int) -> str | None:
    """The process that listens on a TCP port, as "python (pid 123)"; None where it cannot be seen (another user's)."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            # sl local_address rem_address st ... inode: address:port in hex, 0A is LISTEN
            words = line.split()
            if words[3] == "0A" and int(words[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{words[9]}]")
    for process in Path("/proc").iterdir() if inodes else ():
        if process.name.isdigit():
            try:
                if any(os.readlink(fd) in inodes for fd in (process / "fd").iterdir()):
                    return f"{(process / 'comm').read_text().strip()} (pid {process.name})"
            except OSError:
                continue
    return None
