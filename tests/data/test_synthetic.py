"""The demo's data set is reproducible, correctly labelled, and gives no class away to a look at size or colour."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("simplejpeg", reason="runs in the tools environment only")

import cv2
import numpy as np

from refit.data import doubts, synthetic
from refit.data.checks import Classes
from refit.data.examine import examine

NEIGHBOURS = 15
MARGIN = 0.07  # above the share of the commonest class; about 2.5 standard deviations of 360 guesses


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "demo"
    synthetic.make(out, train=400, val=100, shifted=20, seed=7)
    return out


def _names(demo: Path, split: str) -> list[str]:
    return (demo / f"{split}.txt").read_text().split()


def _objects(demo: Path, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Size and aspect, mean colour of the box's pixels, and class index of each object."""
    sizes, colours, classes = [], [], []
    for name in _names(demo, split):
        image = cv2.imread(str(demo / "images" / f"{name}.jpg"))
        for line in (demo / "labels" / f"{name}.txt").read_text().splitlines():
            words = line.split()
            x1, y1, x2, y2 = (float(w) for w in words[4:8])
            sizes.append((x2 - x1, y2 - y1, (x2 - x1) / (y2 - y1)))
            colours.append(image[round(y1) : round(y2), round(x1) : round(x2)].reshape(-1, 3).mean(axis=0))
            classes.append(synthetic.CLASSES.index(words[0]))
    return np.array(sizes), np.array(colours), np.array(classes)


def _neighbour_accuracy(known: np.ndarray, answers: np.ndarray, asked: np.ndarray, truth: np.ndarray) -> float:
    """Share of right answers of a vote among the nearest neighbours, features brought to one scale."""
    mean, spread = known.mean(axis=0), known.std(axis=0)
    known, asked = (known - mean) / spread, (asked - mean) / spread
    distances = ((asked[:, None] - known[None]) ** 2).sum(axis=-1)
    nearest = answers[np.argsort(distances, axis=1)[:, :NEIGHBOURS]]
    votes = np.stack([(nearest == c).sum(axis=1) for c in range(len(synthetic.CLASSES))], axis=1)
    return float((votes.argmax(axis=1) == truth).mean())


def test_class_is_not_guessable_from_size_or_colour(demo: Path, record_property) -> None:
    sizes, colours, classes = _objects(demo, "train")
    val_sizes, val_colours, val_classes = _objects(demo, "val")
    chance = np.bincount(val_classes).max() / len(val_classes)
    by_size = _neighbour_accuracy(sizes, classes, val_sizes, val_classes)
    by_colour = _neighbour_accuracy(colours, classes, val_colours, val_classes)
    print(f"nearest neighbours: size and aspect {by_size:.3f}, mean colour {by_colour:.3f}, chance {chance:.3f}")
    record_property("size", by_size)
    record_property("colour", by_colour)
    assert by_size < chance + MARGIN
    assert by_colour < chance + MARGIN


def test_the_null_check_would_notice_a_leak(demo: Path) -> None:
    """The same vote finds a class that does depend on the size: the check above can fail."""
    sizes, _, _ = _objects(demo, "train")
    val_sizes, _, _ = _objects(demo, "val")
    leaking = np.digitize(sizes[:, 0], [40, 55])
    truth = np.digitize(val_sizes[:, 0], [40, 55])
    assert _neighbour_accuracy(sizes, leaking, val_sizes, truth) > 0.9


def test_labels_of_another_image_do_not_fit(demo: Path) -> None:
    """Places are not predictable: the boxes of the next image hit those of this one (IoU 0.5, any class) by chance."""
    rows = [
        [[float(w) for w in line.split()[4:8]] for line in (demo / "labels" / f"{n}.txt").read_text().splitlines()]
        for n in _names(demo, "val")
    ]
    hits = sum(
        _iou(a, b) >= 0.5 for mine, other in zip(rows, rows[1:] + rows[:1], strict=True) for a in mine for b in other
    )
    assert hits / sum(map(len, rows)) < 0.03


def _iou(a: list[float], b: list[float]) -> float:
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    return w * h / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h)


def test_no_picture_twice_and_no_name_in_two_lists(demo: Path) -> None:
    found = examine(demo, classes=Classes(synthetic.CLASSES))
    assert not found.faults or {f.code for f in found.faults} == {"ignored_files"}  # the lists and README.txt
    assert len({s.sha256 for s in found.samples}) == 520
    small = {cv2.resize(cv2.imread(str(demo / s.source)), (16, 10)).tobytes() for s in found.samples}
    assert len(small) == 520  # nor the same scene with other noise
    names = [n for split in synthetic.SPLITS for n in _names(demo, split)]
    assert len(names) == len(set(names)) == 520


def test_no_check_finds_anything_odd_about_it(demo: Path) -> None:
    found = examine(demo, classes=Classes(synthetic.CLASSES))
    twins = doubts.duplicates(found.samples, {s.file: s.file.split("_")[0] for s in found.samples})
    assert {f.code for f in [*found.faults, *twins]} == {"ignored_files"}


def test_objects_can_be_learnt(demo: Path) -> None:
    """Large enough for a stride of 16, not too crowded, the classes balanced."""
    sizes, _, classes = _objects(demo, "train")
    assert (sizes[:, :2].min(axis=1) >= 20).mean() > 0.97
    assert 2 <= len(classes) / 400 <= 5
    assert np.bincount(classes).min() / len(classes) > 0.28


def test_boxes_are_tight() -> None:
    """Each shape touches all four sides of its box and covers about half of it, whatever the angle."""
    shares = {}
    for cls in synthetic.CLASSES:
        for tilt in (-25.0, -9.0, 0.0, 14.0):
            for turns in range(4):
                mask = synthetic.shape_mask(cls, 60, 44, tilt=tilt, quarter_turns=turns)
                assert mask.shape == (44, 60)
                assert min(mask[0].max(), mask[-1].max(), mask[:, 0].max(), mask[:, -1].max()) > 0.1
                shares[cls, tilt, turns] = float(mask.mean())
    assert all(0.45 < share < 0.56 for share in shares.values()), shares


def test_same_seed_same_bytes_and_counts_do_not_matter(tmp_path: Path) -> None:
    synthetic.make(tmp_path / "a", train=4, val=2, shifted=1, seed=3)
    synthetic.make(tmp_path / "b", train=2, val=2, shifted=0, seed=3)
    synthetic.make(tmp_path / "c", train=2, val=0, shifted=0, seed=4)
    for name in ("images/train_0001.jpg", "labels/train_0001.txt", "images/val_0000.jpg"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert (tmp_path / "a/images/train_0000.jpg").read_bytes() != (tmp_path / "c/images/train_0000.jpg").read_bytes()
    assert (tmp_path / "b/shifted.txt").read_text() == ""


def test_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise Stop

    with pytest.raises(Stop):
        synthetic.make(tmp_path / "out", train=4, val=1, shifted=0, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_refuses_a_folder_that_is_in_use_and_negative_counts(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(FileExistsError, match="not empty"):
        synthetic.make(tmp_path, train=1)
    with pytest.raises(ValueError, match="val: -1"):
        synthetic.make(tmp_path / "out", val=-1)
