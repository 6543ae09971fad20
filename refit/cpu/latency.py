"""Is one model faster than another on this machine, and how sure is that?

Both run in turns, and which goes first changes from turn to turn; the figure is the median of the ratios of the turns.
What else runs on the machine falls on both halves of a turn alike, and a turn that was interrupted is one ratio of
many. The bounds are order statistics: they hold for any distribution of the times (David & Nagaraja, "Order
Statistics", 7.1: the rank of the median's bound is n/2 - z/2 * sqrt(n)).
"""

from __future__ import annotations

import math
import os
import platform
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refit.cpu.models import Predictor

BATCHES = (1, 8)
_TURNS = 150
_LEAST = 9  # turns without which there are no bounds
_SECONDS = 0.8  # for one batch size; a slow model gets fewer turns
_Z = 2.58  # 99 %


@dataclass(frozen=True)
class Speed:
    """Milliseconds of a batch by each model (medians), how many times as fast the second is, and between which bounds
    that lies at 99 %."""

    batch: int
    before_ms: float
    after_ms: float
    speedup: float
    low: float
    high: float
    turns: int

    @property
    def images_per_second(self) -> float:
        return round(1000 * self.batch / self.after_ms, 1)


def compare(before: Predictor, after: Predictor, batch: int) -> Speed:
    """Time two models with one input size against each other, on made images."""
    entry = before.info.input
    images = np.random.default_rng(0).random((batch, entry.channels, entry.height, entry.width)).astype(np.float32)

    def milliseconds(model: Predictor) -> float:
        begin = time.perf_counter()
        model(images)
        return 1000 * (time.perf_counter() - begin)

    for model in (before, after, before, after):  # the first runs make what later ones reuse
        milliseconds(model)
    times: list[tuple[float, float]] = []
    end = time.perf_counter() + _SECONDS
    while len(times) < _LEAST or (len(times) < _TURNS and time.perf_counter() < end):
        if len(times) % 2:
            second = milliseconds(after)
            times.append((milliseconds(before), second))
        else:
            first = milliseconds(before)
            times.append((first, milliseconds(after)))
    ratios = sorted(first / second for first, second in times)
    low = max(0, math.floor(len(ratios) / 2 - _Z / 2 * math.sqrt(len(ratios))))
    return Speed(
        batch=batch,
        before_ms=round(statistics.median(t[0] for t in times), 3),
        after_ms=round(statistics.median(t[1] for t in times), 3),
        speedup=round(statistics.median(ratios), 3),
        low=round(ratios[low], 3),
        high=round(ratios[-1 - low], 3),
        turns=len(ratios),
    )


def processor() -> str:
    """What figures of speed hold for: the processor's name, and how many cores we may use."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    except OSError:  # no Linux
        pass
    return f"{name}, {len(os.sched_getaffinity(0))} cores"
