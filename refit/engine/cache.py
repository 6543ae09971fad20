"""When an INT8 calibration cache may be used again.

TensorRT does not check it ("it is the responsibility of the application", says its own documentation of
read_calibration_cache), and TAO's gen_trt_engine uses any file that exists without a look at the images. So a cache
counts only with the record of what it was made from.
"""

from __future__ import annotations

from pathlib import Path

from refit.command import BadData
from refit.engine.record import CALIBRATION, CalibrationFacts, CalibrationRecord, RecordError
from refit.files import sha256

_NAMES = {
    "method": "the calibration method",
    "model_sha256": "the ONNX file (sha256)",
    "images_digest": "the images, their order or how they are fed (digest)",
    "tensorrt": "the TensorRT version",
    "compute_capability": "the GPU (compute capability)",
}


def usable(cache: Path, wanted: CalibrationFacts) -> CalibrationRecord:
    """The record of a cache that was made from exactly what is wanted.

    Raises:
        BadData: it was made from something else, or nothing says what it was made from; names what differs.
    """
    advice = "leave the cache out to calibrate anew"
    if not cache.is_file():
        raise BadData(f"{cache}: no such calibration cache; {advice}")
    try:
        record = CalibrationRecord.read(cache.with_name(CALIBRATION))
    except RecordError as exc:
        raise BadData(f"{cache}: nothing says what it was made from ({exc}); {advice}") from None
    for name, text in _NAMES.items():
        was, is_ = getattr(record.facts, name), getattr(wanted, name)
        if was != is_:
            raise BadData(f"{cache}: {text} differs: it was made with {was}, and {is_} is used now; {advice}")
    if sha256(cache) != record.cache_sha256:
        raise BadData(f"{cache}: is not the file that {CALIBRATION} beside it describes: it was changed; {advice}")
    return record
