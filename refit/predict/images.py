"""Where the images of a batch lie, and their bytes: a folder, a prefix of a bucket, what an archive by https holds.

Files of a bucket are read when their turn comes and never touch the disk; an archive is fetched and unpacked first,
below the results folder.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Protocol

from refit.command import BadData, BadSpec
from refit.config import ConfigError, Settings
from refit.data.source import Kind, Source
from refit.data.tree import FileInfo, Files, Tree, scan, suffix_of
from refit.status import StatusWriter

if TYPE_CHECKING:
    from refit.data.remote import Remote

CONNECTION = "REFIT_CONNECTION"  # the variable with the login, as in `refit.plan`
SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
MOST_BYTES = 512 << 20  # of one image file: it is held in memory
TRIES, WAIT_SECONDS = 4, 1.0  # for a store that breaks off


class Unreadable(ValueError):
    """An image that cannot be used: told in errors.json, and the rest goes on. `code` is one of `refit.data.codes`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Reader(Protocol):
    def __call__(self, file: FileInfo) -> bytes:
        """The bytes of a file; may be called by several threads. Raises Unreadable, StageError."""


@dataclass
class Images:
    """The images of a batch, sorted by path.

    Attributes:
        name: of the folder or prefix that was given; results are named after it.
        skipped: images that are not read at all, with why (a link that leads out).
        ignored: files that are no images by their names, counted by ending.
    """

    name: str
    files: Files
    read: Reader
    skipped: dict[str, str] = field(default_factory=dict)
    ignored: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.files)


def open_images(text: str, connection: str | None, settings: Settings, work: Path, status: StatusWriter) -> Images:
    """List what is to be looked at.

    Args:
        text: as `dataset.source` of a pipeline has it; a folder must lie below one of REFIT_DATA_ROOTS.
        connection: the name of the login, whose text is in the variable CONNECTION; None where none is needed.
        work: a folder for what is fetched whole.

    Raises BadSpec, BadData (nothing there), StageError.
    """
    try:
        source = settings.source(text)
    except ConfigError as exc:
        raise BadSpec(f"images: {str(exc).removeprefix('dataset.source')}".replace(": :", ":")) from None
    if source.kind is Kind.DVC:
        raise BadSpec(f"images: {text}: a .dvc file names a data set; name a folder or a bucket of images")
    if source.kind is Kind.FOLDER:
        return _of_folder(Path(source.text), Path(source.text).name)
    remote = _remote(source, connection, settings)
    tree = remote.tree()
    if tree is None:
        raise BadData(f"{source}: there is no such bucket or file")
    if source.kind is Kind.WEB:
        return _of_folder(_unpacked(source, remote, tree, work, status), source.name.partition(".")[0])
    name = PurePosixPath(source.prefix).name or source.bucket
    return _chosen(source.text, name, tree, lambda file: _download(remote, file))


def _of_folder(root: Path, name: str) -> Images:
    try:
        tree = scan(root)
    except OSError as exc:
        why = "no such folder; `images` must name a folder of images"
        raise BadData(f"{root}: {why if isinstance(exc, FileNotFoundError) else exc.strerror}") from None

    def read(file: FileInfo) -> bytes:
        _check_size(file)
        try:
            return (root / file.path).read_bytes()
        except OSError as exc:
            raise Unreadable("image_unreadable", f"cannot be read: {exc.strerror}") from None

    return _chosen(str(root), name, tree, read)


def _chosen(where: str, name: str, tree: Tree, read: Reader) -> Images:
    chosen = Files(f for f in tree.files.values() if suffix_of(f.path) in SUFFIXES)
    skipped = {path: why for path, why in tree.skipped.items() if suffix_of(path) in SUFFIXES}
    ignored = Counter(s or "no ending" for p in tree.files.paths if (s := suffix_of(p)) not in SUFFIXES)
    if not chosen and not skipped:
        there = f"; there are {', '.join(f'{n} x {s}' for s, n in ignored.most_common(5))}" if ignored else ""
        raise BadData(f"{where}: no image in it ({', '.join(sorted(SUFFIXES))} are looked for){there}")
    return Images(name, chosen, read, skipped, ignored)


def _check_size(file: FileInfo) -> None:
    if file.size > MOST_BYTES:
        raise Unreadable("image_unreadable", f"has {file.size >> 20:,} MiB; at most {MOST_BYTES >> 20} are read")


def _remote(source: Source, connection: str | None, settings: Settings) -> Remote:
    from refit.data import remote as remotes
    from refit.data.remote.connection import Connection

    try:
        import obstore  # noqa: F401 - the cpu environment has none
    except ModuleNotFoundError:
        raise BadSpec(
            f"images: {source}: this environment reads folders only; ask through Triton, or copy the images first"
        ) from None
    login = Connection.read(connection, os.environ.pop(CONNECTION, "")) if connection is not None else None
    return remotes.connect(source, login, settings)


def _download(remote: Remote, file: FileInfo) -> bytes:
    from refit.data.remote.errors import Broken, Vanished

    _check_size(file)
    for attempt in range(TRIES):
        try:
            return b"".join(remote.read(file, 0))
        except Vanished as exc:
            raise Unreadable("source_changed", str(exc)) from None
        except Broken:
            if attempt == TRIES - 1:
                raise
            time.sleep(WAIT_SECONDS * 2**attempt)
    raise AssertionError("unreachable")


def _unpacked(source: Source, remote: Remote, tree: Tree, work: Path, status: StatusWriter) -> Path:
    """What an archive holds. Fetched again only where it has changed."""
    from refit import archive
    from refit.data.remote.fetch import RESERVE, Fetch

    (file,) = tree.files.values()
    own = work / hashlib.sha256(f"{file.path}\0{file.size}\0{file.tag}".encode()).hexdigest()[:16]
    data, aside = own / "data", own / "data.tmp"
    if data.exists():
        return data
    shutil.rmtree(work, ignore_errors=True)
    own.mkdir(parents=True)
    Fetch(source.text, remote, own / "files", own / "parts", status).run(tree, {})
    status.running(f"Unpacking {file.path} ({file.size >> 20:,} MiB)")
    aside.mkdir()
    try:
        limits = archive.Limits(bytes=max(0, shutil.disk_usage(aside).free - RESERVE))
        archive.unpack(own / "files" / file.path, aside, limits)
    except (archive.Damaged, archive.Unsafe) as exc:
        raise BadData(f"{source}: is not unpacked: {exc}") from None
    shutil.rmtree(own / "files")
    os.rename(aside, data)
    return data


def folders(images: Images) -> Iterator[tuple[str, list[int]]]:
    """Each folder ("" for the root) with the places of its images in `files`, both in order."""
    paths = images.files.paths
    order = sorted(range(len(paths)), key=lambda i: (os.path.dirname(paths[i]), i))
    start = 0
    while start < len(order):
        folder, end = os.path.dirname(paths[order[start]]), start
        while end < len(order) and os.path.dirname(paths[order[end]]) == folder:
            end += 1
        yield folder, order[start:end]
        start = end
