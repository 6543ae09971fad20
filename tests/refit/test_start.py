"""start_from: what bind finds for it, what of it is in a stage's key, and what becomes of the old training."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from refit import collect
from refit import pipeline as pipelines
from refit.runtime.local import REPOSITORY
from refit.specs import SpecError, parse_yaml
from refit.start import spec as starts
from refit.triton.ledger import Ledger, Record
from tests.refit.bind_helpers import PIPELINE, Place
from tests.refit.test_cli_run import has

needs_cpu = pytest.mark.skipif(not has("cpu"), reason="there is no cpu environment: make setup")


def torch_file(path: Path, content: object = None) -> Path:
    """What torch.save writes of a value without tensors."""
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("archive/data.pkl", pickle.dumps({"epoch": 3} if content is None else content, protocol=2))
        z.writestr("archive/version", "3\n")
    return path


def stage(place: Place, name: str) -> dict[str, Any]:
    return next(s for s in place.plan["stages"] if s["name"] == name)


def begin(place: Place, run: str, value: str | None, **conf: Any) -> str:
    """Bind a run whose training begins so; gives the spec of the training, "" where bind failed."""
    conf = {"train_start_from": value, **conf}
    return str(stage(place, "train")["files"]["train.yaml"]) if place.bind(run, conf=conf) == 0 else ""


def serve(place: Place, run: str, version: int = 1) -> None:
    about = {"model": "mine", "version": version, "sha256": "0", "bytes": 1, "pipeline": "mine", "run": run, "key": "k"}
    config = {"url": "http://127.0.0.1:8000", "repository": "models", "config": "", "sidecar": {}, "state": "serving"}
    Ledger(place.workspace / "releases").write(Record.model_validate({**about, **config}))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("run:", "names no training; write run:RUN"),
        ("resume:r1/train", "names no training"),
        ("run:r1/export", "names no training"),
        ("s3://bucket/model.pth", "write s3://bucket/model.pth#sha256=..."),
        ("https://me:pw@host/model.pth#sha256=" + "a" * 64, "a login in a URL is read by everybody"),
        ("mine.pth#sha256=abc", "64 digits"),
        ("taken:../../x.pth", "is how bind notes what it found"),
        ("/etc/passwd", "begins with .pth or .onnx, with run:RUN or with champion"),
        ("zoo/ssd_mobilenet.tar.gz", "is an archive. One of TensorFlow's model zoo (checkpoint, pipeline.config"),
        ("saved_model.pb", "whose variables no network here has"),
        ("mine.hdf5", "mine.hdf5 is a Keras model, which its training cannot read"),
    ],
)
def test_what_cannot_be_begun_with_is_refused(value: str, message: str) -> None:
    document = parse_yaml(PIPELINE, "mine.yaml")
    with pytest.raises(SpecError) as error:
        pipelines.from_document(document, "mine", {"stages.train.start_from": value})
    assert str(error.value).startswith("params of this run: stages.train.start_from: ")
    assert message in str(error.value)


def test_a_retraining_begins_with_the_pruned_model(place: Place) -> None:
    text = PIPELINE + "  retrain: {start_from: champion}\n"
    assert place.bind(text=text) == 2
    assert "retrain begins with the pruned model; of another run it can only go on: resume:RUN" in place.error


def test_a_file_is_kept_and_keyed_by_its_content(place: Place) -> None:
    assert place.bind("plain") == 0
    without = stage(place, "train")["key"]
    assert "start_from" not in place.plan
    given = torch_file(place.root / "data" / "mine.pth")
    digest = hashlib.sha256(given.read_bytes()).hexdigest()
    spec = begin(place, "r1", "mine.pth")
    assert f"start_from: '{{workspace}}/starts/{digest}/model.pth'" in spec
    assert (place.workspace / "starts" / digest / "model.pth").read_bytes() == given.read_bytes()
    key = stage(place, "train")["key"]
    assert key != without
    given.rename(place.root / "data" / "other.pth")
    begin(place, "r2", f"other.pth#sha256={digest}")
    assert stage(place, "train")["key"] == key
    torch_file(place.root / "data" / "other.pth", {"epoch": 4})
    begin(place, "r3", "other.pth")
    assert stage(place, "train")["key"] != key
    assert begin(place, "r4", f"other.pth#sha256={'0' * 64}") == ""
    assert f"not {'0' * 64}, which is named for it" in place.error
    assert [p.name for p in (place.workspace / "starts").glob("*/*")] == ["model.pth", "model.pth"]


def test_files_go_that_no_kept_run_begins_with(place: Place) -> None:
    for name in ("a", "b"):
        torch_file(place.root / "data" / f"{name}.pth", {"name": name})
        begin(place, name, f"{name}.pth")
    folder = place.workspace / "starts"
    kept = str(stage(place, "train")["files"]["train.yaml"])
    (place.workspace / "runs" / "a" / "plan.json").unlink()
    for path in folder.iterdir():
        os.utime(path, (0, 0))
    found = collect.collect(place.workspace, collect.Rules())
    assert [item.kind for item in found.items] == ["weights"]
    assert [path.name in kept for path in folder.iterdir()] == [True]


def test_a_file_outside_of_the_data_roots_is_refused(place: Place) -> None:
    torch_file(place.root / "mine.pth")
    (place.root / "data" / "link.pth").symlink_to(place.root / "mine.pth")
    for value in ("../mine.pth", str(place.root / "mine.pth"), "link.pth"):
        assert begin(place, "r1", value) == ""
        assert f"stages.train.start_from {value!r} is outside the allowed data roots" in place.error
    assert place.error.endswith(f"start with REFIT_DATA_ROOTS={place.root / 'data'}:{place.root / 'data'}")
    assert begin(place, "r1", "none.pth") == ""
    assert place.error == "stages.train.start_from: none.pth: there is no such file"


def test_a_run_that_is_not_there_is_answered_with_those_that_trained(place: Place) -> None:
    assert begin(place, "r2", "resume:nope") == ""
    assert place.error.endswith("there is no run 'nope' of this pipeline; none has a train yet")
    for run in ("r1", "r2", "r3"):
        assert place.bind(run) == 0
        if run != "r2":
            out = Path(stage(place, "train")["paths"]["stage"]) / "out"
            out.mkdir(parents=True)
            (out / "checkpoint.pth").write_bytes(b"epoch 1")
            os.utime(place.workspace / "runs" / run, (int(run[1]), int(run[1])))
    assert begin(place, "r4", "resume:nope") == ""
    assert place.error.endswith("there is no run 'nope' of this pipeline; the last ones with a train are r3, r1")


def test_the_weights_of_another_run(place: Place) -> None:
    assert begin(place, "r2", "run:r1") == ""
    assert "there is no run 'r1' of this pipeline" in place.error
    assert place.bind("r1") == 0
    assert begin(place, "r2", "run:r1") == ""
    assert "the train of run r1 ended as not finished; `resume:r1` goes on with it" in place.error
    assert place.bind("r1") == 0
    folder = place.finish("train")
    digest = json.loads((folder / "result.json").read_text())["outputs"]["model"]["sha256"]
    spec = begin(place, "r2", "run:r1", train_learning_rate=0.001)
    assert f"starts/{digest}/model.pth" in spec
    begun = place.plan["start_from"]["train"]
    assert (begun["from"], begun["run"]) == ("the weights of run r1, stage train", "r1")
    assert "train" not in place.plan["reused"]
    (folder / "out" / "model.pth").write_text("changed")
    assert begin(place, "r3", "run:r1") == ""
    assert "cannot be begun with: model has another size" in place.error


def test_the_champion_teaches_its_successor_once(place: Place) -> None:
    assert "start_from: null" in begin(place, "r1", "champion")
    first = place.finish("train")
    serve(place, "r1")
    # Nothing is new: what serves was made of this data, in this way.
    begin(place, "r2", "champion")
    assert place.plan["reused"]["train"] == str(first)
    spec = begin(place, "r3", "champion", train_learning_rate=0.001)
    digest = hashlib.sha256((first / "out" / "model.pth").read_bytes()).hexdigest()
    assert f"starts/{digest}/model.pth" in spec
    third = place.finish("train")
    serve(place, "r3", version=2)
    begin(place, "r4", "champion", train_learning_rate=0.001)
    assert place.plan["reused"]["train"] == str(third)


def test_asked_for_the_champion_a_first_time_it_trains(place: Place) -> None:
    assert place.bind("r1") == 0
    place.finish("train")
    serve(place, "r1")
    assert "starts/" in begin(place, "r2", "champion")
    assert "train" not in place.plan["reused"]
    serve(place, "gone", version=2)
    assert begin(place, "r3", "champion") == ""
    assert "its run gone is gone with its checkpoint; name another run" in place.error


def stopped(place: Place, run: str) -> Path:
    """A training that was stopped after an epoch."""
    assert place.bind(run) == 0
    folder = Path(stage(place, "train")["paths"]["stage"])
    (folder / "out" / "tensorboard").mkdir(parents=True)
    (folder / "out" / "checkpoint.pth").write_bytes(b"epoch 1")
    (folder / "out" / "latest.pth").symlink_to("checkpoint.pth")
    (folder / "out" / "foreign.pth").symlink_to("/etc/hostname")
    (folder / "out" / "gone.pth").symlink_to("checkpoint_0.pth")
    (folder / "request.json").write_text(json.dumps(stage(place, "train")))
    return folder


def test_a_training_is_gone_on_with_in_a_folder_of_its_own(place: Place) -> None:
    old = stopped(place, "r1")
    spec = begin(place, "r2", "resume:r1", train_epochs=9)
    assert "epochs: 9" in spec
    assert "resume: true" in spec
    assert "start_from: null" in spec
    new = Path(stage(place, "train")["paths"]["stage"])
    assert (new / "out" / "checkpoint.pth").read_bytes() == b"epoch 1"
    latest = new / "out" / "latest.pth"
    assert (latest.read_bytes(), latest.is_symlink()) == (b"epoch 1", False), "the old one is not written to"
    assert sorted(p.name for p in (new / "out").iterdir()) == ["checkpoint.pth", "latest.pth"], "and no stray link"
    assert json.loads((new / "request.json").read_text())["key"] == stage(place, "train")["key"]
    # It goes on: what bind is told again leaves it alone, and the old one has not changed.
    (new / "out" / "checkpoint.pth").write_bytes(b"epoch 5")
    assert place.bind("r2", conf={"train_start_from": "resume:r1", "train_epochs": 9}) == 0
    assert (new / "out" / "checkpoint.pth").read_bytes() == b"epoch 5"
    assert (old / "out" / "checkpoint.pth").read_bytes() == b"epoch 1"
    # Of other parameters it begins where the old one was left; what lay there is put aside.
    begin(place, "r2", "resume:r1", train_epochs=11)
    assert (new / "out" / "checkpoint.pth").read_bytes() == b"epoch 1"
    assert (new.with_name(f"{new.name}.1") / "out" / "checkpoint.pth").read_bytes() == b"epoch 5"
    key = stage(place, "train")["key"]
    (old / "out" / "checkpoint.pth").write_bytes(b"epoch 2")
    begin(place, "r3", "resume:r1", train_epochs=11)
    assert stage(place, "train")["key"] != key


def test_a_training_that_cannot_be_gone_on_with(place: Place) -> None:
    old = stopped(place, "r1")
    lock = os.open(old.with_name(f".{old.name}.lock"), os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert begin(place, "r2", "resume:r1") == ""
    assert "run r1 is at work on train; stop it first: mark its task as failed" in place.error
    os.close(lock)
    (old / "out" / "checkpoint.pth").unlink()
    assert begin(place, "r2", "resume:r1") == ""
    assert "the train of run r1 has left no checkpoint" in place.error


def test_a_dry_run_lays_nothing(place: Place) -> None:
    stopped(place, "r1")
    begin(place, "r2", "resume:r1", dry_run=True)
    assert not Path(stage(place, "train")["paths"]["stage"]).exists()


def test_a_run_is_found_by_airflows_id_of_it(place: Place) -> None:
    run_id = "manual__2026-11-20T19:10:00+00:00"
    stopped(place, run_id)
    assert "resume: true" in begin(place, "r2", f"resume:{run_id}")
    assert starts.parse(f"resume:{run_id}").what == run_id


@needs_cpu
def test_a_real_training_is_stopped_and_gone_on_with_under_another_rate(place: Place, tmp_path: Path) -> None:
    text = PIPELINE.replace("{input_width: 320, input_height: 192}", "{width: 0.5, input_width: 64, input_height: 64}")
    file = tmp_path / "mine.yaml"
    file.write_text(text + "release: false\n")
    envs = os.environ.get("REFIT_ENVS") or str(Path(sys.executable).parents[2])
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "REFIT_ENVS": envs}

    def run(name: str, *params: str) -> str:
        words = [word for param in params for word in ("--param", param)]
        command = [sys.executable, "-m", "refit.cli", "run", str(file), "--until", "train", "--run-id", name, *words]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def files() -> dict[str, bytes]:
        found = (place.workspace / "runs/first").glob("*-train/out/*")
        return {path.name: path.read_bytes() for path in found if path.is_file()}

    run("first")
    old = files()
    told = run("second", "train_start_from=resume:first", "train_epochs=3", "train_learning_rate=0.0005")
    assert "train begins with the train of run first, gone on with" in told
    assert "epoch 2/3" not in told
    assert "epoch 3/3" in told
    assert old == files()
