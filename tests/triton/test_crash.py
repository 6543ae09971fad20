"""A release or a roll back that is killed (SIGKILL, as a power cut would) after each of its steps, then run again."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

from refit.triton.canary import STEPS as TRIAL_STEPS
from refit.triton.canary import canary
from refit.triton.errors import ReleaseFailed, TritonError, TritonUnavailable
from refit.triton.installation import Installation
from refit.triton.ledger import Ledger
from refit.triton.release import release
from refit.triton.rollback import rollback
from refit.triton.route import challenger_of
from refit.triton.server import TritonServer
from refit.triton.specs import CanarySpec, ReleaseSpec, RollbackSpec
from refit.triton.transaction import STEPS, UNDO_STEPS
from tests.triton.fixtures import Place
from tests.triton.models import INPUT, REPOSITORY, make_model, noise, release_spec, write_spec
from tests.triton.test_canary import snapshot, trial_spec
from tests.triton.test_reconcile import compared


def _release(step: str, spec: ReleaseSpec) -> None:
    os.environ["REFIT_CRASH_AT"] = step
    release(spec)


def _rollback(step: str, spec: RollbackSpec) -> None:
    os.environ["REFIT_CRASH_AT"] = step
    rollback(spec)


def _canary(step: str, spec: CanarySpec) -> None:
    os.environ["REFIT_CRASH_AT"] = step
    canary(spec, spec.snapshot.parent / "out")


@pytest.fixture(scope="session")
def processes(server: TritonServer) -> ForkServerContext:
    """Processes of their own that start without importing everything again; they have the server's control key."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.triton.test_crash"])
    return context


def run_until_killed(processes: ForkServerContext, function: Callable[..., None], step: str, spec: Any) -> None:
    process = processes.Process(target=function, args=(step, spec))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL, f"was not killed at {step}: exit code {process.exitcode}"


def assert_settled(place: Place, version: int) -> None:
    """One version serves, answers and is on record; nothing is left of what was under way."""
    assert place.client.ready_versions(place.name) == (version,)
    assert place.client.infer(place.name, {INPUT: noise(1)}).version == version
    config = (place.repository / place.name / "config.pbtxt").read_text()
    assert re.findall(r"versions: (\d+)", config) == [str(version)]
    states = {r.version: r.state for r in Ledger(place.ledger).records(place.name)}
    assert states[version] == "serving"
    assert [v for v, state in states.items() if state == "serving"] == [version]
    assert "staged" not in states.values()
    for failed in (v for v, state in states.items() if state == "failed"):
        assert str(failed) not in place.versions
        assert (place.beside("retired") / f"{failed}.json").exists()
    assert not place.beside("staging").exists()
    assert not place.beside("locks").exists()


@pytest.mark.parametrize("step", STEPS)
def test_killed_release_is_finished_or_undone(
    place: Place, processes: ForkServerContext, step: str, said: tuple[list[str], Callable[[str], None]]
) -> None:
    place.release(place.model("a"))
    spec = place.spec(place.model("b", seed=5), keep_versions=1, run="run-2")
    run_until_killed(processes, _release, step, spec)
    done = step in STEPS[STEPS.index("verified") :]
    # Whatever the step, users get answers, of a version that was meant to serve.
    answered = place.client.infer(place.name, {INPUT: noise(1)}).version
    assert answered == (2 if step in STEPS[STEPS.index("loaded") :] else 1)
    report = release(spec, say=said[1])
    assert (report.outcome, report.version) == (("already_serving", 2) if done else ("released", 3))
    assert any("demo/run-2 left behind" in message for message in said[0])
    assert_settled(place, report.version)
    assert place.versions == [str(report.version)]
    first = Ledger(place.ledger).read(1)
    assert first is not None
    assert first.state == "retired"


@pytest.mark.parametrize("step", UNDO_STEPS)
def test_killed_while_undoing_is_undone(place: Place, processes: ForkServerContext, step: str) -> None:
    place.release(place.model("a"))
    run_until_killed(processes, _release, step, place.spec(place.model("bad", operator="Unknown")))
    assert place.client.infer(place.name, {INPUT: noise(1)}).version == 1
    report = place.release(place.model("a"))
    assert (report.outcome, report.version) == ("already_serving", 1)
    assert_settled(place, 1)
    record = Ledger(place.ledger).read(2)
    assert record is not None
    assert record.state == "failed"
    assert "Unknown" in record.reason


@pytest.mark.parametrize("step", ["configured", "undo-loaded", "verified"])
def test_killed_first_release_leaves_nothing_or_all(place: Place, processes: ForkServerContext, step: str) -> None:
    operator = "Unknown" if step.startswith("undo") else "Sigmoid"
    run_until_killed(processes, _release, step, place.spec(place.model("a", operator=operator)))
    assert compared(place).outcome == "differs", "nothing serves by the ledger, and something is there"
    report = place.release(place.model("a"))
    assert report.version == (1 if step == "verified" else 2)
    assert_settled(place, report.version)


@pytest.mark.parametrize(("step", "version"), [("loaded", None), ("verified", 1)])
def test_killed_first_release_is_settled_by_reconcile(
    place: Place, processes: ForkServerContext, step: str, version: int | None
) -> None:
    run_until_killed(processes, _release, step, place.spec(place.model("a")))
    mended = compared(place, mend=True)
    assert (mended.outcome, mended.version) == ("mended", version)
    assert compared(place).outcome == "agrees"
    assert place.client.ready_versions(place.name) == ((version,) if version else ())


@pytest.mark.parametrize("step", ["configured", "loaded", "verified"])
def test_killed_rollback_is_finished_or_undone(place: Place, processes: ForkServerContext, step: str) -> None:
    place.release(place.model("a"))
    place.release(place.model("b", seed=5))
    spec = RollbackSpec(model=place.name, url=place.server.url, repository=place.repository, ledger=place.ledger)
    run_until_killed(processes, _rollback, step, spec)
    done = step in STEPS[STEPS.index("verified") :]
    # A verified roll back is finished before the next change; one that was not is undone, and done again here.
    report = place.release(place.model("b", seed=5)) if not done else rollback(spec.model_copy(update={"to": 2}))
    assert (report.outcome, report.version) == ("rolled_back" if done else "already_serving", 2)
    assert_settled(place, 2)
    assert place.versions == ["1", "2"]


# `undo-server` is of a server that served the model before; a challenger's name serves nothing.
@pytest.mark.parametrize("step", [*STEPS, *(s for s in UNDO_STEPS if s != "undo-server"), *TRIAL_STEPS])
def test_killed_trial_is_undone_by_the_next(place: Place, processes: ForkServerContext, step: str) -> None:
    """The champion serves on; the next trial has its verdict, and nothing is left of either challenger."""
    snapshot(place.folder / "snapshot")
    place.release(place.model("a"))
    bad = {"operator": "Unknown"} if step in UNDO_STEPS else {}
    run_until_killed(processes, _canary, step, trial_spec(place, place.model("b", **bad), images_asked=2))
    assert place.client.infer(place.name, {INPUT: noise(1)}).version == 1
    verdict, _ = canary(trial_spec(place, place.model("a"), images_asked=2), place.folder / "out")
    assert verdict.state == "pass"
    assert_settled(place, 1)
    name = challenger_of(place.name)
    assert place.client.ready_versions(name) == ()
    assert [str(p) for p in place.repository.parent.glob(f"models*/{name}") if p.parent.name != "models.retired"] == []


def test_triton_that_goes_away_in_mid_release(local_triton: Installation, tmp_path: Path) -> None:
    """The files are put back, so that its restart serves the champion, and the next release asks it."""
    ledger = tmp_path / "workspace" / "demo" / "releases"

    def server() -> TritonServer:
        return TritonServer(tmp_path / "models", tmp_path / "run", installation=local_triton, stop_seconds=0)

    where: dict[str, Any] = {"repository": tmp_path / "models", "ledger": ledger, "model": "demo"}
    with server() as first:
        release(release_spec(make_model(tmp_path / "a"), url=first.url, **where))
        spec = release_spec(make_model(tmp_path / "b", seed=5), url=first.url, **where)

        def stop_it(message: str) -> None:
            if message.startswith("Loading"):
                first.stop()

        with pytest.raises(ReleaseFailed, match="A restart of Triton serves version 1"):
            release(spec, say=stop_it)
        with pytest.raises(TritonUnavailable):
            release(spec)
    assert [p.name for p in (tmp_path / "models" / "demo").iterdir() if p.is_dir()] == ["1"]
    with server() as second:
        report = release(spec.model_copy(update={"url": second.url}))
        assert (report.version, report.previous) == (3, 1)
    states = [r.state for r in Ledger(ledger).records("demo")]
    assert states == ["retired", "failed", "serving"]


def test_sigterm_goes_back_and_exits_143(place: Place) -> None:
    place.release(place.model("a"))
    spec = write_spec(place.spec(place.model("b", seed=5), prove="always"), place.folder / "release.yaml")
    process = subprocess.Popen(
        [sys.executable, "-m", "refit.triton", "release", "-e", spec, "-r", place.folder / "out"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("Serving it from a throwaway Triton"):
            break
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert errors.splitlines()[-1] == "error: stopped by SIGTERM"
    assert place.client.infer(place.name, {INPUT: noise(1)}).version == 1
    assert place.versions == ["1"]
    assert_settled(place, 1)
    assert servers_below(place.folder) == []


def servers_below(folder: Path) -> list[str]:
    """Command lines of processes that name a folder."""
    until = time.monotonic() + 5
    while True:
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(folder) in text and "triton" in text:
                found.append(text)
        if not found or time.monotonic() > until:
            return found
        time.sleep(0.05)


def test_two_releases_at_once_one_waits(place: Place) -> None:
    place.release(place.model("a"))
    specs = []
    for name, seed in (("b", 5), ("c", 6)):
        spec = place.spec(place.model(name, seed=seed), run=f"run-{name}", keep_versions=3)
        specs.append(write_spec(spec, place.folder / f"{name}.yaml"))
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "refit.triton", "release", "-e", spec, "-r", place.folder / spec.stem],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for spec in specs
    ]
    texts = [process.communicate(timeout=60)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], texts
    assert_settled(place, 3)
    assert {r.run for r in Ledger(place.ledger).records(place.name)} == {"run-1", "run-b", "run-c"}
    assert [r.version for r in Ledger(place.ledger).records(place.name)] == [1, 2, 3]


def test_lock_of_a_living_process_is_waited_for(place: Place) -> None:
    from refit.triton.lock import ModelLock

    place.release(place.model("a"))
    with (
        ModelLock(place.beside("locks").parent, place.name, run="somebody else", wait_seconds=0),
        pytest.raises(TritonError, match=r"somebody else .*holds the lock.*remove"),
    ):
        place.release(place.model("b", seed=5), lock_seconds=0.3)
    assert_settled(place, 1)
