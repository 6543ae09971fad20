"""The parts of a local tritonserver: found in the `triton` environment, put together in a run folder.

The ``nvidia-pytriton`` wheel carries the whole server with its Python backend. Three things are missing between the
wheel and a server that runs, and this module brings them together without root and without touching the environment:
the stub process of the environment's own Python version stands in another folder, the wheel has no onnxruntime
backend (ours is ``images/triton/backends/onnxruntime``), and the stub needs ``libpython3.X.so.1.0``, which many
Pythons do not ship. Standard library only.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from refit.config import Settings
from refit.triton.errors import InstallationError

# Asked of the environment's own interpreter: its version, where its shared library would be, where packages are.
_QUESTION = (
    "import json, sys, sysconfig;"
    "print(json.dumps({'version': '%d.%d' % sys.version_info[:2], 'base': sys.base_prefix,"
    " 'libdir': sysconfig.get_config_var('LIBDIR'), 'site': sysconfig.get_path('purelib')}))"
)


@dataclass(frozen=True)
class Installation:
    """A tritonserver that can be started.

    Attributes:
        python: the environment's interpreter; Triton's stub takes packages from the first ``python3`` on PATH.
        version: its version, "3.11".
        binary: tritonserver.
        libraries: the folder of the wheel's bundled libraries.
        python_backend: the wheel's backend folder (library and utilities, without the stub).
        stub: the stub process for this Python version.
        libpython: ``libpython3.X.so.1.0``.
        backend: the folder of our onnxruntime backend.
    """

    python: Path
    version: str
    binary: Path
    libraries: Path
    python_backend: Path
    stub: Path
    libpython: Path
    backend: Path

    def assemble(self, folder: Path) -> tuple[Path, Path]:
        """Make the backend directory and the library directory below ``folder``; both are made anew.

        The library directory holds one link, so that nothing else of a Python's lib folder gets in the server's way.

        Returns:
            (backend directory, library directory).
        """
        backends, lib = folder / "backends", folder / "lib"
        for path in (backends, lib):
            shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(self.python_backend, backends / "python")
        shutil.copy2(self.stub, backends / "python" / self.stub.name)
        shutil.copytree(self.backend, backends / "onnxruntime", ignore=shutil.ignore_patterns("__pycache__"))
        lib.mkdir()
        (lib / self.libpython.name).symlink_to(self.libpython)
        return backends, lib


def find(settings: Settings | None = None) -> Installation:
    """Find the local tritonserver.

    Args:
        settings: where the environments are; default: from the process's environment.

    Raises:
        InstallationError: the environment, a part of it, or libpython is missing; says which and how to get it.
    """
    settings = settings or Settings.from_env()
    env = settings.envs / "triton"
    python = env / "bin" / "python"
    if not python.exists():
        raise InstallationError(
            f"there is no Triton environment at {env}: make it (`make setup`), or set REFIT_ENVS to the folder with it"
        )
    facts = _ask(python)
    version, site = facts["version"], Path(facts["site"])
    root = site / "pytriton" / "tritonserver"
    parts = {
        "binary": root / "bin" / "tritonserver",
        "libraries": site / "nvidia_pytriton.libs",
        "python_backend": root / "backends" / "python",
        "stub": root / "python_backend_stubs" / version / "triton_python_backend_stub",
        "backend": settings.repository / "images" / "triton" / "backends" / "onnxruntime",
    }
    for path in parts.values():
        if not path.exists():
            raise InstallationError(
                f"the Triton environment {env} (Python {version}) lacks {path}: install images/triton/requirements.txt "
                "into it again"
            )
    if not os.access(parts["binary"], os.X_OK):
        raise InstallationError(
            f"{parts['binary']} is not executable: `chmod +x` it, or mount its file system with exec"
        )
    libpython = _libpython(version, facts, settings.home)
    return Installation(python=python, version=version, libpython=libpython, **parts)


def available(settings: Settings | None = None) -> str | None:
    """None where a local server can be started, else the reason (for a skip message)."""
    try:
        find(settings)
    except InstallationError as exc:
        return str(exc)
    return None


def _ask(python: Path) -> dict[str, str]:
    try:
        done = subprocess.run([python, "-I", "-c", _QUESTION], capture_output=True, text=True, timeout=60, check=True)
        facts: dict[str, str] = json.loads(done.stdout)
        return facts
    except (OSError, subprocess.SubprocessError, ValueError) as exc:
        raise InstallationError(f"{python} does not run ({exc}): make the Triton environment again") from exc


def _libpython(version: str, facts: dict[str, str], home: Path) -> Path:
    """libpython3.X.so.1.0 of the right version, wherever this machine has it."""
    name = f"libpython{version}.so.1.0"
    for path in _candidates(name, version, facts, home):
        if path.is_file():
            return path.resolve()
    fetched = _from_apt(version, name, home / "lib")
    if fetched is not None:
        return fetched
    raise InstallationError(
        f"{name} was not found: Triton's Python stub needs it. Install the package libpython{version} "
        f"(`apt-get install libpython{version}`), or make the environment with a Python that has its shared library "
        f"(`uv python install {version}`)"
    )


def _candidates(name: str, version: str, facts: dict[str, str], home: Path) -> Iterator[Path]:
    for folder in (facts["libdir"], f"{facts['base']}/lib"):
        yield Path(folder) / name
    yield from _from_ldconfig(name)
    roots = (os.environ.get("UV_PYTHON_INSTALL_DIR"), os.environ.get("XDG_DATA_HOME"), "~/.local/share", str(home))
    for root in roots:
        for pattern in (f"cpython-{version}*/lib/{name}", f"uv/python/cpython-{version}*/lib/{name}"):
            yield from sorted(Path(root).expanduser().glob(pattern), reverse=True) if root else ()
    yield from sorted((home / "lib").glob(f"libpython{version}/usr/lib/*/{name}"))


def _from_ldconfig(name: str) -> Iterator[Path]:
    tool = shutil.which("ldconfig") or shutil.which("ldconfig", path="/sbin:/usr/sbin")
    if tool is None:
        return
    try:
        text = subprocess.run([tool, "-p"], capture_output=True, text=True, timeout=30, check=False).stdout
    except (OSError, subprocess.SubprocessError):
        return
    for line in text.splitlines():
        found = re.match(rf"\s*{re.escape(name)} \(.*x86-64.*\) => (.+)", line)
        if found:
            yield Path(found.group(1))


def _from_apt(version: str, name: str, folder: Path) -> Path | None:
    """Unpack Debian's or Ubuntu's package below ``folder``: downloading and unpacking need no root."""
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        return None
    package = f"libpython{version}"
    target = folder / package
    aside = folder / f".{package}.tmp-{os.getpid()}"
    try:
        aside.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", package], cwd=aside, check=True, capture_output=True, timeout=300)
        for deb in aside.glob("*.deb"):
            subprocess.run(["dpkg", "-x", deb.name, "files"], cwd=aside, check=True, capture_output=True, timeout=300)
        if not list((aside / "files").glob(f"usr/lib/*/{name}")):
            return None
        shutil.rmtree(target, ignore_errors=True)
        os.replace(aside / "files", target)
        return next(iter(sorted(target.glob(f"usr/lib/*/{name}"))))
    except (OSError, subprocess.SubprocessError):
        return None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
