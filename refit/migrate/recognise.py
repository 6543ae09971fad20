"""What a file is, by its content: never by its name.

The tops of NVIDIA's protos and dataclasses tell networks apart; `roles` of specs/networks tell where things stand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from refit.migrate import mounts
from refit.migrate.cli import Role
from refit.migrate.fetch import ImportFault
from refit.tao import networks, schema
from refit.tao import tree as trees
from refit.tao.networks import Network
from refit.tao.tree import Format, Tree

Kind = Literal["spec", "kubeflow", "mounts"]

# Top-level fields of TAO's prototxt specs -> the network that has them.
_OWNERS = {
    "yolov4_config": "yolo_v4",
    "ssd_config": "ssd",
    "dssd_config": "ssd",
    "cost_function_config": "detectnet_v2",
    "bbox_rasterizer_config": "detectnet_v2",
    "inferencer_config": "detectnet_v2",
    "bbox_handler_config": "detectnet_v2",
}
_UNBUILT = {
    "retinanet_config": "RetinaNet", "yolov3_config": "YOLOv3", "maskrcnn_config": "Mask R-CNN",
    "efficientdet_config": "EfficientDet of TensorFlow 1", "lpr_config": "LPRNet", "unet_config": "UNet",
    "train_config": "an image classifier, or of TensorFlow's Object Detection API",
}  # fmt: skip
_ALIAS = re.compile(r"(?:^|[\s\[,:])\*\w")
_MOST_ALIASES = 20
_ACTIONS = {"evaluate", "inference", "export", "gen_trt_engine", "prune", "quantize", "distill"}
_DATA = (
    "import reads specs; this is data, which a run reads as it is: check its folder (`refit dataset check FOLDER`), "
    "name it as dataset.source in a copy of a file of specs/examples; docs/coming-from.md has the steps"
)
_YAML_NETWORKS = ("rtdetr", "dino", "deformable_detr", "efficientdet_tf2")


@dataclass(frozen=True)
class Spec:
    """A TAO spec. `network`: "" where any may read it (a conversion's)."""

    file: str
    text: str
    tree: Tree
    network: str
    role: Role


@dataclass(frozen=True)
class Other:
    """Another file that import reads."""

    file: str
    text: str
    kind: Kind


def recognise(text: str, file: str, network: str = "", role: Role | None = None) -> Spec | Other:
    """What a text is. Raises ImportFault (import cannot read such files) or SpecError (it is faulty)."""
    data = _json(text)
    if data is not None:
        if mounts.is_mounts(data):
            return Other(file, text, "mounts")
        raise ImportFault(f"{file}: {_of_json(data)}")
    if text.lstrip().startswith("filename,width,height,class"):
        raise ImportFault(f"{file}: the CSV of TensorFlow's Object Detection API: {_DATA}")
    form = form_of(text)
    if form == "yaml" and len(_ALIAS.findall(text)) > _MOST_ALIASES:
        raise ImportFault(
            f"{file}: more than {_MOST_ALIASES} aliases (*name), which can make a small file endless; write them out"
        )
    if form == "yaml" and is_kubeflow(_yaml(text)):
        return Other(file, text, "kubeflow")
    spec = trees.parse(text, form, file)
    found, wanted = _prototxt(spec) if form == "prototxt" else _of_yaml(spec, network)
    if network and found and network != found:
        raise ImportFault(f"{file}: is a spec of {found}, not of {network}")
    name = found or network
    if wanted is None:
        wanted = "retrain" if retrains(spec, name) else "train"
    return Spec(file, text, spec, name, role or wanted)


def form_of(text: str) -> Format:
    """Protobuf text has blocks `name {`, which YAML has not; `name: {` is in both, with commas in YAML alone."""
    if re.search(r"^\s*[A-Za-z_]\w*\s*\{", text, re.MULTILINE):
        return "prototxt"
    blocks = re.search(r"^\s*[A-Za-z_]\w*\s*:\s*\{\s*$", text, re.MULTILINE)
    return "prototxt" if blocks and not isinstance(_yaml(text), dict) else "yaml"


def is_kubeflow(data: Any) -> bool:
    """The input of the Kubeflow TLT pipeline, in any of its shapes."""
    model = data.get("model") if isinstance(data, dict) else None
    return isinstance(model, dict) and ("base_model" in model or "model_type" in model)


def retrains(spec: Tree, network: str) -> bool:
    """Whether a training spec begins with a pruned model."""
    start = networks.load(network).specs["train"].roles.get("start", [])
    if network == "detectnet_v2":  # the same field holds the pretrained weights of a first training
        return spec.value("model_config.load_graph") is True
    return any(spec.value(path) not in (None, "") for path in start)


def backbone(spec: Tree, facts: Network) -> str | None:
    """The name of the backbone that a training spec has; None: none that Refit knows."""
    places = {
        path: value.removeprefix("${backbone.").removesuffix("}")
        for path, value in facts.specs["train"].set.items()
        if isinstance(value, str) and value.startswith("${backbone.")
    }
    for name, own in facts.backbones.items():
        agrees = all(spec.value(path, own.get(key)) == own.get(key) for path, key in places.items())
        if agrees and any(spec.has(path) for path in places):
            return name
    return None


def _prototxt(spec: Tree) -> tuple[str, Role | None]:
    tops = [name for name, _ in spec.root.fields]
    if {"kitti_config", "coco_config"} & set(tops):
        return "", "dataset_convert"
    if {"spatial_config", "color_config", "blur_config"} & set(tops):
        return "", "augment"
    if set(tops) == {"item"}:
        names = [str(v) for v in spec.values("item.name") or spec.values("item.display_name")]
        raise ImportFault(f"{spec.file}: a label map of TensorFlow: its names, for --classes: {','.join(names)}")
    for top in tops:
        if top in _UNBUILT:
            raise ImportFault(f"{spec.file}: {top} is of {_UNBUILT[top]}, which Refit does not train; {_trains()}")
    if "network_config" in tops:
        raise ImportFault(
            f"{spec.file}:{spec.line('network_config')}: network_config is of TLT 1.0's FasterRCNN; write "
            "model_config as TAO 5 has it (specs/networks/faster_rcnn/train.txt is a whole spec), then import it"
        )
    if spec.has("model_config.input_image_config") or spec.has("model_config.anchor_box_config"):
        return "faster_rcnn", None
    for top in tops:
        if top in _OWNERS:
            return _OWNERS[top], "inference" if "inferencer_config" in tops else None
    raise ImportFault(f"{spec.file}: no spec that import knows (it has {_some(tops)}); {_trains()}")


def _of_yaml(spec: Tree, network: str) -> tuple[str, Role | None]:
    tops = {name for name, _ in spec.root.fields}
    if {"spatial_aug", "color_aug"} & tops:
        return "", "augment"
    if str(spec.value("model.name", "")).startswith("efficientdet") and "train" in tops:
        return "efficientdet_tf2", None
    if "dataset_convert" in tops and not {"model", "train"} & tops:
        return network or "efficientdet_tf2", "dataset_convert"
    if not {"model", "train", "dataset"} & tops:
        raise ImportFault(f"{spec.file}: no spec that import knows (it has {_some(sorted(tops))}); {_trains()}")
    if "train" not in tops and tops & _ACTIONS:
        raise ImportFault(
            f"{spec.file}: is a spec of {', '.join(sorted(tops & _ACTIONS))} alone: in Refit all commands read the "
            "training's; import that, and write what differs here to stages.<stage>.set"
        )
    if network:
        return network, None
    strange = {n: (_faults(spec, n), -_named(spec, n)) for n in _YAML_NETWORKS}
    best = [n for n in _YAML_NETWORKS if strange[n] == min(strange.values())]
    if len(best) > 1:
        raise ImportFault(f"{spec.file}: could be of {' or '.join(best)}; say which: --network NAME")
    return best[0], None


def _faults(spec: Tree, network: str) -> int:
    """How ill a spec fits a network: keys that it has not, values that it does not take."""
    return len(schema.check(network, "train", spec))


def _named(spec: Tree, network: str) -> int:
    """How often a spec's paths and names speak of a network."""
    words = [str(s.value).lower() for _, s in spec.leaves() if isinstance(s.value, str)]
    return sum(network in w for w in words)


def _json(text: str) -> Any:
    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        return json.loads(text)
    except ValueError:
        return None


def _yaml(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None


def _of_json(data: Any) -> str:
    """Why a JSON file is not read, and what to do."""
    if isinstance(data, dict) and isinstance(data.get("frames"), list):
        return f"Drip's metadata.json: {_DATA}"
    if isinstance(data, dict) and isinstance(data.get("classes"), list):
        return f"Supervisely's meta.json: {_DATA}"
    if isinstance(data, dict) and {"objects", "size"} <= data.keys():
        return f"an annotation of Supervisely: {_DATA}"
    if isinstance(data, dict) and {"images", "annotations"} <= data.keys():
        return f"COCO annotations: {_DATA}"
    if isinstance(data, dict) and "cells" in data:
        return "a notebook: name the specs that it trains with, and the mounts file that it writes"
    if isinstance(data, dict) and "dbscan_eps" in data:
        return (
            "the cluster parameters of tlt-infer: their place is an inference spec now, a clustering_config for each "
            "class in bbox_handler_config.classwise_bbox_handler_config; write them there, and import that"
        )
    return "JSON that import does not know; it reads specs, mounts files and the Kubeflow pipeline's input"


def _some(names: Iterable[str]) -> str:
    first = list(dict.fromkeys(names))
    return ", ".join(first[:6]) + (", ..." if len(first) > 6 else "")


def _trains() -> str:
    return f"it trains {', '.join(networks.known())}"
