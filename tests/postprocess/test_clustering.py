"""TAO's clustering, by hand-made cells; and DBSCAN against its plain definition, and scikit-learn where that is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from refit.postprocess import Clustering, Frame, InputInfo, ModelInfo, Postprocess, decoder_for
from refit.postprocess.clustering import cluster, dbscan

ONE = np.array([[10, 10, 50, 50], [12, 10, 52, 50], [100, 0, 140, 8]], np.float32)  # two that overlap, and a flat one
DBSCAN = Clustering(dbscan_eps=0.3, dbscan_min_samples=1)


def test_dbscan_gives_the_weighted_mean_and_the_sum_of_coverage() -> None:
    boxes, scores = cluster(ONE, np.array([0.9, 0.3, 0.8], np.float32), DBSCAN)
    assert boxes.tolist() == [pytest.approx([10.5, 10, 50.5, 50])]
    assert scores.tolist() == pytest.approx([1.2])  # 0.8 alone is below min_samples


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({"minimum_bounding_box_height": 7.9}, 2),
        ({"minimum_bounding_box_height": 8}, 1),  # TAO leaves out what is not higher
        ({"dbscan_confidence_threshold": 1.5}, 1),
        ({"coverage_threshold": 0.4}, 2),
        ({"dbscan_eps": 0.05}, 3),
        ({"dbscan_min_samples": 2}, 1),
    ],
)
def test_each_limit_of_dbscan(change: dict[str, float], kept: int) -> None:
    coverage = np.array([1.75, 1.0, 1.25], np.float32)
    assert len(cluster(ONE, coverage, replace(DBSCAN, **change))[0]) == kept


def test_cells_need_more_than_the_coverage_threshold() -> None:
    at = Clustering("nms", coverage_threshold=0.5)
    assert len(cluster(ONE, np.array([0.5, 0.5, 0.75], np.float32), at)[0]) == 1


def test_nms_keeps_the_best_with_its_own_score_and_knows_no_height() -> None:
    chosen = Clustering("nms", minimum_bounding_box_height=20, nms_iou_threshold=0.5, nms_confidence_threshold=0.2)
    boxes, scores = cluster(ONE, np.array([0.3, 0.9, 0.21], np.float32), chosen)
    assert boxes.tolist() == ONE[[1, 2]].tolist()
    assert scores.tolist() == pytest.approx([0.9, 0.21])
    assert len(cluster(ONE, np.array([0.3, 0.9, 0.2], np.float32), chosen)[0]) == 1


def test_hybrid_suppresses_within_what_dbscan_keeps() -> None:
    chosen = Clustering("hybrid", dbscan_eps=0.3, minimum_bounding_box_height=20)
    boxes, scores = cluster(ONE, np.array([0.9, 0.8, 1.5], np.float32), chosen)
    assert boxes.tolist() == ONE[[0]].tolist()
    assert scores.tolist() == pytest.approx([0.9])


@pytest.mark.parametrize("algorithm", ["dbscan", "nms", "hybrid"])
def test_nothing_there(algorithm: str) -> None:
    boxes, scores = cluster(ONE, np.zeros(3, np.float32), Clustering(algorithm))  # type: ignore[arg-type]
    assert boxes.shape == (0, 4)
    assert scores.shape == (0,)


def near(points: NDArray[np.float64], eps: float) -> list[NDArray[np.intp]]:
    return [np.nonzero(abs(points - p) <= eps)[0] for p in points]


def by_definition(neighbours: list[NDArray[np.intp]], weights: NDArray[np.float64], least: float) -> list[int]:
    """Cores are joined until nothing changes; groups are counted by their first core; others take the lowest."""
    cores = [i for i, n in enumerate(neighbours) if weights[n].sum() >= least]
    group = {i: i for i in cores}
    changed = True
    while changed:
        changed = False
        for i in cores:
            lowest = min(group[j] for j in neighbours[i] if j in group)
            changed, group[i] = changed or lowest != group[i], lowest
    order = sorted(set(group.values()))
    return [
        min((order.index(group[j]) for j in ([i] if i in group else n) if j in group), default=-1)
        for i, n in enumerate(neighbours)
    ]


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 60), st.integers(0, 2**31), st.floats(0.1, 6), st.floats(0, 4))
def test_dbscan_against_its_definition(count: int, seed: int, eps: float, least: float) -> None:
    rng = np.random.default_rng(seed)
    neighbours, weights = near(rng.uniform(0, 40, count), eps), rng.random(count)
    assert dbscan(neighbours, weights, least).tolist() == by_definition(neighbours, weights, least)


def test_dbscan_against_scikit_learn() -> None:
    cluster_of = pytest.importorskip("sklearn.cluster", reason="scikit-learn is in none of Refit's environments")
    for seed in range(20):
        rng = np.random.default_rng(seed)
        points, weights = rng.uniform(0, 100, 300), rng.random(300).astype(np.float32)
        eps, least = float(rng.uniform(0.1, 2)), int(rng.integers(1, 5))
        theirs = cluster_of.DBSCAN(eps=eps, min_samples=least, metric="precomputed")
        labels = theirs.fit_predict(abs(points[:, None] - points), sample_weight=weights)
        assert dbscan(near(points, eps), weights, least).tolist() == labels.tolist()


def test_detectnet_v2_clusters_each_class_in_its_way_and_comes_back_to_the_image() -> None:
    coverage = np.zeros((1, 2, 3, 4), np.float32)
    distance = np.zeros((1, 8, 3, 4), np.float32)
    coverage[0, :, 1, 1:3] = 0.75
    for column in (1, 2):  # both cells: 16, 8, 56, 40 of an input of 64 x 48
        x, y = column * 16 + 0.5, 16.5
        distance[0, :, 1, column] = np.tile([x - 16, y - 8, 56 - x, 40 - y], 2) / 35
    info = ModelInfo(
        "detectnet_v2",
        ("car", "person"),
        InputInfo("x", 64, 48, resize="stretch"),
        {"coverage": "cov", "bbox": "box"},
        postprocess=Postprocess(0.0),
        clustering={"default": replace(DBSCAN, dbscan_confidence_threshold=1.5), "person": Clustering("nms")},
    )
    (found,) = decoder_for(info)({"cov": coverage, "box": distance}, [Frame.fit(640, 240, info.input)])
    assert found.classes.tolist() == [0, 1]
    assert found.scores.tolist() == [1.5, 0.75]
    assert found.boxes.tolist() == pytest.approx(np.array([[160, 40, 560, 200]] * 2), abs=1e-2)
