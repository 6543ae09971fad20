"""Groups by folder, name, tag and table: named right, and what is wrong with them said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.data.helpers import CLASSES, encoded, kitti_line, kitti_set  # isort: skip

from pydantic import ValidationError

from refit.data import groups
from refit.data.checks import Classes
from refit.data.examine import Examination, examine
from refit.data.ingest import divide
from refit.data.settings import DatasetSettings, Split


def cameras(root: Path) -> Path:
    """Four folders with five images each; the names begin with the day."""
    kitti_set(root, 0)
    for i in range(20):
        for kind, name, data in (
            ("images", f"cam{i // 5}/day{i % 2}_{i:03}.jpg", encoded(i)),
            ("labels", f"cam{i // 5}/day{i % 2}_{i:03}.txt", kitti_line(CLASSES[i % 3]).encode()),
        ):
            (root / kind / name).parent.mkdir(exist_ok=True)
            (root / kind / name).write_bytes(data)
    return root


def examined(root: Path) -> Examination:
    return examine(root, classes=Classes(CLASSES), leave=["groups.csv"])


def assigned(found: Examination, by: Any) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    samples, faults = groups.assign(found, Split.model_validate({"group": by}))
    return {s.name: s.groups for s in samples}, [f"{f.code} {f.file}:{f.line}" for f in faults]


def test_by_folder_and_by_name(tmp_path: Path) -> None:
    found = examined(cameras(tmp_path / "set"))
    named, faults = assigned(found, "folder")
    assert (named["cam2/day0_010.jpg"], faults) == (("cam2",), [])
    named, faults = assigned(found, {"name_prefix": "(day[01])_"})
    assert (named["cam2/day0_010.jpg"], faults) == (("day0",), [])
    named, faults = assigned(found, {"name_prefix": "day0_(0[01])"})
    assert named["cam0/day1_001.jpg"] == ()
    assert faults == ["not_in_group :0"]
    assert assigned(found, {"name_prefix": "(camera)"})[1] == ["group_missing :0"]


def test_by_tag(tmp_path: Path) -> None:
    found = examined(kitti_set(tmp_path / "set", 4))
    tags = (("camera:1", "night"), ("camera:2", "night"), ("camera:1",), ("day",))
    found.samples = [replace(s, tags=t) for s, t in zip(found.samples, tags, strict=True)]
    named, _ = assigned(found, "tag")
    assert list(named.values()) == [("camera:1", "night"), ("camera:2", "night"), ("camera:1",), ("day",)]
    named, faults = assigned(found, {"tag": "camera:(.*)"})
    assert list(named.values()) == [("1",), ("2",), ("1",), ()]
    assert faults == ["not_in_group :0"]
    samples, _ = groups.assign(found, Split(group="tag"))
    assert [len(b.files) for b in groups.blocks(samples, 1)] == [3, 1]


def test_by_a_table(tmp_path: Path) -> None:
    root = kitti_set(tmp_path / "set", 4)
    (root / "groups.csv").write_text(
        'Image,Group\n000.jpg,"a, b"\nimages/001.jpg,c\n./002,c\n\nelsewhere.jpg,d\nonly-a-name\n'
    )
    named, faults = assigned(examined(root), {"file": "./groups.csv"})
    assert list(named.values()) == [("a, b",), ("c",), ("c",), ()]
    assert faults == ["group_missing groups.csv:7", "group_unknown_name groups.csv:0", "not_in_group :0"]
    assert assigned(examined(root), {"file": "group.csv"})[1] == ["group_missing group.csv:0", "group_missing :0"]
    (root / "groups.csv").write_bytes(b"\xff\xfe")
    assert assigned(examined(root), {"file": "groups.csv"})[1][0] == "group_missing groups.csv:0"


@pytest.mark.parametrize("by", ["folder", {"name_prefix": "(day[01])_"}, {"file": "groups.csv"}])
def test_no_group_is_on_both_sides(tmp_path: Path, by: Any) -> None:
    root = cameras(tmp_path / "set")
    (root / "groups.csv").write_text("".join(f"cam{i // 5}/day{i % 2}_{i:03}.jpg,g{i % 7}\n" for i in range(20)))
    settings = DatasetSettings.model_validate({"classes": list(CLASSES), "split": {"group": by, "val": 0.25}})
    divided = divide(examined(root), settings)
    sides: dict[str, set[str]] = {}
    for s in divided.samples:
        sides.setdefault(s.groups[0], set()).add(divided.parts[s.file])
    assert all(len(parts) == 1 for parts in sides.values())
    assert set(divided.parts.values()) == {"train", "val"}
    assert not [f for f in divided.faults if f.severity == "error"]


def test_folders_of_one_size_give_the_share_that_was_asked_for(tmp_path: Path) -> None:
    settings = DatasetSettings(classes=list(CLASSES), split=Split(group="folder", val=0.25))
    divided = divide(examined(cameras(tmp_path / "set")), settings)
    assert sum(part == "val" for part in divided.parts.values()) == 5


def test_given_lists_that_part_a_group_are_told(tmp_path: Path) -> None:
    root = cameras(tmp_path / "set")
    names = sorted(s.name for s in examined(root).samples)
    (root / "train.txt").write_text("\n".join(names[:12]))
    (root / "val.txt").write_text("\n".join(names[12:]))
    lists = {"train": "train.txt", "val": "val.txt"}
    divided = divide(examined(root), DatasetSettings(classes=list(CLASSES), split=Split(group="folder", lists=lists)))
    assert [(f.code, f.value) for f in divided.faults if f.severity == "warning"] == [("group_across_splits", "cam2")]


@pytest.mark.parametrize(
    ("by", "message"),
    [
        ({"name_prefix": "cam"}, "needs one group in brackets"),
        ({"name_prefix": "(cam"}, "is no regular expression"),
        ({"tag": "(a)(b)"}, "needs one group in brackets"),
        ({"tag": "(a)", "file": "groups.csv"}, "name one of name_prefix, tag and file"),
        ({}, "name one of name_prefix, tag and file"),
        ("camera", "'folder' or 'tag'"),
    ],
)
def test_settings_that_name_no_group(by: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Split.model_validate({"group": by})
