"""Images through a real Triton: the answers of one picture at a time, one version, a kill, a server in trouble."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from refit.command import BadSpec, StageError
from refit.predict import stage
from refit.predict.specs import TritonInferenceSpec
from refit.predict.triton import TritonModel
from refit.status import StatusWriter
from refit.triton.infer import infer_picture
from tests.predict.front import front_of
from tests.predict.made import folder_of
from tests.triton.fixtures import Place
from tests.triton.models import REPOSITORY, make_model


@pytest.fixture(autouse=True)
def _roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFIT_DATA_ROOTS", str(tmp_path))
    monkeypatch.delenv("REFIT_SECRET_TRITON_CONTROL_KEY")  # inference needs no key


@pytest.fixture
def released(place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A model with batches of up to 8."""
    release(place, 0, monkeypatch)
    return place


def release(place: Place, seed: int, monkeypatch: pytest.MonkeyPatch) -> int:
    from tests.triton.fixtures import KEY

    with monkeypatch.context() as patch:
        patch.setenv("REFIT_SECRET_TRITON_CONTROL_KEY", KEY)
        return place.release(make_model(place.folder / f"seed{seed}", seed=seed)).version


def spec(place: Place, images: Path, **more: Any) -> TritonInferenceSpec:
    return TritonInferenceSpec(
        **{"images": str(images), "model": place.name, "url": place.server.url, "score_threshold": 0.0, **more}
    )


def go(asked: TritonInferenceSpec, out: Path) -> dict[str, Any]:
    stage.run(asked, out, StatusWriter(out))
    return dict(json.loads((out / "predictions.json").read_text(encoding="utf-8")))


def counted(place: Place, version: int) -> int:
    """The images that Triton has answered."""
    with urllib.request.urlopen(f"{place.server.url}/v2/models/{place.name}/versions/{version}/stats") as reply:
        (stats,) = json.load(reply)["model_stats"]
    return int(stats["inference_count"])


def test_the_answers_are_those_of_one_picture_at_a_time(released: Place, tmp_path: Path) -> None:
    root, out = folder_of(tmp_path / "yard", 11), tmp_path / "out"
    told = go(spec(released, root, score_threshold=0.6, draw=True), out)
    assert (told["through"], told["model"], told["version"]) == ("triton", released.name, 1)
    assert told["sha256"] == released.client.config(released.name).sha256
    rows = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()[1:]]
    assert len(rows) == 11
    for row in rows:
        one = infer_picture(released.client, released.name, root / row["file"])
        want = [(d.name, d.score, d.box) for d in one.detections if d.score >= 0.6]
        assert want, "this model finds something everywhere"
        assert [(("red", "grün")[c], s, tuple(box)) for c, s, *box in row["objects"]] == [
            (name, pytest.approx(score, abs=1e-5), pytest.approx(box, abs=0.01)) for name, score, box in want
        ]
        assert (out / "images" / row["file"]).stat().st_size > 0


def test_a_killed_process_goes_on(released: Place, tmp_path: Path) -> None:
    root, out = folder_of(tmp_path / "yard", 120), tmp_path / "out"
    before = counted(released, 1)
    told = spec(released, root, batch=2, in_flight=2).model_dump_json()
    (tmp_path / "spec.yaml").write_text(told)
    command = [sys.executable, "-m", "refit.predict", "inference", "-e", tmp_path / "spec.yaml", "-r", out]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}

    def rows() -> int:
        path = out / "answers.jsonl"
        return path.read_bytes().count(b"\n") - 1 if path.exists() else 0

    process = subprocess.Popen(command, env=env)
    until = time.monotonic() + 60
    while rows() < 10 and time.monotonic() < until:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = rows()
    assert 10 <= kept < 120
    wasted = counted(released, 1) - before - kept
    assert 0 <= wasted <= 4, "at most what was under way is lost"
    done = subprocess.run(command, env=env, check=False)
    assert done.returncode == 0
    assert counted(released, 1) - before == 120 + wasted
    assert json.loads((out / "predictions.json").read_text())["images"] == 120


def test_results_are_of_one_version(released: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, out = folder_of(tmp_path / "yard", 12), tmp_path / "out"
    asked = spec(released, root, batch=1, in_flight=1)
    began = TritonModel(asked)
    ask, times = TritonModel.ask, []

    def and_then_release(self: TritonModel, *args: Any) -> Any:
        times.append(1)
        if len(times) == 5:
            release(released, 7, monkeypatch)
        return ask(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(TritonModel, "ask", and_then_release)
        with pytest.raises(StageError, match=r"does not serve version 1 of .* any more, it serves 2: start again"):
            go(asked, out)
    began.close()
    assert not (out / "predictions.json").exists()
    assert go(asked, out)["version"] == 2
    assert counted(released, 2) >= 12, "the new version was asked about every image"
    with pytest.raises(BadSpec, match=r"does not serve version 1 of .*, but 2"):
        go(spec(released, root, version=1), out)


def test_a_server_that_is_busy_or_breaks_off_is_asked_again(released: Place, tmp_path: Path) -> None:
    root = folder_of(tmp_path / "yard", 20)
    with front_of(released.server.url) as front:
        front.spoil = ["full", "broken", "full"]
        told = go(spec(released, root, url=front.url, batch=2), tmp_path / "out")
        assert (told["images"], front.spoiled) == (20, 3)
        front.spoil = ["full"] * 1000
        with pytest.raises(StageError, match=r"Exceeds maximum queue size.*what was answered is kept"):
            go(spec(released, root, url=front.url, patience_seconds=0.5), tmp_path / "other")
        front.spoil = []
        assert go(spec(released, root, url=front.url), tmp_path / "other")["images"] == 20


def test_what_is_not_there_is_named(released: Place, tmp_path: Path) -> None:
    root = folder_of(tmp_path / "yard", 1)
    with pytest.raises(BadSpec, match=r"does not serve it.*unknown model"):
        go(spec(released, root, model="nobody"), tmp_path / "out")
    with pytest.raises(StageError, match=r"127\.0\.0\.1:9 cannot be reached"):
        go(spec(released, root, url="http://127.0.0.1:9"), tmp_path / "out")


def test_the_command(released: Place, tmp_path: Path) -> None:
    root = folder_of(tmp_path / "yard", 3)
    words = ["predict", root, "--model", released.name, "--url", released.server.url, "--out"]

    def refit(*more: object) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "REFIT_DATA_ROOTS": "/nowhere"}
        line = [sys.executable, "-m", "refit.cli", *map(str, words), *map(str, more)]
        return subprocess.run(line, env=env, capture_output=True, text=True, check=False)

    good = refit(tmp_path / "out", "--threshold", "0", "--threshold", "grün=1")
    assert good.returncode == 0, good.stderr
    assert f"3 images by {released.name} version 1; objects: red " in good.stdout
    assert good.stdout.rstrip().endswith("grün 0")
    (root / "bad.png").write_bytes(b"x")
    bad = refit(tmp_path / "out2")
    assert bad.returncode == 2
    assert "1 of 4 images cannot be read" in bad.stderr
    assert len(json.loads((tmp_path / "out2" / "json" / "yard.json").read_text())) == 2
    assert refit(tmp_path / "out2", "--max-bad-images", "0.5").returncode == 0
    per_cent = refit(tmp_path / "out2", "--threshold", "60")
    assert (per_cent.returncode, "--score-threshold: Input should be less than or equal to 1" in per_cent.stderr) == (
        2,
        True,
    )
