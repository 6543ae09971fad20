"""`model.pth`, and the checkpoint that a training goes on from.

`model.pth` is a dictionary of plain values and tensors (`torch.load(weights_only=True)` reads it): architecture,
description (as in model.json) and weights. The same content gives the same bytes, so its sha256 can be compared.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from refit.command import BadSpec
from refit.cpu.network import BBOX_NORM, OFFSET, Architecture, Detector
from refit.cpu.specs import NetworkParams
from refit.files import write_bytes
from refit.postprocess import InputInfo, ModelInfo, ModelInfoError

FORMAT = "refit.cpu.detector/1"
INPUT = "input_1"
OUTPUTS = {"coverage": "output_cov/Sigmoid", "bbox": "output_bbox/BiasAdd"}


@dataclass(frozen=True, eq=False)
class Model:
    """A detector with its description; in evaluation mode when it was loaded."""

    network: Detector
    info: ModelInfo


def describe(params: NetworkParams, classes: tuple[str, ...]) -> ModelInfo:
    """The description of a detector that is about to be trained."""
    return ModelInfo(
        decoder="detectnet_v2",
        classes=classes,
        input=InputInfo(INPUT, params.input_width, params.input_height, params.channels, resize=params.resize),
        outputs=OUTPUTS,
        stride=params.stride,
        bbox_norm=BBOX_NORM,
        offset=OFFSET,
    )


def save_model(path: Path, model: Model) -> int:
    """Write `model.pth` atomically; returns its size in bytes."""
    content = {
        "format": FORMAT,
        "architecture": model.network.current().to_json(),
        "info": model.info.to_json(),
        "weights": {name: tensor.detach().contiguous() for name, tensor in model.network.state_dict().items()},
    }
    return save(path, content)


def load_model(path: str | Path) -> Model:
    """Read a `model.pth`. Raises BadSpec, with the file's name, where it is not one of ours."""
    content = load(path)
    if content is None:
        raise BadSpec(f"{path}: no such file")
    if content.get("format") != FORMAT:
        raise BadSpec(f"{path}: not a model of the cpu toolkit (format {content.get('format')!r}, expected {FORMAT!r})")
    try:
        network = Detector(Architecture.from_json(content["architecture"]))
        network.load_state_dict(content["weights"])
        info = ModelInfo.from_json(content["info"], str(path))
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, ModelInfoError) as exc:
        raise BadSpec(f"{path}: the weights and the architecture in it do not fit together: {exc}") from None
    return Model(network.eval(), info)


def save(path: Path, content: Mapping[str, Any]) -> int:
    """Write a dictionary of plain values and tensors atomically; returns its size in bytes."""
    # Through memory: torch.save to a path writes the file's name into the archive, so equal content would differ.
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    data = buffer.getvalue()
    write_bytes(path, data)
    return len(data)


def load(path: str | Path) -> dict[str, Any] | None:
    """Read what `save` wrote; None where there is no file. No code in the file is ever run.

    Raises BadSpec for a file that torch cannot read as plain values and tensors.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None
    except Exception as exc:  # torch's reader raises whatever it stumbles over in a file that is none of its own
        reason = (str(exc).splitlines() or [""])[0]
        raise BadSpec(f"{path}: not a file of the cpu toolkit, or damaged: {type(exc).__name__}: {reason}") from None
    if not isinstance(content, dict):
        raise BadSpec(f"{path}: holds a {type(content).__name__}, not a model")
    return content
