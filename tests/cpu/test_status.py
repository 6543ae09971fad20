"""The status file that the stages of the cpu toolkit write."""

from __future__ import annotations

import math
import re
from pathlib import Path

from refit.cpu.status import StatusWriter
from refit.cpu.work import Progress
from tests.cpu.conftest import status_lines


def test_lines_have_taos_form_and_are_appended(tmp_path: Path) -> None:
    status = StatusWriter(tmp_path / "out")
    status.started("Started train.")
    status.running("Epoch 1", epoch=1, max_epoch=2, loss=0.5, eta="0:00:01")
    StatusWriter(tmp_path / "out").success("Done.", kpi={"mAP50": 0.5}, categorical={"AP50": {"car": 0.5}})
    status.failure("broken")
    started, running, success, failed = status_lines(tmp_path / "out" / "status.json")
    assert re.fullmatch(r"\d{1,2}/\d{1,2}/\d{4}", started["date"])
    assert re.fullmatch(r"\d{1,2}:\d{1,2}:\d{1,2}", started["time"])
    assert (started["status"], started["verbosity"], started["message"]) == ("STARTED", "INFO", "Started train.")
    assert (running["epoch"], running["max_epoch"], running["loss"]) == (1, 2, 0.5)
    assert (success["kpi"], success["categorical"]) == ({"mAP50": 0.5}, {"AP50": {"car": 0.5}})
    assert (failed["status"], failed["message"]) == ("FAILURE", "broken")


def test_what_json_cannot_say_stays_readable(tmp_path: Path) -> None:
    status = StatusWriter(tmp_path)
    status.running("two\nlines", loss=math.nan)
    (line,) = status_lines(status.path)
    assert (line["message"], line["loss"]) == ("two\nlines", "nan")


def test_progress_says_the_end_and_not_each_step(tmp_path: Path) -> None:
    status = StatusWriter(tmp_path)
    progress = Progress(status, "images", 500)
    for _ in range(500):
        progress.step()
    lines = status_lines(status.path)
    assert lines[-1]["message"] == "images: 500 of 500"
    assert len(lines) < 50
