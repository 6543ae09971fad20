"""A model's file that somebody else made, looked at as data before anything loads it.

A `.pth` is a pickle, which can name any function to be called, and a Keras model can carry Python code in its Lambda
layers: TAO's own loaders run both (`torch.load(weights_only=False)` in nvidia_tao_pytorch/cv/rtdetr/utils/misc.py,
`keras.models.load_model` in nvidia_tao_tf1/cv/common/utils.py). So a file that holds such things is refused, and
nothing here unpickles or builds a model.
"""

from __future__ import annotations

import json
import pickletools
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from refit import runner
from refit.archive import DAMAGED
from refit.command import BadData

_MOST_PICKLE = 256 << 20
_MOST_NAMES = 10_000
_LEGACY_PICKLES = 5  # magic number, version, system, content, keys: torch.save before 1.6
_TF_NAMES = re.compile(r"(^|/)(pipeline\.config|saved_model\.pb|checkpoint|[^/]+\.ckpt([.-][^/]+)?|ckpt-\d+\.index)$")
# What torch.load(weights_only=True) takes as well (torch/_weights_only_unpickler.py), and plain containers.
_SAFE = re.compile(
    r"collections OrderedDict"
    r"|torch\._utils _rebuild_(tensor|tensor_v2|parameter|qtensor)"
    r"|torch\._tensor _rebuild_from_type_v2"
    r"|torch\.nn\.parameter Parameter"
    r"|torch (BFloat16|Bool|Byte|Char|Double|Float|Half|Int|Long|Short|ComplexFloat|ComplexDouble)Storage"
    r"|torch\.storage (Untyped|Typed)Storage"
    r"|torch (Size|device|Tensor|float(16|32|64)|bfloat16|u?int8|int16|int32|int64|bool)"
    r"|numpy\.(_?core)\.multiarray (scalar|_reconstruct)|numpy (dtype|ndarray)|_codecs encode"
    r"|(__builtin__|builtins) (set|dict|list|tuple|int|float|bool|str|bytes|complex|bytearray)"
    r"|argparse Namespace"
)
_CODE = frozenset({"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"})
_WEIGHTS_ALONE = (
    "on a machine where you trust it, save its weights alone, torch.save(model.state_dict(), 'weights.pth'), and begin "
    "with that file"
)
_PLAIN_KERAS = "replace it by a layer without code, or begin with a model that has none"


class Refused(BadData):
    """A file that is not begun with; the message names it, says why, and what to do."""


def examine(path: Path, name: str) -> None:
    """Refuse a file that is not what its name says, is damaged, or holds code. `name` is what messages call it."""
    _no_tensorflow(path, name)
    kinds: dict[str, Callable[[Path, str], None]] = {
        ".pth": _torch,
        ".hdf5": _keras,
        ".h5": _keras,
        ".onnx": _onnx,
        ".tlt": _encrypted,
    }
    kinds[PurePosixPath(name).suffix.lower()](path, name)


def _no_tensorflow(path: Path, name: str) -> None:
    """An archive of TensorFlow's model zoo, whatever it is called."""
    names: list[str] = []
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as z:
            names = z.namelist()[:_MOST_NAMES]
    elif tarfile.is_tarfile(path):
        with tarfile.open(path) as tar:
            names = [member.name for member, _ in zip(tar, range(_MOST_NAMES), strict=False)]
    if found := [n for n in names if _TF_NAMES.search(n)]:
        raise Refused(
            f"{name}: is an archive of TensorFlow's object detection API (it holds {', '.join(found[:3])}); its "
            "variables belong to that API's graph, which no network here has, so they cannot be read. Begin with "
            "weights of this network, or leave start_from out: network.pretrained brings a backbone's from NGC"
        )


# --- PyTorch ----------------------------------------------------------------------------------------------------------


def _torch(path: Path, name: str) -> None:
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as z:
                for member in _pickles(z, name):
                    with z.open(member) as f:
                        _unharmful(f, f"{name}: {member.filename}")
            return
        with open(path, "rb") as f:
            for _ in range(_LEGACY_PICKLES):
                _unharmful(f, name)
    except (*DAMAGED, ValueError, OSError) as exc:
        raise Refused(f"{name}: is no file of torch.save, or damaged ({exc}); copy it again") from None


def _pickles(z: zipfile.ZipFile, name: str) -> Iterator[zipfile.ZipInfo]:
    members = z.infolist()
    paths = [m.filename for m in members]
    if len(set(paths)) < len(paths):
        raise Refused(f"{name}: holds two files of one name, of which readers take one or the other; {_WEIGHTS_ALONE}")
    if any("code" in PurePosixPath(p).parts[:-1] or p.endswith("constants.pkl") for p in paths):
        raise Refused(f"{name}: is TorchScript, a program and not weights; {_WEIGHTS_ALONE}")
    if not any(p.endswith("data.pkl") for p in paths):
        raise Refused(f"{name}: is a zip without data.pkl, and no file of torch.save; {_WEIGHTS_ALONE}")
    for member in members:
        if member.filename.endswith(".pkl"):
            if member.file_size > _MOST_PICKLE:
                raise Refused(f"{name}: {member.filename} has {member.file_size >> 20:,} MiB beside the weights")
            yield member


def _unharmful(file: IO[bytes], where: str) -> None:
    """One pickle, read without running it. Raises Refused where it names what is neither a tensor nor a container."""
    for operation, argument, _ in pickletools.genops(file):
        named = str(argument) if operation.name == "GLOBAL" else operation.name if operation.name in _CODE else ""
        if named and not _SAFE.fullmatch(named):
            what = ".".join(named.split()) if operation.name == "GLOBAL" else f"code ({named})"
            raise Refused(
                f"{where}: names {what}: loading it would run whatever its maker wanted, so it is not loaded; "
                f"{_WEIGHTS_ALONE}"
            )


# --- Keras ------------------------------------------------------------------------------------------------------------


def _keras(path: Path, name: str) -> None:
    import h5py

    try:
        with h5py.File(path, "r") as f:
            config, weights = f.attrs.get("model_config"), "model_weights" in f or "layer_names" in f.attrs
        model = json.loads(config) if config is not None else {}
    except (OSError, ValueError, KeyError, RuntimeError) as exc:
        raise Refused(f"{name}: cannot be read as a Keras model ({exc}); copy it again") from None
    if not weights or (config is None and name.lower().endswith(".hdf5")):
        has = "no layers" if not weights else "weights without a model"
        raise Refused(f"{name}: is HDF5 with {has}; save the whole Keras model: model.save('model.hdf5')")
    if layer := next(_lambdas(model, ""), None):
        raise Refused(f"{name}: the layer {layer} carries Python code, which would be run; {_PLAIN_KERAS}")


def _lambdas(value: Any, at: str) -> Iterator[str]:
    """The names of what holds code in a Keras configuration: Lambda layers, and functions beside any other."""
    if isinstance(value, dict):
        config = value.get("config")
        here = str(config["name"]) if isinstance(config, dict) and "name" in config else at
        if value.get("class_name") in ("Lambda", "__lambda__", "function") or value.get("function_type") == "lambda":
            yield f"{here or '?'} ({value.get('class_name', 'lambda')})"
        for inner in value.values():
            yield from _lambdas(inner, here)
    elif isinstance(value, list):
        for inner in value:
            yield from _lambdas(inner, at)


# --- the others -------------------------------------------------------------------------------------------------------


def _onnx(path: Path, name: str) -> None:
    if wrong := runner.check_onnx(str(path)):
        raise Refused(f"{name}: {wrong}; export it again")


def _encrypted(path: Path, name: str) -> None:
    """Nobody without the key can look into it; TAO opens it with the pipeline's key, or fails."""
    if path.stat().st_size == 0:
        raise Refused(f"{name}: is empty; copy it again")
