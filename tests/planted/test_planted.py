"""Faults planted in real runs of a small pipeline: each is caught where it should be, with its cause in the message.

The table of all planted faults, those of other tests included: docs/planted.md.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from refit.runtime.local import REPOSITORY, interpreter
from tests.planted import colours
from tests.planted.bed import PIPELINE, Bed, Good, changed
from tests.planted.faults import CLEAN, FAULTS, page, tables
from tests.planted.fixtures import needs_all


def relabel(root: Path, lists: str, change: Any) -> None:
    """Change every label line of a part's images."""
    for name in (root / lists).read_text().splitlines():
        file = root / "labels" / f"{Path(name).stem}.txt"
        lines = [line.split() for line in file.read_text().splitlines()]
        file.write_text("".join(" ".join(map(str, change(words))) + "\n" for words in lines))


def shifted(words: list[str]) -> list[Any]:
    """A box half its width to the right, as far as the picture goes."""
    left, right = float(words[4]), float(words[6])
    by = min((right - left) * 0.6, colours.WIDTH - right)
    by = by if by > 4 else -(right - left) * 0.6
    left, right = max(0, left + by), max(6, right + by)
    return [*words[:4], left, words[5], right, *words[7:]]


def exchanged(words: list[str]) -> list[Any]:
    return [{"red": "blue", "blue": "red"}.get(words[0], words[0]), *words[1:]]


@needs_all
@pytest.mark.parametrize("plant", [shifted, exchanged])
def test_labels_of_the_training_part_that_are_wrong(tmp_path: Path, plant: Any) -> None:
    bed = Bed(tmp_path)
    root = bed.data(**colours.FEW)
    relabel(root, "train.txt", plant)
    told = bed.run(PIPELINE, "gate_trained")
    assert told.code == 1
    assert "error: gate_trained: rejected: mAP50 of the trained model is" in told.text
    assert "below the floor of 0.600" in told.text


def test_a_picture_that_trains_and_is_evaluated(tmp_path: Path) -> None:
    bed = Bed(tmp_path)
    root = bed.data(train=8, val=6)
    for folder, ending in (("images", ".jpg"), ("labels", ".txt")):
        shutil.copyfile(root / folder / f"train_003{ending}", root / folder / f"val_002{ending}")
    strict = changed(PIPELINE, {"dataset.severity": {"duplicate_across_splits": "error"}})
    told = bed.run(strict, "dataset_convert")
    assert told.code == 2
    assert (
        "images/val_002.jpg: the same picture as images/train_003.jpg: one is in val, the other in train" in told.text
    )
    told = bed.run(PIPELINE, "dataset_convert")
    assert told.code == 0
    assert "warning: images/val_002.jpg: the same picture as images/train_003.jpg" in told.text


@needs_all
def test_boxes_that_count_are_others_than_before(good: Good) -> None:
    assert good.again("evaluate_retrained", edit=replaced("min_box_px: 0.0", "min_box_px: 30.0")).succeeded
    result = good.again("gate_retrained", {"evaluate_retrained": good.last})
    assert not result.succeeded
    assert "were evaluated with different thresholds" in result.reason
    assert "cannot be compared" in result.reason


def replaced(old: str, new: str) -> Any:
    """An edit of a stage's one spec file."""

    def edit(files: Path) -> None:
        (file,) = files.iterdir()
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))

    return edit


def in_cpu(script: str, *arguments: Path) -> None:
    argv = [interpreter("cpu"), "-c", script, *arguments]
    done = subprocess.run(argv, env={"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def nan_weights(out: Path) -> None:
    in_cpu(
        """
import sys, torch
model = torch.load(sys.argv[1], weights_only=True)
def spoil(value):
    if isinstance(value, dict):
        return {k: spoil(v) for k, v in value.items()}
    real = isinstance(value, torch.Tensor) and value.is_floating_point()
    return torch.full_like(value, float("nan")) if real else value
torch.save(spoil(model), sys.argv[1])
""",
        out / "model.pth",
    )


@needs_all
def test_weights_that_are_no_numbers(good: Good) -> None:
    forged = good.forged("train", nan_weights)
    result = good.again("evaluate_trained", {"train": forged})
    if result.succeeded:
        result = good.again("gate_trained", {"evaluate_trained": good.last})
    assert not result.succeeded
    assert "NaN" in result.reason or "no finite" in result.reason or "below the floor" in result.reason


@needs_all
def test_a_resume_that_trains_nothing(good: Good) -> None:
    """A checkpoint of this very training says that all its epochs are done, with the weights of the beginning."""
    found = good.folder / "found"
    found.mkdir()
    in_cpu(
        """
import sys, torch, yaml
from refit.cpu.network import Architecture, Detector
from refit.cpu.specs import TrainSpec
stage, found = sys.argv[1:]
spec = TrainSpec(**yaml.safe_load(open(stage + "/specs/train.yaml")))
torch.manual_seed(spec.seed)
state = torch.load(stage + "/out/checkpoint.pth", weights_only=True)
state["network"] = state["average"] = Detector(Architecture.plan(spec.network, 3)).state_dict()
torch.save(state, found + "/checkpoint.pth")
""",
        good_folder(good, "train"),
        found,
    )
    result = good.again("train", found=found)
    assert (result.outcome, result.resumed) == ("rejected", True)
    assert result.reason.startswith("nothing was trained: no weight differs from those with which it began, after 8")


@needs_all
def test_an_export_of_the_model_before_pruning(good: Good) -> None:
    """Its figures are as good; it is not the model that was retrained."""
    assert good.again("export", {"retrain": good_folder(good, "train")}).succeeded
    exported = good.last
    result = good.again("prepare_proof", {"quantize": exported, "export": exported})
    proof = good.last
    if result.succeeded:
        result = good.again("prove", {"prepare_proof": proof})
        asked = good.last
        if result.succeeded:
            result = good.again("gate_parity", {"prepare_proof": proof, "prove": asked})
    assert not result.succeeded, "nothing noticed"


def good_folder(good: Good, stage: str) -> Path:
    return Path(good.request(stage)["paths"]["stage"])


@needs_all
def test_a_file_that_was_cut_on_the_way(good: Good) -> None:
    """Not hashed again: what another process or a full disk does to a result."""
    folder = good.folder / "cut"
    shutil.copytree(good_folder(good, "export"), folder)
    model = folder / "out" / "model.onnx"
    model.write_bytes(model.read_bytes()[:-100])
    result = good.again("quantize", {"export": folder})
    assert not result.succeeded
    assert "model.onnx" in result.reason


@needs_all
def test_a_class_list_in_another_order_in_what_is_released(good: Good) -> None:
    def turn(out: Path) -> None:
        about = json.loads((out / "model.json").read_text())
        about["classes"] = [*about["classes"][1:], about["classes"][0]]
        (out / "model.json").write_text(json.dumps(about))

    forged = good.forged("quantize", turn)
    assert good.again("prepare_proof", {"quantize": forged}).succeeded
    proof = good.last
    assert good.again("prove", {"prepare_proof": proof}).succeeded
    result = good.again("gate_parity", {"prepare_proof": proof, "prove": good.last})
    assert not result.succeeded
    assert "class numbers are off by" in result.reason


def test_the_tables_are_of_tests_that_there_are() -> None:
    lost = [row.test for row in (*FAULTS, *CLEAN) if not row.exists()]
    assert lost == []
    assert len(FAULTS) >= 25
    assert len(CLEAN) >= 10


def test_the_page_has_the_tables() -> None:
    text = page().read_text(encoding="utf-8")
    for name, lines in tables().items():
        assert f"<!-- made: {name} -->\n" + "\n".join(lines) in text, "run: PYTHONPATH=. python -m tests.planted.faults"
