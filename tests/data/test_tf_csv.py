"""TensorFlow's CSV lists: read line by line, written, and back."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.helpers import HEIGHT, WIDTH, encoded  # isort: skip

from refit.data.faults import BadData
from refit.data.formats import label_map, tf_csv
from refit.data.formats.listed import Entry
from tests.data import writing

HEADER = "filename,width,height,class,xmin,ymin,xmax,ymax\n"
SIZE = f"{WIDTH},{HEIGHT}"
GOOD = f"a.jpg,{SIZE},car,5,6,25,30"


def csv_set(root: Path, lists: dict[str, str], images: tuple[str, ...] = ("a.jpg", "b.jpg")) -> Path:
    for i, name in enumerate(images):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encoded(i, Path(name).suffix))
    for name, text in lists.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def parsed(text: str) -> tuple[list[Entry], list[tuple[str, int]]]:
    """The entries, and the faults' codes with lines."""
    entries, loose = tf_csv.parse(text.encode(), "l.csv", {2: "two"})
    held = [loose, *(e.labels for e in entries)]
    assert all(labels.balanced() for labels in held)
    return entries, sorted((f.code, f.line) for labels in held for f in labels.faults)


def test_rows_of_one_image_come_together_wherever_they_stand() -> None:
    entries, faults = parsed(HEADER + f"{GOOD}\nb.jpg,{SIZE},2,1,2,3.5,4\n\na.jpg,{SIZE},dog,0,0,9,9\n")
    assert [(e.ref, [(o.label, o.line) for o in e.labels.objects]) for e in entries] == [
        ("a.jpg", [("car", 2), ("dog", 5)]),
        ("b.jpg", [("two", 3)]),
    ]
    assert entries[1].labels.objects[0].x2 == 3.5
    assert (entries[0].labels.size, faults) == ((WIDTH, HEIGHT), [])


@pytest.mark.parametrize(
    "text",
    [
        "class;x1;y1;x2;y2;image\ncar;1;2;3;4;a.jpg\n",
        "image_path\tlabel\tx_min\ty_min\tx_max\ty_max\na.jpg\tcar\t1\t2\t3\t4\n",
        '\ufeffFilename, Width, Height, Class, XMin, YMin, XMax, YMax\r\n"a.jpg", 64, 48, "car", 1, 2, 3, 4\r\n',
        "\n\nx0,y0,x1,y1,name,file name\n1,2,3,4,car,a.jpg\n",
    ],
)
def test_headers_are_read_by_name(text: str) -> None:
    entries, faults = parsed(text)
    assert faults == []
    o = entries[0].labels.objects[0]
    assert (entries[0].ref, o.label, o.x1, o.y1, o.x2, o.y2) == ("a.jpg", "car", 1, 2, 3, 4)


@pytest.mark.parametrize(
    ("row", "code"),
    [
        (f"a.jpg,{SIZE},car,5,6,25", "column_count"),
        (f"a.jpg,{SIZE},traffic light, red,5,6,25,30", "column_count"),
        (f"a.jpg,{SIZE},,5,6,25,30", "no_class"),
        (f"a.jpg,{SIZE},car,5,,25,30", "no_box"),
        (f"a.jpg,{SIZE},car,5,6,wide,30", "not_a_number"),
        (f"a.jpg,{SIZE},car,5,6,nan,30", "not_finite"),
        (f"a.jpg,{SIZE},car,5,6,1e999,30", "not_finite"),
        ("a.jpg,64,31,car,5,6,25,30", "size_differs"),
        ("a.jpg,wide,48,car,5,6,25,30", "not_a_number"),
        (f'a.jpg,{SIZE},"car"s,5,6,25,30', "label_unreadable"),
    ],
)
def test_a_bad_row_costs_itself_alone(row: str, code: str) -> None:
    entries, faults = parsed(HEADER + f"{GOOD}\n{row}\n{GOOD}\n")
    assert [o.line for e in entries for o in e.labels.objects] == [2, 4]
    assert faults == [(code, 3)]


def test_an_open_quote_takes_the_rest_and_says_how_much() -> None:
    entries, loose = tf_csv.parse((HEADER + f'{GOOD}\n"{GOOD}\n\n{GOOD}\n').encode(), "l.csv")
    assert len(entries[0].labels.objects) == 1
    assert [(f.code, f.line, f.objects) for f in loose.faults] == [("label_unreadable", 3, 2)]


def test_shares_are_no_pixels() -> None:
    entries, faults = parsed(HEADER + f"a.jpg,{SIZE},car,0.1,0.2,0.5,1\na.jpg,{SIZE},dog,0,0,1,1\n")
    assert faults == [("not_pixels", 2)]
    assert (entries[0].labels.declared, entries[0].labels.objects) == (2, [])


def test_a_header_that_lacks_a_column_is_not_passed_by(tmp_path: Path) -> None:
    root = csv_set(
        tmp_path, {"l.csv": HEADER + GOOD, "m.csv": HEADER.replace("class", "klass") + GOOD, "n.csv": "a,b\n"}
    )
    found = writing.check(root)
    assert [(f.code, f.file, f.objects) for f in found.faults if f.objects] == [("label_unreadable", "m.csv", 1)]
    assert "no class" in next(f.message for f in found.faults if f.file == "m.csv")
    assert [f.value for f in found.faults if f.code == "ignored_files"] == ["n.csv"]


def test_an_image_without_rows_is_background(tmp_path: Path) -> None:
    found = writing.check(csv_set(tmp_path, {"labels.csv": HEADER + GOOD}))
    assert (found.format, [(s.name, len(s.objects)) for s in found.samples]) == ("tf_csv", [("a.jpg", 1), ("b.jpg", 0)])
    assert [(f.code, f.file, f.severity) for f in found.faults] == [("background_image", "b.jpg", "info")]


def test_several_lists_are_parts_and_find_the_images_beside_them(tmp_path: Path) -> None:
    lists = {"train_labels.csv": HEADER + GOOD, "test_labels.csv": HEADER + GOOD.replace("car", "dog")}
    found = writing.check(csv_set(tmp_path, lists, ("images/train/a.jpg", "images/test/a.jpg")))
    assert [(s.name, s.part, s.objects[0].cls) for s in found.samples] == [
        ("test/a.jpg", "test", "dog"),
        ("train/a.jpg", "train", "car"),
    ]


def test_which_image_a_name_means(tmp_path: Path) -> None:
    names = ("day/a.jpg", "night/b.jpg", "night/c.jpg", "night/C2.jpg", "day/c.jpg")
    rows = [r"C:\data\night\b.jpg", "./day/a.jpg", "night/a.jpg", "c.jpg", "nowhere.jpg", "b.jpg", ""]
    text = HEADER + "".join(f"{name},{SIZE},car,5,6,25,30\n" for name in rows)
    found = writing.check(csv_set(tmp_path, {"l.csv": text}, names))
    assert [s.name for s in found.samples if s.objects] == ["day/a.jpg", "night/b.jpg"]
    assert sorted((f.line, f.code) for f in found.faults if f.objects) == [
        (4, "label_without_image"),  # never the a.jpg of another folder
        (5, "duplicate_name"),  # c.jpg may be two
        (6, "label_without_image"),
        (7, "duplicate_name"),  # b.jpg is night/b.jpg again
        (8, "label_without_image"),
    ]


def test_a_size_that_differs_takes_the_images_objects(tmp_path: Path) -> None:
    found = writing.check(csv_set(tmp_path, {"l.csv": HEADER + GOOD.replace(SIZE, "640,480")}))
    assert [(f.code, f.objects) for f in found.faults if f.objects] == [("size_differs", 1)]


def test_one_list_can_be_named(tmp_path: Path) -> None:
    """raccoon_labels.csv holds train_labels.csv: read both, and each image is told of twice."""
    root = csv_set(tmp_path, {"all.csv": HEADER + GOOD, "train_labels.csv": HEADER + GOOD})
    assert [f.code for f in writing.check(root).faults if f.objects] == ["duplicate_name"]
    named = tf_csv.READER.layout(writing.check(root).tree, None, "all.csv")
    assert named.label_dir == "all.csv"
    with pytest.raises(BadData, match="no CSV file at or below labels"):
        tf_csv.READER.layout(writing.check(root).tree, None, "labels")


@pytest.mark.parametrize("parts", [(None,), ("train", "val")])
def test_round_trip(tmp_path: Path, parts: tuple[str | None, ...]) -> None:
    records = writing.records(parts, flags=True)
    lost = writing.write(tf_csv.WRITER, tmp_path / "out", records)
    objects = [o for r in records for o in r.objects]
    assert lost["difficult"] == sum(o.difficult for o in objects) > 0
    assert lost["truncated"] == sum(bool(o.truncated) for o in objects) > 0
    assert lost["occluded"] == sum(bool(o.occluded) for o in objects) > 0
    assert lost["part"] == (2 if parts[0] else 0)
    found = writing.check(tmp_path / "out", None)
    assert found.names == ("car", "traffic light, red", "ça va")
    wanted = writing.expected(records)
    for name, row in wanted.items():
        if not row[4]:  # the part of an image without objects is lost
            wanted[name] = (*row[:3], None, ())
    assert writing.seen(found) == wanted
    first = (tmp_path / "out" / ("train_labels.csv" if parts[0] else "labels.csv")).read_text().splitlines()
    assert first[0] == HEADER.strip()


def test_whole_pixels_are_written_without_a_point(tmp_path: Path) -> None:
    """int(row["xmin"]) of the old converters cannot read "5.0"."""
    record = writing.records(images=2)[1]
    writing.write(tf_csv.WRITER, tmp_path / "out", [record])
    o = record.objects[0]
    row = f"{record.name},{WIDTH},{HEIGHT},car,{o.x1:.0f},{o.y1:.0f},{o.x2:.0f},{o.y2:.0f}"
    assert (tmp_path / "out" / "labels.csv").read_text().splitlines()[1] == row


# ---- label maps


def test_label_map_is_read_as_others_write_it() -> None:
    text = """# classes
    item { name: 'car' id: 1 display_name: "Car" }
    item {
      id: 3,
      name: "stra\\303\\237e"
    }"""
    assert label_map.parse(text.encode(), "m") == ({1: "car", 3: "straße"}, [])


def test_label_map_round_trip() -> None:
    names = ["car", 'a "quoted" one', "back\\slash", "ça va"]
    assert label_map.parse(label_map.text(names).encode(), "m") == (dict(enumerate(names, 1)), [])
    assert label_map.text(["car"]) == 'item {\n  id: 1\n  name: "car"\n}\n'


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("item { id: 0 name: 'x' }", 1, "from 1 on"),
        ("item { id: 1.5 name: 'x' }", 1, "from 1 on"),
        ("\nitem { id: 1 }", 2, "has no name"),
        ("item { id: 1 name: 'a' }\nitem { id: 1 name: 'b' }", 2, "'a' and 'b'"),
        ("item { id: 1", 1, "ends inside a block"),
        ("items: 3", 0, "is expected, not items"),
        ("item {" * 5000, 0, "no label map"),
        ("", 1, "empty"),
        ("\ud800", 0, "not UTF-8"),
    ],
)
def test_label_map_faults(text: str, line: int, message: str) -> None:
    _, faults = label_map.parse(text.encode("utf-8", "surrogatepass"), "m.pbtxt")
    assert [(f.code, f.file) for f in faults] == [("label_unreadable", "m.pbtxt")]
    assert message in faults[0].message
    assert not line or faults[0].line == line
