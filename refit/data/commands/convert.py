"""Write a data set, or the snapshot of a run, in another format; what that cannot hold is counted.

SRC is read and checked as a run would; one that a run would refuse is refused. Its splits are kept in the target's own
way, images are hard links where they can be.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from refit.data.codes import CODES, Severity
from refit.data.commands import BAD, GOOD, share
from refit.data.commands.progress import Progress
from refit.data.faults import BadData, counts
from refit.data.settings import FORMATS


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="SRC", help="the data set's folder, or a snapshot")
    parser.add_argument("out", type=Path, metavar="DST", help="the folder to make; must not exist, or be empty")
    parser.add_argument("--to", required=True, choices=FORMATS, help="the format to write")
    parser.add_argument("--format", choices=FORMATS, help="the format of SRC (default: recognised)")
    parser.add_argument("--image-dir", help="folder of the images below SRC (default: the format's own)")
    parser.add_argument("--label-dir", help="folder of the labels below SRC (default: the format's own)")
    parser.add_argument("--list", action="append", default=[], type=_pair, metavar="PART=FILE", help="a split's list")
    parser.add_argument(
        "--map", action="append", default=[], type=_pair, metavar="OLD=NEW", help="rename a class; OLD= leaves it out"
    )
    parser.add_argument("--allow", default="", help="checks that shall not stop it, separated by commas")
    parser.add_argument("--max-bad-labels", type=share, default=0.01, help="share of faulty objects (default 0.01)")
    parser.add_argument("--copy", action="store_true", help="copy the images in place of linking them")
    parser.add_argument("--json", action="store_true", help="everything as one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    """Convert; 0 written, 2 refused, 1 failed."""
    from refit.data import convert

    about: dict[str, Any] = {"source": str(args.source), "out": str(args.out), "to": args.to}
    try:
        convert.check_target(args.out)
        source = _source(args)
        about |= {"format": source.format, "faults": [f.as_json() for f in source.faults]}
        with Progress(args.json, "Writing images") as progress:
            written = convert.write(source, args.out, args.to, copy=args.copy, progress=progress)
    except BadData as exc:
        return _refused(args, about, str(exc), [f.as_json() for f in exc.faults])
    except (FileExistsError, ValueError) as exc:
        message = f"{exc.filename}: {exc.strerror}" if isinstance(exc, OSError) else str(exc)
        return _refused(args, about, message, [])
    about |= {
        "images": written.images,
        "objects": dict(written.objects),
        "parts": dict(written.parts),
        "not_held": dict(written.not_held),
    }
    if args.json:
        print(json.dumps({**about, "good": True}, ensure_ascii=True, indent=1))
        return GOOD
    objects = ", ".join(f"{name} {n}" for name, n in written.objects.items()) or "none"
    print(f"{args.out}: {source.format} -> {args.to}, {written.images} images, objects: {_shown(objects)}")
    if written.parts.keys() - {""}:
        print("splits: " + ", ".join(f"{name or 'in none'} {n}" for name, n in written.parts.items()))
    for what, n in written.not_held.items():
        print(f"{args.to} cannot hold: {what} ({n})")
    lost = [f for f in source.faults if f.objects or f.images]
    if lost:
        told = ", ".join(f"{n} x {code}" for code, n in counts(lost).items())
        print(f"left out: {told} (`refit dataset check` shows where)")
    return GOOD


def _source(args: argparse.Namespace) -> Any:
    """What is to be written. Raises BadData, ValueError."""
    from refit.data import convert

    source, out = args.source.resolve(), args.out.resolve()
    if source in out.parents:
        raise ValueError(f"{args.out} lies in {args.source}; write it elsewhere")
    if convert.is_snapshot(args.source):
        options = {"--format": args.format, "--map": args.map, "--list": args.list, "--allow": args.allow}
        given = [name for name, value in options.items() if value]
        if given:
            raise ValueError(f"{args.source} is a snapshot, which is written as it is: leave out {' and '.join(given)}")
        return convert.from_snapshot(args.source)
    with Progress(args.json) as progress:
        return convert.from_folder(
            args.source,
            format=args.format,
            image_dir=args.image_dir,
            label_dir=args.label_dir,
            class_map={old: new or None for old, new in args.map},
            max_bad_labels=args.max_bad_labels,
            severity=_allowed(args.allow),
            lists=dict(args.list) or None,
            progress=progress,
        )


def _allowed(names: str) -> dict[str, Severity]:
    chosen: dict[str, Severity] = {}
    for name in filter(None, (n.strip() for n in names.split(","))):
        if name not in CODES or CODES[name].fixed:
            open_ = ", ".join(n for n, code in CODES.items() if not code.fixed and code.severity != "info")
            raise ValueError(f"--allow {name}: not one of {open_}")
        chosen[name] = "info"
    return chosen


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def _refused(args: argparse.Namespace, about: dict[str, Any], message: str, faults: list[dict[str, Any]]) -> int:
    if args.json:
        print(json.dumps({**about, "good": False, "error": message, "faults": faults}, ensure_ascii=True, indent=1))
    else:
        print(f"error: {_shown(message)}", file=sys.stderr)
    return BAD


def _shown(text: str) -> str:
    """What a terminal neither obeys nor refuses."""
    return "".join(c if c.isprintable() else "?" for c in text).encode("utf-8", "backslashreplace").decode()
