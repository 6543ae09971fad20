"""Images of a batch that lie in a bucket, or in an archive by https."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from refit.command import BadData
from refit.config import Settings
from refit.data.remote.errors import Refused
from refit.data.tree import FileInfo
from refit.predict import stage
from refit.predict.images import CONNECTION, Unreadable, open_images
from refit.predict.pictures import decode
from refit.predict.specs import PredictSpec
from refit.status import StatusWriter
from tests.predict.made import Counting, encoded, folder_of, noise
from tests.remote.sources import S3, Https


def go(images: str, out: Path, connection: str | None = None) -> tuple[Counting, dict[str, Any]]:
    status, model = StatusWriter(out), Counting()
    spec = PredictSpec(images=images, connection=connection)
    stage.predict(spec, stage.find(spec, out, status), model, decode, out, status)
    return model, json.loads((out / "predictions.json").read_text(encoding="utf-8"))


def test_a_bucket(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFIT_ALLOWED_HOSTS", s3.allowed)
    monkeypatch.setenv(CONNECTION, s3.login())
    s3.folder("sets", "day/yard", folder_of(tmp_path / "yard", 10))
    s3.put("sets", {"day/yard/bad.jpg": b"", "day/yard/notes.txt": b"x", "day/other/a.jpg": encoded(noise(1))})
    model, told = go("s3://sets/day/yard", tmp_path / "out", "lab")
    assert (model.asked, told["images"], told["bad_images"]) == (10, 10, 1)
    assert json.loads((tmp_path / "out" / "results" / "yard" / "gate.json").read_text())[0]["id"] == "000.jpg"
    s3.put("sets", {"day/yard/001.jpg": encoded(noise(77))})
    monkeypatch.setenv(CONNECTION, s3.login())
    assert go("s3://sets/day/yard", tmp_path / "out", "lab")[0].asked == 1, "by its ETag, that one is another"
    monkeypatch.setenv(CONNECTION, s3.login())
    with pytest.raises(BadData, match="there is no such bucket"):
        go("s3://nobody/yard", tmp_path / "out", "lab")
    s3.deny()
    monkeypatch.setenv(CONNECTION, s3.login())
    with pytest.raises(Refused, match="access denied"):
        go("s3://sets/day/yard", tmp_path / "out", "lab")


def test_an_object_that_goes_meanwhile_is_a_bad_image(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFIT_ALLOWED_HOSTS", s3.allowed)
    monkeypatch.setenv(CONNECTION, s3.login())
    s3.put("sets", {"a/1.jpg": encoded(noise(1))})
    images = open_images("s3://sets/a", "lab", Settings.from_env(), tmp_path, StatusWriter(tmp_path))
    s3.put("sets", {"a/1.jpg": encoded(noise(2))})
    with pytest.raises(Unreadable, match="written anew") as caught:
        images.read(images.files["1.jpg"])
    assert caught.value.code == "source_changed"
    with pytest.raises(Unreadable, match="600 MiB; at most 512"):
        images.read(FileInfo("1.jpg", 600 << 20, 0, 0))


def test_an_archive_by_https(site: Https, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFIT_ALLOWED_HOSTS", site.host)
    monkeypatch.setenv("REFIT_CA_FILE", str(site.ca))
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for i in range(3):
            archive.writestr(f"gate/{i}.png", encoded(noise(i), ".png"))
    site.add("/yard.zip", data.getvalue())
    assert go(f"{site.url}/yard.zip", tmp_path / "out")[1]["images"] == 3
    fetched = len([path for method, path, _ in site.asked if method == "GET"])
    model, _ = go(f"{site.url}/yard.zip", tmp_path / "out")
    assert (model.asked, len([1 for method, _, _ in site.asked if method == "GET"])) == (0, fetched)
    rows = json.loads((tmp_path / "out" / "json" / "yard" / "gate.json").read_text())
    assert [r["file"] for r in rows] == ["gate/0.png", "gate/1.png", "gate/2.png"]
    site.add("/bad.zip", b"PK" + b"x" * 100)
    with pytest.raises(BadData, match=r"bad\.zip: is not unpacked"):
        go(f"{site.url}/bad.zip", tmp_path / "bad")
