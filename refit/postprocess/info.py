"""`model.json`, the file beside every exported model: how to feed it and how to read its answer.

The form is docs/contracts.md, "Model sidecar". Evaluate, inference and the Triton client read it, so all three feed and
decode a model in the same way. Standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

FILE_NAME = "model.json"
SCHEMA = 1
LATER = {"later": True}  # on fields that schema 1 did not begin with: written only where they are not the default
DEFAULT_CLASS = "default"  # in `ModelInfo.clustering`, as in TAO's specs: for classes that are not named


class ModelInfoError(ValueError):
    """A `model.json` that cannot be used; the message names file, key and value."""


@dataclass(frozen=True)
class InputInfo:
    """The model's input tensor, float32 (as every network of TAO takes it): (pixel * scale - mean) / std.

    What each of TAO's networks wants here is in docs/contracts.md, "Model sidecar".

    Attributes:
        name: of the tensor.
        width, height: pixels.
        channels: 3 for colour, 1 for grey (the luma of the colour image).
        channel_order: of a colour input.
        scale: pixel values 0..255 are multiplied by it.
        resize: "letterbox" keeps the aspect and leaves a margin; "stretch" fills the input.
        mean, std: a value for each channel, in the order of the channels; empty for 0 and 1.
        place: where a letterbox has its picture, "corner" for the top left.
        fill: the margin's colour: "black", "imagenet" (RGB 124, 116, 104), or "mean", the picture's own.
        interpolation: "area" averages where the picture shrinks; "linear" is OpenCV's, which does not; "bilinear" and
            "lanczos" are Pillow's, whose filter widens as the picture shrinks.
    """

    name: str
    width: int
    height: int
    channels: int = 3
    channel_order: Literal["rgb", "bgr"] = "rgb"
    scale: float = 1 / 255
    layout: Literal["nchw", "nhwc"] = "nchw"
    resize: Literal["letterbox", "stretch"] = "letterbox"
    mean: tuple[float, ...] = field(default=(), metadata=LATER)
    std: tuple[float, ...] = field(default=(), metadata=LATER)
    place: Literal["corner", "centre"] = field(default="corner", metadata=LATER)
    fill: Literal["black", "imagenet", "mean"] = field(default="black", metadata=LATER)
    interpolation: Literal["area", "linear", "bilinear", "lanczos"] = field(default="area", metadata=LATER)

    @property
    def shape(self) -> tuple[int, int, int]:
        """The tensor's, without the batch."""
        if self.layout == "nhwc":
            return self.height, self.width, self.channels
        return self.channels, self.height, self.width


@dataclass(frozen=True)
class Postprocess:
    """From raw outputs to a list of objects.

    Attributes:
        score_threshold: objects with a lower score are left out.
        nms_iou: of two boxes of one class that overlap more, only the one with the higher score stays. Only the plain
            NMS of decoder "detectnet_v2" reads it: other networks suppress by themselves.
        max_detections: objects kept for an image, those with the highest scores.
    """

    score_threshold: float = 0.3
    nms_iou: float = 0.5
    max_detections: int = 100


@dataclass(frozen=True)
class Clustering:
    """How TAO joins the cells of one class of DetectNet_v2: clustering_config of its postprocessing_config.

    Names and defaults are TAO's: a default is what TAO does where the spec is silent or says 0
    (tao_deploy's cv/detectnet_v2/postprocessor.py, proto/postprocessing_config.proto).

    Attributes:
        algorithm: clustering_algorithm; "hybrid" is DBSCAN, and then NMS over the cells of what DBSCAN keeps.
        coverage_threshold: only cells with more coverage take part.
        minimum_bounding_box_height: input pixels; DBSCAN's boxes that are not higher are left out.
        dbscan_eps: boxes with 1 - IoU up to this are neighbours.
        dbscan_min_samples: the sum of coverage that a cluster's core needs. The field of TAO's spec is a whole number,
            and TAO takes 1 for 0.
        dbscan_confidence_threshold: DBSCAN's boxes with a smaller sum of coverage are left out.
        nms_iou_threshold, nms_confidence_threshold: of NMS.
    """

    algorithm: Literal["dbscan", "nms", "hybrid"] = "dbscan"
    coverage_threshold: float = 0.0
    minimum_bounding_box_height: float = 0.0
    dbscan_eps: float = 0.0
    dbscan_min_samples: float = 1.0
    dbscan_confidence_threshold: float = 0.0
    nms_iou_threshold: float = 0.3
    nms_confidence_threshold: float = 0.1


@dataclass(frozen=True)
class ModelInfo:
    """A model as its users see it.

    Attributes:
        decoder: who reads the outputs (`refit.postprocess.decoder_for`).
        classes: names, in the order of the outputs.
        outputs: the role of an output ("coverage", "bbox") -> the tensor's name.
        stride, bbox_norm, offset: of the DetectNet_v2 grid, in input pixels (docs/contracts.md); decoders without a
            grid leave them alone.
        class_ids: the number that the network gives each of `classes`, where it numbers them (every decoder but
            "detectnet_v2"); empty for 0, 1, 2. Objects with any other number are background.
        clustering: class name, or "default", -> how DetectNet_v2's cells are joined; empty for plain NMS.
    """

    decoder: str
    classes: tuple[str, ...]
    input: InputInfo
    outputs: Mapping[str, str]
    stride: int = 16
    bbox_norm: float = 35.0
    offset: float = 0.5
    postprocess: Postprocess = field(default_factory=Postprocess)
    class_ids: tuple[int, ...] = field(default=(), metadata=LATER)
    clustering: Mapping[str, Clustering] = field(default_factory=dict, metadata=LATER)

    def clustering_of(self, cls: int) -> Clustering:
        """How the cells of a class are joined."""
        name = self.classes[cls]
        return self.clustering[name if name in self.clustering else DEFAULT_CLASS]

    def to_json(self) -> dict[str, Any]:
        """The content of `model.json`."""
        return {"schema": SCHEMA, **_plain(self)}

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


def _plain(value: Any) -> Any:
    """Plain JSON; later fields that have their default are left out, so that a description's text stays what it was."""
    if is_dataclass(value):
        kept = [f for f in fields(value) if not (f.metadata == LATER and getattr(value, f.name) == _default(f))]
        return {f.name: _plain(getattr(value, f.name)) for f in kept}
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _default(later: Field[Any]) -> Any:
    return later.default if later.default is not MISSING else {}


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
    if is_dataclass(kind):
        return _read(cast("type[Any]", kind), value, source, at)
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        if value not in inner:
            raise ModelInfoError(f"{source}: {at} is {value!r}; use {' or '.join(map(repr, inner))}")
        return value
    if origin is tuple and isinstance(value, list):
        return tuple(_value(inner[0], v, source, f"{at}[{i}]") for i, v in enumerate(value))
    if origin is Mapping and isinstance(value, dict):
        return {name: _value(inner[1], v, source, _join(at, name)) for name, v in value.items()}
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind is str and isinstance(value, str) and value:
        return value
    raise ModelInfoError(f"{source}: {at} is {value!r}, which is not {_describe(kind)}")


def _check(info: ModelInfo, source: str) -> None:
    entry, after, classes = info.input, info.postprocess, len(info.classes)
    numbers, channels = len(info.class_ids), entry.channels
    checks: list[tuple[str, Any, bool, str]] = [
        ("classes", list(info.classes), classes > 0, "a list of names"),
        ("input.width", entry.width, entry.width > 0, "above 0"),
        ("input.height", entry.height, entry.height > 0, "above 0"),
        ("input.channels", channels, channels in (1, 3), "1 or 3"),
        ("input.scale", entry.scale, entry.scale > 0, "above 0"),
        ("input.mean", list(entry.mean), len(entry.mean) in (0, channels), f"a list of {channels} numbers, or empty"),
        ("input.std", list(entry.std), len(entry.std) in (0, channels), f"a list of {channels} numbers, or empty"),
        ("input.std", list(entry.std), all(v > 0 for v in entry.std), "above 0"),
        ("input.fill", entry.fill, entry.fill != "imagenet" or channels == 3, "black or mean for a grey input"),
        ("stride", info.stride, info.stride > 0, "above 0"),
        ("bbox_norm", info.bbox_norm, info.bbox_norm > 0, "above 0"),
        ("class_ids", list(info.class_ids), numbers in (0, classes), f"a number for each of {classes} classes"),
        ("class_ids", list(info.class_ids), numbers == len(set(info.class_ids)), "without a number that stands twice"),
        ("class_ids", list(info.class_ids), all(i >= 0 for i in info.class_ids), "0 or above"),
        ("postprocess.score_threshold", after.score_threshold, 0 <= after.score_threshold <= 1, "in 0..1"),
        ("postprocess.nms_iou", after.nms_iou, 0 <= after.nms_iou <= 1, "in 0..1"),
        ("postprocess.max_detections", after.max_detections, after.max_detections > 0, "above 0"),
    ]
    for name, c in info.clustering.items():
        at = f"clustering.{name}"
        checks += [
            (f"{at}.{key}", getattr(c, key), 0 <= getattr(c, key) <= 1, "in 0..1")
            for key in ("coverage_threshold", "dbscan_eps", "nms_iou_threshold", "nms_confidence_threshold")
        ]
        checks.append((f"{at}.dbscan_min_samples", c.dbscan_min_samples, c.dbscan_min_samples > 0, "above 0"))
    for key, value, good, need in checks:
        if not good:
            raise ModelInfoError(f"{source}: {key} is {value!r}; it must be {need}")
    if len(set(info.classes)) != classes:
        raise ModelInfoError(f"{source}: classes: a name stands there twice")
    _check_names(info, source)


def _check_names(info: ModelInfo, source: str) -> None:
    """Each class has its clustering, and no clustering is nobody's."""
    for name in info.clustering:
        if name not in (*info.classes, DEFAULT_CLASS):
            raise ModelInfoError(f"{source}: clustering.{name} is of no class; classes: {', '.join(info.classes)}")
    for name in info.classes if info.clustering else ():
        if name not in info.clustering and DEFAULT_CLASS not in info.clustering:
            raise ModelInfoError(f"{source}: clustering.{name} is missing; give it, or {DEFAULT_CLASS!r} for the rest")


def _join(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name


def _describe(kind: Any) -> str:
    if get_origin(kind) is tuple:
        return "a list"
    if get_origin(kind) is Mapping:
        return "an object"
    return {int: "a whole number", float: "a number", str: "a word"}[kind]
