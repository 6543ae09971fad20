"""The search of `prune`: the smallest model, down to the wanted size, that loses little after a short retraining.

The wanted ratio comes first. Where it loses too much, the middle between the largest that lost too much and the
smallest that did not (at first: the whole model) comes next, until the tries are used up or two of them are the same
network. Each try has a folder of its own, `search/<n>`, where its training goes on from its last epoch after a kill;
tries that were judged are not made again (`search/tries.json`).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from refit.command import BadSpec, Rejected
from refit.cpu import checkpoint, train
from refit.cpu.checkpoint import Model, load_model
from refit.cpu.evaluate import find
from refit.cpu.models import TorchRunner
from refit.cpu.network import count_parameters
from refit.cpu.records import Dataset
from refit.cpu.scoring import score
from refit.cpu.specs import PruneSpec, SearchParams, TrainSpec
from refit.cpu.status import StatusWriter
from refit.files import sha256, write_json, write_text
from refit.postprocess import Postprocess

FOLDER = "search"
_WHOLE = 1.0  # the ratio of the model that was not pruned: it loses nothing


@dataclass(frozen=True)
class Tried:
    """One size: `ratio` as asked for, `parameters` as it came out, `value` after the short retraining."""

    ratio: float
    parameters: int
    value: float
    drop: float
    passed: bool
    seconds: float


def run(
    spec: PruneSpec, wish: SearchParams, pruned: Callable[[float], Model], out: Path, status: StatusWriter
) -> Model:
    """The model that was chosen, as its short retraining left it.

    Args:
        pruned: gives the model pruned to a ratio; raises BadSpec where that cannot be.

    Raises:
        Rejected: every try lost too much.
        BadSpec: the wanted ratio cannot be reached, or nothing would be pruned.
    """
    dataset = Dataset.load(spec.records)
    folder = out / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    whole = load_model(spec.model)
    before = _evaluate(spec, whole, dataset)
    identity = _identity(spec, dataset)
    tried = _kept(folder / "tries.json", identity, status)
    for ratio in _ratios(spec.ratio, wish.tries, tried):
        begin = time.monotonic()
        try:
            model = pruned(ratio)
        except BadSpec as exc:
            if not tried:
                raise
            status.running(f"The search ends at ratio {ratio:.3f}: {exc}.")
            break
        parameters = count_parameters(model.network)
        if any(t.parameters == parameters for t in tried):
            status.running(f"The search ends: ratio {ratio:.3f} gives a network that was tried.")
            break
        model = _retrained(spec, wish, model, folder / str(len(tried) + 1))
        value = _evaluate(spec, model, dataset)
        drop = before - value
        tried.append(
            Tried(
                round(ratio, 6),
                parameters,
                round(value, 6),
                round(drop, 6),
                drop <= wish.max_drop,
                round(time.monotonic() - begin, 2),
            )
        )
        write_json(folder / "tries.json", {"identity": identity, "tries": [asdict(t) for t in tried]})
        status.running(f"Try {len(tried)}: {_told(spec, tried[-1])}", search=asdict(tried[-1]))
    chosen = min((t for t in tried if t.passed), key=lambda t: t.parameters, default=None)
    _report(spec, wish, out, before, count_parameters(whole.network), tried, chosen)
    if chosen is None:
        raise Rejected(
            f"pruning: none of {len(tried)} sizes keeps {spec.metric} within {wish.max_drop:g} of {before:.4f} after "
            f"{wish.epochs} epochs: {'; '.join(_told(spec, t) for t in tried)}. "
            "Raise prune.ratio, search.tries, search.epochs or search.max_drop"
        )
    made = load_model(folder / str(tried.index(chosen) + 1) / train.MODEL)
    shutil.rmtree(folder)
    return made


def _ratios(wanted: float, tries: int, tried: list[Tried]) -> Iterator[float]:
    """The ratios to try, each chosen after the one before was judged; those in `tried` are taken as judged."""
    if not tried:
        yield wanted
    while len(tried) < tries and not tried[0].passed:
        low = max(t.ratio for t in tried if not t.passed)
        high = min((t.ratio for t in tried if t.passed), default=_WHOLE)
        yield (low + high) / 2


def _retrained(spec: PruneSpec, wish: SearchParams, model: Model, folder: Path) -> Model:
    folder.mkdir(exist_ok=True)
    start = folder / "pruned.pth"
    checkpoint.save_model(start, model)
    params = {**spec.training.model_dump(), "epochs": wish.epochs, "evaluate_every": wish.epochs, "start_from": None}
    short = TrainSpec.model_validate(
        {
            **params,
            "seed": spec.seed,
            "records": spec.records,
            "network": spec.network.model_dump(),
            "model": str(start),
        }
    )
    train.run(short, folder, StatusWriter(folder))
    return load_model(folder / train.MODEL)


def _evaluate(spec: PruneSpec, model: Model, dataset: Dataset) -> float:
    e = spec.evaluate
    settings = Postprocess(e.score_threshold, e.nms_iou, e.max_detections)
    truth, found = find(TorchRunner(model), model.info, dataset.split(e.splits[0]), settings, e.min_box_px)
    scores = score(truth, found, dataset.classes, e.max_detections, e.min_box_px)
    value = scores.map50 if spec.metric == "mAP50" else scores.map
    if value is None:
        raise BadSpec(f"prune.search: no object in split {e.splits[0]!r} to judge by; leave search out")
    return value


def _identity(spec: PruneSpec, dataset: Dataset) -> str:
    content = [
        spec.model_dump(mode="json", exclude={"model", "records"}),
        sha256(Path(spec.model)),
        dataset.fingerprint,
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _kept(path: Path, identity: str, status: StatusWriter) -> list[Tried]:
    """The tries of a killed attempt at the same search."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        tried = [Tried(**t) for t in kept["tries"]]
        same = kept["identity"] == identity
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as exc:
        status.running(f"The sizes tried before cannot be read ({exc!r}); starting anew.")
        return []
    if not same:
        status.running("The sizes tried before are of another model, data or settings; starting anew.")
        return []
    status.running(f"Going on after {len(tried)} sizes.")
    return tried


def _told(spec: PruneSpec, t: Tried) -> str:
    verdict = "passes" if t.passed else "loses too much"
    return f"ratio {t.ratio:.3f}, {t.parameters:,} parameters, {spec.metric} {t.value:.4f} ({-t.drop:+.4f}) {verdict}"


def _report(
    spec: PruneSpec, wish: SearchParams, out: Path, before: float, whole: int, tried: list[Tried], chosen: Tried | None
) -> None:
    """search.json, summary.json and the table in the log."""
    report: dict[str, Any] = {
        "schema": 1,
        "wanted": spec.ratio,
        "metric": spec.metric,
        "before": {"value": round(before, 6), "parameters": whole},
        "limits": wish.model_dump(),
        "chosen": chosen.ratio if chosen else None,
        "tries": [asdict(t) for t in tried],
    }
    write_json(out / "search.json", report)
    write_text(
        out / "summary.json", json.dumps({"wanted": spec.ratio, "chosen": report["chosen"], "tries": len(tried)})
    )
    print(f"{'ratio':>6}  {'parameters':>10}  {'kept':>6}  {spec.metric:>6}  {'drop':>7}  {'seconds':>7}  verdict")
    for t in tried:
        verdict = "chosen" if t is chosen else "passes" if t.passed else "loses too much"
        print(
            f"{t.ratio:>6.3f}  {t.parameters:>10,}  {t.parameters / whole:>6.1%}  {t.value:>6.4f}  {t.drop:>+7.4f}  "
            f"{t.seconds:>7.1f}  {verdict}",
            flush=True,
        )
