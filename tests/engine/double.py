"""TensorRT for tests: the real Python bindings, with a played builder, parser and runtime.

Runs in a process of its own (`tests.engine.bindings.run`), where `tensorrt_bindings` is NVIDIA's wheel and the C++
libraries behind it are empty. Enums, the logger and the calibrator's base class are the real ones; each played class is
held against the real one, names of methods and of their arguments, before anything is built. An "ONNX file" is JSON:
{"inputs": {name: dims}, "outputs": {name: dims}, "layers": [[name, LayerType, DataType], ...], "fault": ...}.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorrt_bindings as real

from refit.command import StageError
from refit.engine.builder import Builder as Subject
from refit.engine.builder import Calibration
from refit.engine.specs import BuildSpec

CALLS: list[list[Any]] = []


class Bytes:
    """IHostMemory: a buffer."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def __buffer__(self, flags: int) -> memoryview:
        return memoryview(self.content)

    def __bytes__(self) -> bytes:
        return self.content


class ITensor:
    def __init__(self, name: str, dims: list[int], dtype: str = "FLOAT") -> None:
        self.name, self.shape, self.dtype = name, dims, getattr(real.DataType, dtype)


class ILayer:
    def __init__(self, name: str, kind: str, dtype: str) -> None:
        self.name, self.type, self.num_outputs = name, getattr(real.LayerType, kind), 1
        self._output = ITensor(f"{name}:0", [-1, 3], dtype)

    def get_output(self, index: int) -> ITensor:
        return self._output


class TypedLayer(ILayer):
    """A layer of TensorRT 10, whose precision can be set."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "precision":
            CALLS.append(["precision", self.name, value.name])
        super().__setattr__(name, value)

    precision = None

    def set_output_type(self, index: int, dtype: Any) -> None:
        CALLS.append(["set_output_type", self.name, dtype.name])


class INetworkDefinition:
    def __init__(self) -> None:
        self.content: dict[str, Any] = {}

    @property
    def num_inputs(self) -> int:
        return len(self.content["inputs"])

    def get_input(self, index: int) -> ITensor:
        return [ITensor(*item) for item in self.content["inputs"].items()][index]

    @property
    def num_layers(self) -> int:
        return len(self.content["layers"])

    def get_layer(self, index: int) -> ILayer:
        kind = TypedLayer if hasattr(real.ILayer, "precision") else ILayer
        self._layers = getattr(self, "_layers", None) or [kind(*layer) for layer in self.content["layers"]]
        return self._layers[index]


class IOptimizationProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, list[list[int]]] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        self.shapes[input] = [list(min), list(opt), list(max)]


class ITimingCache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> Bytes:
        return Bytes(self.content or b"new timings")


class IBuilderConfig:
    builder_optimization_level = 3
    int8_calibrator = None

    def __init__(self) -> None:
        self.profiles: list[IOptimizationProfile] = []

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        CALLS.append(["set_memory_pool_limit", pool.name, pool_size])

    def set_flag(self, flag: Any) -> None:
        assert isinstance(flag, real.BuilderFlag)
        CALLS.append(["set_flag", flag.name])

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        CALLS.append(["add_optimization_profile", profile.shapes])
        self.profiles.append(profile)
        return 0

    def set_calibration_profile(self, profile: IOptimizationProfile) -> bool:
        CALLS.append(["set_calibration_profile", profile.shapes])
        return True

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        return ITimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        CALLS.append(["set_timing_cache", cache.content.decode(), ignore_mismatch])
        self._cache = cache
        return cache.content != b"of another GPU"

    def get_timing_cache(self) -> ITimingCache:
        return self._cache


class Builder:
    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        return INetworkDefinition()

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> Bytes | None:
        calibrator = config.int8_calibrator
        if calibrator is not None:
            kinds = (real.IInt8EntropyCalibrator2, real.IInt8MinMaxCalibrator)
            CALLS.append(["calibrator", next(kind.__name__ for kind in kinds if isinstance(calibrator, kind))])
            self._calibrate(network, calibrator)
        if network.content.get("fault") == "build":
            self._logger.log(real.ILogger.ERROR, "no tactic fits")
            return None
        shapes = config.profiles[0].shapes if config.profiles else {}
        return Bytes(json.dumps({**network.content, "profile": shapes}).encode())

    def _calibrate(self, network: INetworkDefinition, calibrator: Any) -> None:
        cache = calibrator.read_calibration_cache()
        while cache is None and calibrator.get_batch(list(network.content["inputs"])) is not None:
            pass
        if cache is None:
            calibrator.write_calibration_cache(memoryview(b"measured ranges"))


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: Any) -> None:
        self._network, self._fault = network, ""

    def parse_from_file(self, model: str) -> bool:
        self._network.content = json.loads(Path(model).read_text())
        self._fault = self._network.content.get("fault", "")
        return self._fault != "parse"

    @property
    def num_errors(self) -> int:
        return 1 if self._fault == "parse" else 0

    def get_error(self, index: int) -> ParserError:
        return ParserError()


class ParserError:
    def desc(self) -> str:
        return "no importer for op Funny"

    def node(self) -> int:
        return 7

    def node_name(self) -> str:
        return "funny_1"


class ICudaEngine:
    def __init__(self, content: dict[str, Any]) -> None:
        self._content, self._all = content, {**content["inputs"], **content["outputs"]}

    @property
    def num_io_tensors(self) -> int:
        return len(self._all)

    def get_tensor_name(self, index: int) -> str:
        return list(self._all)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return real.TensorIOMode.INPUT if name in self._content["inputs"] else real.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return real.DataType.FLOAT

    def get_tensor_shape(self, name: str) -> list[int]:
        return self._all[name]

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[list[int]]:
        return self._content["profile"][name]


class Runtime:
    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine:
        return ICudaEngine(json.loads(serialized_engine))


PLAYED = [Builder, IBuilderConfig, ICudaEngine, ILayer, INetworkDefinition, IOptimizationProfile, ITensor]
PLAYED += [ITimingCache, OnnxParser, ParserError, Runtime]
# Only TensorRT 10 has them, and only its path uses them.
OLD = {"set_calibration_profile", "int8_calibrator"}


def check() -> None:
    """Every public name of a played class is in the real one, and methods take arguments of the same names."""
    new = int(real.__version__.split(".")[0]) >= 11
    for cls in (*PLAYED, *(() if new else (TypedLayer,))):
        actual = getattr(real, "ILayer" if cls is TypedLayer else cls.__name__)
        for name, value in vars(cls).items():
            if name.startswith("_") or (new and name in OLD):
                continue
            assert hasattr(actual, name), f"{actual.__name__} of {real.__version__} has no {name}"
            if callable(value):
                told = re.search(rf"{name}\(self: (.*?)\) ->", getattr(actual, name).__doc__ or "")
                assert told, f"{actual.__name__}.{name} says no signature"
                names = re.findall(r"(?:^|, )(\w+): ", f"self: {told.group(1)}")
                given = value.__code__.co_varnames[: value.__code__.co_argcount]
                assert list(given) == names, f"{actual.__name__}.{name} takes {names}, not {list(given)}"


class Package:
    """What `import tensorrt` gives: the real package, with the played classes in it."""

    Builder, OnnxParser, Runtime = Builder, OnnxParser, Runtime

    def __getattr__(self, name: str) -> Any:
        return getattr(real, name)


class Device:
    """The GPU's memory."""

    def allocate(self, size: int) -> int:
        CALLS.append(["allocate", size])
        return 4096

    def upload(self, address: int, data: bytes) -> None:
        CALLS.append(["upload", address, len(data), float(np.frombuffer(data, np.float32)[0])])


def play(folder: Path) -> dict[str, Any]:
    """One build of what lies in a folder (`tests.engine.bindings.Worker`)."""
    CALLS.clear()
    wish = json.loads((folder / "wish.json").read_text())
    spec = BuildSpec.model_validate({"onnx": folder / "model.onnx", **wish["spec"]})
    calibration = None
    if wish["feeds"] is not None:
        assert spec.calibration is not None
        shapes, cache = wish["feeds"]["batches"], wish["feeds"]["cache"]

        def batches() -> Iterator[Any]:
            for i, shape in enumerate(shapes):
                yield np.full(shape, i, np.float32)

        calibration = Calibration(
            wish["feeds"]["batch_size"], batches, cache.encode() if cache else None, spec.calibration.method
        )
    try:
        built = Subject(Package(), spec, calibration, Device()).build()  # type: ignore[arg-type]
    except StageError as exc:
        return {"error": str(exc), "code": exc.exit_code, "calls": CALLS}
    return {
        "calls": CALLS,
        "quantization": built.quantization,
        "cache": built.cache.decode() if built.cache is not None else None,
        "timing": built.timing.decode(),
        "profile": built.profile.model_dump() if built.profile else None,
        "inputs": [t.model_dump(mode="json") for t in built.inputs],
        "outputs": [t.model_dump(mode="json") for t in built.outputs],
    }


if __name__ == "__main__":
    check()
    for line in sys.stdin:
        (Path(line.strip()) / "result.json").write_text(json.dumps(play(Path(line.strip()))))
        print("done", flush=True)
