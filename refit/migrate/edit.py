"""A spec file with some of it changed, and the rest as its author wrote it: comments, order, spacing.

The tree (`refit.tao.tree`) decides what the file says; the text is changed on the lines that the tree names, and is
only used if it then says just that. Else the tree is printed, without comments.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from refit.specs import SpecError
from refit.tao import tree as trees
from refit.tao.tree import Block, Items, Scalar, Tree

_VALUE = r"""(?:"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|[^\s#,;{}\[\]]+)"""


@dataclass
class Changes:
    """What is to be changed.

    Attributes:
        drop: path -> why it is left out.
        replace: path of a string -> its new value.
        add: path of a repeated field -> blocks that come before its first.
    """

    drop: dict[str, str] = field(default_factory=dict)
    replace: dict[str, str] = field(default_factory=dict)
    add: dict[str, list[Mapping[str, str]]] = field(default_factory=dict)
    put: dict[str, object] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.drop or self.replace or self.add or self.put)


@dataclass(frozen=True)
class Edited:
    text: str
    kept_comments: bool


def edit(spec: Tree, text: str, changes: Changes) -> Edited:
    """The changed text of a spec; `spec` is changed with it."""
    lines = text.splitlines()
    for path, value in changes.replace.items():
        _replace(lines, spec, path, value)
    for path, why in changes.drop.items():
        _drop(lines, spec, path, why)
    for path, entries in changes.add.items():
        _add(lines, spec, path, entries)
    for path, value in changes.replace.items():
        spec.put(path, value)
    for path in changes.drop:
        spec.drop(path)
    for path, entries in changes.add.items():
        old = spec.nodes(path)
        spec.put(path, [*entries, *(trees.plain(n) for n in old)])
        for new, line in zip(spec.nodes(path), [old[0].line] * len(entries) + [n.line for n in old], strict=True):
            new.line = line
    for path, value_now in changes.put.items():
        spec.put(path, value_now)
    made = "\n".join(lines) + "\n"
    if not changes.put and _says(made, spec):
        return Edited(made, True)
    return Edited(spec.text(), not any(line.lstrip().startswith("#") for line in text.splitlines()))


def _says(text: str, wanted: Tree) -> bool:
    """Whether a text says what a tree holds."""
    try:
        found = trees.parse(text, wanted.form, wanted.file)
    except SpecError:
        return False
    return [(p, s.value) for p, s in found.leaves()] == [(p, s.value) for p, s in wanted.leaves()]


def _replace(lines: list[str], spec: Tree, path: str, value: str) -> None:
    for node in spec.nodes(path):
        for scalar in node.items if isinstance(node, Items) else [node]:
            if isinstance(scalar, Scalar) and scalar.line:
                at = scalar.line - 1
                lines[at] = lines[at].replace(str(scalar.value), value, 1)


def _drop(lines: list[str], spec: Tree, path: str, why: str) -> None:
    name = path.rpartition(".")[2].partition("[")[0]
    for node in spec.nodes(path):
        if isinstance(node, Block) and spec.form == "prototxt":
            _drop_block(lines, node, name, why)
            continue
        if not isinstance(node, Scalar) or not node.line:
            continue
        at = node.line - 1
        rest = re.sub(rf"(?<![\w.]){re.escape(name)}[ \t]*:[ \t]*{_VALUE}[ \t]*[,;]?[ \t]*", "", lines[at], count=1)
        note = f"# {name}: left out by refit import: {why}"
        pad = rest[: len(rest) - len(rest.lstrip())]
        lines[at] = f"{pad}{note}" if not rest.strip() else f"{rest.rstrip()}  {note}" if "#" not in rest else rest


def _drop_block(lines: list[str], block: Block, name: str, why: str) -> None:
    """A block that has its lines for itself."""
    start = block.line - 1
    depth = 0
    for at in range(start, len(lines)):
        code = lines[at].partition("#")[0]
        depth += code.count("{") - code.count("}")
        if depth == 0:
            head = lines[start]
            pad = head[: len(head) - len(head.lstrip())]
            if re.fullmatch(rf"\s*{re.escape(name)}\s*:?\s*\{{.*", head) and code.rstrip().endswith("}"):
                lines[start] = f"{pad}# {name}: left out by refit import: {why}"
                for below in range(start + 1, at + 1):
                    lines[below] = f"{pad}#"
            return


def _add(lines: list[str], spec: Tree, path: str, entries: list[Mapping[str, str]]) -> None:
    name = path.rpartition(".")[2]
    nodes = spec.nodes(path)
    at = nodes[0].line - 1 if nodes else -1
    if at < 0 or spec.form != "prototxt" or not re.match(rf"\s*{name}\b", lines[at]):
        return
    pad = lines[at][: len(lines[at]) - len(lines[at].lstrip())]
    made = [f"{pad}{name} {{ " + " ".join(f'{k}: "{v}"' for k, v in entry.items()) + " }" for entry in entries]
    lines[at] = "\n".join([*made, lines[at]])
