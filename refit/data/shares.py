"""A large data set looked at in shares, each where there is room (a pod), and put together again.

    write(look_at(source, classes, share=Share(i, n), ...), Share(i, n), how, file_i)      n times, on any machine
    judge(merge(source, [file_0, ...], how), classes, ...)      once: what `examine` gives

The result does not depend on n. Each share lists the folder for itself; they are put together only where all saw the
same listing and were made in the same way: `how` names the settings, and by itself the code and Python's version.
"""

from __future__ import annotations

import hashlib
import marshal
from collections.abc import Sequence
from dataclasses import fields
from operator import attrgetter
from pathlib import Path

from refit import files
from refit.data.arrival import signature
from refit.data.examine import Found, Looked, Share, changed
from refit.data.faults import Fault
from refit.data.formats.base import Layout
from refit.data.memory import version
from refit.data.samples import Samples
from refit.data.tree import scan

_as_tuple = attrgetter(*(f.name for f in fields(Fault)))


def write(looked: Looked, share: Share, how: str, path: Path) -> None:
    """Write what was found in a share, whole or not at all."""
    found = looked.found
    about = (signature(looked.tree), looked.format, looked.layout.image_dir, looked.layout.label_dir, looked.names)
    made = (version(how), share.index, share.count)
    faults = [_as_tuple(f) for f in found.faults]
    body = marshal.dumps((made, about, found.samples.state(), faults, found.declared))
    files.write_bytes(path, hashlib.sha256(body).digest() + body)


def merge(source: Path, shares: Sequence[Path], how: str) -> Looked:
    """All shares of a data set together; the i-th file is that of share i.

    Raises BadData (source_changed) where they, or the folder now, differ; ValueError for a file that is damaged, or was
    made in another way or for another number of shares; OSError.
    """
    tree = scan(source)
    found, seen = Found(), set()
    for index, path in enumerate(shares):
        data = memoryview(path.read_bytes())
        if hashlib.sha256(data[32:]).digest() != data[:32]:
            raise ValueError(f"{path}: damaged; look at this share again")
        made, about, samples, faults, declared = marshal.loads(data[32:])  # noqa: S302  our own, and whole
        if made != (version(how), index, len(shares)):
            raise ValueError(f"{path}: made with other settings, for another number of shares, or by another Refit")
        seen.add(about)
        found.samples.extend(Samples.of_state(samples))
        found.faults += [Fault(*f) for f in faults]
        found.declared += declared
    if {about[0] for about in seen} != {signature(tree)}:
        raise changed(source, "its files are not those that the shares saw")
    ((_, name, image_dir, label_dir, names),) = seen
    return Looked(tree, name, Layout(image_dir, label_dir), found, bytearray(len(tree.files)), names)
