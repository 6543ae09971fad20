"""How long the Models page takes: 500 pipelines with 20 runs each, made up, in Airflow's own app.

    PYTHONPATH=. .refit/envs/airflow/bin/python benchmarks/models_page.py [--pipelines 500] [--runs 20]

The app is asked in this process, so the figures hold what Airflow does for each request (login, rights, database,
compression) and neither a network nor a browser; the floor is Airflow's own smallest answer to a logged-in user.
`first` is the first request after the app's start, which begins to read every index.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks import report
from tests.operators import home

TIMES = 15
FLOOR = "/api/v2/version"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pipelines", type=int, default=500)
    parser.add_argument("--runs", type=int, default=20)
    args = parser.parse_args()
    home.prepare()
    from fastapi.testclient import TestClient

    from tests.plugins import place, tree

    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        names = tree.write(Path(folder), args.pipelines, args.runs)
        client = stack.enter_context(TestClient(place.app(Path(folder), names)))
        token = client.post("/auth/token", json={"username": "olga", "password": "olga"}).json()["access_token"]
        client.headers.update({"Authorization": f"Bearer {token}", "Accept-Encoding": "gzip"})

        def ask(path: str) -> tuple[float, int]:
            began = time.perf_counter()
            answer = client.get(path)
            seconds = time.perf_counter() - began
            assert answer.status_code == 200, f"{path}: {answer.status_code}"
            return seconds * 1000, len(answer.content)

        ask(FLOOR)
        first, size = ask("/refit/models")
        figures = {"pipelines": args.pipelines, "runs": args.pipelines * args.runs}
        figures |= {"first_ms": round(first, 1), "list_bytes": size}
        paths = {
            "floor": FLOOR,
            "list": "/refit/models",
            "search": "/refit/models?q=12&show=failed",
            "api_list": "/refit/api/models",
            "model": f"/refit/models/{names[-1]}",
            "api_model": f"/refit/api/models/{names[-1]}",
            "progress": f"/refit/progress/{names[-1]}",
        }
        for name, path in paths.items():
            taken = sorted(ask(path)[0] for _ in range(TIMES))
            figures[f"{name}_ms"] = round(statistics.median(taken), 1)
            figures[f"{name}_worst_ms"] = round(taken[-1], 1)
    report.write("models_page", figures)


if __name__ == "__main__":
    main()
