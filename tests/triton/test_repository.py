"""The model repository's files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from refit.triton.errors import RepositoryError
from refit.triton.ledger import Ledger, Record
from refit.triton.repository import ModelRepository


@pytest.fixture
def repository(tmp_path: Path) -> ModelRepository:
    (tmp_path / "models").mkdir()
    return ModelRepository(tmp_path / "models")


def put(repository: ModelRepository, version: int, text: str = "bytes") -> None:
    source = repository.root.parent / "source"
    source.write_text(text)
    repository.stage("m", version, {"model.onnx": source}, f"version {version}")
    repository.install("m", version)


def test_stage_install_configure(repository: ModelRepository, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_text("bytes")
    tree = repository.stage("m", 3, {"model.onnx": source, "model.json": source}, "config")
    assert sorted(str(p.relative_to(tree)) for p in tree.rglob("*") if p.is_file()) == [
        "m/3/model.json",
        "m/3/model.onnx",
        "m/config.pbtxt",
    ]
    assert not (repository.root / "m").exists()
    repository.install("m", 3)
    assert repository.versions("m") == [3]
    assert repository.read_config("m") is None
    desk = repository.locks
    repository.write_config("m", b"one", desk)
    inode = (repository.root / "m" / "config.pbtxt").stat().st_ino
    repository.write_config("m", b"two", desk)
    assert repository.read_config("m") == b"two"
    assert (repository.root / "m" / "config.pbtxt").stat().st_ino != inode  # replaced, not written into
    assert sorted(p.name for p in (repository.root / "m").iterdir()) == ["3", "config.pbtxt"]
    repository.clean("m")
    assert not repository.workplace("m").exists()


def test_version_is_never_overwritten(repository: ModelRepository) -> None:
    put(repository, 1)
    with pytest.raises(RepositoryError, match="not used twice"):
        put(repository, 1, "other")
    assert (repository.root / "m" / "1" / "model.onnx").read_text() == "bytes"


def test_used_versions(repository: ModelRepository) -> None:
    assert repository.used_versions("m") == set()
    put(repository, 2)
    put(repository, 5)
    for name in ("7.tmp", "tmp", ".8", "_9", "04"):
        (repository.root / "m" / name).mkdir()
    repository.withdraw("m", 5, "bad")
    assert repository.versions("m") == [2]
    assert repository.used_versions("m") == {2, 4, 5, 7}


def test_withdraw_is_repeatable_and_says_why(repository: ModelRepository) -> None:
    put(repository, 1)
    for _ in range(2):
        repository.withdraw("m", 1, "wrong answers")
    home = repository.retired / "m"
    assert (home / "1" / "model.onnx").read_text() == "bytes"
    note = json.loads((home / "1.json").read_text())
    assert (note["state"], note["reason"]) == ("failed", "wrong answers")
    repository.remove_config("m")
    assert not (repository.root / "m").exists()


def test_withdraw_from_staging(repository: ModelRepository, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_text("bytes")
    repository.stage("m", 4, {"model.onnx": source}, "config")
    repository.withdraw("m", 4, "bad")
    assert (repository.retired / "m" / "4" / "model.onnx").exists()


@pytest.mark.parametrize(
    ("serving", "keep", "left"), [(4, 1, [4]), (4, 2, [3, 4]), (2, 2, [2, 4]), (1, 1, [1]), (4, 9, [1, 2, 3, 4])]
)
def test_prune(repository: ModelRepository, serving: int, keep: int, left: list[int]) -> None:
    for version in (1, 2, 3, 4):
        put(repository, version)
    removed = repository.prune("m", serving=serving, keep_versions=keep)
    assert repository.versions("m") == left
    assert sorted(removed + left) == [1, 2, 3, 4]
    assert repository.used_versions("m") == {1, 2, 3, 4}


def test_prune_keeps_the_newest_withdrawn_files(repository: ModelRepository) -> None:
    for version in (1, 2, 3, 10):
        put(repository, version)
    for version in (2, 3, 10):
        repository.withdraw("m", version, "bad")
    repository.prune("m", serving=1, keep_versions=2)
    home = repository.retired / "m"
    assert sorted(p.name for p in home.iterdir()) == ["10", "10.json", "2.json", "3", "3.json"]


def test_repositories_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="no such model repository"):
        ModelRepository(tmp_path / "nothing")
    (tmp_path / "models").mkdir()
    (tmp_path / "models.staging").write_text("")
    with pytest.raises(RepositoryError, match=r"models\.staging"):
        ModelRepository(tmp_path / "models")


@pytest.mark.skipif(
    not os.access("/dev/shm", os.W_OK) or os.stat("/dev/shm").st_dev == os.stat("/tmp").st_dev,
    reason="needs two file systems (/dev/shm and /tmp)",
)
def test_siblings_on_another_file_system(tmp_path: Path) -> None:
    other = Path("/dev/shm") / f"refit-test-{os.getpid()}"
    other.mkdir()
    try:
        (tmp_path / "models").mkdir()
        (tmp_path / "models.staging").symlink_to(other)
        with pytest.raises(RepositoryError, match="different file systems"):
            ModelRepository(tmp_path / "models")
    finally:
        other.rmdir()


def test_link_to_a_repository_meets_at_the_same_siblings(tmp_path: Path) -> None:
    (tmp_path / "volume" / "models").mkdir(parents=True)
    (tmp_path / "models").symlink_to(tmp_path / "volume" / "models")
    repository = ModelRepository(tmp_path / "models")
    assert repository.locks == tmp_path / "volume" / "models.locks"
    assert not (tmp_path / "models.locks").exists()


def record(version: int, model: str = "m") -> Record:
    return Record(
        model=model,
        version=version,
        state="staged",
        sha256="0" * 64,
        bytes=1,
        pipeline="demo",
        run="r",
        key="k",
        url="http://127.0.0.1:8000",
        repository="/models",
        config="name: 'm'",
    )


def test_ledger(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "demo" / "releases")
    assert ledger.records() == []
    assert ledger.read(1) is None
    ledger.write(record(1).turn("staged", "").turn("serving", "released"))
    ledger.write(record(2, "other"))
    found = ledger.read(1)
    assert found is not None
    assert found.state == "serving"
    assert found.turn("serving", "released") is found
    watched = found.turn("serving", "watched")
    assert watched.began == found.history[1], "it serves since its release, not since the end of its watch"
    assert [e.state for e in found.history] == ["staged", "serving"]
    assert [r.version for r in ledger.records("other")] == [2]
    assert ledger.used_versions() == {1, 2}
    neighbour = Ledger(tmp_path / "next" / "releases")
    assert neighbour.find("m", 1) is not None
    assert neighbour.find("m", 2) is None
    raw = json.loads((ledger.path(1) / "release.json").read_text())
    assert raw["schema"] == 1
    ledger.path(1).joinpath("release.json").write_text(json.dumps({**raw, "signature": "later Refit"}))
    kept = ledger.read(1)
    assert kept is not None
    assert json.loads(kept.model_dump_json())["signature"] == "later Refit"
    ledger.path(2).joinpath("release.json").write_text("{")
    with pytest.raises(RepositoryError, match=r"release\.json"):
        ledger.records()
