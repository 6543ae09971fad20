"""A snapshot as TAO's input: what is written is read back the same, and what cannot be held is said."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests.data.helpers import CLASSES, SETTINGS, encoded, kitti_line, kitti_set, picture, voc_object, voc_set, voc_text

import cv2  # isort: skip
import numpy as np  # isort: skip
import yaml

from refit.command import BadData, BadSpec
from refit.config import Settings
from refit.data.checks import Classes
from refit.data.cli import main
from refit.data.examine import examine
from refit.data.formats import kitti
from refit.data.ingest import ingest
from refit.data.prepare import calibration, orientation, stage
from refit.data.prepare.calibration import choose
from refit.data.prepare.images import placed
from refit.data.prepare.spec import CalibrateSpec, PrepareSpec, Resize
from refit.data.settings import DatasetSettings
from refit.data.snapshot import Snapshot, read_annotations
from refit.postprocess.frame import laid, preprocess
from refit.postprocess.info import InputInfo
from refit.status import StatusWriter

BCCD = Path(__file__).resolve().parents[3] / "shared" / "data" / "bccd"


@pytest.fixture
def snapshot(tmp_path: Path) -> Snapshot:
    """12 images of 64x48, one object each."""
    return ingest(kitti_set(tmp_path / "set"), SETTINGS, tmp_path / "ws")


def prepare(snapshot: Snapshot, out: Path, **spec: Any) -> dict[str, Any]:
    stage.run(PrepareSpec(snapshot=snapshot.path, **spec), out, StatusWriter(out))
    report: dict[str, Any] = json.loads((out / "prepare.json").read_text())
    return report


def calibrate(prepared: Path, out: Path, **spec: Any) -> dict[str, Any]:
    out.mkdir()
    calibration.run(CalibrateSpec(prepared=prepared, **spec), out, StatusWriter(out))
    row: dict[str, Any] = json.loads((out / "calibration.json").read_text())
    return row


def objects(rows: list[dict[str, Any]]) -> set[tuple[Any, ...]]:
    """What must survive: image by its stem, class, box to 2 decimals."""
    return {
        (Path(r["file"]).stem, o["class"], *(round(o[side], 2) for side in ("x1", "y1", "x2", "y2")))
        for r in rows
        for o in r["objects"]
    }


def kitti_back(folder: Path) -> set[tuple[Any, ...]]:
    found = set()
    for path in sorted((folder / "labels").iterdir()):
        labels = kitti.parse(path.read_bytes(), path.name)
        assert not labels.faults
        found |= {(path.stem, o.label, o.x1, o.y1, o.x2, o.y2) for o in labels.objects}
    return found


def coco_back(path: Path) -> set[tuple[Any, ...]]:
    """By pycocotools where its environment is installed, else by hand."""
    script = (
        "import json,sys; from pycocotools.coco import COCO; c=COCO(sys.argv[1]); "
        "print('##'+json.dumps([[c.loadImgs(a['image_id'])[0]['file_name'], c.loadCats(a['category_id'])[0]['name'], "
        "*a['bbox']] for i in c.getImgIds() for a in c.loadAnns(c.getAnnIds(i))]))"
    )
    python = Settings.from_env().envs / "cpu" / "bin" / "python"
    if python.exists():
        told = subprocess.run([python, "-c", script, path], check=True, capture_output=True, text=True).stdout
        rows = json.loads(told.split("##")[1])
    else:
        data = json.loads(path.read_text())
        files = {i["id"]: i["file_name"] for i in data["images"]}
        names = {c["id"]: c["name"] for c in data["categories"]}
        rows = [[files[a["image_id"]], names[a["category_id"]], *a["bbox"]] for a in data["annotations"]]
    return {(Path(f).stem, c, round(x, 2), round(y, 2), round(x + w, 2), round(y + h, 2)) for f, c, x, y, w, h in rows}


# ---- written and read back


def test_kitti_comes_back_the_same(snapshot: Snapshot, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = prepare(snapshot, out, form="kitti")
    rows = list(read_annotations(snapshot.path))
    for split in ("train", "val"):
        own = [r for r in rows if r["split"] == split]
        assert kitti_back(out / split) == objects(own)
        assert {p.stem for p in (out / split / "images").iterdir()} == {Path(r["file"]).stem for r in own}
        found = examine(out / split, format="kitti", classes=Classes(list(CLASSES)))
        assert (found.failed(), len(found.samples)) == (False, len(own))
        assert report["splits"][split]["images"] == len(own)
    assert (report["extension"], report["num_classes"]) == (".jpg", 3)
    assert report["images"] == {
        "width": [64, 64],
        "height": [48, 48],
        "channels": {"3": 12},
        "bits": {"8": 12},
        "extensions": {".jpg": 12},
    }
    line = next((out / "train" / "labels").iterdir()).read_text().split()
    assert (len(line), line[8:]) == (15, ["0.00"] * 7)


def test_images_are_hard_links_of_the_snapshot(snapshot: Snapshot, tmp_path: Path) -> None:
    report = prepare(snapshot, tmp_path / "out", form="kitti")
    for path in (tmp_path / "out").rglob("*"):
        assert not path.is_symlink()
    one = next((tmp_path / "out/train/images").iterdir())
    assert one.samefile(snapshot.path / "images" / one.name)
    assert report["files"] == {"linked": 12, "orientation_removed": 0, "renamed": 0}


@pytest.mark.parametrize(("first", "deploy"), [(0, ["background", *CLASSES]), (1, [*CLASSES])])
def test_coco_comes_back_the_same(snapshot: Snapshot, tmp_path: Path, first: int, deploy: list[str]) -> None:
    out = tmp_path / "out"
    report = prepare(snapshot, out, form="coco", first_id=first)
    rows = list(read_annotations(snapshot.path))
    for split in ("train", "val"):
        assert coco_back(out / f"annotations/{split}.json") == objects([r for r in rows if r["split"] == split])
        data = json.loads((out / f"annotations/{split}.json").read_text())
        assert [c["id"] for c in data["categories"]] == list(range(first, first + 3))
        assert all((out / split / "images" / i["file_name"]).is_file() for i in data["images"])
        assert min(a["id"] for a in data["annotations"]) == 1
    assert report["num_classes"] == first + 3  # the largest id is a logit's index, or the background is id 0
    assert report["category_ids"] == {c: i + first for i, c in enumerate(CLASSES)}
    assert (out / "classmap.txt").read_text().splitlines() == list(CLASSES)
    assert (out / "classmap_deploy.txt").read_text().splitlines() == deploy
    assert yaml.safe_load((out / "label_map.yaml").read_text()) == {i + first: c for i, c in enumerate(CLASSES)}


@pytest.mark.skipif(not BCCD.is_dir(), reason=f"the BCCD data set is not at {BCCD}")
def test_real_photographs(tmp_path: Path) -> None:
    lists = {"train": "ImageSets/Main/trainval.txt", "val": "ImageSets/Main/test.txt"}
    taken = ingest(BCCD, DatasetSettings(classes=["RBC", "WBC", "Platelets"], split={"lists": lists}), tmp_path / "ws")
    rows = list(read_annotations(taken.path))
    known = {c.lower(): c for c in ("RBC", "WBC", "Platelets")}
    report = prepare(taken, tmp_path / "kitti", form="kitti")
    for split in ("train", "val"):
        own = [r for r in rows if r["split"] == split]
        assert {(f, known[c], *box) for f, c, *box in kitti_back(tmp_path / "kitti" / split)} == objects(own)
    assert report["splits"]["train"]["images"] == 292
    chosen = calibrate(tmp_path / "kitti", tmp_path / "calibration", images=48, batch_size=8)
    assert min(chosen["images_with"].values()) >= 40  # each image of 48 shows nearly all
    prepare(taken, tmp_path / "coco", form="coco")
    assert coco_back(tmp_path / "coco/annotations/train.json") == objects([r for r in rows if r["split"] == "train"])


# ---- what the forms cannot hold


def test_what_is_lost_is_counted(tmp_path: Path) -> None:
    root = voc_set(tmp_path / "set", 4)
    flags = "<difficult>1</difficult><truncated>1</truncated><occluded>1</occluded>"
    hard = voc_object("cat", (5.123, 6, 25, 30), flags)
    thin = voc_object("dog", (10.2, 6, 10.9, 30))
    for i in range(4):
        (root / f"Annotations/{i:03}.xml").write_text(voc_text(voc_object(), hard, thin))
    taken = ingest(root, SETTINGS, tmp_path / "ws")
    report = prepare(taken, tmp_path / "kitti", form="kitti")
    assert report["not_held"] == {"difficult": 4, "occluded": 4, "thin": 4}
    assert "include_difficult_in_training" in report["notes"]["occluded"]
    first = (tmp_path / "kitti/val/labels").iterdir().__next__().read_text().splitlines()
    assert [line.split()[:3] for line in first] == [["car", "0.00", "0"], ["cat", "1.00", "1"], ["dog", "0.00", "0"]]
    report = prepare(taken, tmp_path / "coco", form="coco")
    assert report["not_held"] == {"difficult": 4, "occluded": 4, "truncated": 4, "thin": 4}


def named(tmp_path: Path, *classes: str) -> Snapshot:
    """A VOC set whose classes have these names."""
    root = voc_set(tmp_path / "set", 4)
    for i in range(4):
        (root / f"Annotations/{i:03}.xml").write_text(voc_text(*(voc_object(c) for c in classes)))
    return ingest(root, DatasetSettings(classes=list(classes)), tmp_path / "ws")


def test_names_that_kitti_cannot_hold_are_mapped(tmp_path: Path) -> None:
    taken = named(tmp_path, "Traffic Light, red", "Bär")
    report = prepare(taken, tmp_path / "out", form="kitti", names={"Bär": "baer"})
    assert report["names"] == {"Traffic Light, red": "traffic_light_red", "Bär": "baer"}
    assert {c for _, c, *_ in kitti_back(tmp_path / "out/train")} == {"traffic_light_red", "baer"}
    report = prepare(taken, tmp_path / "coco", form="coco")
    assert (tmp_path / "coco/classmap.txt").read_text(encoding="utf-8").splitlines() == ["Traffic Light, red", "Bär"]


@pytest.mark.parametrize(
    ("classes", "names", "message"),
    [
        (("car", "Bär"), {}, r"class 'Bär': 'ä' cannot .* names: \{'Bär': 'b_r'\}"),
        (("Car", "car"), {}, r"'Car' and 'car' would both be 'car'"),
        (("traffic light", "traffic_light"), {}, r"would both be 'traffic_light'"),
        (("car", "DontCare"), {}, r"class 'DontCare': TAO leaves DontCare out"),
        (("car", "???"), {}, r"class '\?\?\?': nothing of it"),
        (("car", "dog"), {"cra": "x"}, r"no class 'cra'; did you mean 'car'"),
    ],
)
def test_names_that_cannot_be_are_refused(
    tmp_path: Path, classes: tuple[str, ...], names: dict[str, str], message: str
) -> None:
    taken = named(tmp_path, *classes)
    with pytest.raises(BadSpec, match=message):
        prepare(taken, tmp_path / "out", form="kitti", names=names)


# ---- images


def mixed(tmp_path: Path, suffixes: tuple[str, ...] = (".jpg", ".png")) -> Snapshot:
    root = kitti_set(tmp_path / "set", images=0)
    for i in range(8):
        (root / f"images/{i:03}{suffixes[i % len(suffixes)]}").write_bytes(encoded(i, suffixes[i % len(suffixes)]))
        (root / f"labels/{i:03}.txt").write_text(kitti_line(CLASSES[i % 3]) + "\n")
    return ingest(root, SETTINGS, tmp_path / "ws")


def test_mixed_kinds_are_refused_or_converted(tmp_path: Path) -> None:
    taken = mixed(tmp_path)
    with pytest.raises(BadData, match=r"4 jpeg \(first: 000.jpg\), 4 png .* one image_extension.* convert: png"):
        prepare(taken, tmp_path / "out", form="kitti")
    report = prepare(taken, tmp_path / "out", form="kitti", convert="png")
    assert (report["extension"], report["files"]["rewritten"], report["files"]["linked"]) == (".png", 4, 4)
    for path in (tmp_path / "out").rglob("images/*.png"):
        original = snapshot_image(taken, path.stem)
        assert (cv2.imread(str(path)) == cv2.imread(str(original))).all()
    assert prepare(taken, tmp_path / "coco", form="coco")["images"]["extensions"] == {".jpg": 4, ".png": 4}


def snapshot_image(taken: Snapshot, stem: str) -> Path:
    (found,) = (taken.path / "images").glob(f"{stem}.*")
    return found


def test_endings_are_made_the_same_without_converting(tmp_path: Path) -> None:
    """TAO compares endings with case; what is in the file counts, not its name."""
    taken = mixed(tmp_path, (".jpg", ".JPEG"))
    report = prepare(taken, tmp_path / "out", form="kitti")
    assert report["files"] == {"linked": 8, "orientation_removed": 0, "renamed": 4}
    assert report["extension"] == ".jpg"


def test_kinds_that_tao_cannot_read_are_refused(tmp_path: Path) -> None:
    taken = mixed(tmp_path, (".jpg", ".webp"))
    with pytest.raises(BadData, match=r"4 webp .*TAO reads jpeg and png"):
        prepare(taken, tmp_path / "out", form="coco")
    assert prepare(taken, tmp_path / "out", form="coco", convert="jpg")["extension"] == ".jpg"


def test_one_name_for_two_images_is_refused(tmp_path: Path) -> None:
    root = kitti_set(tmp_path / "set")
    for folder, suffix in (("images", ".jpg"), ("labels", ".txt")):
        (root / folder / "a").mkdir()
        (root / folder / f"000{suffix}").rename(root / folder / "a" / f"b{suffix}")
        (root / folder / f"001{suffix}").rename(root / folder / f"a__b{suffix}")
    (root / "images/a__b.jpg").rename(root / "images/a__b.png")
    (root / "images/a__b.png").write_bytes(encoded(1, ".png"))
    lists = {"train": "train.txt", "val": "val.txt"}
    names = sorted(str(p.relative_to(root / "images").with_suffix("")) for p in (root / "images").rglob("*.*"))
    (root / "train.txt").write_text("\n".join(names[:6]))
    (root / "val.txt").write_text("\n".join(names[6:]))
    taken = ingest(root, DatasetSettings(classes=list(CLASSES), split={"lists": lists}), tmp_path / "ws")
    rows = {r["file"]: r["split"] for r in read_annotations(taken.path)}
    assert rows["a__b.jpg"] == rows["a__b.png"]
    with pytest.raises(BadData, match=r"a__b\.(jpg|png) and a__b\.(png|jpg) would both be a__b"):
        prepare(taken, tmp_path / "out", form="kitti", convert="png")


@pytest.mark.parametrize("order", ["<", ">"])
def test_the_orientation_tag_goes_and_no_pixel_changes(tmp_path: Path, order: str) -> None:
    root = kitti_set(tmp_path / "set")
    turned = [with_exif(encoded(i), order, 6) for i in range(3)]
    for i, data in enumerate(turned):
        (root / f"images/{i:03}.jpg").write_bytes(data)
    (root / "images/003.jpg").write_bytes(with_exif(encoded(3), order, 1))
    (root / "images/004.jpg").write_bytes(with_exif(encoded(4), order, 1))
    taken = ingest(root, SETTINGS, tmp_path / "ws")
    report = prepare(taken, tmp_path / "out", form="coco")
    assert report["files"] == {"linked": 9, "rewritten": 3, "orientation_removed": 3, "renamed": 0}
    for i, data in enumerate(turned):
        (path,) = (tmp_path / "out").glob(f"*/images/{i:03}.jpg")
        assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape == (64, 48, 3)  # turned: the trap
        assert (cv2.imread(str(path)) == cv2.imdecode(np.frombuffer(encoded(i), np.uint8), 1)).all()


def with_exif(jpeg: bytes, order: str, value: int) -> bytes:
    """The file with an EXIF block, built by hand from CIPA DC-008."""
    import struct

    entry = struct.pack(order + "HHIHH", 0x0112, 3, 1, value, 0)
    tiff = (b"II" if order == "<" else b"MM") + struct.pack(order + "HIH", 42, 8, 1) + entry + bytes(4)
    block = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + jpeg[2:]


def test_orientation_of_png_and_of_what_is_none() -> None:
    png = encoded(1, ".png")
    tiff = with_exif(b"\xff\xd8", ">", 8)[12:]
    chunk = len(tiff).to_bytes(4, "big") + b"eXIf" + tiff + bytes(4)
    marked = png[:33] + chunk + png[33:]
    assert orientation.orientation(marked, "png") == 8
    assert orientation.without(marked, "png") == png
    assert orientation.orientation(png, "png") == 1
    assert orientation.orientation(with_exif(encoded(1), "<", 6)[:24], "jpeg") == 1  # cut off: nothing to understand


@pytest.mark.parametrize(
    ("resize", "size", "box"),
    [
        ({"width": 640, "height": 640}, (640, 640), (50, 60, 250, 300)),
        ({"width": 640, "height": 640, "place": "centre"}, (640, 640), (50, 140, 250, 380)),
        ({"width": 128, "height": 48, "place": "centre"}, (128, 48), (37, 6, 57, 30)),
        ({"width": 640, "height": 640, "pad": False}, (640, 480), (50, 60, 250, 300)),
        ({"width": 96, "height": 96, "pad": False, "multiple_of": 16}, (96, 80), (7.5, 9, 37.5, 45)),
        ({"width": 32, "height": 96, "keep_aspect": False}, (32, 96), (2.5, 12, 12.5, 60)),
    ],
)
def test_resize_moves_the_boxes_with_the_pixels(
    tmp_path: Path, resize: dict[str, Any], size: tuple[int, int], box: tuple[float, ...]
) -> None:
    taken = painted(tmp_path)
    report = prepare(taken, tmp_path / "out", form="kitti", resize=resize)
    assert (report["images"]["width"], report["images"]["height"]) == ([size[0]] * 2, [size[1]] * 2)
    assert {o[2:] for o in kitti_back(tmp_path / "out/train")} == {box}
    image = cv2.imread(str(next((tmp_path / "out/train/images").iterdir())))
    assert image.shape == (size[1], size[0], 3)
    rows, columns = np.nonzero(image[:, :, 0] > 127)  # half bright: where a box's edge cuts a pixel
    seen = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert np.allclose(seen, box, atol=0.51)


def painted(tmp_path: Path, suffix: str = ".png") -> Snapshot:
    """A white object on black, exactly in its box."""
    root = kitti_set(tmp_path / "set")
    for i in range(12):
        image = np.zeros_like(picture(i))
        image[6:30, 5:25] = 255
        image[0, i] = 100  # no two are the same
        (root / f"images/{i:03}.jpg").unlink()
        (root / f"images/{i:03}{suffix}").write_bytes(cv2.imencode(suffix, image)[1].tobytes())
    return ingest(root, SETTINGS, tmp_path / "ws")


@pytest.mark.parametrize(
    ("fill", "rgb"), [("black", (0, 0, 0)), ("imagenet", (124, 116, 104)), ((10, 20, 30), (10, 20, 30))]
)
def test_the_margin_has_its_colour(tmp_path: Path, fill: Any, rgb: tuple[int, int, int]) -> None:
    resize = {"width": 64, "height": 64, "place": "centre", "fill": fill}
    prepare(painted(tmp_path), tmp_path / "out", form="kitti", resize=resize)
    image = cv2.imread(str(next((tmp_path / "out/train/images").iterdir())))
    for row in (*range(8), *range(56, 64)):
        assert (image[row, :, ::-1] == rgb).all()
    assert (image[8 + 6 : 8 + 30, 5:25] == 255).all()


def test_a_margin_of_the_pictures_own_mean(tmp_path: Path) -> None:
    taken = painted(tmp_path)
    prepare(taken, tmp_path / "out", form="kitti", resize={"width": 64, "height": 64, "fill": "mean"})
    for path in (tmp_path / "out/train/images").iterdir():
        mean = cv2.imread(str(snapshot_image(taken, path.stem))).mean(axis=(0, 1))
        assert np.abs(cv2.imread(str(path))[60, 30] - mean).max() <= 0.5


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp"])
def test_grayscale_of_every_kind_of_file(tmp_path: Path, suffix: str) -> None:
    """With margins of a colour, which become its luma."""
    resize = {"width": 64, "height": 64, "fill": [0, 255, 0]}
    taken = painted(tmp_path, suffix)
    report = prepare(taken, tmp_path / "out", form="kitti", convert="png", channels=1, resize=resize)
    assert (report["images"]["channels"], report["extension"]) == ({"1": 12}, ".png")
    image = cv2.imread(str(next((tmp_path / "out/train/images").iterdir())), cv2.IMREAD_UNCHANGED)
    assert image.shape == (64, 64)
    assert (image[48:] == 150).all()  # 0.587 * 255
    assert abs(float(image[18, 15]) - 255) < 4
    with pytest.raises(ValueError, match="height 60 is no multiple of multiple_of 16; use 64"):
        PrepareSpec(snapshot="x", form="kitti", resize={"width": 64, "height": 60, "multiple_of": 16})


def test_grey_pictures_become_colour_and_16_bits_stay(tmp_path: Path) -> None:
    root = kitti_set(tmp_path / "set", images=0)
    for i in range(4):
        image = picture(i)[:, :, 0].astype(np.uint16) * 257
        (root / f"images/{i}.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
        (root / f"labels/{i}.txt").write_text(kitti_line() + "\n")
    taken = ingest(root, DatasetSettings(classes=["car"]), tmp_path / "ws")
    resize = {"width": 64, "height": 64, "fill": "imagenet"}
    report = prepare(taken, tmp_path / "out", form="kitti", channels=3, resize=resize)
    assert (report["images"]["channels"], report["images"]["bits"]) == ({"3": 4}, {"16": 4})
    image = cv2.imread(str(next((tmp_path / "out/train/images").iterdir())), cv2.IMREAD_UNCHANGED)
    assert (image[50, 5, ::-1] == np.array([124, 116, 104]) * 257).all()


@pytest.mark.parametrize("size", [(64, 48), (48, 64), (333, 77), (1, 500)])
def test_a_prepared_picture_is_what_inference_sees(size: tuple[int, int]) -> None:
    """The file that a network trains on and the tensor of the same picture in production, pixel for pixel."""
    width, height = size
    image = picture(1, width, height)
    target = InputInfo(
        name="x", width=96, height=64, channels=3, channel_order="rgb", scale=1.0, layout="nchw", resize="letterbox"
    )
    seen, frame = preprocess(image, target)
    prepared, canvas = placed(width, height, Resize(width=96, height=64))
    assert (prepared, canvas) == (frame, (96, 64))
    assert (laid(image, prepared, canvas, (0, 0, 0), "area") == seen[0].transpose(1, 2, 0)).all()


def test_grey_and_16_bits_are_told(tmp_path: Path) -> None:
    root = kitti_set(tmp_path / "set", images=0)
    for i in range(4):
        image = picture(i)[:, :, 0] if i < 2 else picture(i).astype(np.uint16) * 257
        (root / f"images/{i}.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
        (root / f"labels/{i}.txt").write_text(kitti_line() + "\n")
    taken = ingest(root, DatasetSettings(classes=["car"]), tmp_path / "ws")
    report = prepare(taken, tmp_path / "out", form="kitti")
    assert (report["images"]["channels"], report["images"]["bits"]) == ({"1": 2, "3": 2}, {"16": 2, "8": 2})
    with pytest.raises(BadData, match=r"\.png: 16 bits .* say convert: png"):
        prepare(taken, tmp_path / "out", form="kitti", convert="jpg")


# ---- calibration


@pytest.mark.parametrize("form", ["kitti", "coco"])
def test_calibration_images_are_of_the_train_split_and_recorded(snapshot: Snapshot, tmp_path: Path, form: str) -> None:
    prepared, out = tmp_path / "prepared", tmp_path / "out"
    prepare(snapshot, prepared, form=form)
    row = calibrate(prepared, out, images=6, batch_size=3)
    train = {r["file"]: r for r in read_annotations(snapshot.path) if r["split"] == "train"}
    files = {p.name: sha256(p.read_bytes()).hexdigest() for p in (out / "images").iterdir()}
    assert files == {f["file"]: f["sha256"] for f in row["files"]}
    assert files.keys() <= train.keys()
    assert (row["images"], row["batches"], row["batch_size"]) == (6, 2, 3)
    assert row["images_with"] == {"car": 2, "cat": 2, "dog": 2}
    listing = subprocess.run(
        "find . -type f | sed 's|^./||' | LC_ALL=C sort | xargs sha256sum | sha256sum",
        shell=True,
        cwd=out / "images",
        check=True,
        capture_output=True,
        text=True,
    )
    assert row["digest"] == listing.stdout.split()[0]
    if form == "coco":
        assert {o[0] for o in coco_back(out / "annotations.json")} == {Path(f).stem for f in files}


@pytest.mark.parametrize("form", ["kitti", "coco"])
def test_copies_that_augment_made_calibrate_nothing(snapshot: Snapshot, tmp_path: Path, form: str) -> None:
    rows = list(read_annotations(snapshot.path))
    train = [r["file"] for r in rows if r["split"] == "train"]
    copies = set(train[::2])
    for row in rows:
        if row["file"] in copies:
            row["augmented"] = {"from": "x.jpg", "copy": 1, "transforms": []}
    (snapshot.path / "annotations.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    prepare(snapshot, tmp_path / "prepared", form=form)
    row = calibrate(tmp_path / "prepared", tmp_path / "out", images=len(train) - len(copies))
    assert {f["file"] for f in row["files"]} == set(train) - copies
    with pytest.raises(BadData, match=f"the train split has {len(train) - len(copies)}"):
        calibrate(tmp_path / "prepared", tmp_path / "more", images=len(train))


def test_too_few_for_calibration_says_what_would_do(snapshot: Snapshot, tmp_path: Path) -> None:
    prepare(snapshot, tmp_path / "out", form="kitti")
    with pytest.raises(
        BadData, match=r"needs 80 images \(10 batches of 8\), and the train split has \d+; use 8 images"
    ):
        calibrate(tmp_path / "out", tmp_path / "a", images=80, batch_size=8)
    with pytest.raises(BadData, match="use a smaller batch"):
        calibrate(tmp_path / "out", tmp_path / "b", images=80, batch_size=80)
    with pytest.raises(BadData, match="not what prepare wrote"):
        calibrate(tmp_path / "nowhere", tmp_path / "c", images=8, batch_size=8)


def test_whole_batches_only() -> None:
    with pytest.raises(ValueError, match="TAO leaves 2 out; say 12 or 8"):
        CalibrateSpec(prepared=Path("x"), images=10, batch_size=4)


def test_classes_are_spread_though_one_is_rare() -> None:
    images: dict[str, list[str]] = {f"c{i}": ["common"] for i in range(900)}
    images |= {f"r{i}": ["rare", "common"] for i in range(4)} | {f"m{i}": ["middle"] for i in range(90)}
    images |= {f"n{i}": [] for i in range(50)}
    chosen = choose(images, 40, seed=7)
    have = Counter(c for name in chosen for c in images[name])
    assert have["rare"] == 4  # all there are
    assert abs(have["common"] - have["middle"]) <= 1
    assert chosen == choose(dict(reversed(images.items())), 40, seed=7)
    assert chosen != choose(images, 40, seed=8)
    assert Counter(name[0] for name in choose(images, 1044, seed=7))["n"] == 50  # background last, when all are asked


# ---- the command


def spec_file(tmp_path: Path, **spec: Any) -> list[str]:
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(spec))
    return ["prepare", "-e", str(path), "-r", str(tmp_path / "out")]


def test_the_command_can_be_run_twice(snapshot: Snapshot, tmp_path: Path) -> None:
    argv = spec_file(tmp_path, snapshot=str(snapshot.path), form="kitti")
    assert main(argv) == 0
    (tmp_path / "out/train/images/left_by_a_killed_attempt.jpg").write_bytes(b"x")
    done = subprocess.run([sys.executable, "-m", "refit.data", *argv], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "out/train/images/left_by_a_killed_attempt.jpg").exists()
    summary = (tmp_path / "out/summary.json").read_text()
    assert len(summary) < 2048
    assert json.loads(summary)["images"]["train"] == len(list((tmp_path / "out/train/images").iterdir()))


@pytest.mark.parametrize(
    ("spec", "code", "message"),
    [
        ({"form": "voc"}, 2, "spec.yaml:1: form: 'voc' is not a choice"),
        ({"form": "kitti", "snapshot": "/nowhere"}, 3, "/nowhere: not a whole snapshot"),
    ],
)
def test_what_a_person_must_mend(
    snapshot: Snapshot,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spec: dict[str, Any],
    code: int,
    message: str,
) -> None:
    assert main(spec_file(tmp_path, **{"snapshot": str(snapshot.path), **spec})) == code
    assert message in capsys.readouterr().err
