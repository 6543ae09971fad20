"""`prepare_proof`: what `refit.prove.server` needs, which has neither numpy nor OpenCV.

Written to `out` (docs/contracts.md, "Proof"):
- `repository/`: the model as a release would stage it, version 1, and beside it the FP32 model where one is given;
- `pictures/<geometry>/<image>.z`: pictures of the split at the input's size, bytes [h, w, c] in RGB, compressed;
- `request.json`: what is asked of which model with which pictures, and what each byte becomes in the tensor;
- `truth.json`: what is in the pictures, a COCO instances file;
- `model.json`: the description by which the client works;
- with `champion`: that version in the repository as well, asked about the same pictures in a way and with an input of
  its own, and its description as `champion.json`.
"""

from __future__ import annotations

import base64
import shutil
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from refit import picture
from refit.command import BadData, BadSpec
from refit.data.snapshot import read_annotations
from refit.files import write_bytes, write_json, write_text
from refit.postprocess import InputInfo, ModelInfo, resize
from refit.postprocess.info import FILE_NAME
from refit.prove import ways
from refit.prove.specs import PrepareSpec
from refit.status import StatusWriter
from refit.triton import reference
from refit.triton.artefact import Artefact, read_artefact
from refit.triton.config import ModelConfig, read_signature
from refit.triton.errors import ArtefactError
from refit.triton.model import ONNX

SERVED, PLAIN, CHAMPION = "served", "onnx", "champion"
"""What request.json calls the model that would be released, the FP32 one before it, and the version that serves."""
CHAMPION_INFO = "champion.json"

_LEVEL = 1  # of zlib: pictures are read once, by the next stage
Row = Mapping[str, Any]


def run(spec: PrepareSpec, out: Path, status: StatusWriter) -> None:
    """Write what the module's docstring says.

    Raises:
        BadSpec: the model takes something else than one float32 tensor of pictures.
        BadData: model.json does not fit the model, or there is no picture in the split.
    """
    try:
        artefact = read_artefact(spec.model_path, samples=1)
        champion = read_artefact(spec.champion, samples=1) if spec.champion else None
        names = _stage(spec, artefact, champion, out / "repository")
    except ArtefactError as exc:
        raise BadData(str(exc)) from None
    info, (tensor, *more) = artefact.info, artefact.signature.inputs
    if more or tensor.datatype != "FP32" or not (artefact.signature.batch or tensor.dims[:-3] in ((1,), (-1,))):
        raise BadSpec(
            f"{spec.model_path}: takes {tensor.datatype} {list(tensor.dims)} and {len(more)} more inputs; a client of "
            "model.json sends one float32 picture. Leave the gate out (gates.parity: false)"
        )
    rows = _rows(spec)
    others = list(ways.others(info.input)) if spec.doubted else []
    every = [ways.client(info.input), *others]
    rival = [ways.Way(CHAMPION, champion.info.input)] if champion else []
    doubted = min(spec.doubted, len(rows))
    for at, row in enumerate(rows):
        image = picture.read(spec.snapshot / "images" / row["file"])
        done: set[str] = set()
        for way in [*(every if at < doubted else every[:1]), *rival]:
            if way.geometry not in done:
                done.add(way.geometry)
                small, _ = resize(image, way.entry)
                file = out / "pictures" / way.geometry / f"{at}.z"
                file.parent.mkdir(parents=True, exist_ok=True)
                write_bytes(file, zlib.compress(small.tobytes(), _LEVEL))
    asks = [_ask(SERVED, every[0], len(rows)), *(_ask(SERVED, way, doubted) for way in others)]
    asks += [_ask(PLAIN, every[0], len(rows))] if PLAIN in names else []
    asks += [_ask(CHAMPION, way, len(rows)) for way in rival]
    request = {
        "schema": 1,
        "models": names,
        "input": _tensor(info.input),
        "ways": {
            **{way.name: recipe(way) for way in every},
            **{way.name: {**recipe(way), "input": _tensor(way.entry)} for way in rival},
        },
        "asks": asks,
    }
    write_text(out / FILE_NAME, info.text())
    if champion:
        write_text(out / CHAMPION_INFO, champion.info.text())
    write_json(out / "truth.json", truth(rows, info))
    write_json(out / "request.json", request)
    status.success(f"{len(rows)} pictures of {spec.split!r}, {len(others)} other ways for {doubted} of them.")


def _stage(spec: PrepareSpec, artefact: Artefact, champion: Artefact | None, repository: Path) -> dict[str, str]:
    """The models as Triton reads them; what request.json calls them -> their names."""
    shutil.rmtree(repository, ignore_errors=True)
    names = {SERVED: spec.model}
    _released(repository, spec.model, artefact)
    if champion is not None:
        names[CHAMPION] = f"{spec.model}-champion"
        _released(repository, names[CHAMPION], champion)
    if spec.onnx is not None and spec.onnx != spec.model_path:
        names[PLAIN] = f"{spec.model}-fp32"
        signature = read_signature(spec.onnx)
        free = {t.name: reference.concrete(t, artefact.sidecar) for t in signature.inputs if -1 in t.dims}
        _model(repository, ModelConfig(names[PLAIN], 1, signature, 1, free_dims=free), {ONNX: spec.onnx})
    return names


def _released(repository: Path, name: str, artefact: Artefact) -> None:
    """A model as a release stages it."""
    plans = artefact.model.plans
    kind = "KIND_GPU" if plans else "KIND_CPU"
    config = ModelConfig(name, 1, artefact.signature, 1, kind=kind, free_dims=artefact.free_dims(), plans=plans)
    _model(repository, config, artefact.files())


def _model(repository: Path, config: ModelConfig, files: Mapping[str, Path]) -> None:
    folder = repository / config.name / "1"
    folder.mkdir(parents=True)
    for name, source in files.items():
        shutil.copyfile(source, folder / name)
    write_text(folder.parent / "config.pbtxt", config.text())


def _rows(spec: PrepareSpec) -> Sequence[Row]:
    """Lines of annotations.jsonl, spread over the split; where not all are asked for, of pictures with objects alone,
    since the others say little of a server and nothing of an mAP."""
    try:
        rows = [row for row in read_annotations(spec.snapshot) if row["split"] == spec.split]
    except (OSError, ValueError, KeyError) as exc:
        raise BadData(f"{spec.snapshot}: cannot be read as a snapshot: {exc}") from None
    if not rows:
        raise BadData(f"{spec.snapshot}: no picture in split {spec.split!r}; name another, or say gates.parity: false")
    if spec.images is not None and spec.images < len(rows):
        rows = [row for row in rows if row["objects"]] or rows
    rows.sort(key=lambda row: str(row["file"]))
    count = min(spec.images or len(rows), len(rows))
    return [rows[at * len(rows) // count] for at in range(count)]


def _ask(model: str, way: ways.Way, images: int) -> dict[str, Any]:
    return {"model": model, "way": way.name, "images": images}


def _tensor(entry: InputInfo) -> dict[str, Any]:
    return {"name": entry.name, "shape": [1, *entry.shape], "channels": entry.channels, "layout": entry.layout}


def recipe(way: ways.Way) -> dict[str, Any]:
    """How bytes of the pictures become the tensor: the channel of each plane, and its 256 float32, little-endian."""
    channels = way.entry.channels
    order = list(range(channels))[:: -1 if way.entry.channel_order == "bgr" else 1]
    table = ways.tables(way.entry).astype("<f4").tobytes()
    return {"pictures": way.geometry, "order": order, "table": base64.b64encode(table).decode()}


def truth(rows: Sequence[Row], info: ModelInfo) -> dict[str, Any]:
    """What is in the pictures, as `refit.gates.bootstrap` takes it; objects of no class of the model are left out."""
    numbers = {name: at for at, name in enumerate(info.classes, start=1)}
    annotations = [
        {
            "image_id": at,
            "category_id": numbers[o["class"]],
            "bbox": [o["x1"], o["y1"], o["x2"] - o["x1"], o["y2"] - o["y1"]],
            **({"ignore": 1} if o.get("difficult") else {}),
        }
        for at, row in enumerate(rows)
        for o in row["objects"]
        if o["class"] in numbers
    ]
    images = [
        {"id": at, "file_name": row["file"], "width": row["width"], "height": row["height"]}
        for at, row in enumerate(rows)
    ]
    categories = [{"id": n, "name": name} for name, n in numbers.items()]
    return {"images": images, "categories": categories, "annotations": annotations}
