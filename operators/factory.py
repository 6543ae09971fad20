"""From pipeline files to DAGs: retrain_<name> for each file.

    arrival -> bind -> stages (a task group: dataset_convert ... quantize, gates) -> release -> publish -> done

With dataset.shards, pods that look at a share of the data each stand between arrival and bind: a mapped task.

Every task after bind has bind as a direct upstream and runs where nothing upstream failed and at least one upstream
task succeeded. So a stage that bind skipped (its result is reused) does not skip what follows, a failed stage stops
what needs it, and a skipped or failed bind stops everything. `done` follows every task, because Airflow judges a run by
its last tasks only: a run whose release is skipped would count as a success whatever failed before. It costs nothing,
the scheduler settles it without starting a process. `publish` comes before it and runs whatever has happened.

A pipeline file can change or break at any time, so nothing that a running run does may depend on it:
- The DAG processor gives a faulty file a DAG of one task that names the faults. Without it Airflow would mark the DAG
  stale and freeze its running runs (those keep their own version of the DAG, see `operators.bundle`).
- A task process gets a DAG that holds its own task only; of the file it reads no more than which runtime it names.
- A fault that shows only when the DAG is made is found here: raised in Airflow, it would switch off all DAGs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import DAG, BaseOperator, TaskGroup, TriggerRule, get_parsing_context

from operators import inputs, names, pools
from operators.arrival import DatasetArrivalSensor, asset
from operators.stage import BadFileOperator, PodTask, load
from refit.config import ConfigError, Settings

if TYPE_CHECKING:  # imported when a file is read: a task process does without pydantic's models
    from refit.cluster import Profile
    from refit.pipeline import Pipeline
    from refit.plan import Node
    from refit.specs import Problem

RULE = TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS
# runtime -> the operator that runs one stage; takes `stage` and BaseOperator's arguments
STAGE_OPERATORS: Mapping[str, str] = {
    "local": "operators.stage:LocalStageOperator",
    "kubernetes": "operators.pod:TaoStageOperator",
}
BIND_OPERATORS: Mapping[str, str] = {
    "local": "operators.stage:BindOperator",
    "kubernetes": "operators.pod:BindPodOperator",
}
PUBLISH_OPERATORS: Mapping[str, str] = {
    "local": "operators.publish:PublishOperator",
    "kubernetes": "operators.pod:PublishPodOperator",
}
APPROVE_OPERATORS: Mapping[str, str] = {
    "local": "operators.approval:ApproveOperator",
    "kubernetes": "operators.pod:ApprovePodOperator",
}
LOOK_OPERATOR = "operators.pod:LookPodOperator"
DEFAULTS: Mapping[str, Any] = {"owner": "refit", "retries": 2, "retry_delay": timedelta(seconds=15)}


class BadPipelineFiles(Exception):
    """Every fault of every faulty pipeline file, one on each line."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        count = len({p.file for p in problems})
        head = f"{count} pipeline file{'s' if count > 1 else ''} cannot be used; all others are loaded"
        super().__init__("\n".join([head, *map(str, problems)]))


@dataclass(frozen=True)
class Made:
    """What became of one pipeline file: a DAG, and the faults for which it is only a stand-in."""

    dag: DAG | None
    problems: tuple[Problem, ...] = ()


def dags(settings: Settings | None = None) -> dict[str, DAG]:
    """All DAGs by id; in a process that runs one task, that task's DAG only."""
    context = get_parsing_context()
    pipeline = names.pipeline_of(context.dag_id) if context.dag_id else None
    if context.dag_id and pipeline is None:
        return {}
    if pipeline and context.task_id:
        dag = task_dag(pipeline, context.task_id, settings)
        return {dag.dag_id: dag}
    return {made.dag.dag_id: made.dag for made in make(settings, only=pipeline) if made.dag}


def problems(settings: Settings | None = None) -> list[Problem]:
    """The faults of all pipeline files, in the order of the files."""
    return [problem for made in make(settings) for problem in made.problems]


def make(settings: Settings | None = None, only: str | None = None) -> list[Made]:
    """Read the pipeline files (or the one named) and make their DAGs; never raises for a faulty file."""
    from refit import pipeline as pipelines
    from refit.specs import Problem

    try:
        settings = settings or Settings.from_env()
        files = pipelines.files(settings.pipelines)
    except ConfigError as exc:
        return [Made(None, (Problem("settings", 0, "", str(exc)),))]
    except OSError as exc:
        reason = f"the folder of pipeline files cannot be read: {exc.strerror}; set REFIT_PIPELINES"
        return [Made(None, (Problem(str(exc.filename), 0, "", reason),))]
    found: dict[str, Path] = {}
    released: dict[tuple[str, str, str], str] = {}
    out = []
    for file in files:
        name = pipelines.peek_name(file)
        if only not in (None, name):
            continue
        if name in found:
            reason = f"{found[name].name} and {file.name} stand for the same pipeline; remove one"
            out.append(Made(None, (Problem(inputs.shown(file, settings), 1, "", reason),)))
        else:
            found[name] = file
            out.append(_make(name, file, settings, released))
    return out


def _make(name: str, file: Path, settings: Settings, released: dict[tuple[str, str, str], str]) -> Made:
    """`released`: what the files before this one release from pods, for `_alone`."""
    from refit import cluster
    from refit import pipeline as pipelines
    from refit import plan as plans
    from refit.specs import Problem, SpecError

    shown = inputs.shown(file, settings)
    try:
        pipeline = pipelines.load(file, shown)
        if pipeline.runtime != "local":
            # A stage that wants what the cluster has not would wait for ever.
            _alone(pipeline, cluster.of_pipeline(pipeline, settings), shown, released)
        return Made(pipeline_dag(pipeline, shown, plans.skeleton(pipeline), settings))
    except SpecError as exc:
        found = tuple(exc.problems)
    except Exception as exc:  # whatever it is, it must not reach the other files' DAGs
        found = (Problem(shown, 1, "", f"cannot be made into a DAG: {type(exc).__name__}: {exc}"),)
    # A name that cannot be a pipeline's never had a run that would need the stand-in.
    return Made(bad_file_dag(name, found) if pipelines.NAME.match(name) else None, found)


def _alone(pipeline: Pipeline, profile: Profile, shown: str, released: dict[tuple[str, str, str], str]) -> None:
    """Raises SpecError where an earlier file releases the same model from pods: these see no ledger but their own
    pipeline's, so that each would find the other's release to be somebody's meddling, and take it back."""
    from refit.specs import Problem, SpecError
    from refit.toolkits.chain import served_by

    if pipeline.release is None:
        return
    target, _ = served_by(pipeline.release, profile)
    model = str(pipeline.release.model or pipeline.name)
    other = released.setdefault((str(pipeline.profile), target.repository, model), shown)
    if other != shown:
        text = f"{other} releases {model!r} into {target.repository} too; in a cluster a model is one pipeline's"
        raise SpecError([Problem(shown, 1, "release.model", text)])


def pipeline_dag(pipeline: Pipeline, file: str, nodes: Sequence[Node], settings: Settings) -> DAG:
    """The DAG of a good pipeline. Raises SpecError for what only shows here: the schedule, the data's place."""
    from operators import texts
    from operators.params import form
    from refit import plan as plans
    from refit.toolkits.chain import WATCH

    name = str(pipeline.name)
    with DAG(
        names.dag_id(name),
        description=texts.summary(pipeline),
        doc_md=texts.dag_doc(pipeline, file, nodes),
        schedule=_schedule(pipeline, file, settings),
        tags={names.TAG, name, pipeline.toolkit},
        default_args=dict(DEFAULTS),
        catchup=False,
        max_active_runs=1,
        auto_register=False,
    ) as dag:
        arrival, bind = _task(name, names.ARRIVAL), _task(name, names.BIND, pipeline.runtime)
        looks(pipeline, arrival, bind)
        tasks: dict[str, BaseOperator] = {}
        groups: dict[str, TaskGroup] = {}
        for node in nodes:
            if node.group and node.group not in groups:
                groups[node.group] = TaskGroup(node.group, group_display_name=node.group.capitalize())
            group = groups.get(node.group) if node.group else None
            task = tasks[node.name] = _task(
                name,
                node.name,
                pipeline.runtime,
                task_group=group,
                task_display_name=node.title,
                **pools.of_stage(pipeline.runtime, node.gpus, waits=node.name == WATCH),
            )
            [bind, *(tasks[upstream] for upstream in node.upstream)] >> task
        publish, done = _task(name, names.PUBLISH, pipeline.runtime), _task(name, names.DONE)
        [bind, *tasks.values()] >> publish >> done
        [bind, *tasks.values()] >> done
    # Only now, because a DAG's params are copied into each task that is made after them, and serialized with it; in
    # place, because setting them checks every default against its schema, which costs more than all the rest.
    dag.params.update(form(plans.params(pipeline)))
    dag.validate()  # type: ignore[no-untyped-call]
    dag.check_cycle()
    return dag


def looks(pipeline: Pipeline, arrival: BaseOperator, bind: BaseOperator) -> None:
    """arrival >> bind; between them, where the pipeline says so, a pod for each share of the data: a mapped task."""
    shares = pipeline.dataset.shards
    if shares == 1 or pipeline.runtime == "local":
        arrival >> bind
        return
    mapped = PodTask.partial(
        task_id=names.LOOK,
        operator=LOOK_OPERATOR,
        pipeline=str(pipeline.name),
        pool=pools.PODS,
        task_display_name="Look at a share of the data",
    ).expand(share=list(range(shares)))
    arrival >> mapped >> bind


def bad_file_dag(name: str, found: Iterable[Problem]) -> DAG:
    """Keeps a DAG alive whose file is faulty; its one task fails with the faults."""
    from operators import texts

    found = list(found)
    with DAG(
        names.dag_id(name),
        description=texts.clean(str(found[0]).split("\n")[0])[:500] if found else "",
        doc_md=texts.bad_file_doc(found),
        schedule=None,
        tags={names.TAG, names.BAD_FILE_TAG},
        default_args=dict(DEFAULTS),
        catchup=False,
        max_active_runs=1,
        auto_register=False,
    ) as dag:
        _task(name, names.BAD_FILE)
    return dag


def task_dag(pipeline: str, task_id: str, settings: Settings | None = None) -> DAG:
    """A DAG with the one task that a task process runs, made without reading what the pipeline file means."""
    with DAG(names.dag_id(pipeline), schedule=None, default_args=dict(DEFAULTS), auto_register=False) as dag:
        group, _, rest = task_id.rpartition(".")
        stage = names.stage_of(task_id)
        there = stage is not None or rest in (names.LOOK, names.BIND, names.PUBLISH)
        runtime = _peek_runtime(pipeline, settings or Settings.from_env()) if there else ""
        _task(pipeline, rest, runtime, task_group=TaskGroup(group) if group else None)
    return dag


def _task(pipeline: str, name: str, runtime: str = "", **kwargs: Any) -> BaseOperator:
    """The task of a node, or one of those around the stages."""
    if name == names.ARRIVAL:
        return DatasetArrivalSensor(
            task_id=name, pipeline=pipeline, task_display_name="Wait for complete data", **kwargs
        )
    if name == names.BIND:
        kwargs = {"task_display_name": "Take the data in and plan", "pipeline": pipeline, **kwargs}
        return _operator(BIND_OPERATORS, runtime, task_id=name, **kwargs)
    if name == names.PUBLISH:
        kwargs = {"task_display_name": "Publish the report", "pipeline": pipeline, **kwargs}
        rule = TriggerRule.ALL_DONE
        return _operator(PUBLISH_OPERATORS, runtime, task_id=name, trigger_rule=rule, retries=0, **kwargs)
    if name == names.LOOK:  # in a task process, which runs one share and needs no mapping
        return load(LOOK_OPERATOR)(task_id=name, pipeline=pipeline, **kwargs)
    if name == names.BAD_FILE:
        return BadFileOperator(
            task_id=name, pipeline=pipeline, retries=0, task_display_name="Faults of the pipeline file", **kwargs
        )
    if name == names.DONE:
        from airflow.providers.standard.operators.empty import EmptyOperator

        return EmptyOperator(task_id=name, trigger_rule=TriggerRule.NONE_FAILED, task_display_name="Done", **kwargs)
    table = APPROVE_OPERATORS if name == names.APPROVE else STAGE_OPERATORS
    return _operator(table, runtime, task_id=name, stage=name, trigger_rule=RULE, **kwargs)


def _operator(table: Mapping[str, str], runtime: str, **kwargs: Any) -> BaseOperator:
    """The operator of a runtime; while Airflow parses, a stand-in for those that import the Kubernetes client."""
    if runtime == "kubernetes" and get_parsing_context().task_id is None:
        return PodTask(operator=table[runtime], **kwargs)
    return load(table[runtime])(**kwargs)


def _schedule(pipeline: Pipeline, file: str, settings: Settings) -> Any:
    from refit.specs import Problem, SpecError, read_document

    def fault(key: tuple[str, ...], message: str) -> SpecError:
        line = read_document(settings.pipelines / Path(file).name).line(key)
        return SpecError([Problem(file, line, "", message)])

    if pipeline.schedule is None:
        return None
    if pipeline.schedule == "on_arrival":
        try:
            return [asset(pipeline, settings)]
        except ConfigError as exc:
            raise fault(("dataset", "source"), str(exc)) from None
    return _cron(pipeline.schedule, fault)


def _cron(expression: str, fault: Any) -> Any:
    from airflow.sdk import CronTriggerTimetable
    from croniter import CroniterError, croniter  # type: ignore[import-untyped]

    timetable = CronTriggerTimetable(expression, timezone="UTC")
    try:
        croniter(timetable.expression).get_next()  # "0 0 31 2 *" is well-formed, and never comes
    except CroniterError as exc:
        raise fault(("schedule",), f"schedule: {expression!r} is no time that comes: {exc}") from None
    return timetable


def pipeline_names() -> list[str]:
    """The pipelines that have a file, faulty or not, by name."""
    from refit import pipeline as pipelines

    try:
        return sorted({pipelines.peek_name(file) for file in pipelines.files(Settings.from_env().pipelines)})
    except (ConfigError, OSError):
        return []  # `make` tells


def clusters() -> list[tuple[str | None, str]]:
    """Airflow's connection to a cluster and the namespace, for all that pipeline files name, faulty files included."""
    from refit import cluster
    from refit import pipeline as pipelines
    from refit.specs import SpecError

    found = set()
    try:
        settings = Settings.from_env()
        files = pipelines.files(settings.pipelines)
    except (ConfigError, OSError):
        return []  # `make` tells
    for file in files:
        if inputs.runtime(file) == "kubernetes":
            with contextlib.suppress(SpecError):
                profile = cluster.load(inputs.profile(file), settings)
                if isinstance(profile, cluster.KubernetesProfile):
                    found.add((profile.connection, profile.namespace))
    return sorted(found, key=str)


def _peek_runtime(pipeline: str, settings: Settings) -> str:
    """The runtime of a pipeline, also where its file is not valid (any more)."""
    for ending in (".yaml", ".yml"):
        file = settings.pipelines / (pipeline + ending)
        if file.exists():
            found = inputs.runtime(file)
            return found if found in STAGE_OPERATORS else "local"
    return "local"
