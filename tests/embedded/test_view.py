"""Lines for logs, a picture for terminals."""

import io

import pytest
from rich.console import Console

from refit.embedded import view
from refit.embedded.follow import Step
from refit.runtime.report import Row


def test_plain_lines_come_once_per_change(capsys):
    plain = view.PlainView()
    step = Step("train", "Train", state="waiting")
    plain.show([step])
    assert capsys.readouterr().out == ""
    step.state, step.unit, step.done, step.total, step.loss = "running", "epoch", 1, 18, 2.0
    plain.show([step])
    plain.show([step])
    assert capsys.readouterr().out == "train: running  epoch 1/18  loss 2\n"
    step.done = 2
    plain.show([step])
    assert capsys.readouterr().out == "", "a line every few seconds at most"
    step.state, step.result = "done", Row("train", "succeeded", seconds=81.23, map50=0.84)
    plain.show([step])
    assert capsys.readouterr().out == "train: done  81.2 s  mAP@0.5 0.840\n"


def test_plain_waiting_is_told_once(capsys):
    plain = view.PlainView()
    plain.wait("starting ...")
    plain.wait("starting ...")
    plain.say("up")
    assert capsys.readouterr().out == "starting ...\nup\n"


def test_the_picture_has_a_row_for_each_step():
    steps = [
        Step("arrival", "Wait for complete data", state="done"),
        Step("train", "Train", state="running", unit="epoch", done=9, total=18, loss=0.5, eta=65),
        Step("export", "Export ONNX", state="reused", result=Row("export", "reused", bytes=2048)),
        Step("quantize", "Quantize to INT8", state="failed"),
        Step("release", "Release", state="blocked"),
    ]
    out = io.StringIO()
    Console(file=out, width=120, color_system=None).print(view.picture(steps, 120))
    lines = out.getvalue().splitlines()
    assert len(lines) == len(steps)
    assert "▶ Train" in lines[1]
    assert "epoch 9/18  1:05 left  loss 0.5" in lines[1]
    assert "reused 2,048 bytes" in lines[2]
    assert lines[3].startswith("✗ Quantize to INT8")
    assert "not run" in lines[4]


def test_eighty_columns_show_what_counts():
    steps = [
        Step("train", "Train", state="running", unit="epoch", done=9, total=18, loss=0.5123, eta=65),
        Step(
            "gate_quantized",
            "Gate: is the quantized model good enough?",
            state="done",
            result=Row("gate_quantized", "succeeded", seconds=1234.5, map50=0.9),
        ),
        Step("release", "Release to Triton"),
    ]
    out = io.StringIO()
    Console(file=out, width=80, color_system=None).print(view.picture(steps, 80))
    train, gate, release = out.getvalue().splitlines()
    assert train.startswith("▶ Train")
    assert "epoch 9/18  1:05 left  loss" in train
    assert gate.startswith("✓ Gate: is the quantized")
    assert "1234.5 s mAP@0.5 0.900" in gate
    assert release.startswith("· Release to Triton")


def test_the_live_view_keeps_what_is_said():
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=True, color_system=None)
    with view.TerminalView(console) as live:
        live.wait("starting ...")
        live.say("Airflow is up at [bold]http://127.0.0.1:8080[/bold]")
        live.say("drawn: /" + 40 * "folder/")
        live.show([Step("train", "Train", state="running", total=0)])
        live.leave()
    assert "Airflow is up at [bold]http://127.0.0.1:8080[/bold]" in out.getvalue(), "text is no markup"
    assert "drawn: /" + 40 * "folder/" in out.getvalue(), "a path stays whole"


@pytest.mark.parametrize(("value", "text"), [(0, "0:00"), (65.4, "1:05"), (3723, "1:02:03")])
def test_clock(value, text):
    assert view.clock(value) == text
