"""The ends of runs, told by tasks of a real Airflow: its store has the connections, its processes the network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from urllib.parse import quote

import pytest

from tests.dags.live import Airflow
from tests.operators.home import REPOSITORY
from tests.operators.pipelines import write_pipeline
from tests.operators.receivers import Received, smtp_server, webhook_server

# The notifier, the connections and the states of tasks are the real ones; publish is told what it would have found.
DAGS = """# an airflow dag file
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, BaseOperator, TriggerRule

from operators import names, notify


class Told(BaseOperator):
    def execute(self, context):
        conf = context["dag_run"].conf or {}
        if self.task_id == names.PUBLISH:
            notify.ended("told", context, conf.get("told"))
        elif conf.get("fails"):
            raise ValueError("bind is broken")


with DAG(names.dag_id("told"), schedule=None) as dag:
    bind, publish = Told(task_id=names.BIND), Told(task_id=names.PUBLISH, trigger_rule=TriggerRule.ALL_DONE)
    bind >> publish >> (done := EmptyOperator(task_id=names.DONE, trigger_rule=TriggerRule.NONE_FAILED))
    bind >> done
"""


@pytest.fixture(scope="module")
def receivers() -> Iterator[tuple[Received, Received, Received]]:
    with webhook_server() as hook, webhook_server("hang") as hanging, smtp_server() as post:
        yield hook, hanging, post


@pytest.fixture(scope="module")
def airflow(
    tmp_path_factory: pytest.TempPathFactory, receivers: tuple[Received, Received, Received]
) -> Iterator[Airflow]:
    root = tmp_path_factory.mktemp("told")
    (root / "dags").mkdir()
    (root / "dags" / "told.py").write_text(DAGS)
    (root / ".airflowignore").write_text((REPOSITORY / ".airflowignore").read_text())
    both = "when: [success, failure]"
    email = "{to: email, connection: post, address: [ops@example.org], when: [failure]}"
    hooks = f"{{to: webhook, connection: hook, {both}}}, {{to: webhook, connection: hanging, {both}}}"
    write_pipeline(root / "pipelines" / "told.yaml", f"notify: [{hooks}, {email}]")
    names = ("PIPELINES", "WORKSPACE", "DATA_ROOTS")
    running = Airflow(root, {f"REFIT_{name}": str(root / name.lower()) for name in names})
    hook, hanging, post = receivers
    plain = json.dumps({"disable_tls": True, "disable_ssl": True, "from_email": "refit@example.org"})
    at = {"host": "127.0.0.1", "schema": "http", "conn_type": "http"}
    try:
        running.start()
        for name, port, more in (
            ("hook", hook.port, {**at, "password": "k3y"}),
            ("hanging", hanging.port, at),
            ("post", post.port, {"host": "127.0.0.1", "conn_type": "smtp", "extra": plain}),
        ):
            running.call("POST", "/connections", {"connection_id": name, "port": port, **more})
        yield running
    finally:
        running.close()


def test_the_ends_of_runs_are_told(airflow: Airflow, receivers: tuple[Received, Received, Received]) -> None:
    hook, hanging, post = receivers
    told = {"state": "succeeded", "model": "m", "version": 7, "metrics": {"quantized": {"mAP50": 0.9}}}
    good = airflow.trigger("retrain_told", told=told)
    assert airflow.finished("retrain_told", good) == "success"
    ((_, headers, body),) = hook.requests
    value = json.loads(body)
    assert (value["event"], value["title"]) == ("success", "told: version 7 of m serves")
    assert headers["authorization"] == "Bearer k3y"
    assert value["link"] == f"{airflow.url}/dags/retrain_told/runs/{quote(good, safe='')}"
    assert post.requests == [], "it wants to know of failures"
    told = {"state": "failed", "stage": "train", "outcome": "diverged", "reason": "loss 9e9", "advice": "lower it"}
    bad = airflow.trigger("retrain_told", fails=True, told=told)
    assert airflow.finished("retrain_told", bad) == "failed"
    assert json.loads(hook.requests[1][2])["title"] == "told: failed at train (diverged)"
    assert len(post.requests) == 1
    early = airflow.trigger("retrain_told", fails=True)
    assert airflow.finished("retrain_told", early) == "failed"
    assert json.loads(hook.requests[2][2])["title"] == "told: failed at bind"
    assert len(hanging.requests) == 3, "one that never answers is asked each time, and holds up nobody"
