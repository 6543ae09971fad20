"""The quality gate: is this model good enough, and did pruning or INT8 cost too much?

It compares figures of evaluate stages of one run for the same split of the same data with the same thresholds. Refit's
own write them into `results.json` with all of these, and what differs is refused. Of other commands the runner has
read the figures into its `result.json`; that they are told to evaluate alike is judged before they run
(`refit.tao.preflight`).

Where the detections lie beside results.json, confidence intervals of mAP@0.5 are told (`refit.gates.bootstrap`): of the
model, and of the difference between two, drawn on the same images; and a class or a slice that lost while the whole did
not is found (`refit.gates.detected`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from refit.gates import bootstrap, detected
from refit.gates.verdict import Compared, GateError, State, Verdict
from refit.specs import Spec

# What must be equal for two results to be comparable: old systems evaluated boxes >= 5x5 before pruning and
# >= 20x10 after it, so that their figures said nothing.
SAME = ("dataset", "splits", "thresholds")
CLASS = "AP50/"
EARLIER = "before"  # the baseline is the model before it in this run; another one is what serves
_NOTHING = 0.0005  # of a metric: 0.000 in every report


class QualitySpec(Spec):
    model: str = Field(description="which model is judged, for the message: trained, retrained, quantized")
    metric: Literal["mAP50", "mAP"] = "mAP50"
    candidate: str = Field(description="results.json of the model, or the result.json of its evaluate stage")
    baseline: str | None = Field(None, description="the same of the model before it, or of the one that serves")
    against: str = Field(EARLIER, description="what the baseline is, for the message")
    floor: float | None = Field(None, ge=0, le=1)
    max_drop: float | None = Field(None, ge=0, le=1)
    only_shown: bool = Field(
        False, description="a drop counts only where the images show that the model is worse (95 %), if they can tell"
    )
    policy: Literal["fail", "warn", "ask"] = "fail"
    max_drop_class: float | None = Field(
        None, ge=0, le=1, description="most that a class or a slice may lose, where the images show it; null: told only"
    )
    slices: list[detected.Slice] = Field(default_factory=list, description="beside the classes")
    snapshot: str | None = Field(None, description="of the images: their groups and tags")
    ladder: str | None = Field(None, description="ladder.json of the stage that made the model: which rung is told")
    evaluation: str | None = Field(None, description="the version of the evaluation set that the figures rest on")
    evaluation_before: str | None = Field(None, description="that of the figures before, where it is another one")


def quality(spec: QualitySpec) -> Verdict:
    """Judge a model by a floor and by its drop against the model before it. Raises GateError."""
    candidate = _results(spec.candidate)
    value = _metric(candidate, spec.metric, spec.candidate)
    found = detected.read(spec.candidate, candidate) if spec.metric == "mAP50" else None
    drawn = detected.total(found) if found is not None else None
    figures: dict[str, float] = {spec.metric: value}
    named = f"{spec.metric} of the {spec.model} model is {value:.3f}"
    if drawn is not None:
        sure = bootstrap.interval(drawn)
        figures.update(low=max(sure.low, 0.0), high=min(sure.high, 1.0))
        named += f" ({figures['low']:.3f} to {figures['high']:.3f} at {bootstrap.LEVEL:.0%})"
    bad, good, odd = [], [named], list[str]()
    compared: Compared | None = None
    parts: list[detected.Part] = []
    if spec.floor is not None:
        figures["floor"] = spec.floor
        if value < spec.floor:
            bad.append(f"{named}, below the floor of {spec.floor:.3f}")
        else:
            good.append(f"at least {spec.floor:.3f}")
    elif value < _NOTHING:
        bad.append(f"{named}: it finds nothing; train it longer, or look at its classes and labels")
    baseline = _results(spec.baseline) if spec.baseline is not None else {}
    if why := baseline.get("missing"):
        odd.append(f"not compared with the model {spec.against}: {why}")
    elif spec.baseline is not None:
        _comparable(candidate, baseline, spec)
        before = _metric(baseline, spec.metric, spec.baseline)
        drop = before - value
        figures.update(baseline=before, drop=drop)
        found_before = detected.read(spec.baseline, baseline) if found is not None else None
        told = ""
        if found is not None and found_before is not None and drawn is not None:
            compared = _compare(drawn, detected.total(found_before), figures)
            parts = detected.compare(found, found_before, spec.slices, Path(spec.snapshot) if spec.snapshot else None)
        if compared is not None:
            said = "no difference that these images could show" if compared == "equal" else compared
            bounds = f"{-figures['drop_high']:+z.3f} to {-figures['drop_low']:+z.3f}"
            told = f" ({said}: {bounds} at {bootstrap.LEVEL:.0%})"
        worst = _worst_class(candidate, baseline)
        if worst:
            figures[f"drop of {worst[0]}"] = worst[1]
        if spec.max_drop is not None:
            figures["max_drop"] = spec.max_drop
            shown = figures.get("drop_low", 1.0) > 0 or not spec.only_shown
            if drop > spec.max_drop and shown:
                note = f"; {worst[0]} lost most ({worst[1]:.3f})" if worst else ""
                bad.append(
                    f"the {spec.model} model lost {drop:.3f} {spec.metric} ({before:.3f} -> {value:.3f}), "
                    f"more than {spec.max_drop:.3f}{note}{told}"
                )
            else:
                good.append(f"{-drop:+z.3f} against {before:.3f} {spec.against}{told}")
            lost = _lost(parts, worst, spec)
            bad += lost[0]
            odd += lost[1]
    state: State = spec.policy if bad else "warn" if odd else "pass"
    reason = "; ".join([*bad, *odd] if bad else [", ".join(good), *odd]) + _rung(spec) + _other_set(spec)
    return Verdict("quality", state, reason, figures, compared, tuple(part.to_json() for part in parts))


def _lost(
    parts: Sequence[detected.Part], worst: tuple[str, float] | None, spec: QualitySpec
) -> tuple[list[str], list[str]]:
    """Classes and slices that lost, while the whole may not have: those that are a reason to say no, and others to be
    told. Where the images show it, the limit decides; without detections nothing shows that it is no chance."""
    limit = spec.max_drop_class
    lost = sorted((part for part in parts if part.worse), key=lambda part: -part.drop.value)
    over = [part for part in lost if limit is not None and part.drop.value > limit]
    odd = [part for part in lost if part not in over and limit is None]
    bad = [f"{_named(over)}; the images show it, and {limit:.3f} may be lost"] if over else []
    told = [f"{_named(odd)}; the images show it"] if odd else []
    if not parts and worst and limit is not None and worst[1] > limit:
        told.append(
            f"class {worst[0]} lost {worst[1]:.3f}, more than {limit:.3f}; no detections show if that is chance"
        )
    return bad, told


def _named(parts: Sequence[detected.Part]) -> str:
    more = f" and {len(parts) - 3} more" if len(parts) > 3 else ""
    return ", ".join(map(str, parts[:3])) + more


def _rung(spec: QualitySpec) -> str:
    """By which rung of the INT8 ladder the model was made, as the end of a sentence."""
    if spec.ladder is None:
        return ""
    report = _results(spec.ladder)
    tried = [t for t in report.get("rungs", []) if not t.get("skipped")]
    return f"; made by rung {report.get('winner')}, tried {len(tried)} (see its ladder.json)"


def _other_set(spec: QualitySpec) -> str:
    """What must be known before the figure is held against one of another time.

    The champion is measured in this run, on this very set. What can be unfair is that it had learnt some of it, where
    the set was drawn anew: that makes the gate too strict, never too kind.
    """
    if not spec.evaluation or spec.evaluation_before in (None, spec.evaluation):
        return ""
    now, before = spec.evaluation[:12], str(spec.evaluation_before)[:12]
    if spec.against == EARLIER:
        return f"; measured on evaluation set {now}: figures of earlier runs, on {before}, cannot be compared with it"
    return (
        f"; both measured now, on evaluation set {now}; the champion was released by figures on {before}, and may have "
        "trained on pictures of today's set, where that was drawn anew"
    )


def _compare(now: bootstrap.Floats, before: bootstrap.Floats | None, figures: dict[str, float]) -> Compared | None:
    """What the images say about which of two models is better; adds the figures."""
    if before is None or len(before) != len(now):
        return None
    drop = bootstrap.interval(before - now)
    figures.update(drop_low=drop.low, drop_high=drop.high)
    return "worse" if drop.low > 0 else "better" if drop.high < 0 else "equal"


def _results(path: str) -> dict[str, Any]:
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise GateError(f"{path}: cannot be read as evaluation results ({exc}); run the evaluate stage again") from None
    if not isinstance(data, dict):
        raise GateError(f"{path}: is no JSON object; run the evaluate stage again")
    return data


def _metric(results: dict[str, Any], metric: str, path: str) -> float:
    value = results.get("metrics", {}).get(metric)
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise GateError(f"{path}: has no finite metric {metric} (it is {value!r}); the evaluation is not usable")
    return float(value)


def _comparable(candidate: dict[str, Any], baseline: dict[str, Any], spec: QualitySpec) -> None:
    for name in SAME:
        if candidate.get(name) != baseline.get(name):
            raise GateError(
                f"{spec.candidate} and {spec.baseline} were evaluated with different {name} "
                f"({candidate.get(name)!r} against {baseline.get(name)!r}): their figures cannot be compared"
            )


def _worst_class(candidate: dict[str, Any], baseline: dict[str, Any]) -> tuple[str, float] | None:
    now, before = _by_class(candidate), _by_class(baseline)
    drops = {name: before[name] - now[name] for name in now if name in before}
    return max(drops.items(), key=lambda item: item[1]) if drops else None


def _by_class(results: dict[str, Any]) -> dict[str, float]:
    """AP50 of each class that has one: `per_class` of results.json, `AP50/<class>` in metrics of result.json."""
    found = {name: figures.get("AP50") for name, figures in results.get("per_class", {}).items()}
    found |= {k.removeprefix(CLASS): v for k, v in results.get("metrics", {}).items() if k.startswith(CLASS)}
    return {k: float(v) for k, v in found.items() if isinstance(v, int | float) and math.isfinite(v)}
