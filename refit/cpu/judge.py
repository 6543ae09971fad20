"""Judging a rung of the INT8 ladder: what it loses on the evaluation set, by class too, and how fast it is here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from refit.command import BadData, BadSpec
from refit.cpu import latency
from refit.cpu.evaluate import find
from refit.cpu.latency import Speed
from refit.cpu.models import Predictor
from refit.cpu.records import Dataset
from refit.cpu.scoring import score
from refit.cpu.specs import QuantizeSpec
from refit.postprocess import Postprocess

_MAX_DROP = 0.01  # a pipeline gives that of its gate
SETTINGS = {"splits"}  # of EvaluateParams: what results.json keeps apart from the thresholds


@dataclass(frozen=True)
class Figures:
    """The metric that is judged, and the average precision of each class that has one."""

    value: float
    classes: Mapping[str, float]


@dataclass(frozen=True)
class Try:
    """One rung, judged.

    Attributes:
        name: the rung, and which of its tries.
        how: in words.
        drop, drops: what it lost against float32, in all and by class.
        speed: for each batch size; none of the float32 model.
        floats: layers that stay float32, where that was this try's choice.
        failed: why it does not pass, a sentence each; none: it passes.
        causes: where the loss comes from, as far as it could be found.
        skipped: why it was not tried; then nothing else is given.
    """

    name: str
    how: str = ""
    value: float | None = None
    drop: float = 0.0
    drops: Mapping[str, float] = field(default_factory=dict)
    speed: tuple[Speed, ...] = ()
    bytes: int = 0
    floats: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    slow: bool = False
    causes: tuple[str, ...] = ()
    seconds: float = 0.0
    skipped: str = ""

    @property
    def passed(self) -> bool:
        return not self.failed and not self.skipped

    @property
    def worst(self) -> tuple[str, float] | None:
        """The class that lost most."""
        return max(self.drops.items(), key=lambda item: item[1]) if self.drops else None

    def to_json(self) -> dict[str, Any]:
        speed = [{**asdict(s), "images_per_second": s.images_per_second} for s in self.speed]
        return {**asdict(self), "speed": speed, "passed": self.passed}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Try:
        """Raises KeyError or TypeError where it is none."""
        own: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k != "passed"}
        speed = tuple(Speed(**{k: v for k, v in s.items() if k != "images_per_second"}) for s in data["speed"])
        return Try(**{**own, "speed": speed})


class Judge:
    """Holds tries against the float32 model.

    Raises:
        BadSpec: the baseline's figures are of other data or thresholds, or there is no such split.
        BadData: no object in the split that is judged.
    """

    def __init__(self, spec: QuantizeSpec, full: Predictor, dataset: Dataset) -> None:
        self._spec, self._full, self._dataset = spec, full, dataset
        self.max_drop = _MAX_DROP if spec.max_drop is None else spec.max_drop
        self.split = spec.evaluate.splits[0]
        if self.split not in dataset.splits:
            raise BadSpec(f"evaluate.splits: the data has no {self.split!r}; it has {', '.join(dataset.splits)}")
        self.baseline = self._given(Path(spec.baseline)) if spec.baseline else self.figures(full)

    def figures(self, model: Predictor) -> Figures:
        """Evaluate a model as `evaluate` does, on the first split."""
        e = self._spec.evaluate
        settings = Postprocess(e.score_threshold, e.nms_iou, e.max_detections)
        truth, found = find(model, model.info, self._dataset.split(self.split), settings, e.min_box_px)
        scores = score(truth, found, self._dataset.classes, e.max_detections, e.min_box_px)
        fifty = self._spec.metric == "mAP50"
        value, classes = (scores.map50, scores.ap50) if fifty else (scores.map, scores.ap)
        if value is None:
            raise BadData(f"{self._dataset.folder}: no object to find in split {self.split!r}; label some images in it")
        return Figures(value, {name: v for name, v in classes.items() if v is not None})

    def _given(self, path: Path) -> Figures:
        """The figures of the model before, which its own evaluation made."""
        try:
            results = json.loads(path.read_text(encoding="utf-8"))
            thresholds, fingerprint = results["thresholds"], results["dataset"]["fingerprint"]
            split = next(iter(results["splits"]))
            value = float(results["metrics"][self._spec.metric])
            name = "AP50" if self._spec.metric == "mAP50" else "AP"
            classes = {c: float(v[name]) for c, v in results["per_class"].items() if v[name] is not None}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration) as exc:
            raise BadSpec(f"baseline {path}: is no results.json of evaluate ({exc!r}); run that stage again") from None
        wanted = self._spec.evaluate.model_dump(exclude=SETTINGS)
        for what, was, is_ in (
            ("data", fingerprint, self._dataset.fingerprint),
            ("split", split, self.split),
            ("thresholds", thresholds, wanted),
        ):
            if was != is_:
                raise BadSpec(f"baseline {path}: was evaluated with another {what} ({was}) than this stage ({is_})")
        return Figures(value, classes)

    def judge(self, name: str, how: str, model: Predictor, floats: tuple[str, ...]) -> Try:
        """Evaluate and time one try; `causes` and `seconds` are left to the caller."""
        now = self.figures(model)
        speed = tuple(latency.compare(self._full, model, batch) for batch in latency.BATCHES)
        drop = self.baseline.value - now.value
        drops = {c: round(v - now.classes[c], 6) for c, v in self.baseline.classes.items() if c in now.classes}
        lost = self._lost(now, drop, drops)
        slow: tuple[str, ...] = ()
        if self._spec.min_speedup is not None and self._spec.activation == "uint8":
            speed, slow = self._slow(model, speed, self._spec.min_speedup)
        return Try(
            name,
            how,
            round(now.value, 6),
            round(drop, 6),
            drops,
            speed,
            model.path.stat().st_size,
            floats,
            (*lost, *slow),
            bool(slow),
        )

    def _lost(self, now: Figures, drop: float, drops: Mapping[str, float]) -> tuple[str, ...]:
        spec, lost = self._spec, []
        before = self.baseline.value
        if drop > self.max_drop:
            lost.append(f"lost {drop:.4f} {spec.metric} ({before:.4f} -> {now.value:.4f}), more than {self.max_drop:g}")
        for name, value in drops.items():
            if spec.max_drop_class is not None and value > spec.max_drop_class:
                lost.append(f"lost {value:.4f} of the AP of {name}, more than {spec.max_drop_class:g}")
        if spec.floor is not None and now.value < spec.floor <= before:
            lost.append(f"its {spec.metric} of {now.value:.4f} is below the floor of {spec.floor:g}")
        return tuple(lost)

    def _slow(
        self, model: Predictor, speed: tuple[Speed, ...], least: float
    ) -> tuple[tuple[Speed, ...], tuple[str, ...]]:
        """What is shown to be too slow, twice in a row: a burst of other work is no property of a model."""
        again = tuple(latency.compare(self._full, model, s.batch) if s.high < least else s for s in speed)
        slow = tuple(
            f"is {s.speedup:.2f} times as fast as float32 at batch {s.batch} ({s.low:.2f} to {s.high:.2f} at 99%), "
            f"less than {least:g}"
            for s in again
            if s.high < least
        )
        return again, slow
