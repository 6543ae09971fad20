"""Releases into several real Tritons that read one repository: each is loaded and proven, or all go back."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from refit.triton.client import TritonClient
from refit.triton.errors import (
    LockLost,
    ModelNotServed,
    ReleaseFailed,
    RepositoryError,
    ServersDiffer,
    TritonUnavailable,
)
from refit.triton.fleet import SERVERS_VARIABLE, addresses
from refit.triton.installation import Installation
from refit.triton.ledger import Ledger
from refit.triton.release import release
from refit.triton.rollback import rollback
from refit.triton.server import TritonServer
from refit.triton.specs import ReleaseReport, ReleaseSpec, RollbackSpec
from refit.triton.transaction import STEPS
from tests.triton.models import INPUT, REPOSITORY, make_model, noise, release_spec

MODEL = "demo"


def crash(step: str, nth: int, spec: ReleaseSpec) -> None:
    """Release, and be killed when a step is reached for the nth time."""
    from refit.triton import release as releases
    from refit.triton import transaction

    left = [nth]

    def reached(name: str) -> None:
        if name == step:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    transaction.reached = releases.reached = reached
    release(spec)


def pause(spec: ReleaseSpec, lease: float) -> None:
    """Release with a short lease, and be paused before the version goes into the repository."""
    from refit.triton import lock

    lock.LEASE_SECONDS = lease

    def say(message: str) -> None:
        if message.startswith("Loading"):
            os.kill(os.getpid(), signal.SIGSTOP)

    try:
        release(spec, say=say)
    except LockLost:
        sys.exit(5)


@dataclass
class Farm:
    """Servers over one repository; `REFIT_TRITON_SERVERS` names those that run."""

    folder: Path
    installation: Installation
    servers: dict[str, TritonServer]
    patch: pytest.MonkeyPatch

    @property
    def models(self) -> Path:
        return self.folder / "models"

    @property
    def ledger(self) -> Path:
        return self.folder / "workspace" / "demo" / "releases"

    def start(self, name: str) -> TritonServer:
        """Start a server under a name, at its old port where it had one."""
        port = int(self.servers[name].url.rpartition(":")[2]) if name in self.servers else None
        server = TritonServer(
            self.models, self.folder / name, http_port=port, installation=self.installation, stop_seconds=0
        )
        server.start()
        self.servers[name] = server
        self.listed()
        return server

    def listed(self, *names: str) -> None:
        """Name these servers to the releases, all by default."""
        self.patch.setenv(SERVERS_VARIABLE, ",".join(self.servers[n].url for n in names or self.servers))

    def kill(self, name: str) -> None:
        """kill -9 of the whole server."""
        pid = self.servers[name].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        self.servers[name].stop()

    def spec(self, seed: int, **more: object) -> ReleaseSpec:
        path = make_model(self.folder / f"seed{seed}", seed=abs(seed), **({"operator": "Unknown"} if seed < 0 else {}))
        where = {"repository": self.models, "ledger": self.ledger, "model": MODEL, "run": f"run-{seed}"}
        return release_spec(path, url=self.servers["a"].url, **{**where, **more})

    def release(self, seed: int, say: Callable[[str], None] = lambda _: None) -> ReleaseReport:
        return release(self.spec(seed), say=say)

    def answers(self) -> dict[str, int]:
        """The version that each running server answers with; it must be the only one that it serves."""
        found = {}
        for name, server in self.servers.items():
            if server.alive():
                with TritonClient(server.url) as client:
                    found[name] = client.infer(MODEL, {INPUT: noise(1)}).version
                    assert client.ready_versions(MODEL) == (found[name],)
        return found

    def states(self) -> list[str]:
        return [r.state for r in Ledger(self.ledger).records(MODEL)]


@pytest.fixture
def farm(local_triton: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Farm]:
    """Two servers that run, and the champion, version 1, on both."""
    made = Farm(tmp_path, local_triton, {}, monkeypatch)
    try:
        for name in ("a", "b"):
            made.start(name)
        made.release(1)
        yield made
    finally:
        for server in made.servers.values():
            server.stop()


def when(word: str, act: Callable[[], object]) -> Callable[[str], None]:
    """A `say` that acts once when a message begins with a word."""
    todo = [act]

    def say(message: str) -> None:
        if message.startswith(word) and todo:
            todo.pop()()

    return say


def on_step(monkeypatch: pytest.MonkeyPatch, step: str, nth: int, act: Callable[[], object]) -> None:
    """Act when a release reaches a step for the nth time."""
    seen: list[str] = []

    def reached(name: str) -> None:
        seen.append(name)
        if name == step and seen.count(step) == nth:
            act()

    monkeypatch.setattr("refit.triton.transaction.reached", reached)


def test_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SERVERS_VARIABLE, raising=False)
    assert addresses("http://triton:8000") == ["http://triton:8000"]
    monkeypatch.setenv(SERVERS_VARIABLE, "http://10.1.2.3:8000, http://10.1.2.4:8000,http://10.1.2.3:8000,")
    assert addresses("http://triton:8000") == ["http://10.1.2.3:8000", "http://10.1.2.4:8000"]
    monkeypatch.setenv(SERVERS_VARIABLE, " , ")
    with pytest.raises(RepositoryError, match="REFIT_TRITON_SERVERS is ' , ' and names no server"):
        addresses("http://triton:8000")


def test_release_and_rollback_reach_every_server(farm: Farm) -> None:
    farm.start("c")
    report = farm.release(2)
    assert (report.outcome, report.version, report.previous) == ("released", 2, 1)
    assert report.servers == [s.url for s in farm.servers.values()]
    assert report.url == farm.servers["a"].url
    assert farm.answers() == {"a": 2, "b": 2, "c": 2}
    back = RollbackSpec(model=MODEL, url=report.url, repository=farm.models, ledger=farm.ledger)
    assert rollback(back).servers == report.servers
    assert farm.answers() == {"a": 1, "b": 1, "c": 1}


def test_bad_model_meets_one_server_and_all_serve_the_champion(farm: Farm) -> None:
    with TritonClient(farm.servers["b"].url) as client:
        before = client.index(MODEL)
        with pytest.raises(ReleaseFailed, match=r"(?s)version 1 serves as before.*Unknown") as failed:
            farm.release(-1)
        assert failed.value.rejected
        assert [e for e in client.index(MODEL) if e not in before] == []
    assert farm.answers() == {"a": 1, "b": 1}
    assert farm.states() == ["serving", "failed"]


def test_first_release_that_fails_on_the_second_server_leaves_nothing(
    farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = farm.spec(5, model="new")
    stale = farm.models / "new"

    def spoil() -> None:
        """What the second server would load is damaged."""
        (stale / "2" / "model.onnx").write_bytes(b"damaged")

    on_step(monkeypatch, "checked", 1, spoil)
    with pytest.raises(ReleaseFailed, match="nothing served before"):
        release(spec)
    for server in farm.servers.values():
        with TritonClient(server.url) as client, pytest.raises(ModelNotServed):
            client.infer("new", {INPUT: noise(1)})
    assert farm.answers() == {"a": 1, "b": 1}


@pytest.mark.parametrize(
    ("step", "nth", "name"), [("configured", 1, "a"), ("loaded", 1, "b"), ("checked", 1, "a"), ("checked", 2, "a")]
)
def test_server_killed_in_the_middle(
    farm: Farm, monkeypatch: pytest.MonkeyPatch, step: str, nth: int, name: str
) -> None:
    """Whichever it is and whenever it goes: the others are back at the champion, and so is that one when it returns."""
    on_step(monkeypatch, step, nth, lambda: farm.kill(name))
    with pytest.raises(ReleaseFailed, match=r"Going back is not done yet.*cannot be reached") as failed:
        farm.release(2)
    assert farm.servers[name].url in str(failed.value)
    assert not failed.value.rejected
    other = "b" if name == "a" else "a"
    assert farm.answers() == {other: 1}
    monkeypatch.undo()
    farm.start(name)
    assert farm.answers() == {"a": 1, "b": 1}
    report = farm.release(2)
    assert (report.outcome, report.version) == ("released", 3)
    assert farm.answers() == {"a": 3, "b": 3}
    assert farm.states() == ["retired", "failed", "serving"]


def test_server_that_is_gone_for_good_is_no_longer_named(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    farm.start("c")
    on_step(monkeypatch, "checked", 1, lambda: farm.kill("c"))
    with pytest.raises(ReleaseFailed, match="Going back is not done yet"):
        farm.release(2)
    with pytest.raises(TritonUnavailable):
        farm.release(2)
    farm.listed("a", "b")
    assert farm.release(2).version == 3
    assert farm.answers() == {"a": 3, "b": 3}


def test_server_that_restarts_in_the_middle_is_proven_all_the_same(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    def restart() -> None:
        farm.kill("a")
        farm.start("a")

    on_step(monkeypatch, "checked", 1, restart)
    report = farm.release(2)
    assert (report.outcome, report.version) == ("released", 2)
    assert farm.answers() == {"a": 2, "b": 2}


def test_server_that_comes_up_unnamed_is_brought_up_to_date_by_the_next_release(farm: Farm) -> None:
    """It loads the champion before the swap, is not asked, and serves the old version until a release knows it."""
    listed = os.environ[SERVERS_VARIABLE]

    def come_up() -> None:
        farm.start("c")

    said: list[str] = []
    report = release(farm.spec(2), say=when("Loading", come_up))
    assert report.servers == listed.split(",")
    assert farm.answers() == {"a": 2, "b": 2, "c": 1}
    again = farm.release(2, say=said.append)
    assert (again.outcome, again.version) == ("already_serving", 2)
    assert again.servers == [s.url for s in farm.servers.values()]
    assert farm.answers() == {"a": 2, "b": 2, "c": 2}
    assert any(m.startswith("Not every Triton serves the same") for m in said)
    assert farm.states() == ["retired", "serving"]


def test_servers_that_cannot_be_made_to_agree_are_named(farm: Farm, tmp_path: Path) -> None:
    other = TritonServer(tmp_path / "other", tmp_path / "x", installation=farm.installation, stop_seconds=0)
    with other:
        farm.servers["x"] = other
        farm.listed()
        with pytest.raises(ServersDiffer, match=rf"{other.url} serves nothing.*Mend or remove"):
            farm.release(2)
        del farm.servers["x"]
    assert farm.answers() == {"a": 1, "b": 1}
    assert farm.states() == ["serving"]


@pytest.mark.parametrize(
    ("step", "nth"), [(s, n) for s in STEPS[STEPS.index("configured") :] for n in (1, 2) if n == 1 or s in STEPS[5:7]]
)
def test_killed_release_is_finished_or_undone_everywhere(farm: Farm, step: str, nth: int) -> None:
    spec = farm.spec(2)
    code = (
        "import sys; from tests.triton.test_fleet import crash; from refit.triton.specs import ReleaseSpec\n"
        "crash(sys.argv[1], int(sys.argv[2]), ReleaseSpec.model_validate_json(sys.argv[3]))"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code, step, str(nth), spec.model_dump_json()],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        timeout=60,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    loaded = {"configured": 0, "loaded": nth, "checked": nth}.get(step, 2)
    assert farm.answers() == {"a": 2 if loaded > 0 else 1, "b": 2 if loaded > 1 else 1}
    done = STEPS.index(step) >= STEPS.index("verified")
    report = farm.release(2)
    assert (report.outcome, report.version) == (("already_serving", 2) if done else ("released", 3))
    assert farm.answers() == dict.fromkeys(("a", "b"), report.version)
    assert farm.states() == (["retired", "serving"] if done else ["retired", "failed", "serving"])
    assert sorted(p.name for p in farm.models.parent.glob("models.staging/*")) == []


def test_paused_release_changes_nothing_after_it_was_taken_over(farm: Farm) -> None:
    code = (
        "import sys; from tests.triton.test_fleet import pause; from refit.triton.specs import ReleaseSpec\n"
        "pause(ReleaseSpec.model_validate_json(sys.argv[1]), 1.0)"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", code, farm.spec(2).model_dump_json()],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    try:
        stopped = os.waitid(os.P_PID, first.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        assert stopped is not None
        assert stopped.si_code == os.CLD_STOPPED
        farm.patch.setattr("refit.triton.lock.LEASE_SECONDS", 1.0)
        said: list[str] = []
        report = farm.release(3, say=said.append)
        assert any("gave no sign of life for 1 s" in m for m in said)
        assert any("Undid the release of version 2" in m for m in said)
        assert (report.outcome, report.version) == ("released", 3)
        config = (farm.models / MODEL / "config.pbtxt").read_bytes()
        first.send_signal(signal.SIGCONT)
        assert first.wait(30) == 5
    finally:
        with contextlib.suppress(ProcessLookupError):
            first.kill()
        first.wait()
    assert (farm.models / MODEL / "config.pbtxt").read_bytes() == config
    assert farm.answers() == {"a": 3, "b": 3}
    assert farm.states() == ["retired", "failed", "serving"]
    assert json.loads((farm.ledger / "3" / "release.json").read_text())["previous"]["version"] == 1
