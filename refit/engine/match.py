"""Does a plan fit the Triton that is to serve it, and the GPU that it is to run on?

What fits is known from specs/tao/containers.yaml (Triton's version, TensorRT's) and engine.json. Asked before a release
touches anything: a plan that does not fit fails to load, and a failed load leaves a server's readiness at 400.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from refit.engine.record import EngineRecord, Version, agree
from refit.specs import Spec, read

TABLE = Path("specs/tao/containers.yaml")
Month = Annotated[str, StringConstraints(pattern=r"^\d\d\.\d\d$")]


class Misfit(ValueError):
    """A plan that the target cannot run; says what is needed and how to get it."""


class Container(Spec):
    """One month of NVIDIA's containers."""

    month: Month
    triton: Version
    tensorrt: Version | None = None


class Containers(Spec):
    """The table; `deploy` is by the tags of TAO's deploy images."""

    containers: list[Container] = Field(min_length=1)
    deploy: dict[str, Month]

    @model_validator(mode="after")
    def _known(self) -> Containers:
        for name, values in (("month", self._months()), ("triton", [c.triton for c in self.containers])):
            twice = [v for v, count in Counter(values).items() if count > 1]
            if twice:
                raise ValueError(f"containers: {name} {twice[0]} stands there twice")
        unknown = [f"{tag}: {month}" for tag, month in self.deploy.items() if month not in self._months()]
        if unknown:
            raise ValueError(f"deploy: {unknown[0]} is not among containers")
        return self

    def _months(self) -> list[str]:
        return [c.month for c in self.containers]

    def of_triton(self, version: str) -> Container | None:
        """The container with a Triton version."""
        return next((c for c in self.containers if c.triton == version), None)


def load(repository: Path) -> Containers:
    """The table of a Refit checkout or image. Raises SpecError."""
    return read(Containers, repository / TABLE)


def tensorrt_of(table: Containers, triton: str) -> str:
    """The TensorRT in a Triton release.

    Raises:
        Misfit: nobody knows; says what to do.
    """
    container = table.of_triton(triton)
    if container is None or container.tensorrt is None:
        month = f" ({container.month})" if container else ""
        raise Misfit(
            f"which TensorRT Triton {triton}{month} has is not in {TABLE}; add it there, or say tensorrt in the "
            "release (in Triton's container: dpkg -l libnvinfer10)"
        )
    return container.tensorrt


def check(engines: Sequence[EngineRecord], tensorrt: str, capabilities: Sequence[str], where: str) -> None:
    """Hold engines against a target.

    Args:
        engines: one for each kind of GPU.
        tensorrt: the target's, as far as it is known ("10.8.0").
        capabilities: compute capabilities of the target's GPUs; empty: not known, so not looked at.
        where: the target, for errors.

    Raises:
        Misfit: the first thing that does not fit.
    """
    for engine in engines:
        if not agree(engine.tensorrt, tensorrt):
            raise Misfit(
                f"{engine.plan.file} was built with TensorRT {engine.tensorrt} ({engine.builder}), and {where} has "
                f"{tensorrt}: build it with that version, in an image of the same month ({TABLE})"
            )
    by_capability = Counter(engine.gpu.compute_capability for engine in engines)
    twice = [capability for capability, count in by_capability.items() if count > 1]
    if twice:
        raise Misfit(f"{by_capability[twice[0]]} plans are for compute capability {twice[0]}; give one of them")
    for capability in capabilities:
        if capability not in by_capability:
            have = ", ".join(f"{e.gpu.compute_capability} ({e.gpu.name})" for e in engines)
            raise Misfit(
                f"{where} runs on GPUs of compute capability {capability}, and the plans are for {have}: "
                "build one on such a GPU too (resources.build_engine.gpu_type), or correct the target"
            )
