"""The networks as data: specs/networks/<name>/network.yaml and the spec templates beside it.

A network of a known family is added by a folder, without Python. The file says which stages there are, their command
lines, which spec files they read, where the pipeline's values and the run's paths go in those specs, what comes out,
how success is told from failure, and what the model's tensors are. Every file names NVIDIA's sources.

Values in it may hold `${name}`: a stage's own parameter (`${epochs}`), another stage's (`${train.batch_size}`), one of
the network block (`${network.input_width}`), or a fact (`${classes}`, `${gpus}`, `${backbone.layers}`). `{out}`,
`{input:train.model}` and the like are the runner's (docs/contracts.md).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from refit.specs import Problem, Spec, SpecError, did_you_mean, read, read_document
from refit.specs import load as load_spec
from refit.tao.params import NetworkParams
from refit.tao.tree import Format

FOLDER = Path(__file__).resolve().parents[2] / "specs"
FILE = "network.yaml"
SERVICES = FOLDER / "tao" / "data_services"
Family = Literal["tf1", "tf2", "pyt"]
ImageKind = Literal["tf1", "tf2", "pyt", "deploy", "data_services"]


Role = Literal[
    "width", "height", "channels", "extension", "mapping", "classes", "num_classes", "epochs", "batch_size",
    "evaluation_batch_size", "evaluate_every", "evaluate_from", "warmup", "qat", "boxes", "iou", "judging",
    "clustering", "start", "resizes", "image_type", "means",
    "scales", "precision",
]  # fmt: skip


class Input(Spec):
    """What images the network takes."""

    width: int = Field(gt=0, description="default of network.input_width, pixels")
    height: int = Field(gt=0)
    multiple_of: int = Field(1, gt=0, description="width and height must be a multiple of it")
    least: int = Field(1, gt=0, description="the shortest side that its spec loader takes")
    channels: list[Literal[1, 3]] = Field([3], min_length=1)

    def misfit(self, side: int, name: str) -> str:
        """What is wrong with a width or height of the network `name`, "" where nothing is."""
        step = self.multiple_of
        if side < self.least:
            return f"{side} is too short, {name} needs at least {self.least}"
        near = max(step, round(side / step) * step)
        return f"{side} is no multiple of {step}, which {name} needs; use {near}" if side % step else ""


class Data(Spec):
    """The form in which `prepare` writes the data set for it."""

    form: Literal["kitti", "coco"]
    first_id: int = Field(1, ge=0, description="COCO: id of the first category")


class SpecFile(Spec):
    """A spec template and where values go in it."""

    file: str = Field(description="template in the network's folder")
    set: dict[str, Any] = Field(
        default_factory=dict,
        description="path -> value, by the pipeline's parameters; in a spec of the user's own only those that the "
        "pipeline gives",
    )
    control: dict[str, Any] = Field(
        default_factory=dict, description="path -> value that Refit must set, in a spec of the user's own as well"
    )
    drop: list[str] = Field(default_factory=list, description="paths that must not be there")
    roles: dict[Role, list[str]] = Field(
        default_factory=dict, description="what `refit.tao.preflight` compares -> where it stands in this spec"
    )


class OutputFact(Spec):
    name: str
    path: str
    format: str = "any"
    kind: Literal["file", "dir"] = "file"
    min_bytes: int = 1
    pick: Literal["newest"] | None = None


class Checkpoints(Spec):
    """Models that a training saves, each with the number of its epoch in its name."""

    path: str
    epoch: str = Field(description="regular expression with one group, the number")
    first: Literal[0, 1] = Field(1, description="the number of the first epoch")
    format: Literal["any", "hdf5", "pth"] = "any"


class Success(Spec):
    """What must be seen, beside exit code 0 and the outputs, before a success is believed."""

    status: Literal["SUCCESS"] | None = Field(None, description="the last status in status.json")
    message: str | None = Field(None, description="regular expression that the last message must match")
    denied_by: list[str] = Field(
        default_factory=list, description="regular expressions; a line of the log is a failure"
    )


class Metric(Spec):
    """Where one of Refit's metrics stands in the stage's status.json or log."""

    kpi: list[str] = Field(default_factory=list, description="names in `kpi`, the first that is there")
    classes: list[str] = Field(default_factory=list, description="names in `categorical`, for a figure per class")
    log: str | None = Field(None, description="regular expression with one group, on lines of the log; the last counts")
    file: str | None = Field(None, description="a JSON file in out/ that has it")
    key: str | None = Field(None, description="its name in that file")
    prefix: str | None = Field(None, description="of its names in that file, one a class")
    mean: str | None = Field(None, description="the mean of another metric over its classes")
    scale: float = 1.0
    most: float | str | None = Field(None, description="a larger value is a failure (`rejected`)")


class StageFact(Spec):
    """One action of the network."""

    title: str
    image: ImageKind
    argv: list[str | dict[str, Any]] = Field(description="words; {when: NAME, words: [...]} only where NAME is true")
    specs: list[str] = Field(default_factory=list, description="names in `specs` that it reads")
    omit: list[str] = Field(
        default_factory=list,
        description="paths that this command does not read: left out, so that a change there does not run it again",
    )
    outputs: list[OutputFact]
    status: str = Field("status.json", description="the status file, in out/")
    success: Success = Success()
    metrics: dict[str, Metric] = Field(default_factory=dict)
    fixed: dict[str, Any] = Field(
        default_factory=dict,
        description="regular expression of a path -> what this command takes in its place, whatever its spec says",
    )
    resumes: Literal["no", "itself", "told"] = Field(
        "no",
        description="goes on from what an ended attempt has left: by itself; told: where the command line or the specs "
        "name one of `checkpoints` as ${resumed}",
    )
    checkpoints: Checkpoints | None = Field(None, description="what a training saves on its way")

    since: str | None = Field(None, description="the first TAO release that has it")
    gpu: bool = True
    multi_gpu: bool = False

    @model_validator(mode="after")
    def _told(self) -> StageFact:
        if self.resumes == "told" and self.checkpoints is None:
            raise ValueError("resumes: told needs checkpoints")
        return self


class Network(Spec):
    """A network's facts. `name` is that of its folder, and of TAO's program."""

    title: str
    family: Family
    format: Format
    sources: list[str] = Field(min_length=1, description="NVIDIA's files that the facts come from")
    input: Input
    data: Data
    encrypted: bool = Field(False, description="models may be encrypted by a key (-k)")
    begins: list[Literal[".hdf5", ".h5", ".tlt", ".pth"]] = Field(
        default_factory=list, description="endings of a whole model's files that its training can begin with"
    )
    backbones: dict[str, dict[str, Any]] = Field(min_length=1, description="name -> facts, e.g. arch, layers, ngc")
    specs: dict[str, SpecFile]
    stages: dict[str, StageFact]
    int8: dict[Literal["ptq", "qat", "qdq"], str] = Field(
        default_factory=dict, description="the ways to INT8 that there are -> a note for people"
    )
    plugins: list[str] = Field(
        default_factory=list, description="TensorRT's operators in its ONNX file: nothing but an engine can run it"
    )
    sidecar: dict[str, Any] = Field(default_factory=dict, description="model.json, values by ${name}")

    @model_validator(mode="after")
    def _agree(self) -> Network:
        for action, stage in self.stages.items():
            for name in stage.specs:
                if name not in self.specs:
                    raise ValueError(f"stages.{action} reads {name!r}, which specs does not have")
        return self


class Services(Spec):
    """What is done to a data set, whatever the network is: specs/tao/data_services/network.yaml."""

    specs: dict[str, SpecFile]
    stages: dict[str, StageFact]


class TaoRelease(Spec):
    """The image tags of one TAO release."""

    images: dict[ImageKind, str]


class Releases(Spec):
    """specs/tao/releases.yaml."""

    default: dict[Family, str]
    releases: dict[str, TaoRelease]


_NAME = re.compile(r"\$\{([a-z_][a-z0-9_.]*)\}")


def names_in(value: Any) -> set[str]:
    """The names that a value's `${...}` stand for, `when` and `if` included."""
    if isinstance(value, str):
        return set(_NAME.findall(value))
    if isinstance(value, list):
        return {n for v in value for n in names_in(v)}
    if isinstance(value, dict):
        own = {str(value[k]) for k in ("when", "if") if isinstance(value.get(k), str)}
        return own | {n for v in value.values() for n in names_in(v)}
    return set()


def fill(value: Any, scope: Mapping[str, Any]) -> Any:
    """A value with every `${name}` replaced; None where one of them is None ("leave the template's").

    `{each: classes, value: ...}` becomes a list, with `${class}` and the per-class parameters;
    `{if: NAME, then: ..., else: ...}` chooses; an item of a list that is None is left out.
    Raises KeyError for a name that there is not.
    """
    if isinstance(value, str):
        whole = _NAME.fullmatch(value)
        if whole:
            return scope[whole[1]]
        names = _NAME.findall(value)
        if any(scope[n] is None for n in names):
            return None
        return _NAME.sub(lambda m: _text(scope[m[1]]), value)
    if isinstance(value, list):
        return [f for f in (fill(v, scope) for v in value) if f is not None]
    if isinstance(value, dict):
        if "each" in value:
            return [fill(value["value"], {**scope, **item}) for item in scope[f"each.{value['each']}"]]
        if "if" in value:
            return fill(value["then"] if scope[value["if"]] else value.get("else"), scope)
        filled = {k: fill(v, scope) for k, v in value.items()}
        return {k: v for k, v in filled.items() if v is not None}
    return value


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def folder(name: str) -> Path:
    return FOLDER / "networks" / name


@lru_cache(maxsize=64)
def known() -> tuple[str, ...]:
    """The networks that there are."""
    return tuple(sorted(p.parent.name for p in (FOLDER / "networks").glob(f"*/{FILE}")))


@lru_cache(maxsize=64)
def load(name: str) -> Network:
    """A network by name. Raises SpecError: there is none of that name, or its file is faulty."""
    if name not in known():
        hint = did_you_mean(name, list(known())) or f"; there is {', '.join(known())}"
        raise SpecError([Problem(str(folder(name) / FILE), 0, "", f"no such network{hint}")])
    doc = read_document(folder(name) / FILE)
    family = FOLDER / "tao" / "families" / f"{doc.data.get('family')}.yaml"
    shared = read_document(family).data if family.is_file() else {}
    return load_spec(Network, doc, _merged(shared, doc.data))


def _merged(below: Any, above: Any) -> Any:
    """Mappings key by key; all else as `above` says, null: without it."""
    if isinstance(below, dict) and isinstance(above, dict):
        merged = {k: _merged(below.get(k), above[k]) if k in above else below[k] for k in {**below, **above}}
        return {k: v for k, v in merged.items() if v is not None}
    return above


@lru_cache(maxsize=256)
def template(folder: Path, file: str) -> str:
    return (folder / file).read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def services() -> Services:
    return read(Services, SERVICES / FILE)


@lru_cache(maxsize=1)
def releases() -> Releases:
    return read(Releases, FOLDER / "tao" / "releases.yaml")


def number(release: str) -> tuple[int, ...]:
    """A release in its order."""
    return tuple(int(part) for part in release.split("."))


def release_of(network: NetworkParams) -> str:
    """The TAO release whose images a pipeline runs in."""
    return network.release or releases().default[load(network.name).family]


def image(network: NetworkParams, kind: ImageKind) -> str:
    """The image of a kind: the pipeline's own, or the tag of its release."""
    if kind in network.images:
        return network.images[kind]
    images = releases().releases[release_of(network)].images
    if kind not in images:  # the older families' releases have no data services
        images = releases().releases[releases().default["pyt"]].images
    return images[kind]
