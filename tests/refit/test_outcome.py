"""The table of outcomes, the result as Refit reads it, and that the runner (one file alone) uses the same words."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from refit import outcome as module
from refit import runner
from refit.outcome import TABLE, Outcome, Result, ResultError
from tests.refit.runner_helpers import REPOSITORY


def test_the_runner_knows_the_same_outcomes_and_advice() -> None:
    words = {str(o): o.advice for o in Outcome if not o.of_cluster}
    assert words == runner.ADVICE


@pytest.mark.parametrize("outcome", Outcome)
def test_every_outcome_has_its_row(outcome: Outcome) -> None:
    retryable = {"preempted", "stalled", "toolkit_error", "cancelled"}  # docs/contracts.md
    assert outcome.retryable is (outcome in retryable)
    assert bool(outcome.advice) is (outcome != "succeeded")
    assert "\n" not in outcome.advice
    assert outcome.of_cluster is (outcome in {"preempted", "unschedulable", "image_missing"})


def test_the_contract_names_these_outcomes() -> None:
    page = (REPOSITORY / "docs" / "contracts.md").read_text()
    assert len(TABLE) == len(Outcome)
    for outcome in Outcome:
        assert outcome in page


@pytest.mark.parametrize("outcome", [o for o in Outcome if not o.of_cluster])
def test_the_exit_codes_of_the_contract(outcome: Outcome) -> None:
    wanted = {"succeeded": 0, "bad_spec": 2, "bad_data": 2, "rejected": 2, "cancelled": 143}.get(outcome, 1)
    assert runner.EXIT_CODES.get(outcome, 1) == wanted


@pytest.mark.parametrize("file", [module.__file__, str(REPOSITORY / "refit" / "runtime" / "local.py"), runner.__file__])
def test_only_the_standard_library_is_imported(file: str) -> None:
    import sys

    tree = ast.parse(Path(file).read_text())
    names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    foreign = {name for name in names if name.split(".")[0] not in sys.stdlib_module_names}
    assert foreign == ({"refit.outcome"} if file.endswith("local.py") else set())


def test_a_compact_result_lacks_some_fields() -> None:
    result = Result.from_json(
        '{"schema": 1, "name": "train", "outcome": "stalled", "exit_code": null, "new": 1, "truncated": true}'
    )
    assert (result.name, result.outcome, result.exit_code, result.truncated) == ("train", Outcome.STALLED, None, True)
    assert (result.retryable, result.succeeded, dict(result.metrics)) == (True, False, {})


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("{", "the result is not JSON"),
        (b"\xff", "the result is not JSON"),
        ("[]", "the result must be an object, it is list"),
        ({"schema": 2}, "the result has schema 2; this Refit reads 1"),
        ({"schema": 1}, "the result's outcome None is not known here"),
        ({"schema": 1, "outcome": "sad"}, "the result's outcome 'sad' is not known here"),
        ({"schema": 1, "outcome": "stalled", "reason": 5}, "the result's reason is 5, not str"),
        ({"schema": 1, "outcome": "stalled", "attempt": True}, "the result's attempt is True, not int"),
        ({"schema": 1, "outcome": "stalled", "metrics": []}, r"the result's metrics is \[\], not dict"),
    ],
)
def test_a_result_that_cannot_be_understood(data: Any, reason: str) -> None:
    with pytest.raises(ResultError, match=reason):
        Result.from_json(data)


def test_a_result_file_that_is_missing_or_broken_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match=r"result.json: cannot be read: No such file"):
        Result.read(tmp_path / "result.json")
    (tmp_path / "result.json").write_text("x")
    with pytest.raises(ResultError, match=r"result.json: the result is not JSON"):
        Result.read(tmp_path / "result.json")
