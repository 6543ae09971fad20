"""What each command of the cpu toolkit takes: one pydantic model a stage, the YAML that `-e` names.

Imports no torch: `refit.toolkits.cpu` uses the same models to validate pipeline files.
The fields of `*Params` are what a pipeline file may set; `*Spec` adds the paths that the plan fills in.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from refit.specs import Spec

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


class TransformParams(Spec):
    """One albumentations transform by its class name, e.g. {name: RandomRotate90, p: 0.5}."""

    name: str = Field(pattern=r"^[A-Z][A-Za-z0-9]*$")
    p: Fraction = 0.5
    args: dict[str, int | float | bool | str | list[float] | list[int]] = Field(default_factory=dict)


class AugmentParams(Spec):
    """Offline augmentation of the training part only; boxes follow each transform."""

    copies: int = Field(1, ge=1, le=20, description="augmented images made from each training image")
    min_visibility: Fraction = Field(0.3, description="a box that keeps less of its area is dropped and counted")
    transforms: list[TransformParams] = Field(
        default_factory=lambda: [
            TransformParams(name="RandomRotate90", p=0.5),
            TransformParams(name="GaussianBlur", p=0.3),
            TransformParams(name="GaussNoise", p=0.3, args={"std_range": [0.012, 0.028]}),
            TransformParams(name="HueSaturationValue", p=0.5),
            TransformParams(name="RGBShift", p=0.5),
        ],
        min_length=1,
    )


class OnlineAugmentation(Spec):
    """Random changes of each training image at each epoch."""

    hflip: Fraction = 0.5
    vflip: Fraction = 0.0
    rotate90: Fraction = Field(0.0, description="probability of a rotation by 90, 180 or 270 degrees")
    scale: float = Field(0.0, ge=0, le=0.9, description="zoom by a factor in 1-scale .. 1+scale")
    translate: float = Field(0.0, ge=0, le=0.5, description="shift by up to this share of the image")
    color: Fraction = Field(0.2, description="strength of brightness, contrast, saturation and hue changes")


class TrainParams(Spec):
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
    pretrained: str | None = Field(None, description="a checkpoint of this toolkit to start from; null: random weights")


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


class PruneParams(Spec):
    """Structured pruning of channels (torch-pruning). One of the two targets."""

    target: Literal["parameters", "channels"] = Field("parameters", description="what `ratio` counts")
    ratio: float = Field(0.28, gt=0, lt=1, description="share kept of the parameters, or of the channels")
    importance: Literal["magnitude", "bn_scale", "taylor"] = "magnitude"
    round_to: int = Field(8, ge=1, le=64, description="channels are rounded down to multiples of it")


class ExportParams(Spec):
    opset: int = Field(17, ge=13, le=20)
    dynamic_batch: bool = True
    score_threshold: Fraction = Field(0.3, description="written to model.json: the client's default threshold")


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
    activation: Literal["uint8", "int8"] = Field("uint8", description="int8 for TensorRT, uint8 is faster on a CPU")


class InferenceParams(Spec):
    score_threshold: Fraction = 0.3
    draw: bool = True


class StageSpec(Spec):
    """What every spec carries."""

    seed: int = Field(42, ge=0, le=2**31 - 1)


class ConvertSpec(StageSpec, ConvertParams):
    snapshot: Path


class AugmentSpec(StageSpec, AugmentParams):
    records: Path = Field(description="folder written by dataset_convert")


class TrainSpec(StageSpec, TrainParams):
    """Also retrain: then `model` names the pruned checkpoint, whose architecture is kept."""

    records: Path = Field(description="folder written by dataset_convert (val and other splits)")
    train_records: Path | None = Field(
        None, description="folder written by augment; null: the train split of `records`"
    )
    network: NetworkParams
    model: Path | None = None


class EvaluateSpec(StageSpec, EvaluateParams):
    records: Path
    model: Path = Field(description=".pth or .onnx; the .onnx has its model.json beside it")


class PruneSpec(StageSpec, PruneParams):
    model: Path
    records: Path = Field(description="used by the taylor importance, and to evaluate after pruning")


class ExportSpec(StageSpec, ExportParams):
    model: Path
    records: Path | None = Field(None, description="the export is compared on its images; null: on made ones")
    evaluate: EvaluateParams = EvaluateParams()


class QuantizeSpec(StageSpec, QuantizeParams):
    model: Path = Field(description="the exported FP32 .onnx with model.json beside it")
    records: Path


class InferenceSpec(StageSpec, InferenceParams):
    model: Path
    images: Path = Field(description="folder of images, searched with its subfolders")
