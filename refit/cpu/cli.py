"""The cpu toolkit's command line: `python -m refit.cpu ACTION -e spec.yaml -r out`.

Each action names its spec model and its function `run(spec, out, status) -> None`; both are imported only when the
action is called, so that `--help` and dataset_convert start without torch. `run` ends with `status.success(...)`;
the rest of the contract (exit codes, `error:` lines, SIGTERM) is `refit.command`'s.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from refit.command import Action, main

_SPECS = "refit.cpu.specs"

ACTIONS = {
    "dataset_convert": Action(
        f"{_SPECS}:ConvertSpec", "refit.cpu.convert:run", "write the images and labels of a snapshot as TFRecords"
    ),
    "augment": Action(
        "refit.cpu.transforms:CheckedAugmentSpec",
        "refit.cpu.augment:run",
        "add changed copies of the training images; their boxes follow each change",
    ),
    "train": Action(
        f"{_SPECS}:TrainSpec", "refit.cpu.train:run", "train the detector; goes on from its last checkpoint"
    ),
    "retrain": Action(f"{_SPECS}:TrainSpec", "refit.cpu.train:run", "train a pruned detector again, its shape kept"),
    "evaluate": Action(
        f"{_SPECS}:EvaluateSpec", "refit.cpu.evaluate:run", "score a checkpoint or an ONNX model: mAP and AP per class"
    ),
    "prune": Action(f"{_SPECS}:PruneSpec", "refit.cpu.prune:run", "take out the channels that matter least"),
    "export": Action(f"{_SPECS}:ExportSpec", "refit.cpu.export:run", "write a checkpoint as ONNX with its model.json"),
    "quantize": Action(
        f"{_SPECS}:QuantizeSpec", "refit.cpu.quantize:run", "make the ONNX model INT8 with a recorded calibration set"
    ),
    "inference": Action(
        "refit.predict.specs:FileInferenceSpec",
        "refit.cpu.inference:run",
        "detect objects in a folder of images; writes JSON and pictures",
    ),
}

# Read when the libraries are loaded, so set before `run` imports them.
_ENVIRONMENT = {
    # Idle threads sleep in place of spinning: on shared cores spinning costs more than it saves.
    "OMP_WAIT_POLICY": "passive",
    # albumentations asks a package index for news at import; a stage talks to nobody.
    "NO_ALBUMENTATIONS_UPDATE": "1",
}


def run(argv: Sequence[str] | None = None) -> int:
    """Run one action; gives the exit code of the process."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    return main("refit.cpu", ACTIONS, argv)
