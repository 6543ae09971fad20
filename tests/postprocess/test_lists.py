"""Decoders of networks that suppress by themselves, and of the DETR family, by hand-made answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from refit.postprocess import Frame, InputInfo, ModelInfo, ModelInfoError, OutputError, Postprocess, decoder_for

CLASSES = ("car", "person")
INPUT = InputInfo("x", 200, 100)
FRAME = Frame(400, 400, 0.5, 0.25)  # an image of 400 x 400 on the whole input
LISTS = {"count": "n", "boxes": "b", "scores": "s", "classes": "c"}


def described(decoder: str, outputs: dict[str, str], ids: tuple[int, ...] = ()) -> ModelInfo:
    return ModelInfo(decoder, CLASSES, INPUT, outputs, postprocess=Postprocess(0.3, max_detections=2), class_ids=ids)


def test_nms_reads_rows_of_seven() -> None:
    rows = [
        [0, 2, 0.5, 0.1, 0.2, 0.3, 0.4],
        [0, 1, 0.9, 0.0, 0.0, 0.5, 0.5],
        [0, 0, 0.9, 0.0, 0.0, 0.5, 0.5],  # background
        [0, 1, 0.2, 0.1, 0.1, 0.3, 0.3],  # below the threshold
        [0, -1, 0, 0, 0, 0, 0],  # not used
    ]
    answer = {"NMS": np.array([[rows]], np.float32), "NMS_1": np.zeros((1, 1, 1, 1), np.float32)}
    (found,) = decoder_for(described("nms", {"detections": "NMS"}, (1, 2)))(answer, [FRAME])
    assert found.classes.tolist() == [0, 1]
    assert found.scores.tolist() == pytest.approx([0.9, 0.5])
    assert found.boxes.tolist() == pytest.approx(np.array([[0, 0, 200, 200], [40, 80, 120, 160]]), abs=1e-3)
    assert found.classes.dtype == np.int64
    assert found.boxes.dtype == found.scores.dtype == np.float32


def test_ids_start_at_0_where_the_description_is_silent() -> None:
    rows = np.array([[[[0, 1, 0.9, 0, 0, 0.5, 0.5], [0, 2, 0.8, 0, 0, 0.5, 0.5]]]], np.float32)
    (found,) = decoder_for(described("nms", {"detections": "NMS"}))({"NMS": rows}, [FRAME])
    assert found.classes.tolist() == [1]  # 2 is faster_rcnn's background


def lists(box: list[float], kind: type = np.float32) -> dict[str, np.ndarray]:
    """One object in the first image, none in the second; what stands behind the count is garbage."""
    return {
        "n": np.array([[1], [0]], np.int32),
        "b": np.array([[box, [0, 0, 1, 1]]] * 2, np.float32),
        "s": np.full((2, 2), 0.8, np.float32),
        "c": np.array([[1, 0], [0, 0]], kind),
    }


def test_batched_nms_is_in_parts_of_the_input() -> None:
    found = decoder_for(described("batched_nms", LISTS))(lists([0.1, 0.2, 0.3, 0.4]), [FRAME, FRAME])
    assert [len(f) for f in found] == [1, 0]
    assert found[0].classes.tolist() == [1]
    assert found[0].boxes.tolist() == pytest.approx(np.array([[40, 80, 120, 160]]), abs=1e-3)


def test_efficientdet_is_in_pixels_and_y_comes_first() -> None:
    found = decoder_for(described("efficientdet", LISTS))(lists([20, 10, 40, 60], np.int32), [FRAME, FRAME])
    assert [len(f) for f in found] == [1, 0]
    assert found[0].boxes.tolist() == [[20, 80, 120, 160]]


def test_detr_takes_the_best_pairs_of_query_and_id() -> None:
    logits = np.full((1, 3, 3), -100, np.float32)
    logits[0, 0, 1], logits[0, 0, 2], logits[0, 1, 2] = 2, 1, 0  # the third is one too many
    boxes = np.array([[[0.2, 0.3, 0.2, 0.2], [0.5, 0.5, 0.1, 0.1], [0.5, 0.5, 0, 0]]], np.float32)
    info = described("detr", {"logits": "l", "boxes": "b"}, (1, 2))
    (found,) = decoder_for(info)({"l": logits, "b": boxes}, [FRAME])
    assert found.classes.tolist() == [0, 1]
    assert found.scores.tolist() == pytest.approx([0.880797, 0.731059])
    assert found.boxes.tolist() == pytest.approx(np.array([[40, 80, 120, 160]] * 2), abs=1e-3)


def test_detr_counts_pairs_of_no_class_among_the_best() -> None:
    logits = np.array([[[5, 4, 3]]], np.float32)
    boxes = np.array([[[0.5, 0.5, 0.5, 0.5]]], np.float32)
    info = described("detr", {"logits": "l", "boxes": "b"}, (1, 2))
    (found,) = decoder_for(info)({"l": logits, "b": boxes}, [FRAME])
    assert found.classes.tolist() == [0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": np.array([[3], [0]], np.int32)}, r"'n' is \[3, 0\] \(int32\), expected whole numbers in 0\.\.2"),
        ({"n": np.array([[1], [0]], np.float32)}, r"'n' is \[1\.0, 0\.0\] \(float32\), expected whole numbers"),
        ({"s": np.zeros((2, 3), np.float32)}, r"'s' is \[2, 3\], expected \[2, 2\]"),
        ({"b": np.zeros((2, 8), np.float32)}, r"'b' is \[2, 8\], expected \[2, any, 4\]"),
    ],
)
def test_answers_that_do_not_fit(change: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(OutputError, match=message):
        decoder_for(described("batched_nms", LISTS))(lists([0, 0, 1, 1]) | change, [FRAME, FRAME])


@pytest.mark.parametrize(
    ("decoder", "role"),
    [("nms", "detections"), ("batched_nms", "classes"), ("efficientdet", "count"), ("detr", "logits")],
)
def test_a_role_without_a_tensor(decoder: str, role: str) -> None:
    info = described(decoder, {**LISTS, "detections": "d", "logits": "l"})
    outputs = {k: v for k, v in info.outputs.items() if k != role}
    with pytest.raises(ModelInfoError, match=rf"outputs\.{role} is missing; decoder '{decoder}' needs"):
        decoder_for(replace(info, outputs=outputs))
