"""The INT8 ladder of TAO's: one pod builds and evaluates engine after engine, until one is good enough."""

from __future__ import annotations

import ast
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from refit import runner
from refit.tao import climb
from refit.toolkits.tao import ladder
from tests.refit.runner_helpers import Bench
from tests.tao.test_checkpoints import Run, shapes

__all__ = ["shapes"]
PIPELINE = """\
dataset: {{source: inbox/cars, classes: [cross, ring, triangle], format: kitti}}
toolkit: tao
network: {{name: {network}, image_extension: png, key_secret: TAO_KEY}}
stages:
  prepare: {{convert: png}}
  train: {{epochs: 4, batch_size: 4}}
  build_engine: {{ladder: true, calibration_batch_size: 2, calibration_batches: 2}}
gates: {{smoke: false, quality: {{max_drop_quantized: {drop}, max_drop_class: null}}}}
resources: {{default: {{gpus: 1}}}}
"""
SECRETS = {"REFIT_SECRET_TAO_KEY": "a-key-of-tests"}


def climbed(bench: Bench, programs: Path, shapes: Path, drop: float, **env: str) -> tuple[Run, Any]:
    run = Run(bench, programs, shapes, PIPELINE.format(network="detectnet_v2", drop=drop))
    return run, run.until("build_engine", **SECRETS, **env)


def report(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run.text("build_engine", "out/ladder.json"))
    return found


def test_the_program_is_python_3_6_and_needs_no_package() -> None:
    text = Path(climb.__file__).read_text(encoding="utf-8")
    tree = ast.parse(text, feature_version=(3, 7))
    imported = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in imported} <= sys.stdlib_module_names
    assert not runner.TOKEN.search(text), "the runner would replace it in a stage's file"
    assert not re.search(r"(?<![\w.])(?:dict|list|tuple|set)\[|removeprefix|:=|from __future__", text), "newer than 3.6"


@pytest.fixture(scope="module")
def easy(tmp_path_factory: pytest.TempPathFactory, programs: Path, shapes: Path) -> Iterator[Run]:
    """A run to its last gate, whose first rung is good enough."""
    with Bench(tmp_path_factory.mktemp("easy")) as bench:
        run, done = climbed(bench, programs, shapes, 1)
        assert done.outcome == "succeeded", done.output
        done = run.until("gate_quantized", **SECRETS)
        assert done.outcome == "succeeded", done.reason
        yield run


def test_the_first_rung_that_is_good_enough_is_the_engine(easy: Run) -> None:
    found = report(easy)
    assert (found["winner"], [t["name"] for t in found["rungs"]]) == ("int8", ["int8"])
    assert found["rungs"][0]["drops"].keys() == {"cross", "ring", "triangle"}
    built = json.loads(easy.text("build_engine", "result.json"))
    assert built["summary"] == {"winner": "int8", "rungs": {"int8": "passes"}}
    evaluated = easy.text("build_engine", "out/rungs/int8/evaluate_build_engine/log.txt")
    assert "Producing predictions for 6 of 6 images" in evaluated, "the gate compares with all of them"
    assert "a-key-of-tests" not in easy.text("build_engine", "request.json")
    assert "a-key-of-tests" not in easy.text("build_engine", "out/rungs/int8/build_engine.json")
    judged = json.loads(easy.text("gate_quantized", "result.json"))
    assert "made by rung int8, tried 1" in judged["summary"]["reason"]
    engine = json.loads(easy.text("describe_engine", "out/engine.json"))
    assert (engine["precision"], engine["calibration"]["images"]) == ("int8", 4)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("onnx_sha256", "0" * 64, "was built from another ONNX file"),
        ("plan", {"file": "model.plan", "sha256": "0" * 64, "bytes": 2000}, "is not the plan that engine.json"),
    ],
)
def test_an_engine_of_another_export_or_that_was_changed_is_not_packed(
    easy: Run, key: str, value: Any, said: str
) -> None:
    """As if it were that of the model before pruning: hashed again, so that package has to see it and not the hash."""
    folder = Path(easy.stages["describe_engine"]["paths"]["stage"])
    record, result = folder / "out" / "engine.json", folder / "result.json"
    kept = {path: path.read_text() for path in (record, result)}
    record.write_text(json.dumps({**json.loads(kept[record]), key: value}))
    forged = json.loads(kept[result])
    forged["outputs"]["engine"] |= dict(zip(("bytes", "sha256"), runner.measure(str(record)), strict=True))
    result.write_text(json.dumps(forged))
    done = easy.stage("package", **SECRETS)
    for path, text in kept.items():
        path.write_text(text)
    assert done.outcome in ("bad_data", "bad_spec")
    assert said in done.reason


def test_what_loses_too_much_is_tried_in_other_ways_and_a_killed_climb_goes_on(
    bench: Bench, programs: Path, shapes: Path
) -> None:
    run, done = climbed(bench, programs, shapes, 0.005, REFIT_STANDIN_INT8_LOSES="0.02")
    assert done.outcome == "succeeded", done.output
    tries = {t["name"]: t for t in report(run)["rungs"]}
    assert {name: bool(t["failed"]) for name, t in tries.items()} == {
        "int8": True, "more_images": True, "qat": False, "fp16": False,
    }  # fmt: skip
    assert tries["int8"]["failed"][0].startswith("lost 0.0200 mAP50 (")
    assert tries["qat"]["skipped"] == "it needs a training of its own: stages.train.qat: true"
    calibrated = run.text("build_engine", "out/rungs/more_images/build_engine/log.txt")
    assert "Calibrating image 12 / 12" in calibrated, "the train split has 12 images"
    folder = Path(run.stages["build_engine"]["paths"]["stage"])
    (folder / "result.json").unlink()  # as if it had been killed before its end
    (folder / "out" / "model.plan").unlink()
    again = run.stage("build_engine", **SECRETS)
    assert again.outcome == "succeeded", again.output
    assert again.output.count("an earlier result with the same key is whole: reused") == 6
    described = run.stage("describe_engine", **SECRETS)
    assert described.outcome == "succeeded", described.reason
    engine = json.loads(run.text("describe_engine", "out/engine.json"))
    assert (engine["precision"], engine["calibration"]) == ("fp16", None)


RUNNER = """
import json, sys
request = json.load(open(sys.argv[2]))
folder, says = request["paths"]["stage"], json.loads(request["env"]["SAYS"])
__import__("os").makedirs(folder + "/out", exist_ok=True)
open(folder + "/out/model.plan", "w").write("plan")
json.dump(says, open(folder + "/result.json", "w"))
sys.exit(says.get("code", 0))
"""
BEFORE = {"metrics": {"mAP50": 0.8, "AP50/cat": 0.9, "AP50/dog": 0.7}}


def rung(name: str, **says: Any) -> dict[str, Any]:
    build = {"name": "build", "env": {"SAYS": json.dumps({"outcome": "succeeded", **says})}}
    return {"name": name, "how": "", "requests": [build]}


def figures(value: float, cat: float, dog: float) -> dict[str, float]:
    return {"mAP50": value, "AP50/cat": cat, "AP50/dog": dog}


@pytest.mark.parametrize(
    ("rungs", "code", "winner", "why"),
    [
        ([rung("a", metrics=figures(0.79, 0.9, 0.68))], 0, "a", []),
        ([rung("a", metrics=figures(0.79, 0.98, 0.6))], 4, None, ["lost 0.1000 of the AP of dog, more than 0.05"]),
        (
            [rung("a", metrics=figures(0.74, 0.88, 0.68)), rung("b", metrics=figures(0.8, 0.9, 0.7))], 0, "b",
            ["lost 0.0600 mAP50 (0.8000 -> 0.7400), more than 0.02", "its mAP50 of 0.7400 is below the floor of 0.75"],
        ),
        ([rung("a", outcome="toolkit_error", reason="no plugin")], 1, None, ["build: no plugin"]),
        (
            [rung("a", outcome="no_space", reason="disk full"), rung("b", metrics=BEFORE["metrics"])], 66, None,
            ["build: disk full"],
        ),
        ([rung("a", outcome="cancelled", code=143), rung("b", metrics=BEFORE["metrics"])], 143, None, []),
    ],
)  # fmt: skip
def test_a_rung_is_judged_by_the_whole_by_class_and_by_the_floor(
    tmp_path: Path, rungs: list[dict[str, Any]], code: int, winner: str | None, why: list[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    limits = {"max_drop": 0.02, "max_drop_class": 0.05, "floor": 0.75}
    spec = {"metric": "mAP50", "split": "val", "model": "model.plan", "limits": limits, "rungs": rungs}
    for name, value in (("spec", json.dumps(spec)), ("before", json.dumps(BEFORE)), ("runner", RUNNER)):
        (tmp_path / name).write_text(value)
    assert climb.main([*(str(tmp_path / name) for name in ("runner", "spec", "before")), str(out)]) == code
    if code == climb.CANCELLED:
        assert not (out / "ladder.json").exists(), "the next attempt goes on"
        return
    found = json.loads((out / "ladder.json").read_text())
    assert (found["winner"], found["rungs"][0]["failed"]) == (winner, why)
    assert (out / "model.plan").exists() == (winner is not None)


def test_latency_is_trtexecs_where_the_image_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "trtexec"
    said = "[I] Throughput: 512.5 qps\n[I] GPU Compute Time: min = 1.8 ms, max = 2.5 ms, median = 1.87 ms, p"
    program.write_text(f"#!/bin/sh\ncat <<'E'\n{said}\nE\n")
    assert climb.timed("model.plan") == []
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert climb.timed("model.plan") == [{"batch": 1, "after_ms": 1.87, "images_per_second": 512.5}]


def test_only_the_tokens_of_the_runner_inside_are_kept_from_the_one_outside() -> None:
    text = json.dumps(["{out}/a", "{input:build.model}", "{input:prepare}/b", "{secret:K}", "{input:builder}"])
    kept = ladder.kept(text, "build")
    assert json.loads(kept) == json.loads(text)
    assert [match.group() for match in runner.TOKEN.finditer(kept)] == ["{input:prepare}", "{input:builder}"]
