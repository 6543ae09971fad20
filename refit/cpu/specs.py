"""What each command of the cpu toolkit takes: one pydantic model a stage, the YAML that `-e` names.

Imports no torch: `refit.toolkits.cpu` uses the same models to validate pipeline files.
The fields of `*Params` are what a pipeline file may set; `*Spec` adds the paths that the plan fills in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from refit.specs import Spec
from refit.start.spec import DESCRIPTION, StartFrom

Path = Annotated[str, Field(description="a path; tokens of the plan allowed", min_length=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class NetworkParams(Spec):
    """The detector: DetectNet_v2-shaped, a coverage and a box head over a ResNet-like backbone."""

    name: Literal["detectnet_v2"] = "detectnet_v2"
    backbone: Literal["resnet10", "resnet18"] = Field("resnet10", description="blocks per level: 1 or 2")
    width: float = Field(1.0, gt=0, le=4, description="channel multiplier; 1.0 is 16-24-48-96-128")
    input_width: int = Field(320, ge=64, le=2048, multiple_of=16, description="pixels, a multiple of the stride")
    input_height: int = Field(192, ge=64, le=2048, multiple_of=16, description="pixels, a multiple of the stride")
    channels: Literal[1, 3] = Field(3, description="1 is grayscale")
    stride: Literal[8, 16] = Field(16, description="pixels of the input per output cell")
    resize: Literal["letterbox", "stretch"] = "letterbox"


class ConvertParams(Spec):
    shards: int = Field(1, ge=1, le=256, description="TFRecord files per split")


ALLOWED = "REFIT_TRANSFORM_PACKAGES"
"""The variable that names the packages, with commas between, whose transforms a pipeline may use."""


class TransformParams(Spec):
    """One transform: albumentations' by its class name, {name: RandomRotate90, p: 0.5}, or one's own.

    One's own is {name: "package.module:Class", version: "1.2"}: a class on albumentations' base classes, of a package
    that the installation allows (docs/data/augment.md).
    """

    name: str = Field(pattern=r"^([A-Za-z_]\w*(\.[A-Za-z_]\w*)*:)?[A-Z][A-Za-z0-9]*$")
    p: Fraction = 0.5
    args: dict[str, int | float | bool | str | list[float] | list[int]] = Field(default_factory=dict)
    version: str | None = Field(None, min_length=1, description="of one's own package; another one is refused")

    @property
    def package(self) -> str | None:
        """The package that one's own transform is taken from."""
        return self.name.partition(":")[0].partition(".")[0] if ":" in self.name else None

    def refusal(self, allowed: str) -> str:
        """Why a transform of one's own cannot be used where ALLOWED has this value; "" where it can."""
        packages = [name.strip() for name in allowed.split(",") if name.strip()]
        if self.package is None or self.package in packages:
            return ""
        known = f"allowed are: {', '.join(packages)}" if packages else "none is allowed"
        return (
            f"{self.name} is refused: the package {self.package} is not allowed here ({known}). Whoever runs this "
            f"installation allows it by {ALLOWED} in `env` of the cluster profile"
        )

    @model_validator(mode="after")
    def _versioned(self) -> TransformParams:
        if self.package and self.version is None:
            raise ValueError(f"{self.name} needs `version`, that of {self.package}: another version is another result")
        if self.version is not None and not self.package:
            raise ValueError(f"version is of one's own transforms, and {self.name} is albumentations'; leave it out")
        return self


Preset = Literal["drip", "tlt", "zoom_out"]
PRESETS: Mapping[Preset, tuple[TransformParams, ...]] = {
    # Drip's set, its noise as standard deviations of 0..1: variances of 10 to 50, the default of its albumentations.
    "drip": (
        TransformParams(name="RandomRotate90", p=0.5),
        TransformParams(name="GaussianBlur", p=0.3),
        TransformParams(name="GaussNoise", p=0.3, args={"std_range": [0.012, 0.028]}),
        TransformParams(name="HueSaturationValue", p=0.5),
        TransformParams(name="RGBShift", p=0.5),
    ),
    # What the Kubeflow TLT pipeline told TLT's augment: 10 degrees, mirrored, hue 5 degrees, blur of 5 pixels with 1.5;
    # its saturation of 1.0 is a factor and changes nothing. TLT did all of it to each image; here it is at random.
    # OpenCV's hue has 180 steps, 2 degrees each.
    "tlt": (
        TransformParams(name="Rotate", p=1, args={"limit": [-10, 10]}),
        TransformParams(name="HorizontalFlip", p=0.5),
        TransformParams(
            name="HueSaturationValue",
            p=0.5,
            args={"hue_shift_limit": [-2.5, 2.5], "sat_shift_limit": [0, 0], "val_shift_limit": [0, 0]},
        ),
        TransformParams(name="GaussianBlur", p=0.5, args={"blur_limit": [5, 5], "sigma_limit": [1.5, 1.5]}),
    ),
    # The whole picture at half to four fifths of its size, on black: at 0.8 a tenth to each side is free.
    "zoom_out": (
        TransformParams(
            name="Affine", p=1, args={"scale": [0.5, 0.8], "keep_ratio": True, "translate_percent": [-0.1, 0.1]}
        ),
    ),
}


class AugmentParams(Spec):
    """Offline augmentation of the training part only; boxes follow each transform."""

    copies: int = Field(1, ge=1, le=20, description="augmented images made from each training image")
    min_visibility: Fraction = Field(0.3, description="a box that keeps less of its area is dropped and counted")
    presets: list[Preset] = Field(
        default_factory=list, description="named sets of transforms, in this order; nothing named at all: [drip]"
    )
    transforms: list[TransformParams] = Field(
        default_factory=list, description="transforms of albumentations, after those of the presets"
    )

    @property
    def chain(self) -> list[TransformParams]:
        """All transforms, in the order in which they act."""
        presets = self.presets or ([] if self.transforms else ["drip"])
        return [*(t for name in presets for t in PRESETS[name]), *self.transforms]


class OnlineAugmentation(Spec):
    """Random changes of each training image at each epoch."""

    hflip: Fraction = 0.5
    vflip: Fraction = 0.0
    rotate90: Fraction = Field(0.0, description="probability of a rotation by 90, 180 or 270 degrees")
    scale: float = Field(0.0, ge=0, le=0.9, description="zoom by a factor in 1-scale .. 1+scale")
    translate: float = Field(0.0, ge=0, le=0.5, description="shift by up to this share of the image")
    color: Fraction = Field(0.2, description="strength of brightness, contrast, saturation and hue changes")


class TrainParams(Spec):
    instead: ClassVar[Mapping[str, str]] = {"pretrained": "use start_from"}

    epochs: int = Field(18, ge=1, le=10_000, description="passes over the train split")
    batch_size: int = Field(8, ge=1, le=1024, description="images per step; at most the train split's")
    learning_rate: float = Field(3e-3, gt=0, le=1, description="the highest, after the warm-up")
    weight_decay: float = Field(1e-2, ge=0, le=1, description="decoupled (AdamW), on weights but not on biases")
    warmup_epochs: float = Field(1.0, ge=0)
    evaluate_every: int = Field(5, ge=1, description="epochs between evaluations on the val split")
    augmentation: OnlineAugmentation = OnlineAugmentation()
    threads: int = Field(0, ge=0, le=256, description="0: as many as the process may use")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of the multiplications; auto is bfloat16 where the CPU has instructions for it"
    )
    start_from: StartFrom = Field(None, description=DESCRIPTION)


class RetrainParams(TrainParams):
    """After pruning: what is not named comes from `train`, but for these two."""

    epochs: int = Field(8, ge=1, le=10_000, description="passes over the train split, after pruning")
    learning_rate: float = Field(1e-3, gt=0, le=1, description="the highest, after the warm-up")


class EvaluateParams(Spec):
    score_threshold: Fraction = Field(0.01, description="detections below it are not scored")
    nms_iou: Fraction = 0.5
    max_detections: int = Field(100, ge=1, le=1000)
    min_box_px: float = Field(0.0, ge=0, description="boxes of the ground truth with a smaller side are ignored")
    splits: list[str] = Field(default_factory=lambda: ["val"], min_length=1, description="the first one is gated on")


class SearchParams(Spec):
    """Prune, retrain shortly, evaluate: `ratio` first, then more is kept until little enough is lost."""

    max_drop: Fraction = Field(
        0.05, description="most that a try may lose after its short retraining, on the evaluation"
    )
    tries: int = Field(4, ge=1, le=32, description="at most so many sizes are tried")
    epochs: int = Field(2, ge=1, le=1000, description="of the short retraining; the rest is as in retrain")


class PruneParams(Spec):
    """Structured pruning of channels (torch-pruning). One of the two targets."""

    target: Literal["parameters", "channels"] = Field("parameters", description="what `ratio` counts")
    ratio: float = Field(0.28, gt=0, lt=1, description="share kept of the parameters, or of the channels")
    importance: Literal["magnitude", "bn_scale", "taylor"] = "magnitude"
    round_to: int = Field(8, ge=1, le=64, description="channels are rounded down to multiples of it")
    max_kept: float = Field(0.98, gt=0, le=1, description="a model that keeps more of its parameters was not pruned")
    search: SearchParams | None = Field(
        None, description="{} searches towards `ratio` under a floor of mAP; null: pruned to `ratio` once"
    )


class ExportParams(Spec):
    opset: int = Field(17, ge=13, le=20)
    dynamic_batch: bool = True
    score_threshold: Fraction = Field(0.3, description="written to model.json: the client's default threshold")


Rung = Literal["ptq", "ptq_other", "mixed", "qat", "float"]
RUNGS: tuple[Rung, ...] = ("ptq", "ptq_other", "mixed", "qat", "float")
"""Ways to a model that is smaller and faster, each costlier to make or to run than the one before: INT8 by `method`; by
other methods; with the layers that lose most in float32; after fine-tuning with rounded values; the float32 model."""


class QuantizeParams(Spec):
    """INT8 by explicit Q/DQ (onnxruntime quantize_static) with a recorded calibration set."""

    method: Literal["percentile", "entropy", "minmax"] = Field(
        "percentile",
        description="of choosing ranges; entropy is slow, and cuts too much off pictures with flat grounds",
    )
    images: int = Field(
        100, ge=1, le=10_000, description="at most so many, of the train split only, spread over the classes"
    )
    percentile: float = Field(99.99, gt=50, le=100)
    per_channel: bool = True
    activation: Literal["uint8", "int8"] = Field(
        "uint8", description="int8 for TensorRT, uint8 is faster on a CPU; the speed of int8 is not judged here"
    )
    ladder: list[Rung] = Field(
        default_factory=lambda: list(RUNGS),
        description="tried in this order; the first that loses little and is not slower wins; []: nothing is judged",
    )
    max_drop: Fraction | None = Field(
        None, description="most that a rung may lose of gates.quality.metric; null: gates.quality.max_drop_quantized"
    )
    max_drop_class: Fraction | None = Field(
        None, description="most that it may lose of the AP of any class; null: gates.quality.max_drop_class"
    )
    min_speedup: float | None = Field(
        1.0, gt=0, le=100, description="against float32, on this machine, batch 1 and 8; null: speed is not judged"
    )
    qat_epochs: int = Field(3, ge=1, le=1000, description="of the fine-tuning with rounded values")
    qat_learning_rate: float = Field(1e-4, gt=0, le=1, description="the highest of it")
    cache: str | None = Field(
        None,
        min_length=1,
        description="a calibration.cache with its calibration.json, of this model, data and machine; null: measured",
    )

    @field_validator("ladder")
    @classmethod
    def _once(cls, value: list[Rung]) -> list[Rung]:
        if len(set(value)) < len(value):
            raise ValueError("names a rung twice; name each once")
        if "float" in value[:-1]:
            raise ValueError("float always passes, so nothing comes after it; put it last")
        return value


class StageSpec(Spec):
    """What every spec carries."""

    seed: int = Field(42, ge=0, le=2**31 - 1)


class ConvertSpec(StageSpec, ConvertParams):
    snapshot: Path = Field(description="a snapshot, or what augment wrote")


class AugmentSpec(StageSpec, AugmentParams):
    snapshot: Path


class TrainSpec(StageSpec, TrainParams):
    """Also retrain: then `model` names the pruned checkpoint, whose architecture is kept."""

    records: Path = Field(description="folder written by dataset_convert")
    network: NetworkParams
    model: Path | None = None
    resume: bool = Field(
        False, description="goes on from the checkpoint in the output's folder, also one of other parameters"
    )


class EvaluateSpec(StageSpec, EvaluateParams):
    records: Path
    model: Path = Field(description=".pth or .onnx; the .onnx has its model.json beside it")


class PruneSpec(StageSpec, PruneParams):
    model: Path
    records: Path = Field(description="used by the taylor importance and by the search")
    network: NetworkParams = Field(NetworkParams(), description="for the short retraining of the search")
    training: TrainParams = Field(TrainParams(), description="likewise; its epochs are those of the search")
    evaluate: EvaluateParams = Field(
        EvaluateParams(), description="how a try of the search is judged, on the first split"
    )
    metric: Literal["mAP50", "mAP"] = "mAP50"


class ExportSpec(StageSpec, ExportParams):
    model: Path
    records: Path | None = Field(None, description="the export is compared on its images; null: on made ones")
    evaluate: EvaluateParams = EvaluateParams()


class QuantizeSpec(StageSpec, QuantizeParams):
    model: Path = Field(description="the exported FP32 .onnx with model.json beside it")
    records: Path
    checkpoint: Path | None = Field(None, description="the .pth that was exported, for the rung qat; null: without it")
    training: TrainParams = Field(TrainParams(), description="how it was trained; epochs and rate are those of qat_*")
    evaluate: EvaluateParams = Field(EvaluateParams(), description="how each rung is judged, on the first split")
    baseline: Path | None = Field(None, description="results.json of the model before; null: `model` is evaluated here")
    metric: Literal["mAP50", "mAP"] = "mAP50"
    floor: Fraction | None = Field(None, description="a rung below it does not pass, where the model before is above")
