"""The trainings that tests/chaos breaks: a DAG each, one stage in a real pod.

An epoch is a second, and ends with a checkpoint. What is done is written down before it is saved (`epochs`, a line
each) and after it was ended (`ends`): what was done twice is seen in the stage's folder, whatever Airflow thinks.
"""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

EPOCHS = 15
TRAINING = f"""
import json, os, pathlib, sys, time
out = pathlib.Path(sys.argv[1])
def note(file, text):
    with open(out / file, "a") as f:
        f.write(text + "\\n")
def tell(**more):
    note("status.json", json.dumps({{"date": "11/21/2026", "time": "1:2:3", "verbosity": "INFO", **more}}))
def save(epoch, data=b""):
    with open(out / ".checkpoint.tmp", "wb") as f:
        f.write(b"%d\\n" % epoch + data)
    os.replace(out / ".checkpoint.tmp", out / "checkpoint")
at = out / "checkpoint"
first = int(at.read_bytes().split()[0]) if at.exists() else 0
note("starts", str(first))
print("starting after epoch", first, flush=True)
for epoch in range(first + 1, {EPOCHS} + 1):
    time.sleep(1)
    note("epochs", str(epoch))
    FAULT
    save(epoch)
    tell(status="RUNNING", message="epoch", epoch=epoch, max_epoch={EPOCHS}, loss=1 / epoch)
(out / "model.txt").write_text("weights")
note("ends", "done")
tell(status="SUCCESS", message="done", kpi={{"first": first}})
"""
HUNGRY = "if epoch == 6: hoard = [bytearray(10_000_000) for _ in range(100)]"
# Each checkpoint is larger than the one before, and stands beside it until it is complete.
GROWING = "save(epoch, bytes(150_000 * epoch))"

# One DAG and one folder of the workspace for each fault, so that none is mistaken for another's.
PLAIN = (
    *("deleted", "evicted", "killed", "read-only", "triggerer", "scheduler", "worker-start", "worker-end", "postgres"),
    *(
        "kubelet",
        "containerd",
        "kube-apiserver",
        "etcd",
        "kube-scheduler",
        "kube-controller-manager",
        "api-away",
        "api-start",
    ),
)
CASES: dict[str, dict[str, Any]] = {
    **{name: {} for name in PLAIN},
    "memory": {"fault": HUNGRY, "memory_gib": 0.0625},
    "full": {"fault": GROWING, "cluster": "full"},
    "preempted": {"gpus": 2},
}


def dags() -> dict[str, Any]:
    from airflow.sdk import DAG  # the tests read the constants above without Airflow

    from operators.tao import Output, TaoTrainOperator

    class Slow(TaoTrainOperator):
        """The moment between the making of the pod and the deferral, long enough to be hit."""

        def get_or_create_pod(self, pod_request_obj: Any, context: Any) -> Any:
            found = super().get_or_create_pod(pod_request_obj, context)
            time.sleep(4)
            return found

    made = {}
    for name, case in CASES.items():
        wanted = {"cpus": 0.1, "memory_gib": 0.25, "gpus": 0, **case}
        code = TRAINING.replace("FAULT", wanted.pop("fault", "pass"))
        with DAG(name, schedule=None, default_args={"retries": 1, "retry_delay": timedelta(seconds=1)}) as dag:
            (Slow if name == "worker-start" else TaoTrainOperator)(
                pipeline=name,
                environment="tools",
                command=["{python}", "{specs}/code.py", "{out}"],
                spec={"code.py": code},
                outputs=[Output("model", "model.txt")],
                **wanted,
            )
        made[name] = dag
    return made
