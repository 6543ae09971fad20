"""What a run did, gathered from its folder into one JSON value: report.json (docs/contracts.md, "Published").

A run may be in any state, and its files half written or damaged: what cannot be read is left out, never guessed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from refit.edge.specs import TITLES
from refit.gates.answered import CHALLENGER
from refit.plan import BIND
from refit.publish import place
from refit.publish.detections import Detections, read_detections
from refit.report.values import items, mapping
from refit.runner import Metric, Progress, number, one_based
from refit.runtime.report import current_plan, read_json
from refit.start import spec as starts
from refit.toolkits import edge

Json = dict[str, Any]
EVALUATE, GATE, RELEASE, SCORE = "evaluate_", "gate", "release", "mAP50"
MISSING = "it has left no result; its task's log says why"
BEFORE = {"arrival": "Wait for complete data"}  # a task that is no stage


def report(run: Path, *, run_id: str = "", failed: Mapping[str, str] | None = None) -> tuple[Json, Detections | None]:
    """The report of a run's folder, and what the last model that was evaluated has found.

    Args:
        run: `<workspace>/<pipeline>/runs/<run>`.
        run_id: Airflow's, for a run that has no plan.
        failed: tasks of which Airflow says that they failed, and why where that is known; such a one may have left no
            result, and one before bind never does.
    """
    plan = current_plan(run) or {}
    failed = failed or {}
    stages = [_bind(run), *_stages(plan)]
    early = [name for name in failed if not plan and name != BIND]
    stages[:0] = [_stage({"name": n, "title": BEFORE.get(n, n)}, run / n, None) for n in early]
    for stage in stages:
        if stage["name"] in failed and stage["state"] in ("waiting", "running"):
            stage.update(state="failed", reason=stage["reason"] or failed[stage["name"]] or MISSING)
    state, culprit = _verdict(stages, bool(plan))
    moments = [s[key] for s in stages if s["state"] != "reused" for key in ("started", "ended") if s[key]]
    shown = _folders(stages)
    found = next((d for d in map(read_detections, shown) if d is not None), None)
    made: Json = {
        "schema": place.SCHEMA,
        "pipeline": run.parents[1].name,
        "run": run.name,
        "run_id": str(plan.get("run_id") or run_id or run.name),
        "state": "dry_run" if plan.get("dry_run") and state != "failed" else state,
        "failed": culprit and culprit["name"],
        "reason": culprit["reason"] if culprit else "",
        "advice": culprit["advice"] if culprit else "",
        "started": min(moments, default=None),
        "ended": max(moments, default=None),
        "published": place.now(),
        "conf": plan.get("conf") or {},
        "pipeline_file": plan.get("pipeline_file"),
        "data": _data(run, plan),
        "gates": [_gate(s) for s in stages if s["action"] == GATE and s["summary"].get("verdict")],
        "models": _models(plan, stages),
        "edge": _edge(stages),
        "starts": _starts(plan, stages),
        "curves": [c for c in map(_curve, stages) if c],
        "evaluation": found.as_json() if found else None,
        "release": next((s["summary"] for s in stages if s["name"] == RELEASE and s["summary"]), None),
        "cost": cost(stages, plan.get("prices") or {}),
        "stages": stages,
    }
    for stage in stages:
        for key in ("folder", "summary", "inputs", "wants"):
            del stage[key]
    return made, found


# --- stages -----------------------------------------------------------------------------------------------------------


def _bind(run: Path) -> Json:
    made = _stage({"name": BIND, "title": "Take the data in and plan", "action": BIND}, run / "00-bind", None)
    made["resources"] = {"gpus": 0, "cpus": 1, "memory_gib": 2}
    return made


def _stages(plan: Json) -> list[Json]:
    skip = set(plan.get("off", ()))
    reused = plan.get("reused", {})
    found = []
    for request in plan.get("stages", ()):
        name = request["name"]
        folder = Path(reused.get(name) or request["paths"]["stage"])
        made = _stage(request, folder, request["key"])
        if plan.get("dry_run"):
            made["state"] = "waiting"
        if name in reused:
            made.update(state="reused", reused_from=folder.parent.name)
        elif name in skip:
            made["state"] = "off"
        found.append(made)
    return found


def _stage(request: Mapping[str, Any], folder: Path, key: str | None) -> Json:
    """A stage with its result, where it has one that belongs to its key."""
    result = read_json(folder / "result.json") or {}
    if key is not None and result.get("key") != key:
        result = {}
    state = result.get("outcome") or ("running" if (folder / "request.json").exists() else "waiting")
    good = state == "succeeded"
    return {
        "name": request["name"],
        "title": request.get("title") or request["name"],
        "action": request.get("action", ""),
        "state": state,
        "reason": str(result.get("reason", "")),
        "advice": str(result.get("advice", "")),
        "started": result.get("started"),
        "ended": result.get("ended"),
        "seconds": number(result.get("seconds")),
        "attempt": result.get("attempt"),
        "resumed": bool(result.get("resumed")),
        "peak_memory_bytes": result.get("peak_memory_bytes"),
        "resources": request.get("resources") or {},
        "image": request.get("image"),
        "key": request.get("key"),
        "metrics": {k: v for k, v in (result.get("metrics") or {}).items() if number(v) is not None},
        "outputs": {
            name: {"bytes": o.get("bytes"), "sha256": o.get("sha256")}
            for name, o in (result.get("outputs") or {}).items()
        },
        "log_tail": [] if good else list(result.get("log_tail") or ()),
        "summary": result.get("summary") or {},
        "inputs": list(request.get("inputs") or ()),
        "wants": mapping(request.get("metrics")),
        "folder": str(folder),
    }


def _verdict(stages: Sequence[Json], planned: bool) -> tuple[str, Json | None]:
    """The run's state and the stage that ended it."""
    for stage in stages:
        if stage["state"] not in ("succeeded", "reused", "off", "waiting", "running"):
            return ("cancelled" if stage["state"] == "cancelled" else "failed"), stage
    if not planned or any(s["state"] in ("waiting", "running") for s in stages):
        return "unfinished", None
    return "succeeded", None


def _folders(stages: Sequence[Json]) -> list[Path]:
    """The folders of evaluations of the run's own models, the last first. Of those of TAO's, which tell figures only,
    the one by which a Triton compared the model with the version that serves (`refit.gates.answered`)."""
    good = [s for s in stages if s["action"] == "evaluate" and s["state"] in ("succeeded", "reused")]
    outs = {s["name"]: Path(s["folder"]) / "out" for s in reversed(good) if s["name"] not in edge.EVALUATIONS}
    champion = outs.pop(f"{EVALUATE}champion", None)
    return [*outs.values(), *([champion / CHALLENGER] if champion else [])]


# --- what they say ----------------------------------------------------------------------------------------------------


def _data(run: Path, plan: Json) -> Json:
    about = read_json(Path(plan["snapshot"]) / "dataset.json") if plan.get("snapshot") else None
    bind = read_json(run / "00-bind" / "out" / "report.json") or {}
    about = about or {}
    found: Json = {
        "fingerprint": plan.get("fingerprint"),
        "splits": about.get("splits", {}),
        "objects": about.get("objects", {}),
        "classes": about.get("classes", []),
        "evaluation": about.get("evaluation", {}).get("version"),
        "source": about.get("provenance", {}).get("source"),
        "taken_at": about.get("provenance", {}).get("taken_at"),
        "findings": {code: {"severity": c["severity"], "n": c["n"]} for code, c in bind.get("counts", {}).items()},
    }
    return found


def _gate(stage: Json) -> Json:
    said = stage["summary"]
    figures = {k: v for k, v in (said.get("figures") or {}).items() if number(v) is not None}
    return {
        "stage": stage["name"],
        "title": stage["title"],
        "verdict": said.get("verdict"),
        "reason": said.get("reason", ""),
        "figures": figures,
    }


def _models(plan: Json, stages: Sequence[Json]) -> list[Json]:
    """A row for each model that was evaluated, in the order of the chain, and for a pruned one that was not."""
    by_name = {s["name"]: s for s in stages}
    gates = {s["name"]: s["summary"].get("figures") or {} for s in stages if s["action"] == GATE}
    rows = []
    for stage in stages:
        metrics = stage["metrics"]
        if stage["action"] == "prune" and "parameters" in metrics:
            rows.append({"name": "pruned", "stage": stage["name"], **_size(stage)})
        if stage["action"] != "evaluate" or not stage["name"].startswith(EVALUATE) or "mAP50" not in metrics:
            continue
        if stage["name"] in edge.EVALUATIONS:  # they stand in a table of their own: none of them is released
            continue
        name = stage["name"].removeprefix(EVALUATE)
        source = next((by_name[i] for i in stage["inputs"] if i in by_name and "bytes" in _size(by_name[i])), None)
        if name == "pruned":  # evaluated without a retraining: one row for both
            rows = [r for r in rows if r["name"] != name]
        figures = gates.get(f"gate_{name}", {})
        rows.append(
            {
                "name": name,
                "stage": source["name"] if source else None,
                "mAP50": metrics["mAP50"],
                "mAP": metrics.get("mAP"),
                "low": number(figures.get("low")),
                "high": number(figures.get("high")),
                "per_class": {k.removeprefix("AP50/"): v for k, v in metrics.items() if k.startswith("AP50/")},
                **(_parameters(source, by_name) if source else {}),
                **(_size(source) if source else {}),
                **_latency(stage, source),
            }
        )
        if source and len(rows) > 1:
            for row, speed in zip(rows[-2:], _speeds(source), strict=True):
                row.update(speed)
    release: Json = next((s["summary"] for s in stages if s["name"] == RELEASE), {})
    own = [r for r in rows if r["name"] != "champion"]
    if own and number(release.get("milliseconds")) is not None:
        own[-1].setdefault("milliseconds", number(release["milliseconds"]))  # as Triton answered the release
    return rows


def _edge(stages: Sequence[Json]) -> list[Json]:
    """A row for each edge bundle: what was evaluated, and where its archive lies once all have passed their gates."""
    by_name = {s["name"]: s for s in stages}
    if edge.BUNDLE not in by_name:
        return []
    folder = Path(by_name[edge.BUNDLE]["folder"])
    packed = mapping((read_json(folder / "out" / "edge.json") or {}).get("bundles"))
    rows = []
    for kind, title in TITLES.items():
        bundle, gate = mapping(packed.get(kind)), by_name.get(f"gate_{kind}", {}).get("summary", {})
        evaluated = by_name.get(f"{EVALUATE}{kind}", {}).get("metrics", {})
        figures = mapping(bundle.get("figures")) or {**evaluated, "drop": mapping(gate.get("figures")).get("drop")}
        if "mAP50" not in figures:
            continue
        archive = folder / "out" / Path(str(bundle["archive"])).name if "archive" in bundle else None
        rows.append(
            {
                "kind": kind,
                "title": title,
                **{name: number(figures.get(name)) for name in ("mAP50", "mAP", "drop")},
                "bytes": bundle.get("bytes"),
                "sha256": bundle.get("sha256"),
                "verdict": gate.get("verdict"),
                "reason": gate.get("reason", ""),
                "notes": bundle.get("notes", []),
                "archive": str(archive.relative_to(folder.parents[3])) if archive else None,
            }
        )
    return rows


def _size(stage: Json) -> Json:
    metrics, model = stage["metrics"], stage["outputs"].get("model", {})
    size = number(metrics.get("bytes")) or model.get("bytes")
    found = {"parameters": number(metrics.get("parameters")), "bytes": size, "sha256": model.get("sha256")}
    return {k: v for k, v in found.items() if v is not None}


def _parameters(stage: Json, by_name: Mapping[str, Json]) -> Json:
    """The parameters of what a stage made its model of, for one that does not count: quantization changes none."""
    count = next((_size(by_name[i]).get("parameters") for i in stage["inputs"] if i in by_name), None)
    return {} if count is None else {"parameters": count}


def _starts(plan: Json, stages: Sequence[Json]) -> list[Json]:
    """What each training began with, where that was not chance: by `start_from`, or by `network.pretrained`."""
    rows: list[Json] = [
        {
            "stage": block,
            "given": start.get("given"),
            "from": start.get("from"),
            "run": start.get("run"),
            "sha256": starts.digest(start.get("value")),
        }
        for block, start in mapping(plan.get("start_from")).items()
    ]
    fetched = next((s for s in stages if s["action"] == "pretrained" and s["summary"]), None)
    if fetched:
        said = fetched["summary"]
        told = f"pretrained weights: {said.get('model') or said.get('file')}"
        given = {"stage": "train", "given": "network.pretrained", "from": told}
        rows.append({**given, "run": None, "sha256": said.get("sha256")})
    return rows


def _speeds(stage: Json) -> tuple[Json, Json]:
    """Milliseconds of one image before and after a stage's quantization: both were timed in turns on one machine, in
    the trainer's environment (ladder.json, docs/contracts.md)."""
    ladder = read_json(Path(stage["folder"]) / "out" / "ladder.json") or {}
    won = next((r for r in items(ladder.get("rungs")) if r.get("name") == ladder.get("winner")), {})
    one = next((s for s in items(won.get("speed")) if s.get("batch") == 1), {})
    before, after = number(one.get("before_ms")), number(one.get("after_ms"))
    if before is None or after is None:
        return {}, {}
    return {"milliseconds_alone": before}, {"milliseconds_alone": after}


def _latency(*stages: Json | None) -> Json:
    """Milliseconds for one image, where a stage has measured them."""
    for stage in stages:
        for name in ("milliseconds", "latency_ms"):
            value = number(stage["metrics"].get(name)) if stage else None
            if value is not None:
                return {"milliseconds": value}
    return {}


def _curve(stage: Json) -> Json | None:
    """The loss and the mAP of each epoch, from a training's status.json: the last word on an epoch counts.

    Refit's own trainer says both on the line of the epoch. TAO's loggers say them on that line, before it or after it,
    under the names that the request tells, and repeat them on later lines (`refit.runner.Epochs`).
    """
    losses: dict[int, float] = {}
    scores: dict[int, float] = {}
    wanted = [Metric(SCORE, entry, {}) for name, entry in stage["wants"].items() if name == SCORE]
    evaluated = Progress({}, wanted, by_epoch=SCORE)
    at, loss = None, None
    for record in _lines(Path(stage["folder"]) / "out" / "status.json"):
        epoch, _ = one_based(record)
        at = at if epoch is None else epoch
        kpi = mapping(record.get("kpi"))
        kept = {**mapping(record.get("graphical")), **kpi}
        now = number(record.get("loss", kept.get("loss", kept.get("train_loss"))))
        if at is not None and now is not None and ("loss" in record or now != loss):
            losses[at] = loss = now
        evaluated.add_old(record)
        score = None if wanted else next((number(kpi[k]) for k in ("val_mAP50", "val_mAP") if k in kpi), None)
        if epoch is not None and score is not None:
            scores[epoch] = score
    evaluated.epochs.end()
    scores |= evaluated.epochs.by_epoch if wanted else {}
    if len(losses) < 2 and len(scores) < 2:
        return None
    return {
        "stage": stage["name"],
        "title": stage["title"],
        "loss": [list(point) for point in sorted(losses.items())],
        "mAP": [list(point) for point in sorted(scores.items())],
    }


def _lines(path: Path) -> Iterable[Json]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            yield record


def cost(stages: Sequence[Json], prices: Mapping[str, Any]) -> Json:
    """Seconds, GPU seconds and money of the stages that this run has run; money only where there are prices.

    `prices` as in a cluster profile: {"currency", "gpu_hour": {type: price}, "cpu_hour", "memory_gib_hour"}.
    """
    total, gpu, money = 0.0, 0.0, 0.0
    for stage in stages:
        if stage["state"] in ("reused", "off", "waiting", "running") or not stage["seconds"]:
            continue
        seconds, wants = float(stage["seconds"]), stage["resources"]
        gpus = float(wants.get("gpus") or 0)
        total += seconds
        gpu += seconds * gpus
        hourly = gpus * _gpu_price(prices.get("gpu_hour") or {}, wants.get("gpu_type"))
        hourly += float(wants.get("cpus") or 0) * float(prices.get("cpu_hour") or 0)
        hourly += float(wants.get("memory_gib") or 0) * float(prices.get("memory_gib_hour") or 0)
        stage["money"] = round(hourly * seconds / 3600, 4) if prices else None
        money += hourly * seconds / 3600
    paid = {"amount": round(money, 4), "currency": prices.get("currency", "")} if prices else None
    return {"seconds": round(total, 1), "gpu_seconds": round(gpu, 1), "money": paid}


def _gpu_price(prices: Mapping[str, Any], gpu_type: str | None) -> float:
    return float(prices.get(gpu_type or "default", prices.get("default", 0)))


def spent(started: str | None, ended: str | None) -> float | None:
    """Seconds between two moments as the runner writes them."""
    try:
        first, last = (datetime.fromisoformat(str(t)) for t in (started, ended))
    except ValueError:
        return None
    return (last - first).total_seconds()
