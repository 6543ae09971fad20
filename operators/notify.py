"""Messages to people about runs, as Airflow's notifiers: Slack, email, webhook. What stands in them: `refit.notify`.

A run's end is told by the callbacks of its DAG, which the DAG processor runs after the run's last task; what happened
is in the XCom of the task `publish`. A message that cannot be sent is a line in a log: nothing here raises, and no way
may take longer than SECONDS, so that neither a run nor the parsing of other files ever waits for it.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow.sdk import BaseNotifier, Connection, Variable

from operators import names

if TYPE_CHECKING:
    from airflow.sdk import Context

    from refit.config import Settings
    from refit.notify import Event, Message, Notify
    from refit.pipeline import Pipeline

SECONDS = 15.0  # for all messages of one event together; the DAG processor gives a file 50 s
TIMEOUT = 8.0  # of a connection, and of each answer

log = logging.getLogger(__name__)


class Notifier(BaseNotifier):
    """Tells everybody who wants to know of an event of a pipeline's run.

    As a DAG's callback it is told which end came, and finds out about drift itself. Nothing passes through Jinja.
    """

    template_fields = ()

    def __init__(self, event: Event, pipeline: str, targets: Sequence[Notify], **told: Any) -> None:
        super().__init__()
        self.event, self.pipeline, self.targets, self.told = event, pipeline, tuple(targets), told

    def notify(self, context: Context) -> None:
        try:
            self._notify(context)
        except Exception:  # whatever it is: a message is not worth a run
            log.exception("%s: nobody could be told of a run's end", self.pipeline)

    def _notify(self, context: Mapping[str, Any]) -> None:
        from refit.notify import message

        run = str(context["run_id"])
        told = self.told or facts(self.pipeline, run, failed=self.event == "failure")
        if self.event == "success" and told.get("state") != "succeeded":
            return  # nothing new came, or it only tried
        events = [self.event, *(["drift"] if told.get("drift") else [])]
        todo = []
        for target in self.targets:
            event: Any = next((e for e in events if e in target.when), None)  # one message, of what matters most
            if event is not None:
                todo.append((target, message(event, self.pipeline, run, told, link(self.pipeline, run))))
        deliver(todo)


def facts(pipeline: str, run: str, *, failed: bool) -> dict[str, Any]:
    """What the task `publish` has left of a run; of one that left nothing, the tasks that failed."""
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance
    from airflow.sdk.execution_time.xcom import XCom

    dag_id = names.dag_id(pipeline)
    left = XCom.get_one(key="return_value", dag_id=dag_id, task_id=names.PUBLISH, run_id=run)
    if isinstance(left, Mapping) and isinstance(left.get("told"), Mapping):
        return dict(left["told"])
    if not failed:
        return {}
    states = RuntimeTaskInstance.get_task_states(dag_id=dag_id, run_ids=[run]).get(run, {})
    tasks = [task.rpartition(".")[2] for task, state in states.items() if state == "failed"]
    return {"state": "failed", "stage": ", ".join(tasks)} if tasks else {"state": "failed"}


def link(pipeline: str, run: str) -> str:
    """The run's page in Airflow, or with no run the DAG's."""
    from airflow.sdk.configuration import conf

    base = str(conf.get("api", "base_url", fallback="") or "").rstrip("/")
    page = f"{base}/dags/{names.dag_id(pipeline)}"
    return f"{page}/runs/{quote(run, safe='')}" if run else page


def targets(pipeline: Pipeline, settings: Settings) -> list[Notify]:
    """Who is to be told of this pipeline's runs: by its file, and by its cluster profile."""
    return [*pipeline.notify, *_of_profile(str(settings.clusters), pipeline.profile, settings)]


@functools.cache  # one parsing of all files reads a profile once
def _of_profile(folder: str, name: str, settings: Settings) -> tuple[Notify, ...]:
    from refit import cluster
    from refit.specs import SpecError

    with contextlib.suppress(SpecError):  # told elsewhere, where it matters
        return tuple(cluster.load(name, settings).notify)
    return ()


def callbacks(pipeline: Pipeline, settings: Settings) -> dict[str, Any]:
    """The DAG's callbacks, as its arguments; none where nobody wants to know, so that nothing is called for nothing."""
    found, wanted = targets(pipeline, settings), {}
    for event in ("failure", "success"):
        mine = [t for t in found if {event, "drift"} & set(t.when)]
        if mine:
            wanted[f"on_{event}_callback"] = Notifier(event, str(pipeline.name), mine)  # type: ignore[arg-type]
    return wanted


def approval(pipeline: str, question: Mapping[str, Any]) -> list[Notifier]:
    """Who is told that a release waits, for Airflow's human-in-the-loop operator; nobody for a faulty file."""
    from operators import inputs

    try:
        where = inputs.settings()
        found = targets(inputs.read(pipeline, {}, where), where)
    except inputs.BadInput as exc:
        log.warning("%s: nobody is told that it waits for approval: %s", pipeline, exc)
        return []
    mine = [t for t in found if "approval" in t.when]
    return [Notifier("approval", pipeline, mine, reason=str(question["subject"]))] if mine else []


def champion_variable(pipeline: str) -> str:
    """Airflow's Variable that says what serves: {"model", "version", "since", "told": when its age was told last}."""
    return f"refit_champion_{pipeline}"


def remember(pipeline: str, summary: Mapping[str, Any]) -> None:
    """Note what serves, for the DAG that watches its age; where somebody wants to know, and where it has changed."""
    from operators import inputs

    champion = (summary.get("told") or {}).get("champion")
    try:
        where = inputs.settings()
        if not champion or not any("stale" in t.when for t in targets(inputs.read(pipeline, {}, where), where)):
            return
        name = champion_variable(pipeline)
        known = Variable.get(name, default=None, deserialize_json=True) or {}
        if {key: known.get(key) for key in champion} != champion:
            Variable.set(name, champion, description="what serves, noted by Refit", serialize_json=True)
    except Exception:  # whatever it is: no run fails for it
        log.exception("%s: the age of what serves will not be told", pipeline)


# --- the ways ---------------------------------------------------------------------------------------------------------


def deliver(todo: Sequence[tuple[Notify, Message]]) -> None:
    """Send messages side by side; whatever a way does, this ends after SECONDS. Failures are lines in the log."""

    def one(target: Notify, what: Message) -> None:
        try:
            WAYS[target.to](target, what)
            log.info("told by %s (connection %s): %s", target.to, target.connection, what.title)
        except Exception as exc:  # of many libraries
            if over.is_set():
                return  # that has been said
            # The text of a library's error may hold the address, which for Slack and many webhooks is the secret.
            reason = str(exc) if isinstance(exc, NotSent) else type(exc).__name__
            log.error("not told by %s (connection %s): %s", target.to, target.connection, reason)

    over = threading.Event()
    threads = [threading.Thread(target=one, args=pair, daemon=True) for pair in todo]
    for thread in threads:
        thread.start()
    until = time.monotonic() + SECONDS
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    over.set()
    for thread, (target, _) in zip(threads, todo, strict=True):
        if thread.is_alive():
            log.error("not told by %s (connection %s): it takes too long", target.to, target.connection)


class NotSent(Exception):
    """A message that was not sent; the text is ours and holds no secret."""


def _webhook(target: Notify, what: Message) -> None:
    """POST of the message as JSON. Of Airflow's connection (type http): host, schema, port, `path` and `headers` of its
    extra; login and password, or a password alone as a bearer token."""
    import httpx

    connection = Connection.get(target.connection)
    extra = connection.extra_dejson
    host = connection.host or ""
    if "://" not in host:
        host = f"{connection.schema or 'https'}://{host}" + (f":{connection.port}" if connection.port else "")
    headers = {str(k): str(v) for k, v in (extra.get("headers") or {}).items()}
    auth = (connection.login, connection.password or "") if connection.login else None
    if connection.password and not connection.login:
        headers["Authorization"] = f"Bearer {connection.password}"
    url = host.rstrip("/") + ("/" + str(extra["path"]).lstrip("/") if extra.get("path") else "")
    answer = httpx.post(url, json=dict(what.values), headers=headers, auth=auth, timeout=TIMEOUT)
    if not answer.is_success:
        raise NotSent(f"the server answered {answer.status_code}")


def _email(target: Notify, what: Message) -> None:
    """By the connection's SMTP server (type smtp); the sender is `from_email` of its extra."""
    try:
        from airflow.providers.smtp.hooks.smtp import SmtpHook
    except ImportError:
        raise NotSent("email needs apache-airflow-providers-smtp in Airflow's environment") from None
    with SmtpHook(smtp_conn_id=target.connection) as hook:
        hook.send_email_smtp(to=target.address, subject=what.title, html_content=what.markup())


def _slack(target: Notify, what: Message) -> None:
    """By an incoming webhook (connection of type slackwebhook)."""
    try:
        from airflow.providers.slack.hooks.slack_webhook import SlackWebhookHook
    except ImportError:
        raise NotSent("slack needs apache-airflow-providers-slack in Airflow's environment") from None
    SlackWebhookHook(slack_webhook_conn_id=target.connection, timeout=int(TIMEOUT)).send(text=what.slack())


WAYS: Mapping[str, Callable[[Notify, Message], None]] = {"webhook": _webhook, "email": _email, "slack": _slack}
