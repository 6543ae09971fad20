"""From each format into each other: what both can hold comes through, and what cannot is counted."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.data.helpers import CLASSES, SETTINGS, encoded, kitti_line, kitti_set, voc_object, voc_set, voc_text  # isort: skip

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refit.data import convert
from refit.data.cli import main
from refit.data.faults import BadData
from refit.data.formats import READERS, WRITERS, recognise
from refit.data.formats.base import Record
from refit.data.ingest import ingest
from refit.data.model import Box

FLAGS = ("difficult", "truncated", "occluded")
BOTH = sorted(READERS.keys() & WRITERS.keys())
WIDTH, HEIGHT = 64, 48
NAMES = ("a.jpg", "b.jpg", "sub/a.jpg", "ü x.jpg", "train.jpg", "classes.jpg")

cents = st.integers(0, 1500).map(lambda v: v / 100)
boxes = st.builds(
    lambda cls, x, y, w, h, difficult, truncated, occluded: Box(
        cls, x, y, round(x + 1 + w, 2), round(y + 1 + h, 2), difficult, truncated, occluded
    ),
    st.sampled_from([*CLASSES, "traffic light", "Bär <&>", "no"]),
    cents,
    cents,
    cents,
    cents,
    st.booleans(),
    st.sampled_from([None, 0.0, 0.25, 1.0]),
    st.sampled_from([None, 0, 1, 3]),
)
records = st.lists(
    st.tuples(st.sampled_from(NAMES), st.sampled_from([None, "train", "val", "night"]), st.lists(boxes, max_size=4)),
    min_size=2,
    max_size=5,
    unique_by=lambda t: t[0],
).filter(lambda rows: any(row[2] for row in rows))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures of all names, each another."""
    root = tmp_path_factory.mktemp("pictures")
    for i, name in enumerate(NAMES):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(encoded(i))
    return root


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def source(pictures: Path, rows: Sequence[tuple[str, str | None, Sequence[Box]]]) -> convert.Source:
    made = [
        Record(name, WIDTH, HEIGHT, digest(pictures / name), part, list(found))
        for name, part, found in sorted(rows, key=str)
    ]
    classes = list(dict.fromkeys(["empty", *(o.cls for r in made for o in r.objects)]))
    return convert.Source("", made, classes, {name: pictures / name for name in NAMES})


def flags(box: Box) -> tuple[bool, float, int]:
    """What is marked: not known and not marked are one, since most formats do not tell them apart."""
    return box.difficult, box.truncated or 0.0, box.occluded or 0


@pytest.mark.parametrize("to", BOTH)
@pytest.mark.parametrize("via", BOTH)
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rows=records)
def test_round_trip(via: str, to: str, pictures: Path, rows: Sequence[tuple[str, str | None, Sequence[Box]]]) -> None:
    """Written in one format, read, written in another, read: boxes the same, fields lost only where it was counted."""
    before = source(pictures, rows)
    lost: dict[str, int] = {}
    now = before
    with tempfile.TemporaryDirectory() as temporary:
        for i, name in enumerate((via, to)):
            out = Path(temporary) / str(i)
            for what, n in convert.write(now, out, name).not_held.items():
                lost[what] = lost.get(what, 0) + n
            assert recognise(out) == name
            now = convert.from_folder(out)
            assert [f for f in now.faults if f.objects or f.images or f.severity != "info"] == []
        kept = {r.name: r for r in now.records}
        assert len(before.records) - len(kept) == lost.get("background", 0)
        changed = dict.fromkeys((*FLAGS, "class_name"), 0)
        for record in before.records:
            if record.name not in kept:
                assert not record.objects
                continue
            again = kept[record.name]
            assert (again.width, again.height) == (WIDTH, HEIGHT)
            assert again.part == record.part or "part" in lost
            assert [(o.x1, o.y1, o.x2, o.y2) for o in again.objects] == [
                (o.x1, o.y1, o.x2, o.y2) for o in record.objects
            ]
            for old, new in zip(record.objects, again.objects, strict=True):
                changed["class_name"] += old.cls != new.cls
                for flag, was, is_ in zip(FLAGS, flags(old), flags(new), strict=True):
                    changed[flag] += was != is_
        for what, n in changed.items():
            assert n <= lost.get(what, 0), (what, lost)


def test_coco_and_yolo_keep_the_list_of_classes(tmp_path: Path, pictures: Path) -> None:
    """Its order, and classes without objects."""
    given = source(pictures, [("a.jpg", None, [Box("b", 1, 1, 9, 9)]), ("b.jpg", None, [Box("a", 1, 1, 9, 9)])])
    assert given.classes == ["empty", "b", "a"]
    convert.write(given, tmp_path / "coco", "coco")
    convert.write(convert.from_folder(tmp_path / "coco"), tmp_path / "yolo", "yolo")
    assert convert.from_folder(tmp_path / "yolo").classes == ["empty", "b", "a"]


# ---- the command


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = voc_set(tmp_path / "set", 6)
    (root / "Annotations/005.xml").write_text(voc_text(voc_object("car", extra="<difficult>1</difficult>")))
    lists = root / "ImageSets/Main"
    lists.mkdir(parents=True)
    for part, names in {"train": "000\n001\n", "val": "002\n", "trainval": "000\n001\n002\n"}.items():
        (lists / f"{part}.txt").write_text(names)
    (lists / "cat_train.txt").write_text("000 -1\n001 1\n")
    assert main(["convert", str(root), str(tmp_path / "out"), "--to", "coco", "--map", "dog=cat"]) == 0
    out = capsys.readouterr().out
    assert "voc -> coco, 6 images, objects: car 3, cat 3" in out
    assert "splits: in none 3, train 2, val 1" in out
    assert "coco cannot hold: difficult (1)" in out
    assert sorted(p.name for p in (tmp_path / "out/annotations").iterdir()) == [
        "instances_default.json",
        "instances_train.json",
        "instances_val.json",
    ]
    assert os.stat(tmp_path / "out/images/000.jpg").st_ino == os.stat(root / "JPEGImages/000.jpg").st_ino
    again = ["convert", str(tmp_path / "out"), str(tmp_path / "again"), "--to", "kitti", "--json", "--copy"]
    assert main(again) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["format"], found["images"], found["parts"]) == ("coco", 6, {"": 3, "train": 2, "val": 1})
    assert os.stat(tmp_path / "again/image_2/000.jpg").st_nlink == 1
    assert (tmp_path / "again/ImageSets/train.txt").read_text() == "000\n001\n"
    assert main(again) == 2
    assert "holds something already" in json.loads(capsys.readouterr().out)["error"]


@pytest.mark.parametrize("wrong", ["dgo=cat", "dgo="])
def test_a_class_to_map_that_is_not_there_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: str
) -> None:
    root, out = kitti_set(tmp_path / "set", 3), tmp_path / "out"
    assert main(["convert", str(root), str(out), "--to", "yolo", "--map", "car=cat", "--map", wrong]) == 2
    said = capsys.readouterr().err
    assert "nothing is called 'dgo', which is to be mapped; here are car, cat, dog" in said
    assert "did you mean 'dog'?" in said
    assert not out.exists()


def test_a_class_to_map_may_be_one_that_is_only_listed_or_left_out(tmp_path: Path, pictures: Path) -> None:
    given = source(pictures, [("a.jpg", None, [Box("b", 1, 1, 9, 9)]), ("b.jpg", None, [Box("a", 1, 1, 9, 9)])])
    convert.write(given, tmp_path / "coco", "coco")
    assert convert.from_folder(tmp_path / "coco", class_map={"empty": "none", "b": None}).classes == ["none", "a"]


def test_given_lists(tmp_path: Path) -> None:
    root = kitti_set(tmp_path / "set", 4)
    (root / "night.lst").write_text("000\n002.jpg\n")
    assert main(["convert", str(root), str(tmp_path / "out"), "--to", "yolo", "--list", "night=night.lst"]) == 0
    assert (tmp_path / "out/night.txt").read_text() == "./images/000.jpg\n./images/002.jpg\n"
    (root / "night.lst").write_text("000\n007\n")
    assert main(["convert", str(root), str(tmp_path / "other"), "--to", "yolo", "--list", "night=night.lst"]) == 2


def test_a_snapshot_is_handed_on_with_its_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = ingest(kitti_set(tmp_path / "set"), SETTINGS, tmp_path / "ws")
    assert main(["convert", str(taken.path), str(tmp_path / "out"), "--to", "yolo"]) == 0
    assert "snapshot -> yolo, 12 images, objects: car 4, cat 4, dog 4" in capsys.readouterr().out
    back = convert.from_folder(tmp_path / "out")
    assert {part: sum(r.part == part for r in back.records) for part in ("train", "val")} == dict(taken.splits)
    assert back.classes == list(CLASSES)
    assert main(["convert", str(taken.path), str(tmp_path / "no"), "--to", "voc", "--map", "car=bus"]) == 2
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "dataset.json").write_text((taken.path / "dataset.json").read_text())
    (copy / "annotations.jsonl").write_text((taken.path / "annotations.jsonl").read_text().replace("car", "bus"))
    assert main(["convert", str(copy), str(tmp_path / "no"), "--to", "voc"]) == 2
    assert "do not give its fingerprint" in capsys.readouterr().err


def test_bad_data_is_refused_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = kitti_set(tmp_path / "set")
    (root / "labels/003.txt").unlink()
    command = ["convert", str(root), str(tmp_path / "out"), "--to", "voc"]
    assert main(command) == 2
    assert "has no label file labels/003.txt" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["set"]
    assert main([*command, "--allow", "image_without_labels"]) == 2
    assert main([*command, "--allow", "image_without_label"]) == 0
    assert "left out: 1 x image_without_label" in capsys.readouterr().out
    assert main(["convert", str(root), str(root / "inside"), "--to", "voc", "--allow", "image_without_label"]) == 2


def test_a_target_that_cannot_be_made_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = kitti_set(tmp_path / "set")
    assert main(["convert", str(root), "/proc/refit/out", "--to", "voc"]) == 1
    assert "/proc/refit" in capsys.readouterr().err


def test_what_is_interrupted_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = convert.from_folder(kitti_set(tmp_path / "set"))

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert.write(given, tmp_path / "out", "voc", progress=stop)
    (tmp_path / "set/labels/000.txt").write_text(kitti_line("dog"))
    with pytest.raises(BadData, match="still being copied"):
        convert.write(given, tmp_path / "out", "voc")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["set"]


@pytest.mark.parametrize("to", [name for name in BOTH if name in ("kitti", "voc", "yolo")])
def test_images_that_would_share_a_label_file_are_refused(tmp_path: Path, pictures: Path, to: str) -> None:
    given = source(pictures, [("a.jpg", None, [Box("car", 1, 1, 9, 9)])])
    given.records.append(Record("a.png", WIDTH, HEIGHT, "", None, []))
    with pytest.raises(BadData, match="one label file for it and a"):
        convert.write(given, tmp_path / "out", to)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("classes", [("traffic light", "traffic_light"), ("DontCare",), ("\u3000",)])
def test_class_names_that_kitti_cannot_hold_are_refused(tmp_path: Path, pictures: Path, classes: tuple[str]) -> None:
    given = source(pictures, [("a.jpg", None, [Box(c, 1, 1, 9, 9) for c in classes])])
    with pytest.raises(BadData, match="would be written") as caught:
        convert.write(given, tmp_path / "out", "kitti")
    assert {f.code for f in caught.value.faults} == {"bad_class_name"}
