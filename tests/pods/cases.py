"""DAGs for tests/pods/test_live.py, loaded by its Airflow: one stage each, in a real pod of a real cluster."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from airflow.sdk import DAG

from operators.tao import Output, TaoCommandOperator, TaoTrainOperator

STATUS = """
import json, pathlib, sys, time
out = pathlib.Path(sys.argv[1])
def tell(**more):
    with open(out / "status.json", "a") as f:
        f.write(json.dumps({"date": "11/21/2026", "time": "1:2:3", "verbosity": "INFO", **more}) + "\\n")
"""
GOOD = (
    STATUS
    + """
print("a line of the stage", flush=True)
(out / "model.txt").write_text("weights")
tell(status="SUCCESS", message="done", kpi={"mAP50": 0.5})
"""
)
# Each epoch is a second and a checkpoint; whoever is killed goes on from the last one.
EPOCHS = (
    STATUS
    + """
at = out / "epoch"
first = int(at.read_text()) if at.exists() else 0
print("starting at epoch", first, flush=True)
for epoch in range(first + 1, 16):
    time.sleep(1)
    at.write_text(str(epoch))
    tell(status="RUNNING", message="epoch", epoch=epoch, max_epoch=15, loss=1 / epoch)
(out / "model.txt").write_text(f"first epoch of the last start: {first}")
tell(status="SUCCESS", message="done", kpi={"first": first})
"""
)
SLOW = EPOCHS.replace("16", "600")
BAD_DATA = "import sys; print('error: labels/7.txt:3: y2 is 0', file=sys.stderr); sys.exit(3)"
GREEDY = "x = []\nwhile True: x.append(bytearray(10_000_000))"
MODEL = (Output("model", "model.txt"),)

CASES: Mapping[str, dict[str, Any]] = {
    "good": {"code": GOOD, "gpus": 1},
    "epochs": {"code": EPOCHS},
    "slow": {"code": SLOW},
    "bad_data": {"code": BAD_DATA, "exit_codes": {"3": "bad_data"}},
    "greedy": {"code": GREEDY, "memory_gib": 0.06},
    "no_secret": {"code": GOOD, "secrets": ["ABSENT"]},
    "no_image": {"code": GOOD, "image": "refit-nowhere:0.1.0", "cluster": "no_pull"},
    "no_gpu": {"code": GOOD, "gpus": 64, "cluster": "impatient", "pool": "refit_pods", "pool_slots": 1},
    "no_claim": {"code": GOOD, "cluster": "no_claim"},
    "no_account": {"code": GOOD, "cluster": "no_account"},
    "no_class": {"code": GOOD, "cluster": "no_class", "gpus": 1},
    "no_priority": {"code": GOOD, "cluster": "no_priority"},
    "no_namespace": {"code": GOOD, "cluster": "no_namespace"},
}


def dags() -> dict[str, DAG]:
    made = {}
    for name, case in CASES.items():
        wanted = {"cpus": 0.1, "memory_gib": 0.25, "environment": "tools", "gpus": 0, **case}
        code = wanted.pop("code")
        with DAG(name, schedule=None, default_args={"retries": 1, "retry_delay": timedelta(seconds=1)}) as dag:
            TaoTrainOperator(
                pipeline="live",
                command=["{python}", "{specs}/code.py", "{out}"],
                spec={"code.py": code},
                outputs=MODEL,
                **wanted,
            )
        made[name] = dag
    with DAG("no_python", schedule=None) as dag:
        TaoCommandOperator(
            task_id="train",
            pipeline="live",
            environment="bare",
            command=["/bin/sh", "-c", "echo from busybox; echo weights > {out}/model.txt"],
            outputs=MODEL,
            cpus=0.1,
            memory_gib=0.25,
        )
    made["no_python"] = dag
    return made
