"""Pictures into the input, and boxes there and back."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from refit.postprocess import Frame, InputInfo, preprocess, resize
from refit.postprocess.resample import resample

RESIZES: list[Literal["letterbox", "stretch"]] = ["letterbox", "stretch"]


def bounds(mask: NDArray[np.bool_]) -> list[int]:
    """x1, y1, x2, y2 (exclusive) of what is set."""
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


@pytest.mark.parametrize("mode", RESIZES)
@pytest.mark.parametrize("size", [(640, 480), (480, 640), (100, 40), (320, 192), (33, 71)])
def test_a_painted_box_is_where_the_frame_says(mode: Literal["letterbox", "stretch"], size: tuple[int, int]) -> None:
    width, height = size
    box = np.array([width * 0.25, height * 0.5, width * 0.75, height * 0.9]).round().astype(int)
    image = np.zeros((height, width, 3), np.uint8)
    image[box[1] : box[3], box[0] : box[2]] = 255
    small, frame = resize(image, InputInfo("x", 320, 192, resize=mode))
    assert small.shape == (192, 320, 3)
    assert bounds(small[..., 0] > 127) == pytest.approx(frame.to_input(box.astype(np.float32)).tolist(), abs=1.01)


def test_letterbox_keeps_the_aspect_and_fills_with_black() -> None:
    small, frame = resize(np.full((100, 100, 3), 200, np.uint8), InputInfo("x", 320, 192))
    assert (frame.scale_x, frame.scale_y) == (1.92, 1.92)
    assert (small[:, :192] == 200).all()
    assert not small[:, 192:].any()


def test_stretch_fills_the_input() -> None:
    small, frame = resize(np.full((100, 100, 3), 200, np.uint8), InputInfo("x", 320, 192, resize="stretch"))
    assert (frame.scale_x, frame.scale_y) == (3.2, 1.92)
    assert (small == 200).all()


def test_the_input_size_itself_is_untouched() -> None:
    image = np.random.default_rng(0).integers(0, 256, (192, 320, 3), dtype=np.uint8)
    small, frame = resize(image, InputInfo("x", 320, 192))
    assert np.array_equal(small, image)
    assert frame == Frame(320, 192, 1.0, 1.0)


@settings(deadline=None)
@given(
    st.integers(1, 4000),
    st.integers(1, 4000),
    st.sampled_from(RESIZES),
    st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4),
)
def test_there_and_back(width: int, height: int, mode: Literal["letterbox", "stretch"], at: list[float]) -> None:
    frame = Frame.fit(width, height, InputInfo("x", 416, 320, resize=mode))
    x, y = sorted((at[0] * width, at[1] * width)), sorted((at[2] * height, at[3] * height))
    box = np.array([[x[0], y[0], x[1], y[1]]])
    inside = frame.to_input(box)
    assert (inside >= -1e-3).all()
    assert (inside <= np.array([416, 320, 416, 320]) + 1e-3).all()
    assert frame.to_image(inside) == pytest.approx(box, abs=max(width, height) * 1e-5)


@pytest.mark.parametrize(("size", "corner"), [((100, 100), (64, 0)), ((320, 100), (0, 46)), ((320, 192), (0, 0))])
def test_a_letterbox_in_the_centre(size: tuple[int, int], corner: tuple[int, int]) -> None:
    target = InputInfo("x", 320, 192, place="centre")
    small, frame = resize(np.full((size[1], size[0], 3), 200, np.uint8), target)
    assert (frame.pad_x, frame.pad_y) == corner
    whole = frame.to_input(np.array([0, 0, *size]))
    assert bounds(small[..., 0] == 200) == whole.tolist()
    assert frame.to_image(whole).tolist() == [0, 0, *size]


def test_the_colours_of_the_margin() -> None:
    image = np.zeros((100, 100, 3), np.uint8)
    image[:50], image[:, :, 2] = (100, 50, 0), 30
    for fill, colour in {"black": [0, 0, 0], "imagenet": [124, 116, 104], "mean": [50, 25, 30]}.items():
        small, _ = resize(image, InputInfo("x", 320, 192, fill=fill))  # type: ignore[arg-type]
        assert small[0, -1].tolist() == colour
    grey, _ = resize(image[..., :1], InputInfo("x", 320, 192, channels=1, fill="mean"))
    assert grey[0, -1].tolist() == [50]


def test_boxes_are_cut_at_the_image() -> None:
    frame = Frame(100, 50, 2.0, 2.0, pad_x=10, pad_y=4)
    assert frame.to_input(np.array([0, 0, 100, 50])).tolist() == [10, 4, 210, 104]
    assert frame.to_image(np.array([-50, -50, 999, 999])).tolist() == [0, 0, 100, 50]


def test_the_tensor() -> None:
    image = np.zeros((96, 160, 3), np.uint8)
    image[..., 0], image[..., 2] = 255, 51
    tensor, _ = preprocess(image, InputInfo("x", 160, 96))
    assert tensor.shape == (1, 3, 96, 160)
    assert tensor.dtype == np.float32
    assert tensor.flags.c_contiguous
    assert tensor[0, :, 0, 0].tolist() == pytest.approx([1.0, 0.0, 0.2])


def test_order_layout_mean_and_deviation() -> None:
    image = np.zeros((96, 160, 3), np.uint8)
    image[...] = 10, 20, 30
    target = InputInfo("x", 160, 96, scale=0.5, channel_order="bgr", mean=(1, 2, 3), std=(2, 4, 8), layout="nhwc")
    tensor, _ = preprocess(image, target)
    assert tensor.shape == (1, 96, 160, 3)
    assert tensor[0, 5, 7].tolist() == [(15 - 1) / 2, (10 - 2) / 4, (5 - 3) / 8]
    first, _ = preprocess(image, replace(target, layout="nchw"))
    assert first.flags.c_contiguous
    assert np.array_equal(first, tensor.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("how", ["bilinear", "lanczos"])
@pytest.mark.parametrize("size", [(64, 48), (50, 90), (7, 5), (130, 131)])
def test_the_filters_are_pillows(how: str, size: tuple[int, int]) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    image, kind = Image.fromarray(picture), Image.Resampling[how.upper()]
    theirs = np.asarray(image.resize((size[0], 48), kind).resize(size, kind), dtype=int)
    assert abs(resample(picture, size, how) - theirs).max() <= 2
    assert abs(resample(picture, size, how) - theirs).mean() < 0.05


def test_only_linear_skips_pixels_as_a_picture_shrinks() -> None:
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::8] = 240  # an eighth is bright
    spread = {}
    for how in ("area", "linear", "bilinear", "lanczos"):
        small, _ = resize(stripes, InputInfo("x", 8, 8, channels=1, interpolation=how))  # type: ignore[arg-type]
        spread[how] = abs(small[:, 1:-1].astype(int) - 30).max()
    assert spread["linear"] == 30
    assert max(spread["area"], spread["bilinear"], spread["lanczos"]) <= 2


@pytest.mark.parametrize("shape", [(96, 160), (96, 160, 1), (96, 160, 3)])
def test_grey_and_colour_go_into_either_kind_of_input(shape: tuple[int, ...]) -> None:
    image = np.full(shape, 80, np.uint8)
    for channels in (1, 3):
        tensor, _ = preprocess(image, InputInfo("x", 80, 48, channels=channels))
        assert tensor.shape == (1, channels, 48, 80)
        assert tensor == pytest.approx(np.full(tensor.shape, 80 / 255), abs=1e-6)


def test_one_pixel_is_an_image_too() -> None:
    small, frame = resize(np.full((1, 1, 3), 9, np.uint8), InputInfo("x", 64, 64))
    assert small.shape == (64, 64, 3)
    assert frame.scale_x == 64
    thin, _ = resize(np.full((1, 5000, 3), 9, np.uint8), InputInfo("x", 64, 64))
    assert (thin[0] == 9).all()
    assert not thin[1:].any()
