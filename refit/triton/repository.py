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

import os
import re
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from refit.files import sync_folder, write_bytes, write_json
from refit.triton.errors import RepositoryError

CONFIG = "config.pbtxt"
JOURNAL = "journal.json"


class ModelRepository:
    """One repository.

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

    def workplace(self, model: str) -> Path:
        """The folder for the change of a model that is under way."""
        return self.staging / model

    def tree(self, model: str) -> Path:
        """The staged version as a model repository of its own, for a throwaway server."""
        return self.workplace(model) / "tree"

    def versions(self, model: str) -> list[int]:
        """The versions in the repository, sorted."""
        folder = self.root / model
        names = [p.name for p in folder.iterdir() if p.is_dir()] if folder.is_dir() else []
        return sorted(int(n) for n in names if re.fullmatch(r"[1-9][0-9]*", n))

    def files(self, model: str, version: int) -> set[str]:
        """The names of a version's files."""
        folder = self.root / model / str(version)
        return {p.name for p in folder.iterdir()} if folder.is_dir() else set()

    def used_versions(self, model: str) -> set[int]:
        """Every version number that was ever in use here, names that Triton would parse as one included."""
        used = set()
        for folder in (self.root / model, self.retired / model, self.tree(model) / model):
            for path in folder.iterdir() if folder.is_dir() else ():
                digits = re.match(r"[0-9]+", path.name)
                if digits:
                    used.add(int(digits.group()))
        return used

    def stage(self, model: str, version: int, files: Mapping[str, Path], config: str) -> Path:
        """Write a version aside, synced to the disk; returns the tree."""
        home = self.tree(model) / model
        folder = home / str(version)
        shutil.rmtree(self.tree(model), ignore_errors=True)
        folder.mkdir(parents=True)
        for name, source in files.items():
            shutil.copyfile(source, folder / name)
            _sync(folder / name)
        write_bytes(home / CONFIG, config.encode())
        for path in (folder, home, self.tree(model), self.workplace(model)):
            sync_folder(path)
        return self.tree(model)

    def install(self, model: str, version: int) -> None:
        """Move the staged version into the repository; Triton looks at it when the configuration names it."""
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
        """The model's config.pbtxt, None where there is none."""
        try:
            return (self.root / model / CONFIG).read_bytes()
        except FileNotFoundError:
            return None

    def write_config(self, model: str, data: bytes, desk: Path) -> None:
        """Replace config.pbtxt in one step. It is written aside on the lock's desk, and always anew: Triton looks at
        the file's time to see whether there is something to load.

        Raises:
            FileNotFoundError: the lock was lost, so its desk is gone.
        """
        aside = desk / CONFIG
        write_bytes(aside, data)
        os.replace(aside, self.root / model / CONFIG)
        sync_folder(self.root / model)

    def put_back_config(self, model: str, saved: Path, desk: Path) -> None:
        """Write a saved configuration, by moving it in where the disk has no room for another copy.

        Does nothing where there is no such file: it was moved in before.
        """
        try:
            data = saved.read_bytes()
        except FileNotFoundError:
            return
        try:
            self.write_config(model, data, desk)
        except FileNotFoundError:
            raise
        except OSError:
            os.utime(saved)  # Triton looks at the time
            os.replace(saved, self.root / model / CONFIG)
            sync_folder(self.root / model)

    def remove_config(self, model: str) -> None:
        """Take the configuration away, and the model's folder when nothing else is in it."""
        folder = self.root / model
        (folder / CONFIG).unlink(missing_ok=True)
        if folder.is_dir():
            sync_folder(folder)
            if not any(folder.iterdir()):
                folder.rmdir()
                sync_folder(self.root)

    def withdraw(self, model: str, version: int, reason: str) -> None:
        """Move a version out of the repository (or out of staging), with a note why; again is no harm.

        A bad version that stays would make the next restart of Triton an outage where the policy names it.
        """
        home = self.retired / model
        self._note(model, version, "failed", reason)
        for source in (self.root / model / str(version), self.tree(model) / model / str(version)):
            if source.is_dir() and not (home / str(version)).exists():
                os.rename(source, home / str(version))
                sync_folder(source.parent)
                sync_folder(home)

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
            self._note(model, version, "pruned", f"older than the {keep_versions} versions that are kept")
            self._delete(model, self.root / model / str(version))
        home = self.retired / model
        kept = sorted((p for p in home.iterdir() if p.is_dir()), key=lambda p: int(p.name)) if home.is_dir() else []
        for path in kept[: max(0, len(kept) - keep_versions)]:
            self._delete(model, path)
        return removed

    def clean(self, model: str) -> None:
        """Remove what a finished change left in the staging folder, its journal first: without it nothing is owed."""
        home = self.workplace(model)
        if home.is_dir():
            (home / JOURNAL).unlink(missing_ok=True)
            sync_folder(home)
            shutil.rmtree(home, ignore_errors=True)

    def _note(self, model: str, version: int, state: str, reason: str) -> None:
        home = self.retired / model
        home.mkdir(exist_ok=True)
        note = {"schema": 1, "model": model, "version": version, "state": state, "reason": reason}
        write_json(home / f"{version}.json", {**note, "when": datetime.now(UTC).isoformat(timespec="seconds")})

    def _delete(self, model: str, path: Path) -> None:
        """Out of sight in one step, then removed: a half-deleted version is never seen."""
        trash = self.workplace(model) / f"trash-{path.parent.parent.name}-{path.name}"
        trash.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(trash, ignore_errors=True)
        os.rename(path, trash)
        sync_folder(path.parent)
        shutil.rmtree(trash, ignore_errors=True)


def _sync(path: Path) -> None:
    with open(path, "rb") as f:
        os.fsync(f.fileno())
