"""From a model's raw outputs to objects: a decoder for each family of networks, named by `model.json`.

A new family writes a class with the shape of `Decoder`, and adds a line to `DECODERS`.
"""

from __future__ import annotations

from collections.abc import Callable

from refit.postprocess.detections import Decoder
from refit.postprocess.detectnet import DetectNetV2
from refit.postprocess.detr import Detr
from refit.postprocess.info import ModelInfo, ModelInfoError
from refit.postprocess.listed import BatchedNms, EfficientDet, Nms

DECODERS: dict[str, Callable[[ModelInfo], Decoder]] = {
    "detectnet_v2": DetectNetV2,
    "nms": Nms,
    "batched_nms": BatchedNms,
    "efficientdet": EfficientDet,
    "detr": Detr,
}


def decoder_for(info: ModelInfo) -> Decoder:
    """The decoder that a model's description names. Raises ModelInfoError for a name that nobody knows."""
    if info.decoder not in DECODERS:
        raise ModelInfoError(f"decoder is {info.decoder!r}; known here: {', '.join(DECODERS)}")
    return DECODERS[info.decoder](info)
