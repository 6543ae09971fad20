"""A corpus of broken data sets: each is a small good one with one thing wrong, and the faults that must be told.

A case is a name (format first), a function that makes the folder, and the codes of which each must be among the faults.
`format` is what a user would name where the damage is so great that the folder cannot be recognised.

More of it is in corpus_more.py (formats) and corpus_doubts.py (what is doubtful, and what shows between images);
test_corpus.py counts them all and tries each.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.data.helpers import coco_set, encoded, kitti_line, kitti_set, voc_object, voc_set, voc_text, yolo_set

IMAGES = 6


@dataclass(frozen=True)
class Case:
    name: str
    make: Callable[[Path], object]
    codes: frozenset[str]
    format: str | None = None
    lists: Mapping[str, str] | None = None  # of the split, where a case needs them


CASES: list[Case] = []


def case(name: str, make: Callable[[Path], object], *codes: str, format: str | None = None) -> None:
    CASES.append(Case(name, make, frozenset(codes), format))


def written(base: Callable[[Path, int], Path], path: str, data: bytes | str) -> Callable[[Path], object]:
    """A good set with one file written over."""

    def make(root: Path) -> None:
        base(root, IMAGES)
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data)

    return make


def after(base: Callable[[Path, int], Path], change: Callable[[Path], object]) -> Callable[[Path], object]:
    """A good set, then a change of its folder."""
    return lambda root: change(base(root, IMAGES))


def all_files(root: Path, folder: str, data: bytes) -> None:
    for path in (root / folder).iterdir():
        path.write_bytes(data)


# ---- KITTI

_GOOD = kitti_line()
_KITTI = "labels/003.txt"
for _name, _line, _code in [
    ("14-columns", _GOOD.rpartition(" ")[0], "column_count"),
    ("17-columns", _GOOD + " 1 2", "column_count"),
    ("one-column", "car", "column_count"),
    ("commas", _GOOD.replace(" ", ","), "column_count"),
    ("semicolons", _GOOD.replace(" ", ";"), "column_count"),
    ("class-of-two-words", "traffic " + _GOOD, "not_a_number"),
    ("a-word-for-a-number", _GOOD.replace("5.00", "five", 1), "not_a_number"),
    ("decimal-comma", _GOOD.replace("5.00", "5,00", 1), "not_a_number"),
    ("python-number", _GOOD.replace("5.00", "5_0", 1), "not_a_number"),
    ("hexadecimal", _GOOD.replace("5.00", "0x5", 1), "not_a_number"),
    ("arabic-digits", _GOOD.replace("5.00", "٥", 1), "not_a_number"),
    ("nan", _GOOD.replace("5.00", "nan", 1), "not_finite"),
    ("infinity", _GOOD.replace("30.00", "inf", 1), "not_finite"),
    ("overflow", _GOOD.replace("30.00", "1e999", 1), "not_finite"),
    ("dont-care", _GOOD.replace("car", "DontCare"), "dont_care"),
    ("inverted-x", kitti_line(x1=30, x2=10), "inverted"),
    ("inverted-y", kitti_line(y1=40, y2=10), "inverted"),
    ("no-area", kitti_line(x1=10, x2=10), "zero_area"),
    ("thin", kitti_line(x1=10, x2=10.001), "zero_area"),
    ("outside", kitti_line(x1=100, x2=130), "outside"),
    ("mostly-outside", kitti_line(x1=50, x2=120), "outside"),
    ("negative", kitti_line(x1=-40, x2=10), "outside"),
    ("over-the-edge", kitti_line(x1=-2, x2=30), "clipped"),
    ("far-away", kitti_line(x1=1e15, x2=2e15), "outside"),
]:
    case(f"kitti-{_name}", written(kitti_set, _KITTI, f"{_GOOD}\n{_line}\n"), _code)
_SHIFTED = "car 0.00 0 10 20 50 80 0 1 1 1 1 1 1 1\n"
for _name, _data, _codes in [
    ("shifted-column", _SHIFTED.encode(), ["shifted_column"]),
    ("utf-16", f"{_GOOD}\n".encode("utf-16"), ["label_unreadable"]),
    ("latin-1", f"caf\xe9{_GOOD[3:]}\n".encode("latin-1"), ["label_unreadable"]),
    ("zeros-at-its-end", _GOOD.encode() + bytes(64), ["label_unreadable"]),
    ("only-zeros", bytes(4096), ["label_unreadable"]),
    ("an-image", encoded(1), ["label_unreadable"]),
    ("html", b"<!DOCTYPE html>\n<html><body>404</body></html>\n", ["column_count"]),
    ("lfs-pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", ["column_count"]),
    ("old-mac-lines", f"{_GOOD}\r{_GOOD}\r".encode(), ["column_count"]),
]:
    case(f"kitti-{_name}", written(kitti_set, _KITTI, _data), *_codes)
case("kitti-all-shifted", after(kitti_set, lambda r: all_files(r, "labels", _SHIFTED.encode())), "no_objects")
case("kitti-all-empty", after(kitti_set, lambda r: all_files(r, "labels", b"")), "no_objects", "background_image")
case("kitti-yolo-with-names", after(kitti_set, lambda r: all_files(r, "labels", b"car .5 .5 .1 .1\n")), "column_count")

# ---- Pascal VOC

_VOC = "Annotations/003.xml"
for _name, _object, _code in [
    ("no-name", voc_object(""), "no_class"),
    ("empty-object", "<object/>", "no_class"),
    ("no-bndbox", "<object><name>car</name></object>", "no_box"),
    ("polygon", "<object><name>car</name><polygon><x1>1</x1></polygon></object>", "no_box"),
    ("two-bndboxes", voc_object().replace("</object>", "<bndbox/></object>"), "no_box"),
    ("no-xmin", voc_object(box=("", 6, 25, 30)), "no_box"),
    ("word", voc_object(box=("left", 6, 25, 30)), "not_a_number"),
    ("decimal-comma", voc_object(box=("5,5", 6, 25, 30)), "not_a_number"),
    ("nan", voc_object(box=("NaN", 6, 25, 30)), "not_finite"),
    ("overflow", voc_object(box=(5, 6, 25, "1e999")), "not_finite"),
    ("inverted", voc_object(box=(25, 6, 5, 30)), "inverted"),
    ("no-area", voc_object(box=(5, 6, 5, 30)), "zero_area"),
    ("outside", voc_object(box=(500, 600, 510, 610)), "outside"),
    ("over-the-edge", voc_object(box=(50, 6, 70, 30)), "clipped"),
    ("nested", f"<object><name>car</name>{voc_object()}</object>", "no_box"),
]:
    case(f"voc-{_name}", written(voc_set, _VOC, voc_text(voc_object(), _object)), _code)
_BOMB = (
    '<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
    "<annotation><object><name>&b;</name></object></annotation>"
)
_FILE = (
    '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation><object><name>&x;</name></object></annotation>'
)
for _name, _data in [
    ("cut-off", voc_text(voc_object())[:-20].encode()),
    ("empty-file", b""),
    ("not-xml", b"car 1 2 3 4\n"),
    ("json", b'{"objects": []}'),
    ("wrong-nesting", b"<annotation><object></annotation></object>"),
    ("two-roots", b"<annotation/><annotation/>"),
    ("entity-bomb", _BOMB.encode()),
    ("external-entity", _FILE.encode()),
    ("nested-deeply", b"<a>" * 5000 + b"</a>" * 5000),
    ("unknown-encoding", b'<?xml version="1.0" encoding="klingon"?><annotation/>'),
    ("wrong-encoding", '<?xml version="1.0" encoding="utf-8"?><annotation>caf\xe9</annotation>'.encode("latin-1")),
    ("zeros", bytes(512)),
    ("control-character", voc_text(voc_object("c\x01r")).encode()),
    ("ampersand", voc_text(voc_object("cat & dog")).encode()),
]:
    case(f"voc-{_name}", written(voc_set, _VOC, _data), "label_unreadable")
case("voc-other-size", written(voc_set, _VOC, voc_text(voc_object(), width=640, height=480)), "size_differs")
case("voc-turned", written(voc_set, _VOC, voc_text(voc_object(), width=48, height=64)), "size_differs")

# ---- COCO

_COCO = "annotations/instances_default.json"


def coco(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """A good set whose parsed JSON was changed in place."""

    def make(root: Path) -> None:
        path = coco_set(root, IMAGES) / _COCO
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value))

    return make


def with_row(**row: object) -> Callable[[Path], object]:
    whole = {"id": 99, "image_id": 0, "category_id": 30, "bbox": [1, 2, 3, 4], **row}
    return coco(lambda v: v["annotations"].append({k: x for k, x in whole.items() if x is not ...}))


for _name, _row, _code in [
    ("no-image-id", {"image_id": ...}, "bad_entry"),
    ("image-id-a-list", {"image_id": [0]}, "bad_entry"),
    ("image-id-a-fraction", {"image_id": 0.5}, "bad_entry"),
    ("image-id-true", {"image_id": True}, "bad_entry"),
    ("image-id-unknown", {"image_id": 5000}, "label_without_image"),
    ("image-id-as-text", {"image_id": "0"}, "label_without_image"),
    ("no-category", {"category_id": ...}, "no_class"),
    ("category-null", {"category_id": None}, "no_class"),
    ("category-unknown", {"category_id": 31}, "unknown_class"),
    ("crowd", {"iscrowd": 1}, "crowd"),
    ("no-bbox", {"bbox": ...}, "no_box"),
    ("bbox-null-mask", {"bbox": None, "segmentation": {"counts": "ab", "size": [48, 64]}}, "no_box"),
    ("polygon-too-short", {"bbox": [], "segmentation": [[1, 2, 3, 4]]}, "no_box"),
    ("polygon-only", {"bbox": ..., "segmentation": [[1, 2, 30, 4, 9, 20]]}, "polygon_boxed"),
    ("mask-too", {"segmentation": {"counts": [1, 2], "size": [48, 64]}}, "mask_unused"),
    ("bbox-of-three", {"bbox": [1, 2, 3]}, "not_a_number"),
    ("bbox-of-words", {"bbox": ["1", "2", "3", "4"]}, "not_a_number"),
    ("bbox-nested", {"bbox": [[1, 2, 3, 4]]}, "not_a_number"),
    ("bbox-nan", {"bbox": [1, 2, float("nan"), 4]}, "not_finite"),
    ("bbox-infinite", {"bbox": [1, 2, float("inf"), 4]}, "not_finite"),
    ("bbox-huge-integer", {"bbox": [1, 2, 10**400, 4]}, "not_finite"),
    ("bbox-negative-width", {"bbox": [9, 2, -3, 4]}, "inverted"),
    ("bbox-no-height", {"bbox": [9, 2, 3, 0]}, "zero_area"),
    ("bbox-outside", {"bbox": [900, 2, 3, 4]}, "outside"),
    ("bbox-as-corners", {"bbox": [40, 30, 60, 44]}, "outside"),
    ("bbox-over-the-edge", {"bbox": [60, 30, 5, 5]}, "clipped"),
    ("id-twice", {"id": 1}, "duplicate_id"),
]:
    case(f"coco-{_name}", with_row(**_row), _code)
for _name, _change, _codes in [
    ("annotation-a-number", lambda v: v["annotations"].append(5), ["bad_entry"]),
    ("image-without-name", lambda v: v["images"][2].pop("file_name"), ["bad_entry", "image_without_label"]),
    ("image-without-id", lambda v: v["images"][2].pop("id"), ["bad_entry", "label_without_image"]),
    ("image-id-twice", lambda v: v["images"][2].update(id=0), ["duplicate_id"]),
    ("image-name-twice", lambda v: v["images"][2].update(file_name="000.jpg"), ["duplicate_name"]),
    ("image-not-there", lambda v: v["images"][2].update(file_name="no.jpg"), ["label_without_image"]),
    ("image-up-the-tree", lambda v: v["images"][2].update(file_name="../../etc/passwd"), ["label_without_image"]),
    ("image-of-another-size", lambda v: v["images"][2].update(width=640), ["size_differs"]),
    ("category-without-name", lambda v: v["categories"][0].pop("name"), ["bad_entry", "unknown_class"]),
    ("category-name-half-a-character", lambda v: v["categories"][0].update(name="\ud800"), ["bad_entry"]),
    ("category-id-twice", lambda v: v["categories"][0].update(id=40), ["duplicate_id", "unknown_class"]),
    ("no-categories", lambda v: v.pop("categories"), ["label_unreadable", "unknown_class"]),
    ("no-annotations", lambda v: v.pop("annotations"), ["label_unreadable", "no_objects"]),
    ("images-an-object", lambda v: v.update(images={"0": "000.jpg"}), ["bad_entry", "label_without_image"]),
    ("all-annotations-gone", lambda v: v["annotations"].clear(), ["no_objects", "background_image"]),
]:
    case(f"coco-{_name}", coco(_change), *_codes)
for _name, _data in [
    ("empty-file", b""),
    ("zeros", bytes(512)),
    ("utf-16", '{"images": []}'.encode("utf-16")),
    ("a-list", b"[]"),
    ("text", b"see the readme"),
    ("cut-off", b'{"images": [], "annotations": [{"id": 1, "image_id": 0, "bb'),
    ("no-comma", b'{"images": [] "annotations": []}'),
    ("single-quotes", b"{'images': []}"),
    ("comment", b'{"images": [], // none\n "annotations": []}'),
    ("nested-deeply", b'{"annotations": ' + b"[" * 50_000),
    ("endless-number", b'{"annotations": [' + b"1" * 20_000 + b"]}"),
    ("two-values", b'{"images": [], "annotations": [], "categories": []}{}'),
]:
    case(f"coco-{_name}", written(coco_set, _COCO, _data), "label_unreadable", format="coco")
case(
    "coco-image-in-two-files",
    after(coco_set, lambda r: shutil.copy(r / _COCO, r / "annotations/instances_val.json")),
    "list_overlap",
)

# ---- YOLO

_YOLO = "labels/003.txt"
for _name, _line, _code in [
    ("4-columns", "0 0.5 0.5 0.2", "column_count"),
    ("8-columns", "0 .1 .2 .3 .4 .5 .6 .7", "column_count"),
    ("kitti-line", _GOOD, "column_count"),
    ("commas", "0,0.5,0.5,0.2,0.2", "column_count"),
    ("class-by-name", "car 0.5 0.5 0.2 0.2", "not_a_number"),
    ("class-negative", "-1 0.5 0.5 0.2 0.2", "not_a_number"),
    ("class-a-fraction", "0.5 0.5 0.5 0.2 0.2", "not_a_number"),
    ("decimal-comma", "0 0,5 0,5 0,2 0,2", "not_a_number"),
    ("nan", "0 nan 0.5 0.2 0.2", "not_finite"),
    ("infinity", "0 0.5 0.5 inf 0.2", "not_finite"),
    ("pixels", "0 320 240 64 48", "out_of_range"),
    ("beyond-1", "0 1.5 0.5 0.2 0.2", "out_of_range"),
    ("negative-width", "0 0.5 0.5 -0.2 0.2", "out_of_range"),
    ("polygon-in-pixels", "0 10 20 30 40 50 60", "out_of_range"),
    ("no-area", "0 0.5 0.5 0 0.2", "zero_area"),
    ("over-the-edge", "0 0.95 0.5 0.2 0.2", "clipped"),
    ("polygon", "0 0.1 0.1 0.5 0.1 0.3 0.6", "polygon_boxed"),
    ("class-without-name", "3 0.5 0.5 0.2 0.2", "unknown_class"),
]:
    case(f"yolo-{_name}", written(yolo_set, _YOLO, f"0 0.5 0.5 0.2 0.2\n{_line}\n"), _code)
for _name, _data in [
    ("utf-16", "0 0.5 0.5 0.2 0.2\n".encode("utf-16")),
    ("zeros", bytes(100)),
    ("an-image", encoded(1)),
]:
    case(f"yolo-{_name}", written(yolo_set, _YOLO, _data), "label_unreadable")
for _name, _text, _code in [
    ("names-cut-off", "names: [car, cat", "label_unreadable"),
    ("names-nested-deeply", "names: " + "[" * 3000, "label_unreadable"),
    ("names-of-lists", "names: [car, [cat], dog]", "bad_entry"),
    ("names-without-numbers", "names: {a: car, 1: cat, 2: dog}", "bad_entry"),
    ("names-twice", "names: [car, cat, car]", "duplicate_id"),
    ("names-too-few", "names: [car]", "unknown_class"),
    ("no-names", "nc: 3", "class_names_missing"),
    ("python-object", "names: !!python/object/apply:os.system ['true']", "unknown_class"),
]:
    case(f"yolo-{_name}", written(yolo_set, "data.yaml", f"{_text}\n"), _code)
case("yolo-names-differ", written(yolo_set, "labels/classes.txt", "a\nb"), "class_names_differ")
case("yolo-names-python-code", written(yolo_set, "data.yaml", "names: __import__('os')"), "class_names_missing")
case("yolo-label-without-image", written(yolo_set, "labels/more.txt", "0 .5 .5 .2 .2\n"), "label_without_image")
case("yolo-no-label", after(yolo_set, lambda r: (r / _YOLO).unlink()), "background_image")

# ---- images

_JPEG, _PNG, _WEBP, _BMP = (encoded(3, ending) for ending in (".jpg", ".png", ".webp", ".bmp"))
_IMAGE = "images/003.jpg"


def image(data: bytes, ending: str = ".jpg") -> Callable[[Path], object]:
    """A good KITTI set with one image of these bytes."""

    def make(root: Path) -> None:
        kitti_set(root, IMAGES)
        (root / _IMAGE).unlink()
        (root / "images" / f"003{ending}").write_bytes(data)

    return make


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    packed = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


_HUGE = png((b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)), (b"IDAT", b""), (b"IEND", b""))
for _name, _data, _ending, _code in [
    ("empty", b"", ".jpg", "image_truncated"),
    ("one-byte", _JPEG[:1], ".jpg", "image_unreadable"),
    ("jpeg-header-only", _JPEG[:100], ".jpg", "image_truncated"),
    ("jpeg-half", _JPEG[: len(_JPEG) // 2], ".jpg", "image_truncated"),
    ("jpeg-without-its-end", _JPEG[:-2], ".jpg", "image_truncated"),
    ("jpeg-zeros-at-the-end", _JPEG[:-500] + bytes(500), ".jpg", "image_truncated"),
    ("png-header-only", _PNG[:20], ".png", "image_truncated"),
    ("png-half", _PNG[: len(_PNG) // 2], ".png", "image_truncated"),
    ("png-without-its-end", _PNG[:-12], ".png", "image_truncated"),
    ("png-of-10-gigapixels", _HUGE, ".png", "image_unreadable"),
    ("webp-half", _WEBP[: len(_WEBP) // 2], ".webp", "image_truncated"),
    ("bmp-half", _BMP[: len(_BMP) // 2], ".bmp", "image_truncated"),
    ("text", b"this is no image at all", ".jpg", "image_unreadable"),
    ("html", b"<!DOCTYPE html><html>404</html>", ".jpg", "image_unreadable"),
    ("zeros", bytes(4096), ".jpg", "image_unreadable"),
    ("lfs-pointer", b"version https://git-lfs.github.com/spec/v1\n", ".png", "image_unreadable"),
    ("tiff-called-jpg", b"II*\0" + bytes(200), ".jpg", "image_unreadable"),
    ("tiff", b"II*\0" + bytes(200), ".tif", "image_unsupported"),
    ("gif", b"GIF89a" + bytes(200), ".gif", "image_unsupported"),
    ("heic", bytes(200), ".heic", "image_unsupported"),
    ("png-called-jpg", _PNG, ".jpg", "wrong_suffix"),
    ("jpeg-called-webp", _JPEG, ".webp", "wrong_suffix"),
]:
    case(f"image-{_name}", image(_data, _ending), _code)

# ---- the folder


def twin(name: str, data: bytes | None = None) -> Callable[[Path], object]:
    """A KITTI set with one more image and its label, of this name (without ending)."""

    def make(root: Path) -> None:
        kitti_set(root, IMAGES)
        for folder, ending, content in (("images", ".jpg", data or encoded(70)), ("labels", ".txt", _GOOD.encode())):
            path = os.fsencode(root / folder) + b"/" + os.fsencode(name + ending)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as f:
                f.write(content)

    return make


case("folder-empty", lambda root: root.mkdir(), "not_recognised")
case("folder-not-there", lambda root: None, "source_missing")
case("folder-is-a-file", lambda root: root.write_text("x"), "source_missing")
case("folder-one-level-too-high", lambda root: kitti_set(root / "inner", IMAGES), "not_recognised")
case(
    "folder-two-formats",
    after(kitti_set, lambda r: voc_set(r / "x") and (r / "x/Annotations").rename(r / "annotations")),
    "not_recognised",
)
case("folder-no-images", after(kitti_set, lambda r: shutil.rmtree(r / "images")), "not_recognised")
case("folder-no-labels", after(voc_set, lambda r: shutil.rmtree(r / "Annotations")), "not_recognised")
case("folder-one-image", lambda root: kitti_set(root, 1), "too_few_images")
case("folder-image-without-label", after(kitti_set, lambda r: (r / _KITTI).unlink()), "image_without_label")
case("folder-label-without-image", after(kitti_set, lambda r: (r / _IMAGE).unlink()), "label_without_image")
case("folder-two-images-one-label", written(kitti_set, "images/003.png", _PNG), "duplicate_name")
case("folder-two-endings-one-label", written(kitti_set, "labels/003.TXT", _GOOD), "duplicate_name")
case("folder-names-that-become-one", lambda root: (twin("a/b")(root), twin_beside(root)), "duplicate_name")
case("folder-name-not-utf-8", twin("caf\udce9"), "bad_name")
case("folder-name-with-control-characters", twin("a\x1b[2Jb"), "bad_name")
case("folder-name-with-a-line-break", twin("a\nb"), "bad_name")
case("folder-name-too-long", twin("a" * 200 + "/" + "b" * 200), "bad_name")
case("folder-link-out", after(kitti_set, lambda r: (r / "labels/x.txt").symlink_to("/etc/passwd")), "not_followed")
case("folder-link-to-nothing", after(kitti_set, lambda r: (r / "labels/x.txt").symlink_to(r / "no")), "not_followed")
case("folder-link-to-itself", after(kitti_set, lambda r: (r / "images/up").symlink_to(r)), "not_followed")
case("folder-pipe", after(kitti_set, lambda r: os.mkfifo(r / "labels/x.txt")), "not_followed")
case("folder-hidden-files", written(kitti_set, "images/.003.jpg.swp", b"x"), "ignored_files")
case("folder-other-files", written(kitti_set, "readme.pdf", b"x"), "ignored_files")


def twin_beside(root: Path) -> None:
    """a__b beside a/b: one name in a snapshot."""
    (root / "images/a__b.jpg").write_bytes(encoded(71))
    (root / "labels/a__b.txt").write_text(_GOOD)
