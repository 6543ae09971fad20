"""Real photographs with real faults: the blood cell data set beside the repository."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("simplejpeg", reason="runs in the tools environment only")

from refit.data import arrival, doubts
from refit.data.checks import Classes
from refit.data.examine import examine
from refit.data.ingest import ingest
from refit.data.settings import DatasetSettings
from refit.data.snapshot import Snapshot, read_annotations

BCCD = Path(__file__).resolve().parents[3] / "shared" / "data" / "bccd"
CLASSES = ["RBC", "WBC", "Platelets"]

pytestmark = pytest.mark.skipif(not BCCD.is_dir(), reason=f"the BCCD data set is not at {BCCD}")


def test_the_two_bad_boxes_are_reported() -> None:
    found = examine(BCCD, classes=Classes(CLASSES))
    assert (found.format, len(found.samples), found.declared) == ("voc", 364, 4888)
    assert sum(len(s.objects) for s in found.samples) == 4886
    assert [(f.code, f.file, f.line) for f in found.faults if f.objects] == [
        ("zero_area", "Annotations/BloodImage_00338.xml", 163),
        ("zero_area", "Annotations/BloodImage_00343.xml", 55),
    ]
    assert not found.failed()
    # and of what only deserves a look: one scene that was photographed twice, nothing else
    assert {f.code for f in found.faults} == {"zero_area", "ignored_files"}
    twins = list(doubts.duplicates(found.samples, {s.file: "" for s in found.samples}))
    assert [(f.code, f.file, f.value) for f in twins] == [
        ("near_duplicate_image", "JPEGImages/BloodImage_00038.jpg", "JPEGImages/BloodImage_00037.jpg")
    ]


def test_its_own_lists(tmp_path: Path) -> None:
    lists = {"train": "ImageSets/Main/trainval.txt", "val": "ImageSets/Main/test.txt"}
    taken = ingest(BCCD, DatasetSettings(classes=CLASSES, split={"lists": lists}), tmp_path / "ws")
    assert dict(taken.splits) == {"train": 292, "val": 72}
    assert dict(taken.objects) == {"RBC": 4153, "WBC": 372, "Platelets": 361}
    assert taken.issues["zero_area"] == 2


def test_an_evaluation_set_that_stays_while_photographs_come(tmp_path: Path) -> None:
    """A first delivery of 300, then the rest under other names, with one label file corrected."""
    inbox, workspace = tmp_path / "inbox", tmp_path / "ws"
    settings = DatasetSettings(classes=CLASSES, mode="append", split={"group": {"name_prefix": r"BloodImage_(\d{4})"}})
    names = sorted(p.stem for p in (BCCD / "Annotations").glob("*.xml"))

    def deliver(part: list[str], prefix: str = "") -> Snapshot:
        shutil.rmtree(inbox, ignore_errors=True)
        for folder, suffix in (("JPEGImages", ".jpg"), ("Annotations", ".xml")):
            (inbox / folder).mkdir(parents=True)
            for name in part:
                shutil.copyfile(BCCD / folder / f"{name}{suffix}", inbox / folder / f"{prefix}{name}{suffix}")
        taken = ingest(inbox, settings, workspace)
        listing = arrival.listing(inbox)
        arrival.record_taken(workspace, listing, fingerprint=taken.fingerprint, run="r", outcome="taken")
        return taken

    def val(taken: Snapshot) -> set[str]:
        return {row["sha256"] for row in read_annotations(taken.path) if row["split"] == "val"}

    first = deliver(names[:300])
    assert first.splits["val"] == pytest.approx(60, abs=10)
    second = deliver([*names[300:], names[0]])
    assert val(second) == val(first)
    kept = sum(second.splits.values())
    left_out = sum(f.images for f in second.faults if f.code == "evaluation_relative")
    assert kept + left_out == len(names)
    assert second.changes["unchanged"] == 300
    renamed = deliver(names[:300], "again-")
    assert val(renamed) == val(first)
    assert renamed.changes == {"added": 0, "changed": 300, "removed": 0, "unchanged": kept - 300}


def test_a_misspelt_class_is_refused() -> None:
    found = examine(BCCD, classes=Classes(["RBC", "WBC", "Platelet"]))
    assert found.failed()
    assert all("did you mean 'Platelet'" in f.advice for f in found.faults if f.code == "unknown_class")
