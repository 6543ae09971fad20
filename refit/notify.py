"""Messages to people: what a pipeline file and a cluster profile say of them, and what stands in one.

Airflow sends them (`operators.notify`); nothing here knows how. A message says enough to act on without opening
anything: pipeline, run, what happened and why, what to do, the figures, and where to look.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field, model_validator

from refit.specs import Spec

Event = Literal["success", "failure", "approval", "drift", "stale"]
_RELEASES = ("release", "watch")  # their reasons say what serves
REASON, ADVICE, DRIFTS = 400, 300, 3  # what travels in a stage's result, which holds 2 KiB


class Notify(Spec):
    """Who is told of what. The address or the secret stands in Airflow's connection, never in a file."""

    to: Literal["slack", "email", "webhook"]
    connection: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,250}$", description="Airflow's connection, by its id")
    when: tuple[Event, ...] = Field(
        ("failure", "approval", "drift"), min_length=1, description="of what; the key `on` would be YAML's true"
    )
    max_age_days: float | None = Field(None, gt=0, description="of `stale`: a champion older than this is told of")
    address: list[str] = Field(default_factory=list, description="of an email: who gets it")

    @model_validator(mode="after")
    def _address(self) -> Notify:
        if (self.to == "email") != bool(self.address):
            raise ValueError("an email needs `address`, a list; slack and webhook take none")
        if ("stale" in self.when) != (self.max_age_days is not None):
            raise ValueError("`when: [stale]` and `max_age_days` go together")
        if any("@" not in a or not a.isprintable() for a in self.address):
            raise ValueError(f"{self.address} are no email addresses")
        return self


def facts(report: Mapping[str, Any], bind: Mapping[str, Any], champion: Mapping[str, Any]) -> dict[str, Any]:
    """What is told of a run, from its report.json (docs/contracts.md, "Published"), bind's report, and the index's word
    on the version that serves; below 2 KiB."""
    culprit: Mapping[str, Any] = next((s for s in report["stages"] if s["name"] == report["failed"]), {})
    release = report.get("release") or {}
    own = [m for m in report["models"] if m["name"] != "champion" and m.get("mAP50") is not None]
    drifts = [str(d["told"])[:200] for d in bind.get("drift", ()) if d.get("level") == "major"]
    found = {
        "state": report["state"],
        "stage": report["failed"],
        "outcome": culprit.get("state"),
        "reason": _cut(report["reason"], REASON),
        "advice": _cut(report["advice"], ADVICE),
        "model": release.get("model"),
        "version": release.get("version"),
        "previous": release.get("previous"),
        "release": release.get("outcome"),
        "metrics": {own[-1]["name"]: {k: own[-1][k] for k in ("mAP50", "mAP") if own[-1].get(k)}} if own else {},
        "images": sum(report["data"]["splits"].values()),
        "fingerprint": str(report["data"]["fingerprint"] or "")[:12],
        "drift": drifts[:DRIFTS],
        "champion": {key: champion[key] for key in ("model", "version", "since") if champion.get(key)},
        "cost": {k: v for k, v in report["cost"].items() if v},
    }
    return {key: value for key, value in found.items() if value not in (None, "", {}, [], 0)}


def _cut(text: str, most: int) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= most else line[: most - 1] + "…"


@dataclass(frozen=True)
class Message:
    """One message, before it takes the form of its way: a title, lines below it, and all of it as values."""

    title: str
    lines: Sequence[str]
    link: str
    values: Mapping[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        return "\n".join([self.title, *self.lines, self.link])

    def slack(self) -> str:
        """Slack's mrkdwn, in which these three characters alone have to be escaped."""
        safe = [
            line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") for line in (self.title, *self.lines)
        ]
        return "\n".join([f"*{safe[0]}*", *safe[1:], self.link])

    def markup(self) -> str:
        """HTML, for an email."""
        link = html.escape(self.link, quote=True)
        lines = "".join(f"<p>{html.escape(line)}</p>" for line in self.lines)
        return f'<h3>{html.escape(self.title)}</h3>{lines}<p><a href="{link}">{link}</a></p>'


def message(event: Event, pipeline: str, run: str, told: Mapping[str, Any], link: str) -> Message:
    """What is said of an event; `told` is of `facts`, or as much of it as is known."""
    lines = []
    stage, reason = told.get("stage"), told.get("reason")
    if event == "failure":
        title = f"{pipeline}: failed" + (f" at {stage}" if stage else "")
        if told.get("outcome"):
            title += f" ({told['outcome']})"
        lines.append(reason or "no reason was left; the log of the task says why")
        if told.get("advice"):
            lines.append(f"What to do: {told['advice']}")
        if stage not in (None, *_RELEASES):
            lines.append("What served before goes on serving.")
    elif event == "approval":
        title = f"{pipeline}: a release waits for approval"
        lines += (reason or "").splitlines()
        lines.append("What to do: answer it on the model's page, or under Required Actions of the run.")
    elif event == "stale":
        champion = told["champion"]
        title = f"{pipeline}: what serves is {told['days']:.0f} days old"
        lines.append(f"Version {champion['version']} of {champion['model']} serves since {champion['since']}.")
        lines.append("What to do: look whether new data come, and why the last runs released nothing.")
    elif event == "drift":
        title = f"{pipeline}: the new data differ from the last"
        lines.append("What to do: look at the data report of the run before you trust its figures.")
    else:
        title = f"{pipeline}: {_released(told)}"
    lines += [f"Drift: {line}" for line in told.get("drift", ())]
    lines += [f"{name}: {_figures(values)}" for name, values in told.get("metrics", {}).items()]
    about = [f"run {run}"] if run else []
    if told.get("images"):
        about.append(f"{told['images']:,} images ({told.get('fingerprint', '')})")
    cost = told.get("cost", {})
    about += [f"{cost[key]:,.0f} {word}" for key, word in (("seconds", "s"), ("gpu_seconds", "GPU s")) if key in cost]
    if cost.get("money"):
        about.append(f"{cost['money']['amount']:,.2f} {cost['money']['currency']}".strip())
    safe = [_plain(line) for line in (*lines, "; ".join(about)) if line]
    values = {"schema": 1, "event": event, "pipeline": pipeline, "run": run, "title": _plain(title), "link": link}
    return Message(_plain(title), safe, link, {**values, **told, "text": "\n".join([_plain(title), *safe, link])})


def _released(told: Mapping[str, Any]) -> str:
    if told.get("version") is None:
        return "done, nothing was released"
    before = f" (before: {told['previous']})" if told.get("previous") not in (None, told["version"]) else ""
    word = "serves already" if told.get("release") == "already_serving" else "serves"
    return f"version {told['version']} of {told.get('model', '')} {word}{before}"


def _figures(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
    )


def _plain(text: str) -> str:
    """One line without control characters: a subject of an email is a header."""
    return "".join(c if c.isprintable() else " " for c in text)
