"""The INT8 ladder of a TAO pipeline: one pod builds an engine in one way after another and evaluates each, until one is
good enough (`refit.tao.climb`).

| rung | is |
|---|---|
| int8 | INT8 as the pipeline has it: calibrated, or by the scales of quantization-aware training |
| more_images | calibrated on MORE times as many images of the train split, as far as there are |
| fp16 | no INT8 |

All of a rung's commands are the pipeline's own with other values, so they are checked and planned as without a ladder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import refit
from refit.tao.climb import EXITS
from refit.toolkits.base import Output, Stage, spec_text
from refit.toolkits.lazy import Lazy
from refit.toolkits.smoke import changed
from refit.toolkits.tao.scope import Work

if TYPE_CHECKING:
    from refit.toolkits.tao.chain import TaoChain

MORE = 4
CALIBRATE_MORE = "calibrate_more"
PROGRAM = "climb.py"
_SOURCE = Path(refit.__path__[0]) / "tao" / PROGRAM
_QUANTIZATION = {"ptq": "calibrated", "qat": "explicit"}


@dataclass(frozen=True)
class Rung:
    """`chain` plans it: the pipeline's with other values; `images` is the stage with its calibration images."""

    name: str
    how: str
    chain: TaoChain
    skipped: str = ""
    images: str = "calibrate"

    def built(self, cache: str) -> dict[str, Any]:
        """What it makes, for `refit.engine.describe`."""
        params, way = self.chain.p.stages.build_engine, self.chain.way_to_int8
        assert params is not None
        made: dict[str, Any] = {"precision": params.precision, "quantization": _QUANTIZATION.get(way or "", "none")}
        if way == "ptq":
            made["calibration"] = {
                "images": f"{{input:{self.images}}}/images",
                "batches": params.calibration_batches,
                "batch_size": params.calibration_batch_size,
                "cache": cache,
            }
        return made


def more_batches(chain: TaoChain) -> int:
    """Batches of the rung `more_images`; no more than the pipeline's own where the train split has no more."""
    params = chain.p.stages.build_engine
    assert params is not None
    own, wanted = params.calibration_batches, MORE * params.calibration_batches
    train = (chain.dataset or {}).get("splits", {}).get("train")
    return wanted if train is None else max(own, min(wanted, train // params.calibration_batch_size))


def rungs(chain: TaoChain) -> Iterator[Rung]:
    params, way = chain.p.stages.build_engine, chain.way_to_int8
    assert params is not None
    images = params.calibration_batches * params.calibration_batch_size
    yield Rung("int8", f"calibrated on {images} images" if way == "ptq" else "by the scales of its training", chain)
    if way == "ptq":
        batches = more_batches(chain)
        none = "the train split has no more images" if batches == params.calibration_batches else ""
        more = _with(chain, calibration_batches=batches)
        how = f"calibrated on {batches * params.calibration_batch_size} images"
        yield Rung("more_images", how, more, none, CALIBRATE_MORE)
        if "qat" in chain.facts.int8:
            yield Rung("qat", "", chain, "it needs a training of its own: stages.train.qat: true")
    yield Rung("fp16", "no INT8", _with(chain, precision="fp16", int8="auto"))


def _with(chain: TaoChain, **values: Any) -> TaoChain:
    changes = {f"stages.build_engine.{name}": value for name, value in values.items()}
    return type(chain)(changed(chain.p, changes), chain.profile, chain.dataset)


def climbs(chain: TaoChain, plain: Stage, onnx: str, judged: str) -> Stage:
    """The stage `plain`, which builds one engine, as one that climbs; evaluate_<judged> is what it is held against."""
    before = f"evaluate_{judged}"
    parts = list(rungs(chain))
    more = any(rung.images == CALIBRATE_MORE for rung in parts)
    # The last rung's precision is not the pipeline's, which preflight would say of it; it differs in nothing else.
    checked = [rung for rung in parts if not rung.skipped and rung.chain.precision_of_spec == chain.precision_of_spec]
    gate = chain.p.gates.quality
    spec = {
        "metric": gate.metric,
        "split": "val",
        "model": "model.plan",
        "limits": {"max_drop": gate.max_drop_quantized, "max_drop_class": gate.max_drop_class, "floor": gate.floor},
    }

    def told() -> dict[str, Any]:
        return {**spec, "rungs": [_rung(rung, plain.name, onnx) for rung in parts]}

    inputs = (*plain.inputs, *((CALIBRATE_MORE,) if more else ()))
    stages = tuple(s for rung in checked for s in _stages(rung, plain.name, onnx))
    return trying(replace(plain, inputs=inputs), "ladder", told, (plain.name,), before, stages)


def trying(
    plain: Stage,
    kind: str,
    told: Callable[[], Mapping[str, Any]],
    own: Sequence[str],
    before: str,
    like: Sequence[Stage],
) -> Stage:
    """The stage `plain` as one whose command is `refit.tao.climb`.

    Args:
        kind: of what is tried; <kind>.json says what, and is told what came of it.
        told: makes it.
        own: the stages that it runs itself, of which only the runner inside knows.
        before: the stage with the figures that its models are held against.
        like: stages whose commands are like those that it runs, for preflight to look at.
    """

    def files() -> Mapping[str, str]:
        return {
            PROGRAM: _SOURCE.read_text(encoding="utf-8"),
            f"{kind}.json": kept(json.dumps(told(), indent=1), *own),
        }

    return replace(
        plain,
        argv=("{python}", f"{{specs}}/{PROGRAM}", "{runner}", f"{{specs}}/{kind}.json", _before(before), "{out}"),
        files=Climbed(files, tuple(like)),
        outputs=(*plain.outputs, Output(kind, f"{kind}.json", "json")),
        inputs=tuple(dict.fromkeys((*plain.inputs, before))),
        env={**plain.env, **{f"REFIT_SECRET_{name}": f"{{secret:{name}}}" for name in plain.secrets}},
        status="status.json",
        success={"status": "SUCCESS"},
        metrics=None,
        summary="summary.json",
        exit_codes={str(code): outcome for outcome, code in EXITS.items()},
        resumes=True,
    )


class Climbed(Lazy):
    """The files of a stage that tries; `stages` are what its commands would be, for preflight to look at."""

    def __init__(self, make: Any, stages: tuple[Stage, ...]) -> None:
        super().__init__(make)
        self.stages = stages


def _before(stage: str) -> str:
    return f"{{input:{stage}}}/../result.json"


def _stages(rung: Rung, name: str, onnx: str) -> tuple[Stage, Stage]:
    chain = rung.chain
    build = chain.command(Work(name, "build_engine", chain.p.stages.trained_by, onnx))
    evaluate = chain.command(Work(f"evaluate_{name}", "evaluate_engine", chain.p.stages.trained_by, name))
    return build, evaluate


def _rung(rung: Rung, name: str, onnx: str) -> dict[str, Any]:
    if rung.skipped:
        return {"name": rung.name, "how": rung.how, "skipped": rung.skipped}

    def told(text: str) -> str:
        return text.replace("{input:calibrate}", f"{{input:{rung.images}}}")

    requests = [request(stage, told) for stage in _stages(rung, name, onnx)]
    return {"name": rung.name, "how": rung.how, "requests": requests}


def request(stage: Stage, told: Callable[[str], str] = str) -> dict[str, Any]:
    """For the runner inside of the pod. What was not finished begins anew: a cache that is there would be used."""
    return {
        "name": stage.name,
        "action": stage.action,
        "environment": stage.environment,
        "argv": [told(word) for word in stage.argv],
        "files": {file: told(spec_text(spec)) for file, spec in stage.files.items()},
        "env": dict(stage.env),
        "secrets": list(stage.secrets),
        "outputs": [output.to_json() for output in stage.outputs],
        "status": stage.status,
        "success": dict(stage.success or {}),
        "metrics": dict(stage.metrics or {}),
        "classes": dict(stage.classes),
        "resume": False,
    }


def kept(text: str, *own: str) -> str:
    """JSON in which the tokens that are meant for the runner inside are not seen by the one outside."""
    names = "|".join(map(re.escape, own))
    inner = rf"\{{(?=(?:out|specs|python|stage|secret:[^{{}}]+|input:(?:{names})(?:\.[^{{}}]*)?)\}})"
    return re.sub(inner, r"\\u007b", text)
