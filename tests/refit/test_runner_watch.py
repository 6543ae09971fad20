"""Watching a stage: progress from status.json, and ending what stalls, diverges or never learns."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from refit.runner import Progress, StatusFile
from tests.refit.runner_helpers import EDGES, Bench, python


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Bench(tmp_path) as made:
        yield made


HANG = "\nsay('waiting')\ntime.sleep(60)"


def test_a_stall_is_ended(bench: Bench) -> None:
    done = bench.run(bench.request(HANG, watch={"stall_seconds": 0.5}))
    assert (done.code, done.outcome) == (1, "stalled")
    assert done.reason == "no new line in the status file or the log, and no file written, for 0.5 seconds"
    assert "last checkpoint" in done.result["advice"]
    assert done.result["exit_code"] == -15


@pytest.mark.parametrize(
    "life",
    [
        "say('.')",
        "note(status='RUNNING')",
        "open(path('big'), 'a').write('x')",
        "open(path('n%d' % i), 'w').close()",
        "os.makedirs(path('deep'), exist_ok=True); open(path('deep/same'), 'w').write('1')",
        "os.unlink(path('old%d' % i))",
    ],
)
def test_any_sign_of_life_is_no_stall(bench: Bench, life: str) -> None:
    code = f"""
    for i in range(14): open(path("old%d" % i), "w").close()
    for i in range(14):
        {life}
        time.sleep(0.12)
    """
    done = bench.run(bench.request(code, watch={"stall_seconds": 1.2}))
    assert done.outcome == "succeeded", done.output


def test_a_timeout_is_ended(bench: Bench) -> None:
    done = bench.run(bench.request("while True: say('busy'); time.sleep(0.01)", timeout_seconds=0.4))
    assert (done.code, done.outcome, done.reason) == (1, "timed_out", "still running after 0.4 seconds")


@pytest.mark.parametrize("loss", ["float('nan')", "float('inf')", "'nan'"])
@pytest.mark.parametrize("version", ["3.6", "3.11"])
def test_a_loss_that_is_no_number_is_ended(bench: Bench, loss: str, version: str) -> None:
    code = f"note(status='RUNNING', epoch=1, loss=1.0)\nnote(status='RUNNING', epoch=2, loss={loss})" + HANG
    done = bench.run(bench.request(code), by=python(version))
    assert (done.code, done.outcome) == (1, "diverged")
    assert done.reason in {"the loss became nan", "the loss became inf"}
    assert done.result["progress"] == {"epoch": 2, "loss": None}
    json.loads((bench.folder / "result.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


def test_an_exploding_loss_is_ended(bench: Bench) -> None:
    code = "for i, x in enumerate([9, 1, 60, 2, 51, 52, 53]): note(status='RUNNING', epoch=i, loss=x)" + HANG
    done = bench.run(bench.request(code, watch={"loss_factor": 50}))
    assert done.outcome == "diverged"
    assert done.reason == "the loss is 53 in 3 reports in a row, more than 50 times its smallest (1)"


def test_a_metric_that_stays_zero_is_ended(bench: Bench) -> None:
    code = (
        "for i in range(9): note(status='RUNNING', epoch=i, kpi={'val_mAP50': '0.0'}) if i % 2 else note(epoch=i)"
        + HANG
    )
    done = bench.run(bench.request(code, watch={"zero_metric": "val_mAP50", "zero_evaluations": 4}))
    assert (done.outcome, done.reason) == ("diverged", "val_mAP50 is still 0 after 4 evaluations")


def test_lines_of_an_earlier_attempt_do_not_trip_the_watches(bench: Bench) -> None:
    code = """
    if os.path.exists(path("again")): time.sleep(0.5); sys.exit(0)
    for i in range(9): note(status="FAILURE", epoch=i, loss=10 ** i, kpi={"m": 0})
    open(path("again"), "w").close(); sys.exit(1)
    """
    watch = {"loss_factor": 5, "zero_metric": "m", "zero_evaluations": 1}
    assert bench.run(bench.request(code)).outcome == "toolkit_error"
    done = bench.run(bench.request(code, watch=watch))
    assert done.outcome == "succeeded", done.output
    assert done.result["progress"] == {}


def test_a_watch_wins_over_what_the_command_says_when_it_is_stopped(bench: Bench) -> None:
    code = """
    def stop(*_): note(status="FAILURE", message="interrupted"); sys.exit(0)
    signal.signal(signal.SIGTERM, stop)
    note(status="RUNNING", epoch=1, loss=float("nan"))
    time.sleep(60)
    """
    done = bench.run(bench.request(code))
    assert (done.outcome, done.reason, done.result["exit_code"]) == ("diverged", "the loss became nan", 0)


@pytest.mark.parametrize("version", EDGES)
def test_half_lines_and_strange_lines_are_tolerated(bench: Bench, version: str) -> None:
    code = r"""
    f = open(path("status.json"), "ab", buffering=0)
    f.write(b'{"status": "RUNNING", "epoch": 1, "max_ep'); time.sleep(0.3)
    f.write(b'och": 2, "loss": 0.25, "eta": 65}\n')
    f.write(b'[1, 2]\n"text"\n\n\xff\xfe\n{"epoch": "two"}\n{"kpi": [1], "categorical": {"AP": 3}}\n')
    f.write(b'{"epoch": 2.0, "eta": "1:02:03.456"}\n')
    f.write(b'{"status": "SUCCESS", "kpi": {"mAP": 0.5}}')
    """
    done = bench.run(bench.request(code), by=python(version))
    assert done.outcome == "succeeded", done.output
    assert [line for line in done.output.splitlines() if line.startswith("epoch")] == [
        "epoch 1/2  loss 0.25  eta 0:01:05",
        "epoch 2/2  eta 1:02:03",
    ]
    assert done.result["metrics"] == {"mAP": 0.5}


# --- the parts alone ------------------------------------------------------------------------------------------------


def feed(losses: list[float], **watch: Any) -> str:
    progress = Progress(watch)
    for epoch, loss in enumerate(losses):
        progress.add({"epoch": epoch, "loss": loss})
    return progress.trouble


@pytest.mark.parametrize(
    "losses",
    [
        [1.0, 100.0, 100.0, 0.9, 100.0, 100.0],  # peaks, but never three in a row
        [100.0, 90.0, 80.0, 70.0, 60.0],
        [0.0, 5.0, 5.0, 5.0],  # nothing is 50 times nothing
        [-3.0, 5.0, 5.0, 5.0],
        [1.0, 50.0, 50.0, 50.0],  # at the limit, not above
    ],
)
def test_no_divergence(losses: list[float]) -> None:
    assert feed(losses, loss_factor=50) == ""


def test_without_a_factor_only_nan_and_infinity_count() -> None:
    assert feed([1.0, 1e9, 1e12, 1e15]) == ""
    assert feed([1.0, -math.inf]) == "the loss became -inf"


@pytest.mark.parametrize(
    ("figures", "alive"), [([0, 0, 0.01], True), ([0, float("nan"), 0], False), (["0", "0.2", 0], True)]
)
def test_the_zero_watch(figures: list[Any], alive: bool) -> None:
    progress = Progress({"zero_metric": "m", "zero_evaluations": 3})
    for figure in figures:
        progress.add({"kpi": {"m": figure}})
    assert (progress.trouble == "") is alive


def test_a_metric_seen_in_an_earlier_attempt_counts_as_alive() -> None:
    progress = Progress({"zero_metric": "m", "zero_evaluations": 1})
    progress.add_old({"kpi": {"m": 0.3}})
    progress.add({"kpi": {"m": 0}})
    assert progress.trouble == ""


def test_a_status_file_that_is_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    status = StatusFile(str(path))
    assert status.read() == []
    path.write_text('{"a": 1}\n{"a": 2}\n')
    assert status.read() == [{"a": 1}, {"a": 2}]
    path.write_text('{"b": 1}\n')
    assert status.read() == [{"b": 1}]
    path.unlink()
    assert status.read() == []
    path.with_name("new").write_text('{"c": 1}\n{"c": 2}\n{"c": 3}\n')
    path.with_name("new").rename(path)
    assert len(status.read()) == 3


def test_the_last_half_line_counts_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    path.write_text('{"a": 1}\n{"a": 2}')
    status = StatusFile(str(path))
    assert status.read() == [{"a": 1}]
    assert status.read(last=True) == [{"a": 2}]
    assert status.read(last=True) == []
