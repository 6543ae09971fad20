"""One real Triton for all tests of this folder: each test takes a model name of its own."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from refit.triton import installation
from refit.triton.client import TritonClient
from refit.triton.release import release
from refit.triton.server import CONTROL_KEY_VARIABLE, TritonServer
from refit.triton.specs import ReleaseReport, ReleaseSpec
from tests.triton.models import make_model, release_spec

KEY = "only-for-tests"


@pytest.fixture(scope="session")
def local_triton() -> installation.Installation:
    """The local installation; tests that need a server skip without it."""
    reason = installation.available()
    if reason is not None:
        pytest.skip(reason)
    return installation.find()


@pytest.fixture(scope="session")
def server(local_triton: installation.Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A running server with a control key, which this process's environment has."""
    folder = tmp_path_factory.mktemp("triton")
    with (
        pytest.MonkeyPatch.context() as patch,
        TritonServer(
            folder / "models", folder / "run", control_key=KEY, installation=local_triton, stop_seconds=0
        ) as running,
    ):
        patch.setenv(CONTROL_KEY_VARIABLE, KEY)
        yield running


@pytest.fixture
def client(server: TritonServer) -> Iterator[TritonClient]:
    with TritonClient(server.url) as open_client:
        yield open_client


@dataclass
class Place:
    """A model name that no other test uses, with a ledger of its own."""

    server: TritonServer
    client: TritonClient
    folder: Path
    name: str

    @property
    def repository(self) -> Path:
        return self.server.repository

    @property
    def ledger(self) -> Path:
        return self.folder / "workspace" / "demo" / "releases"

    @property
    def versions(self) -> list[str]:
        home = self.repository / self.name
        return sorted(p.name for p in home.iterdir() if p.is_dir()) if home.is_dir() else []

    def beside(self, kind: str) -> Path:
        """<repository>.<kind>/<model>"""
        return self.repository.with_name(f"{self.repository.name}.{kind}") / self.name

    def model(self, folder: str, **options: Any) -> Path:
        return make_model(self.folder / folder, **options)

    def spec(self, path: Path, **more: Any) -> ReleaseSpec:
        where = {"url": self.server.url, "repository": self.repository, "ledger": self.ledger, "model": self.name}
        return release_spec(path, **{**where, **more})

    def release(self, path: Path, **more: Any) -> ReleaseReport:
        return release(self.spec(path, **more))


@pytest.fixture
def place(server: TritonServer, client: TritonClient, tmp_path: Path) -> Place:
    return Place(server, client, tmp_path, f"m{uuid.uuid4().hex[:8]}")


@pytest.fixture
def said() -> tuple[list[str], Callable[[str], None]]:
    messages: list[str] = []
    return messages, messages.append
