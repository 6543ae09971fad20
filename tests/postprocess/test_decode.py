"""Decoding a grid with plain NMS, against outputs made by hand and against a plain, slow reading of the same rules."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from refit.postprocess import Frame, InputInfo, ModelInfo, ModelInfoError, OutputError, Postprocess, decoder_for
from refit.postprocess.nms import iou, nms

STRIDE, WIDTH, HEIGHT = 16, 160, 96
INFO = ModelInfo(
    "detectnet_v2",
    ("car", "person"),
    InputInfo("x", WIDTH, HEIGHT),
    {"coverage": "cov", "bbox": "box"},
    stride=STRIDE,
    postprocess=Postprocess(0.3, 0.5, 10),
)
SAME = Frame(WIDTH, HEIGHT, 1.0, 1.0)


class Answer:
    """Outputs for one image, filled cell by cell."""

    def __init__(self) -> None:
        self.cov = np.zeros((1, 2, HEIGHT // STRIDE, WIDTH // STRIDE), np.float32)
        self.box = np.zeros((1, 8, HEIGHT // STRIDE, WIDTH // STRIDE), np.float32)

    def put(self, cls: int, column: int, row: int, box: tuple[float, ...], score: float) -> Answer:
        x, y = column * STRIDE + 0.5, row * STRIDE + 0.5
        self.cov[0, cls, row, column] = score
        self.box[0, 4 * cls : 4 * cls + 4, row, column] = (
            np.array([x - box[0], y - box[1], box[2] - x, box[3] - y]) / 35
        )
        return self

    def outputs(self) -> dict[str, NDArray[Any]]:
        return {"cov": self.cov, "box": self.box, "other": np.zeros(1)}


def test_one_object() -> None:
    answer = Answer().put(1, 3, 2, (30, 20, 80, 60), 0.9)
    (found,) = decoder_for(INFO)(answer.outputs(), [SAME])
    assert found.boxes.tolist() == pytest.approx(np.array([[30, 20, 80, 60]]), abs=1e-4)
    assert found.scores.tolist() == pytest.approx([0.9])
    assert found.classes.tolist() == [1]
    assert found.boxes.dtype == found.scores.dtype == np.float32
    assert found.classes.dtype == np.int64


def test_boxes_come_in_pixels_of_the_original_image() -> None:
    answer = Answer().put(0, 3, 2, (30, 20, 80, 60), 0.9)
    frame = Frame(400, 100, 0.4, 0.8, pad_x=10, pad_y=4)
    (found,) = decoder_for(INFO)(answer.outputs(), [frame])
    assert found.boxes.tolist() == pytest.approx(np.array([[50, 20, 175, 70]]), abs=1e-3)


def test_overlaps_are_joined_within_a_class_only() -> None:
    box = (30.0, 20.0, 80.0, 60.0)
    answer = Answer().put(0, 3, 2, box, 0.8).put(0, 4, 2, (31, 20, 80, 60), 0.9).put(1, 3, 2, box, 0.7)
    (found,) = decoder_for(INFO)(answer.outputs(), [SAME])
    assert found.classes.tolist() == [0, 1]
    assert found.scores.tolist() == pytest.approx([0.9, 0.7])


def test_weak_ones_and_empty_boxes_are_left_out() -> None:
    answer = Answer().put(0, 1, 1, (5, 5, 40, 40), 0.29).put(0, 6, 3, (100, 50, 100, 60), 0.9)
    (found,) = decoder_for(INFO)(answer.outputs(), [SAME])
    assert len(found) == 0
    assert found.boxes.shape == (0, 4)


def test_the_threshold_itself_is_kept() -> None:
    answer = Answer().put(0, 1, 1, (5, 5, 40, 40), np.float32(0.25).item())
    info = replace(INFO, postprocess=Postprocess(0.25))
    assert len(decoder_for(info)(answer.outputs(), [SAME])[0]) == 1


def test_at_most_so_many_and_the_best() -> None:
    answer = Answer()
    for i in range(8):
        answer.put(i % 2, i, 2, (i * 16 + 2, 34, i * 16 + 12, 44), 0.4 + i / 20)
    info = replace(INFO, postprocess=Postprocess(0.3, 0.5, 3))
    (found,) = decoder_for(info)(answer.outputs(), [SAME])
    assert found.scores.tolist() == pytest.approx([0.75, 0.7, 0.65])


def test_a_batch_keeps_its_order() -> None:
    a, b = Answer().put(0, 3, 2, (30, 20, 80, 60), 0.9), Answer().put(1, 5, 2, (60, 20, 110, 60), 0.8)
    outputs = {"cov": np.concatenate([a.cov, b.cov]), "box": np.concatenate([a.box, b.box])}
    found = decoder_for(INFO)(outputs, [SAME, SAME])
    assert [f.classes.tolist() for f in found] == [[0], [1]]


def test_above() -> None:
    answer = Answer().put(0, 1, 1, (5, 5, 40, 40), 0.5).put(0, 6, 3, (80, 40, 120, 60), 0.9)
    (found,) = decoder_for(INFO)(answer.outputs(), [SAME])
    assert len(found) == 2
    assert found.above(0.6).scores.tolist() == pytest.approx([0.9])


def test_answers_that_do_not_fit() -> None:
    decode, good = decoder_for(INFO), Answer().outputs()
    with pytest.raises(OutputError, match=r"no output 'box' \(bbox\); it gave cov"):
        decode({"cov": good["cov"]}, [SAME])
    with pytest.raises(OutputError, match=r"'cov' is \[1, 2, 6, 10\], expected \[2, 2, 6, 10\]"):
        decode(good, [SAME, SAME])


def test_descriptions_that_do_not_fit() -> None:
    with pytest.raises(
        ModelInfoError, match="decoder is 'yolo'; known here: detectnet_v2, nms, batched_nms, efficientdet, detr"
    ):
        decoder_for(replace(INFO, decoder="yolo"))
    with pytest.raises(ModelInfoError, match=r"outputs\.bbox is missing"):
        decoder_for(replace(INFO, outputs={"coverage": "cov"}))


def plain_nms(boxes: NDArray[np.float32], scores: NDArray[np.float32], threshold: float) -> list[int]:
    kept: list[int] = []
    for i in sorted(range(len(scores)), key=lambda i: (-scores[i], i)):
        if all(iou(boxes[k], boxes[i : i + 1])[0] <= threshold for k in kept):
            kept.append(i)
    return kept


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 40), st.integers(0, 2**31), st.floats(0, 1))
def test_nms_against_the_plain_way(count: int, seed: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 100, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0, 60, (count, 2))], axis=1).astype(np.float32)
    scores = rng.integers(0, 8, count).astype(np.float32) / 8  # many ties
    assert nms(boxes, scores, threshold).tolist() == plain_nms(boxes, scores, threshold)
    assert nms(boxes, scores, threshold, limit=3).tolist() == plain_nms(boxes, scores, threshold)[:3]


def test_iou() -> None:
    box = np.array([0.0, 0.0, 10.0, 10.0])
    others = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30], [3, 3, 3, 3]], float)
    assert iou(box, others).tolist() == pytest.approx([1, 1 / 3, 0, 0])
    assert iou(others[3], others[3:]).tolist() == [0]
