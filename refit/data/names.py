"""How text files that come with a data set name its images: lists of a split, tables of groups, removed.txt."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from refit.data.examine import Examination
from refit.data.faults import Fault, fault
from refit.data.formats.base import Changed, read_whole
from refit.data.images import SUFFIXES
from refit.data.model import Sample
from refit.data.text import NotText, decode
from refit.specs import did_you_mean


def of_images(examined: Examination) -> dict[str, str]:
    """All the ways to name an image file below the image folder, usable or not -> its path below the source."""
    folder = examined.layout.image_dir
    paths = [f.path for f in examined.tree.below(folder) if PurePosixPath(f.path).suffix.lower() in SUFFIXES]
    return aliases((str(PurePosixPath(p).relative_to(folder)), p, p) for p in paths)


def of_samples(samples: Iterable[Sample]) -> dict[str, str]:
    """All the ways to name a sample -> its `file`."""
    return aliases((s.name, s.source, s.file) for s in samples)


def aliases(images: Iterable[tuple[str, str, str]]) -> dict[str, str]:
    """All the ways to name an image -> what it is called by; `images` are (name, path below the source, called).

    It is named by its path below the image folder or below the source, with or without its ending.
    """
    out: dict[str, str] = {}
    for name, path, called in images:
        for alias in (name, path):
            out[alias] = called
            out.setdefault(str(PurePosixPath(alias).with_suffix("")), called)
    return out


def lines(examined: Examination, path: str, code: str, faults: list[Fault]) -> Iterator[tuple[int, str]]:
    """The lines of a text file of the source that are not empty, with their numbers, as an image's name is written.

    A file that is not there or no text is a fault of that code. Raises Changed.
    """
    path = str(PurePosixPath(path))
    if path not in examined.tree.files:
        hint = did_you_mean(path, [p for p in examined.tree.files if p.endswith((".txt", ".csv"))][:5000])
        faults.append(fault(code, path, f"no such file in {examined.tree.root}{hint}"))
        return
    try:
        text = decode(read_whole(examined.tree, path))
    except NotText as exc:
        faults.append(fault(code, path, str(exc)))
        return
    except Changed:
        raise
    except OSError as exc:
        faults.append(fault(code, path, f"cannot be opened: {exc.strerror}"))
        return
    for at, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield at, line.strip().replace("\\", "/").removeprefix("./")
