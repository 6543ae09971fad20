"""A schema as types, and the judging of a spec's tree by them; one form for NVIDIA's protos and its dataclasses.

Every fault of a spec is found in one pass, each with the line on which it was written. What a scalar may be differs
between the two formats: protobuf's text format is strict, OmegaConf converts ("4" is a whole number there).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from refit.specs import Problem, did_you_mean
from refit.tao.tree import Block, Items, Node, Plain, Scalar, Tree, plain

Kind = Literal["int", "float", "bool", "str", "enum", "any"]
MISSING = "???"  # OmegaConf's mark for a value that must be given


@dataclass(frozen=True)
class Leaf:
    """A scalar. `default` is always allowed: some of NVIDIA's are outside of what it lists as choices.

    An enum's `choices` are its names; protobuf takes its `numbers` too.
    """

    kind: Kind
    optional: bool = False
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()
    pattern: str = ""
    default: Plain = None


@dataclass(frozen=True)
class ListOf:
    """A list; in a prototxt a repeated field."""

    item: Type
    optional: bool = False


@dataclass(frozen=True)
class MapOf:
    """Keys of the user's choice. `loose`: OmegaConf takes lists and mappings where the schema says scalars."""

    value: Type
    optional: bool = False
    loose: bool = False


@dataclass(frozen=True)
class Record:
    """A block with known fields, which are read when they are asked for."""

    build: Callable[[], Mapping[str, Field]]
    optional: bool = False

    @cached_property
    def fields(self) -> Mapping[str, Field]:
        return self.build()


Type = Leaf | ListOf | MapOf | Record
ANYTHING = Leaf("any", optional=True)


@dataclass(frozen=True)
class Field:
    """`required`: without a default; `oneof`: at most one field of that group may be given."""

    type: Type
    required: bool = False
    oneof: str = ""


def judge(root: Record, tree: Tree, unread: Collection[str] = ()) -> list[Problem]:
    """Every fault that the schema finds in a spec, in the order of the file.

    `unread`: blocks whose values nobody reads; their keys and types must still be right, limits and choices need not.
    """
    found: dict[tuple[int, str, str], Problem] = {}
    for problem in _Judge(root, tree, unread).record(root, tree.root, "", 1):
        # One fault in each item of a line's list is told once.
        found.setdefault((problem.line, problem.message, re.sub(r"\[\d+\]", "", problem.key)), problem)
    return sorted(found.values(), key=lambda p: p.line)


def missing(record: Record, nodes: list[Node], path: str, line: int, tree: Tree) -> Iterator[Problem]:
    """Required fields below a record that are not given; a block that is not there counts as an empty one."""
    blocks = [n for n in nodes if isinstance(n, Block)]
    for name, field in record.fields.items():
        below = [n for b in blocks for n in b.named(name)]
        here = f"{path}.{name}"
        at = below[0].line if below and below[0].line else line
        if field.required and (not below or is_missing(below[0])):
            yield Problem(tree.file, at, here, "must be given; the schema has no default for it")
        elif isinstance(field.type, Record) and (below or not field.type.optional):
            yield from missing(field.type, below, here, at, tree)


def is_missing(node: Node) -> bool:
    return isinstance(node, Scalar) and node.value == MISSING


class _Judge:
    def __init__(self, root: Record, tree: Tree, unread: Collection[str]) -> None:
        self.root, self.tree, self.unread = root, tree, unread
        self.prototxt = tree.form == "prototxt"

    def record(self, record: Record, block: Block, path: str, line: int) -> Iterator[Problem]:
        chosen: dict[str, str] = {}
        for name in dict.fromkeys(key for key, _ in block.fields):
            nodes = block.named(name)
            here = f"{path}.{name}" if path else name
            field = record.fields.get(name)
            if field is None:
                yield from (self._problem(n, line, here, self._unknown(name, record)) for n in nodes)
                continue
            if field.oneof:
                first = chosen.setdefault(field.oneof, name)
                if first != name:
                    message = f"only one of {first} and {name} may be given; TAO takes the last one without a word"
                    yield self._problem(nodes[0], line, here, message)
            yield from (
                self._repeated(field.type, nodes, here, line)
                if self.prototxt
                else self.node(field.type, nodes[0], here, line)
            )

    def _repeated(self, kind: Type, nodes: list[Node], path: str, line: int) -> Iterator[Problem]:
        """The fields of one name in a block of a prototxt."""
        if isinstance(kind, ListOf):
            items = [i for n in nodes for i in (n.items if isinstance(n, Items) else [n])]
            for i, item in enumerate(items):
                yield from self.node(kind.item, item, f"{path}[{i}]" if len(items) > 1 else path, line)
        elif isinstance(kind, MapOf):
            yield from self._entries(kind, nodes, path, line)
        else:
            for i, node in enumerate(nodes):
                yield from self._twice(nodes[0], node, path, line) if i else ()
                yield from self.node(kind, node, path, line)

    def _twice(self, first: Node, node: Node, path: str, line: int) -> Iterator[Problem]:
        """A value given twice. TAO takes it (text_format.Merge), so the same one again does no harm."""
        if plain(first) != plain(node):
            outcome = "merges the two" if isinstance(node, Block) else "takes the last one"
            before = f"on line {first.line} too" if first.line else "before"
            yield self._problem(node, line, path, f"given {before}, and not the same; TAO {outcome} without a word")

    def _entries(self, kind: MapOf, nodes: list[Node], path: str, line: int) -> Iterator[Problem]:
        """A map of a prototxt: repeated blocks of key and value."""
        entry = Record(lambda: {"key": Field(Leaf("str")), "value": Field(kind.value)})
        seen: dict[Plain, Node] = {}
        for i, node in enumerate(nodes):
            if not isinstance(node, Block):
                yield self._problem(node, line, path, "each entry is a block: { key: ... value: ... }")
                continue
            keys = [k.value for k in node.named("key") if isinstance(k, Scalar)]
            here = f"{path}[{keys[0] if keys else i}]"
            if not node.named("key"):
                yield self._problem(node, line, here, "the entry has no key")
            elif keys and keys[0] in seen:
                yield from self._twice(seen[keys[0]], node, here, line)
            seen.update({key: node for key in keys if key not in seen})
            yield from self.record(entry, node, here, node.line or line)

    def node(self, kind: Type, node: Node, path: str, line: int) -> Iterator[Problem]:
        line = node.line or line
        if isinstance(node, Scalar) and not self.prototxt:
            if is_missing(node) or (isinstance(node.value, str) and "${" in node.value):
                return  # a gap, or hydra's reference to another key; both are looked at elsewhere
            if node.value is None:
                if not kind.optional:
                    yield self._problem(node, line, path, "has no value; give one, or leave the key out")
                return
        if isinstance(kind, Leaf):
            yield from self._leaf(kind, node, path, line)
        elif isinstance(kind, Record):
            if isinstance(node, Block):
                yield from self.record(kind, node, path, line)
            else:
                yield self._problem(node, line, path, f"must be a block of keys{_near(kind)}, not {_what(node)}")
        elif isinstance(kind, MapOf):
            if not isinstance(node, Block):
                yield self._problem(node, line, path, f"must be a mapping of keys to values, not {_what(node)}")
                return
            for name, inner in node.fields:
                if not (kind.loose and isinstance(inner, Block | Items)):
                    yield from self.node(kind.value, inner, f"{path}.{name}", line)
        elif isinstance(node, Items):
            for i, item in enumerate(node.items):
                # OmegaConf looks at no list in a list; rtdetr's multi_scales are pairs where the schema has numbers.
                pairs = isinstance(item, Items) and isinstance(kind.item, Leaf)
                yield from self.node(kind if pairs else kind.item, item, f"{path}[{i}]", line)
        else:
            yield self._problem(node, line, path, f"must be a list, not {_what(node)}")

    def _leaf(self, leaf: Leaf, node: Node, path: str, line: int) -> Iterator[Problem]:
        if leaf.kind == "any":
            return
        if not isinstance(node, Scalar):
            yield self._problem(node, line, path, f"must be {_KINDS[leaf.kind]}, not {_what(node)}")
            return
        value = _strict(leaf, node) if self.prototxt else _converted(leaf, node.value)
        shown = node.raw or (node.value if node.word else repr(node.value))
        if value is None:
            wanted = f"one of {', '.join(leaf.choices)}" if leaf.kind == "enum" else _KINDS[leaf.kind]
            hint = did_you_mean(str(node.value), list(leaf.choices))
            if leaf.kind == "str":
                wanted += ", in quotes"
            elif node.value in leaf.choices:
                wanted, hint = f"{wanted}, without quotes", ""
            yield self._problem(node, line, path, f"must be {wanted}, not {shown}{hint}")
        elif value == leaf.default or re.split(r"[.\[]", path, maxsplit=1)[0] in self.unread:
            return
        elif leaf.choices and leaf.kind != "enum" and str(value) not in leaf.choices:
            hint = did_you_mean(str(value), list(leaf.choices))
            yield self._problem(node, line, path, f"{shown} is not a choice; use {', '.join(leaf.choices)}{hint}")
        elif leaf.pattern and not re.search(leaf.pattern, str(value)):
            yield self._problem(node, line, path, f"{shown} does not match {leaf.pattern}")
        elif isinstance(value, int | float) and not leaf.low <= value <= leaf.high:
            if self.prototxt and value in (math.inf, -math.inf):
                return  # written as inf
            yield self._problem(node, line, path, f"must be {_range(leaf)}, it is {shown}")

    def _unknown(self, name: str, record: Record) -> str:
        places = dict.fromkeys(p.rpartition(".")[0] or "the top level" for p in _paths(self.root, "", name))
        elsewhere = f"it is a key of {' and '.join(list(places)[:3])}"
        if hint := did_you_mean(name, list(record.fields)):
            return f"unknown key{hint}{f' ({elsewhere})' if places else ''}"
        return f"unknown key; {elsewhere if places else 'known here: ' + ', '.join(sorted(record.fields))}"

    def _problem(self, node: Node, line: int, path: str, message: str) -> Problem:
        return Problem(self.tree.file, node.line or line, path, message)


_KINDS: dict[Kind, str] = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "enum": "a choice",
}


def _strict(leaf: Leaf, node: Scalar) -> Plain:
    """The value as protobuf's text format takes it; None where it does not."""
    value = node.value
    if leaf.kind == "bool":
        return value if isinstance(value, bool) else {"0": False, "1": True}.get(node.raw)
    if leaf.kind == "enum":
        number = isinstance(value, int) and not isinstance(value, bool) and value in leaf.numbers
        return value if number or (node.word and value in leaf.choices) else None
    if leaf.kind == "str":
        return value if isinstance(value, str) and not node.word else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    wrong = isinstance(value, float) if leaf.kind == "int" else "x" in node.raw.lower()  # hexadecimal
    return None if wrong else value


def _converted(leaf: Leaf, value: Plain) -> Plain:
    """The value as OmegaConf converts it (omegaconf/nodes.py); None where it refuses."""
    if leaf.kind in ("str", "enum"):
        return value if isinstance(value, str) else str(value)
    if leaf.kind == "bool":
        word = value.lower() if isinstance(value, str) else None
        if word in ("yes", "y", "on", "true", "no", "n", "off", "false"):
            return word in ("yes", "y", "on", "true")
        number = None if isinstance(value, float) else _number(int, value)
        return None if number is None else bool(number)
    if isinstance(value, bool) or (leaf.kind == "int" and isinstance(value, float)):
        return None
    return _number(int if leaf.kind == "int" else float, value)


def _number(convert: Callable[[str | int | float], int | float], value: Plain) -> int | float | None:
    try:
        return None if value is None else convert(value)
    except (ValueError, OverflowError):
        return None


def _range(leaf: Leaf) -> str:
    low, high = (int(x) if abs(x) < 1e30 and x == int(x) else x for x in (leaf.low, leaf.high))
    if math.isinf(leaf.high):
        return f"at least {low}"
    return f"at most {high}" if math.isinf(leaf.low) else f"between {low} and {high}"


def _what(node: Node) -> str:
    if isinstance(node, Items):
        return "a list"
    return "a block" if isinstance(node, Block) else f"{node.value!r}"


def _near(record: Record) -> str:
    names = list(record.fields)
    return f" ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"


def _paths(kind: Type, path: str, name: str) -> Iterator[str]:
    """The path of each field of a name below a type."""
    if isinstance(kind, ListOf):
        yield from _paths(kind.item, path, name)
    elif isinstance(kind, MapOf):
        yield from _paths(kind.value, path, name)
    elif isinstance(kind, Record):
        for key, field in kind.fields.items():
            here = f"{path}.{key}" if path else key
            if key == name:
                yield here
            yield from _paths(field.type, here, name)


def bounded(leaf: Leaf, low: object, high: object) -> Leaf:
    """A leaf with NVIDIA's limits, which are numbers, text ("inf") or empty."""
    return replace(leaf, low=_limit(low, -math.inf), high=_limit(high, math.inf))


def _limit(value: object, otherwise: float) -> float:
    try:
        return float(str(value))
    except ValueError:
        return otherwise
