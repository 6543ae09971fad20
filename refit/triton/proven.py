"""Which servers a release has loaded and proven, as its summary says it: that has room for some 90 addresses.

Standard library only: Airflow's workers ask here which servers came while a release was at work.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from typing import Any

SHOWN = 8  # addresses that a summary names; release.json has all
_MARK = 3  # bytes by which each of more is known: room for 500 servers, and a chance of 1 in 33,000 to miss a new one


def told(servers: Sequence[str]) -> list[str] | dict[str, Any]:
    """All addresses, or of many how many there are, the first ones, and a mark of each."""
    if len(servers) <= SHOWN:
        return list(servers)
    marks = base64.b64encode(b"".join(map(_mark, servers))).decode()
    return {"count": len(servers), "first": list(servers[:SHOWN]), "marks": marks}


def unproven(running: Sequence[str], known: object) -> list[str]:
    """Those that run and that a release's summary does not have; none where it says nothing that can be read."""
    if isinstance(known, list):
        return [server for server in running if server not in known]
    if not isinstance(known, dict):
        return []
    marks = base64.b64decode(known["marks"])
    proven = {marks[i : i + _MARK] for i in range(0, len(marks), _MARK)}
    return [server for server in running if _mark(server) not in proven]


def _mark(server: str) -> bytes:
    return hashlib.sha256(server.encode()).digest()[:_MARK]
