"""The oracle itself: it must take what NVIDIA ships and bite on what is wrong, or it judges nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest

from tests.tao.oracle import KINDS, Accepted, Question, Refused, Unreachable, Verdict, judge, judge_all, missing
from tests.tao.oracle.samples import Answer, ask, misspelt_flag, misspelt_key, questions

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

TF1 = "detectnet_v2"


CASES = [] if missing() else list(questions())
SLIPS: dict[str, tuple[Callable[[Question], Question], str]] = {
    "flag": (misspelt_flag, "no_such"),
    "key": (misspelt_key, ""),
}


def _name(question: Question) -> str:
    return f"{'deploy-' if question.deploy else ''}{question.network}-{question.stage}"


@functools.cache
def _answers() -> dict[str, Answer]:
    return {_name(question): answer for question, answer in zip(CASES, ask(CASES), strict=True)}


@functools.cache
def _verdicts_on(slip: str) -> dict[str, Verdict]:
    wrong = {name: SLIPS[slip][0](answer.question) for name, answer in _answers().items()}
    return dict(zip(wrong, judge_all(list(wrong.values())), strict=True))


def _valid(question: Question) -> Question:
    """The sample as NVIDIA's code accepts it; skips where the sources have no such stage."""
    answer = _answers()[_name(question)]
    if isinstance(answer.verdict, Unreachable) and " has no stage " in answer.verdict.reason:
        pytest.skip(answer.verdict.reason)
    assert answer.verdict == Accepted()
    return answer.question


@pytest.mark.parametrize("question", CASES, ids=_name)
def test_nvidias_own_sample_is_accepted(question: Question) -> None:
    _valid(question)


@pytest.mark.parametrize("slip", SLIPS)
@pytest.mark.parametrize("question", CASES, ids=_name)
def test_the_same_with_a_slip_is_refused(question: Question, slip: str) -> None:
    if not _valid(question).specs and slip == "key":
        pytest.skip("this command reads no spec")
    verdict = _verdicts_on(slip)[_name(question)]
    assert isinstance(verdict, Refused)
    assert SLIPS[slip][1] in verdict.reason


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
