"""`refit gc`: what is old goes, and never what a kept run, a release or a run that begins meanwhile needs."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from refit import cli, collect
from refit import plan as plans
from refit.collect import Collection, Rules
from refit.data import snapshot, synthetic
from refit.runtime import report as workspaces
from refit.triton.ledger import Ledger, Record
from tests.refit.bind_helpers import Place

NOTHING = Rules(keep_runs=0, keep_days=0)


def used(folder: Path) -> int:
    """Bytes that a folder's files take, each file once however many links it has."""
    files = [p.lstat() for p in folder.rglob("*") if p.is_file() and p.name != collect.LOCK]
    return sum({s.st_ino: s.st_size for s in files}.values())


def finish(place: Place) -> Path:
    """End every stage of the run that was bound last; its folder."""
    for stage in plans.tasks(place.plan):
        place.finish(stage["name"])
    return run_of(place)


def run_of(place: Place) -> Path:
    return place.out.parents[1]


def age(run: Path, days: float) -> None:
    for path in [run, *run.rglob("*")]:
        os.utime(path, (time.time() - days * collect.DAY,) * 2)


def new_data(place: Place, seed: int) -> None:
    shutil.rmtree(place.data)
    synthetic.make(place.data, train=12, val=4, shifted=0, seed=seed)


def kinds(found: Collection) -> dict[str, list[str]]:
    made: dict[str, list[str]] = {}
    for item in found.items:
        made.setdefault(item.kind, []).append(item.name)
    return made


def released(place: Place, run: str, version: int, state: Any, repository: Path) -> None:
    words = {"model": "mine", "url": "http://127.0.0.1:8000", "pipeline": "mine", "key": "k", "config": ""}
    record = Record(version=version, state=state, sha256="0", bytes=1, run=run, repository=str(repository), **words)
    Ledger(place.workspace / "releases").write(record)


def test_an_old_run_goes_with_its_data_and_keys_and_the_bytes_are_right(place: Place) -> None:
    place.bind("old")
    age(finish(place), 40)
    new_data(place, 5)
    place.bind("new")
    finish(place)
    before, kept = used(place.workspace), place.plan["fingerprint"]
    planned = collect.collect(place.workspace, Rules(keep_runs=1), dry_run=True)
    assert used(place.workspace) == before
    found = collect.collect(place.workspace, Rules(keep_runs=1))
    assert found.as_json() == planned.as_json()
    assert set(kinds(found)) == {"run", "snapshot", "object", "key"}
    assert found.kept == {"new": "one of the newest 1"}
    assert found.bytes == before - used(place.workspace)
    assert [p.name for p in (place.workspace / "runs").iterdir()] == ["new"]
    assert snapshot.verify(place.workspace / "datasets" / kept) == ""
    assert len(list((place.workspace / "datasets" / "objects").glob("*/*"))) == 16
    assert list((place.workspace / collect.TRASH).iterdir()) == []
    assert collect.collect(place.workspace, Rules(keep_runs=1)).items == []


def test_what_a_kept_run_reuses_stays_and_the_rest_of_that_run_goes(place: Place) -> None:
    place.bind("old")
    used_folder = place.finish("dataset_convert")
    place.finish("train")
    (place.workspace / "keys" / "x.json").write_text('{"stage_dir": "/elsewhere/runs/gone/01-x"}')
    place.bind("new", conf={"train_epochs": 7})
    age(run_of(place).with_name("old"), 40)
    assert place.plan["reused"] == {"dataset_convert": str(used_folder)}
    found = collect.collect(place.workspace, Rules(keep_runs=1))
    assert sorted(p.name for p in used_folder.parent.iterdir() if p.is_dir()) == [used_folder.name]
    assert kinds(found)["key"] == ["keys"]
    assert [json.loads(k.read_text())["stage_dir"] for k in place.workspace.glob("keys/*.json")] == [str(used_folder)]
    place.bind("newer")
    assert place.plan["reused"] == {"dataset_convert": str(used_folder)}


def test_looks_at_the_servers_are_no_runs_and_go_by_age(place: Place) -> None:
    """They come every hour: counted as runs, they would push out all trainings."""
    place.bind("old")
    run = finish(place)
    looks = [run.parent / f"reconcile-{k}" for k in range(3)]
    for look in looks:
        (look / "reconcile").mkdir(parents=True)
        (look / "reconcile" / "request.json").write_text("{}")
    age(run, 40)
    age(looks[0], 40)
    found = collect.collect(place.workspace, Rules(keep_runs=1, keep_days=30))
    assert kinds(found) == {"aside": ["reconcile-0"]}
    assert found.kept == {"old": "one of the newest 1"}
    assert [look.exists() for look in looks] == [False, True, True]
    entry = workspaces.workspace(place.workspace.parent)[0]
    assert entry["run"] == "old"


def test_a_plan_made_in_a_pod_names_its_folders_by_another_path(place: Place) -> None:
    place.bind("old")
    folder = place.finish("dataset_convert")
    place.bind("new")
    plan = run_of(place) / "plan.json"
    plan.write_text(plan.read_text().replace(str(place.workspace), "/workspace/mine"))
    age(folder.parent, 40)
    collect.collect(place.workspace, Rules(keep_runs=1))
    assert (folder / "result.json").exists()
    assert snapshot.verify(place.workspace / "datasets" / place.plan["fingerprint"]) == ""


@pytest.mark.parametrize(
    ("state", "in_repository", "stays"),
    [
        ("serving", True, True),
        ("staged", False, True),
        ("retired", True, True),
        ("retired", False, False),
        ("failed", True, False),
    ],
)
def test_the_run_of_a_version_that_may_serve_stays(
    place: Place, tmp_path: Path, state: str, in_repository: bool, stays: bool
) -> None:
    place.bind("old")
    run = finish(place)
    repository = tmp_path / "models"
    (repository / "mine" / ("3" if in_repository else "4")).mkdir(parents=True)
    released(place, "old", 3, state, repository)
    found = collect.collect(place.workspace, NOTHING)
    assert (run / "plan.json").exists() is stays
    assert found.kept == ({"old": f"version 3 of mine is {state}"} if stays else {})


def test_where_the_repository_cannot_be_seen_a_retired_version_may_serve(place: Place, tmp_path: Path) -> None:
    place.bind("old")
    run = finish(place)
    released(place, "old", 3, "retired", tmp_path / "not-mounted-here")
    collect.collect(place.workspace, NOTHING)
    assert (run / "plan.json").exists()


def test_a_run_with_a_stage_at_work_stays_however_old(place: Place) -> None:
    place.bind("old")
    run = finish(place)
    age(run, 400)
    with open(run / ".02-train.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert collect.collect(place.workspace, NOTHING).kept == {"old": "a stage is at work"}
    assert kinds(collect.collect(place.workspace, NOTHING))["run"] == ["old"]


def test_a_run_between_two_stages_stays(place: Place) -> None:
    place.bind("r1")
    place.finish("dataset_convert")
    run = run_of(place)
    assert collect.collect(place.workspace, NOTHING).kept == {"r1": "not finished, and at work within the last day"}
    age(run, 2)
    assert kinds(collect.collect(place.workspace, NOTHING))["run"] == ["r1"]


def test_a_stage_that_starts_after_the_choice_keeps_its_run_and_data(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.bind("r1")
    run = finish(place)
    age(run, 40)
    new_data(place, 5)
    place.bind("r2")
    chosen = collect._Choice(place.workspace, Rules(keep_runs=1), time.time()).made
    with open(run / ".02-train.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        collect._take_away(chosen, place.workspace / collect.TRASH / "x")
    plan = json.loads((run / "plan.json").read_text())
    assert snapshot.verify(Path(plan["snapshot"])) == ""
    assert "a stage of it was started just now" in chosen.notes[0]
    assert set(kinds(chosen)) == {"key"}


def test_attempts_moved_aside_go_once_the_stage_has_succeeded(place: Place) -> None:
    place.bind("r1")
    good = place.finish("train")
    run = run_of(place)
    for name in (f"{good.name}.1", "05-retrain.1"):
        (run / name / "out").mkdir(parents=True)
        (run / name / "out" / "checkpoint.pth").write_bytes(b"x" * 1000)
    found = collect.collect(place.workspace, Rules())
    assert kinds(found) == {"attempt": [f"r1/{good.name}.1"]}
    assert found.bytes == 1000
    assert (run / "05-retrain.1").exists()


def test_checkpoints_go_that_a_finished_stage_did_not_give_as_its_result(place: Place) -> None:
    place.bind("r1")
    folder = place.finish("train")
    request = {"outputs": [{"name": "model", "path": "epoch_*.hdf5", "pick": "newest"}]}
    (folder / "request.json").write_text(json.dumps(request))
    result = json.loads((folder / "result.json").read_text())
    result["outputs"] = {"model": {"path": "epoch_3.hdf5", "bytes": 10, "sha256": ""}}
    (folder / "result.json").write_text(json.dumps(result))
    for epoch in (1, 2, 3):
        (folder / "out" / f"epoch_{epoch}.hdf5").write_bytes(b"0" * 10)
    assert collect.collect(place.workspace, Rules()).items == []  # a day to look at them
    age(run_of(place), 2)
    found = collect.collect(place.workspace, Rules())
    assert (kinds(found), found.bytes) == ({"checkpoint": [f"r1/{folder.name}"]}, 20)
    assert [p.name for p in folder.glob("out/*.hdf5")] == ["epoch_3.hdf5"]


def test_weights_of_ngc_go_that_no_kept_run_begins_with(place: Place) -> None:
    """The text of a plan names them in the spec of its stage `pretrained`."""
    place.bind("r1")
    plan = run_of(place) / "plan.json"
    made = json.loads(plan.read_text())
    made["stages"][0]["files"]["download.yaml"] = "model: nvidia/tao/pretrained_ssd:resnet18\npath: null\n"
    plan.write_text(json.dumps(made))
    ngc = place.workspace / "ngc"
    for model in ("nvidia/tao/pretrained_ssd:resnet18", "nvidia/tao/pretrained_ssd:resnet34", "nvidia/vgg:16", "a/b:1"):
        folder = ngc / model.replace(":", "/")
        (folder / "files").mkdir(parents=True)
        (folder / "files" / "weights.hdf5").write_bytes(b"0" * 100)
        (folder / "version.json").write_text(json.dumps({"schema": 1, "model": model}))
    (ngc / "nvidia" / "tao" / "pretrained_ssd" / ".resnet50.zip.part").write_bytes(b"0" * 10)
    age(ngc, 2)
    os.utime(ngc / "a" / "b" / "1" / "version.json")  # a download of just now, whose run may be binding
    found = collect.collect(place.workspace, Rules())
    gone = ["nvidia/tao/pretrained_ssd:resnet34", "nvidia/vgg:16", ".resnet50.zip.part"]
    assert kinds(found) == {"weights": gone}
    left = sorted(str(p.parent.relative_to(ngc)) for p in ngc.rglob("version.json"))
    assert left == ["a/b/1", "nvidia/tao/pretrained_ssd/resnet18"]
    assert not list(ngc.rglob("*.part"))
    age(plan.parent, 40)
    found = collect.collect(place.workspace, NOTHING)
    assert "nvidia/tao/pretrained_ssd:resnet18" in kinds(found)["weights"]


def test_what_was_unpacked_of_a_refused_arrival_goes_by_age(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    next(place.data.glob("labels/*.txt")).write_text("no label\n")
    archive = shutil.make_archive(str(place.root / "set"), "zip", place.data)
    shutil.rmtree(place.data)
    place.data.mkdir()
    shutil.move(archive, place.data)
    assert place.bind("r1") == 3, place.error
    incoming = place.workspace / "incoming"
    (refused,) = (p for p in incoming.iterdir() if p.is_dir())
    (incoming / "last" / "files").mkdir(parents=True)
    for days in (0.5, 20):  # a retry may be going to use it; --keep-days
        age(incoming, days)
        rules = NOTHING if days < 1 else Rules()
        assert "incoming" not in kinds(collect.collect(place.workspace, rules))
    age(incoming, 31)
    monkeypatch.setattr(collect, "LOCK_SECONDS", 0.1)
    with collect.binding(place.workspace), pytest.raises(collect.CollectError):
        collect.collect(place.workspace, Rules())
    assert (refused / "data").is_dir()
    found = collect.collect(place.workspace, Rules())
    assert kinds(found) == {"incoming": [refused.name]}
    assert found.bytes > 0
    assert sorted(p.name for p in incoming.iterdir()) == [".lock", "last"]


def test_a_model_that_another_pipeline_starts_from_stays(place: Place) -> None:
    place.bind("old")
    folder = finish(place) / "02-train"
    other = place.workspace.parent / "other" / "runs" / "r1"
    other.mkdir(parents=True)
    named = {"stages": [{"files": {"train.yaml": f"pretrained: {folder}/out/model.pth"}}]}
    (other / "plan.json").write_text(json.dumps(named))
    collect.collect(place.workspace, NOTHING)
    assert [p.name for p in folder.parent.iterdir() if p.is_dir()] == ["02-train"]


def test_images_stay_where_a_snapshot_cannot_be_read(place: Place) -> None:
    place.bind("r1")
    (Path(place.plan["snapshot"]) / "annotations.jsonl").write_text("{")
    found = collect.collect(place.workspace, NOTHING)
    assert "no images were collected" in found.notes[0]
    assert len(list((place.workspace / "datasets" / "objects").glob("*/*"))) == 16


@pytest.mark.parametrize("step", range(0, 24, 3))
def test_a_kill_at_any_step_loses_nothing_and_the_next_gc_ends_the_work(
    place: Place, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    place.bind("old")
    age(finish(place), 40)
    new_data(place, 5)
    place.bind("new")
    folder = place.finish("dataset_convert")
    left = iter(range(step))

    def killed(real: Any) -> Any:
        def call(*args: Any, **how: Any) -> Any:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return real(*args, **how)

        return call

    with monkeypatch.context() as patch:
        for name in ("rename", "unlink", "rmdir"):
            patch.setattr(os, name, killed(getattr(os, name)))
        with pytest.raises(KeyboardInterrupt):
            collect.collect(place.workspace, Rules(keep_runs=1))
    place.bind("newer")
    assert place.plan["reused"] == {"dataset_convert": str(folder)}
    collect.collect(place.workspace, Rules(keep_runs=2))
    assert snapshot.verify(Path(place.plan["snapshot"])) == ""
    assert sorted(p.name for p in (place.workspace / "runs").iterdir()) == ["new", "newer"]
    assert list((place.workspace / collect.TRASH).iterdir()) == []
    assert len(list((place.workspace / "datasets" / "objects").glob("*/*"))) == 16


def test_runs_that_begin_while_it_collects_find_all_that_they_count_on(place: Place) -> None:
    over, gone, errors = threading.Event(), [0], []

    def collecting() -> None:
        while not over.is_set():
            try:
                gone[0] += len(collect.collect(place.workspace, NOTHING).items)
            except collect.CollectError:
                continue
            except BaseException as exc:
                errors.append(exc)
                raise

    place.bind("r0")
    finish(place)
    thread = threading.Thread(target=collecting)
    thread.start()
    try:
        for number in range(1, 9):
            if number % 3 == 0:
                new_data(place, number)
            assert place.bind(f"r{number}") == 0
            plan = place.plan
            assert all((Path(folder) / "result.json").exists() for folder in plan["reused"].values())
            assert snapshot.verify(Path(plan["snapshot"])) == ""
            finish(place)
    finally:
        over.set()
        thread.join()
    assert errors == []
    assert gone[0] > 0


class TestCommand:
    def test_json_tells_what_and_how_much(self, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
        place.bind("old")
        age(finish(place), 40)
        assert cli.main(["gc", "mine", "--dry-run", "--keep-runs", "0", "--json"]) == 0
        said = json.loads(capsys.readouterr().out.partition("{")[2].join(["{", ""]))
        assert said["dry_run"] is True
        (mine,) = said["pipelines"]
        assert mine["bytes"] == sum(r["bytes"] for r in mine["removed"]) > 0
        assert (place.workspace / "runs" / "old").exists()
        assert cli.main(["gc", "--keep-runs", "0"]) == 0
        assert "old: not one of the newest 0, 40 days old" in capsys.readouterr().out
        assert not (place.workspace / "runs" / "old").exists()

    def test_an_unknown_pipeline_is_bad_input(self, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
        place.bind("r1")
        assert cli.main(["gc", "mien"]) == 2
        assert "mien: no such pipeline" in capsys.readouterr().err

    def test_a_bind_under_way_is_left_alone(
        self, place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        place.bind("r1")
        monkeypatch.setattr(collect, "LOCK_SECONDS", 0.1)
        with collect.binding(place.workspace):
            assert cli.main(["gc"]) == 1
        assert "a run is binding" in capsys.readouterr().err
        assert cli.main(["gc"]) == 0
