"""The report as one HTML page: no script, no file from anywhere else, light and dark, wide and narrow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from refit.data import drift
from refit.data.codes import CODES, Severity
from refit.data.faults import Fault
from refit.data.report.contents import NEAR, Report
from refit.data.statistics import (
    ASPECT_BINS,
    ASPECT_STEP,
    BRIGHTNESS_BINS,
    GRID,
    SIZE_BINS,
    SIZE_STEP,
)
from refit.data.suspects import Suspect
from refit.report import charts
from refit.report.document import document, table
from refit.report.markup import Markup, join, tag
from refit.report.pictures import Load, Pictures, Rect

_CLASSES = 24  # shown with charts of their own
_SAMPLES = 18
_LINES = 6  # faults of a kind
_FAULT_PICTURES = 3  # of a kind
_PAIRS = 6
_NAMES = 8
_ALL = "in issues.jsonl of a run, or by refit dataset check --json"

_ARROW = "\N{RIGHTWARDS ARROW}"
_MODEL = 1  # the colour of what a model sees: blue


def write(report: Report) -> str:
    """The page."""
    pictures = Pictures(report.load)
    # The faults come before the samples, so that they are the last to lose their pictures.
    faults = _faults(report, pictures)
    near = _near(report, pictures)
    samples = _samples(report, pictures)
    sections = [
        ("Overview", _overview(report)),
        ("Findings", faults),
        ("Classes", _classes(report)),
        ("Images", _images(report)),
        ("Samples", samples),
        ("Near-duplicates", near),
        ("Change since the last data set", _change(report)),
    ]
    return document(
        f"{report.title}: data set report", "Data set report", [report.title, " ", _verdict(report)], sections
    )


def write_suspects(title: str, told: str, suspects: Sequence[Suspect], load: Load) -> str:
    """The likeliest label errors with their pictures, until the page is full; `told` says what was found in all."""
    pictures = Pictures(load)
    shown = []
    for s in suspects:
        rects = [Rect(s.box, None if s.label else _MODEL, s.label or s.model)]
        rects += [Rect(s.seen, _MODEL, s.model)] if s.seen else []
        picture = pictures.of(s.file, rects, s.told())
        if picture is None:
            continue
        shown.append(tag("figure", picture, _caption(tag("span", f"{s.score:.2f}  {s.told()}"), tag("small", s.file))))
    note = "Magenta: what is labelled. Blue: what the model sees. Look at each; nothing was changed."
    body = join(tag("p", told, " ", note), tag("div", *shown, class_="pictures"))
    return document(f"{title}: likely label errors", "Likely label errors", [title], [("The likeliest first", body)])


def _verdict(report: Report) -> Markup:
    errors, warnings = (sum(f.severity == s for f in report.faults) for s in ("error", "warning"))
    if errors:
        return tag("span", _counted(errors, "error"), class_="badge error")
    if warnings:
        return tag("span", f"good, {_counted(warnings, 'warning')}", class_="badge warning")
    return tag("span", "good", class_="badge good")


# ---- overview


def _overview(report: Report) -> Markup:
    s = report.statistics
    parts = s["splits"]
    tiles = [("images", s["images"]), ("objects", s["objects"]), ("classes", len(s["classes"]))]
    tiles += [(f"{name} images", part["images"]) for name, part in parts.items()] if len(parts) > 1 else []
    tiles.append(("without objects", sum(p["without_objects"] for p in parts.values())))
    facts = [*report.about.items()]
    if report.network:
        n = report.network
        facts.append(("Network's input", f"{n.width}x{n.height}, {'letterbox' if n.letterbox else 'stretched'}"))
    return join(
        tag("div", *(tag("div", tag("b", _n(v)), tag("span", name)) for name, v in tiles), class_="tiles"),
        tag("dl", *(join(tag("dt", name), tag("dd", value)) for name, value in facts)),
    )


# ---- classes


def _classes(report: Report) -> Markup | None:
    classes: Mapping[str, Any] = report.statistics["classes"]
    parts = list(report.statistics["splits"])
    if not classes:
        return None
    total = max(1, report.statistics["objects"])
    most = max(1, *(c["objects"] for c in classes.values()))
    by_part = {p: max(1, sum(c["splits"].get(p, 0) for c in classes.values())) for p in parts}
    rows = []
    for i, (name, c) in enumerate(classes.items()):
        cells = [
            tag("th", charts.legend(i, name), scope="row"),
            tag("td", charts.share(c["objects"] / most, charts.colour(i)), class_="bar"),
            tag("td", _n(c["objects"])),
            tag("td", f"{c['objects'] / total:.1%}"),
            tag("td", _n(c["images"])),
        ]
        if len(parts) > 1:
            cells += [
                tag("td", _n(c["splits"].get(p, 0)), tag("small", f" {c['splits'].get(p, 0) / by_part[p]:.1%}"))
                for p in parts
            ]
        rows.append(tag("tr", *cells))
    heads = ["Class", "", "Objects", "Share", "Images", *(parts if len(parts) > 1 else ())]
    return join(table(heads, rows), _cards(report))


def _cards(report: Report) -> Markup:
    """A card a class: where its boxes lie, how large they are, and of which proportions."""
    classes = report.statistics["classes"]
    size_from, size_to = _used([c["size"] for c in classes.values()], SIZE_BINS)
    aspect_from, aspect_to = _used([c["aspect"] for c in classes.values()], ASPECT_BINS)
    sizes = {
        SIZE_BINS + np.log2(v) / SIZE_STEP - size_from: shown
        for v, shown in ((0.01, "1%"), (0.03, "3%"), (0.1, "10%"), (0.3, "30%"), (1, "100%"))
    }
    aspects = {
        ASPECT_BINS / 2 + np.log2(v) / ASPECT_STEP - aspect_from: shown
        for v, shown in ((1 / 8, "1:8"), (0.25, "1:4"), (0.5, "1:2"), (1, "1:1"), (2, "2:1"), (4, "4:1"), (8, "8:1"))
    }
    first = report.statistics["sizes"][:1]
    shape = first[0]["width"] / first[0]["height"] if first else 1.0
    shape = min(max(shape, 0.5), 3.0)
    cards = []
    for i, (name, c) in enumerate(list(classes.items())[:_CLASSES]):
        if not c["objects"]:
            continue
        fill = charts.colour(i)
        places = charts.heat(c["positions"], GRID, shape, f"Where {name} lies", fill)
        size = charts.histogram(c["size"][size_from:size_to], sizes, f"Sizes of {name}", fill)
        aspect = charts.histogram(c["aspect"][aspect_from:aspect_to], aspects, f"Proportions of {name}", fill)
        figures = (
            (places, "Positions of centres"),
            (size, "Size: side of the box, of the image's"),
            (aspect, "Width to height"),
        )
        shown = [tag("figure", chart, _caption(what)) for chart, what in figures]
        cards.append(tag("article", tag("h3", charts.legend(i, name)), *shown, class_="card"))
    more = len(classes) - _CLASSES
    return join(
        tag("div", *cards, class_="cards"), tag("p", f"{_n(more)} more classes are in the JSON.") if more > 0 else ""
    )


def _used(histograms: Sequence[Sequence[int]], bins: int) -> tuple[int, int]:
    """The bins from the first to the last that anything fell into, a little more on both sides."""
    used = np.flatnonzero(np.array(histograms).sum(axis=0)) if histograms else np.zeros(0)
    return (max(0, int(used[0]) - 1), min(bins, int(used[-1]) + 2)) if len(used) else (0, bins)


# ---- images


def _images(report: Report) -> Markup | None:
    s = report.statistics
    if not s["images"]:
        return None
    most = _used([s["objects_per_image"]], len(s["objects_per_image"]))[1]
    step = max(1, most // 6)
    figures = [
        tag(
            "figure",
            charts.histogram(
                s["objects_per_image"][:most], {i + 0.5: str(i) for i in range(0, most, step)}, "Objects an image"
            ),
            _caption("Objects an image"),
        )
    ]
    if sum(s["brightness"]):
        ticks = {0.0: "black", BRIGHTNESS_BINS / 2: "50%", float(BRIGHTNESS_BINS): "white"}
        chart = charts.histogram(s["brightness"], ticks, "Brightness")
        figures.append(tag("figure", chart, _caption("Mean brightness")))
    rows = [
        tag("tr", tag("th", f"{r['width']}x{r['height']}", scope="row"), tag("td", _n(r["images"])))
        for r in s["sizes"][:_NAMES]
    ]
    others = sum(r["images"] for r in s["sizes"][_NAMES:]) + s["other_sizes"]
    if others:
        rows.append(tag("tr", tag("th", "other sizes", scope="row"), tag("td", _n(others))))
    return tag("div", *figures, table(["Pixels", "Images"], rows), class_="cards")


# ---- samples


def _samples(report: Report, pictures: Pictures) -> Markup | None:
    shown = []
    for i in chosen(report, _SAMPLES):
        t = report.table
        picture = pictures.of(t.files[i], list(_rects(report, i)), t.files[i])
        if picture is not None:
            part = t.parts[int(t.part[i])]
            objects = int(t.counts[i])
            what = (f"{part}, " if len(t.parts) > 1 else "") + _counted(objects, "object")
            shown.append(tag("figure", picture, _caption(tag("span", t.files[i]), tag("small", what))))
    if not shown:
        return None
    names = list(report.statistics["classes"])[:_CLASSES]
    legend = tag("p", *(tag("span", charts.legend(i, name)) for i, name in enumerate(names)), class_="legend")
    return join(legend, tag("div", *shown, class_="pictures"))


def chosen(report: Report, most: int) -> list[int]:
    """Images that show the data set: of each class in turn, the rarest first, in the order of their content's hash."""
    t = report.table
    order = np.argsort(np.array(t.digests)) if t.digests else np.zeros(0, np.int64)
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    image = t.image
    queues = []
    for cls in sorted(range(len(t.classes)), key=lambda c: int((t.cls == c).sum())):
        mine = np.unique(image[t.cls == cls])
        queues.append(iter(mine[np.argsort(place[mine])].tolist()))
    queues.append(iter(order[t.counts[order] == 0].tolist()))  # and of those without objects
    found: dict[int, None] = {}
    while queues and len(found) < most:
        for queue in list(queues):
            fresh = next((i for i in queue if i not in found), None)
            if fresh is None:
                queues.remove(queue)
            elif len(found) < most:
                found[fresh] = None
    return sorted(found, key=lambda i: t.files[i])


def _rects(report: Report, image: int) -> Iterator[Rect]:
    t = report.table
    for o in range(int(t.starts[image]), int(t.starts[image + 1])):
        cls = int(t.cls[o])
        yield Rect(t.boxes[o].tolist(), cls, t.classes[cls])


# ---- faults


def _faults(report: Report, pictures: Pictures) -> Markup:
    if not report.faults:
        return tag("p", "Nothing was found.")
    groups: dict[tuple[Severity, str], list[Fault]] = {}
    for f in report.faults:
        groups.setdefault((f.severity, f.code), []).append(f)
    order: tuple[Severity, ...] = ("error", "warning", "info")
    keys = sorted(groups, key=lambda k: (order.index(k[0]), list(CODES).index(k[1])))
    shown = {key: groups[key][:_LINES] for key in keys}
    images = _images_of(report, [f for found in shown.values() for f in found])
    return join(*(_group(report, pictures, key, groups[key], images) for key in keys))


def _group(
    report: Report, pictures: Pictures, key: tuple[Severity, str], found: Sequence[Fault], images: Mapping[str, int]
) -> Markup:
    severity, code = key
    lost = sum(f.objects for f in found)
    advice = found[0].advice if len({f.advice for f in found}) == 1 else ""
    items = []
    for f in found[:_LINES]:
        own = "" if advice or f.advice in ("", CODES[code].advice) else f"; {f.advice}"
        items.append(tag("li", tag("code", _where(f)) if f.file else "", " ", f.message, own))
    if len(found) > _LINES:
        items.append(tag("li", f"and {_n(len(found) - _LINES)} more, {_ALL}", class_="more"))
    shown: list[Markup] = []
    for f in found[:_LINES]:
        i = images.get(f.file)
        if i is None or code in NEAR or len(shown) == _FAULT_PICTURES:
            continue
        bad = _box_of(f)
        rects = [*_rects(report, i), *([Rect(bad, None, f.message)] if bad else [])]
        picture = pictures.of(report.table.files[i], rects, f.message)
        if picture is not None:
            shown.append(tag("figure", picture, _caption(_where(f))))
    head = tag(
        "h3",
        tag("span", severity, class_=f"badge {severity}"),
        f" {code} ",
        tag("small", f"{_n(len(found))}x" + (f", {_counted(lost, 'object')} left out" if lost else "")),
    )
    gallery = tag("div", *shown, class_="pictures") if shown else ""
    told = tag("p", _sentence(advice or CODES[code].advice), class_="advice")
    return tag("article", head, told, tag("ul", *items), gallery, class_="fault")


def _sentence(text: str) -> str:
    """With a capital and a full stop; what begins with a key or a file's name keeps its own letters."""
    word = text.split(" ", 1)[0]
    return f"{text if '.' in word else text[:1].upper() + text[1:]}."


def _where(f: Fault) -> str:
    return f"{f.file}:{f.line}" if f.line else f.file


def _box_of(f: Fault) -> list[float] | None:
    """The box of which a fault tells: its value is a class name and four numbers."""
    words = f.value.split(" ")[-4:]
    try:
        box = [float(w) for w in words]
    except ValueError:
        return None
    return box if len(box) == 4 and np.isfinite(box).all() else None


def _images_of(report: Report, faults: Iterable[Fault]) -> dict[str, int]:
    """Image by the file that a fault names: the image itself, or the label file of the same name."""
    sources = {source: i for i, source in enumerate(report.table.sources)}
    wanted = {f.file for f in faults if f.file}
    found = {file: sources[file] for file in wanted if file in sources}
    stems = {PurePosixPath(file).stem: file for file in wanted if file not in sources}
    seen: dict[str, list[int]] = {}
    for source, i in sources.items():
        stem = PurePosixPath(source).stem if stems else ""
        if stem in stems:
            seen.setdefault(stem, []).append(i)
    return found | {stems[stem]: same[0] for stem, same in seen.items() if len(same) == 1}


# ---- near-duplicates


def _near(report: Report, pictures: Pictures) -> Markup | None:
    found = report.near_duplicates()
    if not found:
        return None
    index = {source: i for i, source in enumerate(report.table.sources)}
    pairs: list[Markup] = []
    for f in found:
        both = [index.get(f.file), index.get(f.value)]
        if None in both or len(pairs) == _PAIRS:
            continue
        sides = []
        for i in both:
            assert i is not None
            t = report.table
            picture = pictures.of(t.files[i], list(_rects(report, i)), t.files[i])
            if picture is not None:
                part = t.parts[int(t.part[i])] if len(t.parts) > 1 else ""
                sides.append(tag("figure", picture, _caption(tag("span", t.files[i]), tag("small", part))))
        if len(sides) == 2:
            pairs.append(tag("div", *sides, class_="pair"))
    leaks = sum(f.code == NEAR[0] for f in found)
    told = f"{_n(len(found))} {'picture looks' if len(found) == 1 else 'pictures look'} like another one"
    told += f"; {_n(leaks)} of them across parts of the split, which flatters the evaluation." if leaks else "."
    return join(tag("p", told), tag("div", *pairs, class_="pairs"))


# ---- change


def _change(report: Report) -> Markup | None:
    d = report.difference
    if d is None:
        return None
    kinds: list[tuple[str, int, str]] = [
        ("unchanged", d.unchanged, ""),
        *((name, len(names), _listed(names)) for name, names in (("added", d.added), ("removed", d.removed))),
        ("renamed", len(d.renamed), _listed([f"{old} {_ARROW} {new}" for old, new in d.renamed.items()])),
        ("replaced by another picture", len(d.picture_changed), _listed(d.picture_changed)),
        ("with other labels", len(d.labels_changed), _listed(d.labels_changed)),
        *((f"from {old} to {new}", n, "") for (old, new), n in d.moved.items()),
    ]
    rows = [
        tag("tr", tag("th", name, scope="row"), tag("td", _n(n)), tag("td", names, class_="names"))
        for name, n, names in kinds
    ]
    before = tag("p", "Compared with ", tag("code", report.previous[:12]), ".")
    parts = [before, table(["Images", "", "First of them"], rows, told=True)]
    if d.objects:
        objects = [
            tag("tr", tag("th", cls, scope="row"), tag("td", _n(a)), tag("td", _n(b)), tag("td", f"{b - a:+,}"))
            for cls, (a, b) in d.objects.items()
        ]
        parts.append(table(["Objects", "Before", "Now", "Change"], objects))
    if report.drifts:
        levels = {"none": "good", "moderate": "info", "major": "warning"}
        drifts = [
            tag(
                "tr",
                tag("th", x.trait, scope="row"),
                tag("td", tag("span", x.level, class_=f"badge {levels[x.level]}")),
                tag("td", f"{x.psi:.3f}"),
                tag("td", f"{x.chance:.3f}"),
                tag("td", x.told, class_="names"),
            )
            for x in report.drifts
        ]
        parts.append(table(["Drift", "", "PSI", "By chance", "What"], drifts, told=True))
        note = (
            f"PSI is the population stability index: {drift.MODERATE} and more is a moderate change, {drift.MAJOR} and "
            "more a major one, where chance alone would not reach it."
        )
        parts.append(tag("p", note, class_="advice"))
    return join(*parts)


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMES
    return ", ".join(names[:_NAMES]) + (f" and {_n(more)} more" if more > 0 else "")


# ---- parts of all


def _caption(*what: object) -> Markup:
    return tag("figcaption", *what)


def _counted(n: int, what: str) -> str:
    return f"{_n(n)} {what}{'s' * (n != 1)}"


def _n(value: int) -> str:
    return f"{value:,}"
