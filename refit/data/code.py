"""What identifies the code that decides what is found in a data set, and what a snapshot of it is.

Left out is what only shows data, writes it in other forms, or fetches it: a change of the report's style must not have
a terabyte fetched and decoded anew. A module that is new counts until it is named here.
"""

from __future__ import annotations

import hashlib
import sys
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

BESIDE = frozenset(
    {"__main__.py", "cli.py", "commands", "convert.py", "pages.py", "remote", "report", "suspects.py"}
    | {"synthetic.py", "work.py", "arrival.py", "source.py"}
)


@lru_cache(maxsize=1)
def version() -> str:
    """The code's sha256, with the versions of Python and of the libraries that decode pictures and sum them up."""
    root = Path(__file__).parent
    digest = hashlib.sha256(f"{sys.version} {cv2.__version__} {np.__version__}".encode())
    for path in sorted(root.rglob("*.py")):
        if path.relative_to(root).parts[0] not in BESIDE:
            digest.update(f"\n{path.relative_to(root)} {hashlib.sha256(path.read_bytes()).hexdigest()}".encode())
    return digest.hexdigest()
