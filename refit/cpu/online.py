"""Random changes of a training image at each epoch, on images that already have the input's size.

All changes of place are one affine map and all changes of colour are one matrix, so an image is read and written twice,
whatever is asked for. Each draw comes from the generator given: the same generator state gives the same picture.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from refit.cpu.specs import OnlineAugmentation
from refit.cpu.targets import Labels
from refit.postprocess.frame import FILL

Image = NDArray[np.uint8]
Matrix = NDArray[np.float64]

_VISIBLE = 0.3  # an object of which less stays in the picture is ignored in training
_SMALLEST_SIDE = 1.0  # input pixels; less is dropped: there is nothing left to see
_LUMA = np.array([0.299, 0.587, 0.114])
# Shares of `color`: full strength for saturation and contrast, less where a picture is soon unnatural.
_BRIGHTNESS, _GAIN, _HUE = 0.3, 0.15, math.pi / 6


def augment(
    image: Image, labels: Labels, settings: OnlineAugmentation, rng: np.random.Generator
) -> tuple[Image, Labels]:
    """A changed copy.

    Args:
        image: uint8 [h, w, c], c 1 or 3 (RGB).
        labels: boxes in pixels of it.
    """
    height, width = image.shape[:2]
    place = _affine(width, height, settings, rng)
    if place is not None:
        # cv2 maps centres of pixels, our boxes are edges: half a pixel between the two.
        shifted = place.copy()
        shifted[:, 2] += place[:, :2] @ np.array([0.5, 0.5]) - 0.5
        color = (FILL, FILL, FILL)
        moved = cv2.warpAffine(image, shifted, (width, height), flags=cv2.INTER_LINEAR, borderValue=color)
        image = np.asarray(moved, dtype=np.uint8).reshape(image.shape)
        labels = move(labels, place, width, height)
    if settings.color:
        colored = cv2.transform(image, _color(image, settings.color, rng))
        image = np.asarray(colored, dtype=np.uint8).reshape(image.shape)
    return image, labels


def move(labels: Labels, place: Matrix, width: int, height: int) -> Labels:
    """Labels after an affine map [2, 3] without shear, cut at the picture's edges.

    Objects that leave the picture are dropped; those that mostly leave it are marked `ignore`.
    """
    corners = labels.boxes.reshape(-1, 2, 2) @ place[:, :2].T + place[:, 2]
    low, high = corners.min(axis=1), corners.max(axis=1)
    area = (high - low).prod(axis=1)
    limit = np.array([width, height])
    low, high = low.clip(0, limit), high.clip(0, limit)
    sides = high - low
    keep = (sides >= _SMALLEST_SIDE).all(axis=1)
    ignore = labels.ignore | (sides.prod(axis=1) < _VISIBLE * area)
    boxes = np.concatenate([low, high], axis=1).astype(np.float32)
    return Labels(boxes[keep], labels.classes[keep], ignore[keep])


def _affine(width: int, height: int, settings: OnlineAugmentation, rng: np.random.Generator) -> Matrix | None:
    """Flips, a turn by a multiple of 90 degrees, zoom and shift, about the picture's middle; None for no change."""
    flip_x = -1.0 if rng.random() < settings.hflip else 1.0
    flip_y = -1.0 if rng.random() < settings.vflip else 1.0
    turn = int(rng.integers(1, 4)) if rng.random() < settings.rotate90 else 0
    zoom = 1 + rng.uniform(-settings.scale, settings.scale)
    shift = rng.uniform(-settings.translate, settings.translate, 2) * [width, height]
    cos, sin = ((1, 0), (0, 1), (-1, 0), (0, -1))[turn]
    linear = np.array([[cos, -sin], [sin, cos]], dtype=np.float64) @ np.diag([flip_x, flip_y]) * zoom
    if np.array_equal(linear, np.eye(2)) and not shift.any():
        return None
    middle = np.array([width, height]) / 2
    return np.column_stack([linear, middle + shift - linear @ middle])


def _color(image: Image, strength: float, rng: np.random.Generator) -> Matrix:
    """Saturation, hue, contrast, brightness and a tint as one matrix [c, c + 1] on 0..255."""
    saturation, contrast, brightness, hue = rng.uniform(-strength, strength, 4)
    gains = 1 + rng.uniform(-strength, strength, 3) * _GAIN
    offset = 255 * _BRIGHTNESS * brightness
    if image.shape[2] == 1:
        mean = cv2.mean(image)[0]
        return np.array([[1 + contrast, offset - contrast * mean]])
    turn = cv2.Rodrigues(np.full(3, hue * _HUE / math.sqrt(3)))[0]  # about the grey axis
    linear = turn @ ((1 + saturation) * np.eye(3) - saturation * np.outer(np.ones(3), _LUMA))
    # Contrast keeps the mean grey where it is.
    mean = float(_LUMA @ np.array(cv2.mean(image)[:3]))
    linear = np.diag(gains) @ linear * (1 + contrast)
    return np.column_stack([linear, np.full(3, offset - contrast * mean)])
