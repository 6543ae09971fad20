"""`label_map.pbtxt`: the class names of TensorFlow's object detection, with their numbers, which begin at 1.

    item {
      id: 1
      name: "car"
    }

It is protobuf text; 0 is the background and no item's number. Source: object_detection/protos/
string_int_label_map.proto and utils/label_map_util.py in tensorflow/models. Drip calls the same file class_map.pbtxt.
"""

from __future__ import annotations

import math
import re
from collections.abc import Generator, Mapping, Sequence

from refit.data.faults import Fault, fault
from refit.data.formats.base import Changed, Names, read_whole
from refit.data.text import NotText, class_name, decode
from refit.data.tree import Tree
from refit.specs import SpecError
from refit.tao import tree as prototxt

_FILE = re.compile(r"(?:^|/)[^/]*map[^/]*\.pbtxt$", re.IGNORECASE)


def files(tree: Tree) -> list[str]:
    """The label maps of a data set, by their names."""
    return [path for path in tree.files.ending(".pbtxt") if _FILE.search(path)]


def read(tree: Tree) -> tuple[dict[int, str], list[Fault]]:
    """The class name of each number, of all label maps in a data set; and what is wrong with them. Raises Changed."""
    names: dict[int, str] = {}
    faults: list[Fault] = []
    for path in files(tree):
        try:
            found, wrong = parse(read_whole(tree, path), path)
        except Changed:
            raise
        except OSError as exc:
            found, wrong = {}, [fault("label_unreadable", path, f"cannot be opened: {exc.strerror}")]
        faults += wrong
        for number, name in found.items():
            if names.setdefault(number, name) != name:
                message = f"item {number} is {name!r} here, and {names[number]!r} in another label map"
                faults.append(fault("label_unreadable", path, message, value=name))
    return names, faults


def told(tree: Tree) -> Generator[Fault | Names, None, dict[int, str]]:
    """Yields what a reader says of its label maps: what is wrong, then the classes in the order of their numbers.
    Returns the class name of each number."""
    names, faults = read(tree)
    yield from faults
    if names:
        yield Names(tuple(name for _, name in sorted(names.items())))
    return names


def parse(data: bytes, file: str) -> tuple[dict[int, str], list[Fault]]:
    """The class name of each number, and what is wrong; `file` is its name in faults."""
    names: dict[int, str] = {}
    faults: list[Fault] = []

    def wrong(message: str, line: int = 0) -> None:
        faults.append(fault("label_unreadable", file, message, line=line))

    try:
        root = prototxt.parse(decode(data), "prototxt", file).root
    except NotText as exc:
        wrong(str(exc))
        return names, faults
    except SpecError as exc:
        wrong(exc.problems[0].message, exc.problems[0].line)
        return names, faults
    except (RecursionError, ValueError) as exc:  # blocks in blocks in blocks, a number of 5,000 digits
        wrong(f"no label map: {type(exc).__name__}")
        return names, faults
    for key, item in root.fields:
        if key != "item" or not isinstance(item, prototxt.Block):
            wrong(f"an item {{ id: 1 name: ... }} is expected, not {key}", item.line)
            continue
        number, name = (_value(item, n) for n in ("id", "name"))
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            wrong(f"an item's id is a whole number from 1 on, not {number!r}", item.line)
        elif not class_name(name):
            wrong(f"item {number} has no name", item.line)
        elif names.setdefault(number, class_name(name)) != class_name(name):
            wrong(f"item {number} is {names[number]!r} and {name!r}", item.line)
    return names, faults


def name_of(names: Mapping[int, str], number: float) -> str:
    """The class of a number, "" where no label map names it."""
    return names.get(int(number), "") if math.isfinite(number) else ""


def text(classes: Sequence[str]) -> str:
    """The label map of these classes, numbered from 1 in their order."""
    items: list[tuple[str, prototxt.Node]] = [
        ("item", prototxt.Block([("id", prototxt.Scalar(i)), ("name", prototxt.Scalar(name))]))
        for i, name in enumerate(classes, 1)
    ]
    return prototxt.Tree("label_map.pbtxt", "prototxt", prototxt.Block(items)).text()


def _value(item: prototxt.Block, name: str) -> object:
    found = item.named(name)
    return found[0].value if found and isinstance(found[0], prototxt.Scalar) else None
