"""The client's errors, one inference by hand, and the stage command with its files and exit codes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from refit.triton.client import TritonClient
from refit.triton.errors import InferenceFailed, LoadFailed, ModelNotServed, TritonUnavailable
from refit.triton.infer import infer_picture
from refit.triton.ledger import Ledger
from tests.triton.fixtures import Place
from tests.triton.models import COVERAGE, INPUT, REPOSITORY, make_lists, make_onnx, noise, run_cli, write_spec


def picture(path: Path, width: int = 48, height: int = 40) -> Path:
    pixels = np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)
    cv2.imwrite(str(path), pixels)
    return path


def test_nobody_there() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with TritonClient(url) as client, pytest.raises(TritonUnavailable, match=rf"{url} .*refused.*start it") as down:
            client.live()
    assert down.value.url == url
    with pytest.raises(TritonUnavailable, match="not an HTTP address"):
        TritonClient("ftp://somewhere")


def test_server_that_says_nothing_is_given_up() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with (
            TritonClient(f"127.0.0.1:{silent.getsockname()[1]}", timeout_seconds=0.2) as client,
            pytest.raises(TritonUnavailable, match="no answer in time"),
        ):
            client.live()


def test_something_else_on_the_port() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()

        def greet() -> None:
            connection, _ = other.accept()
            connection.recv(1000)
            connection.sendall(b"220 mail.example ready\r\n")
            connection.close()

        thread = threading.Thread(target=greet)
        thread.start()
        with TritonClient(f"http://127.0.0.1:{other.getsockname()[1]}") as client, pytest.raises(TritonUnavailable):
            client.live()
        thread.join()


def test_models_that_are_not_served(place: Place) -> None:
    arrays = {INPUT: noise(1)}
    with pytest.raises(ModelNotServed, match="unknown model"):
        place.client.infer(place.name, arrays)
    with pytest.raises(ModelNotServed):
        place.client.config(place.name)
    with pytest.raises(LoadFailed, match="failed to poll"):
        place.client.load(place.name)
    assert not place.client.ready(place.name, 1)
    place.release(place.model("a"))
    assert place.client.ready(place.name, 1)
    with pytest.raises(ModelNotServed, match="version 9"):
        place.client.infer(place.name, arrays, version=9)
    with pytest.raises(InferenceFailed, match="unexpected shape"):
        place.client.infer(place.name, {INPUT: noise(1)[:, :2]})
    with pytest.raises(InferenceFailed, match="unexpected inference input"):
        place.client.infer(place.name, {"other": noise(1)})
    with pytest.raises(InferenceFailed, match="complex64"):
        place.client.infer(place.name, {INPUT: noise(1).astype(np.complex64)})
    place.client.unload(place.name)
    with pytest.raises(ModelNotServed):
        place.client.infer(place.name, arrays)


def test_picture_needs_nothing_but_the_server(place: Place) -> None:
    path = place.model("a")
    place.release(path)
    out = place.folder / "drawn" / "answer.png"
    answer = infer_picture(place.client, place.name, picture(place.folder / "p.png"), out=out)
    assert answer.version == 1
    assert answer.sha256 == place.client.config(place.name).sha256
    assert answer.detections
    for found in answer.detections:
        assert found.name in ("red", "grün")
        assert 0.3 <= found.score <= 1
        x1, y1, x2, y2 = found.box
        assert 0 <= x1 < x2 <= 48
        assert 0 <= y1 < y2 <= 40
    assert cv2.imread(str(out)).shape == (40, 48, 3)

    done = run_cli("infer", "--url", place.server.url, "--model", place.name, "--image", place.folder / "p.png")
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    assert told["detections"] == answer.to_json()["detections"]


def test_picture_for_a_network_that_suppresses_by_itself(place: Place) -> None:
    place.release(make_lists(place.folder / "lists"))
    (found,) = infer_picture(place.client, place.name, picture(place.folder / "p.png", 64, 32)).detections
    assert (found.name, found.score) == ("grün", 0.75)
    assert found.box == (16, 8, 48, 32)  # 32 x 16 of the input is the picture, the rest is margin


def test_picture_for_a_model_that_nobody_released(place: Place) -> None:
    from refit.triton.config import ModelConfig, read_signature

    path = make_onnx(place.repository / place.name / "1" / "model.onnx")
    (place.repository / place.name / "config.pbtxt").write_text(ModelConfig(place.name, 1, read_signature(path)).text())
    place.client.load(place.name)
    with pytest.raises(ModelNotServed, match="not released by Refit"):
        infer_picture(place.client, place.name, picture(place.folder / "p.png"))
    place.client.unload(place.name)


def test_stage_command(place: Place) -> None:
    out = place.folder / "01-release" / "out"
    spec = write_spec(place.spec(place.model("a"), pipeline=None, run=None), place.folder / "release.yaml")
    out.mkdir(parents=True)
    (out.parent / "request.json").write_text(json.dumps({"pipeline": "demo", "run": "r9", "key": "k9"}))
    done = run_cli("release", "-e", spec, "-r", out)
    assert done.returncode == 0, done.stderr
    report = json.loads((out / "release.json").read_text())
    assert (report["schema"], report["outcome"], report["version"], report["run"]) == (1, "released", 1, "r9")
    assert json.loads((out / "summary.json").read_text())["version"] == 1
    lines = [json.loads(line) for line in (out / "status.json").read_text().splitlines()]
    assert [lines[0]["status"], lines[-1]["status"]] == ["STARTED", "SUCCESS"]
    assert lines[-1]["kpi"]["version"] == 1
    record = Ledger(place.ledger).read(1)
    assert record is not None
    assert (record.run, record.key) == ("r9", "k9")


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"modle": "x"}, 2, "unknown key; did you mean 'model'?"),
        ({"keep_versions": 0}, 2, "keep_versions"),
        ({"url": "127.0.0.1"}, 2, "url"),
        ({"repository": "/nowhere/models"}, 2, "no such model repository"),
        ({"model_path": "/nowhere/model.onnx"}, 3, "cannot be read"),
        ({"url": "http://127.0.0.1:9"}, 1, "cannot be reached"),
        ({}, 4, "does not serve: .*Unknown"),
    ],
)
def test_stage_command_fails_with_one_sentence(
    place: Place, change: dict[str, object], code: int, message: str
) -> None:
    import re

    path = write_spec(place.spec(place.model("bad", operator="Unknown")), place.folder / "release.yaml")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    done = run_cli("release", "-e", path, "-r", place.folder / "out")
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == code, done.stderr
    assert len(errors) == 1
    assert re.search(message, errors[0])
    last = json.loads((place.folder / "out" / "status.json").read_text().splitlines()[-1])
    assert last["status"] == "FAILURE"
    assert re.search(message, last["message"])
    assert not (place.folder / "out" / "release.json").exists()


def refit_cli(place: Place, *words: object, **env: str) -> subprocess.CompletedProcess[str]:
    """`refit ...` for the place's workspace, Triton and model repository."""
    return subprocess.run(
        [sys.executable, "-m", "refit.cli", *map(str, words)],
        env={
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "REFIT_WORKSPACE": str(place.ledger.parent.parent),
            "REFIT_TRITON_URL": place.server.url,
            "REFIT_MODEL_REPOSITORY": str(place.repository),
            **env,
        },
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def test_rollback_command(place: Place) -> None:
    place.release(place.model("a"))
    place.release(place.model("b", seed=5))
    done = refit_cli(place, "releases", place.name)
    assert f"\n  back to version 1: refit rollback {place.name} --reason WHY\n" in done.stdout
    # The pipeline's file names a Triton of its own; the profile's is another.
    own = {"url": place.server.url, "repository": str(place.repository)}
    minimal = {"dataset": {"source": "x", "classes": ["plate"]}, "toolkit": "cpu", "release": {"triton": own}}
    (place.folder / f"{place.ledger.parent.name}.yaml").write_text(json.dumps(minimal))
    elsewhere = {"REFIT_PIPELINES": str(place.folder), "REFIT_TRITON_URL": "http://127.0.0.1:9"}
    done = refit_cli(place, "rollback", place.name, "--reason", "plates at night are missed", **elsewhere)
    assert done.returncode == 0, done.stderr
    assert f"Triton serves version 1 of {place.name} again (before: 2)" in done.stdout
    assert f"To undo it: refit rollback {place.name} --to 2" in done.stdout
    assert place.client.infer(place.name, {INPUT: noise(1)}).version == 1
    states = [(r.state, r.history[-1].reason) for r in Ledger(place.ledger).records()]
    assert [state for state, _ in states] == ["serving", "retired"]
    assert states[0][1].startswith("rolled back to by ")
    assert states[0][1].endswith(": plates at night are missed")

    done = refit_cli(place, "releases", place.name)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0] == ["MODEL", "VERSION", "STATE", "SINCE", "mAP50", "PIPELINE", "WHY"]
    assert [(line[0], line[1], line[2]) for line in lines[1:3]] == [
        (place.name, "2", "retired"),
        (place.name, "1", "serving"),
    ]
    told = done.stdout.splitlines()[4:]
    assert told[0].startswith(f"{place.name}: version 1 serves since ")
    assert told[0].endswith("plates at night are missed")
    assert told[1:] == [
        f"  to another: refit rollback {place.name} --to N --reason WHY, N one of 2",
        f"  is that what Triton answers with? refit verify {place.name} --version 1",
    ]
    told = json.loads(refit_cli(place, "releases", "--json").stdout)
    assert [(r["version"], r["state"], len(r["history"])) for r in told] == [(1, "serving", 4), (2, "retired", 3)]

    done = refit_cli(place, "rollback", place.name, "--to", 1)
    assert (done.returncode, done.stderr) == (
        2,
        f"error: version 1 of {place.name} serves already; name another one with --to\n",
    )
    done = refit_cli(place, "rollback", place.name, "--to", 7)
    assert done.returncode == 2
    assert "version 7" in done.stderr
    assert "[1, 2]" in done.stderr
    # Somebody changed the bytes: they are not loaded.
    (place.repository / place.name / "2" / "model.onnx").write_bytes(
        make_onnx(place.folder / "x.onnx", seed=9).read_bytes()
    )
    done = refit_cli(place, "rollback", place.name, "--to", 2)
    assert done.returncode == 2
    assert "is not the file that was released" in done.stderr
    assert place.client.ready_versions(place.name) == (1,)
    assert COVERAGE in place.client.infer(place.name, {INPUT: noise(1)}).outputs


def test_rollback_of_what_is_not_there(place: Place) -> None:
    place.release(place.model("a"))
    done = refit_cli(place, "rollback", place.name + "x")
    assert done.returncode == 2
    assert f"did you mean '{place.name}'?" in done.stderr
    done = refit_cli(place, "rollback", place.name, "--cluster", "kubernetes")
    assert done.returncode == 2
    assert "trigger the DAG refit_rollback in Airflow" in done.stderr
    assert refit_cli(place, "rollback", place.name, "--to", 0).returncode == 2


def test_rollback_as_a_stage(place: Place) -> None:
    place.release(place.model("a"))
    place.release(place.model("b", seed=5))
    spec = {
        **{"model": place.name, "url": place.server.url, "repository": str(place.repository)},
        **{"ledger": str(place.ledger), "by": "lea", "reason": "night\nshift"},
    }
    path = place.folder / "rollback.yaml"
    path.write_text(json.dumps(spec))
    done = run_cli("rollback", "-e", path, "-r", place.folder / "out")
    assert done.returncode == 0, done.stderr
    assert json.loads((place.folder / "out" / "summary.json").read_text())["outcome"] == "rolled_back"
    assert Ledger(place.ledger).records()[0].history[-1].reason == "rolled back to by lea: night shift"
