"""What `prepare_proof` is told."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from refit.specs import Spec


class PrepareSpec(Spec):
    """The spec of `python -m refit.prove prepare`."""

    model: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,126}$", description="its name in Triton")
    model_path: Path = Field(description="what a release would take: an .onnx, a .plan, or a folder with plans")
    onnx: Path | None = Field(None, description="the FP32 model before it, asked as well; null: none to be served")
    snapshot: Path
    split: str = Field("val", description="of the snapshot")
    images: int | None = Field(64, ge=1, description="at most so many of the split, spread over it; null: all")
    champion: Path | None = Field(
        None, description="files of the version that serves, asked about the same pictures; null: not asked"
    )
    doubted: int = Field(12, ge=0, le=1000, description="of them are fed in the other ways, too, to name a mistake")
