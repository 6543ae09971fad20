#!/usr/bin/env python3
"""Try one way after another in one pod, each a few commands of TAO's, until one is good enough.

    python3 climb.py RUNNER LADDER.json|SEARCH.json BEFORE.json OUT

One file and the standard library of Python 3.6 and up: a stage hands it over as one of its files, because it runs in
TAO's images. RUNNER is Refit's runner; each command is a stage of its own to it, in OUT/rungs/<rung>/<command> or
OUT/tries/<threshold>/<command>: so it believes no success that it has not seen, reads the figures in TAO's dialect, and
answers from its result what an ended attempt has finished. LADDER.json has the rungs of INT8, SEARCH.json what a model
is pruned to (docs/contracts.md, both); BEFORE.json is the result.json of the model before. Out: the winner's files,
`ladder.json` or `search.json`, `summary.json`, `status.json`.

Exit code 0; 2 where the wanted size cannot be reached, 4 where nothing is good enough, 1 where nothing could even be
tried, 143 when stopped.
"""

import datetime
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from typing import Any, Dict, Iterator, List, Optional

CLASS = "AP50/"
TRTEXEC = "/usr/src/tensorrt/bin/trtexec"  # in NVIDIA's TensorRT images, and in what stands on them
TIMED_SECONDS = 300.0  # at most for trtexec, which loads the plan and runs it for 3 s
LATENCY = re.compile(r"GPU Compute Time: .*?median = ([0-9.]+) ms")
THROUGHPUT = re.compile(r"Throughput: ([0-9.]+) qps")
CANCELLED = 143
TROUBLE = {"out_of_memory": 65, "no_space": 66, "stalled": 67, "timed_out": 68, "diverged": 69}
"""Outcomes of a command that say nothing of what it tried, and the exit codes with which they are handed on."""
EXITS = dict(TROUBLE, bad_spec=2, bad_data=3, rejected=4)
PRUNINGS = 10  # at most for a size: thresholds are halved to a thousandth
NEAR = 0.9  # of the wanted share of the parameters: a model that keeps less is not what was asked for

Json = Dict[str, Any]


class Stopped(Exception):
    """The command was stopped from outside, and so are we."""


class Trouble(Exception):
    """A command ended in a way that says nothing of what was tried, or must not have ended so at all."""

    def __init__(self, outcome: str, message: str) -> None:
        super().__init__(message)
        self.outcome = outcome


def read(path: str) -> Json:
    with open(path, encoding="utf-8") as file:
        found = json.load(file)
    if not isinstance(found, dict):
        raise ValueError(f"{path}: holds no JSON object")
    return found


def write(path: str, value: Json) -> None:
    """Whole or not at all."""
    aside = f"{path}.tmp-{os.getpid()}"
    with open(aside, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


class Trials:
    """What both have in common: commands under the runner, held against the model before."""

    def __init__(self, runner: str, spec: Json, before: Json, out: str) -> None:
        self.runner, self.spec, self.out = runner, spec, out
        metrics = before.get("metrics") or {}
        self.value = metrics.get(spec["metric"])
        if not isinstance(self.value, (int, float)) or not math.isfinite(self.value):
            raise ValueError("the model before has no figure {} to be held against".format(spec["metric"]))
        self.classes = by_class(metrics)

    def say(self, status: str, message: str) -> None:
        """A line on standard output and in status.json, in TAO's form (docs/contracts.md, "Stage commands")."""
        print(message, flush=True)
        now = datetime.datetime.now()
        date, clock = f"{now.month}/{now.day}/{now.year}", f"{now.hour}:{now.minute}:{now.second}"
        line = {"date": date, "time": clock, "status": status, "verbosity": "INFO", "message": message}
        with open(os.path.join(self.out, "status.json"), "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def run(self, request: Json, folder: str, inputs: Dict[str, str]) -> Json:
        """The result of one command, by the runner. Raises Stopped, and Trouble for an outcome of `TROUBLE`."""
        os.makedirs(folder, exist_ok=True)
        whole = dict(request, schema=1, paths={"stage": folder, "run": self.out}, inputs=inputs)
        key = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()
        path = folder + ".json"
        write(path, dict(whole, key=key))
        command = [sys.executable, "-I", self.runner, "--request", path, "--parent", str(os.getpid())]
        if subprocess.call(command, stdin=subprocess.DEVNULL) == CANCELLED:
            raise Stopped
        try:
            result = read(os.path.join(folder, "result.json"))
        except (OSError, ValueError):
            return {}
        if result.get("outcome") in TROUBLE:
            raise Trouble(result["outcome"], "{}: {}".format(request["name"], result.get("reason")))
        return result

    def judge(self, tried: Json, metrics: Json) -> None:
        """Note what was lost, and why that is too much."""
        spec, limits, value = self.spec, self.spec["limits"], metrics[self.spec["metric"]]
        drop, now = self.value - value, by_class(metrics)
        drops = {name: round(before - now[name], 6) for name, before in self.classes.items() if name in now}
        tried.update(value=round(value, 6), drop=round(drop, 6), drops=drops)
        if drop > limits["max_drop"]:
            what = (drop, spec["metric"], self.value, value, limits["max_drop"])
            tried["failed"].append("lost {:.4f} {} ({:.4f} -> {:.4f}), more than {:g}".format(*what))
        most = limits["max_drop_class"]
        for name, lost in sorted(drops.items(), key=lambda item: -item[1]):
            if most is not None and lost > most:
                tried["failed"].append(f"lost {lost:.4f} of the AP of {name}, more than {most:g}")
        floor = limits["floor"]
        if floor is not None and value < floor <= self.value:
            tried["failed"].append("its {} of {:.4f} is below the floor of {:g}".format(spec["metric"], value, floor))

    def take(self, folder: str) -> None:
        """The files of the winner's command become the stage's own."""
        made = os.path.join(folder, "out")
        for name in sorted(os.listdir(made)):
            source, target = os.path.join(made, name), os.path.join(self.out, name)
            if not os.path.isfile(source) or name == "status.json":
                continue
            if os.path.exists(target):  # of an attempt that ended just here
                os.unlink(target)
            try:
                os.link(source, target)
            except OSError:
                shutil.copyfile(source, target)

    def fail(self, code: int, message: str) -> int:
        self.say("FAILURE", message)
        sys.stderr.write(f"error: {message}\n")
        return code


class Climb(Trials):
    """The ladder of INT8: the first rung that is good enough."""

    def __init__(self, runner: str, spec: Json, before: Json, out: str) -> None:
        super().__init__(runner, spec, before, out)
        self.tries = []  # type: List[Json]

    def folder(self, rung: Json, request: Json) -> str:
        return os.path.join(self.out, "rungs", rung["name"], request["name"])

    def attempt(self, rung: Json) -> Json:
        """What became of a rung: an entry of ladder.json. Raises Stopped, Trouble."""
        tried: Json = {"name": rung["name"], "how": rung["how"], "value": None, "drop": 0.0, "drops": {}, "speed": []}
        tried.update(bytes=0, failed=[], skipped=rung.get("skipped", ""), passed=False, seconds=0.0)
        self.tries.append(tried)
        if tried["skipped"]:
            return tried
        began, results, folders = time.monotonic(), [], {}  # type: float, List[Json], Dict[str, str]
        for request in rung["requests"]:
            folder = self.folder(rung, request)
            try:
                result = self.run(request, folder, folders)
            except Trouble as trouble:
                tried["failed"].append(str(trouble))
                raise
            folders[request["name"]] = folder
            if result.get("outcome") != "succeeded":
                tried["failed"].append("{}: {}".format(request["name"], result.get("reason") or "left no result"))
                break
            results.append(result)
        else:
            self.judge(tried, results[-1].get("metrics") or {})
            plan = os.path.join(folders[rung["requests"][0]["name"]], "out", self.spec["model"])
            tried.update(bytes=os.path.getsize(plan), speed=timed(plan))
        tried.update(passed=not tried["failed"], seconds=round(time.monotonic() - began, 1))
        return tried

    def go(self) -> int:
        """The exit code."""
        self.say("STARTED", "Trying {}.".format(", ".join(rung["name"] for rung in self.spec["rungs"])))
        winner = None  # type: Optional[Json]
        for rung in self.spec["rungs"]:
            tried = self.attempt(rung)
            said = "not tried: " + tried["skipped"] if tried["skipped"] else "; ".join(tried["failed"]) or "passes"
            self.say("RUNNING", "Rung {}: {}".format(rung["name"], said))
            if tried["passed"]:
                winner = rung
                break
        if winner is not None:
            self.take(self.folder(winner, winner["requests"][0]))
        self.report(winner)
        if winner is not None:
            self.say(
                "SUCCESS", "Rung {} of {} tried.".format(winner["name"], sum(not t["skipped"] for t in self.tries))
            )
            return 0
        judged = [t for t in self.tries if t["value"] is not None]
        reasons = "; ".join("{} {}".format(t["name"], ", ".join(t["failed"])) for t in self.tries if not t["skipped"])
        message = ("No rung is good enough: " if judged else "No rung could be tried: ") + reasons
        return self.fail(4 if judged else 1, message)

    def report(self, winner: Optional[Json]) -> None:
        spec, tries, name = self.spec, self.tries, winner["name"] if winner else None
        before = {"value": self.value, "classes": self.classes}
        limits = dict(spec["limits"], min_speedup=None)
        said = {"schema": 1, "winner": name, "metric": spec["metric"], "split": spec["split"], "before": before}
        write(os.path.join(self.out, "ladder.json"), dict(said, limits=limits, rungs=tries))
        brief = {t["name"]: t["skipped"] or "; ".join(t["failed"]) or "passes" for t in tries}
        write(os.path.join(self.out, "summary.json"), {"winner": name, "rungs": {k: v[:300] for k, v in brief.items()}})
        print(table(tries, spec["metric"]), flush=True)


class Search(Trials):
    """The smallest model, down to the wanted share of the parameters, that loses little after a short retraining.

    The wanted share comes first. Where it loses too much, the middle between the largest that lost too much and the
    smallest that did not (at first: the whole model) comes next, until the tries are used up. The threshold of a share
    is found by halving; that takes prunings alone, which are quick.
    """

    def __init__(self, runner: str, spec: Json, before: Json, out: str) -> None:
        super().__init__(runner, spec, before, out)
        self.kept = {0.0: 1.0, 1.0: 0.0}  # threshold -> share of the parameters; these two are known
        self.parameters = {}  # type: Dict[float, Optional[float]]
        self.tries = []  # type: List[Json]

    def request(self, command: str, threshold: float, inputs: Dict[str, str]) -> Json:
        """The result of one command on the model of a threshold. Raises Stopped; Trouble where it failed."""
        text = json.dumps(self.spec["requests"][command]).replace(self.spec["placeholder"], repr(threshold))
        result = self.run(json.loads(text), self.folder(threshold, command), inputs)
        if result.get("outcome") != "succeeded":
            why = result.get("reason") or "left no result"
            raise Trouble(result.get("outcome", ""), f"threshold {threshold:g}: {command}: {why}")
        return result

    def folder(self, threshold: float, command: str) -> str:
        return os.path.join(self.out, "tries", f"{threshold:g}", command)

    def threshold(self, share: float) -> float:
        """The one that leaves at most `share` of the parameters and not much less, as near as it was found; 1 where
        none leaves so little."""
        below = 1.0
        for _ in range(PRUNINGS):
            below = min(t for t, kept in self.kept.items() if kept <= share)
            above = max(t for t in self.kept if t < below)
            middle = self.spec["threshold"] if len(self.kept) == 2 else round((above + below) / 2, 4)
            if self.kept[below] >= NEAR * share or middle in self.kept:
                break
            metrics = self.request("prune", middle, {})["metrics"]
            kept = metrics["kept"]
            self.kept[middle], self.parameters[middle] = kept, metrics.get("parameters")
            self.say("RUNNING", f"Threshold {middle:g} keeps {kept:.2%} of the parameters")
        return min(t for t, kept in self.kept.items() if kept <= share)

    def attempt(self, share: float, threshold: float) -> Json:
        """Retrain and evaluate what a threshold left: an entry of search.json."""
        began = time.monotonic()
        tried: Json = {"ratio": round(share, 6), "threshold": threshold, "kept": self.kept[threshold], "failed": []}
        inputs = {"prune": self.folder(threshold, "prune")}
        self.request("retrain", threshold, inputs)
        inputs["retrain"] = self.folder(threshold, "retrain")
        self.judge(tried, self.request("evaluate", threshold, inputs)["metrics"])
        tried.update(passed=not tried["failed"], seconds=round(time.monotonic() - began, 1))
        return tried

    def shares(self) -> Iterator[float]:
        """The shares to try, each chosen after the one before was judged."""
        yield self.spec["ratio"]
        while len(self.tries) < self.spec["tries"] and not self.tries[0]["passed"]:
            low = max(t["kept"] for t in self.tries if not t["passed"])
            yield (low + min((t["kept"] for t in self.tries if t["passed"]), default=1.0)) / 2

    def go(self) -> int:
        """The exit code."""
        spec = self.spec
        self.say("STARTED", "Searching for a model of {:.1%} of the parameters.".format(spec["ratio"]))
        for share in self.shares():
            threshold = self.threshold(share)
            kept = self.kept[threshold]
            if threshold == 1.0:
                least = min(kept for t, kept in self.kept.items() if t < 1.0)
                message = f"no threshold prunes to {share:.2%} of the parameters, {least:.2%} is the least"
                return self.fail(2, message + "; raise prune.search.ratio, or lower prune.min_filters")
            if kept > spec["max_kept"] or any(kept == t["kept"] for t in self.tries):
                self.say("RUNNING", f"The search ends at {kept:.2%}: tried, or hardly pruned")
                break
            self.tries.append(self.attempt(share, threshold))
            self.say("RUNNING", "Try {}: {}".format(len(self.tries), told(self.tries[-1], spec["metric"])))
        chosen = min((t for t in self.tries if t["passed"]), key=lambda t: t["kept"], default=None)
        self.report(chosen)
        if chosen is None:
            said = "; ".join(told(t, spec["metric"]) for t in self.tries)
            message = f"no size is good enough after a short retraining: {said}"
            return self.fail(4, message + ". Raise prune.search.ratio, tries, epochs or max_drop")
        self.take(self.folder(chosen["threshold"], "prune"))
        self.say("SUCCESS", "Threshold {threshold:g}, which keeps {kept:.2%}.".format(**chosen))
        return 0

    def report(self, chosen: Optional[Json]) -> None:
        spec, best = self.spec, chosen or {}
        said = {"wanted": spec["ratio"], "chosen": best.get("ratio"), "kept": best.get("kept")}
        said.update(threshold=best.get("threshold"))
        parameters = self.parameters.get(best.get("threshold", 0.0))
        whole = dict(said, parameters=parameters, schema=1, metric=spec["metric"], limits=spec["limits"])
        whole["before"] = {"value": self.value}
        prunings = {f"{t:g}": kept for t, kept in sorted(self.kept.items()) if 0 < t < 1}
        write(os.path.join(self.out, "search.json"), dict(whole, tries=self.tries, prunings=prunings))
        write(os.path.join(self.out, "summary.json"), dict(said, tries=len(self.tries)))


def told(tried: Json, metric: str) -> str:
    """A try of a search, for a person."""
    verdict = "; ".join(tried["failed"]) or "passes"
    return "{kept:.2%} kept by threshold {threshold:g}, {metric} {value:.4f}: {verdict}".format(
        metric=metric, verdict=verdict, **tried
    )


def by_class(metrics: Json) -> Dict[str, float]:
    return {name[len(CLASS) :]: value for name, value in metrics.items() if name.startswith(CLASS)}


def timed(plan: str) -> List[Json]:
    """Latency and throughput of a plan at its smallest batch, by TensorRT's trtexec where the image has it."""
    program = shutil.which("trtexec") or TRTEXEC
    try:
        done = subprocess.run(
            [program, "--loadEngine=" + plan], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, timeout=TIMED_SECONDS, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return []
    text = done.stdout.decode("utf-8", "replace")
    latency, throughput = LATENCY.search(text), THROUGHPUT.search(text)
    if done.returncode or not latency or not throughput:
        return []
    return [{"batch": 1, "after_ms": float(latency.group(1)), "images_per_second": float(throughput.group(1))}]


def table(tries: List[Json], metric: str) -> str:
    """All rungs, for the log."""
    rows = [["rung", metric, "drop", "ms", "img/s", "bytes", "seconds", "verdict"]]
    for t in tries:
        if t["skipped"]:
            rows.append([t["name"], "", "", "", "", "", "", "not tried: " + t["skipped"]])
            continue
        value, drop = ("{:.4f}".format(t["value"]), "{:+.4f}".format(t["drop"])) if t["value"] is not None else ("", "")
        speed = ["", ""]
        for one in t["speed"]:
            speed = ["{:.2f}".format(one["after_ms"]), "{:.0f}".format(one["images_per_second"])]
        size, seconds = "{:,}".format(t["bytes"]), "{:.1f}".format(t["seconds"])
        rows.append([t["name"], value, drop, *speed, size, seconds, "; ".join(t["failed"]) or "passes"])
    widths = [max(len(row[i]) for row in rows) for i in range(7)]
    return "\n".join("  ".join([*(row[i].ljust(widths[i]) for i in range(7)), row[7]]) for row in rows)


def main(arguments: List[str]) -> int:
    runner, path, before, out = arguments
    try:
        spec = read(path)
        kind = Climb if "rungs" in spec else Search
        trials = kind(runner, spec, read(before), out)
        try:
            return trials.go()
        except Trouble as trouble:
            trials.report(None)
            return trials.fail(EXITS.get(trouble.outcome, 1), str(trouble))
    except Stopped:
        return CANCELLED
    except (OSError, ValueError, KeyError) as error:
        missing = " is missing" if isinstance(error, KeyError) else ""
        sys.stderr.write(f"error: {error}{missing}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
