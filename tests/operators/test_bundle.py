from __future__ import annotations

import json
from pathlib import Path

import pytest
from airflow.dag_processing.bundles.base import BundleUsageTrackingManager, BundleVersionLock
from airflow.sdk.module_loading import import_string

from operators import bundle, names, pools
from tests.operators.pipelines import write_pipeline


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_STORAGE_PATH", str(tmp_path / "storage"))
    monkeypatch.delenv("REFIT_PIPELINES", raising=False)
    (tmp_path / "dags").mkdir()
    (tmp_path / "dags" / "retrain.py").write_text("")
    write_pipeline(tmp_path / "specs" / "pipelines" / "p.yaml")
    return tmp_path


def made(root: Path, version: str | None = None, name: str | None = None) -> bundle.RefitBundle:
    (entry,) = json.loads(bundle.config(root))
    kind = import_string(entry["classpath"])
    found = kind(name=name or entry["name"], version=version, **entry["kwargs"])
    assert isinstance(found, bundle.RefitBundle)
    return found


def test_each_state_of_the_files_has_a_version(root: Path) -> None:
    first = made(root).get_current_version().version
    assert made(root).get_current_version().version == first
    write_pipeline(root / "specs" / "pipelines" / "p.yaml", "seed: 7")
    second = made(root).get_current_version().version
    (root / "dags" / "new.py").write_text("")
    third = made(root).get_current_version().version
    assert len({first, second, third}) == 3


def test_a_version_is_the_live_folder(root: Path) -> None:
    found = made(root, version="0123456789ab")
    found.initialize()
    assert found.path == root
    assert found.supports_versioning


def test_airflows_cleaner_of_old_versions_survives(root: Path) -> None:
    found = made(root, version="0123456789ab", name="cleaned")  # its records outlive a test
    found.initialize()
    with BundleVersionLock(found.name, found.version):
        pass
    manager = BundleUsageTrackingManager()
    tracked = manager._find_all_tracking_files(found.name)
    assert [t.version for t in tracked] == ["0123456789ab"]
    for info in tracked:
        manager._remove_stale_bundle(found.name, info)
    assert not (found.versions_dir / "0123456789ab").exists()
    assert manager._find_all_tracking_files(found.name) == []


def test_no_files_at_all_is_a_state_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFIT_PIPELINES", str(tmp_path / "nowhere"))
    assert made(tmp_path / "gone").get_current_version().version


def test_pools_and_names() -> None:
    local, gpu, pods, looks = pools.required(local_slots=3, gpus=2)
    assert (local.name, local.slots, local.include_deferred) == (pools.LOCAL, 3, False)
    assert (gpu.name, gpu.slots, gpu.include_deferred) == (pools.GPU, 2, True)
    assert [(pool.name, pool.include_deferred) for pool in (pods, looks)] == [(pools.PODS, True), (pools.LOOKS, True)]
    assert pools.of_stage("kubernetes", 2) == {"pool": pools.GPU, "pool_slots": 2}
    assert pools.required()[0].slots >= 1
    assert names.pipeline_of(names.dag_id("a_b")) == "a_b"
    assert names.pipeline_of("other") is None
    assert names.stage_of("stages.train") == "train"
    assert names.stage_of("release") == "release"
    assert [names.stage_of(t) for t in ("arrival", "bind", "done", "pipeline_file")] == [None] * 4
    assert set(names.task_ids(["train"])) == {"train", "stages.train"}
