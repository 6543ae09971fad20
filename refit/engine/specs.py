"""What the stage commands of `python -m refit.engine` are told."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from refit.engine.record import Batches, Capability, Precision, Tensor, Version
from refit.specs import Spec


class CalibrationSpec(Spec):
    """INT8 ranges measured on images; exactly `batches` x `batch_size` of them."""

    images: Path = Field(description="folder with the images that prepare chose from the training part")
    batches: int = Field(10, ge=1, le=10_000)
    batch_size: int = Field(8, ge=1, le=1024)
    method: Literal["entropy_2", "minmax"] = Field(
        "entropy_2", description="how a range is chosen: minmax keeps the largest value, entropy_2 may cut it off"
    )


class BuildSpec(Spec):
    """The spec of `python -m refit.engine build`."""

    onnx: Path = Field(description="plain or with Q/DQ nodes; model.json stands beside it for a calibration")
    precision: Precision = Field(
        "fp16", description="int8 from Q/DQ nodes or a calibration; best: fp16, and int8 where there is one of these"
    )
    batch: Batches = Field(Batches(min=1, opt=8, max=16), description="for a model with a free batch dim")
    workspace_mib: int = Field(4096, ge=16, description="memory that a layer may use while it runs")
    optimization_level: int = Field(3, ge=0, le=5, description="more: slower to build, perhaps faster to run")
    calibration: CalibrationSpec | None = None
    cache: Path | None = Field(None, description="calibration cache of an earlier build, with its cal.json beside it")
    fp32_layers: list[str] = Field(default_factory=list, description="layers that stay float32 (TensorRT 10)")
    timing_cache: Path | None = Field(None, description="of an earlier build; made faster by it, missing is no fault")

    @model_validator(mode="after")
    def _cache_of_what(self) -> BuildSpec:
        if self.cache is not None and self.calibration is None:
            raise ValueError("cache: needs calibration too, to know which images it must have been made from")
        if self.calibration is not None and self.precision not in ("int8", "best"):
            raise ValueError(f"calibration: is for INT8, and precision is {self.precision}; leave it out, or say int8")
        return self


class NotedGpu(Spec):
    """Which GPU built an engine: what nvidia-smi noted (`refit.engine.gpu.recording`), or what the profile declares."""

    csv: Path | None = Field(None, description="noted beside the engine while it was built")
    name: str = Field("", description="declared; only looked at where there is no csv")
    compute_capability: Capability | None = Field(None, description="declared; with a csv it must be the same")

    @model_validator(mode="after")
    def _something(self) -> NotedGpu:
        if self.csv is None and self.compute_capability is None:
            raise ValueError("needs csv or compute_capability; the plan itself does not say which GPU it is for")
        return self


class TaoCalibration(Spec):
    """What gen_trt_engine calibrated on."""

    images: Path
    batches: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    cache: Path = Field(description="the cache that it wrote; cal.json is written beside it")


class BuiltAs(Spec):
    """How an engine was built."""

    precision: Precision
    quantization: Literal["none", "calibrated", "explicit"] = "none"
    calibration: TaoCalibration | None = None

    @model_validator(mode="after")
    def _calibrated(self) -> BuiltAs:
        if (self.quantization == "calibrated") != (self.calibration is not None):
            raise ValueError("calibration is needed where quantization is 'calibrated', and only there")
        return self


class DescribeSpec(BuiltAs):
    """The spec of `python -m refit.engine describe`."""

    plan: Path = Field(description="the engine; engine.json is written beside the copy in the result folder")
    model: Path = Field(description="model.json")
    onnx: Path | None = Field(None, description="what it was built from; null: an encrypted .etlt")
    ladder: Path | None = Field(None, description="ladder.json of what built it: the winner's way counts")
    rungs: dict[str, BuiltAs] = Field(default_factory=dict, description="how each rung builds")
    batch: Batches | None = Field(None, description="null: one fixed batch size")
    gpu: NotedGpu
    tensorrt: Version | None = Field(None, description="of the deploy image; null: as the plan's head says")
    inputs: list[Tensor] = Field(default_factory=list, description="with the batch dim; empty: those of the ONNX file")
    outputs: list[Tensor] = Field(default_factory=list, description="likewise")
    builder: str = Field(min_length=1, description="e.g. the deploy image with its tag")

    @model_validator(mode="after")
    def _tensors(self) -> DescribeSpec:
        if self.onnx is None and not (self.inputs and self.outputs):
            raise ValueError("inputs and outputs are needed where there is no onnx to take them from")
        return self


class DeepStreamSpec(Spec):
    """What the DeepStream bundle needs beside the model."""

    batch_size: int = Field(1, ge=1, le=1024)
    source: str = Field(
        "file:///opt/nvidia/deepstream/deepstream/samples/streams/sample_1080p_h264.mp4", description="a stream's URI"
    )
    parser_library: str = Field(
        "/opt/nvidia/deepstream/deepstream/lib/libnvds_infercustomparser_tao.so",
        description="the library of NVIDIA's deepstream_tao_apps (post_processor/), where it was installed",
    )


class PackageSpec(Spec):
    """The spec of `python -m refit.engine package`."""

    model: Path = Field(description="model.json")
    onnx: Path | None = Field(None, description="null: plans only")
    engines: list[Path] = Field(default_factory=list, description="folders with engine.json, one for each GPU type")
    pruned: Path | None = Field(None, description="result.json of the pruning that onnx went through; null: of none")
    reference: Path | None = Field(None, description="reference.npz")
    precision: Precision = Field("fp32", description="of the ONNX file, where there is no plan")
    deepstream: DeepStreamSpec | None = Field(DeepStreamSpec(), description="null: no DeepStream bundle")

    @model_validator(mode="after")
    def _something(self) -> PackageSpec:
        if self.onnx is None and not self.engines:
            raise ValueError("needs onnx or engines: there is nothing to package")
        return self
