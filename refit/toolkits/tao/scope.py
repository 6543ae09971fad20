"""What `${...}` stands for in a network's facts: parameters of the pipeline, facts, and the runner's tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from refit.start import spec as start
from refit.tao.params import BuildEngineParams, Stages, flat
from refit.tao.render import BEGINNINGS

if TYPE_CHECKING:
    from refit.toolkits.tao.chain import TaoChain


@dataclass(frozen=True)
class Work:
    """What one of TAO's commands is to do.

    Attributes:
        stage: the name of the stage.
        action: the network's name of the command.
        trained: the block whose parameters stand in the training's spec: train, retrain or distill.
        model: the stage whose `model` it works on.
        split: of the data, for dataset_convert.
        resumed: a training that is told to go on from a checkpoint.
    """

    stage: str
    action: str
    trained: str = "train"
    model: str | None = None
    split: str = "train"
    resumed: bool = False

    @property
    def trains(self) -> bool:
        return self.action in ("train", "distill")

    @property
    def block(self) -> str:
        """The block of the pipeline with the command's parameters."""
        if self.trains:
            return self.trained
        return "evaluate" if self.action == "evaluate_engine" else self.action

    @property
    def begins(self) -> bool:
        """Whether it is a training that may begin with weights of the user's choice: a retraining has the pruned."""
        return self.trains and self.stage != "retrain" and not self.resumed


def scope(chain: TaoChain, work: Work) -> dict[str, Any]:
    """Of a stage: its own parameters by their bare names, all others behind their block's."""
    gpus = chain.wanted(work).gpus or 1
    return {
        **_parameters(chain, work),
        **_network(chain),
        **_data(chain, work),
        **_model(chain, work),
        **_engine(chain),
        **dict(flat(getattr(chain.p.stages, work.block))),
        "gpus": gpus,
        "gpu_ids": list(range(gpus)),
    }


def _parameters(chain: TaoChain, work: Work) -> dict[str, Any]:
    """Those that the command may read are there: its own, the training's, and the evaluation's, which a training does
    as well. The others are None, so that a change of one does not run the command again."""
    stages = chain.p.stages
    found: dict[str, Any] = {"seed": chain.p.seed}
    read = {work.block, work.trained, "train", "evaluate"}
    for block in type(stages).model_fields:
        parameters = _of_block(stages, block)
        found |= parameters if block in read else dict.fromkeys(parameters)
    trained = getattr(stages, work.trained)
    found |= dict(flat(trained, "train."))
    return found | {
        "qat": trained.qat,
        "amp": trained.amp,
        "distill.teacher": chain.placed(stages.distill.teacher) if stages.distill else None,
        "quantizing": stages.quantize is not None,
        "augmented": stages.augment is not None,
    }


def _of_block(stages: Stages, name: str) -> dict[str, Any]:
    """A block's parameters; None for each of a block that is left out."""
    block = getattr(stages, name)
    if block is not None:
        return dict(flat(block, f"{name}."))
    models = get_args(type(stages).model_fields[name].annotation)
    return {f"{name}.{field}": None for model in models for field in getattr(model, "model_fields", ())}


def _network(chain: TaoChain) -> dict[str, Any]:
    network, facts = chain.p.network, chain.facts
    keys = {key for backbone in facts.backbones.values() for key in backbone}
    return {
        **{f"network.{name}": getattr(network, name) for name in type(network).model_fields},
        **{f"backbone.{key}": chain.backbone.get(key) for key in keys},
        "network.input_width": network.input_width or facts.input.width,
        "network.input_height": network.input_height or facts.input.height,
        "grayscale": network.channels == 1,
        "key": f"{{secret:{network.key_secret}}}" if network.key_secret else None,
    }


def _data(chain: TaoChain, work: Work) -> dict[str, Any]:
    p, form, split = chain.p, chain.facts.data.form, work.split
    # The label files hold the data set's classes; of what is trained on them the spec may make fewer.
    classes = list(chain.names.values()) if work.action == "dataset_convert" else chain.targets(work.trained)
    weights = getattr(p.stages, work.trained).class_weights
    splits: Mapping[str, int] = (chain.dataset or {}).get("splits", {})
    train = "train/labels" if form == "kitti" else "annotations/train.json"
    augmented = split == "augmented"
    return {
        "split": split,
        "classes": classes,
        "each.classes": [{"class": n, "class_weight": weights.get(chain.shown.get(n, n), 1.0)} for n in classes],
        "num_classes": len(classes),
        "num_classes_and_background": len(classes) + 1,
        "data": "{input:prepare}",
        "form": form,
        "extension": p.stages.prepare.convert or p.network.image_extension,
        "train_annotations": f"{{input:prepare}}/{train}",
        "split_root": "{input:augment}" if augmented else f"{{input:prepare}}/{split}",
        "split_annotations": "{input:augment}/annotations.json"
        if augmented
        else f"{{input:prepare}}/annotations/{split}.json",
        "train_images": splits.get("train"),
        "val_images": splits.get("val"),
        "calibration": "{input:calibrate}",
    }


def _model(chain: TaoChain, work: Work) -> dict[str, Any]:
    """The model that a stage works on, and where a training begins."""
    token = f"{{input:{work.model}.model}}" if work.model else None
    kind = chain.kind(work.model)
    retraining, given = work.trained == "retrain", chain.p.network.pretrained
    pruned = "{input:prune.model}" if retraining else None
    weights = "{input:pretrained.weights}" if given and not retraining else None
    whole = chain.backbone.get("weights", "backbone") if isinstance(given, bool) else given.weights
    if own := start.weights(getattr(chain.p.stages, work.trained).start_from):
        weights, whole = own, "model"
    checkpoint = "{checkpoint}" if work.resumed else None  # the runner's
    begins = {
        "pruned": pruned,
        "pretrained": weights,
        "pretrained_backbone": weights if whole == "backbone" else None,
        "pretrained_model": weights if whole == "model" else None,
        "start": pruned or weights,
    }
    if work.resumed:
        begins = {**dict.fromkeys(BEGINNINGS), "start": checkpoint}
    return {
        "model": token,
        # One spec may serve commands of which each reads its own of these.
        "saved": token if kind == "checkpoint" else None,
        "onnx": token if kind == "onnx" else None,
        "engine": token if kind == "engine" else None,
        "export_quantized": work.model == "quantize" and kind == "checkpoint",
        "retraining": retraining,
        "resumed": checkpoint,
        "next_epoch": "{next_epoch}" if work.resumed else None,
        # The others do not have the stages that bring them as inputs.
        **(begins if work.trains else dict.fromkeys(BEGINNINGS)),
    }


def _engine(chain: TaoChain) -> dict[str, Any]:
    engine, way = chain.p.stages.build_engine or BuildEngineParams(), chain.way_to_int8
    return {
        "precision": engine.precision,
        "precision_upper": chain.precision_of_spec,
        "int8_ptq": way == "ptq",
        "int8_qat": way == "qat",
        "workspace_mib": engine.workspace_gib * 1024,
    }
