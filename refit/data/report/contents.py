"""What the report says, gathered from a snapshot or from a folder that was examined."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from refit.data import diff, doubts, drift, fit, look, snapshot, statistics
from refit.data.codes import CODES
from refit.data.diff import Difference
from refit.data.drift import Drift
from refit.data.examine import Examination
from refit.data.faults import Fault, counts, graded
from refit.data.formats.base import read_whole
from refit.data.provenance import REVISIONS, now
from refit.data.statistics import Table
from refit.report.pictures import Load
from refit.toolkits.base import NetworkInput

SCHEMA = 1
NEAR = ("near_duplicate_across_splits", "near_duplicate_image")
_LISTED = 1000  # faults and names of images in the JSON; issues.jsonl has all


@dataclass(frozen=True)
class Report:
    """`about` is what stands at the top, name -> value; `previous` names the data set that `difference` and `drifts`
    compare with; `news` are those of the faults that this comparison and the network gave, and no snapshot holds."""

    title: str
    about: Mapping[str, str]
    table: Table
    statistics: Mapping[str, Any]
    faults: Sequence[Fault]
    load: Load
    network: NetworkInput | None = None
    previous: str = ""
    difference: Difference | None = None
    drifts: Sequence[Drift] = ()
    news: Sequence[Fault] = ()

    @property
    def good(self) -> bool:
        return not any(f.severity == "error" for f in self.faults)

    def near_duplicates(self) -> list[Fault]:
        return [f for code in NEAR for f in self.faults if f.code == code]

    def as_json(self) -> dict[str, Any]:
        """report.json (docs/contracts.md)."""
        named = {code: {"severity": CODES[code].severity, "n": n} for code, n in counts(self.faults).items()}
        for f in self.faults:
            named[f.code]["severity"] = f.severity
        return {
            "schema": SCHEMA,
            "title": self.title,
            "about": dict(self.about),
            "good": self.good,
            "statistics": dict(self.statistics),
            "counts": named,
            "faults": [f.as_json() for f in self.faults[:_LISTED]],
            "faults_left_out": max(0, len(self.faults) - _LISTED),
            "network": self.network and asdict(self.network),
            "previous": self.previous,
            "difference": self.difference and _changes(self.difference),
            "drift": [d.as_json() for d in self.drifts],
        }


def _changes(found: Difference) -> dict[str, Any]:
    """The difference as JSON, with the first names of each kind."""
    names = {kind: getattr(found, kind) for kind in ("added", "removed", "picture_changed", "labels_changed")}
    names["renamed"] = [list(pair) for pair in found.renamed.items()]
    return {
        "unchanged": found.unchanged,
        **{kind: {"n": len(of), "first": of[:_LISTED]} for kind, of in names.items()},
        "moved": [[old, new, n] for (old, new), n in found.moved.items()],
        "objects": found.objects,
    }


def of_snapshot(
    path: Path,
    *,
    title: str = "",
    previous: Path | None = None,
    network: NetworkInput | None = None,
    severity: Mapping[str, Any] | None = None,
    faults: Sequence[Fault] | None = None,
    source: str | None = None,
) -> Report:
    """The report on a snapshot, against the one before it where that is given.

    `faults` and `source` are what was found, and where, when its data was taken (again) just now; left out, what holds
    of when it was made. Raises OSError and ValueError.
    """
    about = json.loads((path / "dataset.json").read_text(encoding="utf-8"))
    provenance = about.get("provenance", {})
    table = Table.of(snapshot.read_annotations(path), about["classes"])
    faults = issues(path) if faults is None else faults
    found = snapshot.read_statistics(path)
    changes, drifts, news = None, list[Drift](), list[Fault]()
    if previous is not None and previous.name != path.name:
        changes = diff.compare(snapshot.read_annotations(previous), snapshot.read_annotations(path))
        drifts = drift.drift(snapshot.read_statistics(previous), found)
        news += drift.faults(drifts, previous.name)
    if network is not None:
        news += fit.faults(table, network)
    news = graded(news, severity or {})
    shown = {
        "Fingerprint": path.name,
        "Source": source or str(provenance.get("source", "")),
        "Format": str(provenance.get("format", "")),
        "Taken at": now() if source else str(provenance.get("taken_at", "")),
        "First made at": str(provenance.get("taken_at", "")) if source else "",
        **{title: str(provenance.get(name, "")) for name, title in REVISIONS.items()},
    }

    def load(file: str) -> bytes | None:
        return _read(path / "images" / file)

    return Report(
        title or path.name[:12],
        {k: v for k, v in shown.items() if v},
        table,
        found,
        graded([*faults, *news], {}),
        load,
        network,
        previous.name if changes is not None and previous is not None else "",
        changes,
        drifts,
        news,
    )


def of_source(examined: Examination, network: NetworkInput | None = None) -> Report:
    """The report on a folder, without a split."""
    samples = examined.samples
    table = Table.of((s.as_json("all") for s in samples), [])
    brightness = [look.unpack(s.look).brightness for s in samples if s.look]
    faults = [*examined.faults, *doubts.duplicates(samples, {s.file: "all" for s in samples})]
    if network is not None:
        faults += fit.faults(table, network)
    source = dict(zip(table.files, table.sources, strict=True))
    root = Path(examined.tree.root)

    def load(file: str) -> bytes | None:
        with contextlib.suppress(OSError):
            return read_whole(examined.tree, source[file])
        return None

    shown = {"Source": str(root), "Format": examined.format}
    return Report(root.name, shown, table, statistics.of(table, brightness), graded(faults, {}), load, network)


def issues(snapshot: Path) -> list[Fault]:
    """What was found when a snapshot was made."""
    with open(snapshot / "issues.jsonl", encoding="utf-8") as f:
        return [Fault(**{"file": "", **json.loads(line)}) for line in f]


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
