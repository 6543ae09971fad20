"""`answered`: the figures of the version that serves and of its challenger, by what one Triton answered of both.

It reads the answers for every picture of the evaluation set (`refit.prove`) as the models' clients do, and scores them
alike: AP at an overlap of 0.5, as pycocotools computes it (`refit.gates.bootstrap`). Written to `out`, for the quality
gate: `results.json`, `detections.json` and `ground_truth.json` of the version that serves, `challenger/` with the same
of the challenger. A version that this Triton cannot load (a plan of another TensorRT) has no figures: its
`results.json` says why under `missing`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from refit.command import BadData, StageError
from refit.files import write_json, write_text
from refit.gates import bootstrap
from refit.gates.alternatives import by_info
from refit.postprocess import Detections, Frame, ModelInfo, ModelInfoError, OutputError, Postprocess
from refit.postprocess.info import FILE_NAME
from refit.prove import ways
from refit.prove.answers import Answers, AnswersError
from refit.prove.prepare import CHAMPION, CHAMPION_INFO, SERVED
from refit.specs import Spec
from refit.status import StatusWriter

CHALLENGER = "challenger"


class AnsweredSpec(Spec):
    asked: Path = Field(description="what prepare_champion wrote")
    answers: Path = Field(description="what prove_champion wrote")
    score_threshold: float = Field(0.01, ge=0, le=1, description="detections below it are not scored")
    nms_iou: float = Field(0.5, ge=0, le=1)
    max_detections: int = Field(100, ge=1)
    min_width: float = Field(0, ge=0, description="narrower objects are neither right nor wrong, pixels")
    min_height: float = Field(0, ge=0)


def run(spec: AnsweredSpec, out: Path, status: StatusWriter) -> None:
    """Score both; see the module's docstring.

    Raises:
        StageError: the challenger is not served, or its answers are none.
        BadData: nothing is there to be found.
    """
    try:
        case = _Case(spec, Answers.read(spec.answers), _truth(spec))
        mine = case.score(SERVED, ways.CLIENT, FILE_NAME, out / CHALLENGER)
        if isinstance(mine, str):
            raise StageError(f"the challenger: {mine}")
        theirs = case.score(CHAMPION, CHAMPION, CHAMPION_INFO, out)
    except (AnswersError, ModelInfoError) as exc:
        raise StageError(str(exc)) from None
    told = f"mAP50 {mine:.4f} of the challenger on {len(case.truth['images'])} pictures"
    if isinstance(theirs, str):
        write_json(out / "results.json", {"schema": 1, "missing": theirs})
        status.success(f"{told}; the version that serves: {theirs}")
        return
    status.success(f"{told}, {theirs:.4f} of the version that serves.", {"mAP50": round(theirs, 6)})


@dataclass(frozen=True, eq=False)
class _Case:
    spec: AnsweredSpec
    answers: Answers
    truth: Mapping[str, Any]

    def score(self, role: str, way: str, described: str, folder: Path) -> float | str:
        """Write the figures of a model into a folder; gives its mAP50, or the reason why it has none. One model is
        done with before the next: the detections of a large set take hundreds of megabytes. Raises ModelInfoError."""
        info = ModelInfo.read(self.spec.asked / described)
        if role in self.answers.unloaded:
            return f"Triton {self.answers.triton} cannot load it: {self.answers.unloaded[role]}"
        spec = self.spec
        read = by_info(replace(info, postprocess=Postprocess(spec.score_threshold, spec.nms_iou, spec.max_detections)))
        given = self.answers.of(role, way)
        numbers = {str(c["name"]): int(c["id"]) for c in self.truth["categories"]}
        found: list[dict[str, Any]] = []
        for image in self.truth["images"]:
            at = image["id"]
            if at not in given:
                error = self.answers.errors.get((role, way, at), "it was not asked")
                return f"Triton {self.answers.triton} gave no answer for {image['file_name']}: {error}"
            try:
                one = read(given[at], Frame.fit(image["width"], image["height"], info.input))
            except OutputError as exc:
                return f"its answers are not what its {FILE_NAME} says: {exc}"
            found += _rows(image, one, [numbers[name] for name in info.classes])
        matched = bootstrap.matches(self.truth, found, spec.max_detections, min(spec.min_width, spec.min_height))
        total, classes = bootstrap.map50(matched, np.ones((1, len(self.truth["images"])), np.uint8))
        if np.isnan(total[0]):
            raise BadData(f"{spec.asked}: no object to find in the evaluation set; label some images in it")
        ap50 = {name: round(float(v[0]), 6) for name, v in classes.items() if not np.isnan(v[0])}
        self._write(folder, round(float(total[0]), 6), ap50, found)
        return float(total[0])

    def _write(self, folder: Path, map50: float, ap50: Mapping[str, float], found: list[dict[str, Any]]) -> None:
        limits = self.spec.model_dump(exclude={"asked", "answers"})
        results = {
            "schema": 1,
            "metrics": {"mAP50": map50},
            "per_class": {name: {"AP50": value} for name, value in ap50.items()},
            "thresholds": {**limits, "min_box_px": min(self.spec.min_width, self.spec.min_height)},
            "tools": {"triton": self.answers.triton},
        }
        folder.mkdir(exist_ok=True)
        rows = ",\n".join(map(json.dumps, found))  # not indented: there are many
        write_text(folder / "detections.json", f"[{rows}]\n")
        write_json(folder / "ground_truth.json", self.truth)
        write_json(folder / "results.json", results)


def _truth(spec: AnsweredSpec) -> dict[str, Any]:
    """What is in the pictures; objects below the limits are ignored."""
    path = spec.asked / "truth.json"
    try:
        truth: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for one in truth["annotations"]:
            if one["bbox"][2] < spec.min_width or one["bbox"][3] < spec.min_height:
                one["ignore"] = 1
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise StageError(f"{path}: cannot be read ({exc!r}); run prepare_champion again") from None
    return truth


def _rows(image: Mapping[str, Any], one: Detections, numbers: list[int]) -> list[dict[str, Any]]:
    """Of one picture, as a COCO results file; `numbers`: the category id of each of the model's classes."""
    return [
        {
            "image_id": image["id"],
            "file_name": image["file_name"],
            "category_id": numbers[int(c)],
            "score": round(float(s), 5),
            "bbox": [round(float(v), 2) for v in (*box[:2], *(box[2:] - box[:2]))],
        }
        for box, s, c in zip(one.boxes, one.scores, one.classes, strict=True)
    ]
