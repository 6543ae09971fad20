"""Pictures inside the page: small WebP images as data, with boxes drawn over them as SVG, within a budget of bytes."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from refit.report.charts import colour
from refit.report.markup import Markup, tag

BUDGET = 1_700_000
"""Characters of all pictures of a page, with their boxes."""

_SIDE = 480  # pixels of the longer side
_LARGEST = 48_000  # bytes of one; a picture that is all noise is made smaller until it fits
_QUALITY = 70

Load = Callable[[str], bytes | None]
"""The bytes of an image by its name in the report; None where it cannot be read."""


@dataclass(frozen=True, slots=True)
class Rect:
    """A box in pixels of the image: of a class by its index, or a faulty one (None)."""

    box: Sequence[float]
    cls: int | None
    name: str


class Pictures:
    """Makes pictures until the budget is spent; then there are none."""

    def __init__(self, load: Load, budget: int = BUDGET) -> None:
        self._load = load
        self._left = budget
        self._made: dict[str, tuple[str, int, int] | None] = {}

    def of(self, file: str, rects: Sequence[Rect], label: str) -> Markup | None:
        """The picture with its boxes, or None where it cannot be shown. Shown twice, it counts twice."""
        if file not in self._made:
            self._made[file] = self._encoded(file)
        made = self._made[file]
        if made is None:
            return None
        data, width, height = made
        shown = tag(
            "svg",
            tag("image", href=f"data:image/webp;base64,{data}", width=width, height=height),
            *(_rect(r, max(width, height)) for r in rects),
            class_="picture",
            viewBox=f"0 0 {width} {height}",
            role="img",
            aria_label=label,
        )
        if len(shown) > self._left:
            return None
        self._left -= len(shown)
        return shown

    def _encoded(self, file: str) -> tuple[str, int, int] | None:
        """The picture as base64 WebP, and its width and height as stored in its file."""
        raw = self._load(file)
        if not raw:
            return None
        try:
            flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
            image = cv2.imdecode(np.frombuffer(raw, np.uint8), flags)
        except cv2.error:
            return None
        if image is None:
            return None
        height, width = image.shape[:2]
        side = _SIDE
        while True:
            scale = min(1.0, side / max(height, width))
            size = max(1, round(width * scale)), max(1, round(height * scale))
            small = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if scale < 1 else image
            done, data = cv2.imencode(".webp", small, [cv2.IMWRITE_WEBP_QUALITY, _QUALITY])
            if not done:
                return None
            if len(data) <= _LARGEST or side <= 32:
                return base64.b64encode(data.tobytes()).decode(), width, height
            side = side * 3 // 4


def _rect(r: Rect, longest: int) -> Markup:
    x1, y1, x2, y2 = r.box  # an inverted box is shown as what it covers
    least = longest / 150 if r.cls is None else 0.0  # a line has no area, and would not be drawn
    width, height = max(abs(x2 - x1), least), max(abs(y2 - y1), least)
    title = tag("title", r.name)
    if r.cls is None and max(width, height) < longest / 15:  # too small to be seen: a ring shows where it is
        at = {"cx": f"{(x1 + x2) / 2:.1f}", "cy": f"{(y1 + y2) / 2:.1f}", "r": f"{longest / 20:.1f}"}
        return tag("circle", title, class_="bad", **at)
    place = {"x": f"{min(x1, x2):.1f}", "y": f"{min(y1, y2):.1f}", "width": f"{width:.1f}", "height": f"{height:.1f}"}
    if r.cls is None:
        return tag("rect", title, class_="bad", **place)
    return tag("rect", title, style=f"stroke:{colour(r.cls)}", **place)
