"""From a model's raw outputs to objects: one interface, a decoder for each family of networks.

A new family writes a class with the shape of `Decoder`, and adds a line to `DECODERS`; `model.json` names it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from refit.postprocess.frame import Frame
from refit.postprocess.info import ModelInfo, ModelInfoError
from refit.postprocess.nms import nms

Outputs = Mapping[str, NDArray[Any]]

_CANDIDATES = 1000  # boxes of a class that enter NMS; far more than any image of ours holds


@dataclass(frozen=True, eq=False)
class Detections:
    """The objects found in one image, best first.

    Attributes:
        boxes: float32 [n, 4], x1 y1 x2 y2 in pixels of the original image, inside it.
        scores: float32 [n], 0..1.
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


class DetectNetV2:
    """Coverage [N, C, h, w] and boxes [N, 4C, h, w] on a grid, as NVIDIA TAO's DetectNet_v2 gives them.

    Each cell votes for one box a class: distances from the cell's centre to the four edges, in units of `bbox_norm`
    pixels. Cells are joined by NMS within a class.
    """

    def __init__(self, info: ModelInfo) -> None:
        missing = [role for role in ("coverage", "bbox") if role not in info.outputs]
        if missing:
            raise ModelInfoError(f"outputs.{missing[0]} is missing; decoder 'detectnet_v2' needs its tensor's name")
        self._info = info
        height, width = info.input.height // info.stride, info.input.width // info.stride
        # The centre of a cell, not of the pixels that it stands for: TAO's convention (docs/contracts.md).
        y, x = np.mgrid[0:height, 0:width].astype(np.float32) * info.stride + info.offset
        self._centres = np.stack([x, y, x, y], axis=-1)

    def __call__(self, outputs: Outputs, frames: Sequence[Frame]) -> list[Detections]:
        coverage, distance = self._take(outputs, len(frames))
        return [self._image(coverage[i], distance[i], frame) for i, frame in enumerate(frames)]

    def _take(self, outputs: Outputs, images: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Both outputs, checked: coverage [N, C, h, w], distances [N, C, h, w, 4]."""
        classes, (height, width) = len(self._info.classes), self._centres.shape[:2]
        found = []
        for role, channels in (("coverage", classes), ("bbox", 4 * classes)):
            name = self._info.outputs[role]
            if name not in outputs:
                raise OutputError(f"the model gave no output {name!r} ({role}); it gave {', '.join(outputs) or 'none'}")
            shape = (images, channels, height, width)
            if outputs[name].shape != shape:
                raise OutputError(f"output {name!r} is {list(outputs[name].shape)}, expected {list(shape)}")
            found.append(outputs[name])
        distance = found[1].reshape(images, classes, 4, height, width).transpose(0, 1, 3, 4, 2)
        return found[0], distance

    def _image(self, coverage: NDArray[Any], distance: NDArray[Any], frame: Frame) -> Detections:
        settings = self._info.postprocess
        cls, row, column = np.nonzero(coverage >= settings.score_threshold)
        scores = coverage[cls, row, column].astype(np.float32)
        signs = np.array([-1, -1, 1, 1], dtype=np.float32) * np.float32(self._info.bbox_norm)
        boxes = frame.to_image(self._centres[row, column] + signs * distance[cls, row, column])
        whole = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        return join(boxes[whole], scores[whole], cls[whole], settings.nms_iou, settings.max_detections)


def join(
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    classes: NDArray[Any],
    nms_iou: float,
    max_detections: int,
) -> Detections:
    """NMS within each class, then the best of all classes: the last step of decoders that give raw boxes."""
    kept: list[NDArray[np.intp]] = []
    for c in np.unique(classes):
        mine = np.nonzero(classes == c)[0]
        if len(mine) > _CANDIDATES:
            mine = mine[np.argsort(-scores[mine], kind="stable")[:_CANDIDATES]]
        kept.append(mine[nms(boxes[mine], scores[mine], nms_iou, max_detections)])
    index = np.concatenate(kept) if kept else np.zeros(0, dtype=np.intp)
    index = index[np.argsort(-scores[index], kind="stable")[:max_detections]]
    return Detections(boxes[index], scores[index], classes[index].astype(np.int64))


DECODERS: dict[str, Callable[[ModelInfo], Decoder]] = {"detectnet_v2": DetectNetV2}


def decoder_for(info: ModelInfo) -> Decoder:
    """The decoder that a model's description names. Raises ModelInfoError for a name that nobody knows."""
    if info.decoder not in DECODERS:
        raise ModelInfoError(f"decoder is {info.decoder!r}; known here: {', '.join(DECODERS)}")
    return DECODERS[info.decoder](info)
