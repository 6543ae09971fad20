"""Command line of the data part.

    python -m refit.data check PATH [--format kitti|voc] [--classes a,b] [--image-dir D] [--label-dir D] [--json]
    python -m refit.data synthetic OUT [--train 400 --val 100 --shifted 50 --seed 7]
    python -m refit.data prepare|calibrate -e spec.yaml -r OUT

`check` changes nothing. Exit codes: 0 good, 2 bad data or bad input, 1 failed; of the stages prepare and calibrate,
those of `refit.command`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from refit import command
from refit.command import Action
from refit.data.codes import CODES, Severity
from refit.data.faults import BadData, Fault, counts

GOOD, FAILED, BAD = 0, 1, 2
ACTIONS = {
    "prepare": Action(
        "refit.data.prepare.spec:PrepareSpec",
        "refit.data.prepare.stage:run",
        "write a snapshot as NVIDIA TAO's input: KITTI or COCO",
    ),
    "calibrate": Action(
        "refit.data.prepare.spec:CalibrateSpec",
        "refit.data.prepare.calibration:run",
        "choose the images that calibrate INT8",
    ),
}
_SHOWN = 5  # faults of a kind on the terminal; --json gives all


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the process's exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in ACTIONS:
        return command.main("refit.data", ACTIONS, words)
    args = _parser().parse_args(words)
    try:
        code: int = args.run(args)
    except OSError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m refit.data", description="Data sets: check one, make the demo's.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    check = commands.add_parser("check", help="read a whole data set and say what is wrong; changes nothing")
    add_check(check)
    synthetic = commands.add_parser("synthetic", help="make the demo's data set")
    synthetic.add_argument("out", type=Path, metavar="OUT", help="folder to make; must not exist, or be empty")
    synthetic.add_argument("--train", type=int, default=400, help="images to train on (default 400)")
    synthetic.add_argument("--val", type=int, default=100, help="images to evaluate on (default 100)")
    synthetic.add_argument("--shifted", type=int, default=50, help="evaluation images of another light (default 50)")
    synthetic.add_argument("--seed", type=int, default=7, help="the same seed gives the same pictures (default 7)")
    synthetic.set_defaults(run=run_synthetic)
    for name, action in ACTIONS.items():
        commands.add_parser(name, help=action.help)
    return parser


def add_check(parser: argparse.ArgumentParser) -> None:
    """The arguments of `check`, for this command line and for `refit dataset check`."""
    parser.add_argument("path", type=Path, metavar="PATH", help="the data set's folder")
    parser.add_argument("--format", choices=["kitti", "voc"], help="default: recognised")
    parser.add_argument("--classes", help="names separated by commas; other ones are faults (default: all are taken)")
    parser.add_argument("--image-dir", help="folder of the images below PATH (default: the format's own)")
    parser.add_argument("--label-dir", help="folder of the labels below PATH (default: the format's own)")
    parser.add_argument("--max-bad-labels", type=float, default=0.01, help="share of faulty objects (default 0.01)")
    parser.add_argument("--json", action="store_true", help="everything as one JSON object on stdout")
    parser.set_defaults(run=run_check)


def run_check(args: argparse.Namespace) -> int:
    """Check a data set and print the result; 0 good, 2 bad."""
    from refit.data import checks
    from refit.data.examine import examine

    names = [c.strip() for c in args.classes.split(",") if c.strip()] if args.classes else None
    about: dict[str, Any] = {"path": str(args.path)}
    try:
        with _progress(args.json) as progress:
            found = examine(
                args.path,
                format=args.format,
                image_dir=args.image_dir,
                label_dir=args.label_dir,
                classes=checks.Classes(names),
                max_bad_labels=args.max_bad_labels,
                progress=progress,
            )
        faults: Sequence[Fault] = found.faults
        about |= {
            "format": found.format,
            "images": len(found.samples),
            "declared_objects": found.declared,
            "objects": dict(sorted(Counter(o.cls for s in found.samples for o in s.objects).items())),
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
    # A file name may hold what a terminal cannot show, or would obey.
    text = "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines)
    print(text.encode("utf-8", "backslashreplace").decode())


class _progress:
    """A bar on stderr where that is a terminal; gives the callback, or None."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet or not sys.stderr.isatty()

    def __enter__(self) -> Callable[[int, int], None] | None:
        if self.quiet:
            return None
        from rich.console import Console
        from rich.progress import Progress

        self.bar = Progress(console=Console(stderr=True), transient=True)
        self.bar.start()
        task = self.bar.add_task("Reading images", total=None)
        return lambda done, total: self.bar.update(task, completed=done, total=total)

    def __exit__(self, *exc: object) -> None:
        if not self.quiet:
            self.bar.stop()


def run_synthetic(args: argparse.Namespace) -> int:
    """Make the demo's data set; 0 made, 2 refused."""
    from refit.data import synthetic

    try:
        synthetic.make(args.out, train=args.train, val=args.val, shifted=args.shifted, seed=args.seed)
    except (ValueError, FileExistsError) as exc:
        print(f"error: {exc}", file=sys.stderr)
        return BAD
    print(f"{args.out}: {args.train} train, {args.val} val, {args.shifted} shifted images")
    return GOOD
