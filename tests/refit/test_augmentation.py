"""A pipeline's augmentation before a run: judged by `refit validate`, drawn by `refit dataset preview`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from refit import cluster, pipeline
from refit.cli import BAD_INPUT, FAILED, GOOD, main
from refit.config import Settings
from refit.runtime import augmentation
from refit.runtime.local import EnvironmentMissing, interpreter
from refit.specs import read_document
from tests.data.helpers import kitti_set, picture

import cv2  # isort: skip

TEXT = """dataset:
  source: inbox/cars
  classes: [car, cat, dog]
toolkit: cpu
stages:
  augment:
    copies: 2
    transforms:
      - {name: HorizontalFlip, p: 1}
"""
OWN = """
import albumentations as A
__version__ = "1.2"
class Mirror(A.HorizontalFlip): pass
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    try:
        interpreter("cpu")
    except EnvironmentMissing as exc:
        pytest.skip(str(exc))
    (tmp_path / "cars.yaml").write_text(TEXT)
    return tmp_path / "cars.yaml"


def with_line(file: Path, line: str) -> None:
    file.write_text(TEXT + f"      - {line}\n")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{name: Roate}", "transforms[1].name: 'Roate' is no transform of albumentations; did you mean 'Rotate'?"),
        ("{name: Rotate, args: {limt: 9}}", "transforms[1]: Rotate has no argument 'limt'; did you mean 'limit'?"),
        ("{name: GaussianBlur, args: {sigma_limit: -1}}", "transforms[1]: GaussianBlur: sigma_limit: All values in"),
        ("{name: 'os:System', version: '1'}", "transforms[1]: os:System is refused: the package os is not allowed"),
    ],
)
def test_a_bad_transform_is_told_where_it_stands(
    file: Path, capsys: pytest.CaptureFixture[str], line: str, told: str
) -> None:
    with_line(file, line)
    assert main(["validate", str(file)]) == BAD_INPUT
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(f"error: {file}:10: stages.augment.{told}")


def test_good_ones_and_a_machine_without_albumentations(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["validate", str(file)]) == GOOD
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("REFIT_ENVS", str(tmp_path / "none"))
    assert main(["validate", str(file)]) == GOOD
    assert "warning: " in (said := capsys.readouterr().err)
    assert "albumentations was not asked about the transforms: environment 'cpu' has no Python" in said


def test_in_a_cluster_ones_own_transforms_are_known_by_their_package_only(file: Path) -> None:
    with_line(file, "{name: 'acme.gone:Mirror', version: '9'}")
    doc, made = read_document(file), pipeline.load(file)
    profile = cluster.load("kubernetes", Settings.from_env({}))
    (problem,) = augmentation.faults(made, profile, doc)
    assert str(problem).startswith(f"{file}:10: stages.augment.transforms[1].name: acme.gone:Mirror is refused")
    allowed = profile.model_copy(update={"env": {"REFIT_TRANSFORM_PACKAGES": "acme"}})
    assert augmentation.faults(made, allowed, doc) == []


def test_ones_own_transform_that_the_profile_allows(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site/acme.py").write_text(OWN)
    clusters = tmp_path / "clusters"
    clusters.mkdir()
    text = (Settings.from_env({}).clusters / "local.yaml").read_text()
    env = f"env: {{REFIT_TRANSFORM_PACKAGES: acme, PYTHONPATH: {augmentation.REPOSITORY}:{tmp_path / 'site'}}}"
    (clusters / "local.yaml").write_text(text.replace("env: {}", env))
    monkeypatch.setenv("REFIT_CLUSTERS", str(clusters))
    with_line(file, "{name: 'acme:Mirror', version: '1.2'}")
    assert main(["validate", str(file)]) == GOOD
    with_line(file, "{name: 'acme:Mirror', version: '1.1'}")
    assert main(["validate", str(file)]) == BAD_INPUT
    assert "version 1.1 is wanted, and acme 1.2 is installed" in capsys.readouterr().err


def test_a_sheet_of_the_images_and_their_copies(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = kitti_set(tmp_path / "data"), tmp_path / "sheets" / "cars.jpg"
    out.parent.mkdir()
    for i in range(12):  # bright on the left: a mirrored copy shows it on the right
        image = picture(i) // 4
        image[:, :20] = 255
        cv2.imwrite(str(data / f"images/{i:03}.jpg"), image)
    assert main(["dataset", "preview", str(file), "--data", str(data), "-o", str(out)]) == GOOD
    assert capsys.readouterr().out == f"{out}: 6 training images, copies of each: 2 (HorizontalFlip 1)\n"
    words = ["dataset", "preview", str(file), "--data", str(data), "-o", str(out), "--json"]
    assert main(words) == GOOD
    told = json.loads(capsys.readouterr().out)
    assert told == {"out": str(out), "images": 6, "copies": 2, "transforms": [["HorizontalFlip", 1.0]]}
    sheet = cv2.imread(str(out))
    assert sheet.shape == (6 * 240, 3 * 320, 3)
    for row in range(6):
        cells = sheet[row * 240 : (row + 1) * 240]
        left, right = (cells[190:215, x : x + 40].mean() for x in (20, 260))
        assert left > 180 > 100 > right
        for column in (1, 2):
            mirrored = cells[:, column * 320 : (column + 1) * 320]
            left, right = (mirrored[190:215, x : x + 40].mean() for x in (20, 260))
            assert right > 180 > 100 > left
    assert list(tmp_path.glob("**/annotations.jsonl")) == []


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("HorizontalFlip", "HorizontalFlop", "cars.yaml:9: stages.augment.transforms[0].name: 'HorizontalFlop' is no"),
        ("  augment:", "  augment: false #", "stages: augments no images with albumentations; a line that does"),
        (
            "p: 1}",
            "p: 1}\n      - {name: CenterCrop, p: 1, args: {height: 999, width: 9}}",
            "CenterCrop fails on an image",
        ),
        ("[car, cat, dog]", "[car, cat]", "unknown_class"),
    ],
)
def test_what_cannot_be_drawn_is_told(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, told: str
) -> None:
    text = TEXT if "false" not in new else TEXT.partition("    copies")[0]
    file.write_text(text.replace(old, new))
    data = kitti_set(tmp_path / "data")
    assert main(["dataset", "preview", str(file), "--data", str(data), "-o", str(tmp_path / "x.jpg")]) == BAD_INPUT
    assert told in capsys.readouterr().err
    assert not (tmp_path / "x.jpg").exists()


def test_a_sheet_needs_the_cpu_environment(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = kitti_set(tmp_path / "data")
    monkeypatch.setenv("REFIT_ENVS", str(tmp_path / "none"))
    assert main(["dataset", "preview", str(file), "--data", str(data), "-o", str(tmp_path / "x.jpg")]) == FAILED
    assert "run `sh bin/setup cpu`" in capsys.readouterr().err
