"""Releases under load, what a swap costs above Triton's own load, and how long the way back takes within the watch.

    PYTHONPATH=. .refit/envs/tools/bin/python benchmarks/release.py [--requests 10000] [--rounds 5]

A real Triton on this machine, a tiny model, four clients that ask without a pause. Played: a swap, a failed release, a
watched swap with its roll back, and a kill at every step of a release, of a roll back and of undoing, each followed by
the release that settles it. The floor of a swap is Triton's own load: of the same model, whose configuration is
written anew, on the same server.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import report
from refit.triton.client import TritonClient
from refit.triton.server import CONTROL_KEY_VARIABLE, TritonServer
from refit.triton.transaction import STEPS, UNDO_STEPS
from tests.triton.fixtures import KEY, Place
from tests.triton.load import Clients, Play

BACK_STEPS = ("begun", "configured", "loaded", "verified")


def own_load(place: Place) -> float:
    """Seconds of a load that Triton cannot spare itself: the configuration says something else."""
    path = place.repository / place.name / "config.pbtxt"
    text = path.read_text()
    path.write_text(text.replace('"refit.run"', '"refit.run again"', 1))
    begin = time.perf_counter()
    place.client.load(place.name)
    seconds = time.perf_counter() - begin
    path.write_text(text)
    place.client.load(place.name)
    return seconds


def figures(place: Place, rounds: int) -> dict[str, Any]:
    """Swaps and ways back, each beside a bare load, with nobody asking."""
    play = Play(place)
    loads, swaps, backs, answers = [], [], [], []
    for i in range(rounds):
        loads.append(own_load(place))
        swaps.append(play.swap(100 + i)["swap"])
        play.swap(200 + i, watched=True)
        with Clients(place.server.url, place.name, threads=1) as clients:
            clients.wait_for(20)
            begin = time.perf_counter()
            backs.append(play.back()["back"])
        answers.append(next(a.received for a in clients.answers if a.version == play.serving) - begin)
    return {
        "rounds": rounds,
        "own_load_seconds": round(statistics.median(loads), 3),
        "swap_seconds": round(statistics.median(swaps), 3),
        "swap_in_loads": round(statistics.median(s / o for s, o in zip(swaps, loads, strict=True)), 2),
        "back_until_first_answer_seconds": round(statistics.median(answers), 3),
        "back_until_first_answer_most": round(max(answers), 3),
        "back_until_proven_seconds": round(statistics.median(backs), 3),
    }


def under_load(place: Place, requests: int) -> dict[str, Any]:
    play = Play(place)
    with Clients(place.server.url, place.name) as clients:
        play.swap(1)
        play.fail()
        play.swap(2, watched=True)
        play.back()
        for i, step in enumerate((*STEPS, *UNDO_STEPS)):
            play.crash(step, 1000 + i)
        for i, step in enumerate(BACK_STEPS):
            play.crash(step, 2000 + i, kind="rollback")
        clients.wait_for(requests)
    verdict = play.judge(clients.answers)
    seconds = sorted(a.received - a.sent for a in clients.answers)
    return {
        "played": play.done,
        "requests": verdict.requests,
        "failed": len(verdict.failed),
        "of_versions_not_meant": len(verdict.strangers),
        "first_faults": [*verdict.failed[:3], *verdict.strangers[:3]],
        "versions_that_answered": len(verdict.versions),
        "milliseconds_p50_p99_most": [
            round(seconds[int(len(seconds) * part)] * 1000, 1) for part in (0.5, 0.99, 1 - 1e-9)
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    os.environ[CONTROL_KEY_VARIABLE] = KEY
    with tempfile.TemporaryDirectory(prefix="refit-release-") as scratch:
        folder = Path(scratch)
        with (
            TritonServer(folder / "models", folder / "run", control_key=KEY, stop_seconds=0) as server,
            TritonClient(server.url) as client,
        ):
            alone = figures(Place(server, client, folder / "alone", "alone"), args.rounds)
            loaded = under_load(Place(server, client, folder / "loaded", "loaded"), args.requests)
    report.write("release", {**alone, "under_load": loaded})


if __name__ == "__main__":
    main()
