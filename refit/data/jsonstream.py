"""JSON files of any size, an entry at a time: what lies in memory is one entry, not the file.

The file is an object of arrays (COCO's `{"images": [...], "annotations": [...]}`) or an array. Entries are decoded by
the standard library; this module finds where each begins, in which line, and stops where the text is no JSON. Bytes
that are not UTF-8 are kept as the file system's names keep them (surrogateescape).
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CHUNK = 2**20
_MAX_ENTRY = 64 * 2**20  # characters; a larger entry is no label
_NEAR_END = 16  # an error so near the end of what was read may be only that (longest literal: -Infinity)
_BLANK = re.compile(r"[ \t\n\r]*")


class NotJson(ValueError):
    """Text that cannot be read on; the message has no file name."""

    def __init__(self, line: int, message: str) -> None:
        self.line = line
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Entry:
    """One value: the top-level key that it stands under ("" in an array), and its place there; -1: it is the value."""

    section: str
    index: int
    line: int
    value: Any

    @property
    def at(self) -> str:
        return f"{self.section}[{self.index}]" if self.index >= 0 else self.section


class JsonFile:
    """Reads one file, once. At the end `size` is the number of bytes, `keys` are the top-level keys, empty ones too."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._decoder = json.JSONDecoder(strict=False)
        self._bytes = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self._text, self._at, self._line, self._ended = "", 0, 1, False
        self.size = 0
        self.keys: set[str] = set()

    def entries(self) -> Iterator[Entry]:
        """Every entry in the file's order. Raises NotJson where it cannot go on, and OSError."""
        with open(self._path, "rb") as f:
            self._file = f
            first = self._peek()
            if first == "[":
                yield from self._array("")
            elif first == "{":
                yield from self._object()
            else:
                what = "it is empty" if not first else "it is UTF-16 text; save it as UTF-8"
                raise self._bad(what if first in ("", "\udcff", "\udcfe") else f"not JSON: it begins with {first!r}")
            if self._peek():
                raise self._bad("there is more after the end of the JSON value")

    def rest(self, pattern: re.Pattern[str], longest: int) -> int:
        """How often `pattern` (at most `longest` characters) occurs in what was not decoded, once `entries` raised."""
        found = 0
        with open(self._path, "rb") as self._file:
            self._file.seek(self.size)
            while True:
                matches = list(pattern.finditer(self._text, self._at))
                found += len(matches)
                if self._ended:
                    return found
                last = matches[-1].end() if matches else self._at
                self._move(max(last, len(self._text) - longest))
                self._fill()

    def _object(self) -> Iterator[Entry]:
        self._move(self._at + 1)
        if self._peek() == "}":
            return self._move(self._at + 1)
        while True:
            if self._peek() != '"':
                raise self._bad("a name in quotes is missing")
            key = str(self._value())
            self.keys.add(key)
            if self._peek() != ":":
                raise self._bad(f"a colon is missing after {key[:40]!r}")
            self._move(self._at + 1)
            if self._peek() == "[":
                yield from self._array(key)
            else:
                line = self._line
                yield Entry(key, -1, line, self._value())
            if self._next("}"):
                return None

    def _array(self, section: str) -> Iterator[Entry]:
        self._move(self._at + 1)
        if self._peek() == "]":
            return self._move(self._at + 1)
        index = 0
        while True:
            self._peek()
            line = self._line
            yield Entry(section, index, line, self._value())
            index += 1
            if self._next("]"):
                return None

    def _next(self, closing: str) -> bool:
        """Go over the comma or the closing bracket; gives whether it was the bracket."""
        found = self._peek()
        if found not in (",", closing):
            raise self._bad(f"a comma or {closing!r} is missing")
        self._move(self._at + 1)
        return found == closing

    def _peek(self) -> str:
        """The next character that is no blank, "" at the end."""
        while True:
            found = _BLANK.match(self._text, self._at)
            self._move(found.end() if found else self._at)
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._fill()

    def _value(self) -> Any:
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as exc:
                cut = exc.pos >= len(self._text) - _NEAR_END or exc.msg.startswith("Unterminated string")
                if not cut or self._ended:
                    line = self._line + self._text.count("\n", self._at, exc.pos)
                    raise NotJson(line, f"not valid JSON: {exc.msg}") from None
            except RecursionError:
                raise self._bad("it is nested too deeply") from None
            except ValueError as exc:  # a number of thousands of digits
                raise self._bad(f"not valid JSON: {str(exc).split(';')[0]}") from None
            else:
                if end < len(self._text) or self._ended:
                    self._move(end)
                    return value
            if len(self._text) - self._at > _MAX_ENTRY:
                raise self._bad(f"an entry of more than {_MAX_ENTRY} characters; labels never need so many")
            self._fill()

    def _fill(self) -> None:
        """Read on: as much again as waits to be decoded, so that a long entry is not tried too often."""
        self._text, self._at = self._text[self._at :], 0
        data = self._file.read(max(_CHUNK, len(self._text)))
        self.size += len(data)
        self._ended = not data
        self._text += self._bytes.decode(data, final=not data)

    def _move(self, to: int) -> None:
        self._line += self._text.count("\n", self._at, to)
        self._at = to

    def _bad(self, message: str) -> NotJson:
        return NotJson(self._line, message)
