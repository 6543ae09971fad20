"""Every TAO network from arriving data on, its containers stood in for: each stage a pod of the image that it names.

A server on the CPU loads no engine, so that the networks whose ONNX file anything can run are released as that, and
the others end with an engine that is described and packaged (the release of engines: tests/triton/test_plans.py).
"""

from __future__ import annotations

import os
import time
import urllib.parse
from typing import Any

import pytest

from refit.tao import networks
from tests import cluster
from tests.cluster import wait
from tests.e2e.conftest import GPUS, House
from tests.e2e.pods import Watch, left

REASON = cluster.reason_to_skip()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))

RUN_SECONDS = 1500
PIPELINE = """
schedule: null
dataset:
  source: tao
  format: kitti
  classes: [cross, ring, triangle]
  arrival: {{marker: _SUCCESS, poll_seconds: 1}}
  split:
    lists: {{train: train.txt, val: val.txt}}
toolkit: tao
runtime: kubernetes
network:
  name: {network}
  input_width: 256
  input_height: 256
  images: {{{images}}}
stages:
  train: {{epochs: 2, batch_size: 4}}
{stages}
# Stand-ins' figures are made up, and a server on the CPU loads no engine.
gates: {{quality: {{max_drop_pruned: 1, max_drop_quantized: 1}}, parity: false, smoke: {smoke}}}
release: {release}
resources:
  default: {{gpus: 1, cpus: 0.25, memory_gib: 1, timeout_hours: 1}}
"""
# One of each family; REFIT_E2E_TAO=all: every network, some eight minutes more.
NETWORKS = (
    networks.known() if os.environ.get("REFIT_E2E_TAO") == "all" else ("detectnet_v2", "efficientdet_tf2", "rtdetr")
)
SMOKED = "efficientdet_tf2"  # with a smoke run before it: the others would wait for its pods
RELEASED = [name for name in NETWORKS if not networks.load(name).plugins]


def pipeline(network: str, image: str) -> str:
    facts = networks.load(network)
    stages = ["  prune: true"] if "prune" in facts.stages else []
    if network in RELEASED:
        stages.append("  build_engine: false")
    images = ", ".join(f"{kind}: '{image}'" for kind in ("tf1", "tf2", "pyt", "deploy", "data_services"))
    release = "{timeout_seconds: 120}" if network in RELEASED else "false"
    smoke = str(network == SMOKED).lower()
    return PIPELINE.format(network=network, images=images, stages="\n".join(stages), release=release, smoke=smoke)


def why(house: House, run: dict[str, Any], states: dict[str, str | None]) -> str:
    """The failed tasks of a run, and the end of what each said."""
    said = []
    for task in (name for name, state in states.items() if state == "failed"):
        path = f"/dags/{run['dag']}/dagRuns/{urllib.parse.quote(run['run'])}/taskInstances/{task}/logs/1"
        said.append(f"{task}: {str(house.airflow.client.get(path))[-3000:]}")
    return "\n".join(said) or str(states)


@pytest.fixture(scope="module")
def runs(house: House) -> dict[str, dict[str, Any]]:
    """Network -> its run; all of them at once, on two GPUs."""
    image = cluster.build("standin")
    house.deliver("tao", seed=3)
    names = {network: f"tao-{network.replace('_', '-')}" for network in NETWORKS}
    for network, name in names.items():
        (house.pipelines / f"{name}.yaml").write_text(pipeline(network, image))
    found: dict[str, dict[str, Any]] = {}
    with Watch(house.namespace) as watch:
        for network, name in names.items():
            house.airflow.runs(f"retrain_{name}")
            found[network] = {"dag": f"retrain_{name}", "name": name, "run": house.airflow.trigger(f"retrain_{name}")}
        until = time.monotonic() + RUN_SECONDS
        for network in names:
            run = found[network]
            run["state"] = house.airflow.finished(run["dag"], run["run"], max(1, until - time.monotonic()))
    for run in found.values():
        run["pods"] = watch.of(run["name"])
    found["all"] = {"most_gpus": watch.most_gpus}
    return found


@pytest.mark.parametrize("network", NETWORKS)
def test_the_chain_runs_as_pods(house: House, runs: dict[str, dict[str, Any]], network: str) -> None:
    run = runs[network]
    states = house.airflow.states(run["dag"], run["run"])
    assert run["state"] == "success", why(house, run, states)
    ran = {task.rpartition(".")[2] for task, state in states.items() if state == "success"} - {"done", "arrival"}
    assert ran == set(run["pods"]) - {"reconcile"}
    assert {len(pods) for pods in run["pods"].values()} == {1}, "no stage ran twice"
    last = "release" if network in RELEASED else "package"
    smoked = ("smoke_train", "smoke_build_engine", "smoke_package") if network == SMOKED else ()
    assert {last, *smoked} <= ran
    for stage in ("train", "evaluate_trained", "export", *smoked[:2]):
        (pod,) = run["pods"][stage]
        main = pod["spec"]["containers"][0]
        assert "refit-standin" in main["image"]
        assert main["resources"]["limits"]["nvidia.com/gpu"] == "1"


@pytest.mark.parametrize("network", RELEASED)
def test_triton_answers_with_the_network(house: House, runs: dict[str, dict[str, Any]], network: str) -> None:
    released = house.airflow.answer(runs[network]["dag"], runs[network]["run"], "release")["summary"]
    ((version, _),) = house.ask(runs[network]["name"], house.release.service)
    assert version == released["version"]


def test_the_gpus_were_never_booked_twice(house: House, runs: dict[str, dict[str, Any]]) -> None:
    assert runs["all"]["most_gpus"] <= GPUS
    wait("the end of all stage pods", lambda: not left(house.namespace), 180)
