"""The report: one page that is valid, escaped, small, and needs nothing else."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.data.helpers import CLASSES, SETTINGS, encoded, kitti_line, kitti_set, picture  # isort: skip

import cv2
import numpy as np

from refit.data.cli import main
from refit.data.examine import examine
from refit.data.ingest import ingest
from refit.data.report import contents, page
from refit.data.settings import DatasetSettings
from refit.report.markup import Markup, join, tag, text
from refit.report.pictures import Pictures, Rect

_VOID = {"meta"}
_ALLOWED = {
    *("html", "head", "meta", "title", "style", "body", "header", "main", "footer", "nav", "section", "article"),
    *("h1", "h2", "h3", "p", "a", "div", "span", "b", "small", "code", "dl", "dt", "dd", "ul", "li"),
    *("table", "thead", "tbody", "tr", "th", "td", "figure", "figcaption"),
    *("svg", "g", "rect", "circle", "line", "text", "image"),
}


class _Page(HTMLParser):
    """Reads a page strictly: every element is one that the report uses, and is closed where it was opened."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in _ALLOWED, f"<{tag}> in the page"
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice"
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def of(self, attribute: str) -> list[str]:
        return [value for _, name, value in self.attributes if name == attribute]


def _nasty_set(root: Path) -> Path:
    """A KITTI data set whose names are attacks: as file name, as class, in the fault's value."""
    kitti_set(root)
    for i, name in enumerate(
        ('"><script>alert(1)<', "<img src=x onerror=alert(2)>", "a' onload='b", "&lt;b&gt;", "\u202egpj")
    ):
        (root / "images" / f"{name}.jpg").write_bytes(encoded(50 + i))
        lines = [
            kitti_line("<b>bold</b>"),
            kitti_line('x"onclick="y', 30, 30, 3, 40),
            kitti_line("<svg/onload=1>", 5, 5, 5, 9),
        ]
        (root / "labels" / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return root


def test_names_are_text_and_nothing_else(tmp_path: Path) -> None:
    examined = examine(_nasty_set(tmp_path / "set"))
    html = page.write(contents.of_source(examined))
    found = _Page(html)
    shown = "".join(found.texts)
    for name in (
        '"><script>alert(1)<.jpg',
        "<img src=x onerror=alert(2)>",
        "a' onload='b",
        "&lt;b&gt;.jpg",
        "<b>bold</b>",
    ):
        assert name in shown
    assert "\u202e" not in html
    assert not [name for _, name, _ in found.attributes if name.startswith("on")]
    assert {tag for tag, name, _ in found.attributes if name == "onload"} == set()


def test_what_to_do_is_that_of_the_faults_themselves(tmp_path: Path) -> None:
    root = kitti_set(tmp_path / "set")
    for i in range(8):
        (root / f"labels/{i:03}.txt").write_text("car 0 0 4 4 20 20 0 0 0 0 0 0 0 0\n")
    texts = _Page(page.write(contents.of_source(examine(root, max_bad_labels=1)))).texts
    assert any(t.startswith("The boxes stand in columns 4 to 7, one too early") for t in texts)
    assert "and 2 more, in issues.jsonl of a run, or by refit dataset check --json" in texts
    (root / "ImageSets").mkdir()
    (root / "ImageSets/train.txt").write_text("008\n")
    (root / "ImageSets/val.txt").write_text("009\n")
    taken = ingest(
        root,
        SETTINGS.model_copy(update={"max_bad_labels": 1.0, "severity": {"shifted_column": "warning"}}),
        tmp_path / "ws",
    )
    texts = _Page(page.write(contents.of_snapshot(taken.path))).texts
    assert any(t.startswith("dataset.split: {lists: own} keeps them") for t in texts)  # a key keeps its own letters


def test_it_needs_nothing_else(tmp_path: Path) -> None:
    html = page.write(contents.of_source(examine(kitti_set(tmp_path / "set"))))
    found = _Page(html)
    for reference in (*found.of("href"), *found.of("src")):
        assert reference.startswith(("#", "data:image/webp;base64,"))
    assert "default-src 'none'" in found.of("content")[1]
    assert not re.search(r"url\(|@import|<script|https?://", html)
    anchors = {r[1:] for r in found.of("href") if r.startswith("#")}
    assert anchors == set(found.of("id"))
    assert "prefers-color-scheme: dark" in html
    assert 'name="viewport"' in html


def test_pictures_are_whole_and_boxes_in_pixels_of_the_image(tmp_path: Path) -> None:
    root = kitti_set(
        tmp_path / "set", images=3, lines=[kitti_line("car", 5, 6, 25, 30), kitti_line("cat", 40, 9, 40, 20)]
    )
    found = _Page(page.write(contents.of_source(examine(root, max_bad_labels=1))))
    images = [v for t, n, v in found.attributes if (t, n) == ("image", "href")]
    assert len(images) == 3 + 3  # the samples, and those of the fault
    for data in images:
        image = cv2.imdecode(np.frombuffer(base64.b64decode(data.partition(",")[2]), np.uint8), cv2.IMREAD_COLOR)
        assert image.shape == (48, 64, 3)
    rects = [v for t, n, v in found.attributes if (t, n) == ("rect", "x")]
    assert rects.count("5.0") == 6
    rings = [(n, v) for t, n, v in found.attributes if t in ("circle", "rect") and n in ("cx", "cy", "class")]
    assert ("class", "bad") in rings


def test_a_snapshot_against_the_one_before(tmp_path: Path) -> None:
    root = kitti_set(tmp_path / "set", images=40)
    before = ingest(root, SETTINGS, tmp_path / "ws").path
    for i in range(30):
        (root / f"labels/{i:03}.txt").write_text(kitti_line("dog", 1, 1, 60, 40) + "\n")
    scene = cv2.resize(picture(1, 12, 9), (640, 480), interpolation=cv2.INTER_CUBIC)
    for name, size in (("n1", (640, 480)), ("n2", (320, 240))):
        cv2.imwrite(str(root / f"images/{name}.jpg"), cv2.resize(scene, size))
        (root / f"labels/{name}.txt").write_text(kitti_line("car", 1, 1, 60, 40) + "\n")
    now = ingest(root, SETTINGS, tmp_path / "ws").path
    report = contents.of_snapshot(now, title="cars", previous=before)
    found = report.as_json()
    assert found["difference"]["added"] == {"n": 2, "first": ["n1.jpg", "n2.jpg"]}
    assert found["difference"]["labels_changed"]["n"] == 30
    levels = {d["trait"]: d["level"] for d in found["drift"]}
    assert (levels["class mix"], levels["box sizes"], levels["brightness"]) == ("major", "major", "none")
    assert found["counts"]["drift_class_mix"] == {"severity": "warning", "n": 1}
    near = [f for f in found["faults"] if f["code"].startswith("near_duplicate")]
    assert [(f["file"], f["value"]) for f in near] in (
        [("images/n2.jpg", "images/n1.jpg")],
        [("images/n1.jpg", "images/n2.jpg")],
    )
    html = page.write(report)
    shown = " ".join(_Page(html).texts)
    for words in (
        "cars",
        "Change since the last data set",
        before.name[:12],
        "n1.jpg, n2.jpg",
        "Near-duplicates",
        "major",
    ):
        assert words in shown
    assert contents.of_snapshot(now, previous=now).difference is None


def test_severities_of_a_pipeline_hold_for_what_no_snapshot_knows(tmp_path: Path) -> None:
    root = kitti_set(tmp_path / "set", images=30)
    before = ingest(root, SETTINGS, tmp_path / "ws").path
    for path in (root / "labels").iterdir():
        path.write_text(kitti_line("dog") + "\n")
    now = ingest(root, DatasetSettings(classes=list(CLASSES)), tmp_path / "ws").path
    assert contents.of_snapshot(now, previous=before).good
    report = contents.of_snapshot(now, previous=before, severity={"drift_class_mix": "error"})
    assert [f.code for f in report.news if f.severity == "error"] == ["drift_class_mix"]
    assert not report.good


@pytest.mark.parametrize("lines", [[], [kitti_line("horse")]])
def test_sets_with_little_in_them(tmp_path: Path, lines: list[str]) -> None:
    root = kitti_set(tmp_path / "set", images=2, lines=lines)
    (root / "images/000.jpg").write_bytes(b"")
    report = contents.of_source(examine(root))
    shown = " ".join(_Page(page.write(report)).texts)
    assert "image_truncated" in shown
    assert json.loads(json.dumps(report.as_json()))["good"] is False


def test_the_budget_of_pictures(tmp_path: Path) -> None:
    noise = cv2.imencode(".png", picture(1, 800, 600))[1].tobytes()
    pictures = Pictures(lambda file: noise if file != "gone" else None, budget=150_000)
    made = [pictures.of(f"{i}", [Rect((0, 0, 5, 5), 0, "<x>")], "n") for i in range(10)]
    sizes = [len(m) for m in made if m]
    assert 3 <= len(sizes) < 10
    assert all(s < 70_000 for s in sizes)
    assert sum(sizes) <= 150_000
    assert made[0] is not None
    assert 'viewBox="0 0 800 600"' in made[0]
    assert "&lt;x&gt;" in made[0]
    assert Pictures(lambda file: None).of("gone", [], "") is None
    assert Pictures(lambda file: b"no picture").of("bad", [], "") is None


def test_a_large_set_of_large_pictures_stays_below_two_megabytes(tmp_path: Path) -> None:
    root = tmp_path / "set"
    kitti_set(
        root, images=60, lines=[kitti_line(CLASSES[0], 9, 9, 9, 20), *(kitti_line(c, 9, 9, 40, 40) for c in CLASSES)]
    )
    for i in range(60):
        (root / f"images/{i:03}.jpg").write_bytes(encoded(i, width=900, height=700))
    html = page.write(contents.of_source(examine(root, max_bad_labels=1)))
    assert 600_000 < len(html.encode()) < 2_000_000


def test_samples_show_every_class(tmp_path: Path) -> None:
    root = kitti_set(tmp_path / "set", images=60, lines=[kitti_line("car")])
    (root / "labels/042.txt").write_text(kitti_line("dog") + "\n")
    (root / "labels/007.txt").write_text("")
    report = contents.of_source(examine(root))
    files = [report.table.files[i] for i in page.chosen(report, 10)]
    assert len(set(files)) == 10
    assert {"042.jpg", "007.jpg"} <= set(files)


def test_markup() -> None:
    assert (
        tag("p", "<&>", Markup("<b>x</b>"), class_='a"b', data_x=None)
        == '<p class="a&quot;b">&lt;&amp;&gt;<b>x</b></p>'
    )
    assert text("a\nb\x00\udce9") == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}\\udce9"
    assert isinstance(join("a", "b"), Markup)


def _run(capsys: pytest.CaptureFixture[str], *words: Any) -> tuple[int, str, str]:
    code = main(["report", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = kitti_set(tmp_path / "set")
    at = tmp_path / "out.html"
    assert _run(capsys, root, "-o", at)[:2] == (0, f"{at}: 12 images, 0 findings\n")
    assert "Nothing was found." in _Page(at.read_text()).texts
    taken = ingest(root, SETTINGS, tmp_path / "ws").path
    code, out, _ = _run(capsys, taken, "--json", "--network", "32x24", "--cell", 16)
    found = json.loads(out)
    assert (code, found["about"]["Fingerprint"]) == (0, taken.name)
    assert found["counts"]["small_for_network"]["n"] == 3
    assert found["network"] == {"width": 32, "height": 24, "cell": 16, "letterbox": True}
    (root / "images/003.jpg").write_bytes(encoded(3)[:500])
    assert _run(capsys, root, "-o", at)[0] == 2
    assert "image_truncated" in at.read_text()
    code, _, err = _run(capsys, tmp_path / "none", "-o", at)
    assert (code, "there is no such folder" in err) == (2, True)
    assert _run(capsys, root, "--previous", taken)[0] == 2
    assert _run(capsys, root, "-o", tmp_path / "no folder" / "x.html")[0] == 1
