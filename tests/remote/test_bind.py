"""A run of remote data: taken in once, nothing secret left behind, what is damaged put aside with the reason."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from refit import cluster
from refit import plan as plans
from refit.config import Settings
from refit.data import arrival, ingest, synthetic
from refit.data import images as pictures
from refit.data.remote.stores import Store
from refit.data.tree import FileInfo
from refit.runtime import pod
from refit.runtime.local import StageProcess
from tests.refit.bind_helpers import PIPELINE, Place
from tests.refit.test_start import torch_file
from tests.remote.sources import KEY, S3, SECRET, Https

REMOTE = PIPELINE.replace("source: inbox/mine", "source: s3://sets/mine\n  connection: lab")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    for name in [n for n in os.environ if n.startswith("REFIT_") and n != "REFIT_ENVS"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("REFIT_HOME", str(tmp_path))
    made = Place(tmp_path)
    synthetic.make(made.data, train=12, val=4, shifted=0, seed=3)
    return made


@pytest.fixture
def bind(place: Place, s3: S3, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Bind a run of what lies in the bucket, with the login as the runner hands it over."""
    s3.folder("sets", "mine", place.data)
    monkeypatch.setenv("REFIT_ALLOWED_HOSTS", s3.allowed)

    def run(run_id: str = "r1", text: str = REMOTE) -> int:
        monkeypatch.setenv(plans.CONNECTION, s3.login())
        return place.bind(run_id, text)

    return run


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The images that are decoded for a check, as it goes on."""
    found, decode = list[bytes](), pictures.verify

    def verify(data: bytes, header: pictures.Header) -> pictures.Decoded:
        found.append(data)
        return decode(data, header)

    monkeypatch.setattr(pictures, "verify", verify)
    return found


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def planted(folder: Path) -> list[str]:
    """The files that hold the secret."""
    found = [p for p in folder.rglob("*") if p.is_file()]
    return [str(p) for p in found if SECRET.encode() in p.read_bytes() or KEY.encode() in p.read_bytes()]


def test_a_bucket_gives_the_snapshot_that_its_folder_would_give(place: Place, bind: Callable[..., int]) -> None:
    assert bind() == 0
    dataset = json.loads((Path(place.plan["snapshot"]) / "dataset.json").read_text())
    assert dataset["provenance"]["source"] == "s3://sets/mine"
    assert names(place.workspace / "incoming") == [".lock", "last"]  # cleaned, but for what takes no room
    for image in (place.workspace / "incoming" / "last" / "files" / "images").iterdir():
        assert image.stat().st_nlink >= 2
    assert place.bind("local") == 0
    assert place.plan["fingerprint"] == dataset["fingerprint"]
    assert planted(place.root) == []


def test_what_has_not_changed_is_not_fetched_again(
    place: Place, bind: Callable[..., int], s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bind() == 0
    first = place.plan["fingerprint"]
    with monkeypatch.context() as patch:
        patch.setattr(Store, "read", lambda *args: pytest.fail("fetched again"))
        assert bind("r2") == 0
    assert place.plan["fingerprint"] == first
    assert bind("r3", REMOTE.replace("val: 0.3", "val: 0.25")) == 0  # read in another way: it is fetched
    label = sorted((place.data / "labels").iterdir())[0]
    s3.put("sets", {f"mine/labels/{label.name}": b""})
    assert bind("r4") == 0
    assert place.plan["fingerprint"] != first


def test_a_new_evaluation_set_is_drawn_where_the_old_one_was_renamed(place: Place, bind: Callable[..., int]) -> None:
    assert bind() == 0
    held = place.workspace / "evaluation"
    held.rename(place.workspace / "evaluation-1")
    assert bind("r2", REMOTE) == 0
    assert (held / "ledger.json").is_file()


def test_after_a_refusal_what_is_as_before_is_no_longer_new(place: Place, bind: Callable[..., int], s3: S3) -> None:
    assert bind() == 0
    good = arrival.last_taken(place.workspace)
    s3.put("sets", {"mine/images/x.png": b"no picture", "mine/labels/x.txt": b""})
    assert bind("r2") == 3
    s3.store("sets").delete(["mine/images/x.png", "mine/labels/x.txt"])
    assert bind("r3") == 0
    taken = arrival.last_taken(place.workspace)
    assert good is not None
    assert taken is not None
    assert (taken.signature, taken.outcome, taken.run) == (good.signature, "taken", "r3")


def test_a_manifest_that_does_not_hold_stops_a_fetch(place: Place, bind: Callable[..., int], s3: S3) -> None:
    s3.put("sets", {"mine/files.txt": b"images/gone.png\n"})
    assert bind("r1", REMOTE.replace("classes:", "arrival: {manifest: files.txt}\n  classes:")) == 3
    assert "1 of 1 files that files.txt names are not there in full: images/gone.png" in place.error
    assert not (place.workspace / "incoming").exists()


def test_a_refused_arrival_is_kept_and_known(place: Place, bind: Callable[..., int], s3: S3) -> None:
    s3.put("sets", {"mine/images/x.png": b"no picture", "mine/labels/x.txt": b""})
    assert bind() == 3
    assert place.error.startswith("s3://sets/mine") or "x.png" in place.error
    taken = arrival.last_taken(place.workspace)
    assert taken is not None
    assert (taken.outcome, taken.fingerprint) == ("bad_data", None)
    assert "x.png" in taken.reason
    assert names(place.workspace / "incoming") == [
        ".lock",
        taken.signature,
    ]  # not fetched again for a run with other settings
    s3.store("sets").delete(["mine/images/x.png", "mine/labels/x.txt"])
    assert bind("r2") == 0
    assert names(place.workspace / "incoming") == [".lock", "last"]


def test_of_an_arrival_that_adds_a_little_only_that_is_fetched(
    place: Place, bind: Callable[..., int], s3: S3, decoded: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bind() == 0
    first = place.plan["fingerprint"]
    read, real = [], Store.read

    def reading(self: Store, file: FileInfo, start: int) -> Iterator[bytes]:
        read.append(file.path)
        return real(self, file, start)

    monkeypatch.setattr(Store, "read", reading)
    decoded.clear()
    images, labels = (sorted((place.data / kind).iterdir()) for kind in ("images", "labels"))
    drawn = np.random.default_rng(1).integers(0, 256, (192, 320, 3), dtype=np.uint8)
    news = {f"mine/images/new{images[0].suffix}": cv2.imencode(images[0].suffix, drawn)[1].tobytes()}
    news |= {"mine/labels/new.txt": labels[0].read_bytes(), f"mine/labels/{labels[1].name}": b""}
    s3.put("sets", news)
    assert bind("r2") == 0
    assert sorted(read) == sorted(key.removeprefix("mine/") for key in news)
    assert decoded == [next(iter(news.values()))]  # links have new times, and what was found in them is remembered
    second = place.plan["fingerprint"]
    assert second != first
    shutil.rmtree(place.workspace / "incoming")
    shutil.rmtree(place.workspace / "datasets" / second)
    assert bind("r3") == 0  # all of it fetched
    assert place.plan["fingerprint"] == second


def test_access_denied_is_a_bad_spec_and_no_arrival(
    place: Place, bind: Callable[..., int], s3: S3, capsys: pytest.CaptureFixture[str]
) -> None:
    s3.deny()
    assert bind() == 2
    assert "access denied" in place.error
    assert arrival.last_taken(place.workspace) is None
    assert SECRET not in "".join(capsys.readouterr())
    assert planted(place.root) == []


def test_the_login_stands_in_no_request(place: Place, s3: S3) -> None:
    request = plans.bind_request(place.root / "mine.yaml", REMOTE, "r", {}, Settings.from_env(), nonce="n")
    assert request["secrets"] == ["AIRFLOW_CONN_LAB"]
    assert request["env"]["REFIT_CONNECTION"] == "{secret:AIRFLOW_CONN_LAB}"


def test_an_archive_by_https(place: Place, site: Https, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert place.bind("local") == 0
    fingerprint = place.plan["fingerprint"]
    made = shutil.make_archive(str(tmp_path / "set"), "gztar", place.data.parent, place.data.name)
    site.add("/set.tar.gz", Path(made).read_bytes())
    monkeypatch.setenv("REFIT_ALLOWED_HOSTS", site.host)
    monkeypatch.setenv("REFIT_CA_FILE", str(site.ca))
    assert place.bind("r1", PIPELINE.replace("inbox/mine", site.url + "/set.tar.gz")) == 0
    assert place.plan["fingerprint"] == fingerprint  # the one folder at its top is not part of the data set


# --- archives, manifests and quarantine in an inbox -------------------------------------------------------------------


def pack(place: Place) -> Path:
    """The inbox's data as one archive in it."""
    made = place.root / "set.zip"
    with zipfile.ZipFile(made, "w") as z:
        for path in sorted(p for p in place.data.rglob("*") if p.is_file()):
            z.write(path, path.relative_to(place.data))
    shutil.rmtree(place.data)
    place.data.mkdir()
    return Path(shutil.move(made, place.data / "set.zip"))


def test_an_archive_in_an_inbox_is_unpacked(place: Place) -> None:
    assert place.bind("folder") == 0
    fingerprint = place.plan["fingerprint"]
    packed = pack(place)
    assert place.bind("archive") == 0
    assert place.plan["fingerprint"] == fingerprint
    assert packed.exists()
    packed.write_bytes(packed.read_bytes()[:-100])
    assert place.bind("damaged") == 3
    assert "set.zip: it does not open whole" in place.error
    taken = arrival.last_taken(place.workspace)
    assert taken is not None
    assert taken.outcome == "bad_data"
    with zipfile.ZipFile(packed, "w") as z:
        z.writestr("../evil.png", b"")
    assert place.bind("unsafe") == 3
    assert "set.zip: it holds '../evil.png', which leads out of it" in place.error
    assert not list(place.root.rglob("evil.png"))


def test_what_archives_held_before_is_not_decoded_again(place: Place, decoded: list[bytes]) -> None:
    """Neither what lies in the same archive, nor what came in another one under the same path."""
    packed = pack(place)
    assert place.bind("archive") == 0
    decoded.clear()
    drawn = np.random.default_rng(1).integers(0, 256, (192, 320, 3), dtype=np.uint8)
    new = cv2.imencode(".jpg", drawn)[1].tobytes()
    with zipfile.ZipFile(packed) as z:
        image = next(n for n in z.namelist() if n.startswith("images/"))
        label = f"labels/{Path(image).stem}.txt"
        held = {name: z.read(name) for name in z.namelist()}
    with zipfile.ZipFile(place.data / "more.zip", "w") as z:
        z.writestr("images/new.jpg", new)
        z.writestr("labels/new.txt", held[label])
    assert place.bind("more") == 0
    assert decoded == [new]
    (place.data / "more.zip").unlink()
    changed = held | {image: cv2.imencode(Path(image).suffix, drawn[::-1])[1].tobytes()}
    with tarfile.open(packed.with_suffix(".tar"), "w") as t:
        for name, data in changed.items():
            info = tarfile.TarInfo(f"top/{name}")
            info.size = len(data)
            t.addfile(info, io.BytesIO(data))
    packed.unlink()
    decoded.clear()
    assert place.bind("tar") == 0
    assert decoded == [changed[image]]


def test_a_manifest_s_hashes_are_held_against_an_inbox(place: Place) -> None:
    import hashlib

    text = PIPELINE.replace("classes:", "arrival: {manifest: files.txt}\n  classes:")
    names = sorted(str(p.relative_to(place.data)) for p in place.data.rglob("*") if p.is_file())
    rows = [f"{hashlib.sha256((place.data / n).read_bytes()).hexdigest()}  {n}\n" for n in names]
    (place.data / "files.txt").write_text("".join(rows))
    assert place.bind("good", text) == 0
    (place.data / "files.txt").write_text("".join(["0" * 64 + rows[0][64:], *rows[1:]]))
    assert place.bind("bad", text) == 3
    assert f"{names[0]}: its bytes are not those whose hash the manifest names" in place.error


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("images/gone.png\n", "1 of 1 files that files.txt names are not there in full: images/gone.png"),
        ("../up.png\n", "the manifest cannot be used: files.txt:1: '../up.png' is no path below"),
        (None, "waiting for the manifest files.txt"),
    ],
)
def test_a_manifest_that_does_not_hold_stops_the_run(place: Place, manifest: str | None, message: str) -> None:
    if manifest is not None:
        (place.data / "files.txt").write_text(manifest)
    arrived = sorted(place.data.rglob("*"))
    rule = "arrival: {manifest: files.txt, quarantine: true}"
    assert place.bind("r1", PIPELINE.replace("classes:", f"{rule}\n  classes:")) == 3
    assert message in place.error
    assert sorted(place.data.rglob("*")) == arrived
    assert arrival.last_taken(place.workspace) is None  # the manifest may yet be corrected


QUARANTINE = PIPELINE.replace("classes:", "arrival: {quarantine: true}\n  classes:")


def test_quarantine_leaves_what_is_still_being_copied(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    real = ingest.unchanged

    def while_it_is_copied(*args: Any) -> None:
        (place.data / "images" / "late.png").write_bytes(b"")
        real(*args)

    monkeypatch.setattr(ingest, "unchanged", while_it_is_copied)
    assert place.bind("bad", QUARANTINE) == 3
    assert "still being copied" in place.error
    assert (place.data / "images" / "late.png").exists()


def test_quarantine_leaves_an_addition_to_what_is_lost(place: Place) -> None:
    assert place.bind("good") == 0
    shutil.rmtree(place.plan["snapshot"])
    assert place.bind("bad", QUARANTINE.replace("format: kitti", "format: kitti\n  mode: append")) == 3
    assert "was taken last" in place.error
    assert (place.data / "images").is_dir()


def test_quarantine_leaves_a_folder_that_is_no_inbox(place: Place) -> None:
    (place.data / "images" / "x.png").write_bytes(b"no picture")
    assert place.bind("bad", QUARANTINE, data=str(place.data)) == 3
    assert "x.png" in place.error
    assert (place.data / "images" / "x.png").exists()


def test_quarantine_moves_what_is_refused(place: Place) -> None:
    (place.data / "images" / "x.png").write_bytes(b"no picture")
    (place.data / "labels" / "x.txt").write_bytes(b"")
    seen = arrival.listing(place.data)
    assert place.bind("bad", QUARANTINE) == 3
    aside = place.data.parent / "refused" / seen.signature[:16]
    assert f"It was moved to {aside}" in place.error
    assert "x.png" in (aside / "reason.txt").read_text()
    assert (aside / "images" / "x.png").exists()
    assert list(place.data.iterdir()) == []


# --- by the runner, and in a pod --------------------------------------------------------------------------------------


def test_the_runner_hands_the_login_to_bind_and_blots_it_out(
    place: Place, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.folder("sets", "mine", place.data)
    monkeypatch.setenv("REFIT_ALLOWED_HOSTS", s3.allowed)
    secrets = place.root / "secrets"
    secrets.mkdir(mode=0o700)
    (secrets / "AIRFLOW_CONN_LAB").write_text(s3.login())
    (secrets / "AIRFLOW_CONN_LAB").chmod(0o600)
    settings = Settings.from_env()
    lines: list[str] = []
    request = plans.bind_request(place.root / "mine.yaml", REMOTE, "r", {}, settings, nonce="n")
    process = StageProcess(
        request=request, python=Path(sys.executable), env=settings.environment(), on_line=lines.append
    )
    result = process.run()
    assert (result.outcome, result.reason) == ("succeeded", "")
    assert result.summary["images"] == 16
    assert SECRET not in "\n".join(lines)
    assert planted(place.workspace) == []


def test_a_pod_gets_the_login_by_reference(place: Place) -> None:
    profile = cluster.load("kubernetes", Settings.from_env())
    assert isinstance(profile, cluster.KubernetesProfile)
    profile = profile.model_copy(update={"allowed_hosts": ["minio.lab:9000"]})
    where = cluster.settings_in_pod(profile)
    request = plans.bind_request(place.root / "mine.yaml", REMOTE, "r", {}, where, nonce="n")
    assert request["env"]["REFIT_ALLOWED_HOSTS"] == "minio.lab:9000"
    with pytest.raises(pod.PodError, match=r"needs the secret AIRFLOW_CONN_LAB; .* add secrets\.AIRFLOW_CONN_LAB"):
        pod.stage_pod(pod.PodStage.of(request), profile)
    reference = cluster.SecretRef(name="lab-data", key="connection")
    profile = profile.model_copy(update={"secrets": {**profile.secrets, "AIRFLOW_CONN_LAB": reference}})
    env = pod.stage_pod(pod.PodStage.of(request), profile)["spec"]["containers"][0]["env"]
    (found,) = [e for e in env if e["name"] == "REFIT_SECRET_AIRFLOW_CONN_LAB"]
    assert found["valueFrom"] == {"secretKeyRef": {"name": "lab-data", "key": "connection"}}


def test_weights_come_from_a_bucket_by_their_hash_and_once(place: Place, s3: S3, bind: Callable[..., int]) -> None:
    """As `start_from` names them, with the login of the data."""
    data = torch_file(place.root / "mine.pth").read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    s3.put("sets", {"models/mine.pth": data})
    begun = REMOTE.replace("train: {", f"train: {{start_from: 's3://sets/models/mine.pth#sha256={digest}', ")
    assert bind("r1", begun) == 0, place.error
    assert (place.workspace / "starts" / digest / "model.pth").read_bytes() == data
    assert names(place.workspace / "starts") == [digest]
    assert bind("other", begun.replace(digest, "0" * 64)) == 3
    assert f"its bytes have the hash {digest}, and not {'0' * 64}" in place.error
    s3.put("sets", {"models/mine.pth": b"changed since"})
    assert bind("again", begun) == 0, "what is kept is not fetched again"
    assert planted(place.root) == []


def test_weights_of_a_site_are_fetched_without_the_login_of_the_data(
    place: Place, s3: S3, bind: Callable[..., int], site: Https, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = torch_file(place.root / "mine.pth").read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    site.add("/mine.pth", data)
    monkeypatch.setenv("REFIT_ALLOWED_HOSTS", f"{s3.allowed},{site.host}")
    monkeypatch.setenv("REFIT_CA_FILE", str(site.ca))
    begun = REMOTE.replace("train: {", f"train: {{start_from: '{site.url}/mine.pth#sha256={digest}', ")
    assert bind("r1", begun) == 0, place.error
    assert (place.workspace / "starts" / digest / "model.pth").read_bytes() == data
    assert site.asked
    assert not any("Authorization" in headers for _, _, headers in site.asked)
