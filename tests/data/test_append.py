"""Data sets that follow each other: replaced as a whole or added to, and never a picture on both sides."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.data.helpers import CLASSES, encoded, kitti_line, kitti_set  # isort: skip

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from refit.data import arrival, snapshot
from refit.data.faults import BadData
from refit.data.ingest import ingest
from refit.data.settings import DatasetSettings
from refit.data.snapshot import Snapshot


def configured(**more: Any) -> DatasetSettings:
    return DatasetSettings.model_validate({"classes": list(CLASSES), "mode": "append", **more})


class Inbox:
    """A folder that is filled and taken, over and over, as runs do it."""

    def __init__(self, root: Path, **more: Any) -> None:
        self.root, self.workspace, self.settings = root / "inbox", root / "ws", configured(**more)
        kitti_set(self.root, 0)

    def put(self, name: str, picture: int, *lines: str) -> None:
        for kind, suffix in (("images", "jpg"), ("labels", "txt")):
            (self.root / kind / f"{name}.{suffix}").parent.mkdir(parents=True, exist_ok=True)
        (self.root / "images" / f"{name}.jpg").write_bytes(encoded(picture))
        text = lines or (kitti_line(CLASSES[picture % 3]),)
        (self.root / "labels" / f"{name}.txt").write_text("".join(f"{line}\n" for line in text))

    def empty(self) -> None:
        shutil.rmtree(self.root)
        kitti_set(self.root, 0)

    def take(self) -> Snapshot:
        taken = ingest(self.root, self.settings, self.workspace)
        listing = arrival.listing(self.root)
        arrival.record_taken(self.workspace, listing, fingerprint=taken.fingerprint, run="r", outcome="taken")
        return taken


@pytest.fixture
def inbox(tmp_path: Path) -> Inbox:
    made = Inbox(tmp_path)
    for i in range(20):
        made.put(f"{i:03}", i)
    made.take()
    made.empty()
    return made


def rows(taken: Snapshot) -> dict[str, dict[str, Any]]:
    return {row["file"]: row for row in snapshot.read_annotations(taken.path)}


def about(taken: Snapshot) -> dict[str, Any]:
    return dict(json.loads((taken.path / "dataset.json").read_text()))


def counted(added: int = 0, changed: int = 0, removed: int = 0, unchanged: int = 0) -> dict[str, int]:
    return {"added": added, "changed": changed, "removed": removed, "unchanged": unchanged}


def test_one_image_is_added(inbox: Inbox) -> None:
    inbox.put("new", 100)
    taken = inbox.take()
    assert taken.changes == counted(added=1, unchanged=20)
    assert len(rows(taken)) == 21
    assert rows(taken)["new.jpg"]["split"] == "train"
    assert snapshot.verify(taken.path) == ""
    assert taken.issues == {}
    again = inbox.take()
    assert (again.fingerprint, again.reused) == (taken.fingerprint, True)
    assert again.changes == counted(unchanged=21)


def test_corrected_labels_replace_by_name_and_by_content(inbox: Inbox) -> None:
    inbox.put("003", 3, kitti_line("dog", x2=40))
    inbox.put("another-name", 4, kitti_line("dog", x2=41))
    taken = inbox.take()
    assert taken.changes == counted(changed=2, unchanged=18)
    now = rows(taken)
    assert "004.jpg" not in now
    assert [now[f"{n}.jpg"]["objects"][0]["x2"] for n in ("003", "another-name")] == [40, 41]
    assert len(now) == 20


def test_another_picture_of_the_same_name_is_told(inbox: Inbox) -> None:
    inbox.put("003", 103)
    taken = inbox.take()
    assert taken.changes == counted(changed=1, unchanged=19)
    (told,) = [f for f in taken.faults if f.code == "picture_replaced"]
    assert (told.file, told.severity) == ("images/003.jpg", "warning")


def test_removed_txt_takes_images_out(inbox: Inbox) -> None:
    (inbox.root / "removed.txt").write_text("001\n./images/002.jpg\n003.jpg\nnever-there.jpg\n")
    taken = inbox.take()
    assert taken.changes == counted(removed=3, unchanged=17)
    assert not {"001.jpg", "002.jpg", "003.jpg"} & rows(taken).keys()
    assert taken.issues["removed_image"] == 3
    (unknown,) = [f for f in taken.faults if f.code == "removed_unknown"]
    assert (unknown.line, unknown.value, unknown.severity) == (4, "never-there.jpg", "info")
    assert inbox.take().fingerprint == taken.fingerprint


def test_removed_txt_that_is_no_text_stops_the_run(inbox: Inbox) -> None:
    (inbox.root / "removed.txt").write_bytes(b"001.jpg\n\xff\xfe2.jpg\n")
    inbox.put("new", 100)
    with pytest.raises(BadData) as caught:
        inbox.take()
    assert [(f.code, f.file) for f in caught.value.faults] == [("removed_unreadable", "removed.txt")]


def test_removed_txt_that_has_lain_there_for_a_while(inbox: Inbox) -> None:
    (inbox.root / "removed.txt").write_text("001\n")
    for path in (inbox.root, *inbox.root.rglob("*")):
        os.utime(path, (1_700_000_000, 1_700_000_000))
    assert inbox.take().changes == counted(removed=1, unchanged=19)


@pytest.mark.parametrize("name", ["003", "another-name"])
def test_labels_that_do_not_come_again_are_told(inbox: Inbox, name: str) -> None:
    inbox.put(name, 3)
    (inbox.root / "labels" / f"{name}.txt").write_text("")
    inbox.put("new", 100)
    taken = inbox.take()
    (told,) = [f for f in taken.faults if f.code == "labels_gone"]
    assert (told.file, told.severity) == (f"images/{name}.jpg", "warning")
    assert "had 1 objects before" in told.message
    assert rows(taken)[f"{name}.jpg"]["objects"] == []


def test_what_is_odd_is_said_of_the_whole_set_and_not_of_what_was_added(inbox: Inbox) -> None:
    """One image of one class is nothing rare beside twenty; a name that collides does so with what was there."""
    inbox.put("new", 100)
    inbox.put("00A", 101)
    assert not [f for f in inbox.take().faults if f.code in ("rare_class", "class_imbalance", "name_case_collision")]
    inbox.empty()
    inbox.put("00a", 102)
    assert [f.code for f in inbox.take().faults if f.code == "name_case_collision"] == ["name_case_collision"]


def test_removed_txt_holds_for_what_arrives_too(inbox: Inbox) -> None:
    inbox.put("new", 100)
    inbox.put("newer", 101)
    (inbox.root / "removed.txt").write_text("new\n")
    assert inbox.take().changes == counted(added=1, unchanged=20)


def test_removed_txt_holds_for_the_first_delivery_too(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path)
    for i in range(5):
        inbox.put(f"{i:03}", i)
    (inbox.root / "removed.txt").write_text("000.jpg\n")
    taken = inbox.take()
    assert len(rows(taken)) == 4
    assert inbox.take().fingerprint == taken.fingerprint


def test_a_source_without_images_or_removed_txt_is_not_recognised(inbox: Inbox) -> None:
    (inbox.root / "readme.md").write_text("nothing here")
    with pytest.raises(BadData) as caught:
        inbox.take()
    assert [f.code for f in caught.value.faults] == ["not_recognised"]


def test_a_class_that_left_the_pipeline_file_is_reported(inbox: Inbox) -> None:
    inbox.put("new", 100)  # a cat
    inbox.settings = configured(classes=["car", "cat"])
    with pytest.raises(BadData, match="unknown class 'dog', taken before"):
        inbox.take()
    inbox.settings = configured(classes=["car", "cat"], class_map={"dog": None})
    taken = inbox.take()
    assert taken.objects == {"car": 7, "cat": 8}
    assert taken.issues["excluded_class"] == 6


def test_faults_are_those_of_what_arrived(inbox: Inbox) -> None:
    """One bad label of two is too many, however many good ones were taken before."""
    inbox.put("a", 100, kitti_line(), kitti_line(x1=30, x2=3))
    with pytest.raises(BadData, match=r"1 of 2 objects .* are faulty"):
        inbox.take()


def test_nothing_but_empty_labels_is_refused(inbox: Inbox) -> None:
    inbox.put("a", 100)
    (inbox.root / "labels/a.txt").write_text("")
    with pytest.raises(BadData, match="zero objects in 1 images"):
        inbox.take()


@pytest.mark.parametrize("damage", ["gone", "labels", "image"])
def test_a_lost_base_stops_the_run(inbox: Inbox, damage: str) -> None:
    (path,) = (inbox.workspace / "datasets").glob("[0-9a-f]" * 64)
    if damage == "gone":
        shutil.rmtree(path)
    elif damage == "labels":
        (path / "annotations.jsonl").write_text("")
    else:
        (path / "images/000.jpg").unlink()
    inbox.put("new", 100)
    with pytest.raises(BadData, match=r"take it once with dataset.mode: replace") as caught:
        inbox.take()
    assert [f.code for f in caught.value.faults] == ["base_missing"]
    inbox.settings = configured(mode="replace")
    inbox.put("newer", 101)
    assert len(rows(inbox.take())) == 2


def test_an_image_that_the_store_lost_comes_from_the_snapshot(inbox: Inbox) -> None:
    shutil.rmtree(inbox.workspace / "datasets/objects")
    inbox.put("new", 100)
    taken = inbox.take()
    assert snapshot.verify(taken.path) == ""
    assert len(list((inbox.workspace / "datasets/objects").rglob("*.jpg"))) == 21


def test_replace_counts_what_went(inbox: Inbox) -> None:
    inbox.settings = configured(mode="replace")
    for i in (*range(5, 20), 200):
        inbox.put(f"{i:03}", i)
    inbox.put("renamed", 0)
    inbox.put("007", 7, kitti_line("cat", x2=33))
    assert inbox.take().changes == counted(added=1, changed=2, removed=4, unchanged=14)


def test_lists_of_an_addition_name_what_is_new(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path, split={"lists": {"train": "train.txt", "val": "val.txt"}})
    for i in range(6):
        inbox.put(f"{i:03}", i)
    (inbox.root / "train.txt").write_text("000\n001\n002\n")
    (inbox.root / "val.txt").write_text("003\n004\n005\n")
    inbox.take()
    inbox.empty()
    inbox.put("006", 6)
    (inbox.root / "train.txt").write_text("006\n002\n")
    (inbox.root / "val.txt").write_text("")
    taken = inbox.take()
    assert dict(taken.splits) == {"train": 4, "val": 3}
    (inbox.root / "train.txt").write_text("006\n003\n")
    with pytest.raises(BadData, match="a list trains it, but it was evaluated before"):
        inbox.take()
    lenient = inbox.settings.model_dump() | {"severity": {"evaluated_before": "warning"}}
    inbox.settings = DatasetSettings.model_validate(lenient)
    taken = inbox.take()
    assert dict(taken.splits) == {"train": 4, "val": 2}
    assert taken.issues["evaluated_before"] == 1


def test_groups_of_a_table_stay_when_images_are_added(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path, split={"group": {"file": "groups.csv"}})
    for i in range(20):
        inbox.put(f"{i:03}", i)
    (inbox.root / "groups.csv").write_text("image,group\n" + "".join(f"{i:03}.jpg,cam{i // 4}\n" for i in range(20)))
    first = inbox.take()
    assert rows(first)["000.jpg"]["groups"] == ["cam0"]
    sides = {row["groups"][0]: row["split"] for row in rows(first).values()}
    inbox.empty()
    for name, group in enumerate(("cam0", "cam1", "cam2", "cam3", "cam4"), 100):
        inbox.put(f"{name}", name)
        with (inbox.root / "groups.csv").open("a") as f:
            f.write(f"{name}.jpg,{group}\n")
    second = inbox.take()
    evaluated = [group for group, part in sides.items() if part == "val"]
    assert len(rows(second)) == 25 - len(evaluated)
    assert {row["groups"][0]: row["split"] for row in rows(second).values()} == sides
    assert [f.value for f in second.faults if f.code == "evaluation_relative"] == evaluated


def test_the_version_and_its_change_are_told(inbox: Inbox) -> None:
    (first,) = (inbox.workspace / "datasets").glob("[0-9a-f]" * 64)
    before = json.loads((first / "dataset.json").read_text())["evaluation"]
    assert (before["mode"], before["images"]) == ("frozen", 3)
    assert (inbox.workspace / "evaluation" / f"{before['version']}.json").is_file()
    inbox.put("new", 100)
    assert about(inbox.take())["evaluation"] == before
    evaluated = next(row for row in snapshot.read_annotations(first) if row["split"] == "val")
    inbox.put("corrected", int(evaluated["file"][:3]), kitti_line("car", x2=44))
    taken = inbox.take()
    assert rows(taken)["corrected.jpg"]["split"] == "val"
    now = about(taken)["evaluation"]
    assert (now["previous"], now["images"]) == (before["version"], 3)
    (told,) = [f for f in taken.faults if f.code == "evaluation_changed"]
    assert told.value == f"{before['version']} {now['version']}"
    assert "1 with other labels" in told.message
    assert told.severity == "warning"


def test_fresh_draws_anew_and_remembers_nothing(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path, split={"evaluation": "fresh"})
    for i in range(20):
        inbox.put(f"{i:03}", i)
    inbox.take()
    assert not (inbox.workspace / "evaluation").exists()
    for i in range(20, 60):
        inbox.put(f"{i:03}", i)
    taken = inbox.take()
    assert dict(taken.splits) == {"train": 48, "val": 12}
    assert taken.issues["evaluation_changed"] == 1


def test_a_refused_data_set_freezes_nothing(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path)
    inbox.put("a", 1, kitti_line("horse"))
    inbox.put("b", 2)
    with pytest.raises(BadData):
        inbox.take()
    assert not (inbox.workspace / "evaluation").exists()


# ---- whatever comes

PICTURES = [encoded(i) for i in range(8)]
deliveries = st.tuples(
    st.sampled_from(["append", "replace"]),
    st.dictionaries(st.sampled_from("abcdefghij"), st.tuples(st.integers(0, 7), st.integers(0, 2)), max_size=8),
    st.sets(st.sampled_from("abcdefghij"), max_size=2),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(deliveries, min_size=1, max_size=5))
def test_any_sequence_of_deliveries(sequence: list[tuple[str, dict[str, tuple[int, int]], set[str]]]) -> None:
    """Pictures under changing names and labels, added, replaced and removed: a dictionary does the same."""
    with tempfile.TemporaryDirectory() as folder:
        inbox = Inbox(Path(folder))
        held: dict[str, tuple[int, int]] = {}
        ever, evaluated = set[int](), set[str]()
        for mode, images, removed in sequence:
            inbox.settings = configured(mode=mode)
            inbox.empty()
            for name, (picture, label) in images.items():
                (inbox.root / "images" / f"{name}.jpg").write_bytes(PICTURES[picture])
                (inbox.root / "labels" / f"{name}.txt").write_text(kitti_line(CLASSES[label]))
            expected = dict(images)
            if mode == "append":
                (inbox.root / "removed.txt").write_text("".join(f"{name}.jpg\n" for name in removed))
                expected = {n: v for n, v in images.items() if n not in removed}
                contents = {picture for picture, _ in expected.values()}
                expected |= {
                    n: v for n, v in held.items() if n not in images and n not in removed and v[0] not in contents
                }
            try:
                taken = inbox.take()
            except BadData as exc:
                codes = {f.code for f in exc.faults if f.severity == "error"}
                event(str(sorted(codes)))
                pictures = {picture for picture, _ in expected.values()}
                may_train = pictures - ever - {p for n, (p, _) in expected.items() if n in evaluated}
                nothing = not images and (mode == "replace" or not held)
                assert nothing or len(expected) < 2 or not may_train or (pictures == may_train and len(pictures) < 2)
                continue
            found = rows(taken)
            assert {f.removesuffix(".jpg"): row["objects"][0]["class"] for f, row in found.items()} == {
                name: CLASSES[label] for name, (_, label) in expected.items()
            }
            held = expected
            evaluated = {name for name in expected if found[f"{name}.jpg"]["split"] == "val"}
            assert not ever & {expected[name][0] for name in expected.keys() - evaluated}
            ever |= {expected[name][0] for name in evaluated}
            assert snapshot.verify(taken.path) == ""
            assert inbox.take().fingerprint == taken.fingerprint
