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
import time
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, ValuesView
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, compress, islice
from operator import attrgetter, le
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

_PARTIAL = (".tmp", ".temp", ".part", ".partial", ".filepart", ".crdownload", ".download", ".swp", "~")
_MOST_NAME = 255  # bytes of a file's name in the file systems of Linux
RECENT_NS = 2 * 10**9  # what changed so short a time ago may change again and keep its times
_FOREIGN = frozenset({"__MACOSX", "lost+found", "@eaDir", "$RECYCLE.BIN", "System Volume Information"})


T = TypeVar("T")
_numbers = attrgetter("st_size", "st_mtime_ns", "st_ctime_ns", "st_ino")
_CHUNK = 1024  # files whose status is asked for at once
Spread = Callable[[Callable[[Sequence[str]], tuple["array[int]", ...]], Iterable[Sequence[str]]], Iterable[Any]]
"""`map`, or what does the same on several cores."""


class FileInfo(NamedTuple):
    """A regular file: path below the root with '/', size in bytes, times in nanoseconds, number in its file system.

    `tag` is the validator of an object or a URL (ETag, or what stands for it), "" for a file of a folder. Where there
    is one, it and not the time says whether the content is still the same.
    """

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int
    tag: str = ""
    inode: int = 0


_WIDE = "qqqQ"  # of size, mtime, ctime and inode
_NARROW = "IqqI"  # enough for the sizes and inodes of almost all files
_MOST = 2 ** (8 * array("I").itemsize) - 1


def _columns() -> tuple[array[int], ...]:
    return tuple(array(code) for code in _WIDE)


class Files(Mapping[str, FileInfo]):
    """Files by path, sorted by it; some 110 bytes each, where a dict of `FileInfo` takes 400."""

    def __init__(self, rows: Iterable[FileInfo] = ()) -> None:
        self.paths: list[str] = []
        self._numbers = [array(code) for code in _NARROW]
        self._tags: dict[str, str] = {}
        self._endings: dict[str, array[int]] = {}
        self._add(sorted(rows))

    def _add(self, rows: Sequence[FileInfo]) -> None:
        self.paths.extend(row.path for row in rows)
        self._tags.update((row.path, row.tag) for row in rows if row.tag)
        self._put(map(attrgetter(name), rows) for name in ("size", "mtime_ns", "ctime_ns", "inode"))

    def _put(self, columns: Iterable[Iterable[int]]) -> None:
        """Add numbers to the columns; one that gets a number too large for it becomes a wide one."""
        for at, numbers in enumerate(columns):
            column, its = self._numbers[at], list(numbers)
            if column.typecode != _WIDE[at] and not all(0 <= number <= _MOST for number in its):
                column = self._numbers[at] = array(_WIDE[at], column)
            column.extend(its)

    def _extend(self, paths: Sequence[str], columns: tuple[array[int], ...]) -> None:
        """Add files by `statuses`, but for those that are gone."""
        there = [size >= 0 for size in columns[0]]
        self.paths.extend(compress(paths, there))
        self._put(compress(numbers, there) for numbers in columns)

    def _sort(self) -> None:
        if all(map(le, self.paths, islice(self.paths, 1, None))):
            return
        order = sorted(range(len(self.paths)), key=self.paths.__getitem__)
        self.paths = [self.paths[i] for i in order]
        self._numbers = [array(c.typecode, map(c.__getitem__, order)) for c in self._numbers]

    def ending(self, *suffixes: str) -> Iterator[str]:
        """The paths with these endings (`suffix_of`), ending by ending, each in order."""
        by_ending = self._by_ending()
        return (self.paths[at] for suffix in suffixes for at in by_ending.get(suffix, ()))

    def places_ending(self, suffixes: Iterable[str], within: range) -> array[int]:
        """The places of files with these endings among some that follow one another, in order."""
        by_ending = self._by_ending()
        found = [
            its[bisect_left(its, within.start) : bisect_left(its, within.stop)]
            for its in map(by_ending.get, suffixes)
            if its is not None
        ]
        found = [its for its in found if its]
        return found[0] if len(found) == 1 else array("I", sorted(chain.from_iterable(found)))

    def endings(self) -> list[str]:
        """The endings that there are."""
        return list(self._by_ending())

    def _by_ending(self) -> dict[str, array[int]]:
        """The places of each ending's files. Looked at once for all formats, when the listing is complete."""
        if not self._endings:
            for at, path in enumerate(self.paths):
                self._endings.setdefault(suffix_of(path), array("I")).append(at)
        return self._endings

    def find(self, path: str) -> int:
        """The place of a path in the order, -1 where there is no such file."""
        at = bisect_left(self.paths, path)
        return at if at < len(self.paths) and self.paths[at] == path else -1

    def places(self, paths: list[str]) -> Sequence[int]:
        """`find` of each; quick for paths that follow one another in the order."""
        first = self.find(paths[0]) if paths else 0
        if first >= 0 and self.paths[first : first + len(paths)] == paths:
            return range(first, first + len(paths))
        return [self.find(path) for path in paths]

    def numbers(self) -> Sequence[array[int]]:
        """Sizes, mtimes, ctimes and inodes in the order of the paths."""
        return self._numbers

    def sizes(self, places: Sequence[int]) -> list[int]:
        """The sizes of the files at these places, -1 where there is none."""
        size = self._numbers[0]
        return [size[place] if place >= 0 else -1 for place in places]

    def __getitem__(self, path: str) -> FileInfo:
        at = self.find(path)
        if at < 0:
            raise KeyError(path)
        return self.at(at)

    def at(self, place: int) -> FileInfo:
        path = self.paths[place]
        size, mtime, ctime, inode = [c[place] for c in self._numbers]
        return FileInfo(path, size, mtime, ctime, self._tags.get(path, ""), inode)

    def __contains__(self, path: object) -> bool:
        return isinstance(path, str) and self.find(path) >= 0

    def __iter__(self) -> Iterator[str]:
        return iter(self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def values(self) -> ValuesView[FileInfo]:
        return _Infos(self)

    def infos(self) -> Iterator[FileInfo]:
        return map(self.at, range(len(self.paths)))


class _Infos(ValuesView[FileInfo]):
    """The values without a search for each."""

    _mapping: Files

    def __iter__(self) -> Iterator[FileInfo]:
        return self._mapping.infos()


@dataclass(slots=True)
class Tree:
    """A folder's data files sorted by path, what was seen but is no data, and what was not followed (with why)."""

    root: Path
    files: Files = field(default_factory=Files)
    temporary: list[FileInfo] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    listed: dict[str, int] = field(default_factory=dict)  # each folder, "" for the root -> its mtime_ns before that
    listed_at_ns: int = 0

    def below(self, folder: str) -> Iterator[FileInfo]:
        """The data files of a folder ("." for the root) and its subfolders, sorted."""
        return map(self.files.at, self.places(folder))

    def paths(self, folder: str) -> list[str]:
        """The paths of `below`."""
        found = self.places(folder)
        return self.files.paths[found.start : found.stop]

    def places(self, folder: str) -> range:
        """The places of those files in `files.paths`."""
        if folder in ("", "."):
            return range(len(self.files))
        prefix = folder.strip("/")
        # "0" is the character after "/"
        return range(bisect_left(self.files.paths, prefix + "/"), bisect_left(self.files.paths, prefix + "0"))


def suffix_of(path: str) -> str:
    """The ending of a path in lower case, with its dot, as pathlib has it."""
    before, dot, end = path.rpartition(".")
    return dot + end.lower() if end and before and before[-1] != "/" and "/" not in end else ""


def is_temporary(name: str) -> bool:
    """Whether a file or folder of this name is no data: hidden, partial, or another system's housekeeping."""
    return name.startswith(".") or name.lower().endswith(_PARTIAL) or name in _FOREIGN


def of_objects(root: Path, objects: Iterable[FileInfo]) -> Tree:
    """The tree that objects of a store make, by the rules of `scan`: keys that cannot be a file's path below the root
    are in `skipped`, with why."""
    tree = Tree(root)
    rows = {f.path: f for f in objects if f.path and not (f.path.endswith("/") and not f.size)}
    good = []
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
            good.append(f)
    tree.files = Files(good)
    return tree


def scan(root: Path, spread: Spread = map) -> Tree:
    """List a folder. What vanishes meanwhile is left out. Raises OSError when the root itself cannot be listed."""
    real = os.path.realpath(root)
    tree = Tree(Path(root), listed_at_ns=time.time_ns())
    todo, plain = [""], list[str]()
    while todo:
        folder = todo.pop()
        at = os.path.join(real, folder)
        try:
            tree.listed[folder] = os.stat(at).st_mtime_ns
            with os.scandir(at) as entries:
                for entry in entries:
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    if entry.is_file(follow_symlinks=False) and not is_temporary(entry.name):
                        plain.append(path)
                    else:
                        _visit(entry, path, real, tree, todo)
        except OSError as exc:
            if not folder:
                raise
            if not isinstance(exc, FileNotFoundError):
                tree.skipped[folder] = f"cannot be listed: {exc.strerror}"
    plain.sort()
    for paths, columns in zip(_chunks(plain), spread(partial(statuses, real), _chunks(plain)), strict=True):
        tree.files._extend(paths, columns)
    tree.files._sort()
    tree.temporary.sort()
    tree.folders.sort()
    return tree


def statuses(root: str, paths: Sequence[str]) -> tuple[array[int], ...]:
    """Sizes, mtimes, ctimes and inodes of files below a folder; the size is -1 where there is none."""
    rows: list[tuple[int, ...]] = []
    for path in paths:
        try:
            rows.append(_numbers(os.stat(f"{root}/{path}")))
        except OSError:
            rows.append((-1, 0, 0, 0))
    found = _columns()
    for column, numbers in zip(found, zip(*rows, strict=True), strict=bool(rows)):
        column.extend(numbers)
    return found


def _chunks(paths: Sequence[str]) -> Iterator[Sequence[str]]:
    return (paths[at : at + _CHUNK] for at in range(0, len(paths), _CHUNK))


def as_listed(tree: Tree, recalled: bytes | bytearray, spread: Spread = map) -> bool:
    """Whether a folder is as it was listed; False where that takes another `scan` to tell.

    `recalled` holds 1 at the place of each file that was not opened: of these it is enough that none came or went.
    """
    for folder, mtime in tree.listed.items():
        # A folder that changed just before it was listed could change again without another mtime.
        if mtime > tree.listed_at_ns - RECENT_NS or os.stat(tree.root / folder).st_mtime_ns != mtime:
            return False
    files, starts = tree.files, range(0, len(tree.files), _CHUNK)

    def opened(column: Sequence[T], at: int) -> list[T]:
        return [
            value for value, skip in zip(column[at : at + _CHUNK], recalled[at : at + _CHUNK], strict=True) if not skip
        ]

    asked = (opened(files.paths, at) for at in starts)
    for at, found in zip(starts, spread(partial(statuses, os.fspath(tree.root)), asked), strict=True):
        for listed, now in zip(files.numbers()[:2], found, strict=False):
            if opened(listed, at) != list(now):
                return False
    return True


def _visit(entry: os.DirEntry[str], path: str, real: str, tree: Tree, todo: list[str]) -> None:
    try:
        status = entry.stat(follow_symlinks=False)
        if is_temporary(entry.name):
            tree.temporary.append(_info(path, status))
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
        tree.files._add([_info(path, status)])
    else:
        tree.skipped[path] = "not a plain file"


def _info(path: str, status: os.stat_result) -> FileInfo:
    return FileInfo(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns, inode=status.st_ino)
