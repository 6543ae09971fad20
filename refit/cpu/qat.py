"""Quantization-aware training: a short fine-tuning in which every value that INT8 will round is rounded.

Batch norm is folded into the convolutions first, as the export does. Weights are rounded by channel (or not, as the
quantizer will), activations to the range that their batches had lately; gradients pass the rounding as if it were not
there, and stop where a value is cut off (Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference"). The result is an ordinary float32 model, whose INT8 file the quantizer makes as of
any other.
"""

from __future__ import annotations

from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval

from refit.command import BadSpec
from refit.cpu.checkpoint import load_model
from refit.cpu.learner import Learner
from refit.cpu.loader import batches, open_training_images, steps
from refit.cpu.network import Block, ConvUnit, Detector
from refit.cpu.records import Dataset
from refit.cpu.specs import QuantizeSpec
from refit.cpu.status import StatusWriter
from refit.cpu.targets import Grid

_FOLLOW = 0.05  # how fast a range follows the batches
_WARM = 8  # batches that the ranges are measured on before the training


class _Activation(nn.Module):
    """Rounds a tensor to 256 steps of the range that it had lately."""

    low: Tensor
    high: Tensor

    def __init__(self, symmetric: bool) -> None:
        super().__init__()
        self.symmetric = symmetric
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if torch.onnx.is_in_onnx_export():
            return x
        if self.training:
            with torch.no_grad():
                low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
                new = self.low == self.high
                self.low.copy_(torch.where(new, low, self.low.lerp(low, _FOLLOW)))
                self.high.copy_(torch.where(new, high, self.high.lerp(high, _FOLLOW)))
        if self.symmetric:
            scale = torch.maximum(self.high, -self.low).clamp(min=1e-9) / 127
            return torch.fake_quantize_per_tensor_affine(x, scale, torch.zeros(1, dtype=torch.int32), -127, 127)
        scale = (self.high - self.low).clamp(min=1e-9) / 255
        zero = (-self.low / scale).round().to(torch.int32).reshape(1)
        return torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, 255)


class _Weights(nn.Module):
    """Rounds the weights of a convolution to -127..127 steps, by output channel or all alike."""

    def __init__(self, per_channel: bool) -> None:
        super().__init__()
        self.per_channel = per_channel

    def forward(self, weight: Tensor) -> Tensor:
        if torch.onnx.is_in_onnx_export():
            return weight
        with torch.no_grad():
            peak = weight.abs().flatten(1).amax(1)
            scale = (peak if self.per_channel else peak.amax().expand(len(peak))).clamp(min=1e-9) / 127
            zero = torch.zeros(len(peak), dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight, scale.contiguous(), zero, 0, -127, 127)


def rounded(network: Detector, spec: QuantizeSpec) -> Detector:
    """Change a detector in place so that it computes as its INT8 file will: all but the two heads."""
    network.eval()
    symmetric = spec.activation == "int8"
    for module in list(network.modules()):
        if isinstance(module, ConvUnit):
            module.conv = fuse_conv_bn_eval(module.conv, module.norm)
            module.norm = cast(Any, nn.Identity())
            parametrize.register_parametrization(module.conv, "weight", _Weights(spec.per_channel))
        if isinstance(module, ConvUnit | Block):
            module.rounding = _Activation(symmetric)
            module.register_forward_hook(_round_output)
    network.rounding = _Activation(symmetric)
    network.register_forward_pre_hook(_round_input)
    return network


def _round_output(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Any:
    return module.get_submodule("rounding")(output)


def _round_input(module: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    return (module.get_submodule("rounding")(inputs[0]),)


def fine_tune(spec: QuantizeSpec, dataset: Dataset, status: StatusWriter) -> Detector:
    """The detector of `spec.checkpoint`, trained to be rounded; exporting it gives its float32 ONNX file.

    Raises:
        BadSpec: no checkpoint, or one of other classes.
        Diverged: the loss is no longer a number.
    """
    assert spec.checkpoint is not None
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # see refit.cpu.train
    torch.manual_seed(spec.seed)
    model = load_model(spec.checkpoint)
    if model.info.classes != dataset.classes:
        raise BadSpec(f"checkpoint {spec.checkpoint} and records {spec.records} have different classes")
    params = spec.training.model_copy(
        update={"epochs": spec.qat_epochs, "learning_rate": spec.qat_learning_rate, "warmup_epochs": 0.5}
    )
    entry = model.info.input
    images = open_training_images(dataset.split("train"), entry, str(dataset.folder))
    network = rounded(model.network, spec)
    network.train()
    augmentation = params.augmentation
    with torch.no_grad():
        for batch in islice(batches(images, params.batch_size, augmentation, spec.seed, 0), _WARM):
            network(batch.floats(entry.scale))
    count = steps(len(images), params.batch_size)
    grid = Grid(entry.width, entry.height, model.info.stride)
    learner = Learner(network, params, grid, entry.scale, count, reduced=False)
    for epoch in range(1, params.epochs + 1):
        losses = learner.epoch(batches(images, params.batch_size, augmentation, spec.seed, epoch))
        status.running(f"Fine-tuning with rounded values: epoch {epoch} of {params.epochs}, loss {losses['loss']:.4f}.")
    learner.check()
    return learner.average
