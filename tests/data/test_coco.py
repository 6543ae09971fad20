"""COCO's JSON: what is read, and that each thing that cannot be read is said with its place."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from tests.data.helpers import CLASSES, coco_set, encoded  # isort: skip

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refit.data import convert
from refit.data.checks import Classes
from refit.data.codes import CODES
from refit.data.examine import Examination, examine
from refit.data.faults import BadData
from refit.data.formats import READERS, recognise
from refit.data.jsonstream import JsonFile, NotJson
from refit.data.tree import scan

FILE = "annotations/instances_default.json"


def changed(root: Path, change: Any) -> Examination:
    """The set after `change` (of the parsed JSON, in place)."""
    path = root / FILE
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    return examine(root, classes=Classes(CLASSES), max_bad_labels=1)


def codes(found: Examination) -> dict[str, list[str]]:
    assert found.balanced()
    out: dict[str, list[str]] = {}
    for f in found.faults:
        assert f.advice
        out.setdefault(f.code, []).append(f.at)
    return out


def test_good(tmp_path: Path) -> None:
    root = coco_set(tmp_path / "set")
    found = examine(root, classes=Classes(CLASSES))
    assert (found.format, found.faults, found.declared) == ("coco", [], 12)
    assert found.names == CLASSES
    first = found.samples[0]
    assert (first.file, first.part) == ("000.jpg", None)
    assert [(o.cls, o.x1, o.y1, o.x2, o.y2) for o in first.objects] == [("car", 5, 6, 25.1, 30)]


BOX = {"image_id": 0, "category_id": 30, "bbox": [1, 2, 3, 4]}


@pytest.mark.parametrize(
    ("row", "code"),
    [
        (5, "bad_entry"),
        (None, "bad_entry"),
        ([BOX], "bad_entry"),
        ({**BOX, "image_id": [0]}, "bad_entry"),
        ({**BOX, "image_id": True}, "bad_entry"),
        ({**BOX, "image_id": 0.5}, "bad_entry"),
        ({**BOX, "iscrowd": 1}, "crowd"),
        ({**BOX, "category_id": None}, "no_class"),
        ({**BOX, "category_id": 31}, "unknown_class"),
        ({"image_id": 0, "category_id": 30}, "no_box"),
        ({**BOX, "bbox": [], "segmentation": []}, "no_box"),
        ({**BOX, "bbox": None, "segmentation": {"counts": [5, 9], "size": [48, 64]}}, "no_box"),
        ({**BOX, "bbox": None, "segmentation": [[1, 2, 3, 4, 5]]}, "no_box"),
        ({**BOX, "bbox": None, "segmentation": [[1, 2, 3, 4, 5, "6"]]}, "no_box"),
        ({**BOX, "bbox": [1, 2, 3]}, "not_a_number"),
        ({**BOX, "bbox": {"x": 1}}, "not_a_number"),
        ({**BOX, "bbox": [1, 2, "3", 4]}, "not_a_number"),
        ({**BOX, "bbox": [1, 2, True, 4]}, "not_a_number"),
        ({**BOX, "bbox": [1, 2, float("nan"), 4]}, "not_finite"),
        ({**BOX, "bbox": [1, 2, 10**400, 4]}, "not_finite"),
        ({**BOX, "bbox": [1, 2, -3, 4]}, "inverted"),
        ({**BOX, "bbox": [1, 2, 0, 4]}, "zero_area"),
        ({**BOX, "bbox": [70, 2, 4, 4]}, "outside"),
    ],
)
def test_a_bad_annotation_has_its_place(tmp_path: Path, row: object, code: str) -> None:
    root = coco_set(tmp_path / "set")
    found = changed(root, lambda value: value["annotations"].append(row))
    assert codes(found) == {code: ["annotations[12]"]}
    fault = next(f for f in found.faults if f.code == code)
    assert (fault.file, fault.line, fault.objects, found.declared) == (FILE, 1, 1, 13)
    assert "(annotations[12])" in str(fault)


def test_line_numbers(tmp_path: Path) -> None:
    root = coco_set(tmp_path / "set")
    value = json.loads((root / FILE).read_text())
    value["annotations"][7]["bbox"][2] = -1
    text = json.dumps(value, indent=1)
    (root / FILE).write_text(text)
    (fault,) = examine(root, classes=Classes(CLASSES), max_bad_labels=1).faults
    lines = text.split("\n")
    assert json.loads(" ".join(lines[fault.line - 1 :]).partition("}")[0] + "}")["id"] == 8


def test_polygons_become_boxes_and_masks_are_counted(tmp_path: Path) -> None:
    def change(value: Any) -> None:
        rows = value["annotations"]
        rows[0] |= {"bbox": None, "segmentation": [[1, 2, 9, 3, 5, 12], [20, 20, 30, 20, 30, 25.5]]}
        rows[1]["segmentation"] = [[1, 2, 9, 3, 5, 12]]
        rows[2]["segmentation"] = {"counts": "abc", "size": [48, 64]}

    found = changed(coco_set(tmp_path / "set"), change)
    assert codes(found) == {"mask_unused": [""], "polygon_boxed": [""]}
    box = found.samples[0].objects[0]
    assert (box.x1, box.y1, box.x2, box.y2) == (1, 2, 30, 25.5)
    assert any("1 objects have polygons, 1 have masks" in f.message for f in found.faults)


def test_ids(tmp_path: Path) -> None:
    """Ids of several things: an image's takes its objects with it, since no one knows whose they are."""

    def change(value: Any) -> None:
        value["images"][3]["id"] = value["images"][2]["id"]
        value["annotations"][8]["id"] = value["annotations"][7]["id"]
        value["categories"].append({"id": 50, "name": "bird"})

    found = changed(coco_set(tmp_path / "set"), change)
    assert (found.balanced(), found.declared) == (True, 12)
    assert {s.file for s in found.samples} == {f"{i:03}.jpg" for i in range(12) if i not in (2, 3)}
    told = [(f.code, f.file, f.at, f.objects, f.images) for f in found.faults]
    assert ("duplicate_id", FILE, "images[3]", 0, 0) in told
    assert ("duplicate_id", "images/002.jpg", "", 1, 1) in told
    assert ("duplicate_id", "images/003.jpg", "", 0, 1) in told
    assert ("duplicate_id", FILE, "categories[3]", 0, 0) in told
    lost = [(f.at, f.objects) for f in found.faults if f.code == "unknown_class"]
    assert sorted(lost) == [("annotations[11]", 1), ("annotations[5]", 1), ("annotations[8]", 1)]
    assert [f.at for f in found.faults if f.code == "label_without_image"] == ["annotations[3]"]


def test_images_that_are_not_there(tmp_path: Path) -> None:
    root = coco_set(tmp_path / "set")
    (root / "images/004.jpg").unlink()
    (root / "images/more.jpg").write_bytes(encoded(90))
    found = changed(root, lambda value: value["images"].append({"id": 990, "file_name": "../../etc/passwd"}))
    told = [(f.code, f.file, f.at, f.objects, f.images) for f in found.faults]
    assert told == [
        ("label_without_image", FILE, "images[12]", 0, 0),
        ("label_without_image", FILE, "images[4]", 1, 0),
        ("image_without_label", "images/more.jpg", "", 0, 1),
    ]


@pytest.mark.parametrize(
    "name",
    ["./images/{}", "/home/someone/set/images/{}", "C:\\data\\images\\{}", "https://host/path/{}", "images\\{}"],
)
def test_file_names_of_other_machines(tmp_path: Path, name: str) -> None:
    def change(value: Any) -> None:
        for row in value["images"]:
            row["file_name"] = name.format(row["file_name"])

    assert codes(changed(coco_set(tmp_path / "set"), change)) == {}


def test_a_file_for_each_split(tmp_path: Path) -> None:
    """COCO's own layout, where pictures of both splits have the same names."""
    for part, first in (("train2017", 0), ("val2017", 20)):
        coco_set(tmp_path / part, 4, first)
        (tmp_path / "set/annotations").mkdir(parents=True, exist_ok=True)
        (tmp_path / part / FILE).rename(tmp_path / f"set/annotations/instances_{part}.json")
        (tmp_path / part / "images").rename(tmp_path / "set" / part)
    (tmp_path / "set/annotations/captions_train2017.json").write_text('{"images": [], "annotations": [{}]}')
    found = examine(tmp_path / "set", classes=Classes(CLASSES))
    assert {s.source: s.part for s in found.samples} == {
        f"{part}2017/{i:03}.jpg": part for part in ("train", "val") for i in range(4)
    }
    assert [f.code for f in found.faults] == ["ignored_files"]
    assert "captions_train2017" in found.faults[0].message


def test_roboflow_layout_and_an_image_in_two_files(tmp_path: Path) -> None:
    root = coco_set(tmp_path / "set", 4)
    for part in ("train", "valid"):
        (root / part).mkdir()
        (root / part / "_annotations.coco.json").write_text((root / FILE).read_text())
    (root / FILE).unlink()
    for i in range(4):
        (root / f"images/{i:03}.jpg").rename(root / ("train", "valid")[i % 2] / f"{i:03}.jpg")
    found = examine(root, classes=Classes(CLASSES), max_bad_labels=1)
    assert found.balanced()
    assert {(f.code, f.file) for f in found.faults} == {
        ("list_overlap", f"{('train', 'valid')[i % 2]}/{i:03}.jpg") for i in range(4)
    } | {("too_few_images", "")}
    for part, rest in (("train", 0), ("valid", 1)):
        path = root / part / "_annotations.coco.json"
        value = json.loads(path.read_text())
        value["images"] = value["images"][rest::2]
        value["annotations"] = value["annotations"][rest::2]
        path.write_text(json.dumps(value))
    found = examine(root, classes=Classes(CLASSES))
    assert [(s.source, s.part) for s in found.samples][:2] == [("train/000.jpg", "train"), ("train/002.jpg", "train")]
    assert {s.part for s in found.samples} == {"train", "val"}


@pytest.mark.parametrize(
    ("text", "message", "lost"),
    [
        ("", "it is empty", 0),
        ("[]", "it has no list called images and none called annotations and none called categories", 0),
        ('"x"', "it begins with", 0),
        ('{"images": {}, "annotations": 5, "categories": null}', "images is no list", 0),
        ('{"annotations": [{"image_id": 1}, {"image_id": 1', "not valid JSON", 2),
        ('{"annotations": [{"image_id": 1}\n{"image_id": 2}]}', "comma", 2),
        ('{"annotations": [' + "[" * 100_000 + "]" * 100_000 + ', {"image_id": 1}]}', "nested too deeply", 1),
        ('{"annotations": [' + "9" * 10_000 + "]}", "Exceeds the limit", 0),
        ('{"images": [], "annotations": [], "categories": []} x', "more after the end", 0),
        ('{"images": [], "annotations": []}', "no list called categories", 0),
        ("{'images': []}", "a name in quotes is missing", 0),
        ('\ufeff{"images" []}', "a colon is missing", 0),
    ],
)
def test_broken_files(tmp_path: Path, text: str, message: str, lost: int) -> None:
    root = coco_set(tmp_path / "set")
    (root / FILE).write_text(text, encoding="utf-8")
    found = examine(root, format="coco", classes=Classes(CLASSES), max_bad_labels=1)
    assert found.balanced()
    assert found.declared == lost
    assert any(message in f.message for f in found.faults if f.file == FILE)
    assert found.failed()


def test_utf_16_is_told(tmp_path: Path) -> None:
    root = coco_set(tmp_path / "set")
    (root / FILE).write_bytes((root / FILE).read_text().encode("utf-16"))
    assert any("UTF-16" in f.message for f in examine(root, format="coco").faults)


def test_an_entry_longer_than_what_is_read_at_once(tmp_path: Path) -> None:
    rows = [[1.5] * 400_000, "x" * 3_000_000, 123456, {"a": [None] * 300_000}]
    (tmp_path / "x.json").write_text(json.dumps({"k": rows, "n": 1, "e": []}, indent=0))
    entries = list(JsonFile(tmp_path / "x.json").entries())
    assert [e.value for e in entries] == [*rows, 1]
    assert [e.at for e in entries] == ["k[0]", "k[1]", "k[2]", "k[3]", "n"]
    assert entries[1].line == 3 + 400_002


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(st.none() | st.integers() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)),
    st.data(),
)
def test_json_is_read_as_the_standard_library_reads_it(value: object, data: st.DataObject) -> None:
    """Any value, whole or cut off somewhere."""
    text = json.dumps({"a": [value], "b": value}, ensure_ascii=False).encode("utf-8", "surrogatepass")
    text = text[: data.draw(st.sampled_from([len(text), len(text) // 2, len(text) - 1]))]
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "x.json"
        path.write_bytes(text)
        try:
            whole = json.loads(text)
        except ValueError:
            with pytest.raises(NotJson):
                list(JsonFile(path).entries())
            return
        found = [e.value for e in JsonFile(path).entries() if e.section == "a"]
        assert found == whole["a"]


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 60),
    st.floats(),
    st.text(max_size=4),
    st.sampled_from([10**400, 2**63, "000.jpg", "001.jpg", "car", 10, 30, 0]),
)
anything = st.recursive(
    scalars, lambda v: st.lists(v, max_size=5) | st.dictionaries(st.text(max_size=3), v, max_size=3)
)


def rows(**known: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Mostly entries with these keys, some of them missing or of any type; sometimes anything."""
    fields = {key: st.one_of(value, value, value, anything) for key, value in known.items()}
    return st.lists(st.one_of(*[st.fixed_dictionaries({}, optional=fields)] * 6, anything), max_size=6)


ids = st.sampled_from([0, 1, 2, "a"])
documents = st.fixed_dictionaries(
    {},
    optional={
        "images": rows(
            id=ids, file_name=st.sampled_from(["000.jpg", "001.jpg", "no.jpg"]), width=st.just(64), height=st.just(48)
        ),
        "annotations": rows(
            id=st.integers(0, 3),
            image_id=ids,
            category_id=ids,
            bbox=st.lists(st.integers(-5, 40) | st.floats(), min_size=4, max_size=4),
            segmentation=st.lists(st.lists(st.integers(0, 40), max_size=8), max_size=2),
            iscrowd=st.sampled_from([0, 0, 1]),
        ),
        "categories": rows(id=ids, name=st.sampled_from([*CLASSES, " ", "\ud800"])),
        "info": anything,
    },
)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(documents, st.lists(st.tuples(st.integers(0, 2000), st.binary(max_size=3), st.integers(0, 3)), max_size=2))
def test_objects_in_are_objects_out_and_reported(document: Any, cuts: list[tuple[int, bytes, int]]) -> None:
    """Any structure, and any bytes put into or taken out of its text."""
    data = json.dumps(document).encode()
    for at, put, take in cuts:
        data = data[:at] + put + data[at + take :]
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        (root / "images").mkdir()
        (root / "annotations").mkdir()
        for i in range(2):
            (root / f"images/{i:03}.jpg").write_bytes(encoded(i))
        (root / FILE).write_bytes(data)
        found = examine(root, format="coco", max_bad_labels=1)
        assert found.balanced()
        assert all(f.code in CODES for f in found.faults)
        images = sum(f.images for f in found.faults)
        assert len(found.samples) + images == 2
        if not cuts and isinstance(document.get("annotations"), list):
            assert found.declared == len(document["annotations"])


def test_memory_is_what_the_boxes_need(tmp_path: Path) -> None:
    """20,000 annotations of 1,000 images: the text is 4 MB, its parsed JSON 30 MB."""
    n = 20_000
    images = [{"id": i, "file_name": f"{i:06}.jpg", "width": 64, "height": 48} for i in range(n // 20)]
    rows = [
        {
            "id": i,
            "image_id": i % (n // 20),
            "category_id": 1,
            "bbox": [1.5, 2.5, 3.5, 4.5],
            "segmentation": [[0.5] * 16],
        }
        for i in range(n)
    ]
    root = tmp_path / "set"
    (root / "images").mkdir(parents=True)
    for row in images:
        (root / "images" / row["file_name"]).touch()
    (root / "instances_default.json").write_text(
        json.dumps({"images": images, "annotations": rows, "categories": [{"id": 1, "name": "car"}]})
    )
    tree = scan(root)
    reader = READERS["coco"]
    layout = reader.layout(tree)
    tracemalloc.start()
    try:
        count = sum(item.labels.declared for item in reader.read(tree, layout) if hasattr(item, "labels"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == n
    assert peak < 5 * 2**20 + n * 120


def test_recognition(tmp_path: Path) -> None:
    assert recognise(coco_set(tmp_path / "a")) == "coco"
    root = coco_set(tmp_path / "b")
    (root / FILE).rename(root / "labels.json")
    assert recognise(root) == "coco"
    (root / "labels.json").write_text('{"shapes": []}')
    with pytest.raises(BadData, match="none of the known formats"):
        recognise(root)
    assert len(examine(coco_set(tmp_path / "c"), format="coco", label_dir=FILE).samples) == 12
    with pytest.raises(BadData, match="did you mean 'annotations'"):
        examine(coco_set(tmp_path / "d"), format="coco", label_dir="annotation")


_ORACLE = """
import contextlib, io, json, sys
from pycocotools.coco import COCO
with contextlib.redirect_stdout(io.StringIO()):
    data = COCO(sys.argv[1])
names = {c["id"]: c["name"] for c in data.loadCats(data.getCatIds())}
found = [
    [image["file_name"], names[a["category_id"]], *a["bbox"]]
    for image in data.loadImgs(data.getImgIds())
    for a in data.loadAnns(data.getAnnIds(image["id"], iscrowd=False))
]
print(json.dumps(found))
"""


def test_pycocotools_reads_what_is_written(tmp_path: Path) -> None:
    python = Path(sys.executable).parents[2] / "cpu/bin/python"
    if not python.exists() or subprocess.run([python, "-c", "import pycocotools"], check=False).returncode:
        pytest.skip(f"{python} has no pycocotools")
    source = convert.from_folder(coco_set(tmp_path / "set"))
    convert.write(source, tmp_path / "out", "coco")
    done = subprocess.run([python, "-c", _ORACLE, tmp_path / "out" / FILE], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) == [[f"{i:03}.jpg", CLASSES[i % 3], 5, 6, 20.1, 24] for i in range(12)]
