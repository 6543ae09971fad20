"""Label files that no one thought of, of the formats in tests/data/corpus_more.py: nothing is lost in silence."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.data.helpers import CLASSES, HEIGHT, WIDTH, encoded  # isort: skip

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refit.data import tfrecord as container
from refit.data.codes import CODES
from refit.data.formats import drip, label_map, supervisely, tf_csv
from refit.data.model import Labels
from tests.data import writing

MANY = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.sampled_from([*CLASSES, "", "5", "1e999", "nan", "a.jpg", "rectangle", "polygon", "bitmap", "\ud800", "\0"]),
    st.text(max_size=5),
)
values: st.SearchStrategy[Any] = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
numbers = st.one_of(st.integers(-20, 90), st.floats(-20, 90), scalars)


def held(*labels: Labels) -> None:
    for each in labels:
        assert each.balanced()
        assert all(f.code in CODES for f in each.faults)


# ---- CSV

cells = st.one_of(
    st.sampled_from(
        ["a.jpg", "b.jpg", str(WIDTH), str(HEIGHT), *CLASSES, "", "nan", "1_0", '"', '"x', "a,b", "5", "30"]
    ),
    st.text(max_size=6),
)
rows = st.lists(st.lists(cells, max_size=10).map(",".join), max_size=6).map("\n".join)


@MANY
@given(rows, st.sampled_from(["", ",".join(tf_csv.COLUMNS) + "\n", "file;label;x1;y1;x2;y2\n"]))
def test_csv_lists(text: str, header: str) -> None:
    entries, loose = tf_csv.parse((header + text).encode("utf-8", "surrogatepass"), "a.csv")
    held(loose, *(e.labels for e in entries))


@MANY
@given(st.binary(max_size=80))
def test_csv_bytes(data: bytes) -> None:
    entries, loose = tf_csv.parse(b"filename,class,xmin,ymin,xmax,ymax\n" + data, "a.csv")
    held(loose, *(e.labels for e in entries))


@settings(MANY, max_examples=100)
@given(st.lists(st.tuples(st.sampled_from(["a.jpg", "b.jpg", "c.jpg"]), st.sampled_from(CLASSES)), max_size=8))
def test_no_row_is_overlooked(made: list[tuple[str, str]]) -> None:
    """Counted by another way than the reader's own: a good row is an object, whatever stands around it."""
    text = ",".join(tf_csv.COLUMNS) + "\n" + "".join(f"\n{n},{WIDTH},{HEIGHT},{c},1,2,3,4\r\n" for n, c in made)
    entries, _ = tf_csv.parse(text.encode(), "a.csv")
    assert sorted((e.ref, o.label) for e in entries for o in e.labels.objects) == sorted(made)


# ---- label maps

items = st.one_of(
    st.sampled_from(
        ["item {", "}", "id: 1", "id: -1", "name: 'a'", 'name: "b', "item: [", "]", "# x\n", "<", ">", "\\"]
    ),
    st.text(max_size=4),
)


@MANY
@given(st.lists(items, max_size=8).map(" ".join))
def test_label_maps(text: str) -> None:
    names, faults = label_map.parse(text.encode("utf-8", "surrogatepass"), "m.pbtxt")
    assert names or faults
    assert all(f.code in CODES for f in faults)


@MANY
@given(st.lists(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=6), unique=True, min_size=1))
def test_label_maps_come_back(classes: list[str]) -> None:
    assert label_map.parse(label_map.text(classes).encode(), "m") == (dict(enumerate(classes, 1)), [])


# ---- JSON

boxes = st.one_of(
    values,
    st.fixed_dictionaries(
        {}, optional={"class": scalars, "type": scalars, "x0": numbers, "y0": numbers, "x1": numbers, "y1": numbers}
    ),
)
frames = st.one_of(
    values,
    st.fixed_dictionaries(
        {"path": scalars, "boxes": st.lists(boxes, max_size=4) | values}, optional={"width": numbers, "height": numbers}
    ),
)


def frames_in(data: bytes) -> tuple[list[Labels], int]:
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        entries, loose, _ = drip.parse(Path(file.name), "m.json", {1: "car"})
    found = [loose, *(e.labels for e in entries)]
    held(*found)
    return found, sum(labels.declared for labels in found)


@MANY
@given(st.lists(frames, max_size=4))
def test_frames(made: list[Any]) -> None:
    _, declared = frames_in(json.dumps({"frames": made}).encode())
    assert declared == sum(len(f["boxes"]) for f in made if isinstance(f, dict) and isinstance(f.get("boxes"), list))


@MANY
@given(st.one_of(values.map(json.dumps), st.text(max_size=30)), st.integers(0, 200))
def test_any_json(text: str, cut: int) -> None:
    data = text.encode("utf-8", "surrogatepass")
    frames_in(data)
    frames_in((b'{"frames": [' + data)[:cut])
    held(supervisely.parse(data, "a.json").labels)


points = st.one_of(values, st.lists(st.lists(numbers, min_size=2, max_size=2), max_size=4))
shapes = st.sampled_from(["rectangle", "polygon", "bitmap", "line", "", None, 3])
things = st.one_of(
    values,
    st.fixed_dictionaries(
        {"classTitle": scalars, "geometryType": shapes},
        optional={"points": st.one_of(values, st.fixed_dictionaries({"exterior": points})), "bitmap": values},
    ),
)


@MANY
@given(st.lists(things, max_size=4), values, values)
def test_annotations(made: list[Any], size: Any, tags: Any) -> None:
    data = json.dumps({"objects": made, "size": size, "tags": tags}).encode()
    said = supervisely.parse(data, "a.json")
    held(said.labels)
    assert said.labels.declared == len(made)
    assert all(isinstance(tag, str) and tag for tag in said.tags)


# ---- TFRecords

features = st.one_of(
    st.none(),
    st.lists(
        st.one_of(st.binary(max_size=4), st.sampled_from([b"car", b"a.jpg", b"images/a", encoded(1)])), max_size=3
    ),
    st.lists(st.floats(width=32), max_size=3).map(lambda v: np.array(v, np.float32)),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3).map(lambda v: np.array(v, np.int64)),
)
TF = ["encoded", "filename", "width", "height", *(f"object/bbox/{s}" for s in ("xmin", "ymin", "xmax", "ymax"))]
TF = [f"image/{name}" for name in [*TF, "object/class/text", "object/class/label", "object/difficult"]]
TAO = ["id", "width", "height", "encoded"]
TAO = [f"frame/{n}" for n in TAO] + [f"target/{n}" for n in ("object_class", "coordinates_x1", "truncation")]


@settings(MANY, max_examples=80)
@pytest.mark.parametrize("form", ["tfrecord", "tao_tfrecord"])
@given(data=st.data())
def test_records(form: str, data: st.DataObject) -> None:
    names = TF if form == "tfrecord" else TAO
    made = data.draw(st.lists(st.fixed_dictionaries(dict.fromkeys(names, features)), max_size=3))
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        (root / "images").mkdir()
        (root / "images" / "a.jpg").write_bytes(encoded(1))
        with (root / "a.tfrecord").open("wb") as file:
            for each in made:
                container.write_record(file, container.encode_example({k: v for k, v in each.items() if v is not None}))
        found = writing.check(root, form)
        assert found.balanced()
        assert all(f.code in CODES for f in found.faults)


@MANY
@given(st.dictionaries(st.text(max_size=8), features.filter(lambda v: v is not None), max_size=5))
def test_examples_come_back(made: dict[str, container.Feature]) -> None:
    """What is written by hand is what protobuf reads."""
    back = container.decode_example(container.encode_example(made))
    assert back.keys() == made.keys()
    for name, value in made.items():
        np.testing.assert_array_equal(back[name], value)
