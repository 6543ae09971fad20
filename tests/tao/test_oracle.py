"""The oracle itself: it must take what NVIDIA ships and bite on what is wrong, or it judges nothing."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from tests.tao.oracle import KINDS, Accepted, Question, Refused, Unreachable, Verdict, judge, missing
from tests.tao.oracle.samples import ask, misspelt_flag, misspelt_key, questions

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

TF1 = "detectnet_v2"


CASES = [] if missing() else list(questions())


def _name(value: Any) -> str:
    return f"{'deploy-' if value.deploy else ''}{value.network}-{value.stage}"


@functools.cache
def _asked(number: int) -> tuple[Verdict, Question]:
    verdict, _, question = ask(CASES[number])
    return verdict, question


def _valid(question: Question) -> Question:
    """The sample as NVIDIA's code accepts it; skips where the sources have no such stage."""
    verdict, mended = _asked(CASES.index(question))
    if isinstance(verdict, Unreachable) and " has no " in verdict.reason:
        pytest.skip(verdict.reason)
    assert verdict == Accepted()
    return mended


@pytest.mark.parametrize("question", CASES, ids=_name)
def test_nvidias_own_sample_is_accepted_and_the_same_with_a_slip_is_refused(question: Question) -> None:
    valid = _valid(question)
    refused = judge(*misspelt_flag(valid))
    assert isinstance(refused, Refused)
    assert "no_such" in refused.reason
    if valid.specs:
        refused = judge(*misspelt_key(valid))
        assert isinstance(refused, Refused)


def _sample(network: str, stage: str) -> Question:
    return _valid(next(q for q in CASES if (q.network, q.stage, q.deploy) == (network, stage, False)))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("/out dir", "unrecognized arguments: dir"),
        ("/out/$HOME", "passes results_dir"),
        ("/out'", "No closing quotation"),
    ],
)
def test_what_the_entry_point_of_tf1_breaks_is_refused(value: str, reason: str) -> None:
    valid = _sample(TF1, "train")
    argv = [value if word == "/out" else word for word in valid.argv]
    verdict = judge(*valid._replace(argv=argv))
    assert isinstance(verdict, Refused)
    assert reason in verdict.reason


def test_more_gpus_than_one_are_refused_but_for_training() -> None:
    valid = _sample(TF1, "evaluate")
    verdict = judge(*valid._replace(argv=[*valid.argv, "--gpus", "2"]))
    assert isinstance(verdict, Refused)
    assert "only 1 GPU" in verdict.reason


@pytest.mark.parametrize(
    ("network", "old", "new", "reason"),
    [
        ("detectnet_v2", "output_image_width: 1248", "output_image_width: 1250", "output_image_width should % 16"),
        ("yolo_v4", "output_width: 1248", "output_width: 1250", "multiple of 32"),
        ("faster_rcnn", "output_image_width: 1280", "output_image_width: 1296", "width not match"),
        ("ssd", 'arch: "resnet"', 'arch: "resnext"', "arch should in"),
        ("efficientdet_tf2", "batch_size: 20", "batch_size: 0", "batch size"),
        ("rtdetr", "num_epochs: 72", "num_epochs: many", "num_epochs"),
    ],
)
def test_a_value_that_nvidias_own_checks_reject_is_refused(network: str, old: str, new: str, reason: str) -> None:
    valid = _sample(network, "train")
    specs = {name: text.replace(old, new) for name, text in valid.specs.items()}
    assert specs != valid.specs
    verdict = judge(*valid._replace(specs=specs))
    assert isinstance(verdict, Refused)
    assert reason in verdict.reason


def test_a_stage_that_the_sources_lack_is_unreachable_not_judged() -> None:
    verdict = judge("rtdetr", "prune", ["rtdetr", "prune"], {})
    assert verdict == Unreachable("tao_pytorch_backend has no stage prune of rtdetr")


def test_every_network_has_questions() -> None:
    assert {question.network for question in CASES} == set(KINDS)
