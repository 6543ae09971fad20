"""`refit pod`: the pod of a stage as YAML, from the pipeline file and a cluster profile alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from refit.cli import BAD_INPUT, GOOD, main

TEXT = """
dataset: {source: inbox/x, classes: [a, b]}
toolkit: cpu
resources: {stages: {train: {gpus: 1}}}
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("REFIT_CLUSTERS", raising=False)
    monkeypatch.setenv("REFIT_WORKSPACE", str(tmp_path / "not-the-pods"))
    path = tmp_path / "mine.yaml"
    path.write_text(TEXT + "runtime: kubernetes\n")
    return path


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["pod", *words]) == GOOD
    return dict(yaml.safe_load(capsys.readouterr().out))


def error(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["pod", *words]) == BAD_INPUT
    captured = capsys.readouterr()
    assert not captured.out
    return captured.err


def test_a_stage(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pod = shown(capsys, str(file), "train")
    container = pod["spec"]["containers"][0]
    assert pod["metadata"]["name"] == "mine-train"
    assert pod["metadata"]["labels"]["refit/run"] == "<run>"
    assert container["command"][3:] == ["--plan", "/workspace/mine/runs/<run>/plan.json", "--stage", "train"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_bind(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    container = shown(capsys, str(file), "bind")["spec"]["containers"][0]
    env = {e["name"]: e.get("value") for e in container["env"]}
    request = json.loads(env["REFIT_REQUEST"])
    assert (request["run"], request["key"]) == ("<run>", "<key>")
    assert request["paths"]["stage"] == "/workspace/mine/runs/<run>/00-bind"
    assert {"name": "inbox", "mountPath": "/inbox", "readOnly": True} in container["volumeMounts"]


def test_a_share_of_the_data(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(file.read_text().replace("source: inbox/x", "source: inbox/x, shards: 2"))
    container = shown(capsys, str(file), "look")["spec"]["containers"][0]
    env = {e["name"]: e.get("value") for e in container["env"]}
    assert json.loads(env["REFIT_REQUEST"])["paths"]["stage"] == "/workspace/mine/runs/<run>/00-look-0"
    assert {"name": "inbox", "mountPath": "/inbox", "readOnly": True} in container["volumeMounts"]


def test_another_profile(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "runtimeClassName" not in shown(capsys, str(file), "train")["spec"]
    assert shown(capsys, str(file), "train", "--cluster", "workstation")["spec"]["runtimeClassName"] == "nvidia"


def test_a_pipeline_of_one_machine(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(TEXT)
    said = error(capsys, str(file), "train")
    assert "mine.yaml: cluster profile local is of runtime local: its stages are processes, not pods" in said
    assert "--cluster NAME (there is kubernetes, workstation)" in said
    assert shown(capsys, str(file), "train", "--cluster", "kubernetes")["metadata"]["namespace"] == "refit"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "this pipeline has no stage 'trian'; did you mean 'train'?"),
        (["x"], "this pipeline has no stage 'x'; it has bind, dataset_convert, train, "),
        (["train", "--cluster", "workstatoin"], "no such cluster profile; did you mean 'workstation'?"),
        (["train", "--cluster", "local"], "cluster profile local is of runtime local"),
    ],
)
def test_a_mistake_is_named(file: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert message in error(capsys, str(file), *words)


def test_what_the_profile_lacks_is_named(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(file.read_text().replace("gpus: 1", "gpus: 1, gpu_type: h100"))
    assert "kubernetes.yaml: gpu.types: has no 'h100', which train of the pipeline's resources wants" in error(
        capsys, str(file), "train"
    )
