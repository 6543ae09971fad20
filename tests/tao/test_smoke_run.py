"""A smoke run of TAO's: its stages as planned, one after the other, under the real runner, with the stand-ins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from refit.tao import networks
from tests.refit.runner_helpers import Bench
from tests.tao.test_checkpoints import Run, shapes

__all__ = ["shapes"]
PIPELINE = """\
dataset: {{source: inbox/cars, classes: [cross, ring, triangle], format: kitti}}
toolkit: tao
network: {{name: {network}, image_extension: png}}
stages:
  prepare: {{convert: png}}
  train: {{epochs: 100, batch_size: 4}}
  build_engine: {{calibration_batch_size: 4}}
  {prune}
resources: {{default: {{gpus: 1}}}}
"""
NETWORKS = ("detectnet_v2", "rtdetr")  # a whole chain is some 20 processes; the others pass as well


@pytest.mark.parametrize("network", NETWORKS)
def test_it_goes_from_the_data_to_what_triton_would_be_asked(
    network: str, bench: Bench, programs: Path, shapes: Path
) -> None:
    prune = "prune: true" if "prune" in networks.load(network).stages else "inference: true"
    run = Run(bench, programs, shapes, PIPELINE.format(network=network, prune=prune))
    assert next(iter(run.stages)) == "smoke_data"
    done = run.until("smoke_prepare_proof")
    assert done.outcome == "succeeded", done.reason
    trained = json.loads(run.text("smoke_train", "result.json"))
    assert (trained["progress"]["max_epoch"], trained["resumed"]) == (1, False)
    evaluated = run.text("smoke_evaluate_quantized", "log.txt")
    assert "Producing predictions for 6 of 6 images" in evaluated, "of all images, though the training's batch is 4"
    package = json.loads(run.text("smoke_package", "out/package.json"))
    assert {"model.onnx", "model.plan", "engine.json", "model.json"} <= package["files"].keys()
    assert json.loads(run.text("smoke_prepare_proof", "out/request.json"))["asks"]
