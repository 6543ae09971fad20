"""All files or none; nothing of the user's is overwritten unasked."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.migrate import old
from tests.migrate.conftest import Called

Refit = Callable[..., Called]


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    file = tmp_path / "spec.txt"
    file.write_text(old.detectnet())
    return file


def tree(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("there", ["cars.yaml", "cars/notes.txt"])
def test_what_is_there_stays_without_force(refit: Refit, tmp_path: Path, spec: Path, there: str) -> None:
    mine = tmp_path / "new" / there
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    called = refit("import", spec, "--into", "new", "--name", "cars")
    assert called.code == 2
    assert "is there already; --force" in called.err
    assert tree(tmp_path / "new") == {there: "mine"}


def test_force_replaces_the_whole(refit: Refit, tmp_path: Path, spec: Path) -> None:
    mine = tmp_path / "new/cars/old.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    (tmp_path / "new/other.yaml").write_text("another's")
    assert refit("import", spec, "--into", "new", "--name", "cars", "--force").code == 0
    assert sorted(tree(tmp_path / "new")) == ["cars.yaml", "cars/train.txt", "other.yaml"]


def test_a_failure_leaves_everything_as_it_was(
    refit: Refit, tmp_path: Path, spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refit("import", spec, "--into", "new", "--name", "cars").code == 0
    before = tree(tmp_path / "new")
    spec.write_text(old.detectnet(epochs=99))
    real = os.rename

    def full(source: str, target: str) -> None:
        if str(target) == str(Path("new/cars.yaml")) and ".old-" not in str(source):
            raise OSError(28, "No space left on device", str(target))
        real(source, target)

    monkeypatch.setattr(os, "rename", full)
    called = refit("import", spec, "--into", "new", "--name", "cars", "--force")
    assert called.code == 2
    assert "No space left on device" in called.err
    assert tree(tmp_path / "new") == before


def test_the_same_input_makes_the_same_files(refit: Refit, tmp_path: Path, spec: Path) -> None:
    for folder in ("one", "two"):
        assert refit("import", spec, "--into", folder, "--name", "cars").code == 0
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
