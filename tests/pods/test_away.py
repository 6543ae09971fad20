"""An API server that does not answer, or not yet: what the operator does about it, without a cluster."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Never

import pytest
from airflow.providers.standard.triggers.temporal import DateTimeTrigger
from airflow.sdk.exceptions import AirflowSkipException, TaskDeferred
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError, ProtocolError

from operators import inputs, orphans, pod
from operators.failures import FinalStageFailure
from operators.pod_trigger import StageTrigger
from operators.tao import TaoTrainOperator
from refit.outcome import Outcome
from refit.runtime.podstatus import Do, Verdict

CONTEXT: Any = {"run_id": "r1", "ti": SimpleNamespace(dag_id="d", task_id="train", map_index=-1)}
ENDED = {"status": "ended", "name": "live-train-1", "namespace": "refit"}


def http(status: int, message: str) -> ApiException:
    exc = ApiException(status=status)
    exc.body = json.dumps({"message": message})
    return exc


AWAY = (ProtocolError("Connection aborted."), http(503, "etcd cannot be reached"))
NO_RIGHT = http(403, 'pods is forbidden: User "airflow" cannot list resource "pods" in the namespace "refit"')


@pytest.fixture
def operator(monkeypatch: pytest.MonkeyPatch) -> TaoTrainOperator:
    made = TaoTrainOperator(pipeline="live", command=["true"], environment="tools")
    labels: Callable[..., dict[str, str]] = lambda context: {}  # noqa: E731
    monkeypatch.setattr(made, "_get_ti_pod_labels", labels)
    return made


def raises(monkeypatch: pytest.MonkeyPatch, operator: pod.TaoStageOperator, method: str, exc: Exception) -> None:
    def call(*args: Any, **kwargs: Any) -> Never:
        raise exc

    monkeypatch.setattr(operator, method, call)


@pytest.mark.parametrize("exc", [*AWAY, NO_RIGHT])
def test_a_stage_that_cannot_start_now_asks_again_without_a_worker(
    monkeypatch: pytest.MonkeyPatch, operator: TaoTrainOperator, exc: ApiException | HTTPError
) -> None:
    raises(monkeypatch, operator, "get_or_create_pod", exc)
    with pytest.raises(TaskDeferred) as deferred:
        operator.execute(CONTEXT)
    assert isinstance(deferred.value.trigger, DateTimeTrigger)
    assert deferred.value.method_name == "start_again"


def test_a_right_that_is_still_missing_then_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, operator: TaoTrainOperator
) -> None:
    raises(monkeypatch, operator, "get_or_create_pod", NO_RIGHT)
    with pytest.raises(FinalStageFailure, match="kubectl -n refit get role,rolebinding"):
        operator.start_again(CONTEXT, since=time.time() - pod.AGAIN_SECONDS)


@pytest.mark.parametrize("exc", AWAY)
def test_an_end_that_cannot_be_read_now_is_waited_for_again(
    monkeypatch: pytest.MonkeyPatch, operator: TaoTrainOperator, exc: ApiException | HTTPError
) -> None:
    raises(monkeypatch, operator, "_read", exc)
    with pytest.raises(TaskDeferred) as deferred:
        operator.trigger_reentry(CONTEXT, ENDED)
    trigger = deferred.value.trigger
    assert isinstance(trigger, StageTrigger)
    assert (trigger.pod_name, trigger.pod_namespace) == ("live-train-1", "refit")


def test_an_answer_that_no_waiting_mends_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, operator: TaoTrainOperator
) -> None:
    raises(monkeypatch, operator, "_read", http(422, "nonsense"))
    with pytest.raises(ApiException, match="422"):
        operator.trigger_reentry(CONTEXT, ENDED)


def gone(*args: Any) -> Never:
    raise inputs.BadInput("specs/pipelines/live.yaml: no such file")


def test_a_pod_that_asks_for_a_result_is_the_tasks_and_not_taken_for_the_stages(
    monkeypatch: pytest.MonkeyPatch, operator: TaoTrainOperator
) -> None:
    made = list[Any]()

    def dies(pod: Any) -> Never:
        made.append(pod.metadata)
        raise KeyboardInterrupt  # as a worker that is killed

    def away(*args: Any, **kwargs: Any) -> None:
        """Nobody is left to delete it."""

    operator._prepare({**CONTEXT, "dag_run": SimpleNamespace(conf={})})
    monkeypatch.setattr(operator, "_get_ti_pod_labels", lambda context: {"task_id": "train"} if context else {})
    monkeypatch.setitem(vars(operator), "pod_manager", SimpleNamespace(create_pod=dies))
    monkeypatch.setattr(operator, "_delete", away)
    with pytest.raises(KeyboardInterrupt):
        operator._read_back(Verdict(Do.READ_BACK, "no_answer", "lost", Outcome.TOOLKIT_ERROR), CONTEXT)
    (left,) = made
    assert "task_id" not in left.labels, "by which a task finds its stage's pod again"
    states = {CONTEXT["run_id"]: {CONTEXT["ti"].task_id: "failed"}}
    listed = {"metadata": {"uid": "1", "name": left.name, "annotations": left.annotations}}
    assert [o.name for o in orphans.orphans([listed], lambda dag, runs: states, None)] == [left.name]


@pytest.mark.parametrize("refused", ["pod", "file", "end"])
def test_a_run_that_cannot_be_published_is_told_of_and_does_not_fail(
    monkeypatch: pytest.MonkeyPatch, operator: TaoTrainOperator, refused: str
) -> None:
    publish, told = pod.PublishPodOperator(task_id="publish", pipeline="live"), list[Any]()
    planned = operator.planned({**CONTEXT, "dag_run": SimpleNamespace(conf={})})
    monkeypatch.setattr(publish, "planned", gone if refused == "file" else lambda context: planned)
    monkeypatch.setattr(publish, "_get_ti_pod_labels", lambda context: {})
    monkeypatch.setattr(pod.notify, "ended", lambda *about: told.append(about))
    raises(monkeypatch, publish, "get_or_create_pod", http(422, "a policy wants a label"))
    raises(monkeypatch, publish, "_read", http(422, "nonsense"))
    with pytest.raises(AirflowSkipException, match=r"no report was published: .*(label|no such file|422)"):
        publish.trigger_reentry(CONTEXT, ENDED) if refused == "end" else publish.execute(CONTEXT)
    assert told == [("live", CONTEXT, None)]


@pytest.mark.parametrize("bound", [{"cluster": "workstation"}, None])
def test_a_run_is_published_where_it_was_bound(bound: dict[str, str] | None) -> None:
    """Whatever its file says by now, or where there is none any more; it is asked where bind has not come so far."""
    publish = pod.PublishPodOperator(task_id="publish", pipeline="live")
    task = SimpleNamespace(dag_id="d", id="1", get_task_states=lambda **asked: {}, xcom_pull=lambda task_ids: bound)
    context = {"run_id": "r1", "ti": task, "dag_run": SimpleNamespace(conf={})}
    if bound is None:
        with pytest.raises(inputs.BadInput, match=r"live\.yaml: no such file"):
            publish.planned(context)
    else:
        assert publish.planned(context)[0] == pod.kubernetes_profile("workstation")
