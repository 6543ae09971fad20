"""TAO specs against NVIDIA's own schema, without a GPU or a container.

For PyTorch and TF2 networks and the data services the schema is dataclasses in nvidia-tao-core, for TF1 networks protos
in nvidia-tao-deploy and what the training images check besides (`limits`). Both wheels stand in the tools environment
without their dependencies.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

from refit.specs import Problem, did_you_mean
from refit.tao.schema import protos, records
from refit.tao.schema.limits import beyond
from refit.tao.schema.model import Record, is_missing, judge, missing
from refit.tao.schema.releases import unknown
from refit.tao.tree import Format, Tree

# TAO's actions; a block of such a name in a spec is read by that action alone.
_ACTIONS = (
    "train", "evaluate", "inference", "export", "gen_trt_engine", "prune", "quantize", "distill", "dataset_convert",
    "convert", "generate", "validate", "analyze",
)  # fmt: skip
# Refit's stages that are called otherwise than the action they run.
_STAGES = {"retrain": "train", "build_engine": "gen_trt_engine", "augment": "generate"}
_SECTIONS = {"generate": "data"}  # the block that an action cannot do without, where it has another name
_READ_DATA = ("train", "evaluate", "inference", "quantize", "distill")


def check(network: str, stage: str, tree: Tree, release: str = "") -> list[Problem]:
    """Every fault in a stage's spec, in the order of the file; [] where TAO's schema takes it.

    Args:
        network: TAO's name of it (rtdetr, detectnet_v2), or a data service's (annotations, augmentation, analytics).
        stage: TAO's action (train, gen_trt_engine), or Refit's stage that runs it (retrain, dataset_convert_val).
        release: of the image that will read the spec, or the image's tag (6.26.3, 5.5.0-deploy): tells of keys that
            the image does not know yet; a deploy image asks a TF1 spec for less. "": a training image of today.

    Raises:
        ValueError: the stage runs no action of TAO, or `release` is none.
    """
    core, deploy = _root(records.PACKAGE), _root(protos.PACKAGE)
    if core is None or deploy is None:
        lacks = (protos.PACKAGE if core else records.PACKAGE).replace("_", "-")
        message = f"cannot be checked: NVIDIA's schema ({lacks}) is not installed in {sys.prefix}; "
        return [Problem(tree.file, 0, "", message + "`make setup` installs it, and bin/refit uses it")]
    action = _action(stage)
    if records.has(core, network):
        problems = _yaml(network, action, tree)
    elif protos.has(deploy, network):
        problems = _wrong_form(network, tree, "prototxt") or _prototxt(deploy, network, action, tree, release)
    else:
        return [Problem(tree.file, 0, "", f"TAO's schema has no network {network!r}{_near(core, deploy, network)}")]
    return [*problems, *(unknown(network, release, tree) if release else ())]


def _action(stage: str) -> str:
    name = _STAGES.get(stage, stage)
    found = [action for action in _ACTIONS if name == action or name.startswith(f"{action}_")]
    if not found:
        raise ValueError(f"stage {stage!r} runs no action of TAO")
    return found[0]


def _prototxt(deploy: Path, network: str, action: str, tree: Tree, release: str) -> list[Problem]:
    schema = protos.schema(deploy, network, action)
    found = judge(schema, tree)
    if "deploy" not in release:
        # Beside an unknown key, what seems to be left out may only be misspelt.
        told = {p.key for p in found}
        found += (p for p in beyond(network, action, schema, tree, whole=not found) if p.key not in told)
    return sorted(found, key=lambda p: p.line)


def _yaml(network: str, action: str, tree: Tree) -> list[Problem]:
    schema = records.schema(network)
    unread = () if action in _READ_DATA else ("dataset",)
    problems = _wrong_form(network, tree, "yaml") or [*judge(schema, tree, unread), *_gaps(schema, action, tree)]
    return sorted(problems, key=lambda p: p.line) or records.merged(network, tree)


def _gaps(schema: Record, action: str, tree: Tree) -> Iterator[Problem]:
    """What the action needs and the spec does not give: keys without a default, and ??? wherever it may read."""
    section = _SECTIONS.get(action, action)
    field = schema.fields.get(section)
    told = set()
    if field and isinstance(field.type, Record):
        for problem in missing(field.type, tree.nodes(section), section, tree.line(section), tree):
            if not _spared(problem.key, section, tree):
                told.add(problem.key)
                yield problem
    for path, scalar in tree.leaves():
        top = path.partition(".")[0]
        read = (top == section or top not in _ACTIONS) and not _spared(path, section, tree)
        if is_missing(scalar) and read and path not in told:
            yield Problem(tree.file, scalar.line or tree.line(path), path, "is ???; give a value, or leave the key out")


def _spared(path: str, section: str, tree: Tree) -> bool:
    """Keys that TAO never reads in this spec: a checkpoint beside an engine, calibration where it is not INT8."""
    if path == f"{section}.checkpoint":
        return bool(tree.value(f"{section}.trt_engine"))
    if path.startswith(f"{section}.tensorrt.calibration."):
        return str(tree.value(f"{section}.tensorrt.data_type", "")).lower() != "int8"
    return False


def _wrong_form(network: str, tree: Tree, form: Format) -> list[Problem]:
    if tree.form == form:
        return []
    names = {"yaml": "YAML", "prototxt": "protobuf text"}
    message = f"this is {names[tree.form]}, and {network} reads {names[form]}: is it the spec of another network?"
    return [Problem(tree.file, 1, "", message)]


def _near(core: Path, deploy: Path, network: str) -> str:
    known = [p.name for p in (core / records.PACKAGE / "config").iterdir() if records.has(core, p.name)]
    known += [p.name for p in (deploy / protos.PACKAGE / "cv").iterdir() if protos.has(deploy, p.name)]
    return did_you_mean(network, known) or f"; it has {', '.join(sorted(known))}"


def _root(package: str) -> Path | None:
    """The folder in which a package lies; it is not imported."""
    found = importlib.util.find_spec(package)
    places = list(found.submodule_search_locations or []) if found else []
    return Path(places[0]).parent if places else None
