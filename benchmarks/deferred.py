"""What a waiting stage costs the triggerer: memory and lateness, with 100, 500 and 1,000 pods that run.

    PYTHONPATH=. .refit/envs/airflow/bin/python benchmarks/deferred.py [--triggers 100 500 1000] [--seconds 20]

One event loop, as in a triggerer, with N triggers in it, and an API server of our own that answers as a recorded
cluster does. The rival is the provider's KubernetesPodTrigger under the same conditions. Each (trigger, N) is measured
in a process of its own: resident memory above the same process with its first trigger, and how late the loop wakes a
coroutine that sleeps 50 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks import report

POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {
        "name": "bench-train",
        "namespace": "bench",
        "creationTimestamp": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "labels": {f"label-{i}": "a value of some length" for i in range(12)},
    },
    "spec": {"containers": [{"name": n, "image": "refit-tools:0.1.0"} for n in ("stage", "base")]},
    "status": {
        "phase": "Running",
        "conditions": [
            {"type": t, "status": "True"} for t in ("Initialized", "Ready", "ContainersReady", "PodScheduled")
        ],
        "containerStatuses": [
            {
                "name": name,
                "image": "refit-tools:0.1.0",
                "imageID": "",
                "ready": True,
                "restartCount": 0,
                "state": {"running": {"startedAt": "2026-11-21T12:00:00Z"}},
            }
            for name in ("stage", "base")
        ],
    },
}


SERVED = Counter[str]()


async def server() -> int:
    """The API server; its port."""
    body = json.dumps(POD).encode()
    events = json.dumps({"kind": "EventList", "apiVersion": "v1", "metadata": {}, "items": []}).encode()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            path = head.split(b" ", 2)[1]
            text = b"2026-11-21T12:00:00.000000000Z epoch 3 of 80\n" if b"/log" in path else body
            text = events if b"/events" in path else text
            kind = b"text/plain" if b"/log" in path else b"application/json"
            head = b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n" % (kind, len(text))
            SERVED["requests"] += 1
            writer.write(head + text)
            await writer.drain()

    async def quietly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    made = await asyncio.start_server(quietly, "127.0.0.1", 0, limit=2**20)
    return int(made.sockets[0].getsockname()[1])


def trigger(kind: str, name: str) -> Any:
    common = {"pod_name": name, "pod_namespace": "bench", "kubernetes_conn_id": None, "poll_interval": 2}
    if kind == "ours":
        from operators.pod_trigger import StageTrigger

        return StageTrigger(schedule_timeout=3600, startup_timeout=3600, logging_interval=15, **common)
    from airflow.providers.cncf.kubernetes.triggers.pod import KubernetesPodTrigger

    return KubernetesPodTrigger(
        trigger_start_time=datetime.now(UTC), base_container_name="base", logging_interval=15, **common
    )


async def measure(kind: str, count: int, seconds: float) -> dict[str, Any]:
    def follow(i: int) -> asyncio.Task[Any]:
        async def run() -> None:
            async for event in trigger(kind, f"bench-train-{i}").run():
                raise SystemExit(f"a trigger fired: {event}")

        return asyncio.create_task(run())

    me = psutil.Process()
    tasks = [follow(0)]
    await asyncio.sleep(3)
    first, cpu = me.memory_info().rss, me.cpu_times()
    tasks += [follow(i) for i in range(1, count)]
    late: list[float] = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        before = time.monotonic()
        await asyncio.sleep(0.05)
        late.append(time.monotonic() - before - 0.05)
    used = me.cpu_times()
    ended = [t for t in tasks if t.done()]
    if ended:
        raise SystemExit(f"{len(ended)} triggers ended: {ended[0].exception()!r}")
    late.sort()
    return {
        "triggers": count,
        "kib_each": round((me.memory_info().rss - first) / max(1, count - 1) / 1024, 1),
        "late_ms_median": round(1000 * late[len(late) // 2], 1),
        "late_ms_p99": round(1000 * late[int(len(late) * 0.99)], 1),
        "cpu_share": round((used.user + used.system - cpu.user - cpu.system) / seconds, 2),
    }


async def child(kind: str, count: int, seconds: float) -> None:
    port = int(os.environ["BENCH_API_PORT"])
    with tempfile.TemporaryDirectory() as folder:
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        path = Path(folder) / "kubeconfig"
        path.write_text(yaml.safe_dump(config))
        from kubernetes_asyncio.config import kube_config

        os.environ["KUBECONFIG"] = kube_config.KUBE_CONFIG_DEFAULT_LOCATION = str(path)
        print("ANSWER" + json.dumps(await measure(kind, count, seconds)))
        os._exit(0)  # the triggers wait for ever


async def main(counts: list[int], seconds: float) -> None:
    port = await server()
    rows: dict[str, list[Any]] = {"ours": [], "provider": []}
    for count in counts:
        for kind, found in rows.items():
            words = [sys.executable, __file__, "--child", kind, "--triggers", str(count), "--seconds", str(seconds)]
            before = SERVED["requests"]
            env = {**os.environ, "BENCH_API_PORT": str(port), "PYTHONPATH": str(report.ROOT)}
            process = await asyncio.create_subprocess_exec(
                *words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            out, err = await process.communicate()
            if b"ANSWER" not in out:
                raise SystemExit(f"{kind} {count}: {out.decode()[-500:]}\n{err.decode()[-2000:]}")
            asked = SERVED["requests"] - before
            found.append({**json.loads(out.rpartition(b"ANSWER")[2]), "requests": asked})
    report.write("deferred", {"seconds": seconds, **rows})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--triggers", type=int, nargs="+", default=[100, 500, 1000])
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    logging.disable(logging.INFO)
    if args.child:
        asyncio.run(child(args.child, args.triggers[0], args.seconds))
    else:
        asyncio.run(main(args.triggers, args.seconds))
