"""What a toolkit is: who knows how to do stages.

A toolkit turns a validated pipeline into an ordered list of `Stage` values. Pure: no file is read or written, no
clock, no environment; the same pipeline gives the same stages. `refit.plan` binds them to a run.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import yaml

from refit.cluster import Profile
from refit.pipeline import Pipeline, Resources
from refit.specs import Key, Problem

_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
OUR_EXIT_CODES: Mapping[str, str] = {"2": "bad_spec", "3": "bad_data", "4": "rejected"}


@dataclass(frozen=True)
class Output:
    """A file or folder that a stage must leave below its out/ (docs/contracts.md, "outputs")."""

    name: str
    path: str
    format: str = "any"
    kind: str = "file"
    min_bytes: int = 1
    pick: str | None = None
    best: Mapping[str, Any] = field(default_factory=dict)  # with pick "best": metric, epoch, first

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "path": self.path,
            "kind": self.kind,
            "format": self.format,
            "min_bytes": self.min_bytes,
            **({"pick": self.pick} if self.pick else {}),
            **self.best,
        }


@dataclass(frozen=True)
class Stage:
    """One action of a toolkit with everything that decides its result; paths are tokens ({input:...}, {out}).

    `inputs` are the stages whose outputs it reads, `after` those that must merely have ended well before it.
    `files` are specs to write: text, or a mapping that becomes YAML.
    `status` is the status file in out/; `success`, `metrics` and `classes` (its name of a class -> the pipeline's) say
    how to read a command that is not ours.
    `code` names the packages of `refit` whose source decides the result (part of the key); none where the command is
    not Refit's: what is to be found in its results is part of the key then.
    `any_data`: it reads the snapshot, and an earlier result of one of the same classes, splits and kinds of images will
    do.
    """

    name: str
    action: str
    title: str
    environment: str
    argv: tuple[str, ...]
    files: Mapping[str, str | Mapping[str, Any]]
    outputs: tuple[Output, ...]
    resources: Resources
    code: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    watch: Mapping[str, Any] | None = None
    summary: str | None = None
    status: str = "status.json"
    success: Mapping[str, Any] | None = None
    metrics: Mapping[str, Any] | None = None
    classes: Mapping[str, str] = field(default_factory=dict)
    reads_snapshot: bool = False
    any_data: bool = False
    image: str | None = None
    exit_codes: Mapping[str, str] = field(default_factory=lambda: dict(OUR_EXIT_CODES))
    grace_seconds: float = 20
    # False: what a killed attempt left is moved aside, because the command cannot go on from it. A mapping: it goes on
    # where it is told to, by this command and these specs (docs/contracts.md, "resume").
    resumes: bool | Mapping[str, Any] = True
    session: str | None = None  # the hash of a training that it goes on with, and whose files bind puts into its folder

    @property
    def upstream(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.inputs, *self.after)))


@dataclass(frozen=True)
class ParamField:
    """One value of the pipeline that a manual run may change.

    `key` is its name in the run's conf, `path` the dotted place in the pipeline file that it replaces,
    `schema` the JSON Schema of the value, `default` the file's own value.
    """

    key: str
    path: str
    section: str
    title: str
    description: str
    schema: Mapping[str, Any]
    default: Any


CHAMPION = "{champion}"
"""Stands in the specs of CHAMPION_STAGES for the folder with the files of the version that serves (a plan has the
path). Where nothing serves that could be compared, these stages are off."""

CHAMPION_STAGES = frozenset({"prepare_champion", "prove_champion", "evaluate_champion", "gate_champion"})


@dataclass(frozen=True, slots=True)
class NetworkInput:
    """What a network sees of an image: its input in pixels, the pixels of the finest cell of its output's grid, and
    whether the image keeps its proportions."""

    width: int
    height: int
    cell: int
    letterbox: bool


class Toolkit(Protocol):
    """The interface; `refit.toolkits.cpu` is the reference."""

    @property
    def name(self) -> str: ...

    @property
    def model(self) -> type[Pipeline]:
        """The pipeline model with this toolkit's `network` and `stages` blocks."""

    def stages(self, pipeline: Any, profile: Profile, dataset: Mapping[str, Any] | None = None) -> list[Stage]:
        """The stages in an order in which they can run; names are unique. `dataset`: of the snapshot, in a run."""

    def params(self, pipeline: Any) -> Iterable[tuple[str, str, str]]:
        """(section, key, dotted path) of the stage values that a manual run may change."""

    def changes(self, pipeline: Any, profile: Profile) -> Mapping[str, Sequence[str]]:
        """Stage -> what is changed in the user's own spec files for it, a line each; {} where there are none."""

    def network_input(self, pipeline: Any) -> NetworkInput: ...

    def comparable(self, pipeline: Any, files: Collection[str], classes: Sequence[str]) -> str:
        """Why the version that serves, by the names of its files and its model.json's classes, cannot be evaluated
        beside this pipeline's model; "" where it can."""

    def preflight(
        self, pipeline: Any, profile: Profile, dataset: Mapping[str, Any] | None
    ) -> Iterable[Problem | tuple[Key, str]]:
        """What can be known before anything runs: of the specs that the stages will get, and, with a `dataset` (the
        snapshot's dataset.json), between them and the data. A fault of the pipeline file is (key, message)."""

    def doubts(self, pipeline: Any, profile: Profile) -> Iterable[Problem | tuple[Key, str]]:
        """What is no fault and may mislead, in the same form."""


def spec_text(spec: str | Mapping[str, Any]) -> str:
    """A stage's spec as the text that the runner writes, tokens unreplaced: a mapping as YAML, in the order given."""
    if isinstance(spec, str):
        return spec
    return str(yaml.dump(dict(spec), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1_000_000))


def command(package: str, action: str, spec_file: str) -> tuple[str, ...]:
    """The command line of one of Refit's own stage commands."""
    return ("{python}", "-m", package, action, "-e", "{specs}/" + spec_file, "-r", "{out}")
