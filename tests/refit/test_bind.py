"""bind: params are judged first, data is taken in, the plan is immutable, and only intact results are reused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from refit import bind, cluster, runner
from refit.config import Settings
from refit.runtime import pod
from refit.triton.ledger import Ledger, Record
from tests.refit.bind_helpers import PIPELINE, Place

ROOT = Path(__file__).resolve().parents[2]


AGAINST = ["evaluate_champion", "gate_champion"]  # off where nothing serves


def test_a_plan_is_written_with_the_snapshot_it_is_bound_to(place: Place) -> None:
    assert place.bind() == 0
    plan = place.plan
    assert place.summary["skip"] == AGAINST
    assert plan["fingerprint"] == place.summary["fingerprint"]
    assert (Path(plan["snapshot"]) / "annotations.jsonl").is_file()
    assert place.summary["images"] == 16
    assert len(json.dumps(place.summary)) < 2048
    assert json.loads((place.workspace / "datasets" / "arrival.json").read_text())["fingerprint"] == plan["fingerprint"]


def test_a_faulty_label_that_does_not_stop_the_run_is_told(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    label = sorted((place.data / "labels").iterdir())[0]
    text = label.read_text()
    label.write_text(text + "ring 0.00 0 -10 50.00 60.00 50.00 60.00 -1 -1 -1 -1000 -1000 -1000 -10\n")
    lenient = PIPELINE.replace("split:", "max_bad_labels: 0.5\n  split:")
    assert place.bind(text=lenient) == 0
    told = capsys.readouterr().out
    line = len(text.splitlines()) + 1
    assert f"warning: labels/{label.name}:{line}: the box ring 50 60 50 60 has no area; draw the box again" in told
    assert f"warnings about the data: 1, all in {place.workspace}" in told


def test_params_change_the_plan(place: Place) -> None:
    assert place.bind(conf={"train_epochs": 7, "release": False}) == 0
    train = next(s for s in place.plan["stages"] if s["name"] == "train")
    assert "epochs: 7" in train["files"]["train.yaml"]
    assert place.plan["off"] == [*AGAINST, "release"]
    assert place.summary["skip"] == [*AGAINST, "release"]


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ({"train_epoch": 3}, "did you mean 'train_epochs'"),
        ({"train_epochs": 0}, "params of this run: stages.train.epochs"),
        ({"train_batch_size": 100}, "params of this run: stages.train.batch_size: 100 is more than the 1"),
        ({"dataset_source": "/etc"}, "outside the allowed data roots"),
        ({"dataset_source": "../../etc"}, "outside the allowed data roots"),
        ({"dataset_source": "{{ 7 * 7 }}"}, "there is no data"),
    ],
)
def test_bad_params_are_refused(place: Place, conf: dict[str, Any], message: str) -> None:
    assert place.bind(conf=conf) in (2, 3)
    assert message in place.error
    assert not (place.workspace / "runs" / "r1" / "plan.json").exists()


def test_bad_params_are_refused_before_the_data_is_touched(place: Place) -> None:
    assert place.bind(conf={"no_such": 1}) == 2
    assert not (place.workspace / "datasets").exists()


def test_a_link_out_of_the_data_root_is_refused(place: Place, tmp_path: Path) -> None:
    (tmp_path / "data" / "inbox" / "out").symlink_to("/usr/share")
    assert place.bind(conf={"dataset_source": "inbox/out"}) == 2
    assert "outside the allowed data roots" in place.error


def test_an_empty_inbox_uses_the_data_set_taken_last(place: Place) -> None:
    assert place.bind("r1") == 0
    before = place.plan["fingerprint"]
    place.data.rename(place.data.with_name("gone"))
    assert place.bind("r2") == 0
    assert place.plan["fingerprint"] == before


def test_no_data_at_all_is_bad_data(place: Place) -> None:
    place.data.rename(place.data.with_name("gone"))
    assert place.bind() == 3
    assert "there is no data" in place.error


def test_a_good_result_with_the_same_key_is_reused(place: Place) -> None:
    place.bind("r1")
    folder = place.finish("dataset_convert")
    assert place.bind("r2") == 0
    assert place.plan["reused"] == {"dataset_convert": str(folder)}
    assert place.summary["skip"] == ["dataset_convert", *AGAINST]
    train = next(s for s in place.plan["stages"] if s["name"] == "train")
    assert train["inputs"]["dataset_convert"] == str(folder)


def test_a_result_whose_file_was_changed_is_not_reused(place: Place) -> None:
    place.bind("r1")
    folder = place.finish("train")
    (folder / "out" / "model.pth").write_text("damaged")
    assert place.bind("r2") == 0
    assert place.plan["reused"] == {}


def test_a_result_whose_record_was_changed_is_not_reused(place: Place) -> None:
    place.bind("r1")
    record = place.finish("dataset_convert") / "result.json"
    record.write_text(record.read_text() + " ")
    place.bind("r2")
    assert place.plan["reused"] == {}


def test_reuse_can_be_switched_off(place: Place) -> None:
    place.bind("r1")
    place.finish("dataset_convert")
    assert place.bind("r2", conf={"reuse": False}) == 0
    assert place.plan["reused"] == {}


def test_a_failed_result_is_not_reused(place: Place) -> None:
    place.bind("r1")
    folder = place.finish("train")
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps({**result, "outcome": "stalled"}))
    place.point("train")
    place.bind("r2")
    assert place.plan["reused"] == {}


def test_a_release_that_triton_does_not_serve_is_not_reused(place: Place) -> None:
    place.bind("r1")
    folder = place.finish("release")
    report = {"model": "mine", "version": 1, "sha256": "0" * 64, "url": "http://127.0.0.1:8000"}
    (folder / "out" / "release.json").write_text(json.dumps(report))
    stage = next(s for s in place.plan["stages"] if s["name"] == "release")
    size, digest = runner.measure(str(folder / "out" / "release.json"))
    result = json.loads((folder / "result.json").read_text())
    result["outputs"]["release"].update(bytes=size, sha256=digest)
    (folder / "result.json").write_text(json.dumps(result))
    place.point("release")
    assert bind.good_result(place.workspace, stage["key"]) == folder  # the file itself is intact
    place.bind("r2")
    assert "release" not in place.plan["reused"]


def test_a_plan_is_never_written_over(place: Place) -> None:
    place.bind("r1")
    first = Path(place.summary["plan"])
    text = first.read_text()
    assert place.bind("r1", text=PIPELINE.replace("epochs: 2", "epochs: 3")) == 0
    assert first.read_text() == text
    assert Path(place.summary["plan"]).name == "plan.2.json"
    assert place.bind("r1") == 0  # the first plan once more
    assert Path(place.summary["plan"]) == first


def test_the_same_data_elsewhere_has_the_same_keys(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.bind("r1")
    keys = [s["key"] for s in place.plan["stages"]]
    monkeypatch.setenv("REFIT_WORKSPACE", str(tmp_path / "other"))
    place.bind("another")
    assert place.summary["plan"].startswith(str(tmp_path / "other"))
    # Only the release's spec names a place: the model repository.
    assert [s["key"] for s in place.plan["stages"]] == keys


KUBERNETES = PIPELINE + "runtime: kubernetes\nresources: {stages: {train: {gpus: 1}}}\n"


def test_a_run_in_pods_is_told_what_each_pod_asks_for(place: Place) -> None:
    assert place.bind(text=KUBERNETES) == 0
    assert (place.summary["cluster"], place.summary["model"]) == ("kubernetes", "mine")
    requests = {s["name"]: s for s in place.plan["stages"]}
    for number, (name, request) in enumerate(requests.items(), start=1):
        assert pod.place(place.summary["pods"], name) == number  # as that of its folder
        names = {"pipeline": "mine", "run": "r1", "plan": place.summary["plan"], "model": "mine"}
        assert pod.unpack(place.summary["pods"], name, **names) == pod.PodStage.of(request, plan=place.summary["plan"])
    assert "pods" not in _local(place)


def _local(place: Place) -> dict[str, Any]:
    place.bind("r2")
    return place.summary


def test_the_profile_comes_along_where_its_file_is_not(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    found = cluster.load("kubernetes", Settings.from_env())
    sent = found.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    monkeypatch.setenv("REFIT_CLUSTERS", str(place.root / "nothing"))
    assert place.bind("r1", KUBERNETES) == 2
    assert "no such cluster profile" in place.error
    assert place.bind("r2", KUBERNETES, profile=sent) == 0
    assert place.bind("r3", KUBERNETES, profile={**sent, "namespase": "x"}) == 2
    assert "cluster profile kubernetes" in place.error
    assert "namespase: unknown key; did you mean 'namespace'?" in place.error


def test_a_pinned_image_is_the_environment_of_the_key(place: Place) -> None:
    data = cluster.load("kubernetes", Settings.from_env()).model_dump(mode="json", by_alias=True)

    def keys(run: str, image: str) -> dict[str, str]:
        assert place.bind(run, KUBERNETES, profile={**data, "images": {**data["images"], "cpu": {"image": image}}}) == 0
        return {s["name"]: s["key"] for s in place.plan["stages"]}

    tagged = keys("r1", "refit-cpu:1")
    assert keys("r2", "elsewhere/refit-cpu:2") == tagged  # a tag says nothing; the lock of the environment counts
    pinned = keys("r3", "refit-cpu@sha256:" + "0" * 64)
    assert pinned["train"] != tagged["train"]
    assert keys("r4", "elsewhere/refit-cpu:2@sha256:" + "0" * 64) == pinned
    assert keys("r5", "refit-cpu@sha256:" + "1" * 64)["train"] != pinned["train"]


def test_code_version_follows_the_source(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    source = tmp_path / "p" / "a.py"
    source.write_text("x = 1\n")
    before = bind.code_version(tmp_path, "p")
    bind.code_version.cache_clear()
    source.write_text("x = 2\n")
    assert bind.code_version(tmp_path, "p") != before


def test_a_missing_lock_is_named(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"images/cpu/requirements\.txt: the lock of environment cpu cannot be read"):
        bind.environment_digest(Settings.from_env({"REFIT_REPOSITORY": str(tmp_path)}), "cpu")


def serve(place: Place, version: int, classes: list[str], state: str = "serving") -> Path:
    """The ledger after a release; returns where the version's model is kept."""
    ledger = Ledger(place.workspace / "releases")
    config = {"url": "http://127.0.0.1:8000", "repository": "models", "config": "", "sidecar": {"classes": classes}}
    about = {"model": "mine", "version": version, "sha256": "0", "bytes": 1, "pipeline": "mine", "run": "r", "key": "k"}
    ledger.write(Record.model_validate({**about, **config, "state": state}))
    source = place.root / "model.onnx"
    source.write_bytes(b"onnx")
    ledger.keep(version, {"model.onnx": source})
    return ledger.model(version)


def stage(place: Place, name: str) -> dict[str, Any]:
    return next(s for s in place.plan["stages"] if s["name"] == name)


def test_the_version_that_serves_is_evaluated_on_the_same_data(place: Place) -> None:
    place.data.parent.mkdir(parents=True, exist_ok=True)
    serve(place, 1, ["cross", "ring", "triangle"], state="retired")
    folder = serve(place, 2, ["cross", "ring", "triangle"])
    assert place.bind() == 0
    assert (place.plan["off"], place.summary["skip"]) == ([], [])
    spec = stage(place, "evaluate_champion")["files"]["evaluate.yaml"]
    assert f"model: '{folder}/model.onnx'" in spec
    like = stage(place, "evaluate_quantized")["files"]["evaluate.yaml"]
    assert [line for line in spec.splitlines() if not line.startswith("model:")] == [
        line for line in like.splitlines() if not line.startswith("model:")
    ], "other thresholds"
    key = stage(place, "evaluate_champion")["key"]
    serve(place, 3, ["cross", "ring", "triangle"])
    assert place.bind("r2") == 0
    assert stage(place, "evaluate_champion")["key"] != key


def test_a_version_of_other_classes_cannot_be_compared(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    serve(place, 1, ["cross", "ring"])
    assert place.bind() == 0
    assert place.plan["off"] == AGAINST
    assert "not compared with version 1, which serves: it has other classes (cross, ring)" in capsys.readouterr().out


def test_nothing_is_compared_where_nothing_would_be_released(place: Place) -> None:
    serve(place, 1, ["cross", "ring", "triangle"])
    assert place.bind(conf={"release": False}) == 0
    assert place.plan["off"] == [*AGAINST, "release"]


def test_the_comparison_can_be_left_out(place: Place) -> None:
    serve(place, 1, ["cross", "ring", "triangle"])
    assert place.bind(text=PIPELINE + "gates: {champion: false}\n") == 0
    assert not [s["name"] for s in place.plan["stages"] if "champion" in s["name"]]


def test_a_run_has_a_report_on_its_data_set(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert place.bind() == 0
    page = place.out / "report.html"
    assert place.summary["report"] == "00-bind/out/report.html"
    assert (place.workspace / "runs" / "r1" / place.summary["report"]).samefile(page)
    assert f"report on the data: {page}" in capsys.readouterr().out
    report = json.loads((place.out / "report.json").read_text())
    assert report["about"]["Fingerprint"] == place.plan["fingerprint"]
    assert report["network"] == {"width": 320, "height": 192, "cell": 16, "letterbox": True}
    assert "mine" in page.read_text()
    assert report["previous"] == ""


def _all_are_rings(place: Place) -> None:
    for label in (place.data / "labels").iterdir():
        label.write_text("".join(f"ring {line.partition(' ')[2]}\n" for line in label.read_text().splitlines()))


def test_a_changed_data_set_is_compared_with_the_one_taken_last(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    lenient = PIPELINE.replace("split:", "severity: {drift_class_mix: warning}\n  split:")
    assert place.bind("r1") == 0
    first = place.plan["fingerprint"]
    _all_are_rings(place)
    assert place.bind("r2", text=lenient) == 0
    report = json.loads((place.out / "report.json").read_text())
    assert report["previous"] == first
    assert report["difference"]["labels_changed"]["n"] > 8
    assert {d["trait"]: d["level"] for d in report["drift"]}["class mix"] == "major"
    assert "warning: class mix changed since data set" in capsys.readouterr().out


def test_a_pipeline_can_stop_at_a_drift(place: Place) -> None:
    strict = PIPELINE.replace("split:", "severity: {drift_class_mix: error}\n  split:")
    assert place.bind("r1", text=strict) == 0
    first = place.plan["fingerprint"]
    held = (place.workspace / "evaluation" / "ledger.json").read_text()
    _all_are_rings(place)
    assert place.bind("r2", text=strict) == 3
    assert (place.workspace / "evaluation" / "ledger.json").read_text() == held
    assert "class mix changed since data set" in place.error
    assert str(place.out / "report.html") in place.error
    assert "Change since the last data set" in (place.out / "report.html").read_text()
    # The next run compares with what was taken, not with what was refused.
    taken = json.loads((place.workspace / "datasets" / "arrival.json").read_text())
    assert (taken["outcome"], taken["fingerprint"]) == ("bad_data", first)


def test_a_damaged_data_set_is_not_compared_with(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert place.bind("r1") == 0
    first = Path(place.plan["snapshot"])
    rows = (first / "annotations.jsonl").read_text()
    (first / "annotations.jsonl").write_text(rows[: len(rows) // 2])
    _all_are_rings(place)
    assert place.bind("r2") == 0
    assert f"{first.name[:12]}, cannot be compared with: " in capsys.readouterr().out
    assert json.loads((place.out / "report.json").read_text())["previous"] == ""
