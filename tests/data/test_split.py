"""The split is fair, the same everywhere, and says what it cannot do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.data.helpers import CLASSES, kitti_line, kitti_set, voc_set  # isort: skip

from hypothesis import given, settings
from hypothesis import strategies as st

from refit.data import groups, split
from refit.data.checks import Classes
from refit.data.examine import Examination, examine
from refit.data.model import Box, Sample


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
