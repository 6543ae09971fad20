"""The list of all pipelines: what serves, since when, how good; what goes on; how the last run ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from refit.pages import progress
from refit.pages.frame import Going, Viewer, page
from refit.report.document import badge
from refit.report.markup import Markup, join, tag
from refit.report.run import STATES, interval
from refit.report.values import ago, figure, integer, items, mapping, number, size, text_of, when

Json = Mapping[str, Any]
PER_PAGE = 100
SHOW = {
    "": "all",
    "asks": "waiting for a person",
    "running": "going on",
    "failed": "last run failed",
    "none": "nothing serves",
}
_HEADS = ("Pipeline", "Serves", "Since", "mAP@0.5", "95 %", "Over versions", "Size", "ms", "Data", "Now")


def summary(name: str, index: Json, going: Going) -> dict[str, Any]:
    """One pipeline in the API's list."""
    champion, last = mapping(index.get("champion")), mapping(index.get("last"))
    keys = ("version", "since", "mAP50", "low", "high", "bytes", "milliseconds", "fingerprint", "approved_by", "run")
    return {
        "pipeline": name,
        "readable": not index.get("unreadable"),  # else nobody knows here what serves
        "champion": {k: champion.get(k) for k in keys} if champion else None,
        "last": {k: last.get(k) for k in ("run", "run_id", "state", "failed", "started")} if last else None,
        "going_on": [{"run_id": run, "state": state} for run, state in going.runs],
    }


def chosen(indexes: Mapping[str, Json], going: Mapping[str, Going], words: str, show: str) -> list[str]:
    """The pipelines whose name holds the words and that are in the state asked for.

    What wants to be looked at comes first: a person is asked, a run goes on, the last one failed.
    """
    looked_for = words.lower().split()

    def fits(name: str) -> bool:
        if not all(w in name.lower() for w in looked_for):
            return False
        now = going.get(name, Going())
        states = {"asks": now.asks, "running": now.on, "failed": _failed(indexes[name]), "none": _idle(indexes[name])}
        return states.get(show, True)

    def urgent(name: str) -> tuple[bool, bool, bool, str]:
        now = going.get(name, Going())
        return not now.asks, not now.on, not _failed(indexes[name]), name

    return sorted(filter(fits, indexes), key=urgent)


def _failed(index: Json) -> bool:
    return mapping(index.get("last")).get("state") == "failed"


def _idle(index: Json) -> bool:
    """Nothing serves, as far as that is known."""
    return not index.get("champion") and not index.get("unreadable")


def write(
    indexes: Mapping[str, Json],
    going: Mapping[str, Going],
    how_far: Callable[[str], Json],
    viewer: Viewer,
    *,
    words: str = "",
    show: str = "",
    number_of_page: int = 1,
) -> str:
    """The page. `how_far` gives the progress of a pipeline; it is asked for those with a run only."""
    names = chosen(indexes, going, words, show)
    pages = max(1, -(-len(names) // PER_PAGE))
    at = min(max(1, number_of_page), pages)
    shown = names[(at - 1) * PER_PAGE : at * PER_PAGE]
    rows = [_row(n, indexes[n], going.get(n, Going()), how_far, viewer) for n in shown]
    serving = sum(bool(i.get("champion")) for i in indexes.values())
    tiles = [
        ("", len(indexes), "pipelines"),
        ("", serving, "serve a model"),
        ("asks", sum(going.get(n, Going()).asks for n in indexes), "waiting for a person"),
        ("running", sum(going.get(n, Going()).on for n in indexes), "with a run going on"),
        ("failed", sum(map(_failed, indexes.values())), "whose last run failed"),
    ]
    head = tag("tr", *(tag("th", name, scope="col") for name in _HEADS))
    table = tag("table", tag("thead", head), tag("tbody", *rows), class_="list")
    body = [
        tag("div", *(_tile(viewer, *tile) for tile in tiles), class_="tiles"),
        _search(viewer, words, show),
        tag("div", table, class_="scroll", tabindex=0) if rows else tag("p", _nothing(indexes), class_="more"),
        _pages(viewer, words, show, at, pages),
    ]
    return page(
        "All",
        viewer,
        tag("header", tag("p", "Refit", class_="kind"), tag("h1", "Models")),
        tag("main", tag("section", *body)),
    )


def _tile(viewer: Viewer, state: str, count: int, what: str) -> Markup:
    """A number, with the way to the pipelines that it counts."""
    told = tag("a", what, href=viewer.page("models", show=state)) if state and count else what
    return tag("div", tag("b", f"{count:,}"), tag("span", told))


def _nothing(indexes: Mapping[str, Json]) -> str:
    if indexes:
        return "No pipeline fits."
    return "There is no pipeline yet: a file in specs/pipelines/ makes one."


def _search(viewer: Viewer, words: str, show: str) -> Markup:
    options = [
        tag("option", told, value=key, selected="selected" if key == show else None) for key, told in SHOW.items()
    ]
    return tag(
        "form",
        tag("input", type="search", name="q", value=words, placeholder="Name of a pipeline", aria_label="Name"),
        tag("select", *options, name="show", aria_label="Which"),
        tag("button", "Search", type="submit"),
        class_="search",
        method="get",
        action=viewer.page("models"),
    )


def _pages(viewer: Viewer, words: str, show: str, at: int, pages: int) -> Markup:
    if pages == 1:
        return Markup("")
    ways = [
        tag("a", told, href=viewer.page("models", q=words, show=show, page=to))
        for told, to in (("Back", at - 1), ("Next", at + 1))
        if 1 <= to <= pages
    ]
    return tag("nav", tag("span", f"Page {at} of {pages}"), *ways, class_="pages", aria_label="Pages")


def _row(name: str, index: Json, going: Going, how_far: Callable[[str], Json], viewer: Viewer) -> Markup:
    champion, last = mapping(index.get("champion")), mapping(index.get("last"))
    version = integer(champion.get("version"))
    approved = text_of(champion.get("approved_by"))
    since = when(champion.get("since"))[:10]
    serves = join(badge(f"v{version}", "good"), tag("small", f" approved by {approved}") if approved else "")
    unknown = badge("not known", "warning") if index.get("unreadable") else badge("nothing", "")
    cells = [
        serves if version is not None else unknown,
        join(since, tag("small", f" {ago(champion['since'])}")) if since else "",
        figure(champion.get("mAP50")),
        interval(champion),
        spark(items(index.get("releases"))),
        size(champion.get("bytes")),
        figure(champion.get("milliseconds"), 1),
        tag("code", text_of(champion.get("fingerprint"))[:8]) if champion.get("fingerprint") else "",
    ]
    if going.on:
        live = {"data_live": viewer.page("progress", name, short=1)}
        now = tag("div", progress.line(how_far(name), going), class_="now", **live)
    else:
        word, kind = STATES.get(text_of(last.get("state")), (text_of(last.get("state")), ""))
        why = f": {text_of(last.get('failed'))}" if _failed(index) and last.get("failed") else ""
        now = tag("span", badge(word + why, kind), tag("small", f" {ago(last.get('started'))}")) if word else Markup("")
    link = tag("a", name, href=viewer.page("models", name))
    told = [tag("td", c, data_label=label) for c, label in zip(cells, _HEADS[1:], strict=False)]
    return tag("tr", tag("th", link, scope="row", class_="name"), *told, tag("td", now, data_label="Now"))


def spark(releases: Sequence[Json]) -> Markup:
    """mAP@0.5 over the versions that were released, as a small line."""
    values = [v for r in releases[-30:] if (v := number(r.get("mAP50"))) is not None]
    if len(values) < 2:
        return Markup("")
    low, high = min(values), max(values)
    span = max(high - low, 0.02)
    points = [(i * 88 / (len(values) - 1) + 1, 24 - (v - low) / span * 20) for i, v in enumerate(values)]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dot = tag("circle", cx=f"{points[-1][0]:.1f}", cy=f"{points[-1][1]:.1f}", r=2)
    label = f"mAP@0.5 over {len(values)} versions, {low:.3f} to {high:.3f}"
    return tag(
        "svg", tag("polyline", points=line), dot, class_="spark", viewBox="0 0 90 26", role="img", aria_label=label
    )
