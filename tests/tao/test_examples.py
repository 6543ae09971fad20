"""Every example pipeline, as planned, under the real runner, from a snapshot to the package that a release takes.

Refit's own stages are real (the download from NGC apart); TAO's commands are the stand-ins': command lines, specs,
outputs and metrics of each network fit its containers, as far as these know them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from refit import pipeline as pipelines
from refit import plan as plans
from refit.cli import GOOD, main
from refit.cluster import load
from refit.config import Settings
from refit.data import synthetic
from refit.data.ingest import ingest
from refit.data.settings import DatasetSettings
from refit.data.snapshot import Snapshot
from refit.postprocess import ModelInfo, decoder_for
from refit.specs import read_document
from tests.refit.runner_helpers import REPOSITORY, Bench
from tests.tao.standin.files import HDF5

EXAMPLES = sorted((REPOSITORY / "specs" / "examples").glob("*.yaml"))
SHAPES = ("cross", "ring", "triangle")
TRAIN = 160  # the most calibration images that an example asks for


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes") / "set"
    synthetic.make(folder, train=TRAIN, val=32, shifted=0, seed=3)
    return folder


def snapshot_of(shapes: Path, classes: list[str], workspace: Path) -> Snapshot:
    """The shapes, called by the example's own classes."""
    named = {shape: classes[i % len(classes)] for i, shape in enumerate(SHAPES)}
    lists = {"train": "train.txt", "val": "val.txt"}
    settings = DatasetSettings.model_validate(
        {"format": "kitti", "classes": classes, "class_map": named, "split": {"lists": lists}}
    )
    return ingest(shapes, settings, workspace)


def planned(path: Path, workspace: Path, shapes: Path) -> tuple[Any, dict[str, Any]]:
    changes: dict[str, Any] = {"gates.parity.images": 2, "gates.smoke": False}  # tests/tao/test_smoke_run.py
    if "image_extension: png" in path.read_text():
        changes["stages.prepare.convert"] = "png"
    pipeline = pipelines.from_document(read_document(path), path.stem, changes)
    snapshot = snapshot_of(shapes, pipeline.dataset.classes, workspace)
    bound = plans.Bound(
        run="r1",
        workspace=workspace,
        snapshot=snapshot.path,
        fingerprint=snapshot.fingerprint,
        code=lambda package: package,
        environments={"tools": "tools", "cpu": "cpu", "triton": "triton"},
        find=lambda stage, key: None,
        dataset=json.loads((snapshot.path / "dataset.json").read_text()),
    )
    return pipeline, plans.make_plan(pipeline, load("kubernetes", Settings.from_env({})), bound)


def downloaded(request: dict[str, Any]) -> None:
    """What the stage `pretrained` leaves; NGC cannot be reached."""
    folder = Path(request["paths"]["stage"])
    (folder / "out" / "weights").mkdir(parents=True)
    (folder / "out" / "weights" / "weights.hdf5").write_bytes(HDF5)
    found = {"weights": {"path": "weights/weights.hdf5", "bytes": len(HDF5)}}
    (folder / "result.json").write_text(
        json.dumps({"outcome": "succeeded", "key": request["key"], "outputs": found, "metrics": {}})
    )


def test_the_examples_validate_without_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", *map(str, EXAMPLES)]) == GOOD
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_an_example_goes_from_images_to_its_package(path: Path, bench: Bench, programs: Path, shapes: Path) -> None:
    pipeline, plan = planned(path, bench.root / "workspace", shapes)
    for request in plan["stages"]:
        if request["action"] == "pretrained":
            downloaded(request)
            continue
        if request["action"] in ("release", "prove") or request["name"] == "gate_parity":
            continue  # these need a GPU; tests/triton/test_plans.py, tests/prove
        if request["name"] in plan["off"]:
            continue  # nothing serves yet
        bench.folder = Path(request["paths"]["stage"])
        secrets = {f"REFIT_SECRET_{name}": "a-key-of-tests" for name in request["secrets"]}
        own = {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY)}
        result = bench.run(request, env={**secrets, **own})
        assert result.outcome == "succeeded", f"{request['name']}: {result.reason}\n{result.output}"
        wanted = set(request.get("metrics") or {})
        found = {name.partition("/")[0] for name in result.result["metrics"]}
        assert wanted <= found, (request["name"], wanted - found)
    package = Path(next(s for s in plan["stages"] if s["name"] == "package")["paths"]["stage"]) / "out"
    names = {p.name for p in package.iterdir()}
    assert {"model.json", "labels.txt", "package.json", "model.plan", "engine.json"} <= names
    notes = json.loads((package / "package.json").read_text())["notes"]
    assert ("deepstream" in names) == (not notes), notes
    assert bool(notes) == (pipeline.network.name == "rtdetr"), "NVIDIA's parser takes id 0 for the background"
    info = ModelInfo.read(package / "model.json")
    assert decoder_for(info)
    engine = json.loads((package / "engine.json").read_text())
    assert engine["precision"] == pipeline.stages.build_engine.precision
    assert engine["gpu"]["source"] == "nvidia-smi"
    calibrated = engine["precision"] == "int8" and not pipeline.stages.train.qat
    assert (engine["calibration"] is not None) == calibrated
