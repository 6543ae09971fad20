"""Files of other people are looked at without anything in them being run."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest

from refit.start.foreign import Refused, examine
from tests.refit.test_start import torch_file

h5py = pytest.importorskip("h5py", reason="runs in the tools environment only")


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /tmp/refit-was-here",)


def keras(path: Path, layers: list[object], name: str = "model_weights") -> Path:
    with h5py.File(path, "w") as f:
        f.create_group(name)
        f.attrs["model_config"] = json.dumps({"class_name": "Model", "config": {"name": "m", "layers": layers}})
    return path


def refused(path: Path, *said: str) -> None:
    with pytest.raises(Refused) as error:
        examine(path, path.name)
    assert str(error.value).startswith(f"{path.name}: ")
    for text in said:
        assert text in str(error.value)


def test_plain_values_and_layers_are_good(tmp_path: Path) -> None:
    examine(torch_file(tmp_path / "a.pth", OrderedDict(state_dict={"x": [1.0, None]}, epoch=3)), "a.pth")
    conv = {"class_name": "Conv2D", "config": {"name": "conv1", "activation": "relu"}}
    examine(keras(tmp_path / "a.hdf5", [conv]), "a.hdf5")


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_would_run_something(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "evil.pth"
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("archive/data.pkl", pickle.dumps({"state_dict": Harmful()}, protocol=protocol))
    refused(path, "posix.system" if protocol == 2 else "STACK_GLOBAL", "so it is not loaded", "model.state_dict()")
    path.write_bytes(pickle.dumps(Harmful(), protocol=protocol))
    refused(path, "posix.system" if protocol == 2 else "STACK_GLOBAL")


def test_what_hides_a_second_pickle(tmp_path: Path) -> None:
    path = torch_file(tmp_path / "two.pth")
    with zipfile.ZipFile(path, "a") as z, pytest.warns(UserWarning, match="Duplicate name"):
        z.writestr("archive/data.pkl", pickle.dumps(Harmful(), protocol=2))
    refused(path, "two files of one name")


@pytest.mark.parametrize("tar", [False, True])
def test_a_zip_that_stands_behind_something_else(tmp_path: Path, tar: bool) -> None:
    """torch.load looks at the first bytes, a zip is known by its last."""
    evil = pickle.dumps(Harmful(), protocol=2)
    if tar:
        with tarfile.open(tmp_path / "evil.tar", "w") as t:
            info = tarfile.TarInfo("storages")
            info.size = len(evil)
            t.addfile(info, io.BytesIO(evil))
        evil = (tmp_path / "evil.tar").read_bytes()
    path = torch_file(tmp_path / "two.pth")
    path.write_bytes(evil + path.read_bytes())
    refused(path, "is a tar" if tar else "names posix.system", "model.state_dict()")


@pytest.mark.parametrize("large", [False, True])
def test_a_zip_behind_a_zip(tmp_path: Path, large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python moves the offsets of what stands behind something, torch goes where they say."""
    if large:
        monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 0)
    path = torch_file(tmp_path / "two.pth")
    examine(path, "two.pth")
    path.write_bytes(path.read_bytes() * 2)
    refused(path, "directory does not lie where its end says")
    path = torch_file(tmp_path / "said.pth")
    with zipfile.ZipFile(path, "a") as z:
        z.comment = b"x" * 40
    refused(path, "directory does not lie where its end says")


@pytest.mark.parametrize("member", ["archive/DATA.PKL", "archive/inner.Pkl", "archive/x\0.pkl"])
def test_a_pickle_by_another_spelling(tmp_path: Path, member: str) -> None:
    path = torch_file(tmp_path / "two.pth")
    with zipfile.ZipFile(path, "a") as z:
        info = zipfile.ZipInfo("placeholder")
        info.filename = member
        z.writestr(info, pickle.dumps(Harmful(), protocol=2))
    refused(path, "model.state_dict()")


def test_a_program_of_torchscript(tmp_path: Path) -> None:
    path = torch_file(tmp_path / "script.pth")
    with zipfile.ZipFile(path, "a") as z:
        z.writestr("archive/code/__torch__/net.py", "def forward(self): ...")
    refused(path, "is TorchScript, a program")


@pytest.mark.parametrize(
    "layer",
    [
        {"class_name": "Lambda", "config": {"name": "scale", "function": ["4wEAAAA=", None, None]}},
        {"class_name": "TimeDistributed", "config": {"layer": {"class_name": "Lambda", "config": {"name": "scale"}}}},
        {"class_name": "Own", "config": {"name": "scale", "function_type": "lambda"}},
    ],
)
def test_a_keras_layer_with_code(tmp_path: Path, layer: object) -> None:
    refused(keras(tmp_path / "m.hdf5", [layer]), "the layer scale", "carries Python code, which would be run")


def test_hdf5_that_is_no_keras_model(tmp_path: Path) -> None:
    refused(keras(tmp_path / "data.hdf5", [], name="images"), "HDF5 with no layers")
    (tmp_path / "cut.hdf5").write_bytes((tmp_path / "data.hdf5").read_bytes()[:600])
    refused(tmp_path / "cut.hdf5", "cannot be read as a Keras model")


@pytest.mark.parametrize("suffix", [".pth", ".hdf5", ".onnx", ".tlt"])
def test_a_model_zoo_archive_under_any_name(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"ssd{suffix}"
    with tarfile.open(path, "w:gz") as tar:
        for name in ("ssd/pipeline.config", "ssd/checkpoint/ckpt-0.index", "ssd/saved_model/saved_model.pb"):
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
    refused(path, "TensorFlow's object detection API (it holds ssd/pipeline.config, ssd/checkpoint/ckpt-0.index")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("page.pth", b"<html>", "is no file of torch.save, or damaged (it begins with b'<html>'); copy it again"),
        ("text.pth", b"I am not a model\n", "damaged (it begins with b'I am not a model'); copy it again"),
        ("empty.pth", b"", "is no file of torch.save, or damaged (it is empty); copy it again"),
        ("cut.pth", b"\x80\x02}q", "is no file of torch.save, or damaged (not enough data in stream"),
        ("half.onnx", b"\x08\x07\x3a\xff\xff", "is cut off, or is no ONNX file"),
        ("empty.tlt", b"", "is empty"),
    ],
)
def test_what_is_damaged(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, said)
