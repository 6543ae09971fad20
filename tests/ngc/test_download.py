"""`python -m refit.ngc download` against a server that answers as NGC does, with all that can go wrong on the way."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import h5py
import pytest
import yaml

from tests.ngc.conftest import WEIGHTS

from tests.ngc.server import KEY, MODEL, OLD_KEY, TOKEN, Ngc, zipped  # isort: skip

from refit.command import main
from refit.ngc.__main__ import ACTIONS
from tests.refit.test_foreign import Harmful, keras

RESNET18 = f"{MODEL}:resnet18"
ROOT = Path(__file__).resolve().parents[2]


class Site:
    """A workspace, and the stage run in it."""

    def __init__(self, root: Path) -> None:
        self.root, self.cache, self.out = root, root / "cache", root / "out"

    def argv(self, **spec: Any) -> list[str]:
        named = {"cache": str(self.cache)} if "model" in spec else {}
        (self.root / "spec.yaml").write_text(yaml.safe_dump({**named, **spec}))
        return ["download", "-e", str(self.root / "spec.yaml"), "-r", str(self.out)]

    def run(self, **spec: Any) -> int:
        return main("refit.ngc", ACTIONS, self.argv(**spec))

    def weights(self) -> bytes:
        (path,) = (self.out / "weights").iterdir()
        return path.read_bytes()

    def report(self) -> dict[str, Any]:
        row: dict[str, Any] = json.loads((self.out / "pretrained.json").read_text())
        return row

    def holds(self, secret: str) -> list[Path]:
        """The files that hold a text."""
        return [p for p in self.root.rglob("*") if p.is_file() and secret.encode() in p.read_bytes()]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


# ---- the way there


def test_once_from_ngc_then_from_the_cache_without_network_and_key(
    site: Site, ngc: Ngc, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert site.run(model=RESNET18, file="*.hdf5") == 0
    assert site.weights() == WEIGHTS
    row = site.report()
    assert (row["model"], row["source"], row["file"]) == (RESNET18, "NGC", "resnet18.hdf5")
    assert (row["bytes"], row["sha256"]) == (len(WEIGHTS), sha256(WEIGHTS).hexdigest())
    assert row["zip_sha256"] == sha256(ngc.models[MODEL]["resnet18"]).hexdigest()
    assert row["path"] == "pretrained_detectnet_v2_vresnet18/resnet18.hdf5"

    asked = len(ngc.asked)
    monkeypatch.setenv("REFIT_NGC_URL", "https://ngc.invalid")
    monkeypatch.delenv("NGC_API_KEY")
    assert site.run(model=RESNET18, file="*.hdf5") == 0
    assert (site.weights(), site.report()["source"], len(ngc.asked)) == (WEIGHTS, "the cache", asked)


def test_the_key_goes_to_ngc_and_to_no_other_host(site: Site, ngc: Ngc) -> None:
    assert site.run(model=RESNET18, file="*.hdf5") == 0
    (api,), (signed,) = ngc.asked, ngc.signed
    assert api.path == "/v2/models/nvidia/tao/pretrained_detectnet_v2/versions/resnet18/zip"
    assert api.headers["Authorization"] == f"Bearer {KEY}"
    assert "Authorization" not in signed.headers


def test_an_old_key_is_exchanged_for_a_token(site: Site, ngc: Ngc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NGC_API_KEY", OLD_KEY)
    assert site.run(model=RESNET18, file="*.hdf5") == 0
    assert ngc.paths()[0] == "/token?service=ngc&scope=group%2Fngc%3Anvidia&scope=group%2Fngc%3Anvidia%2Ftao"
    assert ngc.asked[1].headers["Authorization"] == f"Bearer {TOKEN}"
    assert (site.holds(OLD_KEY), site.holds(TOKEN)) == ([], [])


def test_a_guest_gets_public_models(site: Site, ngc: Ngc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NGC_API_KEY")
    assert site.run(model=RESNET18, file="*.hdf5") == 0
    assert "Authorization" not in ngc.asked[0].headers


def test_a_private_registry_has_other_addresses(site: Site, ngc: Ngc) -> None:
    assert site.run(model="acme/cv/plates:v1.0") == 0
    assert ngc.paths() == ["/v2/org/acme/team/cv/models/plates/versions/v1.0/zip"]


def test_as_a_stage_the_key_is_a_secret_of_the_runner(site: Site, ngc: Ngc, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the wrong key, which the server repeats: not in the log, the result or any file; then with the right one."""
    monkeypatch.delenv("NGC_API_KEY")
    run = site.root / "ws" / "p" / "runs" / "r"
    request = {
        "schema": 1,
        "pipeline": "p",
        "run": "r",
        "name": "pretrained",
        "action": "pretrained",
        "index": 1,
        "toolkit": "tao",
        "environment": "tools",
        "key": "0" * 64,
        "argv": ["{python}", "-m", "refit.ngc", "download", "-e", "{specs}/pretrained.yaml", "-r", "{out}"],
        "env": {"NGC_API_KEY": "{secret:NGC_API_KEY}"},
        "secrets": ["NGC_API_KEY"],
        "files": {
            "pretrained.yaml": yaml.safe_dump(
                {"model": RESNET18, "file": "*.hdf5", "cache": "{workspace}/ngc"}, width=1000
            )
        },
        "paths": {"workspace": str(run.parents[1]), "run": str(run), "stage": str(run / "01-pretrained")},
        "outputs": [{"name": "weights", "path": "weights/*", "kind": "file"}],
        "status": "status.json",
        "summary": "summary.json",
    }
    wrong = "nvapi-" + "x" * 64
    for key, outcome in ((wrong, "toolkit_error"), (KEY, "succeeded")):
        command = [sys.executable, str(ROOT / "refit" / "runner.py"), "--request", "-"]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "REFIT_SECRET_NGC_API_KEY": key}
        done = subprocess.run(
            command, input=json.dumps(request), env=env, capture_output=True, text=True, check=False, timeout=60
        )
        result = json.loads((run / "01-pretrained" / "result.json").read_text())
        assert result["outcome"] == outcome, done.stdout + done.stderr
        assert key not in done.stdout + done.stderr
        assert site.holds(key) == []
    assert result["outputs"]["weights"]["sha256"] == result["summary"]["sha256"] == sha256(WEIGHTS).hexdigest()
    assert (run.parents[1] / "ngc" / MODEL / "resnet18" / "version.json").is_file()


# ---- broken connections


def test_a_broken_download_goes_on_where_it_was(site: Site, ngc: Ngc) -> None:
    ngc.breaks = [100_000, 150_000]
    assert site.run(model=RESNET18, file="*.hdf5") == 0
    assert site.weights() == WEIGHTS
    assert [a.headers.get("Range") for a in ngc.signed] == [None, "bytes=100000-", "bytes=250000-"]
    assert len(ngc.paths()) == 3  # a signed address ends: each try asks for a new one


def test_what_was_had_survives_the_end_of_the_stage(site: Site, ngc: Ngc, capfd: pytest.CaptureFixture[str]) -> None:
    ngc.breaks = [100_000, 0, 0, 0, 0, 0]
    assert site.run(model=RESNET18, file="*.hdf5") == 1
    told = capfd.readouterr().err
    assert "ended at 100000 of" in told
    assert "`path` in place of `model`" in told
    ngc.breaks.clear()
    assert site.run(model=RESNET18, file="*.hdf5") == 0
    assert ngc.signed[-1].headers["Range"] == "bytes=100000-"
    assert site.weights() == WEIGHTS


def test_a_file_that_changed_meanwhile_begins_anew(site: Site, ngc: Ngc) -> None:
    ngc.breaks = [100_000, 0, 0, 0, 0, 0]
    assert site.run(model=RESNET18) == 1
    ngc.breaks.clear()
    ngc.models[MODEL]["resnet18"] = zipped({"resnet18.hdf5": WEIGHTS[::-1]})
    assert site.run(model=RESNET18) == 0
    assert site.weights() == WEIGHTS[::-1]


def test_a_part_longer_than_the_file_begins_anew(site: Site, ngc: Ngc) -> None:
    data = ngc.models[MODEL]["resnet34"]
    folder = site.cache / MODEL
    folder.mkdir(parents=True)
    (folder / ".resnet34.zip.part").write_bytes(data)
    (folder / ".resnet34.zip.part.json").write_text(json.dumps({"mark": f'"{sha256(data).hexdigest()}"'}))
    assert site.run(model=f"{MODEL}:resnet34") == 0
    assert site.weights() == WEIGHTS[::-1]


def test_a_server_in_trouble_is_asked_again(site: Site, ngc: Ngc) -> None:
    ngc.failures = [503, 429, 500]
    assert site.run(model=RESNET18, file="*.hdf5") == 0


def test_two_at_once_download_once(site: Site, ngc: Ngc) -> None:
    argv = site.argv(model=RESNET18, file="*.hdf5")
    command = [sys.executable, "-m", "refit.ngc", *argv[:-1]]
    both = [subprocess.Popen([*command, str(site.root / f"out{i}")], env={**os.environ}) for i in range(2)]
    assert [p.wait(60) for p in both] == [0, 0]
    assert len(ngc.signed) == 1
    assert [(site.root / f"out{i}/weights/resnet18.hdf5").read_bytes() for i in range(2)] == [WEIGHTS] * 2


# ---- what a person must mend


def test_a_wrong_key(site: Site, ngc: Ngc, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    wrong = "nvapi-" + "x" * 64
    monkeypatch.setenv("NGC_API_KEY", wrong)
    assert site.run(model=RESNET18) == 1
    told = capfd.readouterr()
    assert "refused the key in NGC_API_KEY (HTTP 401, 'no such key: ***')" in told.err  # the server repeated it
    assert wrong not in told.err + told.out
    assert site.holds(wrong) == []


def test_a_key_that_may_not_see_it(site: Site, ngc: Ngc, capfd: pytest.CaptureFixture[str]) -> None:
    ngc.refuse = (403, "Access denied")
    assert site.run(model=RESNET18) == 1
    assert "refused the key in NGC_API_KEY (HTTP 403, 'Access denied')" in capfd.readouterr().err


def test_an_old_key_that_has_ended(
    site: Site, ngc: Ngc, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NGC_API_KEY", "b2xk")
    assert site.run(model=RESNET18) == 1
    assert "refused the key in NGC_API_KEY (HTTP 401, 'Invalid credentials')" in capfd.readouterr().err


def test_no_key_where_one_is_needed(
    site: Site, ngc: Ngc, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("NGC_API_KEY")
    ngc.guests = False
    assert site.run(model=RESNET18) == 1
    assert "wants a key (HTTP 401, 'Please sign in'); make one at NGC and set the secret" in capfd.readouterr().err


def test_a_key_with_a_line_break(
    site: Site, ngc: Ngc, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NGC_API_KEY", KEY + "\r\nX-Other: 1")
    assert site.run(model=RESNET18) == 1
    assert "NGC_API_KEY holds characters that no key has" in capfd.readouterr().err
    assert ngc.asked == []


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (f"{MODEL}:resnet81", "has no version 'resnet81'; there is resnet18, resnet34 ("),
        (
            "nvidia/tao/pretrained_detectnet:resnet18",
            "has no model 'pretrained_detectnet', or this key may not see it;",
        ),
        ("nvidia/none/x:y", "nvidia/none has no model 'x', or this key may not see it; there is none"),
    ],
)
def test_a_missing_model_or_version(
    site: Site, ngc: Ngc, capfd: pytest.CaptureFixture[str], model: str, message: str
) -> None:
    assert site.run(model=model) == 1
    assert message in capfd.readouterr().err


def test_the_near_names_of_a_model(site: Site, ngc: Ngc, capfd: pytest.CaptureFixture[str]) -> None:
    assert site.run(model="nvidia/tao/pretrained_detectnet:resnet18") == 1
    assert "there is pretrained_detectnet_v2" in capfd.readouterr().err


def flipped(data: bytes) -> bytes:
    at = data.index(WEIGHTS[:64]) + 1000
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (
            lambda data: b"<!DOCTYPE html><title>Sign in</title>",
            "text/html; charset=utf-8",
            "with a web page, not an arch",
        ),
        (lambda data: b"\n<html><title>Sign in</title>", "application/zip", "what came is a web page, not an archive"),
        (lambda data: b"\x1f\x8b" * 99, "application/zip", "what came is no zip (it begins with 1f 8b 1f 8b"),
        (lambda data: data[: len(data) // 2], "application/zip", "the archive is damaged"),
        (flipped, "application/zip", "the archive is damaged (Bad CRC-32"),
        (lambda data: zipped({}), "application/zip", "the archive holds 0 files"),
        (lambda data: zipped({"../../evil.hdf5": b"x"}), "application/zip", "'../../evil.hdf5', which leads out of it"),
        (lambda data: zipped({"/etc/evil.hdf5": b"x"}), "application/zip", "'/etc/evil.hdf5', which leads out of it"),
    ],
)
def test_what_is_no_good_archive_is_not_kept(
    site: Site,
    ngc: Ngc,
    capfd: pytest.CaptureFixture[str],
    change: Callable[[bytes], bytes],
    kind: str,
    message: str,
) -> None:
    good = ngc.models[MODEL]["resnet18"]
    ngc.models[MODEL]["resnet18"], ngc.content_type = change(good), kind
    assert site.run(model=RESNET18, file="*.hdf5") == 1
    assert message in capfd.readouterr().err
    assert not list(site.root.rglob("evil.hdf5"))
    assert {p.name for p in (site.cache / MODEL).iterdir()} == {".resnet18.lock"}
    ngc.models[MODEL]["resnet18"], ngc.content_type = good, "application/zip"
    assert site.run(model=RESNET18, file="*.hdf5") == 0


def test_a_link_in_an_archive_is_refused(site: Site, ngc: Ngc, capfd: pytest.CaptureFixture[str]) -> None:
    import io
    import zipfile

    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as z:
        link = zipfile.ZipInfo("resnet18.hdf5")
        link.external_attr = 0o120777 << 16
        z.writestr(link, "/etc/passwd")
    ngc.models[MODEL]["resnet18"] = made.getvalue()
    assert site.run(model=RESNET18) == 1
    assert "'resnet18.hdf5', which leads out of it" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("glob", "message"),
    [
        ("*", "2 files fit '*': README.md, pretrained_detectnet_v2_vresnet18/resnet18.hdf5; say which in file"),
        ("*.pth", "no file fits '*.pth'; it holds README.md, pretrained_detectnet_v2_vresnet18/resnet18.hdf5"),
    ],
)
def test_the_file_must_be_one(site: Site, ngc: Ngc, capfd: pytest.CaptureFixture[str], glob: str, message: str) -> None:
    assert site.run(model=RESNET18, file=glob) == 1
    assert message in capfd.readouterr().err
    assert site.run(model=RESNET18, file="*/resnet18.hdf5") == 0  # and the download was not in vain
    assert len(ngc.signed) == 1


def test_a_file_changed_in_the_cache_is_downloaded_again(site: Site, ngc: Ngc) -> None:
    assert site.run(model=RESNET18, file="*.hdf5") == 0
    shutil.rmtree(site.out)  # a hard link to the same file
    (kept,) = site.cache.rglob("*.hdf5")
    kept.chmod(0o644)
    with open(kept, "r+b") as f:
        f.write(b"\xff")
    assert site.run(model=RESNET18, file="*.hdf5") == 0
    assert (site.weights(), site.report()["source"], len(ngc.signed)) == (WEIGHTS, "NGC", 2)
    assert "resnet18.hdf5: changed since it was downloaded" in (site.out / "status.json").read_text()


def test_another_file_than_the_pinned_one_is_refused(site: Site, ngc: Ngc, capfd: pytest.CaptureFixture[str]) -> None:
    assert site.run(model=RESNET18, file="*.hdf5", sha256="0" * 64) == 3
    assert f"resnet18.hdf5 has the sha256 {sha256(WEIGHTS).hexdigest()}, the spec wants 0000" in capfd.readouterr().err
    assert site.run(model=RESNET18, file="*.hdf5", sha256=sha256(WEIGHTS).hexdigest()) == 0


def test_no_network(site: Site, ngc: Ngc, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("REFIT_NGC_URL", "http://127.0.0.1:1")
    assert site.run(model=RESNET18) == 1
    told = capfd.readouterr().err
    assert "127.0.0.1:1 cannot be reached" in told
    assert "a site without this network gives the stage a `path`" in told


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://mirror.example", "a key must not travel over http; write https"),
        ("ftp://127.0.0.1", "is no address; write https://host"),
    ],
)
def test_a_mirror_that_would_see_the_key_in_the_clear(
    site: Site, ngc: Ngc, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], url: str, message: str
) -> None:
    monkeypatch.setenv("REFIT_NGC_URL", url)
    assert site.run(model=RESNET18) == 2
    assert message in capfd.readouterr().err


def test_a_full_disk_is_told_as_one(site: Site, ngc: Ngc, capfd: pytest.CaptureFixture[str]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    folder = site.cache / MODEL
    folder.mkdir(parents=True)
    (folder / ".resnet18.zip.part").symlink_to("/dev/full")
    assert site.run(model=RESNET18) == 1
    assert f"error: No space left on device: {site.cache}" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"model": MODEL}, "names no version; write nvidia/tao/pretrained_detectnet_v2:VERSION (`refit ngc list pre"),
        ({"model": "nvidia/../x:1"}, "is no model; write ORG/TEAM/NAME:VERSION"),
        ({"model": "x:1"}, "is no model"),
        ({}, "name either model (from NGC) or path (no network)"),
        ({"path": "weights.hdf5"}, "path 'weights.hdf5' must be absolute"),
    ],
)
def test_bad_specs(site: Site, capfd: pytest.CaptureFixture[str], spec: dict[str, Any], message: str) -> None:
    assert site.run(**spec) == 2
    assert message in capfd.readouterr().err


# ---- without network


@pytest.fixture
def mounted(site: Site) -> Path:
    folder = site.root / "mounted"
    (folder / "resnet18").mkdir(parents=True)
    (folder / "resnet18" / "resnet18.hdf5").write_bytes(WEIGHTS)
    (folder / "model.pth").write_bytes(zipped({"archive/data.pkl": pickle.dumps({"a .pth file": "is a zip inside"})}))
    (folder / "resnet18.zip").write_bytes(zipped({"v/resnet18.hdf5": WEIGHTS, "README.md": b""}))
    (folder / "bad.zip").write_bytes(b"<html>")
    (folder / "empty").mkdir()
    return folder


@pytest.mark.parametrize(
    ("path", "glob", "file", "inside"),
    [
        ("model.pth", "*", "model.pth", "model.pth"),
        ("resnet18.zip", "*.hdf5", "resnet18.hdf5", "v/resnet18.hdf5"),
        (".", "*.hdf5", "resnet18.hdf5", "resnet18/resnet18.hdf5"),
    ],
)
def test_from_a_path(site: Site, mounted: Path, path: str, glob: str, file: str, inside: str) -> None:
    assert site.run(path=str(mounted / path), file=glob) == 0
    data = WEIGHTS if file.endswith("hdf5") else (mounted / path).read_bytes()
    row = site.report()
    assert (site.weights(), row["file"], row["path"]) == (data, file, inside)
    assert (row["sha256"], row["source"]) == (sha256(data).hexdigest(), str(mounted / path))


@pytest.mark.parametrize(
    ("path", "code", "message"),
    [
        ("none.hdf5", 3, "none.hdf5: no such file or folder"),
        ("empty", 3, "empty: the folder is empty"),
        ("bad.zip", 1, "bad.zip: what came is a web page"),
        (".", 1, "4 files fit '*'"),
    ],
)
def test_bad_paths(
    site: Site, mounted: Path, capfd: pytest.CaptureFixture[str], path: str, code: int, message: str
) -> None:
    assert site.run(path=str(mounted / path)) == code
    assert message in capfd.readouterr().err
    assert (mounted / "bad.zip").exists()  # a person's file is never removed


@pytest.mark.parametrize("name", ["model.pth", "backbone.weights"])
def test_a_persons_file_that_holds_code_is_refused(
    site: Site, mounted: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    """By whatever name: TAO's loaders unpickle what they are given."""
    (mounted / "evil").mkdir()
    data = pickle.dumps(Harmful(), protocol=2)
    (mounted / "evil" / name).write_bytes(data)
    assert site.run(path=str(mounted / "evil")) == 3
    assert f"evil: {name}: names posix.system: loading it would run" in capfd.readouterr().err
    (mounted / "evil" / name).write_bytes(zipped({"archive/data.pkl": data}))
    assert site.run(path=str(mounted / "evil" / name)) == 3
    assert f"{name}: archive/data.pkl: names posix.system" in capfd.readouterr().err
    keras(mounted / "evil" / "m.h5", [{"class_name": "Lambda", "config": {"name": "scale"}}])
    assert site.run(path=str(mounted / "evil"), file="*.h5") == 3
    assert "the layer scale (Lambda) carries Python code" in capfd.readouterr().err


def test_a_backbones_weights_need_no_model(site: Site, mounted: Path) -> None:
    with h5py.File(mounted / "vgg.h5", "w") as f:
        f.attrs["layer_names"] = ["conv1"]
    assert site.run(path=str(mounted / "vgg.h5")) == 0


def test_sigterm_leaves_what_was_had(site: Site, ngc: Ngc) -> None:
    """A stage that is ended while the server is silent stops at once, and the next one goes on."""
    ngc.breaks = [100_000]
    silent = threading.Event()
    original, ngc.models = ngc.models, _Waiting(ngc.models, silent)
    process = subprocess.Popen([sys.executable, "-m", "refit.ngc", *site.argv(model=RESNET18, file="*.hdf5")])
    try:
        assert silent.wait(30)
        process.terminate()
        assert process.wait(10) == 143
    finally:
        process.kill()
        ngc.models = original
    assert site.run(model=RESNET18, file="*.hdf5") == 0
    assert ngc.signed[-1].headers["Range"] == "bytes=100000-"


class _Waiting(dict[str, dict[str, bytes]]):
    """Answers the first download; says when the second question comes, and lets it wait."""

    def __init__(self, models: dict[str, dict[str, bytes]], silent: threading.Event) -> None:
        super().__init__(models)
        self._silent, self._asked = silent, 0

    def get(self, key: str, default: Any = None) -> Any:
        self._asked += 1
        if self._asked > 1:
            self._silent.set()
            threading.Event().wait(15)
        return super().get(key, default)
