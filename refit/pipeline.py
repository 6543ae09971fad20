"""The pipeline file: one YAML file in specs/pipelines/ describes one model from data to release.

`load` gives a validated, frozen object; every fault is reported with file, line, key and advice (SpecError).
The blocks `network` and `stages` belong to the toolkit (`refit.toolkits`), all others are here.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler, PrivateAttr, field_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from refit.config import Settings
from refit.data.settings import Dataset
from refit.notify import Notify
from refit.publish.place import FOLDER as PUBLISHED
from refit.specs import Document, Key, Problem, Spec, SpecError, did_you_mean, near_file, read_document
from refit.specs import load as load_spec
from refit.track import Tracking

if TYPE_CHECKING:
    from refit.cpu.specs import AugmentParams

NAME = re.compile(r"^[a-z][a-z0-9_-]{0,62}$")
# minute hour day-of-month month day-of-week, or a preset; Airflow itself judges the details.
CRON = re.compile(r"^(@(hourly|daily|weekly|monthly|yearly)|\S+( +\S+){4})$")


@dataclass(frozen=True)
class OffOr:
    """Marks a block that `false` leaves out, and that `true` or an empty value (`prune:`) turns on with its defaults.

    Use as `Annotated[Model | None, OffOr(Model())]`.
    """

    default: Spec

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._read, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        block = handler(schema)
        return {"anyOf": [*block.get("anyOf", [block]), {"type": "boolean"}]}

    def _read(self, value: Any) -> Any:
        if value is False:
            return None
        return self.default.model_dump(exclude_unset=True) if value is None or value is True else value

    def __hash__(self) -> int:
        return id(self)


Policy = Literal["fail", "warn", "ask"]
_MOST_SPEC = 1 << 20  # bytes of a spec file
POLICY = "warn: the verdict is shown, the run goes on; ask: it goes on, and a person decides before the release"


class QualityGate(Spec):
    """The challenger against a floor, and what pruning and INT8 may cost."""

    metric: Literal["mAP50", "mAP"] = Field("mAP50", description="mAP@0.5, or the mean over IoU .5 to .95")
    floor: float | None = Field(
        None,
        ge=0,
        le=1,
        description="the least that the trained and the INT8 model must reach; null: more than nothing",
    )
    max_drop_pruned: float = Field(0.02, ge=0, le=1, description="most that pruning and retraining may lose")
    max_drop_quantized: float = Field(
        0.01, ge=0, le=1, description="most that INT8 may lose against the model before it"
    )
    max_drop_class: float | None = Field(
        0.05,
        ge=0,
        le=1,
        description="most that one class or slice may lose, as far as the images can show, while the whole did not; "
        "null: it is told, and the run goes on",
    )
    slices: list[Literal["size", "group", "tag"]] = Field(
        ["size", "group", "tag"],
        description="looked at beside the classes: small, medium and large objects, the data's groups, its tags",
    )
    policy: Policy = Field("fail", description=POLICY)


class ChampionGate(Spec):
    """The challenger against the version that serves, both evaluated now, on the same images with the same limits."""

    margin: float = Field(0.01, ge=0, le=1, description="so much mAP it may be worse: two trainings are never equal")
    policy: Policy = Field(
        "fail",
        description="of a challenger that is worse, as far as the images can show; warn: it is released; "
        "ask: a person decides",
    )


class ParityGate(Spec):
    """The answers of a Triton of the target's own image against the evaluations, on the same pictures."""

    images: int = Field(64, ge=1, le=10_000, description="pictures of the evaluation split that Triton is asked")
    agreement: float = Field(0.95, ge=0, le=1, description="share of the objects that must be found by both")
    max_drop: float = Field(0.02, ge=0, le=1, description="so much mAP50 may be lower, on these pictures")
    policy: Policy = Field("fail", description=POLICY)


class Smoke(Spec):
    """Every stage on a few images, for one epoch, up to a Triton of its own, before the long training begins."""

    images: int = Field(16, ge=1, le=1000, description="of each split; more of train where its batches need them")


class Gates(Spec):
    quality: QualityGate = QualityGate()
    parity: Annotated[ParityGate | None, OffOr(ParityGate())] = Field(
        ParityGate(), description="false: no Triton is asked before the release; nor where there is none"
    )
    smoke: Annotated[Smoke | None, OffOr(Smoke())] = Field(
        None, description="true: what would break at the end of a long training breaks in minutes"
    )
    champion: Annotated[ChampionGate | None, OffOr(ChampionGate())] = Field(
        ChampionGate(), description="false: not compared with the version that serves"
    )


class Approval(Spec):
    """A person says yes or no before the release."""

    when: Literal["always", "on_doubt"] = Field(
        "always", description="on_doubt: only where a gate did not simply pass (it warned, or its policy is ask)"
    )
    timeout_hours: float = Field(72, gt=0, le=24 * 90, description="for an answer")
    on_timeout: Literal["reject", "approve"] = Field("reject", description="what no answer means")
    assignees: list[Annotated[str, Field(pattern=r"^[A-Za-z0-9._@+-]{1,64}$")]] = Field(
        default_factory=list,
        max_length=5,
        description="who may answer, by their ids in Airflow's auth manager; empty: whoever may answer such questions",
    )


class Watchdog(Spec):
    """Ends a training early that cannot succeed."""

    stall_minutes: float = Field(
        30, gt=0, description="no sign of progress for so long, of any of TAO's commands that hold a GPU"
    )
    loss_factor: float = Field(50, gt=1, description="loss above the smallest so far times this, several times running")
    zero_evaluations: int = Field(5, ge=1, description="evaluations in a row with an mAP of 0")


class TritonTarget(Spec):
    """Where a model is released to; the cluster profile names a default."""

    url: str = Field(pattern=r"^https?://[^\s/@]+(:\d+)?$", description="HTTP address, e.g. http://127.0.0.1:8000")
    repository: str = Field(
        min_length=1,
        description="the server's model repository, as the release task sees it: a folder, or s3://bucket/prefix, gs://...",
    )
    connection: str | None = Field(
        None, pattern=r"^[A-Za-z0-9_.-]{1,200}$", description="Airflow's connection with the login of a bucket"
    )


class Tolerance(Spec):
    """How far Triton's answers may be from the reference, in parts of each output's largest magnitude.

    The defaults leave room for INT8 on another kind of CPU: x86 without VNNI saturates sums of uint8 activations and
    int8 weights (onnxruntime's page on quantization, "When and why do I need to try U8U8"). On the CPU that made the
    reference the answers are the same to the last bits.
    """

    largest: float = Field(0.05, ge=0, le=1, description="of any value")
    mean: float = Field(0.005, ge=0, le=1, description="of all values")


class WatchLines(Spec):
    """When a new version is not good enough to stay, by Triton's own counters."""

    max_failed: float = Field(0.01, ge=0, le=1, description="share of failed requests, above that before the swap")
    max_slowdown: float = Field(2.0, ge=1, le=1000, description="a request's mean time, in parts of that before")
    min_requests: int = Field(100, ge=1, description="fewer than these are not judged by share or time")


class Watch(WatchLines):
    """The time after a swap in which both versions stay loaded, so that going back takes less than a second."""

    minutes: float = Field(10, gt=0, le=24 * 60, description="then the version before is unloaded")
    every_seconds: float = Field(5, gt=0, le=600, description="between two looks at the counters, each with a probe")


class Signing(Spec):
    """Each release is signed with a key of your own (OpenSSF Model Signing)."""

    secret: str = Field(
        pattern=r"^[A-Z][A-Z0-9_]{0,62}$", description="the secret with the private key: an unencrypted EC key as PEM"
    )
    public_key: str = Field(
        pattern=r"^\s*-----BEGIN PUBLIC KEY-----", description="its public half as PEM text, which may be seen by all"
    )


class Canary(Spec):
    """The challenger beside the champion, under a name of its own, before it may take its place."""

    images: int = Field(100, ge=1, le=100_000, description="pictures outside of the training part that both are asked")
    min_agreement: float = Field(0.7, ge=0, le=1, description="share of the objects that both must find")
    minutes: float = Field(0, ge=0, le=24 * 60, description="then clients may route requests to it for so long")
    max_failed: float = Field(0.01, ge=0, le=1, description="share of failed requests, above the champion's")
    max_slowdown: float = Field(2.0, ge=1, le=1000, description="an answer's time, in parts of the champion's")
    min_requests: int = Field(100, ge=1, description="of clients: fewer than these are not judged")
    policy: Literal["fail", "warn"] = Field("fail", description="warn: it is released all the same")


class Release(Spec):
    model: str | None = Field(
        None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,126}$", description="name in Triton; null: the pipeline's name"
    )
    keep_versions: int = Field(
        3, ge=1, le=1000, description="versions kept in the repository, the serving one included"
    )
    timeout_seconds: float = Field(300, gt=0, le=86_400, description="for loading and verifying")
    tolerance: Tolerance = Tolerance()
    images: int = Field(8, ge=1, le=8, description="reference images that every server must answer as onnxruntime did")
    prove: bool = Field(
        True,
        description="serve it from a throwaway Triton first, where the release runs with Triton installed; "
        "false: production is the first to load it",
    )
    canary: Annotated[Canary | None, OffOr(Canary())] = Field(
        None, description="try it beside the version that serves first, and compare; true: the defaults"
    )
    watch: Annotated[Watch | None, OffOr(Watch())] = Field(
        None,
        description="keep the version before loaded for some minutes, and go back where errors or time cross a line; "
        "true: the defaults",
    )
    signing: Signing | None = Field(None, description="null: releases are not signed")
    triton: TritonTarget | None = Field(None, description="null: the cluster profile's")


class Predict(Spec):
    """Batch inference with a version of the model, by the DAG refit_predict."""

    connections: list[Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,200}$")]] = Field(
        default_factory=list,
        description="Airflow's connections with logins of buckets of images, beside dataset's and release.triton's",
    )
    memory_gib: float = Field(2, gt=0, le=1024, description="of its pod; drawn pictures of 20 megapixels want 4")


class Resources(Spec):
    gpus: int = Field(0, ge=0, le=64)
    cpus: float = Field(2, gt=0, le=1024)
    memory_gib: float = Field(4, gt=0, le=16_384)
    timeout_hours: float = Field(24, gt=0, le=24 * 90)
    gpu_type: str | None = Field(
        None, pattern=NAME.pattern, description="one of the cluster profile's gpu.types; null: its default"
    )
    nodes: Literal[1] = Field(1, description="training on several nodes is not built: a stage is one pod")


class ResourceBlock(Spec):
    default: Resources = Resources()
    stages: dict[str, Resources] = Field(default_factory=dict, description="stage name -> what it needs instead")


class Pipeline(Spec):
    """A pipeline file, the toolkit's blocks apart."""

    TITLE: ClassVar[str] = "Refit pipeline"

    name: str | None = Field(None, description="the file's name without .yaml; may be repeated here")
    description: str = Field("", max_length=4000)
    schedule: str | None = Field(
        None,
        description="`on_arrival` (a run whenever complete new data lies in the source), a cron expression in UTC "
        "(a run at that time, skipped where nothing new came), or null (by hand)",
    )
    dataset: Dataset
    toolkit: str
    runtime: Literal["local", "kubernetes"] = Field("local", description="where the stages' commands run")
    cluster: str | None = Field(
        None, pattern=NAME.pattern, description="the profile in specs/clusters/; null: the one named as the runtime"
    )
    seed: int = Field(42, ge=0, le=2**31 - 1, description="of everything random in the stages")
    gates: Gates = Gates()
    approval: Annotated[Approval | None, OffOr(Approval())] = Field(
        None, description="a person decides before the release; left out: only where a gate's policy is ask, on doubt"
    )
    watchdog: Watchdog = Watchdog()
    release: Annotated[Release | None, OffOr(Release())] = Field(
        Release(), description="false: the run ends with the model, nothing is deployed"
    )
    resources: ResourceBlock = ResourceBlock()
    predict: Predict = Predict()
    notify: list[Notify] = Field(
        default_factory=list, description="who is told of its runs, beside those that the cluster profile names"
    )
    tracking: Tracking = Field(Tracking(), description="where else its runs are written down; nowhere by default")

    @field_validator("schedule")
    @classmethod
    def _schedule(cls, value: str | None) -> str | None:
        if value in (None, "on_arrival") or CRON.match(value or ""):
            return value
        hint = did_you_mean(str(value), ["on_arrival", "@daily", "@hourly", "@weekly", "@monthly"])
        raise ValueError(
            f"{value!r} is no schedule; use on_arrival, a cron expression such as '0 3 * * 1', or null{hint}"
        )

    _attached: Mapping[str, str] = PrivateAttr(default_factory=dict)

    @property
    def attached(self) -> Mapping[str, str]:
        """The spec files that this file names (`stages.<stage>.spec`) -> their content."""
        return self._attached

    def check(self) -> Iterable[tuple[Key, str]]:
        """Faults that only show between blocks: (key, message) pairs. Toolkits add theirs."""
        if self.runtime == "local":
            for name, stage in (("default", self.resources.default), *self.resources.stages.items()):
                if stage.gpu_type is not None:
                    key = ("resources", name) if name == "default" else ("resources", "stages", name)
                    yield (*key, "gpu_type"), "the local runtime has no kinds of GPU; leave it out"

        if self.runtime == "kubernetes" and self.dataset.arrival.quarantine:
            yield (
                ("dataset", "arrival", "quarantine"),
                "moves files, and pods may only read the inbox; leave it out",
            )

    @property
    def asks(self) -> Approval | None:
        """When a person is asked before the release, None where nobody is."""
        if self.release is None or self.approval is not None:
            return self.approval if self.release is not None else None
        policies = (getattr(gate, "policy", None) for _, gate in self.gates)
        return Approval(when="on_doubt") if "ask" in policies else None

    @property
    def profile(self) -> str:
        """The cluster profile's name."""
        return self.cluster or self.runtime

    @property
    def augmentation(self) -> tuple[str, AugmentParams] | None:
        """The block of `stages` that makes copies of training images with albumentations, and what it says."""
        return None


def peek_name(path: str | Path) -> str:
    """A pipeline's name is its file's name without the ending."""
    return Path(path).name.removesuffix(".yaml").removesuffix(".yml")


def files(folder: str | Path) -> list[Path]:
    """The pipeline files of a folder, sorted; hidden ones and subfolders are left out."""
    return sorted(p for p in Path(folder).iterdir() if p.suffix in (".yaml", ".yml") and not p.name.startswith("."))


def load(path: str | Path, shown_as: str | None = None) -> Any:
    """Read and validate a pipeline file; returns the toolkit's subclass of Pipeline.

    `shown_as` is what errors call the file. Raises SpecError with every fault found.
    """
    doc = read_document(path, shown_as)
    return from_document(doc, peek_name(path), attached=attachments(doc, Path(path).parent))


def attachments(doc: Document, folder: Path) -> dict[str, str]:
    """The spec files that a pipeline file names, relative to its folder -> their content. Raises SpecError."""
    stages = doc.data.get("stages")
    found, problems = {}, []
    for stage, block in (stages if isinstance(stages, dict) else {}).items():
        name = block.get("spec") if isinstance(block, dict) else None
        if not isinstance(name, str):
            continue
        try:
            found[name] = _own_file(folder, name)
        except (OSError, ValueError) as exc:
            reason = f"{exc.strerror}{near_file(folder / name)}" if isinstance(exc, OSError) else str(exc)
            problems.append(doc.problem(("stages", stage, "spec"), f"{name} cannot be read: {reason}"))
    if problems:
        raise SpecError(problems)
    return found


def _own_file(folder: Path, name: str) -> str:
    """The text of a file that lies, links followed, below a pipeline file's folder or one of REFIT_SPECS: whoever
    writes pipeline files sees of Airflow's machines no other. Raises OSError, and ValueError that says why."""
    path = Path(os.path.realpath(folder / name))
    roots = (folder, *Settings.from_env().spec_roots)
    if not any(path.is_relative_to(os.path.realpath(root)) for root in roots):
        raise ValueError("it lies outside of the pipeline file's folder; put it there, or its folder into REFIT_SPECS")
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise ValueError("it is no file")
    if about.st_size > _MOST_SPEC:
        raise ValueError(f"it has {about.st_size >> 20:,} MiB, a spec at most {_MOST_SPEC >> 20}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError("not UTF-8 text") from None


# An entry of YAML or protobuf text whose name says that its value is a key, and that has one.
_KEY = re.compile(
    r"""^[^#\n]*?(?<!\w)["']?(\w*(?:enc|encryption|api|access)_?key|\w*(?:token|password))["']?[ \t]*:[ \t]*"""
    r"""(?!null\b|~|\?\?\?|["']{2})["']?[^\s"'#,}]""",
    re.MULTILINE,
)


def plain_keys(attached: Mapping[str, str]) -> list[Problem]:
    """Keys in plain text in spec files: whoever may look at pods would see them, so none of these files goes to one."""
    told = "a key stands here in plain text; take it out, revoke it, and name the secret that holds the new one"
    return [
        Problem(name, text.count("\n", 0, match.start(1)) + 1, match[1], told)
        for name, text in attached.items()
        for match in _KEY.finditer(text)
    ]


def from_document(
    doc: Document, name: str, overrides: dict[str, Any] | None = None, attached: Mapping[str, str] | None = None
) -> Any:
    """Validate a parsed pipeline file. `overrides` maps dotted paths ("stages.train.epochs") to values that replace
    the file's (params of a manual run); a fault in one is reported under its path. `attached`: see `attachments`."""
    from refit import toolkits  # here, because the toolkits' models derive from Pipeline

    if not NAME.match(name) or name == PUBLISHED:
        raise SpecError(
            [
                Problem(
                    doc.file,
                    1,
                    "",
                    f"{name!r} cannot be a pipeline's name; use a-z, 0-9, - and _, a letter first, "
                    f"and not {PUBLISHED!r}, the folder of what people look at",
                )
            ]
        )
    data = _override(doc.data, overrides or {})
    wanted = data.get("toolkit")
    if wanted is None:
        raise SpecError([doc.problem(("toolkit",), f"is missing; use one of {', '.join(toolkits.NAMES)}")])
    if wanted == "tao" and data.get("runtime") == "local":
        raise SpecError(
            [
                doc.problem(
                    ("runtime",),
                    "local and toolkit: tao do not go together: TAO runs in NVIDIA's containers only; "
                    "use runtime: kubernetes (one workstation: a one-node k3s), or toolkit: cpu",
                )
            ]
        )
    if wanted not in toolkits.NAMES:
        hint = did_you_mean(str(wanted), list(toolkits.NAMES))
        raise SpecError(
            [doc.problem(("toolkit",), f"{wanted!r} is not a choice; use {', '.join(toolkits.NAMES)}{hint}")]
        )
    try:
        pipeline = load_spec(toolkits.get(wanted).model, doc, data)
    except SpecError as exc:
        raise SpecError([of_param(p, overrides or {}) for p in exc.problems]) from None
    pipeline._attached = dict(attached or {})
    problems = [of_param(doc.problem(key, message), overrides or {}) for key, message in pipeline.check()]
    if pipeline.name not in (None, name):
        problems.append(doc.problem(("name",), f"is {pipeline.name!r} but the file is {name}.yaml; make them equal"))
    if problems:
        raise SpecError(problems)
    return pipeline.model_copy(update={"name": name})


def of_param(problem: Problem, overrides: dict[str, Any]) -> Problem:
    """A fault of a value that a run's params gave does not stand in the file."""
    if any(problem.key == path or problem.key.startswith(f"{path}.") for path in overrides):
        return replace(problem, file="params of this run", line=0)
    return problem


def _override(data: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """A copy of `data` with dotted paths replaced; blocks that are missing, null or `true` on the way are made."""
    for dotted_path, value in overrides.items():
        *parents, last = dotted_path.split(".")
        data = dict(data)
        at = data
        for part in parents:
            below = at.get(part)
            at[part] = dict(below) if isinstance(below, dict) else {}  # `prune: true` is a block of defaults
            at = at[part]
        at[last] = value
    return data
