"""Broken data sets of every kind: no crash, no hang, nothing lost in silence, and the fault that one would expect."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Never

import pytest

from tests.data import corpus_doubts, corpus_more
from tests.data.corpus import CASES, Case

from tests.data.helpers import CLASSES  # isort: skip

from refit.data.checks import Classes
from refit.data.codes import CODES
from refit.data.examine import examine
from refit.data.faults import BadData, Fault
from refit.data.ingest import divide
from refit.data.settings import DatasetSettings, Split

HANGS = 60  # seconds: a case takes less than one


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    def hangs(*_: object) -> Never:
        pytest.fail(f"not done after {HANGS} s")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(HANGS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case: Case, tmp_path: Path) -> None:
    """objects in = objects out + objects reported, after the look and after the split."""
    root = tmp_path / "set"
    case.make(root)
    settings = DatasetSettings(classes=CLASSES, split=Split(lists=case.lists))
    faults: list[Fault]
    try:
        lists = settings.split.listed.values()
        found = examine(root, format=case.format, classes=Classes(CLASSES), leave=lists)
        assert found.balanced()
        divided = divide(found, settings)
    except BadData as exc:
        faults = list(exc.faults)
    else:
        faults = divided.faults
        kept = sum(len(s.objects) for s in divided.samples)
        assert found.declared == kept + sum(f.objects for f in faults)
    assert case.codes <= {f.code for f in faults}
    assert all(f.code in CODES and f.advice and f.message.isprintable() for f in faults if f.code in case.codes)


def test_cases_are_many_and_of_different_names() -> None:
    names = [case.name for case in CASES]
    assert len(names) == len(set(names)) >= 300
    kinds = {name.split("-")[0] for name in names}
    assert kinds >= {"kitti", "voc", "coco", "yolo", "image", "folder", "doubts", *corpus_more.KINDS}
    assert sum(name.split("-")[0] in corpus_more.KINDS for name in names) >= 80


def test_every_check_that_was_asked_for_has_a_case() -> None:
    told = {code for case in CASES for code in case.codes}
    assert {what: code for what, code in corpus_doubts.POINT_4.items() if code not in told} == {}
    assert not told & set(corpus_doubts.BETWEEN_TWO)
    assert set(corpus_doubts.BETWEEN_TWO) <= CODES.keys()
