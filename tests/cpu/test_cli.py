"""`python -m refit.cpu`: help that says all, exit codes that tell failures apart, no torch where none is needed."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from refit.command import load
from refit.cpu import cli
from refit.specs import Spec
from tests.cpu.conftest import SnapshotBuilder, status_lines


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """`cli.run` takes SIGTERM for itself; give it back to pytest."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("action", cli.ACTIONS)
def test_help_lists_every_key_of_the_spec(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.run([action, "--help"])
    words = capsys.readouterr().out
    model: type[Spec] = load(cli.ACTIONS[action].spec)
    for name in model.model_fields:
        assert f"  {name}: " in words
    assert action == "inference" or "seed: integer, >= 0, <= 2147483647, default 42" in words


def test_help_and_conversion_import_no_torch(snapshot: SnapshotBuilder, tmp_path: Path) -> None:
    snapshot.add_scene(1, "train")
    (tmp_path / "spec.yaml").write_text(f"snapshot: {snapshot.save()}\n")
    code = f"""
import sys
from refit.cpu.cli import run
try:
    run(["augment", "--help"])
except SystemExit:
    pass
assert run(["dataset_convert", "-e", {str(tmp_path / "spec.yaml")!r}, "-r", {str(tmp_path / "out")!r}]) == 0
print(sorted({{"torch", "albumentations", "onnxruntime"}} & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "[]")


def test_a_good_run_ends_with_success(snapshot: SnapshotBuilder, tmp_path: Path) -> None:
    snapshot.add_scene(1, "train")
    (tmp_path / "spec.yaml").write_text(f"snapshot: {snapshot.save()}\n")
    command = [sys.executable, "-m", "refit.cpu", "dataset_convert"]
    command += ["-e", str(tmp_path / "spec.yaml"), "-r", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = status_lines(tmp_path / "out" / "status.json")
    assert [line["status"] for line in lines] == ["STARTED", "RUNNING", "SUCCESS"]


Failure = Callable[[str, str], tuple[int, str]]


@pytest.fixture
def failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Failure:
    """Run an action that must fail; gives exit code and message, which must stand on stderr and in status.json."""

    def run(action: str, spec: str) -> tuple[int, str]:
        (tmp_path / "spec.yaml").write_text(spec)
        code = cli.run([action, "-e", str(tmp_path / "spec.yaml"), "-r", str(tmp_path / "out")])
        last = status_lines(tmp_path / "out" / "status.json")[-1]
        assert last["status"] == "FAILURE"
        told = [t.removeprefix("error: ") for t in capsys.readouterr().err.splitlines() if t.startswith("error: ")]
        assert told == last["message"].splitlines()
        return code, last["message"]

    return run


def test_a_bad_spec_exits_2(failure: Failure) -> None:
    code, message = failure("dataset_convert", "snapshot: x\nshard: 2\nseed: -1\n")
    assert code == 2
    first, second = message.splitlines()
    assert first.endswith("spec.yaml:2: shard: unknown key; did you mean 'shards'?")
    assert "spec.yaml:3: seed: " in second
    assert failure("dataset_convert", "- 1\n")[0] == 2


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (
            "{name: RandomRotate9}",
            "4: transforms[1].name: 'RandomRotate9' is no transform of albumentations; did you mean",
        ),
        ("{name: CoarseDropout}", "4: transforms[1].name: CoarseDropout is not offered"),
        (
            "{name: GaussianBlur, args: {blur_limt: 3}}",
            "4: transforms[1]: GaussianBlur has no argument 'blur_limt'; did you",
        ),
        ("{name: GaussianBlur, args: {sigma_limit: -1}}", "4: transforms[1]: GaussianBlur: sigma_limit: "),
        ("{name: Resize}", "4: transforms[1]: Resize: height: Field required; width: Field required"),
        ("{name: FDA}", "4: transforms[1]: FDA is not offered: it needs fda_metadata"),
    ],
)
def test_a_bad_transform_is_a_bad_spec(failure: Failure, transform: str, message: str) -> None:
    code, found = failure("augment", f"snapshot: x\ntransforms:\n- {{name: HorizontalFlip}}\n- {transform}\n")
    assert code == 2
    assert f"spec.yaml:{message}" in found


def test_bad_data_exits_3(failure: Failure) -> None:
    for action, spec in (("dataset_convert", "snapshot: nowhere\n"), ("augment", "snapshot: nowhere\n")):
        code, message = failure(action, spec)
        assert code == 3
        assert message.startswith("nowhere/dataset.json: cannot be read")


def test_a_folder_that_cannot_be_written_exits_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert cli.run(["dataset_convert", "-e", "x.yaml", "-r", str(tmp_path / "file" / "out")]) == 1
    assert "cannot write there" in capsys.readouterr().err
