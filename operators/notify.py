"""Messages to people about runs: Slack, email, webhook. What stands in them: `refit.notify`.

A run's end is told by its task `publish`, which runs whatever has happened. Not by callbacks of the DAG: those run in
the DAG processor, and Airflow 3.3.2 loses the one of a versioned bundle whose file is just being processed
(`DagFileProcessorManager._start_new_processes` takes the file from its queue; the callback waits for the next one of
the same version). A message that cannot be sent is a line in the task's log: nothing here raises, and no way may take
longer than SECONDS.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow.sdk import BaseNotifier, Connection, Variable

from operators import names

if TYPE_CHECKING:
    from airflow.sdk import Context

    from refit.config import Settings
    from refit.notify import Event, Message, Notify
    from refit.pipeline import Pipeline

SECONDS = 15.0  # for all messages of one event together
TIMEOUT = 8.0  # of a connection, and of each answer

log = logging.getLogger(__name__)


class Notifier(BaseNotifier):
    """Tells everybody who wants to know of an event while a run goes on. Nothing passes through Jinja."""

    template_fields = ()

    def __init__(self, event: Event, pipeline: str, targets: Sequence[Notify], **told: Any) -> None:
        super().__init__()
        self.event, self.pipeline, self.targets, self.told = event, pipeline, tuple(targets), told

    def notify(self, context: Context) -> None:
        try:
            send(self.targets, [self.event], self.pipeline, str(context["run_id"]), self.told)
        except Exception:  # whatever it is: a message is not worth a run
            log.exception("%s: nobody could be told of a run", self.pipeline)


def ended(pipeline: str, context: Mapping[str, Any], told: Any) -> None:
    """Tell everybody who wants to know of the end of this run.

    `told` is what `refit.notify.facts` says of it; where it left nothing, the tasks that failed are named.
    """
    try:
        wanted = _wanted(pipeline)
        if not wanted:
            return
        facts = dict(told) if isinstance(told, Mapping) and told else _failed(context)
        state = facts.get("state")
        if state == "succeeded":
            events: list[Event] = ["success"]
        elif state in (None, "dry_run"):  # nothing new came, or it only looked
            return
        else:
            events = ["failure"]
        if facts.get("drift"):
            events.append("drift")
        send(wanted, events, pipeline, str(context["run_id"]), facts)
    except Exception:  # whatever it is: a message is not worth a run
        log.exception("%s: nobody could be told of a run's end", pipeline)


def send(targets: Iterable[Notify], events: Sequence[Event], pipeline: str, run: str, told: Mapping[str, Any]) -> None:
    """A message to each target that wants one of the events: the first of them, which matters most."""
    from refit.notify import message

    todo = []
    for target in targets:
        event = next((e for e in events if e in target.when), None)
        if event is not None:
            todo.append((target, message(event, pipeline, run, told, link(pipeline, run))))
    deliver(todo)


def _failed(context: Mapping[str, Any]) -> dict[str, Any]:
    """What Airflow knows of a run that left no report."""
    ti, run = context["ti"], context["run_id"]
    states: Mapping[str, str | None] = ti.get_task_states(dag_id=ti.dag_id, run_ids=[run]).get(run, {})
    tasks = [task.rpartition(".")[2] for task, state in states.items() if state == "failed"]
    return {"state": "failed", "stage": ", ".join(tasks)} if tasks else {}


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


def _wanted(pipeline: str) -> list[Notify]:
    """Who is to be told of this pipeline's runs; nobody for a faulty file."""
    from operators import inputs

    where = inputs.settings()
    try:
        return targets(inputs.read(pipeline, {}, where), where)
    except inputs.BadInput as exc:
        log.warning("%s: nobody is told of this run: %s", pipeline, exc)
        return []


def approval(pipeline: str, question: Mapping[str, Any]) -> list[Notifier]:
    """Who is told that a release waits, for Airflow's human-in-the-loop operator."""
    mine = [t for t in _wanted(pipeline) if "approval" in t.when]
    body = re.sub(r"\\(.)|[*`]", r"\1", str(question.get("body", "")))  # its Markdown as text
    return [Notifier("approval", pipeline, mine, reason=f"{question['subject']}\n{body}".strip())] if mine else []


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
            log.error("not told by %s (connection %s): %s", target.to, target.connection, _reason(exc))

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


_KINDS = {
    "Timeout": "no answer in time",
    "Connect": "nobody takes a connection there: is its host known, and does it listen?",
    "NotFound": "Airflow has no such connection",
}


def _reason(exc: Exception) -> str:
    """What went wrong, by the kind of a library's error: its text may hold the address, which for Slack and many
    webhooks is the secret."""
    if isinstance(exc, NotSent):
        return str(exc)
    kind = type(exc).__name__
    told = next((words for part, words in _KINDS.items() if part in kind), "")
    return f"{told} ({kind})" if told else kind


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
    """By an incoming webhook (connection of type slackwebhook).

    Slack refuses with one word, such as `no_service` or `channel_is_archived`
    (https://api.slack.com/messaging/webhooks#handling_errors).
    """
    try:
        from airflow.providers.slack.hooks.slack_webhook import SlackWebhookHook
    except ImportError:
        raise NotSent("slack needs apache-airflow-providers-slack in Airflow's environment") from None
    hook = SlackWebhookHook(slack_webhook_conn_id=target.connection, timeout=int(TIMEOUT))
    answer = hook.client.send(text=what.slack())
    if answer.status_code != 200:
        word = answer.body if re.fullmatch("[a-z_]{1,50}", answer.body) else "no answer of Slack's"
        raise NotSent(f"the server answered {answer.status_code}: {word}")


WAYS: Mapping[str, Callable[[Notify, Message], None]] = {"webhook": _webhook, "email": _email, "slack": _slack}
