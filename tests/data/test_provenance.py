"""The commit of a work tree, as git itself tells it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from refit.data import provenance
from refit.data.source import Kind, Source, parse


def _git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    return subprocess.run(
        ["git", *identity, *words], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    (root / "data/set").mkdir(parents=True)
    _git(root, "init", "-q", "-b", "main/line")
    (root / "data/set/a").write_text("a")
    _git(root, "add", ".")
    _git(root, "commit", "-qm", "one")
    return root


@pytest.mark.parametrize("how", ["branch", "packed", "detached", "worktree"])
def test_the_commit_is_gits_own(repository: Path, tmp_path: Path, how: str) -> None:
    root = repository
    if how == "packed":
        _git(root, "pack-refs", "--all")
    elif how == "detached":
        _git(root, "checkout", "-q", "--detach")
    elif how == "worktree":
        root = tmp_path / "beside"
        _git(repository, "worktree", "add", "-qb", "other", str(root))
    assert provenance.of(root / "data/set") == {"git_commit": _git(root, "rev-parse", "HEAD")}


def test_no_version_control_says_nothing(tmp_path: Path) -> None:
    assert provenance.of(tmp_path) == {}
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git/HEAD").write_bytes(b"\xff\xfe")
    assert provenance.of(tmp_path) == {}


def test_dvc(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set.dvc").write_text("outs:\n- md5: 0123456789abcdef0123456789abcdef.dir\n  size: 3\n  path: set\n")
    assert provenance.of(tmp_path / "set") == {"dvc_md5": "0123456789abcdef0123456789abcdef.dir"}
    (tmp_path / "set.dvc").write_text("outs: [")
    assert provenance.of(tmp_path / "set") == {}


def test_the_revision_of_a_remote_source(repository: Path) -> None:
    (repository / "data/set.dvc").write_text("outs:\n- md5: 0123456789abcdef0123456789abcdef.dir\n  path: set\n")
    dvc = provenance.of_source(Source(Kind.DVC, str(repository / "data/set.dvc")))
    assert dvc == {
        "git_commit": _git(repository, "rev-parse", "HEAD"),
        "dvc_md5": "0123456789abcdef0123456789abcdef.dir",
    }
    commit = "0123456789abcdef" * 4
    assert provenance.of_source(parse(f"s3://plates/{commit}/train")) == {"lakefs_commit": commit}
    for other in ("s3://plates/main/train", f"s3://plates/train/{commit}", f"gs://plates/{commit}", "s3://plates"):
        assert provenance.of_source(parse(other)) == {}
