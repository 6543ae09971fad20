"""An image that does not decode whole is found wherever it was cut, and a good one never is."""

from __future__ import annotations

import pytest

from tests.data.helpers import encoded, picture  # isort: skip (it skips this module where the decoders are missing)

import cv2
import numpy as np

from refit.data import images

SMOOTH = cv2.resize(picture(0, 12, 8), (160, 96), interpolation=cv2.INTER_CUBIC)


def _jpeg(*flags: int, image: np.ndarray = SMOOTH) -> bytes:
    return cv2.imencode(".jpg", image, list(flags))[1].tobytes()


KINDS = {
    "baseline": _jpeg(),
    "progressive": _jpeg(cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    "restart": _jpeg(cv2.IMWRITE_JPEG_RST_INTERVAL, 3),
    "4:4:4": _jpeg(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111),
    "4:1:1": _jpeg(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x411111),
    "gray": _jpeg(image=SMOOTH[:, :, 0]),
    "png": cv2.imencode(".png", SMOOTH)[1].tobytes(),
    "png16": cv2.imencode(".png", SMOOTH.astype(np.uint16) * 200)[1].tobytes(),
    "webp": cv2.imencode(".webp", SMOOTH, [cv2.IMWRITE_WEBP_QUALITY, 80])[1].tobytes(),
    "webp lossless": cv2.imencode(".webp", SMOOTH, [cv2.IMWRITE_WEBP_QUALITY, 101])[1].tobytes(),
    "bmp": cv2.imencode(".bmp", SMOOTH)[1].tobytes(),
}


def _judge(data: bytes) -> str:
    """The fault's code, the remark on a usable image, or "ok"."""
    try:
        header = images.read_header(data)
        return images.verify(data, header).remark or "ok"
    except images.ImageFault as exc:
        return exc.code


@pytest.mark.parametrize("kind", KINDS)
def test_whole_image(kind: str) -> None:
    header = images.read_header(KINDS[kind])
    assert (header.width, header.height) == (160, 96)
    assert images.verify(KINDS[kind], header).remark == ""


@pytest.mark.parametrize("kind", KINDS)
def test_cut_anywhere(kind: str) -> None:
    data = KINDS[kind]
    places = [
        *range(min(len(data), 60)),
        *range(60, len(data), max(1, len(data) // 150)),
        *range(len(data) - 20, len(data)),
    ]
    passed = [k for k in places if _judge(data[:k]) not in ("image_truncated", "image_unreadable")]
    assert passed == []


@pytest.mark.parametrize("kind", ["baseline", "progressive", "restart", "gray", "png", "webp", "webp lossless"])
def test_reserved_but_never_filled(kind: str) -> None:
    """A download that was broken off keeps its full length, with zeros at the end."""
    data = KINDS[kind]
    for k in range(len(data) // 4, len(data) - 64, max(1, len(data) // 40)):
        assert _judge(data[:k] + bytes(len(data) - k)) in ("image_truncated", "image_unreadable"), k


@pytest.mark.parametrize("kind", ["png", "png16"])
def test_no_bit_of_a_png_turns_over_unseen(kind: str) -> None:
    """Its checksums cover all but the signature and the fields of the header that say its size (tested below)."""
    data = KINDS[kind]
    for at in [*range(24, 90), *range(90, len(data) - 40, 97), *range(len(data) - 40, len(data))]:
        turned = bytearray(data)
        turned[at] ^= 1 << at % 8
        assert _judge(bytes(turned)) in ("image_truncated", "image_unreadable"), at


@pytest.mark.parametrize("kind", ["baseline", "restart", "gray"])
def test_cut_and_closed_again(kind: str) -> None:
    """Some tools write an end marker behind what is left."""
    data = KINDS[kind]
    for k in range(len(data) // 3, len(data) - 200, max(1, len(data) // 40)):
        assert _judge(data[:k] + b"\xff\xd9") == "image_truncated", k


def test_bytes_behind_the_end_are_harmless() -> None:
    assert _judge(KINDS["baseline"] + b"camera maker's notes" * 20) == "ok"


def test_damage_that_decodes_is_remarked() -> None:
    data = KINDS["baseline"]
    end = data.rindex(b"\xff\xd9")
    assert "extraneous bytes" in _judge(data[:end] + b"\x12\x34\x56\x78" * 8 + data[end:])


def test_cmyk_is_read() -> None:
    simplejpeg = pytest.importorskip("simplejpeg")
    cmyk = np.ascontiguousarray(np.dstack([SMOOTH, SMOOTH[:, :, :1]]))
    data = simplejpeg.encode_jpeg(cmyk, colorspace="CMYK", colorsubsampling="444")
    assert _judge(data) == "ok"


@pytest.mark.parametrize(
    ("data", "code", "message"),
    [
        (b"", "image_truncated", "empty"),
        (bytes(5000), "image_unreadable", "only zero bytes"),
        (b"<html><body>404</body></html>", "image_unreadable", "not a JPEG"),
        (b"\xff\xd8\xff", "image_truncated", "header"),
        (b"\x89PNG\r\n\x1a\n" + bytes(20), "image_unreadable", "0x0"),
        (b"BM" + bytes(10), "image_truncated", "header"),
        (b"\xff\xd8\xff\xda" + bytes(50), "image_unreadable", "before any frame"),
    ],
)
def test_no_image(data: bytes, code: str, message: str) -> None:
    with pytest.raises(images.ImageFault, match=message) as caught:
        images.read_header(data)
    assert caught.value.code == code


def test_absurd_size_is_refused_before_decoding() -> None:
    data = bytearray(encoded(1, ".png"))
    data[16:24] = (100_000).to_bytes(4, "big") * 2
    with pytest.raises(images.ImageFault, match="100000x100000"):
        images.read_header(bytes(data))


def test_a_forged_size_breaks_the_checksum() -> None:
    data = bytearray(encoded(1, ".png"))
    data[16:20] = (63).to_bytes(4, "big")
    assert _judge(bytes(data)) == "image_unreadable"
