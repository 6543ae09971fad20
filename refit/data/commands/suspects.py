"""Rank likely label errors: where the labels of a snapshot and a trained model disagree. Nothing is changed."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

from refit.data.commands import BAD, GOOD, share
from refit.data.commands.terminal import show


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("snapshot", type=Path, metavar="SNAPSHOT", help="a folder in <workspace>/<pipeline>/datasets")
    parser.add_argument(
        "--predictions",
        type=Path,
        required=True,
        metavar="FILE",
        help="COCO results; detections.json of an evaluate stage is one",
    )
    parser.add_argument(
        "--truth",
        type=Path,
        metavar="FILE",
        help="the COCO file that names their ids (default: ground_truth.json beside a detections.json)",
    )
    parser.add_argument("--least", type=share, default=0.5, help="least score that is told, 0 to 1 (default 0.5)")
    parser.add_argument("--most", type=int, default=50, help="suspects on the terminal (default 50; --json gives all)")
    parser.add_argument("-o", "--out", type=Path, metavar="OUT.html", help="a page with the pictures of the likeliest")
    parser.add_argument("--json", action="store_true", help="everything as one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    """Print the suspects, the likeliest first; 0 whatever is found, 2 where a file cannot be used."""
    from refit import files
    from refit.data import snapshot, suspects
    from refit.data.report import page

    try:
        classes = snapshot.open_snapshot(args.snapshot).classes
    except (OSError, ValueError) as exc:
        print(f"error: {args.snapshot} is no snapshot: {exc}", file=sys.stderr)
        return BAD
    truth = args.truth or _beside(args.predictions)
    at = args.predictions
    try:
        results = json.loads(at.read_text(encoding="utf-8"))
        at = truth or at
        named = json.loads(truth.read_text(encoding="utf-8")) if truth else None
        at = args.predictions
        predictions = suspects.read_results(results, named, classes)
    except (OSError, ValueError) as exc:
        print(f"error: {at}: {exc}", file=sys.stderr)
        return BAD
    images = list(suspects.pairs(snapshot.read_annotations(args.snapshot), predictions))
    if not images:
        print(f"error: {args.predictions} tells of no image of {args.snapshot}; is it of another set?", file=sys.stderr)
        return BAD
    found = suspects.ranked(images, args.least)
    kinds = Counter(s.kind for s in found)
    told = ", ".join(f"{kinds[k]} {k}" for k in suspects.KINDS if kinds[k]) or "none"
    told = f"{len(images)} images with predictions; suspects: {told}"
    if args.out is not None:
        pictures = args.snapshot / "images"
        html = page.write_suspects(
            args.snapshot.name[:12], f"{told}.", found, lambda file: (pictures / file).read_bytes()
        )
        files.write_text(args.out, html)
    if args.json:
        about = {"images": len(images), "suspects": [s.as_json() for s in found]}
        print(json.dumps(about, ensure_ascii=True, indent=1))
        return GOOD
    lines = [told]
    for s in found[: args.most]:
        box = " ".join(f"{v:g}" for v in s.box)
        lines.append(f"{s.score:.2f}  {s.file}  [{box}]  {s.told()}")
    if len(found) > args.most:
        lines.append(f"... and {len(found) - args.most} more (--json lists them)")
    show(lines)
    return GOOD


def _beside(predictions: Path) -> Path | None:
    """What an evaluate stage writes beside its detections, `ground_truth.json` or `ground_truth-<split>.json`."""
    if not predictions.name.startswith("detections"):
        return None
    truth = predictions.with_name(predictions.name.replace("detections", "ground_truth", 1))
    return truth if truth.is_file() else None
