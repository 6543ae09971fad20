"""TFRecords of TensorFlow's object detection: images inside files, read, taken in, written and back."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.data.helpers import HEIGHT, WIDTH, encoded  # isort: skip

from refit.data import tfrecord as container
from refit.data.faults import BadData
from refit.data.formats import tfrecord
from refit.data.formats.base import Record
from refit.data.ingest import ingest
from refit.data.model import Box
from refit.data.settings import DatasetSettings
from refit.data.snapshot import verify
from tests.data import writing

FLAGS = ("difficult", "truncated", "occluded")


def features(name: str = "a.jpg", seed: int = 0, **changed: container.Feature | None) -> dict[str, container.Feature]:
    """A record as create_pascal_tf_record.py writes it: a car at 8 12 32 24; None leaves a feature out."""
    out: dict[str, container.Feature | None] = {
        "image/encoded": [encoded(seed)],
        "image/format": [b"jpeg"],
        "image/filename": [name.encode()],
        "image/width": np.array([WIDTH], np.int64),
        "image/height": np.array([HEIGHT], np.int64),
        "image/object/bbox/xmin": np.array([0.125], np.float32),
        "image/object/bbox/ymin": np.array([0.25], np.float32),
        "image/object/bbox/xmax": np.array([0.5], np.float32),
        "image/object/bbox/ymax": np.array([0.5], np.float32),
        "image/object/class/text": [b"car"],
        "image/object/class/label": np.array([1], np.int64),
    }
    out |= {key.replace("__", "/"): value for key, value in changed.items()}
    return {key: value for key, value in out.items() if value is not None}


def record_file(path: Path, *records: dict[str, container.Feature] | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for r in records:
            container.write_record(file, r if isinstance(r, bytes) else container.encode_example(r))
    return path


def test_images_are_read_out_of_the_file(tmp_path: Path) -> None:
    record_file(tmp_path / "train.record-00000-of-00001", features("x/a.jpg"), features("b.jpg", 1))
    found = writing.check(tmp_path)
    assert (found.format, found.faults) == ("tfrecord", [])
    assert [s.name for s in found.samples] == ["b.jpg", "x/a.jpg"]
    assert found.samples[1].source.startswith("train.record-00000-of-00001#1@")
    assert found.samples[1].objects == (Box("car", 8, 12, 32, 24),)
    assert found.samples[1].part == "train"


def test_a_snapshot_of_images_that_are_no_files(tmp_path: Path) -> None:
    """Also with lists, which name the images as the records do."""
    record_file(tmp_path / "set" / "a.tfrecord", *(features(f"{i}.jpg", i) for i in range(6)))
    (tmp_path / "set" / "train.txt").write_text("0.jpg\n1.jpg\n2\n3\n")
    (tmp_path / "set" / "val.txt").write_text("4.jpg\n5.jpg\n")
    settings = DatasetSettings(classes=["car"], split={"lists": {"train": "train.txt", "val": "val.txt"}})
    taken = ingest(tmp_path / "set", settings, tmp_path / "ws")
    assert (dict(taken.splits), dict(taken.issues), verify(taken.path)) == ({"train": 4, "val": 2}, {}, "")
    assert (taken.path / "images" / "3.jpg").read_bytes() == encoded(3)


@pytest.mark.parametrize(
    ("change", "code", "objects"),
    [
        ({"image/object/class/text": None, "image/object/class/label": None}, "no_class", 1),
        ({"image/object/class/text": None, "image/object/class/label": np.array([7])}, "no_class", 1),
        ({"image/object/class/text": None, "image/object/class/label": np.array([np.nan], np.float32)}, "no_class", 1),
        ({"image/object/bbox/xmin": np.array([np.nan], np.float32)}, "not_finite", 1),
        ({"image/object/bbox/xmax": np.array([32], np.float32)}, "out_of_range", 1),
        ({"image/object/bbox/xmax": np.array([0.1], np.float32)}, "inverted", 1),
        ({"image/object/bbox/xmax": np.array([], np.float32)}, "bad_entry", 1),
        ({"image/object/bbox/ymin": np.array([0.1, 0.2], np.float32)}, "bad_entry", 2),
        ({"image/object/bbox/ymin": None}, "bad_entry", 1),
        ({"image/object/class/text": [b"car", b"car", b"car"]}, "bad_entry", 3),
        ({"image/object/bbox/ymin": [b"0.1"]}, "bad_entry", 1),
        ({"image/object/is_crowd": np.array([1])}, "crowd", 1),
        ({"image/width": np.array([HEIGHT]), "image/height": np.array([WIDTH])}, "size_differs", 1),
        ({"image/encoded": None}, "label_unreadable", 1),
        ({"image/encoded": []}, "label_unreadable", 1),
        ({"image/encoded": [b""]}, "image_truncated", 1),
        ({"image/encoded": [encoded(0)[:300]]}, "image_truncated", 1),
        ({"image/encoded": [b"no image"]}, "image_unreadable", 1),
        ({"image/encoded": np.array([1])}, "bad_entry", 1),
        ({"image/filename": [b"b.jpg"]}, "duplicate_name", 1),
        ({"image/filename": [b"\xff.jpg"]}, "bad_name", 1),
    ],
)
def test_a_bad_record_costs_itself_alone(
    tmp_path: Path, change: dict[str, container.Feature | None], code: str, objects: int
) -> None:
    bad = {key: value for key, value in {**features("c.jpg", 2), **change}.items() if value is not None}
    record_file(tmp_path / "a.tfrecord", features("b.jpg", 1), bad, features())
    found = writing.check(tmp_path)
    assert [(f.code, f.objects) for f in found.faults if f.code != "too_many_bad_labels"] == [(code, objects)]
    assert found.faults[0].at.startswith("record 2") or "#2@" in found.faults[0].file or code == "size_differs"
    assert {s.name for s in found.samples if s.objects} == {"a.jpg", "b.jpg"}


@pytest.mark.parametrize(
    ("filename", "name"),
    [
        (None, "t-000001.jpg"),
        ([b""], "t-000001.jpg"),
        ([b"/home/me/a.jpg"], "home/me/a.jpg"),
        ([rb"C:\x\..\a.PNG"], "x/a.PNG"),
        ([b"../../etc/passwd"], "etc/passwd.jpg"),
        ([b"frame.0001"], "frame.0001.jpg"),
    ],
)
def test_names_lead_nowhere_else(tmp_path: Path, filename: list[bytes] | None, name: str) -> None:
    record_file(tmp_path / "t.tfrecord", features(image__filename=filename))
    assert [s.name for s in writing.check(tmp_path).samples] == [name]


def test_classes_by_number(tmp_path: Path) -> None:
    record_file(tmp_path / "a.tfrecord", features(**{"image/object/class/text": None}))
    (tmp_path / "label_map.pbtxt").write_text("item { id: 1 name: 'lorry' }")
    found = writing.check(tmp_path)
    assert [o.cls for s in found.samples for o in s.objects] == ["lorry"]
    assert found.names == ("lorry",)
    assert [f.code for f in found.faults] == ["too_few_images"]


@pytest.mark.parametrize(
    ("break_", "good", "message"),
    [
        (lambda data: data[:-1], ["a.jpg", "b.jpg"], "ends inside the record"),
        (lambda data: data[:5], [], "inside a record's header"),
        (lambda data: b"\x07" + data[1:], [], "checksum of the record's length"),
        (lambda data: data[:200] + b"?" + data[201:], ["b.jpg", "c.jpg"], "checksum of the record's data"),
        (lambda data: b"\x1f\x8b" + data[2:], [], "unpack it"),
        (lambda data: data + b"\0" * 12, ["a.jpg", "b.jpg", "c.jpg"], "checksum of the record's length"),
        (lambda data: struct.pack("<QI", 2**60, 0) + data, [], "checksum of the record's length"),
    ],
)
def test_damage_is_placed(tmp_path: Path, break_: Callable[[bytes], bytes], good: list[str], message: str) -> None:
    path = record_file(tmp_path / "a.tfrecord", features(), features("b.jpg", 1), features("c.jpg", 2))
    path.write_bytes(break_(path.read_bytes()))
    found = writing.check(tmp_path)
    damage = [f for f in found.faults if f.code == "record_damaged"]
    assert len(damage) == 1
    assert message in damage[0].message
    assert damage[0].file == "a.tfrecord"
    assert [s.name for s in found.samples] == good


def test_bytes_that_are_no_example(tmp_path: Path) -> None:
    record_file(tmp_path / "a.tfrecord", features(), b"no example", b"", features("b.jpg", 1))
    found = writing.check(tmp_path)
    assert sorted((f.code, f.at) for f in found.faults) == [
        ("label_unreadable", "record 2"),
        ("label_unreadable", "record 3"),
    ]
    assert len(found.samples) == 2


@pytest.mark.parametrize("parts", [(None,), ("train", "val", "test")])
def test_round_trip(tmp_path: Path, parts: tuple[str | None, ...]) -> None:
    records = writing.records(parts, flags=True)
    lost = writing.write(tfrecord.WRITER, tmp_path / "out", records)
    assert lost == {}
    found = writing.check(tmp_path / "out")
    assert found.format == "tfrecord"
    assert found.names == ("car", "traffic light, red", "ça va")
    assert writing.seen(found) == writing.expected(records, flags=FLAGS)


def test_flags_that_no_object_has_stay_unknown(tmp_path: Path) -> None:
    records = writing.records()
    assert writing.write(tfrecord.WRITER, tmp_path / "out", records) == {}
    assert writing.seen(writing.check(tmp_path / "out")) == writing.expected(records, flags=FLAGS)


def test_what_it_cannot_hold_is_counted(tmp_path: Path) -> None:
    """float32 shares, truncated as a flag, and lists that hold a value for each object or for none."""
    box = Box("car", 1.25, 2, 30.001, 4)
    third, half = Box("car", 1 / 3, 2, 30, 40), Box("car", 1, 2, 3, 4, truncated=0.5)
    kinds = {
        (box, box): {},
        (box, third): {"rounded": 1},
        (half, box): {"truncated": 2},
        (half,): {"truncated": 1},
        (box, Box("car", 1, 2, 3, 4, occluded=2)): {"occluded": 1},
    }
    for i, (objects, lost) in enumerate(kinds.items()):
        record = Record("0.jpg", WIDTH, HEIGHT, "", None, objects)
        assert writing.write(tfrecord.WRITER, tmp_path / str(i), [record]) == lost


def test_shards_are_numbered_when_all_is_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    shards = tfrecord.Shards(out, lambda part, i, n: f"{part}-{i:05}-of-{n:05}.tfrecord", most=100)
    with shards:
        for i in range(5):
            shards.write("train", bytes([i]) * 60)
    assert sorted(p.name for p in out.iterdir()) == [f"train-{i:05}-of-00003.tfrecord" for i in range(3)]
    assert [len(container.offsets(p)) for p in sorted(out.iterdir())] == [2, 2, 1]


def test_what_tensorflow_cannot_decode_is_refused_and_nothing_stays(tmp_path: Path) -> None:
    records = writing.records(images=2)
    records.append(Record("c.webp", WIDTH, HEIGHT, "", None, ()))
    tmp_path.joinpath("out").mkdir()
    with pytest.raises(BadData, match=r"c\.webp.*decodes JPEG and PNG alone"):
        tfrecord.WRITER.write(tmp_path / "out", records, ["car"], lambda r: encoded(1, Path(r.name).suffix))
    assert list(tmp_path.joinpath("out").iterdir()) == []
