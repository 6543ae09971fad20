"""Large files that appear whole or not at all, written piece by piece (`refit.files` writes what fits in memory)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from refit.files import sync_folder


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; when the block ends well, sync it and rename it to `path`.

    A block that raises leaves `path` as it was and removes the temporary file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays at the end: cv2.imwrite and others choose the format by it.
    temporary = path.with_name(f".{path.stem}.tmp-{os.getpid()}{path.suffix}")
    try:
        yield temporary
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as exc:
        if exc.filename is None:  # a full disk is reported by `write`, which knows no names
            exc.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> int:
    """Remove what a killed process left unfinished below `folder`; gives how many files. Call it before writing."""
    gone = 0
    for path in folder.rglob(".*.tmp-*"):
        if path.is_file():
            path.unlink()
            gone += 1
    return gone
