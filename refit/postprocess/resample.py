"""Pillow's resizing, without Pillow: filters that widen as the picture shrinks, where OpenCV's skip pixels.

TAO prepares the pictures of detectnet_v2, ssd and efficientdet_tf2 with Pillow (tao_deploy's cv/*/dataloader.py). Like
the Pillow of its images this resizes rows first, then columns; newer ones take the cheaper order. Pillow computes in
fixed point, so that each of the two passes may round a value to its other neighbour.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]


def _triangle(x: Floats) -> Floats:
    return np.asarray((1 - abs(x)).clip(0))


def _lanczos(x: Floats) -> Floats:
    return np.asarray(np.where(abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0))


# Name -> (weight at a distance in pixels of the smaller picture, the distance from which it is 0).
FILTERS: dict[str, tuple[Callable[[Floats], Floats], float]] = {
    "bilinear": (_triangle, 1.0),
    "lanczos": (_lanczos, 3.0),
}


def resample(image: NDArray[np.uint8], size: tuple[int, int], how: str) -> NDArray[np.uint8]:
    """An image [h, w] or [h, w, c] at another size (width, height): first along the rows, then along the columns."""
    width, height = size
    across = _along(image.swapaxes(0, 1), width, how).swapaxes(0, 1)
    return _along(across, height, how)


def _along(image: NDArray[np.uint8], size: int, how: str) -> NDArray[np.uint8]:
    """Resample the first axis."""
    length = image.shape[0]
    if size == length:
        return image
    rows = np.ascontiguousarray(image.reshape(length, -1), dtype=np.float32)
    mixed = np.zeros((size, rows.shape[1]), dtype=np.float32)
    for pixel, share in zip(*_shares(length, size, how), strict=True):
        mixed += rows[pixel] * share[:, None]
    return np.asarray(np.floor(mixed + 0.5).clip(0, 255).astype(np.uint8).reshape(size, *image.shape[1:]))


def _shares(length: int, size: int, how: str) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """The old pixels that make each new one, and their shares: both [most pixels, size]; the shares of one sum to 1."""
    weight, support = FILTERS[how]
    step = length / size
    stretch = max(step, 1.0)
    centre = (np.arange(size) + 0.5) * step
    # Pillow rounds the ends of the window to whole pixels.
    first = (centre - support * stretch + 0.5).astype(np.intp).clip(0)
    last = (centre + support * stretch + 0.5).astype(np.intp).clip(max=length)
    pixel = first + np.arange((last - first).max())[:, None]
    share = weight((pixel + 0.5 - centre) / stretch) * (pixel < last)
    return pixel.clip(max=length - 1), np.asarray(share / share.sum(axis=0), dtype=np.float32)
