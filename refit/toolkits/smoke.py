"""The smoke run: before the long training every stage runs on a few images, for one epoch, up to a Triton of its own.

What would break at hour 30 (a spec that the export refuses, an engine that cannot be built, a plugin that the target's
Triton lacks) breaks in minutes. The stages are the toolkit's own, of the same pipeline with less to do; their names
begin with `smoke_`. No figure is judged: a model of one epoch has none. Nor is the data: a smoke run with other
images of the same classes and kinds, by the same specs and containers, stands for this one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pydantic import BaseModel

from refit.pipeline import Smoke
from refit.runtime.pod import SMOKE
from refit.toolkits.base import CHAMPION_STAGES, Output, Stage, command, spec_text
from refit.toolkits.chain import Chain
from refit.toolkits.lazy import Lazy

PREFIX = SMOKE
DATA = PREFIX + "data"
PARITY = "gate_parity"
_TRAININGS = ("train", "distill")
_INPUT = re.compile(r"\{input:(?=\w)")
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Needed:
    """Images of the training split, and of each other one, that a smoke run's commands need for whole batches."""

    train: int
    others: int = 1

    def with_least(self, images: int) -> Needed:
        return Needed(max(self.train, images), max(self.others, images))


def changed(model: M, changes: Mapping[str, Any]) -> M:
    """A pipeline with values at dotted paths replaced; what lies in a block that is left out stays out."""
    for path, value in changes.items():
        model = _with(model, path.split("."), value)
    return model


def _with(model: M, path: list[str], value: Any) -> M:
    name, *rest = path
    inner = getattr(model, name)
    if rest and inner is None:
        return model
    return model.model_copy(update={name: _with(inner, rest, value) if rest else value})


def with_smoke(
    chain: Chain, stages: Iterable[Stage], tiny: Callable[[Smoke], tuple[Iterable[Stage], Needed]]
) -> Iterator[Stage]:
    """The smoke run's stages and then the others, whose first training waits for it.

    `tiny`: the stages of the same pipeline with less to do, and the images that they need.
    """
    smoke = chain.pipeline.gates.smoke
    if smoke is None:
        yield from stages
        return
    made, needed = tiny(smoke)
    own = [_data(chain, needed.with_least(smoke.images)), *_renamed(made)]
    yield from own
    read = {name for stage in own for name in stage.upstream}
    ends = tuple(stage.name for stage in own if stage.name not in read)
    for stage in stages:
        yield replace(stage, after=(*stage.after, *ends)) if stage.action in _TRAININGS else stage


def _data(chain: Chain, needed: Needed) -> Stage:
    return Stage(
        name=DATA,
        action="subset",
        title="Smoke: a few images of each split",
        environment="tools",
        argv=command("refit.data", "subset", "subset.yaml"),
        files={"subset.yaml": {"snapshot": "{snapshot}", "images": needed.others, "train": needed.train}},
        outputs=(Output("dataset", "dataset.json", "json"), Output("annotations", "annotations.jsonl", "jsonl")),
        resources=chain.light(DATA),
        code=("refit/data/subset.py", "refit/data/snapshot.py", "refit/specs.py"),
        reads_snapshot=True,
        any_data=True,
    )


def _renamed(stages: Iterable[Stage]) -> Iterator[Stage]:
    """The stages up to Triton's answers, without the gates on figures, under names of their own."""
    dropped: dict[str, tuple[str, ...]] = {}  # a stage that is left out -> what it waited for
    for stage in stages:
        if stage.action == "release":
            return
        after = tuple(dict.fromkeys(name for s in stage.after for name in dropped.get(s, (s,))))
        if (stage.action == "gate" and stage.name != PARITY) or stage.name in CHAMPION_STAGES:
            dropped[stage.name] = tuple(name for s in stage.upstream for name in dropped.get(s, (s,)))
            continue
        yield _smoke(replace(stage, after=after))


def _smoke(stage: Stage) -> Stage:
    snapshot = (DATA,) if stage.reads_snapshot else ()
    watch = {"stall_seconds": stage.watch["stall_seconds"]} if stage.watch else None
    metrics = {n: {k: v for k, v in m.items() if k != "most"} for n, m in (stage.metrics or {}).items()}
    return replace(
        stage,
        name=PREFIX + stage.name,
        title=f"Smoke: {stage.title}",
        argv=tuple(_told(word) for word in stage.argv),
        files=Lazy(lambda: {name: _told(spec_text(_unjudged(stage, spec))) for name, spec in stage.files.items()}),
        inputs=(*snapshot, *(PREFIX + name for name in stage.inputs)),
        after=tuple(PREFIX + name for name in stage.after),
        metrics=metrics or None,
        watch=watch,
        reads_snapshot=False,
        resumes=False,
    )


def _told(text: str) -> str:
    """Tokens of the smoke run's own stages and images."""
    return _INPUT.sub("{input:" + PREFIX, text).replace("{snapshot}", f"{{input:{DATA}}}")


def _unjudged(stage: Stage, spec: str | Mapping[str, Any]) -> str | Mapping[str, Any]:
    """The parity gate's spec without limits: Triton must load the model, and its answers must be readable."""
    if stage.name != PARITY or isinstance(spec, str):
        return spec
    return {**spec, "references": {}, "figures": {}, "agreement": 0, "max_drop": 1, "policy": "fail"}
