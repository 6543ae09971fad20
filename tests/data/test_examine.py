"""A whole data set: every kind of bad input gives its fault, with file and line, and loses nothing in silence."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.data.helpers import CLASSES, encoded, kitti_line, kitti_set, voc_object, voc_set, voc_text  # isort: skip

from refit.data.checks import Classes
from refit.data.codes import CODES
from refit.data.examine import Examination, examine
from refit.data.faults import BadData, Fault
from refit.data.formats import recognise
from refit.data.tree import FileInfo, Files

ALL = Classes(CLASSES)


def _faults(found: Examination, code: str) -> list[Fault]:
    assert found.balanced()
    return [f for f in found.faults if f.code == code]


def _one(found: Examination, code: str) -> Fault:
    (fault,) = _faults(found, code)
    assert fault.advice
    return fault


@pytest.mark.parametrize(("make", "name"), [(kitti_set, "kitti"), (voc_set, "voc")])
def test_good_data(tmp_path: Path, make, name: str) -> None:
    root = make(tmp_path / "set")
    assert recognise(root) == name
    calls: list[tuple[int, int]] = []
    found = examine(root, classes=ALL, progress=lambda done, total: calls.append((done, total)))
    assert (found.format, found.faults, found.declared) == (name, [], 12)
    assert [s.file for s in found.samples] == [f"{i:03}.jpg" for i in range(12)]
    first = found.samples[0]
    assert (first.width, first.height, first.objects[0].cls) == (64, 48, "car")
    assert calls[-1] == (12, 12)


def test_kitti_own_layout_and_subfolders(tmp_path: Path) -> None:
    kitti_set(tmp_path / "set")
    (tmp_path / "set" / "training").mkdir()
    os.rename(tmp_path / "set/images", tmp_path / "set/training/image_2")
    os.rename(tmp_path / "set/labels", tmp_path / "set/training/label_2")
    for kind, ending, data in (("image_2", "png", encoded(99, ".png")), ("label_2", "txt", kitti_line().encode())):
        folder = tmp_path / "set/training" / kind / "seq 1"
        folder.mkdir()
        (folder / f"ü.{ending}").write_bytes(data)
    found = examine(tmp_path / "set", classes=ALL)
    assert [f.code for f in found.faults] == ["name_not_ascii"]
    assert found.samples[-1].file == "seq 1__ü.png"
    assert found.samples[-1].source == "training/image_2/seq 1/ü.png"


def test_named_folders(tmp_path: Path) -> None:
    kitti_set(tmp_path / "set")
    os.rename(tmp_path / "set/images", tmp_path / "set/pictures")
    with pytest.raises(BadData, match="none of the known formats"):
        examine(tmp_path / "set")
    assert len(examine(tmp_path / "set", format="kitti", image_dir="pictures").samples) == 12
    with pytest.raises(BadData, match="did you mean 'pictures'"):
        examine(tmp_path / "set", format="kitti", image_dir="picture")
    with pytest.raises(BadData, match="image_dir"):
        examine(tmp_path / "set", format="kitti", image_dir="../set/pictures")


def test_not_recognised(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="there is no such folder"):
        examine(tmp_path / "none")
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadData, match="it is a file, and a folder is needed"):
        examine(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadData, match="the folder holds nothing"):
        examine(tmp_path / "empty")
    kitti_set(tmp_path / "outer" / "inner")
    with pytest.raises(BadData, match="is the data set in inner/"):
        examine(tmp_path / "outer")
    both = kitti_set(tmp_path / "both")
    (both / "image_2").mkdir()
    (both / "image_2" / "x.png").write_bytes(encoded(3, ".png"))
    with pytest.raises(BadData, match="image_2 and images both hold"):
        examine(both)


# ---- partners


def test_image_without_label(tmp_path: Path) -> None:
    root = kitti_set(tmp_path / "set")
    (root / "labels/003.txt").unlink()
    fault = _one(examine(root, classes=ALL), "image_without_label")
    assert (fault.file, fault.severity, fault.images) == ("images/003.jpg", "error", 1)
    assert "labels/003.txt" in fault.message


def test_label_without_image(tmp_path: Path) -> None:
    root = kitti_set(tmp_path / "set")
    (root / "labels/extra.txt").write_text(f"{kitti_line()}\n{kitti_line()}\nrubbish\n")
    fault = _one(examine(root, classes=ALL), "label_without_image")
    assert (fault.file, fault.severity, fault.objects) == ("labels/extra.txt", "error", 3)


def test_duplicate_stems(tmp_path: Path) -> None:
    root = kitti_set(tmp_path / "set")
    (root / "images/003.png").write_bytes(encoded(50, ".png"))
    found = examine(root, classes=ALL)
    fault = _one(found, "duplicate_name")
    assert (fault.images, fault.objects, len(found.samples)) == (2, 1, 11)


def test_names_that_collide_in_the_snapshot(tmp_path: Path) -> None:
    root = kitti_set(tmp_path / "set")
    for kind, ending, data in (("images", "jpg", encoded(60)), ("labels", "txt", kitti_line().encode())):
        (root / kind / "a").mkdir()
        (root / kind / "a" / f"b.{ending}").write_bytes(data)
        (root / kind / f"a__b.{ending}").write_bytes(encoded(61) if kind == "images" else data)
    found = examine(root, classes=ALL)
    assert _one(found, "duplicate_name").objects == 1
    assert len(found.samples) == 13


def test_names_that_cannot_be_used(tmp_path: Path) -> None:
    root = kitti_set(tmp_path / "set")
    for name in (b"caf\xe9", b"new\nline"):
        (root / "images" / os.fsdecode(name + b".jpg")).write_bytes(encoded(70 + len(name)))
        (root / "labels" / os.fsdecode(name + b".txt")).write_text(kitti_line())
    faults = _faults(examine(root, classes=ALL), "bad_name")
    assert [(f.objects, f.severity) for f in faults] == [(1, "error"), (1, "error")]
    for f in faults:
        assert f.as_json()["file"].encode()  # it can be written


def test_links_and_pipes_are_said_and_not_followed(tmp_path: Path) -> None:
    root = kitti_set(tmp_path / "set")
    outside = tmp_path / "secret.txt"
    outside.write_text(kitti_line())
    (root / "labels/000.txt").unlink()
    (root / "labels/000.txt").symlink_to(outside)
    os.mkfifo(root / "images/pipe.jpg")
    (root / "labels/dangling.txt").symlink_to(root / "nowhere")
    (root / "more").symlink_to(tmp_path)
    found = examine(root, classes=ALL)
    assert {f.file: f.message for f in _faults(found, "not_followed")} == {
        "images/pipe.jpg": "not a plain file",
        "labels/000.txt": "a link out of the data set",
        "labels/dangling.txt": "a link to nothing",
        "more": "a link out of the data set",
    }


def test_a_link_to_a_file_inside_is_that_file(tmp_path: Path) -> None:
    root = kitti_set(tmp_path / "set")
    (root / "images/100.jpg").symlink_to("000.jpg")
    (root / "labels/100.txt").symlink_to(root / "labels/000.txt")
    assert len(examine(root, classes=ALL).samples) == 13


def test_what_is_not_read_is_counted(tmp_path: Path) -> None:
    root = kitti_set(tmp_path / "set")
    (root / "README").write_text("x")
    (root / "other").mkdir()
    (root / "other/lost.png").write_bytes(encoded(5, ".png"))
    (root / "images/.hidden.jpg").write_bytes(b"x")
    faults = _faults(examine(root, classes=ALL), "ignored_files")
    assert [f.severity for f in faults] == ["info", "info"]
    assert any("2 files" in f.message and "other/lost.png" in f.message for f in faults)
    assert any("1 hidden" in f.message and "images/.hidden.jpg" in f.message for f in faults)


def test_the_lists_of_its_parts_are_not_called_useless(tmp_path: Path) -> None:
    root = kitti_set(tmp_path / "set")
    (root / "ImageSets").mkdir()
    for name in ("train", "val", "car_train", "trainval"):
        (root / f"ImageSets/{name}.txt").write_text("000\n")
    (found,) = _faults(examine(root, classes=ALL), "ignored_files")
    assert found.message.startswith("2 files are neither images nor labels, for example ImageSets/car_train.txt")


# ---- images


def test_truncated_and_unreadable_images(tmp_path: Path) -> None:
    root = kitti_set(tmp_path / "set")
    whole = (root / "images/002.jpg").read_bytes()
    (root / "images/002.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "images/004.jpg").write_bytes(b"not found")
    (root / "images/005.jpg").write_bytes(b"")
    found = examine(root, classes=ALL)
    assert [f.file for f in _faults(found, "image_truncated")] == ["images/002.jpg", "images/005.jpg"]
    fault = _one(found, "image_unreadable")
    assert (fault.file, fault.objects, fault.images, fault.severity) == ("images/004.jpg", 1, 1, "error")
    assert len(found.samples) == 9


def test_other_image_formats_are_said(tmp_path: Path) -> None:
    root = kitti_set(tmp_path / "set")
    (root / "images/000.jpg").rename(root / "images/000.tiff")
    (root / "images/extra.gif").write_bytes(b"GIF89a")
    (root / "images/001.jpg").write_bytes(encoded(1, ".png"))
    found = examine(root, classes=ALL)
    assert {(f.file, f.objects) for f in _faults(found, "image_unsupported")} == {
        ("images/000.tiff", 1),
        ("images/extra.gif", 0),
    }
    assert "png" in _one(found, "wrong_suffix").message


def test_voc_size_must_be_the_image_s(tmp_path: Path) -> None:
    root = voc_set(tmp_path / "set")
    (root / "Annotations/000.xml").write_text(voc_text(voc_object(), voc_object(), width=640, height=480))
    (root / "Annotations/001.xml").write_text(voc_text(voc_object(), width=48, height=64))
    found = examine(root, classes=ALL)
    first, second = _faults(found, "size_differs")
    assert (first.objects, first.severity) == (2, "error")
    assert "640x480" in first.message
    assert "64x48" in first.message
    assert "EXIF" in second.advice
    assert len(found.samples) == 10


# ---- objects


BAD_BOXES = [
    ("inverted", kitti_line(x1=30, x2=10), "x2 < x1"),
    ("inverted", kitti_line(y1=30, y2=10), "y2 < y1"),
    ("zero_area", kitti_line(x1=10, x2=10), "no area"),
    ("outside", kitti_line(x1=64, x2=90), "outside the image of 64x48"),
    ("outside", kitti_line(x1=-80, x2=-2), "outside the image"),
    ("outside", kitti_line(x1=50, x2=90), "to 65 % outside"),
]


@pytest.mark.parametrize(("code", "line", "message"), BAD_BOXES)
def test_bad_box(tmp_path: Path, code: str, line: str, message: str) -> None:
    root = kitti_set(tmp_path / "set")
    (root / "labels/007.txt").write_text(f"{kitti_line()}\n{line}\n")
    found = examine(root, classes=ALL, max_bad_labels=0.1)
    fault = _one(found, code)
    assert (fault.file, fault.line, fault.objects, fault.severity) == ("labels/007.txt", 2, 1, "warning")
    assert message in fault.message
    assert not found.failed()
    assert len(found.samples[7].objects) == 1


def test_a_box_that_reaches_out_is_clipped_and_said(tmp_path: Path) -> None:
    root = kitti_set(tmp_path / "set")
    (root / "labels/007.txt").write_text(kitti_line(x1=-3, y1=-0.5, x2=40, y2=48.5))
    found = examine(root, classes=ALL)
    assert (_one(found, "clipped").objects, found.failed()) == (0, False)
    (box,) = found.samples[7].objects
    assert (box.x1, box.y1, box.x2, box.y2) == (0, 0, 40, 48)


def test_unknown_class_did_you_mean(tmp_path: Path) -> None:
    root = kitti_set(tmp_path / "set")
    (root / "labels/007.txt").write_text(f"{kitti_line('CAR')}\n{kitti_line('catt')}\n{kitti_line('zebra')}\n")
    faults = _faults(examine(root, classes=ALL), "unknown_class")
    assert [f.line for f in faults] == [1, 2, 3]
    assert "did you mean 'car'?" in faults[0].advice
    assert "did you mean 'cat'?" in faults[1].advice
    assert "did you mean" not in faults[2].advice
    assert all(f.severity == "error" for f in faults)


def test_class_map(tmp_path: Path) -> None:
    root = kitti_set(tmp_path / "set")
    found = examine(root, classes=Classes(["vehicle"], {"car": "vehicle", "cat": None, "dog": None}))
    assert {o.cls for s in found.samples for o in s.objects} == {"vehicle"}
    assert len(_faults(found, "excluded_class")) == 8
    assert not found.failed()  # objects that are left out on purpose are no bad labels


def test_shifted_column_in_every_file(tmp_path: Path) -> None:
    """The old system's own fault: every label bad, zero objects, "generation complete"."""
    root = kitti_set(tmp_path / "set", lines=["car 0.00 0 5 6 25 30 0.00 -1 -1 -1 -1000 -1000 -1000 -10"] * 3)
    found = examine(root, classes=ALL)
    assert found.failed()
    assert sum(f.objects for f in _faults(found, "shifted_column")) == 36
    assert "no_objects" in {f.code for f in found.faults}
    text = str(BadData("inbox", found.faults))
    assert "12 x shifted_column" in text
    assert "labels/000.txt:1: y2 (column 8) is 0 in all 3 objects" in text
    assert "columns 4 to 7" in text


def test_background_images_are_allowed_and_counted(tmp_path: Path) -> None:
    root = kitti_set(tmp_path / "set")
    (root / "labels/007.txt").write_text("")
    (root / "labels/008.txt").write_text(kitti_line("DontCare"))
    found = examine(root, classes=ALL)
    assert (_one(found, "background_image").file, found.failed(), len(found.samples)) == ("labels/007.txt", False, 12)
    assert found.samples[8].objects == ()


# ---- the data set as a whole


@pytest.mark.parametrize(("images", "message"), [(0, "no usable image"), (1, "only one usable image")])
def test_too_few_images(tmp_path: Path, images: int, message: str) -> None:
    root = kitti_set(tmp_path / "set", images)
    if not images:
        (root / "images/a.jpg").write_bytes(b"")
        (root / "labels/a.txt").write_text(kitti_line())
    assert message in _one(examine(root, classes=ALL), "too_few_images").message


def test_zero_objects(tmp_path: Path) -> None:
    found = examine(kitti_set(tmp_path / "set", lines=[]), classes=ALL)
    assert _one(found, "no_objects").message == "zero objects in 12 images"


def test_rate_of_bad_labels(tmp_path: Path) -> None:
    root = kitti_set(tmp_path / "set")
    (root / "labels/007.txt").write_text(f"{kitti_line(x1=30, x2=1)}\n" * 3)
    found = examine(root, classes=ALL, max_bad_labels=0.2)
    fault = _one(found, "too_many_bad_labels")
    assert "3 of 14 objects (21 %)" in fault.message
    text = str(BadData("inbox", found.faults))
    assert "1 x too_many_bad_labels, 3 x inverted" in text
    assert "labels/007.txt:1" in text
    assert not examine(root, classes=ALL, max_bad_labels=0.22).failed()


def test_severity_can_be_lowered_and_raised(tmp_path: Path) -> None:
    root = kitti_set(tmp_path / "set")
    (root / "images/000.jpg").write_bytes(b"")
    (root / "labels/007.txt").write_text(kitti_line(x1=-3))
    lowered = examine(root, classes=ALL, max_bad_labels=0.1, severity={"image_truncated": "warning"})
    assert not lowered.failed()
    strict = examine(root, classes=ALL, max_bad_labels=0.01, severity={"image_truncated": "warning"})
    assert {f.message for f in _faults(strict, "too_many_bad_labels")} == {
        "1 of 12 objects (8.3 %) are faulty, more than max_bad_labels (1 %)",
        "1 of 12 images (8.3 %) are faulty, more than max_bad_labels (1 %)",
    }
    raised = examine(root, classes=ALL, max_bad_labels=0.1, severity={"image_truncated": "warning", "clipped": "error"})
    assert raised.failed()


def test_a_class_without_objects_is_said(tmp_path: Path) -> None:
    found = examine(kitti_set(tmp_path / "set"), classes=Classes([*CLASSES, "zebra"]))
    assert _one(found, "class_without_objects").value == "zebra"
    assert not found.failed()


def test_source_that_changes_is_still_being_copied(tmp_path: Path) -> None:
    root = kitti_set(tmp_path / "set")

    def later(done: int, total: int) -> None:
        if done == total:
            (root / "images/new.jpg").write_bytes(encoded(9))

    with pytest.raises(BadData, match=r"still being copied: 1 files .*images/new\.jpg"):
        examine(root, classes=ALL, progress=later)


def test_source_that_vanishes(tmp_path: Path) -> None:
    root = kitti_set(tmp_path / "set", images=200)

    def gone(done: int, total: int) -> None:
        if done < total and (root / "images").exists():
            os.rename(root / "images", tmp_path / "away")

    with pytest.raises(BadData, match=r"still being copied: images/.* is gone"):
        examine(root, classes=ALL, progress=gone)


def test_message_is_one_line_whatever_the_names(tmp_path: Path) -> None:
    root = kitti_set(tmp_path / "set")
    (root / "labels" / "evil\nerror: all is well\x1b[2J.txt").write_text(kitti_line("x\x1b[31m"))
    text = str(BadData(str(root), examine(root, classes=ALL).faults))
    assert text.isprintable()


def test_every_code_has_advice() -> None:
    assert all(code.advice and code.severity in ("error", "warning", "info") for code in CODES.values())


def test_a_listing_holds_any_size_and_inode() -> None:
    """Files that need more than 32 bits, objects of unknown size, and small ones before and after them."""
    rows = [
        FileInfo("a.jpg", 5, 1, 2, inode=7),
        FileInfo("b.jpg", 2**40, 3, 4, inode=2**64 - 1),
        FileInfo("c.jpg", -1, 5, 6, "tag"),
        FileInfo("d.jpg", 2**32 - 1, 7, 8, inode=2**32 - 1),
    ]
    files = Files(rows)
    assert list(files.values()) == rows
    assert files.sizes([0, 1, 3]) == [5, 2**40, 2**32 - 1]
    assert list(Files(rows[:1] + rows[3:]).values()) == rows[:1] + rows[3:]
