"""The tao toolkit: NVIDIA TAO's containers, stage by stage.

What a network is stands in specs/networks/<name>/ (`refit.tao.networks`). Here: the pipeline file's model (`model`) and
what is judged in it beyond types (`check`), the order of the stages (`chain`), what `${...}` stands for in a network's
facts (`scope`), and Refit's own commands around TAO's (`own`).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from refit.cluster import Profile
from refit.pipeline import Pipeline, Smoke
from refit.specs import Key, Problem
from refit.tao import networks, preflight
from refit.tao.networks import Role
from refit.tao.render import BEGINNINGS
from refit.toolkits.approval import with_approval
from refit.toolkits.base import NetworkInput, Stage
from refit.toolkits.canary import with_canary
from refit.toolkits.chain import NO_PROFILE, doubtful_starts
from refit.toolkits.smoke import Needed, changed, with_smoke
from refit.toolkits.tao.chain import TaoChain
from refit.toolkits.tao.model import TaoPipeline, TaoStages
from refit.toolkits.tao.scope import Work

__all__ = ["BEGINNINGS", "TOOLKIT", "TaoChain", "TaoPipeline", "TaoStages", "TaoToolkit"]

_BATCH = 16  # images of a batch where the pipeline leaves it to the spec's template: the most of any of them
_BATCHES: tuple[Role, ...] = ("batch_size", "evaluation_batch_size")
_FINEST = 8  # pixels of the finest grid, but for DetectNet_v2, whose sidecar says it: P3 of the feature pyramids


def _less(pipeline: TaoPipeline, profile: Profile) -> tuple[TaoPipeline, Needed]:
    """The pipeline of a smoke run: one epoch with everything that an epoch may bring, and two steps of the batch that
    the real training takes, on as many GPUs; and the images that it needs."""
    changes: dict[str, Any] = {
        "gates.parity.images": 2,
        "stages.build_engine.calibration_batches": 1,
        "stages.build_engine.ladder": False,
        "stages.prune.search": None,
    }
    stages = pipeline.stages
    train, others = [], [len(pipeline.dataset.classes), stages.evaluate.batch_size or 1]
    for block in ("train", "retrain", "distill"):
        params = getattr(stages, block)
        if params is not None:
            every = {"start_from": None, "epochs": 1, "evaluate_every": 1, "checkpoint_every": 1}
            changes |= {f"stages.{block}.{name}": value for name, value in every.items()}
            gpus = pipeline.resources.stages.get(block, pipeline.resources.default).gpus
            batch = _batch(pipeline, profile, block)
            train.append(2 * batch * max(gpus, 1))
            others.append(batch)
    less = changed(pipeline, changes)
    if less.stages.build_engine is not None:
        train.append(less.stages.build_engine.calibration_batch_size)
    needed = Needed(max(train), max(others))
    if less.stages.quantize is not None:
        less = changed(less, {"stages.quantize.images": min(less.stages.quantize.images, needed.train)})
    return less, needed


def _batch(pipeline: TaoPipeline, profile: Profile, block: str) -> int:
    """Images of a batch on one GPU. The other splits get as many too: a loader that takes whole batches only
    (tao_deploy's dataloader/kitti.py) refuses to have none."""
    params = getattr(pipeline.stages, block)
    if params.spec is None and not params.set:
        return int(params.batch_size or _BATCH)
    action = "train" if block == "retrain" else block
    found = [params.batch_size or 1]
    for spec in TaoChain(pipeline, profile).rendered(Work(block, action, block)):
        paths = [path for role in _BATCHES for path in spec.facts.roles.get(role, ())]
        found += [spec.tree.value(path, 1) for path in paths]
    return max(int(value) for value in found)


@dataclass(frozen=True)
class TaoToolkit:
    """See `refit.toolkits.base.Toolkit`."""

    name: str = "tao"
    model: type[Pipeline] = TaoPipeline

    def stages(self, pipeline: TaoPipeline, profile: Profile, dataset: Mapping[str, Any] | None = None) -> list[Stage]:
        chain = TaoChain(pipeline, profile, dataset)

        def tiny(smoke: Smoke) -> tuple[Iterable[Stage], Needed]:
            less, needed = _less(pipeline, profile)
            most = needed.with_least(smoke.images)
            about = dict(dataset) if dataset else None
            if about:
                splits = {name: most.train if name == "train" else most.others for name in about["splits"]}
                about["splits"] = {name: min(images, about["splits"][name]) for name, images in splits.items()}
            return TaoChain(less, profile, about).stages(), needed

        smoked = with_smoke(chain, chain.stages(), tiny)
        return list(with_approval(pipeline, with_canary(pipeline, smoked)))

    def params(self, pipeline: TaoPipeline) -> Iterator[tuple[str, str, str]]:
        stages = pipeline.stages
        train = "distill" if stages.distill else "train"
        yield "Data", "seed", "seed"
        for name in ("start_from", "epochs", "batch_size", "learning_rate"):
            yield "Train", f"train_{name}", f"stages.{train}.{name}"
        if stages.prune:
            yield "Prune and retrain", "prune_threshold", "stages.prune.threshold"
        if stages.retrain:
            for name in ("start_from", "epochs", "learning_rate"):
                yield "Prune and retrain", f"retrain_{name}", f"stages.retrain.{name}"
        if stages.build_engine:
            yield "Engine", "engine_precision", "stages.build_engine.precision"
            yield "Engine", "calibration_batches", "stages.build_engine.calibration_batches"

    def changes(self, pipeline: TaoPipeline, profile: Profile) -> Mapping[str, Sequence[str]]:
        found: dict[str, list[str]] = {}
        for stage, _, spec in TaoChain(pipeline, profile).specs():
            if spec.own:
                found.setdefault(stage, []).extend(spec.changed)
        return found

    def network_input(self, pipeline: TaoPipeline) -> NetworkInput:
        network, facts = pipeline.network, networks.load(pipeline.network.name)
        return NetworkInput(
            network.input_width or facts.input.width,
            network.input_height or facts.input.height,
            int(facts.sidecar.get("stride", _FINEST)),
            facts.sidecar.get("input", {}).get("resize", "letterbox") == "letterbox",
        )

    def comparable(self, pipeline: TaoPipeline, files: Collection[str], classes: Sequence[str]) -> str:
        """Whatever its file is: a Triton is asked, and what it answers is read by the names of the classes."""
        mine = json.loads(TaoChain(pipeline, NO_PROFILE).sidecar)["classes"]
        return "" if set(classes) == set(mine) else f"it has other classes ({', '.join(classes)})"

    def preflight(
        self, pipeline: TaoPipeline, profile: Profile, dataset: Mapping[str, Any] | None
    ) -> Iterator[Problem | tuple[Key, str]]:
        yield from preflight.faults(TaoChain(pipeline, profile, dataset), dataset)

    def doubts(self, pipeline: TaoPipeline, profile: Profile) -> Iterator[Problem | tuple[Key, str]]:
        yield from doubtful_starts(pipeline)
        yield from preflight.doubts(TaoChain(pipeline, profile))


TOOLKIT = TaoToolkit()
