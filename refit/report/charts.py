"""Small charts as inline SVG; colours come from the page's style sheet, so that they follow light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from refit.report.markup import Markup, join, tag

_WIDTH, _HEIGHT, _AXIS = 240, 72, 16


def colour(index: int) -> str:
    """A class's colour: steps of the golden ratio around the colour wheel, as in `refit.postprocess.draw`."""
    return f"hsl({index * 0.6180339887 % 1 * 360:.0f} 75% 45%)"


def histogram(counts: Sequence[int], ticks: Mapping[float, str], label: str, fill: str | None = None) -> Markup:
    """Columns; `ticks` is the place on the axis, in bins, -> what is written there."""
    most = max(max(counts, default=0), 1)
    step = _WIDTH / max(len(counts), 1)
    columns = [
        tag(
            "rect",
            tag("title", f"{n}"),
            x=_round(i * step + step * 0.06),
            y=_round(_HEIGHT * (1 - n / most)),
            width=_round(step * 0.88),
            height=_round(max(_HEIGHT * n / most, 0.8)),
        )
        for i, n in enumerate(counts)
        if n
    ]
    named = [
        tag("text", shown, x=_round(at * step), y=_HEIGHT + 13, text_anchor=_anchor(at, len(counts)))
        for at, shown in ticks.items()
        if 0 <= at <= len(counts)
    ]
    axis = tag("line", x1=0, y1=_HEIGHT, x2=_WIDTH, y2=_HEIGHT)
    return tag(
        "svg",
        tag("g", *columns, style=f"fill:{fill}" if fill else None),
        axis,
        *named,
        class_="chart",
        viewBox=f"0 0 {_WIDTH} {_HEIGHT + _AXIS}",
        role="img",
        aria_label=label,
    )


def _anchor(at: float, end: int) -> str:
    return "start" if at == 0 else "end" if at == end else "middle"


def heat(counts: Sequence[int], side: int, aspect: float, label: str, fill: str) -> Markup:
    """A map of positions: `side` times `side` cells, row by row, as wide over high as the images are."""
    most = max(max(counts, default=0), 1)
    width, height = 240.0, 240.0 / aspect
    cells = [
        tag(
            "rect",
            x=_round(i % side * width / side),
            y=_round(i // side * height / side),
            width=_round(width / side),
            height=_round(height / side),
            fill_opacity=_round(0.1 + 0.9 * n / most),
        )
        for i, n in enumerate(counts)
        if n
    ]
    return tag(
        "svg",
        tag("g", *cells, style=f"fill:{fill}"),
        class_="heat",
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        role="img",
        aria_label=label,
    )


def share(part: float, fill: str) -> Markup:
    """A bar as long as a share from 0 to 1."""
    bar = tag("rect", x=0, y=0, width=_round(100 * part), height=8, style=f"fill:{fill}")
    back = tag("rect", class_="back", x=0, y=0, width=100, height=8)
    return tag("svg", back, bar, class_="share", viewBox="0 0 100 8", preserveAspectRatio="none", aria_hidden="true")


def legend(index: int, name: str) -> Markup:
    dot = tag("circle", cx=5, cy=5, r=5, style=f"fill:{colour(index)}")
    return join(tag("svg", dot, class_="dot", viewBox="0 0 10 10", aria_hidden="true"), name)


def _round(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
