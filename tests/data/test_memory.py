"""What is remembered of files is used where they are the same, and nowhere else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.helpers import CLASSES, SETTINGS, coco_set, encoded, kitti_line, kitti_set, yolo_set, picture  # isort: skip

import cv2
import numpy as np

from refit.data import code, images, snapshot, tree
from refit.data import examine as examining
from refit.data.checks import Classes
from refit.data.examine import Examination, examine
from refit.data.faults import BadData
from refit.data.ingest import ingest
from refit.data.memory import FILE, Memory
from refit.data.settings import DatasetSettings


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as settled as soon as they are written."""
    monkeypatch.setattr(tree, "RECENT_NS", 0)
    monkeypatch.setattr("refit.data.memory.RECENT_NS", 0)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that an examination opens."""
    found: list[str] = []
    read = examining.read_listed

    def seen(root: str, path: str, file: str, listed: int) -> bytes:
        found.append(path)
        return read(root, path, file, listed)

    monkeypatch.setattr(examining, "read_listed", seen)
    return found


def _look(root: Path, classes: tuple[str, ...] = CLASSES) -> Examination:
    return examine(root, classes=Classes(classes), memory=Memory(root.parent / FILE, classes), max_bad_labels=1)


def _same(a: Examination, b: Examination) -> bool:
    return (list(a.samples), a.faults, a.declared) == (list(b.samples), b.faults, b.declared)


def test_nothing_new_opens_nothing(tmp_path: Path, opened: list[str]) -> None:
    root = kitti_set(tmp_path / "set", images=300)
    (root / "labels/003.txt").write_text(f"{kitti_line(x1=30, x2=3)}\n{kitti_line(x2=200)}\n{kitti_line('DontCare')}\n")
    first = _look(root)
    assert len({f.code for f in first.faults}) == 3
    opened.clear()
    again = _look(root)
    assert opened == []
    assert _same(again, first)
    assert again.samples.digest(3) == first.samples[3].digest()


@pytest.mark.parametrize(
    ("change", "files"),
    [
        (lambda root: (root / "labels/003.txt").write_text(kitti_line("cat")), ["labels/003.txt"]),
        (lambda root: (root / "images/003.jpg").write_bytes(encoded(99)), ["labels/003.txt", "images/003.jpg"]),
        (
            lambda root: os.rename(root / "images/003.jpg", root / "images/003.jpeg"),
            ["labels/003.txt", "images/003.jpeg"],
        ),
        (lambda root: os.utime(root / "images/003.jpg"), ["labels/003.txt", "images/003.jpg"]),
    ],
)
def test_what_changed_is_read_again(tmp_path: Path, opened: list[str], change, files: list[str]) -> None:
    root = kitti_set(tmp_path / "set")
    _look(root)
    change(root)
    opened.clear()
    again = _look(root)
    assert opened == files
    assert _same(again, examine(root, classes=Classes(CLASSES), max_bad_labels=1))


def test_a_file_that_hides_its_change_behind_its_mtime(tmp_path: Path) -> None:
    """What `rsync -t` and `cp -p` do: other bytes, as many of them, with the old time."""
    root = kitti_set(tmp_path / "set")
    _look(root)
    path = root / "labels/003.txt"
    before = path.stat()
    path.write_text(path.read_text().replace("25.00", "26.00"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert _look(root).samples[3].objects[0].x2 == 26


def test_a_corrected_label_does_not_decode_its_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = kitti_set(tmp_path / "set")
    _look(root)
    (root / "labels/003.txt").write_text(kitti_line("cat", x1=1))
    monkeypatch.setattr(images, "verify", lambda *_: pytest.fail("decoded"))
    assert _look(root).samples[3].objects[0].x1 == 1


def test_other_classes_other_results(tmp_path: Path) -> None:
    root = kitti_set(tmp_path / "set")
    _look(root)
    assert {f.code for f in _look(root, ("car", "cat")).faults} == {"unknown_class"}


def test_a_file_of_a_moment_ago_is_not_trusted(
    tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = kitti_set(tmp_path / "set")
    monkeypatch.setattr("refit.data.memory.RECENT_NS", 60 * 10**9)
    _look(root)
    opened.clear()
    _look(root)
    assert len(opened) == 24


@pytest.mark.parametrize(
    "damage", [lambda d: d[:-1], lambda d: d[:40] + b"x" + d[41:], lambda d: b"", lambda d: b"\0" * 64]
)
def test_a_damaged_memory_is_none(tmp_path: Path, opened: list[str], damage) -> None:
    root = kitti_set(tmp_path / "set")
    first = _look(root)
    path = tmp_path / FILE
    path.write_bytes(damage(path.read_bytes()))
    opened.clear()
    assert _same(_look(root), first)
    assert len(opened) == 24


def test_without_decoding_nothing_is_remembered(tmp_path: Path) -> None:
    root = kitti_set(tmp_path / "set")
    examine(root, memory=Memory(tmp_path / FILE, None), decode=False)
    assert not (tmp_path / FILE).exists()


def test_a_store_that_was_emptied_is_filled_again(tmp_path: Path) -> None:
    """`refit gc` takes images that no snapshot has; that they are remembered as whole does not make them be there."""
    root = kitti_set(tmp_path / "set")
    first = ingest(root, SETTINGS, tmp_path / "ws")
    for path in (tmp_path / "ws/datasets").rglob("*.jpg"):
        path.unlink()
    again = ingest(root, SETTINGS, tmp_path / "ws")
    assert (again.fingerprint, again.reused) == (first.fingerprint, False)
    assert (again.path / "images/003.jpg").read_bytes() == (root / "images/003.jpg").read_bytes()


def test_a_run_after_a_mended_label_reads_that_label(tmp_path: Path, opened: list[str]) -> None:
    root = kitti_set(tmp_path / "set")
    (root / "labels/003.txt").write_text(kitti_line("horse"))
    settings = DatasetSettings(classes=list(CLASSES))
    with pytest.raises(BadData):
        ingest(root, settings, tmp_path / "ws")
    (root / "labels/003.txt").write_text(kitti_line("cat"))
    opened.clear()
    assert dict(ingest(root, settings, tmp_path / "ws").objects) == {"car": 3, "cat": 5, "dog": 4}
    assert opened == ["labels/003.txt"]


def test_a_second_arrival_finds_the_near_duplicate_of_a_picture_that_it_does_not_open(
    tmp_path: Path, opened: list[str]
) -> None:
    root = kitti_set(tmp_path / "set")
    scene = cv2.resize(picture(1, 12, 9), (640, 480), interpolation=cv2.INTER_CUBIC)
    for name, size in (("a", (640, 480)), ("b", (320, 240))):
        cv2.imwrite(str(root / f"images/{name}.jpg"), cv2.resize(scene, size))
        (root / f"labels/{name}.txt").write_text(kitti_line() + "\n")
        found = ingest(root, SETTINGS, tmp_path / "ws")
    assert opened.count("images/a.jpg") == 1
    assert [f.file for f in found.faults if f.code.startswith("near_duplicate")] in (["images/a.jpg"], ["images/b.jpg"])
    assert sum(snapshot.read_statistics(found.path)["brightness"]) == 14


def test_what_is_odd_about_an_image_is_told_once_when_its_label_is_corrected(tmp_path: Path, opened: list[str]) -> None:
    root = kitti_set(tmp_path / "set")
    (root / "images/000.jpg").unlink()
    cv2.imwrite(str(root / "images/000.png"), picture(0).astype(np.uint16) * 257)
    for text in (kitti_line(), kitti_line("dog")):
        (root / "labels/000.txt").write_text(text + "\n")
        found = ingest(root, SETTINGS, tmp_path / "ws")
        assert [(f.code, f.file) for f in found.faults] == [("deep_image", "images/000.png")]
    assert opened.count("images/000.png") == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "data.yaml").write_text("names: [cat, car, dog]\n"),
        lambda root: (root / "data.yaml").write_text("names: [car, cat, dog]\nval: val.txt\n"),
        lambda root: (root / "labels/003.txt").write_text("0 0.5 0.5 0.5 0.5\n"),
        lambda root: (root / "labels/004.txt").unlink(),
    ],
    ids=["names", "parts", "a label that was missing", "a label less"],
)
def test_yolo_labels_do_not_say_everything(tmp_path: Path, change) -> None:
    """What the classes are called and which part an image is in stands elsewhere; a missing label is no fault."""
    root = yolo_set(tmp_path / "set")
    (root / "labels/003.txt").unlink()
    (root / "val.txt").write_text("images/005.jpg\n")
    _look(root)
    change(root)
    assert _same(_look(root), examine(root, classes=Classes(CLASSES), max_bad_labels=1))


def test_coco_file_is_read_anew_and_its_images_are_not(tmp_path: Path, opened: list[str]) -> None:
    root = coco_set(tmp_path / "set")
    _look(root)
    path = root / "annotations/instances_default.json"
    path.write_text(path.read_text().replace("[5, 6, 20.1, 24]", "[5, 6, 20.1, 25]", 3))
    opened.clear()
    found = _look(root)
    assert opened == []
    assert _same(found, examine(root, classes=Classes(CLASSES), max_bad_labels=1))
    assert [s.objects[0].y2 for s in found.samples][:4] == [31, 31, 31, 30]


def test_code_that_decides_nothing_of_a_data_set_is_not_loaded_to_take_one_in() -> None:
    """So that a change of it (the report's style) makes nothing be fetched or read anew."""
    loaded = "import sys, refit.data.ingest; print(*(m for m in sys.modules if m.startswith('refit.data.')))"
    found = subprocess.run([sys.executable, "-c", loaded], check=True, capture_output=True, text=True).stdout.split()
    beside = {name.removesuffix(".py") for name in code.BESIDE}
    assert all((Path(code.__file__).parent / name).exists() for name in code.BESIDE)
    # These three are: one spreads work, the other two say where data lies and whether it is new.
    assert {name.split(".")[2] for name in found} & beside <= {"work", "arrival", "source"}
