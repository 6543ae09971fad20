"""Pascal VOC's annotations: an XML file an image.

The devkit counts pixels from 1, most of today's tools from 0; the values are taken as edges as they are, which is at
most one pixel off and keeps round trips exact. Written are JPEGImages/, Annotations/ and ImageSets/Main/<part>.txt;
truncated and occluded are flags here.

XML from outside is hostile until shown otherwise: entities, the way to make a small file explode, are refused, nesting
is limited, and nothing external is ever fetched.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from xml.parsers import expat
from xml.sax.saxutils import escape

from refit.data.faults import fault
from refit.data.formats.base import Record, check_stems, part_lines
from refit.data.formats.paired import PairedReader
from refit.data.model import Box, Labelled, Labels
from refit.data.text import MAX_LABEL_BYTES, finite, number, plain

SUFFIX = ".xml"
_SIDES = ("xmin", "ymin", "xmax", "ymax")
_MAX_DEPTH = 64
_OBJECT = re.compile(rb"<object[\s>/]")


class NotXml(ValueError):
    """A file that cannot be parsed; the message has no file name."""

    def __init__(self, line: int, message: str) -> None:
        self.line = line
        super().__init__(message)


@dataclass(slots=True)
class _Node:
    tag: str
    line: int
    text: str = ""
    children: list[_Node] = field(default_factory=list)

    def child(self, tag: str) -> _Node | None:
        return next((c for c in self.children if c.tag == tag), None)

    def word(self, tag: str) -> str:
        """A child's text without blanks around it, or ""."""
        found = self.child(tag)
        return found.text.strip() if found else ""


def parse(data: bytes, file: str) -> Labels:
    """The objects of an annotation; `file` is its name in faults.

    Every <object> counts, wherever it stands; what is in one that cannot be used is reported with its line.
    """
    try:
        nodes, size = _read(data)
    except NotXml as exc:
        lost = len(_OBJECT.findall(data))
        return Labels(lost, faults=[fault("label_unreadable", file, str(exc), line=exc.line, objects=lost)])
    labels = Labels(len(nodes))
    labels.size = _size(size)
    for node in nodes:
        _object(node, file, labels)
    return labels


def _object(node: _Node, file: str, labels: Labels) -> None:
    def lost(code: str, message: str, value: str = "", line: int = 0) -> None:
        labels.faults.append(fault(code, file, message, line=line or node.line, value=value, objects=1))

    name = " ".join(node.word("name").split())
    if not name:
        return lost("no_class", "an object without a name")
    boxes = [c for c in node.children if c.tag == "bndbox"]
    if len(boxes) != 1:
        return lost("no_box", f"an object with {len(boxes) or 'no'} bndbox", name)
    words = [boxes[0].word(side) for side in _SIDES]
    shown = f"{name} {' '.join(w or '-' for w in words)}"
    for side, word in zip(_SIDES, words, strict=True):
        if not word:
            return lost("no_box", f"a bndbox without {side}", shown, boxes[0].line)
        if number(word) is None:
            return lost("not_a_number", f"{side} is {word[:40]!r}, which is no number", shown, boxes[0].line)
    x1, y1, x2, y2 = (number(word) or 0.0 for word in words)
    if not finite((x1, y1, x2, y2)):
        return lost("not_finite", f"the box {' '.join(words)} is not finite", shown, boxes[0].line)
    truncated = number(node.word("truncated"))
    labels.objects.append(
        Labelled(
            boxes[0].line,
            name,
            x1,
            y1,
            x2,
            y2,
            difficult=_flag(node.word("difficult")),
            truncated=truncated if truncated is not None and 0 <= truncated <= 1 else None,
            occluded=int(_flag(node.word("occluded"))) if node.child("occluded") else None,
        )
    )
    return None


def _flag(word: str) -> bool:
    return word.lower() in ("1", "true", "yes")


def _size(node: _Node | None) -> tuple[int, int] | None:
    """Width and height as the annotation says; tools that do not know them write nothing or 0."""
    if node is None:
        return None
    width, height = number(node.word("width")), number(node.word("height"))
    return (int(width), int(height)) if width and height and finite((width, height)) else None


def _read(data: bytes) -> tuple[list[_Node], _Node | None]:
    """All <object> elements, and the <size> of the root. Raises NotXml."""
    if len(data) > MAX_LABEL_BYTES:
        raise NotXml(0, f"it has {len(data)} bytes; labels of one image never need more than {MAX_LABEL_BYTES}")
    parser = expat.ParserCreate()
    parser.buffer_text = True
    root = _Node("", 0)
    stack, objects = [root], []

    def start(tag: str, _: dict[str, str]) -> None:
        if len(stack) > _MAX_DEPTH:
            raise NotXml(parser.CurrentLineNumber, f"elements are nested deeper than {_MAX_DEPTH}")
        node = _Node(tag, parser.CurrentLineNumber)
        stack[-1].children.append(node)
        stack.append(node)
        if tag == "object":
            objects.append(node)

    def end(_: str) -> None:
        stack.pop()

    def text(value: str) -> None:
        stack[-1].text += value

    def entity(*_: Any) -> None:
        raise NotXml(parser.CurrentLineNumber, "it declares XML entities, which labels never need: refused")

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = text
    parser.EntityDeclHandler = entity
    try:
        parser.Parse(data, True)
    except expat.ExpatError as exc:
        raise NotXml(exc.lineno, f"not valid XML: {expat.ErrorString(exc.code)} in column {exc.offset + 1}") from None
    except (ValueError, LookupError) as exc:  # an encoding that Python does not know
        if isinstance(exc, NotXml):
            raise
        raise NotXml(1, f"not valid XML: {exc}") from None
    return objects, root.children[0].child("size")


READER = PairedReader("voc", SUFFIX, ("JPEGImages", "images"), ("Annotations", "annotations"), parse)


# ---- written


class VocWriter:
    name = "voc"
    image_dir = "JPEGImages"

    def write(
        self, out: Path, records: Iterable[Record], classes: Sequence[str], image: Callable[[Record], bytes]
    ) -> Counter[str]:
        records = list(records)
        check_stems(records, "VOC")
        for r in records:
            path = out / "Annotations" / PurePosixPath(r.name).with_suffix(SUFFIX)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_document(r), encoding="utf-8")
        for part, names in part_lines(records, lambda name: str(PurePosixPath(name).with_suffix(""))).items():
            folder = out / "ImageSets" / "Main"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{part}.txt").write_text(names, encoding="utf-8")
        boxes = [o for r in records for o in r.objects]
        return +Counter(
            truncated=sum(o.truncated not in (None, 0, 1) for o in boxes),
            occluded=sum(o.occluded not in (None, 0, 1) for o in boxes),
        )


def _document(r: Record) -> str:
    size = f"\t<size>\n\t\t<width>{r.width}</width>\n\t\t<height>{r.height}</height>\n\t</size>\n"
    name = escape(PurePosixPath(r.name).name)
    objects = "".join(map(_element, r.objects))
    return f"<annotation>\n\t<filename>{name}</filename>\n{size}{objects}</annotation>\n"


def _element(o: Box) -> str:
    flags = {"truncated": o.truncated, "occluded": o.occluded, "difficult": o.difficult or None}
    told = "".join(f"\t\t<{tag}>{int(value > 0)}</{tag}>\n" for tag, value in flags.items() if value is not None)
    sides = zip(_SIDES, (o.x1, o.y1, o.x2, o.y2), strict=True)
    box = "".join(f"\t\t\t<{tag}>{plain(value)}</{tag}>\n" for tag, value in sides)
    return f"\t<object>\n\t\t<name>{escape(o.cls)}</name>\n{told}\t\t<bndbox>\n{box}\t\t</bndbox>\n\t</object>\n"


WRITER = VocWriter()
