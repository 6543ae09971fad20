"""Curves and matrices as inline SVG and HTML, as `charts` has columns and maps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from refit.report.charts import colour
from refit.report.markup import Markup, tag
from refit.report.values import number

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 360, 170, 38, 20


@dataclass(frozen=True)
class Series:
    """A line: points (x, y) in order, a name, a colour of the palette (None: the page's own accent)."""

    name: str
    points: Sequence[tuple[float, float]]
    index: int | None = None
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    dots: bool = False


def lines(
    series: Sequence[Series],
    label: str,
    *,
    x: tuple[float, float] | None = None,
    y: tuple[float, float] | None = None,
    x_name: str = "",
    whole: bool = False,
) -> Markup | None:
    """Curves over common axes; None where there is nothing to draw. `low` and `high` are drawn as a bar at each point.

    `whole`: ticks of the x axis are whole numbers.
    """
    finite = [
        Series(
            s.name,
            [(a, b) for a, b in s.points if math.isfinite(a) and math.isfinite(b)],
            s.index,
            s.low,
            s.high,
            s.dots,
        )
        for s in series
    ]
    drawn = [s for s in finite if s.points]
    if not drawn:
        return None
    edges = [v for s in drawn for v in (*s.low, *s.high) if v is not None]
    x = x or _range([a for s in drawn for a, _ in s.points])
    y = y or _range([*(b for s in drawn for _, b in s.points), *edges])

    def at(a: float, b: float) -> tuple[float, float]:
        return (
            _LEFT + (_WIDTH - _LEFT - 6) * (a - x[0]) / (x[1] - x[0]),
            6 + (_HEIGHT - _BOTTOM - 6) * (1 - (b - y[0]) / (y[1] - y[0])),
        )

    parts: list[Markup] = []
    for value in _ticks(*y):
        _, v = at(x[0], value)
        parts.append(tag("line", class_="grid", x1=_LEFT, y1=_n(v), x2=_WIDTH, y2=_n(v)))
        parts.append(tag("text", _shown(value), x=_LEFT - 5, y=_n(v + 4), text_anchor="end"))
    for value in _ticks(*x, whole=whole):
        h, _ = at(value, y[0])
        parts.append(tag("text", _shown(value), x=_n(h), y=_HEIGHT - 5, text_anchor="middle"))
    parts.append(tag("line", x1=_LEFT, y1=_HEIGHT - _BOTTOM, x2=_WIDTH, y2=_HEIGHT - _BOTTOM))
    if x_name:
        parts.append(tag("text", x_name, x=0, y=_HEIGHT - 5))  # beside its ticks: above them it would hide a curve
    for s in drawn:
        style = f"stroke:{colour(s.index)}" if s.index is not None else None
        fill = f"fill:{colour(s.index)}" if s.index is not None else None
        path = " ".join(f"{_n(h)},{_n(v)}" for h, v in (at(a, b) for a, b in s.points))
        parts.append(tag("polyline", tag("title", s.name), class_="curve", points=path, style=style))
        for i, (a, b) in enumerate(s.points):
            h, v = at(a, b)
            low, high = (side[i] if i < len(side) else None for side in (s.low, s.high))
            if low is not None and high is not None:
                bar = {"x1": _n(h), "x2": _n(h), "y1": _n(at(a, low)[1]), "y2": _n(at(a, high)[1])}
                parts.append(tag("line", class_="interval", style=style, **bar))
            if s.dots or len(s.points) == 1:
                told = tag("title", f"{s.name} {_shown(a)}: {b:.4g}")
                parts.append(tag("circle", told, class_="point", cx=_n(h), cy=_n(v), r=3, style=fill))
    return tag("svg", *parts, class_="plot", viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=label)


def key(series: Sequence[Series]) -> Markup:
    """The names of the lines, each with its colour."""
    dots = []
    for s in series:
        fill = f"fill:{colour(s.index)}" if s.index is not None else "fill:var(--accent)"
        dot = tag(
            "svg", tag("circle", cx=5, cy=5, r=5, style=fill), class_="dot", viewBox="0 0 10 10", aria_hidden="true"
        )
        dots.append(tag("span", dot, s.name))
    return tag("p", *dots, class_="legend")


def matrix(labels: Sequence[str], counts: Sequence[Sequence[int]]) -> Markup:
    """A confusion matrix: rows what is there, columns what was found, "nothing" last; the darker, the more of a row."""
    names = [*labels, "nothing"]
    head = tag("tr", tag("th", "there \\ found", scope="col"), *(tag("th", n, scope="col") for n in names))
    rows = []
    for i, row in enumerate(counts[: len(names)]):
        total = max(1, sum(row))
        cells = []
        for j, n in enumerate(row[: len(names)]):
            if i == j == len(labels):
                cells.append(tag("td", ""))
                continue
            good = "good" if i == j else "bad"
            cells.append(tag("td", f"{n:,}", class_=f"cell {good}", style=f"--share:{100 * n / total:.0f}%"))
        rows.append(tag("tr", tag("th", names[i], scope="row"), *cells))
    made = tag("table", tag("thead", head), tag("tbody", *rows), class_="matrix")
    return tag("div", made, class_="scroll", tabindex=0)


def detections(sample: Mapping[str, object], href: str, classes: Sequence[str]) -> Markup:
    """A picture with what is there (dashed) and what was found (in the class's colour, with the score)."""
    width, height = (number(sample.get(name)) or 1.0 for name in ("width", "height"))
    index = {name: i for i, name in enumerate(classes)}
    parts = [tag("image", href=href, width=_n(width), height=_n(height))]
    for name, box in _rows(sample.get("truth"), 4):
        parts.append(_rect(box, f"there: {name}", "truth", None))
    for name, (score, *box) in _rows(sample.get("found"), 5):
        parts.append(_rect(box, f"found: {name} {score:.2f}", None, colour(index.get(name, 0))))
    view = f"0 0 {_n(width)} {_n(height)}"
    return tag("svg", *parts, class_="picture", viewBox=view, role="img", aria_label=str(sample.get("file", "")))


def _rows(value: object, numbers: int) -> list[tuple[str, list[float]]]:
    """Rows [name, number, ...] of JSON that may hold anything."""
    found = []
    for row in value if isinstance(value, list) else ():
        figures = [number(v) for v in row[1:]] if isinstance(row, list) else []
        good = [v for v in figures if v is not None]
        if len(good) == len(figures) == numbers:
            found.append((str(row[0]), good))
    return found


def _rect(box: Sequence[float], told: str, class_: str | None, stroke: str | None) -> Markup:
    x, y, w, h = (_n(v) for v in box)
    style = f"stroke:{stroke}" if stroke else None
    return tag("rect", tag("title", told), class_=class_, x=x, y=y, width=w, height=h, style=style)


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if high - low < 1e-9:
        return (low - 0.5, high + 0.5) if low > 1 else (max(0.0, low - 0.05), low + 0.05)
    return low - (high - low) * 0.05, high + (high - low) * 0.05


def _ticks(low: float, high: float, most: int = 5, *, whole: bool = False) -> list[float]:
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
    step = max(1.0, round(step)) if whole else step
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _shown(value: float) -> str:
    return f"{value:.4g}"


def _n(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
