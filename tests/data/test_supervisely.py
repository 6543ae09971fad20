"""Supervisely's projects: shapes that become boxes, tags, several data sets; written and back."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path

import pytest

from tests.data.helpers import HEIGHT, WIDTH, encoded  # isort: skip

from refit.data import convert
from refit.data.faults import BadData
from refit.data.formats import supervisely
from tests.data import writing

MASK = base64.b64encode(zlib.compress(encoded(1, ".png", 12, 7))).decode()


def thing(
    title: object = "car", shape: object = "rectangle", points: object = ((5, 6), (25, 30)), **more: object
) -> dict[str, object]:
    return {"classTitle": title, "geometryType": shape, "points": {"exterior": points, "interior": []}} | more


PARTS = (("a", "train"), ("b", "val"))


def annotation(*objects: object, tags: object = (), width: int = WIDTH, height: int = HEIGHT) -> str:
    return json.dumps({"size": {"width": width, "height": height}, "tags": tags, "objects": objects})


def project(
    root: Path, annotations: dict[str, str], images: tuple[str, ...] = ("ds0/img/a.jpg", "ds0/img/b.jpg")
) -> Path:
    for i, name in enumerate(images):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encoded(i))
    (root / "meta.json").write_text(json.dumps({"classes": [{"title": "car"}, {"title": "dog"}], "tags": []}))
    for name, text in annotations.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("given", "box", "boxed"),
    [
        (thing(), (5, 6, 25, 30), False),
        (thing(shape=None), (5, 6, 25, 30), False),
        (thing(shape="polygon", points=[[5, 9], [25.5, 6], [9, 30]]), (5, 6, 25.5, 30), True),
        (thing(shape=None, points=[[5, 9], [25, 6], [9, 30]]), (5, 6, 25, 30), True),
        (thing(shape="bitmap", bitmap={"origin": [3, 4], "data": MASK}), (3, 4, 15, 11), True),
        (thing(shape=None, points=None, bitmap={"origin": [3, 4], "data": MASK}), (3, 4, 15, 11), True),
        (thing(points=[[25, 6], [5, 30]]), (25, 6, 5, 30), False),
    ],
)
def test_shapes_become_boxes(given: object, box: tuple[float, ...], boxed: bool) -> None:
    said = supervisely.parse(annotation(given).encode(), "a.json")
    assert [(o.label, o.x1, o.y1, o.x2, o.y2) for o in said.labels.objects] == [("car", *box)]
    assert [f.code for f in said.labels.faults] == ["polygon_boxed"] * boxed


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (3, "bad_entry"),
        ({}, "no_box"),
        (thing(None), "no_class"),
        (thing(" "), "no_class"),
        (thing(points=[[5, 6]]), "no_box"),
        (thing(points=[[5, 6], [7]]), "no_box"),
        (thing(points=[[5, 6], [7, None]]), "no_box"),
        (thing(points={"x": 3}), "no_box"),
        (thing(points=[[5, 6], [7, "low"]]), "not_a_number"),
        (thing(points=[[5, 6], [7, float("inf")]]), "not_finite"),
        (thing(shape="polygon"), "no_box"),
        (thing(shape="polygon", points=[[1, 2], [3, "x"], [5, 6]]), "not_a_number"),
        (thing(shape="polygon", points=[[1, 2], [float("nan"), 4], [5, 6]]), "not_finite"),
        (thing(shape="polyline", points=[[1, 2], [3, 4], [5, 6]]), "no_box"),
        (thing(shape=["point"]), "no_box"),
        (thing(shape="bitmap"), "no_box"),
        (thing(shape="bitmap", bitmap={"origin": [3, 4], "data": "no base64!"}), "no_box"),
        (thing(shape="bitmap", bitmap={"origin": [3, 4], "data": base64.b64encode(b"no zlib").decode()}), "no_box"),
        (
            thing(
                shape="bitmap", bitmap={"origin": [3, 4], "data": base64.b64encode(zlib.compress(b"x" * 99)).decode()}
            ),
            "no_box",
        ),
        (thing(shape="bitmap", bitmap={"origin": [3, "y"], "data": MASK}), "no_box"),
    ],
)
def test_a_bad_object_costs_itself_alone(bad: object, code: str) -> None:
    labels = supervisely.parse(annotation(thing(), bad, thing("dog")).encode(), "a.json").labels
    assert labels.balanced()
    assert [o.label for o in labels.objects] == ["car", "dog"]
    assert [(f.code, f.at, f.objects) for f in labels.faults] == [(code, "objects[1]", 1)]


@pytest.mark.parametrize(
    "text", [annotation(thing(), thing())[:-9], '{"classTitle": {"classTitle": 1}}', '["classTitle", "classTitle"]']
)
def test_an_annotation_that_cannot_be_read_says_what_is_lost(text: str) -> None:
    labels = supervisely.parse(text.encode(), "a.json").labels
    assert [(f.code, f.objects) for f in labels.faults] == [("label_unreadable", 2)]


@pytest.mark.parametrize(
    ("tags", "expected", "part"),
    [
        ([{"name": "train"}], ("train",), "train"),
        ([{"name": "Valid", "value": None}, {"name": "camera", "value": "north"}], ("Valid", "camera:north"), "val"),
        (["train", "val"], ("train", "val"), None),
        ([{"name": "camera", "value": 3}, 7, {}, "night", "night"], ("camera:3", "night"), None),
        ({"name": "train"}, (), None),
    ],
)
def test_tags(tmp_path: Path, tags: object, expected: tuple[str, ...], part: str | None) -> None:
    root = project(tmp_path, {f"ds0/ann/{n}.jpg.json": annotation(thing(), tags=tags) for n in "ab"})
    found = writing.check(root)
    assert (found.format, found.names, found.faults) == ("supervisely", ("car", "dog"), [])
    assert [(s.name, s.tags, s.part) for s in found.samples] == [(f"{n}.jpg", expected, part) for n in "ab"]
    row = found.samples[0].as_json("train")
    assert row.get("tags") == (list(expected) or None)


def test_images_and_annotations_without_partner(tmp_path: Path) -> None:
    labels = {f"ds0/ann/{name}.json": annotation(thing()) for name in ("a.jpg", "old", "gone.png", "x.tif")}
    images = ("ds0/img/a.jpg", "ds0/img/old.jpg", "ds0/img/alone.jpg", "ds0/img/x.tif", "ds0/masks/a.png")
    found = writing.check(project(tmp_path, labels, images))
    assert [s.name for s in found.samples] == ["a.jpg", "old.jpg"]
    assert sorted((f.code, f.file, f.objects, f.images) for f in found.faults if f.objects or f.images) == [
        ("image_unsupported", "ds0/img/x.tif", 1, 1),
        ("image_without_label", "ds0/img/alone.jpg", 0, 1),
        ("label_without_image", "ds0/ann/gone.png.json", 1, 0),
    ]
    assert [f.value for f in found.faults if f.code == "ignored_files"] == ["ds0/masks/a.png"]


def test_several_data_sets(tmp_path: Path) -> None:
    labels = {f"{ds}/ann/a.jpg.json": annotation(thing(title)) for ds, title in (("ds0", "car"), ("ds1", "dog"))}
    root = project(tmp_path, labels, ("ds0/img/a.jpg", "ds1/img/a.jpg"))
    found = writing.check(root)
    assert [(s.file, s.objects[0].cls) for s in found.samples] == [
        ("ds0__img__a.jpg", "car"),
        ("ds1__img__a.jpg", "dog"),
    ]
    chosen = supervisely.READER.layout(found.tree, "ds1")
    assert (chosen.image_dir, chosen.label_dir) == ("ds1/img", "ds1/ann")
    with pytest.raises(BadData, match="did you mean 'ds1'"):
        supervisely.READER.layout(found.tree, "ds2")


@pytest.mark.parametrize(
    "text", ["{}", '{"classes": [{}, {"title": "car"}]}', '{"classes": {"title": 3}}', "[1", "\ud800"]
)
def test_a_bad_meta_is_said(tmp_path: Path, text: str) -> None:
    root = project(tmp_path, {f"ds0/ann/{n}.jpg.json": annotation(thing()) for n in "ab"})
    (root / "meta.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    found = writing.check(root)
    assert [(f.code, f.file) for f in found.faults] == [("label_unreadable", "meta.json")]
    assert len(found.samples) == 2


@pytest.mark.parametrize("parts", [(None,), ("train", "val")])
def test_round_trip(tmp_path: Path, parts: tuple[str | None, ...]) -> None:
    records = writing.records(parts, flags=True)
    lost = writing.write(supervisely.WRITER, tmp_path / "out", records)
    objects = [o for r in records for o in r.objects]
    assert lost == {
        "difficult": sum(o.difficult for o in objects),
        "truncated": sum(bool(o.truncated) for o in objects),
        "occluded": sum(bool(o.occluded) for o in objects),
    }
    found = writing.check(tmp_path / "out")
    assert (found.format, found.names) == ("supervisely", ("car", "traffic light, red", "ça va"))
    assert writing.seen(found) == writing.expected(records)
    assert {s.tags for s in found.samples} == {(p,) if p else () for p in parts}


def test_tags_come_back(tmp_path: Path) -> None:
    told = [{"name": "night"}, {"name": "camera", "value": 3}, {"name": "camera", "value": "left"}, {"name": "odd:"}]
    annotations = {f"ds0/ann/{n}.jpg.json": annotation(thing(), tags=[{"name": p}, *told]) for n, p in PARTS}
    root = project(tmp_path / "set", annotations)
    written = convert.write(convert.from_folder(root), tmp_path / "again", "supervisely")
    before, found = writing.check(root).samples, writing.check(tmp_path / "again").samples
    assert [(s.name, s.part, sorted(s.tags)) for s in found] == [(s.name, s.part, sorted(s.tags)) for s in before]
    meta = json.loads((tmp_path / "again/meta.json").read_text())["tags"]
    assert {tag["name"]: tag["value_type"] for tag in meta} == {
        **{"train": "none", "val": "none", "night": "none", "odd:": "none"},
        "camera": "any_string",
    }
    assert not written.not_held


def test_tags_that_a_format_cannot_hold_are_counted(tmp_path: Path) -> None:
    tags = {"a": [{"name": "train"}], "b": [{"name": "val"}, {"name": "night"}]}
    root = project(tmp_path, {f"ds0/ann/{n}.jpg.json": annotation(thing(), tags=tags[n]) for n in tags})
    assert convert.write(convert.from_folder(root), tmp_path / "coco", "coco").not_held == {"tags": 1}
