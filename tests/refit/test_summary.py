"""What bind tells Airflow of a run travels in its pod's answer: the longest chain of every network has room there."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml

from refit import bind
from refit import pipeline as pipelines
from refit.cluster import load
from refit.command import BadSpec
from refit.config import Settings
from refit.plan import Bound, make_plan, run_folder
from refit.specs import SpecError, parse_yaml
from refit.tao import networks

RUN = run_folder("asset_triggered__2026-11-20T19:10:00.123456+00:00_QsTp3WbX")
PLAN = Path("/workspace/a-pipeline-whose-name-is-rather-long/runs") / RUN / "plan.json"
TOLD = {
    "images": 1_234_567,
    "changes": dict.fromkeys(("added", "changed", "removed", "unchanged"), 1_234_567),
    "report": f"{RUN}/00-bind/out/report.html",
}
EDGE = dict.fromkeys(("onnx", "tflite", "coral", "saved_model", "frozen_graph", "tfjs", "deepstream"), True)
MORE: list[dict[str, Any]] = [
    {"release": {"canary": {"minutes": 5}, "watch": {"minutes": 5}}},
    {"approval": {"when": "always"}},
    {"gates": {"smoke": True}},
    {"network": {"pretrained": True}},
    {"network": {"key_secret": "TAO_KEY"}},
    {"stages": {"augment": {"copies": 1}}},
    {"stages": {"augment": {"rotate_degrees": 10}}},
    {"stages": {"albumentations": {"copies": 1}}},
    {"stages": {"prune": True}},
    {"stages": {"inference": True}},
    {"stages": {"build_engine": {"ladder": True}}},
    {"edge": EDGE},
]


def read(tree: dict[str, Any]) -> Any:
    return pipelines.from_document(parse_yaml(yaml.safe_dump(tree), "mine.yaml"), "mine")


def longest(network: str) -> dict[str, Any]:
    """The pipeline of a network with everything that it can have."""
    tree: dict[str, Any] = {
        "dataset": {"source": "inbox/x", "classes": ["a", "b"], "format": "kitti"},
        "runtime": "kubernetes",
        "toolkit": "cpu" if network == "cpu" else "tao",
        "network": {} if network == "cpu" else {"name": network},
        "stages": {"train": {"epochs": 3}},
        "resources": {"default": {"gpus": 2, "cpus": 12.5, "memory_gib": 64}},
    }
    for more in MORE:
        wider = {**tree, **{block: {**tree.get(block, {}), **keys} for block, keys in more.items()}}
        try:
            read(wider)
        except SpecError:  # this network has none
            continue
        tree = wider
    return tree


def summary(tree: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """bind's summary where every stage is reused, and the names of the stages."""
    bound = Bound(
        run=RUN,
        workspace=PLAN.parents[2],
        snapshot=Path("/w/s"),
        fingerprint="f" * 64,
        code=lambda package: "",
        environments=dict.fromkeys(("tools", "cpu", "triton", "tensorflow", "tfjs"), ""),
        find=lambda stage, key: Path("/earlier"),
        champion=Path("/champion"),
    )
    plan = make_plan(read(tree), load("kubernetes", Settings.from_env({})), bound)
    return bind.summary(plan, PLAN, TOLD, "kubernetes"), [stage["name"] for stage in plan["stages"]]


@pytest.mark.parametrize("network", ["cpu", *networks.known()])
def test_the_longest_chain_has_room(network: str) -> None:
    tree = longest(network)
    names = summary(tree)[1]
    assert len(names) > 40
    assert {"smoke_data", "canary", "approve", "watch"} <= set(names)
    plain = tree["resources"]["default"]
    chosen = [name for name in names if name.startswith(("train", "evaluate", "gate"))]
    own = {name: {**plain, "gpus": 1, "memory_gib": 8.5 + i} for i, name in enumerate(chosen)}
    assert summary({**tree, "resources": {"default": plain, "stages": own}})[0]["skip"] == names


def test_what_has_no_room_is_refused_with_what_to_do() -> None:
    tree = longest("cpu")
    own = {name: {"gpu_type": f"g{sha256(name.encode()).hexdigest()[:60]}"} for name in summary(tree)[1]}
    with pytest.raises(BadSpec, match=r"has \d,\d+ bytes, and a pod's answer holds 3,072; name fewer stages"):
        summary({**tree, "resources": {"stages": own}})
