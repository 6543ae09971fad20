"""The detector: shaped like NVIDIA TAO's DetectNet_v2, small enough to be trained on two CPU cores.

A ResNet-like backbone ends at stride 16. Two heads share a 3x3 convolution: coverage (is the middle of an object of
class c here?) and, for each class, the distances to the four edges of its box (docs/contracts.md, "Model sidecar").
With stride 8 the features of stride 16 are doubled in size and joined with those of stride 8: for small objects.

All tensors are NCHW and contiguous. Never use channels_last here: torch 2.13 corrupts the heap in the backward pass of
a 1x1 convolution with stride 2 and a narrow width, which pruning makes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from refit.cpu.specs import NetworkParams

BLOCKS = {"resnet10": 1, "resnet18": 2}
LEVELS = (16, 24, 48, 96, 128)  # channels of the stem (stride 2) and of levels 1..4 (strides 4, 8, 16, 16) at width 1
HEAD = 64
BBOX_NORM = 35.0
OFFSET = 0.5


@dataclass(frozen=True)
class Architecture:
    """What is needed to build a detector, pruned or not.

    Attributes:
        backbone: key of `BLOCKS`.
        channels: of the input.
        classes: how many.
        stride: input pixels per output cell, 8 or 16.
        widths: output channels of each convolution by its module name; this is what pruning changes.
    """

    backbone: str
    channels: int
    classes: int
    stride: int
    widths: Mapping[str, int]

    @staticmethod
    def plan(params: NetworkParams, classes: int) -> Architecture:
        """The architecture of an unpruned detector."""
        widths: dict[str, int] = {}

        def wide(channels: int) -> int:
            return max(8, 8 * round(channels * params.width / 8))

        widths["stem.conv"] = wide(LEVELS[0])
        for level, channels in enumerate(LEVELS[1:], start=1):
            for block in range(BLOCKS[params.backbone]):
                names = ("conv1.conv", "conv2.conv", *(("shortcut.conv",) if block == 0 else ()))
                widths.update({f"level{level}.{block}.{name}": wide(channels) for name in names})
        if params.stride == 8:
            widths.update({"coarse.conv": wide(HEAD), "fine.conv": wide(HEAD)})
        widths["head.conv"] = wide(HEAD)
        return Architecture(params.backbone, params.channels, classes, params.stride, widths)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "widths": dict(self.widths)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Architecture:
        """Raises KeyError, TypeError or ValueError where it is not one of ours."""
        return Architecture(
            backbone=str(data["backbone"]),
            channels=int(data["channels"]),
            classes=int(data["classes"]),
            stride=int(data["stride"]),
            widths={str(name): int(width) for name, width in data["widths"].items()},
        )


class ConvUnit(nn.Module):
    """Convolution and batch norm, with or without ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, *, relu: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return functional.relu(x) if self.relu else x


class Block(nn.Module):
    """The basic residual block: two 3x3 convolutions beside a shortcut."""

    def __init__(self, name: str, inputs: int, widths: Mapping[str, int], stride: int) -> None:
        super().__init__()
        middle, outputs = widths[f"{name}.conv1.conv"], widths[f"{name}.conv2.conv"]
        self.conv1 = ConvUnit(inputs, middle, 3, stride)
        self.conv2 = ConvUnit(middle, outputs, 3, relu=False)
        self.shortcut: nn.Module = nn.Identity()
        if f"{name}.shortcut.conv" in widths:
            self.shortcut = ConvUnit(inputs, outputs, 1, stride, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.conv2(self.conv1(x)) + self.shortcut(x))


class Detector(nn.Module):
    """See the module's docstring.

    Raises:
        ValueError: widths that do not fit together.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        widths = architecture.widths
        try:
            blocks = BLOCKS[architecture.backbone]
            self.stem = ConvUnit(architecture.channels, widths["stem.conv"], 3, 2)
            self.level1 = _level("level1", widths["stem.conv"], widths, blocks, 2)
            self.level2 = _level("level2", _outputs("level1", widths, blocks), widths, blocks, 2)
            self.level3 = _level("level3", _outputs("level2", widths, blocks), widths, blocks, 2)
            self.level4 = _level("level4", _outputs("level3", widths, blocks), widths, blocks, 1)
            inputs = _outputs("level4", widths, blocks)
            self.fine: ConvUnit | None = None
            if architecture.stride == 8:
                self.coarse = ConvUnit(inputs, widths["coarse.conv"], 1, relu=False)
                self.fine = ConvUnit(_outputs("level2", widths, blocks), widths["fine.conv"], 1, relu=False)
                inputs = widths["fine.conv"]
            self.head = ConvUnit(inputs, widths["head.conv"], 3)
        except KeyError as exc:
            raise ValueError(f"the architecture names no width for {exc}") from None
        self.coverage = nn.Conv2d(widths["head.conv"], architecture.classes, 1)
        self.bbox = nn.Conv2d(widths["head.conv"], 4 * architecture.classes, 1)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for head, bias in ((self.coverage, -4.0), (self.bbox, 1.0)):
            # Start from "hardly anything is covered" (sigmoid(-4) = 0.018) and boxes of 2 * bbox_norm pixels.
            nn.init.normal_(head.weight, std=0.01)
            assert head.bias is not None
            nn.init.constant_(head.bias, bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """float32 [N, channels, H, W] in 0..1 -> coverage logits [N, C, h, w] and distances [N, 4C, h, w], float32.

        Distances are in units of BBOX_NORM pixels, in the order left, top, right, bottom.
        """
        if not torch.onnx.is_in_onnx_export():
            x = _nchw(x)
        x = self.level2(self.level1(self.stem(x)))
        middle = x
        x = self.level4(self.level3(x))
        if self.fine is not None:
            x = functional.relu(functional.interpolate(self.coarse(x), scale_factor=2.0) + self.fine(middle))
        x = self.head(x)
        with torch.autocast("cpu", enabled=False):
            # Eight bits of mantissa are too few for the edges of a large box.
            x = x.float()
            return self.coverage(x), self.bbox(x)

    def current(self) -> Architecture:
        """The architecture with the widths that the convolutions have now, which is what pruning leaves."""
        convolutions = {n: m for n, m in self.named_modules() if isinstance(m, nn.Conv2d)}
        widths = {name: convolutions[name].out_channels for name in self.architecture.widths}
        old = self.architecture
        return Architecture(old.backbone, old.channels, old.classes, old.stride, widths)


def _nchw(x: Tensor) -> Tensor:
    """The same values with the strides of NCHW; all that the network makes then has that layout too.

    Arrays that numpy stacks from transposed pictures arrive as channels_last, whose danger the top of this file tells.
    `contiguous()` is not enough: a grey picture counts as contiguous in both layouts.
    """
    _, channels, height, width = x.shape
    if x.stride() == (channels * height * width, height * width, width, 1):
        return x
    return x.clone(memory_format=torch.contiguous_format)


def _level(name: str, inputs: int, widths: Mapping[str, int], blocks: int, stride: int) -> nn.Sequential:
    level = nn.Sequential()
    for i in range(blocks):
        level.append(Block(f"{name}.{i}", inputs, widths, stride if i == 0 else 1))
        inputs = widths[f"{name}.{i}.conv2.conv"]
    return level


def _outputs(level: str, widths: Mapping[str, int], blocks: int) -> int:
    return widths[f"{level}.{blocks - 1}.conv2.conv"]


def count_parameters(model: nn.Module) -> int:
    """Trainable numbers: weights and biases, without the running statistics of batch norm."""
    return sum(p.numel() for p in model.parameters())
