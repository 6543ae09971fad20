"""The state of a training: network, its running average, optimiser, step counter; and one epoch of it.

All randomness comes from seeds (weights, shuffling, augmentation), and the learning rate is a function of the step. So
`state` after an epoch is all that is needed to go on, bit for bit.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from refit.command import StageError
from refit.cpu.loader import Batch
from refit.cpu.network import Detector
from refit.cpu.specs import TrainParams
from refit.cpu.targets import Grid, loss

_AVERAGE = 0.998  # of the running average of the weights: about the last 500 steps
_CLIP = 10.0  # of the gradient's norm: one odd batch cannot throw the weights far away
_LAST_RATE = 0.01  # the cosine ends at this share of the learning rate


class Diverged(StageError):
    """The loss or the weights are no longer finite numbers. Exit code 1."""


class Learner:
    """Trains a detector with AdamW, a warm-up and a cosine, and keeps a running average of the weights.

    Args:
        network: changed in place.
        params: of the stage.
        grid: the output cells.
        scale: of pixel values.
        steps_per_epoch: batches.
        reduced: multiply in bfloat16 where the CPU has instructions for it.
    """

    def __init__(
        self,
        network: Detector,
        params: TrainParams,
        grid: Grid,
        scale: float,
        steps_per_epoch: int,
        reduced: bool,
    ) -> None:
        self.network = network
        self.average = copy.deepcopy(network).eval()
        self._params, self._grid, self._scale, self._reduced = params, grid, scale, reduced
        self._warmup = max(1, round(params.warmup_epochs * steps_per_epoch))
        self._total = params.epochs * steps_per_epoch
        self.step = 0
        # Decay pulls weights to zero; on biases and batch norm that only hurts.
        decay = [p for p in network.parameters() if p.ndim > 1]
        plain = [p for p in network.parameters() if p.ndim <= 1]
        groups = [{"params": decay, "weight_decay": params.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self._optimiser = torch.optim.AdamW(groups, lr=params.learning_rate)

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        warm = min(1.0, (self.step + 1) / self._warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, self.step / self._total)))
        return self._params.learning_rate * warm * (_LAST_RATE + (1 - _LAST_RATE) * cosine)

    def epoch(self, batches: Iterable[Batch], step: Callable[[], None] | None = None) -> dict[str, float]:
        """Learn from each batch once; gives the mean losses: loss, coverage_loss, bbox_loss.

        Raises:
            Diverged: the loss is NaN or infinite.
        """
        self.network.train()
        sums, images = [0.0, 0.0], 0
        for batch in batches:
            losses = self._learn(batch)
            n = len(batch.labels)
            images += n
            sums = [s + n * value for s, value in zip(sums, losses, strict=True)]
            if step:
                step()
        coverage, bbox = (s / images for s in sums)
        return {"loss": coverage + bbox, "coverage_loss": coverage, "bbox_loss": bbox}

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Coverage loss and box loss of a batch."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self._reduced):
            coverage, distances = self.network(batch.floats(self._scale))
        targets = self._grid.targets(batch.labels, self.network.architecture.classes)
        return loss(self._grid, coverage, distances, targets)

    def _learn(self, batch: Batch) -> tuple[float, float]:
        for group in self._optimiser.param_groups:
            group["lr"] = self.rate
        coverage, bbox = self.loss(batch)
        total = coverage + bbox
        if not math.isfinite(total.item()):
            raise Diverged(
                f"the loss is {total.item()} at step {self.step + 1} of {self._total}; "
                f"lower learning_rate (it is {self._params.learning_rate:g}) or give more warmup_epochs"
            )
        self._optimiser.zero_grad()
        torch.autograd.backward(total)
        nn.utils.clip_grad_norm_(self.network.parameters(), _CLIP)
        self._optimiser.step()
        self.step += 1
        self._follow()
        return coverage.item(), bbox.item()

    def _follow(self) -> None:
        """Move the running average towards the weights; quickly at first, when the start is worth nothing."""
        weight = 1 - min(_AVERAGE, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            pairs = zip(self.average.state_dict().values(), self.network.state_dict().values(), strict=True)
            for mean, now in pairs:
                if mean.is_floating_point():
                    mean.lerp_(now, weight)
                else:
                    mean.copy_(now)

    def check(self) -> None:
        """Raises Diverged where a weight of the average is no finite number."""
        for name, tensor in self.average.state_dict().items():
            if not torch.isfinite(tensor).all():
                raise Diverged(f"the weights {name} are not finite numbers; lower learning_rate")

    def state(self) -> dict[str, Any]:
        """Everything that the next epoch depends on."""
        return {
            "step": self.step,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "torch_rng": torch.get_rng_state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`, perhaps of other parameters: these are kept."""
        self.step = int(state["step"])
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        decays = [group["weight_decay"] for group in self._optimiser.param_groups]
        self._optimiser.load_state_dict(state["optimiser"])
        for group, decay in zip(self._optimiser.param_groups, decays, strict=True):
            group["weight_decay"] = decay
        torch.set_rng_state(state["torch_rng"])


def has_bfloat16() -> bool:
    """Does this CPU multiply bfloat16 natively (AMX or AVX-512 BF16)? Emulated it is slower than float32."""
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
