"""The same function for many batches of work, on all cores.

Processes and not threads: what is done for an image between opening and decoding it is Python, and one process does
one thing in Python at a time. They are forked before there is much in memory: what a fork shares with its parent is
held twice as soon as the parent touches it.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path, PurePosixPath
from types import FrameType, TracebackType
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")
A = TypeVar("A")
B = TypeVar("B")

_MANY = 600  # files; reading fewer takes no longer than to start processes
_PR_SET_PDEATHSIG = 1
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT = 32 << 20  # bytes, the most that glibc takes for the second
_STOP = signal.SIGUSR1
CPUS = "REFIT_CPUS"  # in pods: the CPUs that the stage asks for


def cores() -> int:
    """How many cores this process may use: by its affinity, by its cgroups' quota, by what its pod asks for."""
    allowed = [len(os.sched_getaffinity(0)), math.ceil(_quota())]
    with contextlib.suppress(KeyError, ValueError):
        allowed.append(math.ceil(float(os.environ[CPUS])))
    return max(1, min(allowed))


@lru_cache(maxsize=1)
def _quota() -> float:
    return min(_quotas(), default=os.cpu_count() or 1)


def _quotas(root: Path = Path("/"), cgroups: str = "proc/self/cgroup") -> Iterator[float]:
    """The CPU quota of each cgroup that this process is in, in cores; of version 2 and of version 1.

    https://docs.kernel.org/admin-guide/cgroup-v2.html (cpu.max), .../scheduler/sched-bwc.html (cpu.cfs_quota_us).
    A container sees its own cgroup at the root of the mount, whatever path the host has for it.
    """
    try:
        lines = (root / cgroups).read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "cpu", "cpu,cpuacct", "cpuacct,cpu"):
            continue
        mount = root / "sys/fs/cgroup" / controllers
        own = PurePosixPath(path)
        for folder in (mount / str(at).lstrip("/") for at in (own, *own.parents)):
            with contextlib.suppress(OSError, ValueError):
                if controllers:
                    quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
                else:
                    quota, period = (folder / "cpu.max").read_text().split()
                if float(quota) > 0:  # -1 in version 1, "max" in version 2: none
                    yield float(quota) / float(period)


def many(root: Path) -> bool:
    """Whether a folder holds enough to share out; it is listed only so far."""
    left, todo = _MANY, [os.fspath(root)]
    try:
        while todo:
            with os.scandir(todo.pop()) as entries:
                for entry in entries:
                    left -= 1
                    if left < 0:
                        return True
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(entry.path)
    except OSError:
        pass  # whoever lists it in earnest says what is wrong
    return False


class Team(Generic[T, R]):
    """Processes that do `function`, which may be a closure; without them, `each` does it here.

    Batches and results are pickled. What the function changes in its process is lost.
    """

    def __init__(self, function: Callable[[T], R], processes: bool) -> None:
        self._function = function
        self._pool: ProcessPoolExecutor | None = None
        if processes and cores() > 1:
            context = multiprocessing.get_context("fork")
            others = set(multiprocessing.active_children())
            self._pool = ProcessPoolExecutor(min(16, cores()), context, _begin, (function, os.getpid()))
            self._pool.submit(os.getpid).result()  # forks all of them
            self._workers = set(multiprocessing.active_children()) - others

    def __enter__(self) -> Team[T, R]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            for worker in self._workers if kind is not None else ():
                if worker.pid and worker.is_alive():
                    os.kill(worker.pid, _STOP)  # else it would end the batches that it has
            self._pool.shutdown(wait=True, cancel_futures=True)

    def each(self, batches: Iterable[T]) -> Iterator[R]:
        """map() in order, a few batches ahead; the first exception ends it."""
        return self.map(self._function if self._pool is None else _do, batches)

    def map(self, function: Callable[[A], B], values: Iterable[A]) -> Iterator[B]:
        """The same for another function, which is pickled."""
        if self._pool is None:
            yield from map(function, values)
            return
        waiting: deque[Future[B]] = deque()
        for value in values:
            waiting.append(self._pool.submit(function, value))
            if len(waiting) > 3 * cores():
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class _Stopped(Exception):
    """A batch is given up: nobody waits for it any more."""


class _Worker:
    """What this process does, where it is a worker."""

    function: Callable[[Any], Any]
    at_work = False
    stopped = False


def _begin(function: Callable[[Any], Any], parent: int) -> None:
    _Worker.function = staticmethod(function)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to act on: it ends the pool
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(_STOP, _stop)
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with contextlib.suppress(AttributeError):  # not glibc
        # Else each image's memory goes back to the kernel, which clears it for the next: up to 2 ms for one of KITTI's.
        libc.mallopt(_M_MMAP_THRESHOLD, _KEPT)
        libc.mallopt(_M_TRIM_THRESHOLD, 4 * _KEPT)
    if os.getppid() != parent:  # it died before that call
        os._exit(1)


def _stop(number: int, frame: FrameType | None) -> None:
    """Only a batch is broken off: a result that is on its way to the parent is sent whole."""
    _Worker.stopped = True
    if _Worker.at_work:
        raise _Stopped


def _do(batch: Any) -> Any:
    if _Worker.stopped:
        raise _Stopped
    _Worker.at_work = True
    try:
        return _Worker.function(batch)
    finally:
        _Worker.at_work = False
