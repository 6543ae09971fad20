"""augment: boxes follow the pixels through every transform, nothing is lost uncounted, the same seed gives the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from refit.command import BadData, BadSpec
from refit.cpu import augment, convert
from refit.cpu.augment import AWAY
from refit.cpu.records import Dataset
from refit.cpu.specs import PRESETS, AugmentParams, AugmentSpec, ConvertSpec, Preset, TransformParams
from refit.cpu.status import StatusWriter
from refit.cpu.transforms import GEOMETRIC, MIN_SIDE, Chain, allowed, build
from refit.data.snapshot import open_snapshot, read_annotations
from tests.cpu.conftest import CLASSES, COLORS, SnapshotBuilder, painted, scene, status_lines

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


ANY_SIZE = ("Affine", "CropAndPad", "D4", "Pad", "Perspective", "RandomResizedCrop", "RandomScale", "SafeRotate")


@given(
    names=st.lists(st.sampled_from(ANY_SIZE), min_size=1, max_size=4),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_each_box_is_kept_once_inside_or_has_too_little_left(names: list[str], share: float, seed: int) -> None:
    s = scene(seed)
    result = Chain([transform(name, 0.7) for name in names], share)(s.image, s.boxes, str(seed))
    height, width = result.image.shape[:2]
    kept = result.kept.tolist()
    assert kept == sorted(set(kept))
    assert set(kept) <= {0, 1, 2}
    assert (result.boxes[:, :2] >= 0).all()
    assert (result.boxes[:, 2:] <= [width + 1e-6, height + 1e-6]).all()
    assert (result.boxes[:, 2:] - result.boxes[:, :2] >= MIN_SIDE).all()
    assert (result.visible[result.kept] >= share - 1e-9).all()
    for i in {0, 1, 2} - set(kept):
        assert result.visible[i] < max(share, 0.05)  # or less than half a pixel is left
    assert set(result.applied) <= set(names)


def test_nothing_is_left_of_an_object_that_a_transform_itself_drops() -> None:
    image = painted([(0, 0, 20, 20), (80, 40, 120, 90)], [0, 1])
    boxes = np.array([[0, 0, 20, 20], [80, 40, 120, 90]], np.float32)
    away = TransformParams(name="Affine", p=1, args={"translate_px": [-30, -30]})
    result = Chain([away], 0.0)(image, boxes, "1")
    assert result.kept.tolist() == [1]
    assert result.visible.tolist() == [0.0, 1.0]


def test_transforms_of_equal_probability_act_independently() -> None:
    chain = Chain([transform("HorizontalFlip", 0.5), transform("VerticalFlip", 0.5)], 0.3)
    image = painted([(0, 0, 40, 30)], [0])
    box = np.array([[0, 0, 40, 30]], np.float32)
    corners = [tuple(chain(image, box, str(i)).boxes[0, :2].round().astype(int)) for i in range(200)]
    counts = [corners.count(c) for c in ((0, 0), (120, 0), (0, 66), (120, 66))]
    assert sum(counts) == 200
    assert min(counts) > 25


# ---- presets


@pytest.mark.parametrize("preset", sorted(PRESETS))
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_boxes_follow_the_pixels_through_a_preset(preset: Preset, seed: int) -> None:
    s = scene(seed)
    result = Chain(AugmentParams(presets=[preset]).chain, 0.3)(s.image, s.boxes, str(seed))
    for box, index in zip(result.boxes, result.kept, strict=True):
        found = where(result.image, COLORS[s.classes[index]])
        assert found is not None
        # Blur moves edges near the border, and the thin corners of a turned rectangle.
        np.testing.assert_allclose(box, found, rtol=0, atol={"tlt": 2.5, "drip": 3, "zoom_out": 0.75}[preset])
    assert result.kept.tolist() == [0, 1, 2]


def test_zoom_out_keeps_the_whole_picture_and_makes_it_smaller() -> None:
    image = np.full((96, 160, 3), 255, np.uint8)
    whole = np.array([[0, 0, 160, 96]], np.float32)
    for seed in range(40):
        result = Chain(PRESETS["zoom_out"], 1.0)(image, whole, str(seed))
        x1, y1, x2, y2 = result.boxes[0]
        assert 0.5 <= (x2 - x1) / 160 <= 0.8
        assert (x2 - x1) / 160 == pytest.approx((y2 - y1) / 96, abs=0.01)
        assert result.image.shape == image.shape
        white = (result.image[..., 0] > 127).sum()
        assert white == pytest.approx((x2 - x1) * (y2 - y1), rel=0.03)


def test_presets_come_before_transforms_and_drip_is_what_nothing_means() -> None:
    flip = transform("HorizontalFlip")
    names = [t.name for t in AugmentParams(presets=["zoom_out", "tlt"], transforms=[flip]).chain]
    assert names == ["Affine", "Rotate", "HorizontalFlip", "HueSaturationValue", "GaussianBlur", "HorizontalFlip"]
    assert AugmentParams(transforms=[flip]).chain == [flip]
    drip = ["RandomRotate90", "GaussianBlur", "GaussNoise", "HueSaturationValue", "RGBShift"]
    assert [t.name for t in AugmentParams().chain] == drip
    assert AugmentParams().min_visibility == 0.3


# ---- one's own transforms

OWN = """
import albumentations as A
__version__ = "1.2"
class Invert(A.ImageOnlyTransform):
    def apply(self, img, **params):
        return 255 - img
class Mirror(A.DualTransform):
    def __init__(self, margin: int = 0, p: float = 0.5):
        super().__init__(p=p)
        if margin < 0:
            raise RuntimeError("margin below 0")
    def apply(self, img, **params):
        return img[:, ::-1]
    def apply_to_bboxes(self, bboxes, **params):
        out = bboxes.copy()
        out[:, [0, 2]] = 1 - bboxes[:, [2, 0]]
        return out
class Shrink(A.ImageOnlyTransform):
    def apply(self, img, **params):
        return img[::2]
class Grey(A.ImageOnlyTransform):
    def apply(self, img, **params):
        return img[..., 0]
class Thing: pass
"""


def test_a_caption_of_the_preview_has_room_in_its_cell() -> None:
    done = {"file": "a_1.jpg", "augmented": {"transforms": ["acme.vision.augmentation.v2:Invert", "Blur"]}}
    assert augment._caption(done) == "Invert, Blur"
    assert augment._caption(done | {"augmented": {"transforms": []}}) == "nothing drawn"
    assert augment._caption({"file": "a.jpg"}) == "a.jpg"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package acme with transforms, allowed here."""
    (tmp_path / "site/acme").mkdir(parents=True)
    (tmp_path / "site/acme/__init__.py").write_text(OWN)
    (tmp_path / "site/acme/broken.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    for name in ("acme", "acme.broken"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setenv("REFIT_TRANSFORM_PACKAGES", "other, acme")


def mine(name: str, version: str = "1.2", **args: Any) -> TransformParams:
    return TransformParams(name=name, p=1, version=version, args=args)


def test_a_transform_of_ones_own(own: None) -> None:
    s = scene(3)
    result = Chain([mine("acme:Mirror", margin=2), mine("acme:Invert")], 0.3)(s.image, s.boxes, "1")
    assert result.applied == ("acme:Mirror", "acme:Invert")
    assert (result.image == 255 - s.image[:, ::-1]).all()
    np.testing.assert_allclose(result.boxes[:, 0], 160 - s.boxes[:, 2], atol=1e-4)


@pytest.mark.parametrize(
    ("name", "version", "message"),
    [
        ("acmee:Mirror", "1.2", r"the package acmee is not allowed here \(allowed are: other, acme\).*cluster profile"),
        ("os:Mirror", "1.2", "the package os is not allowed"),
        ("acme:Mirror", "1.3", "version 1.3 is wanted, and acme 1.2 is installed"),
        ("acme:Mirrer", "1.2", "acme:Mirrer is no ImageOnlyTransform or DualTransform"),
        ("acme:Thing", "1.2", "acme:Thing is no ImageOnlyTransform or DualTransform"),
        ("acme.broken:Mirror", "1.2", "acme.broken:Mirror cannot be imported: ZeroDivisionError"),
        ("acme.gone:Mirror", "1.2", "cannot be imported: ModuleNotFoundError: No module named 'acme.gone'"),
        ("other:Mirror", "1.2", "cannot be imported: ModuleNotFoundError: No module named 'other'"),
    ],
)
def test_what_is_not_allowed_or_not_there_is_refused(own: None, name: str, version: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(mine(name, version))


def test_a_package_that_is_not_allowed_is_not_even_imported(own: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REFIT_TRANSFORM_PACKAGES")
    with pytest.raises(ValueError, match=r"acme is not allowed here \(none is allowed\)"):
        build(mine("acme:Mirror"))
    assert "acme" not in sys.modules


def test_what_ones_own_does_wrong_is_told(own: None) -> None:
    with pytest.raises(ValueError, match="acme:Mirror has no argument 'margn'; did you mean 'margin'"):
        build(mine("acme:Mirror", margn=1))
    with pytest.raises(ValueError, match="acme:Mirror: RuntimeError: margin below 0"):
        build(mine("acme:Mirror", margin=-1))
    s = scene(1)
    with pytest.raises(BadSpec, match="acme:Shrink changes the size and leaves the boxes"):
        Chain([mine("acme:Shrink")], 0.3)(s.image, s.boxes, "1")
    with pytest.raises(BadSpec, match=r"acme:Grey gives uint8 of \(96, 160\), not 8 bits of 3 channels"):
        Chain([mine("acme:Grey")], 0.3)(s.image, s.boxes, "1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"name": "acme:Mirror"}, "needs `version`, that of acme"),
        ({"name": "Blur", "version": "2"}, "version is of one's own transforms"),
        ({"name": "acme.mod"}, "String should match pattern"),
    ],
)
def test_names_and_versions_belong_together(text: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TransformParams.model_validate(text)


# ---- the stage


def spec(folder: Path, **more: Any) -> AugmentSpec:
    return AugmentSpec(snapshot=str(folder), **more)


def scenes(builder: SnapshotBuilder, splits: dict[str, int], suffix: str = ".png") -> Path:
    for number, (split, count) in enumerate(splits.items()):
        for i in range(count):
            builder.add_scene(1000 * number + i, split, suffix)
    return builder.save()


def rows(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["file"]: row for row in read_annotations(folder)}


def sides(row: dict[str, Any]) -> NDArray[np.float64]:
    return np.array([[o[side] for side in ("x1", "y1", "x2", "y2")] for o in row["objects"]])


def test_a_train_split_triples_and_nothing_else_changes(
    snapshot: SnapshotBuilder, tmp_path: Path, status: StatusWriter
) -> None:
    """Drip kept the last box of an augmented image only, and swapped no sides on a quarter turn."""
    folder, out = scenes(snapshot, {"train": 6, "val": 2}), tmp_path / "out"
    augment.run(spec(folder, copies=2), out, status)
    before, after = rows(folder), rows(out)
    for name, row in before.items():
        assert after[name] == row
        assert (out / "images" / name).samefile(folder / "images" / name)
    made = {name: row for name, row in after.items() if name not in before}
    assert sorted(made) == [f"{i:04d}-aug{k}.png" for i in range(6) for k in (1, 2)]
    turned = 0
    for name, row in made.items():
        original = before[row["augmented"]["from"]]
        image = cv2.imread(str(out / "images" / name))
        assert image.shape == (row["height"], row["width"], 3)
        assert row["sha256"] == sha256((out / "images" / name).read_bytes()).hexdigest()
        turned += (row["width"], row["height"]) == (96, 160)
        # No transform of Drip's set cuts a box: turned, blurred, noisy, recoloured, all of them are there.
        assert [o["class"] for o in row["objects"]] == [o["class"] for o in original["objects"]]
        for o, box in zip(row["objects"], sides(row), strict=True):
            found = where(image[..., ::-1], COLORS[CLASSES.index(o["class"])])
            assert found is not None
            np.testing.assert_allclose(box, found, rtol=0, atol=1.01)
        assert row["split"] == "train"
        assert set(row["augmented"]["transforms"]) <= {t.name for t in AugmentParams().chain}
    assert 0 < turned < 12
    assert {name for row in made.values() for name in row["augmented"]["transforms"]} >= {"RandomRotate90", "RGBShift"}
    about = json.loads((out / "dataset.json").read_text())
    assert about["splits"] == {"train": 18, "val": 2}
    assert about["objects"] == {"car": 20, "person": 20, "sign": 20}
    assert about["issues"] == {"zero_area": 2}
    assert about["provenance"]["snapshot"] == "a" * 64 != about["fingerprint"]
    assert cv2.imread(str(out / "preview.jpg")).shape == (6 * 240, 3 * 320, 3)
    last = status_lines(status.path)[-1]
    assert last["kpi"] == {"images": 18, "objects": 54, "dropped_objects": 0}


def test_it_is_a_snapshot_to_all_that_read_one(snapshot: SnapshotBuilder, tmp_path: Path, status: StatusWriter) -> None:
    augment.run(spec(scenes(snapshot, {"train": 3, "val": 2})), tmp_path / "out", status)
    convert.run(ConvertSpec(snapshot=str(tmp_path / "out")), tmp_path / "records", status)
    records = list(Dataset.load(tmp_path / "records").split("train"))
    assert {r.file: r.made_from for r in records} == {
        **{f"{i:04d}.png": "" for i in range(3)},
        **{f"{i:04d}-aug1.png": f"{i:04d}.png" for i in range(3)},
    }
    for record in records:
        np.testing.assert_allclose(record.boxes, sides(rows(tmp_path / "out")[record.file]), atol=1e-3)
    assert open_snapshot(tmp_path / "out").splits == {"train": 6, "val": 2}


@pytest.mark.parametrize(("share", "left"), [(0.0, False), (0.3, True), (1.0, True)])
def test_every_object_is_either_there_or_reported(
    snapshot: SnapshotBuilder, tmp_path: Path, status: StatusWriter, share: float, left: bool
) -> None:
    folder, out = scenes(snapshot, {"train": 8}), tmp_path / "out"
    (folder / "issues.jsonl").write_text('{"code": "zero_area"}\n')
    crop = TransformParams(name="RandomCrop", p=1, args={"height": 60, "width": 90})
    augment.run(spec(folder, copies=3, transforms=[crop], min_visibility=share), out, status)
    issues = [json.loads(line) for line in (out / "issues.jsonl").read_text().splitlines()]
    away = [i for i in issues if i["code"] == "augmented_away"]
    assert len(away) + 1 == len(issues)
    after = rows(out)
    kpi = status_lines(status.path)[-1]["kpi"]
    assert sum(len(r["objects"]) for r in after.values()) == kpi["objects"]
    assert len(away) == kpi["dropped_objects"] == json.loads((out / "dataset.json").read_text())["issues"][AWAY]
    assert kpi["objects"] + len(away) == 8 * 3 * (1 + 3)
    for issue in away:
        assert issue["objects"] == 1
        row = after[issue["file"]]
        gone = 3 - len(row["objects"])
        assert gone == sum(i["file"] == issue["file"] for i in away) > 0
    cut = [o["truncated"] for r in after.values() for o in r["objects"] if "truncated" in o]
    assert bool(cut) == (share < 1)
    assert all(0 < t <= 1 - share + 0.01 for t in cut)


def test_the_result_depends_on_the_seed_and_not_on_the_threads(
    snapshot: SnapshotBuilder, tmp_path: Path, status: StatusWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = scenes(snapshot, {"train": 6}, suffix=".jpg")
    everything = [TransformParams(name=t.name, p=0.7) for t in AugmentParams().chain]
    everything += [
        transform(n, 0.5) for n in ("Affine", "ElasticTransform", "ISONoise", "RandomRain", "RandomSizedCrop")
    ]
    results = []
    for threads, seed in (("1", 1), ("3", 1), ("3", 2)):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        out = tmp_path / f"{threads}-{seed}"
        augment.run(spec(folder, copies=2, seed=seed, transforms=everything), out, status)
        results.append({p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()})
    assert results[0] == results[1]
    assert results[1] != results[2]


def test_a_copy_does_not_depend_on_the_other_images(tmp_path: Path, status: StatusWriter) -> None:
    made = []
    for count in (5, 2):
        folder = scenes(SnapshotBuilder(tmp_path / str(count)), {"train": count})
        augment.run(spec(folder), tmp_path / f"out-{count}", status)
        made.append({p.name: p.read_bytes() for p in (tmp_path / f"out-{count}/images").iterdir()})
    five, two = made
    assert two.items() <= five.items()


def test_a_copy_is_of_its_images_groups_and_the_evaluation_set_stays(
    snapshot: SnapshotBuilder, tmp_path: Path, status: StatusWriter
) -> None:
    snapshot.add_scene(1, "train")
    snapshot.rows[0] |= {"name": "cam1/0001.jpg", "tags": ["night"], "groups": ["cam1"]}
    folder = snapshot.save()
    about = json.loads((folder / "dataset.json").read_text()) | {"evaluation": {"version": "v1", "images": 0}}
    (folder / "dataset.json").write_text(json.dumps(about))
    augment.run(spec(folder), tmp_path / "out", status)
    copy = rows(tmp_path / "out")["0001-aug1.jpg"]
    assert (copy["tags"], copy["groups"], copy["source"]) == (["night"], ["cam1"], "somewhere/0001.jpg")
    assert "name" not in copy
    assert json.loads((tmp_path / "out/dataset.json").read_text())["evaluation"] == about["evaluation"]


def test_an_attempt_that_was_ended_leaves_nothing(
    snapshot: SnapshotBuilder, tmp_path: Path, status: StatusWriter
) -> None:
    folder, out = scenes(snapshot, {"train": 2}), tmp_path / "out"
    (out / "images").mkdir(parents=True)
    (out / "images/left.png").write_bytes(b"half")
    augment.run(spec(folder), out, status)
    assert {p.name for p in (out / "images").iterdir()} == set(rows(out))


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["a.jpg", "b.png"], {"a.jpg": ["a-aug1"], "b.png": ["b-aug1"]}),
        (["a.jpg", "a.png"], {"a.jpg": ["a-jpg-aug1"], "a.png": ["a-png-aug1"]}),
        (["v1.2.jpg"], {"v1.2.jpg": ["v1-2-aug1"]}),
    ],
)
def test_names_of_copies(files: list[str], names: dict[str, list[str]]) -> None:
    assert augment.copy_names([{"file": f, "split": "train"} for f in files], 1) == names


@pytest.mark.parametrize("files", [["a.jpg", "a-aug1.png"], ["a.b.jpg", "a-b.jpg"]])
def test_a_name_that_is_taken_is_refused(files: list[str]) -> None:
    with pytest.raises(BadData, match=r"its copy would be called a(-b)?-aug1, as another image is"):
        augment.copy_names([{"file": f, "split": "train"} for f in files], 1)


def test_kinds_and_channels_stay(snapshot: SnapshotBuilder, tmp_path: Path, status: StatusWriter) -> None:
    for seed, suffix in enumerate((".jpg", ".png", ".bmp", ".webp")):
        snapshot.add_scene(seed, "train", suffix)
    grey = cv2.imencode(".png", cv2.cvtColor(scene(9).image, cv2.COLOR_RGB2GRAY))[1].tobytes()
    snapshot.add_scene(9, "train", ".png", grey)
    augment.run(spec(snapshot.save()), tmp_path / "out", status)
    made = {p.name: p for p in (tmp_path / "out/images").iterdir() if "-aug" in p.name}
    assert sorted(made) == ["0000-aug1.jpg", *(f"{i:04d}-aug1.png" for i in (1, 2, 3, 9))]
    shapes = {name: cv2.imread(str(p), cv2.IMREAD_UNCHANGED).ndim for name, p in made.items()}
    assert shapes == {name: 2 if name.startswith("0009") else 3 for name in made}


def test_a_transform_that_does_not_fit_an_image_is_named(
    snapshot: SnapshotBuilder, tmp_path: Path, status: StatusWriter
) -> None:
    large = TransformParams(name="RandomCrop", p=1, args={"height": 500, "width": 500})
    with pytest.raises(BadSpec, match=r"RandomCrop fails on an image of 160x96 pixels: .*\(0000\.png\)"):
        augment.run(spec(scenes(snapshot, {"train": 2}), transforms=[large]), tmp_path / "out", status)
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_no_train_split_or_a_changed_image(snapshot: SnapshotBuilder, tmp_path: Path, status: StatusWriter) -> None:
    snapshot.add_scene(1, "val")
    with pytest.raises(BadData, match="zero objects in the 0 images of the train split"):
        augment.run(spec(snapshot.save()), tmp_path / "out", status)
    snapshot.add_scene(2, "train")
    (snapshot.save() / "images/0002.jpg").write_bytes(b"other")
    with pytest.raises(BadData, match=r"images/0002\.jpg: the file was changed after the snapshot was taken"):
        augment.run(spec(snapshot.folder), tmp_path / "out", status)


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
