"""The stand-ins for TAO's containers as programs on a PATH."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.refit.runner_helpers import REPOSITORY, Bench
from tests.tao.standin.__main__ import IMAGES


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Bench(tmp_path) as made:
        yield made


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PATH with the programs of all of TAO's images, as the Dockerfile makes it."""
    folder = tmp_path_factory.mktemp("bin")
    for name in {"nvidia-smi", *(name for names in IMAGES.values() for name in names)}:
        script = f'#!/bin/sh\nPYTHONPATH={REPOSITORY} exec {sys.executable} -m tests.tao.standin {name} "$@"\n'
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    return folder
