"""The run that goes on: a line for the list, and its stages for a pipeline's page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refit.pages.frame import Going, Viewer, in_airflow
from refit.report.document import badge
from refit.report.markup import Markup, join, tag
from refit.report.values import clock, figure, integer, items, mapping, number, text_of

Json = Mapping[str, Any]
_STATES = {"succeeded": "good", "reused": "info", "running": "info", "waiting": "", "off": ""}


def line(progress: Json, going: Going) -> Markup:
    """How far a run is, in a few words with a bar."""
    if not going.on:
        return Markup("")
    if going.asks:
        return join(badge("waits for a person", "warning"))
    stages = _of(progress, going)
    now = next((s for s in stages if s.get("state") == "running"), None)
    over = sum(s.get("state") not in ("waiting", "running") for s in stages)
    if now is None:
        told = going.runs[0][1]
        return join(_bar(over / len(stages) if stages else 0), tag("small", told))
    share = (over + _part(now)) / len(stages)
    return join(_bar(share), tag("small", f"{text_of(now.get('title') or now.get('name'))}: {said(now) or 'running'}"))


def steps(progress: Json, going: Going, dag: str, viewer: Viewer) -> Markup:
    """Every stage of the run that goes on."""
    if not going.on:
        return tag("p", "No run is going on.", class_="more")
    run_id, state = going.runs[0]
    waiting = f", {len(going.runs) - 1} more wait" if len(going.runs) > 1 else ""
    head = tag("p", in_airflow(run_id, viewer.dag(dag, run_id)), f" {state}{waiting}")
    rows = []
    for s in _of(progress, going):
        name = text_of(s.get("state"))
        share = 1.0 if name in ("succeeded", "reused") else _part(s)
        rows.append(
            tag(
                "li",
                tag("span", text_of(s.get("title") or s.get("name"))),
                badge(name, _STATES.get(name, "error")),
                _bar(share) if name not in ("waiting", "off") else tag("span", ""),
                tag("span", said(s), class_="said"),
            )
        )
    return join(head, tag("ol", *rows, class_="steps") if rows else "")


def said(stage: Json) -> str:
    """What a stage says of itself: epoch, loss, mAP, time left."""
    words = []
    if integer(stage.get("epoch")) is not None:
        most = integer(stage.get("max_epoch"))
        words.append(f"epoch {integer(stage['epoch'])}" + (f" of {most}" if most else ""))
    if stage.get("state") == "running":
        if number(stage.get("loss")) is not None:
            words.append(f"loss {number(stage['loss']):.4g}")
        if number(stage.get("eta")):
            words.append(f"{clock(stage['eta'])} left")
    metrics = mapping(stage.get("metrics"))
    for name in ("val_mAP50", "mAP50"):
        if name in metrics:
            words.append(f"mAP@0.5 {figure(metrics[name])}")
            break
    if not words and stage.get("state") == "running":
        words.append(text_of(stage.get("message")))
    return ", ".join(words)


def _of(progress: Json, going: Going) -> list[Json]:
    """The stages, where they are those of the run that Airflow says is going on."""
    known = {run_id for run_id, state in going.runs if state == "running"}
    if progress.get("run_id") and progress["run_id"] not in known:
        return []
    return items(progress.get("stages"))


def _part(stage: Json) -> float:
    done, most = number(stage.get("epoch")), number(stage.get("max_epoch"))
    return min(1.0, max(0.0, done / most)) if done and most else 0.0


def _bar(share: float) -> Markup:
    percent = f"{100 * share:.0f}%"
    told = {"role": "progressbar", "aria_valuenow": f"{100 * share:.0f}", "aria_valuemin": "0", "aria_valuemax": "100"}
    return tag("span", tag("i", "", style=f"width:{percent}"), class_="bar-on", aria_label="progress", **told)
