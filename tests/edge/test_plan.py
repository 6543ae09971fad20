"""The stages that a block `edge` adds to a pipeline, and what it refuses. Nothing is converted here."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from refit import cluster
from refit import pipeline as pipelines
from refit import plan as plans
from refit.cli import GOOD, main
from refit.cluster import LocalProfile
from refit.command import BadSpec
from refit.config import Settings
from refit.cpu.specs import EvaluateSpec
from refit.edge.specs import COMPILER, BundleSpec, ConvertSpec, CoralSpec, EdgeEvaluateSpec, SavedModelSpec
from refit.engine.specs import PackageSpec
from refit.specs import SpecError, parse_yaml
from refit.toolkits import edge

TEXT = "dataset: {source: inbox/x, classes: [a, b]}\ntoolkit: cpu\n"
SPECS: dict[str, Any] = {
    "saved_model.yaml": SavedModelSpec,
    "frozen_graph.yaml": ConvertSpec,
    "tflite.yaml": ConvertSpec,
    "tfjs.yaml": ConvertSpec,
    "coral.yaml": CoralSpec,
    "package.yaml": PackageSpec,
    "bundle.yaml": BundleSpec,
}


def load(more: str = "", name: str = "mine") -> Any:
    return pipelines.from_document(parse_yaml(TEXT + more, f"{name}.yaml"), name)


def plan(more: str, digests: Mapping[str, str] | None = None) -> dict[str, Any]:
    environments = {**dict.fromkeys(("tools", "cpu", "triton", *edge.ENVIRONMENTS), "x"), **(digests or {})}
    bound = plans.Bound("r", Path("/w"), Path("/w/s"), "f", lambda package: package, environments, lambda s, k: None)
    made = plans.make_plan(load(more), cluster.load("local", Settings.from_env({})), bound)
    return {stage["name"]: stage for stage in made["stages"]}


def test_nothing_is_made_unless_asked_for() -> None:
    before = [n.name for n in plans.skeleton(load())]
    assert not [name for name in before if "edge" in name or "exported" in name]
    after = [n.name for n in plans.skeleton(load("edge: {onnx: true}\n"))]
    assert [name for name in after if name not in before] == ["evaluate_exported", "edge"]


def test_every_kind_is_exported_evaluated_judged_and_packed_before_the_release() -> None:
    kinds = ", ".join(f"{kind}: true" for kind in ("onnx", "deepstream", *edge.CONVERTED))
    stages = plan(f"edge: {{{kinds}, images: 7, max_drop_uint8: 0.03}}\n")
    for kind in edge.CONVERTED:
        assert stages[f"evaluate_{kind}"]["environment"] == stages[f"export_{kind}"]["environment"]
        judged = yaml.safe_load(stages[f"gate_{kind}"]["files"]["quality.yaml"])
        assert judged["baseline"] == "{input:evaluate_exported.results}"
        assert judged["max_drop"] == (0.03 if kind == "coral" else 0.01)
    assert "edge" in {n.name: n.upstream for n in plans.skeleton(load(f"edge: {{{kinds}}}\n"))}["release"]
    for stage in stages.values():  # what the plan writes, the commands read
        for name, text in stage["files"].items():
            given = yaml.safe_load(text) if name.endswith(".yaml") else None
            if name in SPECS:
                SPECS[name].model_validate(given)
            elif stage["name"] == "evaluate_exported":
                assert EvaluateSpec.model_validate(given).splits == ["val"]
            elif stage["argv"][2] == "refit.edge":
                assert EdgeEvaluateSpec.model_validate(given).splits == ["val"]


def test_what_a_kind_needs_comes_along() -> None:
    stages = plan("edge: {tfjs: true}\n")
    assert {"export_saved_model", "export_tfjs", "evaluate_tfjs", "gate_tfjs", "edge"} <= set(stages)
    assert "evaluate_saved_model" not in stages, "it is on the way, and nobody asked for it"


def test_a_changed_number_of_calibration_images_makes_coral_anew_and_nothing_else() -> None:
    before, after = (plan(f"edge: {{coral: true, tflite: true, images: {n}}}\n") for n in (50, 60))
    changed = {name for name in before if before[name]["key"] != after[name]["key"]}
    assert changed == {"export_coral", "evaluate_coral", "gate_coral", "edge"}


def test_the_onnx_bundle_is_what_a_release_takes() -> None:
    def results(more: str) -> str:
        bundle = yaml.safe_load(plan(more)["edge"]["files"]["bundle.yaml"])
        return str(bundle["bundles"]["onnx"]["results"])

    assert results("edge: {onnx: true}\n") == "{input:evaluate_quantized.results}"
    without = "edge: {onnx: true}\nstages: {quantize: false}\n"
    assert results(without) == "{input:evaluate_exported.results}", "the file's own figures, not the checkpoint's"


@pytest.mark.parametrize(
    ("block", "told"),
    [
        ("{}", "names no bundle; turn one on (onnx, tflite, coral,"),
        ("{tflit: true}", "did you mean 'tflite'?"),
        ("{coral: true, images: 0}", "greater than or equal to 1"),
    ],
)
def test_faults_of_the_block(block: str, told: str) -> None:
    with pytest.raises(SpecError, match=r"mine\.yaml") as caught:
        load(f"edge: {block}\n")
    assert told in str(caught.value)


def test_environments_are_asked_for_only_where_needed() -> None:
    assert edge.environments(load().edge) == ()
    assert edge.environments(load("edge: {onnx: true, deepstream: true}\n").edge) == ()
    assert edge.environments(load("edge: {coral: true}\n").edge) == ("tensorflow",)
    assert edge.environments(load("edge: {tfjs: true}\n").edge) == ("tensorflow", "tfjs")


def test_a_run_whose_environment_is_missing_ends_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from refit.bind import _environments

    monkeypatch.setenv("REFIT_ENVS", str(tmp_path))
    settings = Settings.from_env({})
    profile = cluster.load("local", settings)
    assert isinstance(profile, LocalProfile)
    with pytest.raises(BadSpec, match=r"edge: environment 'tensorflow' .* run `sh bin/setup tensorflow`"):
        _environments(load("edge: {tflite: true}\n"), profile, settings)
    both = r"edge: environments tensorflow, tfjs are not installed: run `sh bin/setup tensorflow tfjs`"
    with pytest.raises(BadSpec, match=both):
        _environments(load("edge: {tfjs: true}\n"), profile, settings)


def test_a_compiler_that_came_later_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from refit.bind import _environments

    settings = Settings.from_env({})
    profile = cluster.load("local", settings)
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in edge.ENVIRONMENTS:
        (tmp_path / name / "bin").mkdir(parents=True)
        (tmp_path / name / "bin" / "python").symlink_to(sys.executable)
    monkeypatch.setenv("REFIT_ENVS", str(tmp_path))
    without = _environments(load("edge: {coral: true}\n"), profile, settings)
    (tmp_path / COMPILER).write_text("#!/bin/sh\n")
    (tmp_path / COMPILER).chmod(0o755)
    found = _environments(load("edge: {coral: true}\n"), profile, settings)
    assert found == without | {"coral": found["coral"]}
    assert found["coral"] != without["tensorflow"]
    assert _environments(load("edge: {tflite: true}\n"), profile, settings) == without
    before, after = (plan("edge: {coral: true, tflite: true}\n", more) for more in ({}, {"coral": found["coral"]}))
    changed = {name for name in before if before[name]["key"] != after[name]["key"]}
    assert changed == {"export_coral", "evaluate_coral", "gate_coral", "edge"}


def test_a_run_on_a_cluster_without_their_images_ends_before_the_training() -> None:
    from refit.bind import _environments

    settings = Settings.from_env({})
    told = r"edge: cluster profile \w+ has no image for it; add images\.tensorflow, images\.tfjs$"
    with pytest.raises(BadSpec, match=told):
        _environments(load("edge: {tfjs: true}\n"), cluster.load("kubernetes", settings), settings)


def test_validate_warns_of_environments_that_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REFIT_ENVS", str(tmp_path))
    file = tmp_path / "mine.yaml"
    file.write_text(TEXT + "edge: {tfjs: true}\n")
    assert main(["validate", str(file)]) == GOOD, "it may be another machine that runs it"
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith(f"warning: {file}: edge: environments tensorflow, tfjs are not installed: run `sh")
    file.write_text(TEXT + "edge: {onnx: true}\n")
    assert main(["validate", str(file)]) == GOOD
    assert not capsys.readouterr().err


def test_a_release_writes_down_which_bundles_belong_to_it(tmp_path: Path) -> None:
    """The manifests' hashes stand in the model card, where a version's own files do."""
    from refit.triton.lineage import gather

    run = tmp_path / "runs" / "r"
    out = run / "09-edge" / "out"
    out.mkdir(parents=True)
    told = {"schema": 1, "model": "mine", "bundles": {"tflite": {"sha256": "ab"}}}
    (out / "edge.json").write_text(json.dumps(told))
    made = plan("edge: {tflite: true}\n")["edge"]
    stage = {**made, "paths": {**made["paths"], "stage": str(out.parent)}}
    about = {"run": "r", "pipeline": "mine", "snapshot": str(tmp_path), "fingerprint": "f", "off": [], "reused": {}}
    (run / "plan.json").write_text(json.dumps({**about, "stages": [stage]}))
    assert gather(run, None)["edge"] == told
    (run / "plan.json").write_text(json.dumps({**about, "stages": []}))
    assert "edge" not in gather(run, None)
