"""The parity gate: does the Triton that will serve answer as the model did when it was evaluated?

It reads the answers that a Triton of the target's own image gave for pictures of the evaluation split (`refit.prove`)
as a client would: the pictures as they are, fed and read by model.json alone. What it holds them against came another
way: the detections of the evaluations, which went through the toolkit's own records, files and code. So a wrong channel
order, scale, letterbox, class number or output in model.json, which no test of the server could see, shows here.

Where the answers do not agree, the gate tries the likely mistakes one by one (`refit.prove.ways`, of which the server
was asked a few pictures as well, and `refit.gates.alternatives`) and names the one that mends it.

Two detections agree that are of one class and overlap (IoU) by OVERLAP or more. Of the detections above the client's
score threshold, on both sides, the share that the other side has (at half the threshold or more: near the threshold a
detection may come or go) is the agreement.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from refit.gates import bootstrap
from refit.gates.alternatives import Read, by_info, readings, relabelled
from refit.gates.verdict import GateError, State, Verdict
from refit.postprocess import Detections, Frame, InputInfo, ModelInfo, ModelInfoError, OutputError, Postprocess
from refit.postprocess.info import FILE_NAME
from refit.postprocess.nms import iou
from refit.prove import ways
from refit.prove.answers import Answers, AnswersError, Outputs
from refit.specs import Spec

SERVED, PLAIN = "served", "onnx"
OVERLAP = 0.7  # measured on the demo: INT8 against FP32 0.98 in the mean, 0.84 at the first percentile
NEARER = 0.1  # so much more agreement (or mAP) makes a suspicion worth telling
LITTLE = 0.02  # where all is well with it
SEED = 7  # of the draws
_LEAST = 0.05  # a client that asks for all scores is judged by those above the next
_USUAL = 0.3

Found = Sequence[Detections]


class ParitySpec(Spec):
    model: str = Field(description="which model Triton serves, for the message: quantized, retrained")
    proof: Path = Field(description="what prepare_proof wrote")
    answers: dict[str, Path] = Field(min_length=1, description="what prove wrote, by the kind of GPU; one is enough")
    references: dict[str, Path] = Field(
        default_factory=dict,
        description="name of a model -> detections.json of its evaluation, in the order in which they were made",
    )
    figures: dict[str, Path] = Field(
        default_factory=dict, description="of models whose detections are not known: name -> result.json with mAP50"
    )
    agreement: float = Field(0.95, ge=0, le=1)
    max_drop: float = Field(0.02, ge=0, le=1)
    score_threshold: float = Field(0.01, ge=0, le=1, description="of mAP, as in the evaluations")
    nms_iou: float = Field(0.5, ge=0, le=1)
    max_detections: int = Field(100, ge=1)
    min_box_px: float = Field(0.0, ge=0)
    policy: Literal["fail", "warn", "ask"] = "fail"


def parity(spec: ParitySpec) -> Verdict:
    """Judge the answers. Raises GateError."""
    try:
        case = Case(spec)
        judged = [_Judged(case, name, Answers.read(folder)) for name, folder in spec.answers.items()]
    except (AnswersError, ModelInfoError) as exc:
        raise GateError(str(exc)) from None
    faults = [fault for one in judged for fault in one.faults()]
    state: State = spec.policy if faults else "pass"
    reason = "; ".join(faults) if faults else ", ".join(one.told() for one in judged)
    return Verdict("parity", state, reason, {k: v for one in judged for k, v in one.figures().items()})


class Case:
    """What is known before a server's answers are read."""

    def __init__(self, spec: ParitySpec) -> None:
        self.spec = spec
        info = ModelInfo.read(spec.proof / FILE_NAME)
        given = info.postprocess.score_threshold
        self.threshold = given if _LEAST <= given <= 1 else _USUAL
        low = Postprocess(min(spec.score_threshold, self.threshold / 2), spec.nms_iou, spec.max_detections)
        self.info = replace(info, postprocess=low)
        self.truth = _json(spec.proof / "truth.json")
        if not self.truth["annotations"]:
            raise GateError(f"{spec.proof}: no object in the pictures that were asked about; label some of their split")
        self.size = {i["id"]: (int(i["width"]), int(i["height"])) for i in self.truth["images"]}
        self.every = list(range(len(self.size)))
        self.references = {name: self._reference(path) for name, path in spec.references.items()}

    def frames(self, entry: InputInfo, images: Sequence[int]) -> list[Frame]:
        return [Frame.fit(*self.size[at], entry) for at in images]

    def map50(self, found: Found, images: Sequence[int]) -> float:
        """mAP@0.5 of detections of these images; 0 where there is no object in them."""
        value = float(bootstrap.map50(self._matches(found, images), np.ones((1, len(images)), np.uint8))[0][0])
        return 0.0 if math.isnan(value) else value

    def interval(self, found: Found) -> bootstrap.Interval:
        draws = bootstrap.draws(len(self.every), SEED)
        return bootstrap.interval(bootstrap.map50(self._matches(found, self.every), draws)[0])

    def _matches(self, found: Found, images: Sequence[int]) -> dict[str, bootstrap.Matches]:
        chosen = set(images)
        truth = {
            **self.truth,
            "images": [i for i in self.truth["images"] if i["id"] in chosen],
            "annotations": [a for a in self.truth["annotations"] if a["image_id"] in chosen],
        }
        rows = [
            {"image_id": at, "category_id": int(c) + 1, "score": float(s), "bbox": [*box[:2], *(box[2:] - box[:2])]}
            for at, one in zip(images, found, strict=True)
            for box, s, c in zip(one.boxes.astype(float), one.scores, one.classes, strict=True)
        ]
        return bootstrap.matches(truth, rows, self.spec.max_detections, self.spec.min_box_px)

    def _reference(self, path: Path) -> list[Detections]:
        """Detections of an evaluation, for the pictures of this proof."""
        place = {str(i["file_name"]): int(i["id"]) for i in self.truth["images"]}
        found: list[list[Any]] = [[] for _ in place]
        try:
            # By names: which number a class has in model.json is one of the things that are judged.
            names = {c["id"]: c["name"] for c in _json(path.with_name("ground_truth.json"))["categories"]}
            classes = {number: self.info.classes.index(name) for number, name in names.items()}
            for row in _json(path):
                if row["file_name"] in place:
                    x, y, w, h = row["bbox"]
                    cls = classes[row["category_id"]]
                    found[place[row["file_name"]]].append((x, y, x + w, y + h, row["score"], cls))
            return [_detections(rows) for rows in found]
        except (KeyError, TypeError, ValueError) as exc:
            raise GateError(f"{path}: no detections of an evaluation ({exc!r}); run it again") from None


@dataclass(frozen=True)
class Likeness:
    """How two models agree on the same pictures.

    Attributes:
        share: of the detections of both that agree; 1 where there are none.
        close: the same, where each that agrees counts by its overlap.
        images: share of the pictures on which all of them agree.
        score, pixels: the largest difference of a score, and of an edge of a box, of those that agree.
    """

    share: float
    close: float
    images: float
    score: float
    pixels: float


def likeness(mine: Found, theirs: Found, threshold: float) -> Likeness:
    """Compare detections picture by picture (the module's docstring says how)."""
    hits = total = whole = 0
    score = pixels = close = 0.0
    for a, b in zip(mine, theirs, strict=True):
        there = right = 0
        for one, other in ((a.above(threshold), b.above(threshold / 2)), (b.above(threshold), a.above(threshold / 2))):
            for box, cls, s in zip(one.boxes, one.classes, one.scores, strict=True):
                overlap = iou(box, other.boxes) * (other.classes == cls) if len(other) else np.zeros(0)
                there += 1
                if len(overlap) and overlap.max() >= OVERLAP:
                    at = int(overlap.argmax())
                    right, close = right + 1, close + float(overlap[at])
                    score = max(score, abs(float(s - other.scores[at])))
                    pixels = max(pixels, float(np.abs(box - other.boxes[at]).max()))
        hits, total, whole = hits + right, total + there, whole + (right == there)
    share, close = (hits / total, close / total) if total else (1.0, 1.0)
    return Likeness(share, close, whole / len(mine), score, pixels)


@dataclass(frozen=True)
class _Trial:
    """How right the answers are where they are fed or read in another way: in their share and closely (`Likeness`), or
    twice as mAP@0.5."""

    told: str
    key: str
    share: float = 0.0
    close: float = 0.0
    seen: Found = ()


class _Judged:
    """One server's answers, against what is known."""

    def __init__(self, case: Case, place: str, answers: Answers) -> None:
        self.case, self.spec, self.answers, self.place = case, case.spec, answers, place
        self.triton = f"Triton {answers.triton}" + (f" on {place}" if place else "")

    # -- the client's way --

    @cached_property
    def served(self) -> list[Detections] | str:
        """What a client finds; the reason why it finds nothing."""
        return self._read(SERVED)

    @cached_property
    def plain(self) -> list[Detections] | None:
        """The same of the FP32 model, where the server could be asked about it."""
        found = self._read(PLAIN) if self.answers.of(PLAIN, ways.CLIENT) else ""
        return None if isinstance(found, str) else found

    @cached_property
    def compared(self) -> dict[str, Likeness]:
        """The served model against each that is known by its detections."""
        served, known = self.served, dict(self.case.references)
        if isinstance(served, str):
            return {}
        if self.plain is not None:
            known[PLAIN] = self.plain
        return {name: likeness(served, found, self.case.threshold) for name, found in known.items()}

    @cached_property
    def scores(self) -> dict[str, float]:
        """mAP@0.5 on the pictures of the proof, of each form of the model."""
        forms: dict[str, Found] = dict(self.case.references)
        if self.plain is not None:
            forms[PLAIN] = self.plain
        if not isinstance(self.served, str):
            forms[SERVED] = self.served
        return {name: self.case.map50(found, self.case.every) for name, found in forms.items()}

    def _read(self, role: str) -> list[Detections] | str:
        if role in self.answers.unloaded:
            return f"cannot load the model: {self.answers.unloaded[role]}"
        found, images = self.answers.of(role, ways.CLIENT), self.case.every
        for at in images:
            if at not in found:
                error = self.answers.errors.get((role, ways.CLIENT, at), "it was not asked")
                return f"gave no answer for picture {at}: {error}"
        try:
            read = by_info(self.case.info)
            frames = self.case.frames(self.case.info.input, images)
            return [read(found[at], frame) for at, frame in zip(images, frames, strict=True)]
        except OutputError as exc:
            return f"answers what {FILE_NAME} cannot read: {exc}"

    # -- the verdict --

    def faults(self) -> list[str]:
        served = self.served
        if isinstance(served, str):
            return [f"{self.triton} {served}{self._suspicion()}"]
        found = list(self._apart())
        if not found:
            return []
        text = f"{self.triton} does not answer as {' and as '.join(found)}: mAP50 is {self.scores[SERVED]:.3f} on "
        text += f"{len(self.case.every)} pictures, at least {self.spec.agreement:.0%} must agree"
        return [f"{text}{self._suspicion()}"]

    def _apart(self) -> Iterator[str]:
        """The models as which it does not answer, and by how much."""
        value = self.scores[SERVED]
        for name, like in self.compared.items():
            if like.share < self.spec.agreement or self.scores[name] - value > self.spec.max_drop:
                before = f"{like.share:.0%} of the objects agree, its mAP50 was {self.scores[name]:.3f}"
                yield f"the {name} model did ({before})"
        for name, path in self.spec.figures.items():
            figure = _figure(path)
            sure = self.case.interval(self.served) if not isinstance(self.served, str) else None
            if figure is not None and sure is not None and figure - self.spec.max_drop > max(sure.high, value):
                here = f"here {sure.low:.3f} to {sure.high:.3f} at {bootstrap.LEVEL:.0%}"
                yield f"the {name} model was evaluated (mAP50 {figure:.3f}, {here})"

    def told(self) -> str:
        """A good server, in a sentence."""
        count = len(self.case.every)
        against = ", ".join(f"{name} ({like.share:.1%} of the objects)" for name, like in self.compared.items())
        figures = ", ".join(f"{name} {value:.3f}" for name, value in self.scores.items() if name != SERVED)
        text = f"{self.triton} answers {'as ' + against if against else 'well'} on {count} pictures"
        return f"{text}; mAP50 {self.scores[SERVED]:.3f}" + (f" ({figures})" if figures else "")

    def figures(self) -> dict[str, float]:
        end = f" on {self.place}" if self.place else ""
        found = {"images": float(len(self.case.every))}
        found |= {f"mAP50 {name}": value for name, value in self.scores.items()}
        for name, like in self.compared.items():
            found |= {f"agreement {name}": like.share, f"images that agree {name}": like.images}
            found |= {f"score difference {name}": like.score, f"box difference {name}": like.pixels}
        found |= {f"milliseconds {name}": value for name, value in self.answers.milliseconds.items()}
        return {f"{name}{end}": round(value, 6) for name, value in found.items()}

    # -- what mends it --

    def _suspicion(self) -> str:
        """The end of the sentence: which single mistake would explain it."""
        if SERVED in self.answers.unloaded:
            return ""
        given, trials = self._trials()
        best = max(trials, key=lambda trial: trial.close, default=None)
        mended = best is not None and best.share >= self.spec.agreement and bool(self.case.references)
        if best is None or best.close < given.close + (LITTLE if mended else NEARER):
            return f"; no single mistake in {FILE_NAME} that is known here explains it"
        change = f"({given.share:.2f} -> {best.share:.2f})"
        if mended:
            return f"; the answers agree {change} where {best.told}: {best.key} of {FILE_NAME} is wrong"
        what = "agreement" if self.case.references else "mAP50"
        return f"; it comes nearer ({what} {change[1:]} where {best.told}: look at {best.key} of {FILE_NAME}"

    def _trials(self) -> tuple[_Trial, list[_Trial]]:
        """How right the client's way is on the pictures that were fed in other ways as well; how right each is."""
        case, info = self.case, self.case.info
        every = self.answers.of(SERVED, ways.CLIENT)
        others = {way: self.answers.of(SERVED, way.name) for way in ways.others(info.input)}
        images = sorted(set(every).intersection(*(found for found in others.values() if found))) or sorted(every)
        wanted = self._wanted(images)

        def trial(found: Mapping[int, Outputs], entry: InputInfo, read: Read, told: str = "", key: str = "") -> _Trial:
            try:
                frames = case.frames(entry, images)
                seen = [read(found[at], frame) for at, frame in zip(images, frames, strict=True)]
            except (OutputError, KeyError):
                return _Trial(told, key)
            return judged(seen, told, key)

        def judged(seen: Found, told: str, key: str) -> _Trial:
            if not case.references:
                value = case.map50(seen, images)
                return _Trial(told, key, value, value, seen)
            like = likeness(seen, wanted, case.threshold)
            return _Trial(told, key, like.share, like.close, seen)

        read = by_info(info)
        given = trial(every, info.input, read)
        if not images:
            return given, []
        trials = [trial(found, way.entry, read, way.told, way.key) for way, found in others.items() if found]
        for reading in readings(info, every[images[0]]):
            trials.append(trial(every, info.input, reading.read, reading.told, reading.key))
        mine, theirs = ([d.above(case.threshold) for d in found] for found in (given.seen, wanted))
        if given.seen and (renaming := relabelled(mine, theirs, info.classes)) is not None:
            told, names = renaming
            turn = np.array([names.get(c, c) for c in range(len(info.classes))])
            renamed = [Detections(d.boxes, d.scores, turn[d.classes]) for d in given.seen]
            trials.append(judged(renamed, told, "classes (or class_ids)"))
        return given, trials

    def _wanted(self, images: Sequence[int]) -> list[Detections]:
        """What should be found: by the first reference, which came the trainer's way, else the truth."""
        for reference in self.case.references.values():
            return [reference[at] for at in images]
        rows: dict[int, list[Any]] = {at: [] for at in images}
        for a in self.case.truth["annotations"]:
            if a["image_id"] in rows:
                x, y, w, h = a["bbox"]
                rows[a["image_id"]].append((x, y, x + w, y + h, 1.0, a["category_id"] - 1))
        return [_detections(found) for found in rows.values()]


def _detections(rows: Sequence[Any]) -> Detections:
    """Of rows x1, y1, x2, y2, score, class; best first."""
    table = np.array(rows, np.float64).reshape(-1, 6)
    table = table[np.argsort(-table[:, 4], kind="stable")]
    return Detections(table[:, :4].astype(np.float32), table[:, 4].astype(np.float32), table[:, 5].astype(np.int64))


def _figure(path: Path) -> float | None:
    """mAP@0.5 of a stage's result.json; None where it was measured in another way."""
    value = _json(path).get("metrics", {}).get("mAP50")
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise GateError(f"{path}: cannot be read ({exc}); run the stage that makes it again") from None
