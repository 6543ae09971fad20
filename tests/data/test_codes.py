"""The list of checks: the page that shows it is current, and each of them is used."""

from __future__ import annotations

import re
from pathlib import Path

from refit.data import pages
from refit.data.codes import CODES

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_current() -> None:
    text = pages.PAGE.read_text(encoding="utf-8")
    assert "<!-- made: codes -->" in text
    assert pages.filled(text) == text, "run: PYTHONPATH=. python -m refit.data.pages (tools environment)"


def test_each_code_is_found_by_something() -> None:
    sources = [p for p in (ROOT / "refit" / "data").rglob("*.py") if p.name != "codes.py"]
    sources.append(ROOT / "refit" / "cpu" / "augment.py")
    named = set(re.findall(r'"([a-z_]+)"', "\n".join(p.read_text(encoding="utf-8") for p in sources)))
    assert set(CODES) - named == set()
