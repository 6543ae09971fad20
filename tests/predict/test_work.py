"""The journal, going on after a kill, thresholds by class, and what is written; no server is needed for it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from refit.command import BadData, BadSpec
from refit.predict import journal as journals
from refit.predict import stage, work
from refit.predict.pictures import decode
from refit.predict.specs import PredictSpec
from refit.status import StatusWriter
from tests.predict.made import Counting, encoded, folder_of, noise


@pytest.fixture(autouse=True)
def _roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFIT_DATA_ROOTS", str(tmp_path))


def go(root: Path, out: Path, model: Counting, **more: Any) -> list[dict[str, Any]]:
    """Predict; gives the lines of the status file."""
    status = StatusWriter(out)
    spec = PredictSpec(images=str(root), **more)
    stage.predict(spec, stage.find(spec, out, status), model, decode, out, status)
    return [json.loads(line) for line in status.path.read_text().splitlines()]


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_nothing_is_asked_twice(tmp_path: Path) -> None:
    root, out = folder_of(tmp_path / "yard", 50), tmp_path / "out"
    first = Counting(dies_after=22)
    with pytest.raises(MemoryError):
        go(root, out, first)
    kept = len((out / journals.FILE).read_bytes().splitlines()) - 1
    assert first.asked - first.batch * first.workers <= kept <= first.asked, "what was under way may be lost, no more"
    with open(out / journals.FILE, "ab") as f:
        f.write(b'{"file": "gate/0')  # the kill came in the middle of a line
    second = Counting()
    lines = go(root, out, second)
    assert second.asked == 50 - kept
    assert any(f"{kept} of 50 images were answered before" in line["message"] for line in lines)
    assert [r["file"] for r in read(out / "json" / "yard.json") + read(out / "json" / "yard" / "gate.json")] == sorted(
        (str(p.relative_to(root)) for p in root.rglob("*.jpg")), key=lambda f: ("gate" in f, f)
    )
    third = Counting()
    go(root, out, third)
    assert third.asked == 0


def test_what_changed_is_asked_again(tmp_path: Path) -> None:
    root, out = folder_of(tmp_path / "yard", 8), tmp_path / "out"
    go(root, out, Counting())
    (root / "001.jpg").write_bytes(encoded(noise(99)))
    os.utime(root / "001.jpg", ns=(1, 1))
    (root / "002.jpg").unlink()
    (root / "new.jpg").write_bytes(encoded(noise(98)))
    again = Counting()
    go(root, out, again)
    assert again.asked == 2
    assert [r["id"] for r in read(out / "results" / "yard.json")] == [
        *("001.jpg", "004.jpg", "005.jpg", "007.jpg", "new.jpg"),
    ]


@pytest.mark.parametrize("other", [{"version": 2}, {"score_threshold": 0.5}, {"draw": True}])
def test_another_question_begins_anew(tmp_path: Path, other: dict[str, Any]) -> None:
    root, out = folder_of(tmp_path / "yard", 6), tmp_path / "out"
    go(root, out, Counting())
    again = Counting(version=other.pop("version", 1))
    go(root, out, again, **other)
    assert again.asked == 6
    assert read(out / "predictions.json")["version"] == again.about["version"]


def test_thresholds_by_class(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "yard", 2)

    def objects(name: str, **more: Any) -> dict[str, int]:
        go(root, tmp_path / name, Counting(), **more)
        return dict(read(tmp_path / name / "predictions.json")["objects"])

    assert objects("a") == {"red": 2, "grün": 2}, "the model's own is 0.3"
    assert objects("b", score_threshold=0.5) == {"red": 2, "grün": 0}
    assert objects("c", score_threshold=0.5, thresholds={"grün": 0.35}) == {"red": 2, "grün": 2}
    assert objects("d", thresholds={"red": 0.7}) == {"red": 0, "grün": 2}
    with pytest.raises(BadSpec, match="the model has no class 'blue'; it has red, grün"):
        objects("e", thresholds={"blue": 0.7})


def test_bad_images_are_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    root, out = folder_of(tmp_path / "yard", 9), tmp_path / "out"
    (root / "a.jpg").write_bytes(b"")
    (root / "b.png").write_bytes(encoded(noise(1), ".png")[:-20])
    (root / "<img src=x>.jpg").write_bytes(b"no image")
    (root / "c.jpg").symlink_to("/etc/hostname")
    (root / "notes.txt").write_text("x")
    with pytest.raises(
        BadData, match=r"4 of 13 images cannot be read, more than max_bad_images: 0\.3 allows, e\.g\. c"
    ):
        go(root, out, Counting(), max_bad_images=0.3)
    told = read(out / "predictions.json")
    assert (told["images"], told["bad_images"], told["ignored"]) == (9, 4, {".txt": 1})
    assert told["reasons"] == {"not_followed": 1, "image_unreadable": 1, "image_truncated": 2}
    assert {e["file"]: e["code"] for e in read(out / "errors.json")} == {
        "c.jpg": "not_followed",
        "a.jpg": "image_truncated",
        "b.png": "image_truncated",
        "<img src=x>.jpg": "image_unreadable",
    }
    again = Counting()
    lines = go(root, out, again, max_bad_images=0.5)
    assert (again.asked, lines[-1]["status"], lines[-1]["kpi"]["bad_images"]) == (0, "SUCCESS", 4)


def test_no_more_requests_at_once_than_asked_for(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "yard", 40)
    model = Counting(batch=1, workers=3)
    go(root, tmp_path / "out", model)
    assert model.asked == 40
    assert 1 <= model.most <= 3


def test_what_cannot_work(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.heic").write_bytes(b"x")
    with pytest.raises(BadData, match=r"no image in it .*; there are 1 x \.heic"):
        go(tmp_path / "empty", tmp_path / "out", Counting())
    with pytest.raises(BadSpec, match="outside the allowed data roots"):
        go(Path("/etc"), tmp_path / "out", Counting())
    with pytest.raises(BadSpec, match="lie in one another"):
        go(tmp_path / "empty", tmp_path / "empty" / "out", Counting())
    (tmp_path / "empty" / "a.png").write_bytes(b"x")
    with pytest.raises(BadData, match=r"none of 1 images can be read, e\.g\. a\.png: not a JPEG"):
        go(tmp_path / "empty", tmp_path / "out", Counting())


def test_names_of_other_encodings() -> None:
    assert work.shown(os.fsdecode(b"\xff.png")) == "\\udcff.png"
