"""Other ways to read a model's answers than model.json's: each is a mistake in one key of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from refit.postprocess import Detections, Frame, ModelInfo, ModelInfoError, OutputError, decoder_for
from refit.postprocess.nms import iou
from refit.prove.answers import Outputs

NUMBERED = ("nms", "batched_nms", "efficientdet", "detr")  # decoders of networks that give class numbers
Read = Callable[[Outputs, Frame], Detections]


@dataclass(frozen=True)
class Reading:
    """`told` ends the sentence "the answers agree where ..."; `key` is what is then wrong in model.json."""

    told: str
    key: str
    read: Read


def by_info(info: ModelInfo) -> Read:
    """Reads one image's answer as a description says. Raises ModelInfoError; the reader OutputError."""
    decode = decoder_for(info)
    return lambda outputs, frame: decode(outputs, [frame])[0]


def readings(info: ModelInfo, sample: Outputs) -> Iterator[Reading]:
    """The likely mistakes, by the outputs of one image."""
    for told, key, other in (*_numbers(info), *_grid(info, sample), *_names(info, sample)):
        try:
            read = by_info(other)
            read(sample, Frame.fit(other.input.width, other.input.height, other.input))
        except (ModelInfoError, OutputError):  # it cannot be meant: the shapes say no
            continue
        yield Reading(told, key, read)
    yield Reading("x and y of boxes are exchanged", "decoder", _transposed(info))


def _numbers(info: ModelInfo) -> Iterator[tuple[str, str, ModelInfo]]:
    """Class numbers that begin elsewhere."""
    if info.decoder in NUMBERED:
        given = info.class_ids or tuple(range(len(info.classes)))
        for step in (1, -1):
            if min(given) + step >= 0:
                moved = tuple(n + step for n in given)
                told = f"class numbers are {list(moved)}: off by one ({step:+d})"
                yield told, f"class_ids (they are {list(given)})", replace(info, class_ids=moved)


def _grid(info: ModelInfo, sample: Outputs) -> Iterator[tuple[str, str, ModelInfo]]:
    """Of DetectNet_v2: another stride, offset or unit."""
    if info.decoder != "detectnet_v2":
        return
    found = sample.get(info.outputs["coverage"])
    if found is not None and found.ndim == 4:
        stride = round(info.input.width / max(found.shape[3], 1))
        if stride and stride != info.stride:
            yield f"a cell has {stride} pixels", f"stride (it is {info.stride})", replace(info, stride=stride)
    for offset in (0.0, 0.5, info.stride / 2):
        if offset != info.offset:
            told = f"cells' centres lie at {offset:g} pixels"
            yield told, f"offset (it is {info.offset:g})", replace(info, offset=offset)
    for norm in (1.0, 35.0, float(info.stride), float(info.input.width)):
        if norm != info.bbox_norm:
            told = f"distances are in units of {norm:g} pixels"
            yield told, f"bbox_norm (it is {info.bbox_norm:g})", replace(info, bbox_norm=norm)


def _names(info: ModelInfo, sample: Outputs) -> Iterator[tuple[str, str, ModelInfo]]:
    """Two outputs whose names are exchanged."""
    for a, b in combinations(info.outputs, 2):
        there = info.outputs[a] in sample and info.outputs[b] in sample
        if there and sample[info.outputs[a]].ndim == sample[info.outputs[b]].ndim:
            swapped = {**info.outputs, a: info.outputs[b], b: info.outputs[a]}
            yield f"the outputs {a} and {b} are exchanged", f"outputs.{a}, outputs.{b}", replace(info, outputs=swapped)


def _transposed(info: ModelInfo) -> Read:
    """Boxes as y x y x: undone in the input's pixels, where the network gives them."""
    read = by_info(info)

    def turned(outputs: Outputs, frame: Frame) -> Detections:
        found = read(outputs, replace(frame, width=10**6, height=10**6))  # nothing is cut at the picture's edges yet
        boxes = frame.moved(found.boxes)[:, [1, 0, 3, 2]]
        return Detections(frame.to_image(boxes), found.scores, found.classes)

    return turned


def relabelled(
    found: Sequence[Detections], wanted: Sequence[Detections], classes: Sequence[str]
) -> tuple[str, Mapping[int, int]] | None:
    """How classes would have to be renamed so that boxes in the same place have the same name: how to say it, and the
    class found -> the class meant. None where they have it, or where no one-to-one renaming is what most boxes say."""
    votes = Counter[tuple[int, int]]()
    for mine, theirs in zip(found, wanted, strict=True):
        for box, cls in zip(mine.boxes, mine.classes, strict=True):
            overlap = iou(box, theirs.boxes) if len(theirs) else np.zeros(0)
            if len(overlap) and overlap.max() >= 0.5:
                votes[int(cls), int(theirs.classes[int(overlap.argmax())])] += 1
    best: dict[int, int] = {}
    for (mine_class, their_class), _ in votes.most_common():
        if mine_class not in best and their_class not in best.values():
            best[mine_class] = their_class
    moved = {a: b for a, b in best.items() if a != b}
    if not moved:
        return None
    steps, count = {(b - a) % len(classes) for a, b in best.items()}, len(classes)
    told = "classes are exchanged"
    if len(steps) == 1 and count > 2:
        step = steps.pop()
        told = f"class numbers are off by {step if step <= count / 2 else step - count:+d}"
    names = ", ".join(f"{classes[a]!r} is {classes[b]!r}" for a, b in sorted(moved.items()))
    return f"{told}: {names}", best
