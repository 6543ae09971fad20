"""Champions that grow too old: a daily look at what publishing tasks have noted, where somebody wants to know."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import DAG, BaseOperator, Variable

from operators import inputs, notify
from operators.own import only, own_dag
from refit.config import ConfigError, Settings

if TYPE_CHECKING:
    from airflow.sdk import Context

DAG_ID = "refit_watch"
AGAIN = timedelta(days=7)  # the same champion is told of again after so long


class AgesOperator(BaseOperator):
    """Tells of each pipeline whose champion is older than its `max_age_days`. A pipeline in trouble stops no other."""

    template_fields = ()

    def execute(self, context: Context) -> None:
        from operators.factory import pipeline_names

        where = inputs.settings()
        for name in pipeline_names():
            try:
                found = notify.targets(inputs.read(name, {}, where), where)
                self._look(name, [t for t in found if "stale" in t.when], datetime.now(UTC))
            except Exception as exc:  # of a file, the store, a value of somebody else's
                self.log.warning("%s: the age of what serves cannot be told: %s", name, exc)

    def _look(self, pipeline: str, wanted: list[Any], now: datetime) -> None:
        from refit.notify import message

        variable = notify.champion_variable(pipeline)
        champion = Variable.get(variable, default=None, deserialize_json=True) if wanted else None
        if not champion:
            return
        age = now - datetime.fromisoformat(champion["since"])
        late = [t for t in wanted if age > timedelta(days=t.max_age_days)]
        self.log.info("%s: version %s serves since %s", pipeline, champion["version"], champion["since"])
        told = champion.get("told")
        if not late or (told is not None and now - datetime.fromisoformat(told) < AGAIN):
            return
        what = message("stale", pipeline, "", {"champion": champion, "days": age.days}, notify.link(pipeline, ""))
        notify.deliver([(target, what) for target in late])
        Variable.set(variable, {**champion, "told": now.isoformat(timespec="seconds")}, serialize_json=True)


def dag() -> DAG:
    """The DAG."""
    with own_dag(
        DAG_ID,
        description="Tells of champions that grow too old",
        schedule="@daily",
        start_date=datetime(2026, 1, 1, tzinfo=UTC),
    ) as made:
        AgesOperator(task_id="ages", task_display_name="Look at the champions' ages")
    return made


def dags() -> dict[str, DAG]:
    """The DAG by its id, for a DAG file's globals(); none where no file has the word `stale`."""
    return only(DAG_ID, lambda: dag() if _wanted() else None)


def _wanted() -> bool:
    """Whether any pipeline file or cluster profile may ask for it; by the text, because all are read elsewhere."""
    try:
        where = Settings.from_env()
        files = [f for folder in (where.pipelines, where.clusters) for f in folder.glob("*.y*ml")]
        return any("stale" in f.read_text(encoding="utf-8", errors="replace") for f in files)
    except (ConfigError, OSError):
        return False
