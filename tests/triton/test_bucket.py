"""Releases into a bucket: a real Triton reads it, moto keeps it."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from refit.triton import bucket
from refit.triton.bucket import BucketLock, BucketRepository, open_repository
from refit.triton.client import TritonClient
from refit.triton.errors import LockLost, ModelLocked, ReleaseFailed, RepositoryError, RollbackError
from refit.triton.installation import Installation
from refit.triton.ledger import Ledger
from refit.triton.release import release
from refit.triton.rollback import rollback
from refit.triton.server import TritonServer
from refit.triton.specs import ReleaseReport, ReleaseSpec, RollbackSpec, WatchSpec
from refit.triton.watch import watch
from tests.remote.sources import KEY, S3, SECRET, s3_server
from tests.triton.models import INPUT, make_model, noise, release_spec, run_cli, write_spec

BUCKET = "released"


@dataclass
class Place:
    """A model in a bucket; `server` reads it."""

    s3: S3
    server: TritonServer
    client: TritonClient
    folder: Path
    name: str

    @property
    def ledger(self) -> Path:
        return self.folder / "workspace" / "demo" / "releases"

    def spec(self, folder: str, **options: Any) -> ReleaseSpec:
        path = make_model(self.folder / folder, **options)
        return release_spec(path, url=self.server.url, repository=REPOSITORY, ledger=self.ledger, model=self.name)

    def release(self, folder: str, **options: Any) -> ReleaseReport:
        return release(self.spec(folder, **options))

    def rollback(self) -> RollbackSpec:
        return RollbackSpec(model=self.name, url=self.server.url, repository=REPOSITORY, ledger=self.ledger)

    def objects(self, prefix: str) -> list[str]:
        found = [meta["path"] for batch in self.s3.store(BUCKET).list(prefix) for meta in batch]
        return sorted(path.removeprefix(prefix) for path in found)

    def settled(self, version: int) -> None:
        assert self.client.ready_versions(self.name) == (version,)
        assert self.client.infer(self.name, {INPUT: noise(1)}).version == version
        states = {r.version: r.state for r in Ledger(self.ledger).records(self.name)}
        assert [v for v, state in states.items() if state == "serving"] == [version]
        assert "staged" not in states.values()
        assert self.objects(f"a/models.staging/{self.name}/") == []
        lock = json.loads(bytes(self.s3.store(BUCKET).get(f"a/models.locks/{self.name}.json").bytes()))
        assert lock["token"] == ""
        config = bytes(self.s3.store(BUCKET).get(f"a/models/{self.name}/config.pbtxt").bytes()).decode()
        assert f"versions: {version}\n" in config
        assert config.count("versions:") == 1


REPOSITORY = f"s3://{BUCKET}/a/models"


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
            patch.delenv(name, raising=False)
        with s3_server() as server:
            server.bucket(BUCKET)
            server.put(BUCKET, {"a/models/.keep": b""})  # Triton wants the folder to be there
            patch.setenv("AWS_ACCESS_KEY_ID", KEY)
            patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
            patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
            patch.setenv(bucket.CONNECTION, server.login())
            patch.setenv("REFIT_ALLOWED_HOSTS", server.allowed)
            yield server


@pytest.fixture(scope="module")
def bucket_server(
    s3: S3, local_triton: Installation, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    where = f"s3://{s3.url}/{BUCKET}/a/models"
    folder = tmp_path_factory.mktemp("triton-s3")
    with TritonServer(where, folder, installation=local_triton, stop_seconds=0) as server:
        yield server


@pytest.fixture
def stored(s3: S3, bucket_server: TritonServer, tmp_path: Path) -> Iterator[Place]:
    with TritonClient(bucket_server.url) as client:
        yield Place(s3, bucket_server, client, tmp_path, f"m{uuid.uuid4().hex[:8]}")


def test_release_failure_watch_and_roll_back(stored: Place) -> None:
    assert stored.release("a").version == 1
    with pytest.raises(ReleaseFailed, match="version 1 serves as before") as caught:
        stored.release("bad", operator="Unknown")
    assert caught.value.rejected
    stored.settled(1)
    assert stored.objects(f"a/models/{stored.name}/") == ["1/model.json", "1/model.onnx", "config.pbtxt"]
    assert stored.objects(f"a/models.retired/{stored.name}/") == ["2.json", "2/model.json", "2/model.onnx"]
    report = release(stored.spec("b", seed=5).model_copy(update={"watched": True}))
    assert (report.version, report.previous) == (3, 1)
    assert stored.client.ready_versions(stored.name) == (1, 3)
    asked = {
        **stored.rollback().model_dump(exclude={"to", "by", "reason", "public_key"}),
        "minutes": 0.001,
        "keep_versions": 1,
    }
    assert watch(WatchSpec.model_validate(asked)).outcome == "stays"
    stored.settled(3)
    assert stored.objects(f"a/models/{stored.name}/") == ["3/model.json", "3/model.onnx", "config.pbtxt"]
    with pytest.raises(RollbackError, match=r"no version of .* before 3"):
        rollback(stored.rollback())
    assert stored.release("b", seed=5).outcome == "already_serving"
    assert stored.release("c", seed=6).version == 4
    assert rollback(stored.rollback()).version == 3
    stored.settled(3)


def test_roll_back_to_bytes_that_somebody_changed_is_refused(stored: Place) -> None:
    stored.release("a")
    stored.release("b", seed=5)
    stored.s3.put(BUCKET, {f"a/models/{stored.name}/1/model.onnx": stored.spec("c", seed=6).model_path.read_bytes()})
    with pytest.raises(RollbackError, match=rf"{REPOSITORY}/{stored.name}/1/model.onnx is not the file"):
        rollback(stored.rollback())
    stored.settled(2)


@pytest.mark.parametrize("step", ["installed", "loaded", "undo-configured"])
def test_killed_release_is_finished_or_undone(stored: Place, step: str) -> None:
    stored.release("a")
    undo = step.startswith("undo")
    spec = stored.spec("b", seed=5, operator="Unknown" if undo else "Sigmoid")
    file = write_spec(spec, stored.folder / "release.yaml")
    killed = run_cli("release", "-e", file, "-r", stored.folder / "out", REFIT_CRASH_AT=step)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert stored.client.infer(stored.name, {INPUT: noise(1)}).version == (2 if step in ("loaded", "verified") else 1)
    report = stored.release("b", seed=5)
    assert (report.outcome, report.version) == (("already_serving", 2) if step == "verified" else ("released", 3))
    stored.settled(report.version)


def lock(place: Place, **more: Any) -> BucketLock:
    repository = open_repository(REPOSITORY)
    assert isinstance(repository, BucketRepository)
    return BucketLock(repository._objects, place.name, **{"run": "r", "wait_seconds": 0, **more})


def test_lock_is_one_holder_s_and_given_back(stored: Place) -> None:
    with (
        lock(stored, run="first run") as held,
        pytest.raises(ModelLocked, match=r"first run .*holds the lock"),
        lock(stored),
    ):
        raise AssertionError("two hold it")
    assert not held.taken_over
    with lock(stored) as again:
        again.check()


def test_silent_holder_loses_the_lock_and_can_write_nothing_more(
    stored: Place, said: tuple[list[str], Callable[[str], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process lives and is only paused: after the pause neither its lock nor its configuration can be written."""
    stored.release("a")
    monkeypatch.setattr(BucketLock, "_live", lambda self: None)
    monkeypatch.setattr(bucket, "LEASE_SECONDS", 0.6)
    paused, next_one = open_repository(REPOSITORY), open_repository(REPOSITORY)
    with (
        paused.lock(stored.name, run="paused run", wait_seconds=0, say=said[1]) as old,
        next_one.lock(stored.name, run="r", wait_seconds=30, say=said[1]) as new,
    ):
        assert any("Took over the lock" in m and "paused run" in m for m in said[0])
        with pytest.raises(LockLost):
            old.check()
        with pytest.raises(FileNotFoundError):
            paused.write_config(stored.name, b"old", old.desk)
        new.check()
    stored.release("a")
    stored.settled(1)


def test_of_many_who_want_the_lock_one_holds_it_at_a_time(stored: Place) -> None:
    inside, most, turns = [0], [0], []

    def one() -> None:
        with lock(stored, wait_seconds=60):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.05)
            inside[0] -= 1
            turns.append(1)

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, len(turns)) == ([1], 4)


def test_buckets_that_cannot_be_used(stored: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RepositoryError, match="write s3://BUCKET/PREFIX"):
        open_repository("az://account/models")
    with pytest.raises(RepositoryError, match=r"s3://nobody/a/models.*cannot be written"):
        release(stored.spec("a").model_copy(update={"repository": "s3://nobody/a/models"}))
    monkeypatch.delenv("REFIT_ALLOWED_HOSTS")
    with pytest.raises(RepositoryError, match="plain http"):
        open_repository(REPOSITORY)
    assert os.environ[bucket.CONNECTION]
