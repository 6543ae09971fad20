"""What the runner does for pods: hand back a result that lies in a folder, and the umask that stages share."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from refit.outcome import Result
from tests.refit.runner_helpers import EDGES, RUNNER, Bench, python


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Bench(tmp_path) as made:
        yield made


def answer(bench: Bench, *arguments: str, by: str = EDGES[-1], **env: str) -> tuple[int, str]:
    bench.compact.write_bytes(b"")
    base = {k: v for k, v in os.environ.items() if not k.startswith("REFIT_")}
    done = subprocess.run(
        [python(by), "-I", str(RUNNER), "--answer", str(bench.folder), *arguments],
        env={**base, "REFIT_TERMINATION_LOG": str(bench.compact), **env},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("version", EDGES)
def test_a_result_is_handed_back_as_it_was_given(bench: Bench, version: str) -> None:
    bench.run(bench.request("note(status='RUNNING', kpi={'mAP50': 0.5})"))
    first = Result.from_json(bench.compact.read_bytes())
    before = (bench.folder / "result.json").read_bytes()
    assert answer(bench, by=version) == (0, "refit: train: succeeded\n")
    assert Result.from_json(bench.compact.read_bytes()) == first
    assert (bench.folder / "result.json").read_bytes() == before


def test_no_result_is_no_answer(bench: Bench) -> None:
    code, said = answer(bench)
    assert (code, bench.compact.read_bytes()) == (4, b"")
    assert said == f"refit: {bench.folder} holds no result\n"


def test_a_result_of_another_key_is_no_answer(bench: Bench, tmp_path: Path) -> None:
    request = bench.request()
    bench.run(request)
    plan = tmp_path / "plan.json"
    for key, code in (("a" * 64, 0), ("b" * 64, 4)):
        plan.write_text(json.dumps({"stages": [{**request, "key": key}]}))
        assert answer(bench, "--plan", str(plan), "--stage", "train")[0] == code
        assert bool(bench.compact.read_bytes()) is (code == 0)
        assert answer(bench, REFIT_REQUEST=json.dumps({**request, "key": key}))[0] == code


def test_a_plan_that_cannot_be_read_is_no_answer(bench: Bench) -> None:
    bench.run(bench.request())
    code, said = answer(bench, "--plan", "/no/plan.json", "--stage", "train")
    assert code == 4
    assert "/no/plan.json cannot be read" in said


@pytest.mark.parametrize(("umask", "mode"), [("0002", 0o664), ("0007", 0o660), ("077", 0o600)])
def test_the_umask_reaches_the_command(bench: Bench, umask: str, mode: int) -> None:
    bench.run(bench.request("open(path('made'), 'w').close()"), env={"REFIT_UMASK": umask})
    assert (bench.out / "made").stat().st_mode & 0o777 == mode
    # What one account wrote (root, in TAO's images), another must be able to read and to move aside.
    assert (bench.folder / "result.json").stat().st_mode & 0o777 == mode
    assert bench.folder.stat().st_mode & 0o777 == mode | (mode & 0o444) >> 2


def test_a_umask_that_is_none(bench: Bench) -> None:
    done = bench.run(bench.request(), env={"REFIT_UMASK": "rwx"})
    assert done.code == 2
    assert "REFIT_UMASK=rwx: write an octal number such as 0002" in done.output
