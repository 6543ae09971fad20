"""engine.json, beside every TensorRT plan, and cal.json, beside every INT8 calibration cache.

A plan runs on one TensorRT version and one compute capability, and says so only when it fails to load. So both are
written down when it is built, with the hashes of everything that it was made from.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from refit.files import sha256, write_json

ENGINE = "engine.json"
CALIBRATION = "cal.json"
PLAN = "model.plan"
CACHE = "cal.bin"

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Version = Annotated[str, StringConstraints(pattern=r"^\d+(\.\d+){1,3}$")]
Capability = Annotated[str, StringConstraints(pattern=r"^\d{1,2}\.\d$")]
Precision = Literal["fp32", "fp16", "int8", "best"]
DataType = Literal["FP32", "FP16", "BF16", "INT8", "UINT8", "INT32", "INT64", "BOOL"]
"""Triton's names."""


def agree(version: str, other: str) -> bool:
    """Two versions say the same, as far as the shorter one goes: 10.8 and 10.8.0.43 do, 10.1 and 10.16 do not."""
    return all(a == b for a, b in zip(version.split("."), other.split("."), strict=False))


class RecordError(ValueError):
    """An engine.json or cal.json that cannot be used; names file and key, and says what to do."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_: Literal[1] = Field(1, alias="schema")

    def write(self, path: Path) -> None:
        write_json(path, self.model_dump(by_alias=True, mode="json"))


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Tensor(_Part):
    """An input or output of an engine; `dims` with the batch dim, -1 is any size."""

    name: str = Field(min_length=1)
    datatype: DataType
    dims: tuple[int, ...]


class Gpu(_Part):
    """The GPU that built a plan. `source`: asked from the driver, noted by nvidia-smi in the same container, or only
    declared by the cluster profile."""

    name: str
    compute_capability: Capability
    source: Literal["driver", "nvidia-smi", "declared"]


class Batches(_Part):
    """Batch sizes that an engine takes, and the one that it is fastest with."""

    min: int = Field(1, ge=1, le=1024)
    opt: int = Field(1, ge=1, le=1024)
    max: int = Field(1, ge=1, le=1024)

    @model_validator(mode="after")
    def _order(self) -> Batches:
        if not self.min <= self.opt <= self.max:
            raise ValueError(f"min {self.min}, opt {self.opt}, max {self.max}: they must not fall")
        return self


class CalibrationFacts(_Part):
    """What INT8 ranges rest on. Two caches are the same when these are."""

    method: Literal["refit/entropy_2", "refit/minmax", "tao/entropy_2"] = Field(
        description="who fed the images, and the algorithm"
    )
    model_sha256: Sha256 = Field(description="of the ONNX file")
    images_digest: Sha256 = Field(description="of the images and how they are fed (`refit.engine.pictures`)")
    tensorrt: Version
    compute_capability: Capability | None = Field(None, description="of the GPU; null: written before it was noted")


class CalibrationRecord(_Record):
    """cal.json."""

    facts: CalibrationFacts
    cache_sha256: Sha256
    images: int = Field(ge=1)
    batch_size: int = Field(ge=1)

    @staticmethod
    def read(path: Path) -> CalibrationRecord:
        return _read(CalibrationRecord, path)


class Plan(_Part):
    file: str = Field(pattern=r"^[^/\\]+$", description="its name, beside engine.json")
    sha256: Sha256
    bytes: int = Field(ge=1)

    @staticmethod
    def of(path: Path) -> Plan:
        return Plan(file=path.name, sha256=sha256(path), bytes=path.stat().st_size)


class EngineRecord(_Record):
    """engine.json.

    Attributes:
        quantization: "calibrated" by images, "explicit" by Q/DQ nodes of the ONNX file, "none".
        profile: None for an engine with one fixed batch size.
        builder: who built it, e.g. "refit 0.1.0".
    """

    plan: Plan
    tensorrt: Version
    gpu: Gpu
    precision: Precision
    quantization: Literal["none", "calibrated", "explicit"]
    onnx_sha256: Sha256 | None = Field(description="null: made from an encrypted .etlt")
    calibration: CalibrationRecord | None = None
    profile: Batches | None
    inputs: tuple[Tensor, ...] = Field(min_length=1)
    outputs: tuple[Tensor, ...] = Field(min_length=1)
    builder: str

    @property
    def batch(self) -> bool:
        """The first dim of every tensor is a free batch dim."""
        return all(t.dims and t.dims[0] == -1 for t in (*self.inputs, *self.outputs))

    @model_validator(mode="after")
    def _whole(self) -> EngineRecord:
        if self.batch != (self.profile is not None):
            raise ValueError("profile: needed where every tensor has a free batch dim, and only there")
        if (self.quantization == "calibrated") != (self.calibration is not None):
            raise ValueError("calibration: needed where quantization is 'calibrated', and only there")
        return self

    def check_file(self, folder: Path) -> Path:
        """The plan file below a folder, when it is the one that is described. Raises RecordError."""
        path = folder / self.plan.file
        if not path.is_file():
            raise RecordError(f"{path}: is missing, and {ENGINE} in that folder describes it; build the engine again")
        if path.stat().st_size != self.plan.bytes or sha256(path) != self.plan.sha256:
            raise RecordError(f"{path}: is not the plan that {ENGINE} in that folder describes; describe it again")
        return path

    @staticmethod
    def read(path: Path) -> EngineRecord:
        """Raises RecordError."""
        return _read(EngineRecord, path)


R = TypeVar("R", bound=_Record)


def _read(kind: type[R], path: Path) -> R:
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
        return kind.model_validate(value)
    except ValidationError as exc:
        fault = exc.errors(include_url=False)[0]
        at = ".".join(map(str, fault["loc"]))
        raise RecordError(f"{path}: {at}: {fault['msg']} (it is {str(fault['input'])[:80]!r})") from None
    except OSError as exc:
        raise RecordError(f"{path}: cannot be read ({exc.strerror})") from None
    except ValueError as exc:
        raise RecordError(f"{path}: is not JSON ({exc})") from None
