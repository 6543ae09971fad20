"""Label files, line by line: what is read, and that each thing that cannot be read is said with its line."""

from __future__ import annotations

import pytest

from tests.data.helpers import kitti_line, voc_object, voc_text  # isort: skip

from refit.data.formats import kitti, voc
from refit.data.model import Labels

GOOD = kitti_line()


def _codes(labels: Labels) -> list[tuple[str, int]]:
    assert labels.balanced()
    return [(f.code, f.line) for f in labels.faults]


# ---- KITTI


def test_kitti_columns() -> None:
    text = "car 0.25 2 -1.5 10.5 20 30 40.25 1 2 3 4 5 6 7\ncar 0 0 0 1 2 3 4 0 0 0 0 0 0 0 0.9\n"
    labels = kitti.parse(text.encode(), "a.txt")
    first, second = labels.objects
    assert (first.label, first.x1, first.y1, first.x2, first.y2) == ("car", 10.5, 20, 30, 40.25)
    assert (first.line, first.truncated, first.occluded) == (1, 0.25, 2)
    assert (second.line, second.x1, second.y2) == (2, 1, 4)
    assert _codes(labels) == []


def test_kitti_unknown_flags_are_none() -> None:
    labels = kitti.parse(b"car -1 -1 -10 1 2 3 4 -1 -1 -1 -1000 -1000 -1000 -10", "a.txt")
    assert (labels.objects[0].truncated, labels.objects[0].occluded) == (None, None)


@pytest.mark.parametrize("text", ["", "\n\n", " \t\r\n", "\ufeff"])
def test_kitti_empty_is_background(text: str) -> None:
    labels = kitti.parse(text.encode(), "a.txt")
    assert (labels.declared, labels.objects, labels.faults) == (0, [], [])


def test_kitti_windows_text() -> None:
    labels = kitti.parse(("\ufeff" + GOOD + "\r\n" + GOOD + "\r\n").encode(), "a.txt")
    assert [o.label for o in labels.objects] == ["car", "car"]


@pytest.mark.parametrize(
    ("line", "code", "advice"),
    [
        ("DontCare -1 -1 -10 1 2 3 4 -1 -1 -1 -1000 -1000 -1000 -10", "dont_care", ""),
        ("dontcare 1 2", "dont_care", ""),
        ("car 0 0 0 1 2 3 4", "column_count", "15 columns"),
        ("car 0.5 0.5 0.1 0.1", "column_count", "YOLO"),
        ("car,0,0,0,1,2,3,4,0,0,0,0,0,0,0", "column_count", "commas"),
        ("traffic light " + GOOD.split(" ", 1)[1] + " 0", "column_count", "traffic_light"),
        (GOOD.replace(" 5.00", " five"), "not_a_number", ""),
        (GOOD.replace(" 5.00", " 5_0"), "not_a_number", ""),
        (GOOD.replace(" 5.00", " ٥"), "not_a_number", ""),
        (GOOD.replace(" 5.00", " nan"), "not_finite", ""),
        (GOOD.replace(" 30.00", " -inf"), "not_finite", ""),
    ],
)
def test_kitti_bad_line(line: str, code: str, advice: str) -> None:
    labels = kitti.parse(f"{GOOD}\n\n{line}\n{GOOD}\n".encode(), "a.txt")
    assert (labels.declared, len(labels.objects)) == (3, 2)
    assert _codes(labels) == [(code, 3)]
    assert advice in labels.faults[0].advice
    assert labels.faults[0].file == "a.txt"


def test_kitti_shifted_column_is_named() -> None:
    """seeds.md D: every y2 is 0. Here because alpha is missing and the rest moved up."""
    rows = ["car 0.00 0 10 20 50 80 0 1 1 1 1 1 1 1", "dog 0.00 1 30 22 60 90 0 1 1 1 1 1 1 1"]
    labels = kitti.parse("\n".join(["", *rows, GOOD.replace("car", "DontCare")]).encode(), "a.txt")
    assert _codes(labels) == [("dont_care", 4), ("shifted_column", 2)]
    fault = labels.faults[1]
    assert fault.objects == 2
    assert "y2 (column 8) is 0 in all 2 objects" in fault.message
    assert "columns 4 to 7" in fault.advice
    assert "alpha" in fault.advice


@pytest.mark.parametrize(
    ("box", "columns"),
    [("0 10 20 50 80", 16), ("10 0 20 50 80", 16), ("10 20 0 50 80", 16), ("0 10 20 50 80", 15), ("9 10 20 50 80", 15)],
)
def test_kitti_column_too_many_is_named(box: str, columns: int) -> None:
    """y2 stands in h's place; as it stands, "0 10 20 50" would be a good box."""
    rows = [" ".join(f"{cls} 0.00 0 -10 {box} 1.5 1.6 3.9 1 2 3 4".split()[:columns]) for cls in ("car", "dog")]
    labels = kitti.parse("\n".join(rows).encode(), "a.txt")
    assert labels.objects == []
    assert _codes(labels) == [("shifted_column", 1)]
    assert labels.faults[0].objects == 2
    assert "h (column 9) is larger than x2 (column 7) in all 2 objects" in labels.faults[0].message
    assert "a column too many stands before them or in them" in labels.faults[0].advice


def test_kitti_heights_and_scores_are_no_shift() -> None:
    """A car at the left edge, 4.1 m high and 3 pixels wide, with a score; and a height in centimetres."""
    edge = "car 0.9 0 -10 0 20 3 80 4.1 1.6 3.9 1 2 3 4 0.93"
    tall = "car 0.0 0 -10 10 20 50 80 150 160 390 1 2 3 4\n" + kitti_line(x2=300).replace("-1 -1 -1", "150 160 390")
    for data, objects in ((edge, 1), (tall, 2)):
        labels = kitti.parse(data.encode(), "a.txt")
        assert (len(labels.objects), labels.faults) == (objects, [])


def test_kitti_one_zero_among_good_ones_is_no_shift() -> None:
    labels = kitti.parse(f"{GOOD}\n{kitti_line(y2=0)}".encode(), "a.txt")
    assert (len(labels.objects), labels.faults) == (2, [])  # the box itself is judged later, as inverted


@pytest.mark.parametrize(
    ("data", "lost"),
    [
        (GOOD.encode("utf-16"), 1),
        (b"caf\xe9 " + GOOD.encode()[4:] + b"\n\n" + GOOD.encode(), 2),
        (GOOD.encode() + b"\0" * 100, 1),
        (b"\0" * 100, 0),
    ],
)
def test_kitti_no_text(data: bytes, lost: int) -> None:
    labels = kitti.parse(data, "a.txt")
    assert (labels.declared, labels.objects) == (lost, [])
    assert _codes(labels) == [("label_unreadable", 0)]


# ---- VOC


def test_voc_object() -> None:
    extra = "<truncated>1</truncated><difficult>1</difficult><occluded>0</occluded>"
    labels = voc.parse(voc_text(voc_object(" car\n", ("5.5", 6, 25, 30), extra)).encode(), "a.xml")
    (o,) = labels.objects
    assert (o.label, o.x1, o.y1, o.x2, o.y2) == ("car", 5.5, 6, 25, 30)
    assert (o.difficult, o.truncated, o.occluded) == (True, 1, 0)
    assert labels.size == (64, 48)
    assert _codes(labels) == []
    assert o.line == 7  # the bndbox


@pytest.mark.parametrize("size", ["", "<size/>", "<size><width>0</width><height>0</height></size>"])
def test_voc_size_not_known(size: str) -> None:
    assert voc.parse(f"<annotation>{size}</annotation>".encode(), "a.xml").size is None


def test_voc_counts_objects_wherever_they_are() -> None:
    text = f"<annotations><annotation>{voc_object()}</annotation><x>{voc_object('dog')}</x></annotations>"
    assert [o.label for o in voc.parse(text.encode(), "a.xml").objects] == ["car", "dog"]


def test_voc_parts_are_no_objects() -> None:
    part = "<part><name>wheel</name><bndbox><xmin>1</xmin></bndbox></part>"
    labels = voc.parse(voc_text(voc_object(extra=part)).encode(), "a.xml")
    assert [(o.label, o.x1) for o in labels.objects] == [("car", 5)]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (voc_object(""), "no_class"),
        ("<object><bndbox/></object>", "no_class"),
        ("<object><name>car</name><polygon/></object>", "no_box"),
        (voc_object().replace("</object>", "<bndbox/></object>"), "no_box"),
        (voc_object(box=("", 6, 25, 30)), "no_box"),
        (voc_object(box=("left", 6, 25, 30)), "not_a_number"),
        (voc_object(box=("nan", 6, 25, 30)), "not_finite"),
        (voc_object(box=(5, 6, 25, "1e999")), "not_finite"),
    ],
)
def test_voc_bad_object(text: str, code: str) -> None:
    labels = voc.parse(voc_text(voc_object("dog"), text).encode(), "a.xml")
    assert [o.label for o in labels.objects] == ["dog"]
    (fault,) = labels.faults
    assert labels.balanced()
    assert fault.code == code
    assert fault.line >= 13


BOMB = """<?xml version="1.0"?>
<!DOCTYPE a [<!ENTITY a "aaaaaaaaaaaaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">
<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;"><!ENTITY d "&c;&c;&c;&c;&c;&c;&c;&c;&c;&c;">]>
<annotation><object><name>&d;</name></object></annotation>"""
EXTERNAL = (
    '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation><object><name>&x;</name></object></annotation>'
)


@pytest.mark.parametrize(
    ("data", "message", "lost"),
    [
        (BOMB.encode(), "entities", 1),
        (EXTERNAL.encode(), "entities", 1),
        (("<a>" * 5000 + "</a>" * 5000).encode(), "nested deeper", 0),
        (b"<annotation><object></annotation>", "mismatched tag", 1),
        (voc_text(voc_object(), voc_object()).encode()[:-30], "not valid XML", 2),
        (b"", "no element found", 0),
        (b'<?xml version="1.0" encoding="klingon"?><annotation/>', "not valid XML", 0),
        (b"\xff\xfe\x00", "not valid XML", 0),
    ],
)
def test_voc_hostile_or_broken(data: bytes, message: str, lost: int) -> None:
    labels = voc.parse(data, "a.xml")
    assert (labels.declared, labels.objects) == (lost, [])
    (fault,) = labels.faults
    assert (fault.code, fault.objects) == ("label_unreadable", lost)
    assert message in fault.message
