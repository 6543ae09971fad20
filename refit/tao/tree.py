"""A TAO spec as a tree: read, looked up, changed and written, in both of TAO's formats, with the line of each value.

`prototxt` is protobuf's text format (TF1 networks), `yaml` what the other networks read (hydra, OmegaConf). A spec is
parsed without its schema, so that one with unknown keys can still be shown, compared and imported; `refit.tao.schema`
judges names and types.

Paths: `training_config.num_epochs`. A part may choose among repeated fields, list items or the entries of a map: by
number (`data_sources[0]`) or by the entry's key or name (`evaluation_box_config[car]`).
Grammar of the text format: https://protobuf.dev/reference/protobuf/textformat-spec/
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

from refit.specs import Problem, SpecError, parse_yaml

Format = Literal["prototxt", "yaml"]
Plain = None | bool | int | float | str
# As OmegaConf reads YAML (omegaconf/_utils.py, get_yaml_loader): 1e-4 is a number there, and text for PyYAML.
_FLOAT = re.compile(r"^[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9][0-9_]*(?=[eE]))([eE][-+]?[0-9]+)?$")


@dataclass
class Scalar:
    """A value. `word`: written without quotes in a prototxt (an enum's name); `raw`: as it was written."""

    value: Plain
    line: int = 0
    word: bool = False
    raw: str = ""


@dataclass
class Items:
    """A list in brackets."""

    items: list[Node] = field(default_factory=list)
    line: int = 0


@dataclass
class Block:
    """Fields in the order of the file; in a prototxt a name may come several times."""

    fields: list[tuple[str, Node]] = field(default_factory=list)
    line: int = 0

    def named(self, name: str) -> list[Node]:
        return [node for key, node in self.fields if key == name]


Node = Scalar | Items | Block


@dataclass
class Tree:
    """A spec file. `file` is how errors call it."""

    file: str
    form: Format
    root: Block

    # -- looking --

    def nodes(self, path: str) -> list[Node]:
        """Every node at a path; a part without [..] means all of a repeated field."""
        found: list[Node] = [self.root]
        for name, choice in _parts(path):
            below = [n for node in found if isinstance(node, Block) for n in node.named(name)]
            found = below if choice is None else _chosen(below, choice)
        return found

    def values(self, path: str) -> list[Any]:
        """The plain values at a path; a list counts as its items."""
        out: list[Any] = []
        for node in self.nodes(path):
            out.extend([plain(i) for i in node.items] if isinstance(node, Items) else [plain(node)])
        return out

    def value(self, path: str, default: Any = None) -> Any:
        """The one value at a path (a list as a list, a block as a dict); `default` where there is none."""
        found = self.nodes(path)
        return plain(found[0]) if found else default

    def has(self, path: str) -> bool:
        return bool(self.nodes(path))

    def line(self, path: str) -> int:
        """The line of a path, or of its nearest parent that is in the file (1-based)."""
        parts = list(_parts(path))
        while parts:
            found = self.nodes(".".join(f"{n}[{c}]" if c is not None else n for n, c in parts))
            if found and found[0].line:
                return found[0].line
            parts.pop()
        return 1

    def problem(self, path: str, message: str) -> Problem:
        return Problem(self.file, self.line(path), path, message)

    def keys(self, path: str) -> list[str]:
        """The `key` (of a map) or `name` of each entry of a repeated field; the keys of a YAML block."""
        nodes = self.nodes(path)
        if self.form == "yaml":
            return [key for node in nodes if isinstance(node, Block) for key, _ in node.fields]
        return [label for node in nodes if (label := _label(node)) is not None]

    def plain(self) -> dict[str, Any]:
        """The YAML's content."""
        return dict(plain(self.root))

    def leaves(self) -> Iterator[tuple[str, Scalar]]:
        """Every scalar with its path, in the order of the file."""
        yield from _leaves(self.root, "")

    # -- changing --

    def put(self, path: str, value: Any) -> None:
        """Set a value. A mapping becomes a block; a list becomes a YAML list or, in a prototxt, a repeated field.

        Blocks on the way are made. All fields of that name in the block are replaced; an enum stays an enum.
        None takes it out of a prototxt, and is null in YAML. Raises KeyError for a path whose `[choice]` is not there.
        """
        if value is None and self.form == "prototxt":
            self.drop(path)
            return
        *parents, (name, choice) = _parts(path)
        block = self.root
        for parent, pick in parents:
            below = block.named(parent)
            if pick is not None:
                below = _chosen(below, pick)
                if not below:
                    raise KeyError(f"there is no {parent}[{pick}]{_there(block.named(parent))}")
            nodes = [n for n in below if isinstance(n, Block)]
            if not nodes:
                nodes = [Block()]
                block.fields = [(k, n) for k, n in block.fields if k != parent] + [(parent, nodes[0])]
            block = nodes[0]
        old = block.named(name)
        if choice is not None:
            _replace_chosen(old, choice, self._node(value, None), name)
            return
        repeated = self.form == "prototxt" and isinstance(value, list) and not any(isinstance(o, Items) for o in old)
        new = [self._node(v, None) for v in value] if repeated else [self._node(value, old[0] if old else None)]
        at = next((i for i, (k, _) in enumerate(block.fields) if k == name), len(block.fields))
        kept_before = [f for f in block.fields[:at] if f[0] != name]
        kept_after = [f for f in block.fields[at:] if f[0] != name]
        block.fields = [*kept_before, *((name, n) for n in new), *kept_after]

    def drop(self, path: str) -> None:
        """Remove every field at a path, if there is one."""
        *parents, (name, choice) = _parts(path)
        above = ".".join(f"{n}[{c}]" if c is not None else n for n, c in parents)
        for node in self.nodes(above) if above else [self.root]:
            if isinstance(node, Block):
                gone = node.named(name) if choice is None else _chosen(node.named(name), choice)
                node.fields = [(k, n) for k, n in node.fields if not any(n is g for g in gone)]

    def _node(self, value: Any, old: Node | None) -> Node:
        if isinstance(value, Mapping):
            block = Block()
            for key, inner in value.items():
                many = self.form == "prototxt" and isinstance(inner, list)
                block.fields += [(key, self._node(v, None)) for v in (inner if many else [inner])]
            return block
        if isinstance(value, list | tuple):
            return Items([self._node(v, None) for v in value])
        word = isinstance(old, Scalar) and old.word and isinstance(value, str)
        if isinstance(value, Word):
            return Scalar(str(value), word=True)
        return Scalar(value, word=word)

    # -- writing --

    def text(self) -> str:
        """The spec as text in its own format; comments are not kept."""
        if self.form == "prototxt":
            return "".join(f"{line}\n" for line in _print(self.root, 0))
        dumped = yaml.dump(self.plain(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1_000_000)
        return str(dumped)


class Word(str):
    """An enum's name, to be put into a prototxt."""

    __slots__ = ()


def parse(text: str, form: Format, file: str) -> Tree:
    """Read a spec. Raises SpecError with file and line; also where the text is of the other format."""
    if form == "yaml":
        return Tree(file, form, _parse_yaml(text, file))
    return Tree(file, form, _Parser(text, file).parse())


def plain(node: Node) -> Any:
    """A node as plain Python values; of fields with one name in a block the last counts, lists of them stay lists."""
    if isinstance(node, Scalar):
        return node.value
    if isinstance(node, Items):
        return [plain(i) for i in node.items]
    out: dict[str, Any] = {}
    for name, inner in node.fields:
        if name in out and len(node.named(name)) > 1:
            first = node.named(name)[0] is not inner and isinstance(out[name], _Many)
            out[name] = _Many([*out[name], plain(inner)]) if first else _Many([out[name], plain(inner)])
        else:
            out[name] = plain(inner)
    return out


class _Many(list[Any]):
    """Repeated fields under one name."""


def changes(before: Tree, after: Tree) -> list[str]:
    """What differs, a line each: `file:line: path: old -> new`, in the order of the file."""
    old, new = dict(before.leaves()), dict(after.leaves())
    lines = []
    for path, scalar in old.items():
        if path not in new:
            lines.append(f"{before.file}:{scalar.line}: {path}: {shown(scalar)} -> left out")
        elif scalar.value != new[path].value:
            lines.append(f"{before.file}:{scalar.line}: {path}: {shown(scalar)} -> {shown(new[path])}")
    lines += [f"{before.file}: {path}: added: {shown(scalar)}" for path, scalar in new.items() if path not in old]
    return lines


def shown(scalar: Scalar) -> str:
    return _scalar_text(scalar)


# --- paths ------------------------------------------------------------------------------------------------------------

_PART = re.compile(r"([^.\[\]]+)(?:\[([^\]]*)\])?(?:\.|$)")


def _parts(path: str) -> Iterator[tuple[str, str | None]]:
    at = 0
    while at < max(1, len(path)):
        match = _PART.match(path, at)
        if not match:
            raise KeyError(f"{path!r} is no path in a spec")
        yield match[1], match[2]
        at = match.end()


def _items(nodes: list[Node]) -> list[Node]:
    return [i for n in nodes for i in (n.items if isinstance(n, Items) else [n])]


def _chosen(nodes: list[Node], choice: str) -> list[Node]:
    items = _items(nodes)
    if choice.isdigit():
        return items[int(choice) : int(choice) + 1]
    return [n for n in items if _label(n) == choice]


def _replace_chosen(nodes: list[Node], choice: str, new: Node, name: str) -> None:
    """Change one of several nodes in place."""
    for node in _chosen(nodes, choice):
        if isinstance(node, Scalar) and isinstance(new, Scalar):
            node.value, node.raw = new.value, ""
            return
        if isinstance(node, Block) and isinstance(new, Block):
            node.fields = new.fields
            return
        if isinstance(node, Block):
            raise KeyError(f"is a block of {', '.join(key for key, _ in node.fields)}; set one of them")
    raise KeyError(f"there is no {name}[{choice}]{_there(nodes)}; to add one, set {name} to the whole list")


def _there(nodes: list[Node]) -> str:
    labels = [label for node in _items(nodes) if (label := _label(node)) is not None]
    return f"; there is {', '.join(labels)}" if labels else ""


def _label(node: Node) -> str | None:
    """What an entry of a repeated field is called: its `key` (a map's) or `name`."""
    if isinstance(node, Block):
        for name in ("key", "name"):
            for inner in node.named(name):
                if isinstance(inner, Scalar):
                    return str(inner.value)
    return None


def _is_map_entry(node: Node) -> bool:
    """protobuf writes a map as repeated blocks of key and value."""
    return isinstance(node, Block) and {name for name, _ in node.fields} == {"key", "value"}


def _leaves(node: Node, path: str) -> Iterator[tuple[str, Scalar]]:
    if isinstance(node, Scalar):
        yield path, node
    elif isinstance(node, Items):
        for i, item in enumerate(node.items):
            yield from _leaves(item, f"{path}[{i}]")
    else:
        for name in dict.fromkeys(k for k, _ in node.fields):
            below = node.named(name)
            for i, inner in enumerate(below):
                label = _label(inner)
                entry = len(below) > 1 or _is_map_entry(inner)
                choice = f"[{label if label is not None else i}]" if entry else ""
                yield from _leaves(inner, f"{path}.{name}{choice}" if path else f"{name}{choice}")


# --- prototxt ---------------------------------------------------------------------------------------------------------

_TOKEN = re.compile(
    r"(?P<space>[ \t\r\f\v]+|#[^\n]*)|(?P<line>\n)"
    r"|(?P<word>[A-Za-z_][A-Za-z0-9_.]*)"
    r"|(?P<number>-?\s*(?:0[xX][0-9a-fA-F]+|(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?[fF]?|inf\b|nan\b))"
    r"|(?P<string>\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*')"
    r"|(?P<mark>[{}<>\[\]:;,])"
)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "'": "'", "\\": "\\"}


class _Parser:
    def __init__(self, text: str, file: str) -> None:
        self.file = file
        self.tokens = list(self._scan(text))
        self.at = 0

    def _scan(self, text: str) -> Iterator[tuple[str, str, int]]:
        at, line = 0, 1
        while at < len(text):
            match = _TOKEN.match(text, at)
            if not match:
                rest = text[at:].split("\n", 1)[0][:40]
                hint = "; is this YAML?" if rest.startswith("- ") else ""
                raise self._error(line, f"cannot be read as protobuf text at {rest!r}{hint}")
            kind = str(match.lastgroup)
            if kind == "line":
                line += 1
            elif kind != "space":
                yield kind, match.group(), line
            at = match.end()
        yield "end", "", line

    def parse(self) -> Block:
        root = self._block("end", 1)
        if not root.fields:
            raise self._error(1, "the spec is empty")
        return root

    def _block(self, until: str, line: int) -> Block:
        block = Block(line=line)
        while True:
            kind, text, here = self._next()
            if kind == "end" or (kind == "mark" and text in "}>"):
                if (text or "end") != until:
                    what = "ends inside a block; a } is missing" if kind == "end" else f"{text!r} closes nothing"
                    opened = f" (opened on line {line})" if kind == "end" else ""
                    raise self._error(here, what + opened)
                return block
            if kind == "mark" and text in ";,":
                continue
            if kind != "word":
                hint = "; is this YAML?" if text == ":" else ""
                raise self._error(here, f"a field's name is expected, not {text!r}{hint}")
            block.fields.append((text, self._value(text, here)))

    def _value(self, name: str, line: int) -> Node:
        kind, text, here = self._next()
        colon = (kind, text) == ("mark", ":")
        if colon:
            kind, text, here = self._next()
        if (kind, text) in (("mark", "{"), ("mark", "<")):
            return self._block("}" if text == "{" else ">", here)
        if not colon:
            raise self._error(line, f"{name}: a colon and a value, or a block in braces, is expected; is this YAML?")
        if (kind, text) == ("mark", "["):
            return self._list(name, here)
        return self._scalar(name, kind, text, here)

    def _list(self, name: str, line: int) -> Items:
        items = Items(line=line)
        while True:
            kind, text, here = self._next()
            if (kind, text) == ("mark", "]"):
                return items
            if (kind, text) == ("mark", ","):
                continue
            if (kind, text) == ("mark", "{"):
                items.items.append(self._block("}", here))
            else:
                items.items.append(self._scalar(name, kind, text, here))

    def _scalar(self, name: str, kind: str, text: str, line: int) -> Scalar:
        if kind == "string":
            value = _unquote(text)
            while self.tokens[self.at][0] == "string":  # neighbours are one string
                value += _unquote(self._next()[1])
            return Scalar(value, line)
        if kind == "number":
            return Scalar(_number(text), line, raw=re.sub(r"\s", "", text))
        if kind == "word":
            if text in ("true", "True", "t", "false", "False", "f"):
                return Scalar(text[0].lower() == "t", line)
            if text.lower() in ("inf", "infinity", "nan"):
                return Scalar(float(text[:3].lower()), line, raw=text)
            return Scalar(text, line, word=True)
        raise self._error(line, f"{name}: a value is expected, not {text or 'the end of the file'!r}")

    def _next(self) -> tuple[str, str, int]:
        token = self.tokens[self.at]
        self.at = min(self.at + 1, len(self.tokens) - 1)
        return token

    def _error(self, line: int, message: str) -> SpecError:
        return SpecError([Problem(self.file, line, "", f"not valid protobuf text: {message}")])


def _number(text: str) -> int | float:
    text = re.sub(r"\s", "", text)
    if re.fullmatch(r"-?0[xX][0-9a-fA-F]+", text):
        return int(text, 16)
    if re.fullmatch(r"-?0[0-7]+", text):
        return int(text, 8)
    if re.fullmatch(r"-?[0-9]+", text):
        return int(text)
    return float(text.rstrip("fF")) if text.lstrip("-") not in ("inf", "nan") else float(text)


def _unquote(text: str) -> str:
    """The value of a string. Escapes in octal and hex are bytes of UTF-8: so protobuf prints what is not ASCII."""
    value = re.sub(r"\\([0-7]{1,3}|[xX][0-9a-fA-F]{1,2}|.)", _unescape, text[1:-1])
    return value if value.isascii() else value.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")


def _unescape(match: re.Match[str]) -> str:
    code = match[1]
    if code in _ESCAPES or not code[-1].isalnum() or code[0] not in "01234567xX" or code in "xX":
        return _ESCAPES.get(code, match[0])
    byte = int(code[1:], 16) if code[0] in "xX" else int(code, 8) & 0xFF
    return bytes([byte]).decode("ascii", "surrogateescape")


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return f'"{escaped}"'


def _scalar_text(node: Scalar) -> str:
    if node.raw:
        return node.raw
    if isinstance(node.value, bool):
        return "true" if node.value else "false"
    if node.word:
        return str(node.value)
    return _quote(node.value) if isinstance(node.value, str) else str(node.value)


def _print(block: Block, depth: int) -> Iterator[str]:
    pad = "  " * depth
    for name, node in block.fields:
        if isinstance(node, Block):
            yield f"{pad}{name} {{"
            yield from _print(node, depth + 1)
            yield f"{pad}}}"
        elif isinstance(node, Items):
            if all(isinstance(i, Scalar) for i in node.items):
                yield f"{pad}{name}: [{', '.join(_scalar_text(i) for i in node.items if isinstance(i, Scalar))}]"
            else:
                yield from _print(Block([(name, i) for i in node.items]), depth)
        else:
            yield f"{pad}{name}: {_scalar_text(node)}"


# --- YAML -------------------------------------------------------------------------------------------------------------

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_BaseDumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class _Dumper(_BaseDumper):  # type: ignore[misc]
    """Quotes text that OmegaConf would read as a number."""


def _quoted(dumper: Any, value: str) -> Any:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="'" if _FLOAT.match(value) else None)


_Dumper.add_representer(str, _quoted)


def _parse_yaml(text: str, file: str) -> Block:
    try:
        parse_yaml(text, file)  # duplicate keys, syntax, a root that is no mapping
    except SpecError as exc:
        if re.search(r"^\s*\w+\s*\{", text, re.MULTILINE):
            line = exc.problems[0].line
            message = "this is protobuf text, and YAML is expected: is it the spec of another network?"
            raise SpecError([Problem(file, line, "", message)]) from None
        raise
    loader = _Loader(text)
    try:
        block = _yaml_node(loader, loader.get_single_node())
    finally:
        loader.dispose()
    assert isinstance(block, Block)
    return block


def _yaml_node(loader: Any, node: Any) -> Node:
    line = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        loader.flatten_mapping(node)
        fields: list[tuple[str, Node]] = []
        for key, value in node.value:
            inner = _yaml_node(loader, value)
            inner.line = key.start_mark.line + 1
            fields.append((str(key.value), inner))
        return Block(fields, line)
    if isinstance(node, yaml.SequenceNode):
        return Items([_yaml_node(loader, item) for item in node.value], line)
    value = loader.construct_object(node)
    if isinstance(value, str) and not node.style and _FLOAT.match(value):
        value = float(value.replace("_", ""))
    if not isinstance(value, None | bool | int | float | str):
        value = str(node.value)  # a date and the like
    return Scalar(value, line)
