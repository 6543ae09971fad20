"""The split is fair, the same everywhere, and says what it cannot do."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.data.helpers import CLASSES, coco_set, kitti_line, kitti_set, voc_set, yolo_set  # isort: skip

from hypothesis import given, settings
from hypothesis import strategies as st

from refit.data import groups, split
from refit.data.checks import Classes
from refit.data.examine import Examination, examine
from refit.data.faults import BadData
from refit.data.ingest import ingest
from refit.data.model import Box, Sample
from refit.data.settings import DatasetSettings, Split


def _sample(i: int, classes: Sequence[str], sha256: str | None = None) -> Sample:
    boxes = tuple(Box(c, 1, 2, 3, 4) for c in classes)
    name = f"{i:05}.jpg"
    return Sample(name, name, f"images/{name}", sha256 or f"{i:064x}", 100, 64, 48, boxes)


def _at_random(samples: Sequence[Sample], share: float, seed: int) -> dict[str, str]:
    return split.at_random(groups.blocks(samples, seed), share)


def _holders(samples: Sequence[Sample], parts: dict[str, str], part: str) -> Counter[str]:
    return Counter(c for s in samples if parts[s.file] == part for c in {o.cls for o in s.objects})


def test_each_class_gets_its_share() -> None:
    samples = [_sample(i, ["common"] * 3 + ["rare"] * (i % 20 == 0) + ["some"] * (i % 3 == 0)) for i in range(400)]
    parts = _at_random(samples, 0.2, 42)
    val = _holders(samples, parts, "val")
    assert (val["common"], val["rare"]) == (80, 4)
    assert 25 <= val["some"] <= 28
    assert Counter(parts.values()) == {"train": 320, "val": 80}


def test_order_does_not_matter_and_the_seed_does() -> None:
    samples = [_sample(i, [CLASSES[i % 3]]) for i in range(60)]
    parts = _at_random(samples, 0.25, 1)
    assert _at_random(samples[::-1], 0.25, 1) == parts
    assert _at_random(samples, 0.25, 2) != parts


def test_images_without_objects_are_shared_out_too() -> None:
    samples = [_sample(i, ["car"] * (i % 2)) for i in range(40)]
    parts = _at_random(samples, 0.25, 7)
    assert sum(parts[s.file] == "val" for s in samples if not s.objects) == 5


def test_equal_pictures_stay_together() -> None:
    samples = [_sample(i, ["car"], f"{i // 4:064x}") for i in range(40)]
    parts = _at_random(samples, 0.3, 5)
    assert all(len({parts[s.file] for s in samples[i : i + 4]}) == 1 for i in range(0, 40, 4))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sets(st.sampled_from("abcdef"), max_size=4), min_size=2, max_size=30),
    st.floats(0.01, 0.99),
    st.integers(0, 2**31 - 1),
)
def test_classes_are_in_both_parts_when_they_can_be(images: list[set[str]], share: float, seed: int) -> None:
    samples = [_sample(i, sorted(classes)) for i, classes in enumerate(images)]
    parts = _at_random(samples, share, seed)
    assert parts.keys() == {s.file for s in samples}
    assert set(parts.values()) == {"train", "val"}
    have = {part: _holders(samples, parts, part) for part in ("train", "val")}
    for cls in set().union(*images):
        if all(len(other) <= 1 for other in images) and sum(cls in i for i in images) > 1:
            assert have["train"][cls], cls
            assert have["val"][cls], cls


# ---- lists


def _examined(root: Path, **lists: str) -> Examination:
    for name, text in lists.items():
        (root / f"{name}.txt").write_text(text)
    return examine(root, classes=Classes(CLASSES), leave=[f"{n}.txt" for n in lists])


def test_lists_name_images_in_several_ways(tmp_path: Path) -> None:
    train = "000\n001.jpg\nimages/002\n./images/003.jpg\nimages\\004.jpg\n\n005 1\n"
    found = _examined(kitti_set(tmp_path / "set"), train=train, val="006\n007\n\ufeff", night="008\n")
    (tmp_path / "set/val.txt").write_bytes(b"\xef\xbb\xbf006\r\n007\r\n")
    found = examine(tmp_path / "set", classes=Classes(CLASSES))
    lists = split.by_lists(found, {"train": "train.txt", "val": "./val.txt", "night": "night.txt"})
    assert Counter(lists.parts.values()) == {"train": 6, "val": 2, "night": 1}
    assert [(f.code, f.file) for f in lists.faults] == [("not_in_lists", f"images/{i:03}.jpg") for i in (9, 10, 11)]
    assert sum(f.objects for f in lists.faults) == 3


def test_faults_of_lists(tmp_path: Path) -> None:
    found = _examined(kitti_set(tmp_path / "set"), train="000\n001\n00A\n", val="001\n002\n")
    lists = split.by_lists(found, {"train": "train.txt", "val": "val.txt", "extra": "vall.txt"})
    by_code = {f.code: f for f in lists.faults}
    unknown, overlap, missing = by_code["list_unknown_name"], by_code["list_overlap"], by_code["list_missing"]
    assert (unknown.file, unknown.line, unknown.value) == ("train.txt", 3, "00A")
    assert "did you mean '0" in unknown.message
    assert (overlap.file, overlap.line) == ("val.txt", 1)
    assert "train.txt:2" in overlap.message
    assert "did you mean 'val.txt'" in missing.message
    assert all(f.severity == "error" for f in (unknown, overlap, missing))


def test_a_listed_image_that_was_left_out_is_no_unknown_name(tmp_path: Path) -> None:
    root = kitti_set(tmp_path / "set")
    (root / "images/000.jpg").write_bytes(b"")
    (root / "labels/001.txt").unlink()
    found = _examined(root, train="000\n001\n002\n", val="003\n")
    lists = split.by_lists(found, {"train": "train.txt", "val": "val.txt"})
    assert {f.code for f in lists.faults} == {"not_in_lists"}
    assert Counter(lists.parts.values()) == {"train": 1, "val": 1}


def test_lists_of_voc_by_class(tmp_path: Path) -> None:
    root = voc_set(tmp_path / "set")
    folder = root / "ImageSets/Main"
    folder.mkdir(parents=True)
    (folder / "car_train.txt").write_text("000  1\n001 -1\n002  0\n")
    (folder / "car_val.txt").write_text("003 -1\n")
    lists = split.by_lists(
        examine(root), {"train": "ImageSets/Main/car_train.txt", "val": "ImageSets/Main/car_val.txt"}
    )
    assert Counter(lists.parts.values()) == {"train": 3, "val": 1}


def test_parts_that_cannot_work_are_said() -> None:
    samples = [_sample(0, ["car", "cat"]), _sample(1, ["car"]), _sample(2, []), _sample(3, ["dog"])]
    parts = {s.file: part for s, part in zip(samples, ("train", "val", "empty", "train"), strict=True)}
    faults = {f"{f.code} {f.value}": f for f in split.check(samples, parts, ["train", "val", "empty", "none"], CLASSES)}
    assert faults.keys() == {
        "split_without_objects empty",
        "split_without_objects none",
        "class_not_in_split cat",
        "class_not_in_split dog",
    }
    assert "1 images, none with an object" in faults["split_without_objects empty"].message
    assert "no image" in faults["split_without_objects none"].message


@pytest.mark.parametrize("content", [b"\xff\xfe0\x000\x00", b"\0\0\0"])
def test_a_list_that_is_no_text(tmp_path: Path, content: bytes) -> None:
    root = kitti_set(tmp_path / "set", lines=[kitti_line()])
    (root / "train.txt").write_bytes(content)
    (root / "val.txt").write_text("000\n")
    lists = split.by_lists(examine(root), {"train": "train.txt", "val": "val.txt"})
    assert [f.code for f in lists.faults if f.file == "train.txt"] == ["list_missing"]


# ---- parts that the data set itself has

OWN = Split(lists="own")


def coco_of_two_files(root: Path) -> Path:
    """instances_train2017.json and instances_val2017.json: images 0 to 7, and 8 to 11."""
    coco_set(root)
    file = root / "annotations/instances_default.json"
    whole = json.loads(file.read_text())
    for part, kept in (("train", range(8)), ("val", range(8, 12))):
        ids = {7 * i for i in kept}
        rows = {
            "images": [r for r in whole["images"] if r["id"] in ids],
            "annotations": [r for r in whole["annotations"] if r["image_id"] in ids],
        }
        file.with_name(f"instances_{part}2017.json").write_text(json.dumps({**whole, **rows}))
    file.unlink()
    return root


def yolo_of_three_folders(root: Path) -> Path:
    yolo_set(root)
    for i in range(12):
        part = ("train", "val", "test")[min(2, i // 5)]
        for kind, suffix in (("images", "jpg"), ("labels", "txt")):
            (root / kind / part).mkdir(exist_ok=True)
            (root / kind / f"{i:03}.{suffix}").rename(root / kind / part / f"{i:03}.{suffix}")
    return root


def voc_with_lists(root: Path) -> Path:
    voc_set(root)
    (root / "ImageSets/Main").mkdir(parents=True)
    for part, kept in (("train", range(9)), ("val", range(9, 12))):
        (root / f"ImageSets/Main/{part}.txt").write_text("".join(f"{i:03}\n" for i in kept))
    return root


@pytest.mark.parametrize(
    ("make", "told", "splits"),
    [
        (coco_of_two_files, "train 8 images, val 4 images", {"train": 8, "val": 4}),
        (yolo_of_three_folders, "test 2 images, train 5 images, val 5 images", {"test": 2, "train": 5, "val": 5}),
        (voc_with_lists, "ImageSets/Main/train.txt, ImageSets/Main/val.txt", {"train": 9, "val": 3}),
    ],
)
def test_a_data_sets_own_parts_are_kept_or_it_is_told(
    tmp_path: Path, make: Callable[[Path], Path], told: str, splits: dict[str, int]
) -> None:
    root = make(tmp_path / "set")
    anew = ingest(root, DatasetSettings(classes=CLASSES), tmp_path / "anew")
    (said,) = [f for f in anew.faults if f.code == "own_parts_unused"]
    assert f"parts of its own ({told}), and its images were dealt out anew" in said.message
    assert (said.severity, "{lists: own}" in said.advice) == ("warning", True)
    kept = ingest(root, DatasetSettings(classes=CLASSES, split=OWN), tmp_path / "kept")
    assert not [f for f in kept.faults if f.code == "own_parts_unused"]
    assert json.loads((kept.path / "dataset.json").read_text())["splits"] == splits


def test_own_parts_that_are_not_there_are_missed(tmp_path: Path) -> None:
    root = kitti_set(tmp_path / "set")
    with pytest.raises(BadData, match="the data set says of no image to which part it belongs"):
        ingest(root, DatasetSettings(classes=CLASSES, split=OWN), tmp_path / "ws")


def test_an_image_without_a_part_is_left_out_and_told(tmp_path: Path) -> None:
    root = yolo_of_three_folders(tmp_path / "set")
    for kind, suffix in (("images", "jpg"), ("labels", "txt")):
        (root / kind / "test" / f"011.{suffix}").rename(root / kind / f"011.{suffix}")
    kept = ingest(root, DatasetSettings(classes=CLASSES, split=OWN), tmp_path / "ws")
    (said,) = [f for f in kept.faults if f.code == "not_in_lists"]
    assert (said.file, said.objects, said.images) == ("images/011.jpg", 1, 1)
