"""What a pipeline's last run and its champion are in numbers: Prometheus' text format, for its textfile collector.

`<published>/<pipeline>/metrics.prom`, written with the index. Numbers of the past stay Prometheus' business. Format:
prometheus.io/docs/instrumenting/exposition_formats.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

FILE = "metrics.prom"

HELP = {
    "refit_run_good": "1 where the last run ended well, else 0",
    "refit_run_end_timestamp_seconds": "when the last run ended",
    "refit_run_seconds": "of all stages that the last run has run",
    "refit_run_gpu_seconds": "seconds of GPUs that the last run has held",
    "refit_run_wait_seconds": "of the last run in which none of its stages ran: queues, images, Airflow",
    "refit_run_images": "images of the last run's data set",
    "refit_stage_seconds": "of a stage of the last run; reused ones have none",
    "refit_gate_verdict": "1 for the verdict of a gate of the last run",
    "refit_model_map50": "mAP@0.5 of a model of the last run",
    "refit_champion_version": "the version that serves, by the ledger",
    "refit_champion_since_timestamp_seconds": "since when it serves: time() less this is its age",
    "refit_champion_map50": "mAP@0.5 with which it was released",
}

Sample = tuple[str, Mapping[str, str], float | None]


def text(index: Mapping[str, Any], report: Mapping[str, Any] | None) -> str:
    """The file's content; `report` is that of the last run, where there is one. Every name of HELP is told of."""
    found: dict[str, list[str]] = {name: [] for name in HELP}
    for name, labels, value in _samples(index, report):
        if value is not None:
            shown = ",".join(f'{k}="{_label(v)}"' for k, v in {"pipeline": index["pipeline"], **labels}.items())
            found[name].append(f"{name}{{{shown}}} {value:.15g}")
    lines = []
    for name, rows in found.items():
        lines += [f"# HELP {name} {HELP[name]}", f"# TYPE {name} gauge", *rows]
    return "\n".join(lines) + "\n"


def _samples(index: Mapping[str, Any], report: Mapping[str, Any] | None) -> Iterator[Sample]:
    champion = index.get("champion") or {}
    yield "refit_champion_version", {}, champion.get("version")
    yield "refit_champion_since_timestamp_seconds", {}, _moment(champion.get("since"))
    yield "refit_champion_map50", {}, champion.get("mAP50")
    if report is None or report["state"] == "dry_run":
        return
    yield "refit_run_good", {}, float(report["state"] == "succeeded")
    yield "refit_run_end_timestamp_seconds", {}, _moment(report["ended"])
    yield "refit_run_seconds", {}, report["cost"]["seconds"]
    yield "refit_run_gpu_seconds", {}, report["cost"]["gpu_seconds"]
    yield "refit_run_wait_seconds", {}, _wait(report)
    yield "refit_run_images", {}, sum(report["data"]["splits"].values())
    for stage in report["stages"]:
        if stage["state"] != "reused":
            yield "refit_stage_seconds", {"stage": stage["name"]}, stage["seconds"]
    for gate in report["gates"]:
        yield "refit_gate_verdict", {"gate": gate["stage"], "verdict": str(gate["verdict"])}, 1.0
    for model in report["models"]:
        yield "refit_model_map50", {"model": model["name"]}, model.get("mAP50")


def _wait(report: Mapping[str, Any]) -> float | None:
    """The run's time from its first start to its last end, less the time in which any stage ran."""
    spans = sorted(
        (begin, end)
        for stage in report["stages"]
        if stage["state"] != "reused"
        and (begin := _moment(stage["started"])) is not None
        and (end := _moment(stage["ended"])) is not None
    )
    waited, until = 0.0, spans[0][0] if spans else 0.0
    for begin, end in spans:
        waited += max(0.0, begin - until)
        until = max(until, end)
    return waited if spans else None


def _moment(text: Any) -> float | None:
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return None


def _label(value: str) -> str:
    return str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
