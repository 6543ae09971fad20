"""model.json of a TAO network: what the exported model takes and gives, by the spec that it was exported by.

Classes have the user's names, in the order of the model's outputs; `${classes}` and `${classes_sorted}` in the
network's `sidecar` say which order that is (docs/contracts.md, "Model sidecar").
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from refit.tao import networks
from refit.tao.networks import Role
from refit.tao.render import Rendered
from refit.tao.tree import Tree
from refit.toolkits.tao.scope import Work, scope

if TYPE_CHECKING:
    from refit.toolkits.tao.chain import TaoChain
# What a spec says of the input -> the pipeline's name of it.
_INPUT: dict[Role, str] = {"width": "input_width", "height": "input_height", "channels": "channels"}
# What refit.postprocess knows of clustering_config, under TAO's names.
_CLUSTERING = {
    "coverage_threshold", "minimum_bounding_box_height", "dbscan_eps", "dbscan_min_samples",
    "dbscan_confidence_threshold", "nms_iou_threshold", "nms_confidence_threshold",
}  # fmt: skip


def text(chain: TaoChain) -> str:
    work = Work("export", "export", chain.p.stages.trained_by)
    classes = chain.targets(work.trained)
    values = {
        **scope(chain, work),
        "classes": [chain.shown.get(name, name) for name in classes],
        "classes_sorted": [chain.shown.get(name, name) for name in sorted(classes, key=str.lower)],
        "category_ids": list(range(1, len(classes) + 1)),
    }
    specs = chain.rendered(work)
    for rendered in specs:
        values |= _input(rendered)
    filled = networks.fill(chain.facts.sidecar, values)
    filled["input"] |= _prepared(chain, filled["input"])
    for rendered in specs:
        for path in rendered.facts.roles.get("clustering", ()):
            filled["clustering"] |= _clustering(chain, rendered.tree, path, filled["clustering"]["default"])
    return json.dumps({"schema": 1, **filled}, indent=1)


def _input(rendered: Rendered) -> dict[str, Any]:
    """The input's size where the spec, which may be the user's own, says it."""
    found: dict[str, Any] = {}
    for role, name in _INPUT.items():
        for path in rendered.facts.roles.get(role, ()):
            value = rendered.tree.value(path)
            if isinstance(value, int):
                found.setdefault(f"network.{name}", value)
    if "network.channels" in found:
        found["grayscale"] = found["network.channels"] == 1
    return found


def _prepared(chain: TaoChain, entry: dict[str, Any]) -> dict[str, Any]:
    """What `prepare` did to the pictures that the network was trained on, and a client has to do to its own.

    Padded to the input's proportions they fill it, whatever the network does to others.
    """
    resize = chain.p.stages.prepare.resize
    if resize is None or resize.width * entry["height"] != resize.height * entry["width"]:
        return {}
    if not resize.keep_aspect:
        return {"resize": "stretch"}
    if not resize.pad:
        return {}
    return {
        "resize": "letterbox",
        "place": resize.place,
        "fill": resize.fill if isinstance(resize.fill, str) else "black",
    }


def _clustering(chain: TaoChain, tree: Tree, path: str, default: dict[str, Any]) -> dict[str, Any]:
    """How the cells of each class are joined: as in the evaluation that judged the model. 0 is "not given" in TAO."""
    found: dict[str, Any] = {}
    for name in tree.keys(path):
        said = tree.value(f"{path}[{name}].value.clustering_config") or {}
        given = {key: value for key, value in said.items() if value and key in _CLUSTERING}
        if "dbscan_min_samples" in given:
            given["dbscan_min_samples"] = max(int(given["dbscan_min_samples"]), 1)
        if algorithm := said.get("clustering_algorithm"):
            given["algorithm"] = str(algorithm).lower()
        if {**default, **given} != default:
            found[chain.shown.get(name, name)] = {**default, **given}
    return found
