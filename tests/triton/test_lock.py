"""One change of a model at a time."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest

from refit.triton.errors import LockLost, ModelLocked, RepositoryError
from refit.triton.lock import ModelLock


def owner(folder: Path) -> dict[str, Any]:
    """The owner.json of the lock."""
    (path,) = (folder / "m").glob("*/owner.json")
    return dict(json.loads(path.read_text()))


def leave(folder: Path, **changed: object) -> None:
    """A lock that somebody held who is gone."""
    with ModelLock(folder, "m", run="other run", wait_seconds=0) as lock:
        value = owner(folder)
    lock.desk.mkdir(parents=True)
    (lock.desk / "owner.json").write_text(json.dumps({**value, **changed}))
    (lock.desk / "alive").touch()


def hold(folder: Path, ready: Event, go: Event, lease: float, ended: Any) -> None:
    """Hold the lock until told, then say what became of it."""
    with ModelLock(folder, "m", run="first run", wait_seconds=0, lease_seconds=lease) as lock:
        ready.set()
        go.wait(60)
        try:
            lock.check()
        except LockLost as exc:
            ended.put(str(exc))
        else:
            ended.put("held")


class Holder:
    """A process of its own that holds the lock."""

    def __init__(self, folder: Path, lease: float) -> None:
        context = multiprocessing.get_context("spawn")
        self.go = context.Event()
        self.ended: Any = context.Queue()
        ready = context.Event()
        self._process = context.Process(target=hold, args=(folder, ready, self.go, lease, self.ended))
        self._process.start()
        assert ready.wait(60)

    def send(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def join(self) -> None:
        self._process.join(60)
        assert not self._process.is_alive()


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Callable[..., Holder]]:
    made: list[Holder] = []

    def make(lease: float) -> Holder:
        made.append(Holder(tmp_path, lease))
        return made[-1]

    yield make
    for each in made:
        with contextlib.suppress(ProcessLookupError):
            each.send(signal.SIGKILL)
        each.join()


def test_given_back(tmp_path: Path) -> None:
    with ModelLock(tmp_path, "m", run="r", wait_seconds=0):
        value = owner(tmp_path)
        assert (value["pid"], value["run"]) == (os.getpid(), "r")
    assert list(tmp_path.iterdir()) == []


def test_given_back_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), ModelLock(tmp_path, "m", run="r", wait_seconds=0):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_exactly_one_holds_it(tmp_path: Path) -> None:
    inside, most, done = [0], [0], []
    guard = threading.Lock()

    def work() -> None:
        with ModelLock(tmp_path, "m", run="r", wait_seconds=30):
            with guard:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            time.sleep(0.005)
            with guard:
                inside[0] -= 1
                done.append(1)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most[0], len(done)) == (1, 6)


def test_lock_of_a_killed_process_is_taken_over(tmp_path: Path, holder: Callable[..., Holder]) -> None:
    first = holder(lease=60)
    said: list[str] = []
    with pytest.raises(ModelLocked, match="first run"), ModelLock(tmp_path, "m", run="r", wait_seconds=0):
        pass
    first.send(signal.SIGKILL)
    first.join()
    with ModelLock(tmp_path, "m", run="r", wait_seconds=0, say=said.append):
        assert owner(tmp_path)["run"] == "r"
    assert len(said) == 1
    assert said[0].startswith("Took over the lock of m: first run")
    assert list(tmp_path.iterdir()) == []


def test_lease_of_a_living_holder_is_renewed(tmp_path: Path, holder: Callable[..., Holder]) -> None:
    first = holder(lease=0.6)
    with (
        pytest.raises(ModelLocked, match="first run"),
        ModelLock(tmp_path, "m", run="r", wait_seconds=2, lease_seconds=0.6),
    ):
        pass
    first.go.set()
    assert first.ended.get(timeout=60) == "held"


def test_paused_holder_loses_the_lock_and_notices(tmp_path: Path, holder: Callable[..., Holder]) -> None:
    first = holder(lease=0.6)
    first.send(signal.SIGSTOP)
    said: list[str] = []
    with ModelLock(tmp_path, "m", run="second run", wait_seconds=30, lease_seconds=0.6, say=said.append) as lock:
        assert said[-1].endswith("gave no sign of life for 0.6 s")
        first.send(signal.SIGCONT)
        first.go.set()
        assert "second run" in first.ended.get(timeout=60)
        first.join()  # it gives nothing back that is another's
        lock.check()
        assert owner(tmp_path)["run"] == "second run"
    assert list(tmp_path.iterdir()) == []


def test_what_a_lost_lock_wrote_cannot_be_renamed(tmp_path: Path, holder: Callable[..., Holder]) -> None:
    first = holder(lease=0.6)
    (desk,) = (tmp_path / "m").iterdir()
    (desk / "config.pbtxt").write_text("old")
    first.send(signal.SIGSTOP)
    with ModelLock(tmp_path, "m", run="r", wait_seconds=30, lease_seconds=0.6), pytest.raises(FileNotFoundError):
        os.rename(desk / "config.pbtxt", tmp_path / "served")


def take(folder: Path, number: int, inside: Any, most: Any) -> None:
    with ModelLock(folder, "m", run=f"run {number}", wait_seconds=60, lease_seconds=1) as lock:
        with inside.get_lock():
            inside.value += 1
            most.value = max(most.value, inside.value)
        time.sleep(0.05)
        lock.check()
        with inside.get_lock():
            inside.value -= 1


def test_one_of_many_takes_over(tmp_path: Path) -> None:
    """Six processes want the lock of a holder on another host that is gone: never are two of them inside."""
    leave(tmp_path, host="far-away")
    context = multiprocessing.get_context("spawn")
    inside, most = context.Value("i", 0), context.Value("i", 0)
    processes = [context.Process(target=take, args=(tmp_path, n, inside, most)) for n in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 6
    assert (most.value, inside.value) == (1, 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "changed", [{"started": "1"}, {"boot": "another boot"}, {"pid": 2**22 + 1}], ids=["number reused", "reboot", "gone"]
)
def test_dead_owners_of_this_machine(tmp_path: Path, changed: dict[str, object]) -> None:
    leave(tmp_path, **changed)
    with ModelLock(tmp_path, "m", run="r", wait_seconds=0):
        pass


@pytest.mark.parametrize("changed", [{"host": "far-away"}, {"namespace": "pid:[1]"}])
def test_owner_elsewhere_is_judged_by_its_lease(tmp_path: Path, changed: dict[str, object]) -> None:
    leave(tmp_path, **changed, pid=2**22 + 1)
    said: list[str] = []
    with (
        pytest.raises(ModelLocked, match=r"other run .*holds the lock of m.*remove"),
        ModelLock(tmp_path, "m", run="r", wait_seconds=0.3, say=said.append),
    ):
        pass
    assert len(said) == 1
    with ModelLock(tmp_path, "m", run="r", wait_seconds=30, lease_seconds=0.3, say=said.append):
        assert owner(tmp_path)["run"] == "r"
    assert said[-1].startswith("Took over the lock of m: other run")


def test_lock_made_by_hand_is_respected(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "why.txt").write_text("maintenance")
    with (
        pytest.raises(ModelLocked, match="unknown owner"),
        ModelLock(tmp_path, "m", run="r", wait_seconds=0.5, lease_seconds=0.1),
    ):
        pass


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(RepositoryError, match="cannot make a lock"),
        ModelLock(tmp_path / "file", "m", run="r", wait_seconds=0),
    ):
        pass
