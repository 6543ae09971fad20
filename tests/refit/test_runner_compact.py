"""The compact result: at most 4,096 bytes of whole JSON, whatever a stage reports; and no more left out than needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refit.outcome import Outcome, Result
from refit.runner import COMPACT_BYTES, compact, encode
from tests.refit.runner_helpers import Bench

LAST = {"schema", "pipeline", "run", "name", "key", "outcome", "reason", "advice", "exit_code", "attempt", "truncated"}


def result(**changes: Any) -> dict[str, Any]:
    digest = "0123456789abcdef" * 4
    return {
        "schema": 1,
        "pipeline": "demo",
        "run": "scheduled__2026-11-20",
        "name": "train",
        "key": digest,
        "outcome": "toolkit_error",
        "reason": "no such class: WBC",
        "advice": "Read the end of log.txt.",
        "exit_code": 1,
        "attempt": 1,
        "resumed": False,
        "started": "2026-11-20T19:05:03Z",
        "ended": "2026-11-20T19:06:03Z",
        "seconds": 60.0,
        "peak_memory_bytes": 912345088,
        "metrics": {"mAP50": 0.83, "AP50/RBC": 0.8},
        "summary": {"plan": "/w/plan.json"},
        "outputs": {"model": {"path": "model.pth", "bytes": 1816157, "sha256": digest}},
        "progress": {"epoch": 18, "max_epoch": 18, "loss": 0.02},
        "log_tail": ["last words"],
    } | changes


any_text = (
    st.text(max_size=40)
    | st.text(min_size=1, max_size=3).map(lambda t: t * 3000)
    | st.text(alphabet='"\\\x00\U0001f600', max_size=5000)
)
huge = st.fixed_dictionaries(
    {},
    optional={
        "pipeline": any_text,
        "run": any_text,
        "name": any_text,
        "key": any_text,
        "reason": any_text,
        "advice": any_text,
        "metrics": st.dictionaries(any_text, st.floats(allow_nan=False, allow_infinity=False), max_size=80),
        "summary": st.dictionaries(st.text(max_size=20), any_text, max_size=3),
        "outputs": st.dictionaries(
            any_text,
            st.fixed_dictionaries({"path": any_text, "bytes": st.integers(0, 1 << 50), "sha256": st.just("f" * 64)}),
            max_size=80,
        ),
        "log_tail": st.lists(any_text, max_size=20),
    },
)


@settings(max_examples=150, deadline=None)
@given(huge)
def test_it_always_fits_and_always_parses(changes: dict[str, Any]) -> None:
    whole = result(**changes)
    before = json.dumps(whole, sort_keys=True)
    data = compact(whole)
    assert len(data) <= COMPACT_BYTES
    small = json.loads(data.decode("utf-8"))
    assert json.dumps(whole, sort_keys=True) == before  # the result itself is not touched
    assert set(small) >= LAST - {"truncated"}
    assert ("truncated" in small) is (len(encode(whole)) > COMPACT_BYTES)
    read = Result.from_json(data)
    assert (read.outcome, read.exit_code, read.truncated) == (Outcome.TOOLKIT_ERROR, 1, "truncated" in small)
    if not changes.keys() & {"pipeline", "run", "name", "key"}:
        assert (small["name"], small["key"]) == (whole["name"], whole["key"])
    if not changes.keys() & {"pipeline", "run", "name", "key", "summary", "outputs", "metrics"}:
        assert small["reason"][:150] == " ".join(whole["reason"].split())[:150] or small["reason"] == whole["reason"]
        assert small["outputs"]["model"]["sha256"] == whole["outputs"]["model"]["sha256"]


def test_what_fits_is_left_whole() -> None:
    assert json.loads(compact(result())) == result()


@pytest.mark.parametrize(
    ("changes", "lost"),
    [
        ({"log_tail": ["x" * 400] * 20}, {"log_tail"}),
        ({"log_tail": ["x" * 400] * 20, "metrics": {f"m{i}": 0.5 for i in range(200)}}, {"log_tail"}),
        ({"log_tail": ["x" * 400] * 20, "progress": {"x": "y" * 4000}}, {"log_tail", "progress"}),
        ({"metrics": {f"m{i:04}": 0.5 for i in range(1000)}}, {"log_tail", "progress", "metrics"}),
        ({"reason": "r" * 9000}, {"log_tail", "progress", "metrics", "outputs", "reason"}),
    ],
)
def test_things_go_in_their_order_and_only_as_needed(changes: dict[str, Any], lost: set[str]) -> None:
    whole = result(**changes)
    small = json.loads(compact(whole))
    assert {key for key in whole if small.get(key) != whole[key]} == lost
    assert small["truncated"] is True
    if "outputs" in lost:
        assert small["outputs"] == {"model": {"sha256": whole["outputs"]["model"]["sha256"]}}
        assert next(iter(whole["metrics"].items())) == next(iter(small["metrics"].items()))
        assert len(small["reason"]) > 3000
        assert small["reason"].endswith("…")
    elif "metrics" in lost:
        assert 150 < len(small["metrics"]) < 1000
        assert list(small["metrics"]) == list(whole["metrics"])[: len(small["metrics"])]


def test_a_real_stage_that_reports_far_too_much(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    code = """
    note(status="RUNNING", kpi={"mAP50": 0.5}, categorical={"AP50": {"класс %d" % i: i / 7 for i in range(2000)}})
    note(status="FAILURE", message="\U0001f4a5 ошибка " * 500)
    """
    done = bench.run(bench.request(code))
    assert len(done.result["metrics"]) == 2001
    data = bench.compact.read_bytes()
    assert 3500 < len(data) <= COMPACT_BYTES
    small = json.loads(data)
    assert (small["outcome"], small["truncated"]) == ("toolkit_error", True)
    assert small["metrics"]["mAP50"] == 0.5
    assert small["reason"].startswith("\U0001f4a5 ошибка \U0001f4a5")


def test_a_termination_log_that_cannot_be_written_is_only_said(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    done = bench.run(bench.request("pass"), env={"REFIT_TERMINATION_LOG": str(tmp_path / "no" / "such")})
    assert (done.code, done.outcome) == (0, "succeeded")
    assert "REFIT_TERMINATION_LOG: cannot write it: No such file or directory" in done.output
