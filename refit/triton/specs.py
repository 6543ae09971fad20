"""What a release and a roll back are told, and what they report. The control key is never among it: it comes from
the environment (REFIT_SECRET_TRITON_CONTROL_KEY)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from refit.engine.record import Capability, Version
from refit.pipeline import WatchLines
from refit.specs import Spec
from refit.triton.lock import actor

ModelName = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,126}$", description="the model's name in Triton")
]
Url = Annotated[str, Field(pattern=r"^https?://[^\s/@]+(:\d+)?$", description="Triton's HTTP address")]


class ToleranceSpec(Spec):
    """How far production's answers may be from the reference, in parts of each output's largest magnitude."""

    largest: float = Field(0.05, ge=0, le=1, description="the largest difference of any value")
    mean: float = Field(0.005, ge=0, le=1, description="the mean difference")


class Target(Spec):
    """Which model, on which Triton, with which files; the servers behind the url: `refit.triton.fleet`."""

    model: ModelName
    url: Url
    repository: Annotated[str, BeforeValidator(str)] = Field(
        description="Triton's model repository: a folder, as this process sees it, or s3://bucket/prefix, gs://..."
    )
    ledger: Path = Field(description="<workspace>/<pipeline>/releases")
    timeout_seconds: float = Field(300, gt=0, le=86_400, description="for a load, and for the old version to unload")
    lock_seconds: float = Field(600, ge=0, le=86_400, description="for another release of this model to end")
    tolerance: ToleranceSpec = ToleranceSpec()


class SigningSpec(Spec):
    """How a release is signed; the private key comes from the environment (REFIT_SIGNING_KEY)."""

    public_key: str = Field(description="its public half, as PEM: the signature is held against it at once")


class ReleaseSpec(Target):
    """The spec of `python -m refit.triton release`."""

    model_path: Path = Field(
        description="the .onnx file, a .plan, or a folder with plans, one for each compute capability; beside it "
        "stand model.json, engine.json of each plan, and perhaps reference.npz"
    )
    keep_versions: int = Field(
        3, ge=1, le=1000, description="versions kept in the repository, the serving one included"
    )
    watched: bool = Field(
        False, description="a watch follows: the version before stays loaded until it ends, where it can"
    )
    pipeline: str | None = Field(None, description="null: from the stage's request.json")
    run: str | None = Field(None, description="null: from the stage's request.json")
    key: str | None = Field(None, description="the stage's key; null: from the stage's request.json")
    metrics: dict[str, float] = Field(default_factory=dict, description="what the model reached; goes into the ledger")
    approval: Path | None = Field(None, description="question.json of the stage approve; the answer: REFIT_APPROVAL")
    signing: SigningSpec | None = Field(None, description="null: not signed")
    results: Path | None = Field(None, description="results.json of the evaluate stage: more metrics")
    images: Path | list[Path] | None = Field(None, description="pictures to prove with: a folder, or files")
    reference_images: int | None = Field(
        None, ge=1, description="so many of reference.npz's samples are asked; null: all"
    )
    prove: Literal["auto", "always", "never"] = Field(
        "auto", description="serve it from a throwaway Triton first; auto: where the Triton environment is installed"
    )
    max_batch_size: int | None = Field(
        None, ge=1, le=1024, description="for a model with a free batch dim; null: a plan's own limit, 8 for ONNX"
    )
    instances: int = Field(1, ge=1, le=64, description="instances on the CPU, or on each GPU")
    kind: Literal["KIND_CPU", "KIND_GPU"] | None = Field(
        None, description="where the instances run; null: on the GPU for a plan, else on the CPU"
    )
    dynamic_batching: bool = Field(False, description="answer requests together that come at the same time")
    tensorrt: Version | None = Field(
        None, description="of the servers, for a plan; null: by Triton's version (specs/tao/containers.yaml)"
    )
    compute_capabilities: list[Capability] = Field(
        default_factory=list, description="of the servers' GPUs; each needs a plan. Empty: not known, not looked at"
    )


class CanarySpec(ReleaseSpec):
    """The spec of `python -m refit.triton canary`: what would be released, tried under another name first."""

    snapshot: Path = Field(description="whose pictures outside of the training part both models are asked")
    images_asked: int = Field(100, ge=1, le=100_000, description="so many of them")
    min_agreement: float = Field(0.7, ge=0, le=1, description="share of the objects that both must find")
    minutes: float = Field(0, ge=0, le=24 * 60, description="then clients may route requests to it for so long")
    lines: WatchLines = WatchLines()
    policy: Literal["fail", "warn"] = "fail"


class WatchSpec(Target):
    """The spec of `python -m refit.triton watch`."""

    minutes: float = Field(gt=0, le=24 * 60, description="from the swap on")
    every_seconds: float = Field(5, gt=0, le=600, description="between two looks")
    lines: WatchLines = WatchLines()
    keep_versions: int = Field(3, ge=1, le=1000, description="as in the release")
    run: str | None = Field(None, description="null: from the stage's request.json")


class ByHandSpec(Target):
    """A change that a person asks for."""

    by: str = Field("", max_length=200, description="who asks for it, for the ledger; empty: this process's user")
    reason: str = Field("", max_length=500, description="why, for the ledger")

    def asked_by(self) -> str:
        """Who and why in one line, as the ledger keeps it."""
        who = actor()
        name = self.by or f"{who['user']}@{who['host']}"
        line = f"{name}: {self.reason}" if self.reason else name
        return "".join(c if c.isprintable() else " " for c in line)


class RollbackSpec(ByHandSpec):
    """The spec of `python -m refit.triton rollback`."""

    to: int | None = Field(None, ge=1, description="the version; null: the one that served before")
    public_key: str | None = Field(
        None, description="as PEM: the version's signature must hold by it; null: signatures are not looked at"
    )


class ReconcileSpec(ByHandSpec):
    """The spec of `python -m refit.triton reconcile`."""

    mend: bool = Field(False, description="false: only say what differs")
    watch_minutes: float = Field(0, ge=0, le=24 * 60, description="so long the version before may stay loaded")
    public_key: str | None = Field(None, description="as PEM: what is mended back to must be signed by it")


class ReconcileReport(BaseModel):
    """What a comparison with the ledger found (release.json of its stage). `version`: by the ledger."""

    model_config = ConfigDict(frozen=True)

    schema_: Literal[1] = Field(1, serialization_alias="schema")
    outcome: Literal["agrees", "differs", "mended"]
    model: str
    version: int | None
    differences: list[str]


class WatchReport(BaseModel):
    """How a watch ended (release.json of its stage).

    Attributes:
        outcome: the version stays alone; or somebody else changed the model, or nothing was to be watched.
        before: the version that was kept loaded.
        requests, failed, milliseconds: of the version that was watched, the probes among them.
        why: what a reader should know, "" where all is said.
    """

    model_config = ConfigDict(frozen=True)

    schema_: Literal[1] = Field(1, serialization_alias="schema")
    outcome: Literal["stays", "superseded"]
    model: str
    version: int
    before: int | None
    sha256: str
    url: str
    requests: int
    failed: int
    milliseconds: float
    why: str

    def sentence(self) -> str:
        """The report in one line."""
        if self.outcome == "superseded":
            return f"Version {self.version} of {self.model} is not watched (any more): {self.why}"
        return (
            f"Version {self.version} of {self.model} stays: {self.failed} of {self.requests + self.failed} requests "
            f"failed, {self.milliseconds:g} ms each; version {self.before} is unloaded"
        )


class ReleaseReport(BaseModel):
    """What a change did (release.json).

    Attributes:
        servers: the addresses of the servers that were loaded and proven.
        previous: the version that served before, None for the first one.
        proven_by: where the reference's outputs come from.
        milliseconds: an inference as the client sees it, median.
        difference: the largest difference from the reference, in parts of the output's range.
        seconds: how long each part took; `swap` is from the load request to the verified inference.
        notes: what a reader should know.
    """

    model_config = ConfigDict(frozen=True)

    schema_: Literal[1] = Field(1, serialization_alias="schema")
    outcome: Literal["released", "already_serving", "rolled_back"]
    model: str
    version: int
    previous: int | None
    sha256: str
    url: str
    servers: list[str]
    pipeline: str
    run: str
    probes: int
    difference: float
    milliseconds: float
    proven_by: str
    seconds: dict[str, float]
    notes: list[str]

    def sentence(self) -> str:
        """The report in one line."""
        what = {
            "released": f"Triton serves version {self.version} of {self.model}",
            "already_serving": f"Triton serves this model already: version {self.version} of {self.model}",
            "rolled_back": f"Triton serves version {self.version} of {self.model} again",
        }[self.outcome]
        before = f" (before: {self.previous})" if self.previous not in (None, self.version) else ""
        return f"{what}{before}, {self.milliseconds:g} ms an inference"
