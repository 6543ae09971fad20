"""Zip files of somebody else's: what must be looked at before one is unpacked, and how a damaged one shows."""

from __future__ import annotations

import lzma
import stat
import zipfile
import zlib
from pathlib import PurePosixPath

# What the zipfile module raises in the middle of a damaged archive, or of one by a method that it does not know.
DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    IndexError,
)


def leads_out(info: zipfile.ZipInfo) -> bool:
    """Whether an entry's name leaves the folder that it is unpacked to, on any system, or it is no file or folder."""
    path = PurePosixPath(info.filename)
    odd = stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR)
    return path.is_absolute() or ".." in path.parts or "\\" in info.filename or ":" in path.parts[0] or odd
