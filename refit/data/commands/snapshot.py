"""Take a data set into a pipeline's workspace as an immutable snapshot, as the first task of a run does, and print its
fingerprint. No run is started, and one that sees the same data still takes it as new: it finds the work done. With
mode: append SRC is added to what a run took last, not to another snapshot taken by hand."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from refit.data.commands import BAD, GOOD, listed, refused
from refit.data.commands.progress import Progress
from refit.data.faults import BadData
from refit.data.settings import FORMATS, DatasetSettings


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="SRC", help="the data set's folder")
    parser.add_argument("workspace", type=Path, metavar="WORKSPACE", help="the pipeline's folder in the workspace")
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--pipeline", type=Path, metavar="FILE", help="take classes, format and split from this file")
    how.add_argument("--classes", help="names separated by commas; format and split are the defaults")
    parser.add_argument("--format", choices=FORMATS, help="with --classes; default: recognised")
    parser.add_argument("--json", action="store_true", help="what was made as one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    """Take the data in; 0 taken, 2 bad data or a bad pipeline file, 1 failed."""
    from pydantic import ValidationError

    from refit import pipeline as pipelines
    from refit.collect import binding
    from refit.data import append
    from refit.data.ingest import ingest
    from refit.specs import SpecError

    try:
        if args.pipeline:
            settings = pipelines.load(args.pipeline).dataset.settings()
        else:
            settings = DatasetSettings(classes=listed(args.classes) or [], format=args.format)
        args.workspace.mkdir(parents=True, exist_ok=True)
        with Progress(args.json) as progress, binding(args.workspace):
            if settings.mode == "append" and append.last(args.workspace) is None:
                print(f"mode: append: no run has taken data into {args.workspace}, SRC is all of it", file=sys.stderr)
            taken = ingest(args.source, settings, args.workspace, progress=progress)
    except ValidationError as exc:
        print("\n".join(refused(exc)), file=sys.stderr)
        return BAD
    except (BadData, SpecError) as exc:
        print(f"error: {exc}", file=sys.stderr)
        return BAD
    about = {"splits": dict(taken.splits), "objects": dict(taken.objects), "issues": dict(taken.issues)}
    if args.json:
        made = {"fingerprint": taken.fingerprint, "path": str(taken.path), "reused": taken.reused}
        print(json.dumps({**made, **about}, indent=1))
        return GOOD
    for name, counts in about.items():
        if counts:
            print(f"{name}: {', '.join(f'{what} {n}' for what, n in counts.items())}", file=sys.stderr)
    print(f"{'there already' if taken.reused else 'made'}: {taken.path}", file=sys.stderr)
    print(taken.fingerprint)
    return GOOD
