"""A challenger asked the same as the champion: how far their answers agree, and which is slower.

Both are asked for each picture, in turns, so that what slows the machine down slows both.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refit.triton.client import TritonClient
from refit.triton.infer import Found, infer_picture

OVERLAP = 0.5
"""Boxes of one class with this much in common (intersection over union) are the same object."""


@dataclass
class Comparison:
    """What two models said of the same pictures.

    Attributes:
        same: objects that both found, counted once.
        champion, challenger: objects of each.
        differ: the pictures on which they agree least, with their agreement.
    """

    images: int = 0
    same: int = 0
    champion: int = 0
    challenger: int = 0
    champion_ms: list[float] = field(default_factory=list)
    challenger_ms: list[float] = field(default_factory=list)
    differ: list[tuple[float, str]] = field(default_factory=list)

    @property
    def agreement(self) -> float:
        """Of all objects that either found, the share on which they agree; 1 where neither found any."""
        return _share(self.same, self.champion, self.challenger)

    def milliseconds(self) -> tuple[float, float]:
        """The medians of champion and challenger."""
        return statistics.median(self.champion_ms), statistics.median(self.challenger_ms)

    def figures(self) -> dict[str, float]:
        before, now = self.milliseconds()
        return {
            "images": float(self.images),
            "agreement": round(self.agreement, 4),
            "objects_champion": float(self.champion),
            "objects_challenger": float(self.challenger),
            "milliseconds_champion": round(before, 3),
            "milliseconds_challenger": round(now, 3),
        }

    def to_json(self) -> dict[str, Any]:
        differ = [{"image": name, "agreement": round(share, 4)} for share, name in sorted(self.differ)[:20]]
        return {**self.figures(), "differ": differ}


def compare(client: TritonClient, champion: str, challenger: str, pictures: Sequence[Path]) -> Comparison:
    """Ask both for each picture. Raises as `infer_picture`: a challenger that does not answer is no challenger."""
    out = Comparison()
    for path in pictures:
        before, now = infer_picture(client, champion, path), infer_picture(client, challenger, path)
        same = matched(before.detections, now.detections)
        out.images += 1
        out.same += same
        out.champion += len(before.detections)
        out.challenger += len(now.detections)
        out.champion_ms.append(before.milliseconds)
        out.challenger_ms.append(now.milliseconds)
        share = _share(same, len(before.detections), len(now.detections))
        if share < 1:
            out.differ.append((share, path.name))
    return out


def matched(first: Sequence[Found], second: Sequence[Found]) -> int:
    """How many objects are in both lists: of one class, overlapping, each used once; the surest choose first."""
    left = list(second)
    count = 0
    for one in sorted(first, key=lambda d: -d.score):
        best = max((d for d in left if d.name == one.name), key=lambda d: _iou(one.box, d.box), default=None)
        if best is not None and _iou(one.box, best.box) >= OVERLAP:
            left.remove(best)
            count += 1
    return count


def _share(same: int, first: int, second: int) -> float:
    return 2 * same / (first + second) if first + second else 1.0


def _iou(a: Sequence[float], b: Sequence[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area = width * height
    return area / max(1e-9, (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - area)
