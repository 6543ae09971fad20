"""Which checkpoint is a training's result, and where one that was killed goes on: as planned, under the real runner,
with the stand-ins for TAO's commands."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from refit import pipeline as pipelines
from refit import plan as plans
from refit import runner
from refit.cluster import load
from refit.config import Settings
from refit.data import synthetic
from refit.specs import parse_yaml
from refit.tao import networks
from tests.refit.runner_helpers import REPOSITORY, Bench, Done
from tests.tao.test_examples import snapshot_of

PIPELINE = """\
dataset: {{source: inbox/cars, classes: [cross, ring, triangle], format: kitti}}
toolkit: tao
network: {{name: {network}, image_extension: png}}
stages:
  prepare: {{convert: png}}
  train: {{epochs: 4, batch_size: 4, checkpoint_every: 1, evaluate_every: 1{more}}}
  {after}
gates: {{smoke: false}}
resources: {{default: {{gpus: 1}}}}
"""
TOLD = ("faster_rcnn", "ssd", "yolo_v4")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes") / "set"
    synthetic.make(folder, train=12, val=6, shifted=0, seed=3)
    return folder


class Run:
    """A run of a pipeline, stage by stage."""

    def __init__(self, bench: Bench, programs: Path, shapes: Path, text: str) -> None:
        self.bench, self.programs = bench, programs
        workspace = bench.root / "workspace"
        made = pipelines.from_document(parse_yaml(text, "cars.yaml"), "cars")
        snapshot = snapshot_of(shapes, made.dataset.classes, workspace)
        bound = plans.Bound(
            run="r1",
            workspace=workspace,
            snapshot=snapshot.path,
            fingerprint=snapshot.fingerprint,
            code=lambda package: package,
            environments={"tools": "tools", "cpu": "cpu", "triton": "triton"},
            find=lambda stage, key: None,
            dataset=json.loads((snapshot.path / "dataset.json").read_text()),
        )
        plan = plans.make_plan(made, load("kubernetes", Settings.from_env({})), bound)
        self.stages: dict[str, Any] = {stage["name"]: stage for stage in plan["stages"]}

    def stage(self, name: str, **env: str) -> Done:
        request = self.stages[name]
        self.bench.folder = Path(request["paths"]["stage"])
        own = {"PATH": f"{self.programs}:{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY)}
        return self.bench.run(request, env={**own, **env})

    def until(self, last: str, **env: str) -> Done:
        """Run the stages to `last`; those before it must be good."""
        for name in self.stages:
            done = self.stage(name, **env)
            if name == last:
                return done
            assert done.outcome == "succeeded", f"{name}: {done.reason}"
        raise AssertionError(f"there is no stage {last}")

    def text(self, stage: str, file: str) -> str:
        return (Path(self.stages[stage]["paths"]["stage"]) / file).read_text()


def planned(network: str, more: str = "", after: str = "") -> str:
    after = "evaluate: {batch_size: 4}" if network == "efficientdet_tf2" else after
    text = PIPELINE.format(network=network, more=more, after=after)
    return text.replace(", evaluate_every: 1", "") if network == "yolo_v4" else text  # it evaluates where it saves


def epoch_in(name: str) -> int:
    return int(re.findall(r"[_-](\d+)(?=\.|_step)", Path(name).name.replace("_step_", ".step"))[-1])


@pytest.mark.parametrize("network", networks.known())
def test_the_best_checkpoint_is_the_result_or_the_last_where_that_is_wanted(
    network: str, bench: Bench, programs: Path, shapes: Path
) -> None:
    """The stand-in gets worse from its second epoch on."""
    run = Run(bench, programs, shapes, planned(network))
    done = run.until("train", REFIT_STANDIN_PEAK="2")
    assert done.outcome == "succeeded", done.reason
    model = done.result["outputs"]["model"]
    first = 0 if networks.load(network).family == "pyt" else 1
    assert epoch_in(model["path"]) == 1 + first
    assert re.fullmatch(r"epoch 2, whose mAP50 of 0\.\d{4} is the best of the checkpoints", model["picked"])
    assert f"{model['path']}: {model['picked']}" in done.output

    wanted = Run(bench, programs, shapes, planned(network, ", checkpoint: last")).stages["train"]["outputs"]
    out = Path(run.stages["train"]["paths"]["stage"]) / "out"
    last = Path(runner.find_output(str(out), next(o for o in wanted if o["name"] == "model"), {}))
    if network == "detectnet_v2":
        assert last == out / "weights" / "model.hdf5"
    else:
        assert epoch_in(last.name) == 3 + first


@pytest.mark.parametrize("network", TOLD)
@pytest.mark.parametrize("stage", ["train", "retrain"])
def test_a_killed_training_goes_on_from_its_checkpoint(
    network: str, stage: str, bench: Bench, programs: Path, shapes: Path
) -> None:
    """It is told the newest whole checkpoint; its own beginning (a pruned model) is not named again."""
    run = Run(bench, programs, shapes, planned(network, after="prune: {max_kept: 1}"))
    names = list(run.stages)
    for name in names[: names.index(stage)]:
        assert run.stage(name).outcome == "succeeded"
    assert run.stage(stage, REFIT_STANDIN_KILLED_AFTER="3").outcome == "toolkit_error"
    out = Path(run.stages[stage]["paths"]["stage"]) / "out"
    checkpoint = str(next(p for p in sorted(out.rglob("*epoch_*3.hdf5"))).relative_to(out))
    (out / checkpoint).write_bytes((out / checkpoint).read_bytes()[:-100])  # the third was being written
    done = run.stage(stage, REFIT_STANDIN_KILLED_AFTER="3", REFIT_STANDIN_PEAK="1")
    assert done.outcome == "toolkit_error"  # once more, after the third
    done = run.stage(stage, REFIT_STANDIN_PEAK="1")
    assert (done.outcome, done.result["resumed"]) == ("succeeded", True), done.reason
    assert f"refit: going on from {checkpoint}" in done.output
    assert done.result["progress"] == {
        "resumed_after": 3, "repeated_epochs": 0, "epoch": 4, "max_epoch": 4, "loss": pytest.approx(0.725),
    }  # fmt: skip
    told = [json.loads(line).get("epoch") for line in run.text(stage, "out/status.json").splitlines()]
    assert [epoch for epoch in told if epoch is not None] == [1, 2, 3, 3, 4]
    spec, log = run.text(stage, "specs/train.txt"), run.text(stage, "log.txt")
    if network == "ssd":
        assert "-m '{checkpoint}' --initial_epoch '{next_epoch}'" in log
    else:
        key = {"faster_rcnn": "resume_from_model", "yolo_v4": "resume_model_path"}[network]
        assert f'{key}: "{out / checkpoint}"' in spec
    assert not re.search(r"pruned_model(_path)?:", spec)
    # The figures of the attempts before count: the second epoch was the best.
    assert epoch_in(done.result["outputs"]["model"]["path"]) == 2


def test_a_training_without_a_checkpoint_begins_anew(bench: Bench, programs: Path, shapes: Path) -> None:
    run = Run(
        bench,
        programs,
        shapes,
        planned("ssd", ", checkpoint: last").replace("checkpoint_every: 1", "checkpoint_every: 4"),
    )
    assert run.until("train", REFIT_STANDIN_KILLED_AFTER="2").outcome == "toolkit_error"
    done = run.stage("train")
    assert (done.outcome, done.result["resumed"]) == ("succeeded", False)


def test_a_training_that_tells_no_figures_gives_its_newest(bench: Bench, programs: Path, shapes: Path) -> None:
    run = Run(bench, programs, shapes, planned("ssd"))
    run.until("dataset_convert_val")
    run.stages["train"]["metrics"] = {}
    done = run.stage("train")
    model = done.result["outputs"]["model"]
    assert epoch_in(model["path"]) == 4
    assert model["picked"] == "the newest checkpoint: the training gave no mAP50 by which one would be better"
