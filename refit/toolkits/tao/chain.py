"""The order of the stages of a TAO pipeline, and the stages whose commands are TAO's."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from refit.cluster import KubernetesProfile, Profile
from refit.data.prepare.names import written
from refit.engine.gpu import recording
from refit.pipeline import Resources
from refit.specs import Key, SpecError
from refit.start import spec as start
from refit.tao import networks, render, tree
from refit.tao.networks import OutputFact, StageFact
from refit.tao.params import flat, given
from refit.toolkits import champion, proof
from refit.toolkits.base import Output, Stage
from refit.toolkits.chain import Chain
from refit.toolkits.lazy import Lazy
from refit.toolkits.proof import Proven
from refit.toolkits.tao import ladder, own, search, sidecar
from refit.toolkits.tao.scope import Work, scope

if TYPE_CHECKING:
    from refit.toolkits.tao.model import TaoPipeline

RESULTS = "{{input:evaluate_{}}}/../result.json"  # the runner's: TAO's own files differ from command to command
# A name in the facts -> the parameter that its value is made of.
_MADE_OF = {
    "extension": "network.image_extension",
    "grayscale": "network.channels",
    "precision_upper": "build_engine.precision",
    "workspace_mib": "build_engine.workspace_gib",
}
_SHOWN = {"evaluate_engine": "evaluate"}  # the network's action -> the stage's


class TaoChain(Chain):
    """The chain of one pipeline: `stages`, and with `specs` what they will read, before anything runs."""

    def __init__(self, pipeline: TaoPipeline, profile: Profile, dataset: Mapping[str, Any] | None = None) -> None:
        super().__init__(pipeline, profile, dataset)
        self.p, self.facts = pipeline, networks.load(pipeline.network.name)
        self._targets: dict[str, list[str]] = {}

    def specs(self) -> Iterator[tuple[str, str, render.Rendered]]:
        """(stage, action, spec) of every spec file that TAO's commands will read."""
        return ((work.stage, work.action, spec) for work, spec in self.works())

    def works(self) -> Iterator[tuple[Work, render.Rendered]]:
        """The same, with all that is said of the stage."""
        for stage in self.stages():
            for part in stage.files.stages if isinstance(stage.files, ladder.Climbed) else (stage,):
                if isinstance(part.files, _Specs):
                    yield from ((part.files.work, spec) for spec in part.files.rendered)

    @property
    def roots(self) -> tuple[str, ...]:
        """The folders that a stage's command sees, beside its container's own: its pipeline's of the workspace."""
        if isinstance(self.profile, KubernetesProfile):
            return (f"{self.profile.volumes.workspace.mount_path.rstrip('/')}/{self.p.name}",)
        return ()

    # -- the order --

    def stages(self) -> Iterator[Stage]:
        params = self.p.stages
        if params.albumentations:
            yield self.augment("albumentations", params.albumentations)
        yield own.prepare(self)
        if self.p.network.pretrained:
            yield own.pretrained(self)
        yield from self._converted()
        model, judged = yield from self._trained()
        if self._calibration:
            yield own.calibrate(self, "calibrate", *self._calibration)
            if self.climbs:
                size = self._calibration[1]
                yield own.calibrate(self, ladder.CALIBRATE_MORE, ladder.more_batches(self) * size, size)
        after = (f"gate_{judged}",)
        if params.inference:
            yield self._tao(self._work("inference", "inference", model), (*self._data, model), after)
        onnx = yield from self._exported(model, after)
        for name, gpu_type in self.engines.items():
            inputs = (*self._data, *self._images, onnx)
            plain = self._tao(self._work(name, "build_engine", onnx), inputs, gpu=gpu_type)
            yield ladder.climbs(self, plain, onnx, judged) if self.climbs else plain
            yield own.describe(self, name, onnx)
        if self.engines:
            engine = next(iter(self.engines))
            yield from self._judge("quantized", self._work("evaluate_quantized", "evaluate_engine", engine), judged)
            judged = "quantized"
        yield own.package(self, onnx, judged)
        gates = {"gate_parity": self.p.gates.parity, "gate_champion": self.p.gates.champion}
        if self.p.release and self.p.gates.parity:
            yield from proof.stages(self, self._proven(onnx, judged))
        if self.p.release and self.p.gates.champion:
            proven = replace(self._proven(onnx, judged), after=("gate_parity",) if self.p.gates.parity else ())
            yield from champion.stages(self, proven, self._limits)
        if self.p.release:
            yield self._release(judged, tuple(name for name, gate in gates.items() if gate))
        yield from self.watch()

    def _converted(self) -> Iterator[Stage]:
        augmented = self.p.stages.augment is not None
        if augmented:
            yield self._tao(Work("augment", "augment"), ("prepare",))
        if "dataset_convert" in self.facts.stages:
            for split in ("train", "val", *(("augmented",) if augmented else ())):
                work = Work(f"dataset_convert_{split}", "dataset_convert", split=split)
                yield self._tao(work, ("augment" if split == "augmented" else "prepare",))

    def _trained(self) -> Generator[Stage, None, tuple[str, str]]:
        """Yields the stages to the model that is exported; returns its stage and the name that judged it."""
        params = self.p.stages
        first = "distill" if params.distill else "train"
        weights = ("pretrained",) if self.p.network.pretrained else ()
        yield self._tao(Work(first, first, first), (*self._data, *weights))
        yield from self._judge("trained", Work("evaluate_trained", "evaluate", first, first), None)
        if not params.prune:
            return first, "trained"
        plain = self._tao(Work("prune", "prune", first, first), (*self._data, first), ("gate_trained",))
        yield search.searches(self, plain, first) if params.prune.search else plain
        if not params.retrain:
            yield from self._judge("pruned", Work("evaluate_pruned", "evaluate", first, "prune"), "trained")
            return "prune", "pruned"
        yield self._tao(Work("retrain", "train", "retrain", "prune"), (*self._data, "prune"))
        yield from self._judge("retrained", Work("evaluate_retrained", "evaluate", "retrain", "retrain"), "trained")
        return "retrain", "retrained"

    def _exported(self, model: str, after: tuple[str, ...]) -> Generator[Stage, None, str]:
        """Yields the stages to the ONNX file; returns the stage that leaves it."""
        quantize = self.p.stages.quantize
        if quantize and not quantize.on_onnx:
            yield self._tao(self._work("quantize", "quantize", model), (*self._data, *self._images, model))
            model = "quantize"
        yield self._tao(self._work("export", "export", model), (*self._data, model), after)
        if quantize and quantize.on_onnx:
            yield self._tao(self._work("quantize", "quantize", "export"), (*self._data, *self._images, "export"))
            return "quantize"
        return "export"

    def _judge(self, name: str, work: Work, baseline: str | None) -> Iterator[Stage]:
        assert work.model is not None
        # An engine runs on the type of GPU that it was built on.
        yield self._tao(work, (*self._data, work.model), gpu=self.engines.get(work.model))
        last = name == "quantized" or (not self.engines and (name != "trained" or not self.p.stages.prune))
        chosen = work.model if name == "quantized" and self.climbs else None
        yield self.gate(name, baseline, floor=name == "trained" or last, results=RESULTS, ladder=chosen)

    @property
    def _released(self) -> str:
        """What a release takes from the package."""
        if not self.engines:
            return "{input:package}/model.onnx"
        return "{input:package}/model.plan" if len(self.engines) == 1 else "{input:package}"

    def _proven(self, onnx: str, judged: str) -> Proven:
        """TAO's evaluations give figures only. Triton is asked about the ONNX file as well, but for one that has
        TensorRT's own operators, which nothing else can run."""
        served = not self.engines or self.facts.plugins
        several = len(self.engines) > 1
        params = self.p.stages
        trained = "retrained" if params.retrain else "pruned" if params.prune else "trained"
        return Proven(
            name=judged,
            stage="package",
            path=self._released,
            split="val",
            onnx=None if served else (onnx, f"{{input:{onnx}.model}}"),
            figures={name: f"evaluate_{name}" for name in (trained, judged)},
            gpus={str(gpu) if several else "": gpu for gpu in self.engines.values()},
        )

    @property
    def _limits(self) -> dict[str, Any]:
        """Which objects count where Refit scores a model itself: as the network's own evaluation is told."""
        evaluate = self.p.stages.evaluate
        return {"min_width": evaluate.min_width, "min_height": evaluate.min_height}

    def _release(self, judged: str, after: tuple[str, ...]) -> Stage:
        path = self._released
        if not self.engines:
            return self.release("package", judged, results=RESULTS, path=path, after=after)
        needed = self.profile.triton_capabilities() if isinstance(self.profile, KubernetesProfile) else []
        return self.release("package", judged, results=RESULTS, path=path, after=after, compute_capabilities=needed)

    def _work(self, stage: str, action: str, model: str) -> Work:
        """Something done to the model of the last training."""
        return Work(stage, action, self.p.stages.trained_by, model)

    # -- what there is to work on --

    @property
    def engines(self) -> dict[str, str | None]:
        """Stage -> GPU type of each engine; one of the stage's own type where the pipeline names none."""
        engine = self.p.stages.build_engine
        if engine is None:
            return {}
        if not engine.gpu_types:
            return {"build_engine": None}
        return {f"build_engine_{t}": t for t in engine.gpu_types}

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

    @property
    def _calibration(self) -> tuple[int, int] | None:
        """(images, batch size) of the calibration that quantize or the engine's builder makes; None: of none."""
        engine, quantize = self.p.stages.build_engine, self.p.stages.quantize
        if quantize is not None:
            return quantize.images, 1
        if engine is not None and self.way_to_int8 == "ptq":
            return engine.calibration_batches * engine.calibration_batch_size, engine.calibration_batch_size
        return None

    @property
    def _images(self) -> tuple[str, ...]:
        return ("calibrate",) if self._calibration else ()

    @property
    def way_to_int8(self) -> str | None:
        """ptq, qat or qdq: the one that the pipeline names, else what its training and the network allow."""
        engine = self.p.stages.build_engine
        if engine is None or engine.precision != "int8":
            return None
        if engine.int8 != "auto":
            return engine.int8
        if self.p.stages.last_training.qat:
            return "qat"
        if self.p.stages.quantize is not None:
            return "qdq"
        return "ptq" if "ptq" in self.facts.int8 else next(iter(self.facts.int8), None)

    @property
    def precision_of_spec(self) -> str | None:
        """What the builder's spec says; a model with Q/DQ nodes says it itself, TensorRT takes no flag beside them."""
        engine = self.p.stages.build_engine
        if engine is None:
            return None
        return "FP32" if self.way_to_int8 == "qdq" else engine.precision.upper()

    @property
    def climbs(self) -> bool:
        """Whether the engine is the first that is good enough of several."""
        engine = self.p.stages.build_engine
        return engine is not None and engine.ladder

    def kind(self, model: str | None) -> str:
        """What a stage's `model` is: a checkpoint, an ONNX file or an engine."""
        if model in self.engines:
            return "engine"
        quantize = self.p.stages.quantize
        quantized = model == "quantize" and quantize is not None and quantize.on_onnx
        return "onnx" if model == "export" or quantized else "checkpoint"

    @property
    def backbone(self) -> dict[str, Any]:
        return self.facts.backbones[self.p.network.backbone or next(iter(self.facts.backbones))]

    def placed(self, path: str) -> str:
        """A file that the pipeline names, below its folder of the workspace."""
        return path if path.startswith("/") else f"{{workspace}}/{path}"

    # -- classes --

    @cached_property
    def names(self) -> dict[str, str]:
        """Class -> its name in TAO's files: KITTI's are lower case and hold no spaces."""
        return written(self.p.dataset.classes, self.facts.data.form, self.p.stages.prepare.names)

    @cached_property
    def shown(self) -> dict[str, str]:
        """TAO's name of a class -> the user's."""
        return {name: cls for cls, name in self.names.items()}

    def targets(self, trained: str) -> list[str]:
        """The classes of a training's model, by TAO's names, in the order of the training's spec.

        They are the data set's, but for a spec of the user's own that maps several of them to one.
        """
        if trained not in self._targets:
            self._targets[trained] = self._mapped(getattr(self.p.stages, trained).spec) or list(self.names.values())
        return self._targets[trained]

    def _mapped(self, spec: str | None) -> list[str]:
        roles = self.facts.specs["train"].roles
        if spec is None or "mapping" not in roles:
            return []
        try:
            read = tree.parse(self.p.attached[spec], self.facts.format, spec)
        except SpecError:  # told where the specs are judged
            return []
        (mapping,) = roles["mapping"]
        mapped = dict.fromkeys(str(read.value(f"{mapping}[{label}].value", "")) for label in read.keys(mapping))
        ordered = [name for path in roles.get("classes", ())[:1] for name in read.keys(path) if name in mapped]
        return ordered if len(ordered) == len(mapped) else [name for name in mapped if name]

    @cached_property
    def sidecar(self) -> str:
        """model.json, as text."""
        return sidecar.text(self)

    # -- TAO's commands --

    def command(self, work: Work) -> Stage:
        """A stage of TAO's on its own, without what it waits for."""
        return self._tao(work, ())

    def _tao(self, work: Work, inputs: tuple[str, ...], after: tuple[str, ...] = (), gpu: str | None = None) -> Stage:
        """A stage whose command is TAO's; `gpu`: the type of GPU that it must run on."""
        fact, values = self.fact(work.action), scope(self, work)
        secret = self.p.network.key_secret
        argv, retraining = render.words(fact, values), work.stage == "retrain"
        return Stage(
            name=work.stage,
            action="retrain" if retraining else _SHOWN.get(work.action, work.action),
            title="Retrain the pruned model" if retraining else fact.title,
            environment=f"tao_{fact.image}",
            image=networks.image(self.p.network, fact.image),
            argv=tuple(recording(argv, "{out}/gpu.csv")) if work.action == "build_engine" else argv,
            files=_Specs(self, work),
            outputs=tuple(self._output(o, work, values) for o in fact.outputs),
            resources=self.wanted(work).model_copy(update={"gpu_type": gpu} if gpu else {}),
            code=(),  # argv, the image and the specs are all that there is
            inputs=inputs,
            after=after,
            secrets=(secret,) if secret and "key" in networks.names_in(fact.argv) else (),
            status=fact.status,
            success=fact.success.model_dump(exclude_defaults=True) or None,
            metrics={n: networks.fill(m.model_dump(exclude_defaults=True), values) for n, m in fact.metrics.items()}
            or None,
            classes={name: self.shown.get(name, name) for name in self.targets(work.trained)},
            exit_codes={},
            env={"TELEMETRY_OPT_OUT": "yes"},
            grace_seconds=60,
            resumes=self._told(work) if fact.resumes == "told" else fact.resumes == "itself",
            session=start.session_of(getattr(self.p.stages, work.trained).start_from) if work.trains else None,
            watch=self._watched(work) if work.trains else self._held(work) if fact.gpu else None,
        )

    def _output(self, fact: OutputFact, work: Work, values: Mapping[str, Any]) -> Output:
        path = str(networks.fill(fact.path, values))
        checkpoints = self.fact(work.action).checkpoints
        if not (work.trains and checkpoints and getattr(self.p.stages, work.trained).checkpoint == "best"):
            return Output(fact.name, path, fact.format, fact.kind, fact.min_bytes, fact.pick)
        metric = self.p.gates.quality.metric
        wanted = {"metric": metric, "epoch": checkpoints.epoch, "first": checkpoints.first}
        return Output(fact.name, checkpoints.path, checkpoints.format, "file", fact.min_bytes, "best", wanted)

    def _told(self, work: Work) -> Lazy:
        """How a training is started that goes on from a checkpoint, for the runner (docs/contracts.md, "resume")."""
        again = replace(work, resumed=True)
        fact = self.fact(work.action)
        checkpoints = fact.checkpoints
        assert checkpoints is not None
        return Lazy(
            lambda: {
                **checkpoints.model_dump(),
                "argv": list(render.words(fact, scope(self, again))),
                "files": dict(_Specs(self, again)),
            }
        )

    def _watched(self, work: Work) -> dict[str, Any]:
        """Of a training. One that goes on with another run's finds that one's epochs in its status file."""
        dog, params = self.p.watchdog, getattr(self.p.stages, work.trained)
        return {
            "epochs": params.epochs if start.session_of(params.start_from) else 1,
            "stall_seconds": dog.stall_minutes * 60,
            "loss_factor": dog.loss_factor,
            "zero_metric": "mAP50",
            "zero_evaluations": dog.zero_evaluations,
        }

    def _held(self, work: Work) -> dict[str, Any]:
        """Of a command that holds a GPU and trains nothing: no sign of life for too long. TensorRT's builder says
        nothing while it tries its kernels."""
        patience = 4 if work.action == "build_engine" else 1
        return {"stall_seconds": self.p.watchdog.stall_minutes * 60 * patience}

    def fact(self, action: str) -> StageFact:
        """An action's facts: the network's, or those of TAO's data services."""
        return self.facts.stages.get(action) or networks.services().stages[action]

    def wanted(self, work: Work) -> Resources:
        """What a stage asks for; several GPUs only where its command can use them."""
        fact = self.fact(work.action)
        if not fact.gpu:
            return self.light(work.stage)
        wanted = self.resources(work.stage)
        named = work.stage in self.p.resources.stages
        return wanted if fact.multi_gpu or named else wanted.model_copy(update={"gpus": min(1, wanted.gpus)})

    def tag(self, action: str) -> str:
        """The tag of an action's image; "" for an image of the user's own whose name has no release in it."""
        tag = networks.image(self.p.network, self.fact(action).image).rpartition(":")[2]
        return tag if re.match(r"\d+\.\d+[\w.]*-(tf|pyt|deploy|data)", tag) else ""

    # -- their specs --

    def rendered(self, work: Work) -> list[render.Rendered]:
        """The spec files of a stage."""
        services = work.action == "augment"
        facts = networks.services().specs if services else self.facts.specs
        folder = networks.SERVICES if services else networks.folder(self.p.network.name)
        return [render.spec(n, facts[n], folder, self._source(work, n)) for n in self.fact(work.action).specs]

    def _source(self, work: Work, spec: str) -> render.Source:
        """What a spec is made from. The training's has the training's parameters, whichever command reads it."""
        owner = work.trained if spec == "train" else work.block
        blocks = [owner, *([work.block] if work.block != owner else [])]
        sets: dict[str, Any] = {}
        set_keys: dict[str, Key] = {}
        named: str | None = None
        for block in blocks:  # the command's own last: it wins
            params = getattr(self.p.stages, block)
            sets |= params.set
            said = "train" if block == "retrain" and params.set == self.p.stages.train.set else block
            set_keys |= {path: ("stages", said, "set", path) for path in params.set}
            named = params.spec or named
        return render.Source(
            scope={**scope(self, work), **dict(flat(getattr(self.p.stages, owner)))},
            keys=self._keys(owner),
            own=(named, self.p.attached[named]) if named else None,
            set=sets,
            set_keys=set_keys,
            omit=tuple(self.fact(work.action).omit),
            begins=work.begins,
            resumes=work.resumed,
        )

    def _keys(self, owner: str) -> dict[str, Key]:
        """Name of `${...}` -> the pipeline's key, for those that the pipeline gives."""
        stages = self.p.stages
        keys: dict[str, Key] = {f"network.{n}": ("network", n) for n in self.p.network.model_fields_set}
        for block in type(stages).model_fields:
            params = getattr(stages, block)
            if params is not None:
                keys |= {f"{block}.{n}": ("stages", block, *n.split(".")) for n, _ in given(params)}
        train = dict(given(stages.train))
        for n, value in given(getattr(stages, owner)):
            block = "train" if owner == "retrain" and n in train and train[n] == value else owner
            keys[n] = keys[f"{owner}.{n}"] = ("stages", block, *n.split("."))
        made_of = _MADE_OF | {f"backbone.{n}": "network.backbone" for n in self.backbone}
        if stages.prepare.convert:
            made_of["extension"] = "prepare.convert"
        return keys | {name: keys[of] for name, of in made_of.items() if of in keys}


class _Specs(Lazy):
    """The spec files of one of TAO's commands."""

    def __init__(self, chain: TaoChain, work: Work) -> None:
        super().__init__(lambda: {r.file: r.tree.text() for r in self.rendered})
        self.chain, self.work = chain, work

    @cached_property
    def rendered(self) -> list[render.Rendered]:
        return self.chain.rendered(self.work)
