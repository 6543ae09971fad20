"""The time after a swap: both versions loaded, counters and probe, the way back, and a watcher that is killed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from refit.pipeline import WatchLines
from refit.triton.client import TritonClient
from refit.triton.errors import ReleaseFailed, TritonError
from refit.triton.ledger import Ledger, Record
from refit.triton.rollback import rollback
from refit.triton.serving import still_serving
from refit.triton.specs import RollbackSpec, WatchSpec
from refit.triton.stage import write_report
from refit.triton.traffic import Traffic, failing, slower
from refit.triton.watch import watch
from tests.triton.fixtures import Place
from tests.triton.models import INPUT, noise
from tests.triton.test_crash import assert_settled, processes, run_until_killed

__all__ = ["processes"]
LINES = WatchLines(min_requests=20, max_slowdown=1000)  # this machine may be busy


def spec(place: Place, **more: object) -> WatchSpec:
    where = {"url": place.server.url, "repository": place.repository, "ledger": place.ledger, "model": place.name}
    limits = {"lock_seconds": 20, "timeout_seconds": 60, "every_seconds": 0.1, "minutes": 0.02, "run": "run-2"}
    return WatchSpec.model_validate({**where, **limits, "lines": LINES, **more})


def back(place: Place) -> RollbackSpec:
    return RollbackSpec(model=place.name, url=place.server.url, repository=place.repository, ledger=place.ledger)


def recorded(place: Place, version: int) -> Record:
    found = Ledger(place.ledger).read(version)
    assert found is not None
    return found


@contextmanager
def asking(place: Place, rows: int = 1) -> Iterator[list[int | str]]:
    """A client that asks without a pause; the versions that answered it, and the errors."""
    answered: list[int | str] = []
    over = threading.Event()

    def ask() -> None:
        with TritonClient(place.server.url) as client:
            while not over.is_set():
                try:
                    answered.append(client.infer(place.name, {INPUT: noise(rows)}).version)
                except TritonError as exc:
                    answered.append(str(exc))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield answered
    finally:
        over.set()
        thread.join()


def first(place: Place) -> None:
    """Version 1 serves, and was asked a few times."""
    place.release(place.model("a"))
    for _ in range(30):
        place.client.infer(place.name, {INPUT: noise(1)})


def swapped(place: Place) -> None:
    """Version 2 serves, watched, with version 1 beside it."""
    if not place.versions:
        first(place)
    report = place.release(place.model("b", seed=5), watched=True, keep_versions=1, run="run-2")
    assert (report.outcome, report.version) == ("released", 2)


def test_both_versions_stay_loaded_until_the_watch_ends(place: Place) -> None:
    first(place)
    with asking(place) as answered:
        swapped(place)
        assert place.client.ready_versions(place.name) == (1, 2)
        assert place.versions == ["1", "2"], "keep_versions: 1 waits for the watch"
        before = recorded(place, 2).traffic_before
        assert before is not None
        assert before.requests >= 30
        assert "version 1 stays loaded for the watch" in recorded(place, 2).reason
        report = watch(spec(place, keep_versions=1))
    assert (report.outcome, report.version, report.before, report.failed) == ("stays", 2, 1, 0)
    assert report.requests > 0
    assert set(answered) == {1, 2}
    assert_settled(place, 2)
    assert place.versions == ["2"]
    assert "watched by run-2: 0.02 minutes" in recorded(place, 2).reason


def test_release_of_what_is_watched_changes_nothing(place: Place) -> None:
    swapped(place)
    report = place.release(place.model("b", seed=5), watched=True)
    assert (report.outcome, report.version) == ("already_serving", 2)
    assert place.client.ready_versions(place.name) == (1, 2)
    write_report(report, place.folder)
    assert still_serving(place.folder / "release.json", url=place.server.url)


def test_the_way_back_is_no_load(place: Place, said: tuple[list[str], Callable[[str], None]]) -> None:
    """From the decision to the proven answer of the version before; how long is the benchmark's to say."""
    first(place)
    with asking(place) as answered:
        swapped(place)
        report = rollback(back(place), said[1])
    assert report.version == 1
    assert report.seconds["back"] < report.seconds["swap"]
    assert [v for v in answered if isinstance(v, str)] == []
    first_back = len(answered) - answered[::-1].index(2)
    assert set(answered[first_back:]) <= {1}
    assert_settled(place, 1)
    served = place.client.config(place.name)
    assert served.sha256 == recorded(place, 1).sha256


def counters(monkeypatch: pytest.MonkeyPatch, **more: int) -> None:
    """The real counters with a fault added to them, since no tiny model fails or dawdles on demand."""
    real = TritonClient.traffic

    def traffic(self: TritonClient, model: str, version: int) -> Traffic:
        seen = real(self, model, version)
        return Traffic(
            requests=seen.requests,
            failed=seen.failed + more.get("failed", 0),
            nanoseconds=seen.nanoseconds + seen.requests * more.get("nanoseconds", 0),
        )

    monkeypatch.setattr(TritonClient, "traffic", traffic)


def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    counters(monkeypatch, nanoseconds=50_000_000_000)


@pytest.mark.parametrize("fault", ["errors", "slower"])
def test_goes_back_when_a_line_is_crossed(place: Place, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    swapped(place)
    if fault == "errors":
        counters(monkeypatch, failed=5)
        expected = r"5 of \d+ requests failed \(.*before the swap 0.0%"
    else:
        slow(monkeypatch)
        monkeypatch.setattr("refit.triton.watch.is_slower", lambda lines, new, old: new > 0 < old)
        expected = "a request takes .* asked in turns now, .* of version 1"
    with asking(place), pytest.raises(ReleaseFailed, match=expected) as caught:
        watch(spec(place, minutes=0.5))
    assert (caught.value.champion, caught.value.rejected) == (1, True)
    assert_settled(place, 1)
    assert "the watch of run-2" in recorded(place, 1).reason


def test_goes_back_when_the_probe_is_answered_otherwise(place: Place) -> None:
    """Nobody sends requests: the probe alone sees that the version does not answer as it did when it was released."""
    swapped(place)
    path = Ledger(place.ledger).reference(2)
    with np.load(path) as file:
        arrays = {name: file[name] + (1 if name.startswith("output:") else 0) for name in file.files}
    np.savez_compressed(path, **arrays)
    with pytest.raises(ReleaseFailed, match="differs from the reference"):
        watch(spec(place))
    assert_settled(place, 1)
    with pytest.raises(ReleaseFailed, match=r"taken back within the watch: .*differs from the reference") as again:
        watch(spec(place))  # the retry of a watch that was lost before it could say so
    assert again.value.champion == 1


def test_watch_of_a_model_that_somebody_changed_meanwhile_ends(place: Place) -> None:
    swapped(place)

    def go_back(message: str) -> None:
        if message.startswith("Watching"):
            rollback(back(place))

    report = watch(spec(place, minutes=1), say=go_back)
    assert (report.outcome, report.why) == ("superseded", "somebody else changed the model meanwhile")
    assert_settled(place, 1)


def test_release_without_a_champion_or_with_another_signature_is_not_watched(place: Place) -> None:
    assert place.release(place.model("a"), watched=True).version == 1
    report = place.release(place.model("fixed", batch=1), watched=True)
    assert any("cannot stay loaded" in note for note in report.notes)
    assert place.client.ready_versions(place.name) == (2,)
    assert watch(spec(place)).why == "no other version is kept loaded"


def test_next_release_ends_an_earlier_watch(place: Place) -> None:
    swapped(place)
    report = place.release(place.model("c", seed=6), watched=True)
    assert (report.version, report.previous) == (3, 2)
    assert place.client.ready_versions(place.name) == (2, 3)
    assert rollback(back(place)).version == 2, "whose own release was watched, beside version 1"
    assert_settled(place, 2)


def _watch(step: str, asked: WatchSpec) -> None:
    import os

    os.environ["REFIT_CRASH_AT"] = step
    watch(asked)


@pytest.mark.parametrize("step", ["configured", "verified"])
def test_killed_watcher_is_finished_or_goes_on(place: Place, processes: object, step: str) -> None:
    swapped(place)
    run_until_killed(processes, _watch, step, spec(place))  # type: ignore[arg-type]
    assert place.client.infer(place.name, {INPUT: noise(1)}).version == 2
    begin = time.monotonic()
    report = watch(spec(place, minutes=1000 if step == "verified" else 0.02))
    assert time.monotonic() - begin < 1000 * 60, "the time that is left counts, not another watch"
    assert report.outcome == ("superseded" if step == "verified" else "stays")
    place.release(place.model("b", seed=5))
    assert_settled(place, 2)


def test_slow_machine_is_no_reason_to_go_back(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counters say that requests take 50 s more, and both versions answer alike when asked in turns."""
    swapped(place)
    slow(monkeypatch)
    with asking(place):
        assert watch(spec(place)).outcome == "stays"


def test_lines() -> None:
    """Too few requests are not judged; the share of failures is that above the one before; a slow-down is a factor,
    and more than noise."""
    lines = WatchLines(max_failed=0.01, max_slowdown=2, min_requests=100)
    milli = 1_000_000
    before = Traffic(requests=1000, failed=10, nanoseconds=1000 * 5 * milli)

    def now(requests: int, failed: int, each: float) -> Traffic:
        return Traffic(requests=requests, failed=failed, nanoseconds=int(requests * each * milli))

    assert failing(lines, now(10, 80, 50), before) == slower(lines, now(10, 80, 50), before) == ""
    assert failing(lines, now(990, 15, 9), before) == slower(lines, now(990, 15, 9), before) == ""
    assert failing(lines, now(970, 30, 5), before).startswith("30 of 1000 requests failed (3.0%; before the swap 1.0%")
    assert slower(lines, now(200, 0, 11), before).startswith("a request takes 11.00 ms")
    assert slower(lines, now(200, 0, 11), Traffic(requests=50, nanoseconds=milli)) == "", "nothing to be held against"
    fast = Traffic(requests=1000, nanoseconds=1000 * milli // 4)
    assert slower(lines, now(200, 0, 1.0), fast) == "", "0.75 ms more are noise, though four times as long"
    assert (now(5, 0, 1) - before).requests == 5, "a server that began anew counts from nothing"
