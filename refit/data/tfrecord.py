"""TFRecord files and tf.Example messages without TensorFlow.

A record is `uint64 length, uint32 crc(length), bytes data, uint32 crc(data)`, little endian; both checksums are
CRC-32C, rotated and offset ("masked") so that the checksum of data that holds checksums stays useful.
Source: tensorflow/core/lib/io/record_writer.h and core/lib/hash/crc32c.h; the messages are those of
tensorflow/core/example/{feature,example}.proto. TensorFlow is 1.5 GB and would be used for these few lines only.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import google_crc32c
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from refit.command import BadData

Feature = list[bytes] | np.ndarray[Any, np.dtype[np.float32]] | np.ndarray[Any, np.dtype[np.int64]]
Writable: TypeAlias = "Feature | array[float] | array[int]"  # of float32 ("f") and int64 ("q")

_HEADER = struct.Struct("<QI")
_CRC = struct.Struct("<I")
_FLOAT = 4  # bytes of a float32; an int64 has twice as many
DATA_AT = _HEADER.size  # where the data begins, from the record's first byte


class DamagedRecords(BadData):
    """A TFRecord file that is cut off or was changed.

    Attributes:
        path: the file.
        offset: byte at which the record that cannot be read begins.
        reason: what is wrong.
        end: byte at which the next record begins, where that is known.
    """

    def __init__(self, path: Path, offset: int, reason: str, end: int | None = None) -> None:
        self.path, self.offset, self.reason, self.end = path, offset, reason, end
        super().__init__(f"{path}: byte {offset}: {reason}; run what wrote it again (dataset_convert, augment)")


def masked_crc(data: bytes) -> int:
    """The CRC-32C of `data` as TFRecord stores it."""
    crc: int = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def framed(length: int) -> int:
    """Bytes that a record with `length` bytes of data takes in the file."""
    return DATA_AT + length + _CRC.size


def write_record(file: BinaryIO, data: bytes) -> None:
    """Append one record to an open binary file."""
    length = struct.pack("<Q", len(data))
    file.writelines((length + _CRC.pack(masked_crc(length)), data, _CRC.pack(masked_crc(data))))


def offsets(path: Path) -> list[int]:
    """The byte at which each record begins, from the headers alone (the data is not read).

    Raises DamagedRecords where a header's checksum is wrong or the file ends inside a record, and BadData where the
    file cannot be opened.
    """
    found: list[int] = []
    with _open(path) as file:
        size, at = os.fstat(file.fileno()).st_size, 0
        while at < size:
            file.seek(at)
            length = _length(path, at, file.read(_HEADER.size))
            end = at + framed(length)
            if end > size:
                raise DamagedRecords(path, at, f"the record needs {end - size} bytes more than the file has")
            found.append(at)
            at = end
    return found


def read_record(path: Path, offset: int) -> bytes:
    """The data of the record that begins at a byte offset. Raises DamagedRecords, BadData."""
    with _open(path) as file:
        return read(path, file, offset)


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as exc:
        raise BadData(f"{path}: cannot be read: {exc.strerror}; run dataset_convert first") from None


def _length(path: Path, at: int, header: bytes) -> int:
    if len(header) < _HEADER.size:
        raise DamagedRecords(path, at, "the file ends inside a record's header")
    length, crc = _HEADER.unpack(header)
    if crc != masked_crc(header[:8]):
        raise DamagedRecords(path, at, "the checksum of the record's length is wrong")
    return int(length)


def read(path: Path, file: BinaryIO, at: int) -> bytes:
    """The data of the record that begins at a byte of an open file. Raises DamagedRecords."""
    file.seek(at)
    length = _length(path, at, file.read(_HEADER.size))
    # The length is checked against the file before it is trusted with an allocation.
    if at + framed(length) > os.fstat(file.fileno()).st_size:
        raise DamagedRecords(path, at, "the file ends inside the record")
    data = file.read(length)
    if _CRC.unpack(file.read(_CRC.size))[0] != masked_crc(data):
        raise DamagedRecords(path, at, "the checksum of the record's data is wrong", at + framed(length))
    return data


def encode_example(features: Mapping[str, Writable]) -> bytes:
    """A tf.Example with these features: lists of bytes, float32 or int64 arrays. Same input, same bytes.

    Written by hand, so that an image is copied once: the message classes copy it three times and take twice as long.
    An empty list is written as one, so that TensorFlow can tell the feature's type.
    """
    pieces: list[bytes] = [b""]
    total = 0
    for name in sorted(features):
        kind, values = _values(features[name])
        size = sum(map(len, values))
        inner = kind + _varint(size)
        entry = _key(name) + _varint(len(inner) + size) + inner
        head = b"\x0a" + _varint(len(entry) + size) + entry
        total += len(head) + size
        pieces.append(head)
        pieces += values
    pieces[0] = b"\x0a" + _varint(total)
    return b"".join(pieces)


@lru_cache(maxsize=256)
def _key(name: str) -> bytes:
    """A feature's name in its map, and the tag of its value."""
    key = name.encode()
    return b"\x0a" + _varint(len(key)) + key + b"\x12"


def _values(value: Writable) -> tuple[bytes, list[bytes]]:
    """The tag of a feature's list, and what it holds: bytes each by itself, numbers packed."""
    if isinstance(value, list):
        if len(value) == 1:  # an image
            return b"\x0a", [b"\x0a" + _varint(len(value[0])), value[0]]
        return b"\x0a", [b"".join([piece for v in value for piece in (b"\x0a", _varint(len(v)), v)])]
    if value.itemsize == _FLOAT:
        kind, packed = b"\x12", value.tobytes()
    else:
        kind, packed = b"\x1a", b"".join(map(_varint, value.tolist()))
    return kind, [b"\x0a" + _varint(len(packed)), packed] if packed else []


@lru_cache(maxsize=4096)
def _varint(value: int) -> bytes:
    """Protobuf's variable-length integer; a negative one has ten bytes."""
    value &= 0xFFFFFFFFFFFFFFFF
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def decode_example(data: bytes) -> dict[str, Feature]:
    """The features of a tf.Example, the inverse of `encode_example`. Raises ValueError for other bytes."""
    example = _Example()
    try:
        example.ParseFromString(data)
    except DecodeError as exc:
        raise ValueError(f"not a tf.Example: {exc}") from None
    out: dict[str, Feature] = {}
    for name, feature in example.features.feature.items():
        kind = feature.WhichOneof("kind")
        if kind == "bytes_list":
            out[name] = list(feature.bytes_list.value)
        elif kind == "float_list":
            out[name] = np.array(feature.float_list.value, dtype=np.float32)
        elif kind == "int64_list":
            out[name] = np.array(feature.int64_list.value, dtype=np.int64)
    return out


def _example_class() -> Any:
    """The tf.Example message class, built in a pool of its own so that it never clashes with TensorFlow's."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="refit/example.proto", package="refit.tf", syntax="proto3")

    def message(name: str) -> Any:
        return file.message_type.add(name=name)

    def add(owner: Any, name: str, number: int, kind: int, **more: Any) -> None:
        owner.field.add(name=name, number=number, type=kind, **{"label": field.LABEL_OPTIONAL, **more})

    for name, kind in (
        ("BytesList", field.TYPE_BYTES),
        ("FloatList", field.TYPE_FLOAT),
        ("Int64List", field.TYPE_INT64),
    ):
        add(message(name), "value", 1, kind, label=field.LABEL_REPEATED)
    feature = message("Feature")
    feature.oneof_decl.add(name="kind")
    for number, name in enumerate(("Bytes", "Float", "Int64"), 1):
        type_name = f".refit.tf.{name}List"
        add(feature, f"{name.lower()}_list", number, field.TYPE_MESSAGE, type_name=type_name, oneof_index=0)
    features = message("Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    add(entry, "key", 1, field.TYPE_STRING)
    add(entry, "value", 2, field.TYPE_MESSAGE, type_name=".refit.tf.Feature")
    type_name = ".refit.tf.Features.FeatureEntry"
    add(features, "feature", 1, field.TYPE_MESSAGE, type_name=type_name, label=field.LABEL_REPEATED)
    add(message("Example"), "features", 1, field.TYPE_MESSAGE, type_name=".refit.tf.Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("refit.tf.Example"))


_Example = _example_class()
