"""A person's say before a release: when the plan asks for it, what is asked, and that nothing is released without it.

Airflow's side of it: tests/dags/test_live.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from refit import plan as plans
from refit.command import BadSpec, Rejected, main
from refit.config import Settings
from refit.gates.__main__ import ACTIONS
from refit.gates.approval import Decision, decided
from refit.pipeline import from_document
from refit.runtime.run import PipelineRun
from refit.specs import parse_yaml
from tests.operators.plans import TOOLS, WHY_NOT, stage
from tests.refit.bind_helpers import PIPELINE, Place

ASKING = "approval: {when: always}\n"


def nodes(more: str) -> dict[str, plans.Node]:
    pipeline = from_document(parse_yaml(PIPELINE + more, "mine.yaml"), "mine")
    return {n.name: n for n in plans.skeleton(pipeline)}


@pytest.mark.parametrize(
    ("more", "asks"),
    [
        ("", False),
        ("approval: true\n", True),
        ("approval: false\n", False),
        ("gates: {quality: {policy: ask}}\n", True),
        ("gates: {champion: {policy: ask}}\n", True),
        ("release: false\napproval: true\n", False),
    ],
)
def test_who_asks_for_it_gets_the_task(more: str, asks: bool) -> None:
    assert ("approve" in nodes(more)) == asks


def test_it_stands_between_every_gate_and_the_release() -> None:
    made = nodes(ASKING)
    gates = {n.name for n in made.values() if n.action == "gate"}
    assert gates == {"gate_trained", "gate_retrained", "gate_quantized", "gate_parity", "gate_champion"}
    assert gates <= set(made["approve"].upstream)
    assert "approve" in made["release"].upstream
    assert (made["approve"].group, made["approve"].gpus) == (None, 0)


def test_the_watch_after_a_release_is_not_asked_about() -> None:
    pipeline = from_document(parse_yaml(PIPELINE + ASKING + "release: {watch: true}\n", "mine.yaml"), "mine")
    last = plans.skeleton(pipeline)[-3:]
    assert [n.name for n in last] == ["approve", "release", "watch"]
    assert "approve" not in last[-1].upstream


def test_a_first_model_has_no_champion_to_wait_for(place: Place) -> None:
    assert place.bind(text=PIPELINE + ASKING) == 0, place.error
    approve = next(s for s in place.plan["stages"] if s["name"] == "approve")
    assert set(approve["inputs"]) == {"gate_trained", "gate_retrained", "gate_quantized", "gate_parity"}


def test_nobody_is_asked_where_nothing_is_released(place: Place) -> None:
    assert place.bind(text=PIPELINE + ASKING, conf={"release": False}) == 0, place.error
    assert {"approve", "release"} <= set(place.plan["off"])


def test_each_run_asks_anew(place: Place) -> None:
    place.bind("r1", text=PIPELINE + ASKING)
    place.finish("gate_trained")
    place.finish("approve")
    place.bind("r2", text=PIPELINE + ASKING)
    assert set(place.plan["reused"]) == {"gate_trained"}


def test_a_model_that_has_been_released_is_the_same_once_it_is_the_champion(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = []
    for run, champion in (("r1", None), ("r2", tmp_path / "releases" / "1" / "model")):
        monkeypatch.setattr("refit.bind._champion", lambda *_, champion=champion: champion)
        assert place.bind(run, text=PIPELINE + ASKING) == 0, place.error
        keys.append({s["name"]: s["key"] for s in place.plan["stages"]})
    first, second = keys
    assert first["approve"] != second["approve"]  # it reads the comparison, too
    assert first["release"] == second["release"]


# ---- the question


def asked(tmp_path: Path, verdicts: dict[str, tuple[str, str]], **spec: Any) -> dict[str, Any]:
    """What the stage says of a run whose gates said this; ends with its summary."""
    run = tmp_path / "mine" / "runs" / "r1"
    stages = [stage(run, i, name, action="gate", model="m") for i, name in enumerate(verdicts, 1)]
    for s, (state, reason) in zip(stages, verdicts.values(), strict=True):
        out = Path(s["paths"]["stage"]) / "out"
        out.mkdir(parents=True)
        (out / "verdict.json").write_text(json.dumps({"verdict": state, "reason": reason}))
    (run / "00-bind" / "out").mkdir(parents=True)
    (run / "00-bind" / "out" / "summary.json").write_text('{"images": 240, "changes": {"added": 40}}')
    plan = {"pipeline": "mine", "run": "r1", "stages": stages, "reused": {}, "off": ["gate_champion"]}
    (run / "plan.json").write_text(json.dumps(plan))
    file = tmp_path / "approve.yaml"
    file.write_text(json.dumps({"run": str(run), "when": "on_doubt", **spec}))
    assert main("refit.gates", ACTIONS, ["approve", "-e", str(file), "-r", str(tmp_path / "out")]) == 0
    return dict(json.loads((tmp_path / "out" / "summary.json").read_text()))


@pytest.mark.parametrize(
    ("when", "state", "needed"),
    [("on_doubt", "pass", False), ("on_doubt", "warn", True), ("on_doubt", "ask", True), ("always", "pass", True)],
)
def test_when_a_person_is_needed(tmp_path: Path, when: str, state: str, needed: bool) -> None:
    said = asked(tmp_path, {"gate_trained": ("pass", "fine"), "gate_quantized": (state, "hm")}, when=when)
    assert said["needed"] == needed
    assert said["doubts"] == ([] if state == "pass" else ["gate_quantized"])


def test_the_question_begins_with_the_doubts_and_tells_of_the_data(tmp_path: Path) -> None:
    said = asked(tmp_path, {"gate_a": ("pass", "fine"), "gate_b": ("ask", "ring lost"), "gate_champion": ("ask", "x")})
    lines = said["body"].splitlines()
    assert lines[0] == "- **gate_b: ask** ring lost"
    assert lines[1] == "- **gate_a: pass** fine"
    assert lines[2] == "- data: 240 images (40 added)"
    assert "gate_champion" not in said["body"], "it was off in this run"


def test_whoever_is_asked_finds_the_report_of_the_run(tmp_path: Path) -> None:
    """It is published before the question, as far as the run has come; where nobody is asked it waits for the end."""
    published = tmp_path / "published" / "mine" / "runs" / "r1"
    assert not asked(tmp_path / "1", {"gate_a": ("pass", "fine")})["report"]
    assert not (tmp_path / "1" / "published").exists()
    assert asked(tmp_path, {"gate_a": ("ask", "ring lost")})["report"]
    report = json.loads((published / "report.json").read_text())
    assert report["state"] == "unfinished"
    assert [s["name"] for s in report["stages"]] == ["bind", "gate_a"]
    assert "not finished" in (published / "report.html").read_text()
    assert not (published.parents[1] / "index.json").exists(), "the run is no row before its end"


def test_a_report_that_cannot_be_written_keeps_nobody_from_asking(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path.joinpath("published").write_text("a file in its place")
    said = asked(tmp_path, {"gate_a": ("ask", "ring lost")})
    assert (said["needed"], said["report"]) == (True, False)
    assert "warning: no report was published for the question" in capsys.readouterr().out


def test_a_long_question_fits_into_a_result(tmp_path: Path) -> None:
    said = asked(tmp_path, {f"gate_{i}": ("ask", "ä" * 900) for i in range(30)}, assignees=["x" * 64] * 5)
    assert len(json.dumps(said)) <= 2048
    assert said["body"].splitlines()[-1] == "- more is in `question.json` of the stage `approve`"


# ---- the answer


def question(tmp_path: Path, *, needed: bool) -> Path:
    path = tmp_path / "question.json"
    path.write_text(json.dumps({"needed": needed, "doubts": []}))
    return path


def test_a_release_begins_only_with_an_answer(tmp_path: Path) -> None:
    assert decided(question(tmp_path, needed=False), {}) is None
    with pytest.raises(Rejected, match="a person must approve this release and nobody has: clear the task approve"):
        decided(question(tmp_path, needed=True), {})
    said = Decision.now(approved=False, by="lea", note="blurred")
    assert decided(question(tmp_path, needed=True), {"REFIT_APPROVAL": said.model_dump_json()}) == said
    with pytest.raises(BadSpec, match="REFIT_APPROVAL"):
        decided(question(tmp_path, needed=True), {"REFIT_APPROVAL": "yes"})
    with pytest.raises(BadSpec, match="is no question of the stage approve"):
        decided(tmp_path / "none.json", {})


RELEASE = "import os, pathlib, sys; pathlib.Path(sys.argv[1], 'out.txt').write_text(os.environ['REFIT_APPROVAL'])"
ASK = """
import json, pathlib, sys
question = {"needed": True, "subject": "Release m?", "body": "ring lost"}
pathlib.Path(sys.argv[1], "out.txt").write_text("x")
pathlib.Path(sys.argv[1], "summary.json").write_text(json.dumps(question))
"""


@pytest.mark.skipif(not TOOLS.exists(), reason=WHY_NOT)
@pytest.mark.parametrize("approve", [None, "", "looks good"])
def test_refit_run_asks_or_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str], approve: str | None) -> None:
    """Without a terminal, as here, it says what to do and releases nothing."""
    run = tmp_path / "workspace" / "live" / "runs" / "r1"
    stages = [stage(run, 1, "approve", ASK, summary="summary.json"), stage(run, 2, "release", RELEASE)]
    run.mkdir(parents=True)
    (run / "plan.json").write_text(json.dumps({"schema": 1, "stages": stages, "reused": {}, "off": []}))
    bind = f"""
import json, pathlib, sys
pathlib.Path(sys.argv[1], "out.txt").write_text("x")
pathlib.Path(sys.argv[1], "summary.json").write_text(json.dumps({{"plan": {str(run / "plan.json")!r}}}))
"""
    started = PipelineRun(Settings.from_env(), stage(run, 0, "bind", bind, summary="summary.json"), approve=approve)
    code = started.execute()
    told = capsys.readouterr()
    assert "Release m?\nring lost" in told.out
    answer = run / "02-release" / "out" / "out.txt"
    if approve is None:
        assert code == 1
        assert "this is no terminal" in told.err
        assert started.resumable
        assert not answer.exists()
    else:
        assert code == 0, told.err
        said = json.loads(answer.read_text())
        assert (said["approved"], said["note"]) == (True, approve or "refit run --approve")
