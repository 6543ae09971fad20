"""The converters in docs/coming-from.md make data sets that `refit dataset check` takes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.migrate.conftest import Called

DOC = Path(__file__).resolve().parents[2] / "docs" / "coming-from.md"


def script(name: str, folder: Path) -> Path:
    text = next(t for t in re.findall(r"```python\n(.*?)```", DOC.read_text(), re.DOTALL) if name in t.split("\n")[0])
    path = folder / name
    path.write_text(text)
    return path


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.random.default_rng(len(str(path))).integers(0, 255, (48, 64, 3), np.uint8))


@pytest.fixture
def drip(tmp_path: Path) -> list[Path]:
    box = {"x0": 1, "y0": 2, "x1": 30, "y1": 40}
    frames = []
    for i, key in enumerate(("class", "type", "class")):  # both words were in use
        picture(tmp_path / "images" / "day" / f"{i}.jpg")
        frames.append({"path": f"day/{i}.jpg", "width": 64, "height": 48, "boxes": [{key: "big car", **box}]})
    (tmp_path / "metadata.json").write_text(json.dumps({"frames": frames}))
    return [tmp_path / "metadata.json", tmp_path / "images"]


@pytest.fixture
def supervisely(tmp_path: Path) -> list[Path]:
    for i, tag in enumerate(("train", "train", "val")):
        picture(tmp_path / "project/ds/img" / f"{i}.jpg")
        ann = tmp_path / "project/ds/ann" / f"{i}.jpg.json"
        ann.parent.mkdir(parents=True, exist_ok=True)
        thing = {"classTitle": "big car", "points": {"exterior": [[30, 40], [1, 2]], "interior": []}}
        ann.write_text(json.dumps({"size": {"width": 64, "height": 48}, "tags": [{"name": tag}], "objects": [thing]}))
    return [tmp_path / "project"]


@pytest.fixture
def coco(tmp_path: Path) -> list[Path]:
    box, said = {"category_id": 7, "bbox": [1, 2, 29, 38]}, []
    for i in range(3):
        picture(tmp_path / "images" / "day" / f"{i}.jpg")
        said += [{"image_id": i, **box}, {"image_id": i, **box, "iscrowd": 1}]  # a crowd is no object
    whole = {
        "images": [{"id": i, "file_name": f"day/{i}.jpg"} for i in range(3)],
        "annotations": said,
        "categories": [{"id": 7, "name": "big car"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(whole))
    return [tmp_path / "instances.json", tmp_path / "images"]


@pytest.mark.parametrize("name", ["drip", "supervisely", "coco"])
def test_the_converter(name: str, refit: Callable[..., Called], tmp_path: Path, request: pytest.FixtureRequest) -> None:
    given = request.getfixturevalue(name)
    out = tmp_path / "out"
    subprocess.run([sys.executable, script(f"{name}2kitti.py", tmp_path), *given, out], check=True)
    told = refit("dataset", "check", out, "--format", "kitti", "--classes", "big_car", "--json")
    assert told.code == 0, told.text
    assert json.loads(told.out)["objects"] == {"big_car": 3}
    labels = sorted((out / "labels").iterdir())
    assert labels[0].read_text() == "big_car 0 0 0 1 2 30 40 0 0 0 0 0 0 0\n"
    if name == "supervisely":
        assert (out / "val.txt").read_text() == "ds_2.jpg\n"
