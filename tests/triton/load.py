"""Clients that ask without a pause while a model is changed, and what each of their answers was allowed to be.

`tests/triton/test_load.py` plays a short piece of it, `benchmarks/release.py` the whole.
"""

from __future__ import annotations

import hashlib
import signal
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType

import pytest

from refit.triton.client import TritonClient
from refit.triton.errors import ReleaseFailed, TritonError
from refit.triton.ledger import Ledger
from refit.triton.release import release
from refit.triton.rollback import rollback
from refit.triton.specs import ReleaseSpec, RollbackSpec
from tests.triton.fixtures import Place
from tests.triton.models import INPUT, noise, run_cli, write_spec

PAUSE_SECONDS = 0.002


@dataclass(frozen=True)
class Answer:
    """One request: when it was sent and answered, by which version (None: an error), and its values' hash or the
    error."""

    sent: float
    received: float
    version: int | None
    said: str


@dataclass
class Clients(AbstractContextManager["Clients"]):
    """Threads with a connection each that is kept open; `answers` grows while the block runs."""

    url: str
    model: str
    threads: int = 4
    answers: list[Answer] = field(default_factory=list)

    def __enter__(self) -> Clients:
        self._over = threading.Event()
        self._running = [threading.Thread(target=self._ask) for _ in range(self.threads)]
        for thread in self._running:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._over.set()
        for thread in self._running:
            thread.join()

    def wait_for(self, count: int) -> None:
        while len(self.answers) < count:
            time.sleep(0.01)

    def _ask(self) -> None:
        sample = {INPUT: noise(1)}
        with TritonClient(self.url) as client:
            while not self._over.is_set():
                sent = time.perf_counter()
                try:
                    got = client.infer(self.model, sample)
                    values = b"".join(got.outputs[name].tobytes() for name in sorted(got.outputs))
                    version, said = got.version, hashlib.sha256(values).hexdigest()
                except TritonError as exc:
                    version, said = None, str(exc)
                self.answers.append(Answer(sent, time.perf_counter(), version, said))
                time.sleep(PAUSE_SECONDS)


@dataclass
class Verdict:
    """What became of the requests: errors, and answers of versions that were not meant to serve."""

    requests: int = 0
    versions: set[int] = field(default_factory=set)
    failed: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)


class Play:
    """Changes of a model, with what may answer from when on.

    Attributes:
        meant: moments from which on these versions were meant to serve.
        done: what was played, in order.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        version = place.release(place.model("first"), keep_versions=100).version
        self.serving = version
        self.meant: list[tuple[float, frozenset[int]]] = [(0.0, frozenset({version}))]
        self.done: list[str] = []

    def swap(self, seed: int, *, watched: bool = False) -> dict[str, float]:
        """A release that succeeds; its seconds."""
        begin = time.perf_counter()
        report = release(self._spec(seed, watched=watched))
        self._ended("swap, watched" if watched else "swap", begin, report.version)
        return report.seconds

    def fail(self) -> None:
        """A release of a model that Triton cannot load: the champion alone may answer."""
        with pytest.raises(ReleaseFailed) as caught:
            release(self.place.spec(self.place.model("bad", operator="Unknown"), keep_versions=100))
        assert caught.value.champion == self.serving
        self.done.append("failed release")

    def back(self) -> dict[str, float]:
        """A roll back; its seconds."""
        begin = time.perf_counter()
        report = rollback(self._rollback())
        self._ended("roll back", begin, report.version)
        return report.seconds

    def crash(self, step: str, seed: int, *, kind: str = "release") -> None:
        """A change that is killed after a step, and the next one, which settles it."""
        undo = step.startswith("undo")
        path = self.place.model(f"seed-{seed}", seed=seed, operator="Unknown" if undo else "Sigmoid")
        asked: ReleaseSpec | RollbackSpec = self.place.spec(path, keep_versions=100, run=f"killed at {step}")
        spec = write_spec(self._rollback() if kind == "rollback" else asked, self.place.folder / "crash.yaml")
        begin = time.perf_counter()
        killed = run_cli(kind, "-e", spec, "-r", self.place.folder / "out", REFIT_CRASH_AT=step)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        report = release(self._spec(seed + 500))
        tried = report.version - 1
        if kind == "rollback":
            record = Ledger(self.place.ledger).read(self.serving)
            assert record is not None
            assert record.previous is not None
            tried = record.previous.version
        self._ended(f"{kind} killed at {step}", begin, report.version, () if undo else (tried,))

    def judge(self, answers: Sequence[Answer]) -> Verdict:
        """Hold every answer against what was meant to serve between its sending and its receipt."""
        verdict, values = Verdict(), dict[int, str]()
        spans = list(zip(self.meant, [*self.meant[1:], (float("inf"), frozenset[int]())], strict=True))
        for a in answers:
            verdict.requests += 1
            if a.version is None:
                verdict.failed.append(a.said)
                continue
            verdict.versions.add(a.version)
            meant = {v for (since, who), (until, _) in spans if since <= a.received and a.sent <= until for v in who}
            if a.version not in meant:
                verdict.strangers.append(f"version {a.version} answered where {sorted(meant)} were meant to")
            if values.setdefault(a.version, a.said) != a.said:
                verdict.strangers.append(f"version {a.version} answered with other values than before")
        return verdict

    def _ended(self, what: str, begin: float, version: int, during: Iterable[int] = ()) -> None:
        self.meant.append((begin, frozenset({self.serving, version, *during})))
        self.meant.append((time.perf_counter(), frozenset({version})))
        self.serving = version
        self.done.append(what)

    def _spec(self, seed: int, *, watched: bool = False) -> ReleaseSpec:
        path = self.place.model(f"seed-{seed}", seed=seed)
        return self.place.spec(path, keep_versions=100, watched=watched)

    def _rollback(self) -> RollbackSpec:
        place = self.place
        return RollbackSpec(
            model=place.name, url=place.server.url, repository=place.repository, ledger=place.ledger, lock_seconds=20
        )
