"""How an image lies in a model's input: pictures one way, boxes both ways.

Boxes are edges in pixels: a box that covers the whole image is (0, 0, width, height). Resizing by a factor moves edges
by that factor exactly, so no half pixels appear here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from refit.postprocess.info import InputInfo

Image = NDArray[np.uint8]
Boxes = NDArray[np.float32]

FILL = 0  # what a letterbox shows where no picture is


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
        inner_width, inner_height = _inner_size(width, height, target)
        return Frame(width, height, inner_width / width, inner_height / height)

    def to_input(self, boxes: NDArray[Any]) -> Boxes:
        """Boxes [..., 4] of the image in input pixels."""
        scale = np.array([self.scale_x, self.scale_y, self.scale_x, self.scale_y])
        pad = np.array([self.pad_x, self.pad_y, self.pad_x, self.pad_y])
        return np.asarray(boxes * scale + pad, dtype=np.float32)

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
    inner = _inner_size(width, height, target)
    image = _with_channels(image, target.channels)
    if inner != (width, height):
        # Area averaging is what keeps small objects from flickering in and out when an image shrinks.
        shrinks = inner[0] < width or inner[1] < height
        image = np.asarray(cv2.resize(image, inner, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR))
    if inner != (target.width, target.height):
        right, bottom = target.width - inner[0], target.height - inner[1]
        image = np.asarray(
            cv2.copyMakeBorder(image, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=(FILL, FILL, FILL))
        )
    return np.ascontiguousarray(image.reshape(target.height, target.width, target.channels)), Frame.fit(
        width, height, target
    )


def to_tensor(image: Image, target: InputInfo) -> NDArray[np.float32]:
    """uint8 [h, w, c] at the input's size -> float32 [c, h, w], scaled."""
    return np.ascontiguousarray(image.transpose(2, 0, 1)).astype(np.float32) * np.float32(target.scale)


def preprocess(image: Image, target: InputInfo) -> tuple[NDArray[np.float32], Frame]:
    """What a model is fed for one image.

    Args:
        image: RGB uint8 [h, w, 3], or grey uint8 [h, w].
        target: `ModelInfo.input`.

    Returns:
        float32 [1, channels, height, width], and the frame that the decoder wants with the answer.
    """
    small, frame = resize(image, target)
    return to_tensor(small, target)[None], frame


def _inner_size(width: int, height: int, target: InputInfo) -> tuple[int, int]:
    """The size of the picture inside the input."""
    if target.resize == "stretch":
        return target.width, target.height
    factor = min(target.width / width, target.height / height)
    return (
        min(target.width, max(1, round(width * factor))),
        min(target.height, max(1, round(height * factor))),
    )


def _with_channels(image: Image, channels: int) -> Image:
    grey = image.ndim == 2 or image.shape[2] == 1
    if channels == 1 and not grey:
        return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), dtype=np.uint8)
    if channels == 3 and grey:
        return np.asarray(cv2.cvtColor(image, cv2.COLOR_GRAY2RGB), dtype=np.uint8)
    return image
