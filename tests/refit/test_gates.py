"""The quality gate: pass, warn and fail for the right reason, and refusal to compare what cannot be compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refit.command import main
from refit.gates.__main__ import ACTIONS
from refit.gates.quality import QualitySpec, quality
from refit.gates.verdict import GateError, Verdict


def results(folder: Path, name: str, value: Any, classes: dict[str, float] | None = None, **more: Any) -> str:
    path = folder / name
    path.write_text(
        json.dumps(
            {
                "metrics": {"mAP50": value, "mAP": 0.4},
                "per_class": {k: {"AP50": v} for k, v in (classes or {}).items()},
                "dataset": {"fingerprint": "f"},
                "splits": {"val": 10},
                "thresholds": {"nms_iou": 0.5},
                **more,
            }
        )
    )
    return str(path)


def test_above_the_floor_passes(tmp_path: Path) -> None:
    verdict = quality(QualitySpec(model="trained", candidate=results(tmp_path, "c", 0.8), floor=0.75))
    assert verdict.state == "pass"
    assert verdict.figures == {"mAP50": 0.8, "floor": 0.75}


def test_a_model_that_finds_nothing_needs_no_floor_to_fail(tmp_path: Path) -> None:
    spec = QualitySpec(model="trained", candidate=results(tmp_path, "c", 0.0))
    verdict = quality(spec)
    assert verdict.state == "fail"
    assert "mAP50 of the trained model is 0.000: it finds nothing" in verdict.reason
    assert quality(spec.model_copy(update={"floor": 0.0})).state == "pass"


@pytest.mark.parametrize(("policy", "state"), [("fail", "fail"), ("warn", "warn")])
def test_below_the_floor(tmp_path: Path, policy: str, state: str) -> None:
    spec = QualitySpec.model_validate(
        {"model": "trained", "candidate": results(tmp_path, "c", 0.7), "floor": 0.75, "policy": policy}
    )
    verdict = quality(spec)
    assert verdict.state == state
    assert "0.700, below the floor of 0.750" in verdict.reason


def test_a_drop_names_the_class_that_lost_most(tmp_path: Path) -> None:
    before = results(tmp_path, "b", 0.8, {"cell": 0.9, "plate": 0.7})
    after = results(tmp_path, "c", 0.75, {"cell": 0.9, "plate": 0.6})
    verdict = quality(QualitySpec(model="quantized", candidate=after, baseline=before, max_drop=0.01))
    assert verdict.state == "fail"
    assert "lost 0.050 mAP50 (0.800 -> 0.750), more than 0.010; plate lost most (0.100)" in verdict.reason
    assert verdict.figures["drop"] == pytest.approx(0.05)


def test_the_runners_record_of_another_commands_figures(tmp_path: Path) -> None:
    """As an evaluate stage of TAO leaves them: no results.json of Refit's, the classes among the metrics."""
    record: dict[str, Any] = {"schema": 1, "outcome": "succeeded", "key": "k"}
    before, after = tmp_path / "before" / "result.json", tmp_path / "after" / "result.json"
    for path, metrics in (
        (before, {"mAP50": 0.8, "AP50/car": 0.9, "AP50/van": 0.7}),
        (after, {"mAP50": 0.75, "AP50/car": 0.9, "AP50/van": 0.6}),
    ):
        (path.parent / "out").mkdir(parents=True)
        path.write_text(json.dumps({**record, "metrics": metrics}))
    candidate, baseline = (str(path.parent / "out" / ".." / "result.json") for path in (after, before))
    verdict = quality(QualitySpec(model="quantized", candidate=candidate, baseline=baseline, max_drop=0.01))
    assert verdict.state == "fail"
    assert "lost 0.050 mAP50 (0.800 -> 0.750), more than 0.010; van lost most (0.100)" in verdict.reason
    assert verdict.figures["drop of van"] == pytest.approx(0.1)


def test_a_gain_is_no_drop(tmp_path: Path) -> None:
    spec = QualitySpec(
        model="retrained", candidate=results(tmp_path, "c", 0.82), baseline=results(tmp_path, "b", 0.8), max_drop=0.0
    )
    assert quality(spec).state == "pass"


def test_no_difference_has_no_minus(tmp_path: Path) -> None:
    spec = QualitySpec(
        model="tflite", candidate=results(tmp_path, "c", 0.8), baseline=results(tmp_path, "b", 0.80001), max_drop=0.01
    )
    assert "+0.000 against 0.800" in quality(spec).reason


@pytest.mark.parametrize("what", ["thresholds", "dataset", "splits"])
def test_figures_of_different_evaluations_are_not_compared(tmp_path: Path, what: str) -> None:
    before, after = results(tmp_path, "b", 0.8), results(tmp_path, "c", 0.8, **{what: {"other": 1}})
    with pytest.raises(GateError, match=f"different {what}"):
        quality(QualitySpec(model="retrained", candidate=after, baseline=before, max_drop=0.1))


@pytest.mark.parametrize("value", [None, "0.8", float("nan"), True])
def test_a_figure_that_is_none_is_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(GateError, match="no finite metric mAP50"):
        quality(QualitySpec(model="trained", candidate=results(tmp_path, "c", value)))


@pytest.mark.parametrize(("floor", "code", "state"), [(0.5, 0, "pass"), (0.9, 4, "fail")])
def test_as_a_stage(tmp_path: Path, floor: float, code: int, state: str) -> None:
    spec = tmp_path / "quality.yaml"
    spec.write_text(f"model: trained\ncandidate: {results(tmp_path, 'c', 0.8)}\nfloor: {floor}\n")
    out = tmp_path / "out"
    assert main("refit.gates", ACTIONS, ["quality", "-e", str(spec), "-r", str(out)]) == code
    assert json.loads((out / "verdict.json").read_text())["verdict"] == state
    last = json.loads((out / "status.json").read_text().splitlines()[-1])
    assert last["status"] == ("SUCCESS" if code == 0 else "FAILURE")


def test_a_bad_spec_is_one_line_with_file_and_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = tmp_path / "quality.yaml"
    spec.write_text("model: trained\ncandidat: x\n")
    assert main("refit.gates", ACTIONS, ["quality", "-e", str(spec), "-r", str(tmp_path / "out")]) == 2
    assert f"error: {spec}:2: candidat: unknown key; did you mean 'candidate'?" in capsys.readouterr().err


def test_help_lists_the_keys(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main("refit.gates", ACTIONS, ["quality", "--help"])
    shown = capsys.readouterr().out
    assert "policy: fail | warn | ask, default 'fail'" in shown
    assert "candidate: string, required" in shown


def evaluated(folder: Path, value: float, found: int, images: int = 60) -> str:
    """An evaluate stage's folder: one object an image, found in the first `found` images."""
    folder.mkdir()
    truth = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 50, "height": 50} for i in range(images)],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": [{"image_id": i, "category_id": 1, "bbox": [5, 5, 20, 20]} for i in range(images)],
    }
    boxes = [{"image_id": i, "category_id": 1, "bbox": [5, 5, 20, 20], "score": 0.9} for i in range(found)]
    (folder / "ground_truth.json").write_text(json.dumps(truth))
    (folder / "detections.json").write_text(json.dumps(boxes))
    return results(folder, "results.json", value)


def test_how_sure_a_figure_is_where_the_detections_are_at_hand(tmp_path: Path) -> None:
    verdict = quality(QualitySpec(model="trained", candidate=evaluated(tmp_path / "e", 0.8, 48), floor=0.7))
    low, high = verdict.figures["low"], verdict.figures["high"]
    # 48 of 60 found: a standard error of 0.052, so about 0.7 to 0.9.
    assert 0.66 < low < 0.74 < 0.86 < high < 0.94
    assert f"is 0.800 ({low:.3f} to {high:.3f} at 95%)" in verdict.reason
    again = quality(QualitySpec(model="trained", candidate=str(tmp_path / "e/results.json"), floor=0.7))
    assert again == verdict


@pytest.mark.parametrize(
    ("found", "said"), [(36, "worse: "), (60, "better: "), (47, "no difference that these images could show: ")]
)
def test_two_models_on_the_same_images(tmp_path: Path, found: int, said: str) -> None:
    before = evaluated(tmp_path / "b", 0.8, 48)
    after = evaluated(tmp_path / "c", found / 60, found)
    verdict = quality(QualitySpec(model="retrained", candidate=after, baseline=before, max_drop=1.0))
    assert said in verdict.reason
    assert verdict.figures["drop_low"] <= verdict.figures["drop"] + 0.01
    assert verdict.figures["drop_high"] >= verdict.figures["drop"] - 0.01


@pytest.mark.parametrize(("found", "said"), [(36, "worse"), (60, "better"), (47, "equal"), (48, "equal")])
def test_the_comparison_is_a_statement_of_its_own(tmp_path: Path, found: int, said: str) -> None:
    before, after = evaluated(tmp_path / "b", 0.8, 48), evaluated(tmp_path / "c", found / 60, found)
    verdict = quality(QualitySpec(model="retrained", candidate=after, baseline=before, max_drop=1.0))
    assert verdict.compared == said
    assert verdict.to_json()["compared"] == said


def parts_of(folder: Path, missed: str, images: int = 60) -> str:
    """An evaluation of two classes and three sizes: of every image a small ring and a large cross; what is named is
    missed in every second image."""
    folder.mkdir()
    sides = {"ring": 20, "cross": 100}
    truth: dict[str, Any] = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 200, "height": 200} for i in range(images)],
        "categories": [{"id": 1, "name": "ring"}, {"id": 2, "name": "cross"}],
        "annotations": [
            {"image_id": i, "category_id": c, "bbox": [90 * c - 80, 5, sides[name], sides[name]]}
            for i in range(images)
            for c, name in ((1, "ring"), (2, "cross"))
        ],
    }

    def seen(a: dict[str, Any]) -> bool:
        names = ("ring" if a["category_id"] == 1 else "cross", "night" if a["image_id"] < images / 2 else "day")
        return missed not in names or a["image_id"] % 2 == 0

    boxes = [{**a, "score": 0.9} for a in truth["annotations"] if seen(a)]
    (folder / "ground_truth.json").write_text(json.dumps(truth))
    (folder / "detections.json").write_text(json.dumps(boxes))
    (folder / "annotations.jsonl").write_text(
        "".join(
            json.dumps({"file": f"{i}.png", "tags": ["night" if i < images / 2 else "day"], "groups": [f"line{i % 2}"]})
            + "\n"
            for i in range(images)
        )
    )
    return results(folder, "results.json", 0.8)


def judged(tmp_path: Path, missed: str, **more: Any) -> Verdict:
    before, after = parts_of(tmp_path / "b", "nothing"), parts_of(tmp_path / "c", missed)
    limits = {"max_drop": 0.5, "max_drop_class": 0.05, "slices": ["size", "group", "tag"], **more}
    spec = {"model": "quantized", "candidate": after, "baseline": before, "snapshot": str(tmp_path / "b")}
    return quality(QualitySpec.model_validate({**spec, **limits}))


@pytest.mark.parametrize(
    ("missed", "named"),
    [
        ("ring", {"class ring", "size small", "group line1", "tag day", "tag night"}),
        ("cross", {"class cross", "size large", "group line1", "tag day", "tag night"}),
        ("night", {"class ring", "class cross", "size small", "size large", "group line1", "tag night"}),
    ],
)
def test_a_class_or_a_slice_that_lost_is_caught_and_named(tmp_path: Path, missed: str, named: set[str]) -> None:
    """The whole is within its limit; every second object of a class, or of the images with a tag, is missed."""
    verdict = judged(tmp_path, missed)
    assert verdict.state == "fail"
    assert {f"{p['kind']} {p['name']}" for p in verdict.parts if p["drop"]["low"] > 0.05} == named
    worst = max(verdict.parts, key=lambda p: p["drop"]["value"])
    assert f"{worst['kind']} {worst['name']} lost {worst['drop']['value']:.3f} (1.000 -> " in verdict.reason
    assert "the images show it, and 0.050 may be lost" in verdict.reason


def test_parts_that_lost_nothing_are_no_reason(tmp_path: Path) -> None:
    verdict = judged(tmp_path, "nothing")
    assert (verdict.state, verdict.compared) == ("pass", "equal")
    assert {p["kind"] for p in verdict.parts} == {"class", "size", "group", "tag"}


@pytest.mark.parametrize(("more", "state"), [({"max_drop_class": None}, "warn"), ({"policy": "ask"}, "ask")])
def test_what_a_lost_part_means_is_the_pipelines_to_say(tmp_path: Path, more: dict[str, Any], state: str) -> None:
    verdict = judged(tmp_path, "ring", **more)
    assert verdict.state == state
    assert "class ring lost" in verdict.reason


def test_a_part_of_few_objects_is_not_judged(tmp_path: Path) -> None:
    before, after = parts_of(tmp_path / "b", "nothing", images=12), parts_of(tmp_path / "c", "ring", images=12)
    spec = QualitySpec(model="quantized", candidate=after, baseline=before, max_drop=0.5, max_drop_class=0.05)
    verdict = quality(spec)
    assert verdict.state == "pass"
    assert verdict.parts == ()


def test_chance_is_no_loss_of_a_part(tmp_path: Path) -> None:
    """Two models that are equally good, on other images of 60: none of their 9 parts is called worse."""
    rng = np.random.default_rng(5)
    alarms = 0
    for trial in range(5):
        paths = []
        for name in ("b", "c"):
            path = parts_of(tmp_path / f"{trial}{name}", "nothing")
            file = Path(path).parent / "detections.json"
            kept = [row for row in json.loads(file.read_text()) if rng.random() < 0.8]
            file.write_text(json.dumps(kept))
            paths.append(path)
        spec = {"model": "m", "candidate": paths[1], "baseline": paths[0], "slices": ["size", "group", "tag"]}
        more = {"max_drop": 0.5, "max_drop_class": 0.05, "snapshot": str(Path(paths[0]).parent)}
        alarms += quality(QualitySpec.model_validate({**spec, **more})).state != "pass"
    assert alarms == 0


def test_without_detections_a_class_that_lost_is_told(tmp_path: Path) -> None:
    before = results(tmp_path, "b", 0.8, {"cell": 0.9, "plate": 0.7})
    after = results(tmp_path, "c", 0.8, {"cell": 1.0, "plate": 0.6})
    spec = QualitySpec(model="quantized", candidate=after, baseline=before, max_drop=0.01, max_drop_class=0.05)
    verdict = quality(spec)
    assert verdict.state == "warn"
    assert "class plate lost 0.100, more than 0.050; no detections show if that is chance" in verdict.reason


@pytest.mark.parametrize(
    "text", ["{", "[1]", '[{"image_id": 900, "category_id": 1, "bbox": [1, 1, 2, 2], "score": 1}]']
)
def test_detections_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    path = evaluated(tmp_path / "e", 0.8, 48)
    (tmp_path / "e/detections.json").write_text(text)
    with pytest.raises(GateError, match=r"its detections cannot be read .*; run the evaluate stage again"):
        quality(QualitySpec(model="trained", candidate=path, floor=0.7))


@pytest.mark.parametrize(("found", "state"), [(36, "fail"), (44, "pass"), (47, "pass"), (55, "pass")])
def test_a_challenger_loses_only_where_the_images_show_it(tmp_path: Path, found: int, state: str) -> None:
    """44 of 60 against 48 is a drop of 0.07 that 60 images cannot tell from chance, 36 against 48 is not."""
    serving = evaluated(tmp_path / "b", 0.8, 48)
    challenger = evaluated(tmp_path / "c", round(found / 60, 3), found)
    # Which images they fail on differs: else even one image more is a sure loss.
    rows = json.loads((tmp_path / "c/detections.json").read_text())
    for row in rows:
        row["image_id"] = 59 - row["image_id"]
    (tmp_path / "c/detections.json").write_text(json.dumps(rows))
    spec = QualitySpec(
        model="quantized",
        against="of the champion",
        candidate=challenger,
        baseline=serving,
        max_drop=0.01,
        only_shown=True,
    )
    verdict = quality(spec)
    assert verdict.state == state, verdict.reason
    if state == "pass":
        assert "against 0.800 of the champion" in verdict.reason


def test_without_detections_the_figures_alone_decide(tmp_path: Path) -> None:
    before, after = results(tmp_path, "b", 0.8), results(tmp_path, "c", 0.78)
    spec = QualitySpec(model="quantized", candidate=after, baseline=before, max_drop=0.01, only_shown=True)
    assert quality(spec).state == "fail"


def test_another_evaluation_set_than_before_is_told(tmp_path: Path) -> None:
    spec = {"model": "trained", "candidate": results(tmp_path, "c", 0.8), "floor": 0.75, "evaluation": "a" * 64}
    assert "evaluation set" not in quality(QualitySpec(**spec)).reason
    assert "evaluation set" not in quality(QualitySpec(**spec, evaluation_before="a" * 64)).reason
    verdict = quality(QualitySpec(**spec, evaluation_before="b" * 64))
    assert verdict.state == "pass"
    assert verdict.reason.endswith(
        "measured on evaluation set aaaaaaaaaaaa: figures of earlier runs, on bbbbbbbbbbbb, cannot be compared with it"
    )


def test_a_champion_that_was_released_on_another_evaluation_set_is_measured_on_this_one(tmp_path: Path) -> None:
    """Its figure of then is not asked for; figures of two data sets are refused."""
    spec = {"model": "trained", "against": "of the champion", "max_drop": 0.01, "evaluation": "a" * 64}
    spec |= {"candidate": results(tmp_path, "c", 0.8), "evaluation_before": "b" * 64}
    verdict = quality(QualitySpec.model_validate({**spec, "baseline": results(tmp_path, "b", 0.8)}))
    assert verdict.state == "pass"
    told = (
        "; both measured now, on evaluation set aaaaaaaaaaaa; the champion was released by figures on bbbbbbbbbbbb, and"
    )
    assert told in verdict.reason
    with pytest.raises(GateError, match=r"different dataset .* cannot be compared"):
        quality(QualitySpec.model_validate({**spec, "baseline": results(tmp_path, "o", 0.8, dataset="g" * 64)}))


def test_the_rung_of_the_ladder_is_told(tmp_path: Path) -> None:
    rungs = [
        {"name": "ptq", "skipped": ""},
        {"name": "qat", "skipped": "no checkpoint"},
        {"name": "float", "skipped": ""},
    ]
    ladder = results(tmp_path, "l", 0.8, winner="float", rungs=rungs)
    verdict = quality(QualitySpec(model="quantized", candidate=results(tmp_path, "c", 0.8), floor=0.7, ladder=ladder))
    assert verdict.reason.endswith("; made by rung float, tried 2 (see its ladder.json)")
