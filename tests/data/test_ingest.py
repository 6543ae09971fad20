"""From a folder to an immutable snapshot: complete, the same everywhere, and nothing half-written."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.data.helpers import CLASSES, SETTINGS, encoded, kitti_line, kitti_set, voc_set  # isort: skip

from refit.data import look, snapshot
from refit.data.faults import BadData, NoSpace
from refit.data.ingest import ingest
from refit.data.settings import DatasetSettings
from refit.files import link_or_copy

INGEST = """
import sys; from pathlib import Path
from refit.data.ingest import ingest; from refit.data.settings import DatasetSettings
print(ingest(Path(sys.argv[1]), DatasetSettings(classes=["car", "cat", "dog"]), Path(sys.argv[2])).path)
"""


def _tree(root: Path) -> dict[str, str]:
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*") if p.is_file()
    }


def test_snapshot_follows_the_contract(tmp_path: Path) -> None:
    root = kitti_set(tmp_path / "set")
    before = _tree(root)
    taken = ingest(root, SETTINGS, tmp_path / "ws")
    assert taken.path == tmp_path / "ws/datasets" / taken.fingerprint
    assert _tree(root) == before
    about = json.loads((taken.path / "dataset.json").read_text())
    assert about["schema"] == 3
    assert about["fingerprint"] == taken.fingerprint
    assert about["classes"] == list(CLASSES)
    assert about["objects"] == {"car": 4, "cat": 4, "dog": 4}
    assert sum(about["splits"].values()) == 12
    assert about["splits"]["val"] in (2, 3)
    assert about["issues"] == {}
    assert about["provenance"]["format"] == "kitti"
    assert about["provenance"]["source"] == str(root)
    rows = list(snapshot.read_annotations(taken.path))
    assert [r["file"] for r in rows] == [f"{i:03}.jpg" for i in range(12)]
    assert look.unpack(bytes.fromhex(rows[0].pop("look"))).channels == 3
    assert rows[0] == {
        "file": "000.jpg",
        "sha256": hashlib.sha256((root / "images/000.jpg").read_bytes()).hexdigest(),
        "width": 64,
        "height": 48,
        "split": rows[0]["split"],
        "source": "images/000.jpg",
        "objects": [{"class": "car", "x1": 5.0, "y1": 6.0, "x2": 25.0, "y2": 30.0, "truncated": 0.0, "occluded": 0}],
    }
    for row in rows:
        image = taken.path / "images" / row["file"]
        stored = tmp_path / "ws/datasets/objects" / row["sha256"][:2] / f"{row['sha256']}.jpg"
        assert image.read_bytes() == (root / row["source"]).read_bytes()
        assert image.samefile(stored)  # a hard link
        assert not image.stat().st_mode & 0o222
    assert (taken.path / "issues.jsonl").read_text() == ""


def test_a_change_of_the_source_does_not_reach_the_snapshot(tmp_path: Path) -> None:
    root = kitti_set(tmp_path / "set")
    taken = ingest(root, SETTINGS, tmp_path / "ws")
    before = _tree(taken.path)
    with open(root / "images/000.jpg", "r+b") as f:
        f.write(b"overwritten in place")
    assert _tree(taken.path) == before


def test_fingerprint_is_the_same_elsewhere(tmp_path: Path) -> None:
    """Another place, another order of creation, other times: the same data."""
    root = kitti_set(tmp_path / "set")
    first = ingest(root, SETTINGS, tmp_path / "ws")
    copy = tmp_path / "else where" / "copy"
    for kind in ("labels", "images"):
        (copy / kind).mkdir(parents=True)
        for path in sorted((root / kind).iterdir(), reverse=True):
            shutil.copyfile(path, copy / kind / path.name)
            os.utime(copy / kind / path.name, (1, 1))
    second = ingest(copy, SETTINGS, tmp_path / "other")
    assert second.fingerprint == first.fingerprint
    rows = [(p / "annotations.jsonl").read_bytes() for p in (first.path, second.path)]
    assert rows[0] == rows[1]
    assert not second.reused
    again = ingest(copy, SETTINGS, tmp_path / "ws")
    assert (again.path, again.reused) == (first.path, True)


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "labels/000.txt").write_text(kitti_line(x1=5.01)),
        lambda root: (root / "images/000.jpg").write_bytes(encoded(999)),
        lambda root: [
            (root / k / f"000.{e}").rename(root / k / f"zzz.{e}") for k, e in (("images", "jpg"), ("labels", "txt"))
        ],
        lambda root: [(root / k / f"000.{e}").unlink() for k, e in (("images", "jpg"), ("labels", "txt"))],
    ],
)
def test_fingerprint_changes_with_the_data(tmp_path: Path, change) -> None:
    root = kitti_set(tmp_path / "set")
    first = ingest(root, SETTINGS, tmp_path / "ws")
    change(root)
    assert ingest(root, SETTINGS, tmp_path / "ws").fingerprint != first.fingerprint


def test_fingerprint_covers_classes_and_split(tmp_path: Path) -> None:
    root = kitti_set(tmp_path / "set")
    other = [
        SETTINGS,
        SETTINGS.model_copy(update={"classes": ["cat", "car", "dog"]}),
        SETTINGS.model_copy(update={"split": SETTINGS.split.model_copy(update={"seed": 1})}),
        SETTINGS.model_copy(update={"class_map": {"dog": None}}),
    ]
    assert len({ingest(root, s, tmp_path / str(i)).fingerprint for i, s in enumerate(other)}) == 4


def test_voc_with_lists_and_an_extra_split(tmp_path: Path) -> None:
    root = voc_set(tmp_path / "set")
    for name, images in (("train", range(6)), ("val", range(6, 10)), ("night", (10,))):
        (root / f"{name}.txt").write_text("".join(f"{i:03}\n" for i in images))
    lists = {"train": "train.txt", "val": "val.txt", "night": "night.txt"}
    settings = DatasetSettings(classes=list(CLASSES), split={"lists": lists})
    taken = ingest(root, settings, tmp_path / "ws")
    assert dict(taken.splits) == {"train": 6, "val": 4, "night": 1}
    assert dict(taken.issues) == {"not_in_lists": 1}
    (issue,) = [json.loads(line) for line in (taken.path / "issues.jsonl").read_text().splitlines()]
    assert (issue["code"], issue["file"], issue["objects"]) == ("not_in_lists", "JPEGImages/011.jpg", 1)


def test_lists_may_lie_in_the_label_folder(tmp_path: Path) -> None:
    root = kitti_set(tmp_path / "set")
    (root / "labels/train.txt").write_text("".join(f"{i:03}\n" for i in range(9)))
    (root / "labels/val.txt").write_text("".join(f"{i:03}\n" for i in range(9, 12)))
    settings = DatasetSettings(
        classes=list(CLASSES), split={"lists": {"train": "labels/train.txt", "val": "labels/val.txt"}}
    )
    assert dict(ingest(root, settings, tmp_path / "ws").splits) == {"train": 9, "val": 3}


def test_duplicates_across_given_lists_are_said(tmp_path: Path) -> None:
    root = kitti_set(tmp_path / "set")
    shutil.copyfile(root / "images/000.jpg", root / "images/006.jpg")
    shutil.copyfile(root / "images/000.jpg", root / "images/001.jpg")
    (root / "train.txt").write_text("".join(f"{i:03}\n" for i in range(6)))
    (root / "val.txt").write_text("".join(f"{i:03}\n" for i in range(6, 12)))
    settings = DatasetSettings(classes=list(CLASSES), split={"lists": {"train": "train.txt", "val": "val.txt"}})
    taken = ingest(root, settings, tmp_path / "ws")
    assert dict(taken.issues) == {"duplicate_image": 1, "duplicate_across_splits": 1}


# ---- refused


def test_bad_data_leaves_only_the_list_of_faults(tmp_path: Path) -> None:
    root = kitti_set(tmp_path / "set")
    (root / "labels/003.txt").write_text(kitti_line("horse"))
    (root / "images/005.jpg").write_bytes(b"")
    with pytest.raises(BadData) as caught:
        ingest(root, SETTINGS, tmp_path / "ws")
    error = caught.value
    assert {f.code for f in error.faults} == {"unknown_class", "image_truncated"}
    assert error.exit_code == 3
    assert "1 x image_truncated, 1 x unknown_class" in str(error)
    assert "labels/003.txt:1: unknown class 'horse'" in str(error)
    assert str(error.report) in str(error)
    rows = [json.loads(line) for line in error.report.read_text().splitlines()]
    assert [r["code"] for r in rows] == [f.code for f in error.faults]
    written = [str(p.relative_to(tmp_path / "ws")) for p in (tmp_path / "ws").rglob("*") if p.is_file()]
    assert written == [str(error.report.relative_to(tmp_path / "ws"))]


def test_one_fault_is_the_whole_message(tmp_path: Path) -> None:
    root = kitti_set(tmp_path / "set")
    (root / "labels/003.txt").unlink()
    with pytest.raises(BadData) as caught:
        ingest(root, SETTINGS, tmp_path / "ws")
    text = str(caught.value)
    assert text.startswith(f"{root}: images/003.jpg: has no label file labels/003.txt; add its label file")
    assert caught.value.report is None


def test_one_image_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="only one usable image: it cannot be split"):
        ingest(kitti_set(tmp_path / "set", images=1), SETTINGS, tmp_path / "ws")


def test_two_equal_images_cannot_be_split(tmp_path: Path) -> None:
    root = kitti_set(tmp_path / "set", images=2)
    shutil.copyfile(root / "images/000.jpg", root / "images/001.jpg")
    with pytest.raises(BadData, match="split 'val' has no image"):
        ingest(root, SETTINGS, tmp_path / "ws")


@pytest.mark.parametrize("where", ["labels/000.txt", "images/004.jpg", "train.txt"])
def test_a_source_that_changes_is_refused(tmp_path: Path, where: str) -> None:
    """The change comes after the file was read: the listing at the end of reading finds it."""
    root = kitti_set(tmp_path / "set")

    def later(done: int, total: int) -> None:
        if done == total:
            path = root / where
            path.write_bytes((path.read_bytes() if path.exists() else b"") + b" ")

    with pytest.raises(BadData, match="still being copied"):
        ingest(root, SETTINGS, tmp_path / "ws", progress=later)
    assert not [p for p in (tmp_path / "ws").rglob("*") if p.is_file()]


# ---- concurrency, crashes, damage, disks


def test_ingests_at_once_end_with_one_snapshot(tmp_path: Path) -> None:
    root = kitti_set(tmp_path / "set", images=60)
    running = [
        subprocess.Popen(
            [sys.executable, "-c", INGEST, str(root), str(tmp_path / "ws")], stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    paths = {process.communicate(timeout=60)[0].strip() for process in running}
    assert [p.returncode for p in running] == [0] * 4
    (path,) = paths
    assert snapshot.verify(Path(path)) == ""
    names = {p.name for p in (tmp_path / "ws/datasets").iterdir()}
    assert names - {"remembered"} == {"objects", Path(path).name}
    assert not list((tmp_path / "ws/datasets/objects").rglob(".*"))


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """A snapshot is there whole or not at all, and the next ingest ends well."""
    root = kitti_set(tmp_path / "set", images=150)
    for tenths in (2, 4, 5, 6, 7, 9):
        process = subprocess.Popen(
            [sys.executable, "-c", INGEST, str(root), str(tmp_path / f"ws{tenths}")], stdout=subprocess.PIPE
        )
        time.sleep(tenths / 10)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        for path in (tmp_path / f"ws{tenths}").glob("datasets/[0-9a-f]*"):
            assert snapshot.verify(path) == ""
        taken = ingest(root, SETTINGS, tmp_path / f"ws{tenths}")
        assert snapshot.verify(taken.path) == ""


def test_what_a_killed_ingest_left_goes_after_a_day(tmp_path: Path) -> None:
    root = kitti_set(tmp_path / "set")
    old, young = (tmp_path / "ws/datasets" / f".{n}.tmp-1-2" for n in ("old", "young"))
    for folder in (old, young):
        (folder / "images").mkdir(parents=True)
    os.utime(old, (1, 1))
    ingest(root, SETTINGS, tmp_path / "ws")
    assert (old.exists(), young.exists()) == (False, True)


@pytest.mark.parametrize("damage", ["image gone", "labels changed", "no dataset.json"])
def test_a_damaged_snapshot_is_moved_aside_and_made_anew(tmp_path: Path, damage: str) -> None:
    root = kitti_set(tmp_path / "set")
    taken = ingest(root, SETTINGS, tmp_path / "ws")
    if damage == "image gone":
        (taken.path / "images/004.jpg").unlink()
    elif damage == "labels changed":
        path = taken.path / "annotations.jsonl"
        path.write_text(path.read_text().replace("25.0", "26.0", 1))
    else:
        (taken.path / "dataset.json").unlink()
    assert snapshot.verify(taken.path) != ""
    again = ingest(root, SETTINGS, tmp_path / "ws")
    assert (again.path, again.reused) == (taken.path, False)
    assert snapshot.verify(again.path) == ""
    assert len(list((tmp_path / "ws/datasets").glob(f"{taken.fingerprint}.broken-*"))) == 1


def test_an_object_cut_short_is_written_anew(tmp_path: Path) -> None:
    root = kitti_set(tmp_path / "set")
    first = ingest(root, SETTINGS, tmp_path / "ws")
    row = next(snapshot.read_annotations(first.path))
    stored = tmp_path / "ws/datasets/objects" / row["sha256"][:2] / f"{row['sha256']}.jpg"
    stored.chmod(0o644)
    stored.write_bytes(b"")
    second = ingest(root, SETTINGS, tmp_path / "ws")
    assert not second.reused
    assert (second.path / "images" / row["file"]).read_bytes() == (root / row["source"]).read_bytes()


@pytest.fixture
def small_disk(tmp_path: Path):
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(mount)]
    made = subprocess.run(command, check=False, capture_output=True)
    if made.returncode:
        pytest.skip("no right to mount a small disk here")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def test_no_space_left(tmp_path: Path, small_disk: Path) -> None:
    root = kitti_set(tmp_path / "set", images=90)
    with pytest.raises(NoSpace, match=r"^No space left on device: .* MiB are needed; remove old runs"):
        ingest(root, SETTINGS, small_disk)
    assert not [p for p in small_disk.rglob("*") if p.is_file()]
    # Enough for the images, not for the rest: found while writing.
    needed = sum(p.stat().st_size for p in (root / "images").iterdir())
    for i in range(90):
        if needed < 150_000:
            break
        needed -= (root / f"images/{i:03}.jpg").stat().st_size
        (root / f"images/{i:03}.jpg").unlink()
        (root / f"labels/{i:03}.txt").unlink()
    (small_disk / "filler").write_bytes(bytes(shutil.disk_usage(small_disk).free - needed - 8192))
    with pytest.raises(NoSpace, match=r"^No space left on device"):
        ingest(root, SETTINGS, small_disk)
    assert not list((small_disk / "datasets").glob("*.tmp-*"))
    assert not list((small_disk / "datasets").glob("[0-9a-f]" * 64))


def test_where_no_hard_link_can_be_made_a_copy_is(tmp_path: Path) -> None:
    root = kitti_set(tmp_path / "set", images=3)
    taken = ingest(root, SETTINGS, tmp_path / "ws")
    source = taken.path / "images/000.jpg"
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev or not os.access(other, os.W_OK):
        pytest.skip("no second file system at hand")
    target = other / f"refit-test-{os.getpid()}.jpg"
    try:
        assert not link_or_copy(source, target)
        assert target.read_bytes() == source.read_bytes()
    finally:
        target.unlink(missing_ok=True)
