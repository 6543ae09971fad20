"""What a run did, read from the workspace: rows per stage for the CLI, `make run` and `refit status`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

COLUMNS = ("stage", "seconds", "mAP@0.5", "parameters", "bytes", "")


@dataclass(frozen=True)
class Row:
    """One stage of a run. `state`: waiting, running, reused, off, or the outcome of its result."""

    stage: str
    state: str
    seconds: float | None = None
    map50: float | None = None
    parameters: int | None = None
    bytes: int | None = None
    reason: str = ""
    advice: str = ""
    folder: str = ""

    def cells(self) -> tuple[str, ...]:
        """Text of the columns COLUMNS."""
        return (
            self.stage,
            "" if self.seconds is None else f"{self.seconds:.1f}",
            "" if self.map50 is None else f"{self.map50:.3f}",
            "" if self.parameters is None else f"{self.parameters:,}",
            "" if self.bytes is None else f"{self.bytes:,}",
            self.state,
        )


def rows(plan: Mapping[str, Any]) -> list[Row]:
    """A row for each stage of a plan, from the result.json files; seconds of a reused stage are those of then."""
    return [_row(plan, stage) for stage in plan["stages"]]


def _row(plan: Mapping[str, Any], stage: Mapping[str, Any]) -> Row:
    name = stage["name"]
    if name in plan["off"]:
        return Row(name, "off")
    reused = plan["reused"].get(name)
    folder = Path(reused or stage["paths"]["stage"])
    result = read_json(folder / "result.json")
    if result is None or result.get("key") != stage["key"]:
        return Row(name, "running" if (folder / "request.json").exists() else "waiting", folder=str(folder))
    metrics = result.get("metrics", {})
    return Row(
        stage=name,
        state="reused" if reused else result["outcome"],
        seconds=result.get("seconds"),
        map50=metrics.get("mAP50", metrics.get("val_mAP50")),
        parameters=_integer(metrics.get("parameters")),
        bytes=_integer(metrics.get("bytes")),
        reason=result.get("reason", ""),
        advice=result.get("advice", ""),
        folder=str(folder),
    )


def _integer(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) else None


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object from a file that may not be there, or not whole yet (None)."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def current_plan(run: Path) -> dict[str, Any] | None:
    """The newest plan of a run's folder."""

    def number(path: Path) -> int:
        middle = path.name.removeprefix("plan.").removesuffix("json").strip(".")
        return int(middle) if middle.isdigit() else 1

    plans = sorted(run.glob("plan*.json"), key=number)
    return read_json(plans[-1]) if plans else None


def runs(pipeline: Path) -> list[Path]:
    """The retraining runs of a pipeline's workspace folder, oldest first."""
    return [folder for folder in _in_runs(pipeline) if _is_run(folder)]


def asides(pipeline: Path) -> list[Path]:
    """The folders beside them: what batch inference, roll backs and looks at the servers left, oldest first."""
    return [folder for folder in _in_runs(pipeline) if not _is_run(folder)]


def _in_runs(pipeline: Path) -> list[Path]:
    folder = pipeline / "runs"
    found = [p for p in folder.iterdir() if p.is_dir()] if folder.is_dir() else []
    return sorted(found, key=lambda p: p.stat().st_mtime)


def _is_run(folder: Path) -> bool:
    return (folder / "00-bind").is_dir() or any(folder.glob("plan*.json"))


def workspace(root: Path, only: str | None = None) -> list[dict[str, Any]]:
    """Each pipeline of a workspace: its last run with its stages, and its release that serves now."""
    found = []
    for folder in sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else []:
        if (only and folder.name != only) or not (folder / "runs").is_dir():
            continue
        entry: dict[str, Any] = {"pipeline": folder.name, "run": None, "stages": [], "serving": _serving(folder)}
        made = runs(folder)
        if made:
            last = made[-1]
            plan = current_plan(last)
            entry["run"] = last.name
            entry["stages"] = [asdict(r) for r in rows(plan)] if plan else [asdict(_bind(last))]
        found.append(entry)
    return found


def _bind(run: Path) -> Row:
    """The only stage of a run that got no further than bind."""
    result = read_json(run / "00-bind" / "result.json")
    if result is None:
        return Row("bind", "running", folder=str(run / "00-bind"))
    return Row("bind", result["outcome"], result.get("seconds"), reason=result["reason"], advice=result["advice"])


def _serving(pipeline: Path) -> dict[str, Any] | None:
    releases = pipeline / "releases"
    records = [read_json(p) for p in releases.glob("*/release.json")] if releases.is_dir() else []
    serving = [r for r in records if r and r.get("state") == "serving"]
    if not serving:
        return None
    record = max(serving, key=lambda r: (r["history"][-1]["when"] if r.get("history") else "", int(r["version"])))
    return {k: record.get(k) for k in ("model", "version", "run", "released", "metrics")}


def as_text(found: Sequence[Mapping[str, Any]], root: Path) -> str:
    if not found:
        return f"{root}: no runs yet"
    lines = []
    for entry in found:
        serving = entry["serving"]
        champion = f"serves version {serving['version']} of {serving['model']}" if serving else "serves nothing yet"
        lines += [f"{entry['pipeline']}: {champion}; last run {entry['run'] or 'none'}"]
        lines += ["  " + line for line in table([Row(**s) for s in entry["stages"]])]
    return "\n".join(lines)


def table(stages: Sequence[Row]) -> list[str]:
    """The rows as aligned lines of text, numbers to the right, with the reason below a stage that failed."""
    cells = [COLUMNS, *(r.cells() for r in stages)]
    widths = [max(len(c[i]) for c in cells) for i in range(len(COLUMNS))]
    lines = []
    for row, cell in zip([None, *stages], cells, strict=True):
        left, *middle, right = cell
        numbers = "  ".join(text.rjust(width) for text, width in zip(middle, widths[1:-1], strict=True))
        lines.append(f"{left.ljust(widths[0])}  {numbers}  {right}".rstrip())
        if row is not None and row.reason and row.state not in ("succeeded", "reused"):
            lines += [f"    {row.reason}", *([f"    {row.advice}"] if row.advice else [])]
    return lines
