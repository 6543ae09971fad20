"""Make the report on a data set, or on a snapshot of one: one HTML page that needs no other file."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from refit.data.commands import BAD, FAILED, GOOD, listed
from refit.data.commands.progress import Progress
from refit.data.faults import BadData
from refit.data.settings import FORMATS


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="PATH|SNAPSHOT", help="the data set's folder, or a snapshot's")
    parser.add_argument("-o", "--out", type=Path, metavar="OUT.html", help="the page (default: report.html here)")
    parser.add_argument("--format", choices=FORMATS, help="default: recognised")
    parser.add_argument("--classes", help="names separated by commas; other ones are faults (default: all are taken)")
    parser.add_argument("--previous", type=Path, metavar="SNAPSHOT", help="compare a snapshot with this one")
    parser.add_argument(
        "--network", type=_size, metavar="WxH", help="the network's input, pixels: is the data fit for it?"
    )
    parser.add_argument("--cell", type=int, default=8, help="pixels of its finest cell (stride; default 8)")
    parser.add_argument("--stretch", action="store_true", help="it does not keep the images' proportions")
    parser.add_argument(
        "--json", action="store_true", help="the report as JSON on stdout, and no page unless -o asks for it"
    )


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write it as 960x544")
    return int(found[1]), int(found[2])


def run(args: argparse.Namespace) -> int:
    """Write the report; 0 the data is good, 2 bad data or bad input, 1 it could not be written."""
    from refit import files
    from refit.data import checks
    from refit.data.examine import examine
    from refit.data.report import contents, page
    from refit.toolkits.base import NetworkInput

    network = (
        NetworkInput(args.network[0], args.network[1], args.cell, letterbox=not args.stretch) if args.network else None
    )
    try:
        if (args.path / "annotations.jsonl").is_file():
            report = contents.of_snapshot(args.path, previous=args.previous, network=network)
        else:
            if args.previous:
                print(f"error: {args.path} is no snapshot: only one can be compared (--previous)", file=sys.stderr)
                return BAD
            names = listed(args.classes)
            with Progress(args.json) as progress:
                classes = checks.Classes(names)
                examined = examine(args.path, format=args.format, classes=classes, progress=progress)
            report = contents.of_source(examined, network)
    except BadData as exc:
        print(f"error: {exc}", file=sys.stderr)
        return BAD
    except ValueError as exc:
        print(f"error: {exc}: no snapshot that can be read", file=sys.stderr)
        return BAD
    if args.json:
        print(json.dumps(report.as_json(), ensure_ascii=True, indent=1))
    out = args.out or (None if args.json else Path("report.html"))
    if out is not None:
        try:
            files.write_bytes(out, page.write(report).encode())
        except OSError as exc:
            print(f"error: {out} cannot be written: {exc.strerror}", file=sys.stderr)
            return FAILED
        if not args.json:
            print(f"{out}: {len(report.table.files)} images, {len(report.faults)} findings")
    return GOOD if report.good else BAD
