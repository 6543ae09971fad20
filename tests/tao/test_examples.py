"""Every example pipeline's TAO stages, as planned, under the real runner: command lines, specs, outputs and metrics
of each network fit its containers, as far as the stand-ins know them. Refit's own stages are taken as done."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from refit import pipeline as pipelines
from refit import plan as plans
from refit.cluster import load
from refit.config import Settings
from tests.refit.runner_helpers import REPOSITORY, Bench

EXAMPLES = sorted((REPOSITORY / "specs" / "examples").glob("*.yaml"))
IMAGES = 40  # a split; more than any example's batch
PICTURE = {"jpg": b"\xff\xd8 a picture \xff\xd9", "png": b"\x89PNG\r\n\x1a\n a picture IEND\xaeB`\x82"}
KITTI = "{} 0.00 0 0.00 1.00 2.00 30.00 40.00 0.00 0.00 0.00 0.00 0.00 0.00 0.00\n"


def prepared(out: Path, classes: list[str], extension: str, first_id: int) -> None:
    """What the stage `prepare` writes, in both of its forms."""
    picture = PICTURE[extension]
    (out / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        for folder in ("images", "labels"):
            (out / split / folder).mkdir(parents=True)
        found: list[dict[str, Any]] = []
        for i in range(IMAGES):
            (out / split / "images" / f"{i}.{extension}").write_bytes(picture)
            (out / split / "labels" / f"{i}.txt").write_text("".join(KITTI.format(name) for name in classes))
            found += [
                {"id": len(found) + c, "image_id": i, "category_id": first_id + c, "bbox": [1, 2, 29, 38]}
                for c in range(len(classes))
            ]
        coco = {
            "images": [{"id": i, "file_name": f"{i}.{extension}", "width": 640, "height": 480} for i in range(IMAGES)],
            "categories": [{"id": first_id + i, "name": name} for i, name in enumerate(classes)],
            "annotations": found,
        }
        (out / "annotations" / f"{split}.json").write_text(json.dumps(coco))
    (out / "classmap.txt").write_text("\n".join(classes))
    (out / "classmap_deploy.txt").write_text("\n".join(["background", *classes]))
    (out / "label_map.yaml").write_text("".join(f"{i}: {name}\n" for i, name in enumerate(classes, 1)))
    (out / "prepare.json").write_text("{}")


def ours(request: dict[str, Any], pipeline: Any) -> None:
    """A stage of Refit's own, taken as done: what TAO's stages read of it."""
    folder = Path(request["paths"]["stage"])
    out, outputs = folder / "out", {}
    extension = pipeline.stages.prepare.convert or pipeline.network.image_extension
    if request["action"] == "prepare":
        prepared(out, pipeline.dataset.classes, extension, pipeline.facts.data.first_id)
        outputs = {"prepare": "prepare.json"}
    elif request["action"] == "calibrate":
        (out / "images").mkdir(parents=True)
        for i in range(yaml.safe_load(request["files"]["calibrate.yaml"])["images"]):
            (out / "images" / f"{i}.{extension}").write_bytes(PICTURE[extension])
        annotations = Path(request["inputs"]["prepare"], "out", "annotations", "train.json")
        if annotations.exists():
            coco = json.loads(annotations.read_text())
            (out / "annotations.json").write_text(json.dumps({**coco, "images": [], "annotations": []}))
        (out / "calibration.json").write_text("{}")
        outputs = {"calibration": "calibration.json"}
    elif request["action"] == "pretrained":
        (out / "weights").mkdir(parents=True)
        (out / "weights" / "weights.hdf5").write_bytes(b"weights")
        outputs = {"weights": "weights/weights.hdf5"}
    found = {name: {"path": path, "bytes": (out / path).stat().st_size} for name, path in outputs.items()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(
        json.dumps({"outcome": "succeeded", "key": request["key"], "outputs": found, "metrics": {}})
    )


def planned(path: Path, workspace: Path) -> tuple[Any, dict[str, Any]]:
    pipeline = pipelines.load(path)
    stages = {"splits": {"train": IMAGES, "val": IMAGES}}
    bound = plans.Bound(
        run="r1",
        workspace=workspace,
        snapshot=workspace / "snapshot",
        fingerprint="f",
        code=lambda package: package,
        environments=_Any(),
        find=lambda stage, key: None,
        dataset=stages,
    )
    return pipeline, plans.make_plan(pipeline, load("kubernetes", Settings.from_env({})), bound)


class _Any(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return key


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Bench(tmp_path) as made:
        yield made


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_every_stage_of_tao_succeeds(path: Path, bench: Bench, programs: Path) -> None:
    pipeline, plan = planned(path, bench.root / "workspace")
    ran = []
    for request in plan["stages"]:
        if not request["environment"].startswith("tao_"):
            ours(request, pipeline)
            continue
        bench.folder = Path(request["paths"]["stage"])
        secrets = {f"REFIT_SECRET_{name}": "a-key-of-tests" for name in request["secrets"]}
        result = bench.run(request, env={**secrets, "PATH": f"{programs}:{os.environ['PATH']}"})
        assert result.outcome == "succeeded", f"{request['name']}: {result.reason}\n{result.output}"
        wanted = set(request.get("metrics") or {})
        found = {name.partition("/")[0] for name in result.result["metrics"]}
        assert wanted <= found, (request["name"], wanted - found)
        ran.append(request["name"])
    assert {"train", "evaluate_trained", "export"} <= set(ran)
