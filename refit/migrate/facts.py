"""What old specs say that a pipeline file says too, each value with its place; and what must change in their text."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from refit.migrate.edit import Changes
from refit.migrate.mounts import Mounts
from refit.migrate.moved import carried, moved
from refit.migrate.recognise import Spec
from refit.migrate.secrets import marked
from refit.tao import networks, schema
from refit.tao.networks import Network
from refit.tao.networks import Role as Fact
from refit.tao.schema.model import MISSING
from refit.tao.tree import Scalar
from refit.toolkits.tao import BEGINNINGS

# What two specs of one model must agree on, and what to call it.
EQUAL: tuple[tuple[Fact, str], ...] = (
    ("width", "the input's width"),
    ("height", "the input's height"),
    ("channels", "the channels"),
    ("extension", "the images' extension"),
    ("mapping", "the mapping of classes"),
    ("boxes", "the boxes that count in the evaluation"),
    ("iou", "the overlap that counts as found"),
)
_KEYS = ("enc_key", "encryption_key", "key")
_RESUMES = ("resume_model_path", "resume_from_model", "resume_training_checkpoint_path")


@dataclass(frozen=True)
class Said:
    """A value, and the place that says it."""

    value: Any
    file: str
    line: int
    path: str

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file

    @property
    def short(self) -> str:
        """The value for people, on one line."""
        boxes = self.value if isinstance(self.value, list) else []
        if boxes and all(isinstance(b, dict) and isinstance(b.get("value"), dict) for b in boxes):
            sizes = ((b["key"], b["value"].get("minimum_width", 0), b["value"].get("minimum_height", 0)) for b in boxes)
            return ", ".join(f"{key} of at least {width}x{height}" for key, width, height in sizes)
        if isinstance(self.value, dict):
            return ", ".join(f"{k} as {v}" if k != v else str(k) for k, v in self.value.items())
        return str(self.value)


def said(spec: Spec, role: Fact) -> Said | None:
    """What a training spec says of a fact; the first place that has it."""
    for path in networks.load(spec.network).specs["train"].roles.get(role, ()):
        if spec.tree.has(path):
            value = mapping(spec, path) if role == "mapping" else spec.tree.value(path)
            if role in ("boxes", "iou") and isinstance(value, list | dict):
                value = spec.tree.values(path)
            return Said(value, spec.file, spec.tree.line(path), path)
    return None


def mapping(spec: Spec, path: str) -> dict[str, str]:
    """Label -> class, in the order of the file."""
    return {label: str(spec.tree.value(f"{path}[{label}].value", "")) for label in spec.tree.keys(path)}


def differences(specs: list[Spec]) -> Iterator[tuple[str, Said, Said]]:
    """What the training specs of one model say in two ways."""
    for other in specs[1:]:
        for role, what in EQUAL:
            one, two = said(specs[0], role), said(other, role)
            if one and two and _plain(one.value) != _plain(two.value):
                yield what, one, two


# A leaf of the prototxt of TLT's `augment` -> the parameter of Refit's stage. Source: NVIDIA's archived user guide of
# TLT 3.0, "Offline Data Augmentation".
_AUGMENT = {
    "spatial_config.rotation_config.angle": "rotate_degrees",
    "spatial_config.flip_config.flip_horizontal": "hflip",
    "spatial_config.flip_config.flip_vertical": "vflip",
    "color_config.hue_saturation_config.hue_rotation_angle": "hue_degrees",
    "color_config.hue_saturation_config.saturation_shift": "saturation",
    "blur_config.size": "blur_size",
    "blur_config.std": "blur_std",
}
_AUGMENT_ELSE = ("spatial_config.rotation_config.units", "dataset_config.", "output_image_", "image_extension")


def augmentation(spec: Spec) -> tuple[dict[str, Any], list[str]]:
    """What TLT's offline augmentation was told, as parameters of Refit's stage, and notes on what has no place."""
    found: dict[str, Any] = {}
    notes = []
    for path, scalar in spec.tree.leaves():
        name = _AUGMENT.get(path)
        if name is None:
            if not path.startswith(_AUGMENT_ELSE):
                notes.append(
                    f"{spec.file}:{scalar.line}: {path}: is not carried over: Refit's augment has no such parameter"
                )
            continue
        value = scalar.value
        if name == "rotate_degrees" and spec.tree.value("spatial_config.rotation_config.units") == "radians":
            value = round(math.degrees(float(str(value))), 3)
        found[name] = int(value) if name == "blur_size" and isinstance(value, float) else value
    return found, notes


def pretrained_path(spec: Spec) -> Said | None:
    """Where a training spec takes its first weights."""
    for path in _starts(networks.load(spec.network)):
        value = spec.tree.value(path)
        if isinstance(value, str) and value not in ("", MISSING):
            return Said(value, spec.file, spec.tree.line(path), path)
    return None


def ngc_name(path: str) -> str | None:
    """The model on NGC that a downloaded folder is called after: `[tlt_]NAME_vVERSION`."""
    for part in path.split("/"):
        for name in _ngc_models():
            folder = part.removeprefix("tlt_").removeprefix("tao_")
            if folder.startswith(f"{name}_v") and len(folder) > len(name) + 2:
                return f"nvidia/tao/{name}:{folder[len(name) + 2 :]}"
    return None


def changes(spec: Spec, mounts: Mounts) -> tuple[Changes, list[str]]:
    """What import changes in a spec's text, and a line for each."""
    made, notes = Changes(), []

    def drop(path: str, why: str) -> None:
        if path not in made.drop:
            made.drop[path] = why
            notes.append(f"{spec.file}:{spec.tree.line(path)}: {path}: left out: {why}")

    facts = networks.load(spec.network) if spec.network else None
    for path, scalar in list(spec.tree.leaves()):
        name = path.rpartition(".")[2]
        if marked(scalar.value) or (name in _KEYS and path.count(".") == 0):
            drop(path, "the key comes from a Secret")
        elif name in _RESUMES and scalar.value:
            drop(path, "Refit resumes an interrupted training by itself")
    if facts is not None and spec.role in ("train", "retrain"):
        for path in _starts(facts):
            value = spec.tree.value(path)
            if value == MISSING:
                drop(path, "it names no weights; network.pretrained does, if there are any")
            elif spec.role == "retrain" and value and path not in facts.specs["train"].roles.get("start", ()):
                drop(path, "the retraining begins with the pruned model")
    if spec.network == "detectnet_v2" and spec.tree.has("inferencer_config.tensorrt_config"):
        drop("inferencer_config.tensorrt_config", "Refit's inference is of the trained model (tlt_config)")
    if spec.network:
        _unknown(spec, made, drop)
    models = _models(facts) if facts is not None and spec.role in ("train", "retrain") else ()
    for path, scalar in spec.tree.leaves():
        value = scalar.value
        if isinstance(value, str) and value.startswith("/") and not any(_below(path, d) for d in made.drop):
            if path in models:
                made.replace[path] = value.rstrip("/").rpartition("/")[2]
                notes.append(f"{spec.file}:{scalar.line}: {path}: without its folder: Refit gives each stage its model")
                continue
            host = mounts.host(value)
            if host is not None and host != value:
                made.replace[path] = host
    if facts is not None and spec.role in ("train", "retrain"):
        for path in facts.specs["train"].roles.get("mapping", ()):
            known = mapping(spec, path)
            lost = [t for t in dict.fromkeys(known.values()) if t and t.lower() not in known]
            if lost:
                made.add[path] = [{"key": t.lower(), "value": t} for t in lost]
                listed = ", ".join(lost)
                notes.append(
                    f"{spec.file}:{spec.tree.line(path)}: {path}: added: {listed}: Refit writes the labels with the "
                    "classes' names, dataset.class_map does the rest"
                )
    return made, notes


def _unknown(spec: Spec, made: Changes, drop: Any) -> None:
    """Fields that today's schema does not have: moved, or paths, which Refit sets."""
    action = "train" if spec.role == "retrain" else spec.role
    for problem in schema.check(spec.network, action, spec.tree):
        if "unknown key" not in problem.message:
            continue
        went = moved(spec.network, problem.key)
        if went is not None:
            old, move = went
            new = carried(spec.tree, old, move)
            made.put |= new
            more = f" ({', '.join(new)})" if new else ""
            drop(old, f"{move.why}{more}")
        else:
            nodes = spec.tree.nodes(problem.key)
            if nodes and all(isinstance(n, Scalar) and str(n.value).startswith("/") for n in nodes):
                drop(problem.key, "TAO has no such field now, and a place is Refit's to give")


def _below(path: str, above: str) -> bool:
    return path == above or path.startswith((f"{above}.", f"{above}["))


def _starts(facts: Network) -> list[str]:
    """Where a training's first weights stand."""
    given = [f"${{{name}}}" for name in BEGINNINGS if name != "pruned"]
    return [p for p, v in facts.specs["train"].control.items() if v in given]


def _models(facts: Network) -> list[str]:
    """Where models stand: a stage that is given none would be left with the old place."""
    given = [f"${{{name}}}" for name in ("model", "checkpoint", "onnx", "engine", *BEGINNINGS)]
    return [p for p, v in facts.specs["train"].control.items() if v in given]


@lru_cache(maxsize=1)
def _ngc_models() -> list[str]:
    """The names of the models that the networks' facts know, the longest first."""
    found = set()
    for network in networks.known():
        for own in networks.load(network).backbones.values():
            match = re.fullmatch(r"nvidia/tao/([^:]+):.+", str(own.get("ngc", "")))
            if match:
                found.add(match[1])
    return sorted(found, key=len, reverse=True)


def _plain(value: Any) -> Any:
    return sorted(value, key=repr) if isinstance(value, list) else value
