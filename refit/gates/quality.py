"""The quality gate: is this model good enough, and did pruning or INT8 cost too much?

It compares figures of evaluate stages of one run for the same split of the same data with the same thresholds. Refit's
own write them into `results.json` with all of these, and what differs is refused. Of other commands the runner has
read the figures into its `result.json`; that they are told to evaluate alike is judged before they run
(`refit.tao.preflight`).

Where the detections lie beside results.json, confidence intervals of mAP@0.5 are told (`refit.gates.bootstrap`): of the
model, and of the difference between two, drawn on the same images.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from refit.gates import bootstrap
from refit.gates.verdict import GateError, State, Verdict
from refit.specs import Spec

# What must be equal for two results to be comparable: old systems evaluated boxes >= 5x5 before pruning and
# >= 20x10 after it, so that their figures said nothing.
SAME = ("dataset", "splits", "thresholds")
CLASS = "AP50/"
SEED = 7  # of the draws: the same results give the same verdict, to the last digit


class QualitySpec(Spec):
    model: str = Field(description="which model is judged, for the message: trained, retrained, quantized")
    metric: Literal["mAP50", "mAP"] = "mAP50"
    candidate: str = Field(description="results.json of the model, or the result.json of its evaluate stage")
    baseline: str | None = Field(None, description="the same of the model before it, or of the one that serves")
    against: str = Field("before", description="what the baseline is, for the message")
    floor: float | None = Field(None, ge=0, le=1)
    max_drop: float | None = Field(None, ge=0, le=1)
    only_shown: bool = Field(
        False, description="a drop counts only where the images show that the model is worse (95 %), if they can tell"
    )
    policy: Literal["fail", "warn"] = "fail"
    evaluation: str | None = Field(None, description="the version of the evaluation set that the figures rest on")
    evaluation_before: str | None = Field(None, description="that of the figures before, where it is another one")


def quality(spec: QualitySpec) -> Verdict:
    """Judge a model by a floor and by its drop against the model before it. Raises GateError."""
    candidate = _results(spec.candidate)
    value = _metric(candidate, spec.metric, spec.candidate)
    drawn = _drawn(spec.candidate, candidate) if spec.metric == "mAP50" else None
    figures: dict[str, float] = {spec.metric: value}
    named = f"{spec.metric} of the {spec.model} model is {value:.3f}"
    if drawn is not None:
        sure = bootstrap.interval(drawn)
        figures.update(low=max(sure.low, 0.0), high=min(sure.high, 1.0))
        named += f" ({figures['low']:.3f} to {figures['high']:.3f} at {bootstrap.LEVEL:.0%})"
    bad, good = [], [named]
    if spec.floor is not None:
        figures["floor"] = spec.floor
        if value < spec.floor:
            bad.append(f"{named}, below the floor of {spec.floor:.3f}")
        else:
            good.append(f"at least {spec.floor:.3f}")
    if spec.baseline is not None:
        baseline = _results(spec.baseline)
        _comparable(candidate, baseline, spec)
        before = _metric(baseline, spec.metric, spec.baseline)
        drop = before - value
        figures.update(baseline=before, drop=drop)
        told = _difference(drawn, _drawn(spec.baseline, baseline), figures) if drawn is not None else ""
        worst = _worst_class(candidate, baseline)
        if worst:
            figures[f"drop of {worst[0]}"] = worst[1]
        if spec.max_drop is not None:
            figures["max_drop"] = spec.max_drop
            shown = figures.get("drop_low", 1.0) > 0 or not spec.only_shown
            if drop > spec.max_drop and shown:
                note = f"; {worst[0]} lost most ({worst[1]:+.3f})" if worst else ""
                bad.append(
                    f"the {spec.model} model lost {drop:.3f} {spec.metric} ({before:.3f} -> {value:.3f}), "
                    f"more than {spec.max_drop:.3f}{note}{told}"
                )
            else:
                good.append(f"{-drop:+.3f} against {before:.3f} {spec.against}{told}")
    state: State = "pass" if not bad else "fail" if spec.policy == "fail" else "warn"
    return Verdict("quality", state, ("; ".join(bad) or ", ".join(good)) + _other_set(spec), figures)


def _other_set(spec: QualitySpec) -> str:
    """What must be known before the figure is held against one of another time."""
    if not spec.evaluation or spec.evaluation_before in (None, spec.evaluation):
        return ""
    now, before = spec.evaluation[:12], str(spec.evaluation_before)[:12]
    return f"; measured on evaluation set {now}: figures of before, on {before}, cannot be compared with it"


def _difference(now: bootstrap.Floats, before: bootstrap.Floats | None, figures: dict[str, float]) -> str:
    """What the images say about which of two models is better, as the end of a sentence; adds the figures."""
    if before is None or len(before) != len(now):
        return ""
    drop = bootstrap.interval(before - now)
    figures.update(drop_low=drop.low, drop_high=drop.high)
    told = "worse" if drop.low > 0 else "better" if drop.high < 0 else "no difference that these images could show"
    return f" ({told}: {-drop.high:+.3f} to {-drop.low:+.3f} at {bootstrap.LEVEL:.0%})"


def _drawn(path: str, results: dict[str, Any]) -> bootstrap.Floats | None:
    """mAP@0.5 of each draw of the first split's images; None where the detections were not written beside `path`."""
    folder = Path(path).parent
    files = [folder / "ground_truth.json", folder / "detections.json"]
    if Path(path).name != "results.json" or not all(f.exists() for f in files):
        return None
    thresholds = results.get("thresholds", {})
    try:
        truth, found = (json.loads(f.read_text(encoding="utf-8")) for f in files)
        matched = bootstrap.matches(
            truth, found, int(thresholds.get("max_detections", 100)), float(thresholds.get("min_box_px", 0.0))
        )
        drawn = bootstrap.map50(matched, bootstrap.draws(len(truth["images"]), SEED))[0]
        return None if math.isnan(drawn[0]) else drawn
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise GateError(f"{folder}: its detections cannot be read ({exc!r}); run the evaluate stage again") from None


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
