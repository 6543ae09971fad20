"""What our operator adds to a pod: a stage against a bare KubernetesPodOperator task with the same container.

    eval "$(../shared/cluster/up)"        # or any KUBECONFIG to a cluster for tests
    REFIT_E2E=1 PYTHONPATH=. .refit/envs/airflow/bin/python benchmarks/pods.py [--repeats 3] [--seconds 1 60]

A real Airflow and a real cluster; the two sides take turns. Both defer, look every two seconds and at the log every 15.
The bare pod starts the command itself; ours has an init container, the runner and its proofs. Requests are counted by a
relay between Airflow and the API server, per minute of a task, creation and end included.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import select
import socket
import statistics
import subprocess
import tempfile
import threading
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.operators import home

home.prepare()  # before Airflow is imported: a home and a database of its own

import yaml  # noqa: E402

from benchmarks import report  # noqa: E402
from tests import cluster  # noqa: E402
from tests.dags.live import Airflow, free_port, wait_for  # noqa: E402
from tests.pods.test_live import profile  # noqa: E402

DAGS = """
# airflow dag
from datetime import timedelta
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.sdk import DAG
from operators.tao import TaoTrainOperator

for seconds in {lengths}:
    command = ["python", "-c", f"import time; time.sleep({{seconds}})"]
    with DAG(f"bare_{{seconds}}", schedule=None) as dag:
        KubernetesPodOperator(
            task_id="train", namespace="{namespace}", image="refit-tools:0.1.0", cmds=command,
            image_pull_policy="IfNotPresent", kubernetes_conn_id=None, deferrable=True, logging_interval=15,
            startup_check_interval_seconds=1, container_resources={{"requests": {{"cpu": "100m", "memory": "256Mi"}}}},
        )
    globals()[dag.dag_id] = dag
    with DAG(f"stage_{{seconds}}", schedule=None) as dag:
        TaoTrainOperator(
            pipeline="bench", command=command, environment="{environment}", gpus=0, cpus=0.1, memory_gib=0.25
        )
    globals()[dag.dag_id] = dag
"""
REQUEST = re.compile(rb"(?:^|\r\n\r\n|\})(GET|POST|PUT|PATCH|DELETE) (\S+) HTTP/1\.1\r\n")


class Relay:
    """Passes bytes on to `kubectl proxy` and counts the requests in them."""

    def __init__(self, target: int) -> None:
        self.target, self.seen = target, Counter[str]()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._server.accept()
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        # Whoever breaks the connection off has ended it.
        with (
            contextlib.suppress(ConnectionError),
            client,
            socket.create_connection(("127.0.0.1", self.target)) as server,
        ):
            while True:
                ready, _, _ = select.select([client, server], [], [])
                for end in ready:
                    data = end.recv(65536)
                    if not data:
                        return
                    if end is client:
                        for verb, path in REQUEST.findall(data):
                            self.seen[f"{verb.decode()} {path.decode().partition('?')[0]}"] += 1
                    (server if end is client else client).sendall(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=int, nargs="+", default=[1, 60])
    args = parser.parse_args()
    why_not = cluster.reason_to_skip()
    if why_not:
        raise SystemExit(f"cannot run here: {why_not}")
    with cluster.namespace("bench") as namespace, tempfile.TemporaryDirectory(prefix="refit-pods-") as folder:
        rows = measure(Path(folder), namespace, args.seconds, args.repeats)
    figures: dict[str, Any] = {"repeats": args.repeats, "rows": rows}
    for length in args.seconds:
        bare, ours = (
            statistics.median(r["seconds"] for r in rows if r["dag"] == f"{kind}_{length}")
            for kind in ("bare", "stage")
        )
        asked = {
            kind: statistics.median(r["requests_per_minute"] for r in rows if r["dag"] == f"{kind}_{length}")
            for kind in ("bare", "stage")
        }
        figures[f"{length}_s"] = {
            "bare_s": round(bare, 2),
            "stage_s": round(ours, 2),
            "added_s": round(ours - bare, 2),
            "ratio": round(ours / bare, 3),
            "requests_per_minute": asked,
        }
    report.write("pods", figures)


def measure(root: Path, namespace: str, lengths: list[int], repeats: int) -> list[dict[str, Any]]:
    for claim in ("workspace", "models"):
        spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
        body = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": claim}, "spec": spec}
        cluster.kubectl("apply", "-f", "-", namespace=namespace, stdin=json.dumps(body))
    (root / "dags").mkdir()
    (root / "clusters").mkdir()
    text = DAGS.format(namespace=namespace, lengths=lengths, environment="stage")
    (root / "dags" / "bench.py").write_text(text)
    (root / ".airflowignore").write_text((report.ROOT / ".airflowignore").read_text())
    place = profile(namespace, poll_seconds=2, log_seconds=15)
    place["images"]["stage"] = {"image": place["images"]["tools"]["image"]}  # with an init container, as TAO's
    (root / "clusters" / "kubernetes.yaml").write_text(yaml.safe_dump(place))
    port = free_port()
    proxy = subprocess.Popen(["kubectl", "proxy", f"--port={port}"], stdout=subprocess.DEVNULL)
    relay = Relay(port)
    (root / "kubeconfig").write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{relay.port}"}}],
                "users": [{"name": "u", "user": {}}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                "current-context": "x",
            }
        )
    )
    env = {"REFIT_CLUSTERS": str(root / "clusters"), "KUBECONFIG": str(root / "kubeconfig")}
    airflow = Airflow(root, env)
    try:
        airflow.start()
        names = [f"{kind}_{length}" for length in lengths for kind in ("bare", "stage")]
        for name in names:
            wait_for(name, lambda name=name: airflow.has_dag(name))
        once(airflow, relay, names[0]), once(airflow, relay, names[1])  # the images are unpacked, the code is compiled
        return [once(airflow, relay, name) for _ in range(repeats) for name in names]
    finally:
        airflow.close()
        proxy.terminate()
        proxy.wait()


def once(airflow: Airflow, relay: Relay, dag: str) -> dict[str, Any]:
    relay.seen.clear()
    run = airflow.trigger(dag)

    def ended() -> str | None:
        state = airflow.call("GET", f"/dags/{dag}/dagRuns/{run}")["state"]
        return state if state in ("success", "failed") else None

    state = wait_for(dag, ended, 300)
    if state != "success":
        raise SystemExit(f"the run of {dag} failed:\n{airflow.log(dag, run, 'train')[-3000:]}")
    task = airflow.tasks(dag, run)["train"]
    seconds = _seconds(task["end_date"]) - _seconds(task["start_date"])
    kinds = Counter(re.sub(r"/[a-z0-9-]*-[a-z0-9]{8}\b", "/<pod>", path) for path in relay.seen.elements())
    return {
        "dag": dag,
        "seconds": round(seconds, 2),
        "requests": dict(kinds),
        "requests_per_minute": round(sum(kinds.values()) / seconds * 60, 1),
    }


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


if __name__ == "__main__":
    main()
