"""`refit run` with what a user gets wrong: one clear error, the documented exit code, nothing half-written.

docs/errors.md has the same table, with what Airflow shows.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from refit.cli import BAD_INPUT, FAILED, GOOD, _alone, main
from refit.embedded.processes import descendants
from refit.runtime.local import REPOSITORY, EnvironmentMissing, interpreter
from tests.data.helpers import CLASSES, encoded, kitti_line, kitti_set

TEXT = f"""dataset:
  source: inbox/mine
  classes: [{", ".join(CLASSES)}]
toolkit: cpu
network: {{input_width: 64, input_height: 64}}
stages:
  train: {{epochs: 30, batch_size: 4, evaluate_every: 30}}
release: false
"""


def has(environment: str) -> bool:
    try:
        return interpreter(environment).exists()
    except EnvironmentMissing:
        return False


pytestmark = pytest.mark.skipif(not has("tools"), reason="there is no tools environment: make setup")
needs_cpu = pytest.mark.skipif(not has("cpu"), reason="there is no cpu environment: make setup")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with mine.yaml and a good data set in the pipeline's inbox; the workspace is not there yet."""
    monkeypatch.setenv("REFIT_ENVS", str(interpreter("tools").parents[2]))
    monkeypatch.setenv("REFIT_HOME", str(tmp_path / "home"))
    for name in ("REFIT_WORKSPACE", "REFIT_DATA_ROOTS", "REFIT_CLUSTERS"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "mine.yaml").write_text(TEXT)
    kitti_set(tmp_path / "home" / "data" / "inbox" / "mine")
    return tmp_path


def left(here: Path) -> set[str]:
    """What a run has made that a later one could mistake for something whole."""
    workspace = here / "home" / "workspace"
    made = [p for p in workspace.rglob("*") if p.is_file() and not p.is_relative_to(workspace / "published")]
    notes = {"log.txt", "bind.yaml", "status.json", "request.json", "result.json", "arrival.json", "remembered"}
    return {p.name for p in made if p.name not in notes and p.suffix != ".lock" and p.parent.name != "refused"}


@pytest.mark.parametrize(
    ("good", "bad", "said"),
    [
        ("epochs:", "epoch:", "mine.yaml:7: stages.train.epoch: unknown key; did you mean 'epochs'?"),
        ("epochs: 30", "epochs: many", "mine.yaml:7: stages.train.epochs: Input should be a valid integer"),
        (
            "epochs: 30",
            "epochs: 0",
            "mine.yaml:7: stages.train.epochs: Input should be greater than or equal to 1 (it is 0)",
        ),
    ],
)
def test_a_bad_file_starts_nothing(
    here: Path, capsys: pytest.CaptureFixture[str], good: str, bad: str, said: str
) -> None:
    (here / "mine.yaml").write_text(TEXT.replace(good, bad))
    assert main(["run", str(here / "mine.yaml")]) == BAD_INPUT
    captured = capsys.readouterr()
    assert captured.err.count("error: ") == 1
    assert said in captured.err
    assert not captured.out
    assert not (here / "home" / "workspace").exists()


def unknown_class(data: Path) -> None:
    (data / "labels" / "004.txt").write_text(kitti_line("catt") + "\n")


def shifted_column(data: Path) -> None:
    (data / "labels" / "004.txt").write_text(kitti_line(y2=0) + "\n")


def no_objects(data: Path) -> None:
    for label in (data / "labels").iterdir():
        label.write_text("")


def truncated(data: Path) -> None:
    (data / "images" / "004.jpg").write_bytes(encoded(4)[:-400])


def no_label(data: Path) -> None:
    (data / "labels" / "004.txt").unlink()


def no_image(data: Path) -> None:
    (data / "images" / "004.jpg").unlink()


def one_image(data: Path) -> None:
    for file in data.rglob("*.*"):
        if file.stem != "004":
            file.unlink()


def nothing(data: Path) -> None:
    for file in data.rglob("*.*"):
        file.unlink()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (unknown_class, "labels/004.txt:1: unknown class 'catt'"),
        (shifted_column, "labels/004.txt:1: y2 (column 8) is 0 in all 1 objects: a column is shifted"),
        (no_objects, "zero objects in 12 images"),
        (truncated, "images/004.jpg: the JPEG data ends too early"),
        (no_label, "images/004.jpg: has no label file labels/004.txt"),
        (no_image, "labels/004.txt: its image is missing from images"),
        (one_image, "only one usable image: it cannot be split"),
        (nothing, "there is no data"),
    ],
)
def test_bad_data_stops_the_run_before_there_is_a_plan(
    here: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], None], said: str
) -> None:
    spoil(here / "home" / "data" / "inbox" / "mine")
    assert main(["run", str(here / "mine.yaml")]) == BAD_INPUT
    err = capsys.readouterr().err
    assert err.count("error: ") == 1
    assert err.startswith("error: bind: bad_data: ")
    assert said in err
    assert left(here) == set()


def test_a_bad_param_is_told_with_the_nearest(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(here / "mine.yaml"), "--param", "train_epoch=3"]) == BAD_INPUT
    assert "unknown params: 'train_epoch'; did you mean 'train_epochs'?" in capsys.readouterr().err
    assert left(here) == set()


def test_two_runs_at_once(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with _alone(here / "home" / "workspace" / "mine"):
        assert main(["run", str(here / "mine.yaml")]) == FAILED
    assert f"another `refit run` of mine is going on (process {os.getpid()})" in capsys.readouterr().err
    assert not (here / "home" / "workspace" / "mine" / "runs").exists()


@needs_cpu
def test_a_killed_training_goes_on(here: Path) -> None:
    command = [sys.executable, "-m", "refit.cli", "run", str(here / "mine.yaml"), "--until", "train"]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    first = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert first.stdout is not None
    assert first.stderr is not None
    for line in first.stdout:
        if line.startswith("epoch 2/"):
            break
    for pid in descendants(first.pid):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"refit.cpu" in words and b"train" in words:
            os.kill(pid, signal.SIGKILL)
    out, err = first.communicate(timeout=120)
    assert first.returncode == FAILED, out
    assert "error: train: toolkit_error: the command was ended by SIGKILL, not by Refit" in err
    again = err.split("the same command with --run-id ")[1].split()[0]
    second = subprocess.run(
        [*command, "--run-id", again], check=False, env=env, capture_output=True, text=True, timeout=240
    )
    assert second.returncode == GOOD, second.stderr
    assert "train: attempt 2, goes on from attempt 1" in second.stdout
    assert "epoch 1/30" not in second.stdout
    assert "epoch 30/30" in second.stdout


def test_ctrl_c_while_it_is_imported_is_quiet() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "refit", "status"]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    run = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    assert run.stderr is not None
    imported = iter(run.stderr.readline, "")
    assert any(line.endswith(" yaml\n") for line in imported)  # refit.cli's first one
    os.kill(run.pid, signal.SIGINT)
    rest = run.stderr.read()
    assert (run.wait(timeout=60), "refit.cli\n" in rest) == (130, False)
    assert "KeyboardInterrupt" not in rest


def test_ctrl_c_says_how_to_go_on(here: Path) -> None:
    command = [sys.executable, "-m", "refit.cli", "run", str(here / "mine.yaml")]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    run = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert run.stdout is not None
    assert run.stdout.readline() == "--- bind\n"
    until = time.monotonic() + 60
    while not descendants(run.pid) and time.monotonic() < until:
        time.sleep(0.02)
    os.kill(run.pid, signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "--run-id cli__" in err
    assert "error: stopped by Ctrl-C; what was finished is kept and will be reused" in err
