"""Text for a person at a terminal."""

from __future__ import annotations

from collections.abc import Iterable


def show(lines: Iterable[str]) -> None:
    """Print lines; a file name may hold what a terminal cannot show, or would obey."""
    text = "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines)
    print(text.encode("utf-8", "backslashreplace").decode())
