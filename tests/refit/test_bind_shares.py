"""dataset.shards: pods that each look at a share of the data, and bind that puts together what they saw."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from refit.config import Settings
from refit.data import images
from tests.refit.bind_helpers import PIPELINE, Place
from tests.refit.test_bind import KUBERNETES

PROFILE: dict[str, Any] = yaml.safe_load(
    (Settings.from_env({}).clusters / "kubernetes.yaml").read_text(encoding="utf-8")
)


TOLERANT = "max_bad_labels: 1\n  severity: {image_truncated: warning, label_without_image: warning}"


def text(shards: int, more: str = "max_bad_labels: 0.5") -> str:
    return KUBERNETES.replace("  source:", f"  shards: {shards}\n  {more}\n  source:")


def spoil(place: Place) -> None:
    """Faults of every kind that a share can meet: in one file, between files, in names."""
    pictures, labels = place.data / "images", place.data / "labels"
    first, second, third, *_ = sorted(path.stem for path in pictures.iterdir())
    for path in pictures.glob(f"{first}.*"):
        path.write_bytes(path.read_bytes()[:200])
    (labels / f"{second}.txt").write_text("cross 0 0 0 30 30 3 3 0 0 0 0 0 0 0\n")
    (labels / "orphan.txt").write_text((labels / f"{third}.txt").read_text())


def bound(place: Place, shards: int, run: str, more: str = TOLERANT) -> dict[str, Any]:
    """What a run with so many shares gives: everything but the times and the run's name."""
    for share in range(shards if shards > 1 else 0):
        assert place.bind(run, text(shards, more), profile=PROFILE, share=share) == 0, place.error
    code = place.bind(run, text(shards, more), profile=PROFILE)
    snapshot = place.workspace / "datasets" / place.summary["fingerprint"] if code == 0 else None
    said = {"code": code, "error": place.error}
    if snapshot is not None:
        about = json.loads((snapshot / "dataset.json").read_text())
        for name in ("taken_at", "how"):
            about["provenance"].pop(name)
        files = ("annotations.jsonl", "issues.jsonl", "statistics.json")
        said |= {name: (snapshot / name).read_bytes() for name in files} | {"about": about, "name": snapshot.name}
        said["told"] = (place.out / "issues.jsonl").read_bytes()
    return said


@pytest.mark.parametrize(("more", "code"), [(TOLERANT, 0), ("max_bad_labels: 1", 3)], ids=["taken", "refused"])
def test_any_number_of_shares_gives_the_same(place: Place, more: str, code: int) -> None:
    spoil(place)
    alone = bound(place, 1, "r1", more)
    assert alone["code"] == code
    for shards in (2, 5):
        shutil.rmtree(place.workspace)
        assert bound(place, shards, f"r{shards}", more) == alone


def test_bind_decodes_no_image_that_the_shares_have_seen(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refit.data.memory.RECENT_NS", 0)  # files as young as these are not remembered else
    for share in range(3):
        assert place.bind("r1", text(3), profile=PROFILE, share=share) == 0
    assert {p.name for p in (place.workspace / "runs/r1").iterdir()} == {f"00-look-{i}" for i in range(3)}

    def none(data: bytes, header: images.Header) -> images.Decoded:
        pytest.fail("an image is decoded again")

    monkeypatch.setattr(images, "verify", none)
    assert place.bind("r1", text(3), profile=PROFILE) == 0
    # nor do the shares of the next run
    for share in range(3):
        assert place.bind("r2", text(3), profile=PROFILE, share=share) == 0


def test_a_share_is_made_again_alone(place: Place) -> None:
    for share in (0, 1):
        assert place.bind("r1", text(2), profile=PROFILE, share=share) == 0
    kept, lost = (place.workspace / f"runs/r1/00-look-{i}/out/share" for i in (0, 1))
    before = kept.stat().st_mtime_ns
    lost.unlink()
    assert place.bind("r1", text(2), profile=PROFILE, share=1) == 0
    assert lost.exists()
    assert kept.stat().st_mtime_ns == before


@pytest.mark.parametrize("what", ["missing", "damaged", "another number", "other classes", "other data"])
def test_what_cannot_be_put_together_is_looked_at_by_bind(
    place: Place, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    whole = bound(place, 1, "r1")
    shutil.rmtree(place.workspace)
    seen = text(4 if what == "another number" else 2)
    if what == "other classes":
        seen = seen.replace("[cross, ring, triangle]", "[cross, ring]")
    for share in (0, 1):
        assert place.bind("r1", seen, profile=PROFILE, share=share) == 0
    file = place.workspace / "runs/r1/00-look-1/out/share"
    if what == "missing":
        file.unlink()
    elif what == "damaged":
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    elif what == "other data":
        Path(place.data, "notes.md").write_text("came meanwhile")
    capsys.readouterr()
    assert place.bind("r1", text(2), profile=PROFILE) == 0
    assert place.summary["fingerprint"] == whole["name"]
    assert ("what the shares saw cannot be used" in capsys.readouterr().out) is (what != "missing")


def test_bind_tells_what_the_shares_cannot(place: Place) -> None:
    """A share of a source that is no data set is no failure: bind's is, which notes it as refused."""
    for path in place.data.rglob("*.txt"):
        path.unlink()
    for share in (0, 1):
        assert place.bind("r1", text(2), profile=PROFILE, share=share) == 0
        assert json.loads((place.out / "look.json").read_text()) == {"images": None}
    assert place.bind("r1", text(2), profile=PROFILE) == 3
    assert json.loads((place.workspace / "datasets/arrival.json").read_text())["outcome"] == "bad_data"


def test_on_one_machine_bind_does_it_alone_and_says_so(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert place.bind("r1", PIPELINE.replace("dataset:", "dataset:\n  shards: 4")) == 0
    assert "dataset.shards: 4 is for runtime: kubernetes; here bind uses all cores" in capsys.readouterr().out
