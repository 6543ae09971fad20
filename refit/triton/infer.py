"""One picture, answered by Triton: what the model sees is prepared and read with what the server says about it.

The client needs the server alone: the sidecar comes back in the configuration's parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2

from refit.files import write_bytes
from refit.postprocess import ModelInfo, ModelInfoError, OutputError, decoder_for, preprocess
from refit.postprocess.draw import draw_boxes
from refit.triton.client import TritonClient
from refit.triton.errors import ArtefactError, InferenceFailed, ModelNotServed
from refit.triton.reference import read_picture


@dataclass(frozen=True)
class Found:
    """One object: class name, score in 0..1, and x1, y1, x2, y2 in pixels of the picture."""

    name: str
    score: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class PictureAnswer:
    """What Triton says about one picture.

    Attributes:
        version: the model version that answered.
        sha256: of the model file, as the configuration has it.
        milliseconds: the inference as the client sees it.
    """

    model: str
    version: int
    sha256: str | None
    milliseconds: float
    detections: tuple[Found, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "version": self.version,
            "sha256": self.sha256,
            "milliseconds": self.milliseconds,
            "detections": [
                {"class": d.name, "score": round(d.score, 4), "box": [round(v, 2) for v in d.box]}
                for d in self.detections
            ],
        }


def infer_picture(
    client: TritonClient, model: str, image: Path, *, out: Path | None = None, version: int | None = None
) -> PictureAnswer:
    """Find objects in a picture.

    Args:
        image: JPEG or PNG.
        out: where the picture with boxes goes, as PNG.
        version: a version, or None for the champion.

    Raises:
        ArtefactError: the picture cannot be read, or ``out`` cannot be written.
        ModelNotServed: the model is not there, or did not come from Refit (no sidecar).
        InferenceFailed: the answer does not fit the sidecar. TritonUnavailable.
    """
    picture = read_picture(image)
    served = client.config(model)
    if served.sidecar is None:
        raise ModelNotServed(
            f"Triton at {client.url} serves {model} without a sidecar: it was not released by Refit, so nobody knows "
            "how to read its answers; release it first"
        )
    try:
        info = ModelInfo.from_json(served.sidecar, f"the sidecar of {model}")
        decode = decoder_for(info)
        tensor, frame = preprocess(picture, info.input)
        answer = client.infer(model, {info.input.name: tensor}, version)
        found = decode(answer.outputs, [frame])[0]
    except (ModelInfoError, OutputError) as exc:
        raise InferenceFailed(f"Triton at {client.url}: {model}: {exc}") from None
    if out is not None:
        _save(draw_boxes(picture, found.boxes, found.classes, info.classes, found.scores), out)
    return PictureAnswer(
        model=model,
        version=answer.version,
        sha256=served.sha256,
        milliseconds=round(answer.seconds * 1000, 3),
        detections=tuple(
            Found(info.classes[int(c)], float(s), (float(b[0]), float(b[1]), float(b[2]), float(b[3])))
            for b, s, c in zip(found.boxes, found.scores, found.classes, strict=True)
        ),
    )


def _save(picture: Any, out: Path) -> None:
    good, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    if not good:
        raise ArtefactError(f"{out}: the picture cannot be written as PNG")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(out, data.tobytes())
    except OSError as exc:
        raise ArtefactError(f"{out}: cannot be written ({exc.strerror}); give another path") from None
