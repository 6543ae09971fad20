"""The `dataset:` block of a pipeline file. Imports no numpy: Airflow reads it while parsing."""

from __future__ import annotations

import re
from typing import Annotated, Literal, get_args

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from refit.data import source as sources
from refit.data.codes import CODES
from refit.specs import Spec, did_you_mean

Format = Literal["kitti", "voc", "coco", "yolo", "tf_csv", "tfrecord", "tao_tfrecord", "drip", "supervisely"]
FORMATS: tuple[Format, ...] = get_args(Format)
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]


class Arrival(Spec):
    """When the data in the source counts as complete."""

    marker: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9._-]+$",
        description="complete once this file lies in the source's root, e.g. _SUCCESS; null: by settle_seconds",
    )
    manifest: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9._-]+$",
        description="complete once all files that this one in the source's root names are there, with their sizes; "
        "their sha256 are checked (lines of sha256sum, or JSON: docs/data/arrival.md)",
    )
    settle_seconds: float = Field(
        10, ge=0, le=86_400, description="without a marker: complete when nothing has changed for so long (seconds)"
    )
    new_labels: int = Field(
        0, ge=0, description="a run starts by itself only when so many label files came since the last good arrival"
    )
    quarantine: bool = Field(
        False,
        description="data that is refused is moved out of the inbox, into ../refused/<signature>/ with reason.txt; "
        "false: it stays, and is not tried again by itself",
    )
    poll_seconds: float = Field(10, ge=0.5, le=86_400, description="how often the source is listed (seconds)")
    timeout_hours: float = Field(24, gt=0, le=24 * 365, description="how long one run waits for it (hours)")

    @model_validator(mode="after")
    def _one_rule(self) -> Arrival:
        if self.marker is not None and self.manifest is not None:
            raise ValueError("marker and manifest are two rules; leave one out")
        return self


class GroupBy(Spec):
    """What makes images relatives of each other: one of these."""

    name_prefix: str | None = Field(
        None,
        description="regular expression with one group, for the beginning of the file's name: what the group matched, "
        r"e.g. '(cam\d+)_'",
    )
    tag: str | None = Field(
        None, description="regular expression with one group, for a whole tag of the image, e.g. 'camera:(.*)'"
    )
    file: str | None = Field(
        None, description="CSV file below the source: an image (as in `lists`) and its group a line, e.g. groups.csv"
    )

    @model_validator(mode="after")
    def _one(self) -> GroupBy:
        if len(self.model_dump(exclude_none=True)) != 1:
            raise ValueError("name one of name_prefix, tag and file")
        for name in ("name_prefix", "tag"):
            pattern = getattr(self, name)
            if pattern is not None and _groups(name, pattern) != 1:
                raise ValueError(f"{name}: {pattern!r} needs one group in brackets: what it matches is the group")
        return self


def _groups(name: str, pattern: str) -> int:
    try:
        return re.compile(pattern).groups
    except re.error as exc:
        raise ValueError(f"{name}: {pattern!r} is no regular expression: {exc}") from None


Grouping = Annotated[
    Annotated[Literal["folder", "tag"], Tag("name")] | Annotated[GroupBy, Tag("rule")],
    # So that a fault is told once, and not for each of the two.
    Discriminator(lambda value: "rule" if isinstance(value, dict | GroupBy) else "name"),
]


class Split(Spec):
    """Which images train and which are the evaluation set: a random share, or lists that come with the data."""

    val: float = Field(0.2, gt=0, lt=1, description="share of the images held out, stratified by class")
    seed: int = Field(42, ge=0, le=2**31 - 1)
    group: Grouping | None = Field(
        None,
        description="images of one group (video, camera, place) are never on both sides: `folder` of the image, any "
        "`tag` they share, {name_prefix: REGEX}, {tag: REGEX} or {file: groups.csv}",
    )
    evaluation: Literal["frozen", "fresh"] = Field(
        "frozen",
        description="frozen: what was evaluated once stays the evaluation set and never trains, whatever arrives; "
        "fresh: the split is drawn anew from each data set",
    )
    evaluation_grow: bool = Field(
        False, description="frozen: take the share `val` of new images, too; the figures are then of another version"
    )
    lists: dict[str, str] | Literal["own"] | None = Field(
        None,
        description="split name -> text file of image names (one a line, relative to the source); "
        "`train` and `val` are needed, others are evaluated and reported apart; own: the parts that the data set "
        "itself has, by its folders, lists or files (COCO's train2017 and val2017, YOLO's data.yaml, VOC's ImageSets)",
    )

    @model_validator(mode="after")
    def _lists(self) -> Split:
        if isinstance(self.lists, dict):
            missing = [n for n in ("train", "val") if n not in self.lists]
            if missing:
                raise ValueError(f"lists needs an entry for {' and '.join(missing)}")
            for name in self.lists:
                if not name.replace("_", "").isalnum() or name == "all":
                    raise ValueError(f"{name!r} cannot be a split's name; use letters, digits and _")
        return self

    @property
    def listed(self) -> dict[str, str]:
        """The lists that are files of the source."""
        return self.lists if isinstance(self.lists, dict) else {}


class DatasetSettings(Spec):
    """How a folder of labelled images is read."""

    format: Format | None = Field(None, description="null: recognised by what lies in the folder")
    classes: list[Name] = Field(min_length=1, max_length=1000, description="what the detector learns, in this order")
    class_map: dict[str, str | None] = Field(
        default_factory=dict, description="label name -> class, or null to leave such objects out (they are counted)"
    )
    mode: Literal["replace", "append"] = Field(
        "replace",
        description="replace: the source is the whole data set; append: it adds to the one taken last, corrects it, "
        "and removes the images that its removed.txt names",
    )
    split: Split = Split()
    max_bad_labels: float = Field(0.01, ge=0, le=1, description="a larger share of faulty objects stops the run")
    severity: dict[str, Literal["error", "warning", "info"]] = Field(
        default_factory=dict,
        description="check -> error (stops the run), warning (left out, reported, counted by max_bad_labels) or info; "
        "for example {image_truncated: warning}",
    )
    image_dir: str | None = Field(None, description="folder of the images in the source; null: the format's own")
    label_dir: str | None = Field(None, description="folder of the labels in the source; null: the format's own")

    @field_validator("severity")
    @classmethod
    def _checks(cls, value: dict[str, str]) -> dict[str, str]:
        open_ = [name for name, code in CODES.items() if not code.fixed]
        for name in value:
            if name in CODES and CODES[name].fixed:
                raise ValueError(f"{name} always stops the run; its severity cannot be changed")
            if name not in CODES:
                raise ValueError(f"{name!r} is no check{did_you_mean(name, open_)}")
        return value

    @model_validator(mode="after")
    def _names(self) -> DatasetSettings:
        twice = sorted({c for c in self.classes if self.classes.count(c) > 1})
        if twice:
            raise ValueError(f"classes holds {', '.join(twice)} twice")
        unknown = sorted({v for v in self.class_map.values() if v is not None and v not in self.classes})
        if unknown:
            raise ValueError(f"class_map leads to {', '.join(unknown)}, which is not among classes")
        return self


class Dataset(DatasetSettings):
    """The whole block: where the data comes from, when it counts as arrived, how it is read."""

    source: Name = Field(
        description="folder of the data set: absolute, or below the first data root (REFIT_DATA_ROOTS); or s3://, "
        "gs://, az://, abfs://, an archive by https://, a .dvc file"
    )
    connection: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9_.-]{1,200}$",
        description="Airflow's connection with the login of a remote source; in pods and without Airflow the secret "
        "AIRFLOW_CONN_<its name>; null: none is needed",
    )
    dvc_remote: str | None = Field(
        None, description="of a .dvc source: s3://, gs://, az:// or abfs:// of its DVC remote"
    )
    arrival: Arrival = Arrival()
    shards: int = Field(
        1,
        ge=1,
        le=256,
        description="runtime kubernetes: how many pods look at a large data set before bind, each at its share "
        "of the files; the result is the same for any number. With runtime local, bind uses all cores by itself",
    )

    @field_validator("source")
    @classmethod
    def _source(cls, value: str) -> str:
        sources.parse(value)
        return value

    @model_validator(mode="after")
    def _remote(self) -> Dataset:
        kind = sources.parse(self.source).kind
        if kind is not sources.Kind.FOLDER and self.arrival.quarantine:
            raise ValueError("arrival.quarantine moves files, and Refit only reads from a remote source; leave it out")
        if kind in (sources.Kind.WEB, sources.Kind.DVC) and self.arrival.new_labels:
            raise ValueError("arrival.new_labels counts files, and the source is listed as one; leave it out")
        if kind is sources.Kind.DVC and self.dvc_remote is None:
            raise ValueError("a source that is a .dvc file needs dvc_remote: where `dvc push` puts the data")
        if self.dvc_remote is not None and sources.parse(self.dvc_remote).kind not in sources.STORES:
            raise ValueError(f"dvc_remote: {self.dvc_remote} is no object store; use s3://, gs://, az:// or abfs://")
        return self

    def settings(self) -> DatasetSettings:
        """What decides how the data is read, without where it is."""
        return DatasetSettings.model_validate(
            self.model_dump(exclude={"source", "connection", "dvc_remote", "arrival", "shards"})
        )
