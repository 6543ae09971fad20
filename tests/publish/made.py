"""A workspace with runs as bind and the runner leave them, written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FINGERPRINT = "ab" * 32
CLASSES = ["ring", "<script>alert(1)</script>"]
GPU = {"gpus": 2, "gpu_type": None, "cpus": 4, "memory_gib": 8}


class Workspace:
    """The folder of one pipeline in a workspace."""

    def __init__(self, root: Path, name: str = "plates") -> None:
        self.folder = root / "workspace" / name
        self.published = root / "workspace" / "published" / name

    def run(
        self,
        run: str,
        *,
        prices: dict[str, Any] | None = None,
        start_from: dict[str, Any] | None = None,
        snapshot: str | None = None,
        **results: dict[str, Any],
    ) -> Path:
        """A run with a plan of train, evaluate_trained, gate_trained and release; `results` by stage. Where one is
        of quantize, that and evaluate_quantized are in the plan; where one is of evaluate_coral, the stages of that
        bundle."""
        folder = self.folder / "runs" / run
        stages = [
            self._request(folder, 1, "train", "train", [], GPU),
            self._request(folder, 2, "evaluate_trained", "evaluate", ["train"]),
            self._request(folder, 3, "gate_trained", "gate", ["evaluate_trained"]),
            self._request(folder, 4, "release", "release", ["train"]),
        ]
        if "quantize" in results:
            stages.append(self._request(folder, 5, "quantize", "quantize", ["train"]))
            stages.append(self._request(folder, 6, "evaluate_quantized", "evaluate", ["quantize"]))
        if "evaluate_champion" in results:
            stages.append(self._request(folder, 11, "evaluate_champion", "evaluate", []))
        if "pretrained" in results:
            stages.insert(0, self._request(folder, 0, "pretrained", "pretrained", []))
        if "evaluate_coral" in results:
            stages.append(self._request(folder, 7, "evaluate_exported", "evaluate", ["train"]))
            stages.append(self._request(folder, 8, "evaluate_coral", "evaluate", ["train"]))
            stages.append(self._request(folder, 9, "gate_coral", "gate", ["evaluate_coral", "evaluate_exported"]))
            stages.append(self._request(folder, 10, "edge", "bundle", ["evaluate_coral"]))
        plan = {
            "pipeline": self.folder.name,
            "run": run,
            "run_id": f"manual__{run}",
            "fingerprint": FINGERPRINT,
            "snapshot": snapshot or str(self.folder / "datasets" / FINGERPRINT),
            "stages": stages,
            "reused": {},
            "off": [],
            "conf": {"train_epochs": 3},
            "pipeline_file": {"name": "plates.yaml", "text": "toolkit: cpu"},
            **({"prices": prices} if prices else {}),
            **({"start_from": start_from} if start_from else {}),
        }
        self.bind(run)
        (folder / "plan.json").write_text(json.dumps(plan))
        snapshot = Path(plan["snapshot"])
        snapshot.mkdir(parents=True, exist_ok=True)
        about = {"splits": {"train": 8, "val": 2}, "objects": dict.fromkeys(CLASSES, 5), "classes": CLASSES}
        (snapshot / "dataset.json").write_text(json.dumps(about))
        for stage in stages:
            if stage["name"] in results:
                self.finish(Path(stage["paths"]["stage"]), stage["key"], **results[stage["name"]])
        return folder

    def bind(self, run: str, **result: Any) -> Path:
        folder = self.folder / "runs" / run / "00-bind"
        self.finish(folder, "", **result)
        (folder / "out" / "report.html").write_text("<p>the data")
        return folder

    @staticmethod
    def finish(folder: Path, key: str, **result: Any) -> None:
        (folder / "out").mkdir(parents=True, exist_ok=True)
        times = {"started": "2026-11-21T10:00:00Z", "ended": "2026-11-21T10:30:00Z", "seconds": 1800.0}
        made = {"outcome": "succeeded", "reason": "", "advice": "", "key": key, "attempt": 1, **times, **result}
        (folder / "result.json").write_text(json.dumps(made))

    def _request(
        self, run: Path, index: int, name: str, action: str, inputs: list[str], resources: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        return {
            "name": name,
            "title": name.capitalize(),
            "action": action,
            "key": f"{run.name}-{name}",
            "paths": {"stage": str(run / f"{index:02d}-{name}")},
            "inputs": dict.fromkeys(inputs, ""),
            "resources": resources or {"gpus": 0, "cpus": 1, "memory_gib": 2},
        }

    def release(self, version: int, run: str, **more: Any) -> Path:
        """A record in the ledger."""
        folder = self.folder / "releases" / str(version)
        folder.mkdir(parents=True, exist_ok=True)
        record = {
            "schema": 1,
            "model": self.folder.name,
            "version": version,
            "state": "serving",
            "sha256": "cd" * 32,
            "bytes": 1000,
            "pipeline": self.folder.name,
            "run": run,
            "key": "",
            "metrics": {"mAP50": 0.8},
            "url": "",
            "repository": "",
            "config": "",
            "history": [{"state": "serving", "when": "2026-11-21T10:31:00+00:00", "reason": "released", "by": {}}],
        }
        (folder / "release.json").write_text(json.dumps({**record, **more}))
        return folder


GOOD: dict[str, dict[str, Any]] = {
    "train": {
        "metrics": {"parameters": 5000.0, "bytes": 2000.0},
        "outputs": {"model": {"bytes": 2000, "sha256": "ef" * 32}},
    },
    "evaluate_trained": {"metrics": {"mAP50": 0.8, "mAP": 0.5, **{f"AP50/{c}": 0.8 for c in CLASSES}}},
    "gate_trained": {
        "summary": {"verdict": "pass", "reason": "0.800 is enough", "figures": {"mAP50": 0.8, "low": 0.7, "high": 0.9}}
    },
    "release": {"summary": {"outcome": "released", "version": 1, "milliseconds": 4.5}},
}


def evaluation(folder: Path) -> None:
    """What an evaluation of two images leaves: one object found, one taken for the other class, one missed."""
    box = {"area": 100, "iscrowd": 0}
    truth = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in range(2)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES, start=1)],
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": 1, "bbox": [0, 0, 10, 10], **box},
            {"id": 2, "image_id": 0, "category_id": 1, "bbox": [20, 0, 10, 10], **box},
            {"id": 3, "image_id": 1, "category_id": 2, "bbox": [0, 0, 10, 10], **box},
        ],
    }
    found = [
        {"image_id": 0, "category_id": 1, "bbox": [0, 0, 10, 10], "score": 0.9},
        {"image_id": 0, "category_id": 2, "bbox": [20, 0, 10, 9], "score": 0.8},
        {"image_id": 1, "category_id": 2, "bbox": [20, 20, 5, 5], "score": 0.7},
        {"image_id": 1, "category_id": 2, "bbox": [0, 0, 10, 10], "score": 0.1},  # too sure of itself it is not
    ]
    for name, value in (("ground_truth", truth), ("detections", found), ("results", {"thresholds": {}})):
        (folder / f"{name}.json").write_text(json.dumps(value))
