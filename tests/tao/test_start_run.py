"""start_from with TAO through bind, plan and runner: the stand-ins train, are stopped, and go on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from refit import runner
from refit.files import sha256
from refit.publish import gather
from refit.tao import networks
from tests.refit.bind_helpers import Place
from tests.refit.conftest import place
from tests.refit.runner_helpers import REPOSITORY, Bench, Done
from tests.refit.test_foreign import Harmful, keras
from tests.refit.test_start import torch_file

__all__ = ["place"]
PIPELINE = """\
dataset: {{source: inbox/mine, classes: [cross, ring, triangle], format: kitti, split: {{val: 0.3}}}}
toolkit: tao
network: {{name: {network}, image_extension: png}}
stages:
  prepare: {{convert: png}}
  train: {{epochs: 4, batch_size: 4, checkpoint_every: 1, evaluate_every: 1}}
  {evaluate}
  build_engine: {{calibration_batches: 2, calibration_batch_size: 4}}
gates: {{smoke: false}}
resources: {{default: {{gpus: 1}}}}
"""


class Runs:
    """Runs of one TAO pipeline, each bound and then run until its training has ended."""

    def __init__(self, place: Place, bench: Bench, programs: Path, network: str) -> None:
        self._place, self._bench = place, bench
        evaluate = "evaluate: {batch_size: 4}" if network == "ssd" else "inference: false"
        self._text = PIPELINE.format(network=network, evaluate=evaluate)
        self._env = {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY)}

    def train(self, run: str, conf: dict[str, Any], **env: str) -> Done:
        assert self._place.bind(run, text=self._text, conf=conf) == 0, self._place.error
        plan = self._place.plan
        for request in plan["stages"]:
            if request["name"] in plan["reused"]:
                continue
            self._bench.folder = Path(request["paths"]["stage"])
            done = self._bench.run(request, env={**self._env, **env})
            if request["name"] == "train":
                return done
            assert done.outcome == "succeeded", f"{request['name']}: {done.reason}"
        raise AssertionError("nothing is trained")

    def path(self, run: str) -> Path:
        (folder,) = (self._place.workspace / "runs" / run).glob("*-train")
        return folder / "out"

    def told(self, run: str) -> str:
        """The command line and the spec that a training was started with."""
        stage = self.path(run).parent
        return "".join(p.read_text() for p in [stage / "log.txt", *(stage / "specs").iterdir()])


def own_file(network: str, folder: Path) -> Path:
    """A model of somebody's, in the form that the network begins with."""
    if networks.load(network).begins == [".pth"]:
        return torch_file(folder / "mine.pth")
    return keras(folder / "mine.hdf5", [{"class_name": "Conv2D", "config": {"name": "conv1"}}])


# How each is told of its checkpoint differs: one looks for it, one by its command line, one by a link.
@pytest.mark.parametrize("network", ["detectnet_v2", "ssd", "rtdetr"])
def test_a_training_begins_with_what_another_has_left(network: str, place: Place, bench: Bench, programs: Path) -> None:
    runs = Runs(place, bench, programs, network)
    done = runs.train("r1", {"train_epochs": 2})
    assert (done.outcome, done.result["resumed"]) == ("succeeded", False), done.reason
    old = runner.sha256_folder(str(runs.path("r1")))

    done = runs.train("r2", {"train_epochs": 4, "train_learning_rate": 0.001, "train_start_from": "resume:r1"})
    assert (done.outcome, done.result["resumed"]) == ("succeeded", True), done.reason
    assert (done.result["progress"]["repeated_epochs"], done.result["progress"]["max_epoch"]) == (0, 4)
    assert runner.sha256_folder(str(runs.path("r1"))) == old
    (curve,) = gather.report(place.workspace / "runs" / "r2")[0]["curves"]
    begins = 0 if network == "detectnet_v2" else 1  # it tells a loss as an epoch begins
    assert [epoch for epoch, _ in curve["loss"]] == [begins + i for i in range(4)]
    assert [value for _, value in curve["loss"]] == sorted((value for _, value in curve["loss"]), reverse=True)
    assert [epoch for epoch, _ in curve["mAP"]] == [1, 2, 3, 4]
    assert all(0 < value < 1 for _, value in curve["mAP"])

    kept = place.workspace / "starts"
    trained = done.result["outputs"]["model"]
    done = runs.train("r3", {"train_epochs": 1, "train_start_from": "run:r2"})
    assert (done.outcome, done.result["resumed"]) == ("succeeded", False), done.reason
    (weights,) = kept.glob("*/*")
    assert weights.parent.name == trained["sha256"]
    assert str(weights.relative_to(place.workspace)) in runs.told("r3")

    given = own_file(network, place.root / "data")
    done = runs.train("r4", {"train_epochs": 1, "train_start_from": given.name})
    assert (done.outcome, done.result["resumed"]) == ("succeeded", False), done.reason
    taken = kept / sha256(given) / f"model{given.suffix}"
    assert taken.read_bytes() == given.read_bytes()
    assert str(taken.relative_to(place.workspace)) in runs.told("r4")


def test_a_teacher_that_holds_code_is_refused(place: Place) -> None:
    """TAO's loader would run it."""
    text = PIPELINE.format(network="rtdetr", evaluate="inference: false").replace("  train:", "  distill:")
    text = text.replace("checkpoint_every: 1", "checkpoint_every: 1, teacher: teacher.pth")
    place.workspace.mkdir(parents=True)
    torch_file(place.workspace / "teacher.pth")
    assert place.bind("r1", text=text) == 0, place.error
    torch_file(place.workspace / "teacher.pth", Harmful())
    assert place.bind("r2", text=text) == 3
    assert "teacher.pth: archive/data.pkl: names posix.system" in place.error
