"""Child processes that cannot be left behind.

Three nets, each for the fall that the one before does not catch:

1. `kill_rest` kills every descendant that is left after the children were told to end.
2. The process that owns them is a *subreaper* (prctl(2)): a grandchild whose parent died becomes its child, so nothing
   escapes net 1, whatever process groups or sessions it made for itself.
3. The kernel sends each child SIGTERM when its parent is gone (PR_SET_PDEATHSIG), also after a kill -9.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)  # loaded before any fork: a child must not import


def become_subreaper() -> None:
    """From now on orphaned descendants become children of this process."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def catch_signals(handler: Callable[[int, types.FrameType | None], None]) -> None:
    """Call `handler` for what asks a process to end: SIGINT, SIGTERM, SIGHUP.

    SIGHUP stays ignored where it is (`nohup`). SIGINT does not: a shell's background job ignores it, and every process
    below would inherit that.
    """
    signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGTERM, handler)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, handler)


@dataclass
class Child:
    """A process in a session of its own, its output in a file; the file of the time before becomes `<log>.1`.

    Start it from the main thread: the kernel's signal comes when the starting *thread* ends.
    """

    name: str
    argv: Sequence[str]
    log: Path
    env: Mapping[str, str]
    cwd: Path
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        """Raises OSError where the program cannot be started or the log not be written."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        if self.log.exists():
            os.replace(self.log, self.log.with_name(self.log.name + ".1"))
        parent = os.getpid()

        def tie_to_parent() -> None:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
            if os.getppid() != parent:  # it died between the fork and the line above
                os._exit(1)

        with open(self.log, "wb") as out:
            self.process = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=dict(self.env),
                cwd=self.cwd,
                start_new_session=True,
                preexec_fn=tie_to_parent,  # noqa: PLW1509  no other thread runs here
            )

    @property
    def pid(self) -> int:
        assert self.process is not None, f"{self.name} was not started"
        return self.process.pid

    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def log_tail(self, lines: int = 15) -> str:
        """The end of its log."""
        with contextlib.suppress(OSError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        return ""


def reap(children: Iterable[Child]) -> None:
    """Collect orphans that ended; the known children are left to their Popen."""
    known = {child.process.pid for child in children if child.process is not None}
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if ended is None:
            return
        if ended.si_pid in known:
            for child in children:
                child.running()
        else:
            os.waitpid(ended.si_pid, 0)


def processes() -> dict[int, int]:
    """Parent of every process of this machine that is not a zombie, by pid."""
    parents = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                # "pid (name) state ppid ...": the name may hold spaces and brackets.
                state, parent = Path(entry.path, "stat").read_text().rpartition(")")[2].split()[:2]
                if state not in "ZX":
                    parents[int(entry.name)] = int(parent)
    return parents


def descendants(pid: int, depth: int | None = None) -> list[int]:
    """The pids below `pid`, nearest first; with `depth`, only those exactly so many generations below."""
    parents = processes()
    generation, found, level = {pid}, [], 0
    while generation:
        generation = {p for p, parent in parents.items() if parent in generation}
        level += 1
        if depth is None:
            found += sorted(generation)
        elif level == depth:
            return sorted(generation)
    return found


def send(pids: Iterable[int], signum: int) -> None:
    """A signal to each process that is still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signum)


def kill_rest(everyone: Sequence[Child], seconds: float = 5) -> None:
    """SIGKILL to every descendant that is left, until there is none (or the time is over)."""

    def none_left() -> bool:
        left = descendants(os.getpid())
        send(left, signal.SIGKILL)
        return not left

    wait_until(none_left, seconds, everyone)


def wait_until(done: Callable[[], bool], seconds: float, everyone: Sequence[Child]) -> bool:
    """Ask again and again, collecting what ended meanwhile; False when the time is over."""
    until = time.monotonic() + seconds
    while True:
        reap(everyone)
        if done():
            return True
        if time.monotonic() >= until:
            return False
        time.sleep(0.05)
