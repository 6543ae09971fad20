"""The weights that a training begins with: taken out of a file by name, where the shapes fit.

A `.pth` is read as tensors and plain values, no code in it is run. Of an `.onnx` the initializers are taken; where an
export has folded batch norm into a convolution, whose weights have no name then, the node's name says whose they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from refit.command import BadSpec
from refit.cpu import checkpoint
from refit.cpu.network import Detector

LEAST = 0.5  # of the network's parameters: with fewer, the file is of another network
# Where a .pth keeps its weights: a model's and a checkpoint's of this toolkit, and what others write.
_HOLDERS = ("weights", "average", "state_dict", "model_state_dict", "model", "ema")
_PREFIXES = ("module.", "model.", "network.")
_NAMED = 5


@dataclass(frozen=True)
class Taken:
    """What came of a file.

    Attributes:
        tensors: of the network, taken.
        left: of the network, not taken -> why.
        unused: of the file, of which the network has none.
        share: of the network's parameters that were taken.
    """

    tensors: tuple[str, ...]
    left: Mapping[str, str]
    unused: tuple[str, ...]
    share: float

    def __str__(self) -> str:
        count = len(self.tensors) + len(self.left)
        told = f"{len(self.tensors)} of {count} tensors, {self.share:.1%} of the parameters"
        return f"{told}; left as they were: {self.why()}" if self.left else told

    def why(self) -> str:
        """The tensors that were not taken, some by name."""
        return some(self.left)


def misfits(network: Detector, found: Mapping[str, Tensor]) -> dict[str, str]:
    """The tensors of a network that a file lacks or has in another shape -> why."""
    left = {}
    for name, tensor in network.state_dict().items():
        if name not in found:
            left[name] = "not in the file"
        elif found[name].shape != tensor.shape:
            left[name] = f"{_shape(found[name])} in the file, {_shape(tensor)} here"
    return left


def some(left: Mapping[str, str]) -> str:
    """Tensors and why, the first by name."""
    rows = [f"{name} ({reason})" for name, reason in list(left.items())[:_NAMED]]
    more = len(left) - len(rows)
    return ", ".join(rows) + (f" and {more} more" if more else "")


def begin(network: Detector, path: str) -> Taken:
    """Put a file's weights into a network. Raises BadSpec: it cannot be read, or has too little of this network."""
    found = _initializers(path) if path.endswith(".onnx") else _state(path)
    own = network.state_dict()
    left = misfits(network, found)
    fitting = {name: found[name].to(tensor.dtype) for name, tensor in own.items() if name not in left}
    if broken := [name for name, tensor in fitting.items() if not torch.isfinite(tensor).all()]:
        raise BadSpec(f"{path}: {', '.join(broken[:_NAMED])} hold values that are no finite numbers")
    network.load_state_dict({**own, **fitting})
    parameters = {name: p.numel() for name, p in network.named_parameters()}
    share = sum(n for name, n in parameters.items() if name in fitting) / sum(parameters.values())
    taken = Taken(tuple(fitting), left, tuple(sorted(found.keys() - own.keys())), share)
    if share < LEAST:
        unused = f"; of its own it has {', '.join(taken.unused[:_NAMED])}" if taken.unused else ""
        raise BadSpec(
            f"{path}: only {share:.1%} of the network's parameters are in it, and {LEAST:.0%} must be: {taken.why()}"
            f"{unused}. Give weights of this backbone and width, or set `network` to theirs"
        )
    return taken


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "one number"


def _state(path: str) -> dict[str, Tensor]:
    content: Any = checkpoint.load(path)
    if content is None:
        raise BadSpec(f"{path}: no such file")
    for holder in _HOLDERS:
        if isinstance(content.get(holder), dict):
            content = content[holder]
            break
    found = {_plain(str(name)): value for name, value in content.items() if isinstance(value, Tensor)}
    if not found:
        names = ", ".join(map(str, list(content)[:_NAMED]))
        raise BadSpec(f"{path}: holds no tensors by name (but {names}); save model.state_dict() alone")
    return found


def _plain(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _initializers(path: str) -> dict[str, Tensor]:
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception as exc:  # protobuf's own exceptions
        raise BadSpec(f"{path}: cannot be read as ONNX ({type(exc).__name__})") from None
    if any(node.op_type == "DequantizeLinear" for node in graph.node):
        raise BadSpec(f"{path}: its weights are rounded to INT8; begin with the float32 model that it was made from")
    if outside := [t.name for t in graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]:
        raise BadSpec(f"{path}: {outside[0]} lies in a file beside it; save the model as one file")
    arrays = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
    same = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Identity"}
    found = {_plain(name): tensor for name, tensor in arrays.items()}
    for node in graph.node:
        if node.op_type == "Conv" and node.name.endswith("/Conv"):
            given = [arrays[real] for name in node.input[1:] if (real := _real(name, same)) in arrays]
            found.update(_of_convolution(node.name, given))
    return found


def _real(name: str, same: Mapping[str, str]) -> str:
    """The initializer behind a name: equal ones are kept once by PyTorch's exporter."""
    while name in same:
        name = same[name]
    return name


def _of_convolution(node: str, given: list[Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a convolution by its node's name, /network/stem/conv/Conv; of one with a batch norm behind it,
    whose scale and mean are in its weights and bias, a norm that changes nothing but the bias."""
    parts: list[str] = []
    for part in node.split("/")[1:-1]:  # a block stands behind its level and has its name: /level1/level1.0/conv1
        if parts and part.startswith(f"{parts[-1]}."):
            parts.pop()
        parts.append(part)
    path = _plain(".".join(parts))
    weight, *bias = given or [torch.empty(0)]
    yield f"{path}.weight", weight
    if bias and path.endswith(".conv"):
        norm, ones = path.removesuffix("conv") + "norm", torch.ones_like(bias[0])
        yield f"{norm}.weight", ones
        yield f"{norm}.bias", bias[0]
        yield f"{norm}.running_mean", torch.zeros_like(bias[0])
        yield f"{norm}.running_var", ones - nn.BatchNorm2d(1).eps
        yield f"{norm}.num_batches_tracked", torch.tensor(0)
