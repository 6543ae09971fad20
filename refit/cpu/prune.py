"""`prune`: take whole channels out of a trained detector, so that it is smaller and faster everywhere.

torch-pruning finds the channels that must go together (the two inputs of an addition, a convolution and the batch norm
and the convolutions behind it). Every layer loses about the same share of its channels, those of the least importance.
The outputs of the heads stay. A model pruned so has lost its accuracy; retrain brings it back.

With `search`, several sizes are tried, each retrained shortly and evaluated (`refit.cpu.search`); written then:
`search.json` (every try) and `summary.json`. The model that goes on is the one that was evaluated.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch_pruning as tp

from refit.command import BadSpec
from refit.cpu import search
from refit.cpu.checkpoint import Model, load_model, save_model
from refit.cpu.loader import batches, open_training_images
from refit.cpu.network import Detector, count_parameters
from refit.cpu.records import Dataset
from refit.cpu.specs import OnlineAugmentation, PruneSpec
from refit.cpu.status import StatusWriter
from refit.cpu.targets import Grid, loss
from refit.cpu.work import workers
from refit.postprocess import ModelInfo

_STEPS = 8  # halvings in the search for the share of channels
_TAYLOR_IMAGES = 64
"""Images whose gradients the taylor importance looks at."""


def run(spec: PruneSpec, out: Path, status: StatusWriter) -> None:
    """Prune `spec.model` and write `out/model.pth`.

    Raises:
        BadSpec: the model cannot be used, the target cannot be reached, or nothing worth the name would be pruned.
        BadData: taylor importance asked for, and no usable training images.
        Rejected: no try of the search loses little enough.
    """
    torch.set_num_threads(workers())
    torch.manual_seed(spec.seed)
    model = load_model(spec.model)
    before = count_parameters(model.network)
    scored = _gradients(model, spec) if spec.importance == "taylor" else model.network

    def pruned(ratio: float) -> Model:
        network = _search(scored, model.info, spec.model_copy(update={"ratio": ratio}))
        after = count_parameters(network)
        if after > spec.max_kept * before:
            raise BadSpec(
                f"ratio {ratio:g} with round_to {spec.round_to} keeps {after:,} of {before:,} parameters "
                f"({after / before:.4%}, more than max_kept {spec.max_kept:.0%}): nothing was pruned; lower one of them"
            )
        rebuilt = Detector(network.current())
        rebuilt.load_state_dict(network.state_dict())
        return Model(rebuilt, model.info)

    made = pruned(spec.ratio) if spec.search is None else search.run(spec, spec.search, pruned, out, status)
    after, size = count_parameters(made.network), save_model(out / "model.pth", made)
    status.success(
        f"Kept {after:,} of {before:,} parameters ({after / before:.1%}).",
        {"parameters": after, "parameters_before": before, "ratio": round(after / before, 6), "bytes": size},
    )


def _search(network: Detector, info: ModelInfo, spec: PruneSpec) -> Detector:
    """The pruned copy with the most parameters that still reaches the target."""
    if spec.target == "channels":
        return _prune(network, info, 1 - spec.ratio, spec)
    limit = math.floor(spec.ratio * count_parameters(network))
    low, high = 0.0, 1.0
    best: Detector | None = None
    for _ in range(_STEPS):
        middle = (low + high) / 2
        candidate = _prune(network, info, middle, spec)
        if count_parameters(candidate) <= limit:
            best, high = candidate, middle
        else:
            low = middle
    if best is None:
        raise BadSpec(
            f"ratio {spec.ratio} of the parameters ({limit:,}) cannot be reached with round_to {spec.round_to}: "
            f"the least is {count_parameters(candidate):,}; raise ratio or lower round_to"
        )
    return best


def _prune(network: Detector, info: ModelInfo, share: float, spec: PruneSpec) -> Detector:
    """A copy that has lost about this share of the channels of each layer."""
    pruned = copy.deepcopy(network)
    for new, old in zip(pruned.parameters(), network.parameters(), strict=True):
        new.grad = None if old.grad is None else old.grad.clone()  # deepcopy leaves them behind
    importance = {
        "magnitude": tp.importance.GroupMagnitudeImportance,
        "bn_scale": tp.importance.BNScaleImportance,
        "taylor": tp.importance.GroupTaylorImportance,
    }[spec.importance]()
    tp.pruner.BasePruner(
        pruned,
        torch.zeros(1, info.input.channels, info.input.height, info.input.width),
        importance,
        pruning_ratio=share,
        ignored_layers=[pruned.coverage, pruned.bbox],
        round_to=spec.round_to,
    ).step()
    return pruned


def _gradients(model: Model, spec: PruneSpec) -> Detector:
    """The detector with the gradients of the loss on some training images, for the taylor importance."""
    dataset = Dataset.load(spec.records)
    if dataset.classes != model.info.classes:
        raise BadSpec(f"model {spec.model} and records {spec.records} have different classes")
    records = dataset.split("train")
    step = max(1, len(records) // _TAYLOR_IMAGES)
    chosen: Sequence[int] = range(0, len(records), step)[:_TAYLOR_IMAGES]
    images = open_training_images([records[i] for i in chosen], model.info.input, str(dataset.folder))
    unchanged = OnlineAugmentation(hflip=0, color=0)
    entry = model.info.input
    grid = Grid(entry.width, entry.height, model.info.stride)
    for batch in batches(images, 8, unchanged, spec.seed, 0):
        coverage, distances = model.network(batch.floats(entry.scale))
        targets = grid.targets(batch.labels, len(model.info.classes))
        coverage_loss, box_loss = loss(grid, coverage, distances, targets)
        torch.autograd.backward(coverage_loss + box_loss)
    return model.network
