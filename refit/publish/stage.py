"""Writes what people look at: the report of a run and of those before it that have none yet, and the pipeline's index.

Everything appears whole or not at all: a report is made in a folder aside and renamed in; whoever follows a link to an
older one meanwhile gets the older one. One writer at a time for a pipeline: a lock, waited for.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from refit.command import BadSpec, StageError
from refit.files import link_or_copy, write_bytes, write_json, write_text
from refit.notify import facts
from refit.plan import CONNECTION
from refit.publish import gather, metrics, place
from refit.publish import index as indices
from refit.publish.detections import Detections
from refit.report import run as page
from refit.runtime import report as workspaces
from refit.specs import Spec
from refit.status import StatusWriter
from refit.track import Tracking, track

KEEP = 200  # runs whose reports stay, and all that made a release
_CAUGHT_UP = 20  # runs without a report that one call writes: a workspace from before there were reports
_PICTURE = 640  # pixels of the longer side
_QUALITY = 75
_LEFT_OVER = re.compile(r"\..+\.(?:tmp|old)-[0-9a-f]+")  # of a writer that was killed: `_write`, `_swap`, refit.files
_LEFT_SECONDS = 24 * 3600.0  # a file system without locks may have another writer at work, and so has progress/
_SNAPSHOT = re.compile(r"[0-9a-f]{64}")


class PublishSpec(Spec):
    """What `python -m refit.publish` takes."""

    workspace: str = Field(description="the pipeline's folder in the workspace")
    run: str | None = Field(None, description="the run's folder name; null: the index, and what has no report yet")
    run_id: str = Field("", description="Airflow's id of the run")
    failed: dict[str, str] = Field(
        default_factory=dict, description="tasks that Airflow says have failed: why, or empty"
    )
    tracking: Tracking = Field(Tracking(), description="where else the run is written down")
    nonce: str = Field("", description="differs at each start, so that none is answered by an earlier one")


def publish(spec: PublishSpec, out: Path, status: StatusWriter) -> None:
    """Publish a run and refresh the index; out/summary.json says where."""
    workspace = Path(spec.workspace)
    if spec.run is not None and not (workspace / "runs" / spec.run).is_dir():
        raise BadSpec(f"run: {workspace / 'runs' / spec.run}: no such folder; the run has left nothing to report on")
    done = refresh(workspace, spec.run, run_id=spec.run_id, failed=spec.failed)
    summary: dict[str, Any] = {"published": done[-5:]}  # a result holds 2 KiB
    made = workspaces.read_json(place.of_run(workspace, spec.run) / place.REPORT_JSON) if spec.run else None
    if made is not None:
        bind = workspaces.read_json(workspace / "runs" / str(spec.run) / "00-bind" / "out" / "report.json") or {}
        index = workspaces.read_json(place.of_pipeline(workspace) / place.INDEX) or {}
        champion = index.get("champion") or {}
        summary["told"] = facts(made, bind, champion)
        login = os.environ.pop(CONNECTION, None)
        for note in track(spec.tracking, made, workspace, place.of_run(workspace, str(spec.run)), login):
            print(f"warning: {note}")
    write_json(out / "summary.json", summary)
    status.success(f"{len(done)} reports, and the index of {workspace.name}")


def refresh(
    workspace: Path, run: str | None = None, *, run_id: str = "", failed: Mapping[str, str] | None = None
) -> list[str]:
    """Write the report of `run` and of runs that have none, then the index; the runs that were written.

    A run whose files no report can be made of is left out, and told; that of `run` itself raises StageError.
    """
    folder = place.of_pipeline(workspace)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        _sweep(folder)
        names = [p.name for p in workspaces.runs(workspace) if _wants_report(p, workspace) and p.name != run]
        done = []
        for name in names[-_CAUGHT_UP:]:
            try:
                _write(workspace, name)
                done.append(name)
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
                print(f"warning: no report can be made of {workspace / 'runs' / name}: {exc!r}")
        if run is not None:
            _write_named(workspace, run, run_id=run_id, failed=failed)
            done.append(run)
        made = indices.make(workspace)
        _forget(folder, made)
        write_json(folder / place.INDEX, made)
        last = made["last"]
        report = workspaces.read_json(place.of_run(workspace, last["run"]) / place.REPORT_JSON) if last else None
        write_text(folder / metrics.FILE, metrics.text(made, report))
    return done


def report_so_far(workspace: Path, run: str) -> None:
    """The report of a run that goes on, for whoever is asked about it; the index does not know the run before its end.

    Raises:
        StageError, OSError: none was written.
    """
    folder = place.of_pipeline(workspace)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        _write_named(workspace, run)


def _wants_report(run: Path, workspace: Path) -> bool:
    """Whether a run has got results since its report was made. Runs of other DAGs than the pipeline's have no bind."""
    results = [p.stat().st_mtime for p in run.glob("*/result.json")]
    if not (run / "00-bind").is_dir() or not results:
        return False
    try:
        return max(results) > (place.of_run(workspace, run.name) / place.REPORT_JSON).stat().st_mtime
    except FileNotFoundError:
        return True


def _write_named(workspace: Path, run: str, *, run_id: str = "", failed: Mapping[str, str] | None = None) -> None:
    """As `_write`, for the run that is asked for. Raises StageError."""
    try:
        _write(workspace, run, run_id=run_id, failed=failed)
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise StageError(f"no report can be made of {workspace / 'runs' / run}: {exc!r}") from exc


def _write(workspace: Path, run: str, *, run_id: str = "", failed: Mapping[str, str] | None = None) -> None:
    report, found = gather.report(workspace / "runs" / run, run_id=run_id, failed=failed)
    target = place.of_run(workspace, run)
    aside = target.with_name(f".{run}.tmp-{uuid.uuid4().hex}")
    aside.mkdir(parents=True)
    try:
        report["samples"] = _pictures(workspace / "runs" / run, found, aside) if found else []
        report["data"]["report"] = _data_report(workspace, run, report, aside)
        write_json(aside / place.REPORT_JSON, report)
        href = report["data"]["report"]
        link = None if href is None else href if "/" not in href else f"../../{href}"
        write_text(aside / place.REPORT, page.page(report, lambda name: _inline(aside / name), link))
        _swap(aside, target)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    _keep_with_release(workspace, target, report)


def _pictures(run: Path, found: Detections, out: Path) -> list[dict[str, Any]]:
    """The samples whose images are there, each with a small picture of its own."""
    import cv2

    plan = workspaces.current_plan(run) or {}
    images = run.parents[1] / "datasets" / str(plan.get("fingerprint")) / "images"
    if not images.is_dir():  # as of `refit run --snapshot`
        images = Path(str(plan.get("snapshot"))) / "images"
    samples = []
    for number, sample in enumerate(found.samples(), start=1):
        image = cv2.imread(str(images / Path(sample["file"]).name), cv2.IMREAD_COLOR)
        if image is None:
            continue
        scale = min(1.0, _PICTURE / max(image.shape[:2]))
        small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else image
        done, data = cv2.imencode(".webp", small, [cv2.IMWRITE_WEBP_QUALITY, _QUALITY])
        if done:
            name = f"sample-{number}.webp"
            write_bytes(out / name, data.tobytes())
            samples.append({**sample, "picture": name})
    return samples


def _inline(path: Path) -> str | None:
    try:
        return f"data:image/webp;base64,{base64.b64encode(path.read_bytes()).decode()}"
    except OSError:
        return None


def _data_report(workspace: Path, run: str, report: dict[str, Any], out: Path) -> str | None:
    """Put the report on the run's data where it belongs; its place below the pipeline's published folder, or beside
    the run's report where the data was refused and has no fingerprint."""
    source = workspace / "runs" / run / "00-bind" / "out" / "report.html"
    if not source.is_file():
        return None
    fingerprint = report["data"]["fingerprint"]
    if not (isinstance(fingerprint, str) and _SNAPSHOT.fullmatch(fingerprint)):
        link_or_copy(source, out / "data.html")
        return "data.html"
    folder = place.of_pipeline(workspace) / "data"
    folder.mkdir(exist_ok=True)
    write_bytes(folder / f"{fingerprint}.html", source.read_bytes())
    return f"data/{fingerprint}.html"


def _swap(aside: Path, target: Path) -> None:
    """Put a folder in the place of another one: a reader meets one of the two, or for a moment neither."""
    old = target.with_name(f".{target.name}.old-{uuid.uuid4().hex}")
    if target.exists():
        os.rename(target, old)
    os.rename(aside, target)
    shutil.rmtree(old, ignore_errors=True)


def _keep_with_release(workspace: Path, published: Path, report: dict[str, Any]) -> None:
    """The report beside the ledger's record of the version that the run has released."""
    version = (report.get("release") or {}).get("version")
    folder = workspace / "releases" / str(version)
    record = workspaces.read_json(folder / "release.json") if isinstance(version, int) else None
    if record is not None and record.get("run") == report["run"]:
        for name in (place.REPORT, place.REPORT_JSON):
            write_bytes(folder / name, (published / name).read_bytes())


def _forget(folder: Path, made: dict[str, Any]) -> None:
    """Remove reports of old runs, and data reports that nobody links to any more."""
    kept = {r["run"] for r in made["runs"][-KEEP:]} | {r["run"] for r in made["releases"]}
    for path in (folder / "runs").glob("*"):
        if path.name not in kept and not _LEFT_OVER.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)
    made["runs"] = [r for r in made["runs"] if r["run"] in kept]
    linked = {f"{r['fingerprint']}.html" for r in made["runs"]}
    for path in (folder / "data").glob("*.html"):
        if path.name not in linked:
            path.unlink(missing_ok=True)


def _sweep(folder: Path) -> None:
    """Remove what killed writers have left, once it is a day old."""
    for path in (p for part in (folder, *folder.iterdir()) if part.is_dir() for p in part.iterdir()):
        with contextlib.suppress(FileNotFoundError):  # its writer is at work
            if _LEFT_OVER.fullmatch(path.name) and path.stat().st_mtime < time.time() - _LEFT_SECONDS:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with open(folder / ".lock", "a", encoding="utf-8") as lock:
        with contextlib.suppress(OSError):  # a file system without locks: a run and a roll back seldom meet
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
