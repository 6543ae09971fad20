"""Why an INT8 model lost so much: layers whose values do not fit into 256 steps, by name.

The float32 model runs on a few images of the evaluation set with all its tensors as outputs; each tensor is held
against the range that calibration gave it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from refit.cpu.qdq import Ranges

_STEPS = 255
_LOST = 0.5  # so many channels of a tensor at least smaller than half a step
_CUT = 0.02  # so many values outside the range
_TOLD = 3


def causes(model: Path, ranges: Ranges, inputs: NDArray[np.float32]) -> list[str]:
    """Sentences, the worst first; none where every tensor fits.

    Args:
        model: the float32 model that the ranges are of.
        inputs: [n, c, h, w].
    """
    graph = onnx.load(model)
    makers = {name: node.name for node in graph.graph.node for name in node.output}
    named = [name for name in ranges if name in makers]
    for name in named:
        if name not in {o.name for o in graph.graph.output}:
            graph.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0].name
    found: list[tuple[float, str]] = []
    values = [session.run(named, {entry: row}) for row in np.split(inputs, len(inputs))]
    for i, name in enumerate(named):
        told = _judge(np.concatenate([v[i] for v in values]), *ranges[name])
        if told:
            found.append((told[0], f"layer {makers[name]}: {told[1]}"))
    return [text for _, text in sorted(found, key=lambda item: -item[0])[:_TOLD]]


def _judge(values: NDArray[Any], low: float, high: float) -> tuple[float, str] | None:
    """(how bad, why) of one tensor [n, c, ...] and its range; None where it fits."""
    if low == high:
        if values.min() == values.max():
            return None  # nor does it change here: a channel that pruning or training left dead
        return 3.0, f"its values never changed while calibrating (always {low:g}), so its scale is of nothing"
    low, high = min(low, 0.0), max(high, 0.0)
    step = (high - low) / _STEPS
    cut = float(((values < low - step) | (values > high + step)).mean())
    if cut > _CUT:
        return 1 + cut, (
            f"{cut:.0%} of its values on evaluation images are cut off: they reach {values.min():.3g} to "
            f"{values.max():.3g}, and calibration gave {low:.3g} to {high:.3g}; are its images like these?"
        )
    if values.ndim < 2:
        return None
    peaks = np.abs(values).max(axis=(0, *range(2, values.ndim)))
    alive = peaks > 0
    lost = alive & (peaks < step / 2)
    if alive.sum() and lost.sum() >= _LOST * alive.sum():
        worst = int(peaks.argmax())
        return 2 + float(lost.sum() / alive.sum()), (
            f"channel {worst} reaches {peaks[worst]:.3g}, the median one {np.median(peaks[alive]):.3g}; so a step of "
            f"INT8 is {step:.3g} and {lost.sum()} of its {len(peaks)} channels become 0: an outlier"
        )
    return None
