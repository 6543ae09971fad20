"""Drawing: boxes where they belong, labels in the picture, colours that can be told apart."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from refit.postprocess.draw import class_color, contact_sheet, draw_boxes


def test_a_box_is_drawn_on_its_edge_and_the_input_stays() -> None:
    image = np.full((200, 300, 3), 90, np.uint8)
    out = draw_boxes(image, np.array([[50.0, 60, 120, 150]]), [1], ["car", "person"], [0.5])
    assert (image == 90).all()
    for y, x in ((60, 80), (149, 80), (100, 50), (100, 119)):
        assert tuple(out[y, x]) == class_color(1)
    changed = (out != 90).any(axis=2)
    assert not changed[65:145, 55:115].any()
    assert not changed[155:].any()
    assert changed[:60].any()  # the label, above the box


@pytest.mark.parametrize("corner", [(0, 0), (299, 0), (0, 199), (299, 199)])
def test_a_label_at_the_edge_is_as_large_as_any(corner: tuple[int, int]) -> None:
    image = np.zeros((200, 300, 3), np.uint8)

    def ink(x: int, y: int) -> int:
        out = draw_boxes(image, np.array([[x, y, x + 1, y + 1]]), [0], ["person"], [0.99])
        return int((out == class_color(0)).all(axis=2).sum())

    assert ink(150, 100) > 300
    assert abs(ink(*corner) - ink(150, 100)) <= 4  # the box itself, a dot


def test_no_box_no_ink() -> None:
    image = np.zeros((20, 30, 3), np.uint8)
    assert not draw_boxes(image, np.zeros((0, 4)), [], ["person"]).any()


def test_neighbouring_classes_have_different_colors() -> None:
    colors = [np.array(class_color(i), int) for i in range(8)]
    assert min(np.abs(a - b).sum() for a, b in itertools.combinations(colors, 2)) > 60


def test_a_sheet_holds_each_image_in_its_cell() -> None:
    images = [np.full((h, w, 3), 100 + 20 * i, np.uint8) for i, (h, w) in enumerate([(10, 10), (300, 100), (50, 900)])]
    sheet = contact_sheet(images, columns=2, cell=(80, 60))
    assert sheet.shape == (120, 160, 3)
    for i, (y, x) in enumerate([(30, 40), (30, 120), (90, 40)]):
        assert (sheet[y, x] == 100 + 20 * i).all()
    assert (sheet[60:, 80:] == 32).all()


def test_captions_stand_below_the_images_and_inside_their_cells() -> None:
    images = [np.full((60, 80, 3), 90, np.uint8) for _ in range(4)]
    plain = contact_sheet(images, columns=2, cell=(80, 60))
    sheet = contact_sheet(images, columns=2, cell=(80, 60), captions=["a caption that is too long", "", "", ""])
    assert sheet.shape == plain.shape
    inked = np.argwhere((sheet != 90).any(axis=2) & (sheet != 32).any(axis=2))
    assert len(inked) > 50
    assert (inked.min(axis=0) >= [42, 0]).all()
    assert (inked.max(axis=0) < [60, 80]).all()
