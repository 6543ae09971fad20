"""DAGs for tests/dags/test_live.py, loaded by its Airflow: our operators around a stand-in for bind.

The stand-in writes a plan of tiny stages (their code comes in the run's conf) in place of `refit.bind`, and hands it
on as bind does; everything after it is the real thing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, BaseOperator, Context, TaskGroup, TriggerRule, get_parsing_context

from operators import factory, names
from operators.approval import ApproveOperator
from operators.arrival import DatasetArrivalSensor, asset
from operators.stage import BindOperator, LocalStageOperator, finish_bind
from refit import pipeline as pipelines
from refit.config import Settings
from refit.outcome import Outcome, Result
from refit.specs import Problem
from tests.operators.plans import write_plan

ROOT = Path(os.environ["REFIT_TEST_ROOT"])


class PlanOperator(BaseOperator):
    operator_extra_links = BindOperator.operator_extra_links

    def execute(self, context: Context) -> None:
        conf: dict[str, Any] = context["dag_run"].conf or {}
        plan = write_plan(ROOT / "workspace" / "live" / "runs" / context["run_id"], conf["codes"])
        summary = {"plan": str(plan), "skip": conf.get("skip", [])}
        finish_bind(context, Result(name=names.BIND, outcome=Outcome.SUCCEEDED, summary=summary))


class Nothing(BaseOperator):
    def execute(self, context: Context) -> None:
        return None


def chain(dag_id: str, stages: Sequence[str]) -> DAG:
    """bind >> stages in a row, wired as the factory does."""
    retries = {"retries": 1, "retry_delay": timedelta(seconds=1)}
    with DAG(dag_id, schedule=None, max_active_runs=1, default_args=retries) as dag:
        bind = PlanOperator(task_id=names.BIND, retries=0)
        with TaskGroup(names.GROUP):
            tasks: list[BaseOperator] = [bind]
            for stage in stages:
                task = LocalStageOperator(task_id=stage, stage=stage, trigger_rule=factory.RULE)
                [bind, tasks[-1]] >> task
                tasks.append(task)
        tasks >> EmptyOperator(task_id=names.DONE, trigger_rule=TriggerRule.NONE_FAILED)
    return dag


def shape() -> DAG:
    """A pipeline whose file the test edits in mid-run; a faulty file gives the factory's stand-in."""
    task = get_parsing_context().task_id
    if task and task != names.BIND:
        return factory.task_dag("shape", task)
    try:
        return chain(names.dag_id("shape"), json.loads((ROOT / "shape.json").read_text()))
    except ValueError as exc:
        return factory.bad_file_dag("shape", [Problem("shape.json", 1, "", str(exc))])


class AskingPlanOperator(BaseOperator):
    """A plan of a gate that says what the conf wants, the real stage `approve`, and a release that asks for the answer
    as the real one does."""

    def execute(self, context: Context) -> None:
        conf: dict[str, Any] = context["dag_run"].conf
        run = ROOT / "workspace" / "live" / "runs" / context["run_id"]
        verdict = {"gate": "quality", "verdict": conf["verdict"], "reason": "ring lost {{ 1/0 }} 0.2", "figures": {}}
        gate = f"import pathlib, sys; pathlib.Path(sys.argv[1], 'verdict.json').write_text({json.dumps(verdict)!r})"
        outputs = [{"name": "question", "path": "question.json", "kind": "file", "format": "json", "min_bytes": 1}]
        spec = json.dumps({"run": str(run), **conf["approval"]}).replace("{{", "\\u007b\\u007b")
        command = {
            "argv": ["{python}", "-m", "refit.gates", "approve", "-e", "{specs}/approve.yaml", "-r", "{out}"],
            "files": {"approve.yaml": spec},
            "outputs": outputs,
            "summary": "summary.json",
        }
        written = json.loads(write_plan(run, {"gate": gate, "approve": "", "release": RELEASE}).read_text())
        gate_stage, approve, release = written["stages"]
        gate_stage["outputs"][0]["path"] = "verdict.json"
        approve |= command
        release |= {"inputs": {"approve": approve["paths"]["stage"]}, "key": f"{context['ti'].try_number:064d}"}
        release["argv"].append("{input:approve.question}")
        plan = run / "plan.json"
        plan.write_text(
            json.dumps(
                {**written, "reused": {}, "off": []}
                | {"stages": [{**stage, "model": "live"} for stage in (gate_stage, approve, release)]}
            )
        )
        summary = {"plan": str(plan), "skip": []}
        finish_bind(context, Result(name=names.BIND, outcome=Outcome.SUCCEEDED, summary=summary))


RELEASE = """
import pathlib, sys
from refit.command import Rejected
from refit.triton.approved import approved
from refit.triton.specs import ReleaseSpec
ledger = pathlib.Path(sys.argv[1]).parents[3] / "releases"
place = {"model": "live", "url": "http://127.0.0.1:9", "repository": "m", "ledger": ledger, "model_path": "m"}
spec = ReleaseSpec(**place, approval=sys.argv[2])
try:
    approved(spec, pathlib.Path(sys.argv[1]).parents[1].name)
except Rejected as exc:
    print(f"error: {exc}", file=sys.stderr)
    sys.exit(4)
pathlib.Path(sys.argv[1], "out.txt").write_text("released")
"""


def asking() -> DAG:
    """bind >> gate >> approve >> release, wired as the factory does."""
    with DAG("asking", schedule=None) as dag:
        bind = AskingPlanOperator(task_id=names.BIND)
        gate = LocalStageOperator(task_id="gate", stage="gate", trigger_rule=factory.RULE)
        approve = ApproveOperator(task_id=names.APPROVE, stage=names.APPROVE, trigger_rule=factory.RULE)
        release = LocalStageOperator(task_id="release", stage="release", trigger_rule=factory.RULE)
        bind >> gate >> approve >> release
        tasks = [bind, gate, approve, release]
        tasks >> EmptyOperator(task_id=names.DONE, trigger_rule=TriggerRule.NONE_FAILED)
    return dag


class ShareOperator(BaseOperator):
    """In the place of the pod that looks at a share; that of share 1 is lost once."""

    def __init__(self, *, pipeline: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    def execute(self, context: Context) -> None:
        ti = context["ti"]
        with open(ROOT / "shares.txt", "a") as seen:
            seen.write(f"{ti.map_index} {ti.try_number}\n")
        if ti.map_index == 1 and ti.try_number == 1:
            raise RuntimeError("the node is gone")


factory.LOOK_OPERATOR = f"{__name__}:ShareOperator"


def shares() -> DAG:
    """arrival >> look, mapped over the shares >> bind, by the factory; for a task process its DAG of one task."""
    if get_parsing_context().task_id == names.LOOK:
        return factory.task_dag("shares", names.LOOK)
    settings = Settings.from_env()
    pipeline = pipelines.load(settings.pipelines / "live.yaml")
    dataset = pipeline.dataset.model_copy(update={"shards": 3})
    pipeline = pipeline.model_copy(update={"dataset": dataset, "runtime": "kubernetes"})
    retries = {"retries": 1, "retry_delay": timedelta(seconds=1)}
    with DAG(names.dag_id("shares"), schedule=None, default_args=retries) as dag:
        factory.looks(pipeline, Nothing(task_id=names.ARRIVAL), Nothing(task_id=names.BIND))
    return dag


def inbox() -> DAG:
    settings = Settings.from_env()
    pipeline = pipelines.load(settings.pipelines / "live.yaml")
    with DAG("inbox", schedule=[asset(pipeline, settings)], max_active_runs=1) as dag:
        DatasetArrivalSensor(task_id=names.ARRIVAL, pipeline="live") >> Nothing(task_id="after")
    return dag


def everything() -> dict[str, DAG]:
    return {d.dag_id: d for d in (chain("chain", "abcd"), shape(), inbox(), asking(), shares())}
