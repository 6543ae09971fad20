"""An exported ONNX model as TensorFlow's SavedModel, from which all other kinds are made, and as a frozen graph.

onnx2tf (MIT) rebuilds the network in TensorFlow's own layout, NHWC. Its names are made up, so what is saved is a
function of our own around it: signature `serving_default`, input `image`, an output for each role of model.json.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from refit.command import BadSpec, StageError
from refit.edge.specs import ConvertSpec, SavedModelSpec
from refit.edge.tensors import IMAGE, Tensor, Tensors
from refit.files import write_bytes
from refit.postprocess import ModelInfo, ModelInfoError
from refit.status import StatusWriter

FOLDER, FROZEN = "saved_model", "frozen_graph.pb"
SIGNATURE = "serving_default"
# onnx2tf fetches this array from the network unless it lies in the working folder; it is for its own INT8, unused here.
_SAMPLE = "calibration_image_sample_data_20x128x128x3_float32.npy"


def run(spec: SavedModelSpec, out: Path, status: StatusWriter) -> None:
    """Write `out/saved_model/` and `out/tensors.json`. Raises BadSpec, StageError."""
    source = Path(spec.model).absolute()
    if not source.is_file():
        raise BadSpec(f"{source}: no such file; the stage that makes it has not run, or it was moved")
    info = read_info(spec.info)
    import onnx
    import tensorflow as tf

    roles = {name: role for role, name in info.outputs.items()}
    order = [roles[o.name] for o in onnx.load(source).graph.output]
    network = _rebuilt(source)
    fed = info.input
    shape = (1, fed.height, fed.width, fed.channels)

    class Served(tf.Module):  # type: ignore[misc]  # TensorFlow has no types
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        @tf.function(input_signature=[tf.TensorSpec(shape, tf.float32, name=IMAGE)])  # type: ignore[untyped-decorator]
        def serve(self, image: Any) -> dict[str, Any]:
            answers = self.network(image)
            return dict(zip(order, answers if isinstance(answers, (list, tuple)) else [answers], strict=True))

    served = Served()
    tf.saved_model.save(served, str(out / FOLDER), signatures={SIGNATURE: served.serve})
    outputs = served.serve.get_concrete_function().structured_outputs
    Tensors(Tensor(IMAGE, shape), {role: Tensor(role, tuple(tensor.shape)) for role, tensor in outputs.items()}).write(
        out
    )
    size = sum(p.stat().st_size for p in (out / FOLDER).rglob("*") if p.is_file())
    status.success("Rebuilt as a SavedModel.", {"bytes": size})


def freeze(spec: ConvertSpec, out: Path, status: StatusWriter) -> None:
    """Write `out/frozen_graph.pb` and `out/tensors.json`."""
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    _, served = load(spec.saved_model)
    frozen = convert_variables_to_constants_v2(served)
    write_bytes(out / FROZEN, frozen.graph.as_graph_def().SerializeToString())
    (image,) = frozen.inputs
    # The outputs of a function stand in the order of their names (tf.nest).
    named = zip(sorted(served.structured_outputs), frozen.outputs, strict=True)
    outputs = {role: Tensor(tensor.name, tuple(tensor.shape)) for role, tensor in named}
    Tensors(Tensor(image.name, tuple(image.shape)), outputs).write(out)
    status.success("Frozen into one file.", {"bytes": (out / FROZEN).stat().st_size})


def load(folder: str | Path) -> tuple[Any, Any]:
    """The loaded SavedModel, which must be kept as long as its function is used, and the function. Raises BadSpec."""
    import tensorflow as tf

    try:
        model = tf.saved_model.load(str(folder))
        return model, model.signatures[SIGNATURE]
    except (OSError, KeyError) as exc:
        raise BadSpec(f"{folder}: no SavedModel of ours ({exc}); run the stage that makes it again") from None


def read_info(path: str) -> ModelInfo:
    """model.json. Raises BadSpec."""
    try:
        return ModelInfo.read(Path(path))
    except ModelInfoError as exc:
        raise BadSpec(str(exc)) from None


def _rebuilt(source: Path) -> Any:
    """The Keras model that onnx2tf makes. Raises StageError for a network that it cannot rebuild."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        np.save(_SAMPLE, np.zeros((20, 128, 128, 3), np.float32))
        shutil.copyfile(source, "model.onnx")  # onnx2tf writes its simplified network over the file that it is given
        import onnx2tf

        try:
            return onnx2tf.convert(
                input_onnx_file_path="model.onnx",
                output_folder_path=folder,
                batch_size=1,
                disable_model_save=True,
                non_verbose=True,
            )
        except (Exception, SystemExit) as exc:  # it ends the process for an operator that it does not know
            raise StageError(f"{source}: onnx2tf cannot rebuild it in TensorFlow: {exc}; see the log") from exc
