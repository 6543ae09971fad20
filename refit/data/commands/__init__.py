"""The commands on data sets: `refit dataset NAME`, `python -m refit.data NAME`.

A command is a module here: its docstring is the help, `add(parser)` the arguments, `run(args)` returns the exit code.
What is slow to import (numpy, OpenCV) is imported in `run`: every `refit` command builds all the parsers.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from refit.data.faults import NoSpace

if TYPE_CHECKING:
    from pydantic import ValidationError

NAMES = ("check", "convert", "split", "diff", "preview", "snapshot", "report", "suspects")
GOOD, FAILED, BAD = 0, 1, 2


def listed(text: str | None) -> list[str] | None:
    """The words of an argument that separates them by commas; None where it was not given."""
    return [word.strip() for word in text.split(",") if word.strip()] if text else None


def share(text: str) -> float:
    """An argument that is a share, from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share: write a number from 0 to 1")
    return value


def refused(exc: ValidationError) -> list[str]:
    """What is wrong with arguments that are settings of a pipeline file, a line each."""
    lines = []
    for error in exc.errors():
        option = f"--{error['loc'][0]}: " if error["loc"] else ""
        lines.append(f"error: {option}{error['msg'].removeprefix('Value error, ')}")
    return lines


def add_all(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add each command as a parser whose `run` default is the command's function."""
    for name in NAMES:
        module = importlib.import_module(f"{__name__}.{name}")
        description = (module.__doc__ or "").strip()
        parser = commands.add_parser(name, help=description.partition("\n")[0].rstrip("."), description=description)
        module.add(parser)
        parser.set_defaults(run=functools.partial(_run, module.run))


def _run(run: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """The command's exit code; what cannot be read or written ends it with one line."""
    try:
        return run(args)
    except NoSpace as exc:
        print(f"error: {exc}", file=sys.stderr)
    except KeyboardInterrupt:
        print("error: stopped by Ctrl-C; nothing half-written stays", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise  # nobody reads any more: the caller knows what to do
    except OSError as exc:
        print(f"error: {exc.filename or 'input or output'}: {exc.strerror or exc}", file=sys.stderr)
    return FAILED
