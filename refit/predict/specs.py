"""What batch inference is told. The login for a remote source is never among it: the runner hands it over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, model_validator

from refit.specs import Spec
from refit.triton.specs import ModelName, Url

Score = Annotated[float, Field(ge=0, le=1, description="0..1, not per cent")]


class PredictParams(Spec):
    """What a person chooses, whichever way the model is asked."""

    score_threshold: Score | None = Field(None, description="objects with a lower score are left out; null: model.json")
    thresholds: dict[str, Score] = Field(default_factory=dict, description="class -> threshold in place of the former")
    draw: bool = Field(False, description="also pictures with the boxes drawn")
    max_bad_images: float = Field(
        1.0, ge=0, le=1, description="share of unreadable images above which the stage fails, its results written"
    )

    def threshold(self, name: str, default: float) -> float:
        """Of a class; `default` is the model's own."""
        return self.thresholds.get(name, default if self.score_threshold is None else self.score_threshold)

    def unknown(self, classes: Sequence[str]) -> list[str]:
        """Classes of `thresholds` that the model does not have."""
        return sorted(set(self.thresholds) - set(classes))


class PredictSpec(PredictParams):
    images: str = Field(
        min_length=1, description="a folder, searched with its subfolders, or s3://, gs://, az://, https://...zip"
    )
    connection: str | None = Field(None, description="the login's name, for messages; it comes as REFIT_CONNECTION")


class TritonInferenceSpec(PredictSpec):
    """The spec of `python -m refit.predict inference`."""

    model: ModelName
    url: Url
    version: int | None = Field(None, ge=1, description="null: the one that serves when the work begins")
    batch: int | None = Field(None, ge=1, le=1024, description="images in a request; null: 4, or the model's fewer")
    in_flight: int = Field(8, ge=1, le=64, description="requests under way at once")
    patience_seconds: float = Field(120, ge=0, le=86_400, description="for a Triton that is away or overloaded")


class FileInferenceSpec(PredictSpec):
    """The spec of `python -m refit.cpu inference`: a model's own file, or a released version's."""

    model: str | None = Field(None, min_length=1, description=".onnx with its model.json beside it, or .pth")
    releases: str | None = Field(None, description="<workspace>/<pipeline>/releases, in place of model")
    name: str | None = Field(None, description="the model's name in Triton, with releases")
    version: int | None = Field(None, ge=1, description="with releases; null: the one that serves")

    @model_validator(mode="after")
    def _one(self) -> FileInferenceSpec:
        if (self.model is None) == (self.releases is None) or (self.releases is None) != (self.name is None):
            raise ValueError("name a model's file in `model`, or a release by `releases` and `name`")
        if self.model is not None and self.version is not None:
            raise ValueError("version goes with releases; a file is what it is")
        return self
