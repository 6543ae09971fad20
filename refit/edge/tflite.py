"""A SavedModel as TFLite: in float32, and in uint8 alone (input, output and every layer), which Coral's Edge TPU needs.

Ranges of the uint8 model are measured by TensorFlow's converter on images of the train split, chosen as those of INT8.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refit.command import BadData, BadSpec, StageError
from refit.cpu.records import Dataset
from refit.edge.saved_model import SIGNATURE, read_info
from refit.edge.specs import COMPILER, ConvertSpec, CoralSpec
from refit.edge.tensors import IMAGE, Tensor, Tensors
from refit.files import write_bytes, write_text
from refit.postprocess import ModelInfo, preprocess
from refit.status import StatusWriter

MODEL, FOLDER, UINT8, LABELS = "model.tflite", "coral", "model_uint8.tflite", "labelmap.txt"
COMPILED = "model_uint8_edgetpu.tflite"  # the name that the compiler gives


def run(spec: ConvertSpec, out: Path, status: StatusWriter) -> None:
    """Write `out/model.tflite` and `out/tensors.json`. Raises BadSpec."""
    content = _converter(spec.saved_model).convert()
    write_bytes(out / MODEL, content)
    _tensors(out / MODEL).write(out)
    status.success("Converted to TFLite in float32.", {"bytes": len(content)})


def run_coral(spec: CoralSpec, out: Path, status: StatusWriter) -> None:
    """Write `out/tensors.json` and `out/coral/`: `model_uint8.tflite`, `labelmap.txt`, and what the Edge TPU's compiler
    makes of it.

    Raises:
        BadSpec: no SavedModel, or it knows other classes than the data.
        BadData: no training image to measure ranges on.
        StageError: the compiler is there and refuses the model.
    """
    import tensorflow as tf

    info = read_info(spec.info)
    images = _images(spec, info)
    converter = _converter(spec.saved_model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = images
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.uint8
    content = converter.convert()
    folder = out / FOLDER
    folder.mkdir(exist_ok=True)
    write_bytes(folder / UINT8, content)
    write_text(folder / LABELS, "".join(f"{name}\n" for name in info.classes))
    note = compiled(folder)
    print(note)
    _tensors(folder / UINT8, (note,)).write(out)
    status.success(f"Converted to TFLite in uint8; {note}.", {"bytes": len(content)})


def compiled(folder: Path) -> str:
    """Compile `model_uint8.tflite` for an Edge TPU where the compiler is on PATH; what came of it in a sentence."""
    if shutil.which(COMPILER) is None:
        return f"not compiled for an Edge TPU: there is no {COMPILER} on PATH; run `{COMPILER} -s {UINT8}` where it is"
    done = subprocess.run(
        [COMPILER, "-s", "-o", str(folder), str(folder / UINT8)],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    print(done.stdout)
    if done.returncode or not (folder / COMPILED).is_file():
        said = (done.stdout.strip().splitlines() or ["it said nothing"])[-1]
        raise StageError(f"{COMPILER} ended with {done.returncode} for {folder / UINT8}: {said}")
    on, off = (re.search(rf"will run on {where}: (\d+)", done.stdout) for where in ("Edge TPU", "CPU"))
    counted = f": {on[1]} operations run on the TPU, {off[1]} on the CPU" if on and off else ""
    return f"compiled for an Edge TPU{counted}"


def _converter(folder: str) -> Any:
    import tensorflow as tf

    if not Path(folder, "saved_model.pb").is_file():
        raise BadSpec(f"{folder}: no SavedModel; the stage that makes it has not run, or it was moved")
    return tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=[SIGNATURE])


def _images(spec: CoralSpec, info: ModelInfo) -> Callable[[], Iterator[list[NDArray[np.float32]]]]:
    """The images that ranges are measured on, as the converter asks for them."""
    from refit.cpu.calibration import choose  # brings onnxruntime, which the environment tfjs lacks

    dataset = Dataset.load(spec.records)
    if info.classes != dataset.classes:
        raise BadSpec(f"{spec.info} and records {dataset.folder} have different classes; give those of one pipeline")
    records = dataset.split("train")
    if not len(records):
        raise BadData(f"{dataset.folder}: the train split is empty; there is nothing to measure ranges on")
    chosen = choose(records, len(dataset.classes), spec.images, spec.seed)

    def images() -> Iterator[list[NDArray[np.float32]]]:
        for i in chosen:
            tensor, _ = preprocess(records[i].image(), info.input)
            yield [np.ascontiguousarray(tensor.transpose(0, 2, 3, 1))]

    return images


def _tensors(path: Path, notes: tuple[str, ...] = ()) -> Tensors:
    """What the converted file itself says of its tensors."""
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_path=str(path)).get_signature_runner(SIGNATURE)

    def tensor(name: str, details: dict[str, Any]) -> Tensor:
        scale, zero = details["quantization"]
        shape = tuple(int(n) for n in details["shape"])
        return Tensor(name, shape, np.dtype(details["dtype"]).name, float(scale) or 1.0, int(zero))

    outputs = {role: tensor(role, details) for role, details in runner.get_output_details().items()}
    return Tensors(tensor(IMAGE, runner.get_input_details()[IMAGE]), outputs, notes)
