"""The INT8 ladder: a model that INT8 ruins climbs, by measurement, and what made it is told."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from refit.command import BadData, BadSpec, Rejected
from refit.cpu import checkpoint, evaluate, export, judge, latency, quantize
from refit.cpu.checkpoint import load_model
from refit.cpu.judge import Judge
from refit.cpu.latency import Speed
from refit.cpu.models import OnnxModel
from refit.cpu.records import Dataset
from refit.cpu.specs import EvaluateSpec, ExportSpec, QuantizeParams, QuantizeSpec
from refit.cpu.status import StatusWriter
from refit.specs import SpecError
from tests.cpu.conftest import status_lines
from tests.cpu.tiny import empty_record, good_detector, tiny_record, tiny_records, write

PASSED_THROUGH = {f"/network/level2/level2.0/{name}/conv/Conv" for name in ("conv1", "conv2")}


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "_SECONDS", 0.1)
        yield


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_records(tmp_path_factory.mktemp("records"), train=10, val=6)


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _export(trained, tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="module")
def outlier(records: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good detector that INT8 ruins: one channel is 3,000 times as large, the next layer divides by it. Of several,
    as a network may do without the block that the channel is in, beside which a shortcut leads."""
    for seed in range(3, 13):
        folder = tmp_path_factory.mktemp("outlier")
        model = load_model(good_detector(folder, seed))
        block: Any = model.network.level2[0]
        with torch.no_grad():
            block.conv1.norm.weight[0] *= 3000
            block.conv1.norm.bias[0] *= 3000
            block.conv2.conv.weight[:, 0] /= 3000
        checkpoint.save_model(folder / "model.pth", model)
        made = _export(folder / "model.pth", folder)
        if run(made, records, folder / "tried", ladder=["ptq", "float"])["rungs"][0]["drop"] > 0.05:
            return made
    pytest.fail("INT8 ruins none of these")


def _export(model: Path, out: Path) -> Path:
    export.run(ExportSpec(model=str(model)), out, StatusWriter(out))
    return out / "model.onnx"


def spec(model: Path, records: Path, **more: Any) -> QuantizeSpec:
    """Speed is not judged: on a machine that runs other tests it is no property of the model."""
    values = {"model": str(model), "records": str(records), "images": 8, "min_speedup": None, **more}
    return QuantizeSpec.model_validate(values)


def run(model: Path, records: Path, out: Path, **more: Any) -> dict[str, Any]:
    """ladder.json."""
    quantize.run(spec(model, records, **more), out, StatusWriter(out))
    return dict(json.loads((out / "ladder.json").read_text()))


def test_the_first_rung_is_enough_for_a_good_model(exported: Path, records: Path, tmp_path: Path) -> None:
    said = run(exported, records, tmp_path)
    (only,) = said["rungs"]
    assert (said["winner"], only["passed"], only["failed"]) == ("ptq", True, [])
    assert abs(only["drop"] - (said["before"]["value"] - only["value"])) < 1e-6
    assert set(only["drops"]) == {"car", "person", "sign"}
    assert [s["batch"] for s in only["speed"]] == [1, 8]
    last = status_lines(tmp_path / "status.json")[-1]
    assert last["message"].startswith("INT8 by rung ptq: ")
    assert last["kpi"]["bytes"] < 0.6 * last["kpi"]["bytes_before"]
    assert not (tmp_path / "rungs").exists()


def test_an_outlier_keeps_the_layers_float_that_it_passes_through(
    outlier: Path, records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = run(outlier, records, tmp_path, ladder=["ptq", "mixed", "float"])
    first, *_, last = said["rungs"]
    assert said["winner"] == last["name"] == "mixed 2"
    assert set(last["floats"]) == set(list(said["layers"])[:2]) == PASSED_THROUGH  # found by measuring
    assert first["drop"] > 0.05
    assert "layer /network/level2/level2.0/conv1" in first["causes"][0]
    assert "channel 0 reaches" in first["causes"][0]
    assert "an outlier" in first["causes"][0]
    made = onnx.load(tmp_path / "model.onnx")
    fed = {o: n.op_type for n in made.graph.node for o in n.output}
    floats = {n.name for n in made.graph.node if n.op_type == "Conv" and fed.get(n.input[1]) != "DequantizeLinear"}
    assert floats >= PASSED_THROUGH
    assert len(floats) == 4  # and the two heads
    table = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in table] == ["rung", *(t["name"] for t in said["rungs"])]
    assert json.loads((tmp_path / "summary.json").read_text())["rung"] == "mixed 2"


def test_the_last_rung_is_the_float_model(outlier: Path, records: Path, tmp_path: Path) -> None:
    said = run(outlier, records, tmp_path, ladder=["ptq", "float"])
    assert said["winner"] == "float"
    assert (tmp_path / "model.onnx").read_bytes() == outlier.read_bytes()
    assert not (tmp_path / "calibration.cache").exists()
    assert status_lines(tmp_path / "status.json")[-1]["message"].startswith("Not INT8: the float32 model stays")


def test_no_rung_passes(outlier: Path, records: Path, tmp_path: Path) -> None:
    with pytest.raises(Rejected, match=r"no rung of the ladder passes: ptq lost 0\.\d+ mAP50 .*channel 0 reaches"):
        run(outlier, records, tmp_path, ladder=["ptq"])
    assert json.loads((tmp_path / "ladder.json").read_text())["winner"] is None
    assert not (tmp_path / "model.onnx").exists()


def test_a_loss_in_one_class_is_enough_to_climb(outlier: Path, records: Path, tmp_path: Path) -> None:
    said = run(outlier, records, tmp_path, ladder=["ptq", "float"], max_drop=1, max_drop_class=0.05)
    worst = max(said["rungs"][0]["drops"].items(), key=lambda item: item[1])
    assert any(f"of the AP of {worst[0]}, more than 0.05" in why for why in said["rungs"][0]["failed"])


def test_a_killed_attempt_goes_on_at_its_rung(
    outlier: Path, records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[str] = []
    real = Judge.judge

    def dying(self: Judge, name: str, *args: Any) -> Any:
        if name == "mixed 1" and name not in judged:
            judged.append(name)
            raise KeyboardInterrupt
        judged.append(name)
        return real(self, name, *args)

    monkeypatch.setattr(Judge, "judge", dying)
    ladder = ["ptq", "mixed", "float"]
    with pytest.raises(KeyboardInterrupt):
        run(outlier, records, tmp_path, ladder=ladder)
    said = run(outlier, records, tmp_path, ladder=ladder)
    assert judged == ["ptq", "mixed 1", "mixed 1", "mixed 2"]
    assert [t["name"] for t in said["rungs"]] == ["ptq", "mixed 1", "mixed 2"]


def test_what_another_attempt_tried_does_not_count(
    outlier: Path, records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Judge, "judge", lambda self, name, *args: judge.Try(name, failed=("no",)))
    monkeypatch.setattr(quantize, "report", _killed)
    with pytest.raises(KeyboardInterrupt):
        run(outlier, records, tmp_path, ladder=["ptq"])
    monkeypatch.undo()
    said = run(outlier, records, tmp_path, ladder=["ptq"], max_drop=1, max_drop_class=1)
    assert said["winner"] == "ptq"
    messages = [line["message"] for line in status_lines(tmp_path / "status.json")]
    assert any("is of another model, data, settings or machine" in m for m in messages)


def _killed(*args: Any) -> Any:
    raise KeyboardInterrupt


class Slowed(OnnxModel):
    """Takes three times as long."""

    def __call__(self, batch: Any) -> Any:
        begin = time.perf_counter()
        answer = super().__call__(batch)
        time.sleep(2 * (time.perf_counter() - begin))
        return answer


def test_slower_is_told_and_equal_is_not(exported: Path, records: Path) -> None:
    full, dataset = OnnxModel(exported, 1), Dataset.load(records)
    judging = Judge(spec(exported, records, min_speedup=1.0), full, dataset)
    slow = judging.judge("ptq", "", Slowed(exported, 1), ())
    assert slow.slow
    assert all(" times as fast as float32 at batch " in why for why in slow.failed)
    assert not judging.judge("ptq", "", full, ()).slow
    unjudged = Judge(spec(exported, records, min_speedup=1.0, activation="int8"), full, dataset)
    assert not unjudged.judge("ptq", "", Slowed(exported, 1), ()).slow  # int8 activations are for another machine


def test_what_is_too_slow_in_int8_is_not_tried_in_other_ways(
    exported: Path, records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Speed(batch=1, before_ms=1.0, after_ms=2.0, speedup=0.5, low=0.4, high=0.6, turns=9)
    monkeypatch.setattr(latency, "compare", lambda before, after, batch: replace(slow, batch=batch))
    said = run(exported, records, tmp_path, min_speedup=1.0)
    assert said["winner"] == "float"
    assert [t["name"] for t in said["rungs"]] == ["ptq", "ptq_other", "mixed", "qat", "float"]
    assert [bool(t["skipped"]) for t in said["rungs"]] == [False, True, True, True, False]
    assert (
        "is 0.50 times as fast as float32 at batch 1 (0.40 to 0.60 at 99%), less than 1" in said["rungs"][0]["failed"]
    )


def test_the_baseline_must_have_been_judged_alike(exported: Path, records: Path, tmp_path: Path) -> None:
    before = tmp_path / "before"
    evaluate.run(EvaluateSpec(model=str(exported), records=str(records)), before, StatusWriter(before))
    said = run(exported, records, tmp_path / "a", baseline=str(before / "results.json"), ladder=["ptq"])
    found = json.loads((before / "results.json").read_text())
    assert said["before"]["value"] == found["metrics"]["mAP50"]
    with pytest.raises(BadSpec, match="was evaluated with another thresholds"):
        run(exported, records, tmp_path / "b", baseline=str(before / "results.json"), evaluate={"nms_iou": 0.3})
    (before / "results.json").write_text("{}")
    with pytest.raises(BadSpec, match=r"is no results\.json of evaluate"):
        run(exported, records, tmp_path / "c", baseline=str(before / "results.json"))


def test_calibration_on_black_images_is_refused(exported: Path, tmp_path: Path) -> None:
    val = [tiny_record(1000 + i) for i in range(4)]
    black = [replace(tiny_record(i), encoded=empty_record(i).encoded) for i in range(6)]
    mostly = write(tmp_path / "mostly", {"train": [*black, tiny_record(7)], "val": val})
    with pytest.raises(BadData, match=r"6 of 7 calibration images are of one colour \(0000\.png, 0001\.png, 0002\.png"):
        run(exported, mostly, tmp_path / "a")
    few = write(tmp_path / "few", {"train": [black[0], *(tiny_record(i) for i in range(1, 6))], "val": val})
    quantize.run(spec(exported, few, ladder=[]), tmp_path / "b", StatusWriter(tmp_path / "b"))
    messages = [line["message"] for line in status_lines(tmp_path / "b" / "status.json")]
    assert any(m.startswith("1 of 6 calibration images are of one colour (0000.png") for m in messages)


def test_calibration_on_dark_images_is_told_as_the_cause(exported: Path, records: Path, tmp_path: Path) -> None:
    """Ranges of pictures a tenth as bright cut off what real ones hold."""
    dark = QuantizeSpec.model_validate({**spec(exported, records, ladder=["ptq"]).model_dump(), "method": "minmax"})
    out = tmp_path / "first"
    quantize.run(dark, out, StatusWriter(out))
    cache = json.loads((out / "calibration.cache").read_text())
    cache["ranges"] = {name: [low / 10, high / 10] for name, (low, high) in cache["ranges"].items()}
    (out / "calibration.cache").write_text(json.dumps(cache))
    record = json.loads((out / "calibration.json").read_text())
    record["cache_sha256"] = quantize.sha256(out / "calibration.cache")
    (out / "calibration.json").write_text(json.dumps(record))
    with pytest.raises(Rejected, match=r"layer /network/.* of its values on evaluation images are cut off"):
        run(exported, records, tmp_path / "b", ladder=["ptq"], method="minmax", cache=str(out / "calibration.cache"))


@pytest.fixture
def cached(exported: Path, records: Path, tmp_path: Path) -> Path:
    run(exported, records, tmp_path / "old", ladder=["ptq"])
    return tmp_path / "old" / "calibration.cache"


def test_a_cache_of_the_same_things_gives_the_same_model(
    cached: Path, exported: Path, records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refit.cpu.ladder.measure", _killed)
    run(exported, records, tmp_path / "new", ladder=["ptq"], cache=str(cached))
    assert (tmp_path / "new" / "model.onnx").read_bytes() == cached.with_name("model.onnx").read_bytes()


def test_a_cache_of_something_else_is_refused(
    cached: Path, exported: Path, outlier: Path, records: Path, tmp_path: Path
) -> None:
    def refused(said: str, model: Path = exported, data: Path = records, **more: Any) -> None:
        with pytest.raises(BadData, match=said):
            run(model, data, tmp_path / "new", ladder=["ptq"], cache=str(cached), **more)

    refused(r"the model \(sha256\) differs: it was made with \{'sha256'", model=outlier)
    refused("the calibration images, or their order differs", images=5)
    refused("the calibration method differs", percentile=99.9)
    splits = {"train": [tiny_record(i) for i in range(10)], "val": [tiny_record(1000)]}
    other = write(tmp_path / "other", splits, "e" * 64)
    refused("the data set .* differs", data=other)
    record = json.loads(cached.with_name("calibration.json").read_text())
    for name, value in (("device", "another CPU, 96 cores"), ("tools", {**record["tools"], "onnxruntime": "1.0"})):
        cached.with_name("calibration.json").write_text(json.dumps({**record, name: value}))
        refused("another CPU, 96 cores" if name == "device" else "the version of a tool differs")
    cached.with_name("calibration.json").write_text(json.dumps(record))
    cached.write_text(cached.read_text() + " ")
    refused("is not the file that calibration.json beside it describes")
    cached.with_name("calibration.json").unlink()
    refused("does not say what it is of")


@pytest.mark.parametrize(
    ("ladder", "said"), [(["float", "ptq"], "put it last"), (["ptq", "ptq"], "twice"), (["int4"], "Input should be")]
)
def test_ladders_that_make_no_sense(ladder: list[str], said: str) -> None:
    with pytest.raises((SpecError, ValueError), match=said):
        QuantizeParams.model_validate({"ladder": ladder})


def test_rounded_values_are_learned(trained: Path, exported: Path, records: Path, tmp_path: Path) -> None:
    """Fine-tuned, the network keeps its answers, holds whole weights, and its INT8 file is nearer to it than before."""
    said = run(
        exported,
        records,
        tmp_path,
        ladder=["qat"],
        checkpoint=str(trained),
        qat_epochs=2,
        qat_learning_rate=1e-4,
        training={"batch_size": 4},
        max_drop=0.1,
        max_drop_class=0.2,
    )
    assert said["winner"] == "qat"
    assert not (tmp_path / "calibration.cache").exists()  # its ranges are not of the exported model
    old, new = (OnnxModel(p, 1) for p in (exported, tmp_path / "model.onnx"))
    images = np.random.default_rng(0).random((2, 3, 96, 160)).astype(np.float32)
    assert not np.allclose(old(images)["output_cov/Sigmoid"], new(images)["output_cov/Sigmoid"], atol=1e-5)
    kinds = {t.name: t.data_type for t in onnx.load(tmp_path / "model.onnx").graph.initializer}
    assert sum(kind == onnx.TensorProto.INT8 for kind in kinds.values()) >= 12
