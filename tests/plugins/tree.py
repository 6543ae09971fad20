"""A made-up published tree: pipelines with versions and runs as `refit.publish` writes them, and hostile ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FINGERPRINT = "ab" * 32
SCRIPT = "<script>alert(1)</script>"
CLASSES = ["ring", SCRIPT]


def score(version: int) -> float:
    """A made-up mAP of a version: it rises, with a dent."""
    return round(0.9 - 0.2 / (version + 1) - (0.03 if version % 5 == 3 else 0), 4)


def row(pipeline: str, number: int, state: str = "succeeded") -> dict[str, Any]:
    """The row of run `number` (from 1) in an index."""
    value = score(number)
    return {
        "run": f"run-{number:04d}",
        "run_id": f"manual__{number:04d}",
        "state": state,
        "failed": None if state == "succeeded" else "train",
        "reason": "" if state == "succeeded" else f"killed at 8 GiB {SCRIPT}",
        "started": f"2026-{number % 12 + 1:02d}-{number % 28 + 1:02d}T10:00:00Z",
        "ended": f"2026-{number % 12 + 1:02d}-{number % 28 + 1:02d}T12:00:00Z",
        "published": "2026-11-21T12:00:00Z",
        "cost": {
            "seconds": 7200.0,
            "gpu_seconds": 360.0 * number,
            "money": {"amount": 2.1 * number, "currency": "EUR"},
        },
        "fingerprint": FINGERPRINT,
        "images": 5000 + number,
        "model": "quantized",
        "mAP50": value,
        "low": value - 0.02,
        "high": value + 0.02,
        "per_class": {CLASSES[0]: value, CLASSES[1]: value - 0.05},
        "parameters": 140000,
        "bytes": 184318,
        "milliseconds": 10.8,
        "version": number,
    }


def release(pipeline: str, run: dict[str, Any], serves: bool) -> dict[str, Any]:
    keys = ("run", "bytes", "parameters", "milliseconds", "mAP50", "low", "high", "per_class", "fingerprint", "version")
    later = run["version"] + 1
    return {
        **{k: run[k] for k in keys},
        "model": pipeline,
        "state": "serving" if serves else "retired",
        "reason": f"released by {run['run']}" if serves else f"replaced by version {later} ({pipeline}/run-{later:04})",
        "since": run["ended"],
        "sha256": "cd" * 32,
        "approved_by": "olga",
        "approval_note": f"seen the pictures {SCRIPT}",
        "history": [],
    }


def report(pipeline: str, run: dict[str, Any]) -> dict[str, Any]:
    """A report.json as `refit.publish.gather` makes it."""
    value = run["mAP50"]
    models = [
        {
            "name": name,
            "stage": stage,
            "mAP50": value - less,
            "mAP": value - 0.3,
            "low": value - 0.02,
            "high": value + 0.02,
            "per_class": run["per_class"],
            "parameters": parameters,
            "bytes": parameters * 4,
        }
        for name, stage, less, parameters in (
            ("trained", "train", 0.05, 517711),
            ("retrained", "retrain", 0.0, 144231),
            ("quantized", "quantize", 0.001, 46000),
        )
    ]
    failed = run["state"] != "succeeded"
    stages = [
        {
            "name": name,
            "title": name.capitalize(),
            "action": name,
            "state": "out_of_memory" if failed and name == "train" else "succeeded",
            "reason": run["reason"] if name == "train" else "",
            "advice": "",
            "started": run["started"],
            "ended": run["ended"],
            "seconds": 3600.0,
            "attempt": 1,
            "resumed": False,
            "peak_memory_bytes": 2**30,
            "resources": {"gpus": 1},
            "key": "ef" * 32,
            "metrics": {},
            "outputs": {},
            "log_tail": [SCRIPT] if failed else [],
        }
        for name in ("bind", "train", "prune", "retrain", "quantize", "release")
    ]
    return {
        **{k: run[k] for k in ("run", "run_id", "state", "failed", "reason", "started", "ended", "published", "cost")},
        "schema": 1,
        "pipeline": pipeline,
        "advice": "Give it more memory.",
        "conf": {"train_epochs": 12 + run["version"] % 3, "note": SCRIPT},
        "pipeline_file": {"name": f"{pipeline}.yaml", "text": f"toolkit: cpu\nseed: {run['version']}\n# {SCRIPT}"},
        "data": {
            "fingerprint": FINGERPRINT,
            "splits": {"train": 4000, "val": 1000},
            "objects": dict.fromkeys(CLASSES, 9000),
            "classes": CLASSES,
            "evaluation": "12" * 32,
            "report": f"data/{FINGERPRINT}.html",
        },
        "gates": [
            {"stage": "gate", "title": "Good enough?", "verdict": "pass", "reason": f"it is {SCRIPT}", "figures": {}}
        ],
        "models": [] if failed else models,
        "edge": [
            {
                "kind": "tflite",
                "title": "TFLite",
                "mAP50": value - 0.004,
                "mAP": None,
                "drop": 0.004,
                "bytes": 583376 - run["version"],
                "sha256": "cd" * 32,
                "verdict": "warn",
                "reason": f"lost {SCRIPT}",
                "notes": [SCRIPT],
                "archive": f"{pipeline}/runs/{run['run']}/25-edge/out/{pipeline}-tflite.zip",
            },
        ],
        "starts": [
            {
                "stage": "train",
                "given": "champion",
                "from": f"the champion, version 1 of run run-0001 {SCRIPT}",
                "run": "run-0001",
                "sha256": "9f" * 32,
            }
        ],
        "curves": [
            {
                "stage": "train",
                "title": "Train",
                "loss": [[i, 5 / i] for i in range(1, 13)],
                "mAP": [[i, 0.9 - 0.5 / i] for i in range(2, 13, 2)],
            }
        ],
        "evaluation": {
            "images": 1000,
            "curves": {c: [[i / 50, round(1 - (i / 50) ** 6, 3)] for i in range(51)] for c in CLASSES},
            "confusion": {
                "labels": CLASSES,
                "counts": [[90, 2, 8], [1, 80, 19], [30, 20, 0]],
                "score": 0.3,
                "iou": 0.5,
            },
        },
        "release": {"version": run["version"], "outcome": "released"},
        "samples": [],
        "stages": stages,
    }


def write(root: Path, pipelines: int, runs: int) -> list[str]:
    """A tree of so many pipelines with so many runs each; every fifth run failed, all others released. The names."""
    found = []
    for p in range(pipelines):
        name = f"model-{p:03d}"
        rows = [row(name, i, "failed" if i % 5 == 0 else "succeeded") for i in range(1, runs + 1)]
        good = [r for r in rows if r["state"] == "succeeded"]
        releases = [release(name, r, r is good[-1]) for r in good]
        index = {
            "schema": 1,
            "pipeline": name,
            "updated": "2026-11-21T12:00:00Z",
            "champion": releases[-1],
            "last": rows[-1],
            "releases": releases,
            "runs": rows,
        }
        folder = root / name
        (folder / "data").mkdir(parents=True)
        (folder / "data" / f"{FINGERPRINT}.html").write_text(f"<!DOCTYPE html><p>{name}'s data")
        (folder / "index.json").write_text(json.dumps(index))
        for r in rows:
            place = folder / "runs" / r["run"]
            place.mkdir(parents=True)
            (place / "report.json").write_text(json.dumps(report(name, r)))
            (place / "report.html").write_text(f"<!DOCTYPE html><title>report</title><p>{name} {r['run']}{SCRIPT}")
        found.append(name)
    return found


def going_on(root: Path, pipeline: str, run_id: str) -> None:
    """A run that goes on, as bind and the runner of its training tell."""
    folder = root / pipeline / "progress"
    folder.mkdir()
    stages = [
        {"name": "train", "title": "Train", "state": "waiting"},
        {"name": "prune", "title": "Prune", "state": "waiting"},
    ]
    (folder / "run.json").write_text(json.dumps({"run": "now", "run_id": run_id, "stages": stages}))
    train = {"stage": "train", "run": "now", "state": "running", "epoch": 3, "max_epoch": 12, "loss": 0.5, "eta": 65.0}
    (folder / "train.json").write_text(json.dumps({**train, "metrics": {"val_mAP50": 0.612}}))
    (folder / "prune.json").write_text('{"stage": "prune", "run": "an older one", "state": "succeeded"}')
