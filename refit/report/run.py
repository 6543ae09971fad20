"""The report on one run, from its report.json (`refit.publish.gather`): one HTML page, and its sections for others.

The JSON is taken as it comes: what is missing or of another type than told is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from refit.report.charts import share
from refit.report.document import Sections, badge, document, table
from refit.report.markup import Markup, join, tag
from refit.report.plots import Series, detections, key, lines, matrix
from refit.report.values import clock, figure, integer, items, mapping, money, number, size, text_of, when

Json = Mapping[str, Any]
Href = Callable[[str], str | None]
"""The address of one of the run's pictures, or of the page on another run; None where it cannot be shown."""

STATES = {
    "succeeded": ("succeeded", "good"),
    "failed": ("failed", "error"),
    "cancelled": ("stopped", "warning"),
    "unfinished": ("not finished", "warning"),
    "running": ("running", "info"),
    "dry_run": ("dry run", "info"),
}
_STAGES = {
    "succeeded": "good",
    "reused": "info",
    "running": "info",
    "waiting": "",
    "off": "",
    "cancelled": "warning",
    "preempted": "warning",
}
_VERDICTS = {"pass": "good", "warn": "warning", "ask": "warning", "fail": "error"}


def page(report: Json, href: Href, data_report: str | None = None) -> str:
    """The whole report. `data_report` is the address of the report on its data, from where this page lies."""
    name, run = text_of(report.get("pipeline")), text_of(report.get("run_id") or report.get("run"))
    heading = [f"{name} ", state_badge(report)]
    return document(f"{name}: run {run}", f"Run report: {run}", heading, sections(report, href, data_report))


def state_badge(report: Json) -> Markup:
    word, kind = STATES.get(text_of(report.get("state")), (text_of(report.get("state")), ""))
    return badge(word, kind)


def sections(report: Json, href: Href, data_report: str | None = None, to_run: Href = lambda run: None) -> Sections:
    """Its sections in order; those without content are None."""
    return [
        ("Overview", overview(report, data_report, to_run)),
        ("Gates", gates(report)),
        ("Models side by side", models(report)),
        ("Edge bundles", edge(report)),
        ("Stages", stages(report)),
        ("Training", curves(report)),
        ("Precision and recall", evaluation(report)),
        ("Sample detections", samples(report, href)),
        ("What went in", inputs(report)),
    ]


def overview(report: Json, data_report: str | None, to_run: Href) -> Markup:
    cost, data = mapping(report.get("cost")), mapping(report.get("data"))
    best = released(report)
    tiles = []
    if best:
        tiles.append((figure(best.get("mAP50")), "mAP@0.5" + _interval(best)))
        tiles.append((size(best.get("bytes")), "model"))
    tiles.append((clock(cost.get("seconds")), "of stages run"))
    if number(cost.get("gpu_seconds")):
        tiles.append((clock(cost.get("gpu_seconds")), "of GPUs"))
    if cost.get("money"):
        tiles.append((money(cost.get("money")), "by the price table"))
    facts: list[tuple[str, object]] = [
        ("Run", tag("code", text_of(report.get("run_id")))),
        ("Began", when(report.get("started"))),
        ("Ended", when(report.get("ended"))),
    ]
    images = sum(integer(n) or 0 for n in mapping(data.get("splits")).values())
    if data.get("fingerprint"):
        shown = tag("code", text_of(data["fingerprint"])[:12])
        link = tag("a", "report on the data", href=data_report) if data_report else ""
        facts.append(("Data set", join(shown, f", {images:,} images ", link)))
    elif data_report:
        facts.append(("Data", tag("a", "report on the data", href=data_report)))
    for start in items(report.get("starts")):
        told, run = f"{text_of(start.get('stage'))}: {text_of(start.get('from'))}", text_of(start.get("run"))
        address = to_run(run) if run else None
        facts.append(("Begun with", tag("a", told, href=address) if address else told))
    release = mapping(report.get("release"))
    if release:
        facts.append(("Release", f"version {text_of(release.get('version'))}, {text_of(release.get('outcome'))}"))
    return join(
        _trouble(report),
        tag("div", *(tag("div", tag("b", value), tag("span", name)) for value, name in tiles), class_="tiles"),
        tag("dl", *(join(tag("dt", name), tag("dd", value)) for name, value in facts if value)),
    )


def _trouble(report: Json) -> Markup:
    """Why the run ended early, and what to do."""
    state = report.get("state")
    if state == "dry_run":
        told = "Only the plan was made: no stage was started. The stages below show what a run would do."
        return tag("div", tag("p", told), class_="lead")
    if state == "unfinished":
        told = "Not every stage has a result: the run was stopped, was to go no further (--until), or goes on."
        return tag("div", tag("p", told), class_="lead")
    if state not in ("failed", "cancelled"):
        return Markup("")
    what = tag("p", tag("b", text_of(report.get("failed")) or "the run", ": "), text_of(report.get("reason")))
    advice = tag("p", text_of(report.get("advice"))) if report.get("advice") else ""
    return tag("div", what, advice, class_="lead error", role="status")


def released(report: Json) -> Json | None:
    """The row of the model that the run would release: the last one that is its own."""
    rows = [
        m for m in items(report.get("models")) if m.get("name") != "champion" and number(m.get("mAP50")) is not None
    ]
    return rows[-1] if rows else None


def gates(report: Json) -> Markup | None:
    rows = [
        tag(
            "tr",
            tag("th", text_of(g.get("title")), scope="row"),
            tag("td", badge(text_of(g.get("verdict")), _VERDICTS.get(text_of(g.get("verdict")), ""))),
            tag("td", text_of(g.get("reason")), class_="words"),
        )
        for g in items(report.get("gates"))
    ]
    return table(["Gate", "Verdict", "Why"], rows, told=True) if rows else None


def models(report: Json) -> Markup | None:
    rows = items(report.get("models"))
    if not rows:
        return None
    classes = list(dict.fromkeys(name for r in rows for name in mapping(r.get("per_class"))))
    times = {"milliseconds_alone": "ms alone", "milliseconds": "ms in Triton"}
    times = {k: told for k, told in times.items() if any(number(r.get(k)) is not None for r in rows)}
    heads = ["Model", "mAP@0.5", "95 %", "mAP", *classes, "Parameters", "Bytes", *times.values()]
    best = max((number(r.get("mAP50")) or 0 for r in rows), default=0)
    made = []
    for r in rows:
        per_class = mapping(r.get("per_class"))
        top = number(r.get("mAP50")) == best and best > 0
        made.append(
            tag(
                "tr",
                tag("th", text_of(r.get("name")), scope="row"),
                tag("td", figure(r.get("mAP50")), class_="best" if top else None),
                tag("td", interval(r)),
                tag("td", figure(r.get("mAP"))),
                *(tag("td", figure(per_class.get(name))) for name in classes),
                tag("td", _count(r.get("parameters"))),
                tag("td", _count(r.get("bytes"))),
                *(tag("td", figure(r.get(k), 1)) for k in times),
            )
        )
    return table(heads, made)


def edge(report: Json) -> Markup | None:
    rows = []
    for b in items(report.get("edge")):
        verdict, drop, archive = text_of(b.get("verdict")), number(b.get("drop")), text_of(b.get("archive"))
        told = [b.get("reason") if verdict != "pass" else "", *(b["notes"] if isinstance(b.get("notes"), list) else ())]
        notes = tag("p", "; ".join(text_of(t) for t in told if t), class_="advice") if any(told) else ""
        rows.append(
            tag(
                "tr",
                tag("th", text_of(b.get("title")), scope="row"),
                tag("td", figure(b.get("mAP50"))),
                tag("td", "" if drop is None else f"{drop:+.4f}"),
                tag("td", badge(verdict, _VERDICTS.get(verdict, "")) if verdict else ""),
                tag("td", _count(b.get("bytes"))),
                tag("td", tag("code", archive) if archive else "not packed", notes, class_="words"),
            )
        )
    if not rows:
        return None
    heads = ["Bundle", "mAP@0.5", "Drop", "Verdict", "Bytes", "In the workspace"]
    how = "Each was run by its own runtime on the evaluation images; drop is what it lost against the FP32 ONNX file."
    return join(tag("p", how, class_="advice"), table(heads, rows, told=True))


def stages(report: Json) -> Markup | None:
    rows = items(report.get("stages"))
    if not rows:
        return None
    longest = max((number(s.get("seconds")) or 0 for s in rows), default=0) or 1
    paid = any(number(s.get("money")) for s in rows)
    made, logs = [], []
    for s in rows:
        state = text_of(s.get("state"))
        seconds = number(s.get("seconds")) if state not in ("waiting", "off") else None
        wants = mapping(s.get("resources"))
        gpus = integer(wants.get("gpus")) or 0
        notes = [text_of(s.get("reason"))]
        if state == "reused":
            notes.append(f"result of {text_of(s.get('reused_from'))}")
        if integer(s.get("attempt")) and (integer(s.get("attempt")) or 0) > 1:
            notes.append(f"attempt {s['attempt']}" + (", went on from a checkpoint" if s.get("resumed") else ""))
        cells = [
            tag("th", text_of(s.get("title")), " ", tag("small", text_of(s.get("name"))), scope="row"),
            tag("td", badge(state.replace("_", " "), _STAGES.get(state, "error"))),
            tag("td", share((seconds or 0) / longest, "var(--accent)") if state != "reused" else "", class_="bar"),
            tag("td", clock(seconds)),
            tag("td", clock(seconds * gpus) if seconds and gpus and state != "reused" else ""),
            tag("td", size(s.get("peak_memory_bytes"))),
        ]
        if paid:
            cells.append(tag("td", figure(s.get("money"), 2)))
        made.append(tag("tr", *cells, tag("td", "; ".join(n for n in notes if n), class_="words")))
        tail = [text_of(line) for line in s.get("log_tail") or () if isinstance(line, str)]
        if tail and state not in ("reused", "succeeded"):
            log = tag("pre", *(join(line, Markup("\n")) for line in tail), tabindex=0)
            logs.append(tag("details", tag("summary", f"Last lines of {text_of(s.get('name'))}"), log, open="open"))
    heads = ["Stage", "", "", "Time", "GPU time", "Memory", *(["Cost"] if paid else []), "Notes"]
    return join(tag("div", table(heads, made, told=True), class_="stages"), *logs)


def curves(report: Json) -> Markup | None:
    figures = []
    for c in items(report.get("curves")):
        name = text_of(c.get("title"))
        for what, found in (("loss", c.get("loss")), ("mAP@0.5 on val", c.get("mAP"))):
            drawn = lines([Series(what, points(found))], f"{name}: {what}", x_name="epoch", whole=True)
            if drawn:
                figures.append(tag("figure", drawn, tag("figcaption", f"{name}: {what}")))
    return tag("div", *figures, class_="plots") if figures else None


def evaluation(report: Json) -> Markup | None:
    found = mapping(report.get("evaluation"))
    series = [
        Series(text_of(name), points(value), i) for i, (name, value) in enumerate(mapping(found.get("curves")).items())
    ]
    drawn = lines(series, "Precision over recall", x=(0, 1), y=(0, 1.02), x_name="recall")
    if drawn is None:
        return None
    confusion = mapping(found.get("confusion"))
    counts = [[integer(n) or 0 for n in row] for row in confusion.get("counts") or () if isinstance(row, list)]
    labels = [text_of(name) for name in confusion.get("labels") or ()]
    told = f"Counted at a score of {figure(confusion.get('score'), 1)} and more, IoU {figure(confusion.get('iou'), 1)}."
    return tag(
        "div",
        tag("figure", drawn, key(series), tag("figcaption", "Precision over recall at IoU 0.5, by class")),
        tag("figure", matrix(labels, counts), tag("figcaption", told)) if counts else "",
        class_="plots",
    )


def samples(report: Json, href: Href) -> Markup | None:
    classes = [text_of(c) for c in mapping(report.get("data")).get("classes") or ()]
    shown = []
    for s in items(report.get("samples")):
        address = href(text_of(s.get("picture")))
        if address is None:
            continue
        wrong = integer(s.get("wrong")) or 0
        note = tag("small", f"{wrong} wrong or missing") if wrong else tag("small", "all right")
        caption = tag("figcaption", tag("span", text_of(s.get("file"))), note)
        shown.append(tag("figure", detections(s, address, classes), caption))
    if not shown:
        return None
    told = "White and dashed: what is there. In colour: what the model found. Half of them are its worst."
    return join(
        key([Series(c, [], i) for i, c in enumerate(classes)]),
        tag("p", told, class_="advice"),
        tag("div", *shown, class_="pictures"),
    )


def inputs(report: Json) -> Markup | None:
    conf, file, data = (mapping(report.get(k)) for k in ("conf", "pipeline_file", "data"))
    parts = []
    begun = _starts(report)
    if begun:
        parts.append(join(tag("h3", "Begun with"), begun))
    splits = mapping(data.get("splits"))
    if splits:
        objects = mapping(data.get("objects"))
        facts: list[tuple[str, object]] = [
            ("Fingerprint", tag("code", text_of(data.get("fingerprint")))),
            ("Source", text_of(data.get("source"))),
            ("Images", ", ".join(f"{_count(n)} {text_of(k)}" for k, n in splits.items())),
            ("Objects", ", ".join(f"{_count(n)} {text_of(k)}" for k, n in objects.items())),
            ("Evaluation set", tag("code", text_of(data.get("evaluation"))[:12])),
        ]
        parts.append(tag("dl", *(join(tag("dt", name), tag("dd", value)) for name, value in facts if value)))
    if conf:
        rows = [
            tag("tr", tag("th", text_of(k), scope="row"), tag("td", text_of(v), class_="words"))
            for k, v in conf.items()
        ]
        parts.append(join(tag("h3", "Params of this run"), table(["Param", "Value"], rows, told=True)))
    if file.get("text"):
        text = tag("pre", *(join(line, Markup("\n")) for line in text_of(file["text"]).split("\n")), tabindex=0)
        parts.append(tag("details", tag("summary", text_of(file.get("name"))), text))
    lineage = _lineage(report)
    if lineage:
        parts.append(tag("details", tag("summary", "Keys and hashes of every stage"), lineage))
    return join(*parts) if parts else None


def _starts(report: Json) -> Markup | None:
    """What the trainings began with; a training that is not named began by chance."""
    rows = [
        tag(
            "tr",
            tag("th", text_of(s.get("stage")), scope="row"),
            tag("td", tag("code", text_of(s.get("given"))), class_="words"),
            tag("td", tag("code", text_of(s.get("sha256"))[:12])),
            tag("td", text_of(s.get("from")), class_="words"),
        )
        for s in items(report.get("starts"))
    ]
    return table(["Training", "start_from", "sha256", "Was"], rows, told=True) if rows else None


def _lineage(report: Json) -> Markup | None:
    rows = []
    for s in items(report.get("stages")):
        made = ", ".join(
            f"{text_of(name)} {text_of(mapping(o).get('sha256'))[:12]}" for name, o in mapping(s.get("outputs")).items()
        )
        if s.get("key"):
            code = tag("code", text_of(s["key"])[:12])
            rows.append(
                tag(
                    "tr",
                    tag("th", text_of(s.get("name")), scope="row"),
                    tag("td", code),
                    tag("td", made, class_="words"),
                )
            )
    return table(["Stage", "Key", "Made"], rows, told=True) if rows else None


def interval(row: Json) -> str:
    low, high = number(row.get("low")), number(row.get("high"))
    return f"{low:.3f} to {high:.3f}" if low is not None and high is not None else ""


def _interval(row: Json) -> str:
    told = interval(row)
    return f" ({told})" if told else ""


def points(value: Any) -> list[tuple[float, float]]:
    found = []
    for point in value if isinstance(value, list) else ():
        pair: Sequence[Any] = point if isinstance(point, list) and len(point) == 2 else (None, None)
        a, b = number(pair[0]), number(pair[1])
        if a is not None and b is not None:
            found.append((a, b))
    return found


def _count(value: Any) -> str:
    n = integer(value)
    return "" if n is None else f"{n:,}"
