"""One change of a model at a time: a lock that is a folder beside the model repository.

The folder is made ready aside, with its owner's name in it, and renamed into place: a lock without an owner never
exists, on NFS too. It stands next to the repository, not in a pipeline's workspace, because two pipelines may
release a model of the same name.

A lock whose owner died on this machine is taken over. An owner on another machine cannot be seen, so its lock is
waited for, and then the error says who holds it and how to remove it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import getpass
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from refit.files import sync_folder, write_json
from refit.triton.errors import ModelLocked, RepositoryError

_POLL_SECONDS = 0.2


class ModelLock:
    """The lock of one model; a context manager.

    Args:
        folder: ``<repository>.locks``.
        model: the model's name.
        run: what the change is for; others read it while they wait.
        wait_seconds: how long to wait for another owner.
        say: is told, once each, that the lock is waited for or was taken over.

    Raises (on entering):
        ModelLocked: another owner still holds it after ``wait_seconds``.
        RepositoryError: the folder cannot be written.
    """

    def __init__(
        self, folder: Path, model: str, *, run: str, wait_seconds: float, say: Callable[[str], None] = lambda _: None
    ) -> None:
        self._path = folder / model
        self._run = run
        self._wait_seconds = wait_seconds
        self._say = say
        self._token = uuid.uuid4().hex

    def __enter__(self) -> ModelLock:
        folder = self._path.parent
        aside = folder / f".{self._path.name}.tmp-{self._token}"
        try:
            aside.mkdir(parents=True)
            write_json(aside / "owner.json", {**_identity(), "run": self._run, "token": self._token, "since": _now()})
        except OSError as exc:
            raise RepositoryError(
                f"{folder}: cannot make a lock there ({exc.strerror}); give this user the folder"
            ) from exc
        try:
            self._acquire(aside)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        owner = _owner(self._path)
        if owner is not None and owner.get("token") == self._token:
            _remove(self._path)

    def _acquire(self, aside: Path) -> None:
        until = time.monotonic() + self._wait_seconds
        told = False
        while True:
            # Renaming a folder onto one that is not empty fails: exactly one of many gets through.
            try:
                os.rename(aside, self._path)
                sync_folder(self._path.parent)
                return
            except OSError as exc:
                if exc.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                    raise RepositoryError(f"{self._path}: cannot be locked ({exc.strerror})") from exc
            owner = _owner(self._path)
            if owner is None:
                continue  # it was given back just now
            if _is_dead(owner):
                self._take_over(owner)
                continue
            if time.monotonic() >= until:
                raise ModelLocked(
                    f"{_describe(owner)} holds the lock of {self._path.name}, and did not give it back within "
                    f"{self._wait_seconds:g} s; wait for it, or when you know that it is gone, remove {self._path}"
                )
            if not told:
                self._say(f"Waiting for {_describe(owner)}, which holds the lock of {self._path.name}")
                told = True
            time.sleep(_POLL_SECONDS)

    def _take_over(self, dead: dict[str, Any]) -> None:
        """Remove a dead owner's lock; the file lock keeps two of this machine from removing each other's new one."""
        with open(self._path.with_name(f".{self._path.name}.takeover"), "a") as guard:
            fcntl.flock(guard, fcntl.LOCK_EX)
            owner = _owner(self._path)
            if owner is not None and owner.get("token") == dead.get("token"):
                self._say(f"Took over the lock of {self._path.name}: {_describe(dead)} ended without giving it back")
                _remove(self._path)


def actor() -> dict[str, Any]:
    """Who does something, for the records: host, user, process."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        user = str(os.getuid())
    return {"host": socket.gethostname(), "user": user, "pid": os.getpid()}


def _identity() -> dict[str, Any]:
    """Enough to tell later whether this process still runs: a number alone is given out again."""
    return {**actor(), "started": _start_time(os.getpid()), "boot": _boot(), "namespace": _namespace()}


def _is_dead(owner: dict[str, Any]) -> bool:
    """The owner ran where this process can see it (same boot, same process namespace), and runs no more."""
    here = (socket.gethostname(), _namespace())
    if (owner.get("host"), owner.get("namespace")) != here:
        return False
    return owner.get("boot") != _boot() or _start_time(int(owner.get("pid", 0))) != owner.get("started")


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


def _owner(path: Path) -> dict[str, Any] | None:
    """Who holds a lock; None when nobody does. A lock made by hand, without a readable owner, belongs to "someone"."""
    try:
        value = json.loads((path / "owner.json").read_text())
        return value if isinstance(value, dict) else {}
    except FileNotFoundError:
        try:
            return {} if os.listdir(path) else None
        except FileNotFoundError:
            return None
    except (OSError, ValueError):
        return {}


def _remove(path: Path) -> None:
    """Take the lock away in one step, then delete what is left of it."""
    gone = path.with_name(f".{path.name}.gone-{uuid.uuid4().hex}")
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, gone)
    shutil.rmtree(gone, ignore_errors=True)


def _describe(owner: dict[str, Any]) -> str:
    if not owner.get("host"):
        return "an unknown owner"
    return (
        f"{owner.get('run') or 'a release'} (process {owner.get('pid')} on {owner['host']}, since {owner.get('since')})"
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
