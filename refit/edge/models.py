"""Converted models as `refit.cpu.models.Predictor`s, each run by the runtime that it is meant for."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refit.command import BadSpec, StageError
from refit.cpu.models import Arrays
from refit.cpu.work import workers
from refit.edge import saved_model, tfjs, tflite
from refit.edge.specs import Converted
from refit.edge.tensors import FILE, Tensor, Tensors
from refit.postprocess import ModelInfo

Ask = Callable[[NDArray[Any]], Mapping[str, NDArray[Any]]]
"""One image [1, h, w, c], in the numbers of the model's own input -> the outputs by role, likewise."""


@dataclass
class EdgeModel:
    """A converted model behind the exported one's description: batches NCHW in, outputs NCHW out, float32.

    Attributes:
        info: of the exported model.
        path: the file that was converted.
    """

    info: ModelInfo
    path: Path
    tensors: Tensors
    ask: Ask

    def __call__(self, batch: NDArray[np.float32]) -> Arrays:
        found: dict[str, list[NDArray[Any]]] = {role: [] for role in self.info.outputs}
        for image in np.split(batch.transpose(0, 2, 3, 1), len(batch)):
            answers = self.ask(stored(np.ascontiguousarray(image), self.tensors.input))
            for role, rows in found.items():
                rows.append(meant(answers[role], self.tensors.outputs[role]).transpose(0, 3, 1, 2))
        return {self.info.outputs[role]: np.concatenate(rows) for role, rows in found.items()}


def stored(values: NDArray[np.float32], tensor: Tensor) -> NDArray[Any]:
    """Real numbers as they stand in a tensor."""
    if tensor.dtype == "float32":
        return values
    return np.asarray(np.clip(np.rint(values / tensor.scale) + tensor.zero_point, 0, 255), dtype=np.uint8)


def meant(values: NDArray[Any], tensor: Tensor) -> NDArray[np.float32]:
    """The real numbers that a tensor's content stands for."""
    if tensor.dtype == "float32":
        return np.asarray(values, dtype=np.float32)
    return np.asarray((values.astype(np.float32) - tensor.zero_point) * tensor.scale, dtype=np.float32)


@contextlib.contextmanager
def open_edge(kind: Converted, folder: Path, info: ModelInfo) -> Iterator[EdgeModel]:
    """The model that a conversion left in its out/. Raises BadSpec."""
    tensors = Tensors.read(folder / FILE)
    with contextlib.ExitStack() as stack:
        path, ask = stack.enter_context(_OPEN[kind](folder, tensors))
        yield EdgeModel(info, path, tensors, ask)


Opened = contextlib.AbstractContextManager[tuple[Path, Ask]]


@contextlib.contextmanager
def _lite(path: Path) -> Iterator[tuple[Path, Ask]]:
    """LiteRT's interpreter, the runtime of TFLite on devices."""
    from ai_edge_litert.interpreter import Interpreter

    try:
        interpreter = Interpreter(model_path=str(path), num_threads=workers())
    except ValueError as exc:
        raise BadSpec(f"{path}: LiteRT cannot load it: {exc}") from None
    runner = interpreter.get_signature_runner(saved_model.SIGNATURE)
    yield path, lambda image: runner(image=image)


@contextlib.contextmanager
def _saved(folder: Path) -> Iterator[tuple[Path, Ask]]:
    import tensorflow as tf

    model, serve = saved_model.load(folder)

    def ask(image: NDArray[Any]) -> Mapping[str, NDArray[Any]]:
        return {role: tensor.numpy() for role, tensor in serve(image=tf.constant(image)).items()}

    yield folder / "saved_model.pb", ask
    del model


@contextlib.contextmanager
def _frozen(path: Path, tensors: Tensors) -> Iterator[tuple[Path, Ask]]:
    import tensorflow as tf

    graph = tf.compat.v1.GraphDef()
    graph.ParseFromString(path.read_bytes())
    names = [tensor.name for tensor in tensors.outputs.values()]

    def build() -> None:
        tf.compat.v1.import_graph_def(graph, name="")

    wrapped = tf.compat.v1.wrap_function(build, [])
    serve = wrapped.prune(tensors.input.name, names)

    def ask(image: NDArray[Any]) -> Mapping[str, NDArray[Any]]:
        answers = serve(tf.constant(image))
        return {role: answer.numpy() for role, answer in zip(tensors.outputs, answers, strict=True)}

    yield path, ask


@contextlib.contextmanager
def _node(folder: Path, tensors: Tensors) -> Iterator[tuple[Path, Ask]]:
    """TF.js in node by its WebAssembly backend: one process that is asked through pipes (web/ask.js)."""
    sizes = {role: (int(np.prod(tensor.shape)), tensor.shape) for role, tensor in tensors.outputs.items()}
    about = {"folder": str(folder), "shape": tensors.input.shape, "outputs": list(sizes)}
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [str(tfjs.NODE), str(tfjs.SOURCES / "ask.js"), json.dumps(about)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        send, receive = process.stdin, process.stdout

        def ask(image: NDArray[Any]) -> Mapping[str, NDArray[Any]]:
            with contextlib.suppress(BrokenPipeError):  # the answer that is missing tells
                send.write(image.tobytes())
                send.flush()
            found = {}
            for role, (count, shape) in sizes.items():
                data = receive.read(4 * count)
                if len(data) < 4 * count:
                    said.seek(0)
                    told = (said.read().decode("utf-8", "replace").strip().splitlines() or ["nothing was said"])[-1]
                    raise StageError(f"{folder}: TF.js ended without an answer: {told}")
                found[role] = np.frombuffer(data, "<f4").reshape(shape)
            return found

        try:
            yield folder / "model.json", ask
        finally:
            with contextlib.suppress(BrokenPipeError):
                send.close()
            receive.close()
            process.terminate()
            process.wait()


_OPEN: Mapping[Converted, Callable[[Path, Tensors], Opened]] = {
    "tflite": lambda folder, _: _lite(folder / tflite.MODEL),
    "coral": lambda folder, _: _lite(folder / tflite.FOLDER / tflite.UINT8),
    "saved_model": lambda folder, _: _saved(folder / saved_model.FOLDER),
    "frozen_graph": lambda folder, tensors: _frozen(folder / saved_model.FROZEN, tensors),
    "tfjs": lambda folder, tensors: _node(folder / tfjs.FOLDER, tensors),
}
