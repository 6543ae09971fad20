"""The schema of a TF1 network: the protos compiled into nvidia-tao-deploy.

They are read out of the modules' text, and none is imported: all networks define messages of the same names, and only
one of them fits into a process's default pool. Each network gets a pool of its own.

The protos are those of the training image too: compared with tao_tensorflow1_backend's (its last release, that of the
5.0.0-tf1.15.5 image), they differ in what `releases.py` lists and in the numbers of one enum.
"""

from __future__ import annotations

import ast
import functools
import math
from pathlib import Path
from typing import Any

from refit.tao.schema.model import Field, Kind, Leaf, ListOf, MapOf, Record, Type

PACKAGE = "nvidia_tao_deploy"
# FieldDescriptorProto.Type by number (descriptor.proto). A float beyond the largest would silently be infinite.
_KINDS: dict[int, Kind] = {
    **dict.fromkeys((1, 2), "float"),
    **dict.fromkeys((3, 4, 5, 6, 7, 13, 15, 16, 17, 18), "int"),
    **dict.fromkeys((9, 12), "str"),
    8: "bool",
}
_LIMITS: dict[int, tuple[float, float]] = {
    2: (-3.4028234663852886e38, 3.4028234663852886e38),
    **dict.fromkeys((3, 16, 18), (-(2**63), 2**63 - 1)),
    **dict.fromkeys((4, 6), (0, 2**64 - 1)),
    **dict.fromkeys((5, 15, 17), (-(2**31), 2**31 - 1)),
    **dict.fromkeys((7, 13), (0, 2**32 - 1)),
}


def has(root: Path, network: str) -> bool:
    return _module(root, f"{PACKAGE}/cv/{network}/proto/experiment.proto").exists()


@functools.cache
def schema(root: Path, network: str, action: str) -> Record:
    """The message that an action's spec is. `root`: the folder in which the package lies."""
    if action == "dataset_convert":  # the TF1 networks share detectnet_v2's converter
        folder, file, message = "detectnet_v2", "dataset_export_config", "DatasetExportConfig"
    elif (network, action) == ("detectnet_v2", "inference"):
        folder, file, message = network, "inference", "Inference"
    else:
        folder, file, message = network, "experiment", "Experiment"
    return _record(message_type(root, f"{PACKAGE}/cv/{folder}/proto/{file}.proto", message))


def message_type(root: Path, name: str, message: str) -> Any:
    """A message's descriptor, in a pool that holds its proto file and what that imports."""
    from google.protobuf import descriptor_pool

    pool = descriptor_pool.DescriptorPool()
    _load(root, name, pool, set())
    return pool.FindFileByName(name).message_types_by_name[message]


def _load(root: Path, name: str, pool: Any, seen: set[str]) -> None:
    """Put a proto file and what it imports into a pool."""
    if name in seen:
        return
    from google.protobuf import descriptor_pb2

    seen.add(name)
    file = descriptor_pb2.FileDescriptorProto.FromString(_serialized(_module(root, name)))
    for needed in file.dependency:
        _load(root, needed, pool, seen)
    pool.Add(file)


def _module(root: Path, name: str) -> Path:
    return root / f"{name.removesuffix('.proto')}_pb2.py"


def _serialized(module: Path) -> bytes:
    """The FileDescriptorProto that a compiled module hands to protobuf. Raises ValueError where there is none."""
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "AddSerializedFile":
            return bytes(ast.literal_eval(node.args[0]))
    raise ValueError(f"{module} holds no compiled proto")


def _record(message: Any) -> Record:
    return Record(lambda: {field.name: _field(field) for field in message.fields})


def _field(field: Any) -> Field:
    oneof = field.containing_oneof.name if field.containing_oneof else ""
    if not field.is_repeated:
        return Field(_type(field), oneof=oneof)
    entry = field.message_type
    if entry is not None and entry.GetOptions().map_entry:
        return Field(MapOf(_type(entry.fields_by_name["value"])))
    return Field(ListOf(_type(field)))


def _type(field: Any) -> Type:
    if field.message_type is not None:
        return _record(field.message_type)
    if field.enum_type is not None:
        values = field.enum_type.values
        return Leaf("enum", choices=tuple(v.name for v in values), numbers=tuple(v.number for v in values))
    low, high = _LIMITS.get(field.type, (-math.inf, math.inf))
    return Leaf(_KINDS[field.type], low=low, high=high)
