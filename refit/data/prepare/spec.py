"""The spec of `python -m refit.data prepare`. Imports no numpy: stages are planned with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from refit.specs import Spec

Form = Literal["kitti", "coco"]
Byte = Annotated[int, Field(ge=0, le=255)]
COPIES = "copies.txt"
OWN_NAMES = frozenset({"annotations"})
"""Folders of the output that no split can have as its name."""


class Resize(Spec):
    """Every image at one size, for networks that take no other; the boxes follow.

    With `keep_aspect` an image is scaled until it fits (`width` and `height` equal: its longer side) and `fill` takes
    the rest. Without `keep_aspect` it is stretched.
    """

    width: int = Field(ge=16, le=8192, description="pixels")
    height: int = Field(ge=16, le=8192, description="pixels")
    keep_aspect: bool = Field(True, description="false: stretch")
    pad: bool = Field(True, description="with keep_aspect: filled up to width and height; false: to multiple_of only")
    multiple_of: int = Field(1, ge=1, le=1024, description="sides of the result, pixels: the stride of the network")
    place: Literal["corner", "centre"] = Field("corner", description="of the picture: the top left corner")
    fill: Literal["black", "imagenet", "mean"] | tuple[Byte, Byte, Byte] = Field(
        "black", description="colour around the picture, RGB; imagenet: 124, 116, 104; mean: the picture's own"
    )

    @model_validator(mode="after")
    def _multiples(self) -> Resize:
        for name in ("width", "height") if self.pad or not self.keep_aspect else ():
            value, step = getattr(self, name), self.multiple_of
            if value % step:
                raise ValueError(f"{name} {value} is no multiple of multiple_of {step}; use {value + -value % step}")
        return self


class CalibrateSpec(Spec):
    """Which images INT8 calibration reads: TAO takes whole batches only."""

    prepared: Path = Field(description="what prepare wrote")
    images: int = Field(ge=1, le=100_000, description="of the train split; a multiple of batch_size")
    batch_size: int = Field(1, ge=1, le=1024)
    seed: int = Field(7, ge=0, le=2**31 - 1, description="another seed, other images")

    @model_validator(mode="after")
    def _whole(self) -> CalibrateSpec:
        if rest := self.images % self.batch_size:
            up = self.images + self.batch_size - rest
            raise ValueError(
                f"{self.images} images are no whole number of batches of {self.batch_size}: TAO leaves {rest} out; "
                f"say {up}" + (f" or {self.images - rest}" if self.images > rest else "")
            )
        return self


class PrepareSpec(Spec):
    snapshot: Path = Field(description="the run's snapshot (docs/contracts.md)")
    form: Form = Field(description="kitti: detectnet_v2, faster_rcnn, ssd, yolo_v4; coco: efficientdet_tf2, the DETRs")
    first_id: Literal[0, 1] = Field(
        1, description="coco: the first category's id. 0: rtdetr; 1: efficientdet_tf2, dino, deformable_detr"
    )
    names: dict[str, str] = Field(
        default_factory=dict, description="class -> its name in TAO's files, where its own cannot stand there"
    )
    convert: Literal["png", "jpg"] | None = Field(None, description="make every image of this kind; png loses nothing")
    channels: Literal[1, 3] | None = Field(None, description="1: grayscale (the luma); 3: colour; null: as they are")
    resize: Resize | None = None
