"""A stage's folder over several starts: what is reused, what is gone on with, what is moved aside; and a full disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.refit.runner_helpers import Bench, read_number

MAKE = """
open(path("runs"), "a").write("x")
os.makedirs(path("data/deep"), exist_ok=True)
open(path("data/deep/b.txt"), "w").write("b"); open(path("data/a.txt"), "w").write("aa")
"""
OUTPUTS = [{"name": "data", "path": "data", "kind": "dir"}, {"name": "runs", "path": "runs"}]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Bench(tmp_path) as made:
        yield made


def runs(bench: Bench) -> int:
    return len((bench.out / "runs").read_text())


def test_a_good_result_is_handed_back_at_once(bench: Bench) -> None:
    request = bench.request(MAKE, outputs=OUTPUTS)
    first = bench.run(request)
    log = (bench.folder / "log.txt").read_bytes()
    second = bench.run(request)
    assert (second.code, second.result, runs(bench)) == (0, first.result, 1)
    assert "an earlier result with the same key is whole: reused" in second.output
    assert json.loads(bench.compact.read_bytes()) == first.result
    assert (bench.folder / "log.txt").read_bytes() == log


def test_the_hash_of_a_folder_is_that_of_its_sha256sum_listing(bench: Bench) -> None:
    done = bench.run(bench.request(MAKE, outputs=OUTPUTS))
    lines = [f"{hashlib.sha256(text).hexdigest()}  {name}\n" for name, text in (("a.txt", b"aa"), ("deep/b.txt", b"b"))]
    listing = subprocess.run(
        "find . -type f | sed 's|^./||' | LC_ALL=C sort | xargs sha256sum",
        shell=True, cwd=bench.out / "data", capture_output=True, check=True,
    ).stdout  # fmt: skip
    assert listing.decode() == "".join(lines)
    assert done.result["outputs"]["data"] == {"path": "data", "bytes": 3, "sha256": hashlib.sha256(listing).hexdigest()}


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        ("echo y >> runs", "runs has another size"),
        ("printf y > runs", "runs has changed"),
        ("rm runs", "runs cannot be read"),
        ("mv data/a.txt data/c.txt", "data has changed"),
        ("touch data/more", "data has changed"),
        ("rm -r data", "data cannot be read"),
    ],
)
def test_a_damaged_result_is_not_reused_and_not_mixed_in(bench: Bench, spoil: str, says: str) -> None:
    request = bench.request(MAKE, outputs=OUTPUTS)
    bench.run(request)
    subprocess.run(spoil, shell=True, cwd=bench.out, check=True)
    again = bench.run(request)
    assert f"the earlier result cannot be reused: {says}" in again.output
    assert (again.outcome, again.result["attempt"], again.result["resumed"], runs(bench)) == ("succeeded", 2, False, 1)
    aside = bench.run_dir / "03-train.1"
    assert json.loads((aside / "result.json").read_text())["outcome"] == "succeeded"


def test_an_output_that_is_asked_for_now_but_was_not_then(bench: Bench) -> None:
    bench.run(bench.request(MAKE, outputs=OUTPUTS[1:]))
    again = bench.run(bench.request(MAKE, outputs=OUTPUTS))
    assert "cannot be reused: data is not in it" in again.output
    assert sorted(again.result["outputs"]) == ["data", "runs"]


def test_another_key_begins_anew_and_keeps_the_old(bench: Bench) -> None:
    bench.run(bench.request(MAKE, outputs=OUTPUTS))
    for key in ("b" * 64, "c" * 64):
        done = bench.run(bench.request(MAKE, outputs=OUTPUTS, key=key))
        assert (done.result["key"], done.result["attempt"], runs(bench)) == (key, 1, 1)
    kept = [json.loads((bench.run_dir / f"03-train.{k}" / "result.json").read_text())["key"][0] for k in (1, 2)]
    assert kept == ["a", "b"]


def test_no_key_is_never_reused(bench: Bench) -> None:
    request = bench.request(MAKE, outputs=OUTPUTS, key="")
    bench.run(request)
    assert bench.run(request).result["attempt"] == 1
    assert (bench.run_dir / "03-train.1").is_dir()


RESUME = """
start = int(open(path("checkpoint")).read()) if os.path.exists(path("checkpoint")) else 0
note(status="STARTED")
for epoch in range(start + 1, 5):
    note(status="RUNNING", epoch=epoch, max_epoch=4, loss=1.0, kpi={"seen": epoch, "first": start})
    open(path("checkpoint"), "w").write(str(epoch))
    if epoch == 2: AT_2
open(path("model"), "w").write("m")
"""


def resume(at_2: str) -> str:
    """A training of four epochs that resumes, and does `at_2` after the second."""
    return RESUME.replace("AT_2", at_2)


@pytest.mark.parametrize(
    "at_2", ["sys.exit(1)", "note(status='FAILURE', message='lost'); sys.exit(0)", "os.kill(os.getpid(), 9)"]
)
def test_a_failed_attempt_is_gone_on_with(bench: Bench, at_2: str) -> None:
    request = bench.request(resume(at_2), outputs=[{"name": "model", "path": "model"}])
    first = bench.run(request)
    assert (first.outcome, first.code) == ("toolkit_error", 1)
    second = bench.run(request)
    assert (second.outcome, second.result["attempt"], second.result["resumed"]) == ("succeeded", 2, True)
    assert second.result["metrics"] == {"seen": 4, "first": 2}
    assert "attempt 2, goes on from attempt 1" in second.output
    assert "epoch 1/4" not in second.output
    assert json.loads((bench.folder / "result.1.json").read_text())["outcome"] == "toolkit_error"


def test_a_runner_killed_in_mid_run_counts_as_an_attempt(bench: Bench) -> None:
    code = resume("open(path('at2'), 'w').write('1'); time.sleep(60)")
    for attempt in (1, 2):
        process = bench.start(bench.request(code))
        read_number(bench.out / "at2")
        (bench.out / "at2").unlink()
        with (bench.out / "status.json").open("a") as file:
            file.write('{"status": "RUNNING", "epoch": 3, "loss": Na')  # what a killed writer leaves
        (bench.out / "checkpoint").write_text("1")
        process.kill()
        process.communicate()
        assert bench.result() is None
        assert json.loads((bench.folder / "runner.pid").read_text())["attempt"] == attempt
    done = bench.run(bench.request(resume("pass")))
    assert (done.outcome, done.result["attempt"], done.result["resumed"]) == ("succeeded", 3, True)
    assert not (bench.folder / "runner.pid").exists()


def test_a_stage_that_cannot_resume_begins_anew(bench: Bench) -> None:
    request = bench.request(resume("sys.exit(1)"), resume=False)
    bench.run(request)
    done = bench.run(request)
    assert (done.outcome, done.result["attempt"], done.result["resumed"]) == ("toolkit_error", 2, False)
    assert (bench.run_dir / "03-train.1" / "out" / "checkpoint").read_text() == "2"


def test_nobody_goes_on_from_a_diverged_model(bench: Bench) -> None:
    request = bench.request("note(status='RUNNING', epoch=1, loss=float('nan'))\ntime.sleep(60)")
    assert bench.run(request).outcome == "diverged"
    assert bench.run(request).result["resumed"] is False
    assert (bench.run_dir / "03-train.1").is_dir()


def test_files_of_unknown_origin_are_moved_aside(bench: Bench) -> None:
    bench.out.mkdir(parents=True)
    (bench.out / "model").write_text("whose?")
    done = bench.run(bench.request("sys.exit(0 if not os.listdir(out) else 9)"))
    assert done.outcome == "succeeded", done.output
    assert (bench.run_dir / "03-train.1" / "out" / "model").read_text() == "whose?"


def test_a_broken_result_and_broken_pid_file_do_not_stop_a_start(bench: Bench) -> None:
    bench.run(bench.request("sys.exit(1)"))
    (bench.folder / "result.json").write_text('{"schema": 1, "outcome": "succ')
    (bench.folder / "runner.pid").write_text('{"pid": "x", "mark": 5, "where": null}')
    (bench.folder / ".result.json.tmp-77").write_text("half")
    done = bench.run(bench.request("pass"))
    assert done.outcome == "succeeded"
    assert done.result["attempt"] == 2
    assert not (bench.folder / ".result.json.tmp-77").exists()


def test_old_specs_do_not_stay(bench: Bench) -> None:
    bench.run(bench.request("sys.exit(1)", files={"a.yaml": "a", "b.yaml": "b"}))
    bench.run(bench.request("pass", files={"a.yaml": "changed"}))
    assert [(p.name, p.read_text()) for p in (bench.folder / "specs").iterdir()] == [("a.yaml", "changed")]


# --- the pointer for reuse ------------------------------------------------------------------------------------------


def test_a_good_result_is_published_by_its_key(bench: Bench) -> None:
    pointer = bench.root / "keys" / "k.json"
    request = bench.request(MAKE, publish=str(pointer))
    bench.run(request)
    digest = hashlib.sha256((bench.folder / "result.json").read_bytes()).hexdigest()
    wanted = {"run": "r1", "stage_dir": str(bench.folder), "result_sha256": digest}
    assert json.loads(pointer.read_text()) == wanted
    pointer.unlink()
    assert "reused" in bench.run(request).output
    assert json.loads(pointer.read_text()) == wanted
    assert os.listdir(pointer.parent) == ["k.json"]


def test_a_bad_result_is_not_published(bench: Bench) -> None:
    bench.run(bench.request("sys.exit(1)", publish=str(bench.root / "keys" / "k.json")))
    assert not (bench.root / "keys").exists()


def test_a_pointer_that_cannot_be_written_does_not_spoil_the_stage(bench: Bench) -> None:
    (bench.root / "keys").write_text("no folder")
    done = bench.run(bench.request("pass", publish=str(bench.root / "keys" / "k.json")))
    assert done.outcome == "succeeded"
    assert "the pointer for reuse was not written" in done.output


# --- a full disk ----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system needs root and the right to mount")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


FILL = """
with open(path("big"), "wb", buffering=0) as f:
    while True: f.write(bytes(4096))
"""


def small_bench(disk: Path, tmp_path: Path) -> Bench:
    bench = Bench(tmp_path)
    bench.run_dir = disk / "run"
    bench.folder = bench.run_dir / "03-train"
    bench.out = bench.folder / "out"
    return bench


def test_a_disk_filled_by_the_command_is_reported_in_result_json(small_disk: Path, tmp_path: Path) -> None:
    bench = small_bench(small_disk, tmp_path)
    done = bench.run(bench.request(FILL))
    assert (done.code, done.outcome) == (1, "no_space"), done.output
    assert "No space left on device" in done.reason
    assert "Free space" in done.result["advice"]
    assert json.loads(bench.compact.read_bytes())["outcome"] == "no_space"
    assert sorted(p for p in os.listdir(bench.folder) if p.startswith(".")) == []
    (bench.out / "big").unlink()
    assert bench.run(bench.request("pass")).outcome == "succeeded"


def test_a_disk_full_from_the_start_is_one_clear_line(small_disk: Path, tmp_path: Path) -> None:
    bench = small_bench(small_disk, tmp_path)
    with (small_disk / "big").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    done = bench.run(bench.request("say('started')"))
    assert (done.code, done.result) == (1, None)
    compact = json.loads(bench.compact.read_bytes())
    assert compact["outcome"] == "no_space"
    assert f"cannot use the stage's folder {bench.folder}: No space left on device" in compact["reason"]
    assert "Traceback" not in done.output
    assert "started" not in done.output.splitlines()


def test_a_silent_full_disk_is_found_behind_an_exit_code_of_0(small_disk: Path, tmp_path: Path) -> None:
    bench = small_bench(small_disk, tmp_path)
    code = f"try:\n    exec({FILL!r})\nexcept OSError as e: say(e)"
    done = bench.run(bench.request(code, outputs=[{"name": "model", "path": "model.pth"}]))
    assert done.outcome == "no_space"
    assert "model: model.pth is missing" in done.reason


def test_the_epochs_that_a_killed_start_cost_are_told(bench: Bench) -> None:
    code = """
first = os.path.exists(out + "/checkpoint")
open(out + "/checkpoint", "w").close()
for epoch in ((3, 4) if first else (1, 2, 3)):
    note(status="RUNNING", epoch=epoch, max_epoch=4)
sys.exit(0 if first else 1)
"""
    request = bench.request(code)
    assert "repeated_epochs" not in bench.run(request).result["progress"]
    progress = bench.run(request).result["progress"]
    assert (progress["resumed_after"], progress["repeated_epochs"], progress["epoch"]) == (3, 1, 4)


def test_work_that_is_wanted_again_is_not_answered_from_the_folder(bench: Bench) -> None:
    request = bench.request("open(out + '/' + str(time.time()), 'w').close()")
    bench.run(request)
    assert bench.run(request).result["attempt"] == 1
    again = bench.run(request, env={"REFIT_AGAIN": "1"})
    assert (again.outcome, again.result["attempt"]) == ("succeeded", 2)
    assert len(list(bench.out.iterdir())) == 1
    assert (bench.run_dir / "03-train.1").is_dir()
