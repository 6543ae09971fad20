"""What the pipeline file says of edge bundles, and what each command takes. Nothing heavy: Airflow imports it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from refit.cpu.specs import EvaluateParams, Fraction
from refit.engine.specs import DeepStreamSpec
from refit.specs import Spec

Kind = Literal["onnx", "tflite", "coral", "saved_model", "frozen_graph", "tfjs", "deepstream"]
Converted = Literal["tflite", "coral", "saved_model", "frozen_graph", "tfjs"]

COMPILER = "edgetpu_compiler"  # Google's, which coral takes from PATH

Path = Annotated[str, Field(description="a path; tokens of the plan allowed", min_length=1)]


class Edge(Spec):
    """Which bundles a run makes; none by default. Each is evaluated and held against the FP32 ONNX model."""

    onnx: bool = Field(False, description="the ONNX file that a release takes, for ONNX Runtime on the device")
    tflite: bool = Field(False, description="TFLite in float32")
    coral: bool = Field(False, description="TFLite in uint8 alone, with labelmap.txt, for Coral's Edge TPU")
    saved_model: bool = Field(False, description="TensorFlow's SavedModel")
    frozen_graph: bool = Field(False, description="a graph with its weights in one .pb file")
    tfjs: bool = Field(False, description="TF.js, with a page that runs it in a browser")
    deepstream: Annotated[bool | DeepStreamSpec, Field(description="nvinfer's configuration with labels and ONNX")] = (
        False
    )
    images: int = Field(100, ge=1, le=10_000, description="of the train split, for the ranges of coral")
    max_drop: Fraction = Field(0.01, description="most of gates.quality.metric that a float bundle may lose")
    max_drop_uint8: Fraction = Field(0.02, description="the same of coral")
    policy: Literal["fail", "warn"] = Field("fail", description="warn: what lost more is told, the run goes on")

    @model_validator(mode="after")
    def _something(self) -> Edge:
        if not self.kinds:
            raise ValueError(f"names no bundle; turn one on ({', '.join(KINDS)}), or leave edge out")
        return self

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What is turned on, in the order of KINDS."""
        return tuple(kind for kind in KINDS if getattr(self, kind))


TITLES: Mapping[Kind, str] = {
    "onnx": "ONNX",
    "tflite": "TFLite",
    "coral": "uint8 TFLite for Coral",
    "saved_model": "SavedModel",
    "frozen_graph": "frozen graph",
    "tfjs": "TF.js",
    "deepstream": "DeepStream folder",
}
KINDS: tuple[Kind, ...] = tuple(TITLES)


class EdgeSpec(Spec):
    """What every spec carries."""

    seed: int = Field(42, ge=0, le=2**31 - 1)
    info: Path = Field(description="model.json of the exported model")


class SavedModelSpec(EdgeSpec):
    model: Path = Field(description="the exported FP32 .onnx")


class ConvertSpec(EdgeSpec):
    saved_model: Path = Field(description="the folder that the action saved_model wrote")


class CoralSpec(ConvertSpec):
    records: Path = Field(description="folder written by dataset_convert; ranges are measured on its train split")
    images: int = Field(100, ge=1, le=10_000)


class EdgeEvaluateSpec(EdgeSpec, EvaluateParams):
    kind: Converted
    model: Path = Field(description="out/ of the stage that made it")
    records: Path


class Bundled(Spec):
    """One kind of a bundle.

    Attributes:
        files: a path, a file or a folder -> its name in the bundle; "" puts a folder's content at the top.
        results: results.json of the evaluation of these very files.
    """

    files: dict[str, str]
    tensors: Path | None = Field(None, description="tensors.json of the conversion; null: as model.json says")
    results: Path
    notes: list[str] = Field(default_factory=list)


class BundleSpec(EdgeSpec):
    name: str = Field(description="the pipeline's name; part of the archives' names")
    metric: Literal["mAP50", "mAP"] = "mAP50"
    baseline: Path = Field(description="results.json of the FP32 ONNX model")
    bundles: Mapping[Kind, Bundled]
