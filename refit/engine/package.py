"""`package`: what a release and a device take, in one folder.

    model.onnx, model.json, labels.txt, reference.npz       as far as they were given
    model.plan, engine.json, cal.bin                        of one engine, the cache where it was calibrated
    model_<compute capability>.plan, engine_<...>.json ...  of several, so that one Triton version serves them all
    deepstream/[<compute capability>/]                      a bundle for each engine, or one from the ONNX file
    package.json                                            the names and hashes of all of it, and notes

The bundle is left out, with a note, where NVIDIA's parsers cannot read the network, unless the spec asks for one.

Everything is copied, so that the folder can be taken away.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from refit.command import BadData, BadSpec
from refit.engine import deepstream
from refit.engine.record import CACHE, ENGINE, PLAN, EngineRecord, Precision, RecordError
from refit.engine.specs import DeepStreamSpec, PackageSpec
from refit.files import sha256, write_json, write_text
from refit.postprocess import ModelInfo, ModelInfoError
from refit.postprocess.info import FILE_NAME
from refit.status import StatusWriter
from refit.triton.config import count_weights, read_signature
from refit.triton.errors import ArtefactError

ONNX, REFERENCE = "model.onnx", "reference.npz"
# The weights of an export are those of its checkpoint but for batch norms that are folded (about 1 % less) and
# constants such as anchors (EfficientDet-D0: about 5 % of the parameters more). So the model before pruning is
# recognized where at most 80 % of it was left, by 95 % of its parameters.
CLEARLY_PRUNED, WHOLE = 0.8, 0.95


def run(spec: PackageSpec, out: Path, status: StatusWriter) -> None:
    """Package; see the module's docstring. Raises BadSpec, BadData."""
    try:
        info = ModelInfo.read(spec.model)
        engines = [_engine(folder) for folder in spec.engines]
    except (ModelInfoError, RecordError) as exc:
        raise BadData(str(exc)) from None
    _check(engines, spec)
    notes = [] if spec.onnx is None or spec.pruned is None else _check_size(spec.onnx, spec.pruned)
    write_text(out / FILE_NAME, info.text())
    write_text(out / deepstream.LABELS, "".join(f"{name}\n" for name in info.classes))
    for source, name in ((spec.onnx, ONNX), (spec.reference, REFERENCE)):
        if source is not None:
            _copy(source, out / name)
    records = []
    for plan, record in engines:
        end = f"_{record.gpu.compute_capability}" if len(engines) > 1 else ""
        named = record.model_copy(update={"plan": record.plan.model_copy(update={"file": f"model{end}.plan"})})
        _copy(plan, out / named.plan.file)
        named.write(out / f"engine{end}.json")
        if record.calibration is not None:
            _copy(plan.with_name(CACHE), out / f"cal{end}.bin")
        records.append(named)
    if spec.deepstream is not None:
        try:
            _bundles(spec.deepstream, info, records, spec.precision, out)
        except deepstream.Unsupported as exc:
            if "deepstream" in spec.model_fields_set:
                raise BadSpec(f"deepstream: {exc}; or leave the bundle out (deepstream: null)") from None
            notes.append(f"no DeepStream bundle: {exc}")  # nobody asked for it
            print(notes[-1])
    files = sorted(str(p.relative_to(out)) for p in _made(out))
    write_json(
        out / "package.json", {"schema": 1, "files": {name: sha256(out / name) for name in files}, "notes": notes}
    )
    status.success(f"{len(files)} files, {len(records)} engines.", {"files": len(files), "engines": len(records)})


def _engine(folder: Path) -> tuple[Path, EngineRecord]:
    record = EngineRecord.read(folder / ENGINE)
    return record.check_file(folder), record


def _check(engines: list[tuple[Path, EngineRecord]], spec: PackageSpec) -> None:
    """One engine for each compute capability, all made from the ONNX file that is packaged with them."""
    seen: dict[str, Path] = {}
    model = sha256(spec.onnx) if spec.onnx is not None else None
    for plan, record in engines:
        capability = record.gpu.compute_capability
        if capability in seen:
            raise BadSpec(f"engines: {seen[capability]} and {plan} are both for compute capability {capability}")
        seen[capability] = plan
        if None not in (model, record.onnx_sha256) and record.onnx_sha256 != model:
            raise BadData(f"{plan}: was built from another ONNX file than {spec.onnx}; build it again")
    versions = {record.tensorrt for _, record in engines}
    if len(versions) > 1:
        raise BadSpec(f"engines: built with TensorRT {' and '.join(sorted(versions))}; one Triton has one of them")


def _check_size(onnx: Path, pruned: Path) -> list[str]:
    """Hold the number of weights against what the pruning told of its own.

    Returns:
        A note where that cannot tell the pruned model from the one before.

    Raises:
        BadData: it is an export of the model before pruning.
    """
    try:
        told = json.loads(pruned.read_text(encoding="utf-8"))["metrics"]
        weights = count_weights(onnx)
    except (OSError, ValueError, KeyError) as exc:
        raise BadData(f"{pruned}: is no result of a pruning ({exc!r})") from None
    except ArtefactError as exc:
        raise BadData(str(exc)) from None
    left, kept = told.get("parameters"), told.get("kept")
    if not left or not kept or kept > CLEARLY_PRUNED:
        return ["too little is known of the pruning, or too little was pruned, to know the pruned model by its size"]
    if weights >= WHOLE * left / kept:
        raise BadData(
            f"{onnx}: has {weights:,} weights, as the model before pruning ({left / kept:,.0f} parameters), of which "
            f"prune left {left:,.0f}: what was exported or retrained is not the pruned model. Look at the model's path "
            "in the specs of retrain and export, as they were written to specs/ of their folders"
        )
    return []


def _bundles(
    spec: DeepStreamSpec, info: ModelInfo, records: list[EngineRecord], precision: Precision, out: Path
) -> None:
    onnx = out / ONNX if (out / ONNX).exists() else None
    home = out / "deepstream"
    if not records:
        _bundle(home, spec, info, precision, _logits(info, onnx, None), {ONNX: onnx})
    for record in records:
        limit = record.profile.max if record.profile is not None else 1
        if spec.batch_size > limit:
            raise BadSpec(f"deepstream.batch_size: {spec.batch_size}, and {record.plan.file} takes up to {limit}")
        folder = home / record.gpu.compute_capability if len(records) > 1 else home
        plan = out / record.plan.file
        cache = out / f"cal{plan.stem.removeprefix('model')}.bin" if record.calibration is not None else None
        files = {ONNX: onnx, PLAN: plan, CACHE: cache}
        _bundle(folder, spec, info, record.precision, _logits(info, onnx, record), files)


def _logits(info: ModelInfo, onnx: Path | None, record: EngineRecord | None) -> int | None:
    """How many classes the network numbers: its logits' last dim, None where it has none."""
    name = info.outputs.get("logits")
    dims = {t.name: t.dims for t in record.outputs} if record is not None else {}
    if onnx is not None and record is None:
        try:
            dims = {t.name: t.dims for t in read_signature(onnx).outputs}
        except ArtefactError as exc:
            raise BadData(str(exc)) from None
    return dims[name][-1] if name in dims else None


def _bundle(
    folder: Path,
    spec: DeepStreamSpec,
    info: ModelInfo,
    precision: Precision,
    ids: int | None,
    files: Mapping[str, Path | None],
) -> None:
    named = {name: name if files.get(name) is not None else None for name in (ONNX, PLAN, CACHE)}
    text = deepstream.nvinfer(
        info, spec, precision=precision, onnx=named[ONNX], plan=named[PLAN], cache=named[CACHE], ids=ids
    )
    folder.mkdir(parents=True)
    for name, source in files.items():
        if source is not None:
            _copy(source, folder / name)
    write_text(folder / deepstream.INFER, text)
    write_text(folder / deepstream.APP, deepstream.app(spec))
    write_text(folder / deepstream.LABELS, deepstream.labels(info, ids))


def _copy(source: Path, target: Path) -> None:
    if not source.is_file():
        raise BadSpec(f"{source}: no such file; run the stage that makes it")
    shutil.copyfile(source, target)


def _made(out: Path) -> Iterable[Path]:
    """Everything but the stage's own status file."""
    return (p for p in out.rglob("*") if p.is_file() and p.name != "status.json")
