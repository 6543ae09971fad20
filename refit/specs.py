"""Reading YAML into typed objects, with errors that name file, line, key and value.

Used for pipeline files, cluster profiles and the spec of every stage command. Standard library, pydantic and
PyYAML only: Airflow imports it while parsing.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
Key = tuple[str | int, ...]
M = TypeVar("M", bound=BaseModel)
_MOST_DEEP = 100  # PyYAML calls itself for each level, in C: 200,000 brackets end the process
_MOST_REPEATED = 10_000  # values that aliases may stand for: a few lines of them can mean 8 ** 9


class Spec(BaseModel):
    """Base of everything that is read from YAML: unknown keys are refused, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    instead: ClassVar[Mapping[str, str]] = {}
    """Unknown keys that people are likely to write -> what to do."""


@dataclass(frozen=True)
class Problem:
    """One fault in a file: where it stands (1-based line; 0: none), the key's path, what is wrong and what to do."""

    file: str
    line: int
    key: str
    message: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {self.key}: {self.message}" if self.key else f"{where}: {self.message}"


class SpecError(ValueError):
    """A file that cannot be used; `problems` holds every fault found in it, in the order of the file."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = sorted(problems, key=lambda p: p.line)
        super().__init__("\n".join(str(p) for p in self.problems))


@dataclass(frozen=True)
class Document:
    """A parsed YAML file: plain values, and the 1-based line at which each key's value was written."""

    file: str
    text: str
    data: dict[str, Any]
    lines: dict[Key, int]

    def line(self, key: Key) -> int:
        """The line of a key, or of its nearest parent that is in the file."""
        while key and key not in self.lines:
            key = key[:-1]
        return self.lines.get(key, 1)

    def problem(self, key: Key, message: str) -> Problem:
        return Problem(self.file, self.line(key), dotted(key), message)

    def told(self, fault: Problem | tuple[Key, str]) -> Problem:
        """A fault as a toolkit tells it: (key, message) is one of this file, a Problem of another."""
        return fault if isinstance(fault, Problem) else self.problem(*fault)


def dotted(key: Key) -> str:
    """("stages", "train", 0) -> "stages.train[0]"."""
    out = ""
    for part in key:
        out += f"[{part}]" if isinstance(part, int) else (f".{part}" if out else str(part))
    return out


def parse_yaml(text: str, file: str) -> Document:
    """Parse one YAML document whose root is a mapping.

    Raises SpecError for a syntax error, a duplicate key, a root that is not a mapping, an alias cycle, aliases that
    stand for too much, or what is nested too deeply.
    """
    loader = _Loader(text)
    try:
        try:
            _look_at_depth(text, file)
            node = loader.get_single_node()
        except yaml.MarkedYAMLError as exc:
            mark = exc.problem_mark or exc.context_mark
            line = mark.line + 1 if mark else 1
            note = f"{exc.problem or 'cannot be parsed'}"
            raise SpecError(
                [Problem(file, line, "", f"not valid YAML: {note}; check indentation and quotes")]
            ) from None
        except yaml.YAMLError as exc:
            raise SpecError([Problem(file, 1, "", f"not valid YAML: {exc}")]) from None
        if node is None:
            raise SpecError([Problem(file, 1, "", "the file is empty; start from one in specs/pipelines/")])
        if not isinstance(node, yaml.MappingNode):
            raise SpecError([Problem(file, node.start_mark.line + 1, "", "must be a mapping of keys to values")])
        lines: dict[Key, int] = {}
        problems = list(_index(node, (), lines, file, set(), set()))
        if problems:
            raise SpecError(problems)
        try:
            data = loader.construct_document(node)
        except yaml.MarkedYAMLError as exc:
            line = exc.problem_mark.line + 1 if exc.problem_mark else 1
            raise SpecError([Problem(file, line, "", f"{exc.problem}")]) from None
        except ValueError as exc:  # e.g. a date that does not exist
            raise SpecError([Problem(file, 1, "", f"a value cannot be read: {exc}")]) from None
    finally:
        loader.dispose()
    return Document(file, text, data, lines)


def _look_at_depth(text: str, file: str) -> None:
    deep = 0
    for event in yaml.parse(text, _Loader):
        deep += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if deep > _MOST_DEEP:
            raise SpecError([_too_deep(file, event.start_mark.line + 1)])


def _too_deep(file: str, line: int) -> Problem:
    return Problem(file, line, "", f"nested more than {_MOST_DEEP} levels deep; no spec is")


def _index(
    node: Any, at: Key, lines: dict[Key, int], file: str, open_: set[int], seen_nodes: set[int]
) -> Iterator[Problem]:
    """Record the line of each key below a node; yield duplicate keys, keys that are no strings, and cycles. Raises
    SpecError for too many keys below nodes that were seen before, and where aliases lead too deep."""
    seen_nodes.add(id(node))
    if len(at) > _MOST_DEEP:
        raise SpecError([_too_deep(file, node.start_mark.line + 1)])
    if len(lines) > len(seen_nodes) + _MOST_REPEATED:
        told = f"aliases stand for more than {_MOST_REPEATED:,} values from here on; write out what is meant"
        raise SpecError([Problem(file, node.start_mark.line + 1, dotted(at), told)])
    if id(node) in open_:
        yield Problem(file, node.start_mark.line + 1, dotted(at), "an alias that contains itself")
        return
    open_.add(id(node))
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key_node, value in node.value:
            name, line = key_node.value, key_node.start_mark.line + 1
            if not isinstance(name, str):
                yield Problem(file, line, dotted(at), "a key must be a plain word")
                continue
            if name in seen and key_node.tag != "tag:yaml.org,2002:merge":
                yield Problem(file, line, dotted((*at, name)), f"given twice; first on line {seen[name]}")
            seen[name] = line
            lines[(*at, name)] = line
            yield from _index(value, (*at, name), lines, file, open_, seen_nodes)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            lines[(*at, i)] = value.start_mark.line + 1
            yield from _index(value, (*at, i), lines, file, open_, seen_nodes)
    open_.discard(id(node))


def load(model: type[M], doc: Document, data: Any = None) -> M:
    """Validate a document (or `data` in its place) against a model; SpecError lists every fault with its line."""
    data = doc.data if data is None else data
    try:
        return model.model_validate(data)
    except ValidationError as exc:
        errors = exc.errors(include_url=False)
        keys = [_real_key(e["loc"], data, e["type"] == "missing") for e in errors]
        # Where a plain value or a mapping may stand (deepstream: true), a mapping's faults are those of its keys.
        inside = {key[:n] for key in keys for n in range(len(key))}
        raise SpecError(
            [
                _explain(model, doc, key, e)
                for key, e in zip(keys, errors, strict=True)
                if not (key in inside and e["type"].endswith("_type") and isinstance(e["input"], dict))
            ]
        ) from None


def read(model: type[M], path: str | Path) -> M:
    """Read and validate one YAML file. Raises SpecError; a file that cannot be read is a SpecError too."""
    return load(model, read_document(path))


def read_document(path: str | Path, name: str | None = None) -> Document:
    """Parse a YAML file; `name` is how errors call it (default: the path as given)."""
    name = name or str(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        near = near_file(Path(path))
        raise SpecError([Problem(name, 0, "", f"no such file{near}")]) from None
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "not UTF-8 text"
        raise SpecError([Problem(name, 0, "", f"cannot be read: {reason}")]) from None
    return parse_yaml(text, name)


def did_you_mean(word: str, choices: list[str]) -> str:
    """ "; did you mean 'x'?" for the nearest choice, or ""."""
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def near_file(path: Path) -> str:
    """ "; did you mean 'x'?" for the nearest file of the folder, or ""."""
    try:
        names = {p.stem: p.name for p in path.parent.iterdir() if p.suffix == path.suffix}
    except OSError:
        return ""
    # By the stem: with it counted, a common ending makes any two names alike.
    close = difflib.get_close_matches(path.stem, names, n=1)
    return f"; did you mean '{names[close[0]]}'?" if close else ""


def _explain(model: type[BaseModel], doc: Document, key: Key, error: Any) -> Problem:
    kind, value = error["type"], error.get("input")
    if kind == "extra_forbidden":
        for at in _models_at(model, key[:-1]):
            if key[-1] in at.instead:
                return doc.problem(key, f"unknown key; {at.instead[str(key[-1])]}")
        names = field_names(model, key[:-1])
        hint = did_you_mean(str(key[-1]), names) or (f"; known here: {', '.join(names)}" if names else "")
        return doc.problem(key, f"unknown key{hint}")
    if kind == "missing":
        return doc.problem(key, "is missing; add it")
    message = str(error["msg"]).removeprefix("Value error, ")
    if kind in ("literal_error", "enum"):
        expected = error.get("ctx", {}).get("expected", "")
        choices = [c.strip(" '") for c in expected.replace(" or ", ",").split(",")]
        return doc.problem(key, f"{value!r} is not a choice; use {expected}{did_you_mean(str(value), choices)}")
    if kind == "model_type":
        given = "" if isinstance(value, list) else f" (it is {value!r})"
        known = ", ".join(field_names(model, key))
        return doc.problem(key, f"must be a mapping of keys to values{given}; known here: {known}")
    if isinstance(value, dict | list) or kind == "value_error":
        return doc.problem(key, message)
    return doc.problem(key, f"{message} (it is {value!r})")


def _real_key(location: tuple[str | int, ...], data: Any, missing: bool) -> Key:
    """pydantic puts the names of union members and validators into a location; keep the parts that are keys, and the
    last where it is the name of one that is missing."""
    out: Key = ()
    for i, part in enumerate(location):
        last = i == len(location) - 1
        inside = (isinstance(data, dict) and part in data) or (
            isinstance(data, list) and isinstance(part, int) and part < len(data)
        )
        if inside:
            data = data[part]
        if inside or (last and missing):
            out = (*out, part)
    return out


def field_names(model: type[BaseModel], at: Key) -> list[str]:
    """The keys that a model knows at a place, e.g. ("stages",) -> ["train", "prune", ...]; [] where it is open."""
    return sorted({name for m in _models_at(model, at) for name in m.model_fields})


def _models_at(model: type[BaseModel], at: Key) -> list[Any]:
    current: list[Any] = [model]
    for part in at:
        found: list[Any] = []
        for m in current:
            if isinstance(part, str) and part in m.model_fields:
                found += _models(m.model_fields[part].annotation)
            elif isinstance(part, int):
                found.append(m)
        current = found
    return current


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated, list, dict, tuple):
        return [m for a in typing.get_args(annotation) for m in _models(a)]
    return []
