"""How pictures become a model's input: the client's way, by model.json, and the mistakes that people make in it.

A way is an `InputInfo`. Each differs from the client's in one thing, so that where a way gives the right answers and
the client's does not, that thing is what is wrong in model.json (or in the client that it describes).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from refit.postprocess import InputInfo, to_tensor

CLIENT = "client"
# What is subtracted and divided by in networks that begin with weights of ImageNet, R G B (torchvision's documentation,
# "Models and pre-trained weights"), and in Caffe's, B G R (docs/contracts.md, "Model sidecar").
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CAFFE = (103.939, 116.779, 123.68)


@dataclass(frozen=True)
class Way:
    """`told` ends the sentence "the answers agree where ..."; `key` is what it says of model.json."""

    name: str
    entry: InputInfo
    told: str = ""
    key: str = ""

    @property
    def geometry(self) -> str:
        """Ways of one geometry share their pictures."""
        e = self.entry
        return "-".join((f"{e.width}x{e.height}x{e.channels}", e.resize, e.place, e.fill, e.interpolation))


def client(entry: InputInfo) -> Way:
    return Way(CLIENT, entry)


def others(entry: InputInfo) -> Iterator[Way]:
    """The likely mistakes; each way has a name of its own."""
    if entry.channels == 3:
        swapped = replace(entry, channel_order="bgr" if entry.channel_order == "rgb" else "rgb")
        yield Way(
            swapped.channel_order,
            swapped,
            "red and blue are swapped",
            f"input.channel_order (it is {entry.channel_order})",
        )
    for name, told, scale, mean, std in _normalisations(entry):
        other = replace(entry, scale=scale, mean=mean, std=std)
        if not _same(entry, other):
            yield Way(name, other, told, f"input.{_differs(entry, other)}")
    if entry.resize == "letterbox":
        yield Way(
            "stretch", replace(entry, resize="stretch"), "pictures are stretched", "input.resize (it is letterbox)"
        )
        other = replace(entry, place="centre" if entry.place == "corner" else "corner")
        told = f"the picture lies in the {other.place} of the letterbox"
        yield Way(f"letterbox-{other.place}", other, told, f"input.place (it is {entry.place})")
    else:
        boxed = replace(entry, resize="letterbox")
        for other in (replace(boxed, place="corner"), replace(boxed, place="centre")):
            told = f"pictures keep their proportions (letterbox, {other.place})"
            yield Way(f"letterbox-{other.place}", other, told, "input.resize (it is stretch)")


def tables(entry: InputInfo) -> NDArray[np.float32]:
    """What each byte 0..255 of each channel becomes, in the order of the tensor's channels: float32 [c, 256]."""
    ramp = np.repeat(np.arange(256, dtype=np.uint8), entry.channels).reshape(256, 1, entry.channels)
    tensor = to_tensor(ramp, replace(entry, layout="nchw", width=1, height=256))
    return np.ascontiguousarray(tensor.reshape(entry.channels, 256))


def _normalisations(entry: InputInfo) -> Iterator[tuple[str, str, float, tuple[float, ...], tuple[float, ...]]]:
    colour = entry.channels == 3
    yield "parts", "pixels are fed as 0..1", 1 / 255, (), ()
    yield "bytes", "pixels are fed as 0..255", 1.0, (), ()
    yield "signed", "pixels are fed as -1..1", 2 / 255, (1.0,) * entry.channels, ()
    if colour:
        mean, std = (v if entry.channel_order == "rgb" else v[::-1] for v in _IMAGENET)
        yield "imagenet", "ImageNet's mean and deviation are taken out", 1 / 255, mean, std
        caffe = _CAFFE if entry.channel_order == "bgr" else _CAFFE[::-1]
        yield "caffe", "Caffe's mean is taken out of 0..255", 1.0, caffe, ()


def _same(a: InputInfo, b: InputInfo) -> bool:
    """Whether they make the same numbers of the same bytes, to a thousandth of their range."""
    mine, theirs = tables(a), tables(b)
    return bool(np.abs(mine - theirs).max() <= 1e-3 * np.ptp(mine))


def _differs(given: InputInfo, other: InputInfo) -> str:
    """The keys of a normalisation in which two differ, with what the given one says."""
    found = [k for k in ("scale", "mean", "std") if getattr(given, k) != getattr(other, k)]
    values = (getattr(given, k) for k in found)
    shown = (f"{v:.4g}" if isinstance(v, float) else f"{list(v) or 'none'}" for v in values)
    return ", input.".join(f"{k} (it is {v})" for k, v in zip(found, shown, strict=True))
