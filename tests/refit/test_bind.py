"""bind: params are judged first, data is taken in, the plan is immutable, and only intact results are reused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from refit import bind, runner
from refit import plan as plans
from refit.command import main
from refit.config import Settings
from refit.data import synthetic

ROOT = Path(__file__).resolve().parents[2]
PIPELINE = """\
dataset:
  source: inbox/mine
  format: kitti
  classes: [cross, ring, triangle]
  split: {val: 0.3}
toolkit: cpu
network: {input_width: 320, input_height: 192}
stages:
  train: {epochs: 2, batch_size: 4}
  quantize: {images: 5}
"""


class Place:
    """A workspace, a data folder, and a way to bind a run there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data = root / "data" / "inbox" / "mine"
        self.workspace = root / "workspace" / "mine"
        self.error = ""

    def bind(self, run_id: str = "r1", text: str = PIPELINE, conf: dict[str, Any] | None = None) -> int:
        file = self.root / "mine.yaml"
        request = plans.bind_request(file, text, run_id, conf or {}, Settings.from_env(), nonce=os.urandom(4).hex())
        stage = Path(request["paths"]["stage"])
        (stage / "specs").mkdir(parents=True, exist_ok=True)
        (stage / "specs" / "bind.yaml").write_text(request["files"]["bind.yaml"])
        self.out = stage / "out"
        code = main("refit.bind", bind.ACTIONS, ["bind", "-e", str(stage / "specs" / "bind.yaml"), "-r", str(self.out)])
        last = json.loads((self.out / "status.json").read_text().splitlines()[-1])
        self.error = last["message"] if last["status"] == "FAILURE" else ""
        return code

    @property
    def summary(self) -> dict[str, Any]:
        return dict(json.loads((self.out / "summary.json").read_text()))

    @property
    def plan(self) -> dict[str, Any]:
        return dict(json.loads(Path(self.summary["plan"]).read_text()))

    def finish(self, name: str) -> Path:
        """Leave a good result of a stage, as the runner does."""
        stage = next(s for s in self.plan["stages"] if s["name"] == name)
        folder = Path(stage["paths"]["stage"])
        (folder / "out").mkdir(parents=True)
        outputs = {}
        for output in stage["outputs"]:
            path = folder / "out" / output["path"]
            path.write_text("{}" * 600)
            size, digest = runner.measure(str(path))
            outputs[output["name"]] = {"path": output["path"], "bytes": size, "sha256": digest}
        result = {"schema": 1, "outcome": "succeeded", "key": stage["key"], "outputs": outputs}
        (folder / "result.json").write_text(json.dumps(result))
        publish = Path(stage["publish"])
        publish.parent.mkdir(exist_ok=True)
        publish.write_text(json.dumps({"stage_dir": str(folder)}))
        return folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    for name in list(os.environ):
        if name.startswith("REFIT_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("REFIT_HOME", str(tmp_path))
    made = Place(tmp_path)
    synthetic.make(made.data, train=12, val=4, shifted=0, seed=3)
    return made


def test_a_plan_is_written_with_the_snapshot_it_is_bound_to(place: Place) -> None:
    assert place.bind() == 0
    plan = place.plan
    assert place.summary["skip"] == []
    assert plan["fingerprint"] == place.summary["fingerprint"]
    assert (Path(plan["snapshot"]) / "annotations.jsonl").is_file()
    assert place.summary["images"] == 16
    assert len(json.dumps(place.summary)) < 2048
    assert json.loads((place.workspace / "datasets" / "arrival.json").read_text())["fingerprint"] == plan["fingerprint"]


def test_params_change_the_plan(place: Place) -> None:
    assert place.bind(conf={"train_epochs": 7, "release": False}) == 0
    train = next(s for s in place.plan["stages"] if s["name"] == "train")
    assert "epochs: 7" in train["files"]["train.yaml"]
    assert place.plan["off"] == ["release"]
    assert place.summary["skip"] == ["release"]


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
    assert place.summary["skip"] == ["dataset_convert"]
    train = next(s for s in place.plan["stages"] if s["name"] == "train")
    assert train["inputs"]["dataset_convert"] == str(folder)


def test_a_result_whose_file_was_changed_is_not_reused(place: Place) -> None:
    place.bind("r1")
    folder = place.finish("train")
    (folder / "out" / "model.pth").write_text("damaged")
    assert place.bind("r2") == 0
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


def test_code_version_follows_the_source(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    source = tmp_path / "p" / "a.py"
    source.write_text("x = 1\n")
    before = bind.code_version(tmp_path, "p")
    bind.code_version.cache_clear()
    source.write_text("x = 2\n")
    assert bind.code_version(tmp_path, "p") != before


def test_a_missing_lock_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REFIT_IMAGE_DIGEST", raising=False)
    with pytest.raises(Exception, match=r"images/cpu/requirements\.txt: the lock of environment cpu cannot be read"):
        bind.environment_digest(Settings.from_env({"REFIT_REPOSITORY": str(tmp_path)}), "cpu")
