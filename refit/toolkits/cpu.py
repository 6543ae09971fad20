"""The cpu toolkit: Refit's own small detector, for a machine without a GPU, cluster or account.

Turns a pipeline with `toolkit: cpu` into stages whose commands are `python -m refit.cpu ...` (see refit/cpu).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from refit.cluster import Profile
from refit.cpu.specs import (
    AugmentParams,
    ConvertParams,
    EvaluateParams,
    ExportParams,
    NetworkParams,
    PruneParams,
    QuantizeParams,
    RetrainParams,
    TrainParams,
)
from refit.edge.specs import Edge
from refit.pipeline import OffOr, Pipeline, Smoke
from refit.specs import Key, Spec, did_you_mean
from refit.start import spec as start
from refit.toolkits import edge, proof
from refit.toolkits.approval import with_approval
from refit.toolkits.base import CHAMPION, NetworkInput, Output, Stage, command
from refit.toolkits.canary import with_canary
from refit.toolkits.chain import CPU_CODE, NO_PROFILE, Chain, doubtful_starts, starts, unknown_resources
from refit.toolkits.edge import Exported
from refit.toolkits.proof import Proven
from refit.toolkits.smoke import Needed, changed, with_smoke

OWN_IN_RETRAIN = ("epochs", "learning_rate", "start_from")
BEGINS = (".pth", ".onnx")  # files that a training can begin with (refit/cpu/begin.py)


class Stages(Spec):
    """A block per stage. `false` leaves an optional stage out: augment, prune, retrain, quantize."""

    augment: Annotated[AugmentParams | None, OffOr(AugmentParams())] = Field(
        None, description="copies of the training images with albumentations; left out unless given"
    )
    dataset_convert: ConvertParams = ConvertParams()
    train: TrainParams = TrainParams()
    evaluate: EvaluateParams = Field(EvaluateParams(), description="the same for every model of a run")
    prune: Annotated[PruneParams | None, OffOr(PruneParams())] = PruneParams()
    retrain: Annotated[RetrainParams | None, OffOr(RetrainParams())] = RetrainParams()
    export: ExportParams = ExportParams()
    quantize: Annotated[QuantizeParams | None, OffOr(QuantizeParams())] = QuantizeParams()

    @model_validator(mode="before")
    @classmethod
    def _retrain_like_train(cls, data: Any) -> Any:
        """What `retrain` does not name is as in `train`: augmentation, batch size, ...; not epochs, rate, start."""
        if not isinstance(data, dict):
            return data
        own = data.get("retrain", data.get("prune") is not False)
        if own is True or own is None:
            own = {}
        if not isinstance(own, dict):
            return {**data, "retrain": own}
        train = data.get("train") or {}
        try:
            TrainParams.model_validate(train)
        except ValidationError:  # it is reported where it stands, not in `retrain` as well
            return {**data, "retrain": own}
        shared = {k: v for k, v in train.items() if k not in OWN_IN_RETRAIN}
        return {**data, "retrain": {**shared, **own}}


class CpuPipeline(Pipeline):
    toolkit: Literal["cpu"]
    network: NetworkParams = NetworkParams()
    stages: Stages = Stages()
    edge: Edge | None = Field(None, description="the model in the forms of small devices and browsers; null: none")

    @property
    def augmentation(self) -> tuple[str, AugmentParams] | None:
        return ("augment", self.stages.augment) if self.stages.augment else None

    def check(self) -> Iterable[tuple[Key, str]]:
        yield from super().check()
        network, stages = self.network, self.stages
        for key, value in (("input_width", network.input_width), ("input_height", network.input_height)):
            if value % network.stride:
                near = max(network.stride, round(value / network.stride) * network.stride)
                message = f"{value} is no multiple of the stride {network.stride}; use {near}"
                yield ("network", key), message
        if stages.retrain is not None and stages.prune is None:
            yield ("stages", "retrain"), "there is nothing to retrain without prune; leave both out or none"
        yield from starts(self, "the cpu toolkit's network", BEGINS)
        yield from unknown_resources(self, lambda: TOOLKIT.stages(self, NO_PROFILE))
        by = self.dataset.split
        known = set(by.listed or ("train", "val")) - {"train"}
        for i, split in enumerate(stages.evaluate.splits):
            if split not in known and by.lists != "own":  # whose names are known once the data is
                hint = did_you_mean(split, sorted(known)) or f"; there is {', '.join(sorted(known))}"
                yield ("stages", "evaluate", "splits", i), f"the data set has no split {split!r} to evaluate on{hint}"


MODEL = Output("model", "model.pth", "pth", min_bytes=1000)
ONNX = (
    Output("model", "model.onnx", "onnx", min_bytes=1000),
    Output("info", "model.json", "json"),
    Output("reference", "reference.npz"),
)
LADDER = Output("ladder", "ladder.json", "json")
RESULTS = (Output("results", "results.json", "json"),)


# What a smoke run does less.
_LITTLE: Mapping[str, Any] = {
    "gates.champion": None,
    "gates.parity.images": 2,
    "stages.train.epochs": 1,
    "stages.train.start_from": None,
    "stages.retrain.epochs": 1,
    "stages.retrain.start_from": None,
    # Nothing is judged, so nothing is searched: one size, and INT8 as the first rung would make it.
    "stages.prune.search": None,
    "stages.quantize.ladder": [],
    "stages.quantize.cache": None,
}


@dataclass(frozen=True)
class CpuToolkit:
    name: str = "cpu"
    model: type[Pipeline] = CpuPipeline

    def stages(self, pipeline: CpuPipeline, profile: Profile, dataset: Mapping[str, Any] | None = None) -> list[Stage]:
        chain = _Chain(pipeline, profile, dataset)

        def tiny(smoke: Smoke) -> tuple[Iterable[Stage], Needed]:
            less = changed(pipeline, {**_LITTLE, "stages.quantize.images": smoke.images})
            batch = max(t.batch_size for t in (less.stages.train, less.stages.retrain) if t is not None)
            return _Chain(less, profile).stages(), Needed(batch)

        smoked = with_smoke(chain, chain.stages(), tiny)
        return list(with_approval(pipeline, with_canary(pipeline, smoked)))

    def params(self, pipeline: CpuPipeline) -> Iterator[tuple[str, str, str]]:
        stages = pipeline.stages
        yield "Data", "seed", "seed"
        if stages.augment:
            yield "Augment", "augment_copies", "stages.augment.copies"
        for name in ("start_from", "epochs", "batch_size", "learning_rate"):
            yield "Train", f"train_{name}", f"stages.train.{name}"
        if stages.prune:
            yield "Prune and retrain", "prune_ratio", "stages.prune.ratio"
        if stages.retrain:
            for name in ("start_from", "epochs", "learning_rate"):
                yield "Prune and retrain", f"retrain_{name}", f"stages.retrain.{name}"
        if stages.quantize:
            yield "INT8", "quantize_method", "stages.quantize.method"
            yield "INT8", "quantize_images", "stages.quantize.images"

    def changes(self, pipeline: CpuPipeline, profile: Profile) -> Mapping[str, Sequence[str]]:
        return {}

    def doubts(self, pipeline: CpuPipeline, profile: Profile) -> Iterator[tuple[Key, str]]:
        yield from doubtful_starts(pipeline)

    def network_input(self, pipeline: CpuPipeline) -> NetworkInput:
        network = pipeline.network
        letterbox = network.resize == "letterbox"
        return NetworkInput(network.input_width, network.input_height, network.stride, letterbox)

    def comparable(self, pipeline: CpuPipeline, files: Collection[str], classes: Sequence[str]) -> str:
        if list(classes) != pipeline.dataset.classes:
            return f"it has other classes ({', '.join(classes)})"
        return "" if "model.onnx" in files else "it is no ONNX file"

    def preflight(
        self, pipeline: CpuPipeline, profile: Profile, dataset: Mapping[str, Any] | None
    ) -> Iterator[tuple[Key, str]]:
        if dataset is None:
            return
        splits: Mapping[str, int] = dataset["splits"]
        train = splits.get("train", 0)
        if pipeline.stages.train.batch_size > train:
            yield (
                ("stages", "train", "batch_size"),
                f"{pipeline.stages.train.batch_size} is more than the {train} images of the train split; "
                f"use {train} or less, or bring more images",
            )
        for i, split in enumerate(pipeline.stages.evaluate.splits):
            if not splits.get(split):
                yield ("stages", "evaluate", "splits", i), f"the data set has no image in split {split!r}"


TOOLKIT = CpuToolkit()


class _Chain(Chain):
    """The chain of one pipeline: augment, dataset_convert, train, evaluate, gate, prune, ... release."""

    def __init__(self, pipeline: CpuPipeline, profile: Profile, dataset: Mapping[str, Any] | None = None) -> None:
        super().__init__(pipeline, profile, dataset)
        self.p = pipeline

    def stages(self) -> Iterator[Stage]:
        p, s = self.p, self.p.stages
        if s.augment:
            yield self.augment("augment", s.augment)
        yield self._cpu(
            "dataset_convert",
            {"snapshot": "{input:augment}" if s.augment else "{snapshot}", **s.dataset_convert.model_dump()},
            title="Write TFRecords",
            inputs=("augment",) if s.augment else (),
            outputs=(Output("dataset", "dataset.json", "json"),),
            reads_snapshot=not s.augment,
        )
        yield self._train("train", "Train", s.train)
        yield from self._judge("trained", "train", None)
        last, judged = "train", "trained"
        if s.prune:
            yield self._prune(s.prune, judged)
            last, name = "prune", "pruned"
            if s.retrain:
                yield self._train("retrain", "Retrain the pruned model", s.retrain, model="prune")
                last, name = "retrain", "retrained"
            yield from self._judge(name, last, judged)
            judged = name
        trained = last
        yield self._cpu(
            "export",
            {
                "model": f"{{input:{last}.model}}",
                "records": "{input:dataset_convert}",
                **s.export.model_dump(),
                "evaluate": s.evaluate.model_dump(),
            },
            title="Export ONNX",
            inputs=(last, "dataset_convert"),
            after=(f"gate_{judged}",),
            outputs=ONNX,
        )
        last = "export"
        if s.quantize:
            yield self._quantize(s.quantize, trained, judged)
            yield from self._judge("quantized", "quantize", judged)
            last, judged = "quantize", "quantized"
        if p.edge:
            released = (last, judged) if s.quantize else ("export", edge.BASELINE)
            yield from edge.stages(self, p.edge, Exported("export", "dataset_convert", released, s.evaluate))
        if p.release and p.gates.champion:
            yield self._evaluate("champion", CHAMPION + "/model.onnx", (), after=(f"gate_{judged}",))
            yield self.gate_champion(judged)
        if p.release and p.gates.parity:
            yield from proof.stages(self, self._proven(last, judged))
        if p.release:
            gates = {"gate_champion": p.gates.champion, "gate_parity": p.gates.parity, edge.BUNDLE: p.edge}
            yield self.release(last, judged, after=tuple(name for name, gate in gates.items() if gate))
        yield from self.watch()

    def _cpu(self, name: str, spec: Mapping[str, Any], *, title: str, action: str | None = None, **more: Any) -> Stage:
        """A stage whose command is one of the cpu toolkit's."""
        action = action or name
        file = f"{action}.yaml"
        return Stage(
            name=name,
            action=action,
            title=title,
            environment="cpu",
            argv=command("refit.cpu", action, file),
            files={file: {"seed": self.p.seed, **spec}},
            env={"OMP_WAIT_POLICY": "passive"},
            code=CPU_CODE,
            resources=self.resources(name),
            **more,
        )

    def _train(self, name: str, title: str, params: TrainParams, model: str | None = None) -> Stage:
        spec = {
            "records": "{input:dataset_convert}",
            "model": f"{{input:{model}.model}}" if model else None,
            "network": self.p.network.model_dump(),
            **params.model_dump(exclude={"start_from"}),
            "start_from": start.weights(params.start_from),
        }
        session = start.session_of(params.start_from)
        if session is not None:
            spec["resume"] = True
        dog = self.p.watchdog
        return self._cpu(
            name,
            spec,
            action=name,
            title=title,
            inputs=("dataset_convert", *((model,) if model else ())),
            outputs=(MODEL,),
            session=session,
            watch={
                "stall_seconds": dog.stall_minutes * 60,
                "loss_factor": dog.loss_factor,
                "zero_metric": "val_mAP50",
                "zero_evaluations": dog.zero_evaluations,
            },
        )

    def _prune(self, params: PruneParams, judged: str) -> Stage:
        stages = self.p.stages
        spec = {"model": "{input:train.model}", "records": "{input:dataset_convert}", **params.model_dump()}
        if params.search is not None:
            spec |= {
                "network": self.p.network.model_dump(),
                "training": (stages.retrain or stages.train).model_dump(exclude={"start_from"}),
                "evaluate": stages.evaluate.model_dump(),
                "metric": self.p.gates.quality.metric,
            }
        return self._cpu(
            "prune",
            spec,
            title="Prune channels",
            inputs=("train", "dataset_convert"),
            after=(f"gate_{judged}",),
            outputs=(MODEL, *((Output("search", "search.json", "json"),) if params.search else ())),
            summary="summary.json" if params.search else None,
        )

    def _quantize(self, params: QuantizeParams, trained: str, judged: str) -> Stage:
        """INT8 of the export, by the ladder's first rung that holds against the figures of evaluate_<judged>."""
        gate, stages = self.p.gates.quality, self.p.stages
        spec = {"model": "{input:export.model}", "records": "{input:dataset_convert}", **params.model_dump()}
        inputs: tuple[str, ...] = ("export", "dataset_convert")
        outputs: tuple[Output, ...] = (*ONNX, Output("calibration", "calibration.json", "json"))
        if params.ladder:
            spec |= {
                "max_drop": gate.max_drop_quantized if params.max_drop is None else params.max_drop,
                "max_drop_class": gate.max_drop_class if params.max_drop_class is None else params.max_drop_class,
                "checkpoint": f"{{input:{trained}.model}}",
                "training": (stages.retrain or stages.train).model_dump(exclude={"start_from"}),
                "evaluate": stages.evaluate.model_dump(),
                "baseline": f"{{input:evaluate_{judged}.results}}",
                "metric": gate.metric,
                "floor": gate.floor,
            }
            inputs = (*inputs, trained, f"evaluate_{judged}")
            outputs = (*outputs, LADDER)
        return self._cpu(
            "quantize",
            spec,
            title="Quantize to INT8",
            inputs=inputs,
            outputs=outputs,
            summary="summary.json" if params.ladder else None,
        )

    def _judge(self, name: str, model: str, baseline: str | None) -> Iterator[Stage]:
        """Evaluate a model, then the quality gate on the figures."""
        s = self.p.stages
        yield self._evaluate(name, f"{{input:{model}.model}}", (model,))
        # A model that is still to be pruned, retrained or quantized is held to the floor where it starts and ends.
        chosen = model if model == "quantize" and s.quantize and s.quantize.ladder else None
        yield self.gate(name, baseline, floor=name in ("trained", "quantized") or self._is_last(name), ladder=chosen)

    def _evaluate(self, name: str, model: str, inputs: tuple[str, ...], after: tuple[str, ...] = ()) -> Stage:
        return self._cpu(
            f"evaluate_{name}",
            {"records": "{input:dataset_convert}", "model": model, **self.p.stages.evaluate.model_dump()},
            action="evaluate",
            title=f"Evaluate the {name} model" if inputs else f"Evaluate the {name}",
            inputs=(*inputs, "dataset_convert"),
            after=after,
            outputs=RESULTS,
        )

    def _proven(self, last: str, judged: str) -> Proven:
        """The model that would be released, against the evaluations of its checkpoint and of itself."""
        evaluate = self.p.stages.evaluate
        checkpoint = "retrained" if self.p.stages.retrain else "pruned" if self.p.stages.prune else "trained"
        return Proven(
            name=judged,
            stage=last,
            path=f"{{input:{last}.model}}",
            split=evaluate.splits[0],
            onnx=("export", "{input:export.model}"),
            references={name: f"evaluate_{name}" for name in (checkpoint, judged)},
            evaluate=evaluate.model_dump(exclude={"splits"}),
        )

    def _is_last(self, name: str) -> bool:
        return (not self.p.stages.quantize and name != "trained") or not self.p.stages.prune
