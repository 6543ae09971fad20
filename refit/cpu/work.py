"""Going through many images: on several threads with the order kept, and with progress in the status file."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from refit.cpu.status import StatusWriter

A = TypeVar("A")
B = TypeVar("B")


def workers() -> int:
    """Threads to use: OMP_NUM_THREADS, which the plan sets from the stage's CPUs, else the cores we may run on."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, int(given)) if given.isdecimal() else len(os.sched_getaffinity(0))


def ordered_map(function: Callable[[A], B], items: Iterable[A], threads: int | None = None) -> Iterator[B]:
    """Results in the order of the items; image libraries release the GIL, so threads do run side by side.

    At most two items a thread are taken ahead of the reader: memory stays bounded whatever the number of items. The
    first exception is raised in its place in the order, and no further item is started.
    """
    count = threads or workers()
    with ThreadPoolExecutor(count) as pool:
        pending: deque[Future[B]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > 2 * count:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


class Progress:
    """Status lines "<what>: 120 of 400", at most one every two seconds, and one at the end."""

    def __init__(self, status: StatusWriter, what: str, total: int) -> None:
        self._status, self._what, self._total = status, what, total
        self._done, self._next = 0, time.monotonic() + 2

    def step(self) -> None:
        self._done += 1
        now = time.monotonic()
        if now >= self._next or self._done == self._total:
            self._next = now + 2
            self._status.running(f"{self._what}: {self._done} of {self._total}")
