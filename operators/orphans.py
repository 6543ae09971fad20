"""Stage pods that nobody waits for any more, and the DAG that deletes them: refit_orphans.

Airflow calls a trigger's `on_kill` where a person ends a deferred task, and that deletes its pod. It cannot where no
triggerer has taken the trigger up yet: within the first second or so, and for as long as no triggerer runs (airflow
3.3.2, `TriggerRunnerSupervisor.update_triggers` cancels only what it runs). Such a pod would hold its GPU until its
deadline. So a watcher in the triggerer looks once a minute, with one request for each namespace; what it finds starts
a run of this DAG, whose log tells what was deleted and why.

Only a pod whose task this Airflow knows to have ended is an orphan, or one that this Airflow has made for a run that
was deleted since. Another one that is not known may be another Airflow's; so each has a mark of its own.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow.sdk import DAG, Asset, AssetWatcher, BaseOperator, Variable
from airflow.triggers.base import BaseEventTrigger, TriggerEvent
from asgiref.sync import sync_to_async

from operators.own import only, own_dag
from refit.runtime.pod import LABEL

if TYPE_CHECKING:
    from airflow.sdk import Context

DAG_ID = "refit_orphans"
TASK = LABEL + "task"  # annotation of a stage's pod: JSON, see `note`
DELETED = "deleted with its run"
ENDED = frozenset({"success", "failed", "skipped", "removed", "upstream_failed", DELETED})
MARK = "refit_airflow"  # the Airflow Variable by which this Airflow knows its pods from another's in one namespace
LOOK_SECONDS = 60.0
ANSWER_SECONDS = 60.0  # after which Airflow's answer is not waited for any more
LOOKS = ThreadPoolExecutor(4, "refit-orphans")  # of their own: those that hang shall not hold up all other triggers

States = Mapping[str, Mapping[str, Any]]  # run id -> task id -> state
Place = tuple[str | None, str]  # Airflow's connection (None: the cluster's own account), namespace


@dataclass(frozen=True)
class Orphan:
    """A pod, and the task whose end it has outlived."""

    uid: str
    name: str
    task: str
    state: str


def note(dag_id: str, run_id: str, task_id: str, map_index: int | None, keep: bool) -> str:
    """The annotation by which a pod's task is found: labels hold shortened names only. `keep`: stays when it ended."""
    mapped = map_index is not None and map_index >= 0
    task = f"{task_id}_{map_index}" if mapped else task_id
    return json.dumps({"dag": dag_id, "run": run_id, "task": task, "keep": keep, "airflow": _own_mark()})


def _own_mark() -> str:
    """This Airflow's, made where it has none. Of two that are made at once the later stays: a pod with the other is
    taken for another Airflow's."""
    if (known := Variable.get(MARK, default=None)) is None:
        known = uuid.uuid4().hex
        Variable.set(MARK, known, description="Refit: by this its pods are known from those of another Airflow")
    return str(known)


def orphans(
    pods: Iterable[Mapping[str, Any]], states: Callable[[str, Sequence[str]], States], mark: str | None
) -> list[Orphan]:
    """The pods of a listing whose task has ended; `states` answers for a DAG and some of its runs, `mark` is that of
    this Airflow.

    A pod that is being deleted already is none, nor an ended one that was to be kept.
    """
    noted: dict[str, list[tuple[Mapping[str, Any], Mapping[str, Any]]]] = {}
    for pod in pods:
        meta = pod["metadata"]
        text = (meta.get("annotations") or {}).get(TASK)
        if text is None or meta.get("deletionTimestamp"):
            continue
        about = json.loads(text)
        ended = (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
        if not (ended and about["keep"]):
            noted.setdefault(about["dag"], []).append((meta, about))
    found = []
    for dag_id, those in noted.items():
        known = states(dag_id, sorted({about["run"] for _, about in those}))
        for meta, about in those:
            state = known.get(about["run"], {}).get(about["task"])
            if about["run"] not in known and mark is not None and about.get("airflow") == mark:
                state = DELETED
            if state in ENDED:
                found.append(Orphan(meta["uid"], meta["name"], f"{dag_id} {about['run']} {about['task']}", str(state)))
    return found


def _look(pods: Iterable[Mapping[str, Any]]) -> list[Orphan]:
    return orphans(pods, _states, Variable.get(MARK, default=None))


def _states(dag_id: str, runs: Sequence[str]) -> States:
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    return RuntimeTaskInstance.get_task_states(dag_id=dag_id, run_ids=list(runs))


class OrphanTrigger(BaseEventTrigger):
    """Looks at the stage pods of `places` every `seconds`; fires when one was an orphan at two looks in a row.

    Event: {"pods": [name, ...]}; a pod that stays is told again after ten looks, not at each.
    """

    def __init__(self, places: Sequence[Sequence[str | None]], seconds: float = LOOK_SECONDS) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.places, self.seconds = [list(p) for p in places], seconds

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return f"{__name__}.{type(self).__name__}", {"places": self.places, "seconds": self.seconds}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        looks: dict[str, int] = {}  # uid -> at how many looks in a row it was an orphan
        while True:
            await asyncio.sleep(self.seconds)
            found: list[Orphan] = []
            for conn_id, namespace in self.places:
                try:
                    pods = await self._list(conn_id, str(namespace))
                    # Not asyncio.to_thread: states are asked for through the triggerer's own event loop.
                    asked = sync_to_async(_look, thread_sensitive=False, executor=LOOKS)
                    found += await asyncio.wait_for(asked(pods), ANSWER_SECONDS)
                except TimeoutError:
                    self.log.warning("namespace %s: no answer of the cluster, or of Airflow; looking later", namespace)
                except Exception as exc:  # of the cluster's API or of Airflow's: both may be away for a while
                    self.log.warning("namespace %s: %s: %s; looking again later", namespace, type(exc).__name__, exc)
            looks = {o.uid: looks.get(o.uid, 0) + 1 for o in found}
            told = [o.name for o in found if looks[o.uid] % 10 == 2]
            if told:
                yield TriggerEvent({"pods": told})  # type: ignore[no-untyped-call]

    @staticmethod
    async def _list(conn_id: str | None, namespace: str) -> list[dict[str, Any]]:
        from operators.pod_trigger import Connection, body

        api = await Connection.of(conn_id).api()
        # From the API server's memory, not from etcd: a minute more or less does not matter.
        answer = await api.list_namespaced_pod(
            namespace, label_selector=LABEL + "stage", resource_version="0", _preload_content=False
        )
        async with answer:
            return list(json.loads(await body(answer))["items"])


class DeleteOrphansOperator(BaseOperator):
    """Deletes the stage pods of `places` whose tasks have ended. XCom: the names of the deleted pods."""

    template_fields = ()

    def __init__(self, *, places: Sequence[Sequence[str | None]], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.places = [list(p) for p in places]

    def execute(self, context: Context) -> list[str]:
        from airflow.providers.cncf.kubernetes.hooks.kubernetes import KubernetesHook
        from kubernetes.client.exceptions import ApiException

        deleted = []
        for conn_id, namespace in self.places:
            client = KubernetesHook(conn_id=conn_id).core_v1_client
            listed = client.list_namespaced_pod(str(namespace), label_selector=LABEL + "stage")
            pods = client.api_client.sanitize_for_serialization(listed)["items"]
            for orphan in _look(pods):
                self.log.warning(
                    "deleting pod %s/%s: its task is %s (%s)", namespace, orphan.name, orphan.state, orphan.task
                )
                try:
                    client.delete_namespaced_pod(orphan.name, str(namespace))
                except ApiException as exc:
                    if exc.status != 404:
                        raise
                deleted.append(orphan.name)
        if not deleted:
            self.log.info("no orphan in %s", ", ".join(str(namespace) for _, namespace in self.places))
        return deleted


def dag(places: Sequence[Place], seconds: float = LOOK_SECONDS) -> DAG:
    """The DAG for the given connections and namespaces."""
    watched = [list(p) for p in places]
    watcher = AssetWatcher(name=DAG_ID, trigger=OrphanTrigger(watched, seconds))
    with own_dag(
        DAG_ID,
        description="Deletes pods of stages that were ended, or deleted, while no triggerer followed them",
        schedule=[Asset(name=DAG_ID, uri="refit://pods/orphans", watchers=[watcher])],
        retries=3,
    ) as made:
        DeleteOrphansOperator(task_id="delete", places=watched)
    return made


def dags() -> dict[str, DAG]:
    """The DAG, where a pipeline file names a cluster; by id, for a DAG file's globals()."""

    def made() -> DAG | None:
        from operators.factory import clusters

        places = clusters()
        return dag(places) if places else None

    return only(DAG_ID, made)
