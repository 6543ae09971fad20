"""One pipeline: what serves, the run that goes on, its versions and runs, one of them in detail; and two compared."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from refit.pages import progress
from refit.pages.frame import Going, Viewer, in_airflow, page
from refit.report import run as reports
from refit.report.document import Sections, badge, shown, table, ways
from refit.report.markup import Markup, join, tag
from refit.report.plots import Series, key, lines
from refit.report.run import STATES, interval, state_badge
from refit.report.values import ago, clock, figure, integer, items, mapping, money, number, size, text_of, when

Json = Mapping[str, Any]
RETRAIN, ROLLBACK = "retrain_", "refit_rollback"  # operators.names and operators.release say the same
RUNS = 25
_SUCCESSOR = re.compile(r"(?<=by version )(\d+) \([^()\s]+/[^()\s]+\)$")  # its run: the successor's own row leads to it
_KINDS = {"serving": "good", "staged": "info", "retired": "", "failed": "error"}


def write(name: str, index: Json, run: str, report: Json | None, how_far: Json, going: Going, viewer: Viewer) -> str:
    """A pipeline's page; `run` is the one that is shown in detail ("": none), `report` its report where it has one."""
    dag = RETRAIN + name
    champion = mapping(index.get("champion"))
    parts: Sections = [
        ("Serves now", _unreadable(name) if index.get("unreadable") else _champion(name, champion, viewer)),
        ("Going on", tag("div", progress.steps(how_far, going, dag, viewer), data_live=viewer.page("progress", name))),
        ("Versions", _versions(name, index, viewer)),
        ("Runs", _runs(name, index, report, viewer)),
        *_detail(name, report, run, viewer),
    ]
    version = integer(champion.get("version"))
    title = tag("h1", name)
    state = badge("nothing serves", "")
    if version is not None:
        state = badge(f"version {version} serves", "good")
    elif index.get("unreadable"):
        state = badge("not known what serves", "warning")
    head = tag(
        "header",
        tag("p", "Model", class_="kind"),
        tag("div", title, state, _actions(name, index, viewer), class_="row"),
        ways(parts),
    )
    may = "1" if dag in viewer.may_run else "0"
    notice = tag("div", "", id="notice", role="status", aria_live="polite")
    waiting = tag("div", "", id="approvals", data_dag=dag, data_may=may)
    main = tag("main", notice, waiting, *shown(parts))
    return page(name, viewer, head, main, *_dialogs(name, viewer), crumbs=[("Models", viewer.page("models"))])


def _actions(name: str, index: Json, viewer: Viewer) -> Markup:
    """Buttons; a viewer sees them and cannot press."""
    may_train, may_roll = (dag in viewer.may_run for dag in (RETRAIN + name, ROLLBACK))
    older = [r for r in items(index.get("releases")) if r.get("state") == "retired"]
    return tag(
        "div",
        _button("Retrain", "retrain", may_train, class_="main"),
        _button("Dry run", "dry", may_train),
        _button(
            "Roll back", "rollback", may_roll and bool(older), class_="danger", why="there is no version to go back to"
        )
        if may_roll
        else _button("Roll back", "rollback", False, class_="danger"),
        in_airflow("In Airflow", viewer.dag(RETRAIN + name)),
        class_="actions",
    )


def _button(
    text: str,
    dialog: str,
    may: bool,
    *,
    class_: str | None = None,
    why: str = "you may look at it, not start runs",
    **more: Any,
) -> Markup:
    off = {} if may else {"disabled": "disabled", "title": why[:1].upper() + why[1:]}
    return tag("button", text, type="button", class_=class_, data_dialog=dialog, **off, **more)


def _dialogs(name: str, viewer: Viewer) -> list[Markup]:
    reason = join(
        tag("label", "Why (kept in the ledger)", for_="reason"), tag("textarea", "", id="reason", name="reason", rows=2)
    )
    made = []
    if RETRAIN + name in viewer.may_run:
        told = "A run with the pipeline file's own values. Stages whose inputs are as before are not run again."
        others = tag("p", "For other values press Trigger ", in_airflow("in Airflow", viewer.dag(RETRAIN + name)), ".")
        made.append(_dialog("retrain", "Retrain", told, RETRAIN + name, {}, others))
        told = "Looks at the data and makes the plan: what would run, what would be reused. No stage is started."
        made.append(_dialog("dry", "Dry run", told, RETRAIN + name, {"dry_run": True}))
    if ROLLBACK in viewer.may_run:
        told = "Makes the version that served before the champion again, if it answers as it did then."
        made.append(_dialog("rollback", "Roll back", told, ROLLBACK, {"pipeline": name}, reason))
        what = join("Makes version ", tag("b", "", data_slot="version"), " the champion, if it answers as it did then.")
        why = Markup(reason.replace('"reason"', '"reason-2"', 2).replace('name="reason-2"', 'name="reason"'))
        made.append(_dialog("promote", "Make champion", what, ROLLBACK, {"pipeline": name}, why))
    return made


def _dialog(id_: str, title: str, told: object, dag: str, conf: Json, fields: object = "") -> Markup:
    buttons = tag(
        "div",
        tag("button", "Cancel", value="cancel", formnovalidate="formnovalidate"),
        tag("button", title, value="go", class_="main"),
        class_="buttons",
    )
    form = tag("form", tag("h2", title, id=f"{id_}-title"), tag("p", told), fields, buttons, method="dialog")
    return tag("dialog", form, id=id_, data_dag=dag, data_conf=json.dumps(conf), aria_labelledby=f"{id_}-title")


def _unreadable(name: str) -> Markup:
    told = f"published/{name}/index.json is half written or damaged, so what serves and what was is not known here."
    return tag("div", tag("p", told), _anew(name), class_="lead error")


def _anew(name: str) -> Markup:
    return tag(
        "p", "The end of the next run makes it anew, or somebody at a shell: ", tag("code", f"refit publish {name}")
    )


def _champion(name: str, champion: Json, viewer: Viewer) -> Markup:
    if not champion:
        return tag("p", "Nothing of this pipeline serves.", class_="more")
    tiles = [
        (figure(champion.get("mAP50")), f"mAP@0.5 {interval(champion)}"),
        (size(champion.get("bytes")), "model"),
        (f"{number(champion.get('parameters')):,.0f}" if number(champion.get("parameters")) else "", "parameters"),
        (figure(champion.get("milliseconds"), 1), "ms, Triton's answer at the release"),
    ]
    run = text_of(champion.get("run"))
    fingerprint = text_of(champion.get("fingerprint"))
    data: object = tag("code", fingerprint[:12]) if fingerprint else ""
    if fingerprint:
        data = tag("a", data, href=viewer.page("published", name, "data", f"{fingerprint}.html"))
    facts: list[tuple[str, object]] = [
        ("Since", ", ".join(t for t in (when(champion.get("since")), ago(champion.get("since"))) if t)),
        ("Name in Triton", text_of(champion.get("model"))),
        ("Data set", data),
        ("Made by", tag("a", run, href=viewer.page("models", name, run=run))),
        ("Approved by", ": ".join(filter(None, (text_of(champion.get(k)) for k in ("approved_by", "approval_note"))))),
        ("sha256", tag("code", text_of(champion.get("sha256")))),
    ]
    return join(
        tag("div", *(tag("div", tag("b", v), tag("span", what)) for v, what in tiles if v), class_="tiles"),
        tag("dl", *(join(tag("dt", k), tag("dd", v)) for k, v in facts if v)),
    )


def history(index: Json) -> Markup | None:
    """The mAP of every version that served, all classes together with its interval, and each class."""
    rows = [r for r in items(index.get("releases")) if number(r.get("mAP50")) is not None and integer(r.get("version"))]
    if len(rows) < 2:
        return None

    def points(values: Sequence[Any]) -> list[tuple[float, float]]:
        pairs = [(number(r["version"]), number(v)) for r, v in zip(rows, values, strict=True)]
        return [(a, b) for a, b in pairs if a is not None and b is not None]

    whole = Series(
        "mAP@0.5",
        points([r["mAP50"] for r in rows]),
        low=[number(r.get("low")) for r in rows],
        high=[number(r.get("high")) for r in rows],
        dots=True,
    )
    names = list(dict.fromkeys(n for r in rows for n in mapping(r.get("per_class"))))
    classes = [
        Series(n, points([mapping(r.get("per_class")).get(n) for r in rows]), i, dots=True) for i, n in enumerate(names)
    ]
    figures = []
    for told, series in (("mAP@0.5 by version, with its interval at 95 %", [whole]), ("AP@0.5 of each class", classes)):
        drawn = lines(series, told, x_name="version", whole=True)
        if drawn:
            figures.append(tag("figure", drawn, key(series) if len(series) > 1 else "", tag("figcaption", told)))
    return tag("div", *figures, class_="plots")


def _versions(name: str, index: Json, viewer: Viewer) -> Markup | None:
    releases = items(index.get("releases"))
    damaged = ", ".join(text_of(v) for v in index.get("damaged") or ())
    told = f"The ledger's record of version {damaged} cannot be read, so it is not shown. What is wrong with it tells "
    trouble = tag("p", told, tag("code", f"refit verify {name}"), class_="lead error") if damaged else Markup("")
    if not releases:
        return trouble or None
    may = ROLLBACK in viewer.may_run
    known = {text_of(r.get("run")) for r in items(index.get("runs"))}
    rows: list[Row] = []
    for r in reversed(releases):
        run, state, version = text_of(r.get("run")), text_of(r.get("state")), integer(r.get("version"))
        pick = tag("input", type="checkbox", name="run", value=run, aria_label=f"compare version {version}")
        promote = (
            _button("Make champion", "promote", may, class_="small", data_version=version) if state == "retired" else ""
        )
        why = _SUCCESSOR.sub(r"\1", text_of(r.get("reason"))) if state != "serving" else ""  # else what its run says
        cells = [
            ("", pick if run in known else ""),
            ("State", badge(state, _KINDS.get(state, ""))),
            ("Since", when(r.get("since"))),
            ("mAP@0.5", figure(r.get("mAP50"))),
            ("95 %", interval(r)),
            ("Size", size(r.get("bytes"))),
            ("Run", tag("a", "its run", href=viewer.page("models", name, run=run)) if run in known else ""),
            ("Why", why),
            ("", promote),
        ]
        rows.append((f"v{version}", cells))
    return join(trouble, history(index) or "", _picked("Version", rows, name, viewer, "versions"))


Row = tuple[object, Sequence[tuple[str, object]]]  # what it is called, and (column, cell)


def _picked(first: str, rows: Sequence[Row], name: str, viewer: Viewer, what: str) -> Markup:
    """A table with boxes, of which two can be compared. Columns in which nothing stands are left out."""
    shown = [any(cells[i][1] for _, cells in rows) for i in range(len(rows[0][1]))]
    heads = [first, *(label for (label, _), some in zip(rows[0][1], shown, strict=True) if some)]
    head = tag("tr", *(tag("th", h, scope="col") for h in heads))
    body = []
    for called, cells in rows:
        kept = [cell for cell, some in zip(cells, shown, strict=True) if some]
        told = [tag("td", v, data_label=k, class_="left" if k == "Why" else None) for k, v in kept]
        body.append(tag("tr", tag("th", called, scope="row"), *told))
    made = tag("table", tag("thead", head), tag("tbody", *body), class_="list")
    button = tag("button", f"Compare two {what}", type="submit", class_="small")
    action = viewer.page("models", name, "compare")
    return tag("form", tag("div", made, class_="scroll", tabindex=0), button, method="get", action=action, data_two="1")


def _runs(name: str, index: Json, report: Json | None, viewer: Viewer) -> Markup | None:
    runs = items(index.get("runs"))
    if not runs:
        return None
    rows: list[Row] = []
    for r in list(reversed(runs))[:RUNS]:
        run = text_of(r.get("run"))
        word, kind = STATES.get(text_of(r.get("state")), (text_of(r.get("state")), ""))
        cost = mapping(r.get("cost"))
        here = report is not None and report.get("run") == run
        link = tag(
            "a",
            _short(text_of(r.get("run_id")) or run),
            title=text_of(r.get("run_id")) or run,
            href=viewer.page("models", name, run=run),
            aria_current="true" if here else None,
        )
        why = f"{text_of(r.get('failed'))}: {text_of(r.get('reason'))}" if r.get("reason") else ""
        cells = [
            ("", tag("input", type="checkbox", name="run", value=run, aria_label=f"compare {run}")),
            ("State", badge(word, kind)),
            ("Began", when(r.get("started"))),
            ("Time", clock(cost.get("seconds"))),
            ("GPU time", clock(cost.get("gpu_seconds")) if number(cost.get("gpu_seconds")) else ""),
            ("Cost", money(cost.get("money"))),
            ("mAP@0.5", figure(r.get("mAP50"))),
            ("Why", why[:300]),
        ]
        rows.append((link, cells))
    more = len(runs) - RUNS
    note = tag("p", f"and {more} older ones", class_="more") if more > 0 else ""
    return join(_picked("Run", rows, name, viewer, "runs"), note)


def _short(run_id: str) -> str:
    """Airflow's id without what no person reads: parts of a second, the time zone, its random end."""
    return re.sub(r"(\d\d:\d\d:\d\d)\.\d+(\+00:00)?(_\w+)?$", r"\1", run_id)


def _detail(name: str, report: Json | None, run: str, viewer: Viewer) -> Sections:
    """The sections of one run's report, its pictures by address."""
    if report is None:
        told = f"The report of run {run} is gone, or damaged: then remove published/{name}/runs/{run}."
        return [("This run", tag("div", tag("p", told), _anew(name), class_="lead error"))] if run else []

    def href(picture: str) -> str | None:
        return viewer.page("published", name, "runs", run, picture) if picture else None

    data = text_of(mapping(report.get("data")).get("report"))
    place = ("data", data.removeprefix("data/")) if data.startswith("data/") else ("runs", run, data)
    data_report = viewer.page("published", name, *place) if data else None
    whole = viewer.page("published", name, "runs", run, "report.html")
    parts = dict(reports.sections(report, href, data_report, lambda other: viewer.page("models", name, run=other)))
    title = join("Run ", tag("code", text_of(report.get("run_id"))), " ", state_badge(report))
    links = join(
        tag("a", "The whole report", href=whole),
        Markup(" · "),
        tag("a", "as JSON", href=viewer.page("published", name, "runs", run, "report.json")),
        Markup(" · "),
        in_airflow("in Airflow", viewer.dag(RETRAIN + name, text_of(report.get("run_id")))),
    )
    first = join(tag("p", title), parts.pop("Overview") or "", tag("p", links))
    return [("This run", first), *parts.items()]


# --- two compared -----------------------------------------------------------------------------------------------------


def compare(name: str, a: Json, b: Json, viewer: Viewer) -> str:
    """Two runs side by side: figures with their difference, what was set otherwise, curves over one another."""
    first, second = reports.released(a) or {}, reports.released(b) or {}
    heads = ["", _head(a), _head(b), "Difference"]
    rows = [
        _figures("mAP@0.5", first.get("mAP50"), second.get("mAP50")),
        _texts("95 %", interval(first), interval(second)),
        _figures("mAP", first.get("mAP"), second.get("mAP")),
    ]
    classes = dict.fromkeys([*mapping(first.get("per_class")), *mapping(second.get("per_class"))])
    for cls in classes:
        before, after = (mapping(m.get("per_class")).get(cls) for m in (first, second))
        rows.append(_figures(f"AP@0.5 {cls}", before, after))
    rows += [
        _figures("Parameters", first.get("parameters"), second.get("parameters"), 0, better=-1),
        _figures("Bytes", first.get("bytes"), second.get("bytes"), 0, better=-1),
        _figures("ms alone", first.get("milliseconds_alone"), second.get("milliseconds_alone"), 2, better=-1),
        _figures("ms in Triton", first.get("milliseconds"), second.get("milliseconds"), 2, better=-1),
        *_costs(a, b),
        _texts("Data set", *(text_of(mapping(r.get("data")).get("fingerprint"))[:12] for r in (a, b))),
        _texts("Images", *(_images(r) for r in (a, b))),
        _texts("Evaluation set", *(text_of(mapping(r.get("data")).get("evaluation"))[:12] for r in (a, b))),
        *(
            _texts(f"Param {k}", text_of(mapping(a.get("conf")).get(k)), text_of(mapping(b.get("conf")).get(k)))
            for k in dict.fromkeys([*mapping(a.get("conf")), *mapping(b.get("conf"))])
        ),
    ]
    bundles = _both_bundles(a, b)
    parts: Sections = [
        ("Figures", join(_caution(a, b), table(heads, [r for r in rows if r]))),
        ("Edge bundles", table(heads, bundles) if bundles else None),
        ("Precision and recall", _both_curves(a, b)),
        ("Training", _both_trainings(a, b)),
        ("Pipeline file", _difference(a, b)),
    ]
    crumbs = [("Models", viewer.page("models")), (name, viewer.page("models", name))]
    head = tag("header", tag("p", "Two runs compared", class_="kind"), tag("h1", name), ways(parts))
    return page(f"{name}: compared", viewer, head, tag("main", *shown(parts)), crumbs=crumbs)


def _head(report: Json) -> Markup:
    version = mapping(report.get("release")).get("version")
    told = f"v{version}" if version else text_of(report.get("run_id"))[:32]
    return join(told, " ", state_badge(report))


def _caution(a: Json, b: Json) -> Markup:
    sets = {mapping(r.get("data")).get("evaluation") for r in (a, b)}
    if len(sets) == 1:
        return Markup("")
    return tag("p", "They were measured on different evaluation sets: their mAP cannot be compared.", class_="lead")


def _figures(name: str, a: Any, b: Any, digits: int = 3, better: int = 1) -> Markup:
    first, second = number(a), number(b)
    if first is None and second is None:
        return Markup("")
    change = Markup("")
    if first is not None and second is not None:
        d = second - first
        kind = None if not better or round(d, digits) == 0 else "plus" if d * better > 0 else "minus"
        change = tag("span", f"{d:+,.{digits}f}", class_=kind)
    told = ["" if v is None else f"{v:,.{digits}f}" for v in (first, second)]
    return tag("tr", tag("th", name, scope="row"), *(tag("td", t) for t in told), tag("td", change))


def _texts(name: str, a: str, b: str) -> Markup:
    if not a and not b:
        return Markup("")
    return tag("tr", tag("th", name, scope="row"), tag("td", a), tag("td", b), tag("td", "" if a == b else "other"))


def _images(report: Json) -> str:
    splits = mapping(mapping(report.get("data")).get("splits"))
    return ", ".join(f"{integer(n):,} {text_of(k)}" for k, n in splits.items() if integer(n) is not None)


def _costs(a: Json, b: Json) -> list[Markup]:
    """What the stages took; neither more nor less is better: it depends on what was reused."""
    old, new = (mapping(r.get("cost")) for r in (a, b))
    paid, pays = mapping(old.get("money")), mapping(new.get("money"))
    rows = [_figures("Seconds of stages", old.get("seconds"), new.get("seconds"), 1, better=0)]
    if number(old.get("gpu_seconds")) or number(new.get("gpu_seconds")):
        rows.append(_figures("Seconds of GPUs", old.get("gpu_seconds"), new.get("gpu_seconds"), 1, better=0))
    currencies = {text_of(p.get("currency")) for p in (paid, pays) if p}
    if len(currencies) == 1:
        told = " ".join(["Cost", *currencies]).strip()
        rows.append(_figures(told, paid.get("amount"), pays.get("amount"), 2, better=0))
    else:
        rows.append(_texts("Cost", money(paid), money(pays)))
    return rows


def _both_bundles(a: Json, b: Json) -> list[Markup]:
    first, second = ({text_of(e.get("title")): e for e in items(r.get("edge"))} for r in (a, b))
    rows = []
    for title in dict.fromkeys([*first, *second]):
        old, new = mapping(first.get(title)), mapping(second.get(title))
        rows += [
            _figures(f"{title}: mAP@0.5", old.get("mAP50"), new.get("mAP50")),
            _figures(f"{title}: drop", old.get("drop"), new.get("drop"), 4, better=-1),
            _figures(f"{title}: bytes", old.get("bytes"), new.get("bytes"), 0, better=-1),
            _texts(f"{title}: verdict", text_of(old.get("verdict")), text_of(new.get("verdict"))),
        ]
    return [r for r in rows if r]


def _both_curves(a: Json, b: Json) -> Markup | None:
    figures = []
    curves = [mapping(mapping(r.get("evaluation")).get("curves")) for r in (a, b)]
    for cls in dict.fromkeys([*curves[0], *curves[1]]):
        series = [
            Series(told, reports.points(c.get(cls)), i)
            for i, (told, c) in enumerate(zip(_names(a, b), curves, strict=True))
        ]
        drawn = lines(series, f"Precision over recall of {cls}", x=(0, 1), y=(0, 1.02), x_name="recall")
        if drawn:
            figures.append(tag("figure", drawn, key(series), tag("figcaption", cls)))
    return tag("div", *figures, class_="plots") if figures else None


def _both_trainings(a: Json, b: Json) -> Markup | None:
    figures = []
    found = [{text_of(c.get("title")): c for c in items(r.get("curves"))} for r in (a, b)]
    for title in dict.fromkeys([*found[0], *found[1]]):
        for what, told in (("loss", "loss"), ("mAP", "mAP@0.5 on val")):
            series = [
                Series(name, reports.points(mapping(f.get(title)).get(what)), i)
                for i, (name, f) in enumerate(zip(_names(a, b), found, strict=True))
            ]
            drawn = lines(series, f"{title}: {told}", x_name="epoch", whole=True)
            if drawn:
                figures.append(tag("figure", drawn, key(series), tag("figcaption", f"{title}: {told}")))
    return tag("div", *figures, class_="plots") if figures else None


def _names(a: Json, b: Json) -> tuple[str, str]:
    first, second = (mapping(r.get("release")).get("version") for r in (a, b))
    return (f"v{first}" if first else "first", f"v{second}" if second else "second")


def _difference(a: Json, b: Json) -> Markup:
    before, after = (text_of(mapping(r.get("pipeline_file")).get("text")).splitlines() for r in (a, b))
    if before == after:
        return tag("p", "The same.", class_="more")
    told = []
    for line in difflib.unified_diff(before, after, lineterm="", n=2):
        kind = {"+": "come", "-": "gone"}.get(line[:1])
        told.append(join(tag("span", line, class_=kind), Markup("\n")))
    return tag("pre", *told[2:], class_="diff", tabindex=0)
