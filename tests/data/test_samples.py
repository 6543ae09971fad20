"""Packed samples are those that were put in; many processes find what one finds."""

from __future__ import annotations

import json
import os
import pickle
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from tests.data.helpers import (  # isort: skip
    CLASSES,
    HEIGHT,
    SETTINGS,
    WIDTH,
    encoded,
    kitti_line,
    kitti_set,
    yolo_set,
)

import numpy as np
from hypothesis import event, given, settings
from hypothesis import strategies as st

from refit.data import checks, shares, snapshot, work
from refit.data.checks import Classes
from refit.data.examine import Share, _take_plain, examine, judge, look_at
from refit.data.faults import BadData
from refit.data.formats import kitti, yolo
from refit.data.ingest import ingest
from refit.data.model import Box, Sample
from refit.data.samples import Samples, flat

texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
numbers = st.floats(allow_nan=False, allow_infinity=False)
boxes = st.builds(
    Box, texts, numbers, numbers, numbers, numbers, st.booleans(), st.none() | numbers, st.none() | st.integers(0, 3)
)
samples = st.lists(
    st.builds(
        lambda name, folder, objects, size: Sample(
            flat(name),
            name,
            f"{folder}{name}",
            f"{abs(hash(name)):064x}",
            size,
            1 + size % 2**31,
            2 + size % 2**31,
            tuple(objects),
        ),
        texts,
        st.sampled_from(["", "images/", "other#"]),
        st.lists(boxes, max_size=4),
        st.integers(0, 2**40),
    ),
    max_size=8,
)


def _packed(rows: list[Sample]) -> Samples:
    made = Samples()
    for row in rows:
        made.append(row)
    return made


@given(samples, samples, st.data())
def test_what_goes_in_comes_out(first: list[Sample], second: list[Sample], data: st.DataObject) -> None:
    made, other = _packed(first), _packed(second)
    start = data.draw(st.integers(0, len(second)))
    stop = data.draw(st.integers(start, len(second)))
    made.extend(other, start, stop)
    expected = first + second[start:stop]
    for copy in (made, pickle.loads(pickle.dumps(made)), Samples.of_state(made.state())):
        assert list(copy) == expected
        assert [copy.digest(i) for i in range(len(copy))] == [s.digest() for s in expected]
        assert list(copy.names()) == [s.name for s in expected]
    counted = [o.cls for s in expected for o in s.objects]
    assert made.class_counts() == {cls: counted.count(cls) for cls in counted}
    chosen = data.draw(st.lists(st.integers(0, len(expected) - 1), max_size=5)) if expected else []
    some = made.choose(chosen)
    assert list(some) == [expected[i] for i in chosen]
    assert some.class_counts().total() == sum(len(expected[i].objects) for i in chosen)
    assert list(some.sorted()) == sorted((expected[i] for i in chosen), key=lambda s: s.name)
    assert list(made[1:]) == expected[1:]


plain = st.integers(-200, 300).map(lambda v: str(v / 100))
edges = st.tuples(st.integers(0, 1300), st.integers(1300, 3000))
sides = st.tuples(edges, edges).map(lambda t: [str(t[side][end]) for end in (0, 1) for side in (0, 1)])
words = st.sampled_from([*CLASSES, *CLASSES, "DontCare", "dontcare", "a_b", "Car*", "x:y", "é", "a b"])
kitti_lines = st.tuples(words, st.lists(plain, min_size=10, max_size=10), sides, st.sampled_from(["", "", " 0.9"])).map(
    lambda t: " ".join([t[0], *t[1][:3], *t[2], *t[1][3:]]) + t[3]
)
centred = st.lists(st.floats(0.3, 0.6).map(str), min_size=4, max_size=4)
share = st.integers(0, 10**6).map(lambda v: f"{v / 10**6:.6f}") | st.just("1.0000004")
yolo_lines = st.tuples(
    st.sampled_from(["0", "1", "02", "7", "1.0"]), centred | centred | st.lists(share, min_size=3, max_size=6)
).map(lambda t: " ".join([t[0], *t[1]]))


@pytest.mark.parametrize(("form", "line"), [(kitti, kitti_lines), (yolo, yolo_lines)], ids=["kitti", "yolo"])
@settings(max_examples=200, deadline=None)
@given(st.data(), st.sampled_from(["\n", "\r\n", "\n\n"]), st.booleans())
def test_plain_label_files_are_read_as_all_others(
    form: Any, line: st.SearchStrategy[str], drawn: st.DataObject, end: str, ended: bool
) -> None:
    """What the way for many plain files finds is what the way for all files finds."""
    data = (end.join(drawn.draw(st.lists(line, max_size=4))) + end * ended).encode()
    labels = form.parse(data, "a.txt")
    found = form.columns([data, b"", data])
    assert found.counts[0] == found.counts[2]
    assert found.counts[1] == -1
    sizes = np.array([(4000, 3000), (1, 1), (4000, 3000)], np.float64)
    labels.pixels(4000, 3000)
    found.pixels(sizes)
    said = [Box(o.label, o.x1, o.y1, o.x2, o.y2, o.difficult, o.truncated, o.occluded) for o in labels.objects]
    good, _ = checks.plain(found, sizes, Classes())
    if good[0]:
        event("plain")
        assert list(map(Box.of_numbers, found.labels, found.boxes.tolist())) == said * 2
        for number in (0, 2):
            assert [replace(f, file="a.txt") for f in found.faults.get(number, ())] == labels.faults


def _kitti_line(chance: random.Random, x1: float, y1: float, x2: float, y2: float) -> str:
    return kitti_line(chance.choice([*CLASSES, "other", "DontCare"]), x1, y1, x2, y2)


def _yolo_line(chance: random.Random, x1: float, y1: float, x2: float, y2: float) -> str:
    shares = ((x1 + x2) / 2 / WIDTH, (y1 + y2) / 2 / HEIGHT, (x2 - x1) / WIDTH, (y2 - y1) / HEIGHT)
    return " ".join([chance.choice("0123"), *(f"{v:.6f}" for v in shares)])


@pytest.mark.parametrize(("make", "line"), [(kitti_set, _kitti_line), (yolo_set, _yolo_line)])
def test_images_of_which_nothing_is_said_are_taken_as_all_others(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[..., Path],
    line: Callable[[random.Random, float, float, float, float], str],
) -> None:
    root = make(tmp_path / "set", images=120)
    chance = random.Random(3)
    for path in sorted(root.rglob("labels/*.txt")):
        x, y, w = chance.randint(-3, 30), chance.randint(0, 20), chance.choice([1, 5, 9.5, 40])
        rows = [line(chance, x, y, x + w, y + 6), line(chance, x, y, x + w, y + 6), line(chance, 5, 6, 25, 30)]
        path.write_text("".join(f"{row}\n" for row in rows[chance.randint(0, 2) :]))
    classes = Classes(CLASSES)
    plainly = Mock(side_effect=_take_plain)
    monkeypatch.setattr("refit.data.examine._take_plain", plainly)
    quick = examine(root, classes=classes, max_bad_labels=1)
    assert 20 < plainly.call_count < 100
    monkeypatch.setattr("refit.data.checks.plain", lambda found, sizes, classes: ([False] * len(sizes), found.labels))
    slow = examine(root, classes=classes, max_bad_labels=1)
    assert (list(quick.samples), quick.faults, quick.declared) == (list(slow.samples), slow.faults, slow.declared)
    assert [quick.samples.digest(i) for i in range(len(quick.samples))] == [s.digest() for s in slow.samples]
    assert quick.labels - {"other"} == slow.labels - {"other"}
    assert quick.balanced()


def test_a_snapshot_of_schema_2_is_checked_by_its_own_digests(tmp_path: Path) -> None:
    taken = ingest(kitti_set(tmp_path / "set"), SETTINGS, tmp_path / "ws")
    rows = list(snapshot.read_annotations(taken.path))
    about = json.loads((taken.path / "dataset.json").read_text())
    about |= {"schema": 2, "fingerprint": snapshot.fingerprint(rows, taken.classes, 2)}
    old = taken.path.rename(taken.path.with_name(about["fingerprint"]))
    (old / "dataset.json").write_text(json.dumps(about))
    assert snapshot.verify(old) == ""
    lines = (old / "annotations.jsonl").read_text()
    (old / "annotations.jsonl").write_text(lines.replace('"x1": ', '"x1": 1', 1))
    assert "do not give its fingerprint" in snapshot.verify(old)


def test_many_processes_find_what_one_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = kitti_set(tmp_path / "set", images=400)
    (root / "images/017.jpg").write_bytes(encoded(17)[:300])
    (root / "labels/350.txt").write_text(kitti_line(x1=30, x2=3))
    monkeypatch.setattr(work, "cores", lambda: 1)
    alone = examine(root)
    monkeypatch.setattr(work, "cores", lambda: 3)
    together = examine(root)
    assert list(together.samples) == list(alone.samples)
    assert together.faults == alone.faults
    assert {f.code for f in alone.faults} >= {"image_truncated", "inverted"}


@pytest.mark.parametrize(
    ("cgroups", "quotas", "allowed"),
    [
        ("0::/", {"cpu.max": "250000 100000"}, 3),  # a container's own, at the root of the mount
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "400000 100000"}, 4),  # the least on the way up
        (
            "4:cpu,cpuacct:/pod",
            {"cpu,cpuacct/cpu.cfs_quota_us": "150000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            2,
        ),
        ("4:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 9),
        ("3:memory:/", {"cpu.max": "100000 100000"}, 9),
        ("0::/", {"cpu.max": "half"}, 9),
    ],
)
def test_no_more_workers_than_the_cgroup_may_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cgroups: str, quotas: dict[str, str], allowed: int
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(cgroups + "\n")
    for name, text in quotas.items():
        (tmp_path / "sys/fs/cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "sys/fs/cgroup" / name).write_text(text + "\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(9)))
    monkeypatch.setattr(work, "_quota", lambda: min(work._quotas(tmp_path), default=99))
    monkeypatch.delenv(work.CPUS, raising=False)
    assert work.cores() == allowed
    monkeypatch.setenv(work.CPUS, "1.5")
    assert work.cores() == 2  # what its pod asks for
    monkeypatch.setenv(work.CPUS, "0.1")
    assert work.cores() == 1


def test_what_a_process_raises_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "cores", lambda: 2)
    with work.Team(lambda n: 12 // n, True) as team:
        assert list(team.each(range(1, 60))) == [12 // n for n in range(1, 60)]
        with pytest.raises(ZeroDivisionError):
            list(team.each([1, 2, 0, 3]))


def test_where_one_fails_the_others_do_not_end_their_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "cores", lambda: 2)

    def batch(n: int) -> None:
        if n:
            (tmp_path / "begun").touch()
            for _ in range(300):
                time.sleep(0.1)
            (tmp_path / "ended").touch()
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), work.Team(batch, True) as team:
        list(team.each([0, 1]))
    assert not (tmp_path / "ended").exists()


def test_the_fingerprint_knows_no_order_locale_or_umask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that other locales sort in another way, listed by the disk in any order, in files of any mode."""
    root = kitti_set(tmp_path / "set")
    for i, name in enumerate(["Ä", "z", "a", "é", "ß"]):
        for kind, suffix in (("images", "jpg"), ("labels", "txt")):
            os.rename(root / kind / f"{i:03}.{suffix}", root / kind / f"{name}.{suffix}")
    first = ingest(root, SETTINGS, tmp_path / "ws")
    scandir = os.scandir

    class Shuffled:
        def __init__(self, path: str) -> None:
            with scandir(path) as entries:
                self.entries = list(entries)
            random.Random(7).shuffle(self.entries)

        def __enter__(self) -> Shuffled:
            return self

        def __exit__(self, *_: object) -> None: ...

        def __iter__(self):
            return iter(self.entries)

    monkeypatch.setattr(os, "scandir", Shuffled)
    monkeypatch.setenv("LC_ALL", "sv_SE.UTF-8")
    before = os.umask(0o077)
    try:
        second = ingest(root, SETTINGS, tmp_path / "other")
    finally:
        os.umask(before)
    assert second.fingerprint == first.fingerprint
    assert (second.path / "annotations.jsonl").read_bytes() == (first.path / "annotations.jsonl").read_bytes()


@pytest.mark.parametrize("count", range(1, 8))
def test_shares_together_are_the_whole(tmp_path: Path, count: int) -> None:
    root = kitti_set(tmp_path / "set", images=40)
    (root / "images/017.jpg").write_bytes(encoded(17)[:300])
    (root / "labels/030.txt").write_text(kitti_line(x1=30, x2=3))
    (root / "labels/orphan.txt").write_text(kitti_line())
    (root / "images/sub").mkdir()
    (root / "labels/sub").mkdir()
    for name in ("sub/a", "sub__a"):  # one name in a snapshot
        (root / f"images/{name}.png").write_bytes(encoded(99, ".png"))
        (root / f"labels/{name}.txt").write_text(kitti_line())
    os.symlink("/nowhere", root / "images/link.jpg")
    whole = examine(root, classes=Classes(CLASSES))
    parts = [tmp_path / f"{i}" for i in range(count)]
    sizes = []
    for i, path in enumerate(parts):
        looked = look_at(root, Classes(CLASSES), share=Share(i, count))
        sizes.append(len(looked.found.samples))
        shares.write(looked, Share(i, count), "how", path)
    merged = judge(shares.merge(root, parts, "how"), Classes(CLASSES), 0.01)
    assert list(merged.samples) == list(whole.samples)
    assert (merged.faults, merged.declared) == (whole.faults, whole.declared)
    assert {f.code for f in whole.faults} >= {"image_truncated", "inverted", "duplicate_name", "not_followed"}
    assert max(sizes) < 41 / count + 12


def test_shares_of_a_folder_that_changed_are_not_put_together(tmp_path: Path) -> None:
    root = kitti_set(tmp_path / "set")
    parts = [tmp_path / "0", tmp_path / "1"]

    def look(index: int, count: int = 2, how: str = "how") -> None:
        share = Share(index, count)
        shares.write(look_at(root, Classes(), share=share), share, how, parts[index])

    look(0)
    (root / "labels/003.txt").write_text("")
    look(1)
    with pytest.raises(BadData, match="still being copied"):
        shares.merge(root, parts, "how")
    look(0)
    shares.merge(root, parts, "how")
    for other in ({"how": "other classes"}, {"count": 4}):
        look(1, **other)
        with pytest.raises(ValueError, match=r"1: made with other settings, for another number of shares"):
            shares.merge(root, parts, "how")
    with pytest.raises(ValueError, match="another number of shares"):
        shares.merge(root, parts[::-1], "how")
    parts[0].write_bytes(b"x" * 99)
    with pytest.raises(ValueError, match="damaged"):
        shares.merge(root, parts, "how")


def test_classes_by_image_and_briefly() -> None:
    samples = _samples_of_classes()
    assert samples.class_images() == Counter({"car": 3, "cat": 2})
    assert samples.choose([0, 3]).class_images() == Counter({"car": 1, "cat": 1})
    assert [(b.file, b.source, b.sha256.hex(), b.look) for b in samples.choose([3, 1]).briefly()] == [
        (s.file, s.source, s.sha256, s.look) for s in (samples[3], samples[1])
    ]


def test_any_number_of_classes() -> None:
    """A column of the wrong kind makes a class of each row."""
    found = Samples()
    for i in range(700):
        boxes = tuple(Box(f"{i}-{j}", 1, 2, 3, 4) for j in range(100))
        found.append(Sample(f"{i}.jpg", f"{i}.jpg", f"{i}.jpg", f"{i:064x}", 9, 8, 7, boxes))
    assert len(found.class_counts()) == 70_000
    again = Samples.of_state(found.state())
    assert again.class_counts() == found.class_counts()
    assert list(again[699].objects) == list(found[699].objects)


def _samples_of_classes() -> Samples:
    found = Samples()
    for i, classes in enumerate((("car", "car"), (), ("cat", "car"), ("cat",), ("car",))):
        boxes = tuple(Box(cls, 1, 2, 3, 4) for cls in classes)
        found.append(
            Sample(f"a__{i}.jpg", f"a/{i}.jpg", f"images/a/{i}.jpg", f"{i:064x}", 9, 8, 7, boxes, look=bytes([i] * 20))
        )
    return found
