"""Pictures on which nothing can be measured: INT8 ranges from them would cut off all that real pictures hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SPREAD = 2.0
"""Standard deviation in steps of 256: the noise of a covered lens is below it, the darkest night scene with a lamp in
it is above."""


def shows_nothing(picture: NDArray[np.uint8]) -> bool:
    """Is a picture [h, w, c], as the network sees it, of one colour?"""
    values: NDArray[Any] = picture.reshape(-1, picture.shape[-1])
    return bool(values.std(axis=0).max() < _SPREAD)


def told(blank: Sequence[str], images: int) -> tuple[str, bool]:
    """What a person should know of `images` calibration images, some of which show nothing ("" where all do show
    something), and whether these are most: then ranges would be of nothing."""
    if not blank:
        return "", False
    some = ", ".join(blank[:3]) + (" ..." if len(blank) > 3 else "")
    sentence = f"{len(blank)} of {images} calibration images are of one colour ({some}): look at what made them"
    return sentence, 2 * len(blank) > images
