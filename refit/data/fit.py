"""What a network makes of a data set: objects below its grid, other proportions, an input larger than the images."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from refit.data.faults import Fault, fault
from refit.data.statistics import Table
from refit.toolkits.base import NetworkInput


def scale(network: NetworkInput, size: NDArray[np.int32]) -> NDArray[np.float64]:
    """Pixels of the input for one of an image, [n, 2], for widths and heights [n, 2]."""
    each = np.array([network.width, network.height]) / np.maximum(size, 1)
    return np.repeat(each.min(axis=1, keepdims=True), 2, axis=1) if network.letterbox else each


SMALL_SHARE = 0.05
"""Share of a class's objects below one output cell from which it is told."""

ENLARGED = 2.0
"""An input that shows each pixel at more than this size shows nothing new."""

OFF_ASPECT = 4 / 3
"""Proportions further apart than those of 4:3 and 16:9 cost a quarter of the input (or stretch by a third)."""


def faults(table: Table, network: NetworkInput) -> Iterator[Fault]:
    """What the network makes hard about these images and boxes; tells nothing of an empty set."""
    if not len(table.cls):
        return
    sides = (table.boxes[:, 2:] - table.boxes[:, :2]) * scale(network, table.size)[table.image]
    small = sides.min(axis=1) < network.cell
    shown = f"{network.width}x{network.height}"
    for i, name in enumerate(table.classes):
        mine = table.cls == i
        n, of_all = int((mine & small).sum()), int(mine.sum())
        if of_all and n > SMALL_SHARE * of_all:
            least = int(np.argmin(np.where(mine, sides.min(axis=1), np.inf)))
            message = (
                f"{n} of {of_all} objects of {name!r} have a side below {network.cell} pixels, one cell of the "
                f"network's grid, at its input of {shown}"
            )
            yield fault("small_for_network", table.sources[int(table.image[least])], message, value=name)
    times = float(np.median(scale(network, table.size).max(axis=1)))
    if times > ENLARGED:
        message = f"the input of {shown} shows half of the images at {times:.1f} times their size or more"
        yield fault("enlarged_for_network", "", message)
    aspects = table.size[:, 0] / table.size[:, 1]
    off = np.exp(np.abs(np.log(aspects * network.height / network.width)))
    if (off > OFF_ASPECT).all():
        much = float(np.median(off))
        cost = f"padding fills {1 - 1 / much:.0%} of it" if network.letterbox else f"they are stretched by {much:.2f}"
        wide = f"{float(np.median(aspects)):.2f} times as wide as high"
        yield fault("aspect_differs", "", f"the images are {wide}, the input of {shown} is not: {cost}")
