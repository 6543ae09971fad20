"""Show what is different between two data sets: images, objects by class, and sides of the split.

A and B are folders of labelled images or snapshots, in any mix. Images are told apart by name and by content.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refit.data.commands import BAD, GOOD
from refit.data.commands.progress import Progress
from refit.data.commands.terminal import show
from refit.data.faults import BadData
from refit.data.settings import FORMATS

if TYPE_CHECKING:
    from refit.data.diff import Difference
    from refit.data.drift import Drift

_SHOWN = 5  # names of a kind on the terminal; --json gives all


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("before", type=Path, metavar="A", help="a data set's folder, or a snapshot")
    parser.add_argument("now", type=Path, metavar="B", help="another one")
    parser.add_argument("--format", choices=FORMATS, help="of folders; default: recognised")
    parser.add_argument("--json", action="store_true", help="everything as one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    """Compare two data sets; 0 compared (equal or not), 2 where one cannot be read."""
    from refit.data import drift, statistics
    from refit.data.diff import compare

    try:
        before, now = (_rows(path, args) for path in (args.before, args.now))
        found = compare(before, now)
        drifts = drift.drift(statistics.of_rows(before), statistics.of_rows(now))
    except (BadData, ValueError, KeyError) as exc:
        show([f"error: {exc}"])
        return BAD
    if args.json:
        about = {"before": str(args.before), "now": str(args.now), **_as_json(found)}
        print(json.dumps({**about, "drift": [d.as_json() for d in drifts]}, indent=1))
    else:
        _show(args, found, drifts)
    return GOOD


def _rows(path: Path, args: argparse.Namespace) -> Sequence[dict[str, Any]]:
    """The rows of annotations.jsonl, by file name; of a folder as they would be, in no part.

    Raises BadData, ValueError.
    """
    from refit.data import snapshot

    if (path / "annotations.jsonl").is_file() and (path / "dataset.json").is_file():
        wrong = snapshot.verify(path) if len(path.name) == 64 else ""
        if wrong:
            raise ValueError(f"{path}: {wrong}")
        return sorted(snapshot.read_annotations(path), key=lambda row: str(row["file"]))
    from refit.data.examine import examine

    with Progress(args.json) as progress:
        samples = examine(path, format=args.format, progress=progress).samples
    return [s.as_json("") for s in sorted(samples, key=lambda s: s.file)]


def _as_json(found: Difference) -> dict[str, Any]:
    return {
        "counts": found.counts(),
        "added": found.added,
        "removed": found.removed,
        "picture_changed": found.picture_changed,
        "labels_changed": found.labels_changed,
        "renamed": found.renamed,
        "objects": {cls: {"before": a, "now": b} for cls, (a, b) in found.objects.items()},
        "moved": [{"from": a, "to": b, "images": n} for (a, b), n in found.moved.items()],
    }


def _show(args: argparse.Namespace, found: Difference, drifts: Sequence[Drift]) -> None:
    lines = [f"{args.before} -> {args.now}"]
    renamed = [f"{old} -> {new}" for old, new in found.renamed.items()]
    for what, names in (
        ("added", found.added),
        ("removed", found.removed),
        ("other picture", found.picture_changed),
        ("other labels", found.labels_changed),
        ("renamed", renamed),
    ):
        if names:
            more = f", ... {len(names) - _SHOWN} more (--json lists them)" if len(names) > _SHOWN else ""
            lines.append(f"{what}: {len(names)} images: {', '.join(names[:_SHOWN])}{more}")
    lines.append(f"unchanged: {found.unchanged} images")
    lines += [f"objects of {c}: {a} -> {b} ({b - a:+d})" for c, (a, b) in found.objects.items() if a != b]
    lines += [f"from {a} to {b}: {n} images" for (a, b), n in found.moved.items()]
    lines += [f"drift of {d.trait}: {d.level}, PSI {d.psi:.2f}; {d.told}" for d in drifts if d.level != "none"]
    show(lines)
