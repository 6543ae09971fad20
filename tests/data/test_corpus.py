"""Broken data sets of every kind: no crash, no hang, nothing lost in silence, and the fault that one would expect."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data import corpus_more
from tests.data.corpus import CASES, Case

from tests.data.helpers import CLASSES  # isort: skip

from refit.data.checks import Classes
from refit.data.codes import CODES
from refit.data.examine import examine
from refit.data.faults import BadData, Fault


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case: Case, tmp_path: Path) -> None:
    root = tmp_path / "set"
    case.make(root)
    faults: list[Fault]
    try:
        found = examine(root, format=case.format, classes=Classes(CLASSES))
    except BadData as exc:
        faults = list(exc.faults)
    else:
        faults = found.faults
        assert found.balanced()
        kept = sum(len(s.objects) for s in found.samples)
        assert found.declared == kept + sum(f.objects for f in faults)
    assert case.codes <= {f.code for f in faults}
    assert all(f.code in CODES and f.advice and f.message.isprintable() for f in faults if f.code in case.codes)


def test_cases_are_many_and_of_different_names() -> None:
    names = [case.name for case in CASES]
    assert len(names) == len(set(names))
    kinds = {name.split("-")[0] for name in names}
    assert kinds >= {"kitti", "voc", "coco", "yolo", "image", "folder", *corpus_more.KINDS}
    assert sum(name.split("-")[0] in corpus_more.KINDS for name in names) >= 80
