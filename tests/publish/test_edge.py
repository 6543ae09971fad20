"""Edge bundles in a run's report: as `refit.edge bundle` leaves them, where a gate has ended the run, and damaged."""

from __future__ import annotations

from typing import Any

import pytest

from refit.publish import stage
from tests.edge.test_bundle import run as pack
from tests.edge.test_bundle import spec
from tests.publish.made import GOOD, Workspace, evaluation
from tests.publish.test_publish import html, index, report, ws

__all__ = ["spec", "ws"]
SCRIPT = "<script>alert(1)</script>"
JUDGED: dict[str, dict[str, Any]] = {
    **GOOD,
    "evaluate_exported": {"metrics": {"mAP50": 0.9}},
    "evaluate_coral": {"metrics": {"mAP50": 0.88, "mAP": 0.5}},
    "gate_coral": {"summary": {"verdict": "warn", "reason": "lost <b>much", "figures": {"mAP50": 0.88, "drop": 0.02}}},
}


def test_each_bundle_with_its_figures_and_its_place(ws: Workspace, spec: dict[str, Any]) -> None:
    spec["bundles"]["coral"]["notes"] = [SCRIPT]
    run = ws.run("r1", **JUDGED, edge={})
    packed = pack(spec, run / "10-edge" / "out")["bundles"]["coral"]
    stage.refresh(ws.folder, "r1")
    assert report(ws, "r1")["edge"] == [
        {
            "kind": "coral",
            "title": "uint8 TFLite for Coral",
            "mAP50": 0.88,
            "mAP": None,
            "drop": 0.02,
            "bytes": packed["bytes"],
            "sha256": packed["sha256"],
            "verdict": "warn",
            "reason": "lost <b>much",
            "notes": [SCRIPT, "not compiled"],
            "archive": "plates/runs/r1/10-edge/out/mine-coral.zip",
        }
    ]
    assert (ws.folder.parent / "plates/runs/r1/10-edge/out/mine-coral.zip").stat().st_size == packed["bytes"]
    page = html(ws, "r1")
    assert "lost &lt;b&gt;much; &lt;script&gt;alert(1)&lt;/script&gt;; not compiled" in page
    assert "<script" not in page


def test_a_bundle_is_not_what_is_released(ws: Workspace) -> None:
    """Its evaluation comes after that of the released model, and is none of it."""
    run = ws.run("r1", **JUDGED)
    evaluation(run / "02-evaluate_trained" / "out")
    stage.refresh(ws.folder, "r1")
    made = report(ws, "r1")
    assert [(m["name"], m["milliseconds"]) for m in made["models"]] == [("trained", 4.5)]
    assert index(ws)["runs"][0]["mAP50"] == 0.8
    other = run / "08-evaluate_coral" / "out"
    evaluation(other)
    (other / "detections.json").write_text("[]")
    stage.refresh(ws.folder, "r1")
    assert report(ws, "r1")["evaluation"] == made["evaluation"]


def test_one_that_its_gate_refused_was_not_packed(ws: Workspace) -> None:
    ws.run("r1", **JUDGED)
    stage.refresh(ws.folder, "r1")
    (row,) = report(ws, "r1")["edge"]
    assert (row["mAP50"], row["drop"], row["verdict"], row["archive"]) == (0.88, 0.02, "warn", None)
    assert "not packed" in html(ws, "r1")


DAMAGED = ['{"bundles": {"coral"', '{"bundles": {"coral": 3}}', '{"bundles": [1]}', "[]"]


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_list_of_bundles_leaves_what_was_judged(ws: Workspace, text: str) -> None:
    run = ws.run("r1", **JUDGED, edge={})
    (run / "10-edge" / "out" / "edge.json").write_text(text)
    stage.refresh(ws.folder, "r1")
    assert [(b["mAP50"], b["archive"]) for b in report(ws, "r1")["edge"]] == [(0.88, None)]


def test_a_run_without_bundles_has_no_section_of_them(ws: Workspace) -> None:
    ws.run("r1", **GOOD)
    stage.refresh(ws.folder, "r1")
    assert report(ws, "r1")["edge"] == []
    assert "Edge bundles" not in html(ws, "r1")
