"""Running a model, whichever file it is in: `.pth` with PyTorch, `.onnx` with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from refit.command import BadSpec
from refit.cpu.records import Record
from refit.cpu.work import ordered_map, workers
from refit.postprocess import Detections, Frame, ModelInfo, ModelInfoError, Postprocess, decoder_for, resize, to_tensor
from refit.postprocess.info import FILE_NAME

if TYPE_CHECKING:  # torch is imported only for .pth files
    from refit.cpu.checkpoint import Model

Arrays = dict[str, NDArray[Any]]
T = TypeVar("T")

BATCH = 8


class Predictor(Protocol):
    """A loaded model.

    Attributes:
        info: its description.
        path: where it came from.
    """

    info: ModelInfo
    path: Path

    def __call__(self, batch: NDArray[np.float32]) -> Arrays:
        """float32 [n, c, h, w] -> outputs by tensor name."""


def open_model(path: str | Path, threads: int = 0) -> Predictor:
    """Load a model.

    Args:
        path: a `.pth` of this toolkit, or an `.onnx` with `model.json` beside it.
        threads: 0 is as many as the process may use.

    Raises:
        BadSpec: no such file, another kind of file, or a damaged one.
    """
    path = Path(path)
    if path.suffix not in (".pth", ".onnx"):
        raise BadSpec(f"{path}: a model is a .pth or an .onnx file")
    if not path.is_file():
        raise BadSpec(f"{path}: no such file; the stage that makes it has not run, or it was moved")
    threads = threads or workers()
    return TorchModel(path, threads) if path.suffix == ".pth" else OnnxModel(path, threads)


class TorchRunner:
    """A detector of `refit.cpu.checkpoint` as a function from a batch to outputs, in float32."""

    def __init__(self, model: Model) -> None:
        self.info, self._network = model.info, model.network

    def __call__(self, batch: NDArray[np.float32]) -> Arrays:
        import torch

        with torch.inference_mode():
            coverage, bbox = self._network(torch.from_numpy(batch))
            return {self.info.outputs["coverage"]: coverage.sigmoid().numpy(), self.info.outputs["bbox"]: bbox.numpy()}


class TorchModel(TorchRunner):
    """A `model.pth`."""

    def __init__(self, path: Path, threads: int) -> None:
        import torch

        from refit.cpu.checkpoint import load_model

        torch.set_num_threads(threads)
        self.path = path
        super().__init__(load_model(path))


class OnnxModel:
    """An `.onnx` file on ONNX Runtime's CPU provider. Its description is `model.json` in the same folder."""

    def __init__(self, path: Path, threads: int) -> None:
        import onnxruntime as ort

        self.path = path
        try:
            self.info = ModelInfo.read(path.with_name(FILE_NAME))
        except ModelInfoError as exc:
            raise BadSpec(str(exc)) from None
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Spinning threads slow down whatever else runs on the same cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as exc:  # onnxruntime has an exception class of its own for each status
            raise BadSpec(f"{path}: ONNX Runtime cannot load it: {str(exc).splitlines()[0]}") from None
        self._outputs = [o.name for o in self._session.get_outputs()]
        inputs = {i.name: i.shape for i in self._session.get_inputs()}
        entry = self.info.input
        if list(inputs) != [entry.name] or inputs[entry.name][1:] != [entry.channels, entry.height, entry.width]:
            wanted = {entry.name: ["batch", entry.channels, entry.height, entry.width]}
            raise BadSpec(f"{path}: its inputs are {inputs}; {FILE_NAME} says {wanted}")
        self._one_by_one = inputs[entry.name][0] == 1

    def __call__(self, batch: NDArray[np.float32]) -> Arrays:
        parts = np.split(batch, len(batch)) if self._one_by_one else [batch]
        answers = [self._session.run(None, {self.info.input.name: part}) for part in parts]
        return {name: np.concatenate(arrays) for name, *arrays in zip(self._outputs, *answers, strict=True)}


def predict(
    model: Callable[[NDArray[np.float32]], Arrays],
    info: ModelInfo,
    records: Iterable[Record],
    settings: Postprocess | None = None,
    step: Callable[[], None] | None = None,
) -> Iterator[tuple[Record, Detections]]:
    """Run a model over records, in their order, with a bounded number of images in memory.

    Args:
        model: a Predictor, or any function from a batch to outputs.
        settings: thresholds in place of the description's own.
        step: called after each image.

    Raises BadData for an image that cannot be decoded.
    """
    decode = decoder_for(replace(info, postprocess=settings or info.postprocess))

    def prepare(record: Record) -> tuple[Record, NDArray[np.float32], Frame]:
        small, frame = resize(record.image(), info.input)
        return record, to_tensor(small, info.input), frame

    for part in _chunks(ordered_map(prepare, records), BATCH):
        outputs = model(np.stack([tensor for _, tensor, _ in part]))
        for (record, _, _), found in zip(part, decode(outputs, [frame for _, _, frame in part]), strict=True):
            if step:
                step()
            yield record, found


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    part: list[T] = []
    for item in items:
        part.append(item)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part
