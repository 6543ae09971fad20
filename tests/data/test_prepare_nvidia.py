"""Prepared data as NVIDIA's own readers see it: they find what was written, and leave out what prepare.json says.

`REFIT_NVIDIA_SOURCES` names a folder with checkouts under their repositories' names (tao_tensorflow1_backend,
tao_tensorflow2_backend, tao_pytorch_backend, tao_deploy). Their functions are taken out of their files, because the
frameworks that these import are not to be had here; nothing of them is kept.
"""

from __future__ import annotations

import ast
import builtins
import json
import logging
import os
import random
from collections import Counter, defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.data.helpers import SETTINGS, voc_object, voc_set, voc_text

import numpy as np  # isort: skip

from refit.data.ingest import ingest
from refit.data.prepare import calibration, stage
from refit.data.prepare.spec import CalibrateSpec, PrepareSpec
from refit.data.snapshot import Snapshot, read_annotations
from refit.status import StatusWriter

VARIABLE = "REFIT_NVIDIA_SOURCES"
TF1 = "tao_tensorflow1_backend/nvidia_tao_tf1/cv"
IMAGES = 8


def source(path: str) -> Path:
    root = os.environ.get(VARIABLE)
    if not root:
        pytest.skip(f"{VARIABLE} names no folder with checkouts of NVIDIA's sources")
    found = Path(root) / path
    if not found.is_file():
        pytest.skip(f"there is no {found}")
    return found


def taken(path: str, *names: str, **space: Any) -> dict[str, Any]:
    """The functions and classes of these names, run in `space` in place of their module."""
    file = source(path)
    nodes = [n for n in ast.walk(ast.parse(file.read_text())) if getattr(n, "name", None) in names]
    assert {n.name for n in nodes} == set(names)  # type: ignore[attr-defined]
    known = {
        "os": os,
        "np": np,
        "random": random,
        "Path": Path,
        "Counter": Counter,
        "logger": logging.getLogger("nvidia"),
    }
    space = {**known, **space}
    exec(compile(ast.Module(nodes, []), str(file), "exec"), space)  # type: ignore[arg-type]
    return space


@pytest.fixture
def snapshot(tmp_path: Path) -> Snapshot:
    """Images with a plain object, an occluded one, and one that is thinner than a pixel."""
    root = voc_set(tmp_path / "set", IMAGES)
    for i in range(IMAGES):
        things = (
            voc_object("car", (5, 6, 25, 30)),
            voc_object("cat", (8.25, 6, 40.5, 30), "<occluded>1</occluded>"),
            voc_object("dog", (10.2, 6, 10.9, 30)),
        )
        (root / f"Annotations/{i:03}.xml").write_text(voc_text(*things))
    return ingest(root, SETTINGS, tmp_path / "ws")


def prepare(snapshot: Snapshot, out: Path, **spec: Any) -> dict[str, Any]:
    stage.run(PrepareSpec(snapshot=snapshot.path, **spec), out, StatusWriter(out))
    report: dict[str, Any] = json.loads((out / "prepare.json").read_text())
    return report


def boxes(snapshot: Snapshot, *classes: str) -> Counter[tuple[Any, ...]]:
    rows = read_annotations(snapshot.path)
    return Counter(
        (Path(r["file"]).stem, o["class"], o["x1"], o["y1"], o["x2"], o["y2"])
        for r in rows
        for o in r["objects"]
        if o["class"] in classes
    )


def splits(out: Path) -> list[Path]:
    return [out / "train", out / "val"]


def test_the_kitti_converter(snapshot: Snapshot, tmp_path: Path) -> None:
    """detectnet_v2 and faster_rcnn: objects by class and box; the thin ones it skips with a debug message."""
    features = dict.fromkeys(("_bytes_feature", "_float_feature", "_int64_feature"), lambda *values: list(values))
    space = taken(f"{TF1}/detectnet_v2/dataio/kitti_converter_lib.py", "_add_targets", **features)
    report = prepare(snapshot, tmp_path, form="kitti")
    found: Counter[tuple[Any, ...]] = Counter()
    skipped = 0
    for split in splits(tmp_path):
        known = {"labels_dir": "labels", "use_dali": False, "class_map": {}}
        for path in (split / "images").iterdir():
            converter = SimpleNamespace(root_dir=str(split), log_warning={}, **known)
            values: dict[str, Feature] = defaultdict(Feature)
            space["_add_targets"](converter, SimpleNamespace(features=SimpleNamespace(feature=values)), path.stem)
            sides = [values[f"target/coordinates_{side}"] for side in ("x1", "y1", "x2", "y2")]
            classes = [c.decode() for c in values["target/object_class"]]
            found.update((path.stem, c, *box) for c, box in zip(classes, zip(*sides, strict=True), strict=True))
            skipped += len(converter.log_warning)
    assert found == boxes(snapshot, "car", "cat")
    assert skipped == report["not_held"]["thin"] == IMAGES


class Feature(list[Any]):
    def MergeFrom(self, values: list[Any]) -> None:
        self[:] = values


def test_the_kitti_loader_of_ssd_and_yolo(snapshot: Snapshot, tmp_path: Path) -> None:
    path = f"{TF1}/common/dataio/detection_data_sequence.py"
    space = taken(path, "_load_gt_label", "_filter_invalid_labels", "_add_source")
    report = prepare(snapshot, tmp_path, form="kitti")
    names = list(report["names"].values())
    loader = SimpleNamespace(class_mapping={n: i for i, n in enumerate(names)}, exclude_difficult=True)
    left: Counter[str] = Counter()
    for split in splits(tmp_path):
        loader.image_paths, loader.label_paths = [], []
        space["_add_source"](loader, str(split / "images"), str(split / "labels"))
        assert len(loader.image_paths) == report["splits"][split.name]["images"]
        for label in loader.label_paths:
            rows = space["_load_gt_label"](loader, label)
            rows[:, 2:] /= (64, 48, 64, 48)
            left.update(names[int(row[0])] for row in space["_filter_invalid_labels"](loader, rows))
    assert left == {"car": IMAGES, "dog": IMAGES}  # the occluded cats are "difficult"
    assert report["not_held"]["occluded"] == IMAGES


def test_the_converter_of_efficientdet(snapshot: Snapshot, tmp_path: Path) -> None:
    from hashlib import sha256
    from io import BytesIO

    same = SimpleNamespace(**{f"{kind}_feature": list for kind in ("bytes_list", "float_list", "int64_list")})
    same.bytes_feature = same.int64_feature = lambda value: value
    made = SimpleNamespace(Example=lambda features: features, Features=lambda feature: feature)
    tf = SimpleNamespace(train=made, io=SimpleNamespace(gfile=SimpleNamespace(GFile=builtins.open)))
    space = taken(
        "tao_tensorflow2_backend/nvidia_tao_tf2/cv/efficientdet/scripts/dataset_convert.py",
        "create_tf_example",
        tf=tf,
        dataset_util=same,
        io=SimpleNamespace(BytesIO=BytesIO),
        hashlib=SimpleNamespace(sha256=sha256),
        PIL=SimpleNamespace(Image=SimpleNamespace(open=lambda data: data)),
    )
    report = prepare(snapshot, tmp_path, form="coco", first_id=1)
    found: Counter[tuple[Any, ...]] = Counter()
    skipped = 0
    for split in splits(tmp_path):
        data = json.loads((tmp_path / f"annotations/{split.name}.json").read_text())
        index = {c["id"]: c for c in data["categories"]}
        assert 0 not in index  # the background's
        assert max(index) < report["num_classes"]
        for image in data["images"]:
            own = [a for a in data["annotations"] if a["image_id"] == image["id"]]
            _, example, lost, _, _ = space["create_tf_example"](image, own, str(split / "images"), index)
            skipped += lost
            names = [n.decode() for n in example["image/object/class/text"]]
            sides = [
                [round(v * scale, 6) for v in example[f"image/object/bbox/{side}"]]
                for side, scale in (("xmin", 64), ("ymin", 48), ("xmax", 64), ("ymax", 48))
            ]
            stem = Path(image["file_name"]).stem
            found.update((stem, c, *box) for c, box in zip(names, zip(*sides, strict=True), strict=True))
    assert found == boxes(snapshot, "car", "cat")
    assert skipped == report["not_held"]["thin"] == IMAGES


def test_the_coco_reader_of_the_detr_networks(snapshot: Snapshot, tmp_path: Path) -> None:
    space = taken(
        "tao_pytorch_backend/nvidia_tao_pytorch/cv/deformable_detr/utils/coco.py",
        "COCO",
        "_isArrayLike",
        defaultdict=defaultdict,
        itertools=__import__("itertools"),
    )
    report = prepare(snapshot, tmp_path, form="coco", first_id=0)
    found: Counter[tuple[Any, ...]] = Counter()
    for split in splits(tmp_path):
        data = space["COCO"](json.loads((tmp_path / f"annotations/{split.name}.json").read_text()))
        logits = {c["id"]: c["name"] for c in data.dataset["categories"]}
        assert sorted(logits) == list(range(report["num_classes"]))
        for number, image in data.imgs.items():
            for a in data.loadAnns(data.getAnnIds(number)):
                x, y, width, height = a["bbox"]
                stem = Path(image["file_name"]).stem
                found[stem, logits[a["category_id"]], x, y, round(x + width, 6), round(y + height, 6)] += 1
    assert found == boxes(snapshot, "car", "cat", "dog")


def test_the_image_batcher_of_calibration(snapshot: Snapshot, tmp_path: Path) -> None:
    """It takes every image that was chosen, in whole batches, in one order."""
    from sys import exit

    endings = ast.literal_eval(
        source("tao_deploy/nvidia_tao_deploy/cv/common/constants.py").read_text().split("VALID_IMAGE_EXTENSIONS = ")[1]
        .splitlines()[0]
    )  # fmt: skip
    space = taken(
        "tao_deploy/nvidia_tao_deploy/utils/image_batcher.py",
        "ImageBatcher",
        VALID_IMAGE_EXTENSIONS=endings,
        ListConfig=list,
        sys=SimpleNamespace(exit=exit),
    )
    prepare(snapshot, tmp_path / "prepared", form="kitti")
    calibration.run(
        CalibrateSpec(prepared=tmp_path / "prepared", images=6, batch_size=3), tmp_path, StatusWriter(tmp_path)
    )
    row = json.loads((tmp_path / "calibration.json").read_text())
    batcher = space["ImageBatcher"](
        str(tmp_path / "images"), (3, 3, 48, 64), np.float32, max_num_images=row["images"], exact_batches=True
    )
    assert (batcher.num_images, batcher.num_batches) == (row["images"], row["batches"]) == (6, 2)
    chosen = [f["file"] for f in json.loads((tmp_path / "calibration.json").read_text())["files"]]
    assert [Path(p).name for p in batcher.images] == chosen
