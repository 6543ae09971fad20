"""Confidence intervals of mAP: the AP of a draw against pycocotools on the drawn images, and what the intervals say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refit.cpu.scoring import Truth, ground_truth, results, score
from refit.gates import bootstrap
from refit.postprocess import Detections

CLASSES = ("car", "cat", "dog")


def made(images: int, seed: int, noise: float = 6.0) -> tuple[list[Truth], list[Detections]]:
    """Truth with ignored objects, and detections of which some are shifted, doubled, of a wrong class or made up."""
    r = np.random.default_rng(seed)
    truth, found = [], []
    for i in range(images):
        n = int(r.integers(0, 7))
        corner = r.integers(0, 150, (n, 2)).astype(np.float32)
        boxes = np.concatenate([corner, corner + r.integers(8, 50, (n, 2))], axis=1).astype(np.float32)
        classes = r.integers(0, 3, n)
        truth.append(Truth(f"{i}.png", 200, 200, boxes, classes, r.random(n) < 0.15))
        again = np.concatenate([boxes, boxes[: n // 2]])
        shifted = np.round(again + r.normal(0, noise, again.shape), 2).astype(np.float32)
        shifted[:, 2:] = np.maximum(shifted[:, 2:], shifted[:, :2] + 2)
        names = np.where(r.random(len(again)) < 0.1, 2, np.concatenate([classes, classes[: n // 2]]))
        extra = r.integers(0, 150, (3, 2)).astype(np.float32)
        shifted = np.concatenate([shifted, np.concatenate([extra, extra + 20], axis=1)])
        scores = np.round(r.random(len(shifted)), 1)  # many equal ones
        found.append(Detections(shifted, scores.astype(np.float32), np.concatenate([names, r.integers(0, 3, 3)])))
    return truth, found


def matched(truth: list[Truth], found: list[Detections], min_box_px: float = 0.0) -> dict[str, bootstrap.Matches]:
    return bootstrap.matches(ground_truth(truth, CLASSES), results(truth, found), 100, min_box_px)


@pytest.mark.parametrize("min_box_px", [0.0, 12.0])
@pytest.mark.parametrize("seed", range(8))
def test_each_class_has_the_ap_of_pycocotools(seed: int, min_box_px: float) -> None:
    truth, found = made(40, seed)
    truth = [
        Truth(t.file, 200, 200, t.boxes, t.classes, t.ignore | ((t.boxes[:, 2:] - t.boxes[:, :2]).min(1) < min_box_px))
        for t in truth
    ]
    want = score(truth, found, CLASSES, 100, min_box_px)
    total, by_class = bootstrap.map50(matched(truth, found, min_box_px), np.ones((1, 40), np.uint8))
    for name in CLASSES:
        assert by_class[name][0] == pytest.approx(want.ap50[name], abs=1e-6)
    assert total[0] == pytest.approx(want.map50, abs=1e-6)


def test_a_draw_is_the_ap_of_the_drawn_images() -> None:
    """Scores without ties: a doubled image then has its detections side by side, as the weights say."""
    truth, found = made(30, 3)
    r = np.random.default_rng(1)
    found = [Detections(d.boxes, r.permutation(997)[: len(d.scores)] / 997, d.classes) for d in found]
    weights = bootstrap.draws(30, seed=5, resamples=20)
    totals, _ = bootstrap.map50(matched(truth, found), weights)
    for row, total in zip(weights, totals, strict=True):
        picked = [i for i, n in enumerate(row) for _ in range(int(n))]
        want = score([truth[i] for i in picked], [found[i] for i in picked], CLASSES)
        assert total == pytest.approx(
            want.map50, abs=0.02
        )  # a doubled wrong one between two halves of a doubled right one


def test_nothing_found_and_nothing_to_find() -> None:
    truth, found = made(10, 1)
    empty = Detections(np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.int64))
    none = bootstrap.map50(matched(truth, [empty] * 10), bootstrap.draws(10, 1, 50))[0]
    assert bootstrap.interval(none) == bootstrap.Interval(0.0, 0.0, 0.0)
    blank = [Truth(t.file, 200, 200, t.boxes[:0], t.classes[:0], t.ignore[:0]) for t in truth]
    assert np.isnan(bootstrap.map50(matched(blank, found), bootstrap.draws(10, 1, 5))[0]).all()


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Small sets from one large one: the large one's mAP lies in about 95 % of their intervals (here 85 to 100)."""
    truth, found = made(1500, 11)
    whole = bootstrap.map50(matched(truth, found), np.ones((1, 1500), np.uint8))[0][0]
    inside = 0
    for part in range(60):
        at = slice(part * 25, part * 25 + 25)
        spread = bootstrap.interval(bootstrap.map50(matched(truth[at], found[at]), bootstrap.draws(25, part, 200))[0])
        inside += spread.low <= whole <= spread.high
    assert inside >= 51


def test_two_models_are_told_apart_draw_by_draw() -> None:
    """Each alone is unsure by more than the two differ; the difference of paired draws is not."""
    truth, good = made(120, 21, noise=3.0)
    worse = [
        Detections(d.boxes, d.scores, np.where(np.arange(len(d.classes)) == 0, (d.classes + 1) % 3, d.classes))
        for d in good
    ]
    weights = bootstrap.draws(120, 3, 400)
    a, b = (bootstrap.map50(matched(truth, found), weights)[0] for found in (good, worse))
    difference = bootstrap.interval(a - b)
    assert difference.low > 0
    assert bootstrap.interval(a).low < bootstrap.interval(b).high


def one(cls: int, **changes: Any) -> Detections:
    return Detections(np.array([[10, 10, 30, 30]], np.float32), np.array([0.9], np.float32), np.array([cls]))


def test_a_second_box_on_an_object_is_wrong() -> None:
    truth = [Truth("a.png", 50, 50, np.array([[10, 10, 30, 30]], np.float32), np.array([0]), np.array([False]))]
    twice = Detections(*(np.concatenate([v, v]) for v in (one(0).boxes, one(0).scores, one(0).classes)))
    m = matched(truth, [twice])["car"]
    assert (len(m.tp), len(m.fp), m.before.tolist()) == (1, 1, [0])
