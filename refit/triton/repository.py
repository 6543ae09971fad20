"""A Triton model repository on a POSIX file system, changed so that the server never meets half a version.

Beside the repository, on the same file system, stand its siblings::

    models/                 what Triton reads: <model>/config.pbtxt, <model>/<version>/model.onnx
    models.staging/<model>/ the version that is being released, and the journal of the change
    models.retired/<model>/ <version>.json says why a version went; <version>/ has its files, where they were kept
    models.locks/           refit.triton.lock

Nothing is written inside ``models/`` but by rename: a folder beside a version would be served (Triton parses ``4.tmp``
as version 4), and ``--load-model=*`` would load a staging folder at the root as a model. A version number is never
used twice, so that a number names the same bytes for ever, in every log and answer.

The methods suppose that the model's lock is held.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from refit.files import sync_folder, write_bytes
from refit.triton.errors import RepositoryError
from refit.triton.lock import ModelLock

CONFIG = "config.pbtxt"
JOURNAL = "journal.json"


class Lock(Protocol):
    """The lock of one model. `desk` is what a repository of its kind writes a configuration with."""

    @property
    def desk(self) -> Any: ...

    def check(self) -> None:
        """This process holds it. Raises LockLost."""


class Repository(ABC):
    """What a change of a model needs, wherever the files lie: here, or in a bucket (`refit.triton.bucket`).

    Attributes:
        place: as people name it.
    """

    place: str

    @abstractmethod
    def lock(
        self, model: str, *, run: str, wait_seconds: float, say: Callable[[str], None]
    ) -> AbstractContextManager[Lock]:
        """One change of a model at a time. Raises (on entering) ModelLocked, RepositoryError."""

    # --- the change under way: its notes, and the version that is staged

    @abstractmethod
    def begin(self, model: str) -> None:
        """Make room for a change; what an earlier one left is gone."""

    @abstractmethod
    def keep(self, model: str, name: str, data: bytes) -> None:
        """Write a note of the change, whole or not at all."""

    @abstractmethod
    def kept(self, model: str, name: str) -> bytes | None:
        """A note of the change, None where there is none."""

    @abstractmethod
    def tree(self, model: str) -> Path:
        """The staged version as a model repository of its own on this machine, for a throwaway server."""

    @abstractmethod
    def clean(self, model: str) -> None:
        """Remove what a finished change left, its journal first: without it nothing is owed."""

    # --- the versions

    @abstractmethod
    def versions(self, model: str) -> list[int]:
        """The versions in the repository, sorted."""

    @abstractmethod
    def files(self, model: str, version: int) -> set[str]:
        """The names of a version's files."""

    @abstractmethod
    def local(self, model: str, version: int) -> AbstractContextManager[Path]:
        """A version's files in a folder of this machine."""

    @abstractmethod
    def names(self, model: str) -> set[str]:
        """What stands beside the versions that are there, were retired, or are staged."""

    @abstractmethod
    def install(self, model: str, version: int) -> None:
        """Put the staged version in; Triton looks at it when the configuration names it."""

    @abstractmethod
    def read_config(self, model: str) -> bytes | None:
        """The model's config.pbtxt, None where there is none."""

    @abstractmethod
    def write_config(self, model: str, data: bytes, desk: Any) -> None:
        """Replace config.pbtxt in one step, always anew: Triton looks at the file's time to see whether there is
        something to load.

        Raises:
            FileNotFoundError: the lock was lost, so its desk is gone.
        """

    def put_back_config(self, model: str, note: str, desk: Any) -> None:
        """Write a configuration that was kept. Does nothing where there is no such note: it was moved in before."""
        data = self.kept(model, note)
        if data is not None:
            self.write_config(model, data, desk)

    @abstractmethod
    def remove_config(self, model: str) -> None:
        """Take the configuration away, and the model's folder when nothing else is in it."""

    def used_versions(self, model: str) -> set[int]:
        """Every version number that was ever in use here, names that Triton would parse as one included."""
        found = (re.match(r"[0-9]+", name) for name in self.names(model))
        return {int(digits.group()) for digits in found if digits}

    def stage(self, model: str, version: int, files: Mapping[str, Path], config: str) -> Path:
        """Write a version aside, synced to the disk; returns the tree."""
        tree = self.tree(model)
        home = tree / model
        folder = home / str(version)
        shutil.rmtree(tree, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, source in files.items():
            shutil.copyfile(source, folder / name)
            _sync(folder / name)
        write_bytes(home / CONFIG, config.encode())
        for path in (folder, home, tree, tree.parent):
            sync_folder(path)
        return tree

    def withdraw(self, model: str, version: int, reason: str) -> None:
        """Move a version out of the repository (or out of staging), with a note why; again is no harm.

        A bad version that stays would make the next restart of Triton an outage where the policy names it.
        """
        self._note(model, version, _about(model, version, "failed", reason))
        self._retire(model, version)

    def put_back(self, model: str, version: int, files: Mapping[str, Path], config: str, reason: str) -> None:
        """A version's own files in place of what somebody made of them, which is kept as a withdrawn version's is."""
        self.begin(model)
        if version in self._retired(model):
            self._delete(model, version, retired=True)
        self.withdraw(model, version, reason)
        self.stage(model, version, files, config)
        self.install(model, version)

    def surplus(self, model: str, *, serving: int, keep_versions: int) -> list[int]:
        """The oldest versions, so many that ``keep_versions`` are left with the serving one."""
        older = [v for v in self.versions(model) if v != serving]
        return older[: max(0, len(older) - (keep_versions - 1))]

    def prune(self, model: str, *, serving: int, keep_versions: int) -> list[int]:
        """Remove the oldest versions, and old withdrawn files, so that ``keep_versions`` of each are left.

        Returns:
            The versions that were removed from the repository. Their numbers stay known.
        """
        removed = self.surplus(model, serving=serving, keep_versions=keep_versions)
        for version in removed:
            why = f"older than the {keep_versions} versions that are kept"
            self._note(model, version, _about(model, version, "pruned", why))
            self._delete(model, version, retired=False)
        kept = self._retired(model)
        for version in kept[: max(0, len(kept) - keep_versions)]:
            self._delete(model, version, retired=True)
        return removed

    def drop(self, model: str, reason: str) -> None:
        """Take a whole model away, the configuration first; its versions' numbers stay known."""
        self.remove_config(model)
        for version in self.versions(model):
            self._note(model, version, _about(model, version, "dropped", reason))
            self._delete(model, version, retired=False)
        self.remove_config(model)
        self.clean(model)

    @abstractmethod
    def _note(self, model: str, version: int, note: bytes) -> None:
        """Say why a version went."""

    @abstractmethod
    def _retire(self, model: str, version: int) -> None:
        """Move a version's files out of what Triton reads."""

    @abstractmethod
    def _retired(self, model: str) -> list[int]:
        """The versions whose files were kept when they were withdrawn, sorted."""

    @abstractmethod
    def _delete(self, model: str, version: int, *, retired: bool) -> None:
        """Remove a version's files."""


class ModelRepository(Repository):
    """A repository in a folder.

    Args:
        root: the folder that Triton reads, as this process sees it. Links are resolved: everyone who releases into it
            must meet at the same siblings.

    Raises:
        RepositoryError: there is no such folder, its siblings cannot be made, or they lie on another file system.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise RepositoryError(
                f"{root}: no such model repository; start the Triton that reads it (`make run` does), or correct "
                "release.triton.repository"
            )
        self.root = Path(os.path.realpath(root))
        self.place = str(self.root)
        self.staging, self.retired, self.locks = (
            self.root.with_name(f"{self.root.name}.{kind}") for kind in ("staging", "retired", "locks")
        )
        for folder in (self.staging, self.retired, self.locks):
            try:
                folder.mkdir(exist_ok=True)
            except OSError as exc:
                raise RepositoryError(f"{folder}: cannot be made ({exc.strerror}); give this user its parent") from exc
            if folder.stat().st_dev != self.root.stat().st_dev:
                raise RepositoryError(
                    f"{folder} and {self.root} are on different file systems, and a version is put in place by rename: "
                    "use a folder inside the volume as model repository, not its mount point"
                )

    def lock(self, model: str, *, run: str, wait_seconds: float, say: Callable[[str], None]) -> ModelLock:
        return ModelLock(self.locks, model, run=run, wait_seconds=wait_seconds, say=say)

    def workplace(self, model: str) -> Path:
        """The folder for the change of a model that is under way."""
        return self.staging / model

    def begin(self, model: str) -> None:
        self.clean(model)
        self.workplace(model).mkdir(parents=True)

    def keep(self, model: str, name: str, data: bytes) -> None:
        write_bytes(self.workplace(model) / name, data)

    def kept(self, model: str, name: str) -> bytes | None:
        return _read(self.workplace(model) / name)

    def tree(self, model: str) -> Path:
        return self.workplace(model) / "tree"

    def versions(self, model: str) -> list[int]:
        folder = self.root / model
        names = [p.name for p in folder.iterdir() if p.is_dir()] if folder.is_dir() else []
        return sorted(int(n) for n in names if re.fullmatch(r"[1-9][0-9]*", n))

    def files(self, model: str, version: int) -> set[str]:
        folder = self.root / model / str(version)
        return {p.name for p in folder.iterdir()} if folder.is_dir() else set()

    @contextmanager
    def local(self, model: str, version: int) -> Iterator[Path]:
        yield self.root / model / str(version)

    def names(self, model: str) -> set[str]:
        folders = (self.root / model, self.retired / model, self.tree(model) / model)
        return {path.name for folder in folders if folder.is_dir() for path in folder.iterdir()}

    def install(self, model: str, version: int) -> None:
        target = self.root / model / str(version)
        if target.exists():
            raise RepositoryError(
                f"{target} exists already: version numbers are not used twice; remove what put it there"
            )
        target.parent.mkdir(exist_ok=True)
        sync_folder(self.root)
        os.rename(self.tree(model) / model / str(version), target)
        sync_folder(target.parent)

    def read_config(self, model: str) -> bytes | None:
        return _read(self.root / model / CONFIG)

    def write_config(self, model: str, data: bytes, desk: Path) -> None:
        aside = desk / CONFIG
        write_bytes(aside, data)
        os.replace(aside, self.root / model / CONFIG)
        sync_folder(self.root / model)

    def put_back_config(self, model: str, note: str, desk: Path) -> None:
        """By moving it in where the disk has no room for another copy."""
        saved = self.workplace(model) / note
        try:
            super().put_back_config(model, note, desk)
        except FileNotFoundError:
            raise
        except OSError:
            os.utime(saved)  # Triton looks at the time
            os.replace(saved, self.root / model / CONFIG)
            sync_folder(self.root / model)

    def remove_config(self, model: str) -> None:
        folder = self.root / model
        (folder / CONFIG).unlink(missing_ok=True)
        if folder.is_dir():
            sync_folder(folder)
            if not any(folder.iterdir()):
                folder.rmdir()
                sync_folder(self.root)

    def _retire(self, model: str, version: int) -> None:
        home = self.retired / model
        for source in (self.root / model / str(version), self.tree(model) / model / str(version)):
            if source.is_dir() and not (home / str(version)).exists():
                os.rename(source, home / str(version))
                sync_folder(source.parent)
                sync_folder(home)

    def _retired(self, model: str) -> list[int]:
        home = self.retired / model
        return sorted(int(p.name) for p in home.iterdir() if p.is_dir()) if home.is_dir() else []

    def clean(self, model: str) -> None:
        home = self.workplace(model)
        if home.is_dir():
            (home / JOURNAL).unlink(missing_ok=True)
            sync_folder(home)
            shutil.rmtree(home, ignore_errors=True)

    def _note(self, model: str, version: int, note: bytes) -> None:
        home = self.retired / model
        home.mkdir(exist_ok=True)
        write_bytes(home / f"{version}.json", note)

    def _delete(self, model: str, version: int, *, retired: bool) -> None:
        """Out of sight in one step, then removed: a half-deleted version is never seen."""
        path = (self.retired if retired else self.root) / model / str(version)
        trash = self.workplace(model) / f"trash-{path.parent.parent.name}-{path.name}"
        trash.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(trash, ignore_errors=True)
        os.rename(path, trash)
        sync_folder(path.parent)
        shutil.rmtree(trash, ignore_errors=True)


def _about(model: str, version: int, state: str, reason: str) -> bytes:
    note = {"schema": 1, "model": model, "version": version, "state": state, "reason": reason}
    note["when"] = datetime.now(UTC).isoformat(timespec="seconds")
    return (json.dumps(note, indent=1, ensure_ascii=False) + "\n").encode()


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _sync(path: Path) -> None:
    with open(path, "rb") as f:
        os.fsync(f.fileno())
