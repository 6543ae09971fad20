"""`refit validate`: a file against its cluster profile, and with --data against the data; no Airflow and no cluster."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from refit.cli import BAD_INPUT, GOOD, main
from refit.config import Settings
from tests.data.helpers import encoded, kitti_line, kitti_set

TEXT = """dataset:
  source: inbox/cars
  classes: [car, cat, dog]
  split: {val: 0.25}
toolkit: tao
network: {name: detectnet_v2, image_extension: jpg}
stages:
  train: {epochs: 20, batch_size: 4}
  build_engine: {precision: fp16}
resources: {default: {gpus: 1}}
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    clusters = tmp_path / "clusters"
    shutil.copytree(Settings.from_env({}).clusters, clusters)
    monkeypatch.setenv("REFIT_CLUSTERS", str(clusters))
    monkeypatch.setenv("REFIT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cars.yaml").write_text(TEXT)
    return tmp_path / "cars.yaml"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return kitti_set(tmp_path / "data")


def refused(capsys: pytest.CaptureFixture[str], *words: str | Path) -> list[str]:
    assert main(["validate", *map(str, words)]) == BAD_INPUT
    return capsys.readouterr().err.splitlines()


# --- the source ---------------------------------------------------------------------------------------------------


def test_a_source_that_the_pods_would_refuse(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(TEXT.replace("inbox/cars", "http://files.lab/cars.zip"))
    (line,) = refused(capsys, file)
    assert line.startswith(f"error: {file}:2: dataset.source: 'http://files.lab/cars.zip': plain http: anyone on")
    assert "allowed_hosts of the cluster profile for pods" in line
    profile = file.parent / "clusters" / "kubernetes.yaml"
    values = yaml.safe_load(profile.read_text())
    profile.write_text(yaml.safe_dump(values | {"allowed_hosts": ["http://files.lab"]}))
    assert main(["validate", str(file)]) == GOOD
    file.write_text(TEXT.replace("inbox/cars", "/mounted/later"))
    assert main(["validate", str(file)]) == GOOD


# --- the data -----------------------------------------------------------------------------------------------------


def test_good_data_is_told_in_numbers_and_nothing_is_written(
    file: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.stat().st_mtime_ns for p in file.parent.rglob("*")}
    assert main(["validate", str(file), "--data", "data"]) == GOOD
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"{file}: good; ")
    assert said[1:] == ["data: images 9 train, 3 val; objects 4 car, 4 cat, 4 dog; .jpg, 64 x 48 pixels"]
    assert {p: p.stat().st_mtime_ns for p in file.parent.rglob("*")} == before


def test_without_data_nothing_is_asked_of_it(file: Path) -> None:
    file.write_text(TEXT.replace("jpg", "png").replace("batch_size: 4", "batch_size: 16"))
    assert main(["validate", str(file)]) == GOOD


@pytest.mark.parametrize(
    ("good", "bad", "said"),
    [
        ("extension: jpg", "extension: png", "is 'png', and the data set has 12 .jpg images"),
        (
            "batch_size: 4",
            "batch_size: 16",
            "cars.yaml:8: stages.train.batch_size: 16 is more than the 9 images of",
        ),
        ("fp16", "int8, calibration_batches: 5", "cars.yaml:9: stages.build_engine.calibration_batches: 5 batches of"),
    ],
)
def test_specs_that_do_not_fit_the_data(
    file: Path, data: Path, capsys: pytest.CaptureFixture[str], good: str, bad: str, said: str
) -> None:
    assert TEXT.count(good) == 1
    file.write_text(TEXT.replace(good, bad))
    told = refused(capsys, file, "--data", data)
    assert any(said in line for line in told), told


def test_the_faults_of_the_file_are_told_beside_those_of_the_data(
    file: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "labels" / "000.txt").write_text("car 0 0 0 5 6\n")
    file.write_text(TEXT.replace("epochs: 20", "epochs: 20, set: {training_config.num_epoch: 3}"))
    told = refused(capsys, file, "--data", data)
    assert any(line.startswith(f"error: {data}: ") and "labels/000.txt:1" in line for line in told), told
    assert any("num_epoch" in line and "cars.yaml:8" in line for line in told), told


def test_a_class_without_objects(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = kitti_set(tmp_path / "data", lines=[kitti_line("car"), kitti_line("cat")])
    assert main(["validate", str(file), "--data", str(data)]) == GOOD
    said = capsys.readouterr()
    assert "objects 12 car, 12 cat, 0 dog" in said.out
    assert any(line.startswith("warning: ") and "dog" in line for line in said.err.splitlines()), said.err


def test_data_without_objects(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (told,) = refused(capsys, file, "--data", kitti_set(tmp_path / "data", lines=[]))
    assert told.startswith(f"error: {tmp_path}/data: ")
    assert "object" in told


def test_no_more_warnings_than_one_can_read(file: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(TEXT.replace("val: 0.25}", "val: 0.25}\n  max_bad_labels: 0.9"))
    for path in sorted((data / "labels").iterdir())[:8]:
        path.write_text(path.read_text() + "car 0 0 0 5 6\n")
    assert main(["validate", str(file), "--data", str(data)]) == GOOD
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(said) == 6
    assert said[-1] == f"warning: {data}: 3 more; `refit dataset check {data} --json` lists them"


def test_data_that_is_not_there(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (told,) = refused(capsys, file, "--data", "nowhere")
    assert told.startswith("error: nowhere: ")


def test_images_of_two_kinds(file: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "images" / "000.jpg").unlink()
    (data / "images" / "000.png").write_bytes(encoded(0, ".png"))
    told = refused(capsys, file, "--data", data)
    assert any("the data set has 1 .png images" in line for line in told), told


# --- the cluster profile ------------------------------------------------------------------------------------------


def test_a_secret_that_the_profile_lacks(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(TEXT.replace("image_extension: jpg", "image_extension: jpg, key_secret: TAO_KEY"))
    (told,) = refused(capsys, file)  # seven stages need it
    profile = file.parent / "clusters" / "kubernetes.yaml"
    assert told == (
        f"error: {profile}: secrets.TAO_KEY: pipeline cars: stage train needs the secret TAO_KEY; the cluster "
        "profile's secrets are TRITON_CONTROL_KEY: add secrets.TAO_KEY: {name: <the Secret>, key: <its entry>}"
    )
    made = yaml.safe_load(profile.read_text())
    made["secrets"]["TAO_KEY"] = {"name": "tao", "key": "api-key"}
    profile.write_text(yaml.safe_dump(made))
    assert main(["validate", str(file)]) == GOOD
    assert capsys.readouterr().err == ""


def test_types_of_gpu_that_the_profile_lacks(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(TEXT.replace("precision: fp16", "precision: fp16, gpu_types: [default, t4]"))
    (told,) = refused(capsys, file)
    assert "gpu.types.t4: pipeline cars: stage build_engine_t4 wants gpu_type 't4'" in told


def test_an_environment_that_the_profile_has_no_image_for(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile = file.parent / "clusters" / "kubernetes.yaml"
    made = yaml.safe_load(profile.read_text())
    del made["images"]["cpu"]
    profile.write_text(yaml.safe_dump(made))
    file.write_text("dataset: {source: inbox/x, classes: [a, b]}\ntoolkit: cpu\nruntime: kubernetes\n")
    (told,) = refused(capsys, file)
    assert f"{profile}: images.cpu: pipeline cars: stage " in told


# --- refit run ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("toolkit", "advice"),
    [
        (
            "tao",
            "to hold the specs against data here: `refit validate FILE --data PATH`",
        ),
        ("cpu", "To try the same stages on this machine: runtime: local in a copy"),
    ],
)
def test_what_a_run_of_a_cluster_advises(
    file: Path, capsys: pytest.CaptureFixture[str], toolkit: str, advice: str
) -> None:
    if toolkit == "cpu":
        file.write_text("dataset: {source: inbox/x, classes: [a, b]}\ntoolkit: cpu\nruntime: kubernetes\n")
    assert main(["run", str(file)]) == BAD_INPUT
    told = capsys.readouterr().err
    assert advice in told
    assert ("local" in told) == (toolkit == "cpu")


def test_a_folder_that_is_not_there_is_a_warning(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text("dataset: {source: /data/no-such-plates, classes: [plate]}\ntoolkit: cpu\n")
    assert main(["validate", str(file)]) == GOOD
    told = f"warning: {file}: dataset.source: /data/no-such-plates is not there (yet)\n"
    assert capsys.readouterr().err == told


def test_weights_that_are_not_there_are_a_warning(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFIT_DATA_ROOTS", str(file.parent / "data"))
    text = "dataset: {source: inbox/plates, classes: [plate]}\ntoolkit: cpu\nstages: {train: {start_from: WHAT}}\n"
    wanted = file.parent / "data" / "weights" / "mine.pth"
    file.write_text(text.replace("WHAT", "weights/mine.pth"))
    assert main(["validate", str(file)]) == GOOD
    assert capsys.readouterr().err == f"warning: {file}: stages.train.start_from: {wanted} is not there (yet)\n"
    wanted.parent.mkdir(parents=True)
    wanted.write_bytes(b"")
    assert main(["validate", str(file)]) == GOOD
    assert capsys.readouterr().err == "", "bind looks into it"
    file.write_text(text.replace("WHAT", "/elsewhere/mine.pth"))
    assert main(["validate", str(file)]) == GOOD
    assert "stages.train.start_from '/elsewhere/mine.pth' is outside the allowed data roots" in capsys.readouterr().err
    file.write_text(text.replace("WHAT", "champion"))
    assert main(["validate", str(file)]) == GOOD
    assert capsys.readouterr().err == ""


def test_edge_bundles_of_a_tao_network(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(TEXT + "edge: {tflite: true}\n")
    (line,) = refused(capsys, file)
    assert line.startswith(f"error: {file}:11: edge: unknown key; edge bundles are for toolkit: cpu")
