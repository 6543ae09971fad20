"""Can this machine run the embedded runtime? Looked at before anything is downloaded.

Standard library only, Python 3.8 and newer: it runs on whatever ``python3`` the machine has.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
from pathlib import Path

GIB = 1024**3
# A machine sold as "4 GB" shows a little less. The demo's largest stage stays below 2 GiB, Airflow and Triton take
# about 1.3 GiB (benchmarks), and the rest is the page cache.
LEAST_MEMORY = int(3.5 * GIB)
# Triton's wheel is built for manylinux_2_35; PyTorch's asks for 2.28.
LEAST_GLIBC = (2, 35)


def problems(folder: Path, disk_needed: int) -> list[str]:
    """Everything that keeps this machine from running the embedded runtime, one line each; empty: it can.

    Args:
        folder: where the environments and the workspace will be; it may not exist yet.
        disk_needed: free bytes that are needed there.
    """
    found = []
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "AMD64"):
        found.append(
            f"this machine is {platform.system()} {platform.machine()}; the embedded runtime needs Linux on x86-64 "
            "(Triton's server is built for that only): use a Linux machine, a virtual machine or WSL 2"
        )
        return found
    libc = glibc_version()
    if libc is None or libc < LEAST_GLIBC:
        have = "no glibc (a musl system?)" if libc is None else "glibc {}.{}".format(*libc)
        found.append(
            f"this machine has {have}; tritonserver needs glibc 2.35: use Debian 12, Ubuntu 22.04, RHEL 10 or newer"
        )
    memory = memory_limit()
    if memory is not None and memory < LEAST_MEMORY:
        found.append(
            f"{memory / GIB:.1f} GiB of memory, 4 are needed: give the machine (or its container: --memory) that much"
        )
    parent = existing_parent(folder)
    free = shutil.disk_usage(parent).free
    if free < disk_needed:
        found.append(
            f"{free / GIB:.1f} GiB free below {parent}, {disk_needed / GIB:.1f} are needed: make room, or set "
            "REFIT_HOME to a folder on a larger disk"
        )
    if not os.access(parent, os.W_OK):
        found.append(f"{parent} cannot be written: change its owner, or set REFIT_HOME to a folder of yours")
    return found


def glibc_version() -> tuple[int, int] | None:
    """(2, 36) for glibc 2.36; None for another C library."""
    try:
        name, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
        major, minor = version.split(".")[:2]
        return (int(major), int(minor)) if name == "glibc" else None
    except (ValueError, OSError):
        return None


def memory_limit() -> int | None:
    """Bytes of memory that this process may use: the machine's, or less where a cgroup says so. None: unknown."""
    limits = []
    with contextlib.suppress(ValueError, OSError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    # cgroup v2, then v1. "max" and v1's huge number mean: no limit.
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(file).read_text().strip()
        except OSError:
            continue
        if text.isdigit() and int(text) > 0:
            limits.append(int(text))
    return min(limits) if limits else None


def existing_parent(path: Path) -> Path:
    """The nearest folder above (or at) `path` that exists."""
    path = Path(os.path.abspath(str(path)))
    while not path.exists():
        path = path.parent
    return path
