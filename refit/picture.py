"""One picture from a file, as every model is fed: RGB, as stored (no EXIF rotation: labels are in stored pixels)."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray


class PictureError(ValueError):
    """A file that is no picture; names it."""


def read(path: Path) -> NDArray[np.uint8]:
    """uint8 [height, width, 3].

    Raises:
        PictureError: it cannot be read or decoded.
    """
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION) if data.size else None
    except (OSError, cv2.error) as exc:
        raise PictureError(f"{path}: cannot be read as a picture ({exc})") from None
    if image is None:
        raise PictureError(f"{path}: is no picture that can be decoded; give a JPEG or PNG file")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)
