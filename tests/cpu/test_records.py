"""TFRecords: readable by others, exact, and clear about damage."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.compat.tensorflow_stub.errors import OutOfRangeError
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New

from refit.command import BadData
from refit.cpu.records import Dataset, Record, decode_image, shard_path, write_split
from refit.data import tfrecord
from tests.cpu.conftest import CLASSES, encode, record, scene

# Written by TensorFlow 2.21 (tf.io.TFRecordWriter): an Example with a bytes, a float, an int64 and an empty bytes
# feature, serialized deterministically, then an empty record.
BY_TENSORFLOW = bytes.fromhex(
    "8b00000000000000852d3df10a88010a1b0a0e696d6167652f66696c656e616d6512090a070a05612e706e670a260a16696d6167652f6f62"
    "6a6563742f62626f782f786d696e120c120a0a080000803e0000003f0a220a18696d6167652f6f626a6563742f636c6173732f6c6162656c"
    "12061a040a0201020a1d0a17696d6167652f6f626a6563742f636c6173732f7465787412020a00feacf6ec00000000000000002903980"
    "7d8ea82a2"
)
FEATURES: dict[str, tfrecord.Feature] = {
    "image/filename": [b"a.png"],
    "image/object/bbox/xmin": np.array([0.25, 0.5], np.float32),
    "image/object/class/label": np.array([1, 2], np.int64),
    "image/object/class/text": [],
}


def test_the_bytes_are_those_that_tensorflow_writes(tmp_path: Path) -> None:
    path = tmp_path / "x.tfrecord"
    with path.open("wb") as file:
        tfrecord.write_record(file, tfrecord.encode_example(FEATURES))
        tfrecord.write_record(file, b"")
    assert path.read_bytes() == BY_TENSORFLOW


def test_a_file_of_tensorflow_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.tfrecord"
    path.write_bytes(BY_TENSORFLOW)
    first, second = tfrecord.offsets(path)
    found = tfrecord.decode_example(tfrecord.read_record(path, first))
    assert sorted(found) == sorted(FEATURES)
    for name, value in FEATURES.items():
        np.testing.assert_array_equal(found[name], value)
    assert tfrecord.read_record(path, second) == b""


def test_tensorboards_reader_agrees_record_by_record(make_records: Callable[..., Path]) -> None:
    folder = make_records({"train": 5}, shards=2)
    shards = []
    for i in range(2):
        reader: Any = PyRecordReader_New(str(shard_path(folder, "train", i, 2)))
        shards.append([])
        while True:
            try:
                reader.GetNext()  # raises where a checksum is wrong
            except OutOfRangeError:
                break
            shards[-1].append(tfrecord.decode_example(reader.record()))
    assert [len(s) for s in shards] == [3, 2]
    for i, ours in enumerate(Dataset.load(folder).split("train")):
        theirs: Any = shards[i % 2][i // 2]
        assert theirs["image/filename"] == [ours.file.encode()]
        assert theirs["image/encoded"] == [ours.encoded]
        assert theirs["image/format"] == [b"png"]
        assert theirs["image/object/class/text"] == [CLASSES[c].encode() for c in ours.classes]
        np.testing.assert_array_equal(theirs["image/object/class/label"], ours.classes + 1)
        np.testing.assert_allclose(theirs["image/object/bbox/ymax"] * ours.height, ours.boxes[:, 3], atol=1e-3)


@st.composite
def _boxes(draw: st.DrawFn) -> tuple[int, int, np.ndarray[Any, Any]]:
    width, height = draw(st.integers(1, 8192)), draw(st.integers(1, 8192))
    share = st.floats(0, 1)
    rows = draw(st.lists(st.tuples(share, share, share, share), max_size=20))
    scale = np.array([width, height, width, height], np.float64)
    return width, height, (np.array(rows, np.float64).reshape(-1, 4) * scale).astype(np.float32)


@given(_boxes(), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_a_record_survives_the_round_trip(
    tmp_path_factory: pytest.TempPathFactory, size_and_boxes: tuple[int, int, np.ndarray[Any, Any]], seed: int
) -> None:
    width, height, boxes = size_and_boxes
    rng = np.random.default_rng(seed)
    n = len(boxes)
    flags = rng.random((2, n)) < 0.5
    before = Record("Bäume/1.png", width, height, encode(scene(0).image), boxes, rng.integers(0, 3, n), *flags)
    folder = tmp_path_factory.mktemp("records")
    Dataset(folder, CLASSES, {"train": write_split(folder, "train", [before], CLASSES)}, "f").save()
    (after,) = Dataset.load(folder).split("train")
    assert (after.file, after.width, after.height, after.encoded) == ("Bäume/1.png", width, height, before.encoded)
    np.testing.assert_allclose(after.boxes, boxes, rtol=0, atol=1e-3)
    np.testing.assert_array_equal(after.classes, before.classes)
    np.testing.assert_array_equal(after.difficult, flags[0])
    np.testing.assert_array_equal(after.truncated, flags[1])


@pytest.mark.parametrize("shards", [1, 3, 8])
def test_the_order_does_not_depend_on_the_number_of_shards(make_records: Callable[..., Path], shards: int) -> None:
    split = Dataset.load(make_records({"train": 7}, shards)).split("train")
    assert [r.file for r in split] == [f"{i:04d}.png" for i in range(7)]
    assert [r.file for r in split[2:4]] == ["0002.png", "0003.png"]
    assert pickle.loads(pickle.dumps(split))[-1].file == "0006.png"


def test_the_image_comes_back_in_rgb_and_as_stored() -> None:
    s = scene(3)
    np.testing.assert_array_equal(record(3).image(), s.image)
    # Orientation 6 ("turn right"), as a phone writes it: the boxes were drawn on the stored pixels.
    jpeg = encode(s.image, ".jpg")
    exif = b"Exif\0\0" + b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)
    rotated = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]
    assert decode_image(rotated, "phone.jpg").shape == s.image.shape


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.97])
def test_a_flipped_bit_is_found_and_placed(make_records: Callable[..., Path], share: float) -> None:
    folder = make_records({"train": 3})
    path = shard_path(folder, "train", 0, 1)
    begins = tfrecord.offsets(path)
    data = bytearray(path.read_bytes())
    at = int(share * len(data))
    data[at] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(tfrecord.DamagedRecords) as caught:
        list(Dataset.load(folder).split("train"))
    assert caught.value.offset == max(b for b in begins if b <= at)
    assert str(path) in str(caught.value)
    assert f"byte {caught.value.offset}" in str(caught.value)


@pytest.mark.parametrize("gone", [1, 5, 500])
def test_a_file_that_is_cut_off_is_found_when_it_is_opened(make_records: Callable[..., Path], gone: int) -> None:
    folder = make_records({"train": 3})
    path = shard_path(folder, "train", 0, 1)
    begins, data = tfrecord.offsets(path), path.read_bytes()
    path.write_bytes(data[:-gone])
    with pytest.raises(tfrecord.DamagedRecords, match=f"byte {max(b for b in begins if b < len(data) - gone)}"):
        Dataset.load(folder).split("train")


def test_a_record_of_something_else_is_named(make_records: Callable[..., Path]) -> None:
    folder = make_records({"train": 1})
    path = shard_path(folder, "train", 0, 1)
    for data, reason in ((b"no example", "not a tf.Example"), (tfrecord.encode_example({}), "image/width")):
        with path.open("wb") as file:
            tfrecord.write_record(file, data)
        with pytest.raises(tfrecord.DamagedRecords, match=reason):
            list(Dataset.load(folder).split("train"))


def test_what_is_missing_is_named(make_records: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_records({"train": 2, "val": 1}, shards=2)
    with pytest.raises(BadData, match="no split 'vla'; did you mean 'val'"):
        Dataset.load(folder).split("vla")
    with pytest.raises(BadData, match=r"nowhere.dataset.json.*run dataset_convert first"):
        Dataset.load(tmp_path / "nowhere").split("train")
    shard_path(folder, "val", 0, 2).unlink()
    with pytest.raises(BadData, match=r"val-00000-of-00002.tfrecord"):
        Dataset.load(folder).split("val")
    about = json.loads((folder / "dataset.json").read_text())
    about["splits"]["train"]["images"] = 3
    (folder / "dataset.json").write_text(json.dumps(about))
    with pytest.raises(BadData, match=r"holds 2 images, dataset.json says 3"):
        Dataset.load(folder).split("train")
    (folder / "dataset.json").write_text('{"classes": 5}')
    with pytest.raises(BadData, match="not the file that dataset_convert writes"):
        Dataset.load(folder)


def test_a_bad_record_leaves_nothing_behind(tmp_path: Path) -> None:
    good = record(1)
    bad_class = Record("b.png", 8, 8, good.encoded, np.zeros((1, 4), np.float32), np.array([3]))
    not_image = Record("b.png", 8, 8, b"BM...", np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    for bad in (bad_class, not_image):
        with pytest.raises(BadData, match=r"b\.png"):
            write_split(tmp_path, "train", [good, bad], CLASSES, shards=2)
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(BadData, match="name of a split"):
        write_split(tmp_path, "../x", [good], CLASSES)
