"""The tao toolkit: NVIDIA TAO's containers, stage by stage.

What a network is stands in specs/networks/<name>/ (`refit.tao.networks`); here is the order of the stages, and what
each of them works on. prepare and pretrained are Refit's own; all others are TAO's commands.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

from pydantic import ValidationError, model_validator

from refit.cluster import KubernetesProfile, Profile
from refit.data.prepare.names import written
from refit.engine.gpu import recording
from refit.pipeline import Pipeline, Resources
from refit.specs import Key, Problem, did_you_mean
from refit.tao import networks, preflight, render
from refit.tao.networks import Network, StageFact
from refit.tao.params import BuildEngineParams, NetworkParams, Stages, TrainParams
from refit.toolkits.base import Output, Stage, command
from refit.toolkits.chain import NO_PROFILE, Chain

# A retraining has these of its own; it takes all else from `train`.
OWN_IN_RETRAIN = ("epochs", "learning_rate", "min_learning_rate", "spec")
# What only a training reads: where it begins.
BEGINNINGS = ("pretrained", "pretrained_backbone", "pretrained_model", "start", "pruned")
RESULTS = "{{input:evaluate_{}}}/../result.json"


class TaoStages(Stages):
    @model_validator(mode="before")
    @classmethod
    def _retrain_like_train(cls, data: Any) -> Any:
        """A pruned model is retrained unless that is refused; what `retrain` does not name is as in `train`."""
        if not isinstance(data, dict) or data.get("prune") in (None, False):
            return data
        own = data.get("retrain")
        if own is False:
            return data
        own = {} if own is None or own is True else own
        train = data.get("train") or {}
        if not isinstance(own, dict) or not isinstance(train, dict):
            return data
        try:
            TrainParams.model_validate(train)
        except ValidationError:  # it is reported where it stands, not in `retrain` as well
            return {**data, "retrain": own}
        return {**data, "retrain": {**{k: v for k, v in train.items() if k not in OWN_IN_RETRAIN}, **own}}


class TaoPipeline(Pipeline):
    toolkit: Literal["tao"]
    runtime: Literal["local", "kubernetes"] = "kubernetes"
    network: NetworkParams
    stages: TaoStages = TaoStages()

    @property
    def facts(self) -> Network:
        return networks.load(self.network.name)

    def check(self) -> Iterable[tuple[Key, str]]:
        yield from super().check()
        known = networks.known()
        if self.network.name not in known:
            hint = did_you_mean(self.network.name, list(known)) or f"; there is {', '.join(known)}"
            yield ("network", "name"), f"there is no network {self.network.name!r}{hint}"
            return
        found = [*_check_network(self.network, self.facts), *_check_stages(self, self.facts)]
        yield from found
        if found:
            return  # such a chain cannot even be listed
        names = {s.name for s in TOOLKIT.stages(self, NO_PROFILE)}
        for name in self.resources.stages:
            if name not in names:
                hint = did_you_mean(name, sorted(names)) or f"; known here: {', '.join(sorted(names))}"
                yield ("resources", "stages", name), f"this pipeline has no such stage{hint}"


def _check_network(network: NetworkParams, facts: Network) -> Iterator[tuple[Key, str]]:
    if network.backbone is not None and network.backbone not in facts.backbones:
        hint = did_you_mean(network.backbone, list(facts.backbones)) or f"; use one of {', '.join(facts.backbones)}"
        yield ("network", "backbone"), f"{network.name} has no backbone {network.backbone!r}{hint}"
    step = facts.input.multiple_of
    for key, value in (("input_width", network.input_width), ("input_height", network.input_height)):
        if value is not None and value % step:
            near = max(step, round(value / step) * step)
            yield ("network", key), f"{value} is no multiple of {step}, which {network.name} needs; use {near}"
    if network.channels not in facts.input.channels:
        only = " or ".join(map(str, facts.input.channels))
        yield ("network", "channels"), f"{network.name} takes images of {only} channels, not {network.channels}"
    if network.key_secret and not facts.encrypted:
        yield ("network", "key_secret"), f"{network.name} has no encrypted models; leave it out"
    if network.pretrained is True:
        backbone = network.backbone or next(iter(facts.backbones))
        if backbone in facts.backbones and not facts.backbones[backbone].get("ngc"):
            yield ("network", "pretrained"), f"no weights of {backbone} are known on NGC; name them: {{ngc: ...}}"
    all_releases = networks.releases()
    if network.release is not None:
        known = [name for name, r in all_releases.releases.items() if facts.family in r.images]
        if network.release not in known:
            hint = did_you_mean(network.release, known) or f"; use one of {', '.join(known)}"
            yield ("network", "release"), f"TAO {network.release} has no image for {network.name}{hint}"


# The pipeline's block -> the network's stage that must be there for it.
_NEEDS = {"prune": "prune", "retrain": "prune", "quantize": "quantize", "distill": "distill", "inference": "inference"}
_BLOCKS = ("dataset_convert", "train", "distill", "evaluate", "prune", "retrain", "export", "quantize", "build_engine")


def _check_stages(pipeline: TaoPipeline, facts: Network) -> Iterator[tuple[Key, str]]:
    stages, name = pipeline.stages, pipeline.network.name
    try:
        written(pipeline.dataset.classes, facts.data.form, stages.prepare.names)
    except ValueError as exc:
        yield ("stages", "prepare", "names"), f"{exc}"
    for block, action in _NEEDS.items():
        if getattr(stages, block) is not None and action not in facts.stages:
            yield ("stages", block), f"{name} has no {action}; it has {', '.join(facts.stages)}. Leave {block} out"
        elif getattr(stages, block) is not None:
            since, release = facts.stages[action].since, _release(pipeline)
            if since and _number(release) < _number(since):
                newer = [r for r in networks.releases().releases if _number(r) >= _number(since)]
                yield (
                    ("stages", block),
                    f"{name} has {action} from TAO {since}, this is {release}; say network.release: {newer[0]}",
                )
    if stages.retrain is not None and stages.prune is None:
        yield ("stages", "retrain"), "there is nothing to retrain without prune; leave both out or none"
    for block in _BLOCKS:
        given = getattr(stages, block)
        action = "train" if block == "retrain" else block
        if given is None or action not in facts.stages:
            continue
        useful = {n.removeprefix(f"{action}.") for a in facts.stages for n in facts.parameters(a)}
        for key in _given(given):
            if key not in useful and key.partition(".")[0] not in ("spec", "set", *_ALWAYS.get(block, ())):
                text = f"{name} has no such parameter; set it by its path in the spec, under stages.{block}.set"
                yield ("stages", block, *key.split(".")), text
    for weights in ("train", "retrain", "distill"):
        block = getattr(stages, weights)
        for label in block.class_weights if block else ():
            if label not in pipeline.dataset.classes:
                hint = did_you_mean(label, pipeline.dataset.classes)
                yield ("stages", weights, "class_weights", label), f"is no class of the data set{hint}"
    engine = stages.build_engine
    if engine is None and facts.plugins and pipeline.release is not None:
        text = f"the ONNX file of {name} has TensorRT's operators ({', '.join(facts.plugins)}): Triton needs an engine"
        yield ("stages", "build_engine"), f"{text}. Leave build_engine in, or say release: false"
    if engine is not None and engine.precision == "int8":
        yield from _check_int8(pipeline, facts, engine)


def _release(pipeline: TaoPipeline) -> str:
    return pipeline.network.release or networks.releases().default[pipeline.facts.family]


def _number(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in release.split("."))


# Parameters that Refit itself uses.
_ALWAYS: dict[str, tuple[str, ...]] = {
    "train": ("qat", "amp", "class_weights"),
    "retrain": ("qat", "amp", "class_weights"),
    "distill": ("qat", "amp", "class_weights", "teacher", "teacher_backbone"),
    "evaluate": ("iou", "min_width", "min_height", "score_threshold"),
    "prune": ("max_kept",),
    "quantize": ("images",),
    "build_engine": (
        "precision",
        "int8",
        "gpu_types",
        "calibration_batches",
        "calibration_batch_size",
        "workspace_gib",
    ),
}


def _given(block: Any, prefix: str = "") -> Iterator[str]:
    """The dotted names of what a block of the file says."""
    for name in sorted(block.model_fields_set):
        value = getattr(block, name)
        if hasattr(type(value), "model_fields"):
            yield from _given(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _check_int8(pipeline: TaoPipeline, facts: Network, engine: BuildEngineParams) -> Iterator[tuple[Key, str]]:
    name, last = pipeline.network.name, pipeline.stages.retrain or pipeline.stages.train
    key: Key = ("stages", "build_engine", "int8")
    ways = ", ".join(f"{k} ({v})" for k, v in facts.int8.items()) or "none"
    if engine.int8 != "auto" and engine.int8 not in facts.int8:
        yield key, f"{name} has no way {engine.int8!r} to INT8; it has {ways}"
    if not facts.int8:
        yield ("stages", "build_engine", "precision"), f"{name} has no way to INT8; use fp16"
    if engine.int8 == "qat" and not last.qat:
        yield key, "qat needs a model that was trained for it; set stages.train.qat: true"
    if last.qat and engine.int8 in ("ptq", "qdq"):
        yield key, f"the model is trained with qat: true, which {engine.int8} would throw away; use qat or auto"
    if last.qat and "qat" not in facts.int8:
        yield ("stages", "train", "qat"), f"{name} has no quantization-aware training; its ways to INT8 are {ways}"
    if engine.int8 == "qdq" and pipeline.stages.quantize is None:
        yield key, "qdq needs the stage quantize; add stages.quantize"


@dataclass(frozen=True)
class TaoToolkit:
    name: str = "tao"
    model: type[Pipeline] = TaoPipeline

    def stages(self, pipeline: TaoPipeline, profile: Profile, dataset: Mapping[str, Any] | None = None) -> list[Stage]:
        return list(TaoChain(pipeline, profile, dataset).stages())

    def params(self, pipeline: TaoPipeline) -> Iterator[tuple[str, str, str]]:
        stages = pipeline.stages
        yield "Data", "seed", "seed"
        for name in ("epochs", "batch_size", "learning_rate"):
            yield "Train", f"train_{name}", f"stages.train.{name}"
        if stages.prune:
            yield "Prune and retrain", "prune_threshold", "stages.prune.threshold"
        if stages.retrain:
            for name in ("epochs", "learning_rate"):
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

    def preflight(
        self, pipeline: TaoPipeline, profile: Profile, dataset: Mapping[str, Any] | None
    ) -> Iterator[Problem | tuple[Key, str]]:
        yield from preflight.faults(TaoChain(pipeline, profile, dataset), dataset)


TOOLKIT = TaoToolkit()


class TaoChain(Chain):
    """The chain of one pipeline. `specs` and `own_changes` show what the stages will read, before anything runs."""

    def __init__(self, pipeline: TaoPipeline, profile: Profile, dataset: Mapping[str, Any] | None = None) -> None:
        super().__init__(pipeline, profile)
        self.dataset = dataset
        self.p, self.facts = pipeline, networks.load(pipeline.network.name)

    def specs(self) -> Iterator[tuple[str, str, render.Rendered]]:
        """(stage, action, spec) of every spec file that TAO's commands will read."""
        for stage in self.stages():
            if isinstance(stage.files, _Files):
                for rendered in stage.files.rendered:
                    yield stage.name, stage.files.action, rendered

    @property
    def roots(self) -> tuple[str, ...]:
        """The folders that a stage sees."""
        if isinstance(self.profile, KubernetesProfile):
            volumes = self.profile.volumes
            return tuple(v.mount_path for v in (volumes.workspace, volumes.inbox) if v is not None)
        return ()

    # -- the order --

    def stages(self) -> Iterator[Stage]:
        s = self.p.stages
        yield self._prepare()
        if self.p.network.pretrained:
            yield self._pretrained()
        if s.augment:
            yield self.tao("augment", "augment", inputs=("prepare",))
        if "dataset_convert" in self.facts.stages:
            for split in ("train", "val", *(("augmented",) if s.augment else ())):
                source = "augment" if split == "augmented" else "prepare"
                yield self.tao(f"dataset_convert_{split}", "dataset_convert", inputs=(source,), split=split)
        first = "distill" if s.distill else "train"
        yield self.tao(first, first, inputs=(*self._data, *(("pretrained",) if self.p.network.pretrained else ())))
        yield from self._judge("trained", first, first, None)
        last, judged = first, "trained"
        if s.prune:
            yield self.tao(
                "prune",
                "prune",
                inputs=(*self._data, first),
                after=(f"gate_{judged}",),
                trained=first,
                model=first,
            )
            last, name = "prune", "pruned"
            if s.retrain:
                yield self.tao("retrain", "train", inputs=(*self._data, "prune"), trained="retrain", model="prune")
                last, name = "retrain", "retrained"
            yield from self._judge(name, last, "retrain" if s.retrain else first, judged)
            judged = name
        trained = "retrain" if s.retrain else first
        if self._calibration:
            yield self._calibrate(*self._calibration)
        images = ("calibrate",) if self._calibration else ()
        if s.inference:
            read = (*self._data, last)
            yield self.tao(
                "inference", "inference", inputs=read, after=(f"gate_{judged}",), trained=trained, model=last
            )
        onnx_quantized = s.quantize is not None and s.quantize.backend == "modelopt.onnx"
        if s.quantize and not onnx_quantized:
            yield self.tao("quantize", "quantize", inputs=(*self._data, *images, last), trained=trained, model=last)
            last = "quantize"
        yield self.tao(
            "export", "export", inputs=(*self._data, last), after=(f"gate_{judged}",), trained=trained, model=last
        )
        onnx = "export"
        if onnx_quantized:
            yield self.tao("quantize", "quantize", inputs=(*self._data, *images, onnx), trained=trained, model=onnx)
            onnx = "quantize"
        engines = self.engines
        for name, gpu_type in engines.items():
            read = (*self._data, *images, onnx)
            yield self.tao(name, "build_engine", inputs=read, trained=trained, model=onnx, gpu=gpu_type)
            yield self._describe(name, onnx)
        if engines:
            first_engine = next(iter(engines))
            yield from self._judge("quantized", first_engine, trained, judged, action="evaluate_engine")
            judged = "quantized"
        yield self._package(onnx, judged)
        if self.p.release:
            if not engines:
                yield self.release("package", judged, results=RESULTS, path="{input:package}/model.onnx")
                return
            path = "{input:package}/model.plan" if len(engines) == 1 else "{input:package}"
            profile = self.profile
            needed = profile.triton_capabilities() if isinstance(profile, KubernetesProfile) else []
            yield self.release("package", judged, results=RESULTS, path=path, compute_capabilities=needed)

    @property
    def engines(self) -> dict[str, str | None]:
        """Stage -> GPU type of each engine; one of the stage's own type where the pipeline names none."""
        engine = self.p.stages.build_engine
        if engine is None:
            return {}
        if not engine.gpu_types:
            return {"build_engine": None}
        return {f"build_engine_{t}": t for t in engine.gpu_types}

    def _judge(
        self, name: str, model: str, trained: str, baseline: str | None, action: str = "evaluate"
    ) -> Iterator[Stage]:
        yield self.tao(f"evaluate_{name}", action, inputs=(*self._data, model), trained=trained, model=model)
        final = name == "quantized" or (
            not self.p.stages.build_engine and (name != "trained" or not self.p.stages.prune)
        )
        yield self.gate(name, baseline, floor=name == "trained" or final, results=RESULTS)

    @cached_property
    def names(self) -> dict[str, str]:
        """Class -> its name in TAO's files: KITTI's are lower case and hold no spaces."""
        return written(self.p.dataset.classes, self.facts.data.form, self.p.stages.prepare.names)

    @cached_property
    def _data(self) -> tuple[str, ...]:
        converted = "dataset_convert" in self.facts.stages
        augmented = self.p.stages.augment is not None
        return (
            "prepare",
            *(("augment",) if augmented else ()),
            *(("dataset_convert_train", "dataset_convert_val") if converted else ()),
            *(("dataset_convert_augmented",) if converted and augmented else ()),
        )

    # -- TAO's commands --

    def tao(
        self,
        name: str,
        action: str,
        *,
        inputs: tuple[str, ...],
        after: tuple[str, ...] = (),
        trained: str = "train",
        model: str | None = None,
        split: str = "train",
        gpu: str | None = None,
    ) -> Stage:
        """A stage whose command is TAO's.

        Args:
            action: the network's name of it.
            trained: the stage whose parameters stand in the specs: train, retrain or distill.
            model: the stage whose `model` it works on.
            split: of the data, for dataset_convert.
            gpu: the type of GPU that it must run on.
        """
        fact = self.fact(action)
        scope = self.scope(name, action, trained, model, split)
        family = "deploy" if fact.image == "deploy" else fact.image
        dog = self.p.watchdog
        training = action in ("train", "distill")
        secret = self.p.network.key_secret
        argv = render.words(fact, scope)
        return Stage(
            name=name,
            action="retrain" if name == "retrain" else {"evaluate_engine": "evaluate"}.get(action, action),
            title=fact.title if name != "retrain" else "Retrain the pruned model",
            environment=f"tao_{family}",
            image=self._image(fact),
            argv=tuple(recording(argv, "{out}/gpu.csv")) if action == "build_engine" else argv,
            files=_Files(self, name, action, trained, model, split),
            outputs=tuple(
                Output(o.name, str(networks.fill(o.path, scope)), o.format, o.kind, o.min_bytes, o.pick)
                for o in fact.outputs
            ),
            resources=self._wanted(name, fact).model_copy(update={"gpu_type": gpu} if gpu else {}),
            code=(f"specs/networks/{self.p.network.name}",),
            inputs=inputs,
            after=after,
            secrets=(secret,) if secret and "key" in networks.names_in(fact.argv) else (),
            status=str(networks.fill(fact.status, scope)),
            success=fact.success.model_dump(exclude_defaults=True) or None,
            metrics={k: self._metric(m, scope) for k, m in fact.metrics.items()} or None,
            classes=tuple(self.names.values()),
            exit_codes={},
            env={"TELEMETRY_OPT_OUT": "yes"},
            grace_seconds=60,
            resumes=fact.resumes,
            watch={
                "stall_seconds": dog.stall_minutes * 60,
                "loss_factor": dog.loss_factor,
                "zero_metric": "mAP50",
                "zero_evaluations": dog.zero_evaluations,
            }
            if training
            else None,
        )

    def fact(self, action: str) -> StageFact:
        """An action's facts: the network's, or those of TAO's data services."""
        return self.facts.stages.get(action) or self.services.stages[action]

    @property
    def services(self) -> networks.Services:
        return networks.services()

    def _wanted(self, name: str, fact: StageFact) -> Resources:
        """What a stage asks for; several GPUs only where its command can use them."""
        if not fact.gpu:
            return self.light(name)
        wanted = self.resources(name)
        named = name in self.p.resources.stages
        return wanted if fact.multi_gpu or named else wanted.model_copy(update={"gpus": min(1, wanted.gpus)})

    @staticmethod
    def _metric(metric: networks.Metric, scope: dict[str, Any]) -> dict[str, Any]:
        filled: dict[str, Any] = networks.fill(metric.model_dump(exclude_defaults=True), scope)
        return filled

    def tag(self, action: str) -> str:
        """The tag of an action's image; "" for an image of the user's own whose name has no release in it."""
        tag = self._image(self.fact(action)).rpartition(":")[2]
        return tag if re.match(r"\d+\.\d+[\w.]*-(tf|pyt|deploy|data)", tag) else ""

    def _image(self, fact: StageFact) -> str:
        own = self.p.network.images.get(fact.image)
        if own:
            return own
        all_releases = networks.releases()
        release = _release(self.p)
        images = all_releases.releases[release].images
        if fact.image not in images:  # the older families' releases have no data services
            images = all_releases.releases[all_releases.default["pyt"]].images
        return images[fact.image]

    def scope(self, name: str, action: str, trained: str, model: str | None, split: str) -> dict[str, Any]:
        """What `${...}` may name in the command line of a stage."""
        return {**self._scope(trained, model, split), **dict(render.flat("", self._block(action, name)))} | {
            "gpus": (gpus := self._wanted(name, self.fact(action)).gpus or 1),
            "gpu_ids": list(range(gpus)),
            # Weights to begin with: of no use to the others, which do not have the stages that bring them as inputs.
            **({} if action in ("train", "distill") else dict.fromkeys(BEGINNINGS)),
        }

    def rendered(self, name: str, action: str, trained: str, model: str | None, split: str) -> list[render.Rendered]:
        """The spec files of a stage."""
        scope = self.scope(name, action, trained, model, split)
        out = []
        for spec in self.fact(action).specs:
            owner = self._owner(spec, action, trained)
            block = self._block(owner, trained if owner == "train" else name)
            key: Key = ("stages", trained if owner == "train" else owner)
            keys = {f"{owner}.{n}": (*key, *n.split(".")) for n in _given(block)}
            keys |= {n: (*key, *n.split(".")) for n in _given(block)}
            keys |= {f"network.{n}": ("network", n) for n in self.p.network.model_fields_set}
            for other in type(self.p.stages).model_fields:
                shared = getattr(self.p.stages, other)
                if shared is not None and other != owner:
                    keys |= {f"{other}.{n}": ("stages", other, *n.split(".")) for n in _given(shared)}
            own = getattr(block, "spec", None)
            user_set, set_key = getattr(block, "set", {}), (*key, "set")
            if owner != action:
                further = getattr(self._block(action, name), "set", {})
                user_set, set_key = {**user_set, **further}, ("stages", action, "set") if further else set_key
            out.append(
                render.spec(
                    spec,
                    (self.services if action == "augment" else self.facts).specs[spec],
                    networks.SERVICES if action == "augment" else networks.folder(self.p.network.name),
                    render.Source(
                        scope={**scope, **dict(render.flat("", block))},
                        keys=keys,
                        own=(own, self.p.attached[own]) if own else None,
                        own_key=(*key, "spec"),
                        set=user_set,
                        set_key=set_key,
                        omit=tuple(self.fact(action).omit),
                    ),
                )
            )
        return out

    def _owner(self, spec: str, action: str, trained: str) -> str:
        """The stage whose parameters, own file and `set` a spec has: several commands read the training's."""
        return "train" if spec == "train" and action != trained else action

    def _block(self, action: str, name: str) -> Any:
        s = self.p.stages
        if name == "retrain":
            return s.retrain
        named = {"evaluate_engine": s.evaluate, "train": s.train}.get(action)
        return named if named is not None else getattr(s, action, None) or s.evaluate

    def _scope(self, trained: str, model: str | None, split: str) -> dict[str, Any]:
        p, facts = self.p, self.facts
        classes = list(self.names.values())
        network = p.network
        backbone = network.backbone or next(iter(facts.backbones))
        last = p.stages.retrain if trained == "retrain" and p.stages.retrain else p.stages.train
        engine = p.stages.build_engine or BuildEngineParams()
        scope: dict[str, Any] = {"name": p.name, "seed": p.seed, "split": split}
        for block in type(p.stages).model_fields:
            scope |= dict(_block_scope(p.stages, block))
        scope |= {f"network.{n}": getattr(network, n) for n in type(network).model_fields}
        scope |= {f"backbone.{n}": v for facts_ in facts.backbones.values() for n, v in dict.fromkeys(facts_).items()}
        scope |= {f"backbone.{n}": v for n, v in facts.backbones[backbone].items()}
        way, retraining = self.way_to_int8, trained == "retrain"
        token = f"{{input:{model}.model}}" if model else None
        kind = self._kind(model)
        given = network.pretrained
        whole = facts.backbones[backbone].get("weights", "backbone") if isinstance(given, bool) else given.weights
        splits = (self.dataset or {}).get("splits", {})
        ordered = sorted(classes, key=str.lower)
        return scope | {
            "network.name": network.name,
            "network.backbone": backbone,
            "network.input_width": network.input_width or facts.input.width,
            "network.input_height": network.input_height or facts.input.height,
            "grayscale": network.channels == 1,
            "classes": classes,
            "num_classes": len(classes),
            "num_classes_and_background": len(classes) + 1,
            "each.classes": [
                {"class": name, "class_weight": last.class_weights.get(c, 1.0)} for c, name in self.names.items()
            ],
            "classes_sorted": ordered,
            "category_ids": [i + 1 for i in range(len(classes))],
            "key": f"{{secret:{network.key_secret}}}" if network.key_secret else None,
            "model": token,
            # One spec may serve commands of which each reads its own of these.
            "checkpoint": token if kind == "checkpoint" else None,
            "onnx": token if kind == "onnx" else None,
            "engine": token if kind == "engine" else None,
            "export_quantized": model == "quantize" and kind == "checkpoint",
            "pruned": "{input:prune.model}" if retraining else None,
            "pretrained": (weights := "{input:pretrained.weights}" if network.pretrained and not retraining else None),
            "pretrained_backbone": weights if whole == "backbone" else None,
            "pretrained_model": weights if whole == "model" else None,
            "start": "{input:prune.model}" if retraining else weights,
            "retraining": retraining,
            "data": "{input:prepare}",
            "form": facts.data.form,
            "train_annotations": "{input:prepare}/"
            + ("train/labels" if facts.data.form == "kitti" else "annotations/train.json"),
            "augmented": p.stages.augment is not None,
            "split_root": "{input:augment}" if split == "augmented" else f"{{input:prepare}}/{split}",
            "split_annotations": "{input:augment}/annotations.json"
            if split == "augmented"
            else f"{{input:prepare}}/annotations/{split}.json",
            "calibration": "{input:calibrate}",
            "extension": p.stages.prepare.convert or network.image_extension,
            "qat": last.qat,
            "amp": last.amp,
            "precision": engine.precision,
            # A model with Q/DQ nodes says its precision itself; TensorRT takes no flag beside them.
            "precision_upper": "FP32" if way == "qdq" else engine.precision.upper(),
            "quantizing": p.stages.quantize is not None,
            "train_images": splits.get("train"),
            "val_images": splits.get("val"),
            "gpus": 1,
            "gpu_ids": [0],
            "int8_ptq": engine.precision == "int8" and way == "ptq",
            "int8_qat": engine.precision == "int8" and way == "qat",
            "calibration_images": engine.calibration_batches * engine.calibration_batch_size,
            "workspace_mib": int(engine.workspace_gib * 1024),
            "evaluate.score_threshold": p.stages.evaluate.score_threshold,
        }

    def _kind(self, model: str | None) -> str:
        """What a stage's `model` is: a checkpoint, an ONNX file or an engine."""
        if model in self.engines:
            return "engine"
        quantize = self.p.stages.quantize
        onnx = model == "export" or (
            model == "quantize" and quantize is not None and quantize.backend == "modelopt.onnx"
        )
        return "onnx" if onnx else "checkpoint"

    @property
    def way_to_int8(self) -> str | None:
        """ptq, qat or qdq: the one that the pipeline names, else what its training and the network allow."""
        engine, last = self.p.stages.build_engine, self.p.stages.retrain or self.p.stages.train
        if engine is None or engine.precision != "int8":
            return None
        if engine.int8 != "auto":
            return engine.int8
        if last.qat:
            return "qat"
        if self.p.stages.quantize is not None:
            return "qdq"
        return "ptq" if "ptq" in self.facts.int8 else next(iter(self.facts.int8), None)

    # -- Refit's own commands around them --

    def _prepare(self) -> Stage:
        prepare = self.p.stages.prepare
        spec: dict[str, Any] = {
            "snapshot": "{snapshot}",
            "form": self.facts.data.form,
            "names": prepare.names,
            "convert": prepare.convert,
            "resize": prepare.resize.model_dump() if prepare.resize else None,
        }
        if self.facts.data.form == "coco":
            spec["first_id"] = self.facts.data.first_id
        return Stage(
            name="prepare",
            action="prepare",
            title="Write the data set as TAO reads it",
            environment="tools",
            argv=command("refit.data", "prepare", "prepare.yaml"),
            files={"prepare.yaml": spec},
            outputs=(Output("prepare", "prepare.json", "json"),),
            resources=self.light("prepare"),
            code=("refit/data", "refit/specs.py"),
            reads_snapshot=True,
        )

    @property
    def _calibration(self) -> tuple[int, int] | None:
        """(images, batch size) of the calibration that quantize or the engine's builder makes; None: of none."""
        engine, quantize = self.p.stages.build_engine, self.p.stages.quantize
        if quantize is not None:
            return quantize.images, 1
        if engine is not None and self.way_to_int8 == "ptq":
            return engine.calibration_batches * engine.calibration_batch_size, engine.calibration_batch_size
        return None

    def _calibrate(self, images: int, batch_size: int) -> Stage:
        return Stage(
            name="calibrate",
            action="calibrate",
            title="Choose the calibration images",
            environment="tools",
            argv=command("refit.data", "calibrate", "calibrate.yaml"),
            files={
                "calibrate.yaml": {
                    "prepared": "{input:prepare}",
                    "images": images,
                    "batch_size": batch_size,
                    "seed": self.p.seed,
                }
            },
            inputs=("prepare",),
            outputs=(Output("calibration", "calibration.json", "json"),),
            resources=self.light("calibrate"),
            code=("refit/data/prepare", "refit/specs.py"),
        )

    def _pretrained(self) -> Stage:
        given = self.p.network.pretrained
        backbone = self.facts.backbones[self.p.network.backbone or next(iter(self.facts.backbones))]
        secret = None if given is True else given.secret  # type: ignore[union-attr]
        if given is True:
            spec: dict[str, Any] = {"model": backbone["ngc"], "path": None, "file": backbone.get("ngc_file")}
        else:
            spec = {"model": given.ngc, "path": given.path, "file": given.file}  # type: ignore[union-attr]
        return Stage(
            name="pretrained",
            action="pretrained",
            title="Fetch pretrained weights",
            environment="tools",
            argv=command("refit.ngc", "download", "download.yaml"),
            files={"download.yaml": {**spec, "cache": "{workspace}/ngc"}},
            outputs=(Output("weights", "weights/*"),),
            resources=self.light("pretrained"),
            code=("refit/ngc", "refit/specs.py"),
            secrets=(secret,) if secret else (),
            env={"NGC_API_KEY": f"{{secret:{secret}}}"} if secret else {},
        )

    @cached_property
    def _sidecar(self) -> str:
        """model.json, as text."""
        filled = networks.fill(self.facts.sidecar, self._scope("train", None, "val"))
        return json.dumps({"schema": 1, **filled}, indent=1)

    def _describe(self, engine: str, onnx: str) -> Stage:
        """engine.json: what TAO's builder does not write down."""
        block = self.p.stages.build_engine
        assert block is not None
        way = self.way_to_int8
        spec: dict[str, Any] = {
            "plan": f"{{input:{engine}.model}}",
            "model": "{specs}/model.json",
            "onnx": f"{{input:{onnx}.model}}",
            "precision": block.precision,
            "quantization": {"ptq": "calibrated", "qat": "explicit", "qdq": "explicit"}.get(way or "", "none"),
            "batch": {"min": block.min_batch_size, "opt": block.opt_batch_size, "max": block.max_batch_size},
            "gpu": {"csv": f"{{input:{engine}}}/gpu.csv"},
            "builder": self._image(self.facts.stages["build_engine"]),
        }
        if way == "ptq":
            spec["calibration"] = {
                "images": "{input:calibrate}/images",
                "batches": block.calibration_batches,
                "batch_size": block.calibration_batch_size,
                "cache": f"{{input:{engine}}}/cal.bin",
            }
        name = engine.replace("build", "describe", 1)
        return Stage(
            name=name,
            action="describe_engine",
            title="Write down what the engine is",
            environment="tools",
            argv=command("refit.engine", "describe", "describe.yaml"),
            files={"describe.yaml": spec, "model.json": self._sidecar},
            inputs=(engine, onnx, *(("calibrate",) if way == "ptq" else ())),
            outputs=(Output("engine", "engine.json", "json"), Output("model", "model.plan")),
            resources=self.light(name),
            code=ENGINE_CODE,
        )

    def _package(self, onnx: str, judged: str) -> Stage:
        described = [name.replace("build", "describe", 1) for name in self.engines]
        spec = {
            "model": "{specs}/model.json",
            "onnx": f"{{input:{onnx}.model}}",
            "engines": [f"{{input:{name}}}" for name in described],
        }
        return Stage(
            name="package",
            action="package",
            title="Put the model's files together",
            environment="tools",
            argv=command("refit.engine", "package", "package.yaml"),
            files={"package.yaml": spec, "model.json": self._sidecar},
            inputs=(onnx, *described),
            after=(f"gate_{judged}",),
            outputs=(Output("package", "package.json", "json"), Output("model", "model.json", "json")),
            resources=self.light("package"),
            code=ENGINE_CODE,
        )


ENGINE_CODE = ("refit/engine", "refit/postprocess", "refit/triton/config.py", "refit/specs.py")


def _block_scope(stages: Stages, name: str) -> Iterator[tuple[str, Any]]:
    """("train.epochs", 3), ...; None for each parameter of a block that is left out."""
    block = getattr(stages, name)
    if block is not None:
        yield from render.flat(f"{name}.", block)
        return
    for model in get_args(type(stages).model_fields[name].annotation):
        for field in getattr(model, "model_fields", ()):
            yield f"{name}.{field}", None


class _Files(Mapping[str, str]):
    """A stage's specs, made when they are first looked at: Airflow's parsing needs names only."""

    def __init__(self, chain: TaoChain, name: str, action: str, *which: Any) -> None:
        self.action = action
        self._chain, self._which = chain, (name, action, *which)

    @cached_property
    def rendered(self) -> list[render.Rendered]:
        return self._chain.rendered(*self._which)

    @cached_property
    def _made(self) -> dict[str, str]:
        return {r.file: r.tree.text() for r in self.rendered}

    def __getitem__(self, name: str) -> str:
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)
