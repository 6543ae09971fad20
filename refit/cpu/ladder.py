"""The INT8 ladder: rungs tried one after another, the first that passes wins.

| rung | is |
|---|---|
| ptq | INT8, ranges by the method that is asked for |
| ptq_other | the same by each other method |
| mixed | the 1, 2, 4 ... layers that lose most stay float32; which they are is measured, a layer at a time |
| qat | fine-tuned with rounded values (`refit.cpu.qat`), then INT8 |
| float | the float32 model as it is |

Every try is judged by `refit.cpu.judge` and written down at once (`rungs/tries.json`), so a killed attempt goes on at
the rung that it had reached.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from refit.cpu import provenance, qdq
from refit.cpu.calibration import measure
from refit.cpu.causes import causes
from refit.cpu.judge import Judge, Try
from refit.cpu.models import OnnxModel
from refit.cpu.qdq import Ranges
from refit.cpu.records import Dataset, Record
from refit.cpu.specs import QuantizeSpec, Rung
from refit.cpu.status import StatusWriter
from refit.files import write_bytes, write_json
from refit.postprocess import preprocess
from refit.postprocess.info import FILE_NAME

FOLDER = "rungs"
FLOAT = "float"
_METHODS = ("percentile", "minmax", "entropy")  # entropy last: it takes longest
_PROBES = 8  # calibration images on which the error of each layer is measured
_FREE = {"model", "records", "checkpoint", "baseline", "cache"}  # paths: what lies there counts, by its hash or figures


@dataclass(frozen=True)
class Made:
    """A candidate.

    Attributes:
        content: the ONNX file.
        method, ranges: of the calibration; "" and none of the float32 model.
        floats: layers that stay float32 by choice.
        tuned: its weights are not those of the exported model.
    """

    content: bytes
    method: str = ""
    ranges: Ranges = field(default_factory=dict)
    floats: tuple[str, ...] = ()
    tuned: bool = False


class Ladder:
    """Climbs for one exported model.

    Args:
        out: the stage's result folder; `out/rungs` is the ladder's own.
        images: to calibrate on.
        facts: what ranges measured on them depend on (`provenance.facts`).
        inputs: images of the evaluation set as the network's input, to find causes with.
    """

    def __init__(
        self,
        spec: QuantizeSpec,
        out: Path,
        status: StatusWriter,
        full: OnnxModel,
        dataset: Dataset,
        images: Sequence[Record],
        facts: dict[str, Any],
        inputs: NDArray[np.float32],
        threads: int,
    ) -> None:
        self.spec, self.status, self.full, self.dataset = spec, status, full, dataset
        self.images, self.facts, self.inputs, self.threads = images, facts, inputs, threads
        self.folder = out / FOLDER
        self.folder.mkdir(parents=True, exist_ok=True)
        self.tries: list[Try] = []
        self.errors: dict[str, float] = {}
        self._measured: dict[str, Ranges] = {}

    # -- climbing --

    def take(self) -> Made:
        """INT8 by the method that is asked for, not judged."""
        return self._ptq(self.spec.method)

    def climb(self) -> tuple[Try, Made] | None:
        """The first try that passes; None where none does. All are in `tries` then."""
        self.judge = Judge(self.spec, self.full, self.dataset)
        self._resume()
        known = {t.name: t for t in self.tries}
        for rung in self.spec.ladder:
            if reason := self._futile(rung):
                self._note(Try(rung, skipped=reason), known)
                continue
            for name in self._names(rung):
                if name in known and not known[name].passed:
                    continue
                begin = time.monotonic()
                made = self._make(rung, name)
                tried = known.get(name) or self._judged(rung, name, made, begin)
                self._note(tried, known)
                if tried.passed:
                    return tried, made
                if rung == "mixed" and tried.slow:
                    break  # with more layers in float32 it would be slower still
        return None

    def _names(self, rung: Rung) -> Iterator[str]:
        if rung == "ptq_other":
            yield from (f"{rung} {method}" for method in _METHODS if method != self.spec.method)
        elif rung == "mixed":
            count = 1
            while count <= len(self.layers) // 2:
                yield f"{rung} {count}"
                count *= 2
        else:
            yield rung

    def _futile(self, rung: Rung) -> str:
        """Why a rung need not be tried."""
        if rung == "qat" and self.spec.checkpoint is None:
            return "no checkpoint was given"
        if rung not in ("ptq", FLOAT) and any(t.slow for t in self.tries if t.name.startswith("ptq")):
            return "INT8 in all layers is too slow already, and this is no faster"
        return ""

    def _make(self, rung: Rung, name: str) -> Made:
        if rung == "ptq":
            return self._ptq(self.spec.method)
        if rung == "ptq_other":
            return self._ptq(name.split()[1])
        if rung == "mixed":
            return self._mixed(int(name.split()[1]))
        if rung == "qat":
            return self._qat()
        return Made(self.full.path.read_bytes())

    def _judged(self, rung: Rung, name: str, made: Made, begin: float) -> Try:
        if rung == FLOAT:
            figures = self.judge.baseline
            size = self.full.path.stat().st_size
            return Try(name, "the float32 model, as it is", round(figures.value, 6), bytes=size)
        tried = self.judge.judge(name, self._how(rung, made), self._open(made), made.floats)
        told = []
        if tried.failed and not tried.slow and rung in ("ptq", "ptq_other"):
            told = causes(self.prepared, made.ranges, self.inputs)
        return replace(tried, causes=tuple(told), seconds=round(time.monotonic() - begin, 2))

    def _how(self, rung: Rung, made: Made) -> str:
        how = f"ranges by {made.method} on {len(self.images)} images"
        if rung == "qat":
            how = f"{self.spec.qat_epochs} epochs with rounded values, then {how}"
        return f"{how}; float32: {', '.join(made.floats)}" if made.floats else how

    def _note(self, tried: Try, known: dict[str, Try]) -> None:
        """Write a try down, and tell it."""
        if tried.name in known:
            return
        known[tried.name] = tried
        self.tries.append(tried)
        kept = {"identity": self._identity, "errors": self.errors, "tries": [t.to_json() for t in self.tries]}
        write_json(self.folder / "tries.json", kept)
        verdict = f"not tried: {tried.skipped}" if tried.skipped else "; ".join(tried.failed) or "passes"
        self.status.running(f"Rung {tried.name}: {verdict}.", rung=tried.to_json())

    def _resume(self) -> None:
        """Take up the tries of a killed attempt at the same thing."""
        path = self.folder / "tries.json"
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            tries = [Try.from_json(t) for t in kept["tries"]]
            errors = {str(k): float(v) for k, v in kept["errors"].items()}
            same = kept["identity"] == self._identity
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
            self.status.running(f"The rungs tried before cannot be read ({exc!r}); starting anew.")
            return
        if not same:
            self.status.running("What was tried before is of another model, data, settings or machine; starting anew.")
            return
        self.tries, self.errors = tries, errors
        self.status.running(f"Going on after {len(tries)} rungs: {', '.join(t.name for t in tries)}.")

    @cached_property
    def _identity(self) -> str:
        content = [self.spec.model_dump(mode="json", exclude=_FREE), self.facts, vars(self.judge.baseline)]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    # -- making --

    @cached_property
    def prepared(self) -> Path:
        path = self.folder / "prepared.onnx"
        qdq.prepare(self.full.path, path)
        return path

    @cached_property
    def layers(self) -> list[qdq.Layer]:
        return qdq.layers(onnx.load(self.prepared).graph, list(self.full.info.outputs.values()))

    def _heads(self, model: Path) -> list[str]:
        return qdq.heads(onnx.load(model).graph, list(self.full.info.outputs.values()))

    def _ranges(self, method: str) -> Ranges:
        if method not in self._measured:
            self._measured[method] = self._measure(self.prepared, method)
        return self._measured[method]

    def _measure(self, model: Path, method: str) -> Ranges:
        own = model == self.prepared and method == self.spec.method
        if own and self.spec.cache is not None:
            return provenance.usable(Path(self.spec.cache), self.facts)
        self.status.running(f"Measuring ranges on {len(self.images)} images ({method}).")
        params = self.spec.model_copy(update={"method": method})
        return measure(model, self.images, self.full.info.input, params)

    def _ptq(self, method: str) -> Made:
        ranges = self._ranges(method)
        return Made(qdq.quantize(self.prepared, ranges, self.spec, self._heads(self.prepared)), method, ranges)

    @property
    def _best(self) -> str:
        """The method whose ranges lost least."""
        tried = [t for t in self.tries if t.name.startswith("ptq") and t.value is not None]
        if not tried:
            return self.spec.method
        name = min(tried, key=lambda t: t.drop).name
        return name.partition(" ")[2] or self.spec.method

    def _mixed(self, count: int) -> Made:
        method = self._best
        ranges = self._ranges(method)
        if not self.errors:
            self.errors = self._sensitivity(ranges)
        worst = sorted(self.layers, key=lambda layer: -self.errors[layer.name])[:count]
        floats = [*self._heads(self.prepared), *(node for layer in worst for node in layer.nodes)]
        content = qdq.quantize(self.prepared, ranges, self.spec, floats)
        return Made(content, method, ranges, tuple(layer.name for layer in worst))

    def _sensitivity(self, ranges: Ranges) -> dict[str, float]:
        """Layer -> what it does to the outputs to make it alone INT8: the largest root mean square error of an output,
        in parts of that output's own, on some calibration images."""
        chosen = self.images[:: max(1, len(self.images) // _PROBES)][:_PROBES]
        batch = np.concatenate([preprocess(r.image(), self.full.info.input)[0] for r in chosen])
        want = self.full(batch)
        every = [node.name for node in onnx.load(self.prepared).graph.node]
        errors: dict[str, float] = {}
        for layer in self.layers:
            others = [name for name in every if name not in layer.nodes]
            found = self._open(Made(qdq.quantize(self.prepared, ranges, self.spec, others)))(batch)
            gaps = [np.square(found[n] - want[n]).mean() / max(np.square(want[n]).mean(), 1e-12) for n in want]
            errors[layer.name] = round(float(np.sqrt(max(gaps))), 6)
        return errors

    def _qat(self) -> Made:
        from refit.cpu.checkpoint import Model  # torch is needed here alone
        from refit.cpu.export import to_onnx
        from refit.cpu.qat import fine_tune

        network = fine_tune(self.spec, self.dataset, self.status)
        source = onnx.load(self.full.path)
        opset = next(o.version for o in source.opset_import if o.domain == "")
        dynamic = bool(source.graph.input[0].type.tensor_type.shape.dim[0].dim_param)
        with tempfile.TemporaryDirectory() as folder:
            tuned, prepared = Path(folder) / "tuned.onnx", Path(folder) / "prepared.onnx"
            tuned.write_bytes(to_onnx(Model(network, self.full.info), opset, dynamic_batch=dynamic))
            qdq.prepare(tuned, prepared)
            # As in the fine-tuning, where nothing that a batch holds is cut off.
            ranges = self._measure(prepared, "minmax")
            content = qdq.quantize(prepared, ranges, self.spec, self._heads(prepared))
            return Made(content, "minmax", ranges, tuned=True)

    def _open(self, made: Made) -> OnnxModel:
        path = self.folder / "candidate.onnx"
        write_bytes(path, made.content)
        write_bytes(path.with_name(FILE_NAME), self.full.info.text().encode())
        return OnnxModel(path, self.threads)


def report(ladder: Ladder, winner: Try | None) -> dict[str, Any]:
    """`ladder.json`."""
    spec = ladder.spec
    judged = spec.min_speedup is not None and spec.activation == "uint8"
    return {
        "schema": 1,
        "winner": winner.name if winner else None,
        "metric": spec.metric,
        "split": ladder.judge.split,
        "before": {"value": ladder.judge.baseline.value, "classes": dict(ladder.judge.baseline.classes)},
        "limits": {
            "max_drop": ladder.judge.max_drop,
            "max_drop_class": spec.max_drop_class,
            "min_speedup": spec.min_speedup if judged else None,
            "floor": spec.floor,
        },
        "device": ladder.facts["device"],
        "rungs": [t.to_json() for t in ladder.tries],
        "layers": dict(sorted(ladder.errors.items(), key=lambda item: -item[1])),
    }


def table(tries: Sequence[Try], metric: str) -> str:
    """All rungs, for the log."""
    head = ("rung", metric, "drop", "worst class", "ms", "img/s (8)", "speed-up", "bytes", "seconds", "verdict")
    rows = [head, *(_row(t) for t in tries)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head) - 1)]
    return "\n".join("  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[-1]]) for row in rows)


def _row(t: Try) -> tuple[str, ...]:
    if t.value is None:
        return (t.name, *[""] * 8, f"not tried: {t.skipped}")
    worst = f"{t.worst[0]} {t.worst[1]:+.4f}" if t.worst else ""
    one, eight = (t.speed[0], t.speed[-1]) if t.speed else (None, None)
    return (
        t.name,
        f"{t.value:.4f}",
        f"{t.drop:+.4f}",
        worst,
        f"{one.after_ms:.2f}" if one else "",
        f"{eight.images_per_second:.0f}" if eight else "",
        " ".join(f"{s.speedup:.2f}" for s in t.speed),
        f"{t.bytes:,}",
        f"{t.seconds:.1f}",
        "; ".join([*(t.failed or ("passes",)), *t.causes]),
    )
