"""How a model is fed and how its answer is read: shared by evaluate, inference and the Triton client.

    info = ModelInfo.read("model.json")
    tensor, frame = preprocess(image, info.input)
    detections = decoder_for(info)(run(tensor), [frame])[0]

numpy and OpenCV only: it runs in the tools and in the cpu environment. NVIDIA TAO's networks plug in as decoders.
"""

from refit.postprocess.decode import Decoder, Detections, DetectNetV2, OutputError, decoder_for
from refit.postprocess.frame import Frame, preprocess, resize, to_tensor
from refit.postprocess.info import InputInfo, ModelInfo, ModelInfoError, Postprocess

__all__ = [
    "Decoder",
    "DetectNetV2",
    "Detections",
    "Frame",
    "InputInfo",
    "ModelInfo",
    "ModelInfoError",
    "OutputError",
    "Postprocess",
    "decoder_for",
    "preprocess",
    "resize",
    "to_tensor",
]
