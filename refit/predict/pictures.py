"""From an image file's bytes to pixels, whole or refused, decoded once.

OpenCV fills the missing end of a JPEG with grey and says nothing; libjpeg-turbo with its warnings as errors does not
(`refit.data.images`). Pixels are those of the image as stored: no EXIF rotation, as labels have it.
"""

from __future__ import annotations

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from refit.data.images import ImageFault, check_container, read_header, verify
from refit.predict.images import Unreadable

_TIFF = (b"II*\0", b"MM\0*")


def decode(data: bytes) -> NDArray[np.uint8]:
    """RGB uint8 [height, width, 3]. Raises Unreadable."""
    if data.startswith(_TIFF):
        return _opencv(data)
    try:
        header = read_header(data)
        if header.kind == "jpeg":
            try:
                return np.asarray(simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True))
            except ValueError:  # damaged, or a layout that this way cannot do: `verify` tells which
                verify(data, header)
        else:
            check_container(data, header)
    except ImageFault as exc:
        raise Unreadable(exc.code, str(exc)) from None
    return _opencv(data)


def _opencv(data: bytes) -> NDArray[np.uint8]:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as exc:
        raise Unreadable("image_unreadable", f"cannot be decoded: {exc.err}") from None
    if image is None:
        raise Unreadable("image_unreadable", "cannot be decoded")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)
