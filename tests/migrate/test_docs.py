"""The commands on data in docs/coming-from.md do what it says, on small sets as the old systems had them."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.data.helpers import HEIGHT, WIDTH, coco_set, encoded
from tests.migrate.conftest import Called

DOC = (Path(__file__).resolve().parents[2] / "docs" / "coming-from.md").read_text()
Refit = Callable[..., Called]


def section(title: str) -> str:
    return next(part for part in DOC.split("\n## ") if part.startswith(title))


def run(refit: Refit, title: str, root: Path) -> list[dict[str, Any]]:
    """Run a section's commands on data, with `root` for /data; what each says as JSON."""
    commands = re.findall(r"^bin/refit (dataset .*)$", section(title), re.MULTILINE)
    assert commands
    made = []
    for command in commands:
        told = refit(*shlex.split(command.replace("/data/", f"{root}/"), comments=True), "--json")
        assert told.code == 0, told.text
        made.append(json.loads(told.out))
    return made


def pictures(folder: Path) -> None:
    folder.mkdir(parents=True)
    for i in range(3):
        (folder / f"{i}.jpg").write_bytes(encoded(i))


def supervisely_set(root: Path) -> None:
    pictures(root / "ds/img")
    (root / "ds/ann").mkdir()
    names = [{"name": "train"}, {"name": "val"}]
    (root / "meta.json").write_text(json.dumps({"classes": [{"title": "big car"}], "tags": names}))
    size, corners = {"width": WIDTH, "height": HEIGHT}, [[1, 2], [30, 40]]
    thing = {"classTitle": "big car", "geometryType": "rectangle", "points": {"exterior": corners, "interior": []}}
    for i, tag in enumerate((names[0], names[0], names[1])):
        said = {"size": size, "tags": [tag], "objects": [thing]}
        (root / f"ds/ann/{i}.jpg.json").write_text(json.dumps(said))


def csv_set(root: Path) -> None:
    pictures(root / "images")
    for part, numbers in (("train", (0, 1)), ("test", (2,))):
        rows = "".join(f"{i}.jpg,{WIDTH},{HEIGHT},big car,1,2,30,40\n" for i in numbers)
        (root / f"{part}_labels.csv").write_text(f"filename,width,height,class,xmin,ymin,xmax,ymax\n{rows}")


def test_drip(refit: Refit, tmp_path: Path) -> None:
    pictures(tmp_path / "inbox/files/images/day")
    box = {"x0": 1, "y0": 2, "x1": 30, "y1": 40}
    frames = [
        {"path": f"day/{i}.jpg", "width": WIDTH, "height": HEIGHT, "boxes": [{key: "big car", **box}]}
        for i, key in enumerate(("class", "type", "class"))
    ]
    (tmp_path / "inbox/files/metadata.json").write_text(json.dumps({"frames": frames}))
    (told,) = run(refit, "Drip", tmp_path)
    assert (told["format"], told["objects"]) == ("drip", {"big car": 3})


def test_coco(refit: Refit, tmp_path: Path) -> None:
    coco_set(tmp_path / "inbox/street")
    (told,) = run(refit, "RT-DETR", tmp_path)
    assert told["format"] == "coco"
    assert sum(told["objects"].values()) == 12


def test_supervisely(refit: Refit, tmp_path: Path) -> None:
    supervisely_set(tmp_path / "inbox/project")
    told, _ = run(refit, "TensorFlow's", tmp_path)
    assert (told["format"], told["objects"]) == ("supervisely", {"big car": 3})
    assert len(list((tmp_path / "records").glob("train-*"))) == 1
    assert refit("dataset", "check", "records", "--format", "tfrecord").code == 0


@pytest.mark.parametrize(("make", "second"), [(supervisely_set, "val"), (csv_set, "test")])
def test_a_split_that_the_data_bring(refit: Refit, tmp_path: Path, make: Callable[[Path], None], second: str) -> None:
    """What is written once, and the lists of the pipeline file that is shown."""
    make(tmp_path / "project")
    (told,) = run(refit, "A split", tmp_path)
    assert told["parts"] == {"train": 2, second: 1}
    assert told["objects"] == {"big car": 3}
    own, listed = (
        yaml.safe_load(shown)["dataset"] for shown in re.findall(r"```yaml\n(.*?)```", section("A split"), re.DOTALL)
    )
    assert own["split"] == {"lists": "own"}
    lists = [f"--list={part}={name.replace('test', second)}" for part, name in listed["split"]["lists"].items()]
    read = refit("dataset", "convert", tmp_path / listed["source"], "again", "--to", "coco", *lists, "--json")
    assert read.code == 0, read.text
    assert json.loads(read.out)["parts"] == {"train": 2, "val": 1}
