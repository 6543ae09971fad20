"""A whole page: head, heading, sections with a way to each; and the parts that most sections have."""

from __future__ import annotations

from collections.abc import Sequence

from refit.report.markup import Markup, tag
from refit.report.style import CSS

# No script may run and nothing may be fetched, whatever a file name holds.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

Sections = Sequence[tuple[str, Markup | None]]


def document(title: str, kind: str, heading: Sequence[object], sections: Sections) -> str:
    """A page that needs nothing else. Sections without content are left out."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Markup(CSS)),
    )
    body = tag(
        "body",
        tag("header", tag("p", kind, class_="kind"), tag("h1", *heading), ways(sections)),
        tag("main", *shown(sections)),
        tag("footer", "Made by Refit. The same in figures is there as JSON."),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def shown(sections: Sections) -> list[Markup]:
    """The sections as elements."""
    return [tag("section", tag("h2", name), body, id=anchor(name)) for name, body in sections if body]


def ways(sections: Sections) -> Markup:
    """Links to the sections, where there are several."""
    named = [name for name, body in sections if body]
    links = [tag("a", name, href=f"#{anchor(name)}") for name in named]
    return tag("nav", *links, aria_label="On this page") if len(named) > 1 else Markup("")


def anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


def table(heads: Sequence[object], rows: Sequence[Markup], *, told: bool = False) -> Markup:
    """A table of figures; with `told` its last column holds words."""
    head = tag("tr", *(tag("th", name, scope="col") for name in heads))
    made = tag("table", tag("thead", head), tag("tbody", *rows), class_="told" if told else None)
    return tag("div", made, class_="scroll", tabindex=0)  # what scrolls must be reached by keyboard


def badge(word: object, kind: str) -> Markup:
    """A word on a coloured ground: good, info, warning, error, or "" for none."""
    return tag("span", word, class_=f"badge {kind}".rstrip())
