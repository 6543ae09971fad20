"""What the detector should answer for labelled images, and how far it is from it.

Coverage: each object is a soft ellipse around the middle of its box, 1 at the cell nearest to it. DetectNet_v2 uses a
hard ellipse and cross entropy; a soft one with a focal weight (as in CenterNet, Zhou et al. 2019, "Objects as Points")
needs fewer epochs. Boxes: generalised IoU (Rezatofighi et al. 2019) in the middle of each object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from refit.cpu.network import BBOX_NORM, OFFSET

_RADIUS = 0.3  # the ellipse's axes, as a share of the box's sides: exp(-2) at that distance
_SMALLEST_RADIUS = 0.6  # in cells, so that a tiny object still has a cell
_CUT = 0.05  # coverage below is taken as none
_BOX_FROM = 0.2  # cells with at least this coverage learn the box
_COVERAGE_WEIGHT = 2.0
_BOX_WEIGHT = 2.0


@dataclass(frozen=True, eq=False)
class Labels:
    """The objects of one image at the input's size.

    Attributes:
        boxes: float32 [n, 4] in input pixels, each with positive sides.
        classes: int64 [n].
        ignore: bool [n]; such an object (too little of it to be seen, or marked difficult) is neither to be found nor
            to be missed.
    """

    boxes: NDArray[np.float32]
    classes: NDArray[np.int64]
    ignore: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Targets:
    """What a batch should give.

    Attributes:
        coverage: [N, C, cells].
        boxes: [N, C, cells, 4], input pixels; only where there is coverage.
        weight: [N, C, cells], 0 where nothing is to be learned.
    """

    coverage: Tensor
    boxes: Tensor
    weight: Tensor


class Grid:
    """The output cells of an input size."""

    def __init__(self, width: int, height: int, stride: int) -> None:
        self.stride = stride
        self.rows, self.columns = height // stride, width // stride
        y, x = torch.meshgrid(
            torch.arange(self.rows, dtype=torch.float32) * stride + OFFSET,
            torch.arange(self.columns, dtype=torch.float32) * stride + OFFSET,
            indexing="ij",
        )
        self.x, self.y = x.reshape(-1), y.reshape(-1)

    def boxes(self, distances: Tensor) -> Tensor:
        """Distances [N, 4C, h, w] -> boxes [N, C, h*w, 4] in input pixels."""
        d = distances.reshape(distances.shape[0], -1, 4, self.rows * self.columns) * BBOX_NORM
        left, top, right, bottom = d.unbind(2)
        return torch.stack([self.x - left, self.y - top, self.x + right, self.y + bottom], dim=-1)

    def targets(self, labels: Sequence[Labels], classes: int) -> Targets:
        """What the answer should be for a batch."""
        shape = (len(labels), classes, self.rows * self.columns)
        targets = Targets(torch.zeros(shape), torch.zeros((*shape, 4)), torch.ones(shape))
        for i, label in enumerate(labels):
            self._fill(label, targets.coverage[i], targets.boxes[i], targets.weight[i])
        return targets

    def _fill(self, label: Labels, coverage: Tensor, boxes: Tensor, weight: Tensor) -> None:
        if not len(label.classes):
            return
        box = torch.from_numpy(label.boxes)
        soft = self._ellipses(box)
        for c in np.unique(label.classes):
            of_class = label.classes == c
            seen = torch.from_numpy(of_class & ~label.ignore)
            if seen.any():
                # Where two objects of a class meet, the cell belongs to the one whose middle is nearer in its own size.
                coverage[c], nearest = soft[seen].max(0)
                boxes[c] = box[seen][nearest]
            for x1, y1, x2, y2 in label.boxes[of_class & label.ignore].tolist():
                inside = (self.x >= x1) & (self.x <= x2) & (self.y >= y1) & (self.y <= y2)
                weight[c][inside & (coverage[c] == 0)] = 0.0

    def _ellipses(self, box: Tensor) -> Tensor:
        """Boxes [n, 4] -> coverage [n, cells] of each alone."""
        middle_x, middle_y = (box[:, 0] + box[:, 2]) / 2, (box[:, 1] + box[:, 3]) / 2
        smallest = _SMALLEST_RADIUS * self.stride
        radius_x = ((box[:, 2] - box[:, 0]) * _RADIUS).clamp(min=smallest)
        radius_y = ((box[:, 3] - box[:, 1]) * _RADIUS).clamp(min=smallest)
        dx = (self.x - middle_x[:, None]) / radius_x[:, None]
        dy = (self.y - middle_y[:, None]) / radius_y[:, None]
        soft = torch.exp(-2 * (dx * dx + dy * dy))
        # The nearest cell counts in full, wherever the middle lies between cells. The clamp covers an object whose
        # middle is far from every cell, which only a grid of one cell could have.
        soft = soft / soft.amax(1, keepdim=True).clamp(min=1e-6)
        return torch.where(soft >= _CUT, soft, torch.zeros(()))


def loss(grid: Grid, coverage: Tensor, distances: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
    """Coverage loss and box loss of a batch (scalars); their sum is to be made small.

    Args:
        coverage: logits [N, C, h, w].
        distances: [N, 4C, h, w].
    """
    logits = coverage.reshape(targets.coverage.shape)
    wanted = targets.coverage
    positive = wanted >= _BOX_FROM
    share = wanted[positive]
    total = share.sum().clamp(min=1.0)
    # Quality focal loss (Li et al. 2020): what is nearly right hardly counts, so the empty cells do not drown the rest.
    focus = (logits.sigmoid() - wanted).square() * targets.weight
    entropy = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    coverage_loss = (focus * entropy).sum() / total
    found = grid.boxes(distances)[positive]
    box_loss = ((1 - generalised_iou(found, targets.boxes[positive])) * share).sum() / total
    return _COVERAGE_WEIGHT * coverage_loss, _BOX_WEIGHT * box_loss


def generalised_iou(a: Tensor, b: Tensor) -> Tensor:
    """GIoU of boxes [n, 4] pair by pair, in -1..1; differentiable also where they do not meet."""
    low, high = torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])
    shared = (high - low).clamp(min=0).prod(1)
    union = (a[:, 2:] - a[:, :2]).clamp(min=0).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - shared + 1e-6
    hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).prod(1) + 1e-6
    return shared / union - (hull - union) / hull
