"""The version that serves and its challenger, asked by one real Triton, scored and judged as the champion gate does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from refit.command import StageError
from refit.gates.answered import AnsweredSpec, run
from refit.gates.quality import QualitySpec, quality
from refit.gates.verdict import Verdict
from refit.postprocess import ModelInfo
from refit.status import StatusWriter
from tests.prove.house import INFO, House

# The detector wants a letterbox, and red before blue.
MISTAKEN = replace(INFO, input=replace(INFO.input, resize="stretch", channel_order="bgr"))


def compared(house: House, name: str, mine: ModelInfo, theirs: ModelInfo, **more: Any) -> tuple[Verdict, Path]:
    """The verdict on two models that are one detector with different descriptions, and where the figures lie."""
    champion = house.model(f"{name}-champion", theirs)
    asked = house.ask(name, mine, champion=champion, images=None, doubted=0, **more)
    out = house.folder / name / "answered"
    out.mkdir()
    run(AnsweredSpec(asked=asked.proof, answers=asked.answers[""], min_width=4), out, StatusWriter(out))
    spec = {"model": "quantized", "against": "of the champion", "max_drop": 0.01, "only_shown": True}
    files = {"candidate": str(out / "challenger" / "results.json"), "baseline": str(out / "results.json")}
    return quality(QualitySpec.model_validate({**spec, **files})), out


def test_two_models_that_answer_the_same_are_equal(house: House) -> None:
    verdict, out = compared(house, "same", INFO, INFO)
    assert (verdict.state, verdict.compared) == ("pass", "equal"), verdict.reason
    assert verdict.figures["baseline"] == pytest.approx(1, abs=1e-6)
    for folder in (out, out / "challenger"):
        first = json.loads((folder / "detections.json").read_text())[0]
        assert first.keys() == {"image_id", "file_name", "category_id", "score", "bbox"}


def test_each_is_fed_and_read_by_its_own_description(house: House) -> None:
    worse, _ = compared(house, "worse", MISTAKEN, INFO)
    assert (worse.state, worse.compared) == ("fail", "worse")
    assert worse.figures["baseline"] == pytest.approx(1, abs=1e-6), "the champion was fed as the challenger"
    better, _ = compared(house, "better", INFO, MISTAKEN)
    assert (better.state, better.compared) == ("pass", "better"), better.reason


def test_classes_are_compared_by_name_whatever_their_numbers_are(house: House) -> None:
    swapped = replace(INFO, classes=(INFO.classes[1], INFO.classes[0], INFO.classes[2]))
    verdict, out = compared(house, "renamed", INFO, swapped)
    results = json.loads((out / "results.json").read_text())
    assert results["per_class"]["sky"]["AP50"] == pytest.approx(1, abs=1e-6)
    assert results["per_class"]["ruby"]["AP50"] < 0.1, "it says ruby where it sees leaf"
    assert verdict.compared == "better"


def test_a_version_that_this_triton_cannot_load_is_told_and_not_held_against_the_new_one(house: House) -> None:
    verdict, out = compared(house, "gone", INFO, INFO, model="known-fp32")  # known-fp32-champion is not served
    assert verdict.state == "warn"
    assert "not compared with the model of the champion: Triton" in verdict.reason
    assert "cannot load it" in verdict.reason
    assert "metrics" not in json.loads((out / "results.json").read_text())


def test_a_challenger_that_cannot_be_loaded_ends_the_stage(house: House) -> None:
    with pytest.raises(StageError, match=r"the challenger: Triton \S+ cannot load it: .*onnxruntime cannot open"):
        compared(house, "lame", INFO, INFO, model="broken")
