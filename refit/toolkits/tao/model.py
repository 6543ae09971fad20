"""The pipeline file of the tao toolkit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationError, model_validator

from refit.cpu.specs import AugmentParams as Copies
from refit.pipeline import Gates, OffOr, Pipeline, Smoke
from refit.specs import Key
from refit.tao import networks
from refit.tao.networks import Network
from refit.tao.params import NetworkParams, Stages, TrainParams
from refit.toolkits.tao import check


class TaoStages(Stages):
    @model_validator(mode="before")
    @classmethod
    def _retrain_like_train(cls, data: Any) -> Any:
        """A pruned model is retrained unless that is refused; what `retrain` does not name is as in `train`."""
        if not isinstance(data, dict) or data.get("prune") in (None, False):
            return data
        own, train = data.get("retrain"), data.get("train") or {}
        if own is False:
            return data
        own = {} if own is None or own is True else own
        if not isinstance(own, dict) or not isinstance(train, dict):
            return data
        try:
            TrainParams.model_validate(train)
        except ValidationError:  # it is reported where it stands, not in `retrain` as well
            train = {}
        train = {name: value for name, value in train.items() if name != "start_from"}
        return {**data, "retrain": {**train, **own}}


class TaoGates(Gates):
    smoke: Annotated[Smoke | None, OffOr(Smoke())] = Field(
        Smoke(), description="false: what would break at the end of a training of hours breaks there"
    )


class TaoPipeline(Pipeline):
    instead: ClassVar[Mapping[str, str]] = {
        "edge": "edge bundles are for toolkit: cpu; the stage `package` makes a TAO network's DeepStream folder"
    }
    toolkit: Literal["tao"]
    runtime: Literal["local", "kubernetes"] = "kubernetes"
    network: NetworkParams
    stages: TaoStages = TaoStages()
    gates: TaoGates = TaoGates()

    @property
    def facts(self) -> Network:
        return networks.load(self.network.name)

    @property
    def augmentation(self) -> tuple[str, Copies] | None:
        return ("albumentations", self.stages.albumentations) if self.stages.albumentations else None

    def check(self) -> Iterable[tuple[Key, str]]:
        yield from super().check()
        yield from check.faults(self)
