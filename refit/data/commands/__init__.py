"""The commands on data sets: `refit dataset NAME`, `python -m refit.data NAME`.

A command is a module here: its docstring is the help, `add(parser)` the arguments, `run(args)` returns the exit code.
What is slow to import (numpy, OpenCV) is imported in `run`: every `refit` command builds all the parsers.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable

NAMES = ("check", "convert", "split", "diff", "preview", "snapshot", "report", "suspects")
GOOD, FAILED, BAD = 0, 1, 2


def listed(text: str | None) -> list[str] | None:
    """The words of an argument that separates them by commas; None where it was not given."""
    return [word.strip() for word in text.split(",") if word.strip()] if text else None


def add_all(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add each command as a parser whose `run` default is the command's function."""
    for name in NAMES:
        module = importlib.import_module(f"{__name__}.{name}")
        description = (module.__doc__ or "").strip()
        parser = commands.add_parser(name, help=description.partition("\n")[0].rstrip("."), description=description)
        module.add(parser)
        run: Callable[[argparse.Namespace], int] = module.run
        parser.set_defaults(run=run)
