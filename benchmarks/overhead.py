"""What Airflow adds to a stage: 12 stages in a row against 12 tasks that do nothing, and against no Airflow at all.

    PYTHONPATH=. .refit/envs/airflow/bin/python benchmarks/overhead.py [--repeats 4]

A real Airflow (LocalExecutor, SQLite, the settings of `make run`). The stages run a line of Python through our
operator, runner and plan. Per started task: the time from the first start to the last end, divided by their number.
The cost of a stage is that, less what the same stage costs without Airflow (`refit run`'s path: StageProcess), so
that both sides hold only what Airflow and the operator add.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.operators import home

home.prepare()  # before Airflow is imported: a home and a database of its own

from benchmarks import report  # noqa: E402
from refit.runtime.local import StageProcess  # noqa: E402
from tests.dags.live import Airflow, wait_for  # noqa: E402
from tests.operators.plans import GOOD, TOOLS, write_plan  # noqa: E402

STAGES = {f"s{i:02d}": GOOD for i in range(12)}
IDLE_SLEEP = "0.3"  # refit/embedded/airflow.py

DAGS = """
# airflow dag
from airflow.sdk import DAG
from operators.stage import LocalStageOperator
from tests.dags.live_dags import Nothing, PlanOperator

def row(dag_id, bind, make):
    with DAG(dag_id, schedule=None, max_active_runs=1) as dag:
        before = bind(task_id="bind")
        for i in range(12):
            task = make(f"s{i:02d}")
            before >> task
            before = task
    return dag

noop = row("noop", Nothing, lambda n: Nothing(task_id=n))
stage = row("stage", PlanOperator, lambda n: LocalStageOperator(task_id=n, stage=n))
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=4)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory(prefix="refit-overhead-") as folder:
        root = Path(folder)
        (root / "dags").mkdir()
        (root / "dags" / "bench.py").write_text(DAGS)
        (root / ".airflowignore").write_text((report.ROOT / ".airflowignore").read_text())
        env = {
            "REFIT_TEST_ROOT": str(root),
            "REFIT_PIPELINES": str(root),
            "REFIT_WORKSPACE": str(root / "w"),
            "REFIT_DATA_ROOTS": str(root),
            "REFIT_ENVS": str(TOOLS.parents[2]),
            "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": IDLE_SLEEP,
        }
        airflow = Airflow(root, env)
        try:
            airflow.start()
            for dag in ("noop", "stage"):
                wait_for(dag, lambda dag=dag: airflow.has_dag(dag))
            time.sleep(5)
            rows = [once(airflow, root, i) for i in range(repeats)]
        finally:
            airflow.close()
    noop, stage, bare = (statistics.median(r[k] for r in rows) for k in ("noop", "stage", "bare"))
    report.write(
        "overhead",
        {
            "tasks": len(STAGES),
            "repeats": rows,
            "noop_task_s": round(noop, 3),
            "stage_task_s": round(stage, 3),
            "stage_without_airflow_s": round(bare, 3),
            "added_to_a_stage_s": round(stage - bare, 3),
            "added_against_a_noop_task": round((stage - bare) / noop, 3),
        },
    )


def once(airflow: Airflow, root: Path, number: int) -> dict[str, float]:
    plan = write_plan(root / "bare" / "runs" / str(number), STAGES)
    began = time.monotonic()
    for name in STAGES:
        if not StageProcess(plan=plan, stage=name, python=TOOLS, on_line=lambda _: None).run().succeeded:
            raise SystemExit(f"{name} failed")
    row = {"bare": (time.monotonic() - began) / len(STAGES)}
    for dag in ("noop", "stage"):
        run = airflow.trigger(dag, **({"codes": STAGES} if dag == "stage" else {}))
        if airflow.finished(dag, run) != "success":
            raise SystemExit(f"the run of {dag} failed")
        tasks: list[dict[str, Any]] = [t for name, t in airflow.tasks(dag, run).items() if name in STAGES]
        first = min(_seconds(t["queued_when"]) for t in tasks)
        row[dag] = (max(_seconds(t["end_date"]) for t in tasks) - first) / len(STAGES)
    return {k: round(v, 3) for k, v in row.items()}


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


if __name__ == "__main__":
    main()
