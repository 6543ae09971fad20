"""How a model is fed and how its answer is read: shared by evaluate, inference and the Triton client.

    info = ModelInfo.read("model.json")
    tensor, frame = preprocess(image, info.input)
    detections = decoder_for(info)(run(tensor), [frame])[0]

numpy and OpenCV only: it runs in the tools and in the cpu environment, and reads every network of NVIDIA TAO.
"""

from refit.postprocess.decode import decoder_for
from refit.postprocess.detections import Decoder, Detections, OutputError
from refit.postprocess.frame import Frame, preprocess, resize, to_tensor
from refit.postprocess.info import Clustering, InputInfo, ModelInfo, ModelInfoError, Postprocess

__all__ = [
    "Clustering",
    "Decoder",
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
