"""What a pipeline file of the tao toolkit asks for that its network does not have, or that does not go together.

Nothing that the file says is left without effect in silence: a parameter that this network's commands and specs do not
use is a fault, with the way to set it by its path.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from refit.data.prepare.names import written
from refit.specs import Key, did_you_mean
from refit.start import spec as start
from refit.tao import networks
from refit.tao.networks import Network, names_in
from refit.tao.params import BuildEngineParams, NetworkParams, SizeSearchParams, given
from refit.toolkits.chain import NO_PROFILE, starts, unknown_resources

if TYPE_CHECKING:
    from refit.toolkits.tao.model import TaoPipeline

Fault = tuple[Key, str]
TRAININGS = ("train", "retrain", "distill")
# A block of the pipeline -> the network's actions that it is for, where they are not one of the same name.
_ACTIONS = {"retrain": ("train",), "evaluate": ("evaluate", "evaluate_engine")}
# The pipeline's block -> the network's action that must be there for it.
_NEEDS = {"prune": "prune", "retrain": "prune", "quantize": "quantize", "distill": "distill", "inference": "inference"}
# Parameters that stand under another name in the networks' facts.
_ALIASES = {"class_weights": "class_weight", "workspace_gib": "workspace_mib"}
# Parameters that Refit itself uses, and those that have a fault of their own (qat).
_OURS = {
    **{training: {"qat", "checkpoint", "start_from"} for training in TRAININGS},
    "prune": {"search", *(f"search.{name}" for name in SizeSearchParams.model_fields)},
    "quantize": {"images"},
    "build_engine": {"precision", "int8", "gpu_types", "ladder"},
}


def faults(pipeline: TaoPipeline) -> Iterator[Fault]:
    known = networks.known()
    if pipeline.network.name not in known:
        plain = {name.replace("_", ""): name for name in known}  # FasterRCNN, rt-detr
        near = get_close_matches(re.sub("[_-]", "", pipeline.network.name.casefold()), plain, n=1)
        hint = f"; did you mean '{plain[near[0]]}'?" if near else f"; there is {', '.join(known)}"
        yield ("network", "name"), f"there is no network {pipeline.network.name!r}{hint}"
        return
    found = [*_network(pipeline.network, pipeline.facts), *_stages(pipeline, pipeline.facts)]
    yield from found
    if not found:  # else its chain cannot even be listed
        yield from _resources(pipeline)
    yield from _gpus(pipeline)


def _gpus(pipeline: TaoPipeline) -> Iterator[Fault]:
    """TAO's trainings cannot run without a GPU, and a pipeline file that names none asks for none."""
    wanted, stages = pipeline.resources, pipeline.stages
    without: dict[Key, str] = {}
    for name in ("distill" if stages.distill else "train", *(("retrain",) if stages.retrain else ())):
        if wanted.stages.get(name, wanted.default).gpus == 0:
            place = ("stages", name) if name in wanted.stages else ("default",)
            without.setdefault(("resources", *place, "gpus"), name)
    for key, name in without.items():
        yield key, f"{name} would run without a GPU; set {'.'.join(map(str, key))}: 1"


def _resources(pipeline: TaoPipeline) -> Iterator[Fault]:
    from refit.toolkits.tao.chain import TaoChain

    yield from unknown_resources(pipeline, TaoChain(pipeline, NO_PROFILE).stages)


# --- the network ------------------------------------------------------------------------------------------------------


def _network(network: NetworkParams, facts: Network) -> Iterator[Fault]:
    if network.backbone is not None and network.backbone not in facts.backbones:
        hint = did_you_mean(network.backbone, list(facts.backbones)) or f"; use one of {', '.join(facts.backbones)}"
        yield ("network", "backbone"), f"{network.name} has no backbone {network.backbone!r}{hint}"
    for key, value in (("input_width", network.input_width), ("input_height", network.input_height)):
        if value is not None and (fault := facts.input.misfit(value, network.name)):
            yield ("network", key), fault
    if network.channels not in facts.input.channels:
        only = " or ".join(map(str, facts.input.channels))
        yield ("network", "channels"), f"{network.name} takes images of {only} channels, not {network.channels}"
    if network.key_secret and not facts.encrypted:
        yield ("network", "key_secret"), f"{network.name} has no encrypted models; leave it out"
    yield from _release(network, facts)
    yield from _images(network)
    yield from _pretrained(network, facts)


def _release(network: NetworkParams, facts: Network) -> Iterator[Fault]:
    known = [name for name, r in networks.releases().releases.items() if facts.family in r.images]
    if network.release is not None and network.release not in known:
        hint = did_you_mean(network.release, known) or f"; use one of {', '.join(known)}"
        yield ("network", "release"), f"TAO {network.release} has no image for {network.name}{hint}"


def _images(network: NetworkParams) -> Iterator[Fault]:
    """A tag of TAO's own that belongs to another kind of image: it lacks the command."""
    tags = {tag: kind for release in networks.releases().releases.values() for kind, tag in release.images.items()}
    for kind, named in network.images.items():
        other = tags.get(named.rpartition(":")[2], kind)
        if other != kind:
            text = f"{named} is TAO's image of kind {other}, which has no command of {kind}'s; name one of {kind}"
            yield ("network", "images", kind), text


def _pretrained(network: NetworkParams, facts: Network) -> Iterator[Fault]:
    wanted = network.pretrained
    if wanted is True:
        backbone = network.backbone or next(iter(facts.backbones))
        if backbone in facts.backbones and not facts.backbones[backbone].get("ngc"):
            yield ("network", "pretrained"), f"no weights of {backbone} are known on NGC; name them: {{ngc: ...}}"
    elif wanted is not False and wanted.weights == "model" and "pretrained_model" not in _named(facts, "train"):
        text = f"{network.name} begins with a backbone's weights only; leave it out"
        yield ("network", "pretrained", "weights"), text


def _start(pipeline: TaoPipeline, facts: Network) -> Iterator[Fault]:
    """A whole model, or a training, to begin with (`start_from`)."""
    network = pipeline.network
    yield from starts(pipeline, network.name, facts.begins)
    value = pipeline.stages.train.start_from
    if value is None:
        return
    key: Key = ("stages", "train", "start_from")
    if network.pretrained:
        yield key, "begins with a whole model, and network.pretrained with a backbone's weights; leave one out"
    if start.parse(value).ending == ".tlt" and not network.key_secret:
        yield key, f"{value} is encrypted: name the secret with its key, network.key_secret"


# --- the stages -------------------------------------------------------------------------------------------------------


def _stages(pipeline: TaoPipeline, facts: Network) -> Iterator[Fault]:
    try:
        written(pipeline.dataset.classes, facts.data.form, pipeline.stages.prepare.names)
    except ValueError as exc:
        yield ("stages", "prepare", "names"), f"{exc}"
    yield from _there(pipeline, facts)
    yield from _together(pipeline, facts)
    yield from _search(pipeline)
    yield from _without_effect(pipeline, facts)
    yield from _start(pipeline, facts)
    yield from _class_weights(pipeline)
    yield from _gate(pipeline, facts)
    yield from _int8(pipeline, facts)


def _there(pipeline: TaoPipeline, facts: Network) -> Iterator[Fault]:
    """Stages that the network, or its release, does not have."""
    name, release = pipeline.network.name, networks.release_of(pipeline.network)
    without: set[str] = set()
    for block, action in _NEEDS.items():
        if getattr(pipeline.stages, block) is None or action in without:  # prune brings a retrain that nobody wrote
            continue
        if action not in facts.stages:
            without.add(action)
            yield ("stages", block), f"{name} has no {action}; it has {', '.join(facts.stages)}. Leave {block} out"
        elif (since := facts.stages[action].since) and networks.number(release) < networks.number(since):
            newer = [r for r in networks.releases().releases if networks.number(r) >= networks.number(since)]
            text = f"{name} has {action} from TAO {since}, this is {release}; say network.release: {newer[0]}"
            yield ("stages", block), text


def _together(pipeline: TaoPipeline, facts: Network) -> Iterator[Fault]:
    """Stages that do not go together."""
    stages = pipeline.stages
    if stages.retrain is not None and stages.prune is None:
        yield ("stages", "retrain"), "there is nothing to retrain without prune; add stages.prune, or take retrain out"
    if stages.distill is not None and stages.train.model_fields_set:
        yield ("stages", "train"), "distill trains in its place, by its own parameters; say it there"
    if stages.build_engine is None and facts.plugins and pipeline.release is not None:
        operators = ", ".join(facts.plugins)
        text = (
            f"the ONNX file of {pipeline.network.name} has TensorRT's operators ({operators}): Triton needs an engine"
        )
        yield ("stages", "build_engine"), f"{text}. Leave build_engine in, or say release: false"


def _search(pipeline: TaoPipeline) -> Iterator[Fault]:
    """The search for a size: it retrains, and chooses the threshold itself."""
    stages, key = pipeline.stages, ("stages", "prune", "search")
    params = stages.prune
    if params is None or params.search is None:
        return
    if stages.retrain is None:
        yield key, "each size is judged after a short retraining; take retrain: false out, or search"
    if params.search.ratio > params.max_kept:
        yield (*key, "ratio"), f"more than max_kept ({params.max_kept:g}) counts as not pruned; lower it"
    if "prune" in pipeline.resources.stages:
        text = "where prune searches it trains, and has what resources.stages.retrain says; say it there"
        yield ("resources", "stages", "prune"), text
    for block in ("prune", "train"):
        if "prune.threshold" in getattr(stages, block).set:  # both are in the spec that it reads
            yield ("stages", block, "set", "prune.threshold"), "the search chooses the threshold; leave one of them out"


def _without_effect(pipeline: TaoPipeline, facts: Network) -> Iterator[Fault]:
    """Parameters that neither the network's commands nor its specs use."""
    name = pipeline.network.name
    for block in type(pipeline.stages).model_fields:
        stage = getattr(pipeline.stages, block)
        actions = {**networks.services().stages, **facts.stages}
        mine = [actions[a] for a in _ACTIONS.get(block, (block,)) if a in actions]
        if stage is None or block in ("albumentations", "prepare") or (block in _NEEDS and not mine):
            continue
        if not mine:
            if stage.model_fields_set:
                yield ("stages", block), f"{name} has no {block}; leave it out"
            continue
        known = useful(facts, block)
        for key in _said(pipeline, block):
            path: Key = ("stages", block, *key.split("."))
            if key in ("spec", "set"):
                if not any(action.specs for action in mine):
                    yield path, f"the {block} of {name} reads no spec; leave it out"
            elif key not in known:
                yield path, f"{name} has no such parameter; set it by its path in the spec, under stages.{block}.set"


def _said(pipeline: TaoPipeline, block: str) -> list[str]:
    """The dotted names that a block of the file says itself: not what `retrain` has from `train`."""
    said = list(given(getattr(pipeline.stages, block)))
    if block == "retrain":
        train = dict(given(pipeline.stages.train))
        said = [(n, v) for n, v in said if n not in train or train[n] != v]
    return [n for n, _ in said]


def useful(facts: Network, block: str) -> set[str]:
    """The parameters of a block that do something in this network."""
    prefix = "train" if block in TRAININGS else block
    named = _named(facts, block)
    named |= {n.removeprefix(f"{p}.") for n in _everywhere(facts) for p in (prefix, block) if n.startswith(f"{p}.")}
    return named | {n for n, alias in _ALIASES.items() if alias in named | _everywhere(facts)} | _OURS.get(block, set())


def _named(facts: Network, block: str) -> set[str]:
    """The names without a prefix that stand for a block's parameters: in its actions, and in the specs that it owns.

    The training's spec is the trainings' own; the other commands that read it take their parameters by a prefix.
    """
    every, specs = networks.services(), {**networks.services().specs, **facts.specs}
    stages = {**every.stages, **facts.stages}
    parts: list[Any] = []
    for action in (stages[a] for a in _ACTIONS.get(block, (block,)) if a in stages):
        parts += [action.argv, [o.path for o in action.outputs], [m.most for m in action.metrics.values()]]
        own = [s for s in action.specs if s != "train" or block in TRAININGS]
        parts += [part for s in own for part in (specs[s].set, specs[s].control)]
    return {n for part in parts for n in names_in(part)}


def _everywhere(facts: Network) -> set[str]:
    """All names in a network's facts."""
    parts: list[Any] = [part for spec in facts.specs.values() for part in (spec.set, spec.control)]
    for action in facts.stages.values():
        parts += [action.argv, [m.most for m in action.metrics.values()]]
    return {n for part in parts for n in names_in(part)}


def _class_weights(pipeline: TaoPipeline) -> Iterator[Fault]:
    for block in TRAININGS:
        training = getattr(pipeline.stages, block)
        if training is None or "class_weights" not in _said(pipeline, block):
            continue
        key: Key = ("stages", block, "class_weights")
        if training.spec is not None:
            yield key, f"a spec of your own has the weights itself; write them in {training.spec}, or under set"
        for label in training.class_weights:
            if label not in pipeline.dataset.classes:
                hint = did_you_mean(label, pipeline.dataset.classes)
                yield (*key, label), f"is no class of the data set{hint}"


def _gate(pipeline: TaoPipeline, facts: Network) -> Iterator[Fault]:
    """A metric that an evaluation does not give would fail the gate after the training."""
    metric, judged = pipeline.gates.quality.metric, ["evaluate"]
    judged += ["evaluate_engine"] if pipeline.stages.build_engine else []
    for action in judged:
        has = facts.stages[action].metrics
        if metric not in has:
            known = ", ".join(n for n in has if n.startswith("mAP"))
            yield ("gates", "quality", "metric"), f"{pipeline.network.name} is evaluated by {known} only; use that"
            return


# --- INT8 -------------------------------------------------------------------------------------------------------------


def _int8(pipeline: TaoPipeline, facts: Network) -> Iterator[Fault]:
    name, ways = pipeline.network.name, ", ".join(f"{k} ({v})" for k, v in facts.int8.items()) or "none"
    for block in TRAININGS:
        training = getattr(pipeline.stages, block)
        if training is not None and training.qat and "qat" not in facts.int8 and "qat" in _said(pipeline, block):
            text = f"{name} has no quantization-aware training; its ways to INT8 are {ways}"
            yield ("stages", block, "qat"), text
    engine = pipeline.stages.build_engine
    if engine is not None and engine.precision == "int8":
        yield from _way_to_int8(pipeline, facts, engine, ways)
    if engine is not None and engine.ladder:
        yield from _ladder(pipeline, engine)


def _ladder(pipeline: TaoPipeline, engine: BuildEngineParams) -> Iterator[Fault]:
    key: Key = ("stages", "build_engine", "ladder")
    if engine.precision != "int8":
        yield key, f"the ladder begins with INT8, and precision is {engine.precision}; leave one of them out"
    elif engine.int8 == "qdq" or pipeline.stages.quantize is not None:
        yield (
            key,
            "a model with Q/DQ nodes (quantize) is INT8, whatever its engine's precision; leave ladder out",
        )


def _way_to_int8(pipeline: TaoPipeline, facts: Network, engine: BuildEngineParams, ways: str) -> Iterator[Fault]:
    name, last = pipeline.network.name, pipeline.stages.last_training
    key: Key = ("stages", "build_engine", "int8")
    if engine.int8 != "auto" and engine.int8 not in facts.int8:
        yield key, f"{name} has no way {engine.int8!r} to INT8; it has {ways}"
    if not facts.int8:
        yield ("stages", "build_engine", "precision"), f"{name} has no way to INT8; use fp16"
    if engine.int8 == "qat" and not last.qat:
        yield key, "qat needs a model that was trained for it; set stages.train.qat: true"
    if last.qat and engine.int8 in ("ptq", "qdq"):
        yield key, f"the model is trained with qat: true, which {engine.int8} would throw away; use qat or auto"
    if engine.int8 == "qdq" and "qdq" in facts.int8 and pipeline.stages.quantize is None:
        yield key, "qdq needs the stage quantize; add stages.quantize"
    if engine.int8 == "ptq" and pipeline.stages.quantize is not None:
        yield key, "quantize writes the scales into the model, which ptq would calibrate again; use qdq or auto"
