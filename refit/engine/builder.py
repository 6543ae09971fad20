"""An engine built with TensorRT's Python package: version 10 with implicit INT8, version 11 strongly typed only.

What the two have and have not was read in the real bindings (tests/engine loads them): version 11 has no BuilderFlag
FP16, INT8 or OBEY_PRECISION_CONSTRAINTS, no IInt8EntropyCalibrator2, no set_calibration_profile and no
ILayer.precision; every network there is strongly typed, so its precisions are those of the ONNX file.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refit.command import BadSpec, StageError
from refit.engine.gpu import Device
from refit.engine.record import Batches, Tensor
from refit.engine.specs import BuildSpec

_TRITON_TYPES = {
    "FLOAT": "FP32",
    "HALF": "FP16",
    "BF16": "BF16",
    "INT8": "INT8",
    "UINT8": "UINT8",
    "INT32": "INT32",
    "INT64": "INT64",
    "BOOL": "BOOL",
}


def tensorrt() -> Any:
    """The package. Raises StageError where this image has none."""
    try:
        return importlib.import_module("tensorrt")
    except ImportError as exc:
        raise StageError(f"tensorrt cannot be imported ({exc}); run this stage in images/tensorrt") from None


@dataclass(frozen=True)
class Calibration:
    """INT8 ranges: an earlier cache, or batches to measure them on.

    Attributes:
        cache: an earlier cache's bytes; then the batches are not asked for.
        batches: makes them, from the first one.
        method: entropy_2 or minmax.
    """

    batch_size: int
    batches: Callable[[], Iterator[NDArray[Any]]]
    cache: bytes | None = None
    method: str = "entropy_2"


@dataclass(frozen=True)
class Built:
    """An engine, with what there is to say about it.

    Attributes:
        quantization: as in engine.json.
        cache: the calibration cache that TensorRT wrote, None where it measured nothing.
        timing: the timing cache after the build.
    """

    plan: bytes
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    profile: Batches | None
    quantization: str
    cache: bytes | None
    timing: bytes


class Builder:
    """One build.

    Args:
        trt: the tensorrt package.
        spec: what is wanted.
        calibration: for INT8 without Q/DQ nodes.
        device: a GPU, for the calibration's input.
    """

    def __init__(self, trt: Any, spec: BuildSpec, calibration: Calibration | None, device: Device) -> None:
        self.trt = trt
        self.spec = spec
        self.calibration = calibration
        self.device = device
        self.typed = int(trt.__version__.split(".")[0]) >= 11
        self.logger, self.said = _logger(trt)

    def build(self) -> Built:
        """Parse, configure, build, and read the result back.

        Raises:
            BadSpec: this TensorRT cannot make of this ONNX file what the spec wants; says the way that is left.
            BadData: an image of the calibration cannot be read.
            StageError: the ONNX file is not understood, or the build fails; with TensorRT's own words.
        """
        trt, spec = self.trt, self.spec
        trt.init_libnvinfer_plugins(self.logger, "")
        builder = trt.Builder(self.logger)
        network = builder.create_network(0)
        self._parse(network)
        config = builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, spec.workspace_mib * 2**20)
        config.builder_optimization_level = spec.optimization_level
        layers = [network.get_layer(i) for i in range(network.num_layers)]
        explicit = any(layer.type in (trt.LayerType.QUANTIZE, trt.LayerType.DEQUANTIZE) for layer in layers)
        profile = self._profile(builder, network, spec.batch)
        if profile is not None:
            config.add_optimization_profile(profile)
        calibrator = None
        if self.typed:
            self._check_types(layers, explicit)
        else:
            calibrator = self._set_precision(builder, network, config, explicit)
            if spec.fp32_layers:
                self._keep_float({layer.name: layer for layer in layers}, config)
        cache = config.create_timing_cache(_read(spec.timing_cache))
        # A cache of another GPU or version is refused by TensorRT; then the build just takes its time.
        if not config.set_timing_cache(cache, False):
            config.set_timing_cache(config.create_timing_cache(b""), False)
        host = builder.build_serialized_network(network, config)
        if calibrator is not None and calibrator.failure is not None:
            raise calibrator.failure
        if host is None:
            raise StageError(f"{spec.onnx}: TensorRT {trt.__version__} cannot build it: {self._reason()}")
        plan = bytes(host)
        quantization = "explicit" if explicit else ("calibrated" if calibrator is not None else "none")
        written = calibrator.written if calibrator is not None else None
        timing = bytes(config.get_timing_cache().serialize())
        return Built(plan, *self._look(plan), quantization, written, timing)

    def _parse(self, network: Any) -> None:
        parser = self.trt.OnnxParser(network, self.logger)
        if not parser.parse_from_file(str(self.spec.onnx)):
            errors = [parser.get_error(i) for i in range(parser.num_errors)]
            told = "; ".join(f"node {e.node_name() or e.node()}: {e.desc()}" for e in errors) or self._reason()
            raise StageError(f"{self.spec.onnx}: TensorRT {self.trt.__version__} does not understand it: {told}")

    def _profile(self, builder: Any, network: Any, batches: Batches) -> Any:
        """The optimization profile; None for a network without free dims."""
        profile = builder.create_optimization_profile()
        free = False
        for i in range(network.num_inputs):
            tensor = network.get_input(i)
            shape = tuple(tensor.shape)
            if -1 in shape[1:]:
                raise BadSpec(
                    f"{self.spec.onnx}: input {tensor.name!r} is {list(shape)}: only the batch may be free; "
                    "export it with a fixed size"
                )
            if shape[:1] == (-1,):
                free = True
                profile.set_shape(tensor.name, *((n, *shape[1:]) for n in (batches.min, batches.opt, batches.max)))
        return profile if free else None

    def _set_precision(self, builder: Any, network: Any, config: Any, explicit: bool) -> Any:
        """TensorRT 10: flags, and the calibrator (None where none is needed)."""
        trt, spec = self.trt, self.spec
        if spec.precision in ("fp16", "best"):
            config.set_flag(trt.BuilderFlag.FP16)
        calibrator = None
        if explicit:
            if spec.precision not in ("int8", "best"):
                raise BadSpec(
                    f"precision: {spec.precision}, and {spec.onnx} holds Q/DQ nodes: it is an INT8 model; "
                    "say int8, or give the file before quantize"
                )
            if self.calibration is not None:
                raise BadSpec(f"calibration: {spec.onnx} holds Q/DQ nodes, which bring their ranges; leave it out")
            config.set_flag(trt.BuilderFlag.INT8)
        elif self.calibration is not None and spec.precision in ("int8", "best"):
            config.set_flag(trt.BuilderFlag.INT8)
            calibrator = self._calibrator(builder, network, config, self.calibration)
        elif spec.precision == "int8":
            raise BadSpec(
                f"precision: int8 without ranges: {spec.onnx} holds no Q/DQ nodes; "
                "give calibration, or the file that quantize made"
            )
        return calibrator

    def _keep_float(self, layers: Mapping[str, Any], config: Any) -> None:
        trt = self.trt
        for name in self.spec.fp32_layers:
            if name not in layers:
                near = ", ".join(sorted(layers)[:5])
                raise BadSpec(f"fp32_layers: {self.spec.onnx} has no layer {name!r}; its first ones are {near}")
            layers[name].precision = trt.float32
            for i in range(layers[name].num_outputs):
                layers[name].set_output_type(i, trt.float32)
        config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)

    def _calibrator(self, builder: Any, network: Any, config: Any, calibration: Calibration) -> Any:
        if network.num_inputs != 1:
            raise BadSpec(f"calibration: {self.spec.onnx} has {network.num_inputs} inputs; images can feed one")
        shape = tuple(network.get_input(0).shape)
        size = calibration.batch_size
        if shape[0] not in (-1, size):
            raise BadSpec(f"calibration.batch_size: {size}, and {self.spec.onnx} takes batches of {shape[0]} only")
        if shape[0] == -1:
            fixed = Batches(min=size, opt=size, max=size)
            config.set_calibration_profile(self._profile(builder, network, fixed))
        calibrator = _calibrator(self.trt, calibration, self.device, (size, *shape[1:]))
        config.int8_calibrator = calibrator
        return calibrator

    def _check_types(self, layers: Sequence[Any], explicit: bool) -> None:
        """TensorRT 11: the precisions are the ONNX file's, so what is asked for must be in it."""
        trt, spec = self.trt, self.spec
        route = f"TensorRT {trt.__version__} takes precisions from the ONNX file alone"
        if self.calibration is not None:
            raise BadSpec(f"calibration: {route} and has no calibrator; make Q/DQ nodes with quantize instead")
        if spec.fp32_layers:
            raise BadSpec(f"fp32_layers: {route}; leave these layers out of quantize instead")
        half = any(
            layer.get_output(i).dtype in (trt.float16, trt.bfloat16)
            for layer in layers
            for i in range(layer.num_outputs)
        )
        if spec.precision in ("fp32", "fp16") and explicit:
            raise BadSpec(f"precision: {spec.precision}, and {spec.onnx} holds Q/DQ nodes: {route}; say int8")
        if spec.precision == "int8" and not explicit:
            raise BadSpec(f"precision: int8, and {spec.onnx} is plain: {route}; run quantize first (explicit Q/DQ)")
        if spec.precision == "fp16" and not half:
            raise BadSpec(f"precision: fp16, and {spec.onnx} is float32: {route}; export it in float16, or say fp32")
        if spec.precision == "fp32" and half:
            raise BadSpec(f"precision: fp32, and {spec.onnx} holds float16: {route}; say fp16")

    def _look(self, plan: bytes) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Batches | None]:
        """The engine as its users meet it; that it can be loaded is proven by the way."""
        trt = self.trt
        engine = trt.Runtime(self.logger).deserialize_cuda_engine(plan)
        if engine is None:
            raise StageError(f"{self.spec.onnx}: the engine that was built cannot be loaded: {self._reason()}")
        tensors: dict[bool, list[Tensor]] = {True: [], False: []}
        profile = None
        for name in (engine.get_tensor_name(i) for i in range(engine.num_io_tensors)):
            kind, dims = engine.get_tensor_dtype(name), tuple(engine.get_tensor_shape(name))
            if kind.name not in _TRITON_TYPES:
                raise StageError(f"{self.spec.onnx}: {name!r} is {kind.name}, which Triton cannot serve")
            is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            tensors[is_input].append(Tensor(name=name, datatype=_TRITON_TYPES[kind.name], dims=dims))
            if is_input and dims[:1] == (-1,):
                low, best, high = (next(iter(shape)) for shape in engine.get_tensor_profile_shape(name, 0))
                profile = Batches(min=low, opt=best, max=high)
        return tuple(tensors[True]), tuple(tensors[False]), profile

    def _reason(self) -> str:
        return " ".join(self.said[-3:]) or "it gives no reason"


def _read(path: Path | None) -> bytes:
    return path.read_bytes() if path is not None and path.is_file() else b""


def _logger(trt: Any) -> tuple[Any, list[str]]:
    """A logger for TensorRT that prints warnings and errors, and the list in which it keeps the errors."""
    said: list[str] = []

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                said.append(msg)
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR, trt.ILogger.WARNING):
                print(f"TensorRT: {msg}", flush=True)

    return Logger(), said


def _calibrator(trt: Any, calibration: Calibration, device: Device, shape: Sequence[int]) -> Any:
    """The calibrator that TensorRT 10 asks for batches.

    TensorRT swallows what is raised in these methods (it prints "Exception caught in"), so it is kept in `failure`.
    """

    kind = trt.IInt8EntropyCalibrator2 if calibration.method == "entropy_2" else trt.IInt8MinMaxCalibrator

    class Calibrator(kind):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            kind.__init__(self)
            self.failure: Exception | None = None
            self.written: bytes | None = None
            self._batches = calibration.batches()
            self._address: int | None = None

        def get_batch_size(self) -> int:
            return calibration.batch_size

        def get_batch(self, names: Sequence[str]) -> list[int] | None:
            try:
                batch = next(self._batches, None)
                if batch is None:
                    return None
                if batch.shape != tuple(shape):
                    raise BadSpec(
                        f"model.json: its input makes batches of {list(batch.shape)}, the ONNX file takes {list(shape)}"
                    )
                if self._address is None:  # not before: with a cache TensorRT asks for no batch, unless it refuses it
                    self._address = device.allocate(batch.size * 4)
                device.upload(self._address, np.ascontiguousarray(batch, dtype=np.float32).tobytes())
            except Exception as exc:
                self.failure = exc
                return None
            return [self._address]

        def read_calibration_cache(self) -> bytes | None:
            return calibration.cache

        def write_calibration_cache(self, cache: Any) -> None:
            self.written = bytes(cache)

    return Calibrator()
