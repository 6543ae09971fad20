"""What every decoder gives, and what they share: one interface for all families of networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from refit.postprocess.frame import Frame
from refit.postprocess.info import ModelInfo, ModelInfoError

Outputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Detections:
    """The objects found in one image, best first.

    Attributes:
        boxes: float32 [n, 4], x1 y1 x2 y2 in pixels of the original image, inside it.
        scores: float32 [n], 0..1; but DBSCAN's are sums of coverage and may be above 1.
        classes: int64 [n], index into `ModelInfo.classes`.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, score: float) -> Detections:
        """Those with at least this score."""
        keep = self.scores >= score
        return Detections(self.boxes[keep], self.scores[keep], self.classes[keep])

    def best(self, limit: int) -> Detections:
        """Those with the highest scores, best first; equal scores in the order given."""
        index = np.argsort(-self.scores, kind="stable")[:limit]
        return Detections(self.boxes[index], self.scores[index], self.classes[index])


class Decoder(Protocol):
    """Reads the answer of one family of networks."""

    def __call__(self, outputs: Outputs, frames: Sequence[Frame]) -> list[Detections]:
        """The objects of each image of a batch.

        Args:
            outputs: by tensor name, the batch first; other tensors than the decoder's may be among them.
            frames: one per image, as `preprocess` gave them.

        Raises:
            OutputError: an output is missing or has another shape than the model's description says.
        """


class OutputError(ValueError):
    """A model's answer does not fit its `model.json`."""


def need(info: ModelInfo, *roles: str) -> None:
    """Check that a description names the tensors of these roles. Raises ModelInfoError."""
    for role in roles:
        if role not in info.outputs:
            raise ModelInfoError(f"outputs.{role} is missing; decoder {info.decoder!r} needs its tensor's name")


def take(info: ModelInfo, outputs: Outputs, role: str, shape: tuple[int | None, ...]) -> NDArray[Any]:
    """The output of a role, checked; None stands for a length that the description does not say.

    Raises:
        OutputError: it is not there, or has another shape.
    """
    name = info.outputs[role]
    if name not in outputs:
        raise OutputError(f"the model gave no output {name!r} ({role}); it gave {', '.join(outputs) or 'none'}")
    found = outputs[name]
    if len(found.shape) != len(shape) or any(s not in (None, f) for s, f in zip(shape, found.shape, strict=True)):
        wanted = ", ".join("any" if s is None else str(s) for s in shape)
        raise OutputError(f"output {name!r} is {list(found.shape)}, expected [{wanted}]")
    return found


def select(info: ModelInfo, frame: Frame, boxes: NDArray[Any], scores: NDArray[Any], ids: NDArray[Any]) -> Detections:
    """The objects of one image from what a network that needs no more suppression says.

    Left out: scores below the threshold, ids of no class of ours (background, unused rows), boxes without area.

    Args:
        boxes: [n, 4], x1 y1 x2 y2 in pixels of the input.
        ids: [n], as the network gives them (`ModelInfo.class_ids`).
    """
    known = np.array(info.class_ids or range(len(info.classes)))
    row, cls = np.nonzero(ids[:, None] == known)  # at most one class for a row
    found = Detections(frame.to_image(boxes[row]), scores[row].astype(np.float32), cls.astype(np.int64))
    return whole(found).above(info.postprocess.score_threshold).best(info.postprocess.max_detections)


def whole(found: Detections) -> Detections:
    """Those whose boxes have an area."""
    keep = (found.boxes[:, 2:] > found.boxes[:, :2]).all(axis=1)
    return Detections(found.boxes[keep], found.scores[keep], found.classes[keep])
