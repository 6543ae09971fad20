"""Make a CPython that runs in any Linux container, from the one that runs this file.

    python relocate.py --patchelf PATCHELF --prefix /refit/python TARGET

For stage images that have no usable Python, down to those without a C library (facts: TAO's oldest images have 3.6,
a deployed engine's image may have none). TARGET gets the interpreter, its standard library, every shared library
that they need and the dynamic loader; the interpreter names its loader by the absolute path below PREFIX, so it
runs only where TARGET is mounted at PREFIX, and there it needs nothing from the image. RPATH and not RUNPATH is
written, because it wins over an image's LD_LIBRARY_PATH (CUDA images set one).

What it leaves out: tests, GUI, pip, headers, and the site-packages folder.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

LEFT_OUT = (
    "__pycache__", "config-*", "dist-packages", "site-packages", "sitecustomize.py",
    "distutils", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "tkinter", "turtle.py", "turtledemo", "venv",
    "wsgiref", "test", "tests", "_test*", "_ctypes_test*", "_xxtest*", "xx*",
    "_sqlite3*", "sqlite3", "_dbm*", "_gdbm*", "dbm", "_curses*", "curses", "_tkinter*", "readline*",
    "nis*", "ossaudiodev*",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a CPython that runs in any Linux container")
    parser.add_argument("--patchelf", type=Path, required=True)
    parser.add_argument("--prefix", type=Path, required=True, help="where the folder will be mounted")
    parser.add_argument("target", type=Path)
    args = parser.parse_args()
    relocate(args.target, args.prefix, args.patchelf)


def relocate(target: Path, prefix: Path, patchelf: Path) -> None:
    """Fill `target` (which must not exist). Raises CalledProcessError, OSError."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    stdlib = target / "lib" / version
    shutil.copytree(sysconfig.get_path("stdlib"), stdlib, symlinks=False, ignore=shutil.ignore_patterns(*LEFT_OUT))
    binary = target / "bin" / version
    binary.parent.mkdir(parents=True)
    # Behind a virtual environment's link stands the interpreter itself.
    shutil.copy2(os.path.realpath(sys.executable), binary)
    (binary.parent / "python3").symlink_to(version)

    programs = [binary, *sorted(stdlib.rglob("*.so"))]
    libraries = target / "lib"
    loader = ""
    for library in sorted(_needed(programs)):
        name = os.path.basename(library)
        shutil.copy2(os.path.realpath(library), libraries / name)
        if re.match(r"ld[-.].*\.so", name):
            loader = name
    if not loader:
        raise SystemExit(f"{binary} names no dynamic loader: a static interpreter needs no relocation")
    for program in programs:
        up = os.path.relpath(libraries, program.parent)
        _run(patchelf, "--force-rpath", "--set-rpath", f"$ORIGIN/{up}", program)
    for path in libraries.glob("*.so*"):
        if path.name != loader:
            _run(patchelf, "--force-rpath", "--set-rpath", "$ORIGIN", path)
    _run(patchelf, "--set-interpreter", prefix / "lib" / loader, binary)
    compiled = ["-m", "compileall", "-q", "-j", "1", "--invalidation-mode", "unchecked-hash"]
    _run(sys.executable, *compiled, "-s", target, "-p", prefix, stdlib)


def _needed(programs: list[Path]) -> set[str]:
    """The shared libraries of some programs with all that those need, and the loader, by absolute path."""
    found: set[str] = set()
    for program in programs:
        text = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
        missing = re.findall(r"(\S+) => not found", text)
        if missing:
            raise SystemExit(f"{program} needs {', '.join(missing)}, and this image lacks it")
        found |= set(re.findall(r"(?:=> |^\s*)(/\S+) \(0x", text, re.MULTILINE))
    return found


def _run(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True)


if __name__ == "__main__":
    main()
