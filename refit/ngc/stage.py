"""`python -m refit.ngc download`: one file of pretrained weights in `out/weights/`, and pretrained.json, its papers.

From the cache where it lies there (no network, no key), else from NGC into the cache; or from a path, without network.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Any

from refit.command import BadData, BadSpec
from refit.data.snapshot import no_space
from refit.files import link_or_copy, sha256, write_json
from refit.ngc import store
from refit.ngc.client import KEY, OFFLINE, Client, Missing, NgcError
from refit.ngc.spec import DownloadSpec, Model, addresses
from refit.ngc.store import Entry, Kept, Store
from refit.start import foreign
from refit.status import StatusWriter

SCHEMA = 1
_TELL_SECONDS = 10.0
_NEAR = 5
_ANY = "*"


def run(spec: DownloadSpec, out: Path, status: StatusWriter) -> None:
    """Bring the file; raises BadSpec, BadData, NgcError and StoreError for what a person must mend."""
    folder = out / "weights"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if spec.path:
        with no_space(out):
            row = _from_path(spec.path, spec.file or _ANY, folder)
        place = row["source"] if row["source"].endswith(row["path"]) else f"{row['source']}: {row['path']}"
        foreign.examine_pretrained(folder / row["file"], place)
    else:
        assert spec.model is not None
        assert spec.cache is not None
        row = _from_cache(Model.parse(spec.model), spec.cache, spec, folder, status)
    if spec.sha256 and row["sha256"] != spec.sha256:
        raise BadData(f"{row['source']}: {row['file']} has the sha256 {row['sha256']}, the spec wants {spec.sha256}")
    row = {"schema": SCHEMA, "model": spec.model, **row}
    write_json(out / "pretrained.json", row)
    write_json(out / "summary.json", {k: row[k] for k in ("model", "file", "bytes", "sha256")})
    status.success(f"{row['file']} ({row['bytes']} bytes) from {row['source']}")


def key() -> str | None:
    """The key, from the environment alone: the stage's own variable, or the runner's."""
    return os.environ.get(KEY) or os.environ.get(f"REFIT_SECRET_{KEY}") or None


def _from_cache(model: Model, cache: Path, spec: DownloadSpec, folder: Path, status: StatusWriter) -> dict[str, Any]:
    place = Store(cache, model)
    cache.mkdir(parents=True, exist_ok=True)
    with no_space(cache), place.lock():
        entry, source = place.entry(), "the cache"
        if entry and sha256(entry.path(kept := _choose(entry, spec, model))) != kept.sha256:
            status.running(f"{entry.path(kept)}: changed since it was downloaded; downloading it again")
            place.discard()
            entry = None
        if entry is None:
            entry, source = _download(model, place, spec, status), "NGC"
            kept = _choose(entry, spec, model)
        target = folder / PurePosixPath(kept.path).name
        link_or_copy(entry.path(kept), target)
    return {
        "source": source,
        "zip_sha256": entry.zip_sha256,
        "path": kept.path,
        "file": target.name,
        "bytes": kept.bytes,
        "sha256": kept.sha256,
    }


def _choose(entry: Entry, spec: DownloadSpec, model: Model) -> Kept:
    path = store.pick([f.path for f in entry.files], spec.file or _ANY, str(model))
    return next(f for f in entry.files if f.path == path)


def _download(model: Model, place: Store, spec: DownloadSpec, status: StatusWriter) -> Entry:
    try:
        url, auth_url = addresses()
    except ValueError as exc:
        raise BadSpec(str(exc)) from None
    client = Client(url, auth_url, key(), spec.timeout_seconds)
    if not place.zip.exists():  # else a stage was ended while it unpacked
        try:
            client.download(model, place.zip, _teller(model, status))
        except Missing as exc:
            raise _near(client, model, exc) from None
    return place.publish()


def _teller(model: Model, status: StatusWriter) -> Callable[[int, int], None]:
    told = time.monotonic()

    def tell(had: int, total: int) -> None:
        nonlocal told
        if time.monotonic() - told > _TELL_SECONDS:
            told = time.monotonic()
            status.running(f"{model}: {had / 2**20:.0f} of {total / 2**20 if total else '?'} MiB")

    return tell


def _near(client: Client, model: Model, exc: Missing) -> NgcError:
    """What there is in place of a model or version that is not there, as far as NGC tells."""
    try:
        there = [v.name for v in client.versions(model)]
        what = f"{model.group}/{model.name} has no version {model.version!r}"
        wanted = model.version
    except Missing:
        try:
            there = [m.path.rsplit("/", 1)[-1] for m in client.search(model.group, "*")]
        except NgcError:
            there = []
        what, wanted = f"{model.group} has no model {model.name!r}, or this key may not see it", model.name
    except NgcError:
        return NgcError(f"{model}: NGC does not have it ({exc})")
    close = get_close_matches(wanted, there, n=_NEAR, cutoff=0.4) or sorted(there)[:_NEAR]
    return NgcError(f"{what}; there {'is ' + ', '.join(close) if close else 'is none'} (`refit ngc list` shows all)")


def _from_path(path: Path, glob: str, folder: Path) -> dict[str, Any]:
    """A file as it is, one file of NGC's zip (by its ending: a .pth is a zip inside), or one file below a folder."""
    zip_sha256 = None
    inside = path.name
    if path.is_dir():
        files = sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file())
        if not files:
            raise BadData(f"{path}: the folder is empty")
        inside = store.pick(files, glob, str(path))
        target = folder / PurePosixPath(inside).name
        shutil.copyfile(path / inside, target)
    elif path.is_file() and path.suffix.lower() == ".zip":
        zip_sha256 = sha256(path)
        inside = store.unpack(path, folder / ".zip", str(path), glob)[0].path
        target = folder / PurePosixPath(inside).name
        os.replace(folder / ".zip" / inside, target)
        shutil.rmtree(folder / ".zip")
    elif path.is_file():
        target = folder / path.name
        shutil.copyfile(path, target)
    else:
        raise BadData(f"{path}: no such file or folder; {OFFLINE}")
    return {
        "source": str(path),
        "zip_sha256": zip_sha256,
        "path": inside,
        "file": target.name,
        "bytes": target.stat().st_size,
        "sha256": sha256(target),
    }
