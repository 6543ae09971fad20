"""What deserves a look: each check with a case that it finds and one that it leaves alone."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.data.helpers import CLASSES, HEIGHT, WIDTH, encoded, kitti_line, kitti_set, picture, voc_object, voc_text

import cv2  # isort: skip
import numpy as np

from refit.data import doubts, look
from refit.data.examine import Examination, examine
from refit.data.model import Box, Sample


def _of_label(tmp_path: Path, *lines: str) -> Examination:
    """A good set whose first label file has these lines."""
    root = kitti_set(tmp_path / "set")
    (root / "labels/000.txt").write_text("".join(f"{line}\n" for line in lines))
    return examine(root)


def _codes(found: Examination) -> list[tuple[str, str, int]]:
    return [(f.code, f.file, f.line) for f in found.faults]


@pytest.mark.parametrize(
    ("code", "bad", "good"),
    [
        ("tiny_box", kitti_line(x1=5, x2=7.9), kitti_line(x1=5, x2=8)),
        ("tiny_box", kitti_line(y1=5, y2=6), kitti_line(y1=5, y2=9)),
        ("giant_box", kitti_line("car", 0, 0, WIDTH, HEIGHT), kitti_line("car", 0, 0, WIDTH, HEIGHT * 0.9)),
        ("giant_box", kitti_line("car", 0, 0, WIDTH, HEIGHT * 0.96), kitti_line("car", 0, 0, WIDTH * 0.9, HEIGHT)),
        ("duplicate_box", kitti_line("cat", 10, 10, 40, 40.5), kitti_line("cat", 10, 10, 40, 42)),
        ("duplicate_box", kitti_line("cat", 9.5, 10, 40, 40), kitti_line("cat", 8, 10, 40, 40)),
        ("box_of_two_classes", kitti_line("dog", 10, 10, 40, 40), kitti_line("dog", 15, 10, 45, 40)),
    ],
)
def test_odd_boxes(tmp_path: Path, code: str, bad: str, good: str) -> None:
    first = kitti_line("cat", 10, 10, 40, 40)
    found = _of_label(tmp_path / "bad", first, bad)
    assert _codes(found) == [(code, "labels/000.txt", 2)]
    assert not found.failed()
    assert sum(len(s.objects) for s in found.samples) == 13  # nothing is taken out
    assert _codes(_of_label(tmp_path / "good", first, good)) == []


def test_a_pipeline_can_make_a_doubt_an_error(tmp_path: Path) -> None:
    root = kitti_set(tmp_path / "set", lines=[kitti_line(), kitti_line()])
    assert not examine(root).failed()
    assert examine(root, severity={"duplicate_box": "error"}).failed()


def _with_orientation(jpeg: bytes, value: int) -> bytes:
    """The file with an EXIF block that holds the orientation (CIPA DC-008, 4.6.4)."""
    tiff = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, value, 0, 0)
    body = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


def _cmyk_jpeg() -> bytes:
    import simplejpeg

    plane = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8)
    return bytes(simplejpeg.encode_jpeg(plane, colorspace="CMYK", colorsubsampling="444"))


@pytest.mark.parametrize(
    ("code", "name", "data"),
    [
        ("exif_orientation", "000.jpg", _with_orientation(encoded(0), 6)),
        ("exif_orientation", "000.jpg", _with_orientation(encoded(0), 3)),
        ("", "000.jpg", _with_orientation(encoded(0), 1)),
        ("deep_image", "000.png", cv2.imencode(".png", picture(0).astype(np.uint16) * 257)[1].tobytes()),
        ("alpha_channel", "000.png", cv2.imencode(".png", np.dstack([picture(0), picture(1)[..., 0]]))[1].tobytes()),
        ("mixed_colour", "000.jpg", cv2.imencode(".jpg", picture(0)[..., 0])[1].tobytes()),
        ("cmyk_image", "000.jpg", _cmyk_jpeg()),
        ("", "000.webp", encoded(0, ".webp")),
        ("", "000.bmp", encoded(0, ".bmp")),
    ],
)
def test_odd_files(tmp_path: Path, code: str, name: str, data: bytes) -> None:
    root = kitti_set(tmp_path / "set")
    (root / "images/000.jpg").unlink()
    (root / "images" / name).write_bytes(data)
    assert _codes(examine(root)) == ([(code, f"images/{name}", 0)] if code else [])


def test_labels_made_for_the_image_as_stored_need_no_word_about_its_orientation(tmp_path: Path) -> None:
    for folder in ("JPEGImages", "Annotations"):
        (tmp_path / folder).mkdir()
    for i in range(4):
        (tmp_path / f"JPEGImages/{i}.jpg").write_bytes(_with_orientation(encoded(i), 6))
        (tmp_path / f"Annotations/{i}.xml").write_text(voc_text(voc_object(CLASSES[i % 3])))
    assert _codes(examine(tmp_path)) == []
    (tmp_path / "Annotations/0.xml").write_text(voc_text(voc_object(), width=HEIGHT, height=WIDTH))
    assert [f.code for f in examine(tmp_path).faults] == ["size_differs"]


def test_names(tmp_path: Path) -> None:
    root = kitti_set(tmp_path / "set")
    for stem in ("A", "a", "é"):
        (root / f"images/{stem}.jpg").write_bytes(encoded(ord(stem)))
        (root / f"labels/{stem}.txt").write_text(kitti_line())
    assert _codes(examine(root)) == [
        ("name_case_collision", "images/a.jpg", 0),
        ("name_not_ascii", "images/é.jpg", 0),
    ]


def _samples(*counts: tuple[str, int, int]) -> list[Sample]:
    """Samples of one class each: (class, images, objects an image)."""
    found = []
    for cls, images, objects in counts:
        for _ in range(images):
            name = f"{len(found):06}.jpg"
            digest = hashlib.sha256(name.encode()).hexdigest()
            found.append(Sample(name, name, name, digest, 1, 64, 48, (Box(cls, 1, 1, 9, 9),) * objects))
    return found


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (_samples(("car", 100, 1), ("cat", 10, 1)), ["rare_class"]),
        (_samples(("car", 100, 1), ("cat", 11, 1)), []),
        (_samples(("car", 12, 1), ("cat", 2, 1)), []),  # all is small here
        (_samples(("car", 100, 10), ("cat", 19, 1)), ["class_imbalance"]),
        (_samples(("car", 100, 10), ("cat", 20, 1)), []),
        (_samples(("car", 5, 0)), []),
    ],
)
def test_classes(samples: Sequence[Sample], expected: list[str]) -> None:
    assert [f.code for f in doubts.of_all(samples)] == expected


# ---- near-duplicates


def _scene(seed: int, width: int = 640, height: int = 480) -> np.ndarray:
    """A picture with large and small shapes, as photographs have them."""
    small = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def _look(pixels: np.ndarray) -> look.Look:
    return look.of(pixels, 3, 8, 1)


def _distance(a: look.Look, b: look.Look) -> int:
    return (int.from_bytes(a.hash, "big") ^ int.from_bytes(b.hash, "big")).bit_count()


@pytest.mark.parametrize("seed", range(5))
def test_the_same_scene_looks_the_same(seed: int) -> None:
    scene = _scene(seed)
    seen = _look(scene)
    poor = cv2.imdecode(cv2.imencode(".jpg", scene, [cv2.IMWRITE_JPEG_QUALITY, 50])[1], cv2.IMREAD_COLOR)
    for changed in (poor, cv2.resize(scene, (320, 240)), cv2.convertScaleAbs(scene, alpha=0.9, beta=10)):
        assert _distance(seen, _look(changed)) <= look.NEAR_BITS
    assert _distance(seen, _look(_scene(seed + 100))) > 3 * look.NEAR_BITS
    assert look.unpack(seen.pack()) == seen


def test_kinds_of_pixels_look_the_same() -> None:
    scene = _scene(1)
    seen = _look(scene)
    for pixels in (scene.astype(np.uint16) * 257, np.dstack([scene, scene[..., 0]]), cv2.cvtColor(scene, 6)[..., None]):
        assert _distance(seen, _look(pixels)) <= 2
        assert abs(_look(pixels).brightness - seen.brightness) <= 1


def test_plain_pictures_are_not_called_near_duplicates() -> None:
    plain = [_look(np.full((48, 64, 3), grey, np.uint8)) for grey in (0, 128, 255)]
    assert [p.brightness for p in plain] == [0, 128, 255]
    same, lower = look.near(b"".join(p.hash for p in plain), np.array([0, 0, 1]))
    assert (same.tolist(), lower.tolist()) == ([-1] * 3, [-1] * 3)


def test_near_finds_what_a_look_at_every_pair_finds() -> None:
    rng = np.random.default_rng(5)
    base = rng.integers(0, 256, (40, 16), dtype=np.uint8)
    hashes, parts = [], []
    for row in base:
        for _ in range(rng.integers(1, 5)):
            bits = np.unpackbits(row)
            bits[rng.choice(128, rng.integers(0, 12), replace=False)] ^= 1
            hashes.append(np.packbits(bits).tobytes())
            parts.append(int(rng.integers(0, 3)))

    def distance(i: int, j: int) -> int:
        return (int.from_bytes(hashes[i], "big") ^ int.from_bytes(hashes[j], "big")).bit_count()

    def nearest(i: int, others: list[int]) -> int:
        close = [(distance(i, j), j) for j in others if distance(i, j) <= look.NEAR_BITS]
        return min(close)[1] if close else -1

    n = range(len(hashes))
    same, lower = look.near(b"".join(hashes), np.array(parts))
    assert same.tolist() == [nearest(i, [j for j in range(i) if parts[j] == parts[i]]) for i in n]
    assert lower.tolist() == [nearest(i, [j for j in n if parts[j] < parts[i]]) for i in n]
    assert (same >= 0).any()
    assert (lower >= 0).any()


def test_near_duplicates_are_told_once_each_and_across_parts_as_a_leak() -> None:
    near = [_look(_scene(1)).pack(), _look(cv2.resize(_scene(1), (320, 240))).pack(), _look(_scene(2)).pack()]
    samples = [replace(s, look=near[i % 3]) for i, s in enumerate(_samples(("car", 3, 1)))]
    files = [s.file for s in samples]
    found = list(doubts.duplicates(samples, dict.fromkeys(files, "train")))
    assert [(f.code, f.file, f.value) for f in found] == [("near_duplicate_image", files[1], files[0])]
    found = list(doubts.duplicates(samples, dict(zip(files, ["val", "train", "train"], strict=True))))
    assert [(f.code, f.file, f.value) for f in found] == [("near_duplicate_across_splits", files[0], files[1])]
    assert found[0].severity == "warning"
    equal = [replace(s, sha256="1" * 64) for s in samples]
    assert [f.code for f in doubts.duplicates(equal[:2], dict.fromkeys(files, "train"))] == ["duplicate_image"]


def test_of_a_video_not_every_frame_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doubts, "TOLD", 5)
    frames = [replace(s, look=_look(_scene(1)).pack()) for s in _samples(("car", 20, 1))]
    found = list(doubts.duplicates(frames, {s.file: "val" if i == 3 else "train" for i, s in enumerate(frames)}))
    assert [f.code for f in found].count("near_duplicate_across_splits") == 1
    same = [f for f in found if f.code == "near_duplicate_image"]
    assert len(same) == 6
    assert same[-1].message.startswith("and 13 more pictures")
