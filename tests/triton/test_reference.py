"""Samples, the answers that belong to them, and how far others may be from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from refit.postprocess import InputInfo, ModelInfo
from refit.triton.config import Signature, Tensor
from refit.triton.errors import ArtefactError, ProofFailed
from refit.triton.reference import Reference, Tolerance, difference, from_images, made_up
from tests.triton.models import BOXES, COVERAGE, INPUT

SIGNATURE = Signature((Tensor("x", "FP32", (3, 4)),), (Tensor("y", "FP32", (2,)),), batch=True)


def reference(rows: int = 3) -> Reference:
    rng = np.random.default_rng(0)
    return Reference(
        {"x": rng.random((rows, 3, 4), dtype=np.float32)}, {"y": rng.random((rows, 2), dtype=np.float32)}, "here"
    )


def test_saved_and_read_again(tmp_path: Path) -> None:
    first = reference()
    first.save(tmp_path / "deep" / "reference.npz")
    again = Reference.load(tmp_path / "deep" / "reference.npz", SIGNATURE)
    assert np.array_equal(again.inputs["x"], first.inputs["x"])
    assert np.array_equal(again.outputs["y"], first.outputs["y"])
    assert len(again) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input:x": None}, r"has inputs \[\], the model has \['x'\]"),
        ({"input:x": np.zeros((3, 4, 4), np.float32)}, r"has shape \[4, 4\], and \[3, 4\] is needed"),
        ({"output:y": np.zeros((3, 2))}, "is float64, and FP32 is needed"),
        ({"output:y": np.zeros((2, 2), np.float32)}, r"have \[2, 3\] samples"),
        ({"output:y": np.full((3, 2), np.nan, np.float32)}, "not finite"),
    ],
)
def test_files_of_other_models_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    value = reference()
    arrays = {"input:x": value.inputs["x"], "output:y": value.outputs["y"], **change}
    np.savez(tmp_path / "r.npz", **{k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(ArtefactError, match=message):
        Reference.load(tmp_path / "r.npz", SIGNATURE)


def test_broken_files_are_refused(tmp_path: Path) -> None:
    reference().save(tmp_path / "r.npz")
    whole = (tmp_path / "r.npz").read_bytes()
    for text in (b"", b"text", whole[: len(whole) // 2]):
        (tmp_path / "r.npz").write_bytes(text)
        with pytest.raises(ArtefactError, match=r"r\.npz: cannot be read"):
            Reference.load(tmp_path / "r.npz", SIGNATURE)


def test_tolerance_is_in_parts_of_the_range() -> None:
    want = {"y": np.linspace(-100, 50, 1000, dtype=np.float32)}
    assert difference(want, {"y": want["y"].copy()}, Tolerance(0, 0)) == 0
    last_bits = want["y"] + np.float32(0.3)
    assert difference(want, {"y": last_bits}, Tolerance()) == pytest.approx(0.003, abs=1e-6)
    one_off = want["y"].copy()
    one_off[7] += 6
    with pytest.raises(ProofFailed, match=r"differs from the reference by up to 0\.06"):
        difference(want, {"y": one_off}, Tolerance())
    with pytest.raises(ProofFailed, match=r"mean 0\.01"):
        difference(want, {"y": want["y"] + 1}, Tolerance())
    with pytest.raises(ProofFailed):
        difference({"y": np.zeros(5)}, {"y": np.full(5, 0.1)}, Tolerance())


def test_made_up_samples_are_the_same_each_time_and_fit() -> None:
    signature = Signature(
        (Tensor("a", "FP32", (3, -1, -1)), Tensor("b", "INT64", (5,)), Tensor("c", "BOOL", ())), (), batch=True
    )
    first = made_up(signature, {"input": {"channels": 3, "height": 8, "width": 6}}, count=2)
    again = made_up(signature, {"input": {"channels": 3, "height": 8, "width": 6}}, count=2)
    assert [(k, v.shape, v.dtype.name) for k, v in first.items()] == [
        ("a", (2, 3, 8, 6), "float32"),
        ("b", (2, 5), "int64"),
        ("c", (2,), "bool"),
    ]
    assert all(np.array_equal(first[k], again[k]) for k in first)
    assert 0 <= first["a"].min() < first["a"].max() < 1
    last = Signature((Tensor("a", "FP32", (-1, -1, 3)),), (), batch=True)
    sizes = {"channels": 3, "height": 8, "width": 6, "layout": "nhwc"}
    assert made_up(last, {"input": sizes}, count=2)["a"].shape == (2, 8, 6, 3)


def test_pictures_that_cannot_be_used(tmp_path: Path) -> None:
    info = ModelInfo("detectnet_v2", ("a",), InputInfo(INPUT, 32, 32), {"coverage": COVERAGE, "bbox": BOXES})
    signature = Signature((Tensor(INPUT, "FP32", (3, 32, 32)),), (), batch=True)
    with pytest.raises(ArtefactError, match="no pictures there"):
        from_images(signature, info, [tmp_path])
    with pytest.raises(ArtefactError, match="no such picture"):
        from_images(signature, info, [tmp_path / "x.png"])
    (tmp_path / "x.png").write_text("no picture")
    with pytest.raises(ArtefactError, match=r"x\.png: is no picture"):
        from_images(signature, info, [tmp_path])
