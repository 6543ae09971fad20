"""Follows a stage's pod from the triggerer: its state, and its log, until it has ended, is gone or cannot start.

Unlike the provider's trigger it asks for nothing but the pod (and at intervals its log), through one connection that
all triggers of the process share, and it decides nothing: `refit.runtime.podstatus` does. Trouble with the API server
never ends a stage, it is waited out.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from datetime import UTC, datetime
from typing import Any, ClassVar

from airflow.providers.cncf.kubernetes.hooks.kubernetes import AsyncKubernetesHook
from airflow.providers.cncf.kubernetes.triggers.pod import KubernetesPodTrigger
from airflow.triggers.base import TriggerEvent
from kubernetes_asyncio.client import ApiClient, CoreV1Api
from kubernetes_asyncio.client.exceptions import ApiException

from refit.runtime.pod import CONTAINER
from refit.runtime.podstatus import Do, Patience, Pod, has_ended, is_running, seconds, watch

IN_CLUSTER = "/var/run/secrets/kubernetes.io/serviceaccount/token"
RETRY_SECONDS = 30.0  # at most, between two tries to reach an API server that does not answer
LOG_BYTES = 256 * 1024  # of one look at a log; what a stage writes beyond it is left out of the task's log
TAIL_LINES = 200  # its end, which is shown after what was left out
QUICK_SECONDS = 8.0  # a new pod is looked at more often, so that a short stage costs no long wait


class StageTrigger(KubernetesPodTrigger):
    """Fires once: {"status": "ended" | "gone" | "stuck", "name", "namespace", "verdict"?: {...}}.

    schedule_timeout, startup_timeout: seconds, see `podstatus.Patience`. poll_interval, logging_interval: seconds
    between two looks at the pod and at its log. Airflow calls `on_kill` (inherited: deletes the pod) where a person
    ends the deferred task.
    """

    def __init__(
        self,
        pod_name: str,
        pod_namespace: str,
        kubernetes_conn_id: str | None,
        schedule_timeout: int,
        startup_timeout: int,
        poll_interval: float,
        logging_interval: float,
        termination_grace_period: int | None = None,
        log_after: str | None = None,
    ) -> None:
        super().__init__(
            pod_name=pod_name,
            pod_namespace=pod_namespace,
            trigger_start_time=datetime.now(UTC),
            base_container_name=CONTAINER,
            kubernetes_conn_id=kubernetes_conn_id,
            poll_interval=poll_interval,
            schedule_timeout=schedule_timeout,
            startup_timeout=startup_timeout,
            logging_interval=logging_interval,  # type: ignore[arg-type]  # any number of seconds
            termination_grace_period=termination_grace_period,
        )
        self.log_after = log_after  # time stamp of the last log line that an earlier trigger has shown

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return f"{__name__}.{type(self).__name__}", {
            "pod_name": self.pod_name,
            "pod_namespace": self.pod_namespace,
            "kubernetes_conn_id": self.kubernetes_conn_id,
            "schedule_timeout": self.schedule_timeout,
            "startup_timeout": self.startup_timeout,
            "poll_interval": self.poll_interval,
            "logging_interval": self.logging_interval,
            "termination_grace_period": self.termination_grace_period,
            "log_after": self.log_after,
        }

    async def run(self) -> AsyncIterator[TriggerEvent]:
        patience = Patience(self.schedule_timeout, self.startup_timeout)
        shown = LogLines(self.log_after, lambda line: self.log.info("%s", line))
        told, looked_at_log, began = "", time.monotonic(), time.monotonic()
        while True:
            pod = await self._ask(self._read_pod)
            if pod is None or has_ended(pod):
                if pod is not None:
                    await self._show_log(shown)
                yield self._event("gone" if pod is None else "ended")
                return
            seen = watch(pod, time.time(), patience)
            words = re.sub(r"\d+", "", seen.text)
            if words != told:
                told = words
                self.log.info("pod %s: %s", self.pod_name, seen.text)
            if seen.verdict.do is Do.FAIL:
                v = seen.verdict
                said = {"row": v.row, "reason": v.reason, "outcome": str(v.outcome), "advice": v.advice}
                yield self._event("stuck", verdict=said)
                return
            if is_running(pod) and time.monotonic() - looked_at_log >= float(self.logging_interval or 0):
                looked_at_log = time.monotonic()
                await self._show_log(shown)
            quick = time.monotonic() - began < QUICK_SECONDS
            await asyncio.sleep(min(1.0, self.poll_interval) if quick else self.poll_interval)

    def _event(self, status: str, **more: Any) -> TriggerEvent:
        self._fired_event = True
        payload = {"status": status, "name": self.pod_name, "namespace": self.pod_namespace, **more}
        return TriggerEvent(payload)  # type: ignore[no-untyped-call]

    async def _ask(self, question: Callable[[CoreV1Api], Any]) -> Any:
        """The answer of the API server, however long it takes to get one; None for "not found"."""
        wait = 1.0
        while True:
            try:
                return await question(await Connection.of(self.kubernetes_conn_id).api())
            except ApiException as exc:
                if exc.status == 404:
                    return None
                if exc.status == 401:
                    await Connection.of(self.kubernetes_conn_id).renew()
                reason = f"{exc.status} {exc.reason}"
            except Exception as exc:  # of aiohttp, the operating system, a proxy ...: whatever it is, it may pass
                reason = f"{type(exc).__name__}: {exc}"
            self.log.warning("the cluster's API does not answer (%s); trying again", reason)
            await asyncio.sleep(wait)
            wait = min(wait * 2, RETRY_SECONDS)

    async def _read_pod(self, api: CoreV1Api) -> Pod:
        # As JSON: to make the client's classes of it would cost more than all the rest, for a thousand pods.
        answer = await api.read_namespaced_pod(self.pod_name, self.pod_namespace, _preload_content=False)
        async with answer:
            return dict(json.loads(await body(answer)))

    async def _show_log(self, shown: LogLines) -> None:
        async def read(**part: int) -> bytes:
            api = await Connection.of(self.kubernetes_conn_id).api()
            answer = await api.read_namespaced_pod_log(
                self.pod_name,
                self.pod_namespace,
                container=CONTAINER,
                timestamps=True,
                limit_bytes=LOG_BYTES,
                _preload_content=False,
                **part,
            )
            async with answer:
                return await body(answer)

        try:
            await asyncio.wait_for(shown.look(read), 30)
        except Exception as exc:  # a log that cannot be read now is read at the next look
            self.log.debug("the pod's log cannot be read: %s", exc)


async def body(answer: Any) -> bytes:
    """The body of a raw answer. Raises ApiException where it is none, as the client does for its own classes."""
    data: bytes = await answer.read()
    if answer.status >= 300:
        raise ApiException(status=answer.status, reason=answer.reason)
    return data


class LogLines:
    """Hands each line of a growing log on once, by the time stamps that the kubelet puts before the lines."""

    def __init__(self, after: str | None, show: Callable[[str], None]) -> None:
        self.after = after or ""
        self._show = show

    def since(self) -> dict[str, int]:
        """What to ask for: the seconds since the last line, with room for clocks that differ."""
        last = seconds(_micros(self.after)) if self.after else None
        return {} if last is None else {"since_seconds": max(1, int(time.time() - last) + 5)}

    async def look(self, read: Callable[..., Awaitable[bytes]]) -> None:
        """Show what `read` finds anew. Of more than LOG_BYTES it gives the beginning, and would again and again: so the
        end is asked for as well."""
        found = await read(**self.since())
        if len(found) < LOG_BYTES:
            self._take(_lines(found))
            return
        self._take(_lines(found)[:-1])  # the last is cut
        end = _lines(await read(tail_lines=TAIL_LINES))
        if end and end[0][0] > self.after:
            self._show("... lines are left out here; log.txt in the stage's folder has all ...")
        self._take(end)

    def _take(self, lines: Iterable[tuple[str, str]]) -> None:
        for stamp, text in lines:
            if stamp > self.after:  # RFC 3339 in UTC with nanoseconds: sorts as text
                self.after = stamp
                self._show(text)


def _lines(log: bytes) -> list[tuple[str, str]]:
    """The time stamp and the text of each line; a line may hold a carriage return."""
    lines = (line.partition(" ") for line in log.decode("utf-8", "replace").split("\n"))
    return [(stamp, text) for stamp, _, text in lines]


def _micros(stamp: str) -> str:
    """A time stamp with nanoseconds as Python reads it."""
    return re.sub(r"(\.\d{6})\d+", r"\1", stamp)


class Connection:
    """One client for all triggers of a process that use the same Airflow connection (or the cluster's own account)."""

    _all: ClassVar[dict[tuple[str | None, int], Connection]] = {}

    def __init__(self, conn_id: str | None) -> None:
        self.conn_id = conn_id
        self._lock = asyncio.Lock()
        self._client: ApiClient | None = None
        self._renewed = 0.0

    @classmethod
    def of(cls, conn_id: str | None) -> Connection:
        key = (conn_id, id(asyncio.get_running_loop()))
        if key not in cls._all:
            cls._all[key] = cls(conn_id)
        return cls._all[key]

    async def api(self) -> CoreV1Api:
        async with self._lock:
            if self._client is None:
                in_cluster = True if self.conn_id is None and os.path.exists(IN_CLUSTER) else None
                hook = AsyncKubernetesHook(conn_id=self.conn_id, kubernetes_conn_id=None, in_cluster=in_cluster)
                await hook._load_config()
                self._client = ApiClient(configuration=hook.client_configuration)
            return CoreV1Api(self._client)

    async def renew(self) -> None:
        """Read the credentials anew: a token has run out."""
        async with self._lock:
            if self._client is not None and time.monotonic() - self._renewed > 5:
                self._renewed = time.monotonic()
                await self._client.close()
                self._client = None
