"""HTML by functions: whatever is not markup already is escaped."""

from __future__ import annotations

from html import escape


class Markup(str):
    """Text that is HTML; made by `tag` and `join` only."""

    __slots__ = ()


_VOID = frozenset({"meta", "link", "input"})


def text(value: object) -> Markup:
    """A value as HTML text. Names come from outside: what cannot be printed, or turns the direction of writing, is
    shown as a replacement character; what is no UTF-8, as an escape."""
    if isinstance(value, Markup):
        return value
    plain = str(value).encode("utf-8", "backslashreplace").decode()
    return Markup(escape("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in plain)))


def join(*parts: object) -> Markup:
    return Markup("".join(map(text, parts)))


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """An element. `class_` is the attribute class, other underscores are hyphens; None leaves an attribute out."""
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    shown = "".join(f' {key}="{text(value)}"' for key, value in given.items())
    return Markup(f"<{name}{shown}>" if name in _VOID else f"<{name}{shown}>{join(*children)}</{name}>")
