"""`python -m refit.data`: what a person, a script and an exit code see."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.helpers import encoded, kitti_line, kitti_set  # isort: skip

from refit import files
from refit.cli import main as refit_command
from refit.data.cli import main
from refit.data.formats import READERS, WRITERS
from refit.data.settings import FORMATS


def test_good(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = kitti_set(tmp_path / "set")
    assert main(["check", str(root)]) == 0
    out = capsys.readouterr().out
    assert "kitti, 12 usable images, 12 objects (car 4, cat 4, dog 4)" in out
    assert out.endswith("good\n")


def test_bad_is_2_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = kitti_set(tmp_path / "set")
    (root / "labels/003.txt").write_text(f"{kitti_line()}\n{kitti_line('horse')}\n")
    (root / "images/004.jpg").write_bytes(encoded(4)[:500])
    assert main(["check", str(root), "--classes", "car,cat, dog"]) == 2
    out = capsys.readouterr().out
    assert "error: 1 x image_truncated, 1 objects left out" in out
    assert "labels/003.txt:2: unknown class 'horse'; add it to dataset.classes" in out
    assert out.endswith("bad: a run would stop here\n")


def test_json_holds_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = kitti_set(tmp_path / "set", lines=[kitti_line(x1=30, x2=3)] * 2 + [kitti_line()])
    assert main(["check", str(root), "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert (found["good"], found["format"], found["images"], found["declared_objects"]) == (False, "kitti", 12, 36)
    assert found["counts"] == {"too_many_bad_labels": 1, "inverted": 24}
    assert found["faults"][1] == {
        "code": "inverted",
        "file": "labels/000.txt",
        "message": "the box car 30 6 3 30 is inverted (x2 < x1)",
        "line": 1,
        "value": "car 30 6 3 30",
        "advice": "the left upper corner comes first: x1 < x2 and y1 < y2",
        "severity": "warning",
        "objects": 1,
    }
    assert main(["check", str(tmp_path / "none"), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["counts"] == {"source_missing": 1}


def test_names_cannot_play_with_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = kitti_set(tmp_path / "set")
    (root / "labels" / "a\x1b[2J\ngood\udce9.txt").write_text("")
    assert main(["check", str(root)]) == 2
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "good" not in out.splitlines()


def test_synthetic(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "refit.data", "synthetic", str(tmp_path / "demo")]
    counts = ["--train", "3", "--val", "2", "--shifted", "1"]
    done = subprocess.run([*command, *counts], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(list((tmp_path / "demo/images").iterdir())) == 6
    again = subprocess.run([*command, *counts], check=False, capture_output=True, text=True)
    assert again.returncode == 2
    assert again.stderr.startswith("error: ")
    assert "not empty" in again.stderr
    assert main(["check", str(tmp_path / "demo")]) == 0


def test_wrong_use_is_2() -> None:
    with pytest.raises(SystemExit) as caught:
        main(["chekc"])
    assert caught.value.code == 2


@pytest.mark.parametrize("share", ["7", "-0.1", "nan", "some"])
def test_a_share_lies_between_0_and_1(tmp_path: Path, share: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["check", str(tmp_path), "--max-bad-labels", share])
    assert caught.value.code == 2
    assert share in capsys.readouterr().err


@pytest.mark.parametrize("command", [["split", "--lists"], ["report", "-o"], ["snapshot"]])
def test_what_cannot_be_written_is_1_and_one_line(
    tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    root = kitti_set(tmp_path / "set")
    (tmp_path / "file").touch()
    name, *options = command
    more = ["--classes", "car,cat,dog"] if name == "snapshot" else []
    assert refit_command(["dataset", name, str(root), *options, str(tmp_path / "file/out"), *more]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert str(tmp_path / "file") in err
    assert err.count("\n") == 1


def test_a_list_does_not_come_without_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, text: str) -> None:
        if path.name == "val.txt":
            raise OSError(errno.ENOSPC, "No space left on device")
        path.write_text(text)

    monkeypatch.setattr(files, "write_text", full)
    assert main(["split", str(kitti_set(tmp_path / "set")), "--lists", str(tmp_path / "lists")]) == 1
    assert list((tmp_path / "lists").iterdir()) == []


def test_a_folder_that_is_passed_over_is_told_where_nothing_is_recognised(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = kitti_set(tmp_path / "set")
    (root / "labels").rename(tmp_path / "elsewhere")
    (root / "labels").symlink_to(tmp_path / "elsewhere")
    assert main(["check", str(root)]) == 2
    out = capsys.readouterr().out
    assert "1 x not_recognised" in out
    assert "labels: a link out of the data set" in out


def test_building_the_parsers_needs_no_numpy() -> None:
    code = "import sys, refit.cli; refit.cli._parser(); sys.exit('numpy' in sys.modules or 'cv2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_each_format_of_a_pipeline_file_is_read_and_written() -> None:
    assert set(FORMATS) == set(READERS) == set(WRITERS)


def test_snapshot_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, workspace = kitti_set(tmp_path / "set"), tmp_path / "ws/plates"
    assert main(["snapshot", str(root), str(workspace), "--classes", "car, cat,dog"]) == 0
    out, err = capsys.readouterr()
    path = workspace / "datasets" / out.strip()
    assert (path / "dataset.json").exists()
    assert f"made: {path}" in err
    file = tmp_path / "plates.yaml"
    file.write_text(f"dataset:\n  source: {root}\n  classes: [car, cat, dog]\ntoolkit: cpu\n")
    assert main(["snapshot", str(root), str(workspace), "--pipeline", str(file), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["path"], made["reused"], made["objects"]) == (str(path), True, {"car": 4, "cat": 4, "dog": 4})


def test_snapshot_by_hand_says_where_append_has_nothing_to_add_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, file = kitti_set(tmp_path / "set", images=3), tmp_path / "plates.yaml"
    file.write_text(
        f"dataset:\n  source: {root}\n  classes: [car, cat, dog]\n  mode: append\n"
        "  severity: {class_not_in_split: info}\ntoolkit: cpu\n"
    )
    assert main(["snapshot", str(root), str(tmp_path / "ws"), "--pipeline", str(file)]) == 0
    assert f"no run has taken data into {tmp_path / 'ws'}, SRC is all of it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--classes", "car"], "2 x unknown_class"),
        (["--classes", "car,car"], "error: classes holds car twice\n"),
        (["--classes", ","], "error: --classes: List should have at least 1 item"),
        (["--pipeline", "none.yaml"], "none.yaml"),
    ],
)
def test_snapshot_of_what_cannot_be_taken(tmp_path: Path, arguments, says: str, capsys) -> None:
    root = kitti_set(tmp_path / "set", images=3)
    assert main(["snapshot", str(root), str(tmp_path / "ws"), *arguments]) == 2
    assert says in capsys.readouterr().err
    assert not list((tmp_path / "ws").glob("datasets/[0-9a-f]*"))


def test_check_without_decoding_does_not_see_what_only_a_decode_shows(tmp_path: Path) -> None:
    root = kitti_set(tmp_path / "set")
    (root / "images/004.jpg").write_bytes(encoded(4)[:-200])
    assert main(["check", str(root)]) == 2
    assert main(["check", str(root), "--no-decode"]) == 0
