"""A champion change that can be killed at any step: it is finished or undone when the model is changed next.

A journal in the staging folder says what is under way. Before ``verified`` is written into it, the change is undone:
the configuration goes back, the champion is loaded and asked, the new version is moved out of the repository and the
ledger says why. From then on it is finished. Every step of both ways may be done twice without harm, so being killed
while undoing is no different.

The servers behind the address are loaded and verified one after the other, the first one before the others are asked
to load: a bad model meets one server. Before each step that could harm another's change the lock is checked.

``REFIT_CRASH_AT=<step>`` kills the process right after a step (`STEPS`, `UNDO_STEPS`); the tests use it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from refit.triton import fleet, proof
from refit.triton.bucket import open_repository
from refit.triton.champion import Champion
from refit.triton.client import TritonClient
from refit.triton.config import pin
from refit.triton.errors import (
    InferenceFailed,
    LoadFailed,
    LockLost,
    ModelNotServed,
    ProofFailed,
    ReleaseFailed,
    RepositoryError,
    TritonError,
    TritonUnavailable,
)
from refit.triton.fleet import Servers
from refit.triton.ledger import Ledger
from refit.triton.reference import Reference, Tolerance, difference
from refit.triton.repository import JOURNAL, Lock, Repository
from refit.triton.specs import Target

STEPS = (
    *("begun", "staged", "proven", "installed", "configured"),
    *("loaded", "checked", "everywhere", "verified", "recorded", "pruned"),
)
"""Steps of a release, in order; a roll back has those from `begun` without staged, proven, installed and pruned.
`loaded` and `checked` are of each server, `everywhere` is when all were verified."""

UNDO_STEPS = ("undo-configured", "undo-server", "undo-loaded", "undo-withdrawn", "undo-recorded")
"""`undo-server` is of each server."""

_UNLOAD_SECONDS = 10.0
_PREVIOUS, _ANSWERS = "previous.pbtxt", "champion.npz"

MODEL_AT_FAULT = (LoadFailed, ProofFailed, ModelNotServed, InferenceFailed)
"""Errors that say that the model cannot serve; another try with the same file would end in the same way."""

Say = Callable[[str], None]


class Journal(BaseModel):
    """What is under way for a model; ``previous.pbtxt`` and ``champion.npz`` stand beside it.

    Attributes:
        version: the version that is to serve.
        champion: the versions that served when the change began.
        had_config: there was a config.pbtxt then.
        touched: config.pbtxt may have been replaced.
        verified: the new version serves and answers right; there is only bookkeeping left.
        beside: the version that stays loaded beside the new one, for the watch; None: none does.
        note: what the ledger is to say of a watch that ended well.
        failed: why it is being undone, "" while it is not.
    """

    model_config = ConfigDict(frozen=True)

    schema_: Literal[1] = 1
    kind: Literal["release", "rollback", "watch"]
    model: str
    version: int
    champion: tuple[int, ...]
    had_config: bool
    ledger: Path
    keep_versions: int
    run: str
    touched: bool = False
    verified: bool = False
    failed: str = ""
    beside: int | None = None
    note: str = ""

    @property
    def loaded(self) -> tuple[int, ...]:
        """The versions that are to be loaded in the end; the last one is the one that is to answer."""
        return (self.version,) if self.beside is None else (self.beside, self.version)


@dataclass(frozen=True)
class Undone:
    """How an undone change ended.

    Attributes:
        champion: the version that serves, None where none does.
        restored: what served before serves again.
        note: what went wrong while undoing, "" when nothing did.
    """

    champion: int | None
    restored: bool
    note: str


def reached(step: str) -> None:
    """A step is done; here a test may end the process as a power cut would."""
    if os.environ.get("REFIT_CRASH_AT") == step:
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Held:
    """What a change works on, while nobody else may."""

    repository: Repository
    servers: Servers
    lock: Lock


class Change:
    """One change of one model, with the model's lock held.

    Args:
        target: model, limits.
        held: repository, servers and lock.
        say: is told what happens.
    """

    def __init__(self, target: Target, held: Held, journal: Journal, say: Say) -> None:
        self.target = target
        self.repository = held.repository
        self.servers = held.servers
        self.lock = held.lock
        self.journal = journal
        self.say = say

    @classmethod
    def begin(
        cls,
        kind: Literal["release", "rollback", "watch"],
        target: Target,
        held: Held,
        *,
        version: int,
        champion: Champion,
        keep_versions: int,
        run: str,
        say: Say,
        beside: int | None = None,
        note: str = "",
    ) -> Change:
        """Write down what serves now, then that a change begins."""
        repository = held.repository
        held.lock.check()
        repository.begin(target.model)
        config = repository.read_config(target.model)
        if config is not None:
            repository.keep(target.model, _PREVIOUS, config)
        if champion.answers is not None:
            repository.keep(target.model, _ANSWERS, champion.answers.to_bytes())
        journal = Journal(
            kind=kind,
            model=target.model,
            version=version,
            champion=champion.versions,
            had_config=config is not None,
            ledger=target.ledger.absolute(),
            keep_versions=keep_versions,
            run=run,
            beside=beside,
            note=note,
        )
        change = cls(target, held, journal, say)
        change._save()
        return change

    def swap(self, config: bytes, sha256: str | None, expected: Reference) -> proof.Proof:
        """Point the configuration at the new version, load it everywhere, and prove that every server serves it.

        Args:
            sha256: as the configuration has it; None: not looked at.

        Raises:
            LockLost, LoadFailed, ProofFailed, ModelNotServed, InferenceFailed, TritonUnavailable; the caller undoes.
        """
        self._save(touched=True)
        try:
            self.repository.write_config(self.journal.model, config, self.lock.desk)
        except FileNotFoundError:
            self.lock.check()  # says that it was lost, where it was
            raise
        reached("configured")
        result = None
        for server in self.servers:
            self.lock.check()
            try:
                server.load(self.journal.model)
            except LoadFailed as exc:
                hint = ": its log says why, or it reads another repository" if "failed to poll" in str(exc) else ""
                raise LoadFailed(f"{exc}{hint}") from None
            reached("loaded")
            result = self._verify([server], sha256, expected)
            reached("checked")
        # A server that was proven first may have gone away while the others loaded.
        if result is None or len(self.servers) > 1:
            result = self._verify(self.servers, sha256, expected)
        reached("everywhere")
        return result

    def route(self, expected: Reference) -> None:
        """Back at once to a version that is loaded still: its number alone in the policy, nothing else changed, so
        that Triton loads nothing (measured: 6 ms). Parameters and sidecar are still those of the version that is left.

        Raises:
            as `swap`.
        """
        config = self.repository.read_config(self.journal.model)
        assert config is not None, "it pins the version that is loaded still"
        self.swap(pin(config, self.journal.loaded), None, expected)

    def _verify(self, servers: Servers, sha256: str | None, expected: Reference) -> proof.Proof:
        return fleet.verify(
            servers,
            self.journal.model,
            self.journal.version,
            sha256,
            expected,
            loaded=self.journal.loaded,
            tolerance=tolerance(self.target),
            timeout_seconds=self.target.timeout_seconds,
        )

    def finish(self) -> list[int]:
        """The new version serves: record it, and remove what is too old.

        Returns:
            The versions that were pruned.
        """
        journal = self.journal
        self._save(verified=True)
        reached("verified")
        ledger = Ledger(journal.ledger)
        back = journal.kind == "rollback"
        did = {"release": "released by", "rollback": "rolled back to by", "watch": "watched by"}[journal.kind]
        why = f"{did} {journal.run}{f': {journal.note}' if journal.note else ''}"
        # The new one first: killed in between, the ledger says of both that they serve, and the newer word counts.
        found = ledger.find(journal.model, journal.version)
        if found:
            found[0].write(found[1].turn("serving", why))
        for version in journal.champion:
            found = ledger.find(journal.model, version)
            if found and version != journal.version:
                reason = f"{'rolled back' if back else 'replaced'} by version {journal.version} ({journal.run})"
                if found[1].state != "retired":
                    found[0].write(found[1].turn("retired", reason))
        reached("recorded")
        self.lock.check()
        removed = [] if back or journal.beside is not None else self._prune()
        reached("pruned")
        self.repository.clean(journal.model)
        return removed

    def _prune(self) -> list[int]:
        """Remove old versions; Triton lets go of the last champion first, where it does."""
        model, rule = self.journal.model, {"serving": self.journal.version, "keep_versions": self.journal.keep_versions}
        if self.repository.surplus(model, **rule):
            fleet.each(self.servers, lambda server: proof.wait_unloaded(server, model, _UNLOAD_SECONDS))
        removed = self.repository.prune(model, **rule)
        for version in removed:
            found = Ledger(self.journal.ledger).find(model, version)
            if found:
                found[0].forget(version)
        return removed

    def undo(self, reason: str) -> Undone:
        """Bring back what served before; the new version leaves the repository.

        Raises:
            LockLost: nothing was touched; who has the lock now does it.
            TritonUnavailable: a server cannot be asked. The others serve the champion, and the files are back as they
                were, so that a restart serves it too; the journal stays, and the next change of the model asks again.
        """
        journal = self.journal
        with _deaf():
            self.lock.check()
            with contextlib.suppress(OSError):  # a full disk must not keep the champion from coming back
                self._save(failed=journal.failed or reason)
            try:
                undone = self._restore() if journal.touched else Undone(max(journal.champion, default=None), True, "")
            except TritonUnavailable:
                self._withdraw()
                raise
            reached("undo-loaded")
            self._withdraw()
            reached("undo-withdrawn")
            if journal.kind == "release":
                found = Ledger(journal.ledger).find(journal.model, journal.version)
                if found:
                    found[0].write(found[1].turn("failed", self.journal.failed))
                    found[0].forget(journal.version)
            reached("undo-recorded")
            self.repository.clean(journal.model)
        return undone

    def fail(self, exc: BaseException) -> None:
        """Undo because of an error.

        Raises:
            LockLost: the lock was lost on the way, so nothing was undone here.
            ReleaseFailed: with what serves now. Anything that is not about Triton or files (a signal, a fault of
                ours) returns, so that the caller raises it as it came.
        """
        journal = self.journal
        if isinstance(exc, LockLost):
            raise exc
        reason = str(exc) or type(exc).__name__
        self.say(f"Version {journal.version} of {journal.model} failed, going back: {reason}")
        before = max(journal.champion, default=None)
        try:
            undone = self.undo(reason)
        except (TritonUnavailable, RepositoryError, OSError) as gone:
            serves = f"version {before}" if before is not None else "what was there before"
            raise ReleaseFailed(  # what serves comes first: the end of a message may be cut off
                f"Going back is not done yet: {gone}. A restart of Triton serves {serves}; the next change of "
                f"{journal.model} goes on with it, so release again when this is mended. It began with: {reason}",
                rejected=False,
                champion=None,
                restored=False,
            ) from exc
        if not isinstance(exc, TritonError | OSError):
            return
        if not undone.restored:
            state = f"THE CHAMPION, version {before}, DOES NOT SERVE AS IT DID ({undone.note}): look at Triton now"
        elif undone.champion is not None:
            state = f"version {undone.champion} serves as before"
        else:
            state = "nothing served before, and nothing serves now"
        raise ReleaseFailed(
            f"{state}; version {journal.version} of {journal.model} does not serve: {reason}",
            rejected=isinstance(exc, MODEL_AT_FAULT),
            champion=undone.champion,
            restored=undone.restored,
        ) from exc

    def _restore(self) -> Undone:
        """Configuration and server as they were."""
        journal = self.journal
        if journal.had_config:
            self.repository.put_back_config(journal.model, _PREVIOUS, self.lock.desk)
        else:
            self.repository.remove_config(journal.model)
        reached("undo-configured")
        errors = fleet.each(self.servers, self._restore_server)
        for exc in errors:
            if isinstance(exc, LockLost):
                raise exc
        gone = [exc for exc in errors if isinstance(exc, TritonUnavailable)]
        wrong = "; ".join(str(exc) for exc in errors if exc not in gone)
        if gone:
            if wrong:
                self.say(wrong)
            raise gone[0]
        if wrong or not journal.champion:
            return Undone(None, not wrong, wrong)
        return Undone(max(journal.champion), True, "")

    def _restore_server(self, server: TritonClient) -> None:
        """One server as it was. Raises TritonError where it is not."""
        journal = self.journal
        self.lock.check()
        if not journal.champion:
            server.unload(journal.model)
            return
        note = ""
        try:
            server.load(journal.model)
        except LoadFailed as exc:  # what was loaded goes on serving; its answers decide
            note = f"{exc}; "
        try:
            proof.wait_for_versions(server, journal.model, journal.champion, self.target.timeout_seconds)
            self._ask_champion(server)
        except TritonUnavailable:
            raise
        except TritonError as exc:
            raise ProofFailed(f"{note}{exc}") from None
        reached("undo-server")

    def _ask_champion(self, server: TritonClient) -> None:
        """The champion answers as it did before the change began."""
        data = self.repository.kept(self.journal.model, _ANSWERS)
        if data is None:
            return
        served = server.config(self.journal.model)
        before = Reference.parse(data, served.signature, "the champion's answers before the change")
        answers, versions, _ = proof.ask(server, self.journal.model, served.signature, before.inputs)
        if not versions <= set(self.journal.champion):
            raise ProofFailed(f"versions {sorted(versions)} answer, not {list(self.journal.champion)}")
        difference(before.outputs, answers, tolerance(self.target))

    def _withdraw(self) -> None:
        self.lock.check()
        if self.journal.kind == "release":
            self.repository.withdraw(self.journal.model, self.journal.version, self.journal.failed)
            if not self.journal.had_config:
                self.repository.remove_config(self.journal.model)

    def _save(self, **changed: object) -> None:
        self.lock.check()
        self.journal = self.journal.model_copy(update=changed)
        text = self.journal.model_dump_json(indent=1) + "\n"
        self.repository.keep(self.journal.model, JOURNAL, text.encode())


@contextmanager
def exclusive(target: Target, run: str, say: Say) -> Iterator[Held]:
    """The repository and the servers of a target, with the model's lock held and every older change settled.

    Raises:
        TritonUnavailable: nothing was touched; but where an older change was left half done, its files are put back.
        ModelLocked, RepositoryError.
    """
    with fleet.connect(target.url, target.timeout_seconds) as servers:
        down: TritonUnavailable | None = None
        try:
            fleet.live(servers)
        except TritonUnavailable as exc:
            down = exc
        repository = open_repository(target.repository)
        if down is not None and repository.kept(target.model, JOURNAL) is None:
            raise down
        with repository.lock(target.model, run=run, wait_seconds=target.lock_seconds, say=say) as lock:
            held = Held(repository, servers, lock)
            pending = repository.kept(target.model, JOURNAL)
            if pending is not None:
                _settle(pending, target, held, say)
            fleet.live(servers)
            yield held


def _settle(pending: bytes, target: Target, held: Held, say: Say) -> None:
    """Finish or undo a change that was killed."""
    try:
        journal = Journal.model_validate_json(pending)
    except ValidationError as exc:
        raise RepositoryError(
            f"{held.repository.place}.staging/{target.model}/{JOURNAL}: the journal of an unfinished release cannot be "
            f"read ({exc}); see what Triton serves, put config.pbtxt right, and remove it"
        ) from exc
    change = Change(target, held, journal, say)
    if journal.verified:
        change.finish()
        say(f"Finished the {journal.kind} of version {journal.version} that {journal.run} left behind")
        return
    undone = change.undo(f"the {journal.kind} by {journal.run} ended before the version was verified")
    say(
        f"Undid the {journal.kind} of version {journal.version} that {journal.run} left behind; "
        + (f"version {undone.champion} serves" if undone.champion else "nothing serves")
        + (f" ({undone.note})" if undone.note else "")
    )


def tolerance(target: Target) -> Tolerance:
    return Tolerance(target.tolerance.largest, target.tolerance.mean)


@contextmanager
def _deaf() -> Iterator[None]:
    """SIGTERM and Ctrl-C wait while a change is undone: stopping there would only leave more to do later."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    late: list[int] = []
    before = {n: signal.signal(n, lambda number, _: late.append(number)) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for known, handler in before.items():
            signal.signal(known, signal.SIG_DFL if handler is None else handler)
        if late:
            signal.raise_signal(late[0])
