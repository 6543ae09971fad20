"""`bundle`: what a device gets, for each kind a folder, an archive of it, and a manifest.

<kind>/manifest.json     what it is, how to feed it, its figures, the sha256 of every file beside it
<kind>/...               the files
<name>-<kind>.zip        the same as one file; equal content gives equal bytes
edge.json                all manifests and the archives' hashes; part of a release's record
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refit.command import BadData, BadSpec
from refit.edge.saved_model import read_info
from refit.edge.specs import Bundled, BundleSpec, Kind
from refit.edge.tensors import Tensor, Tensors
from refit.files import link_or_copy, sha256, whole, write_json
from refit.postprocess import ModelInfo
from refit.runner import folder_files
from refit.status import StatusWriter

MANIFEST, SUMMARY = "manifest.json", "edge.json"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the oldest time that a zip can hold


def run(spec: BundleSpec, out: Path, status: StatusWriter) -> None:
    """Gather the bundles; see the module's docstring. Raises BadSpec, BadData."""
    info = read_info(spec.info)
    baseline = _figure(spec.baseline, spec.metric)
    told: dict[str, Any] = {}
    for kind, bundled in spec.bundles.items():
        folder = out / kind
        shutil.rmtree(folder, ignore_errors=True)  # of an attempt that was killed
        folder.mkdir()
        for source, name in bundled.files.items():
            _take(Path(source), folder / name)
        manifest = _manifest(kind, bundled, spec, info, baseline, folder)
        write_json(folder / MANIFEST, manifest)
        archive = out / f"{spec.name}-{kind}.zip"
        zipped(folder, archive)
        told[kind] = {"archive": archive.name, "sha256": sha256(archive), "bytes": archive.stat().st_size, **manifest}
        drop = manifest["figures"]["drop"]
        print(f"{kind}: {spec.metric} {manifest['figures'][spec.metric]:.4f}, drop {drop:+.4f}; {archive.name}")
    write_json(out / SUMMARY, {"schema": 1, "model": spec.name, "bundles": told})
    short = {kind: [round(one["figures"]["drop"], 4), one["bytes"]] for kind, one in told.items()}
    write_json(out / "summary.json", {"metric": spec.metric, "bundles": short})
    status.success(
        f"{len(told)} bundles: {', '.join(told)}.",
        {"bundles": len(told), "bytes": sum(b["bytes"] for b in told.values())},
    )


def zipped(folder: Path, archive: Path) -> None:
    """Pack a folder below its own name; names in order, no times, so that equal content gives equal bytes."""
    with whole(archive) as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in folder_files(str(folder)):
            entry = zipfile.ZipInfo(f"{archive.stem}/{name}", _EPOCH)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            packed.writestr(entry, (folder / name).read_bytes())


def _manifest(
    kind: Kind, bundled: Bundled, spec: BundleSpec, info: ModelInfo, baseline: float, folder: Path
) -> dict[str, Any]:
    results = _read(bundled.results)
    value = _figure(bundled.results, spec.metric)
    tensors = Tensors.read(Path(bundled.tensors)) if bundled.tensors is not None else _as_exported(info)
    about = json.loads(info.text())
    feed = {key: about["input"][key] for key in about["input"] if key not in {"name", "layout"}}
    return {
        "schema": 1,
        "kind": kind,
        "model": spec.name,
        "classes": list(info.classes),
        "input": {**feed, "layout": info.input.layout if bundled.tensors is None else "nhwc", **_told(tensors.input)},
        "outputs": {role: _told(tensor) for role, tensor in tensors.outputs.items()},
        "decoder": {key: about[key] for key in ("decoder", "stride", "bbox_norm", "offset", "postprocess")},
        "figures": {
            **results["metrics"],
            "per_class": {name: one["AP50"] for name, one in results["per_class"].items()},
            "fp32_onnx": baseline,
            "drop": round(baseline - value, 6),
            "images": results["splits"],
            "evaluated": {key: results["model"][key] for key in ("file", "sha256")},
        },
        "data": results["dataset"]["fingerprint"],
        "notes": [*bundled.notes, *tensors.notes],
        "files": {name: sha256(folder / name) for name in folder_files(str(folder))},
    }


def _told(tensor: Tensor) -> dict[str, Any]:
    """A tensor for the manifest: numbers that stand for themselves need no scale."""
    told: dict[str, Any] = {"tensor": tensor.name, "shape": list(tensor.shape), "dtype": tensor.dtype}
    if tensor.dtype != "float32":
        told["quantized"] = {"scale": tensor.scale, "zero_point": tensor.zero_point}
    return told


def _as_exported(info: ModelInfo) -> Tensors:
    """The tensors of the ONNX file, whose batch is free (0)."""
    rows, columns, count = info.input.height // info.stride, info.input.width // info.stride, len(info.classes)
    channels: Mapping[str, int] = {"coverage": count, "bbox": 4 * count}
    outputs = {role: Tensor(name, (0, channels[role], rows, columns)) for role, name in info.outputs.items()}
    return Tensors(Tensor(info.input.name, (0, *info.input.shape)), outputs)


def _take(source: Path, target: Path) -> None:
    """A file, or all files of a folder, into a bundle. Raises BadSpec."""
    if source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(source, target)
    elif source.is_dir():
        for name in folder_files(str(source)):
            _take(source / name, target / name)
    else:
        raise BadSpec(f"{source}: no such file; the stage that makes it has not run, or it was moved")


def _read(path: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise BadData(f"{path}: cannot be read ({exc}); run the evaluation again") from None
    return found


def _figure(path: str, metric: str) -> float:
    value = _read(path).get("metrics", {}).get(metric)
    if not isinstance(value, float):
        raise BadData(f"{path}: metrics.{metric} is {value!r}, no figure; run the evaluation again")
    return value
