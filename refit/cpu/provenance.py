"""`calibration.json`, what INT8 ranges were measured on and by what, and when ranges of before may be used again.

Ranges hold for one model, its images and the way these are fed, one method, the versions of the tools and the machine;
anything else is refused with what differs, as for TensorRT's caches (`refit.engine.cache`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from refit import files
from refit.command import BadData
from refit.cpu.latency import processor
from refit.cpu.qdq import Ranges
from refit.cpu.records import Record
from refit.cpu.specs import QuantizeParams
from refit.postprocess import InputInfo

CACHE, RECORD = "calibration.cache", "calibration.json"
_FORMAT = "refit calibration ranges/1"
_TOOLS = ("onnxruntime", "onnx", "numpy", "opencv-python-headless")
_FACTS = {
    "source": "the model (sha256)",
    "dataset": "the data set (fingerprint)",
    "images": "the calibration images, or their order",
    "input": "how images are fed",
    "method": "the calibration method",
    "tools": "the version of a tool",
    "device": "the machine",
}


def facts(
    source: Path, fingerprint: str, images: Sequence[Record], entry: InputInfo, params: QuantizeParams
) -> dict[str, Any]:
    """All that ranges depend on."""
    told = {
        "source": {"sha256": files.sha256(source), "bytes": source.stat().st_size},
        "dataset": fingerprint,
        "split": "train",
        "images": [{"file": r.file, "sha256": sha256(r.encoded).hexdigest()} for r in images],
        "input": json.loads(json.dumps(asdict(entry))),  # as it is read back: lists for tuples
        "tools": {name: version(name) for name in _TOOLS},
        "device": processor(),
    }
    return by(told, params.method, params)


def by(told: dict[str, Any], method: str, params: QuantizeParams) -> dict[str, Any]:
    """The same facts of another method."""
    share = {"percentile": params.percentile} if method == "percentile" else {}
    return {**told, "method": {"name": method, **share}}


def cache_text(ranges: Ranges, wanted: dict[str, Any]) -> str:
    """`calibration.cache`: the ranges as JSON, for people, scripts and another run."""
    content = {
        "format": _FORMAT,
        "note": "Ranges for ONNX Q/DQ. This is not TensorRT's calibration cache and TensorRT cannot read it.",
        "method": wanted["method"]["name"],
        "model_sha256": wanted["source"]["sha256"],
        "ranges": {name: list(bounds) for name, bounds in ranges.items()},
    }
    return json.dumps(content, indent=1) + "\n"


def usable(cache: Path, wanted: dict[str, Any]) -> Ranges:
    """The ranges of a cache that was made from exactly what is wanted.

    Raises:
        BadData: it was made from something else, was changed, or nothing says what it was made from.
    """
    advice = "leave quantize.cache out to measure anew"
    try:
        record = json.loads(cache.with_name(RECORD).read_text(encoding="utf-8"))
        text = cache.read_bytes()
        content = json.loads(text)
        ranges = {str(name): (float(low), float(high)) for name, (low, high) in content["ranges"].items()}
        was = {name: record[name] for name in _FACTS}
        digest = record["cache_sha256"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise BadData(f"{cache}: it or {RECORD} beside it does not say what it is of ({exc!r}); {advice}") from None
    for name, told in _FACTS.items():
        if was[name] != wanted[name]:
            raise BadData(f"{cache}: {told} differs: {_difference(was[name], wanted[name])}; {advice}")
    if sha256(text).hexdigest() != digest:
        raise BadData(f"{cache}: is not the file that {RECORD} beside it describes: it was changed; {advice}")
    return ranges


def _difference(was: Any, is_: Any) -> str:
    """Two values that differ, short enough for a message."""
    if isinstance(was, dict) and isinstance(is_, dict):
        keys = [k for k in {**was, **is_} if was.get(k) != is_.get(k)]
        was, is_ = ({k: d.get(k) for k in keys} for d in (was, is_))
    elif isinstance(was, list) and isinstance(is_, list):
        first = next((i for i, (a, b) in enumerate(zip(was, is_, strict=False)) if a != b), min(len(was), len(is_)))
        was, is_ = (v[first] if first < len(v) else f"{len(v)} images" for v in (was, is_))
    return f"it was made with {was}, and {is_} is used now"
