"""The time after a swap: both versions stay loaded, Triton's own counters and a probe say whether the new one stays.

A release with ``watched`` pins both versions, and unversioned requests get the higher one, so going back is one line
in the policy and no load (`transaction.Change.route`). What is looked at:

- a probe: the release's first sample, with the answer that it had then. A dead stub process leaves every readiness at
  200, only an inference tells.
- `traffic`: failed requests and their mean time, since the swap and within the last minute, against those of the
  version before. A slow-down counts only where both versions, asked in turns, differ as much: a machine that is busy
  with something else is no reason to go back.

Watching takes no lock, so that a person may go back or release meanwhile; the watch sees it and ends. A watcher that is
killed leaves both versions loaded and the new one serving, which is also what the ledger says: the next start of the
watch goes on with the time that is left, and any other change of the model begins from there.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from refit.triton import fleet, proof, reference
from refit.triton.artefact import read_request
from refit.triton.champion import look
from refit.triton.client import TritonClient
from refit.triton.config import pin
from refit.triton.errors import ModelNotServed, ReleaseFailed, RepositoryError, TritonUnavailable
from refit.triton.fleet import Servers
from refit.triton.ledger import Ledger, Record
from refit.triton.rollback import expected_of, rollback
from refit.triton.specs import RollbackSpec, WatchReport, WatchSpec
from refit.triton.traffic import Traffic, failing, is_slower, slower
from refit.triton.transaction import MODEL_AT_FAULT, Change, exclusive, reached, tolerance

_WINDOW_SECONDS = 60.0
_TURNS = 15
_SILENCES = 3
"""A server that does not answer for so many looks in a row ends the watch's try: the next one asks who is there."""

_CHANGED = "somebody else changed the model meanwhile"

Say = Callable[[str], None]


def watch(spec: WatchSpec, out: Path | None = None, say: Say = lambda _: None) -> WatchReport:
    """Watch a version until its time is over, then unload the one before; or go back to that one.

    Returns:
        outcome `stays`, or `superseded` where somebody else has changed the model, or nothing is to be watched.

    Raises:
        ReleaseFailed: a line was crossed; the version before serves again, or the message says what does.
        TritonUnavailable: a server stays silent; both versions stay loaded where they are, watch again.
        AccessRefused, ModelLocked, RepositoryError: the watch could not be ended; both versions stay loaded.
    """
    run = spec.run or str(read_request(out).get("run", "by-hand"))
    ledger = Ledger(spec.ledger)
    for gone in ledger.records(spec.model):  # by a try before this one, which was lost before it could say so
        if gone.run == run and gone.state == "retired" and _watch_of(run) in gone.reason:
            raise _taken_back(gone, gone.reason, ledger.serving(spec.model), "")
    record = ledger.serving(spec.model)
    if record is None:
        return _report(spec, 0, None, "superseded", Traffic(), "nothing of it serves by the ledger")
    with fleet.connect(spec.url, spec.timeout_seconds) as servers:
        beside = _beside(servers, record)
        if beside is None:
            return _report(spec, record.version, None, "superseded", Traffic(), "no other version is kept loaded")
        watched = _Watched(spec, servers, record, beside)
        now = datetime.now(UTC)
        began = datetime.fromisoformat(record.began.when) if record.began else now
        left = spec.minutes * 60 - (now - began).total_seconds()
        say(f"Watching version {record.version} of {spec.model} for {max(0.0, left):.0f} s; {beside} stays loaded")
        why = watched.until(time.monotonic() + left)
        seen = watched.seen
    if why is None:
        return _report(spec, record.version, beside, "superseded", seen, _CHANGED)
    if why:
        say(f"Going back to version {beside} of {spec.model}: {why}")
        back = RollbackSpec(**spec.model_dump(include=set(RollbackSpec.model_fields)), to=beside)
        report = rollback(back.model_copy(update={"by": _watch_of(run), "reason": why[:500]}), say)
        took = report.seconds.get("back", report.seconds["swap"])
        raise _taken_back(record, why, ledger.read(beside), f", {took:.2f} s after the decision")
    return _end(spec, record, beside, seen, run, say)


def _watch_of(run: str) -> str:
    """Who goes back, for the ledger."""
    return f"the watch of {run}"


def _taken_back(record: Record, why: str, now: Record | None, took: str) -> ReleaseFailed:
    version = now.version if now else None
    return ReleaseFailed(
        f"version {record.version} of {record.model} was taken back within the watch: {why}; version {version} answers "
        f"again{took}",
        rejected=True,
        champion=version,
        restored=True,
    )


class _Watched:
    """A version that is watched, with what its requests cost so far."""

    def __init__(self, spec: WatchSpec, servers: Servers, record: Record, beside: int) -> None:
        self.spec, self.servers, self.record, self.beside = spec, servers, record, beside
        self.before = record.traffic_before or Traffic()
        served = servers[0].config(spec.model)
        self.signature = served.signature
        self.probe = expected_of(Ledger(spec.ledger), record, served.signature).first(1)
        self.seen = Traffic()
        self._last: dict[str, Traffic] = {}
        self._window: deque[tuple[float, Traffic]] = deque()

    def until(self, end: float) -> str | None:
        """Look until then (once at least). Returns why to go back, "" for a good end, None where it is changed."""
        silences = 0
        while True:
            try:
                for server in self.servers:
                    if server.versions(self.spec.model) != (self.beside, self.record.version):
                        return None
                    why = self._look(server)
                    if why:
                        return f"{server.url}: {why}"
                silences = 0
            except (TritonUnavailable, ModelNotServed):  # it is away, or loads what it serves after a restart
                silences += 1
                if silences == _SILENCES:
                    raise
            left = end - time.monotonic()
            if left <= 0 and not silences:
                return ""
            time.sleep(min(self.spec.every_seconds, max(left, 0.1)))

    def _look(self, server: TritonClient) -> str:
        try:
            answers, _, _ = proof.ask(
                server, self.spec.model, self.signature, self.probe.inputs, version=self.record.version
            )
            reference.difference(self.probe.outputs, answers, tolerance(self.spec))
        except MODEL_AT_FAULT as exc:
            return str(exc)
        now = server.traffic(self.spec.model, self.record.version)
        self.seen += now - self._last.get(server.url, Traffic())
        self._last[server.url] = now
        moment = time.monotonic()
        self._window.append((moment, self.seen))
        while moment - self._window[0][0] > _WINDOW_SECONDS:
            self._window.popleft()
        for seen in (self.seen, self.seen - self._window[0][1]):
            why = failing(self.spec.lines, seen, self.before)
            why = why or (slower(self.spec.lines, seen, self.before) and self._confirmed(server, seen))
            if why:
                return why
        return ""

    def _confirmed(self, server: TritonClient, seen: Traffic) -> str:
        """Requests take longer than before the swap: is it the model, or is everything slow now? Both versions are
        loaded, so that both can be asked, in turns."""
        seconds: dict[int, list[float]] = {self.record.version: [], self.beside: []}
        for _ in range(_TURNS):
            for version in seconds:
                asked = proof.ask(server, self.spec.model, self.signature, self.probe.inputs, version=version)
                seconds[version] += asked[2]
        new, old = (statistics.median(found) * 1000 for found in seconds.values())
        if not is_slower(self.spec.lines, new, old):
            return ""
        return (
            f"{slower(self.spec.lines, seen, self.before)}; asked in turns now, {new:.2f} ms against {old:.2f} ms of "
            f"version {self.beside}"
        )


def _end(spec: WatchSpec, record: Record, beside: int, seen: Traffic, run: str, say: Say) -> WatchReport:
    """Unload the version before: the new one alone in the policy, nothing else changed, so nothing is loaded anew."""
    with exclusive(spec, run, say) as held:
        champion = look(held.servers, spec.model, say)
        if champion.versions != (beside, record.version):
            return _report(spec, record.version, beside, "superseded", seen, _CHANGED)
        config = held.repository.read_config(spec.model)
        if config is None:
            raise RepositoryError(f"{held.repository.place}: config.pbtxt of {spec.model} is gone; release it again")
        change = Change.begin(
            "watch",
            spec,
            held,
            version=record.version,
            champion=champion,
            keep_versions=spec.keep_versions,
            run=run,
            say=say,
            note=f"{spec.minutes:g} minutes, {seen.sentence()}",
        )
        reached("begun")
        try:
            served = held.servers[0].config(spec.model)
            expected = expected_of(Ledger(spec.ledger), record, served.signature)
            change.swap(pin(config, (record.version,)), record.sha256, expected)
        except BaseException as exc:
            change.fail(exc)
            raise
        change.finish()
    return _report(spec, record.version, beside, "stays", seen, "")


def _beside(servers: Servers, record: Record) -> int | None:
    """The version that is kept loaded beside the one on record, on every server."""
    found = {server.versions(record.model) for server in servers}
    versions = found.pop() if len(found) == 1 else ()
    return versions[0] if len(versions) == 2 and versions[1] == record.version else None


def _report(
    spec: WatchSpec, version: int, beside: int | None, outcome: Literal["stays", "superseded"], seen: Traffic, why: str
) -> WatchReport:
    record = Ledger(spec.ledger).read(version)
    return WatchReport(
        outcome=outcome,
        model=spec.model,
        version=version,
        before=beside,
        sha256=record.sha256 if record else "",
        url=spec.url,
        requests=seen.requests,
        failed=seen.failed,
        milliseconds=round(seen.milliseconds, 3),
        why=why,
    )
