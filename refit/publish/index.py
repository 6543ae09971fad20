"""A pipeline's index: what serves, what was released, which runs there were. One file that the Models page reads.

Rows of runs come from their report.json; the ledger says what was released. An index that is missing or damaged is made
anew from both.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refit.publish import place
from refit.report.run import released
from refit.runtime.report import read_json
from refit.triton.errors import RepositoryError
from refit.triton.ledger import Ledger, Record

RUNS = 500  # rows of runs in an index; older ones stay where they made a release

Json = dict[str, Any]


def make(workspace: Path) -> Json:
    """The index of a pipeline by its folder in the workspace."""
    folder = place.of_pipeline(workspace)
    known = {r["run"]: r for r in _rows(read_json(folder / place.INDEX) or {})}
    runs = [_known(known.get(p.parent.name), p) for p in (folder / "runs").glob(f"[!.]*/{place.REPORT_JSON}")]
    rows = sorted((r for r in runs if r), key=lambda r: (r["started"] or r["published"], r["run"]))
    by_run, approved = {r["run"]: r for r in rows}, _approved(workspace)
    records, damaged = _records(workspace)
    releases = [_release(record, by_run, approved) for record in records]
    serving = [r for r in releases if r["state"] == "serving"]
    last = next((r for r in reversed(rows) if r["state"] != "dry_run"), None)
    return {
        "schema": place.SCHEMA,
        "pipeline": workspace.name,
        "updated": place.now(),
        "champion": serving[-1] if serving else None,
        "last": last,
        "releases": releases,
        "damaged": damaged,
        "runs": rows[-RUNS:],
    }


def row(report: Mapping[str, Any]) -> Json:
    """What the index says of a run."""
    best = released(report) or {}
    data = report["data"]
    release = report.get("release") or {}
    return {
        "run": report["run"],
        "run_id": report["run_id"],
        "state": report["state"],
        "failed": report["failed"],
        "reason": report["reason"],
        "started": report["started"],
        "ended": report["ended"],
        "published": report["published"],
        "cost": report["cost"],
        "fingerprint": data["fingerprint"],
        "images": sum(data["splits"].values()),
        "model": best.get("name"),
        **{k: best.get(k) for k in ("mAP50", "low", "high", "per_class", "parameters", "bytes", "milliseconds")},
        "version": release.get("version"),
    }


def _rows(index: Mapping[str, Any]) -> list[Json]:
    rows = index.get("runs")
    return [r for r in rows if isinstance(r, dict) and "run" in r] if isinstance(rows, list) else []


def _known(known: Json | None, path: Path) -> Json | None:
    """The row of a report; read again only where the report is newer than the row."""
    report = read_json(path) if known is None or not _same(known, path) else None
    if report is None:
        return known
    try:
        return {**row(report), "stamp": path.stat().st_mtime_ns}
    except (KeyError, TypeError, AttributeError, OSError):
        return None  # written by another version of Refit, or by hand


def _same(known: Json, path: Path) -> bool:
    try:
        return bool(known.get("stamp") == path.stat().st_mtime_ns)
    except OSError:
        return True


def _records(workspace: Path) -> tuple[list[Record], list[int]]:
    """The releases of this pipeline by version, and the versions whose record cannot be read."""
    ledger = Ledger(workspace / "releases")
    found, damaged = [], []
    for version in sorted(ledger.used_versions()):
        try:
            record = ledger.read(version)
        except RepositoryError:
            damaged.append(version)
            continue
        if record is not None:
            found.append(record)
    return found, damaged


def _approved(workspace: Path) -> dict[str, tuple[str, str]]:
    """Who approved the model of which run, and their note (refit/triton/approved.py); lines that cannot be read are
    left out."""
    found = {}
    with contextlib.suppress(OSError):
        for line in (workspace / "releases" / "decisions.jsonl").read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                said = json.loads(line)
                if said["approved"] is True:
                    found[str(said["run"])] = (str(said["by"]), str(said["note"]))
    return found


def _release(record: Record, runs: Mapping[str, Json], approved: Mapping[str, tuple[str, str]]) -> Json:
    run = runs.get(record.run, {})
    by, note = approved.get(record.run, (None, None))
    per_class = {k.removeprefix("AP50/"): v for k, v in record.metrics.items() if k.startswith("AP50/")}
    return {
        "model": record.model,
        "version": record.version,
        "state": record.state,
        "reason": record.reason,
        "since": record.began.when if record.began else None,
        "run": record.run,
        "sha256": record.sha256,
        "bytes": record.bytes,
        "parameters": run.get("parameters"),
        "milliseconds": run.get("milliseconds"),
        "mAP50": record.metrics.get("mAP50"),
        "low": run.get("low"),
        "high": run.get("high"),
        "per_class": per_class or run.get("per_class") or {},
        "fingerprint": run.get("fingerprint"),
        "approved_by": by,
        "approval_note": note,
        "history": [{"state": e.state, "when": e.when, "reason": e.reason, "by": _who(e.by)} for e in record.history],
    }


def _who(by: Mapping[str, Any]) -> str:
    """Who changed the version's state, as the ledger has it: a person where one asked, else the process."""
    return str(by.get("by") or by.get("user") or by.get("host") or "")
