"""Operators that run stages as subprocesses of the task (`runtime: local`), and the bind that comes before them.

A task takes what it does from the run's plan.json. Nothing passes through Jinja: these operators have no template
fields, so text from a pipeline file, a param or the data stays text.
"""

from __future__ import annotations

import importlib
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowSkipException, DownstreamTasksSkipped

from operators import inputs, lineage, names, pools
from operators.failures import raise_failure
from operators.links import DataReport, RunReport
from refit.outcome import Result
from refit.runtime.local import EnvironmentMissing, StageProcess, interpreter

if TYPE_CHECKING:
    from airflow.sdk import Context

    from refit.config import Settings


class ProcessOperator(BaseOperator):
    """Runs one StageProcess; the process ends when the task is failed, cleared or killed."""

    template_fields = ()

    _process: StageProcess | None = None
    _killed = False

    def _run(
        self, name: str, environment: str, where: Settings, login: Mapping[str, str] | None = None, **what: Any
    ) -> Result:
        """Run a request or a plan's stage; its lines go to the task's log. Raises for any outcome but success.

        `login`: more variables for the runner: a login (`login_of`), a person's answer (`operators.approval`).
        """
        try:
            python = interpreter(environment)
        except EnvironmentMissing as exc:
            raise inputs.BadInput(str(exc)) from None
        self._process = StageProcess(
            python=python,
            env={**where.environment(), **(login or {})},
            on_line=self._tell,
            **what,
        )
        if self._killed:  # the signal came before there was a process
            self._process.stop()
        result = self._process.run()
        if not result.succeeded:
            raise_failure(name, result)
        return result

    def _tell(self, line: str) -> None:
        """A line of the stage into the task's log; errors and warnings in colour, and found by the log's filter."""
        kind = line.partition(": ")[0]
        {"error": self.log.error, "warning": self.log.warning}.get(kind, self.log.info)("%s", line)

    def on_kill(self) -> None:
        """Called in a signal handler. Airflow kills the task's process 5 s later; the runner then ends by itself."""
        self._killed = True
        if self._process is not None:
            self._process.stop()


class BindOperator(ProcessOperator):
    """The first stage of a run: checks the params, takes the data in, writes plan.json (`refit.bind`).

    The stages whose earlier results are reused, and those switched off, are marked skipped in one go, so that no task
    starts only to say so. Clearing one of them by hand runs it all the same: Airflow keeps a list of skipped tasks for
    its own branch operators only, and this is none.

    XCom: {"plan": path, "skip": [stage, ...], "fingerprint": sha256, ...} (the summary of bind's result).
    """

    ui_color = "#e3ecf7"
    operator_extra_links = (RunReport(), DataReport())

    def __init__(self, *, pipeline: str, pool: str = pools.LOCAL, **kwargs: Any) -> None:
        super().__init__(pool=pool, **kwargs)
        self.pipeline = pipeline

    def execute(self, context: Context) -> None:
        from refit.plan import bind_request, connection_of

        where = inputs.settings()
        file = inputs.pipeline_file(self.pipeline, where)
        request = bind_request(
            file,
            file.read_text(encoding="utf-8"),
            context["run_id"],
            inputs.conf_of(context),
            where,
            nonce=uuid.uuid4().hex,
        )
        login = login_of(connection_of(request))
        finish_bind(context, self._run(names.BIND, request["environment"], where, login, request=request))

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """Asked by Airflow's OpenLineage provider, where it is installed and has a backend."""
        return lineage.of(task_instance, names.BIND, task_instance.task_id)


def login_of(name: str | None) -> dict[str, str]:
    """The variable with the login of a remote source, as bind's runner looks for it, where Airflow has that connection;
    else it may be a secret of this machine (`refit.runtime.local.secret`)."""
    from refit.data.source import secret_name
    from refit.runtime.local import SECRET

    found = inputs.connection(name) if name else None
    return {SECRET + secret_name(str(name)): found} if found is not None else {}


def finish_bind(context: Mapping[str, Any], result: Result) -> None:
    """Hand bind's summary to the other tasks and skip the stages that it names; raises DownstreamTasksSkipped."""
    context["ti"].xcom_push(key="return_value", value=dict(result.summary))
    skip = list(result.summary.get("skip", ()))
    if skip:
        # A task id that the run does not have does no harm, and bind need not know which stages are in the group.
        raise DownstreamTasksSkipped(tasks=names.task_ids(skip))  # type: ignore[no-untyped-call]


class LocalStageOperator(ProcessOperator):
    """Runs one stage of the bound plan in its environment's interpreter on this machine.

    A retry starts the same stage in the same folder: a training goes on from its last checkpoint, a finished stage
    answers at once. Fails without a retry where the outcome says that one would not help.

    XCom: {"outcome", "seconds", "attempt", "resumed", "metrics", "summary"}.
    """

    ui_color = "#e8f4e8"
    operator_extra_links = (RunReport(),)

    def __init__(self, *, stage: str, bind: str = names.BIND, pool: str = pools.LOCAL, **kwargs: Any) -> None:
        super().__init__(pool=pool, **kwargs)
        self.stage = stage
        self.bind = bind

    def execute(self, context: Context) -> dict[str, Any]:
        path = bound_plan(context, self.bind)
        plan = json.loads(path.read_text(encoding="utf-8"))
        request = next((s for s in plan["stages"] if s["name"] == self.stage), None)
        if request is None:  # only where runs are not pinned to their DAG's version, see operators.bundle
            raise AirflowSkipException(f"{self.stage} is not in {path}: the pipeline file had no such stage then")
        where = inputs.settings()
        told = _approval(context) if request["action"] == "release" else None
        result = self._run(self.stage, request["environment"], where, told, plan=path, stage=self.stage)
        return compact(result)

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """Asked by Airflow's OpenLineage provider, where it is installed and has a backend."""
        return lineage.of(task_instance, self.stage, self.bind)


def _approval(context: Mapping[str, Any]) -> dict[str, str]:
    from operators.approval import answer  # human-in-the-loop is Airflow's heaviest operator to import

    return answer(context)


def bound_plan(context: Mapping[str, Any], bind: str) -> Path:
    """Where bind wrote this run's plan.json. Raises BadInput where bind has not run well."""
    summary = context["ti"].xcom_pull(task_ids=bind)
    if not isinstance(summary, Mapping) or "plan" not in summary:
        raise inputs.BadInput(f"task {bind} of this run has left no plan; clear {bind} together with what follows")
    return Path(summary["plan"])


def compact(result: Result) -> dict[str, Any]:
    """What other tasks and people want to know of a good result; the whole stays in the stage's result.json."""
    return {
        "outcome": str(result.outcome),
        "seconds": result.seconds,
        "attempt": result.attempt,
        "resumed": result.resumed,
        "metrics": dict(result.metrics),
        "summary": dict(result.summary),
    }


def load(name: str) -> type[BaseOperator]:
    """The operator class that "package.module:Class" names."""
    module, _, attribute = name.partition(":")
    operator: type[BaseOperator] = getattr(importlib.import_module(module), attribute)
    return operator


class PodTask(BaseOperator):
    """Stands for a pod operator where a DAG is only parsed: the scheduler needs no Kubernetes client to know a task.

    A task process gets the real one (`operators.factory.task_dag`). Where somebody runs the parsed DAG itself
    (`airflow dags test`), this one makes the real one and hands everything on to it.
    """

    template_fields = ()
    ui_color = "#e8f4e8"
    operator_extra_links = (RunReport(), DataReport())

    def __init__(
        self,
        *,
        operator: str,
        pipeline: str | None = None,
        stage: str | None = None,
        share: int | None = None,
        pool: str = pools.PODS,
        **kwargs: Any,
    ) -> None:
        super().__init__(pool=pool, **kwargs)
        self.share = share  # the real operator goes by the task's index
        self.operator = operator
        self.custom_operator_name = operator.rpartition(":")[2]
        self._own = {k: v for k, v in (("pipeline", pipeline), ("stage", stage)) if v is not None}
        self._real: BaseOperator | None = None

    def real(self) -> BaseOperator:
        if self._real is None:
            self._real = load(self.operator)(task_id=self.task_id, **self._own)
        return self._real

    def execute(self, context: Context) -> Any:
        return self.real().execute(context)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        return self.real().resume_execution(next_method, next_kwargs, context)

    def on_kill(self) -> None:
        if self._real is not None:
            self._real.on_kill()


class BadFileOperator(BaseOperator):
    """The one task of a DAG whose pipeline file is faulty: fails, and says why."""

    template_fields = ()

    def __init__(self, *, pipeline: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pipeline = pipeline

    def execute(self, context: Context) -> None:
        inputs.read(self.pipeline, {}, inputs.settings())
        raise inputs.BadInput("the pipeline file was faulty when this run began and is good now; start a new run")
