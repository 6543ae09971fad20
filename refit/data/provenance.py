"""Where a data set stands in version control, read by hand: a pod has no `git` and no `dvc`.

Both say what was checked out, not that the files are still the same: the snapshot's fingerprint says what they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import yaml

from refit.data.source import Kind, Source

_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")  # SHA-1, or SHA-256 repositories
_LAKEFS_COMMIT = re.compile(r"[0-9a-f]{64}")


REVISIONS = {"git_commit": "Git commit", "dvc_md5": "DVC hash", "lakefs_commit": "lakeFS commit"}
"""What dataset.json may say of the revision of the data, and what people call it."""


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def of_source(source: Source) -> Mapping[str, str]:
    """`of` a folder; of a DVC source what holds of its .dvc file; of `s3://REPOSITORY/COMMIT/...` on lakeFS the commit
    (a branch's name says nothing: what is read from one may not be committed yet)."""
    if source.kind in (Kind.FOLDER, Kind.DVC):
        return of(Path(source.text.removesuffix(".dvc")))
    first = source.prefix.partition("/")[0]
    return {"lakefs_commit": first} if source.kind is Kind.S3 and _LAKEFS_COMMIT.fullmatch(first) else {}


def of(source: Path) -> Mapping[str, str]:
    """`git_commit` of the work tree that holds the folder, `dvc_md5` where DVC tracks the folder itself; what cannot be
    read is left out."""
    source = source.resolve()
    found = {"git_commit": _git(source), "dvc_md5": _dvc(source)}
    return {name: value for name, value in found.items() if value}


def _git(source: Path) -> str:
    """The commit of HEAD (gitrepository-layout: HEAD, refs/, packed-refs; `gitdir` and `commondir` of a worktree)."""
    root = next((folder for folder in (source, *source.parents) if (folder / ".git").exists()), None)
    if root is None:
        return ""
    folder = root / ".git"
    if folder.is_file():  # a worktree, a submodule
        folder = root / _text(folder).removeprefix("gitdir: ")
    common = folder / (_text(folder / "commondir") or ".")
    head = _text(folder / "HEAD")
    if head.startswith("ref: "):
        ref = head.removeprefix("ref: ")
        packed = (line.split(" ") for line in _text(common / "packed-refs").splitlines())
        head = _text(folder / ref) or _text(common / ref) or next((p[0] for p in packed if p[1:] == [ref]), "")
    return head if _COMMIT.fullmatch(head) else ""


def _dvc(source: Path) -> str:
    """The hash in `<folder>.dvc` beside the folder (DVC, "`.dvc` files": outs, md5; of a folder it ends in ".dir")."""
    try:
        outs = yaml.safe_load(_text(source.with_name(f"{source.name}.dvc")))["outs"]
        return next((str(out["md5"]) for out in outs if out["path"] == source.name), "")
    except (yaml.YAMLError, KeyError, TypeError, RecursionError):
        return ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""
