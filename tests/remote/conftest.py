"""Servers on loopback; no proxy and no login of this machine's environment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.remote.sources import S3, Https, https_server, s3_server


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def _moto() -> Iterator[S3]:
    with s3_server() as server:
        yield server


@pytest.fixture
def s3(_moto: S3) -> Iterator[S3]:
    """A store with one empty bucket, `sets`."""
    _moto("POST", "moto-api/reset")
    _moto.bucket("sets")
    yield _moto
    _moto.deny(False)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture
def site(certificates: Path) -> Iterator[Https]:
    with https_server(certificates) as found:
        yield found
