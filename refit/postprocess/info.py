"""`model.json`, the file beside every exported model: how to feed it and how to read its answer.

The form is docs/contracts.md, "Model sidecar". Evaluate, inference and the Triton client read it, so all three feed and
decode a model in the same way. Standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

FILE_NAME = "model.json"
SCHEMA = 1


class ModelInfoError(ValueError):
    """A `model.json` that cannot be used; the message names file, key and value."""


@dataclass(frozen=True)
class InputInfo:
    """The model's input tensor.

    Attributes:
        name: of the tensor.
        width, height: pixels.
        channels: 3 for colour, 1 for grey (the luma of the colour image).
        scale: pixel values 0..255 are multiplied by it.
        resize: "letterbox" keeps the aspect: the picture at the top left, the rest black; "stretch" fills the input.
    """

    name: str
    width: int
    height: int
    channels: int = 3
    channel_order: Literal["rgb"] = "rgb"
    scale: float = 1 / 255
    layout: Literal["nchw"] = "nchw"
    resize: Literal["letterbox", "stretch"] = "letterbox"


@dataclass(frozen=True)
class Postprocess:
    """From raw outputs to a list of objects.

    Attributes:
        score_threshold: objects with a lower score are left out.
        nms_iou: of two boxes of one class that overlap more, only the one with the higher score stays.
        max_detections: objects kept for an image, those with the highest scores.
    """

    score_threshold: float = 0.3
    nms_iou: float = 0.5
    max_detections: int = 100


@dataclass(frozen=True)
class ModelInfo:
    """A model as its users see it.

    Attributes:
        decoder: who reads the outputs (`refit.postprocess.decoder_for`).
        classes: names, in the order of the outputs.
        outputs: the role of an output ("coverage", "bbox") -> the tensor's name.
        stride, bbox_norm, offset: of the DetectNet_v2 grid, in input pixels (docs/contracts.md); decoders without a
            grid leave them alone.
    """

    decoder: str
    classes: tuple[str, ...]
    input: InputInfo
    outputs: Mapping[str, str]
    stride: int = 16
    bbox_norm: float = 35.0
    offset: float = 0.5
    postprocess: Postprocess = field(default_factory=Postprocess)

    def to_json(self) -> dict[str, Any]:
        """The content of `model.json`."""
        return {"schema": SCHEMA, **asdict(self), "classes": list(self.classes), "outputs": dict(self.outputs)}

    def text(self) -> str:
        """`model.json` as text."""
        return json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n"

    @staticmethod
    def from_json(data: Any, source: str = FILE_NAME) -> ModelInfo:
        """Check and read the content of a `model.json`; `source` is how errors call it. Raises ModelInfoError."""
        if not isinstance(data, dict):
            raise ModelInfoError(f"{source}: must be a JSON object")
        data = dict(data)
        if data.pop("schema", None) != SCHEMA:
            raise ModelInfoError(f"{source}: schema must be {SCHEMA}; export the model again")
        info: ModelInfo = _read(ModelInfo, data, source, "")
        _check(info, source)
        return info

    @staticmethod
    def read(path: str | Path) -> ModelInfo:
        """Read a `model.json`. Raises ModelInfoError."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as exc:
            raise ModelInfoError(f"{path}: {exc.strerror}; it must lie beside the exported model") from None
        except ValueError as exc:
            raise ModelInfoError(f"{path}: not JSON: {exc}") from None
        return ModelInfo.from_json(data, str(path))


def _read(kind: type[Any], data: Any, source: str, at: str) -> Any:
    """A dataclass from plain JSON: unknown and missing keys and wrong types are refused."""
    if not isinstance(data, dict):
        raise ModelInfoError(f"{source}: {at or 'the file'} must be an object")
    hints = get_type_hints(kind)
    known = {f.name: f for f in fields(kind)}
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise ModelInfoError(f"{source}: unknown key {_join(at, unknown[0])}; known here: {', '.join(known)}")
    values: dict[str, Any] = {}
    for name, value in data.items():
        values[name] = _value(hints[name], value, source, _join(at, name))
    try:
        return kind(**values)
    except TypeError:
        missing = [n for n in known if n not in values]
        raise ModelInfoError(f"{source}: {_join(at, missing[0])} is missing") from None


def _value(kind: Any, value: Any, source: str, at: str) -> Any:
    if isinstance(kind, type) and kind in (InputInfo, Postprocess):
        return _read(kind, value, source, at)
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ModelInfoError(f"{source}: {at} is {value!r}; use {' or '.join(map(repr, get_args(kind)))}")
        return value
    good: Any
    if kind is float:
        good = isinstance(value, int | float) and not isinstance(value, bool)
        value = float(value) if good else value
    elif kind is int:
        good = isinstance(value, int) and not isinstance(value, bool)
    elif kind is str:
        good = isinstance(value, str) and bool(value)
    elif get_origin(kind) is tuple:
        good = isinstance(value, list) and bool(value) and all(isinstance(v, str) and v for v in value)
        value = tuple(value) if good else value
    else:
        good = isinstance(value, dict) and all(isinstance(v, str) and v for v in value.values())
    if not good:
        raise ModelInfoError(f"{source}: {at} is {value!r}, which is not {_describe(kind)}")
    return value


def _check(info: ModelInfo, source: str) -> None:
    entry, after = info.input, info.postprocess
    checks: list[tuple[str, float, bool, str]] = [
        ("input.width", entry.width, entry.width > 0, "above 0"),
        ("input.height", entry.height, entry.height > 0, "above 0"),
        ("input.channels", entry.channels, entry.channels in (1, 3), "1 or 3"),
        ("input.scale", entry.scale, entry.scale > 0, "above 0"),
        ("stride", info.stride, info.stride > 0, "above 0"),
        ("bbox_norm", info.bbox_norm, info.bbox_norm > 0, "above 0"),
        ("postprocess.score_threshold", after.score_threshold, 0 <= after.score_threshold <= 1, "in 0..1"),
        ("postprocess.nms_iou", after.nms_iou, 0 <= after.nms_iou <= 1, "in 0..1"),
        ("postprocess.max_detections", after.max_detections, after.max_detections > 0, "above 0"),
    ]
    for key, value, good, need in checks:
        if not good:
            raise ModelInfoError(f"{source}: {key} is {value!r}; it must be {need}")
    if len(set(info.classes)) != len(info.classes):
        raise ModelInfoError(f"{source}: classes: a name stands there twice")


def _join(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name


def _describe(kind: Any) -> str:
    if get_origin(kind) is tuple:
        return "a list of names"
    if get_origin(kind) is not None or isinstance(kind, UnionType):
        return "an object of names"
    return {int: "a whole number", float: "a number", str: "a word"}.get(kind, str(kind))
