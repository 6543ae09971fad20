"""Command line of the data part.

    python -m refit.data COMMAND ...          the commands of `refit dataset`, see refit.data.commands
    python -m refit.data synthetic OUT [--train 400 --val 100 --shifted 50 --seed 7]
    python -m refit.data prepare|calibrate -e spec.yaml -r OUT

Exit codes: 0 good, 2 bad data or bad input, 1 failed; of the stages prepare and calibrate,
those of `refit.command`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from refit import command
from refit.command import Action
from refit.data.commands import BAD, FAILED, GOOD, add_all

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
    "subset": Action("refit.data.subset:SubsetSpec", "refit.data.subset:run", "a few images of each split"),
}


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
    add_all(commands)
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
