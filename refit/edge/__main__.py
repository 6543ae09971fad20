"""`python -m refit.edge <action> -e spec.yaml -r out`."""

import os
import sys

from refit.command import Action, main

_SPECS = "refit.edge.specs"

ACTIONS = {
    "saved_model": Action(
        f"{_SPECS}:SavedModelSpec", "refit.edge.saved_model:run", "an exported ONNX model as TensorFlow's SavedModel"
    ),
    "frozen_graph": Action(f"{_SPECS}:ConvertSpec", "refit.edge.saved_model:freeze", "a SavedModel as one .pb file"),
    "tflite": Action(f"{_SPECS}:ConvertSpec", "refit.edge.tflite:run", "a SavedModel as TFLite in float32"),
    "coral": Action(
        f"{_SPECS}:CoralSpec", "refit.edge.tflite:run_coral", "a SavedModel as TFLite in uint8 alone, for an Edge TPU"
    ),
    "tfjs": Action(f"{_SPECS}:ConvertSpec", "refit.edge.tfjs:run", "a SavedModel for TF.js, with a page that runs it"),
    "evaluate": Action(f"{_SPECS}:EdgeEvaluateSpec", "refit.edge.evaluate:run", "score what one of the above made"),
    "bundle": Action(f"{_SPECS}:BundleSpec", "refit.edge.bundle:run", "folder, archive and manifest of each kind"),
}

if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when TensorFlow is loaded
    sys.exit(main("refit.edge", ACTIONS))
