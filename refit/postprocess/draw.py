"""Boxes with class names and scores drawn on a picture, and several pictures on one sheet. numpy and OpenCV only."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_CAPTION = 18  # pixels below an image


def class_color(index: int) -> tuple[int, int, int]:
    """A bright RGB colour for a class id: the same everywhere, and far from those of the ids next to it."""
    # Steps of the golden ratio around the colour wheel never come close to an earlier step.
    hue = int(index * 0.6180339887 % 1 * 180)
    hsv = np.array([[[hue, 220, 255]]], dtype=np.uint8)
    red, green, blue = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0].tolist()
    return int(red), int(green), int(blue)


def draw_boxes(
    image: Image,
    boxes: NDArray[np.floating],
    classes: Sequence[int] | NDArray[np.integer],
    names: Sequence[str],
    scores: Sequence[float] | NDArray[np.floating] | None = None,
) -> Image:
    """A copy of an image with its boxes.

    Args:
        image: RGB uint8 [h, w, 3].
        boxes: [n, 4], x1 y1 x2 y2 in pixels, x2 and y2 exclusive edges.
        classes: [n], index into `names`.
        names: class names.
        scores: [n] in 0..1, or None for labels without scores.
    """
    out = np.ascontiguousarray(image).copy()
    height, width = out.shape[:2]
    # Lines and text that can be read on a thumbnail as well as on a photograph of 20 megapixels.
    unit = max(height, width) / 640
    thickness = max(1, round(1.5 * unit))
    # Strong boxes are drawn last, so that they lie on top.
    order = range(len(boxes)) if scores is None else np.argsort(np.asarray(scores), kind="stable").tolist()
    for i in order:
        index = int(classes[i])
        color = class_color(index)
        x1, y1, x2, y2 = (round(float(v)) for v in boxes[i])
        cv2.rectangle(out, (x1, y1), (max(x1, x2 - 1), max(y1, y2 - 1)), color, thickness)
        text = names[index] if scores is None else f"{names[index]} {float(scores[i]):.2f}"
        _label(out, text, (x1, y1), color, unit)
    return out


def contact_sheet(
    images: Sequence[Image], columns: int, cell: tuple[int, int] = (320, 240), captions: Sequence[str] = ()
) -> Image:
    """Several images on one sheet, row by row, each scaled to fit its cell with its proportions kept.

    Args:
        images: RGB uint8 [h, w, 3], of any sizes.
        columns: cells in a row.
        cell: width and height of a cell in pixels.
        captions: a line below each image, cut where the cell ends; empty: none has one.

    Returns:
        RGB uint8 [rows * height, columns * width, 3].
    """
    width, height = cell
    rows = max(1, -(-len(images) // columns))
    room = height - (_CAPTION if captions else 0)
    sheet = np.full((rows * height, columns * width, 3), 32, dtype=np.uint8)
    for i, image in enumerate(images):
        scale = min((width - 4) / image.shape[1], (room - 4) / image.shape[0])
        size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        x, y = i % columns * width, i // columns * height
        top, left = y + (room - size[1]) // 2, x + (width - size[0]) // 2
        sheet[top : top + size[1], left : left + size[0]] = small
        if captions:
            strip = sheet[y + room : y + height, x : x + width - 4]
            cv2.putText(strip, captions[i], (4, _CAPTION - 6), _FONT, 0.38, (225, 225, 225), 1, cv2.LINE_AA)
    return sheet


def _label(image: Image, text: str, corner: tuple[int, int], color: tuple[int, int, int], unit: float) -> None:
    """A filled tag above the box's corner, or inside the box where there is no room above; always in the picture."""
    scale = max(0.35, 0.45 * unit)
    thickness = max(1, round(unit))
    (width, height), base = cv2.getTextSize(text, _FONT, scale, thickness)
    # cv2.rectangle paints its second corner too: a tag is one pixel wider and higher than its text.
    x = max(0, min(corner[0], image.shape[1] - width - 1))
    top = corner[1] - height - base
    top = max(0, min(top if top >= 0 else corner[1], image.shape[0] - height - base - 1))
    cv2.rectangle(image, (x, top), (x + width, top + height + base), color, cv2.FILLED)
    # Rec. 601 brightness decides between black and white letters.
    dark = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] < 140
    ink = (255, 255, 255) if dark else (0, 0, 0)
    cv2.putText(image, text, (x, top + height), _FONT, scale, ink, thickness, cv2.LINE_AA)
