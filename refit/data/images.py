"""Image files: the size from the header, and whether the file decodes whole.

Only a decode to the last row finds a file that was cut off: headers are good, and OpenCV fills the rest with grey and
says nothing. JPEG is decoded by libjpeg-turbo with its warnings as errors (simplejpeg), PNG by OpenCV's libpng, which
checks the checksums, up to its end chunk, WebP and BMP by their declared length and then OpenCV.
`tests/data/test_images.py` cuts files everywhere, and turns bits over.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any, NamedTuple

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from refit.data import look
from refit.data.look import Look
from refit.data.prepare.orientation import orientation

SUFFIXES = {".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png", ".webp": "webp", ".bmp": "bmp"}
"""What can be read, by the file's ending in lower case."""

OTHER_SUFFIXES = frozenset(
    {
        ".tif",
        ".tiff",
        ".gif",
        ".heic",
        ".heif",
        ".avif",
        ".jp2",
        ".jxl",
        ".jfif",
        ".jpe",
        ".ppm",
        ".pgm",
        ".exr",
        ".dng",
    }
)
"""Images that cannot be read: reported, not passed over."""

MAX_PIXELS = 250_000_000

_TRUNCATED = "image_truncated"
_UNREADABLE = "image_unreadable"
_ZERO_TAIL = 48
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_NO_FRAME = frozenset({0xC4, 0xC8, 0xCC})  # DHT, JPG, DAC: between SOF0 and SOF15, but no frame headers


class Header(NamedTuple):
    """What the first bytes say: kind ("jpeg", "png", "webp", "bmp") and size in pixels as stored (no EXIF rotation)."""

    kind: str
    width: int
    height: int


class Decoded(NamedTuple):
    """An image that decodes whole: a remark on harmless damage, or "", and what it looks like."""

    remark: str
    look: Look


class ImageFault(ValueError):
    """A file that cannot be used; `code` is one of refit.data.codes."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)


def read_header(data: bytes) -> Header:
    """Kind and size from an image's first bytes, nothing decoded. Raises ImageFault."""
    if not data:
        raise ImageFault(_TRUNCATED, "the file is empty")
    kind = sniff(data)
    if kind is None:
        what = "only zero bytes" if not data.strip(b"\0") else "not a JPEG, PNG, WebP or BMP image"
        raise ImageFault(_UNREADABLE, f"{what} (it begins with {data[:8].hex(' ')})")
    try:
        width, height = {"jpeg": _jpeg_size, "png": _png_size, "webp": _webp_size, "bmp": _bmp_size}[kind](data)
    except (IndexError, struct.error):
        raise ImageFault(_TRUNCATED, f"the file ends in its header, after {len(data)} bytes") from None
    if width < 1 or height < 1 or width * height > MAX_PIXELS:
        raise ImageFault(_UNREADABLE, f"its header says {width}x{height} pixels; 1 to {MAX_PIXELS} can be read")
    return Header(kind, width, height)


def layout(data: bytes, header: Header) -> tuple[int, int]:
    """Channels and bits a channel of a JPEG or PNG image, from its first bytes; a palette counts as 3 channels."""
    if header.kind == "jpeg":
        _, _, channels, bits = _jpeg_frame(data)
        return channels, bits
    bits, colour = data[24], data[25]
    return {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}[colour], max(bits, 8)


def sniff(data: bytes) -> str | None:
    """The kind of an image by its first bytes, or None."""
    if data.startswith(b"\xff\xd8\xff") or data == b"\xff\xd8":
        return "jpeg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return "bmp" if data.startswith(b"BM") else None


def verify(data: bytes, header: Header) -> Decoded:
    """Decode an image to its last row. Raises ImageFault."""
    if header.kind == "jpeg":
        return _verify_jpeg(data, header)
    if header.kind == "png":
        return Decoded("", _look(_decode_png(data, header), data, header))
    check_container(data, header)
    return Decoded("", _look(_decode(data, header), data, header))


def check_container(data: bytes, header: Header) -> None:
    """Whether a PNG, WebP or BMP file is all there, by its own lengths and checksums. Raises ImageFault."""
    try:
        {"png": _check_png, "webp": _check_webp, "bmp": _check_bmp}[header.kind](data)
    except (IndexError, struct.error):
        raise ImageFault(_TRUNCATED, f"the file ends in its header, after {len(data)} bytes") from None


def _look(pixels: NDArray[Any], data: bytes, header: Header) -> Look:
    if header.kind in ("jpeg", "png"):
        channels, bits = layout(data, header)
        turned = orientation(data, header.kind)
    else:
        channels, bits, turned = 1 if pixels.ndim == 2 else pixels.shape[2], 8, 1
    cmyk = header.kind == "jpeg" and pixels.shape[2:] == (4,)
    return look.of(pixels, channels, bits, turned, cmyk=cmyk)


def _decode(data: bytes, header: Header) -> NDArray[Any]:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as exc:
        raise ImageFault(_UNREADABLE, f"cannot be decoded: {exc.err}") from None
    if image is None:
        raise ImageFault(_UNREADABLE, f"cannot be decoded as {header.kind}")
    if (image.shape[1], image.shape[0]) != (header.width, header.height):
        raise ImageFault(
            _UNREADABLE, f"decodes to {image.shape[1]}x{image.shape[0]}, its header says {header.width}x{header.height}"
        )
    return np.asarray(image)


# ---- JPEG


def _verify_jpeg(data: bytes, header: Header) -> Decoded:
    """libjpeg-turbo stops at its first warning; which one it is says what is wrong.

    Every coefficient is decoded, which is where damage shows; pixels are made of the few that the look needs.
    """
    remark = ""
    channels, bits = layout(data, header)
    how: dict[str, Any] = {"fastdct": True, "min_height": look.LEAST, "min_width": look.LEAST}
    how["colorspace"] = "CMYK" if channels == 4 else "GRAY"
    try:
        try:
            # Gray skips the colour conversion, not the decoding of any coefficient.
            pixels = simplejpeg.decode_jpeg(data, fastupsample=True, strict=True, **how)
        except ValueError as exc:
            if "extraneous bytes" not in str(exc):
                raise
            # Some cameras write a few bytes too many; so does damage that hits no marker. The rest must be whole.
            remark = str(exc)
            pixels = simplejpeg.decode_jpeg(data, strict=False, **how)
            if b"\xff\xd9" not in data[-(len(data) // 2) :]:
                raise ImageFault(_TRUNCATED, "no end of image in its second half") from None
    except ImageFault:
        raise
    except (ValueError, MemoryError) as exc:
        text = str(exc)
        if "remature end" in text:
            raise ImageFault(_TRUNCATED, f"the JPEG data ends too early ({text}; {len(data)} bytes)") from None
        if b"\xff\xd9" not in data[-64:] and "subsampling" in text:
            raise ImageFault(_TRUNCATED, f"the JPEG data ends too early (no end of image; {len(data)} bytes)") from None
        if "subsampling" in text or "colorspace" in text:  # a rare but valid layout that the fast path cannot do
            return Decoded("", _look(_decode(data, header), data, header))
        raise ImageFault(_UNREADABLE, f"cannot be decoded: {text}") from None
    seen = look.of(pixels, channels, bits, orientation(data, "jpeg"), cmyk=channels == 4)
    return Decoded(remark, seen)


def _jpeg_size(data: bytes) -> tuple[int, int]:
    height, width, _, _ = _jpeg_frame(data)
    return width, height


def _jpeg_frame(data: bytes) -> tuple[int, int, int, int]:
    """Height, width, number of components and bits of each from the frame header (ITU T.81, B.2.2)."""
    at = 2
    while True:
        if data[at] != 0xFF:
            raise ImageFault(_UNREADABLE, f"no JPEG marker at byte {at}, where one must be")
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in _NO_FRAME:
            bits, height, width, components = struct.unpack_from(">BHHB", data, at + 4)
            return height, width, components, bits
        if marker in (0xD9, 0xDA):
            raise ImageFault(_UNREADABLE, "the JPEG data begins before any frame header")
        at += 2 if marker == 0x01 or 0xD0 <= marker <= 0xD8 else 2 + max(2, struct.unpack_from(">H", data, at + 2)[0])


# ---- PNG, WebP, BMP


def _png_size(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


def _decode_png(data: bytes, header: Header) -> NDArray[Any]:
    """libpng looks at the checksum of every chunk that it reads, and need not read to the end. So ours, a twentieth of
    the time of a decode, say only why a file is bad."""
    try:
        pixels = _decode(data, header)
    except ImageFault:
        check_container(data, header)
        raise
    if not data.endswith(_PNG_END):
        check_container(data, header)
    return pixels


def _check_png(data: bytes) -> None:
    """Each chunk whole and its CRC right, to the IEND chunk."""
    at = 8
    while True:
        if at + 12 > len(data):
            raise ImageFault(_TRUNCATED, f"the PNG data ends too early ({len(data)} bytes, no end chunk)")
        (length,) = struct.unpack_from(">I", data, at)
        kind, end = data[at + 4 : at + 8], at + 8 + length
        if end + 4 > len(data):
            raise ImageFault(_TRUNCATED, f"the PNG data ends too early, in a chunk of {length} bytes at byte {at}")
        if zlib.crc32(memoryview(data)[at + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            code = _TRUNCATED if not data[-4:].strip(b"\0") else _UNREADABLE
            raise ImageFault(code, f"the checksum of the PNG chunk at byte {at} is wrong")
        if kind == b"IEND":
            return
        at = end + 4


def _webp_size(data: bytes) -> tuple[int, int]:
    """From the first chunk: lossy (RFC 6386, 9.1), lossless or extended (the WebP container's description)."""
    kind = data[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8X":
        if data[20] & 2:
            raise ImageFault("image_unsupported", "an animated WebP; one picture is needed")
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if len(data) < 16:
        raise IndexError
    raise ImageFault(_UNREADABLE, f"a WebP file with an unknown first chunk {kind!r}")


def _check_webp(data: bytes) -> None:
    declared = struct.unpack_from("<I", data, 4)[0] + 8
    if declared > len(data):
        raise ImageFault(_TRUNCATED, f"the WebP data ends too early ({len(data)} of {declared} bytes)")
    if not data[declared - _ZERO_TAIL : declared].strip(b"\0"):
        # The decoder takes zeros for data; entropy-coded data never ends in so many.
        raise ImageFault(_TRUNCATED, f"the last {_ZERO_TAIL} bytes are zeros: space was reserved and never filled")


def _bmp_size(data: bytes) -> tuple[int, int]:
    if struct.unpack_from("<I", data, 14)[0] == 12:  # the old OS/2 header
        width, height = struct.unpack_from("<HH", data, 18)
        return width, height
    width, height = struct.unpack_from("<ii", data, 18)
    return width, abs(height)


def _check_bmp(data: bytes) -> None:
    """The rows are all there; compressed ones are left to the decoder."""
    (offset,) = struct.unpack_from("<I", data, 10)
    old = struct.unpack_from("<I", data, 14)[0] == 12
    bits = struct.unpack_from("<H", data, 24 if old else 28)[0]
    if not old and len(data) >= 34 and struct.unpack_from("<I", data, 30)[0] not in (0, 3):
        return
    width, height = _bmp_size(data)
    needed = offset + (width * bits + 31) // 32 * 4 * height
    if needed > len(data):
        raise ImageFault(_TRUNCATED, f"the BMP data ends too early ({len(data)} of {needed} bytes)")
