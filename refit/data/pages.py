"""The table of docs/data/checks.md, made from `refit.data.codes`: `python -m refit.data.pages`.

The page is text by hand around the part between `<!-- made: codes -->` and `<!-- end -->`, which is written here.
tests/data/test_codes.py says when it is stale.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from refit.data.codes import CODES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "data" / "checks.md"
_PART = re.compile(r"(<!-- made: codes -->\n).*?(<!-- end -->)", re.DOTALL)


def table() -> Iterator[str]:
    yield "| check | severity | what to do |"
    yield "|---|---|---|"
    for name, code in CODES.items():
        yield f"| `{name}` | {code.severity}{', fixed' * code.fixed} | {code.advice} |"


def filled(text: str) -> str:
    """The page with its table as it should be."""
    return _PART.sub(lambda m: m[1] + "".join(f"{line}\n" for line in table()) + m[2], text)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
