"""Releases into a real Triton: swaps under load, bad models, wrong answers, a server that is down."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest

from refit.files import sha256
from refit.triton.client import TritonClient
from refit.triton.config import Served
from refit.triton.errors import (
    AccessRefused,
    ArtefactError,
    ModelNotServed,
    ReleaseFailed,
    RepositoryError,
    TritonError,
    TritonUnavailable,
)
from refit.triton.installation import Installation
from refit.triton.ledger import Ledger
from refit.triton.reference import Reference
from refit.triton.release import release
from refit.triton.rollback import rollback
from refit.triton.server import TritonServer
from refit.triton.serving import still_serving
from refit.triton.specs import RollbackSpec
from refit.triton.stage import write_report
from tests.triton.fixtures import Place
from tests.triton.models import BOXES, COVERAGE, INPUT, make_model, noise, onnxruntime_answers, release_spec


def champion_answers(place: Place) -> int:
    """The version that answers now."""
    return place.client.infer(place.name, {INPUT: noise(1)}).version


def test_first_release_is_proven_aside_and_recorded(place: Place) -> None:
    path = place.model("a")
    out = place.folder / "release" / "out"
    out.mkdir(parents=True)
    (out.parent / "request.json").write_text(json.dumps({"pipeline": "demo", "run": "r7", "key": "k7"}))
    results = place.folder / "results.json"
    per_class = {"red": {"AP50": 0.75, "objects": 9}, "grün": {"AP50": None}}
    results.write_text(json.dumps({"metrics": {"mAP50": 0.8}, "per_class": per_class, "dataset": "abc"}))
    spec = place.spec(path, prove="always", pipeline=None, run=None, results=results, metrics={"bytes": 12})
    report = release(spec, out)

    assert (report.outcome, report.version, report.previous) == ("released", 1, None)
    assert report.difference == 0.0
    assert report.proven_by == "a throwaway Triton"
    assert place.client.ready_versions(place.name) == (1,)
    served = place.client.config(place.name)
    assert served.sha256 == report.sha256
    assert served.sidecar == json.loads(path.with_name("model.json").read_text())
    assert {k: served.parameters[f"refit.{k}"] for k in ("pipeline", "run", "key")} == {
        "pipeline": "demo",
        "run": "r7",
        "key": "k7",
    }
    record = Ledger(place.ledger).read(1)
    assert record is not None
    assert record.state == "serving"
    assert record.metrics == {"mAP50": 0.8, "AP50/red": 0.75, "bytes": 12}
    assert [e.state for e in record.history] == ["staged", "serving"]
    assert not place.beside("staging").exists()
    assert (out / "proof" / "triton.log").exists()

    write_report(report, out)
    assert still_serving(out / "release.json", url=place.server.url)
    assert not still_serving(out / "release.json", url="http://127.0.0.1:1")
    assert len((out / "summary.json").read_bytes()) < 2048


def test_swap_and_rollback_under_load_lose_no_request(place: Place) -> None:
    models = {1: place.model("a"), 2: place.model("b", seed=5)}
    place.release(models[1])
    image = noise(1)
    right = {v: onnxruntime_answers(p, {INPUT: image}, place.folder / f"ort{v}") for v, p in models.items()}
    stop = threading.Event()
    answers: list[tuple[int, bool]] = []
    failures: list[str] = []

    def use() -> None:
        with TritonClient(place.server.url) as mine:
            while not stop.is_set():
                try:
                    answer = mine.infer(place.name, {INPUT: image})
                except TritonError as exc:
                    failures.append(str(exc))
                else:
                    expected = right[answer.version]
                    answers.append(
                        (answer.version, all(np.array_equal(answer.outputs[n], expected[n]) for n in expected))
                    )

    def count(version: int) -> int:
        return sum(v == version for v, _ in answers)

    def wait_for(version: int, more: int) -> None:
        until = count(version) + more
        while count(version) < until and not failures:
            stop.wait(0.01)

    users = [threading.Thread(target=use) for _ in range(3)]
    for user in users:
        user.start()
    try:
        wait_for(1, 100)
        assert place.release(models[2]).previous == 1
        wait_for(2, 100)
        back = RollbackSpec(model=place.name, url=place.server.url, repository=place.repository, ledger=place.ledger)
        assert rollback(back).version == 1
        wait_for(1, 100)
    finally:
        stop.set()
        for user in users:
            user.join()
    assert failures == []
    assert len(answers) >= 300
    assert all(good for _, good in answers)
    assert {v for v, _ in answers} == {1, 2}


def test_model_that_cannot_load_leaves_the_champion(place: Place) -> None:
    place.release(place.model("a"))
    config = (place.repository / place.name / "config.pbtxt").read_bytes()
    with pytest.raises(ReleaseFailed, match=r"(?s)version 1 serves as before.*Unknown") as failed:
        place.release(place.model("bad", operator="Unknown"))
    assert failed.value.rejected
    assert (failed.value.champion, failed.value.restored) == (1, True)
    assert champion_answers(place) == 1
    assert place.client.ready_versions(place.name) == (1,)
    assert (place.repository / place.name / "config.pbtxt").read_bytes() == config
    assert place.versions == ["1"]
    assert (place.beside("retired") / "2" / "model.onnx").exists()
    assert "Unknown" in json.loads((place.beside("retired") / "2.json").read_text())["reason"]
    record = Ledger(place.ledger).read(2)
    assert record is not None
    assert record.state == "failed"
    assert "Unknown" in record.reason
    # A number is never used again, and the next good model takes the next one.
    assert place.release(place.model("b", seed=5)).version == 3


def test_model_that_fails_aside_never_reaches_production(place: Place) -> None:
    place.release(place.model("a"))
    before = place.client.index(place.name)
    with pytest.raises(ReleaseFailed, match="throwaway Triton cannot load the model") as failed:
        place.release(place.model("bad", operator="Unknown"), prove="always")
    assert failed.value.rejected
    assert place.client.index(place.name) == before


def test_model_with_nan_answers_is_rejected(place: Place) -> None:
    place.release(place.model("a"))
    with pytest.raises(ReleaseFailed, match="not finite") as failed:
        place.release(place.model("nan", factor=float("inf")), prove="always")
    assert failed.value.rejected
    with pytest.raises(ReleaseFailed, match="not finite"):
        place.release(place.model("nan", factor=float("inf")))
    assert champion_answers(place) == 1


@pytest.mark.parametrize("prove", ["always", "never"])
def test_wrong_outputs_are_rejected(place: Place, prove: str) -> None:
    place.release(place.model("a"))
    path = place.model("b", seed=5)
    other = onnxruntime_answers(make_model(place.folder / "c", seed=6), {INPUT: noise(3)}, place.folder / "ort")
    Reference({INPUT: noise(3)}, other, "").save(path.with_name("reference.npz"))
    with pytest.raises(ReleaseFailed, match="differs from the reference") as failed:
        place.release(path, prove=prove)
    assert failed.value.rejected
    assert champion_answers(place) == 1
    assert place.client.ready_versions(place.name) == (1,)
    assert place.versions == ["1"]


def test_reference_beside_the_model_and_pictures(place: Place) -> None:
    import cv2

    path = place.model("a")
    right = onnxruntime_answers(path, {INPUT: noise(3)}, place.folder / "ort")
    Reference({INPUT: noise(3)}, right, "").save(path.with_name("reference.npz"))
    pictures = place.folder / "pictures"
    pictures.mkdir()
    for i in range(2):
        cv2.imwrite(str(pictures / f"{i}.png"), (noise(1, seed=i)[0].transpose(1, 2, 0) * 255).astype(np.uint8))
    assert place.release(path, reference_images=2).probes == 2
    place.name += "x"
    report = place.release(path, prove="always", images=pictures)
    assert report.probes == 5
    assert report.difference == 0.0
    assert report.proven_by == "reference.npz beside the model, and a throwaway Triton"


def test_same_artefact_again_changes_nothing(place: Place) -> None:
    path = place.model("a")
    place.release(path)
    stamp = (place.repository / place.name / "config.pbtxt").stat().st_mtime_ns
    again = place.release(path, run="run-2")
    assert (again.outcome, again.version) == ("already_serving", 1)
    assert again.difference == 0.0
    assert (place.repository / place.name / "config.pbtxt").stat().st_mtime_ns == stamp
    assert place.versions == ["1"]


def test_changed_sidecar_is_a_new_version(place: Place) -> None:
    path = place.model("a")
    place.release(path)
    info = json.loads(path.with_name("model.json").read_text())
    info["postprocess"]["score_threshold"] = 0.5
    path.with_name("model.json").write_text(json.dumps(info))
    assert place.release(path).version == 2
    sidecar = place.client.config(place.name).sidecar
    assert sidecar is not None
    assert sidecar["postprocess"]["score_threshold"] == 0.5


def test_old_versions_are_pruned_and_their_numbers_stay_used(place: Place) -> None:
    for seed in range(4):
        report = place.release(place.model(f"m{seed}", seed=seed), keep_versions=2)
    assert report.version == 4
    assert place.versions == ["3", "4"]
    assert json.loads((place.beside("retired") / "1.json").read_text())["state"] == "pruned"
    states = [r.state for r in Ledger(place.ledger).records(place.name)]
    assert states == ["retired", "retired", "retired", "serving"]
    assert "removed old versions [2]" in report.notes
    ledger = Ledger(place.ledger)
    kept = {v: sorted(f.name for f in ledger.model(v).iterdir()) for v in range(1, 5) if ledger.model(v).exists()}
    assert kept == {3: ["model.json", "model.onnx"], 4: ["model.json", "model.onnx"]}
    assert ledger.serving(place.name) == ledger.read(4)
    assert sha256(ledger.model(4) / "model.onnx") == report.sha256


def test_numbers_of_lost_ledgers_and_odd_folders_are_not_used(place: Place) -> None:
    place.release(place.model("a"))
    (place.repository / place.name / "7.tmp").mkdir()  # Triton would parse it as version 7
    assert place.release(place.model("b", seed=5), ledger=place.folder / "another" / "releases").version == 8
    (place.repository / place.name / "7.tmp").rmdir()


def test_champion_of_another_pipeline_is_retired_in_its_ledger(place: Place) -> None:
    place.release(place.model("a"))
    other = place.folder / "workspace" / "other" / "releases"
    report = place.release(place.model("b", seed=5), ledger=other, pipeline="other")
    assert report.version == 2
    first, second = Ledger(place.ledger).read(1), Ledger(other).read(2)
    assert first is not None
    assert first.state == "retired"
    assert second is not None
    assert second.previous is not None
    assert (second.previous.version, second.previous.pipeline) == (1, "demo")


def test_champion_whose_process_died_is_released_again(place: Place) -> None:
    path = place.model("a")
    place.release(path)
    kill_stub(place)
    with pytest.raises(TritonError, match="not healthy"):
        champion_answers(place)
    assert place.client.ready_versions(place.name) == (1,)  # only an inference tells
    report = place.release(path)
    assert (report.outcome, report.version) == ("released", 2)
    assert champion_answers(place) == 2


def kill_stub(place: Place) -> None:
    """Kill the process that serves the model."""
    import os
    import signal
    import time

    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = line.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(b"triton_python_backend_stub") and f"/{place.name}/".encode() in words[1]:
            os.kill(int(line.parent.name), signal.SIGKILL)
            time.sleep(0.3)
            return
    pytest.fail("the model has no stub process")


def test_hand_made_champion_is_replaced_and_comes_back(place: Place) -> None:
    """A model that somebody put there by hand, with Triton's default policy."""
    path = place.model("hand")
    home = place.repository / place.name
    (home / "3").mkdir(parents=True)
    (home / "3" / "model.onnx").write_bytes(path.read_bytes())
    text = (
        f'name: "{place.name}" backend: "onnxruntime" max_batch_size: 4 # by hand\n'
        f'input {{ name: "{INPUT}" data_type: TYPE_FP32 dims: [3, 32, 32] }}\n'
        f'output [ {{ name: "{COVERAGE}" data_type: TYPE_FP32 dims: [2, 2, 2] }},'
        f' {{ name: "{BOXES}" data_type: TYPE_FP32 dims: [8, 2, 2] }} ]\n'
        "instance_group { kind: KIND_CPU }\n"
    )
    (home / "config.pbtxt").write_text(text)
    place.client.load(place.name)
    with pytest.raises(ReleaseFailed, match="version 3 serves as before"):
        place.release(place.model("bad", operator="Unknown"))
    assert (home / "config.pbtxt").read_text() == text
    assert place.versions == ["3"]
    assert champion_answers(place) == 3
    assert place.release(path).version == 5  # the same bytes, but nothing of Refit's about them
    assert champion_answers(place) == 5


def test_failed_first_release_leaves_nothing(place: Place) -> None:
    with pytest.raises(ReleaseFailed, match="nothing served before") as failed:
        place.release(place.model("bad", operator="Unknown"))
    assert failed.value.restored
    assert not (place.repository / place.name).exists()
    with pytest.raises(ModelNotServed):
        champion_answers(place)
    assert place.release(place.model("a")).version == 2


def test_triton_down_touches_nothing(place: Place) -> None:
    place.release(place.model("a"))
    before = sorted(place.repository.parent.rglob("*"))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(TritonUnavailable, match="Connection refused") as down:
            place.release(place.model("b", seed=5), url=url)
    assert down.value.url == url
    assert [p for p in sorted(place.repository.parent.rglob("*")) if ".log" not in p.name] == [
        p for p in before if ".log" not in p.name
    ]
    assert not Ledger(place.ledger).path(2).exists()


def test_wrong_control_key_touches_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFIT_SECRET_TRITON_CONTROL_KEY", "wrong")
    with pytest.raises(AccessRefused, match="refuses the control key"):
        place.release(place.model("a"))
    assert not place.ledger.exists()
    assert not (place.repository / place.name).exists()


def test_without_the_key_a_hidden_champion_is_known_by_its_version(
    local_triton: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the chart's Triton, which shows configurations to nobody without the key; bind has none."""
    monkeypatch.setattr("refit.triton.server._RESTRICTED", "model-repository,model-config")
    folders = (tmp_path / "models", tmp_path / "run")
    with (
        TritonServer(*folders, control_key="k", installation=local_triton, stop_seconds=0) as server,
        TritonClient(server.url, control_key="k") as client,
    ):
        place = Place(server, client, tmp_path, "hidden")
        reports = []
        for folder, seed in (("a", 1), ("b", 5)):
            monkeypatch.setenv("REFIT_SECRET_TRITON_CONTROL_KEY", "k")
            out = tmp_path / f"out-{folder}"
            out.mkdir()
            write_report(place.release(place.model(folder, seed=seed)), out)
            reports.append(out / "release.json")
            monkeypatch.delenv("REFIT_SECRET_TRITON_CONTROL_KEY")
            assert still_serving(reports[-1], url=server.url)
        assert not still_serving(reports[0], url=server.url)
        client.unload("hidden")
        assert not still_serving(reports[1], url=server.url)


def test_another_repository_than_tritons(place: Place) -> None:
    place.release(place.model("a"))
    elsewhere = place.folder / "elsewhere"
    elsewhere.mkdir()
    with pytest.raises(ReleaseFailed, match=r"another repository|not \(") as failed:
        place.release(place.model("b", seed=5), repository=elsewhere)
    assert champion_answers(place) == 1
    assert failed.value.restored
    with pytest.raises(RepositoryError, match="no such model repository"):
        place.release(place.model("c", seed=6), repository=place.folder / "nowhere")


def test_artefacts_that_cannot_be_used(place: Place) -> None:
    path = place.model("a")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtefactError, match="cut short"):
        place.release(path)
    path.write_bytes(whole)
    sidecar = path.with_name("model.json")
    info = json.loads(sidecar.read_text())
    sidecar.write_text(json.dumps({**info, "outputs": {"coverage": COVERAGE, "bbox": "other"}}))
    with pytest.raises(ArtefactError, match="'other', the ONNX file has"):
        place.release(path)
    sidecar.write_text(json.dumps({**info, "input": {**info["input"], "width": 64}}))
    with pytest.raises(ArtefactError, match=r"\[3, 32, 64\].*\[3, 32, 32\]"):
        place.release(path)
    sidecar.unlink()
    with pytest.raises(ArtefactError, match=r"model\.json"):
        place.release(path)
    with pytest.raises(ArtefactError, match="cannot be read"):
        place.release(place.folder / "nothing.onnx")
    assert not (place.repository / place.name).exists()


def test_restart_after_a_failed_release_serves_the_champion(local_triton: Installation, tmp_path: Path) -> None:
    ledger = tmp_path / "workspace" / "demo" / "releases"

    def server() -> TritonServer:
        return TritonServer(tmp_path / "models", tmp_path / "run", installation=local_triton, stop_seconds=0)

    with server() as first:
        where = {"url": first.url, "repository": first.repository, "ledger": ledger, "model": "demo"}
        release(release_spec(make_model(tmp_path / "a"), **where))
        with pytest.raises(ReleaseFailed):
            release(release_spec(make_model(tmp_path / "bad", operator="Unknown"), **where))
    with server() as second, TritonClient(second.url) as client:
        assert client.ready_versions("demo") == (1,)
        assert client.infer("demo", {INPUT: noise(1)}).version == 1
        served: Served = client.config("demo")
        assert served.versions == (1,)


def test_full_disk_in_mid_release(local_triton: Installation, tmp_path: Path) -> None:
    """No room for the last files of a release, and none at all while it goes back: the champion serves all the same."""
    volume = tmp_path / "volume"
    volume.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", volume], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("a small file system cannot be mounted here (no right to)")
    try:
        (volume / "models").mkdir()
        where = {"repository": volume / "models", "ledger": volume / "demo" / "releases", "model": "m"}

        def fill(message: str) -> None:
            """Leave 24 KiB before the load, and nothing when it goes back."""
            room = {"Loading": 24 << 10, "Version": 0}.get(message.partition(" ")[0])
            if room is not None:
                space = os.statvfs(volume)
                count = max(0, space.f_bavail * space.f_frsize - room)
                with contextlib.suppress(OSError), open(volume / message.partition(" ")[0], "wb") as f:
                    f.write(bytes(count))

        with (
            TritonServer(volume / "models", tmp_path / "run", installation=local_triton, stop_seconds=0) as server,
            TritonClient(server.url) as client,
        ):
            release(release_spec(make_model(tmp_path / "a"), url=server.url, **where))
            spec = release_spec(make_model(tmp_path / "b", seed=5), url=server.url, **where)
            with pytest.raises(ReleaseFailed, match=r"(?s)Going back is not done yet.*No space left"):
                release(spec, say=fill)
            assert client.infer("m", {INPUT: noise(1)}).version == 1
            assert client.config("m").versions == (1,)
            for name in ("Loading", "Version"):
                (volume / name).unlink(missing_ok=True)
            report = release(spec)
            assert (report.outcome, report.version, report.previous) == ("released", 3, 1)
    finally:
        subprocess.run(["umount", volume], check=True)
