"""What is wrong with the specs of a pipeline, found before a GPU is touched.

Three looks at the spec files that the stages will read: each against NVIDIA's schema (`refit.tao.schema`), all against
each other (a model trained at one size and pruned for another cannot be compared), and against the data. Where a value
stands in a spec is the network's fact (`roles` in network.yaml); the five systems that Refit replaces each had one of
these faults and found it after hours of GPU time.
"""

from __future__ import annotations

import math
import os
import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from refit.specs import Key, Problem, SpecError, did_you_mean
from refit.tao import networks, render, tree
from refit.tao.networks import Role, names_in

if TYPE_CHECKING:
    from refit.toolkits.tao import TaoChain
    from refit.toolkits.tao.scope import Work

Fault = Problem | tuple[Key, str]
_SIDES: tuple[Literal["width", "height"], ...] = ("width", "height")
_WHERE = " (in the spec of "


def faults(chain: TaoChain, dataset: Mapping[str, Any] | None) -> Iterator[Fault]:
    """Every fault of the specs that the stages will read; with `dataset` (dataset.json), of the data too."""
    seen: set[tuple[Any, ...]] = set()
    for fault in _all(chain, dataset):
        if isinstance(fault, Problem):
            mark: tuple[Any, ...] = (fault.file, fault.line, fault.key, fault.message)
        else:  # several stages read what the pipeline says once
            mark = (fault[0], fault[1].partition(_WHERE)[0])
        if mark not in seen:
            seen.add(mark)
            yield fault


def doubts(chain: TaoChain) -> Iterator[Fault]:
    """What is no fault and may mislead: an evaluation that does not judge by its spec, before a gate that compares it
    with one that does. Of specs without faults."""
    for work, spec in chain.works():
        look = Look(chain, work, spec)
        for pattern, taken in chain.fact(work.action).fixed.items():
            for path, scalar in spec.tree.leaves():
                if re.fullmatch(pattern, path) and not _same(scalar.value, taken):
                    text = (
                        f"is {tree.shown(scalar)}, and {work.stage} takes {taken} whatever it is: gate_quantized would "
                        f"compare unlike figures; say {taken}, or give gates.quality.max_drop_quantized room for it"
                    )
                    yield look.told(path, text)


def _all(chain: TaoChain, dataset: Mapping[str, Any] | None) -> Iterator[Fault]:
    from refit.tao import schema

    try:
        looks = [Look(chain, work, spec) for work, spec in chain.works()]
    except render.SetError as exc:
        yield exc.key, exc.message
        return
    except SpecError as exc:
        yield from exc.problems
        return
    strangers = {look.spec.own: fault for look in looks if (fault := _stranger(look))}
    yield from strangers.values()
    looks = [look for look in looks if look.spec.own not in strangers]
    for look in looks:
        network = "augmentation" if look.work.action == "augment" else chain.p.network.name
        better = dict(_misfits(look))  # says what to use
        for problem in schema.check(network, look.work.action, look.spec.tree, chain.tag(look.work.action)):
            if problem.key in better:
                continue
            yield look.told(problem.key, problem.message) if problem.key else problem
    for look in looks:
        yield from _alone(look)
        if dataset is not None:
            yield from _with_data(look, dataset)
    yield from _words(chain)
    yield from _files(chain)
    yield from _together(looks)
    yield from _batches(chain, looks, dataset)


@dataclass(frozen=True)
class Look:
    """A spec file of a stage, and where in it things stand."""

    chain: TaoChain
    work: Work
    spec: render.Rendered

    @cached_property
    def roles(self) -> Mapping[Role, list[str]]:
        return self.spec.facts.roles

    @cached_property
    def as_written(self) -> tree.Tree:
        """The user's own spec, before anything was set in it."""
        return tree.parse(self.chain.p.attached[self.spec.own], self.spec.tree.form, self.spec.own)

    def found(self, role: Role) -> list[tuple[str, Any]]:
        """(path, value) of each place of a role that is in the spec."""
        return [(p, self.spec.tree.value(p)) for p in self.roles.get(role, ()) if self.spec.tree.has(p)]

    def told(self, path: str, message: str) -> Fault:
        """A fault at a path: in the pipeline file where that gave the value, else in the user's spec file; one of a
        template is the pipeline's too, in its choice of the network."""
        key = render.origin(self.spec, path) or (None if self.spec.own else ("network",))
        if key is not None:
            return key, f"{message}{self._replaced(key, path)}{_WHERE}{self.work.stage}: {path})"
        return self.spec.tree.problem(path, message)

    def _replaced(self, key: Key, path: str) -> str:
        """What helps where `set` gave a whole block, and only a part of it was meant."""
        given = getattr(self.chain.p.stages, str(key[1])).set.get(key[3]) if key[2:3] == ("set",) else None
        if not isinstance(given, dict) or path == key[3]:
            return ""
        name, value = next(iter(given.items()))
        return f"; set replaces the whole of {key[3]}: to change one value of it, {key[3]}.{name}: {value}"


def _stranger(look: Look) -> Problem | None:
    """A spec of the user's own that another network takes and this one does not."""
    from refit.tao import schema

    name, action = look.chain.p.network.name, look.work.action
    if not look.spec.own or action == "augment":
        return None
    read = look.as_written

    def unknown(network: str) -> Problem | None:
        return next((p for p in schema.check(network, action, read) if p.message.startswith("unknown key")), None)

    fault = unknown(name)
    if fault is None:
        return None
    alike = [n for n in networks.known() if networks.load(n).format == read.form and action in networks.load(n).stages]
    others = " or ".join(n for n in alike if not unknown(n))
    if not others:
        return None
    text = f"{name} has no such key: this is a spec of {others}; say so in network.name, or name a spec of {name}"
    return Problem(fault.file, fault.line, fault.key, text)


# --- one spec ---------------------------------------------------------------------------------------------------------


def _alone(look: Look) -> Iterator[Fault]:
    yield from _key(look)
    yield from _size(look)
    yield from _image_type(look)
    yield from _classes(look)
    yield from _validation(look)
    yield from _qat(look)
    yield from _precision(look)
    yield from _paths(look)


def _key(look: Look) -> Iterator[Fault]:
    for path, scalar in look.spec.tree.leaves():
        if scalar.value == render.KEY:
            yield look.told(
                path,
                "an encryption key stands here in plain text; take it out, revoke it, and name the secret that holds "
                "the new one: network.key_secret",
            )


def _misfits(look: Look) -> Iterator[tuple[str, str]]:
    facts, name = look.chain.facts, look.chain.p.network.name
    for side in _SIDES:
        for path, value in look.found(side):
            if isinstance(value, int) and value > 0 and (fault := facts.input.misfit(value, name)):
                yield path, fault


def _size(look: Look) -> Iterator[Fault]:
    facts, network = look.chain.facts, look.chain.p.network
    for path, fault in _misfits(look):
        yield look.told(path, fault)
    for path, value in look.found("channels"):
        if value not in facts.input.channels:
            only = " or ".join(map(str, facts.input.channels))
            yield look.told(path, f"{network.name} takes images of {only} channels, not {value}")
    for path, scales in look.found("scales"):
        for i, scale in enumerate(scales if isinstance(scales, list) else ()):
            for side in scale if isinstance(scale, list) else [scale]:  # pairs too
                if isinstance(side, int) and (fault := facts.input.misfit(side, network.name)):
                    yield look.told(f"{path}[{i}]", fault)


def _image_type(look: Look) -> Iterator[Fault]:
    """Three places that tell one thing in FasterRCNN's spec."""
    for path in look.roles.get("image_type", ()):
        kind = look.spec.tree.value(path, "RGB")
        channels = ("l",) if kind in ("GRAY_SCALE", 1) else ("r", "g", "b")
        for there, value in look.found("channels"):
            if value != len(channels):
                yield look.told(
                    path,
                    f"{kind} images have {len(channels)} channel{'s'[: len(channels) - 1]}, and {there} is {value}",
                )
        for there in look.roles.get("means", ()):
            if lacks := [c for c in channels if c not in look.spec.tree.keys(there)]:
                yield look.told(there, f"has no mean of {', '.join(lacks)}, which {kind} images need; add it")


def _classes(look: Look) -> Iterator[Fault]:
    mapped = {
        label: str(look.spec.tree.value(f"{path}[{label}].value", ""))
        for path in look.roles.get("mapping", ())
        for label in look.spec.tree.keys(path)
    }
    for path in look.roles.get("mapping", ()):
        if look.spec.tree.has(path):
            yield from _mapping(look, path, mapped)
    targets = set(mapped.values()) or set(look.chain.targets(look.work.trained))
    for path in look.roles.get("classes", ()):
        if look.spec.tree.has(path):
            yield from _entries(look, path, targets)
    yield from _num_classes(look)


def _mapping(look: Look, path: str, mapped: Mapping[str, str]) -> Iterator[Fault]:
    """The data set's classes -> the model's."""
    classes = list(look.chain.names.values())
    for label, target in mapped.items():
        if not target:
            yield look.told(f"{path}[{label}]", f"{label!r} is mapped to nothing; name a class, or take it out")
    lost = [name for name in classes if name not in mapped]
    for name in lost:
        labels = [label for label, target in mapped.items() if target == name]
        hint = f"{did_you_mean(name, list(mapped))}; its boxes would be lost"
        if labels:
            entry = f'{path.rpartition(".")[2]} {{ key: "{name}" value: "{name}" }}'
            hint = f": Refit's labels have the names of dataset.classes. Add {entry}, or say {labels[0]} there"
        yield look.told(path, f"class {name!r} of the data set is mapped to nothing{hint}")
    met = {mapped[name] for name in classes if name in mapped}
    if empty := sorted(set(mapped.values()) - met - {"", *lost}):
        yield look.told(
            path,
            f"no class of the data set is mapped to {', '.join(map(repr, empty))}: the model would have outputs that "
            "never see an object; take them out",
        )


def _entries(look: Look, path: str, targets: set[str]) -> Iterator[Fault]:
    """A block for each of the model's classes."""
    value = look.spec.tree.keys(path)
    # DetectNet_v2's inference: classes without an entry take this one (bbox_handler.py).
    rest = "default" in value
    for name in sorted(targets - set(value)) if not rest else ():
        yield look.told(path, f"has nothing for class {name!r}{did_you_mean(name, value)}; it has {', '.join(value)}")
    for name in sorted(set(value) - targets - {"default"}):
        hint = did_you_mean(name, sorted(targets))
        yield look.told(f"{path}[{name}]", f"{name!r} is no class of the mapping{hint}")


def _num_classes(look: Look) -> Iterator[Fault]:
    classes, first = len(look.chain.names), look.chain.facts.data.first_id
    wanted = classes + first
    for path, value in look.found("num_classes"):
        if value != wanted:
            yield look.told(
                path,
                f"is {value}; {classes} classes with ids from {first} make {wanted}, and an id beyond it ends "
                "in a CUDA assertion",
            )


def _validation(look: Look) -> Iterator[Fault]:
    epochs = [v for _, v in look.found("epochs") if isinstance(v, int)]
    if not epochs or epochs[0] < 1 or not look.work.trains:
        return
    first: tuple[tuple[Role, str], ...] = (("evaluate_every", "every"), ("evaluate_from", "first after"))
    for role, what in first:
        for path, value in look.found(role):
            if isinstance(value, int) and value > epochs[0]:
                text = f"{what} {value} epochs, and the training has {epochs[0]}: it would never come; use at most"
                yield look.told(path, f"{text} {epochs[0]}")
    for path, value in look.found("warmup"):
        if isinstance(value, int) and value > epochs[0]:
            text = f"the rate rises for {value} epochs, and the training has {epochs[0]}; use at most {epochs[0]}"
            yield look.told(path, text)


def _qat(look: Look) -> Iterator[Fault]:
    """Each training by its own block: NVIDIA's way is to train and prune without, and to retrain with it."""
    trained = look.work.trained
    wanted = getattr(look.chain.p.stages, trained).qat
    for path, value in look.found("qat"):
        if isinstance(value, bool) and value != wanted:
            is_, should = ("on", "off") if value else ("off", "on")
            yield look.told(
                path,
                f"quantization-aware training is {is_} here and {should} in the pipeline (stages.{trained}.qat); "
                "make them agree",
            )


def _precision(look: Look) -> Iterator[Fault]:
    """The pipeline says it, because calibration, Q/DQ and the engine's record go by it; no spec may say another."""
    engine = look.chain.p.stages.build_engine
    if look.work.action != "build_engine" or engine is None:
        return
    key = "stages.build_engine.precision"
    for path in look.roles.get("precision", ()):
        made = str(look.spec.tree.value(path)).upper()
        if made != look.chain.precision_of_spec:
            yield look.told(path, f"is {made}, and the engine is to be {engine.precision} ({key}); leave it to that")
        elif look.spec.own and "precision" not in engine.model_fields_set:
            said = str(look.as_written.value(path, made))
            if said.upper() not in (made, engine.precision.upper()):
                text = f"is {said} here, and the pipeline says nothing, which is {engine.precision}; say which: {key}"
                yield look.as_written.problem(path, text)


def _paths(look: Look) -> Iterator[Fault]:
    """Places of another machine, and outputs that Refit would not find."""
    outputs = {p: v for p, v in look.spec.facts.control.items() if isinstance(v, str) and v.startswith("{out}")}
    for path, scalar in look.spec.tree.leaves():
        value = scalar.value
        if outputs.get(path, value) != value:
            there = isinstance(value, str) and value.startswith("/") and os.path.lexists(value)
            why = " is there already, and would be overwritten or refused" if there else " is an output"
            yield look.told(path, f"{value}{why}; Refit looks for it in the stage's own folder: leave it to Refit")
        elif not isinstance(value, str) or not value.startswith("/") or ".layers_precision[" in path:
            continue  # the names of ONNX nodes begin as paths do
        elif fault := _unseen(look.chain, value):
            begins = look.work.begins and names_in(look.spec.facts.control.get(path)) & render.KEPT
            other = ", or take it out and name it in network.pretrained" if begins else ""
            yield look.told(path, f"{fault}{other}")
    if look.work.stage == "retrain":
        for path in look.roles.get("start", ()):
            value = look.spec.tree.value(path)
            if value != "{input:prune.model}":
                named = f"names {value!r}" if value else "names no model"
                yield look.told(path, f"{named}: the retraining must begin with the pruned model; leave it to Refit")


def _unseen(chain: TaoChain, value: str) -> str:
    """What is wrong with a place that a stage is to read, relative to its pipeline's folder; "" where nothing is."""
    places = [posixpath.normpath(posixpath.join(root, value)) for root in chain.roots]
    if not places or any(f"{at}/".startswith(f"{root}/") for at, root in zip(places, chain.roots, strict=True)):
        return ""
    return f"{value} is no place that a stage sees; put it below {' or '.join(chain.roots)}"


def _files(chain: TaoChain) -> Iterator[Fault]:
    """What the pipeline itself names for a stage to read."""
    pretrained, distill = chain.p.network.pretrained, chain.p.stages.distill
    named: list[tuple[Key, str | None]] = [(("stages", "distill", "teacher"), distill.teacher if distill else None)]
    if not isinstance(pretrained, bool):
        named.append((("network", "pretrained", "path"), pretrained.path))
    for key, value in named:
        if value and (fault := _unseen(chain, value)):
            yield key, fault


def _words(chain: TaoChain) -> Iterator[Fault]:
    """TAO's programs put their words into a line for bash, unquoted (nvidia_tao_tf1/cv/common/entrypoint/entrypoint.py,
    `launch_job`); of what stands there only the workspace's place is not Refit's own making."""
    for root in chain.roots:
        if odd := sorted(set(re.sub(r"[A-Za-z0-9_./=:+,@%-]", "", root))):
            listed = " ".join(map(repr, odd))
            yield (
                ("cluster",),
                f"the workspace is mounted at {root!r}, and TAO's commands take {listed} for more than a character "
                "of a path; change volumes.workspace.mount_path of the cluster profile",
            )


# --- several specs ----------------------------------------------------------------------------------------------------


# What must be equal in all specs: the role, what to call it, and why it matters.
_EQUAL: tuple[tuple[Role, str, str], ...] = (
    ("width", "the input's width", ""),
    ("height", "the input's height", ""),
    ("channels", "the number of channels", ""),
    ("extension", "the images' extension", ""),
    ("mapping", "the mapping of classes", ""),
    ("boxes", "the boxes that count in the evaluation", ": mAP before and after could not be compared"),
    ("iou", "the overlap that counts as found", ": mAP before and after could not be compared"),
    ("judging", "what decides the evaluation", ": mAP before and after could not be compared"),
)


_FEW = 4  # differences of one role that are told one by one
Leaves = Mapping[str, tree.Scalar]  # what stands at a path: the rest of each leaf's path -> its value


def _together(looks: list[Look]) -> Iterator[Fault]:
    for role, what, why in _EQUAL:
        groups: dict[str, list[tuple[Look, str]]] = {}
        for look in looks:
            for path in look.roles.get(role, ()):
                if look.spec.tree.has(path):
                    groups.setdefault(path if role == "judging" else "", []).append((look, path))
        for (first, there), *others in groups.values():
            wanted, file = _below(first, there), first.spec.tree.file
            for look, path in others:
                found = list(_differences(_below(look, path), wanted, file))
                for rest, difference in found[:_FEW]:
                    yield look.told(f"{path}{rest}", f"{what}: {difference}{why}; make them equal")
                if more := len(found[_FEW:]):
                    yield look.told(path, f"{what}: {more} more differences from {file}; make them equal")


def _below(look: Look, path: str) -> Leaves:
    found = look.spec.tree.leaves()
    return {at.removeprefix(path): leaf for at, leaf in found if at == path or at.startswith((f"{path}.", f"{path}["))}


def _differences(here: Leaves, there: Leaves, file: str) -> Iterator[tuple[str, str]]:
    """(where, what) of each leaf that differs; an entry that one side lacks counts as one."""
    for rest, leaf in here.items():
        if rest in there and not _same(leaf.value, there[rest].value):
            other = there[rest]
            yield rest, f"{tree.shown(leaf)} here, and {tree.shown(other)} in {_place(file, other)}"
    for entry in dict.fromkeys(_entry(rest, there) for rest in here if rest not in there):
        yield entry, f"is here, and not in {file}"
    lacking: dict[str, tree.Scalar] = {}
    for rest, leaf in there.items():
        if rest not in here:
            lacking.setdefault(_entry(rest, here), leaf)
    for entry, leaf in lacking.items():
        yield "", f"{entry.lstrip('.')} is in {_place(file, leaf)}, and not here"


def _same(one: tree.Plain, other: tree.Plain) -> bool:
    """protobuf's floats have 32 bits: NVIDIA's own specs say 0.00499999988824 for 0.005."""
    if isinstance(one, float) or isinstance(other, float):
        return (
            isinstance(one, int | float) and isinstance(other, int | float) and math.isclose(one, other, rel_tol=1e-6)
        )
    return one == other


def _entry(rest: str, others: Leaves) -> str:
    """The entry of a map that a leaf stands in, where the other side has nothing of it; else the leaf."""
    entry = rest[: rest.find("]") + 1]
    return rest if not entry or any(other.startswith(entry) for other in others) else entry


def _place(file: str, leaf: tree.Scalar) -> str:
    return f"{file}:{leaf.line}" if leaf.line else file


# --- the data ---------------------------------------------------------------------------------------------------------


def _with_data(look: Look, dataset: Mapping[str, Any]) -> Iterator[Fault]:
    p, facts = look.chain.p, look.chain.facts
    images: Mapping[str, Any] = dataset.get("images") or {}
    endings = {e.lstrip("."): n for e, n in (images.get("extensions") or {}).items()}
    if facts.data.form == "kitti" and endings and p.stages.prepare.convert is None:
        for path, value in look.found("extension"):
            others = {e: n for e, n in endings.items() if e != str(value).lstrip(".")}
            if others:
                listed = ", ".join(f"{n} .{e}" for e, n in others.items())
                yield look.told(
                    path,
                    f"is {value!r}, and the data set has {listed} images, which {p.network.name} would not find; "
                    f"set network.image_extension, or let stages.prepare.convert make them all one kind",
                )
    yield from _resized(look, images)


def _resized(look: Look, images: Mapping[str, Any]) -> Iterator[Fault]:
    """A network that takes the images as they are needs them at its input's size."""
    resize = look.chain.p.stages.prepare.resize
    if resize and resize.keep_aspect and not resize.pad:
        return  # at sizes that are known only when it is done
    for place in look.roles.get("resizes", ()):
        if look.spec.tree.value(place):
            continue
        if look.chain.p.stages.albumentations and not resize:
            yield look.told(
                place,
                "the copies of stages.albumentations may have other sizes than the network takes, as after a quarter "
                f"turn; set stages.prepare.resize, or let TAO fit them (stages.train.set: {{{place}: true}})",
            )
            continue
        for side in _SIDES:
            span: list[int] = [getattr(resize, side)] if resize else sorted({*images.get(side, ())})
            for path, value in look.found(side) if span else ():
                if isinstance(value, int) and value > 0 and span != [value]:
                    have = " to ".join(map(str, span))
                    yield look.told(
                        path,
                        f"the {side} is {value}, and the images have {have}; let TAO fit them "
                        f"(stages.train.set: {{{place}: true}}), or set stages.prepare.resize",
                    )


def _batches(chain: TaoChain, looks: list[Look], dataset: Mapping[str, Any] | None) -> Iterator[Fault]:
    splits: Mapping[str, int] = (dataset or {}).get("splits", {})
    for look in looks:
        if not look.work.trains or not splits:
            continue
        gpus = max(1, chain.resources(look.work.stage).gpus)
        for path, value in look.found("batch_size"):
            if isinstance(value, int) and value * gpus > splits.get("train", 0):
                times = f" x {gpus} GPUs" if gpus > 1 else ""
                yield look.told(
                    path,
                    f"{value}{times} is more than the {splits.get('train', 0)} images of the train split; use less",
                )
        for path, value in look.found("evaluation_batch_size"):
            if isinstance(value, int) and value > splits.get("val", 0):
                yield look.told(path, f"{value} is more than the {splits.get('val', 0)} images of the val split")
    engine = chain.p.stages.build_engine
    if engine is not None and chain.way_to_int8 == "ptq" and splits:
        wanted = engine.calibration_batches * engine.calibration_batch_size
        if wanted > splits.get("train", 0):
            yield (
                ("stages", "build_engine", "calibration_batches"),
                f"{engine.calibration_batches} batches of {engine.calibration_batch_size} are {wanted} images, and the "
                f"train split has {splits.get('train', 0)}; use fewer",
            )
