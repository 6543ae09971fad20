"""What a waiting arrival costs the triggerer: 1,000 inboxes of 100 files, each listed every 60 s.

    PYTHONPATH=. .refit/envs/airflow/bin/python benchmarks/arrivals.py [--inboxes 1 1000] [--files 100] [--seconds 120]

One event loop, as in a triggerer, with N watchers in it, all of which have seen their inbox before the measuring
begins: share of a core, resident memory above the same process without them, and how late the loop wakes a coroutine
that sleeps 50 ms. The floor is the listing alone: `os.scandir` and `stat` of the same files, in the same number. A
worker slot is none: a watcher is no task, and a sensor that waits is deferred.
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
from pathlib import Path
from typing import Any

import psutil

from benchmarks import report

POLL_SECONDS = 60.0


def make(root: Path, inboxes: int, files: int) -> None:
    """Inboxes without a marker, which therefore wait."""
    for i in range(inboxes):
        for folder in ("images", "labels"):
            (root / str(i) / folder).mkdir(parents=True)
        for n in range(files // 2):
            (root / str(i) / "images" / f"frame_{n:06}.jpg").write_bytes(b"x")
            (root / str(i) / "labels" / f"frame_{n:06}.txt").write_bytes(b"x")


def floor(root: Path, inboxes: int) -> float:
    """CPU seconds of one bare listing of all inboxes."""
    began = time.process_time()
    for i in range(inboxes):
        for folder in ("images", "labels"):
            with os.scandir(root / str(i) / folder) as entries:
                for entry in entries:
                    entry.stat(follow_symlinks=False)
    return time.process_time() - began


async def measure(root: Path, inboxes: int, seconds: float) -> dict[str, Any]:
    from operators.arrival import DatasetArrivalTrigger

    async def watch(i: int) -> None:
        place, record = str(root / str(i)), str(root / "workspace" / str(i))
        trigger = DatasetArrivalTrigger(place, record, "_SUCCESS", 10, POLL_SECONDS, repeat=True)
        async for event in trigger.run():
            raise SystemExit(f"a watcher fired: {event}")

    me = psutil.Process()
    first = asyncio.create_task(watch(0))
    await asyncio.sleep(2)
    before = me.memory_info().rss
    tasks = [first]
    for i in range(1, inboxes):  # as they would come, not all in one moment
        tasks.append(asyncio.create_task(watch(i)))
        await asyncio.sleep(POLL_SECONDS / inboxes / 2)
    await asyncio.sleep(2)
    cpu, late = me.cpu_times(), []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        slept = time.monotonic()
        await asyncio.sleep(0.05)
        late.append(time.monotonic() - slept - 0.05)
    used = me.cpu_times()
    ended = [t for t in tasks if t.done()]
    if ended:
        raise SystemExit(f"{len(ended)} watchers ended: {ended[0].exception()!r}")
    late.sort()
    return {
        "inboxes": inboxes,
        "core_share_percent": round(100 * (used.user + used.system - cpu.user - cpu.system) / seconds, 2),
        "kib_each": round((me.memory_info().rss - before) / max(1, inboxes - 1) / 1024, 1),
        "late_ms_median": round(1000 * late[len(late) // 2], 1),
        "late_ms_p99": round(1000 * late[int(len(late) * 0.99)], 1),
    }


def main(counts: list[int], files: int, seconds: float) -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make(root, max(counts), files)
        for count in counts:
            words = [sys.executable, __file__, "--child", folder, "--inboxes", str(count), "--seconds", str(seconds)]
            env = {**os.environ, "PYTHONPATH": str(report.ROOT)}
            done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
            if "ANSWER" not in done.stdout:
                raise SystemExit(f"{count}: {done.stdout[-500:]}\n{done.stderr[-2000:]}")
            bare = 100 * floor(root, count) / POLL_SECONDS
            rows.append({**json.loads(done.stdout.rpartition("ANSWER")[2]), "floor_percent": round(bare, 2)})
    report.write("arrivals", {"files": files, "poll_seconds": POLL_SECONDS, "seconds": seconds, "watchers": rows})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inboxes", type=int, nargs="+", default=[1, 1000])
    parser.add_argument("--files", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    logging.disable(logging.INFO)
    if args.child:
        print("ANSWER" + json.dumps(asyncio.run(measure(Path(args.child), args.inboxes[0], args.seconds))))
        sys.stdout.flush()
        os._exit(0)  # the watchers wait for ever
    main(args.inboxes, args.files, args.seconds)
