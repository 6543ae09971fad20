"""Training images in memory, and batches of them: the same for a seed and an epoch, whatever came before.

Each image of each epoch draws from a generator of its own, seeded with (seed, epoch, image). So a resumed training
goes on exactly as an uninterrupted one, and the number of threads changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from refit.command import BadData
from refit.cpu.online import augment
from refit.cpu.records import Record
from refit.cpu.specs import OnlineAugmentation
from refit.cpu.targets import Labels
from refit.cpu.work import ordered_map
from refit.postprocess import InputInfo, resize

MEMORY_LIMIT = 1 << 30  # bytes of decoded images that are kept; above it each image is decoded anew at each epoch


@dataclass(frozen=True)
class Batch:
    """uint8 images [n, c, h, w] and their labels."""

    images: Tensor
    labels: list[Labels]

    def floats(self, scale: float) -> Tensor:
        """The network's input: float32, multiplied by `scale`."""
        return self.images.float().mul_(scale)


class Images:
    """Records at the input's size, decoded once where they fit into `memory` bytes.

    Attributes:
        useless: boxes without area inside their image, left out; counted only when the images are kept.
    """

    def __init__(
        self,
        records: Sequence[Record],
        target: InputInfo,
        memory: int = MEMORY_LIMIT,
        progress: Callable[[], None] | None = None,
    ) -> None:
        """Raises BadData for an image that cannot be decoded."""
        self._records, self._target = records, target
        self._kept: list[tuple[NDArray[np.uint8], Labels]] = []
        self.useless = 0
        if len(records) * target.width * target.height * target.channels <= memory:
            for image, labels, useless in ordered_map(self._decode, range(len(records))):
                self._kept.append((image, labels))
                self.useless += useless
                if progress:
                    progress()

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], Labels]:
        """uint8 [h, w, c] at the input's size, and the labels in its pixels."""
        return self._kept[index] if self._kept else self._decode(index)[:2]

    def _decode(self, index: int) -> tuple[NDArray[np.uint8], Labels, int]:
        record = self._records[index]
        image, frame = resize(record.image(), self._target)
        boxes = frame.to_input(record.boxes.clip(0, [record.width, record.height] * 2))
        good = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        assert record.difficult is not None
        labels = Labels(boxes[good], record.classes[good], record.difficult[good])
        return image, labels, int((~good).sum())


def batches(images: Images, size: int, augmentation: OnlineAugmentation, seed: int, epoch: int) -> Iterator[Batch]:
    """One epoch: every image once, shuffled and changed. The next batches are made while one is used.

    Nothing is left over: the last batch is smaller, or larger by one image (`steps`).
    """
    order = np.random.default_rng([seed, epoch]).permutation(len(images))
    starts = range(0, len(order), size)[: steps(len(order), size)]
    parts = [order[a:b] for a, b in zip(starts, [*starts[1:], len(order)], strict=True)]

    def make(indices: NDArray[np.int64]) -> Batch:
        items = [augment(*images[i], augmentation, np.random.default_rng([seed, epoch, i])) for i in indices.tolist()]
        height, width, channels = items[0][0].shape
        # Not np.stack: it keeps the strides of what it is given, and those of a transposed picture are channels_last.
        pixels = np.empty((len(items), channels, height, width), dtype=np.uint8)
        for i, (image, _) in enumerate(items):
            pixels[i] = image.transpose(2, 0, 1)
        return Batch(torch.from_numpy(pixels), [labels for _, labels in items])

    # One thread is enough to stay ahead of the network, and leaves the cores to it.
    return ordered_map(make, parts, threads=1)


def steps(images: int, size: int) -> int:
    """Batches in an epoch. A single image left over joins the batch before it: batch norm needs company."""
    full, rest = divmod(images, size)
    return max(1, full + (rest > 1 or (rest == 1 and size == 1)))


def open_training_images(
    records: Sequence[Record],
    target: InputInfo,
    source: str,
    progress: Callable[[], None] | None = None,
) -> Images:
    """The images to train on. Raises BadData where there is none, or no object in them."""
    if not len(records):
        raise BadData(f"{source}: the train split is empty; label some images")
    images = Images(records, target, progress=progress)
    if all(len(images[i][1].classes) == 0 for i in range(len(images))):
        raise BadData(f"{source}: no object in the {len(images)} images of the train split; nothing can be learned")
    return images
