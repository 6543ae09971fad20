"""augment: boxes follow the pixels through every transform, nothing is lost uncounted, the same seed gives the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from refit.command import BadData, BadSpec
from refit.cpu import augment
from refit.cpu.records import Dataset, Record, read_split, write_split
from refit.cpu.specs import AugmentParams, AugmentSpec, TransformParams
from refit.cpu.status import StatusWriter
from refit.cpu.transforms import GEOMETRIC, Chain, allowed
from tests.cpu.conftest import CLASSES, COLORS, encode, painted, scene, status_lines

# What a transform needs where its defaults do not do, sized for pictures of 160 x 96.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "Affine": {"rotate": [-45, 45], "scale": [0.7, 1.3], "shear": [-10, 10], "translate_percent": [-0.2, 0.2]},
    "AtLeastOneBBoxRandomCrop": {"height": 70, "width": 100},
    "CenterCrop": {"height": 80, "width": 120},
    "Crop": {"x_min": 10, "y_min": 10, "x_max": 150, "y_max": 90},
    "CropAndPad": {"px": [-10, 10]},
    "ElasticTransform": {"alpha": 200, "sigma": 20},
    "GridElasticDeform": {"num_grid_xy": [4, 4], "magnitude": 5},
    "LongestMaxSize": {"max_size": 200},
    "PadIfNeeded": {"min_height": 150, "min_width": 200},
    "RandomCrop": {"height": 70, "width": 120},
    "RandomResizedCrop": {"size": [100, 140], "scale": [0.5, 1.0]},
    "RandomSizedBBoxSafeCrop": {"height": 100, "width": 150},
    "RandomSizedCrop": {"min_max_height": [60, 90], "size": [100, 140]},
    "Resize": {"height": 128, "width": 128},
    "SmallestMaxSize": {"max_size": 120},
    "TextImage": {"font_path": "a.ttf"},
}
# Those that look pixels up on a distorted grid find the edge of a box to within a few pixels (edges fray there); all
# others exactly, but for the half pixel that interpolation blurs.
BY_GRID = {"ElasticTransform": 4.0, "GridDistortion": 2.0, "GridElasticDeform": 3.0, "OpticalDistortion": 2.0}
TURNING = {"Affine", "Perspective", "Rotate", "SafeRotate"}


def transform(name: str, p: float = 1.0) -> TransformParams:
    return TransformParams(name=name, p=p, args=ARGUMENTS.get(name, {}))


def where(image: NDArray[np.uint8], color: tuple[int, int, int]) -> NDArray[np.float64] | None:
    """The box around what was painted in a colour, x2 and y2 exclusive; None where none of it is left."""
    channel = int(np.argmax(color))
    mask = (image[..., channel] > 127) & (image.argmax(axis=2) == channel)
    ys, xs = np.nonzero(mask)
    return np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], np.float64) if len(xs) else None


@pytest.mark.parametrize("name", sorted(GEOMETRIC))
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=12, deadline=None)
def test_boxes_follow_the_pixels(name: str, seed: int) -> None:
    s = scene(seed)
    result = Chain([transform(name)], min_visibility=0.2)(s.image, s.boxes, str(seed))
    assert result.image.dtype == np.uint8
    height, width = result.image.shape[:2]
    assert (result.boxes >= 0).all()
    assert (result.boxes <= [width, height, width, height]).all()
    for box, index in zip(result.boxes, result.kept, strict=True):
        found = where(result.image, COLORS[s.classes[index]])
        assert found is not None
        if name in TURNING:
            # A corner of a turned rectangle is thin. Where the image's edge cuts such a corner off, the box around the
            # whole rectangle, cut as well, is wider than what is left of it: nobody knows which part the object fills.
            tolerance, cut = 2.0, (box < 1).any() or (box > np.array([width, height, width, height]) - 1).any()
            box_holds_it = (box[:2] <= found[:2] + tolerance).all() and (box[2:] >= found[2:] - tolerance).all()
            assert box_holds_it
            if cut:
                continue
        else:
            tolerance = BY_GRID.get(name, 0.51)
        np.testing.assert_allclose(box, found, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["D4", "HorizontalFlip", "RandomRotate90", "Transpose", "VerticalFlip"])
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_turning_and_mirroring_lose_nothing(name: str, seed: int) -> None:
    s = scene(seed)
    result = Chain([transform(name), transform("RandomRotate90")], min_visibility=1.0)(s.image, s.boxes, str(seed))
    assert result.kept.tolist() == [0, 1, 2]
    assert sorted(result.image.shape) == sorted(s.image.shape)
    for box, index in zip(result.boxes, s.classes, strict=True):
        np.testing.assert_allclose(box, where(result.image, COLORS[index]), rtol=0, atol=1e-3)


def test_a_quarter_turn_swaps_width_and_height() -> None:
    image = painted([(10, 20, 50, 40)], [0])
    boxes = np.array([[10, 20, 50, 40]], np.float32)
    shapes = set()
    for seed in range(20):
        result = Chain([transform("RandomRotate90")], 0.3)(image, boxes, str(seed))
        shapes.add(result.image.shape[:2])
        if result.image.shape[:2] == (160, 96):
            x1, y1, x2, y2 = result.boxes[0]
            assert (round(x2 - x1), round(y2 - y1)) == (20, 40)
    assert shapes == {(96, 160), (160, 96)}


NEEDS_OTHER_IMAGES = {"FDA", "HistogramMatching", "PixelDistributionAdaptation", "TemplateTransform", "TextImage"}


@pytest.mark.parametrize("name", sorted(set(allowed()) - GEOMETRIC - NEEDS_OTHER_IMAGES))
def test_pixel_transforms_leave_boxes_and_size_alone(name: str) -> None:
    s = scene(1)
    result = Chain([transform(name)], 0.3)(s.image, s.boxes, "1")
    assert result.image.dtype == np.uint8
    assert result.image.shape == s.image.shape
    np.testing.assert_allclose(result.boxes, s.boxes, atol=1e-4)


@pytest.mark.parametrize("name", sorted(NEEDS_OTHER_IMAGES & set(allowed())))
def test_what_a_spec_cannot_give_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"it needs|font_path"):
        Chain([transform(name)], 0.3)


def test_what_is_left_of_a_box_decides_over_the_whole_chain() -> None:
    image = painted([(0, 0, 100, 96)], [0])
    box = np.array([[0, 0, 100, 96]], np.float32)
    half = TransformParams(name="Crop", p=1, args={"x_min": 50, "y_min": 0, "x_max": 150, "y_max": 96})
    quarter = TransformParams(name="Crop", p=1, args={"x_min": 25, "y_min": 0, "x_max": 100, "y_max": 96})
    for chain, share in (([half], 0.5), ([half, quarter], 0.25)):
        assert len(Chain(chain, share - 0.01)(image, box, "1").kept) == 1
        assert len(Chain(chain, share + 0.01)(image, box, "1").kept) == 0


def test_transforms_of_equal_probability_act_independently() -> None:
    chain = Chain([transform("HorizontalFlip", 0.5), transform("VerticalFlip", 0.5)], 0.3)
    image = painted([(0, 0, 40, 30)], [0])
    box = np.array([[0, 0, 40, 30]], np.float32)
    corners = [tuple(chain(image, box, str(i)).boxes[0, :2].round().astype(int)) for i in range(200)]
    counts = [corners.count(c) for c in ((0, 0), (120, 0), (0, 66), (120, 66))]
    assert sum(counts) == 200
    assert min(counts) > 25


def spec(records: Path, **more: Any) -> AugmentSpec:
    return AugmentSpec(records=str(records), **more)


def test_a_train_split_doubles(make_records: Callable[..., Path], tmp_path: Path, status: StatusWriter) -> None:
    records, out = make_records({"train": 6, "val": 2}, shards=2), tmp_path / "out"
    augment.run(spec(records, copies=2), out, status)
    dataset = Dataset.load(out)
    assert list(dataset.splits) == ["train"]
    assert dataset.fingerprint != Dataset.load(records).fingerprint
    before, after = list(read_split(records, "train")), list(dataset.split("train"))
    assert len(after) == 18
    frames = {f["path"]: f for f in json.loads((out / "frames.json").read_text())["frames"]}
    assert len(frames) == 12
    for i, original in enumerate(before):
        same, *copies = after[3 * i : 3 * i + 3]
        assert (same.file, same.encoded) == (original.file, original.encoded)
        np.testing.assert_array_equal(same.boxes, original.boxes)
        assert [c.file for c in copies] == [f"{original.file}.aug{k}.png" for k in (1, 2)]
        for copy in copies:
            assert copy.image().shape == (copy.height, copy.width, 3)
            # No transform of the default set cuts a box: turned, blurred, noisy, recoloured, all of them are there.
            np.testing.assert_array_equal(copy.classes, original.classes)
            np.testing.assert_array_equal(copy.difficult, original.difficult)
            frame = frames[copy.file]
            assert (frame["width"], frame["height"]) == (copy.width, copy.height)
            assert [b["class"] for b in frame["boxes"]] == [CLASSES[c] for c in copy.classes]
            sides = [[b[k] for k in ("x0", "y0", "x1", "y1")] for b in frame["boxes"]]
            np.testing.assert_allclose(sides, copy.boxes, atol=2e-3)
    assert cv2.imread(str(out / "preview.jpg")).shape == (6 * 240, 3 * 320, 3)
    last = status_lines(status.path)[-1]
    assert last["kpi"] == {"images": 18, "objects": 54, "dropped_objects": 0}
    assert last["categorical"] == {"objects": {"car": 18, "person": 18, "sign": 18}}


def test_every_object_is_either_there_or_counted(
    make_records: Callable[..., Path], tmp_path: Path, status: StatusWriter
) -> None:
    records = make_records({"train": 8})
    crop = TransformParams(name="RandomCrop", p=1, args={"height": 40, "width": 60})
    augment.run(spec(records, copies=3, transforms=[crop]), tmp_path / "out", status)
    kpi = status_lines(status.path)[-1]["kpi"]
    assert kpi["dropped_objects"] > 0
    assert kpi["objects"] + kpi["dropped_objects"] == 8 * 3 * (1 + 3)
    split = read_split(tmp_path / "out", "train")
    assert sum(len(r.classes) for r in split) == kpi["objects"]
    assert len(split) == kpi["images"] == 32


def test_the_result_depends_on_the_seed_and_not_on_the_threads(
    make_records: Callable[..., Path], tmp_path: Path, status: StatusWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = make_records({"train": 6}, suffix=".jpg")
    everything = [TransformParams(name=t.name, p=0.7) for t in AugmentParams().transforms]
    everything += [
        transform(n, 0.5) for n in ("Affine", "ElasticTransform", "ISONoise", "RandomRain", "RandomSizedCrop")
    ]
    results = []
    for threads, seed in (("1", 1), ("3", 1), ("3", 2)):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        out = tmp_path / f"{threads}-{seed}"
        augment.run(spec(records, copies=2, seed=seed, transforms=everything), out, status)
        results.append({p.name: p.read_bytes() for p in out.iterdir()})
    assert results[0] == results[1]
    assert results[1] != results[2]


def test_a_copy_does_not_depend_on_the_other_images(
    make_records: Callable[..., Path], tmp_path: Path, status: StatusWriter
) -> None:
    records = make_records({"train": 5})
    augment.run(spec(records), tmp_path / "five", status)
    five = {r.file: r.encoded for r in read_split(tmp_path / "five", "train")}
    augment.run(spec(make_records({"train": 2})), tmp_path / "two", status)
    for r in read_split(tmp_path / "two", "train"):
        assert five[r.file] == r.encoded


def test_a_transform_that_does_not_fit_an_image_is_named(
    make_records: Callable[..., Path], tmp_path: Path, status: StatusWriter
) -> None:
    large = TransformParams(name="RandomCrop", p=1, args={"height": 500, "width": 500})
    with pytest.raises(BadSpec, match=r"RandomCrop fails on an image of 160x96 pixels: .*\(0000\.png\)"):
        augment.run(spec(make_records({"train": 2}), transforms=[large]), tmp_path / "out", status)
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_no_train_split_or_a_broken_image(
    make_records: Callable[..., Path], tmp_path: Path, status: StatusWriter
) -> None:
    with pytest.raises(BadData, match="no split 'train'"):
        augment.run(spec(make_records({"val": 2})), tmp_path / "out", status)
    with pytest.raises(BadData, match="the train split is empty"):
        augment.run(spec(make_records({"train": 0})), tmp_path / "out", status)
    broken = Record("b.png", 9, 9, encode(scene(1).image)[:40], np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    info = write_split(tmp_path / "broken", "train", [broken], CLASSES)
    Dataset(tmp_path / "broken", CLASSES, {"train": info}, "f").save()
    with pytest.raises(BadData, match=r"b\.png: not an image"):
        augment.run(spec(tmp_path / "broken"), tmp_path / "out", status)


def test_nothing_is_asked_of_the_network() -> None:
    # albumentations looks for a newer version of itself when it is imported.
    code = """
import socket, sys
sys.modules["torch"] = None  # is imported where it is installed, which takes seconds and is not the question
def refuse(*args, **kwargs): raise SystemExit("a connection was tried")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from refit.cpu.transforms import allowed
assert "RandomRotate90" in allowed()
"""
    env = {k: v for k, v in os.environ.items() if k != "NO_ALBUMENTATIONS_UPDATE"}
    assert subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode == 0
