"""More of the corpus (tests/data/corpus.py): what is doubtful in images, boxes, classes and names, and what shows only
when images are compared or divided.

`POINT_4` is the list of issue 5, "Checks": each of them must be told for some case of the corpus.
"""

from __future__ import annotations

import shutil
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg

from tests.data.corpus import CASES, IMAGES, Case, after, written
from tests.data.helpers import CLASSES, HEIGHT, WIDTH, encoded, kitti_line, kitti_set, picture

POINT_4: Mapping[str, str] = {
    "unreadable images": "image_unreadable",
    "truncated images": "image_truncated",
    "damaged images": "image_damaged",
    "a label without an image": "label_without_image",
    "an image without a label": "image_without_label",
    "inverted boxes": "inverted",
    "boxes outside": "outside",
    "boxes of no area": "zero_area",
    "tiny boxes": "tiny_box",
    "giant boxes": "giant_box",
    "duplicated boxes": "duplicate_box",
    "shifted columns": "shifted_column",
    "NaN": "not_finite",
    "unknown classes": "unknown_class",
    "missing classes": "class_without_objects",
    "rare classes": "rare_class",
    "imbalance": "class_imbalance",
    "exact duplicates": "duplicate_image",
    "near-duplicates": "near_duplicate_image",
    "exact duplicates across train and val": "duplicate_across_splits",
    "near-duplicates across train and val": "near_duplicate_across_splits",
    "EXIF orientation": "exif_orientation",
    "grayscale among colour": "mixed_colour",
    "16 bit": "deep_image",
    "CMYK": "cmyk_image",
    "non-ASCII names": "name_not_ascii",
    "colliding names": "name_case_collision",
    "a rate of bad labels above the limit": "too_many_bad_labels",
    "zero objects": "no_objects",
}
# Against the network's input, and against the data set last trained on: these need more than a data set, and are tested
# in tests/data/test_report.py and tests/data/test_drift.py.
BETWEEN_TWO = ("small_for_network", "drift_class_mix", "drift_box_size", "drift_brightness")


def _add(name: str, make: Any, *codes: str, lists: Mapping[str, str] | None = None) -> None:
    CASES.append(replace(Case(f"doubts-{name}", make, frozenset(codes)), lists=lists))


def _labels(*lines: str) -> Any:
    return lambda root: kitti_set(root, IMAGES, lines)


def _image(path: str, data: bytes) -> Any:
    """One more image of a KITTI set, with a label."""

    def change(root: Path) -> None:
        (root / "images" / path).write_bytes(data)
        (root / "labels" / Path(path).with_suffix(".txt")).write_text(kitti_line() + "\n")

    return after(kitti_set, change)


def _exif(data: bytes, orientation: int) -> bytes:
    tiff = b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 0x112, 3, 1, orientation, 0) + b"\0\0\0\0"
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(tiff) + 8) + b"Exif\0\0" + tiff + data[2:]


def _png(pixels: Any) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


def _scene(seed: int = 3) -> Any:
    """A picture with large shapes, as photographs have."""
    return cv2.resize(picture(seed, 12, 8), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)


def _twins(first: bytes, second: bytes) -> Any:
    def change(root: Path) -> None:
        for name, data in (("a", first), ("b", second)):
            (root / f"images/{name}.png").write_bytes(data)
            (root / f"labels/{name}.txt").write_text(kitti_line() + "\n")
        names = [p.name for p in sorted((root / "images").iterdir())]
        (root / "train.lst").write_text("".join(f"{n}\n" for n in names[::2]))
        (root / "val.lst").write_text("".join(f"{n}\n" for n in names[1::2]))
        (root / "rest.lst").write_text("".join(f"{n}\n" for n in names[:3]))
        (root / "together.lst").write_text("".join(f"{n}\n" for n in names[3:]))

    return after(kitti_set, change)


def _classes(**counts: int) -> Any:
    """A KITTI set with so many images of each class."""

    def make(root: Path) -> None:
        kitti_set(root, sum(counts.values()))
        for i, cls in enumerate([cls for cls, n in counts.items() for _ in range(n)]):
            (root / f"labels/{i:03}.txt").write_text(kitti_line(cls) + "\n")

    return make


def _crowded(root: Path) -> None:
    """One picture with 120 cars; the other class has one object."""
    kitti_set(root, IMAGES)
    lines = [kitti_line("car", x, y, x + 5, y + 5) for x in range(0, WIDTH - 6, 6) for y in range(0, HEIGHT - 6, 6)]
    for path in (root / "labels").iterdir():
        path.write_text("".join(f"{line}\n" for line in lines))
    (root / "labels/000.txt").write_text(kitti_line(CLASSES[1]) + "\n")


_BOTH = {"train": "train.lst", "val": "val.lst"}
_TOGETHER = {"train": "together.lst", "val": "rest.lst"}
_FLIPPED = bytearray(encoded(80))
_FLIPPED[len(_FLIPPED) // 2 : len(_FLIPPED) // 2 + 4] = b"\xff\xd9\xff\xd9"

for _name, _line, _code in [
    ("a-slip-of-the-mouse", kitti_line(x1=5, y1=5, x2=7, y2=30), "tiny_box"),
    ("the-whole-picture", kitti_line(x1=0, y1=0, x2=WIDTH, y2=HEIGHT), "giant_box"),
    ("cut-at-the-edge", kitti_line(x1=-2, y1=6, x2=25, y2=30), "clipped"),
]:
    _add(_name, _labels(kitti_line(), _line), _code)
_add("the-same-box-twice", _labels(kitti_line(), kitti_line()), "duplicate_box")
_add("nearly-the-same-box", _labels(kitti_line(), kitti_line(x2=25.2)), "duplicate_box")
_add("one-place-two-classes", _labels(kitti_line("car"), kitti_line(CLASSES[1])), "box_of_two_classes")
_add("every-label-inverted", _labels(kitti_line(x1=25, x2=5)), "too_many_bad_labels", "inverted")
_add("nothing-but-regions-to-ignore", _labels(kitti_line("DontCare")), "no_objects", "dont_care")
_add("a-class-without-objects", _classes(**{CLASSES[0]: 3, CLASSES[1]: 3}), "class_without_objects")
_add("a-class-in-one-image", _classes(**{CLASSES[0]: 30, CLASSES[1]: 30, CLASSES[2]: 1}), "rare_class")
_add("one-class-fifty-times-the-other", _crowded, "class_imbalance")
_add("turned-by-exif", _image("t.jpg", _exif(encoded(81), 6)), "exif_orientation")
_add("upside-down-by-exif", _image("t.jpg", _exif(encoded(81), 3)), "exif_orientation")
_add("16-bit", _image("t.png", _png(picture(82).astype(np.uint16) * 257)), "deep_image")
_add("alpha", _image("t.png", _png(np.dstack([picture(83), picture(84)[..., 0]]))), "alpha_channel")
_add("one-grey-among-colours", _image("t.png", _png(picture(85)[..., 0])), "mixed_colour")
_add(
    "cmyk",
    _image(
        "t.jpg",
        simplejpeg.encode_jpeg(
            np.ascontiguousarray(np.dstack([_scene(), _scene()[..., :1]])), colorspace="CMYK", colorsubsampling="444"
        ),
    ),
    "cmyk_image",
)
_add("bytes-too-many", _image("t.jpg", encoded(80)[:-2] + b"\1\2\3\4" + encoded(80)[-2:]), "image_damaged")
_add("an-end-in-the-middle", _image("t.jpg", bytes(_FLIPPED)), "image_truncated")
_add("another-kind-than-its-name-says", _image("t.jpg", encoded(86, ".png")), "wrong_suffix")
_add("accents", _image("caf\u00e9.jpg", encoded(87)), "name_not_ascii")
_add("capitals-alone", after(kitti_set, lambda r: [
    (r / folder / f"{name}{ending}").write_bytes(data)
    for name, i in (("shop", 88), ("SHOP", 89))
    for folder, ending, data in (("images", ".jpg", encoded(i)), ("labels", ".txt", kitti_line().encode()))
]), "name_case_collision")  # fmt: skip
_add("a-copy", _twins(_png(_scene()), _png(_scene())), "duplicate_image")
_add("a-copy-across-the-split", _twins(_png(_scene()), _png(_scene())), "duplicate_across_splits", lists=_BOTH)
_add(
    "nearly-a-copy",
    _twins(_png(_scene()), _png(cv2.convertScaleAbs(_scene(), alpha=0.95, beta=4))),
    "near_duplicate_image",
    lists=_TOGETHER,
)
_add(
    "nearly-a-copy-across-the-split",
    _twins(_png(_scene()), _png(cv2.convertScaleAbs(_scene(), alpha=0.95, beta=4))),
    "near_duplicate_across_splits",
    lists=_BOTH,
)
_add("a-list-that-is-not-there", lambda root: kitti_set(root, IMAGES), "list_missing", lists=_BOTH)
_add(
    "a-list-of-other-images",
    written(kitti_set, "val.lst", "999.jpg\n"),
    "list_missing",
    "list_unknown_name",
    lists=_BOTH,
)
_add(
    "a-list-of-all-in-both",
    after(kitti_set, lambda r: [
        (r / f"{part}.lst").write_text("".join(f"{p.name}\n" for p in (r / "images").iterdir())) for part in _BOTH
    ]),
    "list_overlap",
    lists=_BOTH,
)  # fmt: skip
_add("a-folder-of-labels-that-are-pictures", after(kitti_set, lambda r: [
    shutil.copy(p, r / "labels" / p.with_suffix(".txt").name) for p in (r / "images").iterdir()
]), "label_unreadable", "no_objects")  # fmt: skip
