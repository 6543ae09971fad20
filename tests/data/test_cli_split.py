"""`refit dataset split` and `refit dataset diff`: what a person, a script and an exit code see."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.data.helpers import CLASSES, SETTINGS, encoded, kitti_line, kitti_set  # isort: skip

from refit.data.cli import main
from refit.data.ingest import ingest
from refit.data.settings import DatasetSettings


def test_a_split_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = kitti_set(tmp_path / "set", 30)
    assert main(["split", str(root), "--val", "0.3"]) == 0
    out = capsys.readouterr().out
    assert "train: 21 images (70.0%), objects: car 7, cat 7, dog 7\n" in out
    assert "val: 9 images (30.0%), objects: car 3, cat 3, dog 3\n" in out


def test_the_written_lists_give_the_same_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = kitti_set(tmp_path / "set", 30)
    command = ["split", str(root), "--seed", "3", "--lists", str(root / "lists")]
    for kind, suffix in (("images", "jpg"), ("labels", "txt")):
        (root / kind / "sub").mkdir()
        shutil.move(root / kind / f"004.{suffix}", root / kind / "sub")
    assert main([*command, "--json"]) == 0
    parts = json.loads(capsys.readouterr().out)["images"]
    assert set(parts.values()) == {"train", "val"}
    lists = {"train": "lists/train.txt", "val": "lists/val.txt"}
    taken = ingest(root, DatasetSettings(classes=list(CLASSES), split={"lists": lists}), tmp_path / "ws")
    rows = [json.loads(line) for line in (taken.path / "annotations.jsonl").read_text().splitlines()]
    assert {row.get("name", row["file"]): row["split"] for row in rows} == parts
    assert main(command) == 2
    assert "train.txt is there already" in capsys.readouterr().out


def test_groups_are_kept_and_what_cannot_be_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = kitti_set(tmp_path / "set", 30)
    assert main(["split", str(root), "--group", r"name_prefix=(\d\d)", "--json"]) == 0
    splits = json.loads(capsys.readouterr().out)["splits"]
    assert sorted([*splits["train"]["groups"], *splits["val"]["groups"]]) == ["00", "01", "02"]
    assert main(["split", str(root), "--group", "folder"]) == 2
    out = capsys.readouterr().out
    assert "error: group '.' holds 30 of 30 images: no split of 0.2 can be had; group by something finer" in out
    assert main(["split", str(root), "--group", "camera", "--val", "2"]) == 2
    out = capsys.readouterr().out
    assert "error: --val: Input should be less than 1\nerror: --group: Input should be 'folder' or 'tag'" in out


def test_a_bad_data_set_is_not_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = kitti_set(tmp_path / "set")
    (root / "images/004.jpg").write_bytes(encoded(4)[:500])
    assert main(["split", str(root), "--lists", str(tmp_path / "out")]) == 2
    assert "error: images/004.jpg: " in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert main(["split", str(root), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["counts"] == {"image_truncated": 1}


def test_a_snapshot_and_a_folder_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = kitti_set(tmp_path / "set")
    taken = ingest(root, SETTINGS, tmp_path / "ws")
    assert main(["diff", str(taken.path), str(root), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["counts"] == {"added": 0, "changed": 0, "removed": 0, "unchanged": 12}
    (root / "labels/001.txt").write_text(kitti_line("dog"))
    (root / "images/002.jpg").write_bytes(encoded(99))
    for kind, suffix in (("images", "jpg"), ("labels", "txt")):
        (root / kind / f"000.{suffix}").unlink()
        (root / kind / f"003.{suffix}").rename(root / kind / f"x.{suffix}")
    (root / "images/new.jpg").write_bytes(encoded(100))
    (root / "labels/new.txt").write_text("")
    assert main(["diff", str(taken.path), str(root)]) == 0
    out = capsys.readouterr().out
    for line in (
        "added: 1 images: new.jpg",
        "removed: 1 images: 000.jpg",
        "other picture: 1 images: 002.jpg",
        "other labels: 1 images: 001.jpg",
        "renamed: 1 images: 003.jpg -> x.jpg",
        "unchanged: 8 images",
        "objects of car: 4 -> 3 (-1)",
        "objects of cat: 4 -> 3 (-1)",
        "objects of dog: 4 -> 5 (+1)",
    ):
        assert f"{line}\n" in out or out.endswith(f"{line}\n")
    assert "from" not in out  # the folder was not split


def test_two_snapshots_tell_what_changed_sides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = kitti_set(tmp_path / "set", 30)
    other = SETTINGS.model_copy(update={"split": SETTINGS.split.model_copy(update={"val": 0.4, "evaluation": "fresh"})})
    paths = [str(ingest(root, s, tmp_path / "ws").path) for s in (SETTINGS, other)]
    assert main(["diff", *paths, "--json"]) == 0
    moved = {(m["from"], m["to"]): m["images"] for m in json.loads(capsys.readouterr().out)["moved"]}
    assert moved["train", "val"] - moved.get(("val", "train"), 0) == 6


def test_what_cannot_be_compared_is_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = kitti_set(tmp_path / "set")
    taken = ingest(root, SETTINGS, tmp_path / "ws")
    assert main(["diff", str(root), str(tmp_path / "none")]) == 2
    assert "there is no such folder" in capsys.readouterr().out
    (taken.path / "annotations.jsonl").write_text("")
    assert main(["diff", str(root), str(taken.path)]) == 2
    assert "its labels do not give its fingerprint" in capsys.readouterr().out
