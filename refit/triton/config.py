"""config.pbtxt, made from the ONNX file or from engine.json, and what a server says about a model that it serves.

The configuration is complete (the servers run with ``--disable-auto-complete-config``), pins one version, asks for one
instance (without ``instance_group`` Triton starts two on a CPU), warms the model up (a bad shape then fails the load
instead of the first request), and carries in its ``parameters`` what a client needs to use the model with nothing but
the server: the sidecar, and where the model came from.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Union

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError

from refit.triton.errors import ArtefactError, RepositoryError

SHA256, MODEL, PIPELINE, RUN, KEY, REFIT = (
    f"refit.{name}" for name in ("sha256", "model", "pipeline", "run", "key", "version")
)
"""Names of the parameters: the artefact's sha256, model.json's text, pipeline, run, stage key, Refit's version."""

# ONNX element type -> Triton's type; the rest of ONNX's types has no place in Triton.
_TRITON_TYPES = {
    onnx.TensorProto.BOOL: "BOOL",
    onnx.TensorProto.UINT8: "UINT8",
    onnx.TensorProto.UINT16: "UINT16",
    onnx.TensorProto.UINT32: "UINT32",
    onnx.TensorProto.UINT64: "UINT64",
    onnx.TensorProto.INT8: "INT8",
    onnx.TensorProto.INT16: "INT16",
    onnx.TensorProto.INT32: "INT32",
    onnx.TensorProto.INT64: "INT64",
    onnx.TensorProto.FLOAT16: "FP16",
    onnx.TensorProto.FLOAT: "FP32",
    onnx.TensorProto.DOUBLE: "FP64",
    onnx.TensorProto.BFLOAT16: "BF16",
    onnx.TensorProto.STRING: "STRING",
}

_FLOATS = (onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16)

NUMPY_TYPES: dict[str, npt.DTypeLike] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
}
"""Triton's types that numpy has."""


@dataclass(frozen=True)
class Tensor:
    """An input or output: name, Triton's type ("FP32"), dims without the batch dim; -1 is any size."""

    name: str
    datatype: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Signature:
    """What goes into a model and comes out.

    ``batch`` says that the first dim of every tensor is a free batch dim; it is left out of ``dims`` then.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    batch: bool


def read_signature(path: Path) -> Signature:
    """The signature of an ONNX file.

    Raises:
        ArtefactError: the file is missing, is not ONNX or is cut short, or has a type that Triton does not know.
    """
    graph = _load(path).graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if not inputs or not graph.output:
        raise ArtefactError(f"{path}: the ONNX graph has no inputs or no outputs; export the model again")
    tensors = {value.name: _dims(path, value) for value in (*inputs, *graph.output)}
    batch = all(dims and dims[0] == -1 for _, dims in tensors.values())

    def build(values: Sequence[Any]) -> tuple[Tensor, ...]:
        return tuple(
            Tensor(v.name, tensors[v.name][0], tensors[v.name][1][1:] if batch else tensors[v.name][1]) for v in values
        )

    return Signature(build(inputs), build(graph.output), batch)


def count_weights(path: Path) -> int:
    """How many numbers with a fraction an ONNX file holds: its weights, and constants such as anchors.

    Raises:
        ArtefactError: as `read_signature`.
    """
    graph = _load(path).graph
    constants = (a.t for node in graph.node if node.op_type == "Constant" for a in node.attribute if a.HasField("t"))
    return sum(math.prod(t.dims) for t in (*graph.initializer, *constants) if t.data_type in _FLOATS)


def _load(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(path, load_external_data=False)
    except OSError as exc:
        raise ArtefactError(f"{path}: cannot be read ({exc.strerror}); run the stage that makes it again") from None
    except (DecodeError, ValueError) as exc:
        raise ArtefactError(f"{path}: is no ONNX file or is cut short ({exc}); export the model again") from None


def _dims(path: Path, value: Any) -> tuple[str, tuple[int, ...]]:
    kind = value.type.tensor_type
    datatype = _TRITON_TYPES.get(kind.elem_type)
    if not value.type.HasField("tensor_type") or datatype is None:
        raise ArtefactError(f"{path}: {value.name!r} has an ONNX type that Triton cannot serve; export it as a tensor")
    if not kind.HasField("shape"):
        raise ArtefactError(f"{path}: {value.name!r} has no shape; export the model with shapes")
    return datatype, tuple(d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)


@dataclass(frozen=True)
class ModelConfig:
    """One config.pbtxt.

    Attributes:
        name: the model's name in Triton.
        version: the one version that is served.
        signature: inputs and outputs.
        max_batch_size: for a signature with a free batch dim; without one Triton must be told 0, and is.
        instances: instances on the CPU or on each GPU.
        kind: KIND_CPU or KIND_GPU.
        dynamic_batching: requests wait up to ``queue_delay_us`` microseconds to be answered together.
        free_dims: sizes for the warm-up where a dim is free ({input: dims}); an input without them is not warmed up.
        parameters: free text by name; goes into ``/v2/models/<name>/config``.
        plans: compute capability -> file of a TensorRT plan; empty for an ONNX model. A GPU of another capability
            finds no file where there are several, and TensorRT's refusal where there is one.
    """

    name: str
    version: int
    signature: Signature
    max_batch_size: int = 8
    instances: int = 1
    kind: str = "KIND_CPU"
    dynamic_batching: bool = False
    queue_delay_us: int = 0
    free_dims: Mapping[str, Sequence[int]] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)
    plans: Mapping[str, str] = field(default_factory=dict)

    def text(self) -> str:
        """The file's text, in protobuf's text format."""
        return "\n".join(_render(self._fields(), "")) + "\n"

    def _fields(self) -> Message:
        out: Message = [
            ("name", self.name),
            ("platform", "tensorrt_plan") if self.plans else ("backend", "onnxruntime"),
            ("max_batch_size", self.max_batch_size if self.signature.batch else 0),
        ]
        for what, tensors in (("input", self.signature.inputs), ("output", self.signature.outputs)):
            for t in tensors:
                out.append((what, [("name", t.name), *_shape(t.datatype, t.dims)]))
        if len(self.plans) == 1:
            out += [("default_model_filename", file) for file in self.plans.values()]
        else:
            out += [("cc_model_filenames", [("key", cc), ("value", file)]) for cc, file in sorted(self.plans.items())]
        out.append(("instance_group", [("count", self.instances), ("kind", Word(self.kind))]))
        out.append(("version_policy", [("specific", [("versions", self.version)])]))
        if self.dynamic_batching and self.signature.batch:
            out.append(("dynamic_batching", [("max_queue_delay_microseconds", self.queue_delay_us)]))
        warmup = self._warmup()
        if warmup:
            out.append(("model_warmup", warmup))
        for key in sorted(self.parameters):
            out.append(("parameters", [("key", key), ("value", [("string_value", self.parameters[key])])]))
        return out

    def _warmup(self) -> Message | None:
        """One sample of zeros; None where a free dim has no size, or a type cannot be warmed up."""
        sample: Message = [("name", "zeros"), ("batch_size", 1)]
        for t in self.signature.inputs:
            dims = tuple(self.free_dims.get(t.name, ())) if -1 in t.dims else t.dims
            if len(dims) != len(t.dims) or -1 in dims or t.datatype not in NUMPY_TYPES:
                return None
            sample.append(("inputs", [("key", t.name), ("value", [*_shape(t.datatype, dims), ("zero_data", True)])]))
        return sample


def pin(config: bytes, versions: Sequence[int]) -> bytes:
    """A configuration of ours with other versions in its policy, and nothing else changed.

    Triton (2.51.0) then loads what is new in the list, unloads what is not in it any more, and leaves the rest as it
    is; any other change makes it load every version anew.

    Raises:
        RepositoryError: it pins no versions: it is not of Refit's making.
    """
    policy = "\n".join(_render([("version_policy", [("specific", [("versions", v) for v in sorted(versions)])])], ""))
    text, found = _POLICY.subn(policy, config.decode())
    if found != 1:
        raise RepositoryError("config.pbtxt does not pin versions as Refit's do: it was changed by hand; release again")
    return text.encode()


_POLICY = re.compile(r"^version_policy \{\n  specific \{\n(?:    versions: \d+\n)+  \}\n\}$", re.MULTILINE)


class Word(str):
    """An enum value: written without quotes."""

    __slots__ = ()


# A message in protobuf's text format: fields in order; a repeated field stands several times.
Message = list[tuple[str, Union[str, int, bool, "Message"]]]


def _shape(datatype: str, dims: Sequence[int]) -> Message:
    return [("data_type", Word(f"TYPE_{datatype}")), *(("dims", d) for d in dims)]


def _render(message: Message, indent: str) -> Iterator[str]:
    for name, value in message:
        if isinstance(value, list):
            yield f"{indent}{name} {{"
            yield from _render(value, indent + "  ")
            yield f"{indent}}}"
        elif isinstance(value, bool):
            yield f"{indent}{name}: {str(value).lower()}"
        elif isinstance(value, Word | int):
            yield f"{indent}{name}: {value}"
        else:
            yield f"{indent}{name}: {quote(value)}"


def quote(text: str) -> str:
    """A string literal of protobuf's text format: ASCII only, everything else as octal bytes of its UTF-8 form."""
    named = {ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t", ord('"'): '\\"', ord("\\"): "\\\\"}
    out = [named.get(b) or (chr(b) if 0x20 <= b < 0x7F else f"\\{b:03o}") for b in text.encode("utf-8")]
    return '"' + "".join(out) + '"'


@dataclass(frozen=True)
class Served:
    """What a running server says about a model (``/v2/models/<name>/config``).

    Attributes:
        versions: the pinned versions; None where the policy is another one (latest, all).
        max_batch_size: 0 where the model takes no batches.
    """

    name: str
    signature: Signature
    versions: tuple[int, ...] | None
    parameters: Mapping[str, str]
    max_batch_size: int = 0

    @property
    def sha256(self) -> str | None:
        return self.parameters.get(SHA256)

    @property
    def sidecar(self) -> dict[str, Any] | None:
        """model.json as an object, None where the model did not come from Refit."""
        try:
            value = json.loads(self.parameters[MODEL])
        except (KeyError, ValueError):
            return None
        return value if isinstance(value, dict) else None

    @staticmethod
    def from_json(config: Mapping[str, Any]) -> Served:
        """Read the server's answer."""
        policy = config.get("version_policy", {}).get("specific")

        def tensors(entries: Sequence[Mapping[str, Any]]) -> tuple[Tensor, ...]:
            return tuple(
                Tensor(e["name"], e["data_type"].removeprefix("TYPE_"), tuple(int(d) for d in e["dims"]))
                for e in entries
            )

        return Served(
            name=config["name"],
            signature=Signature(
                tensors(config.get("input", [])), tensors(config.get("output", [])), config.get("max_batch_size", 0) > 0
            ),
            versions=tuple(int(v) for v in policy["versions"]) if policy else None,
            parameters={k: v.get("string_value", "") for k, v in config.get("parameters", {}).items()},
            max_batch_size=int(config.get("max_batch_size", 0)),
        )
