"""The EXIF orientation of an image file, and the same file without it; no pixel is touched.

A snapshot's boxes are those of the image as stored. NVIDIA's COCO loaders turn an image by this tag
(nvidia_tao_pytorch/cv/deformable_detr/dataloader/od_dataset.py, `_load_image`), its TensorFlow ones do not: a file that
has the tag is written without it, so that all see what the boxes were made for.
"""

from __future__ import annotations

import struct

_TAG = 0x0112
_EXIF = b"Exif\0\0"
_SOS = 0xDA
_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})


def orientation(data: bytes, kind: str) -> int:
    """1 to 8; 1 (as stored) where the file says nothing that can be understood."""
    try:
        for start, end in _spans(data, kind):
            block = data[start:end]
            at = block.find(_EXIF) + len(_EXIF) if kind == "jpeg" else 8
            return _of_tiff(block[at:])
    except (struct.error, IndexError):
        pass
    return 1


def without(data: bytes, kind: str) -> bytes:
    """The file without its EXIF blocks."""
    kept, at = [], 0
    for start, end in _spans(data, kind):
        kept.append(data[at:start])
        at = end
    return b"".join([*kept, data[at:]])


def _spans(data: bytes, kind: str) -> list[tuple[int, int]]:
    """Where the EXIF blocks of a JPEG or PNG file lie, whole segments and chunks; they stand before the pixels."""
    return {"jpeg": _segments, "png": _chunks}[kind](data)


def _segments(data: bytes) -> list[tuple[int, int]]:
    """APP1 segments that hold EXIF (ITU T.81, B.1.1.4; CIPA DC-008, 4.7.2)."""
    found, at = [], 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != _SOS:
        if data[at + 1] == 0xFF:
            at += 1
        elif data[at + 1] in _ALONE:
            at += 2
        else:
            end = at + 2 + max(2, int.from_bytes(data[at + 2 : at + 4], "big"))
            if data[at + 1] == 0xE1 and data[at + 4 : at + 10] == _EXIF:
                found.append((at, end))
            at = end
    return found


def _chunks(data: bytes) -> list[tuple[int, int]]:
    """eXIf chunks (PNG specification, 11.3.3.6)."""
    found, at = [], 8
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] == b"eXIf":
            found.append((at, end))
        at = end
    return found


def _of_tiff(tiff: bytes) -> int:
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    (start,) = struct.unpack_from(order + "I", tiff, 4)
    (count,) = struct.unpack_from(order + "H", tiff, start)
    for i in range(count):
        tag, _, _, value = struct.unpack_from(order + "HHIH", tiff, start + 2 + 12 * i)
        if tag == _TAG:
            return int(value) if 1 <= value <= 8 else 1
    return 1
