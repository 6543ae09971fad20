"""train and retrain, for real, on pictures that a tiny detector learns in seconds."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from refit.command import BadData, BadSpec
from refit.cpu import checkpoint, cli, train
from refit.cpu.checkpoint import Model, load_model
from refit.cpu.learner import Diverged
from refit.cpu.network import Architecture, Detector
from refit.cpu.specs import NetworkParams, TrainSpec
from refit.cpu.status import StatusWriter
from tests.cpu.conftest import CLASSES, status_lines
from tests.cpu.tiny import NETWORK, empty_record, tiny_record, tiny_records, train_spec, write


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_records(tmp_path_factory.mktemp("records"))


def run(spec: TrainSpec, out: Path) -> list[dict[str, Any]]:
    status = StatusWriter(out)
    train.run(spec, out, status)
    return status_lines(status.path)


def messages(lines: list[dict[str, Any]]) -> str:
    return "\n".join(line["message"] for line in lines)


class Stop(Exception):
    pass


class StopAfter(StatusWriter):
    """Fails when an epoch has been told of, as a lost node would."""

    def __init__(self, out: Path, epoch: int) -> None:
        super().__init__(out)
        self.epoch = epoch

    def running(self, message: str = "", **fields: object) -> None:
        super().running(message, **fields)
        if fields.get("epoch") == self.epoch:
            raise Stop


def test_it_learns(records: Path, tmp_path: Path) -> None:
    spec = train_spec(records, epochs=40, evaluate_every=15, learning_rate=2e-3)
    lines = run(spec, tmp_path)
    epochs = [line for line in lines if "max_epoch" in line]
    assert [line["epoch"] for line in epochs] == list(range(1, 41))
    assert epochs[-1]["loss"] < epochs[0]["loss"] / 2
    assert {"time_per_epoch", "eta"} <= set(epochs[0])
    assert epochs[-1]["eta"] == "0:00:00"
    scored = {line["epoch"]: line["kpi"]["val_mAP50"] for line in lines if "val_mAP50" in line.get("kpi", {})}
    assert list(scored) == [15, 30, 40]
    assert scored[40] > 0.8
    last = lines[-1]
    assert last["status"] == "SUCCESS"
    model = load_model(tmp_path / "model.pth")
    assert last["kpi"] == {
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "bytes": (tmp_path / "model.pth").stat().st_size,
    }
    assert model.info.classes == CLASSES
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [e.step for e in board.Scalars("train/loss")] == list(range(1, 41))
    assert board.Scalars("val/mAP50")[-1].value == pytest.approx(scored[40], abs=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_same_seed_gives_the_same_bytes(records: Path, tmp_path: Path, precision: str) -> None:
    models = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        run(train_spec(records, precision=precision, seed=seed), tmp_path / name)
        models.append((tmp_path / name / "model.pth").read_bytes())
    assert models[0] == models[1] != models[2]


def test_an_interrupted_training_ends_with_the_same_bytes(records: Path, tmp_path: Path) -> None:
    spec = train_spec(records, epochs=4)
    run(spec, tmp_path / "whole")
    with pytest.raises(Stop):
        train.run(spec, tmp_path / "cut", StopAfter(tmp_path / "cut", 2))
    assert not (tmp_path / "cut" / "model.pth").exists()
    lines = run(spec, tmp_path / "cut")
    assert "Going on after epoch 2." in messages(lines)
    assert [line["epoch"] for line in lines if "max_epoch" in line] == [1, 2, 3, 4]
    assert (tmp_path / "cut" / "model.pth").read_bytes() == (tmp_path / "whole" / "model.pth").read_bytes()


def test_a_checkpoint_of_another_training_is_not_used(records: Path, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        train.run(train_spec(records, epochs=4), tmp_path / "x", StopAfter(tmp_path / "x", 1))
    other = train_spec(records, learning_rate=1e-3)
    assert "of another training; starting anew" in messages(run(other, tmp_path / "x"))
    run(other, tmp_path / "y")
    assert (tmp_path / "x" / "model.pth").read_bytes() == (tmp_path / "y" / "model.pth").read_bytes()


def test_a_damaged_checkpoint_is_not_used(records: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pth").write_bytes(b"half a file")
    lines = run(train_spec(records, epochs=1), tmp_path)
    assert "cannot be used" in messages(lines)
    assert lines[-1]["status"] == "SUCCESS"


def test_a_finished_training_is_gone_on_with_under_other_parameters(records: Path, tmp_path: Path) -> None:
    run(train_spec(records, epochs=2, weight_decay=0.5), tmp_path)
    before = load_model(tmp_path / "model.pth").network.stem.conv.weight
    more = train_spec(records, epochs=4, learning_rate=1e-9, weight_decay=0.0, resume=True)
    first = len(status_lines(tmp_path / "status.json"))
    lines = run(more, tmp_path)[first:]
    assert [line["epoch"] for line in lines if "max_epoch" in line] == [3, 4]
    state = checkpoint.load(tmp_path / "checkpoint.pth")
    assert state is not None
    assert state["step"] == 4 * 4  # the schedule counts the epochs that it had
    assert [g["weight_decay"] for g in state["optimiser"]["param_groups"]] == [0.0, 0.0]
    # With such a rate only the average moves, towards the weights that it follows.
    after = load_model(tmp_path / "model.pth").network.stem.conv.weight
    assert torch.allclose(before, after, atol=0.1)
    with pytest.raises(BadSpec, match="it has 4 epochs, and epochs is 3, which counts them; use more"):
        run(train_spec(records, epochs=3, resume=True), tmp_path)


def test_a_training_that_cannot_be_gone_on_with_does_not_begin_anew(records: Path, tmp_path: Path) -> None:
    with pytest.raises(BadSpec, match=r"cannot be gone on with: there is none; the training was stopped"):
        run(train_spec(records, resume=True), tmp_path / "empty")
    run(train_spec(records, epochs=1), tmp_path / "out")
    wide = {**NETWORK, "width": 1.0}
    said = r"gone on with: it is of another network: stem\.conv\.weight \(8x3x3x3 in the file, 16x3x3x3 here\)"
    with pytest.raises(BadSpec, match=r"checkpoint\.pth: the training cannot be " + said):
        run(train_spec(records, epochs=2, network=wide, resume=True), tmp_path / "out")


def start(spec: TrainSpec, folder: Path) -> subprocess.Popen[str]:
    file = folder / "train.yaml"
    file.write_text(yaml.safe_dump(spec.model_dump()))
    return subprocess.Popen(
        [sys.executable, "-m", "refit.cpu", "train", "-e", str(file), "-r", str(folder / "out")],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_process_goes_on_from_its_last_whole_epoch(records: Path, tmp_path: Path, how: int) -> None:
    spec = train_spec(records, epochs=500)
    process = start(spec, tmp_path)
    saved = tmp_path / "out" / "checkpoint.pth"
    deadline = time.monotonic() + 120
    while not saved.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (143 if how == signal.SIGTERM else -signal.SIGKILL), errors
    state = checkpoint.load(saved)
    assert state is not None
    done = state["epoch"]
    assert 1 <= done < 500
    assert not list((tmp_path / "out").glob("model*"))
    lines = status_lines(tmp_path / "out" / "status.json")
    assert not [line for line in lines if line["status"] in ("SUCCESS", "FAILURE")]
    with pytest.raises(Stop):
        train.run(spec, tmp_path / "out", StopAfter(tmp_path / "out", done + 1))
    later = status_lines(tmp_path / "out" / "status.json")[len(lines) :]
    assert f"Going on after epoch {done}." in messages(later)


def poisoned(path: Path) -> str:
    """A model whose weights are no numbers."""
    params = NetworkParams(**NETWORK)
    network = Detector(Architecture.plan(params, 3))
    with torch.no_grad():
        network.head.conv.weight.fill_(math.nan)
    checkpoint.save_model(path, Model(network, checkpoint.describe(params, CLASSES)))
    return str(path)


def test_a_loss_that_is_no_number_ends_the_training(
    records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = train_spec(records, model=poisoned(tmp_path / "nan.pth"))
    with pytest.raises(Diverged, match=r"the loss is nan at step 1 of 8; lower learning_rate \(it is 0.003\)"):
        run(spec, tmp_path / "out")
    assert not (tmp_path / "out" / "model.pth").exists()
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(spec.model_dump()))
    assert cli.run(["train", "-e", str(tmp_path / "train.yaml"), "-r", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith("error: the loss is nan")
    assert status_lines(tmp_path / "out" / "status.json")[-1]["status"] == "FAILURE"


def test_retrain_keeps_the_checkpoints_architecture(records: Path, tmp_path: Path) -> None:
    params = NetworkParams(**NETWORK)
    architecture = Architecture.plan(params, 3)
    narrow = Architecture.from_json({**architecture.to_json(), "widths": {**architecture.widths, "head.conv": 11}})
    network = Detector(narrow)
    checkpoint.save_model(tmp_path / "pruned.pth", Model(network, checkpoint.describe(params, CLASSES)))
    run(train_spec(records, model=str(tmp_path / "pruned.pth"), epochs=1), tmp_path / "out")
    retrained = load_model(tmp_path / "out" / "model.pth").network
    assert retrained.architecture == narrow
    assert not torch.equal(retrained.head.conv.weight, network.head.conv.weight)


def test_a_model_that_does_not_fit_the_spec_or_the_data(records: Path, tmp_path: Path) -> None:
    params = NetworkParams(**NETWORK)
    network = Detector(Architecture.plan(params, 2))
    checkpoint.save_model(tmp_path / "two.pth", Model(network, checkpoint.describe(params, ("car", "person"))))
    with pytest.raises(BadSpec, match=r"two\.pth knows car, person; the data has car, person, sign"):
        run(train_spec(records, model=str(tmp_path / "two.pth")), tmp_path / "out")
    run(train_spec(records, epochs=1), tmp_path / "three")
    other = {**NETWORK, "input_width": 320}
    with pytest.raises(BadSpec, match=r"network\.input_width is 320, but model .* was made with 160; use 160"):
        run(train_spec(records, model=str(tmp_path / "three" / "model.pth"), network=other), tmp_path / "out")


def test_no_val_split_is_no_fault(tmp_path: Path) -> None:
    alone = write(tmp_path / "records", {"train": [tiny_record(0), empty_record(1)]})
    lines = run(train_spec(alone, epochs=1), tmp_path / "out")
    assert lines[-1]["status"] == "SUCCESS"
    assert not [line for line in lines if "val_mAP50" in line.get("kpi", {})]


@pytest.mark.parametrize("network", [{"stride": 8}, {"backbone": "resnet18"}, {"channels": 1, "resize": "stretch"}])
def test_other_networks_train_on_one_image(tmp_path: Path, network: dict[str, Any]) -> None:
    alone = write(tmp_path / "records", {"train": [tiny_record(0)], "val": [tiny_record(1)]})
    lines = run(train_spec(alone, network={**NETWORK, **network}, epochs=1), tmp_path / "out")
    assert np.isfinite(lines[-3]["loss"])
    assert lines[-1]["status"] == "SUCCESS"


def test_data_without_a_train_split(tmp_path: Path) -> None:
    alone = write(tmp_path / "records", {"val": [tiny_record(0)]})
    with pytest.raises(BadData, match="no split 'train'"):
        run(train_spec(alone), tmp_path / "out")
