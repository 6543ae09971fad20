"""A stage's log in Airflow: each line once, and the end of it whatever a stage writes at once."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from operators.pod_trigger import LOG_BYTES, TAIL_LINES, LogLines

FIRST = datetime.now(UTC) - timedelta(seconds=30)


class Kubelet:
    """A log with time stamps, read as the kubelet reads one (kubelet's ReadLogs: since or tail, then the limit)."""

    def __init__(self) -> None:
        self.lines: list[tuple[datetime, str]] = []

    def write(self, count: int, text: str, at: float) -> None:
        for i in range(count):
            self.lines.append((FIRST + timedelta(seconds=at, microseconds=i), f"{text} {i}"))

    async def read(self, since_seconds: int | None = None, tail_lines: int | None = None) -> bytes:
        since = datetime.now(UTC) - timedelta(seconds=since_seconds or 3600)
        wanted = [line for line in self.lines if line[0] >= since]
        wanted = wanted[-tail_lines:] if tail_lines else wanted
        return "".join(f"{at.isoformat(timespec='microseconds')[:-6]}Z {text}\n" for at, text in wanted).encode()[
            :LOG_BYTES
        ]


def test_a_burst_is_cut_and_what_comes_after_it_is_shown() -> None:
    log, seen = Kubelet(), list[str]()
    shown = LogLines(None, seen.append)
    log.write(3, "10 %\repoch", at=0)
    asyncio.run(shown.look(log.read))
    log.write(5000, "a summary of the model, " + "x" * 100, at=1)
    asyncio.run(shown.look(log.read))
    assert seen[:3] == ["10 %\repoch 0", "10 %\repoch 1", "10 %\repoch 2"]
    cut = next(i for i, line in enumerate(seen) if line.startswith("... lines are left out"))
    assert cut > 1000
    assert [len(seen) - cut - 1, seen[-1].rpartition(" ")[2]] == [TAIL_LINES, "4999"]
    log.write(50, "after it", at=3)
    for _ in range(2):
        asyncio.run(shown.look(log.read))
    assert seen[-50:] == [f"after it {i}" for i in range(50)], "within the seconds in which the burst is asked for"
    assert len(set(seen)) == len(seen), "no line comes twice"
