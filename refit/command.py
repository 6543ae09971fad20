"""The command line that every stage of Refit's own has: `python -m <package> <action> -e spec.yaml -r out`.

One contract for bind, data, gates, release and the cpu toolkit (docs/contracts.md, "Stage commands"): the spec is
validated before anything else is imported, each failure is one `error:` line on stderr and a FAILURE line in
status.json, and the exit code says what kind of failure it was.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import signal
import sys
import traceback
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refit.specs import Spec, SpecError, read
from refit.status import StatusWriter

OK, FAILED, BAD_SPEC, BAD_DATA, REJECTED, CANCELLED = 0, 1, 2, 3, 4, 143


class StageError(Exception):
    """A failure that the user should read as one sentence: what is wrong and what to do. Exit code 1."""

    exit_code = FAILED


class BadSpec(StageError):
    """The spec does not fit what it names (a model, a data set). Exit code 2."""

    exit_code = BAD_SPEC


class BadData(StageError):
    """The data cannot be used. Exit code 3."""

    exit_code = BAD_DATA


class Rejected(StageError):
    """A gate said no. Exit code 4."""

    exit_code = REJECTED


class Cancelled(BaseException):
    """SIGTERM arrived; raised in the main thread, so that `finally` blocks run. Exit code 143."""


@dataclass(frozen=True)
class Action:
    """One action: where its spec model and its function are ("package.module:name"), imported when it is called.

    The function takes (spec, out: Path, status: StatusWriter); what it returns is ignored.
    """

    spec: str
    run: str
    help: str


def load(name: str) -> Any:
    """The object that "package.module:name" names."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def main(prog: str, actions: Mapping[str, Action], argv: Sequence[str] | None = None) -> int:
    """Run one action; returns the process's exit code."""
    args = _parser(prog, actions, argv).parse_args(argv)
    action = actions[args.action]
    if args.check:
        return _check(action, args.spec)
    out = Path(args.out)
    try:
        status = StatusWriter(out)
    except OSError as exc:
        print(f"error: {out}: cannot write there: {exc.strerror}", file=sys.stderr)
        return FAILED
    signal.signal(signal.SIGTERM, _cancel)
    try:
        spec: Spec = read(load(action.spec), args.spec)
        status.started(f"Started {args.action}.")
        load(action.run)(spec, out, status)
    except SpecError as exc:
        return _fail(status, str(exc), BAD_SPEC)
    except StageError as exc:
        return _fail(status, str(exc), exc.exit_code)
    except Cancelled:
        print("error: stopped by SIGTERM", file=sys.stderr)
        return CANCELLED
    except KeyboardInterrupt:
        print("error: stopped by Ctrl-C", file=sys.stderr)
        return 130
    except MemoryError:
        return _fail(status, "out of memory (MemoryError); give the stage more or lower the batch size", FAILED)
    except OSError as exc:
        return _fail(status, _told(exc, out), FAILED)
    except Exception as exc:  # a fault of ours: the log gets all, the result one line
        traceback.print_exc()
        return _fail(status, f"{type(exc).__name__}: {exc}", FAILED)
    return OK


def _check(action: Action, spec: str) -> int:
    """Judge a spec; nothing is run and nothing written."""
    try:
        read(load(action.spec), spec)
    except SpecError as exc:
        for problem in exc.problems:
            print(f"error: {problem}", file=sys.stderr)
        return BAD_SPEC
    return OK


def _told(exc: OSError, out: Path) -> str:
    """What went wrong with which file; a write to a full disk names none, but all are written below `out`."""
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{exc.strerror}: {exc.filename or out}"
    return f"{exc.filename or ''}: {exc.strerror or exc}".lstrip(": ")


def _fail(status: StatusWriter, message: str, code: int) -> int:
    for line in message.splitlines():
        print(f"error: {line}", file=sys.stderr)
    try:
        status.failure(message)
    except OSError as exc:  # a full disk: the exit code and stderr still tell
        print(f"error: {status.path}: {exc.strerror}", file=sys.stderr)
    return code


def _cancel(signum: int, frame: types.FrameType | None) -> None:
    raise Cancelled


def _parser(prog: str, actions: Mapping[str, Action], argv: Sequence[str] | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m {prog}")
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    words = list(sys.argv[1:] if argv is None else argv)
    for name, action in actions.items():
        # The fields are listed only where they are asked for: reading a model costs an import.
        asked = name in words[:1] and any(w in ("-h", "--help") for w in words)
        command = commands.add_parser(
            name,
            help=action.help,
            description=action.help,
            epilog=describe(load(action.spec)) if asked else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_argument("-e", dest="spec", required=True, metavar="SPEC", help="the spec, a YAML file")
        what = command.add_mutually_exclusive_group(required=True)
        what.add_argument("-r", dest="out", metavar="OUT", help="folder for the results")
        what.add_argument("--check", action="store_true", help="only judge the spec; nothing is run or written")
    return parser


def describe(model: type[Spec]) -> str:
    """The keys of a spec as text: name, type, default, range or choices, description."""
    schema = model.model_json_schema()
    lines = ["keys of the spec:"]
    _describe(schema, schema.get("$defs", {}), "  ", lines)
    return "\n".join(lines)


def _describe(schema: Mapping[str, Any], defs: Mapping[str, Any], indent: str, lines: list[str]) -> None:
    required = schema.get("required", [])
    for name, raw in schema.get("properties", {}).items():
        reference = raw.get("$ref") or next((a["$ref"] for a in raw.get("anyOf", ()) if "$ref" in a), None)
        field = {**(defs[reference.rsplit("/", 1)[-1]] if reference else {}), **raw}
        notes = [_kind(field)]
        for word, text in (("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<="), ("exclusiveMaximum", "<")):
            if word in field:
                notes.append(f"{text} {field[word]}")
        if name in required:
            notes.append("required")
        elif "default" in raw and not isinstance(raw["default"], dict):
            notes.append(f"default {raw['default']!r}")
        about = raw.get("description", "")
        lines.append(f"{indent}{name}: {', '.join(n for n in notes if n)}{'  # ' + about if about else ''}")
        if reference and "properties" in field:
            _describe(field, defs, indent + "  ", lines)


def _kind(field: Mapping[str, Any]) -> str:
    if "enum" in field:
        return " | ".join(map(str, field["enum"]))
    if "const" in field:
        return str(field["const"])
    if "anyOf" in field:
        return " | ".join(dict.fromkeys(_kind(a) for a in field["anyOf"]))
    if field.get("type") == "array":
        return f"list of {_kind(field.get('items', {}))}"
    return str(field.get("type", ""))
