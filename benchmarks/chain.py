"""The whole chain, from data in the inbox to Triton's answer, through Airflow, as `make run ONCE=1` does it.

    PYTHONPATH=. python3 benchmarks/chain.py demo|bccd [--data FOLDER] [--home FOLDER] [--keep]

In a home of its own. For the demo it also runs a second time with nothing changed, and asks a third run, with one
training parameter changed, which stages it would start. Time "arrival to answer" is from the arrival of the data
(demo: its marker; bccd: the start of the run) to the picture of Triton's answer.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks import report

BCCD = report.ROOT.parent / "shared" / "data" / "bccd"


def environment(home: Path) -> dict[str, str]:
    envs = os.environ.get("REFIT_ENVS") or str(report.ROOT / ".refit" / "envs")
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(4)]
    names = ("AIRFLOW_PORT", "TRITON_HTTP_PORT", "TRITON_GRPC_PORT", "TRITON_METRICS_PORT")
    ports = {name: str(s.getsockname()[1]) for name, s in zip(names, held, strict=True)}
    for s in held:
        s.close()
    kept = {k: v for k, v in os.environ.items() if not k.startswith("REFIT_")}
    return {**kept, **ports, "REFIT_HOME": str(home), "REFIT_ENVS": envs, "PYTHONPATH": str(report.ROOT)}


def once(env: dict[str, str], *args: str) -> str:
    """One `make run ONCE=1`; its output."""
    command = [env["REFIT_ENVS"] + "/tools/bin/python", "-m", "refit.embedded", "--once", *args]
    done = subprocess.run(command, env=env, cwd=report.ROOT, capture_output=True, text=True, check=False)
    print(done.stdout)
    if done.returncode:
        raise SystemExit(f"the run ended with {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout


def last_run(workspace: Path) -> Path:
    return max((workspace / "runs").glob("*/plan.json"), key=lambda p: p.stat().st_mtime).parent


def is_gate(stage: str) -> bool:
    """Whether a stage is there for a gate alone. The evaluations are not: their figures are wanted without gates."""
    return stage.startswith("gate_") or stage in ("prepare_proof", "prove", "evaluate_champion")


def figures(run: Path, began: float) -> dict[str, Any]:
    """The stages of a run, and what they come to."""
    plan = json.loads(max(run.glob("plan*.json"), key=lambda p: p.stat().st_mtime).read_text())
    stages, results = {}, {}
    for stage in plan["stages"]:
        folder = Path(plan["reused"].get(stage["name"]) or stage["paths"]["stage"])
        if not (folder / "result.json").exists():  # left out: a first model has no champion
            continue
        r = results[stage["name"]] = json.loads((folder / "result.json").read_text())
        m = r["metrics"]
        stages[stage["name"]] = {
            "seconds": round(r["seconds"], 1),
            "mAP50": m.get("mAP50"),
            "parameters": m.get("parameters"),
            "bytes": m.get("bytes"),
            "peak_memory_mib": r["peak_memory_bytes"] >> 20,
        }
    score = {n: results[f"evaluate_{n}"]["metrics"] for n in ("trained", "retrained", "quantized")}
    size = {n: stages[n]["bytes"] for n in ("export", "quantize")}
    answer = (run / "triton-answer.png").stat().st_mtime
    took = {name: r["seconds"] for name, r in results.items()}
    return {
        "arrival_to_answer_s": round(answer - began, 1),
        "stages_s": round(sum(took.values()), 1),
        "gates_of_chain": round(sum(s for name, s in took.items() if is_gate(name)) / sum(took.values()), 4),
        "mAP50": {n: round(m["mAP50"], 4) for n, m in score.items()},
        "mAP": {n: round(m["mAP"], 4) for n, m in score.items()},
        "AP50_quantized": {
            k.split("/")[1]: round(v, 4) for k, v in score["quantized"].items() if k.startswith("AP50/")
        },
        "lost_by_pruning": round(score["trained"]["mAP50"] - score["retrained"]["mAP50"], 4),
        "lost_by_int8": round(score["retrained"]["mAP50"] - score["quantized"]["mAP50"], 4),
        "parameters_kept": round(stages["prune"]["parameters"] / stages["train"]["parameters"], 4),
        "int8_of_pruned_fp32": round(size["quantize"] / size["export"], 4),
        "int8_of_unpruned_fp32": round(size["quantize"] / (4 * stages["train"]["parameters"]), 4),
        "most_memory_mib": max(s["peak_memory_mib"] for s in stages.values()),
        "stages": stages,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("pipeline", choices=["demo", "bccd"])
    parser.add_argument("--data", default=str(BCCD))
    parser.add_argument("--home", help="default: a temporary folder")
    parser.add_argument("--keep", action="store_true")
    args = parser.parse_args()
    home = Path(args.home or tempfile.mkdtemp(prefix="refit-chain-"))
    env = environment(home)
    workspace = home / "workspace" / args.pipeline
    try:
        if args.pipeline == "demo":
            once(env)
            began = (home / "data" / "inbox" / "demo" / "_SUCCESS").stat().st_mtime
            found = figures(last_run(workspace), began) | unchanged(env, workspace)
        else:
            file = str(report.ROOT / "specs" / "pipelines" / "bccd.yaml")
            once(env, "--pipeline", file, "--data", args.data)
            run = last_run(workspace)
            bind = json.loads((run / "00-bind" / "result.json").read_text())
            found = figures(run, datetime.fromisoformat(bind["started"]).timestamp())
        report.write(f"chain-{args.pipeline}", found)
    finally:
        if not args.keep:
            shutil.rmtree(home, ignore_errors=True)


def unchanged(env: dict[str, str], workspace: Path) -> dict[str, Any]:
    """A second run with nothing changed, and what a third one would start after one change."""
    text = once(env)
    took = re.search(r": good, (\d+) s", text)
    second = json.loads((last_run(workspace) / "00-bind" / "out" / "bind.json").read_text())
    command = [str(report.ROOT / "bin" / "refit"), "run", "specs/pipelines/demo.yaml", "--until", "dataset_convert"]
    subprocess.run([*command, "--quiet", "--param", "train_epochs=19"], env=env, cwd=report.ROOT, check=True)
    third = json.loads((last_run(workspace) / "00-bind" / "out" / "bind.json").read_text())
    return {
        "unchanged_run_s": int(took[1]) if took else None,
        "unchanged_run_starts": second["run"],
        "after_more_epochs_starts": third["run"],
        "after_more_epochs_reuses": sorted(third["reused"]),
    }


if __name__ == "__main__":
    main()
