"""An API server that does not answer, or not yet: what the operator does about it, without a cluster."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Never

import pytest
from airflow.providers.standard.triggers.temporal import DateTimeTrigger
from airflow.sdk.exceptions import TaskDeferred
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError, ProtocolError

from operators import pod
from operators.failures import FinalStageFailure
from operators.pod_trigger import StageTrigger
from operators.tao import TaoTrainOperator

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


def raises(monkeypatch: pytest.MonkeyPatch, operator: TaoTrainOperator, method: str, exc: Exception) -> None:
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
