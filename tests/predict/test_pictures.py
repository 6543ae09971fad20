"""Bytes to pixels: what the old way of decoding gives, and no half images."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest

from refit import picture
from refit.predict.images import Unreadable
from refit.predict.pictures import decode
from tests.predict.made import encoded, noise


def smooth(width: int, height: int) -> np.ndarray:
    return cv2.GaussianBlur(noise(3, width, height), (0, 0), 5)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tif"])
@pytest.mark.parametrize("size", [(640, 480), (33, 17)])
def test_the_pixels_are_opencv_s(suffix: str, size: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(encoded(smooth(*size), suffix))
    assert np.array_equal(decode(path.read_bytes()), picture.read(path))


def test_grey_and_turned_jpegs(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(cv2.imencode(".jpg", smooth(64, 48)[..., 0])[1].tobytes())
    assert np.array_equal(decode(path.read_bytes()), picture.read(path))
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"  # orientation 6: a quarter turn
    data = encoded(smooth(64, 48))
    path.write_bytes(data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:])
    assert decode(path.read_bytes()).shape == (48, 64, 3)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp"])
def test_a_cut_off_image_is_none(suffix: str) -> None:
    data = encoded(noise(1, 320, 200), suffix)
    for share in (0.0, 0.05, 0.5, 0.95):
        with pytest.raises(Unreadable) as caught:
            decode(data[: int(len(data) * share)])
        assert caught.value.code in ("image_truncated", "image_unreadable")


def test_what_is_no_image() -> None:
    for data in (b"<html>404</html>", b"II*\0" + b"\0" * 40, b"\0" * 4096, io.BytesIO().getvalue()):
        with pytest.raises(Unreadable):
            decode(data)
