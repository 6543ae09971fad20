"""The images of a prepared data set: linked where they can stay as they are, written anew where they cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from refit.data.prepare.spec import PrepareSpec, Resize
from refit.files import link_or_copy
from refit.postprocess.frame import Frame, fitted, laid, margin

SUFFIX = {"jpeg": ".jpg", "png": ".png"}
"""The endings that TAO's loaders all know, by what is in the file. Its `image_extension` heeds upper and lower case."""

_KIND = {"jpg": "jpeg", "png": "png"}
_HEAD = 65_536
_SIDES = ("x1", "y1", "x2", "y2")
_JPEG_QUALITY = 95


@dataclass(frozen=True, slots=True)
class Found:
    """An image of the snapshot: what its first bytes say."""

    path: Path
    row: Mapping[str, Any]
    kind: str
    channels: int | None  # None: not said by the header
    turned: bool  # it has an EXIF orientation that some readers follow

    @property
    def name(self) -> str:
        return str(self.row["file"])


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
    frame: Frame

    def objects(self, objects: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Objects of the image as stored, with their boxes where the picture lies in the file."""
        if not objects or self.frame == _as_stored(self.frame.width, self.frame.height):
            return [dict(o) for o in objects]
        moved = self.frame.moved(np.array([[o[side] for side in _SIDES] for o in objects], dtype=np.float64))
        x, y = self.frame.pad_x, self.frame.pad_y
        inside = moved.clip((x, y, x, y), (x + self.frame.inner[0], y + self.frame.inner[1]) * 2).tolist()
        return [{**o, **dict(zip(_SIDES, box, strict=True))} for o, box in zip(objects, inside, strict=True)]


def look(folder: Path, row: Mapping[str, Any]) -> Found:
    """Read an image's header. Raises BadData where it is not the one that the snapshot describes."""
    path = folder / str(row["file"])
    data, header = _head(path)
    if (header.width, header.height) != (row["width"], row["height"]):
        said = f"{row['width']}x{row['height']}"
        raise BadData(f"{path}: {header.width}x{header.height} pixels, the snapshot says {said}: it was changed")
    turned = header.kind in SUFFIX and orientation.orientation(data, header.kind) != 1
    channels = layout(data, header)[0] if header.kind in SUFFIX else None
    return Found(path, row, header.kind, channels, turned)


def target_name(found: Found, convert: str | None) -> str:
    """The name that an image gets: its own, with the ending that fits what is in the file."""
    return found.path.stem + SUFFIX[_KIND[convert] if convert else found.kind]


def write(found: Found, folder: Path, spec: PrepareSpec) -> Written:
    """Put one image into `folder`. Raises BadData, OSError."""
    kind = _KIND[spec.convert] if spec.convert else found.kind
    target = folder / target_name(found, spec.convert)
    frame, canvas = placed(found.row["width"], found.row["height"], spec.resize)
    how: Literal["linked", "copied", "rewritten"]
    if kind != found.kind or spec.resize or spec.channels not in (None, found.channels):
        image = _with_channels(_decode(found.path), spec.channels)
        if spec.resize:
            image = laid(image, frame, canvas, _fill(image, spec.resize), "area")
        how, data = "rewritten", _encode(image, kind, found.path)
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
    held, bits = layout(head, header)
    return Written(target.name, hash_, header.width, header.height, held, bits, how, frame)


def placed(width: int, height: int, resize: Resize | None) -> tuple[Frame, tuple[int, int]]:
    """Where an image of this size lies in its file, and the size of that file's picture."""
    if resize is None:
        return _as_stored(width, height), (width, height)
    canvas = resize.width, resize.height
    inner = fitted(width, height, canvas) if resize.keep_aspect else canvas
    if resize.keep_aspect and not resize.pad:
        step = resize.multiple_of
        canvas = inner[0] + -inner[0] % step, inner[1] + -inner[1] % step
    return Frame.placed(width, height, inner, canvas, resize.place), canvas


def _as_stored(width: int, height: int) -> Frame:
    return Frame(width, height, 1, 1)


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


def _decode(path: Path) -> NDArray[Any]:
    """Grey, BGR or BGR with alpha, of 8 or 16 bits."""
    # "Unchanged" leaves the EXIF orientation alone, too.
    image: NDArray[Any] | None = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise BadData(f"{path}: cannot be decoded; the snapshot is damaged: run bind again")
    return image


def _with_channels(image: NDArray[Any], channels: int | None) -> NDArray[Any]:
    there = 1 if image.ndim == 2 else image.shape[2]
    if channels is None or channels == there:
        return image
    if channels == 1:
        return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY if there == 3 else cv2.COLOR_BGRA2GRAY))
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if there == 1 else image[:, :, :3])


def _fill(image: NDArray[Any], resize: Resize) -> list[float]:
    """The margin's colour in the channels and the depth of an image as `_decode` gives it."""
    if resize.fill == "mean":
        return list(margin(image, "mean"))
    red, green, blue = margin(image, resize.fill)[:3] if isinstance(resize.fill, str) else resize.fill
    full = 257 if image.dtype == np.uint16 else 1
    if image.ndim == 2:
        return [round(0.299 * red + 0.587 * green + 0.114 * blue) * full]
    return [blue * full, green * full, red * full, 255 * full][: image.shape[2]]


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
