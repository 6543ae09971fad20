"""The demo's data set, made in code: three shapes in clutter, labelled in KITTI's text format.

It has to be a fair test of a detector, so what is cheap must not give the class away:

- the box's width, height, place and angle are drawn before the class, and each shape is stretched to fill the box;
- each shape covers about half of its box, and object and background colours are drawn apart from the class;
- distractors carry the same colours, textures and sizes as the objects.

`tests/data/test_synthetic.py` holds the null checks (nearest neighbours on size, on mean colour; labels of another
image). The `shifted` part is drawn from other light, blur and noise than train and val, and is for evaluation only.

Layout, below the folder asked for::

    images/train_0000.jpg   labels/train_0000.txt   train.txt   val.txt   shifted.txt   README.txt
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Floats = NDArray[np.float32]

CLASSES = ("cross", "ring", "triangle")
SPLITS = ("train", "val", "shifted")
WIDTH, HEIGHT = 320, 192

_SUPERSAMPLING = 4  # a mask is drawn so many times larger and averaged down: smooth edges, exact box
_MAX_OVERLAP = 0.12  # of the smaller box, between two objects
_JPEG_QUALITY = 92


@dataclass(frozen=True)
class Style:
    """What the light and the lens of one split do; ranges are (low, high), drawn anew for each image."""

    side: tuple[float, float] = (26.0, 72.0)
    contrast: tuple[float, float] = (0.9, 1.1)
    brightness: tuple[float, float] = (-12.0, 12.0)
    noise: tuple[float, float] = (2.0, 7.0)
    blur: tuple[float, float] = (0.0, 0.8)
    tilt: float = 14.0


PLAIN = Style()
SHIFTED = Style(
    side=(22.0, 60.0), contrast=(0.55, 0.8), brightness=(-45.0, 10.0), noise=(6.0, 14.0), blur=(0.6, 1.4), tilt=25.0
)


@dataclass(frozen=True)
class Shape:
    """One drawn object: class, box in pixels (exclusive right and lower edge), share cut off and share covered."""

    cls: str
    x1: float
    y1: float
    x2: float
    y2: float
    truncated: float
    occlusion: float


def make(
    out: Path,
    *,
    train: int = 400,
    val: int = 100,
    shifted: int = 50,
    seed: int = 7,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the data set to `out`, which must not exist or be empty; it appears complete or not at all.

    The same seed gives the same pictures, and picture i of a split does not depend on how many are asked for.
    `progress(done, total)` is called after each picture. Raises ValueError for counts below 0 and FileExistsError.
    """
    counts = dict(zip(SPLITS, (train, val, shifted), strict=True))
    for split, n in counts.items():
        if n < 0:
            raise ValueError(f"{split}: {n} images cannot be made; give 0 or more")
    out = Path(os.path.abspath(out))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not empty; remove it or name another folder")
    staging = out.parent / f".{out.name}.tmp-{os.getpid()}"
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(staging, ignore_errors=True)
    try:
        (staging / "images").mkdir(parents=True)
        (staging / "labels").mkdir()
        done, total = 0, sum(counts.values())
        for part, (split, n) in enumerate(counts.items()):
            names = [f"{split}_{i:04d}" for i in range(n)]
            for i, name in enumerate(names):
                image, shapes = picture(
                    np.random.default_rng([seed, part, i]), SHIFTED if split == "shifted" else PLAIN
                )
                _write_sample(staging, name, image, shapes)
                done += 1
                if progress:
                    progress(done, total)
            (staging / f"{split}.txt").write_text("".join(f"{n}\n" for n in names), encoding="utf-8")
        (staging / "README.txt").write_text(
            f"Made by `python -m refit.data synthetic --train {train} --val {val} --shifted {shifted} --seed {seed}`.\n"
            f"KITTI labels, {WIDTH}x{HEIGHT} pixels, classes: {', '.join(CLASSES)}.\n",
            encoding="utf-8",
        )
        if out.exists():
            out.rmdir()
        os.rename(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def kitti_line(shape: Shape) -> str:
    """The 15 columns of KITTI for a 2D object; the 3D columns carry KITTI's own "not known" values."""
    occluded = 0 if shape.occlusion < 0.02 else 1 if shape.occlusion < 0.2 else 2
    return (
        f"{shape.cls} {shape.truncated:.2f} {occluded} -10 "
        f"{shape.x1:.2f} {shape.y1:.2f} {shape.x2:.2f} {shape.y2:.2f} -1 -1 -1 -1000 -1000 -1000 -10"
    )


def picture(rng: np.random.Generator, style: Style = PLAIN) -> tuple[Image, list[Shape]]:
    """One picture (HEIGHT x WIDTH x 3, BGR) and the objects in it."""
    canvas, background = _background(rng)
    for _ in range(int(rng.integers(4, 10))):
        _distractor(canvas, rng, background, style)
    shapes = []
    boxes: list[tuple[int, int, int, int]] = []
    for _ in range(int(rng.integers(2, 6))):
        box = _free_box(rng, boxes, style)
        if box is None:
            continue
        boxes.append(box)
        cls = CLASSES[int(rng.integers(len(CLASSES)))]
        shapes.append(_object(canvas, rng, background, cls, box, style))
    return _lens(canvas, rng, style), shapes


def _write_sample(root: Path, name: str, image: Image, shapes: list[Shape]) -> None:
    if not cv2.imwrite(str(root / "images" / f"{name}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]):
        raise OSError(f"{root / 'images' / name}.jpg could not be written")
    (root / "labels" / f"{name}.txt").write_text("".join(kitti_line(s) + "\n" for s in shapes), encoding="utf-8")


# ---- the scene


def _background(rng: np.random.Generator) -> tuple[Floats, Floats]:
    """A canvas of soft patches around one colour, and that colour."""
    base = rng.uniform(50, 205, 3).astype(np.float32)
    coarse = rng.normal(0, 16, (6, 10, 3)).astype(np.float32)
    fine = rng.normal(0, 7, (HEIGHT // 4, WIDTH // 4, 1)).astype(np.float32)
    canvas = base + cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    canvas += cv2.resize(fine, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)[..., None]
    return canvas.astype(np.float32), base


def _colour(rng: np.random.Generator, background: Floats) -> Floats:
    """A colour that can be told from the background: at least 70 grey levels away in RGB space."""
    while True:
        colour = rng.uniform(15, 240, 3).astype(np.float32)
        if float(np.linalg.norm(colour - background)) >= 70:
            return colour


def _texture(rng: np.random.Generator, colour: Floats, width: int, height: int) -> Floats:
    """A patch of that colour: plain, striped, checked or speckled."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    kind, strength = int(rng.integers(4)), float(rng.uniform(8, 26))
    angle, period = float(rng.uniform(0, np.pi)), float(rng.uniform(5, 11))
    u = (x * np.cos(angle) + y * np.sin(angle)) * (2 * np.pi / period)
    v = (y * np.cos(angle) - x * np.sin(angle)) * (2 * np.pi / period)
    if kind == 0:
        pattern = np.zeros_like(x)
    elif kind == 1:
        pattern = np.sign(np.sin(u))
    elif kind == 2:
        pattern = np.sign(np.sin(u) * np.sin(v))
    else:
        pattern = rng.normal(0, 1, x.shape).astype(np.float32)
    patch: Floats = colour + (strength * pattern)[..., None].astype(np.float32)
    return patch


def _paste(canvas: Floats, patch: Floats, mask: Floats, x: int, y: int) -> None:
    """Blend a patch onto the canvas at (x, y); what lies outside the canvas is cut off."""
    h, w = mask.shape
    top, left = max(0, -y), max(0, -x)
    bottom, right = min(h, HEIGHT - y), min(w, WIDTH - x)
    if top >= bottom or left >= right:
        return
    alpha = mask[top:bottom, left:right, None]
    target = canvas[y + top : y + bottom, x + left : x + right]
    target += alpha * (patch[top:bottom, left:right] - target)


def _distractor(canvas: Floats, rng: np.random.Generator, background: Floats, style: Style) -> None:
    """Something of an object's size and colours that is none: a disc, a bar, a blob, a box or a line."""
    w, h = (int(v) for v in rng.uniform(style.side[0] * 0.6, style.side[1] * 0.8, 2))
    x, y = int(rng.integers(-w // 3, WIDTH - w // 2)), int(rng.integers(-h // 3, HEIGHT - h // 2))
    mask = np.zeros((h, w), np.uint8)
    kind = int(rng.integers(4))
    if kind == 0:
        cv2.ellipse(mask, (w // 2, h // 2), (w // 2 - 1, h // 2 - 1), 0, 0, 360, 255, -1, cv2.LINE_AA)
    elif kind == 1:
        cv2.line(mask, (2, 2), (w - 3, h - 3), 255, int(rng.integers(2, 7)), cv2.LINE_AA)
    elif kind == 2:
        angles = (np.arange(9) + rng.uniform(-0.3, 0.3, 9)) * (2 * np.pi / 9)  # spread out: never a triangle
        radius = rng.uniform(0.6, 1.0, 9)
        points = np.stack([w / 2 + w / 2 * radius * np.cos(angles), h / 2 + h / 2 * radius * np.sin(angles)], axis=1)
        cv2.fillPoly(mask, [points.astype(np.int32)], 255, cv2.LINE_AA)
    else:
        mask[:] = 255
    patch = _texture(rng, _colour(rng, background), w, h)
    opacity = np.float32(rng.uniform(0.6, 1.0) / 255)
    _paste(canvas, patch, mask.astype(np.float32) * opacity, x, y)


# ---- the objects


def _free_box(
    rng: np.random.Generator, taken: list[tuple[int, int, int, int]], style: Style
) -> tuple[int, int, int, int] | None:
    """A box (x1, y1, x2, y2) that hardly overlaps the others, or None when no place was found.

    Sides are log-uniform and independent of each other within an aspect of 0.75 to 1.33; every eighth box may stick
    out of the picture by up to a quarter of its side.
    """
    for _ in range(30):
        low, high = np.log(style.side)
        size, aspect = np.exp(rng.uniform(low, high)), np.exp(rng.uniform(-0.144, 0.144))
        w, h = round(size * aspect), round(size / aspect)
        slack = 0.25 if rng.random() < 0.125 else 0.0
        x = int(rng.integers(round(-slack * w), round(WIDTH - w + slack * w) + 1))
        y = int(rng.integers(round(-slack * h), round(HEIGHT - h + slack * h) + 1))
        box = (x, y, x + w, y + h)
        if all(_overlap(box, other) <= _MAX_OVERLAP for other in taken):
            return box
    return None


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """The shared area as a share of the smaller box."""
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    return w * h / min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))


def _object(
    canvas: Floats, rng: np.random.Generator, background: Floats, cls: str, box: tuple[int, int, int, int], style: Style
) -> Shape:
    """Draw one object, and for every fourth one something that covers a part of it."""
    x, y, w, h = box[0], box[1], box[2] - box[0], box[3] - box[1]
    mask = shape_mask(cls, w, h, tilt=float(rng.uniform(-style.tilt, style.tilt)), quarter_turns=int(rng.integers(4)))
    _paste(canvas, _texture(rng, _colour(rng, background), w, h), mask, x, y)
    occlusion = 0.0
    if rng.random() < 0.25:
        # A bar over one edge of the box, of the background's or any colour.
        occlusion = float(rng.uniform(0.08, 0.28))
        cw, ch = (max(1, round(w * occlusion)), h) if rng.random() < 0.5 else (w, max(1, round(h * occlusion)))
        ox, oy = x + int(rng.choice([0, w - cw])), y + int(rng.choice([0, h - ch]))
        colour = _colour(rng, background) if rng.random() < 0.5 else background
        _paste(canvas, _texture(rng, colour, cw, ch), np.ones((ch, cw), np.float32), ox, oy)
    x1, y1, x2, y2 = max(0, box[0]), max(0, box[1]), min(WIDTH, box[2]), min(HEIGHT, box[3])
    return Shape(cls, x1, y1, x2, y2, 1 - (x2 - x1) * (y2 - y1) / (w * h), occlusion)


def shape_mask(cls: str, width: int, height: int, *, tilt: float = 0.0, quarter_turns: int = 0) -> Floats:
    """The coverage (0..1) of a shape that fills a width x height box edge to edge; about half of the box is covered.

    `tilt` turns the shape by so many degrees before it is stretched to the box; `quarter_turns` turns it by 90 more.
    """
    rings = [_outline(cls, tilt + 90.0 * quarter_turns)]
    if cls == "ring":
        rings.append(rings[0] * 0.6)  # pi/4 * (1 - 0.6^2) = 0.50 of the box
    low, high = rings[0].min(axis=0), rings[0].max(axis=0)
    scale = np.array([width, height]) * _SUPERSAMPLING
    mask = np.zeros((height * _SUPERSAMPLING, width * _SUPERSAMPLING), np.uint8)
    # Pixel centres lie at half units: a polygon from 0 to n covers pixels 0 to n-1 once 0.5 is taken off.
    polygons = [((ring - low) / (high - low) * scale - 0.5) * 16 for ring in rings]
    cv2.fillPoly(mask, [np.round(p).astype(np.int32) for p in polygons], 255, cv2.LINE_8, 4)
    small = cv2.resize(mask, (width, height), interpolation=cv2.INTER_AREA)
    return small.astype(np.float32) / np.float32(255)


def _outline(cls: str, degrees: float) -> NDArray[np.float64]:
    """The outer outline around (0, 0), turned; its covered share of the box is near 0.5 for each class."""
    if cls == "ring":
        t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
        return np.stack([np.cos(t), np.sin(t)], axis=1)  # turning changes nothing
    if cls == "triangle":
        points = np.array([(0.0, -1.0), (1.0, 1.0), (-1.0, 1.0)])
    else:
        a = 0.32  # half width of an arm; tilting lowers the covered share, so it starts a little above 0.5
        points = np.array(
            [(-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a), (a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a), (-a, -a)]
        )
    t = np.deg2rad(degrees)
    turned: NDArray[np.float64] = points @ np.array([[np.cos(t), np.sin(t)], [-np.sin(t), np.cos(t)]])
    return turned


def _lens(canvas: Floats, rng: np.random.Generator, style: Style) -> Image:
    """Contrast, brightness, blur and noise of the camera; the result is 8 bit."""
    canvas = (canvas - 128) * float(rng.uniform(*style.contrast)) + 128 + float(rng.uniform(*style.brightness))
    blur = float(rng.uniform(*style.blur))
    if blur > 0.2:
        canvas = cv2.GaussianBlur(canvas, (0, 0), blur).astype(np.float32)
    canvas += rng.standard_normal(canvas.shape, dtype=np.float32) * np.float32(rng.uniform(*style.noise))
    np.rint(canvas, out=canvas)
    return np.clip(canvas, 0, 255, out=canvas).astype(np.uint8)
