"""What a TensorRT plan file says by itself, read without TensorRT.

The head of a plan, as NVIDIA's own trtexec reads it for `--getPlanVersionOnly` (NVIDIA/TensorRT,
samples/common/sampleEngines.cpp): bytes 0-3 are "ftrt", 4-7 the version of the form (0), and in that form 24-27 are
major, minor, patch and build of the TensorRT that wrote it. Nothing else of a plan is documented, so nothing else is
read: the GPU that it is for stands in engine.json only.
"""

from __future__ import annotations

from pathlib import Path

_TAG = b"ftrt"
_HEAD = 28


class PlanError(ValueError):
    """A file that is no TensorRT plan; says what it looks like and what to do."""


def tensorrt_version(path: Path) -> str:
    """The TensorRT that wrote a plan, e.g. "10.8.0.43".

    Raises:
        PlanError: it cannot be read, or is no plan of a form that is known.
    """
    try:
        with open(path, "rb") as f:
            head = f.read(_HEAD)
    except OSError as exc:
        raise PlanError(f"{path}: cannot be read ({exc.strerror}); build the engine again") from None
    if len(head) < _HEAD:
        raise PlanError(f"{path}: is cut short ({len(head)} bytes); build the engine again")
    if not head.startswith(_TAG):
        raise PlanError(
            f"{path}: is no TensorRT plan (it begins with {head[:4]!r}, not {_TAG!r}); name the engine file"
        )
    form = int.from_bytes(head[4:8], "little")
    if form != 0:
        raise PlanError(
            f"{path}: is a plan of form {form}; only form 0 is known here: Refit is older than that TensorRT"
        )
    return ".".join(str(b) for b in head[24:28])
