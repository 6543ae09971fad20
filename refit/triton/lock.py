"""One change of a model at a time: a lock that is a folder beside the model repository.

``<repository>.locks/<model>/<token>/`` is the holder's desk, and its name is the lock: whoever holds a model's lock is
the one whose token stands there. The desk is made ready aside and renamed into place, so a lock without an owner never
exists, on NFS too. It stands next to the repository, not in a pipeline's workspace, because two pipelines may release
a model of the same name.

A holder in another pod or on another host cannot be seen, so the lock is a lease: a thread of the holder renews the
time of ``alive`` on its desk, and one that stands still for `LEASE_SECONDS` of the waiter's own clock has lost the
lock (no two clocks are compared). A holder that died where this process can see it loses it at once.

To take over is to rename the desk to one's own token: of many who try, one gets through. From then on every path of
the old holder leads nowhere. So a holder that was only paused cannot renew a lease that is no longer its own, `check`
tells it so before each dangerous step, and config.pbtxt, which is what decides what Triton serves, is written on the
desk and renamed from there: that rename fails, even when the pause came after the check.
"""

from __future__ import annotations

import contextlib
import errno
import getpass
import json
import os
import re
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from refit.files import sync_folder, write_json
from refit.triton.errors import LockLost, ModelLocked, RepositoryError

LEASE_SECONDS = 60.0
"""A holder that gives no sign of life for so long has lost the lock. NFS clients keep a file's time for up to 60 s
(acregmax), but ask anew when the file is opened, and it is opened each time."""

BEATS = 12  # signs of life per lease
_POLL_SECONDS = 0.2
_ALIVE = "alive"
_OWNER = "owner.json"


class ModelLock:
    """The lock of one model; a context manager.

    Args:
        folder: ``<repository>.locks``.
        model: the model's name.
        run: what the change is for; others read it while they wait.
        wait_seconds: how long to wait for another holder.
        say: is told, once each, that the lock is waited for or was taken over.
        lease_seconds: default: `LEASE_SECONDS`; all who want a lock must mean the same.

    Attributes:
        desk: a folder that is there for as long as this process holds the lock. A file that is renamed from it is
            renamed by the holder, or not at all.

    Raises (on entering):
        ModelLocked: another one still holds it after ``wait_seconds``.
        RepositoryError: the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        model: str,
        *,
        run: str,
        wait_seconds: float,
        say: Callable[[str], None] = lambda _: None,
        lease_seconds: float | None = None,
    ) -> None:
        self._path = folder / model
        self._run = run
        self._wait_seconds = wait_seconds
        self._say = say
        self._lease_seconds = LEASE_SECONDS if lease_seconds is None else lease_seconds
        self._token = uuid.uuid4().hex
        self._given_back = threading.Event()
        self.desk = self._path / self._token

    def __enter__(self) -> ModelLock:
        folder = self._path.parent
        aside = folder / f".{self._path.name}.tmp-{self._token}"
        try:
            (aside / self._token).mkdir(parents=True)
            self._sign(aside / self._token)
        except OSError as exc:
            raise RepositoryError(
                f"{folder}: cannot make a lock there ({exc.strerror}); give this user the folder"
            ) from exc
        try:
            self._acquire(aside)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        threading.Thread(target=self._live, name=f"lock of {self._path.name}", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._given_back.set()
        gone = self._path.with_name(f".{self._path.name}.gone-{self._token}")
        try:
            os.rename(self.desk, gone)
        except FileNotFoundError:
            return  # it was taken over
        with contextlib.suppress(OSError):  # not empty: the next one holds it already
            self._path.rmdir()
        shutil.rmtree(gone, ignore_errors=True)

    def check(self) -> None:
        """This process holds the lock, and its lease begins anew; asked before each dangerous step.

        Raises:
            LockLost: another one took it over.
        """
        try:
            os.utime(self.desk / _ALIVE)
        except FileNotFoundError:
            holder = _holder(self._path)
            now = f"{describe(holder.owner)} has it now" if holder else "nobody has it now"
            raise LockLost(
                f"the lock of {self._path.name} was lost, because this process gave no sign of life for "
                f"{self._lease_seconds:g} s (it was paused, or the volume was away), and {now}; what was begun here is "
                "finished or undone by the next change of the model, so release again"
            ) from None

    def _live(self) -> None:
        """Renew the lease until the lock is given back or lost."""
        while not self._given_back.wait(self._lease_seconds / BEATS):
            try:
                os.utime(self.desk / _ALIVE)
            except FileNotFoundError:
                return
            except OSError:  # the volume is away or read-only for a while: so it is for those who wait
                continue

    def _acquire(self, aside: Path) -> None:
        until = time.monotonic() + self._wait_seconds
        told = False
        seen, since = None, 0.0
        while True:
            # Renaming a folder onto one that is not empty fails: exactly one of many gets through.
            try:
                os.rename(aside, self._path)
                sync_folder(self._path.parent)
                return
            except OSError as exc:
                if exc.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                    raise RepositoryError(f"{self._path}: cannot be locked ({exc.strerror})") from exc
            # The clock is read outwards of what is seen, so that a pause of this process makes nobody look dead.
            now, holder = time.monotonic(), _holder(self._path)
            if holder is None:
                continue  # it was given back just now
            if (holder.token, holder.beat) != seen:
                seen, since = (holder.token, holder.beat), time.monotonic()
            silent = now - since >= self._lease_seconds
            if holder.token and (silent or holder.is_dead()):
                why = (
                    f"gave no sign of life for {self._lease_seconds:g} s" if silent else "ended without giving it back"
                )
                if self._take_over(holder):
                    self._say(f"Took over the lock of {self._path.name}: {describe(holder.owner)} {why}")
                    return
                continue
            if now >= until:
                raise ModelLocked(
                    f"{describe(holder.owner)} holds the lock of {self._path.name}, and did not give it back within "
                    f"{self._wait_seconds:g} s; wait for it, or when you know that it is gone, remove {self._path}"
                )
            if not told:
                self._say(f"Waiting for {describe(holder.owner)}, which holds the lock of {self._path.name}")
                told = True
            time.sleep(min(_POLL_SECONDS, self._lease_seconds / BEATS))

    def _take_over(self, dead: Holder) -> bool:
        """Make a dead holder's desk this one's; False when somebody was faster, or it was given back after all."""
        try:
            os.rename(self._path / dead.token, self.desk)
        except FileNotFoundError:
            return False
        self._sign(self.desk)
        return True

    def _sign(self, desk: Path) -> None:
        (desk / _ALIVE).touch()
        write_json(desk / _OWNER, {**identity(), "run": self._run, "token": self._token, "since": stamp()})


@dataclass(frozen=True)
class Holder:
    """Who holds a lock.

    Attributes:
        token: the desk's name; "" for a lock that was made by hand, which is nobody's to judge.
        owner: owner.json; empty where it cannot be read.
        beat: the time of ``alive``, in nanoseconds by the volume's clock.
    """

    token: str
    owner: dict[str, Any]
    beat: int

    def is_dead(self) -> bool:
        """The holder ran where this process can see it (same boot, same process namespace), and runs no more."""
        owner = self.owner
        if owner.get("token") != self.token:  # taken over just now, and not signed yet
            return False
        if (owner.get("host"), owner.get("namespace")) != (socket.gethostname(), _namespace()):
            return False
        return owner.get("boot") != _boot() or _start_time(int(owner.get("pid", 0))) != owner.get("started")


def _holder(path: Path) -> Holder | None:
    """Who holds a lock; None when nobody does."""
    try:
        names = os.listdir(path)
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        return Holder("", {}, 0)
    if not names:
        return None
    if len(names) > 1 or not re.fullmatch(r"[0-9a-f]{32}", names[0]):
        return Holder("", {}, 0)
    desk, beat, owner = path / names[0], 0, {}
    with contextlib.suppress(OSError, ValueError):
        with open(desk / _ALIVE, "rb") as alive:
            beat = os.fstat(alive.fileno()).st_mtime_ns
        value = json.loads((desk / _OWNER).read_text())
        owner = value if isinstance(value, dict) else {}
    return Holder(names[0], owner, beat)


def actor() -> dict[str, Any]:
    """Who does something, for the records: host, user, process."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        user = str(os.getuid())
    return {"host": socket.gethostname(), "user": user, "pid": os.getpid()}


def identity() -> dict[str, Any]:
    """Enough to tell later whether this process still runs: a number alone is given out again."""
    return {**actor(), "started": _start_time(os.getpid()), "boot": _boot(), "namespace": _namespace()}


def _start_time(pid: int) -> str | None:
    """A process's start in clock ticks since boot (field 22 of /proc/<pid>/stat); None when it does not run."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rsplit(")", 1)[1].split()  # the name in brackets may hold anything
    return None if fields[0] in ("Z", "X") else fields[19]


def _boot() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _namespace() -> str:
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


def describe(owner: dict[str, Any]) -> str:
    if not owner.get("host"):
        return "an unknown owner"
    return (
        f"{owner.get('run') or 'a release'} (process {owner.get('pid')} on {owner['host']}, since {owner.get('since')})"
    )


def stamp() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
