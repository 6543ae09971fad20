"""What requests of a version cost, by Triton's own counters, and when that is too much.

``/v2/models/<model>/versions/<version>/stats`` counts since the version was loaded: a reload begins anew (measured,
2.51.0). A request's time is the server's own: queue, input, inference and output, without the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from refit.pipeline import WatchLines

_NOISE_MILLISECONDS = 1.0
"""A difference below this is no slow-down, whatever the factor: the fastest models answer in less."""


class Traffic(BaseModel):
    """Requests that were answered, those that failed, and the nanoseconds of the answered ones: in all, queued."""

    model_config = ConfigDict(frozen=True)

    requests: int = 0
    failed: int = 0
    nanoseconds: int = 0
    queue_nanoseconds: int = 0

    @staticmethod
    def from_json(stats: Mapping[str, Any]) -> Traffic:
        """One entry of ``model_stats``."""
        counters = stats["inference_stats"]

        def of(name: str, what: str) -> int:
            return int(counters.get(name, {}).get(what, 0))

        return Traffic(
            requests=of("success", "count"),
            failed=of("fail", "count"),
            nanoseconds=of("success", "ns"),
            queue_nanoseconds=of("queue", "ns"),
        )

    def __sub__(self, earlier: Traffic) -> Traffic:
        """What came since; all of it where the counters began anew."""
        if self.requests < earlier.requests or self.failed < earlier.failed:
            return self
        return Traffic(**{name: value - getattr(earlier, name) for name, value in self.model_dump().items()})

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(**{name: value + getattr(other, name) for name, value in self.model_dump().items()})

    @property
    def failed_share(self) -> float:
        return self.failed / max(1, self.requests + self.failed)

    @property
    def milliseconds(self) -> float:
        """The mean of an answered request."""
        return self.nanoseconds / max(1, self.requests) / 1e6

    @property
    def queue_milliseconds(self) -> float:
        return self.queue_nanoseconds / max(1, self.requests) / 1e6

    def sentence(self) -> str:
        return (
            f"{self.requests + self.failed} requests, {self.failed} of them failed, "
            f"{self.milliseconds:.2f} ms each ({self.queue_milliseconds:.2f} of it in the queue)"
        )


def failing(lines: WatchLines, now: Traffic, before: Traffic) -> str:
    """Whether too many requests fail, as a sentence; "" where not.

    Args:
        now: of the version that is watched.
        before: of the version that it replaced; nothing (``Traffic()``) where nobody knows.
    """
    asked = now.requests + now.failed
    if asked < lines.min_requests or now.failed_share <= before.failed_share + lines.max_failed:
        return ""
    return (
        f"{now.failed} of {asked} requests failed ({now.failed_share:.1%}; before the swap "
        f"{before.failed_share:.1%}, and {lines.max_failed:.1%} more are allowed)"
    )


def slower(lines: WatchLines, now: Traffic, before: Traffic) -> str:
    """Whether requests take too long, as a sentence; "" where not, or where there are too few to say. As `failing`."""
    if min(now.requests, before.requests) < lines.min_requests:
        return ""
    if not is_slower(lines, now.milliseconds, before.milliseconds):
        return ""
    return (
        f"a request takes {now.milliseconds:.2f} ms ({now.queue_milliseconds:.2f} of it in the queue), before the "
        f"swap {before.milliseconds:.2f} ms; up to {lines.max_slowdown:g} times that is allowed"
    )


def is_slower(lines: WatchLines, now: float, before: float) -> bool:
    """Two times in milliseconds."""
    return now - before > max(_NOISE_MILLISECONDS, before * (lines.max_slowdown - 1))
