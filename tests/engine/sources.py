"""Checkouts of NVIDIA's public repositories, as an oracle: REFIT_NVIDIA_SOURCES/<repository>, bare or not.

Nothing of them is part of this repository; without the variable, or a repository, the test skips.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest


def show(repository: str, *objects: str) -> str:
    """The text of the first of these objects (`<branch>:<path>`) that the checkout has."""
    root = os.environ.get("REFIT_NVIDIA_SOURCES")
    folder = Path(root) / repository if root else None
    if folder is None or not folder.is_dir():
        pytest.skip(f"REFIT_NVIDIA_SOURCES has no checkout of {repository}")
    for name in objects:
        for branch in (name, f"origin/{name}"):
            done = subprocess.run(["git", "-C", folder, "show", branch], capture_output=True, check=False)
            if done.returncode == 0:
                return done.stdout.decode("utf-8", "replace")
    pytest.skip(f"the checkout of {repository} has none of {', '.join(objects)}")


def grep(repository: str, branch: str, pattern: str, *paths: str) -> set[str]:
    """What a pattern finds in the files of a branch."""
    show(repository, f"{branch}:README.md", f"{branch}:.")
    root = Path(os.environ["REFIT_NVIDIA_SOURCES"]) / repository
    words = ["git", "-C", str(root), "grep", "-hoE", pattern, branch, "--", *paths]
    return set(subprocess.run(words, capture_output=True, text=True, check=False).stdout.splitlines())
