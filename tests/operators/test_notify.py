"""Messages by every way there is here, against real servers: what stands in them, and that nothing stops a run."""

from __future__ import annotations

import email
import email.policy
import json
import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import Connection

from operators import notify, watch
from refit.config import Settings
from refit.notify import Notify, facts, message
from refit.specs import SpecError
from tests.operators.pipelines import write_pipeline
from tests.operators.receivers import Received, smtp_server, webhook_server

FAILED: dict[str, Any] = {
    "state": "failed",
    "stage": "train",
    "outcome": "out_of_memory",
    "reason": "the GPU has no memory left <b>",
    "advice": "lower batch_size",
    "images": 1234,
    "fingerprint": "abc",
    "metrics": {"trained": {"mAP50": 0.5}},
    "cost": {"seconds": 81.2},
}


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> dict[str, Connection]:
    """Airflow's connections; the store itself is tested in tests/dags/test_notify.py."""
    known: dict[str, Connection] = {}

    def get(name: str) -> Connection:
        return known[name]

    monkeypatch.setattr(notify, "Connection", SimpleNamespace(get=get))
    return known


def at(connections: dict[str, Connection], server: Received, **more: Any) -> Notify:
    given = {"conn_type": "http", "host": "127.0.0.1", "schema": "http", "port": server.port, **more}
    connections["hook"] = Connection(conn_id="hook", **given)
    return Notify(to="webhook", connection="hook")


def told(event: Any = "failure", **more: Any) -> Any:
    return message(event, "plates", "manual__1", {**FAILED, **more}, "http://airflow/dags/retrain_plates/runs/1")


def test_a_failure_says_enough_to_act_on() -> None:
    text = told().text()
    for part in (
        "plates: failed at train (out_of_memory)",
        "the GPU has no memory left",
        "What to do: lower batch_size",
        "What served before goes on serving",
        "trained: mAP50 0.5000",
        "run manual__1; 1,234 images (abc); 81 s",
        "http://airflow/dags/retrain_plates/runs/1",
    ):
        assert part in text
    assert "&lt;b&gt;" in told().slack()
    assert "&lt;b&gt;" in told().markup()


def test_nothing_is_said_of_what_serves_where_the_reason_says_it() -> None:
    lost = "THE CHAMPION, version 7, DOES NOT SERVE AS IT DID: look at Triton now; version 8 of m does not serve"
    text = told(stage="release", reason=lost).text()
    assert lost in text
    assert "goes on serving" not in text


def test_a_success_names_the_version() -> None:
    good = {"state": "succeeded", "model": "plates", "version": 4, "previous": 3, "release": "released"}
    assert message("success", "plates", "r", good, "").title == "plates: version 4 of plates serves (before: 3)"
    assert message("success", "plates", "r", {"state": "succeeded"}, "").title == "plates: done, nothing was released"


def test_a_title_is_one_line() -> None:
    what = message("failure", "plates", "r", {"stage": "a\r\nBcc: everybody@example.org"}, "")
    assert what.title == "plates: failed at a  Bcc: everybody@example.org"


def test_what_is_told_of_a_report_fits_into_a_result() -> None:
    stages = [{"name": "train", "state": "diverged"}]
    report = {
        "state": "failed", "failed": "train", "reason": "x" * 9000, "advice": "y" * 9000, "release": None,
        "models": [{"name": "trained", "mAP50": 0.5, "mAP": 0.25}], "stages": stages,
        "data": {"splits": {"train": 3, "val": 1}, "fingerprint": "f" * 64},
        "cost": {"seconds": 3.0, "gpu_seconds": 0.0, "money": None},
    }  # fmt: skip
    bind = {"drift": [{"level": "major", "told": "z" * 9000}] * 9 + [{"level": "none", "told": "n"}]}
    champion = {"model": "plates", "version": 3, "since": "2026-11-01T00:00:00+00:00", "per_class": {}}
    found = facts(report, bind, champion)
    assert len(json.dumps(found)) < 1700
    assert (found["outcome"], found["images"], found["metrics"]) == (
        "diverged",
        4,
        {"trained": {"mAP50": 0.5, "mAP": 0.25}},
    )


def test_a_webhook_gets_everything_as_values(connections: dict[str, Connection]) -> None:
    with webhook_server() as server:
        extra = json.dumps({"path": "hooks/1", "headers": {"X-Team": "vision"}})
        notify.deliver([(at(connections, server, password="s3cret", extra=extra), told())])
    ((path, headers, body),) = server.requests
    value = json.loads(body)
    assert (path, headers["x-team"], headers["authorization"]) == ("/hooks/1", "vision", "Bearer s3cret")
    assert (value["event"], value["pipeline"], value["stage"]) == ("failure", "plates", "train")
    assert value["text"].startswith("plates: failed at train")


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("500", "the server answered 500"),
        ("redirect", "the server answered 307"),
        ("hang", "no answer in time (ReadTimeout)"),
        ("drip", "it takes too long"),
        ("nobody", "nobody takes a connection there"),
    ],
)
def test_a_receiver_in_trouble_is_a_line_in_the_log(
    how: str,
    why: str,
    connections: dict[str, Connection],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(notify, "TIMEOUT", 0.5)
    monkeypatch.setattr(notify, "SECONDS", 1.5)
    with webhook_server(how) as server, webhook_server() as good:
        bad = at(connections, server, password="s3cret")
        connections["good"] = Connection(
            conn_id="good", conn_type="http", host="127.0.0.1", schema="http", port=good.port
        )
        if how == "nobody":
            connections["hook"].port = 9
        notify.deliver([(bad, told()), (Notify(to="webhook", connection="good"), told())])
        assert not server.gave_up, "nobody waits until the receiver is done"
    assert len(good.requests) == 1, "the others are told all the same"
    lines = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
    assert len(lines) == 1
    assert lines[0].startswith(f"not told by webhook (connection hook): {why}")
    assert "s3cret" not in caplog.text


def test_an_unknown_connection_or_a_provider_that_is_not_there(
    connections: dict[str, Connection], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "airflow.providers.slack.hooks.slack_webhook", None)
    notify.deliver([(Notify(to="webhook", connection="nobody"), told()), (Notify(to="slack", connection="s"), told())])
    assert "not told by webhook (connection nobody): KeyError" in caplog.text
    assert "slack needs apache-airflow-providers-slack in Airflow's environment" in caplog.text


@pytest.fixture
def slack(monkeypatch: pytest.MonkeyPatch) -> Callable[[Received], Notify]:
    """A connection to a server that stands for Slack's, by Airflow's own store of connections."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)

    def make(server: Received) -> Notify:
        value = {"conn_type": "slackwebhook", "password": f"http://127.0.0.1:{server.port}/services/T0/B0/s3cret"}
        monkeypatch.setenv("AIRFLOW_CONN_CHANNEL", json.dumps(value))
        return Notify(to="slack", connection="channel")

    return make


def test_slack_gets_its_own_json(slack: Callable[[Received], Notify], caplog: pytest.LogCaptureFixture) -> None:
    """https://api.slack.com/messaging/webhooks: POST, JSON, `text` in mrkdwn with & < > escaped; the answer is "ok"."""
    with webhook_server("ok") as server:
        notify.deliver([(slack(server), told())])
    assert "not told" not in caplog.text
    ((path, headers, body),) = server.requests
    assert path == "/services/T0/B0/s3cret"
    assert headers["content-type"].startswith("application/json")
    value = json.loads(body)
    assert list(value) == ["text"]
    lines = value["text"].split("\n")
    assert lines[0] == "*plates: failed at train (out_of_memory)*"
    assert "the GPU has no memory left &lt;b&gt;" in lines
    assert lines[-1] == "http://airflow/dags/retrain_plates/runs/1"


@pytest.mark.parametrize(
    ("how", "said"), [("no_service", "404: no_service"), ("500", "500: no answer of Slack's"), ("hang", "")]
)
def test_what_slack_refuses_is_told_without_its_secret(
    how: str,
    said: str,
    slack: Callable[[Received], Notify],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(notify, "TIMEOUT", 1.0)
    with webhook_server(how) as server:
        notify.deliver([(slack(server), told())])
    assert "not told by slack (connection channel): " in caplog.text
    assert said in caplog.text
    assert "s3cret" not in caplog.text


def test_an_email(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    with smtp_server() as server:
        extra = json.dumps({"disable_tls": True, "disable_ssl": True, "from_email": "refit@example.org"})
        value = {"conn_type": "smtp", "host": "127.0.0.1", "port": server.port, "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_POST", json.dumps(value))
        target = Notify(to="email", connection="post", address=["ops@example.org", "lea@example.org"])
        notify.deliver([(target, told(stage="Straße"))])
    assert caplog.text.count("not told") == 0, caplog.text
    ((_, who, body),) = server.requests
    mail = email.message_from_bytes(body, policy=email.policy.default)
    assert mail["subject"] == "plates: failed at Straße (out_of_memory)"
    assert who == {"ops@example.org": "", "lea@example.org": ""}
    text = mail.get_body().get_content()
    assert "What to do: lower batch_size" in text
    assert "&lt;b&gt;" in text


# --- who is told ------------------------------------------------------------------------------------------------------


@pytest.fixture
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in ("WORKSPACE", "PIPELINES", "DATA_ROOTS", "CLUSTERS"):
        monkeypatch.setenv(f"REFIT_{name}", str(tmp_path / name.lower()))
    (tmp_path / "clusters").mkdir()
    profile = "runtime: local\ntriton: {url: 'http://127.0.0.1:9', repository: m}\n"
    (tmp_path / "clusters" / "local.yaml").write_text(profile)
    notify._of_profile.cache_clear()
    return Settings.from_env()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[{to: email, connection: post}]", "an email needs `address`"),
        ("[{to: webhook, connection: h, address: [a@b.c]}]", "slack and webhook take none"),
        ("[{to: fax, connection: h}]", "notify"),
        ("[{to: slack, connection: h, when: [stale]}]", "max_age_days. go together"),
        ("[{to: slack, connection: h, when: [failur]}]", "failur"),
        ("[{to: slack, connection: 'https://hooks.example.org/secret'}]", "connection"),
    ],
)
def test_faults_are_told_where_they_stand(where: Settings, line: str, message: str) -> None:
    from refit import pipeline as pipelines

    write_pipeline(where.pipelines / "p.yaml", f"notify: {line}")
    with pytest.raises(SpecError, match=message) as caught:
        pipelines.load(where.pipelines / "p.yaml")
    assert "p.yaml:3" in str(caught.value)


WANTED = """notify:
- {to: webhook, connection: all, when: [success, failure, drift]}
- {to: webhook, connection: drift, when: [drift]}
- {to: webhook, connection: bad, when: [failure]}"""


def ended(where: Settings, told: Any, states: dict[str, str | None] | None = None) -> None:
    ti = SimpleNamespace(dag_id="retrain_p", get_task_states=lambda **_: {"r": states or {}})
    notify.ended("p", {"run_id": "r", "ti": ti}, told)


def test_one_message_of_what_matters_most(where: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pipeline(where.pipelines / "p.yaml", WANTED)
    profile = where.clusters / "local.yaml"
    profile.write_text(profile.read_text() + "notify: [{to: slack, connection: everywhere, when: [success]}]\n")
    sent: list[str] = []
    monkeypatch.setattr(
        notify, "deliver", lambda todo: sent.extend(f"{t.connection} {m.values['event']}" for t, m in todo)
    )

    def end(**told: Any) -> list[str]:
        sent.clear()
        ended(where, told)
        return list(sent)

    assert end(state="succeeded") == ["all success", "everywhere success"]
    assert end(state="succeeded", drift=["box sizes"]) == ["all success", "drift drift", "everywhere success"]
    assert end(state="failed", drift=["box sizes"]) == ["all failure", "drift drift", "bad failure"]
    assert end() == [], "nothing new came"
    assert end(state="dry_run") == []


def test_a_run_that_left_no_report_names_its_failed_tasks(where: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pipeline(where.pipelines / "p.yaml", WANTED)
    titles: list[str] = []
    monkeypatch.setattr(notify, "deliver", lambda todo: titles.extend(m.title for _, m in todo))
    ended(where, None, {"bind": "success", "stages.train": "failed", "publish": "running"})
    assert titles == ["p: failed at train"] * 2


def test_nothing_that_goes_wrong_reaches_airflow(
    where: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no network")

    write_pipeline(where.pipelines / "p.yaml", WANTED)
    monkeypatch.setattr(notify, "deliver", broken)
    ended(where, {"state": "failed"})
    assert "nobody could be told of a run's end" in caplog.text
    caplog.clear()
    notify.Notifier("approval", "p", [Notify(to="slack", connection="s", when=("approval",))])({"run_id": "r"})
    assert "nobody could be told of a run" in caplog.text


# --- champions that grow old ------------------------------------------------------------------------------------------

STALE = "notify: [{to: webhook, connection: hook, when: [stale], max_age_days: 30}]"


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    known: dict[str, Any] = {}

    def get(name: str, default: Any = None, deserialize_json: bool = False) -> Any:
        return known.get(name, default)

    def put(name: str, value: Any, **_: Any) -> None:
        known[name] = value

    for module in (notify, watch):
        monkeypatch.setattr(module, "Variable", SimpleNamespace(get=get, set=put))
    return known


def test_an_old_champion_is_told_of_once_a_week(
    where: Settings, variables: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    monkeypatch.setattr(notify, "deliver", lambda todo: sent.extend(what.title for _, what in todo))
    write_pipeline(where.pipelines / "p.yaml", STALE)
    write_pipeline(where.pipelines / "broken.yaml", "notify: 7")
    write_pipeline(where.pipelines / "q.yaml")

    def look(days_ago: float, **more: Any) -> list[str]:
        sent.clear()
        since = (datetime.now(UTC) - timedelta(days=days_ago)).isoformat(timespec="seconds")
        variables["refit_champion_p"] = {"model": "m", "version": 4, "since": since, **more}
        watch.AgesOperator(task_id="ages").execute({})  # type: ignore[arg-type]
        return list(sent)

    assert look(29) == []
    assert look(31) == ["p: what serves is 31 days old"]
    told = variables["refit_champion_p"]["told"]
    assert look(31, told=told) == [], "it was told a moment ago"
    week = (datetime.fromisoformat(told) - timedelta(days=8)).isoformat()
    assert look(40, told=week) == ["p: what serves is 40 days old"]
    variables.clear()
    sent.clear()
    watch.AgesOperator(task_id="ages").execute({})  # type: ignore[arg-type]
    assert sent == [], "nothing serves, as far as anybody knows"


def test_what_serves_is_noted_where_somebody_wants_to_know(where: Settings, variables: dict[str, Any]) -> None:
    champion = {"model": "m", "version": 4, "since": "2026-11-01T00:00:00+00:00"}
    write_pipeline(where.pipelines / "p.yaml", STALE)
    write_pipeline(where.pipelines / "q.yaml")
    for name in ("p", "q", "gone"):
        notify.remember(name, {"told": {"champion": champion}})
    assert variables == {"refit_champion_p": champion}
    variables["refit_champion_p"] = {**champion, "told": "2026-11-20T00:00:00+00:00"}
    notify.remember("p", {"told": {"champion": champion}})
    assert "told" in variables["refit_champion_p"], "the same champion: what was told stays"
    notify.remember("p", {"told": {"champion": {**champion, "version": 5}}})
    assert variables["refit_champion_p"]["version"] == 5
    assert "told" not in variables["refit_champion_p"]
    notify.remember("p", {})


def test_the_watch_is_there_where_it_is_asked_for(where: Settings) -> None:
    write_pipeline(where.pipelines / "p.yaml")
    assert watch.dags() == {}
    write_pipeline(where.pipelines / "p.yaml", STALE)
    assert list(watch.dags()) == ["refit_watch"]
