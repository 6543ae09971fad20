"""What runs in Triton's own image: one file that needs nothing but an old Python."""

from __future__ import annotations

import ast
import base64
import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from refit import runner
from refit.postprocess import InputInfo, resize, to_tensor
from refit.prove import prepare, server, ways
from refit.status import StatusWriter
from tests.prove.house import INFO, House

SOURCE = Path(server.__file__)
ENTRIES = [
    InputInfo("x", 40, 24),
    InputInfo("x", 40, 24, channel_order="bgr", scale=1.0, mean=(103.939, 116.779, 123.68)),
    InputInfo("x", 40, 24, layout="nhwc", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    InputInfo("x", 40, 24, channels=1),
]


@pytest.mark.parametrize("entry", ENTRIES)
def test_its_tensors_are_those_of_the_client_bit_by_bit(entry: InputInfo) -> None:
    image = np.random.default_rng(3).integers(0, 256, (30, 50, 3), np.uint8)
    for way in (ways.client(entry), *ways.others(entry)):
        small, _ = resize(image, way.entry)
        recipe = prepare.recipe(way)
        table = server.translations(recipe["table"], entry.channels)
        shape = [1, *entry.shape]
        made = server.tensor(small.tobytes(), shape, entry.layout, recipe["order"], table)
        assert made == to_tensor(small, way.entry).tobytes(), way.name


def test_a_picture_of_another_size_is_refused() -> None:
    table = server.translations(base64.b64encode(bytes(1024)).decode(), 1)
    with pytest.raises(ValueError, match="a picture has 24 bytes as float32, and the input takes 32"):
        server.tensor(b"123456", [1, 1, 2, 4], "nchw", [0], table)


def test_the_ways_have_names_of_their_own_and_differ_from_the_clients() -> None:
    for entry in ENTRIES:
        found = list(ways.others(entry))
        assert len({way.name for way in found}) == len(found)
        assert all(way.entry != entry and way.told and way.key for way in found)


def test_it_is_python_3_6_and_needs_no_package() -> None:
    text = SOURCE.read_text(encoding="utf-8")
    tree = ast.parse(text, feature_version=(3, 7))
    imported = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in imported} <= sys.stdlib_module_names
    assert not runner.TOKEN.search(text), "the runner would replace it in a stage's file"
    assert not re.search(r"(?<![\w.])(?:dict|list|tuple|set)\[|removeprefix|:=|from __future__", text), "newer than 3.6"


def test_without_a_server_it_says_so(tmp_path: Path) -> None:
    copy = tmp_path / "prove.py"
    copy.write_text(SOURCE.read_text())
    (tmp_path / "request.json").write_text(json.dumps({"models": {}, "asks": []}))
    (tmp_path / "out").mkdir()
    done = subprocess.run(
        [sys.executable, "-I", str(copy), str(tmp_path), str(tmp_path / "out")],
        capture_output=True, text=True, env={"PATH": str(tmp_path)}, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "there is no tritonserver in this image" in done.stderr
    assert '"status": "FAILURE"' in (tmp_path / "out" / "status.json").read_text()


def test_some_pictures_of_a_split_are_such_with_objects(house: House, tmp_path: Path) -> None:
    rows = [{"file": f"{n}.png", "split": "test", "objects": [{}] if n > 7 else []} for n in range(10)]
    (tmp_path / "annotations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = house.spec("some", INFO).model_copy(update={"snapshot": tmp_path, "split": "test", "images": 5})
    assert [row["file"] for row in prepare._rows(spec)] == ["8.png", "9.png"]
    assert len(prepare._rows(spec.model_copy(update={"images": None}))) == 10


def test_what_is_prepared_is_one_picture_for_each_image_and_geometry(house: House) -> None:
    out = house.folder / "prepared" / "proof"
    prepare.run(house.spec("prepared", INFO, images=4, doubted=2), out, StatusWriter(out))
    pictures = {f"{p.parent.name}/{p.name}" for p in out.glob("pictures/*/*.z")}
    plain, stretched, centred = ("-".join(("128x112x3", *w, "black-area")) for w in (
        ("letterbox", "corner"), ("stretch", "corner"), ("letterbox", "centre")))  # fmt: skip
    assert pictures == {f"{plain}/{n}.z" for n in range(4)} | {
        f"{g}/{n}.z" for g in (stretched, centred) for n in (0, 1)
    }
    truth = json.loads((out / "truth.json").read_text())
    assert len(truth["images"]) == 4
    assert cv2.imread(str(house.folder / "data" / "images" / truth["images"][0]["file_name"])) is not None
    assert (out / "repository" / "known" / "config.pbtxt").exists()
