"""The cluster profile: one file in specs/clusters/ says what a place offers that runs stages.

This version knows the local runtime (subprocesses on one machine); pods come with the Kubernetes runtime.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from refit.config import Settings
from refit.pipeline import TritonTarget
from refit.specs import Problem, Spec, SpecError, did_you_mean, read


class ProfileTriton(TritonTarget):
    """The Triton that this place releases to."""

    control_key_secret: str | None = Field(
        None,
        pattern=r"^[A-Z][A-Z0-9_]*$",
        description="name of the secret that holds the key of Triton's restricted model-control API; null: none needed",
    )


class Profile(Spec):
    """A place that runs stages."""

    description: str = ""
    runtime: Literal["local"] = "local"
    env: dict[str, str] = Field(
        default_factory=dict, description="variables for every stage command, e.g. CUDA_VISIBLE_DEVICES; no secrets"
    )
    triton: ProfileTriton = Field(description="relative repository paths lie below REFIT_HOME")


def load(name: str, settings: Settings) -> Profile:
    """Read a profile by name and let the environment's Triton win over the file's. Raises SpecError."""
    path = settings.clusters / f"{name}.yaml"
    if not path.exists():
        names = [p.stem for p in settings.clusters.glob("*.yaml")]
        raise SpecError([Problem(str(path), 0, "", f"no such cluster profile{did_you_mean(name, names)}")])
    profile = read(Profile, path)
    # An absolute path in the profile stays as it is: joined to a folder, it replaces it.
    repository = settings.model_repository or settings.home / profile.triton.repository
    update = {"url": settings.triton_url or profile.triton.url, "repository": str(repository)}
    return profile.model_copy(update={"triton": profile.triton.model_copy(update=update)})
