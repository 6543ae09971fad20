"""`quantize`: the exported model as INT8, by the first rung of the ladder that loses little and is not slower.

Written to `out`: `model.onnx`, `model.json`, `calibration.json` (what the ranges were measured on, hashes of both
models), `calibration.cache` (the range of each tensor; none of a float32 model), `reference.npz` (answers to some
images of the val split), and, but for `ladder: []`, `ladder.json` (every rung with its figures) and `summary.json`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from refit.command import BadData, BadSpec, Rejected
from refit.cpu import latency, provenance, reference
from refit.cpu.calibration import check_pictures, choose
from refit.cpu.judge import Try
from refit.cpu.ladder import FLOAT, FOLDER, Ladder, Made, report, table
from refit.cpu.models import OnnxModel
from refit.cpu.provenance import cache_text
from refit.cpu.records import Dataset
from refit.cpu.specs import QuantizeSpec
from refit.cpu.status import StatusWriter
from refit.cpu.work import workers
from refit.files import sha256, write_bytes, write_json, write_text
from refit.postprocess.info import FILE_NAME


def run(spec: QuantizeSpec, out: Path, status: StatusWriter) -> None:
    """Quantize `spec.model`; see the module's docstring.

    Raises:
        BadSpec: the model is not an exported float32 .onnx, or knows other classes than the data; or the figures to
            compare with are of something else.
        BadData: no training image to calibrate on, or most show nothing; or the cache that was given is of something
            else.
        Rejected: no rung passes.
    """
    threads = workers()
    source = Path(spec.model)
    if source.suffix != ".onnx":
        raise BadSpec(f"model {source}: INT8 is made from an exported .onnx; run export first")
    full = _open(source, threads)
    dataset = Dataset.load(spec.records)
    if full.info.classes != dataset.classes:
        raise BadSpec(f"model {source} and records {dataset.folder} have different classes; give those of one pipeline")
    records = dataset.split("train")
    if not len(records):
        raise BadData(f"{dataset.folder}: the train split is empty; there is nothing to calibrate on")
    images = [records[i] for i in choose(records, len(dataset.classes), spec.images, spec.seed)]
    if len(images) < spec.images:
        status.running(f"Only {len(images)} training images; {spec.images} were asked for.")
    if told := check_pictures(images):
        status.running(f"{told}.")
    inputs = reference.images(dataset, full.info.input)
    assert inputs is not None  # the train split has some
    facts = provenance.facts(source, dataset.fingerprint, images, full.info.input, spec)
    ladder = Ladder(spec, out, status, full, dataset, images, facts, inputs, threads)
    winner, made = _climbed(ladder, out) if spec.ladder else (None, ladder.take())
    path = out / "model.onnx"
    write_text(out / FILE_NAME, full.info.text())
    write_bytes(path, made.content)
    reference.write(out, OnnxModel(path, threads), inputs)
    write_json(out / provenance.RECORD, _record(spec, facts, made, winner, path, out))
    shutil.rmtree(out / FOLDER)
    status.success(*_told(winner, made, source, full, OnnxModel(path, threads)))


def _open(source: Path, threads: int) -> OnnxModel:
    if not source.is_file():
        raise BadSpec(f"{source}: no such file; the stage that makes it has not run, or it was moved")
    return OnnxModel(source, threads)


def _climbed(ladder: Ladder, out: Path) -> tuple[Try, Made]:
    """Climb, and write the report in any case."""
    spec = ladder.spec
    found = ladder.climb()
    winner = found[0] if found else None
    print(table(ladder.tries, spec.metric), flush=True)
    write_json(out / "ladder.json", report(ladder, winner))
    rungs = [[t.name, t.skipped or "; ".join(t.failed)[:80] or "passes"] for t in ladder.tries]
    write_text(out / "summary.json", json.dumps({"rung": winner.name if winner else None, "rungs": rungs}))
    if found is None:
        tried = [t for t in ladder.tries if not t.skipped]
        why = "; ".join(f"{t.name} {', '.join(t.failed)}" for t in tried)
        causes = [c for t in tried for c in t.causes][:1]
        raise Rejected(
            f"no rung of the ladder passes: {why}{''.join(f'. {c}' for c in causes)}. "
            "Raise quantize.max_drop or max_drop_class, lower min_speedup, or let the ladder end with float"
        )
    return found


def _record(
    spec: QuantizeSpec, facts: dict[str, Any], made: Made, winner: Try | None, path: Path, out: Path
) -> dict[str, Any]:
    """calibration.json; writes calibration.cache where there are ranges that the exported model can be given again."""
    cached = None
    if made.ranges and not made.tuned:
        facts = provenance.by(facts, made.method, spec)
        write_text(out / provenance.CACHE, cache_text(made.ranges, facts))
        cached = sha256(out / provenance.CACHE)
    return {
        "schema": 2,
        "rung": winner.name if winner else "ptq",
        "settings": spec.model_dump(mode="json", exclude={"model", "records", "checkpoint", "baseline"}),
        **facts,
        "cache_sha256": cached,
        "model": {"sha256": sha256(path), "bytes": path.stat().st_size},
    }


def _told(
    winner: Try | None, made: Made, source: Path, full: OnnxModel, model: OnnxModel
) -> tuple[str, dict[str, float]]:
    """The stage's last line."""
    before = source.stat().st_size
    sizes: dict[str, float] = {"bytes": len(made.content), "bytes_before": before}
    if winner is not None and winner.name == FLOAT:
        return f"Not INT8: the float32 model stays, {before:,} bytes; the table above says why.", sizes
    speed = winner.speed[0] if winner else latency.compare(full, model, 1)
    text = (
        f"INT8{f' by rung {winner.name}' if winner else ''}: {len(made.content):,} bytes, "
        f"{len(made.content) / before:.2f} of the float32 file; {speed.before_ms:.2f} -> {speed.after_ms:.2f} ms an "
        "image on this CPU."
    )
    return text, {**sizes, "fp32_ms": speed.before_ms, "int8_ms": speed.after_ms, "speedup": speed.speedup}
