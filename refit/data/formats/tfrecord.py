"""TFRecords of TensorFlow's object detection: a record an image, its bytes and its boxes in it, and label_map.pbtxt.

Features: image/encoded, format, filename, source_id, height, width, key/sha256, and a list for each of
image/object/bbox/{xmin, xmax, ymin, ymax} (shares of the image's size), class/{text, label} (numbers from 1),
difficult, truncated, occluded. Source: object_detection/core/standard_fields.py (TfExampleFields) and
dataset_tools/create_pascal_tf_record.py of tensorflow/models.

Shares are float32, so that a coordinate comes back to about width / 16,000,000 pixels; it is rounded to a thousandth of
a pixel, which gives whole pixels, and hundredths, as they were for images of up to 16,000 pixels a side.
"""

from __future__ import annotations

import math
import os
import re
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from refit.data import images
from refit.data import tfrecord as container
from refit.data.faults import BadData, Fault, fault
from refit.data.formats import label_map
from refit.data.formats.base import (
    Changed,
    Layout,
    Names,
    Record,
    files_at,
    ignored,
    inside,
    lost,
    normal,
    not_recognised,
)
from refit.data.formats.listed import as_size, parts_lost, parts_of
from refit.data.model import Box, Item, Labelled, Labels
from refit.data.text import class_name
from refit.data.tree import Tree, suffix_of

SHARD_BYTES = 128 * 2**20
_BUFFER = 2**20
_FILE = re.compile(r"\.(?:tf)?records?(?:-\d+-of-\d+)?$|-\d{5}-of-\d{5}$|-fold-\d{3}-of-\d{3}$", re.IGNORECASE)
_OF = re.compile(r"-\d+-of-\d+")
_ENDING = re.compile(r"\.(?:tf)?records?$", re.IGNORECASE)
_SIDES = tuple(f"image/object/bbox/{side}" for side in ("xmin", "ymin", "xmax", "ymax"))
_FLAGS = tuple(f"image/object/{flag}" for flag in ("difficult", "truncated", "occluded", "is_crowd"))
_TEXT, _LABEL = "image/object/class/text", "image/object/class/label"
_FAR = 2  # a share beyond this (or below its opposite) is no share: pixels, most likely
_SUFFIX = {"jpeg": ".jpg", "png": ".png", "webp": ".webp", "bmp": ".bmp"}


class WrongFeature(ValueError):
    """A feature that has another type than it must have."""


@dataclass(frozen=True, slots=True)
class Found:
    """A record of a file: its number from 1, the byte at which its data begins, the data, and its features."""

    number: int
    at: int
    data: bytes
    features: Mapping[str, container.Feature]

    def texts(self, name: str) -> list[bytes]:
        value = self.features.get(name, [])
        if not isinstance(value, list):
            raise WrongFeature(f"{name} holds numbers, text is expected")
        return value

    def numbers(self, name: str) -> list[float]:
        value = self.features.get(name)
        if isinstance(value, list) and value:
            raise WrongFeature(f"{name} holds text, numbers are expected")
        return [] if value is None or isinstance(value, list) else value.tolist()

    def longest(self, names: Iterable[str]) -> int:
        """How many values the longest of these lists has, of whatever type."""
        return max(len(self.features.get(name, ())) for name in names)

    def text(self, *names: str) -> str:
        """The first of these features that says something."""
        found = (value.decode("utf-8", "surrogateescape").strip() for name in names for value in self.texts(name)[:1])
        return next(filter(None, found), "")

    def size(self, width: str, height: str) -> tuple[int, int] | None:
        return as_size(next(iter(self.numbers(width)), None), next(iter(self.numbers(height)), None))

    def place(self, path: str, value: bytes) -> str:
        """The name of an image whose bytes lie in this record."""
        return inside(path, self.number, self.at + max(0, self.data.find(value)), len(value))


def record_files(tree: Tree, folder: str) -> list[str]:
    could = [
        ending for ending in tree.files.endings() if ending not in images.SUFFIXES and ending not in (".txt", ".xml")
    ]
    return sorted(path for path in files_at(tree, folder, *could) if _FILE.search(path))


def kind(tree: Tree, paths: Sequence[str]) -> str:
    """Which format the first record is of, "tfrecord" or "tao_tfrecord"; by the files' names where none can be read."""
    for path in paths[:3]:
        try:
            with open(os.path.join(tree.root, path), "rb") as file:
                features = container.decode_example(container.read(Path(path), file, 0))
        except (OSError, ValueError, container.DamagedRecords):
            continue
        if any(name.startswith("frame/") for name in features):
            return "tao_tfrecord"
        return "tfrecord"
    return "tao_tfrecord" if any("-shard-" in path or "-fold-" in path for path in paths) else "tfrecord"


def walk(tree: Tree, path: str) -> Iterator[Found | Fault]:
    """The records of a file in order, and a fault for each that cannot be read. Raises Changed."""
    try:
        with open(os.path.join(tree.root, path), "rb") as file:
            if os.fstat(file.fileno()).st_size != tree.files[path].size:
                raise Changed(f"{path} had {tree.files[path].size} bytes when it was listed, and has another size now")
            yield from _records(file, path, tree.files[path].size)
    except FileNotFoundError:
        raise Changed(f"{path} is gone") from None
    except Changed:
        raise
    except OSError as exc:
        yield fault("label_unreadable", path, f"cannot be opened: {exc.strerror}")


def _records(file: BinaryIO, path: str, size: int) -> Iterator[Found | Fault]:
    at = number = 0
    while at < size:
        number += 1
        place = f"record {number}"
        try:
            data = container.read(Path(path), file, at)
        except container.DamagedRecords as exc:
            rest = ""
            if exc.end is None:
                file.seek(at)
                zipped = number == 1 and file.read(2) == b"\x1f\x8b"
                rest = f"; the file's last {size - at} bytes are lost" + "; it is packed with gzip, unpack it" * zipped
            yield fault("record_damaged", path, f"{exc.reason} (byte {at}){rest}", at=place, images=1)
            if exc.end is None:
                return
            at = exc.end
            continue
        try:
            yield Found(number, at + container.DATA_AT, data, container.decode_example(data))
        except ValueError as exc:
            yield fault("label_unreadable", path, str(exc), at=place, images=1)
        at += container.framed(len(data))


def parts_of_shards(paths: Sequence[str]) -> dict[str, str | None]:
    """The part that each file of records is: "train" for train-00000-of-00010.tfrecord, train.record-00000-of-00010."""
    stems = {p: _ENDING.sub("", _OF.sub("", PurePosixPath(p).name)) for p in paths}
    stems = {path: stem.replace("-fold", "").replace("-shard", "") for path, stem in stems.items()}
    parts = parts_of(stems.values())
    return {path: parts[stem] for path, stem in stems.items()}


@dataclass(frozen=True)
class TfRecordReader:
    """Reads all record files below a folder; the images lie in them."""

    name: str = "tfrecord"

    def matches(self, tree: Tree) -> bool:
        paths = record_files(tree, ".")
        return bool(paths) and kind(tree, paths) == self.name

    def layout(self, tree: Tree, image_dir: str | None = None, label_dir: str | None = None) -> Layout:
        folder = normal(label_dir or image_dir or ".")
        if not record_files(tree, folder):
            raise not_recognised(tree, f"no TFRecord file (train.tfrecord, train.record-00000-of-00010) below {folder}")
        return Layout(folder, folder)

    def read(self, tree: Tree, layout: Layout, leave: Collection[str] = ()) -> Iterator[Item | Fault | Names]:
        names = yield from label_map.told(tree)
        paths = [path for path in record_files(tree, layout.label_dir) if path not in leave]
        parts = parts_of_shards(paths)
        for path in paths:
            for found in walk(tree, path):
                if isinstance(found, Fault):
                    yield found
                    continue
                yield read_record(found, path, names, parts[path])
        yield from ignored(tree, {*paths, *label_map.files(tree), *leave})


def read_record(found: Found, path: str, names: Mapping[int, str], part: str | None = None) -> Item:
    """The image in a record, with its labels; `names` are the classes by number."""
    place = f"record {found.number}"
    try:
        encoded = next(iter(found.texts("image/encoded")), None)
        header = header_of(encoded or b"")
        labels = _labels(found, path, names, header)
        if encoded is None:
            tao = "; it is TAO's: set dataset.format to tao_tfrecord" if "frame/id" in found.features else ""
            why = fault("label_unreadable", path, f"it has no feature image/encoded{tao}", at=place, images=1)
            return lost(path, labels, why)
        name = image_name(found.text("image/filename", "image/source_id"), path, found.number, header)
    except WrongFeature as exc:
        labels = Labels(found.longest((*_SIDES, _TEXT, _LABEL)))
        return lost(path, labels, fault("bad_entry", path, str(exc), at=place, images=1))
    return Item(name, found.place(path, encoded), path, labels, part)


def _labels(found: Found, path: str, names: Mapping[int, str], header: images.Header | None) -> Labels:
    """The objects of a record. Raises WrongFeature."""
    place = f"record {found.number}"
    sides = [found.numbers(name) for name in _SIDES]
    texts, numbers = found.texts(_TEXT), found.numbers(_LABEL)
    flags = [found.numbers(name) for name in _FLAGS]
    lists: list[tuple[str, Sized]] = [*zip(_SIDES, sides, strict=True), (_TEXT, texts), (_LABEL, numbers)]
    count = max(len(values) for _, values in lists)
    labels = Labels(count, size=found.size("image/width", "image/height"), at=place)
    uneven = [f"{n} {len(v)}" for n, v in lists if len(v) != count and (len(v) or n in _SIDES)]
    if uneven:
        message = f"the lists of its objects differ in length: of {count}, {', '.join(uneven)}"
        labels.faults.append(fault("bad_entry", path, message, at=place, objects=count))
        return labels
    width, height = (header.width, header.height) if header else (1, 1)
    for i, (x1, y1, x2, y2) in enumerate(zip(*sides, strict=True)):
        name = class_name(texts[i].decode("utf-8", "replace")) if texts else ""
        name = name or (label_map.name_of(names, numbers[i]) if numbers else "")
        at = f"{place}, object {i + 1}"
        shown = f"{name} {x1:g} {y1:g} {x2:g} {y2:g}"

        def without(code: str, message: str, advice: str = "", at: str = at, shown: str = shown) -> None:
            labels.faults.append(fault(code, path, message, value=shown, advice=advice, at=at, objects=1))

        difficult, truncated, occluded, crowd = (values[i] if i < len(values) else None for values in flags)
        if crowd:
            without("crowd", "a crowd region")
        elif not name:
            number = f"the class {numbers[i]:g}, which no label map names" if numbers else "no class"
            without("no_class", f"an object with {number}")
        elif not all(map(math.isfinite, (x1, y1, x2, y2))):
            without("not_finite", f"the box {shown} is not finite")
        elif max(abs(v) for v in (x1, y1, x2, y2)) > _FAR:
            advice = "write shares of the image's width and height, from 0 to 1"
            without("out_of_range", f"the box {shown} is in pixels, or of another image", advice)
        else:
            box = [round(v * side, 3) for v, side in zip((x1, y1, x2, y2), (width, height) * 2, strict=True)]
            labels.objects.append(
                Labelled(
                    0,
                    name,
                    box[0],
                    box[1],
                    box[2],
                    box[3],
                    difficult=bool(difficult),
                    truncated=truncated if truncated in (0, 1) else None,
                    occluded=int(occluded) if occluded in (0, 1, 2, 3) else None,
                    at=at,
                )
            )
    return labels


def header_of(data: bytes) -> images.Header | None:
    try:
        return images.read_header(data)
    except images.ImageFault:
        return None


def image_name(said: str, path: str, number: int, header: images.Header | None) -> str:
    """A path below the image folder for an image in a record: what the record says, without what leads elsewhere.

    One that says nothing is called after its file and number; an ending that is none of an image is added to.
    """
    said = re.sub(r"^[A-Za-z]:", "", said.replace("\\", "/"))
    parts = [p for p in said.split("/") if p not in ("", ".", "..")]
    name = "/".join(parts) or f"{_ENDING.sub('', PurePosixPath(path).name)}-{number:06}"
    return name if suffix_of(name) in images.SUFFIXES else name + _SUFFIX[header.kind if header else "jpeg"]


def stem_of_part(part: str | None) -> str:
    return part or "default"


@dataclass
class Shards:
    """Record files that are filled one after the other, and named when it is known how many there are.

    `name` gives a file's name by part, number from 0 and how many the part has. A file is full at `most` bytes.
    """

    out: Path
    name: Callable[[str, int, int], str]
    most: int = SHARD_BYTES
    images: Counter[str | None] = field(default_factory=Counter)
    _files: dict[str, list[Path]] = field(default_factory=dict)
    _open: dict[str, BinaryIO] = field(default_factory=dict)

    def __enter__(self) -> Shards:
        return self

    def write(self, part: str | None, data: bytes) -> None:
        self.images[part] += 1
        part = stem_of_part(part)
        file = self._open.get(part)
        if file is None or file.tell() >= self.most:
            if file is not None:
                file.close()
            files = self._files.setdefault(part, [])
            files.append(self.out / f".{part}-{len(files)}.tmp")
            file = self._open[part] = open(files[-1], "wb", buffering=_BUFFER)  # noqa: SIM115  closed by the next one, or at the end
        container.write_record(file, data)

    def __exit__(self, kind: Any, exc: BaseException | None, trace: Any) -> None:
        for file in self._open.values():
            file.close()
        for part, files in self._files.items():
            for i, path in enumerate(files):
                if exc is None:
                    os.replace(path, self.out / self.name(part, i, len(files)))
                else:
                    path.unlink()


@dataclass(frozen=True)
class TfRecordWriter:
    """Writes `<part>-00000-of-00010.tfrecord`, in files of about 128 MiB, and label_map.pbtxt."""

    name: str = "tfrecord"
    image_dir: str | None = None

    def write(
        self, out: Path, records: Iterable[Record], classes: Sequence[str], image: Callable[[Record], bytes]
    ) -> Counter[str]:
        gone = Counter[str]()
        ids = {name: i for i, name in enumerate(classes, 1)}
        with Shards(out, lambda part, i, n: f"{part}-{i:05}-of-{n:05}.tfrecord") as shards:
            for r in records:
                shards.write(r.part, container.encode_example(features(r, image(r), ids)))
                gone.update(_rounded(r.objects))
        gone["part"] += parts_lost(shards.images, stem_of_part)
        (out / "label_map.pbtxt").write_text(label_map.text(classes), encoding="utf-8")
        return +gone


def features(record: Record, encoded: bytes, ids: Mapping[str, int]) -> dict[str, container.Writable]:
    """The features of an image. Raises BadData for one that TensorFlow's object detection cannot decode."""
    form = images.sniff(encoded)
    if form not in ("jpeg", "png"):
        what = f"a {form} image" if form else "no image"
        message = f"{what}: TensorFlow's object detection decodes JPEG and PNG alone"
        raise BadData(record.name, [fault("image_unsupported", record.name, message)])
    name = record.name.encode("utf-8", "surrogateescape")
    objects = record.objects
    width, height = record.width, record.height
    out: dict[str, container.Writable] = {
        "image/encoded": [encoded],
        "image/format": [form.encode()],
        "image/filename": [name],
        "image/source_id": [name],
        "image/height": array("q", (height,)),
        "image/width": array("q", (width,)),
        _SIDES[0]: array("f", [o.x1 / width for o in objects]),
        _SIDES[1]: array("f", [o.y1 / height for o in objects]),
        _SIDES[2]: array("f", [o.x2 / width for o in objects]),
        _SIDES[3]: array("f", [o.y2 / height for o in objects]),
        _TEXT: [o.cls.encode() for o in objects],
        _LABEL: array("q", [ids[o.cls] for o in objects]),
        _FLAGS[0]: array("q", [o.difficult for o in objects]),
    }
    if record.sha256:
        out["image/key/sha256"] = [record.sha256.encode()]
    # Known of no object: left out, so that it is not known afterwards either.
    if any(o.truncated is not None for o in objects):
        out[_FLAGS[1]] = array("q", [(o.truncated or 0) > 0 for o in objects])
    if any(o.occluded is not None for o in objects):
        out[_FLAGS[2]] = array("q", [o.occluded or 0 for o in objects])
    return out


def _rounded(objects: Sequence[Box]) -> dict[str, int]:
    """How many objects come back from a record as something else: see `features` and the module's text."""
    gone: dict[str, int] = {}
    if any([v % 1 for o in objects for v in (o.x1, o.y1, o.x2, o.y2)]):  # noqa: C419  a list is quicker
        gone["rounded"] = sum(any(round(v, 3) != v for v in (o.x1, o.y1, o.x2, o.y2)) for o in objects)
    if any(o.truncated is not None for o in objects):
        gone["truncated"] = sum(o.truncated not in (0, 1) for o in objects)
    if any(o.occluded is not None for o in objects):
        gone["occluded"] = sum(o.occluded is None for o in objects)
    return gone


READER = TfRecordReader()
WRITER = TfRecordWriter()
