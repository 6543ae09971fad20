"""The folder that bind reads, whatever the source: the inbox itself, or `<workspace>/incoming/<signature>/`.

    incoming/<signature>/files/   what was fetched: from a remote source, each file whole
                         parts/   what is on the way
                         data/    what archives hold, once all of them have opened whole; contents.json: digests
    incoming/last/                files/ of the last snapshot, images as links into its store, and index.json: of what
    incoming/.lock                one process at a time

What lies there stays until a snapshot is made of it, and what the next arrival has in common with it is linked, so that
nothing is fetched twice; what belongs to another signature goes when the next arrival is taken.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from refit import archive
from refit.data import work
from refit.data.arrival import Listing
from refit.data.faults import BadData, fault
from refit.data.formats import READERS
from refit.data.manifest import Named
from refit.data.remote import Remote
from refit.data.remote.fetch import RESERVE, Fetch
from refit.data.settings import Dataset
from refit.data.snapshot import Store, no_space, read_annotations
from refit.data.source import Source, is_archive
from refit.data.tree import FileInfo, Files, Tree, scan
from refit.files import link_or_copy, sha256, sync_folder, write_json
from refit.status import StatusWriter

INCOMING, LAST, LOCK, INDEX, CONTENTS = "incoming", "last", ".lock", "index.json", "contents.json"


@dataclass
class AtHand:
    """The folder to read, and the validators of its files where they were fetched or unpacked; whoever makes a snapshot
    of it says so here."""

    folder: Path
    tags: Mapping[str, str] = field(default_factory=dict)
    snapshot: Path | None = None


@contextlib.contextmanager
def at_hand(
    source: Source, remote: Remote | None, listing: Listing, dataset: Dataset, workspace: Path, status: StatusWriter
) -> Iterator[AtHand]:
    """The folder with the data of an arrival. What was made for it goes when the block ends well, but for what the next
    arrival may have in common with it.

    Raises BadData for what is damaged, unsafe, or not what its manifest says, and what `Fetch.run` raises.
    """
    beside = _beside(dataset)
    inbox = Path(source.text)
    if remote is None:
        _check(source, inbox, listing.manifest.files if listing.manifest is not None else {})
        if not _archives(inbox, beside):
            yield AtHand(inbox)
            return
    with _incoming(workspace, listing) as own:
        folder, data = _brought(source, remote, listing, beside, own, status)
        hand = _begin(folder, data, dataset)
        yield hand
        if remote is not None and data == folder and hand.snapshot is not None:
            _keep(own, own.parent / LAST, hand.snapshot)
        shutil.rmtree(own, ignore_errors=True)


def beforehand(
    source: Source, remote: Remote | None, listing: Listing, dataset: Dataset, workspace: Path, status: StatusWriter
) -> AtHand:
    """What `at_hand` will give, for several processes that only look at it: the first one brings what has to
    be brought, and it stays. Raises as `at_hand`, whose part it is to hold an inbox's files against a manifest."""
    beside = _beside(dataset)
    if remote is None and not _archives(Path(source.text), beside):
        return AtHand(Path(source.text))
    with _incoming(workspace, listing) as own:
        return _begin(*_brought(source, remote, listing, beside, own, status), dataset)


def _beside(dataset: Dataset) -> Set[str]:
    return {dataset.arrival.marker or "", dataset.arrival.manifest or ""}


@contextlib.contextmanager
def _incoming(workspace: Path, listing: Listing) -> Iterator[Path]:
    """The folder of an arrival, held by one process at a time; those of others go."""
    incoming = workspace / INCOMING
    incoming.mkdir(exist_ok=True)
    with open(incoming / LOCK, "a", encoding="utf-8") as lock, no_space(incoming):
        with contextlib.suppress(OSError):  # a file system without locks; Airflow starts one run at a time
            fcntl.flock(lock, fcntl.LOCK_EX)
        for old in incoming.iterdir():
            if old.name not in (LOCK, LAST, listing.signature):
                shutil.rmtree(old, ignore_errors=True)
        yield incoming / listing.signature


def _brought(
    source: Source, remote: Remote | None, listing: Listing, beside: Set[str], own: Path, status: StatusWriter
) -> tuple[Path, Path]:
    """What was fetched (or the inbox), and what archives in it hold (or the same)."""
    folder = Path(source.text) if remote is None else _fetched(source, remote, listing, beside, own, status)
    return folder, _unpacked(source, folder, own, beside, status)


def _begin(folder: Path, data: Path, dataset: Dataset) -> AtHand:
    if data == folder:
        return AtHand(data, {path: tag for path, (_, tag) in _index(folder.parent).items()})
    free = dataset.image_dir is None and dataset.label_dir is None and dataset.split.lists is None
    top = inner(data) if free else data
    below = "" if top == data else f"{top.relative_to(data)}/"
    digests: dict[str, str] = json.loads((data.parent / CONTENTS).read_text(encoding="utf-8"))
    return AtHand(top, {path.removeprefix(below): digest for path, digest in digests.items()})


def _index(folder: Path) -> dict[str, list[Any]]:
    """path -> size and tag, of what was fetched there; nothing where that is not known."""
    try:
        index: dict[str, list[Any]] = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return index


def _fetched(
    source: Source, remote: Remote, listing: Listing, beside: Set[str], own: Path, status: StatusWriter
) -> Path:
    own.mkdir(exist_ok=True)
    tree, named = remote.files()
    tree.files = Files(f for f in tree.files.values() if f.path not in beside)
    if listing.manifest is not None:
        named = listing.manifest.files
    _link(tree, named, own.parent / LAST, own / "files")
    Fetch(source.text, remote, own / "files", own / "parts", status).run(tree, named)
    write_json(own / INDEX, {f.path: [f.size, f.tag] for f in tree.files.values()})
    return own / "files"


def _link(tree: Tree, named: Mapping[str, Named], last: Path, folder: Path) -> None:
    """Put the files that the last arrival had, too, where they would be fetched to."""
    index = _index(last)
    for f in tree.files.values():
        if index.get(f.path) != [f.size, f.tag] or (folder / f.path).exists():
            continue
        want = named.get(f.path, Named())
        with contextlib.suppress(FileNotFoundError):
            if want.hash in (None, f.tag) or _hash(last / "files" / f.path, want) == want.hash:
                (folder / f.path).parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(last / "files" / f.path, folder / f.path)


def _keep(own: Path, last: Path, snapshot: Path) -> None:
    """Keep the files of a snapshot for the next arrival. Images become links to the store's: they take no room."""
    store = Store(snapshot.parent)
    aside = own / "link"
    for row in read_annotations(snapshot):
        image, kept = (
            own / "files" / row["source"],
            store.path(row["sha256"], PurePosixPath(row["file"]).suffix.lower()),
        )
        with contextlib.suppress(OSError):  # no such file, or a file system without links: then it is a copy
            # By content: in mode append, a picture of an earlier arrival may have had the same name.
            if not image.samefile(kept) and sha256(image) == row["sha256"]:
                os.link(kept, aside)
                os.replace(aside, image)
    shutil.rmtree(last, ignore_errors=True)
    os.rename(own, last)


def _check(source: Source, folder: Path, named: Mapping[str, Named]) -> None:
    """Compare the files of an inbox with the hashes that its manifest names."""

    def wrong(entry: tuple[str, Named]) -> str:
        path, want = entry
        return path if want.hash is not None and _hash(folder / path, want) != want.hash else ""

    try:
        with ThreadPoolExecutor(work.cores()) as pool:
            bad = [path for path in pool.map(wrong, named.items()) if path]
    except FileNotFoundError as exc:
        raise BadData(source.text, [fault("source_changed", "", f"{exc.filename} vanished")]) from None
    text = "its bytes are not those whose hash the manifest names"
    if bad:
        raise BadData(source.text, [fault("file_damaged", path, text) for path in bad])


def _hash(path: Path, want: Named) -> str:
    """The hash of a file, of the kind that is named for it."""
    kind = want.hasher()
    with open(path, "rb") as f:
        while chunk := f.read(1 << 20):
            kind.update(chunk)
    return str(kind.hexdigest())


def _archives(folder: Path, beside: Set[str]) -> list[FileInfo]:
    """The files of a folder, where all of them are archives."""
    files = [f for f in scan(folder).files.values() if f.path not in beside]
    return files if all(is_archive(f.path) for f in files) else []


def _unpacked(source: Source, folder: Path, own: Path, beside: Set[str], status: StatusWriter) -> Path:
    """The folder itself, or where it holds archives alone, what they hold together."""
    files = _archives(folder, beside)
    if not files:
        return folder
    data, aside = own / "data", own / "data.tmp"
    if not data.exists():
        own.mkdir(exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        names: archive.Names = {}
        digests: dict[str, str] = {}
        for f in files:
            status.running(f"Unpacking {f.path} ({f.size >> 20:,} MiB)")
            limits = archive.Limits(bytes=max(0, shutil.disk_usage(aside).free - RESERVE))
            try:
                archive.unpack(folder / f.path, aside, limits, names, digests)
            except archive.Damaged as exc:
                raise BadData(source.text, [fault("archive_damaged", f.path, str(exc))]) from None
            except archive.Unsafe as exc:
                raise BadData(source.text, [fault("archive_unsafe", f.path, f"{exc}; it is not unpacked")]) from None
            except FileNotFoundError:
                raise BadData(source.text, [fault("source_changed", f.path, "vanished")]) from None
        write_json(own / CONTENTS, digests)
        os.rename(aside, data)
        sync_folder(own)
    return data


def inner(folder: Path) -> Path:
    """Where the data set begins in what was unpacked: below the one folder that many archives have at their top."""
    while True:
        tree = scan(folder)
        tops = {path.partition("/")[0] for path in tree.files}
        if len(tops) != 1 or tops & tree.files.keys() or any(r.matches(tree) for r in READERS.values()):
            return folder
        folder = folder / tops.pop()
