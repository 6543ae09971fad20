"""Folders, archives and manifests of made-up conversions; the conversions themselves are in test_convert.py."""

from __future__ import annotations

import json
import stat
import zipfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refit.command import BadData, BadSpec, StageError
from refit.edge import bundle, tfjs, tflite
from refit.edge.models import EdgeModel, meant, stored
from refit.edge.specs import BundleSpec
from refit.edge.tensors import Tensor, Tensors
from refit.postprocess import InputInfo, ModelInfo
from refit.status import StatusWriter

INFO = ModelInfo(
    decoder="detectnet_v2",
    classes=("ring", "<b>&"),
    input=InputInfo("input_1", 64, 32),
    outputs={"coverage": "cov", "bbox": "box"},
)
UINT8 = Tensors(
    Tensor("image", (1, 32, 64, 3), "uint8", 1 / 255, 0),
    {"coverage": Tensor("coverage", (1, 2, 4, 2), "uint8", 0.5, 3), "bbox": Tensor("bbox", (1, 2, 4, 8))},
    ("not compiled",),
)


def results(path: Path, value: float | None) -> str:
    one = {"AP50": value, "AP": value}
    path.write_text(
        json.dumps(
            {
                "metrics": {"mAP50": value},
                "per_class": dict.fromkeys(INFO.classes, one),
                "splits": {"val": 5},
                "dataset": {"fingerprint": "f"},
                "model": {"file": "x", "sha256": "y", "bytes": 1},
            }
        )
    )
    return str(path)


@pytest.fixture
def spec(tmp_path: Path) -> dict[str, Any]:
    made = tmp_path / "made"
    (made / "coral").mkdir(parents=True)
    (made / "coral" / "model_uint8.tflite").write_bytes(b"TFL3" * 9)
    (made / "coral" / "labelmap.txt").write_text("ring\n<b>&\n")
    UINT8.write(made)
    (tmp_path / "model.json").write_text(INFO.text())
    coral = {
        "files": {str(made / "coral"): "", str(tmp_path / "model.json"): "refit.json"},
        "tensors": str(made / "tensors.json"),
        "results": results(tmp_path / "coral.json", 0.88),
    }
    return {
        "info": str(tmp_path / "model.json"),
        "name": "mine",
        "baseline": results(tmp_path / "onnx.json", 0.9),
        "bundles": {"coral": coral},
    }


def run(spec: dict[str, Any], out: Path) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    bundle.run(BundleSpec.model_validate(spec), out, StatusWriter(out))
    made: dict[str, Any] = json.loads((out / "edge.json").read_text())
    return made


def test_a_manifest_tells_a_device_all_that_it_needs(spec: dict[str, Any], tmp_path: Path) -> None:
    told = run(spec, tmp_path / "out")["bundles"]["coral"]
    manifest = json.loads((tmp_path / "out" / "coral" / "manifest.json").read_text())
    assert manifest.items() <= told.items()
    assert manifest["classes"] == ["ring", "<b>&"]
    assert (manifest["input"]["width"], manifest["input"]["resize"], manifest["input"]["dtype"]) == (
        64,
        "letterbox",
        "uint8",
    )
    assert manifest["outputs"]["coverage"]["quantized"] == {"scale": 0.5, "zero_point": 3}
    assert "quantized" not in manifest["outputs"]["bbox"]
    assert (manifest["figures"]["mAP50"], manifest["figures"]["fp32_onnx"]) == (0.88, 0.9)
    assert manifest["figures"]["drop"] == pytest.approx(0.02)
    assert manifest["decoder"]["postprocess"]["score_threshold"] == 0.3
    assert manifest["notes"] == ["not compiled"]
    assert set(manifest["files"]) == {"labelmap.txt", "model_uint8.tflite", "refit.json"}
    assert manifest["files"]["model_uint8.tflite"] == sha256(b"TFL3" * 9).hexdigest()


def test_the_archive_holds_the_same_and_is_the_same_each_time(spec: dict[str, Any], tmp_path: Path) -> None:
    first = run(spec, tmp_path / "out")["bundles"]["coral"]
    again = run(spec, tmp_path / "out")["bundles"]["coral"]  # over what a killed attempt left
    assert first["sha256"] == again["sha256"]
    archive = tmp_path / "out" / "mine-coral.zip"
    assert first["sha256"] == sha256(archive.read_bytes()).hexdigest()
    with zipfile.ZipFile(archive) as packed:
        assert packed.namelist() == [
            f"mine-coral/{name}" for name in ("labelmap.txt", "manifest.json", "model_uint8.tflite", "refit.json")
        ]
        assert packed.read("mine-coral/model_uint8.tflite") == b"TFL3" * 9


def test_an_onnx_bundle_has_the_tensors_of_the_exported_model(spec: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"onnx")
    onnx = {"files": {str(tmp_path / "model.onnx"): "model.onnx"}, "results": spec["baseline"]}
    told = run({**spec, "bundles": {"onnx": onnx}}, tmp_path / "out")["bundles"]["onnx"]
    assert (told["input"]["tensor"], told["input"]["layout"], told["input"]["shape"]) == (
        "input_1",
        "nchw",
        [0, 3, 32, 64],
    )
    assert told["outputs"]["bbox"]["shape"] == [0, 8, 2, 4]
    assert told["figures"]["drop"] == 0


def test_what_is_missing_is_named(spec: dict[str, Any], tmp_path: Path) -> None:
    gone = {**spec["bundles"]["coral"], "files": {str(tmp_path / "gone.tflite"): "x"}}
    with pytest.raises(BadSpec, match=r"gone.tflite: no such file"):
        run({**spec, "bundles": {"coral": gone}}, tmp_path / "out")
    empty = {**spec["bundles"]["coral"], "results": results(tmp_path / "none.json", None)}
    with pytest.raises(BadData, match=r"none.json: metrics.mAP50 is None, no figure"):
        run({**spec, "bundles": {"coral": empty}}, tmp_path / "out")
    with pytest.raises(BadSpec, match=r"tensors.json: cannot be read"):
        Tensors.read(tmp_path / "tensors.json")


def test_numbers_in_uint8_stand_for_what_they_were() -> None:
    values = np.linspace(0, 1, 11, dtype=np.float32)
    assert np.abs(meant(stored(values, UINT8.input), UINT8.input) - values).max() <= 0.5 / 255 + 1e-6
    assert stored(np.array([-1, 2], np.float32), UINT8.input).tolist() == [0, 255], "cut, not wrapped around"


def test_a_model_in_nhwc_answers_a_batch_in_nchw() -> None:
    asked = []

    def ask(image: Any) -> dict[str, Any]:
        asked.append(image)
        cells = np.arange(16, dtype=np.uint8).reshape(1, 2, 4, 2)
        return {"coverage": cells, "bbox": np.full((1, 2, 4, 8), image[0, 5, 9, 1], np.float32)}

    batch = np.zeros((2, 3, 32, 64), np.float32)
    batch[1, 1, 5, 9] = 1.0
    answers = EdgeModel(INFO, Path("x"), UINT8, ask)(batch)
    assert [image.shape for image in asked] == [(1, 32, 64, 3)] * 2
    assert answers["cov"].shape == (2, 2, 2, 4)
    assert answers["cov"][0, 1, 0, 2] == 0.5 * (5 - 3), "row 0, column 2, class 1 is cell 5"
    assert (answers["box"][0].max(), answers["box"][1].min()) == (0, 255)


class TestEdgeTpuCompiler:
    @pytest.fixture
    def compiler(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A stand-in that takes the real one's arguments and says what it says."""
        path = tmp_path / "bin" / "edgetpu_compiler"
        path.parent.mkdir()
        path.write_text(
            '#!/bin/sh\n[ "$1" = -s ] && [ "$2" = -o ] || exit 64\n'
            'cp "$4" "$3/model_uint8_edgetpu.tflite"\n'
            "echo 'Number of operations that will run on Edge TPU: 21'\n"
            "echo 'Number of operations that will run on CPU: 2'\n"
        )
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{path.parent}:/usr/bin:/bin")
        (tmp_path / "model_uint8.tflite").write_bytes(b"TFL3")
        return path

    def test_is_used_where_it_is(self, compiler: Path, tmp_path: Path) -> None:
        assert "21 operations run on the TPU, 2 on the CPU" in tflite.compiled(tmp_path)
        assert (tmp_path / "model_uint8_edgetpu.tflite").read_bytes() == b"TFL3"

    def test_is_told_where_it_is_not(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        assert "no edgetpu_compiler on PATH" in tflite.compiled(tmp_path)

    def test_its_refusal_ends_the_stage(self, compiler: Path, tmp_path: Path) -> None:
        compiler.write_text("#!/bin/sh\necho 'ERROR: the model is not quantized'\nexit 1\n")
        with pytest.raises(StageError, match=r"ended with 1 .* the model is not quantized"):
            tflite.compiled(tmp_path)


def test_the_page_is_for_what_it_can_read(tmp_path: Path) -> None:
    tfjs.write_page(tmp_path, INFO)
    assert json.loads((tmp_path / "refit.json").read_text())["classes"] == ["ring", "<b>&"]
    assert {"index.html", "page.js", "detect.js"} <= {path.name for path in tmp_path.iterdir()}
    with pytest.raises(StageError, match="decoder 'detr'"):
        tfjs.write_page(tmp_path, ModelInfo("detr", INFO.classes, INFO.input, {"logits": "l", "boxes": "b"}))
