"""Numbers for Prometheus, and the dashboard that asks for them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from refit.publish import metrics, place
from refit.publish.stage import refresh
from tests.publish.made import CLASSES, GOOD, Workspace

DASHBOARD = Path(__file__).resolve().parents[2] / "helm" / "refit" / "files" / "dashboard.json"
SAMPLE = re.compile(r'^(\w+)\{(\w+="(?:[^"\\\n]|\\.)*"(?:,\w+="(?:[^"\\\n]|\\.)*")*)\} (\S+)$')


def samples(text: str) -> dict[tuple[str, str], float]:
    """Each line of the exposition format, by name and labels."""
    found = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            match = SAMPLE.match(line)
            assert match, line
            found[match[1], match[2]] = float(match[3])
    return found


def published(made: Workspace) -> dict[tuple[str, str], float]:
    refresh(made.folder, "run-1")
    return samples((made.published / metrics.FILE).read_text())


def test_a_run_and_the_champion(tmp_path: Path) -> None:
    made = Workspace(tmp_path)
    late = {"started": "2026-11-21T10:40:00Z", "ended": "2026-11-21T10:45:00Z", "seconds": 300.0}
    made.run("run-1", **{**GOOD, "gate_trained": {**GOOD["gate_trained"], **late}})
    made.release(4, "run-1")
    found = published(made)
    own = 'pipeline="plates"'
    assert found["refit_run_good", own] == 1
    assert found["refit_run_gpu_seconds", own] == 3600, "two GPUs for half an hour"
    assert found["refit_run_wait_seconds", own] == 600, "from 10:30, when all others had ended, to 10:40"
    assert found["refit_stage_seconds", f'{own},stage="gate_trained"'] == 300
    assert found["refit_gate_verdict", f'{own},gate="gate_trained",verdict="pass"'] == 1
    assert found["refit_model_map50", f'{own},model="trained"'] == found["refit_champion_map50", own] == 0.8
    assert (found["refit_champion_version", own], found["refit_run_images", own]) == (4, 10)
    assert found["refit_champion_since_timestamp_seconds", own] == 1795257060


def test_a_failed_run_and_no_champion(tmp_path: Path) -> None:
    made = Workspace(tmp_path)
    made.run("run-1", train={"outcome": "diverged", "reason": "loss"})
    found = published(made)
    assert found["refit_run_good", 'pipeline="plates"'] == 0
    assert not [name for name, _ in found if name.startswith("refit_champion")]


def test_names_are_escaped() -> None:
    text = metrics.text({"pipeline": 'a"b\\c\n' + CLASSES[1], "champion": {"version": 1}}, None)
    assert list(samples(text)) == [("refit_champion_version", 'pipeline="a\\"b\\\\c\\n<script>alert(1)</script>"')]


def test_the_dashboard_asks_for_what_there_is(tmp_path: Path) -> None:
    made = Workspace(tmp_path)
    made.run("run-1", **GOOD)
    made.release(4, "run-1")
    labels: dict[str, set[str]] = {}
    for name, shown in published(made):
        labels.setdefault(name, set()).update(re.findall(r'(\w+)="', shown))
    assert set(labels) == set(metrics.HELP)
    assert (made.published / place.INDEX).is_file()
    dashboard: dict[str, Any] = json.loads(DASHBOARD.read_text())
    asked = set()
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            names = re.findall(r"refit_\w+", target["expr"])
            assert names, panel["title"]
            for name in names:
                used = {*re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]), *re.findall(r"(\w+)=~", target["expr"])}
                assert used <= labels.get(name, set()), f"{panel['title']}: {name}"
            asked.update(names)
    assert asked == set(metrics.HELP), "and shows all of it"
