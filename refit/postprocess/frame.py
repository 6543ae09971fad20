"""How an image lies in a model's input, or in a file that is prepared for one: pictures one way, boxes both ways.

Boxes are edges in pixels: a box that covers the whole image is (0, 0, width, height). Resizing by a factor moves edges
by that factor exactly, so no half pixels appear here. Pixels are sampled to fit: the centre of pixel i lies at i + 0.5
(OpenCV's and Pillow's rule), so a pixel's edges land where a box's edges do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from refit.postprocess.info import InputInfo
from refit.postprocess.resample import FILTERS, resample

Image = NDArray[np.uint8]
Boxes = NDArray[np.float32]

FILL = 0  # what a black letterbox shows where no picture is
_IMAGENET = (124, 116, 104)  # tao_deploy's cv/efficientdet_tf1/dataloader.py, which efficientdet_tf2 uses


@dataclass(frozen=True)
class Frame:
    """The place of one image in the input: x in the input = scale_x * x in the image + pad_x.

    Attributes:
        width, height: of the original image, pixels.
        scale_x, scale_y: input pixels per image pixel.
        pad_x, pad_y: left and upper margin in the input, pixels.
    """

    width: int
    height: int
    scale_x: float
    scale_y: float
    pad_x: float = 0.0
    pad_y: float = 0.0

    @staticmethod
    def fit(width: int, height: int, target: InputInfo) -> Frame:
        """The frame of an image of this size, by the model's `resize` rule."""
        canvas = target.width, target.height
        inner = fitted(width, height, canvas) if target.resize == "letterbox" else canvas
        return Frame.placed(width, height, inner, canvas, target.place)

    @staticmethod
    def placed(width: int, height: int, inner: tuple[int, int], canvas: tuple[int, int], place: str) -> Frame:
        """The frame of an image that is drawn at the size `inner` in the corner or the centre of a canvas."""
        centre = place == "centre"
        left, top = ((canvas[i] - inner[i]) // 2 if centre else 0 for i in (0, 1))
        return Frame(width, height, inner[0] / width, inner[1] / height, left, top)

    @property
    def inner(self) -> tuple[int, int]:
        """The size of the picture in the input."""
        return round(self.width * self.scale_x), round(self.height * self.scale_y)

    def moved(self, boxes: NDArray[Any]) -> NDArray[np.float64]:
        """Boxes [..., 4] of the image in input pixels."""
        scale = np.array([self.scale_x, self.scale_y, self.scale_x, self.scale_y])
        pad = np.array([self.pad_x, self.pad_y, self.pad_x, self.pad_y])
        return np.asarray(boxes * scale + pad, dtype=np.float64)

    def to_input(self, boxes: NDArray[Any]) -> Boxes:
        """The same, as a network's labels are held."""
        return self.moved(boxes).astype(np.float32)

    def to_image(self, boxes: NDArray[Any]) -> Boxes:
        """Boxes [..., 4] of the input in image pixels, cut at the image's edges."""
        scale = np.array([self.scale_x, self.scale_y, self.scale_x, self.scale_y])
        pad = np.array([self.pad_x, self.pad_y, self.pad_x, self.pad_y])
        limit = np.array([self.width, self.height, self.width, self.height])
        return np.asarray(((boxes - pad) / scale).clip(0, limit), dtype=np.float32)


def resize(image: Image, target: InputInfo) -> tuple[Image, Frame]:
    """An image at the size of the input.

    Args:
        image: RGB uint8 [h, w, 3], or grey uint8 [h, w].

    Returns:
        uint8 [target.height, target.width, target.channels] and its frame.
    """
    height, width = image.shape[:2]
    frame = Frame.fit(width, height, target)
    image = _with_channels(image, target.channels)
    fill = margin(image, target.fill)
    small = laid(image, frame, (target.width, target.height), fill, target.interpolation)
    return np.ascontiguousarray(small.reshape(target.height, target.width, target.channels)), frame


def fitted(width: int, height: int, canvas: tuple[int, int]) -> tuple[int, int]:
    """The largest size that an image has in a canvas with its aspect kept, whole pixels."""
    factor = min(canvas[0] / width, canvas[1] / height)
    return min(canvas[0], max(1, round(width * factor))), min(canvas[1], max(1, round(height * factor)))


def laid(
    image: NDArray[Any], frame: Frame, canvas: tuple[int, int], fill: Sequence[float], interpolation: str
) -> NDArray[Any]:
    """An image drawn on a canvas (width, height) where its frame says; `fill` is the rest's colour, in its channels.

    Any depth and any channels; the filters of `refit.postprocess.resample` take 8 bits only.
    """
    small = _scaled(image, frame.inner, interpolation)
    if frame.inner == canvas:
        return small
    left, top = int(frame.pad_x), int(frame.pad_y)
    right, bottom = canvas[0] - frame.inner[0] - left, canvas[1] - frame.inner[1] - top
    return np.asarray(cv2.copyMakeBorder(small, top, bottom, left, right, cv2.BORDER_CONSTANT, value=tuple(fill)))


def margin(image: NDArray[Any], fill: str) -> tuple[float, ...]:
    """The colour of the margin: black, imagenet (RGB), or the picture's own mean."""
    if fill == "mean":
        return tuple(np.atleast_1d(image.mean(axis=(0, 1)).round()).tolist())
    return _IMAGENET if fill == "imagenet" else (FILL,) * 4


def to_tensor(image: Image, target: InputInfo) -> NDArray[np.float32]:
    """uint8 [h, w, c] at the input's size, RGB -> float32 of `target.shape`."""
    if target.channel_order == "bgr":
        image = image[..., ::-1]
    if target.layout == "nchw":
        image = image.transpose(2, 0, 1)
    tensor = np.ascontiguousarray(image).astype(np.float32) * np.float32(target.scale)
    per_channel = (-1, 1, 1) if target.layout == "nchw" else (-1,)
    if target.mean:
        tensor -= np.array(target.mean, dtype=np.float32).reshape(per_channel)
    if target.std:
        tensor /= np.array(target.std, dtype=np.float32).reshape(per_channel)
    return tensor


def preprocess(image: Image, target: InputInfo) -> tuple[NDArray[np.float32], Frame]:
    """What a model is fed for one image.

    Args:
        image: RGB uint8 [h, w, 3], or grey uint8 [h, w].
        target: `ModelInfo.input`.

    Returns:
        float32 [1, *target.shape], and the frame that the decoder wants with the answer.
    """
    small, frame = resize(image, target)
    return to_tensor(small, target)[None], frame


def _scaled(image: NDArray[Any], size: tuple[int, int], how: str) -> NDArray[Any]:
    """An image at this size."""
    if how in FILTERS:
        return resample(image, size, how)
    height, width = image.shape[:2]
    if size == (width, height):
        return image
    # Area averaging is what keeps small objects from flickering in and out when an image shrinks.
    area = how == "area" and (size[0] < width or size[1] < height)
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA if area else cv2.INTER_LINEAR))


def _with_channels(image: Image, channels: int) -> Image:
    grey = image.ndim == 2 or image.shape[2] == 1
    if channels == 1 and not grey:
        return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), dtype=np.uint8)
    if channels == 3 and grey:
        return np.asarray(cv2.cvtColor(image, cv2.COLOR_GRAY2RGB), dtype=np.uint8)
    return image
