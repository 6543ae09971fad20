"""The images of a prepared data set: linked where they can stay as they are, written anew where they cannot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from refit.command import BadData
from refit.data.images import Header, ImageFault, layout, read_header
from refit.data.prepare import orientation
from refit.data.prepare.spec import Resize
from refit.files import link_or_copy

SUFFIX = {"jpeg": ".jpg", "png": ".png"}
"""The endings that TAO's loaders all know, by what is in the file. Its `image_extension` heeds upper and lower case."""

_KIND = {"jpg": "jpeg", "png": "png"}
_HEAD = 65_536
_JPEG_QUALITY = 95


@dataclass(frozen=True, slots=True)
class Found:
    """An image of the snapshot: what its first bytes say."""

    path: Path
    row: Mapping[str, Any]
    kind: str
    turned: bool  # it has an EXIF orientation that some readers follow

    @property
    def name(self) -> str:
        return str(self.row["file"])


@dataclass(frozen=True, slots=True)
class Scale:
    """From pixels of the image as stored to those of the image as written."""

    x: float
    y: float
    width: int
    height: int

    def box(self, o: Mapping[str, Any]) -> dict[str, Any]:
        return {
            **o,
            "x1": o["x1"] * self.x,
            "y1": o["y1"] * self.y,
            "x2": min(o["x2"] * self.x, float(self.width)),
            "y2": min(o["y2"] * self.y, float(self.height)),
        }


@dataclass(frozen=True, slots=True)
class Written:
    """An image as it was written."""

    file: str
    sha256: str
    width: int
    height: int
    channels: int
    bits: int
    how: Literal["linked", "copied", "rewritten"]
    scale: Scale


def look(folder: Path, row: Mapping[str, Any]) -> Found:
    """Read an image's header. Raises BadData where it is not the one that the snapshot describes."""
    path = folder / str(row["file"])
    data, header = _head(path)
    if (header.width, header.height) != (row["width"], row["height"]):
        said = f"{row['width']}x{row['height']}"
        raise BadData(f"{path}: {header.width}x{header.height} pixels, the snapshot says {said}: it was changed")
    turned = header.kind in SUFFIX and orientation.orientation(data, header.kind) != 1
    return Found(path, row, header.kind, turned)


def target_name(found: Found, convert: str | None) -> str:
    """The name that an image gets: its own, with the ending that fits what is in the file."""
    return found.path.stem + SUFFIX[_KIND[convert] if convert else found.kind]


def write(found: Found, folder: Path, convert: str | None, resize: Resize | None) -> Written:
    """Put one image into `folder`. Raises BadData, OSError."""
    kind = _KIND[convert] if convert else found.kind
    target = folder / target_name(found, convert)
    scale = scaled(found.row["width"], found.row["height"], resize)
    how: Literal["linked", "copied", "rewritten"]
    if kind != found.kind or resize:
        how, data = "rewritten", _encode(_redraw(found.path, scale, resize), kind, found.path)
    elif found.turned:
        how, data = "rewritten", orientation.without(found.path.read_bytes(), kind)
    else:
        how = "linked" if link_or_copy(found.path, target) else "copied"
        data = None
    if data is None:
        head, header = _head(target)
        hash_ = str(found.row["sha256"])
    else:
        target.write_bytes(data)
        head, header, hash_ = data, read_header(data), sha256(data).hexdigest()
    channels, bits = layout(head, header)
    return Written(target.name, hash_, header.width, header.height, channels, bits, how, scale)


def scaled(width: int, height: int, resize: Resize | None) -> Scale:
    """The scale of an image of this size, and the size that its own pixels have afterwards."""
    if resize is None:
        return Scale(1, 1, width, height)
    if not resize.keep_aspect:
        return Scale(resize.width / width, resize.height / height, resize.width, resize.height)
    factor = min(resize.width / width, resize.height / height)
    inner = max(1, round(width * factor)), max(1, round(height * factor))
    return Scale(inner[0] / width, inner[1] / height, *inner)


def _head(path: Path) -> tuple[bytes, Header]:
    """The first bytes of an image, all of them where its header is longer, and what they say."""
    with open(path, "rb") as f:
        data = f.read(_HEAD)
        try:
            return data, read_header(data)
        except ImageFault:
            data += f.read()
    try:
        return data, read_header(data)
    except ImageFault as exc:
        raise BadData(f"{path}: {exc}; the snapshot is damaged: run bind again") from None


def _redraw(path: Path, scale: Scale, resize: Resize | None) -> NDArray[Any]:
    # "Unchanged" leaves the EXIF orientation alone, too.
    image: NDArray[Any] | None = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise BadData(f"{path}: cannot be decoded; the snapshot is damaged: run bind again")
    if resize is None:
        return image
    smaller = scale.width * scale.height < image.shape[0] * image.shape[1]
    method = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    image = cv2.resize(image, (scale.width, scale.height), interpolation=method)
    if not (resize.keep_aspect and resize.pad):
        return image
    filled = np.zeros((resize.height, resize.width, *image.shape[2:]), image.dtype)
    filled[: scale.height, : scale.width] = image
    return filled


def _encode(image: NDArray[Any], kind: str, path: Path) -> bytes:
    if kind == "jpeg":
        if image.dtype != np.uint8:
            raise BadData(f"{path}: {image.dtype.itemsize * 8} bits a channel do not fit into a JPEG; say convert: png")
        if image.ndim == 3 and image.shape[2] == 4:
            image = image[:, :, :3]
    done, data = cv2.imencode(SUFFIX[kind], image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY] if kind == "jpeg" else [])
    if not done:
        raise BadData(f"{path}: cannot be written as {kind}")
    return bytes(data)
