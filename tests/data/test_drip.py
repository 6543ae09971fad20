"""Drip's frames: both of its spellings, read and written, with all boxes of all images."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.data.helpers import HEIGHT, WIDTH, encoded  # isort: skip

from refit.data.formats import drip
from tests.data import writing


def box(cls: object = "car", key: str = "class", **changed: object) -> dict[str, object]:
    return {key: cls, "x0": 5, "y0": 6, "x1": 25, "y1": 30} | changed


def frame(path: str = "a.jpg", *boxes: object, **changed: object) -> dict[str, object]:
    return {"path": path, "width": WIDTH, "height": HEIGHT, "boxes": list(boxes)} | changed


def drip_set(root: Path, *frames: object, images: tuple[str, ...] = ("a.jpg", "b.jpg"), **files: str) -> Path:
    for i, name in enumerate(images):
        path = root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(i))
    (root / "metadata.json").write_text(json.dumps({"frames": frames}))
    for name, text in files.items():
        (root / name.replace("__", ".")).write_text(text)
    return root


def parsed(value: Any) -> tuple[list[tuple[str, list[str]]], list[tuple[str, str, int]]]:
    with tempfile.NamedTemporaryFile() as file:
        file.write(value if isinstance(value, bytes) else json.dumps(value).encode())
        file.flush()
        entries, loose, _ = drip.parse(Path(file.name), "m.json", {1: "car"})
    held = [loose, *(e.labels for e in entries)]
    assert all(labels.balanced() for labels in held)
    faults = [(f.code, f.at or f.message, f.objects) for labels in held for f in labels.faults]
    return [(e.ref, [o.label for o in e.labels.objects]) for e in entries], faults


def test_class_and_type_mean_the_same() -> None:
    boxes = [box(), box("dog", "type"), box("cat") | {"type": "cat"}, box(1), box(None, "type") | {"class": "ox"}]
    assert parsed({"frames": [frame("a.jpg", *boxes)]}) == ([("a.jpg", ["car", "dog", "cat", "car", "ox"])], [])


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        ("box", "bad_entry"),
        ({}, "no_class"),
        (box(""), "no_class"),
        (box(True), "no_class"),
        (box(["car"]), "no_class"),
        (box() | {"type": "dog"}, "no_class"),
        (box(x0=None), "no_box"),
        (box(y1="low"), "not_a_number"),
        (box(y1=[3]), "not_a_number"),
        (box(y1=True), "not_a_number"),
        (box(x1=float("nan")), "not_finite"),
        (box(x1=10**400), "not_finite"),
    ],
)
def test_a_bad_box_costs_itself_alone(bad: object, code: str) -> None:
    found = parsed({"frames": [frame("a.jpg", box(), bad, box(x1="25"))]})
    assert found == ([("a.jpg", ["car", "car"])], [(code, "frames[0].boxes[1]", 1)])


@pytest.mark.parametrize("bad", [None, 3, {}, {"path": "b.jpg"}, {"boxes": [1, 2]}, frame(boxes={}), frame(path=3)])
def test_a_bad_frame_costs_itself_alone(bad: object) -> None:
    boxes = bad.get("boxes") if isinstance(bad, dict) else None
    lost = len(boxes) if isinstance(boxes, list) else 0
    found = parsed({"frames": [bad, frame("a.jpg", box())]})
    assert found == ([("a.jpg", ["car"])], [("bad_entry", "frames[0]", lost)])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"frames": {"x0": 1, "y": {"x0": 2}}}', "no {"),
        (b'[{"x0": 1}, {"x0": 1}]', "no {"),
        (b'{"x0": 1, "x0": 1, "frames": ' + b"[" * 100_000, "nested too deep"),
        (b'{"frames": [{"a": ' + b"9" * 5000 + b'}, {"x0": 1, "x0" : 1}]}', "not valid JSON"),
        (b'\xff\xfe{"x0": 1, "x0": 1}', "UTF-16"),
    ],
)
def test_a_file_that_cannot_be_read_says_what_is_lost(data: bytes, message: str) -> None:
    entries, [(code, why, lost)] = parsed(data)
    assert (entries, code) == ([], "label_unreadable")
    assert lost == 2 or "nested" in message
    assert message in why


def test_a_file_that_is_cut_off_gives_what_was_whole() -> None:
    data = json.dumps({"frames": [frame("a.jpg", box()), frame("b.jpg", box(), box())]}).encode()
    entries, faults = parsed(data[:-20])
    assert entries == [("a.jpg", ["car"])]
    assert [(code, lost) for code, _, lost in faults] == [("label_unreadable", 2)]


def test_images_in_folders(tmp_path: Path) -> None:
    """Drip names them from where it was started, or below the image folder."""
    frames = [frame("./files/images/day/1.jpg", box()), frame("night/1.jpg", box("dog")), frame("night/2.jpg")]
    names = ("day/1.jpg", "night/1.jpg", "night/2.jpg", "night/3.jpg")
    found = writing.check(drip_set(tmp_path, *frames, images=names, class_map__pbtxt="item { id: 1 name: 'car' }"))
    assert (found.format, found.names) == ("drip", ("car",))
    assert [(s.name, [o.cls for o in s.objects]) for s in found.samples] == [
        ("day/1.jpg", ["car"]),
        ("night/1.jpg", ["dog"]),
        ("night/2.jpg", []),
    ]
    assert [(f.code, f.file) for f in found.faults if f.severity == "error"] == [
        ("image_without_label", "images/night/3.jpg")
    ]


def test_a_frame_of_another_size_and_one_told_of_twice(tmp_path: Path) -> None:
    frames = [frame("a.jpg", box(), width=HEIGHT, height=WIDTH), frame("b.jpg", box()), frame("b.jpg", box(), box())]
    found = writing.check(drip_set(tmp_path, *frames))
    assert [(f.code, f.objects, f.at) for f in found.faults if f.objects] == [
        ("duplicate_name", 2, "frames[2]"),
        ("size_differs", 1, "frames[0]"),
    ]
    assert "swapped" in next(f.advice for f in found.faults if f.code == "size_differs")


@pytest.mark.parametrize("parts", [(None,), ("train", "val")])
def test_round_trip(tmp_path: Path, parts: tuple[str | None, ...]) -> None:
    records = writing.records(parts, flags=True)
    lost = writing.write(drip.WRITER, tmp_path / "out", records)
    objects = [o for r in records for o in r.objects]
    assert lost == {
        "difficult": sum(o.difficult for o in objects),
        "truncated": sum(bool(o.truncated) for o in objects),
        "occluded": sum(bool(o.occluded) for o in objects),
    }
    found = writing.check(tmp_path / "out")
    assert (found.format, found.names) == ("drip", ("car", "traffic light, red", "ça va"))
    assert writing.seen(found) == writing.expected(records)


def test_what_drip_itself_reads(tmp_path: Path) -> None:
    """By its code: box["type"], x0 and so on as numbers, path below --image_folder_path."""
    writing.write(drip.WRITER, tmp_path / "out", writing.records())
    frames = json.loads((tmp_path / "out" / "metadata.json").read_text())["frames"]
    assert all((tmp_path / "out" / "images" / f["path"]).is_file() for f in frames)
    boxes = [b for f in frames for b in f["boxes"]]
    assert {b["type"] for b in boxes} == {b["class"] for b in boxes} == {"car", "traffic light, red", "ça va"}
    assert all(isinstance(b[side], int | float) for b in boxes for side in ("x0", "y0", "x1", "y1"))
