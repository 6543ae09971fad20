"""`train` and `retrain`: from records to `model.pth`.

The result is the running average of the weights after the last epoch, not the epoch that scored best on val: a choice
by val would make val's figure too good. Retrain is the same with `model` given: its architecture (pruned widths),
classes and weights are kept.

After each epoch `checkpoint.pth` is replaced atomically; a later start with the same spec and data goes on from it and
ends with the same bits as an uninterrupted run on the same machine. With `resume` the checkpoint may be that of another
training, stopped or finished, with other parameters: `epochs` counts its epochs as well.
"""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.tensorboard.writer import SummaryWriter

from refit.command import BadSpec, Rejected
from refit.cpu import begin, checkpoint
from refit.cpu.checkpoint import Model
from refit.cpu.evaluate import find
from refit.cpu.learner import Learner, has_bfloat16
from refit.cpu.loader import batches, open_training_images, steps
from refit.cpu.models import TorchRunner
from refit.cpu.network import Architecture, Detector, count_parameters
from refit.cpu.records import Dataset
from refit.cpu.scoring import score
from refit.cpu.specs import TrainSpec
from refit.cpu.status import StatusWriter
from refit.cpu.targets import Grid
from refit.cpu.work import Progress, workers
from refit.files import sha256, write_json
from refit.postprocess import Postprocess

CHECKPOINT = "checkpoint.pth"
MODEL = "model.pth"
# What may differ between a checkpoint and the training that goes on from it: paths, and what changes no weight.
_FREE = {"records", "model", "start_from", "resume", "threads", "evaluate_every"}
START = "start.json"
_VAL = Postprocess(score_threshold=0.01)


def run(spec: TrainSpec, out: Path, status: StatusWriter) -> None:
    """Train and write `out/model.pth`; see the module's docstring.

    Raises:
        BadSpec: the network, the start model and the data do not fit together.
        BadData: nothing to learn from, or an image that cannot be decoded.
        Diverged: the loss is no longer a number.
        Rejected: the weights are those with which it began.
    """
    threads = spec.threads or workers()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    # Deterministic mode also fills every new tensor with NaN to show reads of unwritten memory: a fifth of the time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a property of the module
    torch.manual_seed(spec.seed)
    dataset = Dataset.load(spec.records)
    model = _start(spec, dataset.classes, out, status)
    records = dataset.split("train")
    decoding = Progress(status, "Reading images", len(records))
    images = open_training_images(records, model.info.input, str(dataset.folder), decoding.step)
    if images.useless:
        status.running(f"{images.useless} boxes without area left out.")
    reduced = spec.precision == "bfloat16" or (spec.precision == "auto" and has_bfloat16())
    size = spec.batch_size
    grid = Grid(model.info.input.width, model.info.input.height, model.info.stride)
    in_epoch = steps(len(images), size)
    learner = Learner(model.network, spec, grid, model.info.input.scale, in_epoch, reduced)
    identity = _identity(spec, dataset)
    first = copy.deepcopy(learner.average.state_dict())
    done, history = _resume(out / CHECKPOINT, spec, identity, dataset.classes, learner, status)
    learner.step = done * in_epoch

    with SummaryWriter(str(out / "tensorboard"), purge_step=done + 1) as board:
        for epoch in range(done + 1, spec.epochs + 1):
            begin = time.monotonic()
            losses = learner.epoch(batches(images, size, spec.augmentation, spec.seed, epoch))
            history = [*history, time.monotonic() - begin]
            about = {"identity": identity, "classes": list(dataset.classes), "epoch": epoch, "seconds": history}
            state = {**about, **learner.state()}
            checkpoint.save(out / CHECKPOINT, state)
            _tell(status, board, spec, epoch, losses, learner.rate, history)
            if epoch % spec.evaluate_every == 0 or epoch == spec.epochs:
                _validate(status, board, Model(learner.average, model.info), dataset, epoch)
    learner.check()
    if _same(first, learner.average.state_dict()):
        raise Rejected(
            f"nothing was trained: no weight differs from those with which it began, after {spec.epochs} epochs of "
            f"which {CHECKPOINT} says that {done} were done before this start; clear the stage: the checkpoint is put "
            "aside, and it trains from the beginning"
        )
    size_bytes = checkpoint.save_model(out / MODEL, Model(learner.average, model.info))
    parameters = count_parameters(learner.average)
    status.success(
        f"Trained {spec.epochs} epochs: {parameters:,} parameters.", {"parameters": parameters, "bytes": size_bytes}
    )


def _start(spec: TrainSpec, classes: tuple[str, ...], out: Path, status: StatusWriter) -> Model:
    """The detector to train: a checkpoint's (retrain), or a new one, perhaps with weights of the user's choice."""
    wanted = checkpoint.describe(spec.network, classes)
    if spec.model is None:
        model = Model(Detector(Architecture.plan(spec.network, len(classes))), wanted)
        if spec.start_from is not None:
            taken = begin.begin(model.network, spec.start_from)
            write_json(out / START, {"file": spec.start_from, **asdict(taken)})
            status.running(f"Begins with {spec.start_from}: {taken}.")
            print(f"begins with {spec.start_from}: {taken}")
        return model
    model = checkpoint.load_model(spec.model)
    if model.info.classes != classes:
        raise BadSpec(f"model {spec.model} knows {', '.join(model.info.classes)}; the data has {', '.join(classes)}")
    for key, has, wants in (
        ("input_width", model.info.input.width, wanted.input.width),
        ("input_height", model.info.input.height, wanted.input.height),
        ("channels", model.info.input.channels, wanted.input.channels),
        ("resize", model.info.input.resize, wanted.input.resize),
        ("stride", model.info.stride, wanted.stride),
    ):
        if has != wants:
            raise BadSpec(f"network.{key} is {wants}, but model {spec.model} was made with {has}; use {has}")
    return model


def _identity(spec: TrainSpec, dataset: Dataset) -> str:
    """What a checkpoint must have been made from, to go on from it. Paths may change, contents may not."""
    content = {
        "spec": spec.model_dump(exclude=_FREE),
        "data": [dataset.fingerprint, dataset.splits["train"].images],
        "start": [sha256(Path(p)) if p else None for p in (spec.model, spec.start_from)],
        "torch": torch.__version__,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items() if value.is_floating_point())


def _resume(
    path: Path, spec: TrainSpec, identity: str, classes: tuple[str, ...], learner: Learner, status: StatusWriter
) -> tuple[int, list[float]]:
    """Take up a checkpoint where there is one of this training; gives the epochs done and the seconds of each.

    Raises BadSpec: the spec wants to go on from one, and it cannot be gone on with.
    """
    try:
        state = checkpoint.load(path)
        if state is None:
            if spec.resume:
                raise BadSpec("there is none; the training was stopped before its first epoch was saved")
            return 0, []
        if state["identity"] != identity:
            if not spec.resume:
                status.running("The checkpoint here is of another training; starting anew.")
                return 0, []
            if state["classes"] != list(classes):
                raise BadSpec(f"it knows {', '.join(state['classes'])}; the data has {', '.join(classes)}")
            if state["epoch"] >= spec.epochs:
                raise BadSpec(
                    f"it has {state['epoch']} epochs, and epochs is {spec.epochs}, which counts them; use more"
                )
            if left := begin.misfits(learner.network, state["network"]):
                raise BadSpec(
                    f"it is of another network: {begin.some(left)}; set `network` to what it was, or begin with its "
                    "weights (run:RUN), which takes what fits"
                )
        learner.restore(state)
    except (BadSpec, KeyError, ValueError, RuntimeError) as exc:
        if spec.resume:
            reason = str(exc).splitlines()[0]
            raise BadSpec(f"{path.name}: the training cannot be gone on with: {reason}") from None
        status.running(f"The checkpoint here cannot be used ({exc}); starting anew.")
        return 0, []
    done, seconds = int(state["epoch"]), [float(s) for s in state["seconds"]]
    status.running(f"Going on after epoch {done}.")
    return done, seconds


def _tell(
    status: StatusWriter,
    board: SummaryWriter,
    spec: TrainSpec,
    epoch: int,
    losses: Mapping[str, float],
    rate: float,
    seconds: list[float],
) -> None:
    recent = seconds[-5:]
    eta = sum(recent) / len(recent) * (spec.epochs - epoch)
    status.running(
        f"Epoch {epoch} of {spec.epochs}",
        epoch=epoch,
        max_epoch=spec.epochs,
        time_per_epoch=str(timedelta(seconds=round(seconds[-1], 3))),
        eta=str(timedelta(seconds=round(eta))),
        loss=round(losses["loss"], 6),
    )
    for name, value in {**losses, "learning_rate": rate, "seconds": seconds[-1]}.items():
        board.add_scalar(f"train/{name}", value, epoch)


def _validate(status: StatusWriter, board: SummaryWriter, model: Model, dataset: Dataset, epoch: int) -> None:
    """Score the running average on val, where the data has a val split with objects."""
    if "val" not in dataset.splits or not dataset.splits["val"].objects:
        return
    truth, found = find(TorchRunner(model), model.info, dataset.split("val"), _VAL)
    scores = score(truth, found, model.info.classes)
    values = {"val_mAP50": scores.map50, "val_mAP": scores.map}
    kpi = {name: round(value, 6) for name, value in values.items() if value is not None}
    status.running(f"Evaluated epoch {epoch}", epoch=epoch, kpi=kpi)
    for name, value in kpi.items():
        board.add_scalar(f"val/{name.removeprefix('val_')}", value, epoch)
