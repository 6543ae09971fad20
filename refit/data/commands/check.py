"""Read a data set as a run would, and report every fault with file and line; nothing is written."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from refit.data.codes import CODES, Severity
from refit.data.commands import BAD, GOOD, listed, share
from refit.data.commands.progress import Progress
from refit.data.commands.terminal import show
from refit.data.faults import BadData, Fault, counts, graded
from refit.data.settings import FORMATS

_SHOWN = 5  # faults of a kind on the terminal; --json gives all


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="PATH", help="the data set's folder")
    parser.add_argument("--format", choices=FORMATS, help="default: recognised")
    parser.add_argument("--classes", help="names separated by commas; other ones are faults (default: all are taken)")
    parser.add_argument("--image-dir", help="folder of the images below PATH (default: the format's own)")
    parser.add_argument("--label-dir", help="folder of the labels below PATH (default: the format's own)")
    parser.add_argument("--max-bad-labels", type=share, default=0.01, help="share of faulty objects (default 0.01)")
    parser.add_argument("--no-decode", action="store_true", help="look at the images' headers only: much faster")
    parser.add_argument("--json", action="store_true", help="everything as one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    """Check a data set and print the result; 0 good, 2 bad."""
    from refit.data import checks, doubts
    from refit.data.examine import examine

    names = listed(args.classes)
    about: dict[str, Any] = {"path": str(args.path)}
    try:
        with Progress(args.json) as progress:
            found = examine(
                args.path,
                format=args.format,
                image_dir=args.image_dir,
                label_dir=args.label_dir,
                classes=checks.Classes(names),
                max_bad_labels=args.max_bad_labels,
                decode=not args.no_decode,
                progress=progress,
            )
        twins = doubts.duplicates(found.samples, {s.file: "" for s in found.samples})
        faults: Sequence[Fault] = graded([*found.faults, *twins], {})
        about |= {
            "format": found.format,
            "images": len(found.samples),
            "declared_objects": found.declared,
            "objects": dict(sorted(checks.class_counts(found.samples).items())),
        }
    except BadData as exc:
        faults = exc.faults
    good = not any(f.severity == "error" for f in faults)
    if args.json:
        about |= {"good": good, "counts": counts(faults), "faults": [f.as_json() for f in faults]}
        print(json.dumps(about, ensure_ascii=True, indent=1))
    else:
        _print(about, faults, good)
    return GOOD if good else BAD


def _print(about: dict[str, Any], faults: Sequence[Fault], good: bool) -> None:
    lines = [about["path"]]
    if "format" in about:
        objects = ", ".join(f"{name} {n}" for name, n in about["objects"].items()) or "none"
        total = sum(about["objects"].values())
        lines.append(f"{about['format']}, {about['images']} usable images, {total} objects ({objects})")
    severities: tuple[Severity, ...] = ("error", "warning", "info")
    for severity in severities:
        for code in CODES:
            found = [f for f in faults if f.code == code and f.severity == severity]
            if not found:
                continue
            lost = sum(f.objects for f in found)
            lines.append(f"{severity}: {len(found)} x {code}" + (f", {lost} objects left out" if lost else ""))
            lines += [f"    {f}; {f.advice}" for f in found[: 1 if severity == "info" else _SHOWN]]
            if len(found) > _SHOWN and severity != "info":
                lines.append(f"    ... and {len(found) - _SHOWN} more (--json lists them)")
    lines.append("good" if good else "bad: a run would stop here")
    show(lines)
