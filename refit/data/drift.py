"""How far a data set is from another one, by their statistics.

The measure is the population stability index, PSI = sum((q - p) * ln(q / p)) over bins with the shares p before and q
now. Below 0.1 it is called no change, from 0.25 a major one (Siddiqi 2006, "Credit Risk Scorecards"). Between samples
of one population it is about (1/n + 1/m) times a chi-square variable with one degree less than there are bins
(Yurdakul, Naranjo 2020, "Statistical properties of the population stability index"): up to the 99 % quantile of that
it is chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from refit.data.faults import Fault, fault
from refit.data.statistics import ASPECT_BINS, ASPECT_STEP, BRIGHTNESS_BINS, SIZE_BINS, SIZE_STEP, Counts

MODERATE, MAJOR = 0.1, 0.25

_LEAST_SHARE = 0.05  # bins with less of the reference are joined with their neighbours
_SEEN = 0.9
_Z99 = 2.3263


def size_of(i: float) -> str:
    return f"{2 ** ((i - SIZE_BINS) * SIZE_STEP):.1%} of the image's side"


def aspect_of(i: float) -> str:
    return f"{2 ** ((i - ASPECT_BINS / 2) * ASPECT_STEP):.2f}"


_TRAITS: tuple[tuple[str, str, str, Callable[[float], str]], ...] = (
    ("drift_box_size", "box sizes", "size", size_of),
    ("drift_box_aspect", "box aspects", "aspect", aspect_of),
    ("drift_objects_per_image", "objects an image", "objects_per_image", lambda i: str(math.floor(i))),
    ("drift_brightness", "brightness", "brightness", lambda i: f"{i / BRIGHTNESS_BINS:.0%} of white"),
)


@dataclass(frozen=True, slots=True)
class Drift:
    """How far one trait of a data set is from that of another. `chance` is the PSI that equal sets of this size reach
    once in a hundred times."""

    code: str
    trait: str
    psi: float
    chance: float
    told: str

    @property
    def level(self) -> str:
        """ "none", "moderate" or "major"."""
        if self.psi < MODERATE or self.psi <= self.chance:
            return "none"
        return "major" if self.psi >= MAJOR else "moderate"

    def as_json(self) -> dict[str, Any]:
        figures = {"psi": round(self.psi, 4), "chance": round(self.chance, 4)}
        return {"trait": self.trait, **figures, "level": self.level, "told": self.told}


def drift(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Drift]:
    """The traits of `now` against `before`, two statistics; traits that one of them lacks are left out."""
    # Objects of one image are not independent, so the images are what is counted.
    images = before["images"], now["images"]
    names = sorted({*before["classes"], *now["classes"]})
    old, new = (np.array([s["classes"].get(n, {}).get("objects", 0) for n in names]) for s in (before, now))
    found = []
    if old.sum() and new.sum():
        was, is_ = old / old.sum(), new / new.sum()
        most = int(np.argmax(np.abs(is_ - was)))
        told = f"{names[most]!r} was {was[most]:.0%} of the objects and is {is_[most]:.0%}"
        found.append(Drift("drift_class_mix", "class mix", *_psi(old, new, images), told))
    for code, trait, key, shown in _TRAITS:
        old, new = (_trait(s, key) for s in (before, now))
        if key == "brightness" and any(t.sum() < _SEEN * n for t, n in zip((old, new), images, strict=True)):
            continue  # too many images were not decoded
        if old.sum() and new.sum():
            joined = _joined(old, new)
            told = f"the median was {shown(_median(old))} and is {shown(_median(new))}"
            found.append(Drift(code, trait, *_psi(*joined, images), told))
    return found


def _trait(statistics: Mapping[str, Any], key: str) -> Counts:
    if key in statistics:
        return np.array(statistics[key], np.int64)
    rows = [c[key] for c in statistics["classes"].values()]
    return np.array(rows, np.int64).sum(axis=0) if rows else np.zeros(1, np.int64)


def _median(counts: Counts) -> float:
    """The place of the median in bins, bin i reaching from i to i + 1."""
    half, total = counts.sum() / 2, np.cumsum(counts)
    i = int(np.searchsorted(total, half))
    return i + float(half - (total[i] - counts[i])) / max(1, int(counts[i]))


def _joined(old: Counts, new: Counts) -> tuple[Counts, Counts]:
    """Both histograms with neighbouring bins joined until each holds its share of the old one; what lies below and
    above all of the old one stays apart."""
    starts, held = [0, int(np.flatnonzero(old)[0])], 0
    for i, n in enumerate(old.tolist()):
        held += n
        if held >= _LEAST_SHARE * old.sum():
            starts.append(i + 1)
            held = 0
    starts = sorted({s for s in starts if s < len(old)})
    return np.add.reduceat(old, starts), np.add.reduceat(new, starts)


def _psi(old: Counts, new: Counts, images: tuple[int, int]) -> tuple[float, float]:
    """The PSI, and the one that chance reaches."""
    k = len(old)
    # Half an object in each bin, so that an empty one gives no infinity.
    p, q = ((c + 0.5) / (c.sum() + 0.5 * k) for c in (old, new))
    freedom = max(1, k - 1)
    spread = 2 / (9 * freedom)
    quantile = freedom * (1 - spread + _Z99 * math.sqrt(spread)) ** 3  # Wilson and Hilferty 1931
    return float(((q - p) * np.log(q / p)).sum()), quantile * (1 / max(1, images[0]) + 1 / max(1, images[1]))


def faults(drifts: Iterable[Drift], last: str) -> Iterator[Fault]:
    """A warning for each major change and an info for each moderate one; `last` names the other data set."""
    for d in drifts:
        if d.level != "none":
            message = f"{d.trait} changed since data set {last[:12]}: {d.told} (PSI {d.psi:.2f}, {d.level})"
            found = fault(d.code, "", message, value=f"{d.psi:.3f}")
            yield found if d.level == "major" else replace(found, severity="info")
