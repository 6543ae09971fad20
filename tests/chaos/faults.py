"""What tests/chaos breaks things with. All of it needs a cluster whose processes are this machine's, and root."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from refit.embedded.processes import descendants, send
from tests.cluster import BUILDER, kubectl, reason_to_skip, wait

UP = BUILDER.with_name("up")
PIDS = Path(os.environ.get("REFIT_CLUSTER_HOME") or "/var/tmp/refit-cluster") / "state" / "pid"
WORKER = "airflow worker -- LocalExecutor:"  # the title that Airflow gives to its workers


# --- pods -------------------------------------------------------------------------------------------------------------


def delete(pod: dict[str, Any], namespace: str) -> None:
    kubectl("delete", "pod", pod["metadata"]["name"], "--wait=false", namespace=namespace)


def evict(pod: dict[str, Any], namespace: str) -> None:
    """As `kubectl drain` does; policy/v1 is of Kubernetes 1.22."""
    name = pod["metadata"]["name"]
    versions = kubectl("api-versions").split()
    version = "policy/v1" if "policy/v1" in versions else "policy/v1beta1"
    body = {"apiVersion": version, "kind": "Eviction", "metadata": {"name": name, "namespace": namespace}}
    path = f"/api/v1/namespaces/{namespace}/pods/{name}/eviction"
    kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(body))


def first_process(pod: dict[str, Any]) -> int:
    """The pid, on this machine, of the first process of a pod's container; the test is skipped where it is not here."""
    container = pod["status"]["containerStatuses"][0]["containerID"].rpartition("/")[2]
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if container not in (entry / "cgroup").read_text():
                continue
            inside = next(line for line in (entry / "status").read_text().splitlines() if line.startswith("NSpid:"))
            if inside.split()[-1] == "1":
                return int(entry.name)
        except OSError:
            continue
    pytest.skip("the cluster's processes are not this machine's: none can be killed from here")


def kill(pod: dict[str, Any]) -> None:
    os.kill(first_process(pod), signal.SIGKILL)


@contextmanager
def frozen(pod: dict[str, Any]) -> Iterator[None]:
    """A pod's container answers nothing, and does not know that time passes."""
    first = first_process(pod)
    everyone = [first, *descendants(first)]
    send(everyone, signal.SIGSTOP)
    try:
        yield
    finally:
        send(everyone, signal.SIGCONT)


# --- volumes ----------------------------------------------------------------------------------------------------------

_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MNT_DETACH, _CLONE_NEWNS = 0x1, 0x20, 0x1000, 0x2, 0x20000


@contextmanager
def read_only(pod: dict[str, Any], path: str) -> Iterator[None]:
    """A folder of a pod can only be read: a read-only mount of the same folder lies over it.

    Files that are open go on being written, as no mount can be made read-only under them.
    """
    first = first_process(pod)
    _inside(first, "cover", path)
    try:
        yield
    finally:
        if Path(f"/proc/{first}").exists():
            _inside(first, "uncover", path)


def _inside(pid: int, what: str, path: str) -> None:
    """Run `_mount` in the mount namespace of a process: a thread cannot enter one alone."""
    words = [sys.executable, "-c", f"from tests.chaos.faults import mount; mount({pid}, {what!r}, {path!r})"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0 or not Path(f"/proc/{pid}").exists(), done.stderr


def mount(pid: int, what: str, path: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)

    def call(name: str, *args: Any) -> None:
        if getattr(libc, name)(*args):
            raise OSError(ctypes.get_errno(), name, path)

    where = path.encode()
    call("setns", os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY), _CLONE_NEWNS)
    if what == "cover":
        call("mount", where, where, None, _MS_BIND, None)
        call("mount", None, where, None, _MS_BIND | _MS_REMOUNT | _MS_RDONLY, None)
    else:
        call("umount2", where, _MNT_DETACH)


@contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[Path]:
    """A file system of its own with room for little; `grow` makes it larger."""
    disk = folder / "small"
    disk.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m,mode=0777", "none", str(disk)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def grow(disk: Path, mebibytes: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={mebibytes}m", str(disk)], check=True)


# --- Airflow and the cluster ------------------------------------------------------------------------------------------


def busy_workers(scheduler: int) -> list[int]:
    """Airflow's workers that have a task."""
    found = []
    for pid in descendants(scheduler):
        try:
            title = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").strip("\0")
        except OSError:
            continue
        if title.startswith(WORKER) and "<idle>" not in title:
            found.append(pid)
    return found


def kill_workers(scheduler: int) -> int:
    """SIGKILL for the workers that have a task, and for the tasks; how many workers it met."""
    workers = busy_workers(scheduler)
    send([p for worker in workers for p in (worker, *descendants(worker))], signal.SIGKILL)
    return len(workers)


def why_no_component() -> str | None:
    """Why no component of the cluster can be killed here, None where they can."""
    if reason := reason_to_skip():
        return reason
    if not (UP.exists() and (PIDS / "kubelet").exists()):
        return f"only the cluster of ../shared/cluster can be broken and mended: no {UP} or no pid files in {PIDS}"
    return None


@contextmanager
def away(component: str, seconds: float = 5) -> Iterator[None]:
    """A component of the cluster is killed; `seconds` after the block it is started again."""
    os.kill(int((PIDS / component).read_text()), signal.SIGKILL)
    try:
        yield
        time.sleep(seconds)
    finally:
        mend()


def mend() -> None:
    done = subprocess.run([str(UP)], capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    wait("the API server", lambda: kubectl("get", "--raw", "/readyz"), 60)
