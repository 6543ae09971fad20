"""The `network` and `stages` blocks of a pipeline with `toolkit: tao`.

A parameter that is left out keeps what the network's spec template says (or the user's own spec). What has no name
here is set by its path in the spec, under `set`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, WithJsonSchema, model_validator

from refit.cpu.specs import AugmentParams as Copies
from refit.cpu.specs import SearchParams
from refit.data.prepare.spec import Resize
from refit.pipeline import OffOr
from refit.specs import Spec
from refit.start.spec import DESCRIPTION, StartFrom

_NAMED = r"^[A-Z][A-Z0-9_]*$"
_NEVER = "names a secret of the cluster profile, in capitals (TAO_KEY), never the key itself"


def _secret_name(value: Any) -> Any:
    """The message does not show the value: it may be the key."""
    if value is None or (isinstance(value, str) and re.fullmatch(_NAMED, value)):
        return value
    raise ValueError(_NEVER)


SecretName = Annotated[str, BeforeValidator(_secret_name), WithJsonSchema({"type": "string", "pattern": _NAMED})]


def _release_text(value: Any) -> Any:
    """YAML reads an unquoted 7.1 as a number."""
    if isinstance(value, int | float):
        raise ValueError(f'must be a release of three numbers, in quotes: "7.1.0"; it is {value}')
    return value


Release = Annotated[str, BeforeValidator(_release_text), WithJsonSchema({"type": "string"})]


class Adjustable(Spec):
    """A stage whose command reads a spec file."""

    spec: str | None = Field(
        None, description="a spec file of your own, relative to this file; null: made from the network's template"
    )
    set: dict[str, Any] = Field(
        default_factory=dict,
        description="path in the spec -> value, e.g. {training_config.checkpoint_interval: 5}; wins over all else",
    )


class Pretrained(Spec):
    """Weights to start from; one of the two."""

    instead: ClassVar[Mapping[str, str]] = dict.fromkeys(("api_key", "key", "ngc_api_key"), f"use secret: it {_NEVER}")

    ngc: str | None = Field(
        None, pattern=r"^[^/:\s]+(/[^/:\s]+){1,2}:[^/:\s]+$", description="org[/team]/model:version, as NGC names it"
    )
    path: str | None = Field(
        None, min_length=1, description="offline: file or folder below the pipeline's folder of the workspace"
    )
    file: str | None = Field(None, description="which file of it, a glob; null: the only one that fits")
    weights: Literal["backbone", "model"] = Field(
        "backbone", description="of the backbone only, or of a whole model of this network (PyTorch networks)"
    )
    secret: SecretName | None = Field(
        None, description="of the cluster profile, with NGC's API key; null: public models"
    )

    @model_validator(mode="after")
    def _one(self) -> Pretrained:
        if (self.ngc is None) == (self.path is None):
            raise ValueError("give ngc or path, one of the two")
        return self


class NetworkParams(Spec):
    instead: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("key", "enc_key", "encryption_key", "api_key"), f"use key_secret: it {_NEVER}"
    )

    name: str = Field(description="a folder in specs/networks/")
    backbone: str | None = Field(None, description="null: the network's first")
    input_width: int | None = Field(None, ge=32, le=8192, description="pixels; null: the network's default")
    input_height: int | None = Field(None, ge=32, le=8192)
    channels: Literal[1, 3] = Field(3, description="1: grayscale, where the network can")
    image_extension: Literal["jpg", "png"] = Field("jpg", description="of the data set's images")
    pretrained: Annotated[
        Annotated[Pretrained, Tag("given")] | Annotated[bool, Tag("own")],
        Discriminator(lambda value: "own" if isinstance(value, bool) else "given"),
    ] = Field(
        False, description="true: the backbone's own on NGC, as the network's facts name it; false: random weights"
    )
    key_secret: SecretName | None = Field(
        None, description="secret of the cluster profile that encrypts and opens models (-k); null: none"
    )
    release: Release | None = Field(
        None, description="TAO release in specs/tao/releases.yaml; null: the family's default"
    )
    images: dict[Literal["tf1", "tf2", "pyt", "deploy", "data_services"], str] = Field(
        default_factory=dict, description="a tag, or a whole image name, in place of the release's"
    )


class PrepareParams(Spec):
    convert: Literal["jpg", "png"] | None = Field(None, description="write all images in this form; null: as they are")
    channels: Literal[1, 3] | None = Field(None, description="1: grayscale (the luma); 3: colour; null: as they are")
    resize: Resize | None = Field(None, description="every image at one size, boxes follow; null: as they are")
    names: dict[str, str] = Field(
        default_factory=dict, description="class -> its name in TAO's files, where its own cannot stand there"
    )


class DatasetConvertParams(Adjustable):
    shards: int | None = Field(None, ge=1, le=1000)


class AugmentParams(Adjustable):
    """A stage of its own, in TAO's data services; the training's own augmentation stands in `train`."""

    rotate_degrees: float | None = Field(None, ge=-180, le=180)
    hflip: bool | None = None
    vflip: bool | None = None
    hue_degrees: float | None = Field(None, ge=-180, le=180)
    saturation: float | None = Field(None, ge=0)
    blur_size: int | None = Field(None, ge=1)
    blur_std: float | None = Field(None, ge=0)


class TrainAugmentation(Spec):
    """During training, where the network's spec has it."""

    hflip: float | None = Field(None, ge=0, le=1, description="probability")
    vflip: float | None = Field(None, ge=0, le=1, description="probability")
    zoom_min: float | None = Field(None, gt=0)
    zoom_max: float | None = Field(None, gt=0)
    hue: float | None = Field(None, ge=0)
    saturation: float | None = Field(None, ge=0)
    contrast: float | None = Field(None, ge=0)


class TrainParams(Adjustable):
    instead: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("lr", "base_lr", "max_learning_rate"), "use learning_rate"),
        **dict.fromkeys(("gpus", "num_gpus"), "use resources.stages.train.gpus"),
        **dict.fromkeys(("checkpoint_interval", "save_every"), "use checkpoint_every"),
        **dict.fromkeys(("validation_interval", "validate_every"), "use evaluate_every"),
        "enable_qat": "use qat",
        "use_amp": "use amp",
    }

    start_from: StartFrom = Field(None, description=DESCRIPTION)
    epochs: int | None = Field(None, ge=1, le=100_000)
    batch_size: int | None = Field(None, ge=1, le=4096, description="of one GPU")
    learning_rate: float | None = Field(None, gt=0, le=10, description="the largest of the schedule")
    min_learning_rate: float | None = Field(None, gt=0, le=10)
    warmup: float | None = Field(None, ge=0, le=1, description="share of the training in which the rate rises")
    annealing: float | None = Field(None, ge=0, le=1, description="share after which the rate falls")
    regularizer: Literal["NO_REG", "L1", "L2"] | None = None
    weight_decay: float | None = Field(None, ge=0, le=1)
    optimizer: str | None = Field(None, description="by the name that the network's spec has for it")
    freeze_blocks: list[int] | None = Field(None, description="blocks of the backbone that are not trained")
    freeze_bn: bool | None = None
    class_weights: dict[str, float] = Field(
        default_factory=dict, description="class -> weight in the loss; 1 for others"
    )
    anchors: list[Any] | None = Field(None, description="in the form that the network's spec has")
    augmentation: TrainAugmentation = TrainAugmentation()
    checkpoint_every: int | None = Field(None, ge=1, description="epochs")
    evaluate_every: int | None = Field(None, ge=1, description="epochs")
    workers: int | None = Field(None, ge=0, le=256)
    checkpoint: Literal["best", "last"] = Field(
        "best", description="which is the result: the best by gates.quality.metric on the val split, or the last"
    )
    amp: bool = Field(False, description="mixed precision")
    qat: bool = Field(False, description="quantization-aware training; INT8 then needs no calibration images")


class EvaluateParams(Adjustable):
    """The same for every model of a run, so that the figures can be compared."""

    batch_size: int | None = Field(None, ge=1, le=4096)
    iou: float = Field(0.5, gt=0, lt=1, description="overlap that counts as found")
    min_width: int = Field(0, ge=0, description="smaller objects are not counted, pixels")
    min_height: int = Field(0, ge=0)
    score_threshold: float | None = Field(None, ge=0, le=1)


class SizeSearchParams(SearchParams):
    """`ratio` is tried first; then more is kept until little enough is lost."""

    ratio: float = Field(0.28, gt=0, lt=1, description="share of the parameters that is wanted")


class PruneParams(Adjustable):
    threshold: float = Field(0.1, gt=0, lt=1, description="filters of a smaller norm go; larger: a smaller model")
    equalization: Literal["union", "intersection", "arithmetic_mean", "geometric_mean"] = "union"
    granularity: int = Field(8, ge=1, description="filters removed at a time")
    min_filters: int = Field(16, ge=1, description="kept in each layer")
    normalizer: Literal["max", "L2"] = "max"
    max_kept: float = Field(0.98, gt=0, le=1, description="a larger share of the parameters kept counts as not pruned")
    search: SizeSearchParams | None = Field(
        None, description="{} searches the threshold, beginning with `threshold`; null: pruned by `threshold` once"
    )


class RetrainParams(TrainParams):
    """What is not named is as in `train`."""


class ExportParams(Adjustable):
    opset: int | None = Field(None, ge=9, le=20)


class QuantizeParams(Adjustable):
    """Q/DQ nodes written into the model (TensorRT 11's only way to INT8)."""

    backend: Literal["torchao", "modelopt.pytorch", "modelopt.onnx"] = "modelopt.onnx"
    images: int = Field(128, ge=1, le=10_000, description="calibration images, of the training part only")

    @property
    def on_onnx(self) -> bool:
        """Whether it works on the exported file; the others' work is exported afterwards."""
        return self.backend == "modelopt.onnx"


class BuildEngineParams(Adjustable):
    precision: Literal["fp32", "fp16", "int8"] = "int8"
    int8: Literal["auto", "ptq", "qat", "qdq"] = Field(
        "auto", description="the way to INT8; auto: what the network has"
    )
    ladder: bool = Field(
        False, description="where INT8 loses too much, the next way is tried: more calibration images, then FP16"
    )
    calibration_batches: int = Field(10, ge=1, le=1000)
    calibration_batch_size: int = Field(8, ge=1, le=256)
    opt_batch_size: int = Field(4, ge=1, le=256)
    max_batch_size: int = Field(8, ge=1, le=256)
    workspace_gib: int = Field(2, ge=1, le=64)
    gpu_types: list[str] = Field(
        default_factory=list, description="of the cluster profile: an engine for each; empty: the stage's own"
    )

    @model_validator(mode="after")
    def _order(self) -> BuildEngineParams:
        if self.opt_batch_size > self.max_batch_size:
            raise ValueError("opt_batch_size <= max_batch_size must hold")
        return self


class InferenceParams(Adjustable):
    """Draws what the released model finds, on the evaluation images."""

    batch_size: int | None = Field(None, ge=1, le=256)
    score_threshold: float | None = Field(None, ge=0, le=1)


class DistillParams(TrainParams):
    """Trains with a larger model's answers, in place of `train`."""

    teacher: str = Field(
        min_length=1, description="checkpoint of the teacher, below the pipeline's folder of the workspace"
    )
    teacher_backbone: str | None = None


class Stages(Spec):
    """A block per stage. `false` leaves an optional one out; which there are is the network's affair."""

    albumentations: Annotated[Copies | None, OffOr(Copies())] = Field(
        None, description="copies of the training images, made before prepare; left out unless given"
    )
    prepare: PrepareParams = PrepareParams()
    dataset_convert: DatasetConvertParams = DatasetConvertParams()
    augment: Annotated[AugmentParams | None, OffOr(AugmentParams())] = None
    train: TrainParams = TrainParams()
    distill: DistillParams | None = None
    evaluate: EvaluateParams = EvaluateParams()
    prune: Annotated[PruneParams | None, OffOr(PruneParams())] = Field(
        None, description="false or not given: the trained model is exported"
    )
    retrain: Annotated[RetrainParams | None, OffOr(RetrainParams())] = None
    export: ExportParams = ExportParams()
    quantize: Annotated[QuantizeParams | None, OffOr(QuantizeParams())] = None
    build_engine: Annotated[BuildEngineParams | None, OffOr(BuildEngineParams())] = Field(
        BuildEngineParams(), description="false: Triton gets the ONNX model"
    )
    inference: Annotated[InferenceParams | None, OffOr(InferenceParams())] = None

    @property
    def trained_by(self) -> Literal["train", "distill", "retrain"]:
        """The block whose training makes the model that is exported."""
        return "retrain" if self.retrain else "distill" if self.distill else "train"

    @property
    def last_training(self) -> TrainParams:
        params: TrainParams = getattr(self, self.trained_by)
        return params


def given(block: Spec, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of what a block of the file says."""
    for name in sorted(block.model_fields_set):
        value = getattr(block, name)
        if isinstance(value, Spec):
            yield from given(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def flat(block: Spec, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("train.epochs", 3), ("train.augmentation.hflip", 0.5), ... of a block, with what the file leaves out."""
    for name in type(block).model_fields:
        value = getattr(block, name)
        if isinstance(value, Spec):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
