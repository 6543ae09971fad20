"""A summary that names the servers of a release: of any number that there may be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from refit.runner import SUMMARY_BYTES
from refit.triton.proven import unproven
from refit.triton.specs import ReleaseReport
from refit.triton.stage import write_report

NAMES = [f"http://10.244.{i // 250}.{i % 250}:8000" for i in range(501)]


@pytest.mark.parametrize("count", [1, 8, 9, 500])
def test_a_release_on_many_servers_has_a_summary_that_fits_and_knows_each(tmp_path: Path, count: int) -> None:
    report = ReleaseReport(
        outcome="released", model="m" * 127, version=1234, previous=1233, sha256="0" * 64, url="http://triton:8000",
        servers=NAMES[:count], pipeline="p", run="r", probes=8, difference=0.0123456789, milliseconds=12.345,
        proven_by="reference.npz of the stage, and a throwaway Triton", seconds={}, notes=[],
    )  # fmt: skip
    write_report(report, tmp_path)
    text = (tmp_path / "summary.json").read_text()
    assert len(json.dumps(json.loads(text)).encode()) <= SUMMARY_BYTES
    assert json.loads((tmp_path / "release.json").read_text())["servers"] == NAMES[:count]
    known = json.loads(text)["servers"]
    assert unproven(NAMES[:count], known) == []
    assert unproven(NAMES[: count + 1], known) == [NAMES[count]]
    assert count <= 8 or (known["count"], known["first"]) == (count, NAMES[:8])
