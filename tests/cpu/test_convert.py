"""dataset_convert: exact, repeatable, and loud about what cannot be used."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from refit.command import BadData
from refit.cpu import convert
from refit.cpu.records import Dataset
from refit.cpu.specs import ConvertSpec
from refit.cpu.status import StatusWriter
from tests.cpu.conftest import SnapshotBuilder, encode, scene, status_lines


def run(folder: Path, out: Path, status: StatusWriter, shards: int = 1) -> None:
    convert.run(ConvertSpec(snapshot=str(folder), shards=shards), out, status)


def filled(snapshot: SnapshotBuilder, train: int = 3, val: int = 2) -> Path:
    for i in range(train + val):
        snapshot.add_scene(i, "train" if i < train else "val")
    return snapshot.save()


def test_a_snapshot_becomes_records(snapshot: SnapshotBuilder, tmp_path: Path, status: StatusWriter) -> None:
    snapshot.rows.clear()
    run(filled(snapshot), tmp_path / "out", status, shards=2)
    dataset = Dataset.load(tmp_path / "out")
    assert dataset.classes == tuple(snapshot.classes)
    assert dataset.fingerprint == "a" * 64
    assert {k: (v.images, v.objects, v.shards) for k, v in dataset.splits.items()} == {
        "train": (3, 9, 2),
        "val": (2, 6, 2),
    }
    rows = {r["file"]: r for r in snapshot.rows}
    for split in ("train", "val"):
        for record in dataset.split(split):
            row = rows[record.file]
            assert row["split"] == split
            assert record.encoded == (snapshot.folder / "images" / record.file).read_bytes()
            boxes = [[o[k] for k in ("x1", "y1", "x2", "y2")] for o in row["objects"]]
            np.testing.assert_allclose(record.boxes, boxes, atol=1e-3)
            assert [dataset.classes[c] for c in record.classes] == [o["class"] for o in row["objects"]]
    last = status_lines(status.path)[-1]
    assert last["status"] == "SUCCESS"
    assert last["kpi"] == {"images": 5, "objects": 15, "clipped_boxes": 0, "reencoded_images": 0}
    assert last["categorical"] == {"objects": {"car": 5, "person": 5, "sign": 5}}


def test_the_same_snapshot_gives_the_same_bytes(
    snapshot: SnapshotBuilder, tmp_path: Path, status: StatusWriter
) -> None:
    folder = filled(snapshot)
    run(folder, tmp_path / "a", status)
    lines = (folder / "annotations.jsonl").read_text().splitlines()
    (folder / "annotations.jsonl").write_text("\n".join(reversed(lines)))
    # A second attempt into a folder where an earlier one, with more shards, was killed.
    run(folder, tmp_path / "b", status, shards=2)
    (tmp_path / "b" / ".train-00000-of-00002.tmp-1.tfrecord").write_bytes(b"half")
    run(folder, tmp_path / "b", status)
    files = {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}
    assert {p.name: p.read_bytes() for p in (tmp_path / "b").iterdir()} == files


def test_flags_clipping_and_formats(snapshot: SnapshotBuilder, tmp_path: Path, status: StatusWriter) -> None:
    s = scene(5)
    box = {"class": "sign", "x1": -4.5, "y1": 3, "x2": 170, "y2": 96.25}
    objects = [{**box, "difficult": True}, {**box, "x1": 1, "x2": 9, "y2": 8, "truncated": True}]
    bmp = cv2.imencode(".bmp", cv2.cvtColor(s.image, cv2.COLOR_RGB2BGR))[1].tobytes()
    snapshot.add("a.bmp", "train", bmp, (160, 96), objects)
    snapshot.add("empty.png", "train", encode(s.image), (160, 96), [])
    run(snapshot.save(), tmp_path / "out", status)
    first, second = Dataset.load(tmp_path / "out").split("train")
    np.testing.assert_array_equal(first.image(), s.image)
    np.testing.assert_allclose(first.boxes, [[0, 3, 160, 96], [1, 3, 9, 8]], atol=1e-3)
    assert first.difficult.tolist() == [True, False]
    assert first.truncated.tolist() == [False, True]
    assert (second.file, len(second.classes)) == ("empty.png", 0)
    assert status_lines(status.path)[-1]["kpi"] == {
        "images": 2,
        "objects": 2,
        "clipped_boxes": 1,
        "reencoded_images": 1,
    }


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_an_image_that_is_cut_off_is_named(
    snapshot: SnapshotBuilder, tmp_path: Path, status: StatusWriter, suffix: str, share: float
) -> None:
    data = encode(np.random.default_rng(0).integers(0, 255, (96, 160, 3), dtype=np.uint8), suffix)
    snapshot.add_scene(1, "train")
    snapshot.add_scene(2, "train", suffix, data=data[: int(share * len(data))] or b" ")
    with pytest.raises(BadData, match=rf"images/0002\{suffix}: (cannot be read to its end|not an image)"):
        run(snapshot.save(), tmp_path / "out", status)
    assert not (tmp_path / "out" / "dataset.json").exists()
    assert not list((tmp_path / "out").glob("*train*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class": "cra"}, "unknown class 'cra'; did you mean 'car'"),
        ({"y2": 0.0}, r"has no area .* is a column of the labels shifted"),
        ({"x1": float("nan")}, "is not finite"),
        ({"x1": 160.0, "x2": 180.0}, "lies outside the image of 160x96"),
        ({"x1": "left"}, "not a labelled object"),
    ],
)
def test_a_bad_object_is_named_with_its_line(
    snapshot: SnapshotBuilder, tmp_path: Path, status: StatusWriter, change: dict[str, object], message: str
) -> None:
    snapshot.add_scene(1, "train")
    snapshot.add_scene(2, "train")
    snapshot.rows[1]["objects"][2].update(change)
    with pytest.raises(BadData, match=rf"annotations.jsonl:2: 0002.jpg: object 3: .*{message}"):
        run(snapshot.save(), tmp_path / "out", status)


def test_a_data_set_without_objects_is_refused(snapshot: SnapshotBuilder, tmp_path: Path, status: StatusWriter) -> None:
    filled(snapshot)
    for row in snapshot.rows:
        if row["split"] == "train":
            row["objects"] = []
    with pytest.raises(BadData, match="zero objects in the 3 images of the train split"):
        run(snapshot.save(), tmp_path / "out", status)
    for row in snapshot.rows:
        row["objects"] = []
    with pytest.raises(BadData, match="zero objects in 5 images"):
        run(snapshot.save(), tmp_path / "out", status)


def test_a_snapshot_that_does_not_agree_with_itself(
    snapshot: SnapshotBuilder, tmp_path: Path, status: StatusWriter
) -> None:
    folder, out = filled(snapshot), tmp_path / "out"
    good = (folder / "annotations.jsonl").read_text()

    def rewritten(text: str) -> None:
        (folder / "annotations.jsonl").write_text(text)

    rewritten("".join(good.splitlines(True)[1:]))
    with pytest.raises(BadData, match=r"images per split are .*'train': 2.* says .*'train': 3"):
        run(folder, out, status)
    rewritten(good + good.splitlines(True)[0])
    with pytest.raises(BadData, match=r"annotations.jsonl:6: image '0000.jpg' is listed twice"):
        run(folder, out, status)
    rewritten(good.replace('"0000.jpg"', '"../0000.jpg"'))
    with pytest.raises(BadData, match="not the plain name"):
        run(folder, out, status)
    rewritten(good[:-20])
    with pytest.raises(BadData, match=r"annotations.jsonl:5: not JSON"):
        run(folder, out, status)
    rewritten(good.replace('"width": 160', '"width": 161', 1))
    with pytest.raises(BadData, match=r"0000.jpg: the image is 160x96 pixels, its labels were made for 161x96"):
        run(folder, out, status)
    rewritten(good)
    (folder / "images" / "0001.jpg").write_bytes(encode(scene(77).image, ".jpg"))
    with pytest.raises(BadData, match=r"0001.jpg: the file was changed after the snapshot"):
        run(folder, out, status)
    (folder / "images" / "0001.jpg").unlink()
    with pytest.raises(BadData, match=r"0001.jpg: cannot be read: No such file"):
        run(folder, out, status)
    with pytest.raises(BadData, match=r"nowhere/dataset.json: cannot be read"):
        run(tmp_path / "nowhere", out, status)
    (folder / "dataset.json").write_text(json.dumps({"classes": ["car"]}))
    with pytest.raises(BadData, match="not a snapshot's"):
        run(folder, out, status)


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143)])
def test_a_conversion_that_is_ended_leaves_nothing_that_looks_whole(
    snapshot: SnapshotBuilder, tmp_path: Path, sent: signal.Signals, code: int
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (900, 1200, 3), dtype=np.uint8)
    data = encode(noise)
    for i in range(20):
        snapshot.add(f"{i}.png", "train", data, (1200, 900), [{"class": "car", "x1": 1, "y1": 1, "x2": 50, "y2": 60}])
    (tmp_path / "spec.yaml").write_text(f"snapshot: {snapshot.save()}\n")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "refit.cpu", "dataset_convert", "-e", str(tmp_path / "spec.yaml"), "-r", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        begun = time.monotonic()
        while not list(out.glob(".train-*")) and time.monotonic() - begun < 30:
            time.sleep(0.01)
        process.send_signal(sent)
        assert process.wait(30) == code
    finally:
        process.kill()
        process.wait()
    assert not (out / "dataset.json").exists()
    left = [p.name for p in out.iterdir() if p.name != "status.json"]
    assert all(name.startswith(".train-") for name in left)
    assert (left == []) == (sent == signal.SIGTERM)
    assert subprocess.run(command, check=False).returncode == 0
    assert len(Dataset.load(out).split("train")) == 20
    assert not list(out.glob(".*"))
