"""Runs written down in MLflow: a real server (`make judges` sets it up), and servers in trouble."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from refit import track
from refit.publish import place
from refit.publish.stage import PublishSpec, publish
from refit.status import StatusWriter
from refit.track import Mlflow, Tracking
from tests.judges import judge
from tests.operators.receivers import webhook_server
from tests.publish.made import GOOD, Workspace

EVALUATED = {"metrics": {"mAP50": 0.875, "mAP": 0.5, "AP50/ring": 0.75, "AP50/<script>": 1.0}}


def released(root: Path, version: int = 4) -> Workspace:
    """A run that has released, with the model's files in the ledger."""
    made = Workspace(root)
    summary = {"outcome": "released", "model": "plates", "version": version, "sha256": "0" * 64}
    made.run("run-1", **{**GOOD, "evaluate_trained": EVALUATED, "release": {"summary": summary}})
    model = made.folder / "releases" / str(version) / "model"
    model.mkdir(parents=True)
    (model / "model.onnx").write_bytes(b"onnx")
    return made


def written(made: Workspace, tracking: Tracking, out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Publish; what was printed."""
    spec = PublishSpec(workspace=str(made.folder), run="run-1", run_id="manual__run-1", tracking=tracking)
    publish(spec, out, StatusWriter(out))
    assert (made.published / "runs" / "run-1" / place.REPORT_JSON).is_file(), "whatever MLflow does"
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    python = judge()
    root = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    words = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    stores = ["--backend-store-uri", f"sqlite:///{root}/m.db", "--artifacts-destination", str(root / "files")]
    with open(root / "log", "wb") as log:
        server = subprocess.Popen(
            [python, "-m", "mlflow", *words, *stores], stdout=log, stderr=log, cwd=root, start_new_session=True
        )
    try:
        until = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
            except OSError:
                assert server.poll() is None, (root / "log").read_text()[-2000:]
                assert time.monotonic() < until, (root / "log").read_text()[-2000:]
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # the workers too
        server.wait()


def asked(url: str, path: str, **body: Any) -> Any:
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(f"{url}/api/2.0/{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


def test_a_run_and_its_model(mlflow: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = released(tmp_path)
    tracking = Tracking(mlflow=Mlflow(url=mlflow))
    for _ in range(2):  # published again, it is the same run
        assert "warning" not in written(made, tracking, tmp_path / "out", capsys)
    experiment = asked(mlflow, "mlflow/experiments/get-by-name?experiment_name=plates")["experiment"]["experiment_id"]
    (run,) = asked(mlflow, "mlflow/runs/search", experiment_ids=[experiment])["runs"]
    data = {kind: {x["key"]: x["value"] for x in run["data"][kind]} for kind in ("metrics", "params", "tags")}
    assert (run["info"]["status"], run["info"]["run_name"]) == ("FINISHED", "run-1")
    assert (data["metrics"]["trained/mAP50"], data["metrics"]["trained/AP50/_script_"]) == (0.875, 1.0)
    assert data["params"] == {"toolkit": "cpu", "train_epochs": "3"}
    assert data["tags"]["refit.fingerprint"] == "ab" * 32
    files = asked(mlflow, f"mlflow/artifacts/list?run_id={run['info']['run_id']}")["files"]
    assert {f["path"] for f in files} == {"report.html", "report.json", "model"}
    champion = asked(mlflow, "mlflow/registered-models/alias?name=plates&alias=champion")["model_version"]
    assert (champion["version"], champion["run_id"]) == ("1", run["info"]["run_id"])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("refuses", "says no: HTTP 501"),
        ("nobody", "does not answer"),
        ("hang", "does not answer (timed out)"),
        ("drip", "takes too long"),
        ("ok", "answers as no MLflow server does (JSONDecodeError); does tracking.mlflow.url lead to one?"),
        ("", "answers as no MLflow server does (KeyError)"),
    ],
)
def test_a_server_in_trouble_is_a_warning(
    how: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(track, "TIMEOUT", 0.5)
    monkeypatch.setattr(track, "LONGEST", 2.0)
    with webhook_server(how) as server:
        url = f"http://127.0.0.1:{9 if how == 'nobody' else server.port}"
        said = written(released(tmp_path), Tracking(mlflow=Mlflow(url=url)), tmp_path / "out", capsys)
    assert message in said


def test_the_login_is_never_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking = Tracking(mlflow=Mlflow(url="http://127.0.0.1:9", connection="lab"))
    for host, told in (("127.0.0.1:9", "does not answer"), ("mlflow.lab", "does not name 127.0.0.1:9 as its host")):
        monkeypatch.setenv("REFIT_CONNECTION", f"http://lea:s3cret@{host}")
        said = written(released(tmp_path / host), tracking, tmp_path / f"{host}.out", capsys)
        assert told in said
        assert "s3cret" not in said
    said = written(released(tmp_path / "2"), tracking, tmp_path / "out2", capsys)
    assert "connection lab: is neither a URI nor the JSON" in said


def test_nothing_is_written_down_by_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "warning" not in written(released(tmp_path), Tracking(), tmp_path / "out", capsys)
