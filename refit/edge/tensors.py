"""`tensors.json` beside each conversion: what its input and outputs are called, and how numbers stand in them.

The input is `image`, the outputs have the names of their roles (coverage, bbox); all are NHWC with a batch of one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from refit.command import BadSpec
from refit.files import write_json

FILE = "tensors.json"
IMAGE = "image"


@dataclass(frozen=True)
class Tensor:
    """One tensor.

    Attributes:
        name: how the file calls it.
        shape: [1, height, width, channels].
        dtype: float32, or uint8 that stands for scale * (value - zero_point).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    scale: float = 1.0
    zero_point: int = 0


@dataclass(frozen=True)
class Tensors:
    """`outputs` by role; `notes` are for people."""

    input: Tensor
    outputs: Mapping[str, Tensor]
    notes: tuple[str, ...] = ()

    def write(self, folder: Path) -> None:
        write_json(folder / FILE, asdict(self))

    @staticmethod
    def read(path: Path) -> Tensors:
        """Raises BadSpec."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            outputs = {role: Tensor(**value) for role, value in data["outputs"].items()}
            return Tensors(Tensor(**data["input"]), outputs, tuple(data["notes"]))
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise BadSpec(f"{path}: cannot be read ({exc}); run the stage that makes it again") from None
