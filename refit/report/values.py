"""Values of JSON that may be of any type, as text for people; "" for what is not there."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any


def text_of(value: Any) -> str:
    """Text as it is; other values as JSON; None as ""."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def number(value: Any) -> float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None


def integer(value: Any) -> int | None:
    n = number(value)
    return None if n is None else round(n)


def mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def items(value: Any) -> list[Mapping[str, Any]]:
    """The objects in a list."""
    return [v for v in value if isinstance(v, dict)] if isinstance(value, list) else []


def figure(value: Any, digits: int = 3) -> str:
    n = number(value)
    return "" if n is None else f"{n:.{digits}f}"


def size(value: Any) -> str:
    """1536 -> "1.5 KiB"."""
    n = number(value)
    if n is None:
        return ""
    for unit in ("bytes", "KiB", "MiB"):
        if n < 1024:
            return f"{n:.4g} {unit}"
        n /= 1024
    return f"{n:.4g} GiB"


def clock(value: Any) -> str:
    """9.3 -> "9.3 s", 65 -> "1 min 5 s", 4000 -> "1 h 7 min"."""
    n = number(value)
    if n is None or n < 0:
        return ""
    if n < 60:
        return f"{n:.1f} s"
    minutes, seconds = divmod(round(n), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def when(value: Any) -> str:
    """A moment in ISO 8601 as "2026-11-21 23:24 UTC"."""
    moment = moment_of(value)
    return moment.strftime("%Y-%m-%d %H:%M UTC") if moment else ""


def ago(value: Any, now: datetime | None = None) -> str:
    """How long a moment is past, in its largest unit: "3 days ago"; "" for one to come."""
    moment = moment_of(value)
    seconds = ((now or datetime.now(UTC)) - moment).total_seconds() if moment else -1.0
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            n = int(seconds // length)
            return f"{n} {unit}{'s' if n > 1 else ''} ago"
    return "just now" if seconds >= 0 else ""


def moment_of(value: Any) -> datetime | None:
    """A moment with a time zone; None for anything else."""
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return moment if moment.tzinfo else None


def money(value: Any) -> str:
    """{"amount": 1.5, "currency": "EUR"} -> "1.50 EUR"."""
    amount = number(mapping(value).get("amount"))
    return "" if amount is None else f"{amount:.2f} {text_of(mapping(value).get('currency'))}".rstrip()
