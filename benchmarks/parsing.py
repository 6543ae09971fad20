"""What a pipeline file costs while Airflow parses: dags/retrain.py with N files against an empty DAG file.

    PYTHONPATH=. .refit/envs/airflow/bin/python benchmarks/parsing.py [--files 200]

Each figure is the median of five fresh processes, because Airflow's DAG processor forks a fresh one for each parse.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import report

CHILD = """
import json, sys, time
import airflow.sdk  # the DAG processor has it loaded
began = time.perf_counter()
if sys.argv[1] == "empty":
    from airflow.sdk import DAG
    dags = {"empty": DAG("empty", schedule=None)}
else:
    from operators import factory
    dags = factory.dags()
seconds = time.perf_counter() - began
heavy = [m for m in ("torch", "pandas", "kubernetes", "numpy", "cv2") if m in sys.modules]
print(json.dumps({"seconds": seconds, "dags": len(dags), "heavy": heavy}))
"""


def parse(what: str, pipelines: Path) -> dict[str, object]:
    env = {**os.environ, "REFIT_PIPELINES": str(pipelines), "PYTHONPATH": str(report.ROOT)}
    done = subprocess.run([sys.executable, "-c", CHILD, what], env=env, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=200)
    count = parser.parse_args().files
    text = (report.ROOT / "specs" / "pipelines" / "demo.yaml").read_text()
    with tempfile.TemporaryDirectory() as folder:
        pipelines = Path(folder)
        empty = statistics.median(float(parse("empty", pipelines)["seconds"]) for _ in range(5))
        one = pipelines / "first.yaml"
        one.write_text(text)
        single = statistics.median(float(parse("retrain", pipelines)["seconds"]) for _ in range(5))
        for i in range(count - 1):
            (pipelines / f"p{i:04d}.yaml").write_text(text.replace("inbox/demo", f"inbox/p{i}"))
        runs = [parse("retrain", pipelines) for _ in range(5)]
    many = statistics.median(float(r["seconds"]) for r in runs)
    report.write(
        "parsing",
        {
            "files": count,
            "dags": runs[0]["dags"],
            "empty_s": round(empty, 4),
            "one_file_s": round(single, 4),
            "all_files_s": round(many, 4),
            "ms_per_file_above_empty": round((many - empty) / count * 1000, 2),
            "ms_per_further_file": round((many - single) / (count - 1) * 1000, 2),
            "heavy_imports": runs[0]["heavy"],
        },
    )


if __name__ == "__main__":
    main()
