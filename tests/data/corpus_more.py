"""Broken data sets of the formats with one label file for many images, or images in it: see tests/data/corpus.py."""

from __future__ import annotations

import base64
import gzip
import json
import shutil
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from refit.data import tfrecord as container
from refit.data.formats import tao_tfrecord
from refit.data.formats.base import Record
from refit.data.model import Box
from tests.data.corpus import CASES, Case
from tests.data.helpers import CLASSES, HEIGHT, WIDTH, encoded

KINDS = {"tf_csv", "drip", "supervisely", "tfrecord", "tao_tfrecord"}
IMAGES = 4
Change = Callable[[Path], object]


def _add(name: str, make: Change, *codes: str, format: str | None = None) -> None:
    CASES.append(Case(name, make, frozenset(codes), format))


def _pictures(folder: Path, suffix: str = ".jpg") -> None:
    folder.mkdir(parents=True)
    for i in range(IMAGES):
        (folder / f"{i}{suffix}").write_bytes(encoded(i, suffix))


def _then(make: Callable[[Path], Path], change: Change) -> Change:
    return lambda root: change(make(root))


# ---- TF CSV

HEADER = "filename,width,height,class,xmin,ymin,xmax,ymax"
ROW = f"1.jpg,{WIDTH},{HEIGHT},car,5,6,25,30"


def csv_set(root: Path) -> Path:
    _pictures(root / "images")
    rows = [ROW.replace("1.jpg", f"{i}.jpg").replace("car", CLASSES[i % 3]) for i in range(IMAGES)]
    (root / "labels.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    return root


def _csv(text: str | bytes, name: str = "labels.csv") -> Change:
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return _then(csv_set, lambda root: (root / name).write_bytes(data))


def _row(row: str) -> Change:
    return _then(csv_set, lambda root: (root / "labels.csv").open("a").write(row))


for _name, _text, _codes in [
    ("one-column-less", ROW.rpartition(",")[0], ["column_count"]),
    ("one-column-more", ROW + ",1", ["column_count"]),
    ("class-with-a-comma", ROW.replace("car", "car, red"), ["column_count"]),
    ("spaces-for-commas", ROW.replace(",", " "), ["column_count"]),
    ("open-quote", '"' + ROW, ["label_unreadable"]),
    ("text-after-a-quote", ROW.replace("car", '"car"s'), ["label_unreadable"]),
    ("field-of-200000", ROW.replace("car", "c" * 200_000), ["label_unreadable"]),
    ("no-class", ROW.replace("car", ""), ["no_class"]),
    ("unknown-class", ROW.replace("car", "horse"), ["unknown_class"]),
    ("class-in-capitals", ROW.replace("car", "CAR"), ["unknown_class"]),
    ("class-with-control", ROW.replace("car", "c\x1bar"), ["no_class"]),
    ("box-missing", ROW.replace(",5,6,", ",,,"), ["no_box"]),
    ("word-for-a-number", ROW.replace(",5,", ",five,"), ["not_a_number"]),
    ("python-number", ROW.replace(",25,", ",2_5,"), ["not_a_number"]),
    ("nan", ROW.replace(",5,", ",nan,"), ["not_finite"]),
    ("overflow", ROW.replace(",30", ",1e999"), ["not_finite"]),
    ("inverted", ROW.replace(",5,6,25,30", ",25,6,5,30"), ["inverted"]),
    ("zero-area", ROW.replace(",25,30", ",5,30"), ["zero_area"]),
    ("outside", ROW.replace(",5,6,25,30", ",100,100,200,200"), ["outside"]),
    ("clipped", ROW.replace(",30", ",60"), ["clipped"]),
    ("size-in-another-row", ROW.replace(f"{WIDTH},{HEIGHT}", "640,480"), ["size_differs"]),
    ("size-is-a-word", ROW.replace(f",{WIDTH},", ",wide,"), ["not_a_number"]),
    ("missing-image", ROW.replace("1.jpg", "nowhere.jpg"), ["label_without_image"]),
    ("two-images-of-one-name", ROW.replace("1.jpg", "night/1.jpg"), ["duplicate_name"]),
    ("image-without-ending", ROW.replace("1.jpg", "1"), ["label_without_image"]),
    ("image-twice", ROW.replace("1.jpg", "images/1.jpg"), ["duplicate_name"]),
    ("no-image", ROW.replace("1.jpg", ""), ["label_without_image"]),
    ("path-out", ROW.replace("1.jpg", "../../etc/passwd"), ["label_without_image"]),
]:
    _add(f"tf_csv-{_name}", _row(_text + "\n"), *_codes)
for _name, _data, _codes, _format in [
    ("utf-16", (HEADER + "\n" + ROW).encode("utf-16"), ["label_unreadable"], "tf_csv"),
    ("latin-1", f"{HEADER}\n{ROW}\n{ROW}".replace("car", "caf\xe9").encode("latin-1"), ["label_unreadable"], None),
    ("zero-bytes", f"{HEADER}\n{ROW}\n\0\0".encode(), ["label_unreadable"], None),
    ("empty-file", b"", ["label_unreadable", "no_objects"], "tf_csv"),
    ("header-alone", HEADER.encode(), ["no_objects", "background_image"], None),
    ("no-header", f"{ROW}\n{ROW}".encode(), ["label_unreadable"], "tf_csv"),
    ("header-without-class", f"{HEADER}\n{ROW}".replace("class,", "").encode(), ["label_unreadable"], "tf_csv"),
    ("shares", f"{HEADER}\n{ROW}".replace("5,6,25,30", ".1,.2,.5,.8").encode(), ["not_pixels"], None),
    (
        "swapped-size",
        f"{HEADER}\n{ROW}".replace(f"{WIDTH},{HEIGHT}", f"{HEIGHT},{WIDTH}").encode(),
        ["size_differs"],
        None,
    ),
    ("not-recognised", b"a,b,c\n1,2,3\n", ["not_recognised"], None),
]:
    _add(f"tf_csv-{_name}", _csv(_data), *_codes, format=_format)
_add("tf_csv-two-lists-of-one-image", _csv(f"{HEADER}\n{ROW}\n", "train_labels.csv"), "duplicate_name")
_add("tf_csv-image-gone", _then(csv_set, lambda root: (root / "images/1.jpg").unlink()), "label_without_image")
_add(
    "tf_csv-image-cut",
    _then(csv_set, lambda root: (root / "images/1.jpg").write_bytes(encoded(1)[:200])),
    "image_truncated",
)
_add(
    "tf_csv-images-tif",
    _then(csv_set, lambda root: (root / "images/1.jpg").rename(root / "images/1.tif")),
    "label_without_image",
    "image_unsupported",
)
_add(
    "tf_csv-no-images",
    _then(csv_set, lambda root: shutil.rmtree(root / "images")),
    "too_few_images",
    "label_without_image",
)
for _name, _text in [
    ("id-0", "item { id: 0 name: 'car' }"),
    ("no-name", "item { id: 1 }"),
    ("two-names", "item { id: 1 name: 'car' } item { id: 1 name: 'cat' }"),
    ("open-block", "item { id: 1 name: 'car'"),
    ("yaml", "- id: 1\n  name: car\n"),
    ("nested", "item {" * 3000),
    ("empty", ""),
]:
    _add(f"tf_csv-label-map-{_name}", _csv(_text, "label_map.pbtxt"), "label_unreadable")

# ---- Drip

FRAMES = [
    {
        "path": f"{i}.jpg",
        "width": WIDTH,
        "height": HEIGHT,
        "boxes": [{"class": CLASSES[i % 3], "x0": 5, "y0": 6, "x1": 25, "y1": 30}],
    }
    for i in range(IMAGES)
]


def drip_set(root: Path) -> Path:
    _pictures(root / "images")
    (root / "metadata.json").write_text(json.dumps({"frames": FRAMES}))
    return root


def _drip(data: Any) -> Change:
    text = data if isinstance(data, bytes) else json.dumps(data).encode()
    return _then(drip_set, lambda root: (root / "metadata.json").write_bytes(text))


def _frame(**changed: object) -> Change:
    return _drip({"frames": [*FRAMES[:-1], {k: v for k, v in (FRAMES[-1] | changed).items() if v is not ...}]})


def _box(**changed: object) -> Change:
    box = {k: v for k, v in (FRAMES[-1]["boxes"][0] | changed).items() if v is not ...}  # type: ignore[index]
    return _frame(boxes=[box])


_WHOLE = json.dumps({"frames": FRAMES}, indent=1).encode()
for _name, _make, _codes in [
    ("no-class-no-type", _box(**{"class": ...}), ["no_class"]),
    ("class-and-type-differ", _box(type="dog", **{"class": "cat"}), ["no_class"]),
    ("class-is-a-list", _box(**{"class": ["car"]}), ["no_class"]),
    ("class-unknown", _box(**{"class": "horse"}), ["unknown_class"]),
    ("class-is-a-number", _box(**{"class": 7}), ["unknown_class"]),
    ("x0-missing", _box(x0=...), ["no_box"]),
    ("x0-null", _box(x0=None), ["no_box"]),
    ("x0-a-word", _box(x0="left"), ["not_a_number"]),
    ("x0-true", _box(x0=True), ["not_a_number"]),
    ("x0-nan", _box(x0=float("nan")), ["not_finite"]),
    ("x0-huge", _box(x0=10**400), ["not_finite"]),
    ("inverted", _box(x0=25, x1=5), ["inverted"]),
    ("rotated-without-swapping-sizes", _frame(width=HEIGHT, height=WIDTH), ["size_differs"]),
    ("box-is-text", _frame(boxes=["car 1 2 3 4"]), ["bad_entry"]),
    ("boxes-is-an-object", _frame(boxes={"0": {}}), ["bad_entry", "image_without_label"]),
    ("boxes-missing", _frame(boxes=...), ["bad_entry", "image_without_label"]),
    ("path-missing", _frame(path=...), ["bad_entry"]),
    ("path-is-a-number", _frame(path=3), ["bad_entry"]),
    ("path-of-no-image", _frame(path="nowhere.jpg"), ["label_without_image"]),
    ("path-twice", _frame(path="0.jpg"), ["duplicate_name"]),
    ("frame-is-null", _drip({"frames": [*FRAMES[:-1], None]}), ["bad_entry"]),
    ("no-frame-of-an-image", _drip({"frames": FRAMES[:-1]}), ["image_without_label"]),
    ("no-frames", _drip({"frames": []}), ["image_without_label"]),
    ("cut-off", _drip(_WHOLE[:-60]), ["label_unreadable"]),
    ("comma-missing", _drip(_WHOLE.replace(b'"width"', b'"x" 3 "width"', 1)), ["label_unreadable"]),
    ("nested", _drip(b'{"frames": [' + b'{"a":' * 90_000), ["label_unreadable"]),
    ("more-behind", _drip(_WHOLE + b"]"), ["label_unreadable"]),
    (
        "shares",
        _drip(
            {"frames": [f | {"boxes": [{"class": "car", "x0": 0.1, "y0": 0.1, "x1": 0.5, "y1": 1}]} for f in FRAMES]}
        ),
        ["not_pixels"],
    ),
]:
    _add(f"drip-{_name}", _make, *_codes)

# ---- Supervisely


def _annotation(*objects: object, **more: object) -> dict[str, object]:
    return {"size": {"width": WIDTH, "height": HEIGHT}, "tags": [], "objects": list(objects)} | more


def _thing(**changed: object) -> dict[str, object]:
    points = {"exterior": [[5, 6], [25, 30]], "interior": []}
    made = {"classTitle": "car", "geometryType": "rectangle", "points": points} | changed
    return {k: v for k, v in made.items() if v is not ...}


def supervisely_set(root: Path) -> Path:
    _pictures(root / "ds0" / "img")
    (root / "ds0" / "ann").mkdir()
    for i in range(IMAGES):
        (root / "ds0" / "ann" / f"{i}.jpg.json").write_text(json.dumps(_annotation(_thing(classTitle=CLASSES[i % 3]))))
    (root / "meta.json").write_text(json.dumps({"classes": [{"title": c} for c in CLASSES]}))
    return root


def _supervisely(data: object, path: str = "ds0/ann/1.jpg.json") -> Change:
    text = data if isinstance(data, bytes) else json.dumps(data).encode()
    return _then(supervisely_set, lambda root: (root / path).write_bytes(text))


def _points(*points: object, **more: object) -> dict[str, object]:
    return _thing(points={"exterior": [*points]}, **more)


_BOMB = base64.b64encode(zlib.compress(b"\0" * 10_000_000)).decode()
for _name, _thing_, _codes in [
    ("no-class", _thing(classTitle=...), ["no_class"]),
    ("unknown-class", _thing(classTitle="horse"), ["unknown_class"]),
    ("no-points", _thing(points=...), ["no_box"]),
    ("one-point", _points([5, 6]), ["no_box"]),
    ("three-points-of-a-rectangle", _points([5, 6], [7, 8], [9, 9]), ["no_box"]),
    ("point-of-three", _points([5, 6, 7], [8, 9, 10]), ["no_box"]),
    ("point-is-text", _points([5, 6], [25, "30px"]), ["not_a_number"]),
    ("point-is-nan", _points([5, 6], [25, float("nan")]), ["not_finite"]),
    ("inverted", _points([25, 30], [5, 6]), ["inverted"]),
    ("polygon", _points([5, 6], [25, 6], [9, 30], geometryType="polygon"), ["polygon_boxed"]),
    ("polygon-of-two", _points([5, 6], [25, 30], geometryType="polygon"), ["no_box"]),
    ("line", _points([5, 6], [25, 30], geometryType="line"), ["no_box"]),
    ("cuboid", _thing(geometryType="cuboid"), ["no_box"]),
    ("mask-without-bitmap", _thing(geometryType="bitmap"), ["no_box"]),
    ("mask-bomb", _thing(geometryType="bitmap", bitmap={"origin": [1, 1], "data": _BOMB}), ["no_box"]),
    ("object-is-text", "car", ["bad_entry"]),
]:
    _add(f"supervisely-{_name}", _supervisely(_annotation(_thing_, _thing())), *_codes)
for _name, _make, _codes in [
    ("size-differs", _supervisely(_annotation(_thing(), size={"width": 1, "height": 2})), ["size_differs"]),
    ("objects-missing", _supervisely({"size": {}}), ["label_unreadable"]),
    ("objects-is-an-object", _supervisely(_annotation() | {"objects": {}}), ["label_unreadable"]),
    ("cut-off", _supervisely(json.dumps(_annotation(_thing())).encode()[:-5]), ["label_unreadable"]),
    ("empty-annotation", _supervisely(b""), ["label_unreadable"]),
    ("utf-16", _supervisely(json.dumps(_annotation()).encode("utf-16")), ["label_unreadable"]),
    ("nested", _supervisely(b"[" * 100_000), ["label_unreadable"]),
    ("long-number", _supervisely(b'{"objects": ' + b"9" * 5000 + b"}"), ["label_unreadable"]),
    ("meta-empty", _supervisely(b"", "meta.json"), ["label_unreadable"]),
    ("meta-without-titles", _supervisely({"classes": [{}]}, "meta.json"), ["label_unreadable"]),
    (
        "annotation-gone",
        _then(supervisely_set, lambda root: (root / "ds0/ann/1.jpg.json").unlink()),
        ["image_without_label"],
    ),
    ("image-gone", _then(supervisely_set, lambda root: (root / "ds0/img/1.jpg").unlink()), ["label_without_image"]),
    (
        "both-endings",
        _then(supervisely_set, lambda root: (root / "ds0/img/1.png").write_bytes(encoded(9, ".png"))),
        ["image_without_label"],
    ),
    (
        "image-unsupported",
        _then(supervisely_set, lambda root: (root / "ds0/img/1.jpg").rename(root / "ds0/img/1.gif")),
        ["image_unsupported"],
    ),
]:
    _add(f"supervisely-{_name}", _make, *_codes)

# ---- TFRecords

Features = Mapping[str, container.Feature]


def _example(i: int = 1, **changed: Any) -> dict[str, container.Feature]:
    sides = zip(("xmin", "ymin", "xmax", "ymax"), (0.125, 0.25, 0.5, 0.5), strict=True)
    made: dict[str, Any] = {
        "image/encoded": [encoded(i)],
        "image/format": [b"jpeg"],
        "image/filename": [f"{i}.jpg".encode()],
        "image/width": np.array([WIDTH], np.int64),
        "image/height": np.array([HEIGHT], np.int64),
        "image/object/class/text": [CLASSES[i % 3].encode()],
        **{f"image/object/bbox/{side}": np.array([v], np.float32) for side, v in sides},
    }
    made |= {key.replace("__", "/"): value for key, value in changed.items()}
    return {key: value for key, value in made.items() if value is not None}


def _records(path: Path, *records: Features | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for r in records:
            container.write_record(file, r if isinstance(r, bytes) else container.encode_example(r))
    return path


def _tf(**changed: Any) -> Change:
    bad = _example(9, **changed)
    return lambda root: _records(root / "train.record-00000-of-00001", _example(0), _example(1), bad)


def _damaged(change: Callable[[bytes], bytes]) -> Change:
    def make(root: Path) -> None:
        path = _records(root / "train.tfrecord", *(_example(i) for i in range(IMAGES)))
        path.write_bytes(change(path.read_bytes()))

    return make


_FLOAT = np.float32
for _name, _changed, _codes in [
    ("no-image", {"image/encoded": None}, ["label_unreadable"]),
    ("empty-image", {"image/encoded": [b""]}, ["image_truncated"]),
    ("cut-image", {"image/encoded": [encoded(9)[:400]]}, ["image_truncated"]),
    ("image-is-text", {"image/encoded": [b"<html>"]}, ["image_unreadable"]),
    ("image-is-a-number", {"image/encoded": np.array([7])}, ["bad_entry"]),
    ("name-twice", {"image/filename": [b"0.jpg"]}, ["duplicate_name"]),
    ("name-not-utf-8", {"image/filename": [b"\xff\xfe.jpg"]}, ["bad_name"]),
    ("name-with-control", {"image/filename": [b"a\n.jpg"]}, ["bad_name"]),
    ("name-of-300", {"image/filename": [b"n" * 300 + b".jpg"]}, ["bad_name"]),
    ("size-differs", {"image/width": np.array([640])}, ["size_differs"]),
    ("no-class", {"image/object/class/text": None}, ["no_class"]),
    (
        "class-number-of-no-map",
        {"image/object/class/text": None, "image/object/class/label": np.array([3])},
        ["no_class"],
    ),
    ("unknown-class", {"image/object/class/text": [b"horse"]}, ["unknown_class"]),
    ("class-not-utf-8", {"image/object/class/text": [b"c\xe4r"]}, ["unknown_class"]),
    ("class-is-a-number", {"image/object/class/text": np.array([1])}, ["bad_entry"]),
    ("one-side-less", {"image/object/bbox/xmin": None}, ["bad_entry"]),
    ("one-value-more", {"image/object/bbox/xmin": np.array([0, 0.1], _FLOAT)}, ["bad_entry"]),
    ("side-is-text", {"image/object/bbox/xmin": [b"0.1"]}, ["bad_entry"]),
    ("nan", {"image/object/bbox/xmin": np.array([np.nan], _FLOAT)}, ["not_finite"]),
    ("infinity", {"image/object/bbox/xmax": np.array([np.inf], _FLOAT)}, ["not_finite"]),
    ("pixels", {"image/object/bbox/xmax": np.array([32], _FLOAT)}, ["out_of_range"]),
    ("inverted", {"image/object/bbox/xmax": np.array([0], _FLOAT)}, ["inverted"]),
    (
        "outside",
        {"image/object/bbox/xmin": np.array([1.2], _FLOAT), "image/object/bbox/xmax": np.array([1.6], _FLOAT)},
        ["outside"],
    ),
    ("crowd", {"image/object/is_crowd": np.array([1])}, ["crowd"]),
]:
    _add(f"tfrecord-{_name}", _tf(**_changed), *_codes)
for _name, _change, _codes in [
    ("cut-off", lambda data: data[:-20], ["record_damaged"]),
    ("cut-in-a-header", lambda data: data[:6], ["record_damaged", "too_few_images"]),
    ("bit-in-the-image", lambda data: data[:900] + bytes([data[900] ^ 1]) + data[901:], ["record_damaged"]),
    ("bit-in-a-length", lambda data: bytes([data[0] ^ 1]) + data[1:], ["record_damaged"]),
    ("bit-in-the-last-checksum", lambda data: data[:-1] + bytes([data[-1] ^ 1]), ["record_damaged"]),
    ("gzip", gzip.compress, ["record_damaged"]),
    ("zeros", lambda data: b"\0" * len(data), ["record_damaged"]),
    ("zeros-behind", lambda data: data + b"\0" * 64, ["record_damaged"]),
    (
        "length-of-2-60",
        lambda data: struct.pack("<QI", 2**60, container.masked_crc(struct.pack("<Q", 2**60))),
        ["record_damaged"],
    ),
    ("empty", lambda data: b"", ["too_few_images"]),
]:
    _add(f"tfrecord-{_name}", _damaged(_change), *_codes)
_add(
    "tfrecord-no-example",
    lambda root: _records(root / "a.tfrecord", _example(0), b"no example", _example(2)),
    "label_unreadable",
)
_add(
    "tfrecord-empty-record",
    lambda root: _records(root / "a.tfrecord", _example(0), b"", _example(2)),
    "label_unreadable",
)
_add("tfrecord-of-tao", lambda root: _records(root / "a.tfrecord", _tao(0)), "label_unreadable", format="tfrecord")
_add("tfrecord-none", _pictures, "not_recognised", format="tfrecord")

# ---- TAO's TFRecords


def _tao(i: int, **changed: Any) -> dict[str, container.Feature]:
    made: dict[str, Any] = {
        **tao_tfrecord.features(Record(f"{i}.jpg", WIDTH, HEIGHT, "", None, [Box(CLASSES[i % 3], 5, 6, 25, 30)]))
    }
    made |= {key.replace("__", "/"): value for key, value in changed.items()}
    return {key: value for key, value in made.items() if value is not None}


def tao_set(root: Path, *more: Features | bytes) -> Path:
    _pictures(root / "images")
    _records(root / "kitti-fold-000-of-002-shard-00000-of-00001", *(_tao(i) for i in range(IMAGES - 1)), *more)
    return root


for _name, _record, _codes in [
    ("missing-image", _tao(8), ["label_without_image", "image_without_label"]),
    ("no-record-of-an-image", _tao(0), ["image_without_label", "duplicate_image"]),
    ("other-boxes-of-an-image", _tao(0, target__coordinates_x1=np.array([7], _FLOAT)), ["duplicate_name"]),
    ("no-id", _tao(3, frame__id=None), ["label_unreadable"]),
    ("id-is-a-number", _tao(3, frame__id=np.array([3])), ["bad_entry"]),
    ("size-differs", _tao(3, frame__width=np.array([1248])), ["size_differs"]),
    ("uneven-lists", _tao(3, target__coordinates_y2=np.array([1, 2], _FLOAT)), ["bad_entry"]),
    ("class-missing", _tao(3, target__object_class=[b""]), ["no_class"]),
    ("y2-is-0", _tao(3, target__coordinates_y2=np.array([0], _FLOAT)), ["inverted"]),
    ("nan", _tao(3, target__coordinates_y2=np.array([np.nan], _FLOAT)), ["not_finite"]),
    ("no-example", b"\xff" * 40, ["label_unreadable"]),
]:
    _add(f"tao_tfrecord-{_name}", lambda root, record=_record: tao_set(root, record), *_codes)
_add(
    "tao_tfrecord-two-images-of-an-id",
    _then(tao_set, lambda root: (root / "images/1.png").write_bytes(encoded(9, ".png"))),
    "duplicate_name",
)
_add("tao_tfrecord-no-images", _then(tao_set, lambda root: shutil.rmtree(root / "images")), "label_without_image")
_add(
    "tao_tfrecord-of-tensorflow",
    lambda root: _records(root / "a.tfrecord", _example(0)),
    "label_unreadable",
    format="tao_tfrecord",
)
