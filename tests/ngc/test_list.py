"""`refit ngc list`: what a person sees."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.ngc.server import KEY, Ngc  # isort: skip

from refit.cli import main


def test_a_word_and_a_glob(ngc: Ngc, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ngc", "list", "pretrained"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "nvidia/tao/pretrained_detectnet_v2:resnet18    TAO pretrained_detectnet_v2",
        "nvidia/tao/pretrained_object_detection:v1.0    TAO pretrained_object_detection",
    ]
    assert len(ngc.asked) == 2  # all pages
    assert main(["ngc", "list", "people*"]) == 0
    assert capsys.readouterr().out.startswith("nvidia/tao/peoplenet:v1.0 ")
    assert main(["ngc", "list", "none"]) == 0
    assert "nvidia/tao has no model whose name fits 'none'" in capsys.readouterr().out


def test_versions_as_json(ngc: Ngc, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ngc", "list", "detectnet", "--versions", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [r["model"].rpartition(":")[2] for r in rows] == ["resnet18", "resnet34"]
    assert all(r["bytes"] > 500_000 for r in rows)


def test_a_private_registry(ngc: Ngc, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ngc", "list", "plates", "--in", "acme/cv"]) == 0
    assert capsys.readouterr().out.startswith("acme/cv/plates:v1.0")
    assert ngc.paths()[0].startswith("/v2/search/resources/MODEL?")


def test_the_key_of_this_machine_is_used(
    ngc: Ngc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("NGC_API_KEY")
    monkeypatch.setenv("REFIT_HOME", str(tmp_path))
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "NGC_API_KEY").write_text(KEY + "\n")
    (tmp_path / "secrets" / "NGC_API_KEY").chmod(0o600)
    assert main(["ngc", "list", "plates", "--in", "acme/cv"]) == 0
    assert ngc.asked[0].headers["Authorization"] == f"Bearer {KEY}"
    (tmp_path / "secrets" / "NGC_API_KEY").chmod(0o644)
    assert main(["ngc", "list", "plates"]) == 1
    assert "can be read by others: chmod 600" in capsys.readouterr().err


def test_what_goes_wrong_is_one_line(
    ngc: Ngc, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ngc.refuse = (401, "Unauthorized")
    assert main(["ngc", "list", "x"]) == 1
    assert capsys.readouterr().err.startswith("error: 127.0.0.1:")
    assert main(["ngc", "list", "x", "--in", "a/b/c"]) == 2
    assert capsys.readouterr().err == "error: --in a/b/c: write ORG or ORG/TEAM\n"
