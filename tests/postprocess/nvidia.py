"""NVIDIA's published client code, loaded from checkouts without a GPU: the oracle of `test_nvidia`.

`REFIT_NVIDIA_SOURCES` names a folder that holds the checkouts, each under its repository's name: tao_deploy,
tao-toolkit-triton-apps, tao_pytorch_backend. What their modules import and no machine without a GPU has (TensorRT,
CUDA, Triton's client) or nobody needs here (matplotlib) is a stand-in while they are in use.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
from numpy.typing import NDArray

VARIABLE = "REFIT_NVIDIA_SOURCES"
STAND_INS = (
    "tensorrt",
    "pycuda",
    "pycuda.autoinit",
    "pycuda.driver",
    "tritonclient",
    "tritonclient.grpc",
    "tritonclient.grpc.model_config_pb2",
    "matplotlib",
    "torchvision",
    "torchvision.ops",
    "torchvision.ops.boxes",
    "torchvision.transforms",
    "torchvision.transforms.functional",
    "tao_triton.python.proto",
    "tao_triton.python.proto.postprocessor_config_pb2",
    "nvidia_tao_pytorch.cv.deformable_detr.utils.misc",
)


class Engine:
    """In place of TRTInferencer: an engine whose answer is known."""

    def __init__(self, outputs: Mapping[str, NDArray[Any]], size: tuple[int, int], **known: Any) -> None:
        self.outputs = [SimpleNamespace(name=n, host=a.ravel(), numpy_shape=a.shape) for n, a in outputs.items()]
        self.context = self.bindings = self.inputs = self.stream = self.execute_async = None
        self.max_batch_size = len(next(iter(outputs.values())))
        self.width, self.height = size
        for name, value in known.items():
            setattr(self, name, value)

    def _copy_input_to_host(self, images: object) -> None:
        pass


def sources(repository: str) -> Path:
    """The checkout of a repository; the test is skipped where there is none."""
    folder = Path(os.environ[VARIABLE]) / repository
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing: {VARIABLE} needs a checkout of {repository}")
    return folder


@contextmanager
def loaded(repository: str) -> Iterator[Any]:
    """A function that imports a module of a repository; all traces of its modules go away at the end."""
    folder = str(sources(repository))
    before = dict(sys.modules)
    inferencer = ModuleType("nvidia_tao_deploy.inferencer.trt_inferencer")
    vars(inferencer)["TRTInferencer"] = Engine
    running = ModuleType("nvidia_tao_deploy.inferencer.utils")
    vars(running)["do_inference"] = lambda context, *, outputs, **_: outputs
    moves = ModuleType("six.moves")
    vars(moves)["range"] = range
    # Packages without their __init__, which changes torch for everybody.
    bare = [ModuleType("nvidia_tao_pytorch"), ModuleType("nvidia_tao_pytorch.cv")]
    for package in bare:
        package.__path__ = [str(Path(folder, *package.__name__.split(".")))]
    try:
        sys.path.insert(0, folder)
        sys.modules.update({name: MagicMock() for name in STAND_INS})
        sys.modules.update({m.__name__: m for m in (inferencer, running, moves, *bare)})
        sys.modules.setdefault("six", MagicMock())
        sys.modules["matplotlib"].pyplot = sys.modules["matplotlib.pyplot"] = MagicMock()  # type: ignore[attr-defined]
        yield importlib.import_module
    finally:
        sys.path.remove(folder)
        for name in set(sys.modules) - set(before):
            if name.split(".")[0] in {"nvidia_tao_deploy", "nvidia_tao_pytorch", "tao_triton", *STAND_INS, "six"}:
                del sys.modules[name]
        sys.modules.update(before)


def kitti_map(metric: ModuleType, truth: list[NDArray[Any]], found: list[NDArray[Any]], classes: int) -> NDArray[Any]:
    """AP of each class by KITTIMetric: truth rows class, difficult, box; found rows class, score, box."""
    _, ap = metric.KITTIMetric(n_classes=classes)(truth, found, verbose=False)
    return np.array(ap)
