"""The files of a folder that someone else fills: one walk that never leaves it and never blocks.

Standard library only: Airflow's triggerer lists inboxes with it.

- Hidden files (`.name`), partial downloads (`x.part`, `x.tmp`, ...) and editors' leftovers (`x~`) are no data; they are
  noticed as activity, since they say that a copy is under way.
- A link to a file inside the root is that file; a link to a folder or out of the root is not followed, and said.
- Pipes, sockets and devices are never opened, and said.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

_PARTIAL = (".tmp", ".temp", ".part", ".partial", ".filepart", ".crdownload", ".download", ".swp", "~")
_MOST_NAME = 255  # bytes of a file's name in the file systems of Linux
_FOREIGN = frozenset({"__MACOSX", "lost+found", "@eaDir", "$RECYCLE.BIN", "System Volume Information"})


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A regular file: path below the root with '/', size in bytes, times in nanoseconds.

    `tag` is the validator of an object or a URL (ETag, or what stands for it), "" for a file of a folder. Where there
    is one, it and not the time says whether the content is still the same.
    """

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int
    tag: str = ""


@dataclass(slots=True)
class Tree:
    """A folder's data files sorted by path, what was seen but is no data, and what was not followed (with why)."""

    root: Path
    files: dict[str, FileInfo] = field(default_factory=dict)
    temporary: list[FileInfo] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)

    def below(self, folder: str) -> Iterator[FileInfo]:
        """The data files of a folder ("." for the root) and its subfolders, sorted."""
        prefix = "" if folder in ("", ".") else folder.strip("/") + "/"
        return (f for path, f in self.files.items() if path.startswith(prefix))


def is_temporary(name: str) -> bool:
    """Whether a file or folder of this name is no data: hidden, partial, or another system's housekeeping."""
    return name.startswith(".") or name.lower().endswith(_PARTIAL) or name in _FOREIGN


def of_objects(root: Path, objects: Iterable[FileInfo]) -> Tree:
    """The tree that objects of a store make, by the rules of `scan`: keys that cannot be a file's path below the root
    are in `skipped`, with why."""
    tree = Tree(root)
    rows = {f.path: f for f in objects if f.path and not (f.path.endswith("/") and not f.size)}
    above = {str(parent) for path in rows for parent in PurePosixPath(path).parents}
    for path, f in sorted(rows.items()):
        parts = path.split("/")
        if any(p in ("", ".", "..") or len(p.encode()) > _MOST_NAME for p in parts) or not path.isprintable():
            tree.skipped[path] = "a key that cannot be a file's name"
        elif path in above:
            tree.skipped[path] = "a key that is also the folder of others"
        elif any(map(is_temporary, parts)):
            tree.temporary.append(f)
        else:
            tree.files[path] = f
    return tree


def scan(root: Path) -> Tree:
    """List a folder. What vanishes meanwhile is left out. Raises OSError when the root itself cannot be listed."""
    real = os.path.realpath(root)
    tree = Tree(Path(root))
    found: list[FileInfo] = []
    todo = [""]
    while todo:
        folder = todo.pop()
        try:
            with os.scandir(os.path.join(real, folder)) as entries:
                for entry in entries:
                    _visit(entry, folder, real, tree, found, todo)
        except OSError as exc:
            if not folder:
                raise
            if not isinstance(exc, FileNotFoundError):
                tree.skipped[folder] = f"cannot be listed: {exc.strerror}"
    tree.files = {f.path: f for f in sorted(found, key=lambda f: f.path)}
    tree.temporary.sort(key=lambda f: f.path)
    tree.folders.sort()
    return tree


def _visit(entry: os.DirEntry[str], folder: str, real: str, tree: Tree, found: list[FileInfo], todo: list[str]) -> None:
    path = f"{folder}/{entry.name}" if folder else entry.name
    try:
        status = entry.stat(follow_symlinks=False)
        if is_temporary(entry.name):
            tree.temporary.append(FileInfo(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
            return
        if stat.S_ISLNK(status.st_mode):
            target = os.path.realpath(entry.path)
            if not target.startswith(real.rstrip("/") + "/"):
                tree.skipped[path] = "a link out of the data set"
                return
            status = os.stat(target)
            if stat.S_ISDIR(status.st_mode):
                tree.skipped[path] = "a link to a folder"
                return
    except FileNotFoundError:
        if entry.is_symlink():
            tree.skipped[path] = "a link to nothing"
        return
    except OSError as exc:
        tree.skipped[path] = f"cannot be read: {exc.strerror}"
        return
    if stat.S_ISDIR(status.st_mode):
        todo.append(path)
        tree.folders.append(path)
    elif stat.S_ISREG(status.st_mode):
        found.append(FileInfo(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    else:
        tree.skipped[path] = "not a plain file"
