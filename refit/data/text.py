"""Small helpers that every label reader needs: text from bytes, numbers from text."""

from __future__ import annotations

import json
import math
from typing import Any

MAX_LABEL_BYTES = 64 * 2**20
MAX_LIST_BYTES = 2 * 2**30  # of one file with the labels of all images


class NotText(ValueError):
    """A file that is no UTF-8 text; the message says what it is."""


def decode(data: bytes, most: int = MAX_LABEL_BYTES) -> str:
    """UTF-8 text of at most `most` bytes, a byte order mark left off. Raises NotText for UTF-16, other encodings, and
    binary data."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise NotText("it is UTF-16 text; save it as UTF-8")
    if len(data) > most:
        what = "labels of one image never need more than" if most == MAX_LABEL_BYTES else "the most that is read is"
        raise NotText(f"it has {len(data)} bytes; {what} {most}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise NotText(f"byte {exc.start} is not UTF-8; save it as UTF-8") from None
    if "\0" in text:
        raise NotText(f"it holds zero bytes, the first at {text.index(chr(0))}: it is no text")
    return text


def number(word: str) -> float | None:
    """A plain decimal number, or None. NaN and infinities are numbers here; Python's 1_000 and other digits are not."""
    if "_" in word or not word.isascii():
        return None
    try:
        return float(word)
    except ValueError:
        return None


def finite(values: tuple[float, ...]) -> bool:
    return all(map(math.isfinite, values))


def class_name(value: object) -> str:
    """A class's name on one line with single blanks; "" for what is none, or holds what no file or terminal shows."""
    name = " ".join(value.split()) if isinstance(value, str) else ""
    return name if name.isprintable() else ""


def plain(value: float) -> str:
    """The shortest text that is read as the same number: 12 and 12.5, not 12.0 and 12.50."""
    return str(int(value)) if value == int(value) else repr(float(value))


def parse_json(data: bytes, most: int = MAX_LABEL_BYTES) -> Any:
    """The value in a JSON file of at most `most` bytes; NaN and infinities are numbers here. Raises NotText."""
    try:
        return json.loads(decode(data, most))
    except json.JSONDecodeError as exc:
        raise NotText(f"not valid JSON: {exc.msg} in line {exc.lineno}, column {exc.colno}") from None
    except RecursionError:
        raise NotText("not valid JSON of labels: it is nested too deep") from None
    except NotText:
        raise
    except ValueError as exc:  # a number of more digits than Python takes
        raise NotText(f"not valid JSON of labels: {exc}") from None
