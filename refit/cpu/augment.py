"""augment: a snapshot with changed copies of its training images, whose boxes followed the changes.

Works offline, on the train split only; the other splits are handed on as they are. What comes out has a snapshot's
form (docs/contracts.md): dataset_convert, `prepare` and `refit dataset convert` read it like any other. What a copy
looks like depends on the seed, the image's name and the number of the copy, and on nothing else: not on the number of
threads, not on other images.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from refit.command import BadData, BadSpec
from refit.cpu import convert
from refit.cpu.records import decode_image, image_format
from refit.cpu.specs import AugmentSpec
from refit.cpu.status import StatusWriter
from refit.cpu.transforms import Chain
from refit.cpu.work import Progress, ordered_map
from refit.data import snapshot
from refit.data.faults import Fault
from refit.files import link_or_copy, sync_folder, write_bytes, write_json
from refit.postprocess.draw import contact_sheet, draw_boxes

PREVIEW_ROWS, PREVIEW_COPIES = 6, 4
AWAY = "augmented_away"
_SIDES = ("x1", "y1", "x2", "y2")
_JPEG_QUALITY = 95
_DECIMALS = 3  # of a pixel

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Group:
    """A training image and its copies, as rows of annotations.jsonl, and the objects that the copies lost."""

    original: Row
    copies: list[dict[str, Any]]
    lost: list[Fault]


def run(spec: AugmentSpec, out: Path, status: StatusWriter) -> None:
    """Write `images/`, `annotations.jsonl`, `issues.jsonl`, `preview.jpg` and, last, `dataset.json` to `out`.

    Of each training object as many come out or stand in `issues.jsonl` as there are copies, and itself.

    Raises:
        BadData: a snapshot that is damaged, has nothing to train on, or has names that the copies would take.
        BadSpec: a transform that does not fit the images.
    """
    folder = Path(spec.snapshot)
    convert.Snapshot.read(folder)  # tells what is wrong with a row, or that there is nothing to train on
    source = snapshot.open_snapshot(folder)
    rows = sorted(snapshot.read_annotations(folder), key=lambda row: str(row["file"]))
    train = [row for row in rows if row["split"] == "train"]
    names = copy_names(rows, spec.copies)
    images = _clear(out)
    for row in rows:
        link_or_copy(folder / "images" / row["file"], images / row["file"])
    groups = list(_augmented(spec, train, names, images, Progress(status, "train images", len(train))))
    copies = [copy for group in groups for copy in group.copies]
    lost = [fault for group in groups for fault in group.lost]
    sync_folder(images)
    _write_preview(out / "preview.jpg", images, groups, source.classes)
    _write_snapshot(spec, source, sorted([*rows, *copies], key=lambda row: str(row["file"])), lost, out)
    found = Counter(str(o["class"]) for row in (*train, *copies) for o in row["objects"])
    status.success(
        f"Made {spec.copies} of each of {len(train)} training images; {len(lost)} objects of the copies are no longer "
        f"in the picture ({len(lost) / max(1, len(lost) + found.total()):.1%}).",
        kpi={"images": len(train) + len(copies), "objects": found.total(), "dropped_objects": len(lost)},
        categorical={"objects": {name: found[name] for name in source.classes}},
    )


def copy_names(rows: Sequence[Row], copies: int) -> dict[str, list[str]]:
    """Training image -> the names of its copies, without their endings. Raises BadData where one is taken.

    No name has a dot, and none the stem of another: TAO finds labels by the stem.
    """
    stems = Counter(PurePosixPath(str(row["file"])).stem for row in rows)
    names = {}
    for file in (str(row["file"]) for row in rows if row["split"] == "train"):
        stem = PurePosixPath(file).stem
        stem = (stem if stems[stem] == 1 else file).replace(".", "-")
        names[file] = [f"{stem}-aug{number}" for number in range(1, copies + 1)]
    made = Counter(name for group in names.values() for name in group)
    for file, group in names.items():
        for name in group:
            if name in stems or made[name] > 1:
                raise BadData(f"{file}: its copy would be called {name}, as another image is; rename one of them")
    return names


def _augmented(
    spec: AugmentSpec, train: Sequence[Row], names: Mapping[str, Sequence[str]], images: Path, progress: Progress
) -> Iterator[Group]:
    local = threading.local()  # a chain holds random state: each thread has its own

    def augment(row: Row) -> Group:
        if not hasattr(local, "chain"):
            local.chain = Chain(spec.chain, spec.min_visibility)
        return augment_image(row, names[str(row["file"])], local.chain, spec, images)

    for group in ordered_map(augment, train):
        progress.step()
        yield group


def augment_image(row: Row, names: Sequence[str], chain: Chain, spec: AugmentSpec, images: Path) -> Group:
    """Write the copies of one training image into `images`. Raises BadSpec, BadData that name it."""
    file, objects = str(row["file"]), row["objects"]
    encoded = (images / file).read_bytes()
    if sha256(encoded).hexdigest() != row["sha256"]:
        raise BadData(f"{spec.snapshot}/images/{file}: the file was changed after the snapshot was taken")
    stored = _stored(encoded, file)
    grey = stored.ndim == 2
    image = np.asarray(cv2.cvtColor(stored, cv2.COLOR_GRAY2RGB if grey else cv2.COLOR_BGR2RGB), dtype=np.uint8)
    boxes = _boxes(row)
    # The format of the original: a lossless data set stays lossless.
    suffix = ".jpg" if image_format(encoded) == "jpeg" else ".png"
    copies, lost = [], []
    for number, name in enumerate(names, 1):
        try:
            result = chain(image, boxes, f"{spec.seed}/{file}/{number}")
        except BadSpec as exc:
            raise BadSpec(f"{exc} ({file})") from exc
        data = _encoded(result.image, suffix, grey)
        (images / f"{name}{suffix}").write_bytes(data)
        made = [_moved(objects[i], box, result.visible[i]) for i, box in zip(result.kept, result.boxes, strict=True)]
        copies.append(
            {
                **{key: value for key, value in row.items() if key not in ("name", "look")},  # split, groups, tags
                "file": f"{name}{suffix}",
                "sha256": sha256(data).hexdigest(),
                "width": result.image.shape[1],
                "height": result.image.shape[0],
                "objects": made,
                "augmented": {"from": file, "copy": number, "transforms": list(result.applied)},
            }
        )
        for i in sorted(set(range(len(objects))) - set(result.kept.tolist())):
            told = f"a {objects[i]['class']} of {file}: {result.visible[i]:.0%} of it is left in the picture"
            value = " ".join(f"{objects[i][side]:g}" for side in _SIDES)
            advice = f"lower min_visibility ({spec.min_visibility:g}), or cut less off, to keep such objects"
            lost.append(Fault(AWAY, f"{name}{suffix}", told, value=value, advice=advice, severity="info", objects=1))
    return Group(row, copies, lost)


def _moved(original: Row, box: NDArray[np.float64], visible: float) -> dict[str, Any]:
    """An object of a copy: its new box, and the share of it that lies outside now."""
    new = {**original, **{side: round(float(v), _DECIMALS) for side, v in zip(_SIDES, box, strict=True)}}
    if visible < 1 - 1e-6:
        new["truncated"] = round(1 - (1 - float(original.get("truncated") or 0)) * float(visible), 2)
    return new


def _stored(encoded: bytes, file: str) -> NDArray[np.uint8]:
    """The image as stored, 8 bits: grey, or BGR."""
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_ANYCOLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise BadData(f"{file}: not an image that can be decoded")
    return np.asarray(image, dtype=np.uint8)


def _encoded(image: NDArray[np.uint8], suffix: str, grey: bool) -> bytes:
    options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY] if suffix == ".jpg" else []
    stored = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY if grey else cv2.COLOR_RGB2BGR)
    return bytes(cv2.imencode(suffix, stored, options)[1])


def _clear(out: Path) -> Path:
    """Take away what an earlier attempt wrote, first `dataset.json`, which says that it is whole; gives `images/`."""
    (out / "dataset.json").unlink(missing_ok=True)
    images = out / "images"
    shutil.rmtree(images, ignore_errors=True)
    images.mkdir(parents=True)
    return images


def _write_snapshot(
    spec: AugmentSpec, source: snapshot.Snapshot, rows: Sequence[Row], lost: Sequence[Fault], out: Path
) -> None:
    snapshot.write_lines(out / "annotations.jsonl", rows)
    said = source.path / "issues.jsonl"
    before = said.read_text(encoding="utf-8") if said.is_file() else ""
    snapshot.write_lines(out / "issues.jsonl", (fault.as_json() for fault in lost))
    with open(out / "issues.jsonl", "a", encoding="utf-8") as f:
        f.write(before)
    chain = [t.model_dump(exclude_defaults=True) for t in spec.chain]
    measured = json.loads((source.path / "dataset.json").read_text(encoding="utf-8")).get("evaluation")
    about = {
        "schema": snapshot.SCHEMA,
        "fingerprint": snapshot.fingerprint(rows, source.classes),
        **snapshot.facts(rows, source.classes, ()),
        "issues": {**source.issues, **({AWAY: len(lost)} if lost else {})},
        **({"evaluation": measured} if measured else {}),
        "provenance": {
            "snapshot": source.fingerprint,
            "seed": spec.seed,
            "copies": spec.copies,
            "min_visibility": spec.min_visibility,
            "transforms": chain,
            "albumentations": version("albumentations"),
        },
    }
    write_json(out / "dataset.json", about)


def _write_preview(path: Path, images: Path, groups: Sequence[Group], classes: Sequence[str]) -> None:
    """A row for each of the first images that have objects: the original, then its copies."""
    shown = [group for group in groups if group.original["objects"]][:PREVIEW_ROWS]
    rows = [[group.original, *group.copies[:PREVIEW_COPIES]] for group in shown]
    cells = [row for group in rows for row in group]
    pictures = [_drawn(images, row, classes) for row in cells]
    sheet = contact_sheet(pictures, max(map(len, rows), default=1), captions=[_caption(row) for row in cells])
    write_bytes(path, cv2.imencode(".jpg", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))[1].tobytes())


def _caption(row: Row) -> str:
    """The name of an original; what was done to a copy, own transforms by their class alone: a cell has little room."""
    if "augmented" not in row:
        return str(row["file"])
    return ", ".join(name.rpartition(":")[2] for name in row["augmented"]["transforms"]) or "nothing drawn"


def _drawn(images: Path, row: Row, classes: Sequence[str]) -> NDArray[np.uint8]:
    image = decode_image((images / str(row["file"])).read_bytes(), str(row["file"]))
    return draw_boxes(image, _boxes(row), [classes.index(o["class"]) for o in row["objects"]], classes)


def _boxes(row: Row) -> NDArray[np.float64]:
    return np.array([[o[side] for side in _SIDES] for o in row["objects"]], dtype=np.float64).reshape(-1, 4)
