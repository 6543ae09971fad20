"""Noticing that a complete new data set has arrived in a pipeline's inbox.

`DatasetArrivalTrigger` looks at the inbox from the triggerer. It serves twice: an asset's watcher starts a run for
each arrival (`schedule: on_arrival`), and a run's first task (`DatasetArrivalSensor`) waits with it for data that is
still being copied, without a worker slot. Both follow one rule, `decide`.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow.sdk import Asset, AssetWatcher, BaseOperator, Variable
from airflow.sdk.exceptions import AirflowSensorTimeout, AirflowSkipException
from airflow.triggers.base import BaseEventTrigger, TriggerEvent
from asgiref.sync import sync_to_async

from operators import inputs, names
from refit.command import BadSpec, StageError
from refit.config import ConfigError, Settings
from refit.data import arrival
from refit.data.source import Kind, parse
from refit.outcome import Result

if TYPE_CHECKING:
    from airflow.sdk import Context

    from refit.data.remote.connection import Connection as RemoteLogin
    from refit.pipeline import Pipeline

AUTOMATIC = ("scheduled", "asset_triggered", "backfill")  # run types that nobody asked for by hand
VARIABLE = "variable"
TAKEN = "refit_taken_"  # + pipeline: the Airflow Variable
LOOK_SECONDS = 60.0  # after which a look is said to hang
LOOKS = ThreadPoolExecutor(64, "refit-look")  # of their own: those that hang shall not hold up all other triggers
JITTER = 0.1  # share of the poll interval, so that a thousand triggers do not list at the same moment


class Step(StrEnum):
    GO = "go"  # there is something to train on
    SKIP = "skip"  # nothing new for a run that started by itself
    WAIT = "wait"
    TIMEOUT = "timeout"


@dataclass(frozen=True)
class Inbox:
    """What has to be known to look at an inbox: an `arrival.Rule`, and where it is noted what was taken.

    `path`: a folder, or a remote source's URL; `connection` is the name of Airflow's connection with its login, which
    is kept in the trigger's memory alone. `record`: the pipeline's folder in the workspace, or the Airflow
    Variable "variable:<name>" where no process of Airflow sees the workspace.
    """

    path: str
    record: str
    marker: str | None
    settle_seconds: float
    manifest: str | None = None
    new_labels: int = 0
    connection: str | None = None
    dvc_remote: str | None = None

    def taken(self) -> arrival.Taken | None:
        """What was taken last."""
        kind, _, name = self.record.partition(":")
        if kind != VARIABLE:
            return arrival.last_taken(Path(self.record))
        return arrival.taken_of(Variable.get(name, default=None))

    def listing(self, previous: arrival.Listing | None, login: RemoteLogin | None) -> arrival.Listing:
        """What lies there. Raises OSError for a folder, Refused or Broken for a remote source."""
        source = parse(self.path)
        if source.kind is Kind.FOLDER:
            return arrival.listing(self.path, previous, self)
        from refit.data import remote  # only where there is such a source

        return remote.listing(remote.connect(source, login, Settings.from_env(), self.dvc_remote), previous, self)

    def login(self) -> RemoteLogin | None:
        """The login of a remote source, from Airflow's connections. Raises Refused where there is none of the name."""
        from refit.data.remote.connection import Connection as RemoteLogin
        from refit.data.remote.errors import Refused

        if self.connection is None or parse(self.path).kind is Kind.FOLDER:
            return None
        found = inputs.connection(self.connection)
        if found is None:
            raise Refused(f"Airflow has no connection {self.connection}, which dataset.connection names")
        return RemoteLogin.read(self.connection, found)


class Look(NamedTuple):
    """An inbox at one moment, compared with the look before and with what was taken last."""

    listing: arrival.Listing
    ready: arrival.Readiness
    taken: arrival.Taken | None
    new_labels: int = 0
    login: RemoteLogin | None = None


def look(inbox: Inbox, before: Look | None = None) -> Look:
    """List an inbox. Raises OSError, or a StageError for a remote source, where it is there but cannot be read.

    What was taken is asked for anew unless the look before has shown this very data to be taken: a thousand inboxes
    that lie still shall not ask Airflow's database every few seconds. For the same reason the login of the look before
    is used again; it stays in this process.
    """
    previous = before.listing if before else None
    login = before.login if before and before.login else inbox.login()
    listing = inbox.listing(previous, login)
    ready = arrival.is_complete(listing, previous, inbox)
    known = before.taken if before else None
    if known is None or known.signature != listing.signature:
        known = inbox.taken()
    return Look(listing, ready, known, inbox.new_labels, login)


def decide(seen: Look, *, automatic: bool) -> tuple[Step, str]:
    """What a run should do, and why. A run by hand may use data that was taken before; others only new data."""
    listing, ready, taken, wanted, _ = seen
    if not listing.files:
        if automatic:
            return Step.SKIP, f"nothing to take: {ready.reason}"
        if taken is not None and taken.fingerprint:
            return Step.GO, f"{ready.reason}: the data set taken last is used again"
        return Step.WAIT, ready.reason
    if taken is not None and taken.signature == listing.signature:
        why = f": {taken.reason}" if taken.reason else ""
        return (Step.SKIP if automatic else Step.GO), f"nothing new since run {taken.run} ({taken.outcome}{why})"
    if automatic and ready and wanted:
        new = arrival.new_labels(listing, taken)
        if new < wanted:
            return Step.SKIP, f"{new} new label files, and dataset.arrival.new_labels waits for {wanted}"
    return (Step.GO if ready else Step.WAIT), ready.reason


class DatasetArrivalTrigger(BaseEventTrigger):
    """Looks at an inbox every `poll_seconds`, in a thread, and fires when `decide` says so.

    `repeat`: fires for each complete new arrival, once, and goes on (an asset's watcher); else fires once: go, skip or
    timeout. `deadline` is in seconds of the Unix clock, so that a restart of the triggerer does not start the wait
    again; None waits for ever. An inbox that is missing or unreadable is looked at again.

    Event: {"step", "reason", "signature", "files", "bytes", "came"}.
    """

    def __init__(
        self,
        path: str,
        record: str,
        marker: str | None,
        settle_seconds: float,
        poll_seconds: float,
        automatic: bool = True,
        repeat: bool = False,
        deadline: float | None = None,
        manifest: str | None = None,
        new_labels: int = 0,
        connection: str | None = None,
        dvc_remote: str | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.inbox = Inbox(path, record, marker, settle_seconds, manifest, new_labels, connection, dvc_remote)
        self.poll_seconds, self.automatic, self.repeat, self.deadline = poll_seconds, automatic, repeat, deadline
        self._looking: asyncio.Future[Look] | None = None

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return f"{__name__}.{type(self).__name__}", {
            **asdict(self.inbox),
            "poll_seconds": self.poll_seconds,
            "automatic": self.automatic,
            "repeat": self.repeat,
            "deadline": self.deadline,
        }

    async def run(self) -> AsyncIterator[TriggerEvent]:
        seen: Look | None = None
        fired = told = ""
        while True:
            step = Step.WAIT
            try:
                seen = await self._look(seen)
                step, reason = decide(seen, automatic=self.automatic)
            except (OSError, StageError) as exc:
                reason = _unread(exc)
                seen = seen._replace(login=None) if seen else None  # it may have been changed
            listing = seen.listing if seen else None
            words = re.sub(r"\d+", "", reason)  # not a line for each second that passes
            if words != told:
                told = words
                self.log.info("%s: %s", self.inbox.path, reason)
            if self.repeat:
                if step is Step.GO and listing is not None and listing.signature != fired:
                    yield _event(step, reason, listing)
                    fired = listing.signature
            elif step is not Step.WAIT:
                yield _event(step, reason, listing)
                return
            elif self.deadline is not None and time.time() >= self.deadline:
                yield _event(Step.TIMEOUT, reason, listing)
                return
            await asyncio.sleep(self.poll_seconds * random.uniform(1 - JITTER, 1 + JITTER))  # noqa: S311 - no secret

    async def _look(self, before: Look | None) -> Look:
        """A look, in a thread. Raises as `look` does, and StageError where it takes long: the next call waits for that
        same look, so that a mount that hangs holds one thread and not another at each poll."""
        if self._looking is None:
            # Not asyncio.to_thread: a Variable is asked for through the triggerer's own event loop.
            asked = sync_to_async(look, thread_sensitive=False, executor=LOOKS)
            self._looking = asyncio.ensure_future(asked(self.inbox, before))
        done, _ = await asyncio.wait({self._looking}, timeout=LOOK_SECONDS)
        if not done:
            raise StageError("gives no answer; does its mount, or its server, hang? Still waiting for it")
        ended, self._looking = self._looking, None
        return ended.result()

    async def cleanup(self) -> None:
        if self._looking is not None:
            self._looking.cancel()


def _event(step: Step, reason: str, listing: arrival.Listing | None) -> TriggerEvent:
    found: dict[str, Any] = {}
    if listing:
        found = {"signature": listing.signature, "files": listing.files, "bytes": listing.bytes, "came": listing.came}
    payload = {"step": str(step), "reason": reason, **found}
    return TriggerEvent(payload)  # type: ignore[no-untyped-call]


def _unread(exc: OSError | StageError) -> str:
    """Why a source could not be listed; a remote one's errors hold no secret (`refit.data.remote.errors`)."""
    return str(exc) if isinstance(exc, StageError) else f"cannot be read: {exc.strerror}"


def inbox_of(pipeline: Pipeline, where: Settings) -> Inbox:
    """Raises ConfigError where the pipeline's data would lie outside the allowed roots, or come by plain http."""
    dataset = pipeline.dataset
    rule = dataset.arrival
    return Inbox(
        path=where.source(dataset.source).text,
        record=_record(pipeline, where),
        marker=rule.marker,
        settle_seconds=rule.settle_seconds,
        manifest=rule.manifest,
        new_labels=rule.new_labels,
        connection=dataset.connection,
        dvc_remote=dataset.dvc_remote,
    )


def _record(pipeline: Pipeline, where: Settings) -> str:
    if pipeline.runtime == "local":
        return str(where.workspace / str(pipeline.name))
    return f"{VARIABLE}:{TAKEN}{pipeline.name}"


def note_taken(context: Mapping[str, Any], pipeline: str, result: Result) -> None:
    """After a bind that ran in a pod: note in Airflow which arrival it looked at, so that it is not new any more."""
    found = context["ti"].xcom_pull(task_ids=names.ARRIVAL)
    if not isinstance(found, Mapping) or not found.get("files"):
        return
    before = arrival.taken_of(Variable.get(TAKEN + pipeline, default=None))
    outcome = arrival.TAKEN if result.succeeded else str(result.outcome)
    taken = {
        "signature": found["signature"],
        "outcome": outcome,
        "fingerprint": result.summary.get("fingerprint"),
        "run": context["run_id"],
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "files": found["files"],
        "bytes": found["bytes"],
        "came": arrival.came_with(outcome, found.get("came", 0.0), before),
        "reason": "" if result.succeeded else result.reason[: arrival.MOST_REASON],
    }
    if taken["fingerprint"] is None and before is not None:
        taken["fingerprint"] = before.fingerprint  # a run by hand can go on with the last good data
    Variable.set(TAKEN + pipeline, json.dumps(taken), description="Refit: the arrival that was taken last")


def asset(pipeline: Pipeline, where: Settings) -> Asset:
    """The asset that stands for complete new data of a pipeline; a run starts at each of its events."""
    trigger = DatasetArrivalTrigger(
        **asdict(inbox_of(pipeline, where)), poll_seconds=pipeline.dataset.arrival.poll_seconds, repeat=True
    )
    name = f"refit_{pipeline.name}_inbox"
    return Asset(name=name, uri=f"refit://inbox/{pipeline.name}", watchers=[AssetWatcher(name=name, trigger=trigger)])


class DatasetArrivalSensor(BaseOperator):
    """A run's first task: refuses params that the pipeline does not have, then waits until its data is complete.

    Looks once itself; only where that cannot decide does it wait, in the triggerer. Runs that started by themselves
    are skipped where nothing new came (one arrival that fires twice, around a restart of the triggerer, ends here).
    """

    template_fields = ()
    ui_color = "#f3ecdc"

    def __init__(self, *, pipeline: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pipeline = pipeline

    def execute(self, context: Context) -> dict[str, Any]:
        where = inputs.settings()
        pipeline = inputs.read(self.pipeline, inputs.conf_of(context), where)
        try:
            inbox = inbox_of(pipeline, where)
        except ConfigError as exc:
            raise inputs.BadInput(str(exc)) from None
        automatic = context["dag_run"].run_type in AUTOMATIC
        try:
            seen = look(inbox)
            if seen.listing.signature in _announced(context):
                seen = seen._replace(ready=arrival.Readiness(True, f"{seen.listing.files} files, as announced"))
            step, reason = decide(seen, automatic=automatic)
            event = dict(_event(step, reason, seen.listing).payload)
        except BadSpec as exc:  # no access, no such connection: waiting would not help
            raise inputs.BadInput(str(exc)) from None
        except (OSError, StageError) as exc:  # the triggerer may see what a worker does not
            step, event = Step.WAIT, {"reason": _unread(exc)}
        if step is not Step.WAIT:
            return self.finish(context, event)
        self.log.info("%s: %s; waiting without a worker slot", inbox.path, event["reason"])
        rule = pipeline.dataset.arrival
        self.defer(
            trigger=DatasetArrivalTrigger(
                **asdict(inbox),
                poll_seconds=rule.poll_seconds,
                automatic=automatic,
                deadline=time.time() + timedelta(hours=rule.timeout_hours).total_seconds(),
            ),
            method_name="finish",
        )
        raise AssertionError("defer does not return")

    def finish(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Go on, skip the run, or give up. Returns what was found: files, bytes, signature, and the reason."""
        step, reason = event.pop("step"), event["reason"]
        if step == Step.SKIP:
            raise AirflowSkipException(reason)
        if step == Step.TIMEOUT:
            raise AirflowSensorTimeout(
                f"no complete data within dataset.arrival.timeout_hours: {reason}; "
                "complete the data (marker, copy), then clear this task"
            )
        self.log.info("%s", reason)
        return event


def _announced(context: Mapping[str, Any]) -> set[str]:
    """Signatures of the arrivals that started this run: the watcher has already seen that they were complete."""
    events = context.get("triggering_asset_events") or {}
    payloads = [e.extra.get("payload", {}) for found in events.values() for e in found if isinstance(e.extra, dict)]
    return {p["signature"] for p in payloads if isinstance(p, dict) and "signature" in p}
