"""Finds or fetches what installs the environments: uv, a Python 3.11, and the settings that pip has here.

uv does not read pip's configuration, but that is where people keep their mirror, their certificate and their folder
of wheels; so it is translated. Standard library only, Python 3.8 and newer.
"""

from __future__ import annotations

import ctypes.util
import glob
import importlib.util
import os
import re
import shutil
import ssl
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

UV_VERSION = "0.13.8"
OLDEST_UV = (0, 8)  # the first with everything used here: --torch-backend in `pip sync`, --relocatable
PYTHON = "3.11"
LIBPYTHON = f"libpython{PYTHON}.so.1.0"


class SetupError(RuntimeError):
    """Setting up cannot go on; the message says why and what to do, on one line where possible."""


def pip_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """pip's own settings (index-url, extra-index-url, find-links, cert): files first, then PIP_* variables.

    pip is asked where there is one; without pip only the variables count.
    """
    found: dict[str, str] = {}
    if importlib.util.find_spec("pip") is not None:
        asked = subprocess.run(
            [sys.executable, "-m", "pip", "config", "list"],
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        lines = [re.match(r"(?:global|install|:env:)\.([\w-]+)='(.*)'$", line) for line in asked.stdout.splitlines()]
        # `:env:` lines come first in pip's list but win; they are read again from the variables below.
        found.update({m.group(1): m.group(2) for m in lines if m})
    for name in ("index-url", "extra-index-url", "find-links", "cert"):
        value = environ.get("PIP_" + name.upper().replace("-", "_"))
        if value:
            found[name] = value
    return found


def uv_environment(environ: Mapping[str, str], pip: Mapping[str, str], home: Path) -> dict[str, str]:
    """The variables uv runs with: pip's settings in uv's words wherever the user has not set uv's own.

    Args:
        environ: the variables now.
        pip: the result of `pip_settings`.
        home: REFIT_HOME; a Python that uv has to fetch is kept below it.
    """
    env = dict(environ)
    env.setdefault("UV_PYTHON_INSTALL_DIR", str(home / "python"))
    if pip.get("index-url"):
        env.setdefault("UV_DEFAULT_INDEX", pip["index-url"])
    if pip.get("extra-index-url") and "UV_INDEX" not in env and "UV_EXTRA_INDEX_URL" not in env:
        env["UV_EXTRA_INDEX_URL"] = " ".join(pip["extra-index-url"].split())
        env.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")  # pip's way: the best version of all indexes
    if pip.get("find-links"):
        env.setdefault("UV_FIND_LINKS", ",".join(pip["find-links"].split()))
    if pip.get("cert") and Path(pip["cert"]).is_file():
        env.setdefault("SSL_CERT_FILE", pip["cert"])
    store = ssl.get_default_verify_paths()
    if "SSL_CERT_FILE" not in env and (store.cafile or store.capath):
        # The machine's certificate store, as pip and curl use it: a company's own authority is only there.
        env.setdefault("UV_SYSTEM_CERTS", "1")
        env.setdefault("UV_NATIVE_TLS", "1")  # the same, for a uv from before the rename
    for name in ("VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONPATH", "PYTHONHOME"):
        env.pop(name, None)  # an activated environment must not be taken for ours
    return env


def torch_backend(lock: str, env: Mapping[str, str]) -> list[str]:
    """uv's options that bring the CPU build of PyTorch, and so no gigabytes of CUDA.

    Nothing when the user chose (UV_TORCH_BACKEND), or when a folder of wheels (UV_FIND_LINKS) has the CPU build: a
    local version such as ``2.13.0+cpu`` wins over the index's ``2.13.0``. Otherwise uv's own ``--torch-backend=cpu``.

    Args:
        lock: text of the lock file; without a ``torch==`` line nothing is needed.
    """
    wanted = re.search(r"^torch==([^+\s]+)", lock, re.MULTILINE)
    if wanted is None or env.get("UV_TORCH_BACKEND"):
        return []
    for folder in filter(None, env.get("UV_FIND_LINKS", "").split(",")):
        if glob.glob(os.path.join(folder.replace("file://", "", 1), f"torch-{wanted.group(1)}+cpu-cp311-*x86_64.whl")):
            return []
    return ["--torch-backend=cpu"]


def find_uv(home: Path, env: Mapping[str, str]) -> str:
    """Path of a usable uv: from PATH, else the one below `home`, which is installed when it is missing.

    Raises:
        SetupError: there is none and it cannot be installed.
    """
    own = home / "uv" / "bin" / "uv"
    for candidate in (shutil.which("uv"), str(own)):
        if candidate and _uv_version(candidate) >= OLDEST_UV:
            return candidate
    print(f"fetching uv {UV_VERSION} (the installer) into {own.parent.parent}", flush=True)
    _install_uv(home, env)
    return str(own)


def _uv_version(path: str) -> tuple[int, ...]:
    """(0, 13, 8), or () for something that does not run (a shim without a version behind it)."""
    try:
        done = subprocess.run([path, "--version"], check=False, stdout=subprocess.PIPE, text=True)
    except OSError:
        return ()
    found = re.match(r"uv (\d+)\.(\d+)\.(\d+)", done.stdout)
    return tuple(int(n) for n in found.groups()) if found else ()


def _install_uv(home: Path, env: Mapping[str, str]) -> None:
    """uv below `home`/uv, by pip in a venv of its own, or by this Python's pip where venv lacks ensurepip (Debian)."""
    aside, final = home / f".uv.tmp-{os.getpid()}", home / "uv"
    shutil.rmtree(aside, ignore_errors=True)
    requirement = f"uv=={UV_VERSION}"
    if importlib.util.find_spec("ensurepip") is not None and importlib.util.find_spec("venv") is not None:
        steps = [
            [sys.executable, "-m", "venv", str(aside)],
            [str(aside / "bin" / "python"), "-m", "pip", "install", "-q", requirement],
        ]
    elif importlib.util.find_spec("pip") is not None:
        steps = [[sys.executable, "-m", "pip", "install", "-q", "--target", str(aside), requirement]]
    else:
        raise SetupError(
            f"{sys.executable} can neither make a venv nor run pip, so uv cannot be installed: "
            "as root `apt-get install python3-venv` (Debian, Ubuntu), or put uv on PATH (`pipx install uv`)"
        )
    try:
        for step in steps:
            done = subprocess.run(
                step, check=False, env=dict(env), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            if done.returncode:
                tail = "\n".join(done.stdout.strip().splitlines()[-5:])
                raise SetupError(f"uv cannot be installed: `{' '.join(step)}` says:\n{tail}")
        shutil.rmtree(final, ignore_errors=True)
        os.rename(aside, final)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def find_python(uv: str, env: Mapping[str, str], version: str = PYTHON) -> str:
    """A Python for environments, fetched by uv when the machine has none of that version.

    Triton's Python backend is linked with ``libpython3.11.so.1.0``. When neither the Python 3.11 found nor the machine
    has that library, uv's own build is preferred, which brings it: no root is needed. When that cannot be fetched,
    the one found is taken, and `refit.triton.installation` looks further for the library.

    Raises:
        SetupError: there is no such Python and it cannot be fetched.
    """
    found = _uv_python(uv, env, version) or _pyenv_python(env, version)
    if found and (version != PYTHON or has_libpython(found)):
        return found
    what = f"this machine has no Python {version}"
    if found:
        what = f"{found} comes without {LIBPYTHON}, which Triton needs"
    print(f"{what}; fetching a Python {version} into {env['UV_PYTHON_INSTALL_DIR']}", flush=True)
    argv = [uv, "python", "install", version, "--no-bin"]
    fetched = subprocess.run(
        argv, check=False, env=dict(env), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    own = _uv_python(uv, env, version, ["--managed-python"]) if fetched.returncode == 0 else None
    if own or found:
        return own or str(found)
    said = (fetched.stdout.strip().splitlines() or ["no message"])[-1].strip()
    raise SetupError(f"{what}, and uv cannot fetch one ({said}): install Python {version}, or set HTTPS_PROXY")


def _uv_python(uv: str, env: Mapping[str, str], version: str, options: Sequence[str] = ()) -> str | None:
    asked = subprocess.run(
        [uv, "python", "find", "--no-project", "--system", "--no-python-downloads", *options, version],
        check=False,
        env=dict(env),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    path = asked.stdout.strip()
    return os.path.realpath(path) if asked.returncode == 0 and path else None


def _pyenv_python(env: Mapping[str, str], version: str) -> str | None:
    """One that pyenv keeps without showing it: its shims on PATH are for the versions chosen with `pyenv global`."""
    root = Path(env.get("PYENV_ROOT") or "~/.pyenv").expanduser()
    found = [p for p in (root / "versions").glob(f"{version}.*/bin/python{version}") if os.access(p, os.X_OK)]
    return str(max(found, key=lambda p: [int(n) for n in re.findall(r"\d+", p.parts[-3])])) if found else None


def has_libpython(python: str) -> bool:
    """Whether ``libpython3.11.so.1.0`` is known to the dynamic linker or lies beside `python`."""
    beside = Path(python).resolve().parent.parent / "lib" / LIBPYTHON
    return beside.exists() or ctypes.util.find_library(f"python{PYTHON}") is not None
