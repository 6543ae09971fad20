"""Objects in = objects out + objects reported, for label files and data sets that no one thought of."""

from __future__ import annotations

import tempfile
from pathlib import Path
from xml.sax.saxutils import escape

import pytest

from tests.data.helpers import CLASSES, encoded, kitti_line, voc_object, voc_text  # isort: skip

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from refit.data.checks import Classes
from refit.data.codes import CODES
from refit.data.examine import examine
from refit.data.faults import BadData
from refit.data.formats import kitti, voc
from refit.data.ingest import ingest
from refit.data.settings import DatasetSettings
from refit.data.snapshot import read_annotations, verify

numbers = st.one_of(
    st.floats(-20, 90).map(lambda v: f"{v:.2f}"),
    st.sampled_from(
        ["0", "0.00", "-0", "nan", "inf", "-inf", "1e400", "1_0", "0x10", "", ",", "٣", "64", "48", "1e-300"]
    ),
)
words = st.one_of(numbers, st.sampled_from([*CLASSES, "DontCare", "horse"]), st.text(max_size=6))
good_lines = st.builds(
    lambda cls, x, y, w, h: kitti_line(cls, x, y, x + w, y + h),
    st.sampled_from([*CLASSES, "horse", "DontCare"]),
    st.floats(-30, 60),
    st.floats(-30, 60),
    st.floats(-2, 40),
    st.floats(-2, 40),
)
kitti_lines = st.one_of(
    good_lines,
    st.lists(words, max_size=18).map(" ".join),
    st.tuples(st.sampled_from(CLASSES), st.lists(numbers, min_size=14, max_size=15)).map(
        lambda t: " ".join([t[0], *t[1]])
    ),
    st.text(max_size=20),
)
kitti_texts = st.lists(kitti_lines, max_size=5).map("\n".join)
kitti_bytes = st.one_of(
    kitti_texts.map(lambda t: t.encode("utf-8", "surrogatepass")),
    kitti_texts.map(lambda t: t.encode("utf-16", "surrogatepass")),
    st.binary(max_size=60),
    st.tuples(kitti_texts, st.binary(max_size=4)).map(lambda t: t[0].encode("utf-8", "surrogatepass") + t[1]),
)

names = st.one_of(st.sampled_from([*CLASSES, "horse", ""]), st.text(st.characters(codec="utf-8"), max_size=5))
voc_values = st.one_of(numbers, st.text(st.characters(codec="utf-8"), max_size=4)).map(escape)
voc_objects = st.one_of(
    st.builds(
        lambda n, x, y, w, h: voc_object(escape(n), (x, y, x + w, y + h)),
        names,
        st.integers(-30, 60),
        st.integers(-30, 60),
        st.integers(-2, 40),
        st.integers(-2, 40),
    ),
    st.builds(
        lambda n, box: voc_object(escape(n), box), names, st.tuples(voc_values, voc_values, voc_values, voc_values)
    ),
    st.sampled_from(["<object/>", "<object><name>car</name></object>", f"<object>{voc_object()}</object>", "<part/>"]),
)
voc_documents = st.lists(voc_objects, max_size=4).map(lambda objects: voc_text(*objects).encode("utf-8", "replace"))
voc_bytes = st.one_of(
    voc_documents,
    st.binary(max_size=60),
    st.tuples(voc_documents, st.integers(0, 400)).map(lambda t: t[0][: t[1]]),
    st.tuples(voc_documents, st.integers(0, 400), st.binary(min_size=1, max_size=4)).map(
        lambda t: t[0][: t[1]] + t[2] + t[0][t[1] :]
    ),
)


@settings(max_examples=300, deadline=None)
@given(kitti_bytes)
def test_kitti_files(data: bytes) -> None:
    labels = kitti.parse(data, "a.txt")
    assert labels.balanced()
    assert all(f.code in CODES and f.file == "a.txt" for f in labels.faults)
    text = data.decode("utf-8-sig", "replace") if b"\0" not in data else ""
    if text and "\ufffd" not in text:
        assert labels.declared == sum(bool(line.split()) for line in text.split("\n"))


@settings(max_examples=300, deadline=None)
@given(voc_bytes)
def test_voc_files(data: bytes) -> None:
    labels = voc.parse(data, "a.xml")
    assert labels.balanced()
    assert all(f.code in CODES and f.file == "a.xml" for f in labels.faults)


@settings(max_examples=200, deadline=None)
@given(st.lists(voc_objects, max_size=4))
def test_no_voc_object_is_overlooked(objects: list[str]) -> None:
    """Counted by another way than the reader's own."""
    document = voc_text(*objects).encode("utf-8", "replace")
    labels = voc.parse(document, "a.xml")
    assert labels.declared == document.count(b"<object>") + document.count(b"<object/>")


WHOLE = encoded(1)
images = st.one_of(
    st.integers(0, 30).map(encoded),
    st.integers(0, len(WHOLE)).map(lambda k: WHOLE[:k]),
    st.just(encoded(2, ".png")),
    st.binary(max_size=30),
)
stems = st.sampled_from(["a", "b", "c", "sub/a", "sub__a", "ü", "x y"])
endings = st.sampled_from([".jpg", ".png", ".JPG", ".tif", ".txt", ""])


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.booleans(),
    st.dictionaries(st.tuples(stems, endings), images, max_size=5),
    st.data(),
)
def test_data_sets(is_voc: bool, pictures: dict[tuple[str, str], bytes], data: st.DataObject) -> None:
    """Any pile of files: a refusal that says why, or a snapshot that holds exactly what was not reported."""
    folders, suffix, texts = (
        (("JPEGImages", "Annotations"), ".xml", voc_bytes) if is_voc else (("images", "labels"), ".txt", kitti_bytes)
    )
    labels = data.draw(st.dictionaries(stems, texts, max_size=5))
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "set"
        for folder, content in zip(
            folders,
            ({n + e: d for (n, e), d in pictures.items()}, {n + suffix: d for n, d in labels.items()}),
            strict=True,
        ):
            (root / folder).mkdir(parents=True)
            for name, value in content.items():
                path = root / folder / name
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(value)
        parse = voc.parse if is_voc else kitti.parse
        declared = sum(parse(d, "").declared for d in labels.values())
        if not pictures or not labels:
            with pytest.raises(BadData) as refused:
                examine(root, classes=Classes(CLASSES))
            assert {f.code for f in refused.value.faults} == {"not_recognised"}
            return
        try:
            found = examine(root, classes=Classes(CLASSES), max_bad_labels=1)
        except BadData as exc:
            event(str({f.code for f in exc.faults}))
            return
        kept = sum(len(s.objects) for s in found.samples)
        assert found.declared == declared
        assert declared == kept + sum(f.objects for f in found.faults)
        assert all(
            0 <= o.x1 < o.x2 <= s.width and 0 <= o.y1 < o.y2 <= s.height for s in found.samples for o in s.objects
        )
        usable = [e for _, e in pictures if e.lower() in (".jpg", ".png", ".tif")]
        assert len(usable) == len(found.samples) + sum(f.images for f in found.faults)
        lenient = {code: "warning" for code, c in CODES.items() if not c.fixed and c.severity == "error"}
        config = DatasetSettings(classes=list(CLASSES), max_bad_labels=1, severity=lenient)
        try:
            taken = ingest(root, config, Path(temporary) / "ws")
        except BadData as exc:
            event(str({f.code for f in exc.faults if f.severity == "error"}))
            return
        assert verify(taken.path) == ""
        out = sum(len(row["objects"]) for row in read_annotations(taken.path))
        assert declared == out + sum(f.objects for f in taken.faults)
