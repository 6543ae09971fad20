"""`refit import FILE...` on the command line; the work is `refit.migrate.run`, which only this command loads."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Literal, get_args

from refit.config import Settings

Role = Literal["train", "retrain", "dataset_convert", "inference", "augment"]
ROLES: tuple[Role, ...] = get_args(Role)


def add_import(parser: argparse.ArgumentParser) -> None:
    """The arguments of `refit import`."""
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="[ROLE=]FILE",
        help="the Kubeflow pipeline's input YAML (a file or URL), a mounts file, TLT or TAO specs, a zip or folder of "
        f"specs; ROLE, where import must not find out: {', '.join(ROLES)}",
    )
    parser.add_argument(
        "--into", type=Path, default=Path("specs/pipelines"), metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument("--name", help="of the pipeline; default: the data set's or the network's")
    parser.add_argument("--network", help="where the specs do not say it")
    parser.add_argument("--classes", metavar="A,B", help="where the specs do not name them")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="download the data set, by its URL, to this new folder"
    )
    parser.add_argument(
        "--max-gib", type=float, default=200, metavar="GIB", help="of the data set; default %(default)s"
    )
    parser.add_argument("--allow-http", action="store_true", help="plain http too")
    parser.add_argument("--force", action="store_true", help="write over a pipeline of that name")


def run_import(args: argparse.Namespace, settings: Settings) -> int:
    """Write the files and say what was found; 2: nothing was written."""
    from refit.migrate.run import run

    return run(args, settings)
