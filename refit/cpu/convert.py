"""dataset_convert: a snapshot of labelled images -> TFRecords for each split.

The same snapshot gives the same bytes: images go in the order of their names, and only formats that a record cannot
hold are encoded anew. Nothing is dropped in silence: what cannot be used stops the stage with the file's name, and
what is changed (a box clipped to its image, an image encoded anew) is counted in the results.
"""

from __future__ import annotations

import io
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from refit.command import BadData
from refit.cpu.records import DATASET_FILE, Dataset, Record, SplitInfo, clear, decode_image, image_format, write_split
from refit.cpu.specs import ConvertSpec
from refit.cpu.status import StatusWriter
from refit.cpu.work import Progress, ordered_map
from refit.specs import did_you_mean

MIN_SIDE = 0.01
"""Pixels; a box that shows less of a side in its image could vanish when it is stored as float32."""
AGAIN = "the snapshot is damaged; take it anew from the source"


def run(spec: ConvertSpec, out: Path, status: StatusWriter) -> None:
    """Write `<split>-*.tfrecord` and, last, `dataset.json` to `out`; what an earlier attempt left is replaced.

    Raises BadData: a snapshot that is damaged, an image that cannot be read to its end, a box that cannot be used, no
    object at all.
    """
    snapshot = Snapshot.read(Path(spec.snapshot))
    clear(out)
    changed: Counter[str] = Counter()
    splits: dict[str, SplitInfo] = {}
    for split, images in snapshot.splits.items():
        records = _records(snapshot, images, Progress(status, f"{split} images", len(images)), changed)
        splits[split] = write_split(out, split, records, snapshot.classes, min(spec.shards, len(images)))
    Dataset(out, snapshot.classes, splits, snapshot.fingerprint).save()
    found = Counter(o.name for images in snapshot.splits.values() for image in images for o in image.objects)
    sizes = ", ".join(f"{name} {info.images}" for name, info in splits.items())
    status.success(
        f"Wrote {found.total()} objects in {sum(i.images for i in splits.values())} images ({sizes}).",
        kpi={
            "images": sum(i.images for i in splits.values()),
            "objects": found.total(),
            "clipped_boxes": changed["clipped"],
            "reencoded_images": changed["reencoded"],
        },
        categorical={"objects": {name: found[name] for name in snapshot.classes}},
    )


@dataclass(frozen=True)
class Labelled:
    """One object of an image: class name, box in pixels of the image as stored, flags."""

    name: str
    box: tuple[float, float, float, float]
    difficult: bool
    truncated: bool


@dataclass(frozen=True)
class SnapshotImage:
    """One line of annotations.jsonl."""

    file: str
    sha256: str
    width: int
    height: int
    objects: tuple[Labelled, ...]
    made_from: str


@dataclass(frozen=True)
class Snapshot:
    """A snapshot as docs/contracts.md describes it, or what augment made of one: labels checked, images not yet."""

    folder: Path
    classes: tuple[str, ...]
    fingerprint: str
    splits: Mapping[str, list[SnapshotImage]]

    @staticmethod
    def read(folder: Path) -> Snapshot:
        """Read `dataset.json` and `annotations.jsonl`; images come sorted by name. Raises BadData."""
        about = _json(_text(folder / DATASET_FILE), str(folder / DATASET_FILE))
        try:
            classes = tuple(str(c) for c in about["classes"])
            expected = {str(name): int(n) for name, n in about["splits"].items() if int(n)}
            fingerprint = str(about["fingerprint"])
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise BadData(f"{folder / DATASET_FILE}: not a snapshot's ({exc!r}); {AGAIN}") from None
        splits: dict[str, list[SnapshotImage]] = {name: [] for name in expected}
        seen: set[str] = set()
        path = folder / "annotations.jsonl"
        for number, line in enumerate(_text(path).splitlines(), 1):
            where = f"{path}:{number}"
            split, image = _image(_json(line, where), classes, where)
            if image.file in seen:
                raise BadData(f"{where}: image '{image.file}' is listed twice; {AGAIN}")
            seen.add(image.file)
            splits.setdefault(split, []).append(image)
        if {name: len(images) for name, images in splits.items()} != expected:
            counts = {name: len(images) for name, images in splits.items()}
            raise BadData(f"{path}: images per split are {counts}, {DATASET_FILE} says {expected}; {AGAIN}")
        for images in splits.values():
            images.sort(key=lambda image: image.file)
        _check_objects(folder, splits)
        return Snapshot(folder, classes, fingerprint, splits)


def verify_image(encoded: bytes, name: str) -> tuple[int, int]:
    """Decode an image to its last row; gives (width, height) as stored.

    Raises BadData that names the image. Only a full decode finds a file that is cut off: its header is good, and OpenCV
    fills what is missing with grey.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            image.load()
            return image.size
    except UnidentifiedImageError:
        reason = "not an image" if encoded else "the file is empty"
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as exc:
        reason = f"cannot be read to its end: {exc}"
    raise BadData(f"{name}: {reason}; replace the file or leave it out")


def _records(
    snapshot: Snapshot, images: list[SnapshotImage], progress: Progress, changed: Counter[str]
) -> Iterator[Record]:
    for record, clipped, reencoded in ordered_map(lambda image: _record(snapshot, image), images):
        changed["clipped"] += clipped
        changed["reencoded"] += reencoded
        progress.step()
        yield record


def _record(snapshot: Snapshot, image: SnapshotImage) -> tuple[Record, int, bool]:
    """The record of one image, how many of its boxes were clipped, and whether it was encoded anew."""
    path = snapshot.folder / "images" / image.file
    try:
        encoded = path.read_bytes()
    except OSError as exc:
        raise BadData(f"{path}: cannot be read: {exc.strerror}; {AGAIN}") from None
    size = verify_image(encoded, str(path))
    if sha256(encoded).hexdigest() != image.sha256:
        raise BadData(f"{path}: the file was changed after the snapshot was taken (its sha256 differs); {AGAIN}")
    if size != (image.width, image.height):
        raise BadData(
            f"{path}: the image is {size[0]}x{size[1]} pixels, its labels were made for {image.width}x{image.height}; "
            "correct the size in the labels"
        )
    reencoded = image_format(encoded) is None
    if reencoded:
        # PNG keeps each pixel; JPEG and PNG are all that a record may hold.
        rgb = decode_image(encoded, str(path))
        encoded = cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))[1].tobytes()
    boxes = np.array([o.box for o in image.objects], dtype=np.float64).reshape(-1, 4)
    inside = np.clip(boxes, 0, np.tile(size, 2))
    record = Record(
        file=image.file,
        width=image.width,
        height=image.height,
        encoded=encoded,
        boxes=inside.astype(np.float32),
        classes=np.array([snapshot.classes.index(o.name) for o in image.objects], dtype=np.int64),
        difficult=np.array([o.difficult for o in image.objects], dtype=bool),
        truncated=np.array([o.truncated for o in image.objects], dtype=bool),
        made_from=image.made_from,
    )
    return record, int((inside != boxes).any(axis=1).sum()), reencoded


def _image(row: Any, classes: tuple[str, ...], where: str) -> tuple[str, SnapshotImage]:
    """One line of annotations.jsonl as (split, image). Raises BadData that names line, image and object."""
    try:
        file, split = str(row["file"]), str(row["split"])
        width, height = int(row["width"]), int(row["height"])
        digest, rows = str(row["sha256"]), list(row["objects"])
        made_from = str(row["augmented"]["from"]) if "augmented" in row else ""
    except (KeyError, TypeError, ValueError) as exc:
        raise BadData(f"{where}: not a line of a snapshot ({exc!r}); {AGAIN}") from None
    if Path(file).name != file:
        raise BadData(f"{where}: '{file}' is not the plain name of a file in images/; {AGAIN}")
    if width < 1 or height < 1:
        raise BadData(f"{where}: {file}: {width}x{height} is not the size of an image; {AGAIN}")
    objects = tuple(_object(o, classes, width, height, f"{where}: {file}: object {i}") for i, o in enumerate(rows, 1))
    return split, SnapshotImage(file, digest, width, height, objects, made_from)


def _object(row: Any, classes: tuple[str, ...], width: int, height: int, where: str) -> Labelled:
    try:
        name = str(row["class"])
        x1, y1, x2, y2 = (float(row[side]) for side in ("x1", "y1", "x2", "y2"))
        flags = bool(row.get("difficult", False)), bool(row.get("truncated", False))
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise BadData(f"{where}: not a labelled object ({exc!r}); {AGAIN}") from None
    if name not in classes:
        hint = did_you_mean(name, list(classes)) or f"; known: {', '.join(classes)}"
        raise BadData(f"{where}: unknown class '{name}'{hint}")
    box = f"box {x1:g} {y1:g} {x2:g} {y2:g}"
    if not all(map(math.isfinite, (x1, y1, x2, y2))):
        raise BadData(f"{where}: {box} is not finite; correct the label")
    if not (x1 < x2 and y1 < y2):
        raise BadData(f"{where}: {box} has no area (x1 < x2 and y1 < y2 is needed); is a column of the labels shifted?")
    if min(x2, width) - max(x1, 0) < MIN_SIDE or min(y2, height) - max(y1, 0) < MIN_SIDE:
        raise BadData(f"{where}: {box} lies outside the image of {width}x{height} pixels; correct the label")
    return Labelled(name, (x1, y1, x2, y2), *flags)


def _check_objects(folder: Path, splits: Mapping[str, list[SnapshotImage]]) -> None:
    """A data set without objects trains to nothing, without an error: refuse it here."""
    objects = {name: sum(len(i.objects) for i in images) for name, images in splits.items()}
    advice = "check the class names (class_map) and the labels"
    if not sum(objects.values()):
        raise BadData(f"{folder}: zero objects in {sum(map(len, splits.values()))} images; {advice}")
    if not objects.get("train"):
        raise BadData(
            f"{folder}: zero objects in the {len(splits.get('train', []))} images of the train split; {advice}"
        )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as exc:
        raise BadData(f"{path}: cannot be read: {exc.strerror}; `snapshot` must name a snapshot's folder") from None
    except UnicodeDecodeError as exc:
        raise BadData(f"{path}: byte {exc.start} is not UTF-8; {AGAIN}") from None


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as exc:
        raise BadData(f"{where}: not JSON ({exc}); {AGAIN}") from None
