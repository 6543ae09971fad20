"""YOLO's labels and folders: what is read, and that each thing that cannot be read is said with its line."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.data.helpers import CLASSES, encoded, kitti_line, kitti_set, yolo_set  # isort: skip

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refit.data.checks import Classes
from refit.data.codes import CODES
from refit.data.examine import examine
from refit.data.faults import BadData
from refit.data.formats import READERS, recognise, yolo
from refit.data.model import Labels
from refit.data.tree import scan

NAMES = dict(enumerate(CLASSES))


def box(labels: Labels) -> tuple[float, ...]:
    (o,) = labels.objects
    return tuple(round(v, 9) for v in (o.x1, o.y1, o.x2, o.y2))


@pytest.mark.parametrize(
    ("line", "shares", "codes"),
    [
        ("0 0.5 0.5 0.2 0.4", (0.4, 0.3, 0.6, 0.7), []),
        ("0.0 0.5 0.5 0.2 0.4 0.93", (0.4, 0.3, 0.6, 0.7), []),  # with a score, and the class as some tools write it
        ("0 0.1 0.2 0.5 0.1 0.3 0.6", (0.1, 0.1, 0.5, 0.6), ["polygon_boxed"]),
        ("0 0.1 0.1 0.5 0.1 0.5 0.6 0.1 0.6", (0.1, 0.1, 0.5, 0.6), ["polygon_boxed"]),  # an oriented box
        ("0 0.1 0.5 0.200001 1.0", (0, 0, 0.2000005, 1), []),  # six decimals at the edge
        ("0 0.1 0.5 0.21 1.0", (-0.005, 0, 0.205, 1), []),  # beyond it: cut later, and said
    ],
)
def test_good_lines(line: str, shares: tuple[float, ...], codes: list[str]) -> None:
    labels = yolo.parse(line.encode(), "a.txt", NAMES)
    assert box(labels) == shares
    assert [f.code for f in labels.faults] == codes
    assert labels.balanced()


@pytest.mark.parametrize(
    ("line", "code", "advice"),
    [
        ("0 0.5 0.5 0.2", "column_count", "5 columns"),
        ("0 0.1 0.2 0.3 0.4 0.5 0.6 0.7", "column_count", "5 columns"),
        (kitti_line(), "column_count", "KITTI"),
        ("car 0.5 0.5 0.2 0.2", "not_a_number", "data.yaml"),
        ("0 0.5 half 0.2 0.2", "not_a_number", "decimal point"),
        ("0 0,5 0.5 0.2 0.2", "not_a_number", "decimal point"),
        ("-1 0.5 0.5 0.2 0.2", "not_a_number", "decimal point"),
        ("0.5 0.5 0.5 0.2 0.2", "not_a_number", "decimal point"),
        ("0 nan 0.5 0.2 0.2", "not_finite", ""),
        ("inf 0.5 0.5 0.2 0.2", "not_finite", ""),
        ("0 320 240 64 48", "out_of_range", "pixels"),
        ("0 1.2 0.5 0.2 0.2", "out_of_range", "shares"),
        ("0 0.5 0.5 0.2 -0.2", "out_of_range", "shares"),
        ("3 0.5 0.5 0.2 0.2", "unknown_class", "list of names"),
        ("99999999999999999999 0.5 0.5 0.2 0.2", "unknown_class", "list of names"),
    ],
)
def test_bad_lines(line: str, code: str, advice: str) -> None:
    labels = yolo.parse(f"0 0.5 0.5 0.2 0.2\n\n{line}\r\n1 0.5 0.5 0.2 0.2".encode(), "a.txt", NAMES)
    assert labels.balanced()
    assert (labels.declared, [o.label for o in labels.objects]) == (3, ["car", "cat"])
    (fault,) = labels.faults
    assert (fault.code, fault.line, fault.file) == (code, 3, "a.txt")
    assert advice in fault.advice


def test_shares_become_pixels_of_the_image(tmp_path: Path) -> None:
    root = yolo_set(tmp_path / "set")
    (root / "images/000.jpg").write_bytes(encoded(40, width=100, height=30))
    (root / "labels/001.txt").write_text("1 0.1 0.5 0.21 1\n")
    found = examine(root, classes=Classes(CLASSES))
    first, second = (s.objects[0] for s in found.samples[:2])
    assert (first.cls, first.x1, first.y1, first.x2, first.y2) == ("car", 25, 7.5, 75, 22.5)
    assert (second.cls, second.x1, second.y1, second.x2, second.y2) == ("cat", 0, 0, 13.12, 48)
    assert [(f.code, f.file, f.line) for f in found.faults] == [("clipped", "labels/001.txt", 1)]
    assert found.names == CLASSES


# ---- folders and names


def moved(root: Path, where: str) -> Path:
    """A YOLO set in another layout; every third image is in the part `val`."""
    for i in range(12):
        part = "val" if i % 3 == 2 else "train"
        for kind, ending in (("images", "jpg"), ("labels", "txt")):
            target = root / where.format(kind=kind, part=part) / f"{i:03}.{ending}"
            target.parent.mkdir(parents=True, exist_ok=True)
            (root / kind / f"{i:03}.{ending}").rename(target)
    for kind in ("images", "labels"):
        if not any((root / kind).iterdir()):
            (root / kind).rmdir()
    return root


@pytest.mark.parametrize(
    ("where", "about", "first"),
    [
        ("{kind}/{part}", "names: {names}", "train/000.jpg"),
        (
            "{kind}/{part}2017",
            "path: ../x\ntrain: images/train2017\nval: images/val2017\nnames: {names}",
            "train2017/000.jpg",
        ),
        ("{part}/{kind}", "train: ../train/images\nval: ../val/images\nnc: 3\nnames: {names}", "train/images/000.jpg"),
        ("{part}", "names: {names}", "train/000.jpg"),
        ("obj_{part}_data", "train: obj_train_data\nval: [obj_val_data]\nnames: {names}", "obj_train_data/000.jpg"),
    ],
)
def test_layouts(tmp_path: Path, where: str, about: str, first: str) -> None:
    root = moved(yolo_set(tmp_path / "set"), where)
    (root / "data.yaml").write_text(about.format(names=list(CLASSES)))
    (root / "README.roboflow.txt").write_text("made by a tool\n")
    assert recognise(root) == "yolo"
    found = examine(root, classes=Classes(CLASSES))
    assert [f.code for f in found.faults] == ["ignored_files"]
    assert (found.samples[0].name, len(found.samples), found.declared) == (first, 12, 12)
    parts = {s.name[-7:-4]: s.part for s in found.samples}
    assert parts == {f"{i:03}": "val" if i % 3 == 2 else "train" for i in range(12)}


def test_lists_of_images(tmp_path: Path) -> None:
    root = yolo_set(tmp_path / "set")
    (root / "train.txt").write_text("./images/000.jpg\n/home/someone/set/images/001.jpg\nimages/077.jpg\n")
    (root / "night.txt").write_text("images/001.jpg\nimages/002.jpg\n")
    (root / "data.yaml").write_text(
        "train: train.txt\nnight: night.txt\n../up: train.txt\nnames: {0: car, 1: cat, 2: dog}"
    )
    found = examine(root, classes=Classes(CLASSES))
    parts = {s.name: s.part for s in found.samples if s.part}
    assert parts == {"000.jpg": "train", "002.jpg": "night"}
    told = [(f.code, f.file, f.line) for f in found.faults]
    assert told == [("parts_unclear", "data.yaml", 0), ("list_stale", "train.txt", 3)]


@pytest.mark.parametrize(
    ("files", "names"),
    [
        ({"data.yaml": "names: [no, off, 12]"}, ("no", "off", "12")),  # YAML takes the first two for False
        ({"data.yaml": "names:\n  2: c\n  0: a\n  1: b\n"}, ("a", "b", "c")),
        ({"custom.yml": "names: [a, b, c]", "other.yaml": "lr: 0.1"}, ("a", "b", "c")),
        ({"labels/classes.txt": "a\nb b\r\nc\n"}, ("a", "b b", "c")),
        ({"obj.names": "a\nb\nc"}, ("a", "b", "c")),
        ({"data.yaml": "names: [a, b, c]", "labels/classes.txt": "a\nb\nc\n\n"}, ("a", "b", "c")),
    ],
)
def test_names_of_classes(tmp_path: Path, files: dict[str, str], names: tuple[str, ...]) -> None:
    root = yolo_set(tmp_path / "set")
    (root / "data.yaml").unlink()
    for path, text in files.items():
        (root / path).write_text(text)
    found = examine(root)
    assert found.names == names
    assert {o.cls for s in found.samples for o in s.objects} == set(names)
    assert {f.code for f in found.faults} <= {"ignored_files"}


@pytest.mark.parametrize(
    ("files", "code", "objects"),
    [
        ({}, "class_names_missing", 0),
        ({"data.yaml": "names: [a, b"}, "label_unreadable", 0),
        ({"data.yaml": "names: " + "[" * 5000}, "label_unreadable", 0),
        ({"data.yaml": "names: [a, [b], c]"}, "bad_entry", 0),
        ({"data.yaml": "names: {zero: a, 1: b, 2: c}"}, "bad_entry", 0),
        ({"data.yaml": "names: [a, b, a]"}, "duplicate_id", 0),
        ({"data.yaml": "names: [a, b]"}, "unknown_class", 1),
        ({"data.yaml": "names: [a, b, c]", "classes.txt": "a\nb"}, "class_names_differ", 0),
        ({"classes.txt": "a\nb\nc", "labels/classes.txt": "a\nc\nb"}, "class_names_differ", 0),
    ],
)
def test_names_that_are_wrong(tmp_path: Path, files: dict[str, str], code: str, objects: int) -> None:
    root = yolo_set(tmp_path / "set")
    (root / "data.yaml").unlink()
    for path, text in files.items():
        (root / path).write_text(text)
    found = examine(root, max_bad_labels=1)
    assert found.balanced()
    told = [f for f in found.faults if f.code == code]
    assert {f.objects for f in told} == {objects}
    if not files:
        assert {o.cls for s in found.samples for o in s.objects} == {"0", "1", "2"}


def test_a_yaml_bomb_costs_nothing(tmp_path: Path) -> None:
    root = yolo_set(tmp_path / "set")
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    (root / "data.yaml").write_text("\n".join([*lines, "names: *a11"]))
    assert any(f.code == "bad_entry" for f in examine(root).faults)


def test_an_image_without_a_label_file_has_no_objects(tmp_path: Path) -> None:
    root = yolo_set(tmp_path / "set")
    (root / "labels/003.txt").unlink()
    found = examine(root, classes=Classes(CLASSES))
    assert [(f.code, f.file, f.severity) for f in found.faults] == [("background_image", "images/003.jpg", "info")]
    assert len(found.samples) == 12
    (root / "labels/extra.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    found = examine(root, classes=Classes(CLASSES))
    assert [(f.code, f.file, f.objects) for f in found.faults if f.objects] == [
        ("label_without_image", "labels/extra.txt", 1)
    ]


# ---- KITTI or YOLO


def test_kitti_and_yolo_share_their_folders(tmp_path: Path) -> None:
    kitti, yolo_ = kitti_set(tmp_path / "kitti"), yolo_set(tmp_path / "yolo")
    (yolo_ / "data.yaml").unlink()
    assert (recognise(kitti), recognise(yolo_)) == ("kitti", "yolo")
    for i in range(5):
        (kitti / f"labels/{i:03}.txt").write_text("")
        (yolo_ / f"labels/{i:03}.txt").write_text("")
    assert (recognise(kitti), recognise(yolo_)) == ("kitti", "yolo")
    for root in (kitti, yolo_):
        for i in range(12):
            (root / f"labels/{i:03}.txt").write_text("")
    assert (recognise(kitti), recognise(yolo_)) == ("kitti", "kitti")
    (yolo_ / "classes.txt").write_text("car")
    assert recognise(yolo_) == "yolo"


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("0 " + kitti_line().split(" ", 1)[1], "kitti"),  # a class called 0
        ("car 0.5 0.5 0.1 0.1", "kitti"),  # told there, with the advice that it looks like YOLO
        ("0 320 240 64 48", "yolo"),  # told there, as pixels
        ("0 0.1 0.1 0.5 0.1 0.5 0.6 0.1 0.6", "yolo"),
        ("rubbish", "kitti"),
    ],
)
def test_doubtful_lines(tmp_path: Path, line: str, name: str) -> None:
    root = kitti_set(tmp_path / "set", lines=[line])
    assert recognise(root) == name


def test_folders_of_other_names(tmp_path: Path) -> None:
    root = yolo_set(tmp_path / "set")
    (root / "images").rename(root / "pictures")
    (root / "labels").rename(root / "boxes")
    with pytest.raises(BadData, match="none of the known formats"):
        examine(root)
    found = examine(root, format="yolo", image_dir="pictures", label_dir="boxes")
    assert (len(found.samples), found.declared, found.faults) == (12, 12, [])


# ---- fuzzing

words = st.one_of(
    st.sampled_from(["0", "1", "2", "3", "0.5", "1.0", "-0.1", "nan", "1e400", "1_0", "٣", "640", "car", "", "0.0"]),
    st.floats(0, 1).map(lambda v: f"{v:.6f}"),
    st.text(max_size=4),
)
lines = st.one_of(
    st.lists(words, max_size=10).map(" ".join),
    st.builds(
        lambda c, x, y, w, h: f"{c} {x:.6f} {y:.6f} {w:.6f} {h:.6f}",
        st.integers(-1, 4),
        *[st.floats(-0.02, 1.02)] * 4,
    ),
    st.lists(st.floats(0, 1), min_size=6, max_size=12).map(lambda v: " ".join(["1", *map(str, v)])),
)
texts = st.one_of(
    st.lists(lines, max_size=5).map(lambda rows: "\n".join(rows).encode("utf-8", "surrogatepass")),
    st.binary(max_size=40),
)


@settings(max_examples=300, deadline=None)
@given(texts, st.one_of(st.none(), st.dictionaries(st.integers(0, 3), st.text(max_size=3))))
def test_label_files(data: bytes, names: dict[int, str] | None) -> None:
    labels = yolo.parse(data, "a.txt", names)
    assert labels.balanced()
    assert all(f.code in CODES and f.file == "a.txt" for f in labels.faults)
    text = data.decode("utf-8-sig", "replace") if b"\0" not in data else ""
    if text and "\ufffd" not in text:
        assert labels.declared == sum(bool(line.split()) for line in text.split("\n"))


yamls = st.one_of(
    st.sampled_from(
        ["names: [car, cat, dog]", "names: {0: car, 1: 5}", "names: {x: y}", "names:", "names: &a [*a]", "- 1"]
    ),
    st.text(max_size=30),
).map(lambda t: t.encode("utf-8", "surrogatepass"))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(st.sampled_from(["a", "b", "train/a", "classes", "x y"]), texts, min_size=1, max_size=4),
    st.dictionaries(
        st.sampled_from(["data.yaml", "classes.txt", "obj.names", "labels/classes.txt"]), yamls, max_size=2
    ),
    st.sampled_from(["images", "."]),
)
def test_data_sets(labels: dict[str, bytes], files: dict[str, bytes], where: str) -> None:
    """Any pile of labels and files of names: what is lost is told, and boxes lie in their images."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        for i, stem in enumerate(("a", "b", "train/a")):
            path = root / where / f"{stem}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(i))
        where = where.replace("images", "labels")
        for stem, data in labels.items():
            (root / where / f"{stem}.txt").parent.mkdir(parents=True, exist_ok=True)
            (root / where / f"{stem}.txt").write_bytes(data)
        for name, data in files.items():
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_bytes(data)
        try:
            READERS["yolo"].layout(scan(root))
        except BadData:
            assert not any(name not in ("classes", "train/a") for name in labels)
            return
        found = examine(root, format="yolo", max_bad_labels=1)
        assert found.balanced()
        own = {stem: data for stem, data in labels.items() if stem != "classes"}
        assert found.declared >= sum(yolo.parse(data, "").declared for data in own.values())
        assert len(found.samples) + sum(f.images for f in found.faults) == 3
        inside = (
            0 <= o.x1 < o.x2 <= s.width and 0 <= o.y1 < o.y2 <= s.height for s in found.samples for o in s.objects
        )
        assert all(inside)
