"""A real Triton's answers against an evaluation that came another way, with mistakes planted in model.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from refit.gates.parity import ParitySpec, parity
from refit.gates.verdict import GateError
from refit.postprocess import ModelInfo
from tests.prove.house import CLASSES, IMAGES, INFO, House


def changed(**keys: Any) -> ModelInfo:
    """model.json with a mistake: `input__scale` is input.scale."""
    entry = {k.removeprefix("input__"): v for k, v in keys.items() if k.startswith("input__")}
    rest = {k: v for k, v in keys.items() if not k.startswith("input__")}
    return replace(INFO, input=replace(INFO.input, **entry), **rest)


def test_a_right_model_passes_and_its_figures_are_told(house: House) -> None:
    verdict = parity(house.ask("good", INFO, onnx=house.folder / "right" / "model.onnx"))
    assert verdict.state == "pass", verdict.reason
    assert "trained (100.0% of the objects)" in verdict.reason
    figures = verdict.figures
    assert (figures["images"], figures["agreement trained"]) == (IMAGES, 1.0)
    assert figures["mAP50 served"] == figures["mAP50 onnx"] == pytest.approx(1, abs=1e-6)
    assert figures["box difference trained"] < 0.1


PLANTED: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "order": ({"input__channel_order": "bgr"}, "red and blue are swapped: input.channel_order (it is bgr)"),
    "bytes": ({"input__scale": 1.0}, "pixels are fed as 0..1: input.scale (it is 1)"),
    "mean": (
        {"input__mean": (0.485, 0.456, 0.406), "input__std": (0.229, 0.224, 0.225)},
        "pixels are fed as 0..1: input.mean (it is [0.485, 0.456, 0.406]), input.std",
    ),
    "letterbox": (
        {"input__resize": "stretch"},
        "pictures keep their proportions (letterbox, corner): input.resize (it is stretch)",
    ),
    "place": (
        {"input__place": "centre"},
        "the picture lies in the corner of the letterbox: input.place (it is centre)",
    ),
    "shift": (
        {"classes": (*CLASSES[1:], CLASSES[0])},
        "class numbers are off by -1: 'leaf' is 'ruby', 'sky' is 'leaf', 'ruby' is 'sky': classes",
    ),
    "exchange": ({"classes": ("leaf", "ruby", "sky")}, "classes are exchanged: 'leaf' is 'ruby', 'ruby' is 'leaf'"),
    "offset": ({"offset": 8.0}, "cells' centres lie at 0.5 pixels: offset (it is 8)"),
    "unit": ({"bbox_norm": 16.0}, "distances are in units of 35 pixels: bbox_norm (it is 16)"),
    "stride": ({"stride": 8}, "a cell has 16 pixels: stride (it is 8)"),
    "names": ({"outputs": {"coverage": "box", "bbox": "cov"}}, "the outputs coverage and bbox are exchanged"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_mistake_is_called_by_its_name(house: House, name: str) -> None:
    keys, told = PLANTED[name]
    verdict = parity(house.ask(name, changed(**keys)))
    assert verdict.state == "fail"
    assert told in verdict.reason
    assert "of model.json is wrong" in verdict.reason


def test_what_no_single_mistake_explains_is_not_blamed_on_one(house: House) -> None:
    spec = house.ask("riddle", INFO)
    found = json.loads(spec.references["trained"].read_text())
    folder = house.folder / "riddle" / "evaluated"
    folder.mkdir()
    for row in found:  # another model altogether
        row["bbox"][0] += 61 + 17 * (row["image_id"] % 3)
    (folder / "detections.json").write_text(json.dumps(found))
    (folder / "ground_truth.json").write_text(spec.references["trained"].with_name("ground_truth.json").read_text())
    verdict = parity(spec.model_copy(update={"references": {"trained": folder / "detections.json"}}))
    assert verdict.state == "fail"
    assert "no single mistake" in verdict.reason


def test_policy_warn_lets_the_run_go_on(house: House) -> None:
    spec = house.ask("warned", changed(input__channel_order="bgr"))
    assert parity(spec.model_copy(update={"policy": "warn"})).state == "warn"


def test_a_model_that_triton_cannot_load_fails_with_tritons_reason(house: House) -> None:
    verdict = parity(house.ask("bad", INFO, model="broken"))
    assert verdict.state == "fail"
    assert "cannot load the model" in verdict.reason
    assert "onnxruntime cannot open" in verdict.reason


# --- where TAO's evaluation gives a figure only -----------------------------------------------------------------------


def by_figure(house: House, name: str, info: ModelInfo, figure: float) -> ParitySpec:
    spec = house.ask(name, info)
    path = house.folder / name / "result.json"
    path.write_text(json.dumps({"metrics": {"mAP50": figure}}))
    return spec.model_copy(update={"references": {}, "figures": {"trained": path}})


def test_a_figure_that_the_pictures_can_bear_passes(house: House) -> None:
    assert parity(by_figure(house, "figure", INFO, 1.0)).state == "pass"


def test_a_figure_that_they_cannot_fails_and_the_mistake_is_named(house: House) -> None:
    verdict = parity(by_figure(house, "figure-bad", changed(input__channel_order="bgr"), 0.9))
    assert verdict.state == "fail"
    assert "the trained model was evaluated (mAP50 0.900, here " in verdict.reason
    assert "red and blue are swapped: look at input.channel_order" in verdict.reason


def test_answers_that_are_not_there_are_no_verdict(house: House, tmp_path: Path) -> None:
    spec = house.ask("lost", INFO)
    with pytest.raises(GateError, match=r"cannot be read as answers of Triton .* run prove again"):
        parity(spec.model_copy(update={"answers": {"": tmp_path}}))


def test_pictures_without_any_object_are_no_verdict(house: House) -> None:
    spec = house.ask("empty", INFO)
    path = spec.proof / "truth.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": []}))
    with pytest.raises(GateError, match="no object in the pictures"):
        parity(spec)
