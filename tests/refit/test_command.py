"""What a stage command tells of a fault that the system reports."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from refit import command
from refit.specs import Spec
from refit.status import StatusWriter


class Nothing(Spec):
    """A spec without keys."""


def full(spec: Nothing, out: Path, status: StatusWriter) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as a write through an open file raises it


def missing(spec: Nothing, out: Path, status: StatusWriter) -> None:
    (out / "gone").read_bytes()


@pytest.mark.parametrize(
    ("action", "told"),
    [("full", "No space left on device: {out}"), ("missing", "{out}/gone: No such file or directory")],
)
def test_a_fault_of_the_system_names_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], action: str, told: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    spec = tmp_path / "spec.yaml"
    spec.write_text("{}\n")
    actions = {action: command.Action(f"{__name__}:Nothing", f"{__name__}:{action}", "")}
    assert command.main("refit.test", actions, [action, "-e", str(spec), "-r", str(out)]) == command.FAILED
    assert capsys.readouterr().err == f"error: {told.format(out=out)}\n"


def test_a_spec_alone_is_judged_and_nothing_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = tmp_path / "spec.yaml"
    actions = {"full": command.Action(f"{__name__}:Nothing", f"{__name__}:full", "")}
    spec.write_text("{}\n")
    assert command.main("refit.test", actions, ["full", "-e", str(spec), "--check"]) == command.OK
    spec.write_text("a: 1\n")
    assert command.main("refit.test", actions, ["full", "-e", str(spec), "--check"]) == command.BAD_SPEC
    assert capsys.readouterr().err == f"error: {spec}:1: a: unknown key\n"
    assert list(tmp_path.iterdir()) == [spec]
