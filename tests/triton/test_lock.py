"""One change of a model at a time."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from refit.triton.errors import ModelLocked, RepositoryError
from refit.triton.lock import ModelLock


def owner(folder: Path, **changed: object) -> None:
    """A lock that somebody else holds."""
    with ModelLock(folder, "m", run="other run", wait_seconds=0):
        value = json.loads((folder / "m" / "owner.json").read_text())
    (folder / "m").mkdir(parents=True)
    (folder / "m" / "owner.json").write_text(json.dumps({**value, **changed}))


def hold(folder: Path, ready: object) -> None:
    with ModelLock(folder, "m", run="killed run", wait_seconds=0):
        ready.set()  # type: ignore[attr-defined]
        time.sleep(60)


def test_given_back(tmp_path: Path) -> None:
    with ModelLock(tmp_path, "m", run="r", wait_seconds=0):
        value = json.loads((tmp_path / "m" / "owner.json").read_text())
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


def test_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=hold, args=(tmp_path, ready))
    process.start()
    assert ready.wait(60)
    assert process.pid is not None
    said: list[str] = []
    with pytest.raises(ModelLocked, match="killed run"), ModelLock(tmp_path, "m", run="r", wait_seconds=0):
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with ModelLock(tmp_path, "m", run="r", wait_seconds=0, say=said.append):
        assert json.loads((tmp_path / "m" / "owner.json").read_text())["run"] == "r"
    assert len(said) == 1
    assert said[0].startswith("Took over the lock of m: killed run")


@pytest.mark.parametrize(
    "changed", [{"started": "1"}, {"boot": "another boot"}, {"pid": 2**22 + 1}], ids=["number reused", "reboot", "gone"]
)
def test_dead_owners_of_this_machine(tmp_path: Path, changed: dict[str, object]) -> None:
    owner(tmp_path, **changed)
    with ModelLock(tmp_path, "m", run="r", wait_seconds=0):
        pass


@pytest.mark.parametrize("changed", [{"host": "far-away"}, {"namespace": "pid:[1]"}])
def test_owner_elsewhere_is_not_judged(tmp_path: Path, changed: dict[str, object]) -> None:
    owner(tmp_path, **changed, pid=2**22 + 1)
    said: list[str] = []
    with (
        pytest.raises(ModelLocked, match=r"other run .*holds the lock of m.*remove"),
        ModelLock(tmp_path, "m", run="r", wait_seconds=0.3, say=said.append),
    ):
        pass
    assert len(said) == 1
    assert (tmp_path / "m" / "owner.json").exists()


def test_lock_made_by_hand_is_respected(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "why.txt").write_text("maintenance")
    with pytest.raises(ModelLocked, match="unknown owner"), ModelLock(tmp_path, "m", run="r", wait_seconds=0):
        pass


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(RepositoryError, match="cannot make a lock"),
        ModelLock(tmp_path / "file", "m", run="r", wait_seconds=0),
    ):
        pass
