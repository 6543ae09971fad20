"""Real photographs with real faults: the blood cell data set beside the repository."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("simplejpeg", reason="runs in the tools environment only")

from refit.data.checks import Classes
from refit.data.examine import examine
from refit.data.ingest import ingest
from refit.data.settings import DatasetSettings

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


def test_its_own_lists(tmp_path: Path) -> None:
    lists = {"train": "ImageSets/Main/trainval.txt", "val": "ImageSets/Main/test.txt"}
    taken = ingest(BCCD, DatasetSettings(classes=CLASSES, split={"lists": lists}), tmp_path / "ws")
    assert dict(taken.splits) == {"train": 292, "val": 72}
    assert dict(taken.objects) == {"RBC": 4153, "WBC": 372, "Platelets": 361}
    assert taken.issues["zero_area"] == 2


def test_a_misspelt_class_is_refused() -> None:
    found = examine(BCCD, classes=Classes(["RBC", "WBC", "Platelet"]))
    assert found.failed()
    assert all("did you mean 'Platelet'" in f.advice for f in found.faults if f.code == "unknown_class")
