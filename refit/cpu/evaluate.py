"""`evaluate`: score a model, in whichever file it is, on one split or several.

The first split is the one that gates look at. Written to `out`:
- `results.json`: `metrics` (mAP50, mAP, and mAP50@<split> for the others), `per_class` and counts of the first split,
  `by_split`, and what must be equal for two results to be comparable: `dataset`, `splits`, `thresholds`;
- `detections.json` (of another split `detections-<split>.json`): a COCO results file;
- `ground_truth.json` (`ground_truth-<split>.json`): the truth it was scored against, as a COCO instances file.
"""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refit.command import BadData, BadSpec
from refit.cpu.models import Arrays, Predictor, open_model, predict
from refit.cpu.records import Dataset, Record
from refit.cpu.scoring import Scores, Truth, ground_truth, results, score
from refit.cpu.specs import EvaluateSpec
from refit.cpu.status import StatusWriter
from refit.cpu.work import Progress
from refit.files import sha256, write_json
from refit.postprocess import Detections, ModelInfo, Postprocess

_TOOLS = ("pycocotools", "numpy", "opencv-python-headless", "torch", "onnxruntime", "tensorflow-cpu", "ai-edge-litert")


def run(spec: EvaluateSpec, out: Path, status: StatusWriter) -> None:
    """Evaluate `spec.model`; see the module's docstring. Raises BadSpec where it cannot be used, and as `judge`."""
    judge(open_model(spec.model), spec, out, status)


def judge(model: Predictor, spec: EvaluateSpec, out: Path, status: StatusWriter) -> None:
    """Evaluate a model that is loaded.

    Raises:
        BadSpec: it knows other classes than the data, or a split is not there.
        BadData: no object in the first split, or an image that cannot be decoded.
    """
    dataset = Dataset.load(spec.records)
    for name in spec.splits:
        if name not in dataset.splits:
            raise BadSpec(f"splits: the data has no {name!r}; it has {', '.join(dataset.splits)}")
    if model.info.classes != dataset.classes:
        raise BadSpec(
            f"model {spec.model} knows {', '.join(model.info.classes)}; the data has {', '.join(dataset.classes)}: "
            "give the model and the data of one pipeline"
        )
    scores = {name: _split(spec, model, dataset, name, out, status) for name in spec.splits}
    first = scores[spec.splits[0]]
    if first.map50 is None or first.map is None:
        raise BadData(f"{dataset.folder}: no object to find in split {spec.splits[0]!r}; label some images in it")
    metrics = {"mAP50": first.map50, "mAP": first.map}
    metrics |= {f"mAP50@{n}": s.map50 for n, s in scores.items() if n != spec.splits[0] and s.map50 is not None}
    write_json(out / "results.json", _results(spec, model, dataset, metrics, scores))
    per_class = {name: value for name, value in first.ap50.items() if value is not None}
    status.success(
        f"mAP50 {first.map50:.4f} on {dataset.splits[spec.splits[0]].images} images of {spec.splits[0]!r}.",
        {name: round(value, 6) for name, value in metrics.items()},
        {"AP50": {name: round(value, 6) for name, value in per_class.items()}},
    )


def find(
    model: Callable[[NDArray[np.float32]], Arrays],
    info: ModelInfo,
    records: Iterable[Record],
    settings: Postprocess,
    min_box_px: float = 0.0,
    step: Callable[[], None] | None = None,
) -> tuple[list[Truth], list[Detections]]:
    """Run a model over labelled images: what is in each, and what was found in it. Holds no image after its turn."""
    truth: list[Truth] = []
    found: list[Detections] = []
    for record, detections in predict(model, info, records, settings, step):
        truth.append(Truth.of(record, min_box_px))
        found.append(detections)
    return truth, found


def _split(
    spec: EvaluateSpec, model: Predictor, dataset: Dataset, name: str, out: Path, status: StatusWriter
) -> Scores:
    """Score one split, and write what was found in it and what is there."""
    progress = Progress(status, f"Evaluating on {name}", dataset.splits[name].images)
    settings = Postprocess(spec.score_threshold, spec.nms_iou, spec.max_detections)
    truth, found = find(model, model.info, dataset.split(name), settings, spec.min_box_px, progress.step)
    scores = score(truth, found, dataset.classes, spec.max_detections, spec.min_box_px)
    suffix = "" if name == spec.splits[0] else f"-{name}"
    write_json(out / f"detections{suffix}.json", results(truth, found))
    write_json(out / f"ground_truth{suffix}.json", ground_truth(truth, dataset.classes))
    return scores


def _results(
    spec: EvaluateSpec, model: Predictor, dataset: Dataset, metrics: dict[str, float], scores: dict[str, Scores]
) -> dict[str, Any]:
    return {
        "schema": 1,
        "metrics": metrics,
        "per_class": _per_class(scores[spec.splits[0]]),
        "by_split": {
            name: {"mAP50": s.map50, "mAP": s.map, "images": dataset.splits[name].images, "per_class": _per_class(s)}
            for name, s in scores.items()
        },
        "dataset": {"fingerprint": dataset.fingerprint, "classes": list(dataset.classes)},
        "splits": {name: dataset.splits[name].images for name in spec.splits},
        "thresholds": spec.model_dump(exclude={"splits", "records", "model", "seed"}),
        "model": {
            "file": model.path.name,
            "sha256": sha256(model.path),
            "bytes": model.path.stat().st_size,
            "input": [model.info.input.channels, model.info.input.height, model.info.input.width],
        },
        "tools": {"python": platform.python_version(), **_versions()},
    }


def _versions() -> dict[str, str]:
    """Of those of `_TOOLS` that this environment has."""
    found = {}
    for name in _TOOLS:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _per_class(scores: Scores) -> dict[str, dict[str, float | int | None]]:
    return {
        name: {
            "AP50": scores.ap50[name],
            "AP": scores.ap[name],
            "recall50": scores.recall50[name],
            "objects": scores.objects[name],
            "ignored": scores.ignored[name],
            "detections": scores.detections[name],
        }
        for name in scores.objects
    }
