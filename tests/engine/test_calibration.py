"""Which images a calibration takes, and when an old cache is one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from refit import picture
from refit.command import BadData
from refit.engine import cache, pictures
from refit.engine.record import CALIBRATION, CalibrationFacts, CalibrationRecord
from refit.files import sha256
from refit.postprocess import preprocess
from tests.engine import made


def test_whole_batches_as_the_model_is_fed(tmp_path: Path) -> None:
    target = made.info().input
    paths = pictures.choose(made.pictures(tmp_path, 7), 2, 3)
    assert [p.name for p in paths] == [f"{i:03}.png" for i in range(6)]
    batches = list(pictures.batches(paths, target, 3))
    assert [b.shape for b in batches] == [(3, 3, 16, 32)] * 2
    assert (batches[1][0] == preprocess(picture.read(paths[3]), target)[0][0]).all()
    assert np.isfinite(batches[0]).all()


def test_too_few_images(tmp_path: Path) -> None:
    made.pictures(tmp_path, 5)
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(BadData, match="5 images, and 2 batches of 3 need 6; give more images"):
        pictures.choose(tmp_path, 2, 3)
    with pytest.raises(BadData, match="no such folder"):
        pictures.choose(tmp_path / "nothing", 1, 1)


def test_a_broken_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(BadData, match=r"a\.png: is no picture"):
        next(pictures.batches([tmp_path / "a.png"], made.info().input, 1))


def test_the_digest_is_of_all_that_ranges_depend_on(tmp_path: Path) -> None:
    target = made.info().input
    paths = pictures.choose(made.pictures(tmp_path, 4), 2, 2)
    base = pictures.digest(paths, target, 2)
    assert base == pictures.digest(list(paths), replace(target), 2)
    others = [
        pictures.digest(paths[::-1], target, 2),
        pictures.digest(paths[:2], target, 2),
        pictures.digest(paths, replace(target, scale=1.0), 2),
        pictures.digest(paths, replace(target, resize="stretch"), 2),
        pictures.digest(paths, target, 4),
    ]
    assert len({base, *others}) == 6


def test_pictures_that_show_nothing(tmp_path: Path) -> None:
    paths = pictures.choose(made.pictures(tmp_path, 4), 2, 2)
    assert pictures.check(paths) == ""
    for name in ("000.png", "001.png"):
        cv2.imwrite(str(tmp_path / name), np.zeros((30, 40, 3), np.uint8))
    assert pictures.check(paths).startswith("2 of 4 calibration images are of one colour (000.png, 001.png)")
    cv2.imwrite(str(tmp_path / "002.png"), np.full((30, 40, 3), 90, np.uint8))
    with pytest.raises(BadData, match=r"3 of 4 calibration images are of one colour"):
        pictures.check(paths)


FACTS = CalibrationFacts(method="refit/entropy_2", model_sha256="a" * 64, images_digest="b" * 64, tensorrt="10.8.0.43")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "cal.bin"
    path.write_bytes(b"ranges")
    record = CalibrationRecord(facts=FACTS, cache_sha256=sha256(path), images=6, batch_size=3)
    record.write(tmp_path / CALIBRATION)
    return path


def test_a_cache_of_the_same_things_is_used(old: Path) -> None:
    assert cache.usable(old, FACTS).images == 6


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model_sha256": "c" * 64}, r"the ONNX file \(sha256\) differs"),
        ({"images_digest": "c" * 64}, "the images, their order or how they are fed"),
        (
            {"tensorrt": "10.13.3.9"},
            "TensorRT version differs: it was made with 10.8.0.43, and 10.13.3.9 is used now",
        ),
        ({"method": "tao/entropy_2"}, "the calibration method differs"),
        ({"method": "refit/minmax"}, "the calibration method differs"),
        ({"compute_capability": "8.0"}, r"the GPU \(compute capability\) differs: it was made with None, and 8\.0"),
    ],
)
def test_a_cache_of_something_else_is_refused(old: Path, changed: dict[str, str], said: str) -> None:
    with pytest.raises(BadData, match=said):
        cache.usable(old, CalibrationFacts.model_validate({**FACTS.model_dump(), **changed}))


def test_a_cache_that_nobody_answers_for(old: Path) -> None:
    old.write_bytes(b"other ranges")
    with pytest.raises(BadData, match="it was changed"):
        cache.usable(old, FACTS)
    old.with_name(CALIBRATION).unlink()
    with pytest.raises(BadData, match="nothing says what it was made from"):
        cache.usable(old, FACTS)
    old.unlink()
    with pytest.raises(BadData, match="no such calibration cache"):
        cache.usable(old, FACTS)
