"""A model's file that somebody else made, looked at as data before anything loads it.

A `.pth` is a pickle, which can name any function to be called, and a Keras model can carry Python code in its Lambda
layers: TAO's own loaders run both (`torch.load(weights_only=False)` in nvidia_tao_pytorch/cv/rtdetr/utils/misc.py,
`keras.models.load_model` in nvidia_tao_tf1/cv/common/utils.py). So a file that holds such things is refused, and
nothing here unpickles or builds a model.
"""

from __future__ import annotations

import json
import os
import pickletools
import re
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from refit import runner
from refit.archive import DAMAGED
from refit.command import BadData

_ZIP = b"PK\x03\x04"
# The last records of a zip, by PKWARE's APPNOTE 4.3: how it ends, and before that, of large ones and torch.save's own,
# the same with 64 bits and where that is.
_END, _LOCATOR, _END64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sLQL"), struct.Struct("<4sQ2H2L4Q")
_MOST_PICKLE = 256 << 20
_MOST_NAMES = 10_000
_HEAD = 16  # bytes of a file that a message shows
_HDF5, _PICKLE, _PICKLED = b"\x89HDF\r\n\x1a\n", b"\x80", (".pth", ".pt", ".ckpt", ".pkl", ".bin")
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


def examine_pretrained(path: Path, name: str) -> None:
    """Refuse weights that hold code. What they are of is their network's business: a backbone's HDF5 file may have no
    model, and forms that cannot hold code, or that only TAO can open (`.tlt`), are left to it."""
    with open(path, "rb") as f:
        start = f.read(len(_HDF5))
    ending = PurePosixPath(name).suffix.lower()
    if start == _HDF5:
        _keras_code(path, name)
    elif ending in _PICKLED or start.startswith(_PICKLE) or (ending != ".tlt" and zipfile.is_zipfile(path)):
        _torch(path, name)


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
    """What torch.load makes of a file is asked in its own order (torch/serialization.py): a zip is what begins like
    one, whatever the end looks like; else a tar; else pickles."""
    head = b""
    try:
        with open(path, "rb") as f:
            head = f.read(_HEAD)
            if head.startswith(_ZIP):
                _one_archive(f)
                with zipfile.ZipFile(f) as z:
                    for member in _pickles(z, name):
                        with z.open(member) as inner:
                            _unharmful(inner, f"{name}: {member.filename}")
                return
            if tarfile.is_tarfile(path):
                raise Refused(f"{name}: is a tar, the form of the first torch.save; {_WEIGHTS_ALONE}")
            f.seek(0)
            for _ in range(_LEGACY_PICKLES):
                _unharmful(f, name)
    except (*DAMAGED, struct.error, ValueError, OSError) as exc:
        # Of what no pickle begins like (text, a page, a pointer of git-lfs) a parser's words would tell nothing.
        why = str(exc) if head.startswith((_ZIP, _PICKLE)) else f"it begins with {head!r}" if head else "it is empty"
        raise Refused(f"{name}: is no file of torch.save, or damaged ({why}); copy it again") from None


def _one_archive(f: IO[bytes]) -> None:
    """Raises ValueError where two readers of a zip may find two directories: Python's takes one that lies elsewhere
    than the end says, torch's takes the one that it names."""
    tail = _END64.size + _LOCATOR.size + _END.size
    size = f.seek(0, os.SEEK_END)
    f.seek(max(0, size - tail))
    last = f.read().rjust(tail)
    mark, _, _, _, _, length, start, comment = _END.unpack(last[-_END.size :])
    stop = size - _END.size
    good = mark == b"PK\x05\x06" and not comment
    locator, _, at, _ = _LOCATOR.unpack_from(last, _END64.size)
    if locator == b"PK\x06\x07":
        stop = size - tail
        mark, rest, *_, length, start = _END64.unpack_from(last)
        good = good and mark == b"PK\x06\x06" and rest == _END64.size - 12 and at == stop
    if not good or start + length != stop:
        raise ValueError("its directory does not lie where its end says")


def _pickles(z: zipfile.ZipFile, name: str) -> Iterator[zipfile.ZipInfo]:
    members = z.infolist()
    paths = [m.filename.lower() for m in members]
    if len(set(paths)) < len(paths):
        raise Refused(f"{name}: holds two files of one name, of which readers take one or the other; {_WEIGHTS_ALONE}")
    if any("code" in PurePosixPath(p).parts[:-1] or p.endswith("constants.pkl") for p in paths):
        raise Refused(f"{name}: is TorchScript, a program and not weights; {_WEIGHTS_ALONE}")
    if not any(p.endswith("data.pkl") for p in paths):
        raise Refused(f"{name}: is a zip without data.pkl, and no file of torch.save; {_WEIGHTS_ALONE}")
    for member, path in zip(members, paths, strict=True):
        if member.orig_filename != member.filename:
            raise Refused(f"{name}: {member.orig_filename!r} is a name of two readings; {_WEIGHTS_ALONE}")
        if path.endswith(".pkl"):
            if member.extra:  # may say again where the file lies
                raise Refused(f"{name}: {member.filename} is stored as torch.save stores none; {_WEIGHTS_ALONE}")
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
    whole, weights = _keras_code(path, name)
    if not weights or (not whole and name.lower().endswith(".hdf5")):
        has = "no layers" if not weights else "weights without a model"
        raise Refused(f"{name}: is HDF5 with {has}; save the whole Keras model: model.save('model.hdf5')")


def _keras_code(path: Path, name: str) -> tuple[bool, bool]:
    """Whether the file has a model, and whether it has weights. Raises Refused where the model holds code."""
    import h5py

    try:
        with h5py.File(path, "r") as f:
            config, weights = f.attrs.get("model_config"), "model_weights" in f or "layer_names" in f.attrs
        model = json.loads(config) if config is not None else {}
    except (OSError, ValueError, KeyError, RuntimeError) as exc:
        raise Refused(f"{name}: cannot be read as a Keras model ({exc}); copy it again") from None
    if layer := next(_lambdas(model, ""), None):
        raise Refused(f"{name}: the layer {layer} carries Python code, which would be run; {_PLAIN_KERAS}")
    return config is not None, weights


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
