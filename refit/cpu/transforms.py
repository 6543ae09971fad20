"""Which albumentations transforms an augmentation may name, and how they are applied to an image and its boxes.

Two points of albumentations 2.0.8 decide the form of this module:
- `Compose` gives every transform the same seed, so transforms of equal probability would always act together. Here
  each transform has a seed of its own.
- `Compose` clips boxes after each transform and forgets what was cut. Here the visible share is kept over the chain.

Only geometric transforms are taken whose boxes were found to lie where their pixels are: to half a pixel, on distorted
grids to a few pixels (tests/cpu/test_augment.py paints rectangles and finds them). Not so: CoarseDropout and its kin
(boxes up to 9 px off), Morphological (boxes of several objects merge), ThinPlateSpline, PiecewiseAffine (16 px and
more), RandomGridShuffle (an object in pieces).

albumentations is imported when it is first needed: it takes seconds, `--help` should not.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import inspect
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, field_validator, model_validator

from refit.command import BadSpec
from refit.cpu.specs import ALLOWED, AugmentSpec, TransformParams
from refit.specs import did_you_mean

MIN_SIDE = 0.5
"""Pixels; a box with a shorter side after a transform shows nothing that could be learnt."""

# fmt: off
GEOMETRIC = frozenset({
    "Affine", "AtLeastOneBBoxRandomCrop", "BBoxSafeRandomCrop", "CenterCrop", "Crop", "CropAndPad", "D4",
    "ElasticTransform", "GridDistortion", "GridElasticDeform", "HorizontalFlip", "LongestMaxSize", "NoOp",
    "OpticalDistortion", "Pad", "PadIfNeeded", "Perspective", "RandomCrop", "RandomCropFromBorders",
    "RandomResizedCrop", "RandomRotate90", "RandomScale", "RandomSizedBBoxSafeCrop", "RandomSizedCrop",
    "Resize", "Rotate", "SafeRotate", "SmallestMaxSize", "SquareSymmetry", "Transpose", "VerticalFlip",
})
# fmt: on
_NOT_IMAGES = frozenset({"FromFloat", "Normalize", "ToFloat"})  # give numbers that cannot be stored as JPEG or PNG
_GIVEN = frozenset({"image", "bboxes"})  # what a transform may ask for besides its arguments


class Transform(TransformParams):
    """A transform whose class and arguments albumentations knows."""

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        known = allowed()
        if name in known or ":" in name:
            return name
        if hasattr(_library(), name):
            raise ValueError(f"{name} is not offered: it needs more than an image, or boxes do not follow it exactly")
        hint = did_you_mean(name, list(known)) or "; see the transforms of albumentations 2.0.8"
        raise ValueError(f"'{name}' is no transform of albumentations{hint}")

    @model_validator(mode="after")
    def _arguments(self) -> Transform:
        build(self)
        return self


class CheckedAugmentSpec(AugmentSpec):
    """The spec of `augment` with its transforms tried out, so that a wrong one is an error with file and line."""

    # A list is invariant for mypy; each Transform is a TransformParams.
    transforms: list[Transform] = Field(  # type: ignore[assignment]
        default_factory=list, description="transforms of albumentations, after those of the presets"
    )


@functools.cache
def allowed() -> tuple[str, ...]:
    """Names of all transforms that may be used, sorted."""
    library = _library()
    pixels = {
        name
        for name, member in vars(library).items()
        if inspect.isclass(member)
        and issubclass(member, library.ImageOnlyTransform)
        and member is not library.ImageOnlyTransform
    }
    return tuple(sorted((pixels - _NOT_IMAGES) | GEOMETRIC))


def own(params: TransformParams) -> Any:
    """The class of one's own transform. Raises ValueError: not allowed here, not there, or of another version."""
    if why := params.refusal(os.environ.get(ALLOWED, "")):
        raise ValueError(why)
    path, _, attribute = params.name.partition(":")
    try:
        cls = getattr(importlib.import_module(path), attribute, None)
    except Exception as exc:  # code that is not ours: anything may happen in it
        raise ValueError(f"{params.name} cannot be imported: {type(exc).__name__}: {_first_line(exc)}") from exc
    library = _library()
    if not (inspect.isclass(cls) and issubclass(cls, library.ImageOnlyTransform | library.DualTransform)):
        raise ValueError(f"{params.name} is no ImageOnlyTransform or DualTransform of albumentations")
    there = _version(path.partition(".")[0])
    if there != params.version:
        raise ValueError(
            f"{params.name}: version {params.version} is wanted, and {params.package} {there} is installed"
        )
    return cls


def _version(package: str) -> str:
    """What the package says of itself, else its distribution."""
    said = getattr(sys.modules[package], "__version__", None)
    if said is not None:
        return str(said)
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(f"{package} has no version; give it a __version__") from None


def build(params: TransformParams) -> Any:
    """A transform. Raises ValueError that says which argument is wrong and how."""
    cls = own(params) if params.package else getattr(_library(), params.name)
    names = [n for n in inspect.signature(cls.__init__).parameters if n not in {"self", "p"}]
    for name in params.args:
        if name not in names:
            hint = did_you_mean(name, names) or f"; it takes: {', '.join(names) or 'none'}"
            raise ValueError(f"{params.name} has no argument '{name}'{hint}")
    # YAML has no tuples; albumentations asks for them where it means a range.
    args: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in params.args.items()}
    if "InitSchema" in vars(cls):
        args["strict"] = True  # else some bad values are replaced by the defaults, with no more than a warning
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # hints of the library for people who write Python
            transform = cls(p=params.p, **args)
    except (ValueError, TypeError) as exc:
        raise ValueError(f"{params.name}: {_first_line(exc)}") from None
    except Exception as exc:
        if not params.package:
            raise
        raise ValueError(f"{params.name}: {type(exc).__name__}: {_first_line(exc)}") from exc
    more = set(transform.targets_as_params) - _GIVEN
    if more:
        raise ValueError(f"{params.name} is not offered: it needs {', '.join(sorted(more))}")
    return transform


@dataclass(frozen=True)
class Augmented:
    """What became of an image.

    Attributes:
        image: RGB uint8 [h, w, 3]; the size may have changed.
        boxes: float64 [m, 4], x1 y1 x2 y2 in pixels of the new image, inside it.
        kept: int64 [m], the index of each box among those that went in.
        visible: float64 [n], the share of each box that went in which is left, over the whole chain.
        applied: names of the transforms that acted; the others were not drawn.
    """

    image: NDArray[np.uint8]
    boxes: NDArray[np.float64]
    kept: NDArray[np.int64]
    visible: NDArray[np.float64]
    applied: tuple[str, ...]


class Chain:
    """Transforms in a row. Holds random state: one thread at a time.

    Args:
        transforms: checked ones.
        min_visibility: a box is dropped when the share of it that is left in the image, over the whole chain, is less.
    """

    def __init__(self, transforms: Sequence[TransformParams], min_visibility: float) -> None:
        self._transforms = [(t.name, build(t)) for t in transforms]
        self._min_visibility = min_visibility

    def __call__(self, image: NDArray[np.uint8], boxes: NDArray[np.floating], seed: str) -> Augmented:
        """Apply the chain; equal arguments give equal results.

        Args:
            image: RGB uint8 [h, w, 3].
            boxes: [n, 4] in pixels.
            seed: any text; each transform's seed is derived from it and its place.

        Raises:
            BadSpec: a transform that does not fit this image, e.g. a crop larger than it is.
        """
        # Rows of x1 y1 x2 y2 as shares of the image, then the index: further columns travel with the boxes.
        rows = np.column_stack([boxes / _scale(image), np.arange(len(boxes))]).astype(np.float64)
        rows[:, :4] = rows[:, :4].clip(0, 1)
        visible = np.ones(len(boxes))
        applied = []
        for place, (name, transform) in enumerate(self._transforms):
            transform.set_random_seed(int.from_bytes(sha256(f"{seed}/{place}".encode()).digest()[:4], "big"))
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    result = transform(image=image, bboxes=rows)
            except (MemoryError, OSError):
                raise
            except Exception as exc:  # the library has no common base for its errors
                height, width = image.shape[:2]
                what = f"transforms: {name} fails on an image of {width}x{height} pixels"
                raise BadSpec(f"{what}: {_first_line(exc)}") from exc
            if transform.get_applied_params():
                applied.append(name)
            image = _picture(name, transform, image, np.asarray(result["image"]))
            there = rows[:, 4].astype(np.int64)
            rows = np.asarray(result["bboxes"], dtype=np.float64).reshape(-1, 5)
            visible[np.setdiff1d(there, rows[:, 4].astype(np.int64))] = 0  # some transforms drop what left the picture
            rows = self._inside(rows, image, visible)
        kept = rows[:, 4].astype(np.int64)
        return Augmented(image, rows[:, :4] * _scale(image), kept, visible, tuple(applied))

    def _inside(
        self, rows: NDArray[np.float64], image: NDArray[np.uint8], visible: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Clip boxes to the image, note in `visible` what is left of each, take out those with too little."""
        clipped = rows.copy()
        clipped[:, :4] = rows[:, :4].clip(0, 1)
        before, after = _area(rows), _area(clipped)
        indices = rows[:, 4].astype(np.int64)
        visible[indices] *= np.divide(after, before, out=np.zeros_like(after), where=before > 0)
        sides = (clipped[:, 2:4] - clipped[:, :2]) * _scale(image)[:2]
        # A box that lost nothing must pass `min_visibility: 1`, whatever the last digit of the division says.
        keep = (visible[indices] >= self._min_visibility - 1e-9) & (sides >= MIN_SIDE).all(axis=1)
        return clipped[keep]


def _picture(name: str, transform: Any, before: NDArray[np.uint8], after: NDArray[Any]) -> NDArray[np.uint8]:
    """What a transform made, where it is what the next one can take."""
    if after.dtype != np.uint8 or after.shape[2:] != before.shape[2:]:
        raise BadSpec(f"transforms: {name} gives {after.dtype} of {after.shape}, not 8 bits of 3 channels")
    if "bboxes" not in transform.available_keys and after.shape != before.shape:
        raise BadSpec(f"transforms: {name} changes the size and leaves the boxes; make it a DualTransform")
    return after


def _scale(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    height, width = image.shape[:2]
    return np.array([width, height, width, height], dtype=np.float64)


def _area(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    area: NDArray[np.float64] = (rows[:, 2:4] - rows[:, :2]).clip(0).prod(axis=1)
    return area


def _first_line(exc: Exception) -> str:
    """pydantic's report of several lines as one; other messages as they are."""
    cause = exc if isinstance(exc, ValidationError) else exc.__cause__
    if isinstance(cause, ValidationError):
        told = ((".".join(map(str, e["loc"])), e["msg"].removeprefix("Value error, ")) for e in cause.errors())
        return "; ".join(f"{where}: {what}".lstrip(": ") for where, what in told)
    return str(exc).partition("\n")[0]


def _library() -> Any:
    # At import it asks a package index for a newer version of itself, unless told not to.
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations

    return albumentations
